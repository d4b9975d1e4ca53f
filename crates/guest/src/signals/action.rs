//! What the target wants to happen on each signal, and what the kernel is told of it.

use super::{PREEMPT, SYNCHRONOUS, Set, UNTOUCHABLE, bit};

/// `struct kernel_sigaction`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Action {
    /// `SIG_DFL` (0), `SIG_IGN` (1) or a function.
    pub handler: u64,
    /// `SA_*`.
    pub flags: u64,
    /// Where a handler returns to.
    pub restorer: u64,
    /// Blocked in the handler.
    pub mask: Set,
}

/// `SA_RESTORER`, which libc does not name.
pub const RESTORER: u64 = 0x0400_0000;

impl Action {
    /// From the kernel's layout.
    #[must_use]
    pub fn decode(bytes: &[u8; 32]) -> Self {
        let word = |at: usize| {
            let mut part = [0; 8];
            part.copy_from_slice(&bytes[at..at + 8]);
            u64::from_ne_bytes(part)
        };
        Self { handler: word(0), flags: word(8), restorer: word(16), mask: word(24) }
    }

    /// To the kernel's layout.
    #[must_use]
    pub fn encode(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (at, word) in [self.handler, self.flags, self.restorer, self.mask].into_iter().enumerate() {
            bytes[8 * at..8 * at + 8].copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    /// Whether a flag is set.
    #[must_use]
    pub fn has(&self, flag: i32) -> bool {
        self.flags & flag as u32 as u64 != 0
    }
}

/// What the kernel does by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultAction {
    /// Nothing.
    Ignore,
    /// Stops the process.
    Stop,
    /// Lets it go on.
    Continue,
    /// Ends it, with a core file for some.
    Terminate,
}

/// Source: signal(7).
#[must_use]
pub fn default_action(signal: i32) -> DefaultAction {
    match signal {
        libc::SIGCHLD | libc::SIGURG | libc::SIGWINCH => DefaultAction::Ignore,
        libc::SIGCONT => DefaultAction::Continue,
        libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU => DefaultAction::Stop,
        _ => DefaultAction::Terminate,
    }
}

/// What a signal leads to now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// The default.
    Default,
    /// Nothing.
    Ignore,
    /// A function of the target.
    Handler,
}

/// All 64.
#[derive(Debug, Clone)]
pub struct Actions {
    table: [Action; 64],
}

impl Default for Actions {
    fn default() -> Self {
        Self { table: [Action::default(); 64] }
    }
}

impl Actions {
    /// The action of a signal (1 to 64).
    #[must_use]
    pub fn get(&self, signal: i32) -> Action {
        self.table[(signal - 1) as usize]
    }

    /// Sets it, as `rt_sigaction` would keep it.
    pub fn set(&mut self, signal: i32, mut action: Action) {
        action.mask &= !UNTOUCHABLE;
        self.table[(signal - 1) as usize] = action;
    }

    /// What a signal leads to.
    #[must_use]
    pub fn disposition(&self, signal: i32) -> Disposition {
        match self.get(signal).handler {
            0 => Disposition::Default,
            1 => Disposition::Ignore,
            _ => Disposition::Handler,
        }
    }

    /// What the kernel is to be told: `None` where our handler has to stand.
    #[must_use]
    pub fn for_kernel(&self, signal: i32) -> Option<Action> {
        let own = SYNCHRONOUS | bit(PREEMPT);
        if own & bit(signal) != 0 {
            return None;
        }
        let action = self.get(signal);
        match self.disposition(signal) {
            Disposition::Handler => None,
            Disposition::Default if default_action(signal) == DefaultAction::Terminate => None,
            Disposition::Default | Disposition::Ignore => {
                Some(Action { flags: action.flags & KEPT_FLAGS, restorer: 0, mask: 0, ..action })
            }
        }
    }
}

/// Flags that mean something to the kernel whoever handles the signal.
pub const KEPT_FLAGS: u64 = (libc::SA_NOCLDSTOP | libc::SA_NOCLDWAIT) as u64;
