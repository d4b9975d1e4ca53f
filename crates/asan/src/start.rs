//! The start: `__asan_init` from .preinit_array, or our constructor in programs that do not call it.

use crate::hook::originals;
use crate::{leak_interface, processes, stacks, threads};
use core::ffi::{c_char, c_int, c_void};
use core::sync::atomic::Ordering::Relaxed;
use leakscope_asan_rt::report::hooks;
use leakscope_asan_rt::{init, leaks, originals};

originals! {
    fn __cxa_atexit(function: extern "C" fn(*mut c_void), argument: *mut c_void, object: *mut c_void) -> c_int;
    fn ftrylockfile(stream: *mut c_void) -> c_int;
    fn fflush_unlocked(stream: *mut c_void) -> c_int;
    fn funlockfile(stream: *mut c_void);
}

/// What the program registers runs when initialisation is over, however early the end comes.
#[unsafe(no_mangle)]
unsafe extern "C" fn __cxa_atexit(
    function: extern "C" fn(*mut c_void),
    argument: *mut c_void,
    object: *mut c_void,
) -> c_int {
    extern "C" fn stop(_: *mut c_void) {
        leakscope_asan_rt::globals::stop_init_order_checking();
    }
    // SAFETY: the program's call, and a function of ours that runs before the program's.
    unsafe {
        let result = real::__cxa_atexit(function, argument, object);
        if leakscope_asan_rt::options::options().check_initialization_order {
            real::__cxa_atexit(stop, core::ptr::null_mut(), core::ptr::null_mut());
        }
        result
    }
}

/// Called by instrumented code before anything else of the program; often more than once.
#[unsafe(no_mangle)]
extern "C" fn __asan_init() {
    // Of a program that is linked with the library but not instrumented, one call comes as well: it completes the start.
    init::wake();
    init::complete(once);
}

/// What is done once, when libc is there.
fn once() {
    stacks::publish_options();
    threads::make_key();
    processes::register();
    threads::start_watch();
    leak_interface::look_for_switch();
    find_hooks();
    // SAFETY: a function of the right type. Registered first, it runs last.
    unsafe { real::__cxa_atexit(at_end, core::ptr::null_mut(), core::ptr::null_mut()) };
}

/// Writes out what the program printed: the check ends the process before libc does it. Not while a thread holds the
/// stream, as one that waits for input may for ever.
fn flush_standard_output() {
    let stream = originals::lookup(c"stdout") as *const *mut c_void;
    // SAFETY: null, or libc's variable; the stream is flushed with its lock held.
    unsafe {
        if stream.is_null() || (*stream).is_null() || real::ftrylockfile(*stream) != 0 {
            return;
        }
        real::fflush_unlocked(*stream);
        real::funlockfile(*stream);
    }
}

extern "C" fn at_end(_: *mut c_void) {
    flush_standard_output();
    if leakscope_asan_rt::options::options().atexit {
        leakscope_asan_rt::out!("AddressSanitizer exit stats:\n");
        leakscope_asan_rt::statistics::print();
    }
    leaks::check_at_exit();
}

/// The program's own functions, where it has them: ours are found otherwise, and do nothing.
fn find_hooks() {
    let on_error = originals::lookup(c"__asan_on_error");
    if on_error != crate::interface::__asan_on_error as *const () as usize {
        hooks::ON_ERROR.store(on_error, Relaxed);
    }
    crate::common_interface::find_hooks();
    crate::comparisons::find_listeners();
}

/// The version of the ABI between compilers and run-times.
#[unsafe(no_mangle)]
extern "C" fn __asan_version_mismatch_check_v8() {}

extern "C" fn constructor(_argc: c_int, _argv: *const *const c_char, _environment: *const *const c_char) {
    init::complete(once);
}

#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn(c_int, *const *const c_char, *const *const c_char) = constructor;
