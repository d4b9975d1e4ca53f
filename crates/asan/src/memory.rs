//! mem*: what is read and written is checked before libc does it.
//!
//! Rust calls memcpy, memmove, memset, memcmp and bcmp on its own, also in this library; such calls arrive here as well.
//! They are told by their return address, which lies in our own code, and are done without checks.

use crate::comparisons::{self, Comparison};
use crate::hook::{self, originals};
use core::arch::naked_asm;
use core::ffi::{c_int, c_void};
use leakscope_asan_rt::options::options;
use leakscope_asan_rt::originals::{copy_bytes, memmove_of_libc, memset_of_libc, set_bytes};
use leakscope_asan_rt::shadow_map::is_short_and_clean;

/// memcpy and memmove, with checks in the name of `hook`. Short ranges that are good and do not overlap are most of all
/// calls: what else there is to ask does not matter then, and libc's function is all that is left to do.
///
/// # Safety
/// The program's call of it.
#[inline(always)]
pub unsafe fn copy(
    hook: usize,
    name: &'static str,
    to: *mut c_void,
    from: *const c_void,
    bytes: usize,
    may_not_overlap: bool,
) -> *mut c_void {
    let distance = (to as usize).wrapping_sub(from as usize);
    let is_apart = !may_not_overlap || (distance >= bytes && distance.wrapping_neg() >= bytes);
    match memmove_of_libc() {
        Some(function)
            if is_apart && is_short_and_clean(from as usize, bytes) && is_short_and_clean(to as usize, bytes) =>
        {
            // SAFETY: the program's call.
            unsafe { function(to, from, bytes) }
        }
        // SAFETY: the program's call.
        _ => unsafe { copy_with_care(hook, name, to, from, bytes, may_not_overlap) },
    }
}

#[inline(never)]
unsafe fn copy_with_care(
    hook: usize,
    name: &'static str,
    to: *mut c_void,
    from: *const c_void,
    bytes: usize,
    may_not_overlap: bool,
) -> *mut c_void {
    if hook::is_checking() && options().replace_intrin {
        if may_not_overlap {
            hook::check_overlap(hook, name, to as usize, bytes, from as usize, bytes);
        }
        hook::check_read(hook, name, from as usize, bytes);
        hook::check_write(hook, name, to as usize, bytes);
    }
    // SAFETY: the program's call.
    unsafe { copy_bytes(to as usize, from as usize, bytes) };
    to
}

/// memset, with checks in the name of `hook`.
///
/// # Safety
/// The program's call of it.
#[inline(always)]
pub unsafe fn set(hook: usize, to: *mut c_void, value: c_int, bytes: usize) -> *mut c_void {
    match memset_of_libc() {
        // SAFETY: the program's call.
        Some(function) if is_short_and_clean(to as usize, bytes) => unsafe { function(to, value, bytes) },
        // SAFETY: the program's call.
        _ => unsafe { set_with_care(hook, to, value, bytes) },
    }
}

#[inline(never)]
unsafe fn set_with_care(hook: usize, to: *mut c_void, value: c_int, bytes: usize) -> *mut c_void {
    if options().replace_intrin {
        hook::check_write(hook, "memset", to as usize, bytes);
    }
    // SAFETY: the program's call.
    unsafe { set_bytes(to as usize, value as u8, bytes) };
    to
}

macro_rules! unless_our_own {
    ($($name:ident => $checked:path, $plain:path;)*) => { $(
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name() {
            naked_asm!(
                ".cfi_startproc",
                "mov rax, qword ptr [rsp]",
                "lea r10, [rip + __ehdr_start]",
                "cmp rax, r10",
                "jb 2f",
                "lea r10, [rip + _etext]",
                "cmp rax, r10",
                "jb {plain}",
                "2:",
                "jmp {checked}",
                ".cfi_endproc",
                plain = sym $plain,
                checked = sym $checked,
            )
        }
    )* };
}

unless_our_own! {
    memcpy => memcpy_body, plain_copy;
    memmove => memmove_body, plain_copy;
    memset => memset_body, plain_set;
    memcmp => memcmp_body, plain_compare;
    bcmp => bcmp_body, plain_compare;
}

unsafe extern "C" fn plain_copy(to: *mut c_void, from: *const c_void, bytes: usize) -> *mut c_void {
    // SAFETY: our own call.
    unsafe { copy_bytes(to as usize, from as usize, bytes) };
    to
}

unsafe extern "C" fn plain_set(to: *mut c_void, value: c_int, bytes: usize) -> *mut c_void {
    // SAFETY: our own call.
    unsafe { set_bytes(to as usize, value as u8, bytes) };
    to
}

unsafe extern "C" fn plain_compare(a: *const u8, b: *const u8, bytes: usize) -> c_int {
    for i in 0..bytes {
        // SAFETY: our own call, of that many bytes. Volatile, so that no compiler makes a call of it.
        let (x, y) = unsafe { (a.add(i).read_volatile(), b.add(i).read_volatile()) };
        if x != y {
            return c_int::from(x) - c_int::from(y);
        }
    }
    0
}

unsafe extern "C" fn memcpy_body(to: *mut c_void, from: *const c_void, bytes: usize) -> *mut c_void {
    // SAFETY: the program's call. On this platform memcpy is the same function as memmove, but overlaps are told.
    unsafe { copy(memcpy as *const () as usize, "memcpy", to, from, bytes, true) }
}

unsafe extern "C" fn memmove_body(to: *mut c_void, from: *const c_void, bytes: usize) -> *mut c_void {
    // SAFETY: the program's call.
    unsafe { copy(memmove as *const () as usize, "memmove", to, from, bytes, false) }
}

unsafe extern "C" fn memset_body(to: *mut c_void, value: c_int, bytes: usize) -> *mut c_void {
    // SAFETY: the program's call.
    unsafe { set(memset as *const () as usize, to, value, bytes) }
}

originals! {
    fn memchr(at: *const c_void, value: c_int, bytes: usize) -> *mut c_void;
    fn memrchr(at: *const c_void, value: c_int, bytes: usize) -> *mut c_void;
    fn memmem(at: *const c_void, bytes: usize, needle: *const c_void, needle_bytes: usize) -> *mut c_void;
    fn memcmp(a: *const c_void, b: *const c_void, bytes: usize) -> c_int;
    fn memccpy(to: *mut c_void, from: *const c_void, value: c_int, bytes: usize) -> *mut c_void;
}

#[inline(always)]
unsafe fn compare(hook: usize, name: &'static str, a: *const c_void, b: *const c_void, bytes: usize) -> c_int {
    if memmove_of_libc().is_some() && is_short_and_clean(a as usize, bytes) && is_short_and_clean(b as usize, bytes) {
        // SAFETY: the program's call.
        return unsafe { real::memcmp(a, b, bytes) };
    }
    // SAFETY: the program's call.
    unsafe { compare_with_care(hook, name, a, b, bytes) }
}

#[inline(never)]
unsafe fn compare_with_care(
    hook: usize,
    name: &'static str,
    a: *const c_void,
    b: *const c_void,
    bytes: usize,
) -> c_int {
    if hook::is_checking() && options().intercept_memcmp {
        if options().strict_memcmp {
            hook::check_read(hook, name, a as usize, bytes);
            hook::check_read(hook, name, b as usize, bytes);
            // SAFETY: the program's call.
            return unsafe { real::memcmp(a, b, bytes) };
        }
        let mut at = 0;
        // SAFETY: the program's call; up to the first difference.
        let difference = unsafe {
            loop {
                if at == bytes {
                    break 0;
                }
                let (x, y) = (*a.cast::<u8>().add(at), *b.cast::<u8>().add(at));
                at += 1;
                if x != y {
                    break c_int::from(x) - c_int::from(y);
                }
            }
        };
        hook::check_read(hook, name, a as usize, at);
        hook::check_read(hook, name, b as usize, at);
        return difference;
    }
    // SAFETY: the program's call.
    unsafe { real::memcmp(a, b, bytes) }
}

unsafe extern "C" fn memcmp_body(a: *const c_void, b: *const c_void, bytes: usize) -> c_int {
    // SAFETY: the program's call.
    let result = unsafe { compare(memcmp as *const () as usize, "memcmp", a, b, bytes) };
    let words = [a as usize, b as usize, bytes, result as usize, 0];
    comparisons::tell(Comparison::Memcmp, memcmp as *const () as usize, words);
    result
}

unsafe extern "C" fn bcmp_body(a: *const c_void, b: *const c_void, bytes: usize) -> c_int {
    // SAFETY: the program's call.
    let result = unsafe { compare(bcmp as *const () as usize, "bcmp", a, b, bytes) };
    let words = [a as usize, b as usize, bytes, result as usize, 0];
    comparisons::tell(Comparison::Memcmp, bcmp as *const () as usize, words);
    result
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memchr(at: *const c_void, value: c_int, bytes: usize) -> *mut c_void {
    // SAFETY: the program's call.
    let found = unsafe { real::memchr(at, value, bytes) };
    let read = if found.is_null() { bytes } else { found as usize - at as usize + 1 };
    hook::check_read(memchr as *const () as usize, "memchr", at as usize, read);
    found
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memrchr(at: *const c_void, value: c_int, bytes: usize) -> *mut c_void {
    hook::check_read(memrchr as *const () as usize, "memrchr", at as usize, bytes);
    // SAFETY: the program's call.
    unsafe { real::memrchr(at, value, bytes) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memmem(
    at: *const c_void,
    bytes: usize,
    needle: *const c_void,
    needle_bytes: usize,
) -> *mut c_void {
    if options().intercept_memmem {
        let hook = memmem as *const () as usize;
        hook::check_read(hook, "memmem", at as usize, bytes);
        hook::check_read(hook, "memmem", needle as usize, needle_bytes);
    }
    // SAFETY: the program's call.
    let found = unsafe { real::memmem(at, bytes, needle, needle_bytes) };
    let words = [at as usize, bytes, needle as usize, needle_bytes, found as usize];
    comparisons::tell(Comparison::Memmem, memmem as *const () as usize, words);
    found
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memccpy(to: *mut c_void, from: *const c_void, value: c_int, bytes: usize) -> *mut c_void {
    let hook = memccpy as *const () as usize;
    // SAFETY: the program's call.
    let found = unsafe { real::memchr(from, value, bytes) };
    let copied = if found.is_null() { bytes } else { found as usize - from as usize + 1 };
    hook::check_read(hook, "memccpy", from as usize, copied);
    hook::check_write(hook, "memccpy", to as usize, copied);
    // SAFETY: the program's call.
    unsafe { real::memccpy(to, from, value, bytes) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn bzero(to: *mut c_void, bytes: usize) {
    hook::check_write(bzero as *const () as usize, "bzero", to as usize, bytes);
    // SAFETY: the program's call.
    unsafe { set_bytes(to as usize, 0, bytes) };
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __bzero(to: *mut c_void, bytes: usize) {
    hook::check_write(__bzero as *const () as usize, "__bzero", to as usize, bytes);
    // SAFETY: the program's call.
    unsafe { set_bytes(to as usize, 0, bytes) };
}
