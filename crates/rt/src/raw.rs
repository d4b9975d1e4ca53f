//! System calls without libc: no errno, no cancellation point, no lock.
//!
//! May run in any thread, in a signal handler, and in a process that is about to end.

use core::arch::asm;

/// Numbers of the calls used here (x86-64).
pub mod nr {
    #![allow(missing_docs)]
    pub const READ: usize = 0;
    pub const WRITE: usize = 1;
    pub const CLOSE: usize = 3;
    pub const MMAP: usize = 9;
    pub const MUNMAP: usize = 11;
    pub const RT_SIGACTION: usize = 13;
    pub const RT_SIGPROCMASK: usize = 14;
    pub const MREMAP: usize = 25;
    pub const MINCORE: usize = 27;
    pub const MADVISE: usize = 28;
    pub const NANOSLEEP: usize = 35;
    pub const GETPID: usize = 39;
    pub const SOCKET: usize = 41;
    pub const CONNECT: usize = 42;
    pub const SENDTO: usize = 44;
    pub const RECVMSG: usize = 47;
    pub const CLONE: usize = 56;
    pub const EXIT: usize = 60;
    pub const WAIT4: usize = 61;
    pub const KILL: usize = 62;
    pub const FCNTL: usize = 72;
    pub const READLINK: usize = 89;
    pub const GETPPID: usize = 110;
    pub const PRCTL: usize = 157;
    pub const GETTID: usize = 186;
    pub const FUTEX: usize = 202;
    pub const GETDENTS64: usize = 217;
    pub const CLOCK_GETTIME: usize = 228;
    pub const EXIT_GROUP: usize = 231;
    pub const TGKILL: usize = 234;
    pub const OPENAT: usize = 257;
    pub const PROCESS_VM_READV: usize = 310;
}

/// A failed system call: the positive errno.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Errno(pub i32);

/// Makes a system call with up to six arguments.
///
/// # Errors
/// The errno that the kernel gave.
///
/// # Safety
/// The call with these arguments must not break Rust's rules: pointers valid for what the call does with them,
/// no mapping removed that is in use.
#[inline]
pub unsafe fn syscall(number: usize, args: [usize; 6]) -> Result<usize, Errno> {
    let result: isize;
    // SAFETY: the caller vouches for the call itself; the kernel clobbers rcx and r11 only.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") args[0], in("rsi") args[1], in("rdx") args[2],
            in("r10") args[3], in("r8") args[4], in("r9") args[5],
            lateout("rcx") _, lateout("r11") _,
            options(nostack)
        );
    }
    if (-4095..0).contains(&result) { Err(Errno(-result as i32)) } else { Ok(result as usize) }
}

macro_rules! call {
    ($number:expr $(, $arg:expr)* $(,)?) => {{
        let given = [$($arg as usize),*];
        let mut args = [0usize; 6];
        let mut i = 0;
        while i < given.len() { args[i] = given[i]; i += 1; }
        $crate::raw::syscall($number, args)
    }};
}
pub(crate) use call;

/// The calling thread's kernel id.
pub fn gettid() -> u32 {
    // SAFETY: takes no pointers.
    unsafe { call!(nr::GETTID, 0) }.unwrap_or(0) as u32
}

/// The process id.
pub fn getpid() -> u32 {
    // SAFETY: takes no pointers.
    unsafe { call!(nr::GETPID, 0) }.unwrap_or(0) as u32
}

/// The parent's process id.
pub fn getppid() -> u32 {
    // SAFETY: takes no pointers.
    unsafe { call!(nr::GETPPID, 0) }.unwrap_or(0) as u32
}

/// Nanoseconds of a clock (CLOCK_REALTIME 0, CLOCK_MONOTONIC 1).
pub fn clock_ns(clock: i32) -> u64 {
    let mut time = [0u64; 2];
    // SAFETY: the kernel writes two words to `time`.
    let _ = unsafe { call!(nr::CLOCK_GETTIME, clock, time.as_mut_ptr()) };
    time[0].wrapping_mul(1_000_000_000).wrapping_add(time[1])
}

/// The time-stamp counter.
#[inline(always)]
pub fn tsc() -> u64 {
    // SAFETY: rdtsc is always available on x86-64 and touches no memory.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Sleeps for about `ns` nanoseconds (less than a second).
pub fn sleep_ns(ns: u64) {
    let time = [0u64, ns];
    // SAFETY: the kernel reads two words from `time`.
    let _ = unsafe { call!(nr::NANOSLEEP, time.as_ptr(), 0) };
}

/// Writes all of `bytes` to a descriptor, as far as it takes them.
pub fn write_all(fd: i32, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        // SAFETY: the kernel reads `bytes`.
        match unsafe { call!(nr::WRITE, fd, bytes.as_ptr(), bytes.len()) } {
            Ok(written) if written > 0 => bytes = bytes.get(written..).unwrap_or(&[]),
            Err(Errno(4)) => {}
            _ => return,
        }
    }
}

/// Opens a file for reading. `path` ends with a zero byte.
///
/// # Errors
/// The errno that the kernel gave.
pub fn open_read(path: &core::ffi::CStr) -> Result<i32, Errno> {
    const AT_FDCWD: isize = -100;
    const O_CLOEXEC: usize = 0o2_000_000;
    // SAFETY: the kernel reads the zero-terminated path.
    unsafe { call!(nr::OPENAT, AT_FDCWD, path.as_ptr(), O_CLOEXEC, 0) }.map(|fd| fd as i32)
}

/// Reads into `buffer`; 0 at the end of the file.
///
/// # Errors
/// The errno that the kernel gave.
pub fn read(fd: i32, buffer: &mut [u8]) -> Result<usize, Errno> {
    loop {
        // SAFETY: the kernel writes at most `buffer.len()` bytes to `buffer`.
        match unsafe { call!(nr::READ, fd, buffer.as_mut_ptr(), buffer.len()) } {
            Err(Errno(4)) => {}
            other => return other,
        }
    }
}

/// Closes a descriptor.
pub fn close(fd: i32) {
    // SAFETY: the descriptor is ours.
    let _ = unsafe { call!(nr::CLOSE, fd) };
}

/// Ends the calling process at once.
pub fn exit_group(status: i32) -> ! {
    loop {
        // SAFETY: does not return.
        let _ = unsafe { call!(nr::EXIT_GROUP, status) };
    }
}

/// A short message to standard error, for the few things that the injected code itself has to say.
pub fn complain(message: &str) {
    write_all(2, b"leakscope: ");
    write_all(2, message.as_bytes());
    write_all(2, b"\n");
}
