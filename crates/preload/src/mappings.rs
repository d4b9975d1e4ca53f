//! `mmap` is hooked to learn what memory an allocator other than glibc's takes from the system: what lies there beside
//! the blocks is the allocator's own and no root. (glibc calls the kernel itself, and its heaps are known by their
//! layout.)

use core::arch::naked_asm;
use core::ffi::{c_int, c_void};
use leakscope_rt::raw::{self, nr};
use leakscope_rt::roots;

macro_rules! mmap_hooks {
    ($($symbol:ident)*) => { $(
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $symbol() {
            // The return address as a seventh argument, on the stack.
            naked_asm!(
                ".cfi_startproc",
                "push qword ptr [rsp]",
                ".cfi_adjust_cfa_offset 8",
                "call {body}",
                "add rsp, 8",
                ".cfi_adjust_cfa_offset -8",
                "ret",
                ".cfi_endproc",
                body = sym mmap_body,
            )
        }
    )* };
}

mmap_hooks! { mmap mmap64 }

unsafe extern "C" fn mmap_body(
    at: usize,
    bytes: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
    caller: u64,
) -> *mut c_void {
    let args = [at, bytes, protection as usize, flags as usize, fd as usize, offset as usize];
    // SAFETY: the caller's contract is mmap's, and this is the system call that libc would make.
    match unsafe { raw::syscall(nr::MMAP, args) } {
        Ok(start) => {
            if flags & libc::MAP_ANONYMOUS != 0 {
                roots::mapped_by(start as u64, bytes as u64, caller);
            }
            start as *mut c_void
        }
        Err(errno) => {
            // SAFETY: errno is the calling thread's.
            unsafe { *libc::__errno_location() = errno.0 };
            libc::MAP_FAILED
        }
    }
}
