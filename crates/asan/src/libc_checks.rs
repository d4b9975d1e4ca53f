//! glibc's own checks of its heap, `mcheck.h`: that heap is not in use, so all is well with it. And names that only other
//! run-times' parts call.

use core::ffi::{c_int, c_void};

/// `MCHECK_OK`.
const OK: c_int = 0;

#[unsafe(no_mangle)]
extern "C" fn mcheck(_on_error: usize) -> c_int {
    OK
}

#[unsafe(no_mangle)]
extern "C" fn mcheck_pedantic(_on_error: usize) -> c_int {
    OK
}

#[unsafe(no_mangle)]
extern "C" fn mprobe(_block: *const c_void) -> c_int {
    OK
}

/// Tells run-times that are linked in from those that are loaded: 1 is the loaded one.
#[unsafe(no_mangle)]
#[used]
static __asan_rt_version: u32 = 1;

#[unsafe(no_mangle)]
unsafe extern "C" fn __sanitizer_internal_memcpy(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8 {
    // SAFETY: the caller's.
    unsafe { core::ptr::copy_nonoverlapping(from, to, bytes) };
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __sanitizer_internal_memmove(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8 {
    // SAFETY: the caller's.
    unsafe { core::ptr::copy(from, to, bytes) };
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __sanitizer_internal_memset(to: *mut u8, value: c_int, bytes: usize) -> *mut u8 {
    // SAFETY: the caller's.
    unsafe { core::ptr::write_bytes(to, value as u8, bytes) };
    to
}
