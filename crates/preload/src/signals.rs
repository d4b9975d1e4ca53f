//! Signals that end the process: our handler stands where the program left the default action, checks for leaks, ends the
//! event log, and lets the signal do what it would have done. `sigaction` and `signal` are hooked so that the program sees the
//! default action there.

use crate::start::is_own_process;
use crate::{ending, mtrace, originals};
use core::ffi::{c_int, c_void};
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;
use leakscope_ledger::layout::flags;
use leakscope_rt::raw;
use leakscope_rt::registers::RegisterFile;
use leakscope_rt::runtime;

/// Signals whose default action ends the process and which a program may handle.
const FATAL: [c_int; 18] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGABRT,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGUSR1,
    libc::SIGSEGV,
    libc::SIGUSR2,
    libc::SIGPIPE,
    libc::SIGALRM,
    libc::SIGTERM,
    libc::SIGXCPU,
    libc::SIGXFSZ,
    libc::SIGVTALRM,
    libc::SIGSYS,
];

/// Signals (bit n-1) at which our handler stands.
static OURS: AtomicU64 = AtomicU64::new(0);

fn is_fatal(signal: c_int) -> bool {
    FATAL.contains(&signal)
}

fn handler_address() -> usize {
    handler as *const () as usize
}

fn our_action() -> libc::sigaction {
    // SAFETY: sigaction is integers; zero bytes are valid.
    let mut action: libc::sigaction = unsafe { core::mem::zeroed() };
    action.sa_sigaction = handler_address();
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    action
}

/// Whether there is something to do at a fatal signal.
fn is_wanted() -> bool {
    runtime::flag(flags::CHECK_AT_EXIT) || mtrace::is_log_wanted()
}

/// Puts our handler wherever the default action stands.
pub fn install() {
    if !is_wanted() {
        return;
    }
    let Some(original) = originals::sigaction::find() else { return };
    for signal in FATAL {
        // SAFETY: valid structures of our own.
        unsafe {
            let mut present: libc::sigaction = core::mem::zeroed();
            if original(signal, core::ptr::null(), &raw mut present) == 0 && present.sa_sigaction == libc::SIG_DFL {
                let action = our_action();
                original(signal, &raw const action, core::ptr::null_mut());
                OURS.fetch_or(1 << (signal - 1), Relaxed);
            }
        }
    }
}

unsafe extern "C" fn handler(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    if is_own_process() {
        // SAFETY: the kernel gives a valid context.
        let mut registers = unsafe { RegisterFile::of_signal(context.cast()) };
        registers.rsp = registers.rsp.wrapping_sub(128);
        ending::on_fatal_signal(signal, &registers);
    }
    // SAFETY: restores the default action and sends the signal again, with the same information: it is delivered when
    // this handler returns. A fault happens again by itself.
    unsafe {
        let default = [0u64; 4];
        let _ = raw::syscall(raw::nr::RT_SIGACTION, [signal as usize, default.as_ptr() as usize, 0, 8, 0, 0]);
        const RT_TGSIGQUEUEINFO: usize = 297;
        let (pid, tid) = (raw::getpid() as usize, raw::gettid() as usize);
        if raw::syscall(RT_TGSIGQUEUEINFO, [pid, tid, signal as usize, info as usize, 0, 0]).is_err() {
            let _ = raw::syscall(raw::nr::TGKILL, [pid, tid, signal as usize, 0, 0, 0]);
        }
    }
}

/// # Safety
/// As sigaction(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn sigaction(signal: c_int, new: *const libc::sigaction, old: *mut libc::sigaction) -> c_int {
    let Some(original) = originals::sigaction::find() else { return -1 };
    let bit = if is_fatal(signal) { 1 << (signal - 1) } else { 0 };
    let stands_in = OURS.load(Relaxed) & bit != 0;
    if bit == 0 || runtime::ledger().is_none() {
        // SAFETY: the caller's contract is sigaction's.
        return unsafe { original(signal, new, old) };
    }
    // SAFETY: the caller's contract is sigaction's; the replacement is a valid structure of our own.
    unsafe {
        let to_default = new.as_ref().is_some_and(|new| new.sa_sigaction == libc::SIG_DFL);
        let ours = our_action();
        let result =
            if to_default && is_wanted() { original(signal, &raw const ours, old) } else { original(signal, new, old) };
        if result == 0 {
            if stands_in && let Some(old) = old.as_mut() {
                old.sa_sigaction = libc::SIG_DFL;
                old.sa_flags = 0;
            }
            if !new.is_null() {
                set_ours(bit, to_default);
            }
        }
        result
    }
}

fn set_ours(bit: u64, ours: bool) {
    if ours {
        OURS.fetch_or(bit, Relaxed);
    } else {
        OURS.fetch_and(!bit, Relaxed);
    }
}

/// The body of `signal` and its relatives.
unsafe fn set_handler(original: unsafe extern "C" fn(c_int, usize) -> usize, signal: c_int, handler: usize) -> usize {
    let bit = if is_fatal(signal) { 1 << (signal - 1) } else { 0 };
    let stands_in = OURS.load(Relaxed) & bit != 0;
    // SAFETY: the caller's contract is signal's.
    let old = unsafe { original(signal, handler) };
    if bit == 0 || old == libc::SIG_ERR || runtime::ledger().is_none() {
        return old;
    }
    let to_default = handler == libc::SIG_DFL && is_wanted();
    if to_default && let Some(sigaction) = originals::sigaction::find() {
        let action = our_action();
        // SAFETY: a valid structure of our own.
        unsafe { sigaction(signal, &raw const action, core::ptr::null_mut()) };
    }
    set_ours(bit, to_default);
    if stands_in { libc::SIG_DFL } else { old }
}

/// # Safety
/// As signal(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn signal(signal: c_int, handler: usize) -> usize {
    match originals::signal::find() {
        // SAFETY: the caller's contract is signal's.
        Some(original) => unsafe { set_handler(original, signal, handler) },
        None => libc::SIG_ERR,
    }
}

/// # Safety
/// As sysv_signal(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn __sysv_signal(signal: c_int, handler: usize) -> usize {
    match originals::sysv_signal::find() {
        // SAFETY: the caller's contract is sysv_signal's.
        Some(original) => unsafe { set_handler(original, signal, handler) },
        None => libc::SIG_ERR,
    }
}
