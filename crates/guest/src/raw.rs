//! System calls and copies of the target's memory, in assembly where a signal handler must know the place.
//!
//! Any thread, any time; signal handlers too. Errors are the kernel's: a negative errno.
//!
//! Two pieces of code are known to the handler by their addresses ([`repair`]):
//! - `leakscope_guest_syscall` makes a system call for the target unless the thread's pending word is set. A handler
//!   that sets the word while the thread is between the look at it and the `syscall` instruction, or on that instruction
//!   because the kernel is about to restart the call, sends the thread to the exit that returns [`RESTART`]. So no signal
//!   is slept through, and which calls may be restarted is the kernel's knowledge.
//! - `leakscope_guest_copy` may fault: then it ends with what is left.

use std::arch::{asm, global_asm};
use std::sync::atomic::AtomicU32;

use leakscope_translate::GUEST_END;

/// What [`interruptible`] returns when a signal is pending: the call was not made, or the kernel would restart it. The
/// kernel's own number for that (`ERESTARTSYS`), which no call returns to user space.
pub const RESTART: i64 = -512;

global_asm!(
    ".globl leakscope_guest_syscall",
    "leakscope_guest_syscall:",
    "push rbx",
    "mov rbx, rsi",
    "mov rax, [rdi]",
    "mov rsi, [rdi + 16]",
    "mov rdx, [rdi + 24]",
    "mov r10, [rdi + 32]",
    "mov r8, [rdi + 40]",
    "mov r9, [rdi + 48]",
    "mov rdi, [rdi + 8]",
    ".globl leakscope_guest_window",
    "leakscope_guest_window:",
    "cmp dword ptr [rbx], 0",
    "jne leakscope_guest_interrupted",
    ".globl leakscope_guest_window_syscall",
    "leakscope_guest_window_syscall:",
    "syscall",
    "pop rbx",
    "ret",
    ".globl leakscope_guest_interrupted",
    "leakscope_guest_interrupted:",
    "mov rax, {restart}",
    "pop rbx",
    "ret",
    ".globl leakscope_guest_copy",
    "leakscope_guest_copy:",
    "mov rcx, rdx",
    ".globl leakscope_guest_copy_instruction",
    "leakscope_guest_copy_instruction:",
    "rep movsb",
    ".globl leakscope_guest_copy_end",
    "leakscope_guest_copy_end:",
    "mov rax, rcx",
    "ret",
    ".globl leakscope_guest_restorer",
    "leakscope_guest_restorer:",
    "mov eax, 15",
    "syscall",
    restart = const RESTART,
);

unsafe extern "C" {
    fn leakscope_guest_syscall(call: *const [u64; 7], pending: *const AtomicU32) -> i64;
    fn leakscope_guest_window();
    fn leakscope_guest_window_syscall();
    fn leakscope_guest_interrupted();
    fn leakscope_guest_copy(to: u64, from: u64, bytes: u64) -> u64;
    fn leakscope_guest_copy_instruction();
    fn leakscope_guest_copy_end();
    fn leakscope_guest_restorer();
}

/// Makes a system call of our own.
///
/// # Safety
/// The call must be harmless for this process: what it writes to is ours, or the target's and meant.
pub unsafe fn syscall(number: i64, arguments: [u64; 6]) -> i64 {
    let [a, b, c, d, e, f] = arguments;
    let result: i64;
    // SAFETY: the caller's promise; the kernel keeps all registers but rax, rcx, r11.
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e,
            in("r9") f, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

/// Makes a system call for the target unless `pending` is not 0; [`RESTART`] if a signal came first.
///
/// # Safety
/// As for [`syscall`].
#[inline(never)]
pub unsafe fn interruptible(number: u64, arguments: [u64; 6], pending: &AtomicU32) -> i64 {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: the caller's promise; both pointers are valid for the call.
    unsafe { leakscope_guest_syscall(&[number, a, b, c, d, e, f], pending) }
}

/// The address of `rt_sigreturn`, for handlers that we install.
#[must_use]
pub fn restorer() -> u64 {
    leakscope_guest_restorer as *const () as u64
}

/// What the handler has to do about an interrupted piece of this file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repair {
    /// A signal that is pending now: go on here.
    Interrupted(u64),
    /// A fault in a copy: go on here.
    Fault(u64),
}

/// Which repair a host address needs: `fault` for a synchronous signal.
#[must_use]
pub fn repair(host_pc: u64, fault: bool) -> Option<Repair> {
    let window = leakscope_guest_window as *const () as u64..=leakscope_guest_window_syscall as *const () as u64;
    if fault {
        if host_pc == leakscope_guest_copy_instruction as *const () as u64 {
            return Some(Repair::Fault(leakscope_guest_copy_end as *const () as u64));
        }
        return None;
    }
    window.contains(&host_pc).then_some(Repair::Interrupted(leakscope_guest_interrupted as *const () as u64))
}

/// An address of the target that cannot be read or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadAddress;

/// Whether a range lies where the target may have memory.
#[must_use]
pub fn is_target(address: u64, bytes: u64) -> bool {
    address.checked_add(bytes).is_some_and(|end| end <= GUEST_END)
}

/// Reads the target's memory.
///
/// # Errors
/// A byte is not readable.
pub fn read_bytes(address: u64, into: &mut [u8]) -> Result<(), BadAddress> {
    if !is_target(address, into.len() as u64) {
        return Err(BadAddress);
    }
    // SAFETY: the destination is a slice; a fault on the source ends the copy (the handler is installed before the
    // target runs, and before that nothing is read but what the loader mapped).
    let left = unsafe { leakscope_guest_copy(into.as_mut_ptr() as u64, address, into.len() as u64) };
    if left == 0 { Ok(()) } else { Err(BadAddress) }
}

/// Writes the target's memory. `Cpu::before_write` comes first where code may be translated from it.
///
/// # Errors
/// A byte is not writable; bytes before it were written.
pub fn write_bytes(address: u64, from: &[u8]) -> Result<(), BadAddress> {
    if !is_target(address, from.len() as u64) {
        return Err(BadAddress);
    }
    // SAFETY: the source is a slice; what lies below `GUEST_END` and is the engine's is refused by nobody, but the target
    // could write there itself, and a fault ends the copy.
    let left = unsafe { leakscope_guest_copy(address, from.as_ptr() as u64, from.len() as u64) };
    if left == 0 { Ok(()) } else { Err(BadAddress) }
}

/// Reads a number.
///
/// # Errors
/// A byte is not readable.
pub fn read_u64(address: u64) -> Result<u64, BadAddress> {
    let mut bytes = [0; 8];
    read_bytes(address, &mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}

/// Reads a number.
///
/// # Errors
/// A byte is not readable.
pub fn read_u32(address: u64) -> Result<u32, BadAddress> {
    let mut bytes = [0; 4];
    read_bytes(address, &mut bytes)?;
    Ok(u32::from_ne_bytes(bytes))
}

/// Writes a number.
///
/// # Errors
/// A byte is not writable.
pub fn write_u64(address: u64, value: u64) -> Result<(), BadAddress> {
    write_bytes(address, &value.to_ne_bytes())
}

/// Writes a number.
///
/// # Errors
/// A byte is not writable.
pub fn write_u32(address: u64, value: u32) -> Result<(), BadAddress> {
    write_bytes(address, &value.to_ne_bytes())
}

/// Reads a string up to its zero, without it.
///
/// # Errors
/// A byte is not readable, or there are more than `most` of them.
pub fn read_string(address: u64, most: usize) -> Result<Vec<u8>, BadAddress> {
    let mut text = Vec::new();
    let mut at = address;
    let mut chunk = [0; 256];
    while text.len() <= most {
        // Up to the end of an aligned chunk: such a read never goes over into a page that the string does not reach.
        let want = (256 - at % 256) as usize;
        read_bytes(at, &mut chunk[..want])?;
        if let Some(end) = chunk[..want].iter().position(|&byte| byte == 0) {
            text.extend_from_slice(&chunk[..end]);
            return Ok(text);
        }
        text.extend_from_slice(&chunk[..want]);
        at += want as u64;
    }
    Err(BadAddress)
}

/// More than `execve` takes for all strings together, so that the kernel is who refuses.
const MOST_STRING_BYTES: usize = 8 << 20;

/// Reads an array of string pointers that ends with a null pointer (`argv`); null itself is an empty one.
///
/// # Errors
/// Something is not readable, or there is more than the kernel would take.
pub fn read_strings(address: u64) -> Result<Vec<Vec<u8>>, BadAddress> {
    let mut strings = Vec::new();
    if address == 0 {
        return Ok(strings);
    }
    loop {
        match read_u64(address + 8 * strings.len() as u64)? {
            0 => return Ok(strings),
            pointer => strings.push(read_string(pointer, MOST_STRING_BYTES)?),
        }
    }
}

/// `gettid`.
#[must_use]
pub fn gettid() -> i32 {
    // SAFETY: it changes nothing.
    unsafe { syscall(libc::SYS_gettid, [0; 6]) as i32 }
}

/// `getpid`, not from any cache.
#[must_use]
pub fn getpid() -> i32 {
    // SAFETY: it changes nothing.
    unsafe { syscall(libc::SYS_getpid, [0; 6]) as i32 }
}
