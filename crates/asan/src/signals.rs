//! sigaction and signal: the program may replace our handlers unless the options forbid it.

use crate::hook::originals;
use core::ffi::c_int;
use leakscope_asan_rt::signals::{handling, real_sigaction};

originals! {
    fn signal(number: c_int, handler: usize) -> usize;
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sigaction(number: c_int, new: *const libc::sigaction, old: *mut libc::sigaction) -> c_int {
    if !new.is_null() && leakscope_asan_rt::init::is_ready() && handling(number).is_exclusive() {
        if !old.is_null() {
            // SAFETY: the program's own structure; only the present action is asked for.
            return unsafe { real_sigaction(number, core::ptr::null(), old) };
        }
        return 0;
    }
    // SAFETY: the program's call.
    unsafe { real_sigaction(number, new, old) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn signal(number: c_int, handler: usize) -> usize {
    if leakscope_asan_rt::init::is_ready() && handling(number).is_exclusive() {
        return 0;
    }
    // SAFETY: the program's call.
    unsafe { real::signal(number, handler) }
}
