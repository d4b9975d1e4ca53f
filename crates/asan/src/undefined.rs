//! `__ubsan_handle_*`: what clang's code calls when a check of `-fsanitize=undefined` fails. Each has a second form that
//! does not come back.

use leakscope_asan_rt::undefined::{self, Description, Place};

/// A handler and its form that ends the process.
macro_rules! handlers {
    ($($name:ident $fatal:ident ($($argument:ident),*) |$data:ident, $is_fatal:ident| $body:expr;)*) => { $(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(data: *const Place, $($argument: usize),*) {
            // SAFETY: what the compiler passes.
            let ($data, $is_fatal) = (unsafe { Description::new(data) }, false);
            $body;
        }

        #[unsafe(no_mangle)]
        unsafe extern "C" fn $fatal(data: *const Place, $($argument: usize),*) {
            // SAFETY: as above.
            let ($data, $is_fatal) = (unsafe { Description::new(data) }, true);
            $body;
        }
    )* };
}

/// What an argument is declared to be, and what declares it.
const NON_NULL: [&str; 2] = ["which is declared to never be null", "nonnull attribute"];
const NULLABILITY: [&str; 2] = ["which is declared to be _Nonnull", "_Nonnull type annotation"];
/// The same of results.
const NON_NULL_RESULT: [&str; 2] = ["declared to never return null", "returns_nonnull attribute"];
const NULLABILITY_RESULT: [&str; 2] = ["declared to never return null", "_Nonnull return type annotation"];

handlers! {
    __ubsan_handle_type_mismatch_v1 __ubsan_handle_type_mismatch_v1_abort (pointer)
        |data, is_fatal| undefined::type_mismatch(data, pointer, is_fatal);
    __ubsan_handle_alignment_assumption __ubsan_handle_alignment_assumption_abort (pointer, alignment, offset)
        |data, is_fatal| undefined::alignment(data, pointer, alignment, offset, is_fatal);
    __ubsan_handle_add_overflow __ubsan_handle_add_overflow_abort (left, right)
        |data, is_fatal| undefined::overflow(data, "+", left, right, is_fatal);
    __ubsan_handle_sub_overflow __ubsan_handle_sub_overflow_abort (left, right)
        |data, is_fatal| undefined::overflow(data, "-", left, right, is_fatal);
    __ubsan_handle_mul_overflow __ubsan_handle_mul_overflow_abort (left, right)
        |data, is_fatal| undefined::overflow(data, "*", left, right, is_fatal);
    __ubsan_handle_negate_overflow __ubsan_handle_negate_overflow_abort (value)
        |data, is_fatal| undefined::negation(data, value, is_fatal);
    __ubsan_handle_divrem_overflow __ubsan_handle_divrem_overflow_abort (left, right)
        |data, is_fatal| undefined::division(data, left, right, is_fatal);
    __ubsan_handle_shift_out_of_bounds __ubsan_handle_shift_out_of_bounds_abort (left, right)
        |data, is_fatal| undefined::shift(data, left, right, is_fatal);
    __ubsan_handle_out_of_bounds __ubsan_handle_out_of_bounds_abort (index)
        |data, is_fatal| undefined::index(data, index, is_fatal);
    __ubsan_handle_vla_bound_not_positive __ubsan_handle_vla_bound_not_positive_abort (bound)
        |data, is_fatal| undefined::bound(data, bound, is_fatal);
    __ubsan_handle_float_cast_overflow __ubsan_handle_float_cast_overflow_abort (value)
        |data, is_fatal| undefined::float_cast(data, value, is_fatal);
    __ubsan_handle_load_invalid_value __ubsan_handle_load_invalid_value_abort (value)
        |data, is_fatal| undefined::invalid_value(data, value, is_fatal);
    __ubsan_handle_implicit_conversion __ubsan_handle_implicit_conversion_abort (from, to)
        |data, is_fatal| undefined::conversion(data, from, to, is_fatal);
    __ubsan_handle_invalid_builtin __ubsan_handle_invalid_builtin_abort ()
        |data, is_fatal| undefined::builtin(data, is_fatal);
    __ubsan_handle_nonnull_arg __ubsan_handle_nonnull_arg_abort ()
        |data, is_fatal| undefined::null_argument(data, NON_NULL[0], NON_NULL[1], is_fatal);
    __ubsan_handle_nullability_arg __ubsan_handle_nullability_arg_abort ()
        |data, is_fatal| undefined::null_argument(data, NULLABILITY[0], NULLABILITY[1], is_fatal);
    __ubsan_handle_nonnull_return_v1 __ubsan_handle_nonnull_return_v1_abort (place)
        |data, is_fatal| null_result(data, place, NON_NULL_RESULT, is_fatal);
    __ubsan_handle_nullability_return_v1 __ubsan_handle_nullability_return_v1_abort (place)
        |data, is_fatal| null_result(data, place, NULLABILITY_RESULT, is_fatal);
    __ubsan_handle_pointer_overflow __ubsan_handle_pointer_overflow_abort (base, result)
        |data, is_fatal| undefined::pointer(data, base, result, is_fatal);
    __ubsan_handle_function_type_mismatch __ubsan_handle_function_type_mismatch_abort (function)
        |data, is_fatal| undefined::function_type(data, function, is_fatal);
    __ubsan_handle_invalid_objc_cast __ubsan_handle_invalid_objc_cast_abort (_pointer)
        |data, is_fatal| undefined::plain(data, "invalid Objective-C cast", is_fatal);
    __ubsan_handle_cfi_check_fail __ubsan_handle_cfi_check_fail_abort (_pointer, _is_valid)
        |_data, is_fatal| control_flow(is_fatal);
}

fn null_result(data: Description, place: usize, words: [&str; 2], is_fatal: bool) {
    undefined::null_result(data, place as *const Place, words[0], words[1], is_fatal);
}

/// The rest of a description of control flow integrity begins with what kind of check it was, not with a place.
fn control_flow(is_fatal: bool) {
    leakscope_asan_rt::out!("runtime error: control flow integrity check failed\n");
    if is_fatal {
        leakscope_asan_rt::report::die();
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __ubsan_handle_cfi_bad_type(_data: *const Place, _table: usize, _is_valid: bool, _options: u32) {
    control_flow(false);
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __ubsan_handle_builtin_unreachable(data: *const Place) {
    // SAFETY: what the compiler passes.
    undefined::plain(unsafe { Description::new(data) }, "execution reached an unreachable program point", true);
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __ubsan_handle_missing_return(data: *const Place) {
    let message = "execution reached the end of a value-returning function without returning a value";
    // SAFETY: as above.
    undefined::plain(unsafe { Description::new(data) }, message, true);
}

/// Types that objects were seen to have, by the compiler's hash: code looks here before it calls the handler below.
#[unsafe(no_mangle)]
#[used]
static mut __ubsan_vptr_type_cache: [usize; 128] = [0; 128];

/// `-fsanitize=vptr` asks whether an object has the type that it is used as: answered with yes, and not asked again.
fn object_type(hash: usize) {
    // SAFETY: a word that threads may overwrite at will: at worst the handler is called again.
    unsafe { core::ptr::write_volatile((&raw mut __ubsan_vptr_type_cache).cast::<usize>().add(hash % 128), hash) };
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __ubsan_handle_dynamic_type_cache_miss(_data: *const Place, _pointer: usize, hash: usize) {
    object_type(hash);
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __ubsan_handle_dynamic_type_cache_miss_abort(_data: *const Place, _pointer: usize, hash: usize) {
    object_type(hash);
}
