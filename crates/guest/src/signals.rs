//! The target's signals: sets, dispositions, the frame, our handler, and delivery.
//!
//! The kernel keeps doing most of it: masks and pending signals are its own, signals that no handler of the target gets
//! are ignored, stop or continue the process without us. Our handler stands for the target's handlers and for deaths
//! that a checker wants to know of.

mod action;
mod deliver;
pub mod frame;
mod handler;
mod mask_calls;

pub use action::{Action, Actions, DefaultAction, Disposition, default_action};
pub(crate) use handler::{
    ask, attach_thread, install, install_all, is_ignored, kernel_mask, new_stack, restore_for_exec,
};

/// Asks the thread that runs the target to give way. `SIGSTKFLT` has no other use; one that is sent without our mark is
/// the target's.
pub const PREEMPT: i32 = libc::SIGSTKFLT;

/// A set of signals as the kernel has it: signal 1 is the lowest bit.
pub type Set = u64;

/// The set of one signal.
#[must_use]
pub const fn bit(signal: i32) -> Set {
    1 << (signal - 1)
}

/// Signals that instructions raise.
pub const SYNCHRONOUS: Set = bit(libc::SIGSEGV)
    | bit(libc::SIGBUS)
    | bit(libc::SIGFPE)
    | bit(libc::SIGILL)
    | bit(libc::SIGTRAP)
    | bit(libc::SIGSYS);

/// Signals that cannot be blocked or caught.
pub const UNTOUCHABLE: Set = bit(libc::SIGKILL) | bit(libc::SIGSTOP);

/// What is blocked in the kernel between a signal's arrival and its delivery.
pub const ALL_BLOCKED: Set = !(SYNCHRONOUS | UNTOUCHABLE | bit(PREEMPT));

/// Bytes of the kernel's `siginfo_t`.
pub const INFO_BYTES: usize = 128;

/// What the kernel says of a signal, as the target's handler sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Info(pub [u8; INFO_BYTES]);

impl Info {
    /// `si_signo`, `si_code` and the word at `si_addr` (or `si_pid` and `si_uid`).
    #[must_use]
    pub fn new(signal: i32, code: i32, word: u64) -> Self {
        let mut bytes = [0; INFO_BYTES];
        bytes[..4].copy_from_slice(&signal.to_ne_bytes());
        bytes[8..12].copy_from_slice(&code.to_ne_bytes());
        bytes[16..24].copy_from_slice(&word.to_ne_bytes());
        Self(bytes)
    }

    fn word(&self, at: usize) -> i32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.0[at..at + 4]);
        i32::from_ne_bytes(bytes)
    }

    /// `si_signo`.
    #[must_use]
    pub fn signal(&self) -> i32 {
        self.word(0)
    }

    /// `si_code`.
    #[must_use]
    pub fn code(&self) -> i32 {
        self.word(8)
    }

    /// `si_pid`, for signals that a process sent.
    #[must_use]
    pub fn sender(&self) -> i32 {
        self.word(16)
    }
}
