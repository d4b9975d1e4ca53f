//! wait* and ptrace: what the kernel writes about other processes.

use crate::hook::{check_write, originals};
use core::ffi::{c_int, c_long, c_void};

originals! {
    fn wait(status: *mut c_int) -> c_int;
    fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
    fn wait3(status: *mut c_int, options: c_int, usage: *mut c_void) -> c_int;
    fn wait4(pid: c_int, status: *mut c_int, options: c_int, usage: *mut c_void) -> c_int;
    fn waitid(kind: c_int, id: u32, info: *mut c_void, options: c_int) -> c_int;
    fn ptrace(request: c_long, pid: c_int, address: *mut c_void, data: *mut c_void) -> c_long;
}

const USAGE_BYTES: usize = size_of::<libc::rusage>();

fn check(hook: usize, name: &str, result: c_int, status: *mut c_int, usage: *mut c_void) {
    if result == -1 {
        return;
    }
    if !status.is_null() {
        check_write(hook, name, status as usize, 4);
    }
    if !usage.is_null() {
        check_write(hook, name, usage as usize, USAGE_BYTES);
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn wait(status: *mut c_int) -> c_int {
    // SAFETY: the program's call.
    let result = unsafe { real::wait(status) };
    check(wait as *const () as usize, "wait", result, status, core::ptr::null_mut());
    result
}

#[unsafe(no_mangle)]
unsafe extern "C" fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int {
    // SAFETY: the program's call.
    let result = unsafe { real::waitpid(pid, status, options) };
    check(waitpid as *const () as usize, "waitpid", result, status, core::ptr::null_mut());
    result
}

#[unsafe(no_mangle)]
unsafe extern "C" fn wait3(status: *mut c_int, options: c_int, usage: *mut c_void) -> c_int {
    // SAFETY: the program's call.
    let result = unsafe { real::wait3(status, options, usage) };
    check(wait3 as *const () as usize, "wait3", result, status, usage);
    result
}

#[unsafe(no_mangle)]
unsafe extern "C" fn wait4(pid: c_int, status: *mut c_int, options: c_int, usage: *mut c_void) -> c_int {
    // SAFETY: the program's call.
    let result = unsafe { real::wait4(pid, status, options, usage) };
    check(wait4 as *const () as usize, "wait4", result, status, usage);
    result
}

/// The structure of this call is written by libc, not the kernel, and whole: it is checked before.
#[unsafe(no_mangle)]
unsafe extern "C" fn waitid(kind: c_int, id: u32, info: *mut c_void, options: c_int) -> c_int {
    let mut here = [0u64; size_of::<libc::siginfo_t>() / 8];
    let to = if info.is_null() { info } else { here.as_mut_ptr().cast() };
    // SAFETY: the program's call, into room of our own first: how much is written does not depend on it.
    let result = unsafe { real::waitid(kind, id, to, options) };
    if result != -1 && !info.is_null() {
        check_write(waitid as *const () as usize, "waitid", info as usize, size_of_val(&here));
        // SAFETY: the program's structure, checked.
        unsafe { leakscope_asan_rt::originals::copy_bytes(info as usize, here.as_ptr() as usize, size_of_val(&here)) };
    }
    result
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ptrace(request: c_long, pid: c_int, address: *mut c_void, data: *mut c_void) -> c_long {
    const GETREGS: c_long = 12;
    const GETFPREGS: c_long = 14;
    const GETFPXREGS: c_long = 18;
    const GETREGSET: c_long = 0x4204;
    let (at, bytes) = match request {
        GETREGS => (data as usize, size_of::<libc::user_regs_struct>()),
        GETFPREGS | GETFPXREGS => (data as usize, 512),
        // SAFETY: the program's own `struct iovec`.
        GETREGSET if !data.is_null() => unsafe { *data.cast::<(usize, usize)>() },
        _ => (0, 0),
    };
    check_write(ptrace as *const () as usize, "ptrace", at, bytes);
    // SAFETY: the program's call.
    unsafe { real::ptrace(request, pid, address, data) }
}
