//! sigaction and signal: the program may replace our handlers unless the options forbid it.

use crate::hook::originals;
use core::ffi::c_int;
use core::sync::atomic::Ordering::Relaxed;
use leakscope_asan_rt::signals::{SETTING_IDS, handling, real_sigaction};

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

/// glibc tells all threads by a signal that the leak check uses as well: it has to know when that is glibc's.
macro_rules! set_ids {
    ($($name:ident($($arg:ident: $kind:ty),*);)*) => {
        mod ids {
            use super::*;
            originals! { $( fn $name($($arg: $kind),*) -> c_int; )* }
            $(
                #[unsafe(no_mangle)]
                unsafe extern "C" fn $name($($arg: $kind),*) -> c_int {
                    SETTING_IDS.fetch_add(1, Relaxed);
                    // SAFETY: the program's call.
                    let result = unsafe { real::$name($($arg),*) };
                    SETTING_IDS.fetch_sub(1, Relaxed);
                    result
                }
            )*
        }
    };
}

set_ids! {
    setuid(a: u32);
    setgid(a: u32);
    seteuid(a: u32);
    setegid(a: u32);
    setreuid(a: u32, b: u32);
    setregid(a: u32, b: u32);
    setresuid(a: u32, b: u32, c: u32);
    setresgid(a: u32, b: u32, c: u32);
    setgroups(count: usize, list: *const u32);
}
