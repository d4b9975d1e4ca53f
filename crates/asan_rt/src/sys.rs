//! System calls and memory straight from the kernel.
//!
//! May run in any thread, in signal handlers, and before libc is initialised.

use alloc::vec::Vec;
use core::ffi::CStr;
pub use leakscope_rt::raw::{Errno, getpid, gettid, write_all};
use leakscope_rt::raw::{nr, syscall};

const PROT_NONE: usize = 0;
const PROT_READ_WRITE: usize = 3;
const PRIVATE_ANONYMOUS_NORESERVE: usize = 2 | 0x20 | 0x4000;
const MAP_FIXED: usize = 0x10;
const MAP_FIXED_NOREPLACE: usize = 0x10_0000;

/// Bytes of a page.
pub const PAGE: usize = 4096;

/// Maps `bytes` at exactly `address`, over whatever is there: readable and writable, or no access at all.
///
/// # Errors
/// The errno of mmap.
///
/// # Safety
/// Nothing that is in use lies in the range.
pub unsafe fn map_at(address: usize, bytes: usize, accessible: bool) -> Result<(), Errno> {
    let protection = if accessible { PROT_READ_WRITE } else { PROT_NONE };
    let flags = PRIVATE_ANONYMOUS_NORESERVE | MAP_FIXED;
    // SAFETY: the caller vouches for the range.
    unsafe { syscall(nr::MMAP, [address, bytes, protection, flags, usize::MAX, 0]) }.map(|_| ())
}

/// As [`map_at`], accessible, with its pages there at once: one call in place of a fault for each.
///
/// # Errors
/// The errno of mmap.
///
/// # Safety
/// As [`map_at`].
pub unsafe fn map_filled_at(address: usize, bytes: usize) -> Result<(), Errno> {
    const POPULATE: usize = 0x8000;
    let flags = PRIVATE_ANONYMOUS_NORESERVE | MAP_FIXED | POPULATE;
    // SAFETY: the caller vouches for the range.
    unsafe { syscall(nr::MMAP, [address, bytes, PROT_READ_WRITE, flags, usize::MAX, 0]) }.map(|_| ())
}

/// As [`map_at`], but fails when something lies in the range.
///
/// # Errors
/// The errno of mmap; EEXIST when the range is not free.
pub fn map_free_range(address: usize, bytes: usize, accessible: bool) -> Result<(), Errno> {
    let protection = if accessible { PROT_READ_WRITE } else { PROT_NONE };
    let flags = PRIVATE_ANONYMOUS_NORESERVE | MAP_FIXED_NOREPLACE;
    // SAFETY: the kernel refuses ranges that hold something.
    let got = unsafe { syscall(nr::MMAP, [address, bytes, protection, flags, usize::MAX, 0]) }?;
    if got == address { Ok(()) } else { Err(Errno(libc::EEXIST)) }
}

/// Maps zeroed pages anywhere, for the program's use (not registered as ours). 0 on failure.
pub fn map_anywhere(bytes: usize) -> usize {
    // SAFETY: a new mapping overlaps nothing.
    unsafe { syscall(nr::MMAP, [0, bytes, PROT_READ_WRITE, PRIVATE_ANONYMOUS_NORESERVE, usize::MAX, 0]) }.unwrap_or(0)
}

/// Gives pages back to the kernel.
///
/// # Safety
/// The range is a mapping that nothing uses any more.
pub unsafe fn unmap(address: usize, bytes: usize) {
    // SAFETY: the caller vouches for the range.
    let _ = unsafe { syscall(nr::MUNMAP, [address, bytes, 0, 0, 0, 0]) };
}

/// What `advise` can say of a range.
#[derive(Clone, Copy)]
pub enum Advice {
    /// Contents may go; the pages read as zero next time.
    DontNeed = 4,
    /// Huge pages where they fit.
    HugePage = 14,
    /// No huge pages.
    NoHugePage = 15,
    /// Not into core files.
    DontDump = 16,
}

/// madvise(2), as a hint.
///
/// # Safety
/// With [`Advice::DontNeed`] nobody needs the contents of the range.
pub unsafe fn advise(address: usize, bytes: usize, advice: Advice) {
    // SAFETY: the caller vouches for the contents.
    let _ = unsafe { syscall(nr::MADVISE, [address, bytes, advice as usize, 0, 0, 0]) };
}

/// Whether the byte at `address` can be read: asks the kernel to.
pub fn is_readable(address: usize) -> bool {
    let mut byte = 0u8;
    peek(address, core::slice::from_mut(&mut byte))
}

/// Copies memory that may not be mapped; false when it is not.
pub fn peek(address: usize, out: &mut [u8]) -> bool {
    let local = [out.as_mut_ptr() as usize, out.len()];
    let remote = [address, out.len()];
    let args = [getpid() as usize, local.as_ptr() as usize, 1, remote.as_ptr() as usize, 1, 0];
    // SAFETY: the kernel writes to `out`, and checks the other side.
    match unsafe { syscall(nr::PROCESS_VM_READV, args) } {
        Ok(got) => got == out.len(),
        Err(Errno(libc::EFAULT)) => false,
        // Not permitted (seccomp): ask a pipe-free way, by mincore, which knows of mappings only.
        Err(_) => {
            if !leakscope_rt::memory::is_mapped(address as u64, out.len() as u64) {
                return false;
            }
            for (i, byte) in out.iter_mut().enumerate() {
                // SAFETY: mapped just now.
                *byte = unsafe { ((address + i) as *const u8).read_volatile() };
            }
            true
        }
    }
}

/// A word of memory that may not be mapped.
pub fn peek_word(address: usize) -> Option<u64> {
    let mut word = [0u8; 8];
    peek(address, &mut word).then(|| u64::from_ne_bytes(word))
}

/// The process that traces this one, if one does.
pub fn tracer() -> Option<u32> {
    let text = read_file(c"/proc/self/status", 1 << 14)?;
    let text = core::str::from_utf8(&text).ok()?;
    let number = text.lines().find_map(|line| line.strip_prefix("TracerPid:"))?.trim().parse().ok()?;
    (number != 0).then_some(number)
}

/// Opens a file: `flags` as for open(2).
///
/// # Errors
/// The errno of openat.
pub fn open(path: &CStr, flags: i32, mode: u32) -> Result<i32, Errno> {
    let args = [libc::AT_FDCWD as usize, path.as_ptr() as usize, flags as usize, mode as usize, 0, 0];
    // SAFETY: the path is a C string.
    unsafe { syscall(nr::OPENAT, args) }.map(|fd| fd as i32)
}

/// Closes a descriptor.
pub fn close(fd: i32) {
    // SAFETY: no memory is involved.
    let _ = unsafe { syscall(nr::CLOSE, [fd as usize, 0, 0, 0, 0, 0]) };
}

/// Reads a whole file, at most `limit` bytes of it.
pub fn read_file(path: &CStr, limit: usize) -> Option<Vec<u8>> {
    let fd = open(path, libc::O_RDONLY | libc::O_CLOEXEC, 0).ok()?;
    let mut all = Vec::new();
    let mut buffer = [0u8; 8192];
    let complete = loop {
        // SAFETY: the kernel writes to `buffer`.
        match unsafe { syscall(nr::READ, [fd as usize, buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0]) } {
            Ok(0) => break true,
            Ok(got) if all.len() + got <= limit => all.extend_from_slice(buffer.get(..got).unwrap_or(&[])),
            Ok(_) => break true,
            Err(Errno(libc::EINTR)) => {}
            Err(_) => break false,
        }
    };
    close(fd);
    complete.then_some(all)
}

/// A file mapped for reading, for good.
pub fn map_file(path: &CStr) -> Option<&'static [u8]> {
    const LSEEK: usize = 8;
    let fd = open(path, libc::O_RDONLY | libc::O_CLOEXEC, 0).ok()?;
    // SAFETY: no memory is involved.
    let bytes = unsafe { syscall(LSEEK, [fd as usize, 0, libc::SEEK_END as usize, 0, 0, 0]) }.unwrap_or(0);
    let args = [0, bytes, libc::PROT_READ as usize, libc::MAP_PRIVATE as usize, fd as usize, 0];
    // SAFETY: a new mapping overlaps nothing.
    let start = if bytes == 0 { Err(Errno(0)) } else { unsafe { syscall(nr::MMAP, args) } };
    close(fd);
    // SAFETY: mapped just now for `bytes`, and never unmapped. A file that shrinks meanwhile is the user's doing.
    start.ok().map(|start| unsafe { core::slice::from_raw_parts(start as *const u8, bytes) })
}

/// Ends the process at once.
pub fn exit_now(code: i32) -> ! {
    loop {
        // SAFETY: takes no pointers.
        let _ = unsafe { syscall(nr::EXIT_GROUP, [code as usize, 0, 0, 0, 0, 0]) };
    }
}

/// Milliseconds of the monotonic clock.
pub fn now_ms() -> u64 {
    const CLOCK_GETTIME: usize = 228;
    let mut time = [0u64; 2];
    let args = [libc::CLOCK_MONOTONIC as usize, time.as_mut_ptr() as usize, 0, 0, 0, 0];
    // SAFETY: the kernel writes two words.
    let _ = unsafe { syscall(CLOCK_GETTIME, args) };
    time[0] * 1000 + time[1] / 1_000_000
}

/// Sleeps for whole seconds.
pub fn sleep_seconds(seconds: u64) {
    let time = [seconds, 0u64];
    // SAFETY: the kernel reads two words.
    let _ = unsafe { syscall(nr::NANOSLEEP, [time.as_ptr() as usize, 0, 0, 0, 0, 0]) };
}
