//! New processes, other programs, signals, and the end.

use std::ffi::CString;

use leakscope_model::CheckTrigger;
use leakscope_translate::{Action, Engine, Gpr, Guest};

use super::{Call, Done, raw};
use crate::engine::{Ending, Memcheck, shadow};
use crate::probe;

/// Signals that end a process when nobody handles them.
fn is_fatal(signal: i32) -> bool {
    !matches!(
        signal,
        0 | libc::SIGCHLD
            | libc::SIGCONT
            | libc::SIGURG
            | libc::SIGWINCH
            | libc::SIGSTOP
            | libc::SIGTSTP
            | libc::SIGTTIN
            | libc::SIGTTOU
    )
}

/// Signals that an instruction raises: the engine's own handler must see them.
fn is_synchronous(signal: i32) -> bool {
    matches!(signal, libc::SIGSEGV | libc::SIGBUS | libc::SIGFPE | libc::SIGILL | libc::SIGTRAP)
}

impl Memcheck {
    /// The target wants to end: first its libraries free what is their own, then the leak check.
    pub(super) fn exit_called(&mut self, engine: &mut Engine, status: u64) -> Action {
        let ending = Ending::Exit(status as i32 & 0xff);
        if self.ending.is_none() && self.options.freeres && self.options.leak_check && !self.freeres.is_empty() {
            self.ending = Some(ending);
            return self.next_freeres(engine);
        }
        let ending = self.ending.unwrap_or(ending);
        self.finish(engine, ending)
    }

    /// Calls the next library's function, or ends.
    pub fn next_freeres(&mut self, engine: &mut Engine) -> Action {
        let ending = self.ending.unwrap_or(Ending::Exit(0));
        if self.freeres.is_empty() {
            self.finish(engine, ending);
        }
        let function = self.freeres.remove(0);
        let guest = engine.guest_mut();
        // Below the red zone, aligned as at a call.
        let rsp = (guest.gpr(Gpr::Rsp).wrapping_sub(256) & !15).wrapping_sub(8);
        if !probe::can_write(rsp) {
            self.finish(engine, ending);
        }
        shadow().allow(rsp - 128, 256 + 128);
        // SAFETY: just found to be writable.
        unsafe { (rsp as *mut u64).write(crate::tool::RETURN_FROM_FREERES) };
        guest.set_gpr(Gpr::Rsp, rsp);
        guest.rip = function;
        Action::Continue
    }

    /// The leak check, and the end.
    pub fn finish(&mut self, engine: &mut Engine, ending: Ending) -> ! {
        let guest = engine.guest().clone();
        self.finish_as(&guest, ending)
    }

    /// The same, from a copy of the registers.
    pub fn finish_as(&mut self, guest: &Guest, ending: Ending) -> ! {
        if let Ending::Signal { signal, code, address } = ending {
            self.tell_signal(guest, signal, code, address);
        }
        if self.options.leak_check {
            let (trigger, status) = match ending {
                Ending::Exit(status) => (CheckTrigger::Exit, status as u32),
                Ending::Signal { signal, .. } => (CheckTrigger::FatalSignal, signal as u32),
            };
            self.check_leaks(guest, trigger, status, leakscope_ledger::events::asked::BY_OPTIONS);
        }
        self.leave(ending)
    }

    /// Signal actions are kept here; the kernel is told only what does not touch the engine.
    pub(super) fn signal_action(&mut self, call: Call) -> Option<i64> {
        let [signal, new, old, size, ..] = call.arguments;
        let signal = signal as i32;
        if size != 8 || !(1..=64).contains(&signal) {
            return Some(-i64::from(libc::EINVAL));
        }
        let before = self.kernel.actions[signal as usize];
        if new != 0 {
            let mut action = [0u64; 4];
            for (word, at) in action.iter_mut().zip((new..).step_by(8)) {
                match probe::word(at) {
                    Some(value) => *word = value,
                    None => return Some(-i64::from(libc::EFAULT)),
                }
            }
            if matches!(signal, libc::SIGKILL | libc::SIGSTOP) {
                return Some(-i64::from(libc::EINVAL));
            }
            self.kernel.actions[signal as usize] = action;
            if action[0] <= 1 && !is_synchronous(signal) {
                // SAFETY: ignoring or the default needs no code of the target.
                unsafe {
                    let plain = [action[0], 0, 0, 0];
                    raw(libc::SYS_rt_sigaction as u64, signal as u64, plain.as_ptr() as u64, 0, 8, 0, 0);
                }
            }
        }
        if old != 0 {
            if !probe::can_write(old) || !probe::can_write(old + 31) {
                return Some(-i64::from(libc::EFAULT));
            }
            // SAFETY: both ends were just found to be writable.
            unsafe { (old as *mut [u64; 4]).write_unaligned(before) };
        }
        Some(0)
    }

    /// A signal that the target sends itself, and that ends it.
    pub(super) fn raise(&mut self, engine: &mut Engine, call: Call) -> Option<Done> {
        let [first, second, third, ..] = call.arguments;
        let own = std::process::id() as u64;
        let (is_own, signal) = match call.number as i64 {
            libc::SYS_kill => (first == own, second as i32),
            libc::SYS_tkill => (first == u64::from(self.thread.tid), second as i32),
            _ => (first == own && second == u64::from(self.thread.tid), third as i32),
        };
        if !is_own || !(1..=64).contains(&signal) || !is_fatal(signal) || signal == libc::SIGKILL {
            return None;
        }
        if self.kernel.actions[signal as usize][0] != libc::SIG_DFL as u64 || self.is_blocked(signal) {
            return None;
        }
        let code = if call.number as i64 == libc::SYS_kill { libc::SI_USER } else { libc::SI_TKILL };
        self.finish(engine, Ending::Signal { signal, code, address: 0 })
    }

    /// Whether the kernel has this signal blocked for the thread.
    fn is_blocked(&self, signal: i32) -> bool {
        let mut mask = 0u64;
        // SAFETY: only asks; the word is as long as said.
        unsafe {
            raw(libc::SYS_rt_sigprocmask as u64, 0, 0, &raw mut mask as u64, 8, 0, 0);
        }
        mask & 1 << (signal - 1) != 0
    }

    /// `fork` and its relatives. A process that shares memory with its parent gets a copy; threads are refused.
    pub(super) fn new_process(&mut self, engine: &mut Engine, call: Call) -> Done {
        let mut flags = libc::SIGCHLD as u64;
        let mut stack = 0;
        let is_clone = call.number as i64 == libc::SYS_clone;
        if is_clone {
            flags = call.arguments[0];
            stack = call.arguments[1];
            if flags & libc::CLONE_THREAD as u64 != 0 {
                self.say("warning: the program starts a thread, which is not supported yet; the call fails".to_owned());
                return Done::Result(-i64::from(libc::EAGAIN));
            }
        }
        let shares = flags & libc::CLONE_VM as u64 != 0 || call.number as i64 == libc::SYS_vfork;
        // Who shares memory until exec is waited for until then.
        let wait = if shares { libc::CLONE_VFORK as u64 } else { 0 };
        let own = (libc::CLONE_SETTLS | libc::CLONE_VM | libc::CLONE_SIGHAND) as u64;
        let passed = (flags & !own) | wait;
        self.output.wait();
        // SAFETY: a copy of this process, on a copy of this stack; thread ids are stored where the target wants them.
        let result = unsafe {
            raw(libc::SYS_clone as u64, passed, 0, call.arguments[2], call.arguments[3], 0, 0)
        };
        if result != 0 {
            return Done::Result(result);
        }
        // The child.
        if is_clone {
            let guest = engine.guest_mut();
            if stack != 0 {
                guest.set_gpr(Gpr::Rsp, stack);
            }
            if flags & libc::CLONE_SETTLS as u64 != 0 {
                guest.fs_base = call.arguments[4];
            }
        }
        self.start_anew_after_fork();
        Done::Result(0)
    }

    fn start_anew_after_fork(&mut self) {
        // SAFETY: a plain call.
        self.thread.tid = unsafe { libc::gettid() } as u32;
        let wants_report = !self.options.child_silent;
        match wants_report.then(|| crate::start::connect(&self.program.connect, 1)).flatten() {
            Some(mut output) => {
                output.inherit(&self.output);
                output.set_state(leakscope_ledger::events::state::RUNNING);
                self.output = output;
                let process = crate::start::process_event(&self.program, 1);
                self.output.tell(&process);
            }
            None => self.output.be_private(),
        }
    }

    /// `execve`: another program takes this one's place, traced or not.
    pub(super) fn execute(&mut self, engine: &mut Engine, call: Call) -> Option<Done> {
        let is_at = call.number as i64 == libc::SYS_execveat;
        let _ = engine;
        if !self.options.trace_children || is_at {
            self.tell_counts();
            self.output.wait();
            return None;
        }
        let path = probe::text(call.arguments[0], 4096)?;
        let words = |mut at: u64| {
            let mut list = Vec::new();
            while let Some(word) = probe::word(at).filter(|&word| at != 0 && word != 0) {
                list.push(CString::new(probe::text(word, 1 << 20)?).ok()?);
                at += 8;
            }
            Some(list)
        };
        let (arguments, environment) = (words(call.arguments[1])?, words(call.arguments[2])?);
        let path = CString::new(path).ok()?;
        if let Err(error) = crate::start::check(&path) {
            return Some(Done::Result(-i64::from(error.errno())));
        }
        self.tell_counts();
        self.output.wait();
        Some(Done::Result(crate::start::execute_engine(&self.program.connect, &path, &arguments, &environment)))
    }

    /// `prctl(PR_SET_NAME)`
    pub(super) fn note_name(&mut self, arguments: [u64; 6]) {
        if arguments[0] as i32 == libc::PR_SET_NAME
            && let Some(name) = probe::text(arguments[1], 16)
        {
            self.thread.name = String::from_utf8_lossy(&name).into_owned();
        }
    }
}
