//! From a signal inside of the cache to the guest's state at an instruction boundary.
//!
//! Everything here may run in signal handlers: nothing allocates, nothing locks. A handler that finds the thread in the
//! cache puts the guest's registers into the signal frame and the address of the exit code into its program counter: the
//! kernel gives the vector registers back, and the exit code saves everything as at any exit.

use crate::entry::{self, Border};
use crate::exits;
use crate::layout;
use crate::recovery::Pc;
use crate::state::{FaultSlot, state};
use crate::translate::Translator;

/// What [`take`] did with a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// The context was changed: returning from the handler goes on with the guest or with the run loop, which calls
    /// [`crate::Tool::fault`] for a synchronous signal.
    Resumed,
    /// The signal is synchronous and comes from the engine or the tool itself: a bug there.
    NotGuest,
}

/// The integer state of the guest at an instruction boundary; vector registers are those of the signal frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recovered {
    /// Integer registers, indexed by [`crate::Gpr`].
    pub gpr: [u64; 16],
    /// The instruction that is about to run, or that faulted.
    pub rip: u64,
    /// Flags; arithmetic flags that the target overwrites before it reads them may differ from a native run's.
    pub rflags: u64,
}

/// The kernel's numbers of the frame's registers, in the processor's order.
const FRAME: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// What a frame may hold beside the guest's own flags: resume.
const RESUME_FLAG: u64 = 0x1_0000;

/// Makes Rust code safe to run in a signal handler: FS is the target's while the cache runs. The handler itself must not
/// touch thread-local storage before this, and must not use it after the scope ended.
#[derive(Debug)]
pub struct HandlerScope {
    interrupted_fs: u64,
}

impl HandlerScope {
    /// Changes FS to the engine's.
    ///
    /// # Safety
    /// To be called first in a signal handler, while an engine exists. Any thread.
    #[must_use]
    pub unsafe fn enter() -> Self {
        // SAFETY: `Engine::new` found FSGSBASE, and the state page is mapped as long as handlers are installed.
        unsafe {
            let interrupted_fs: u64;
            std::arch::asm!("rdfsbase {}", out(reg) interrupted_fs, options(nomem, nostack));
            let ours = (*state()).engine_fs;
            // Other threads wait in Rust with FS of their own, which must stay.
            if ours != 0 && interrupted_fs == (*state()).guest.fs_base {
                std::arch::asm!("wrfsbase {}", in(reg) ours, options(nostack));
            }
            Self { interrupted_fs }
        }
    }
}

impl Drop for HandlerScope {
    fn drop(&mut self) {
        // SAFETY: puts back what `enter` read.
        unsafe { std::arch::asm!("wrfsbase {}", in(reg) self.interrupted_fs, options(nostack)) };
    }
}

/// A synchronous signal (SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP with `si_code > 0`).
///
/// # Safety
/// Called from a signal handler with what the kernel gave it, inside of a [`HandlerScope`], on an alternate stack.
pub unsafe fn take(signal: i32, info: *const libc::siginfo_t, context: *mut libc::ucontext_t) -> Taken {
    // SAFETY: the caller's promise; the state page is mapped, and this thread is the one that runs the guest.
    unsafe {
        let registers = &mut (*context).uc_mcontext.gregs;
        let host_pc = registers[libc::REG_RIP as usize] as u64;
        if let Some(after) = crate::probe::after_fault(host_pc) {
            registers[libc::REG_RIP as usize] = after as i64;
            return Taken::Resumed;
        }
        let state = state();
        let fault = FaultSlot {
            signal,
            code: (*info).si_code,
            address: (*info).si_addr() as u64,
            trap: registers[libc::REG_TRAPNO as usize] as u64,
            error: registers[libc::REG_ERR as usize] as u64,
            host_pc,
        };
        if let Some(guest) = recover(host_pc, context) {
            (*state).fault = fault;
            (*state).exit_record = exits::FAULT;
            leave_with(context, &guest);
            return Taken::Resumed;
        }
        if ((*state).quick_start..(*state).quick_end).contains(&host_pc) {
            // The light hook finds out what is wrong.
            registers[libc::REG_RIP as usize] = registers[libc::REG_R11 as usize];
            return Taken::Resumed;
        }
        if (*state).in_hook != 0 {
            (*state).fault = FaultSlot { host_pc: 0, ..fault };
            registers[libc::REG_RIP as usize] = entry::hook_fault() as i64;
            return Taken::Resumed;
        }
        Taken::NotGuest
    }
}

/// Makes the guest stop at the next instruction boundary: `run` calls [`crate::Tool::stopped`] soon. For asynchronous
/// signals, also those with which another thread is asked to give way: works wherever the signal came.
///
/// # Safety
/// As for [`take`].
pub unsafe fn interrupt(context: *mut libc::ucontext_t) {
    // SAFETY: as in `take`.
    unsafe {
        let registers = &mut (*context).uc_mcontext.gregs;
        let host_pc = registers[libc::REG_RIP as usize] as u64;
        let state = state();
        (*state).stop = 1;
        if let Some(guest) = recover(host_pc, context) {
            (*state).exit_record = exits::STOPPED;
            leave_with(context, &guest);
        } else if let Border::Resumable(abort) = entry::border(host_pc) {
            registers[libc::REG_RIP as usize] = abort as i64;
        }
    }
}

/// Lets the frame go on in the exit code with the guest's registers.
///
/// # Safety
/// As for [`take`].
unsafe fn leave_with(context: *mut libc::ucontext_t, guest: &Recovered) {
    // SAFETY: the caller's promise.
    unsafe {
        (*state()).guest.rip = guest.rip;
        let registers = &mut (*context).uc_mcontext.gregs;
        for (value, index) in guest.gpr.iter().zip(FRAME) {
            registers[index as usize] = *value as i64;
        }
        registers[libc::REG_EFL as usize] = guest.rflags as i64;
        registers[libc::REG_RIP as usize] = Translator::labels().exit as i64;
    }
}

/// The guest's integer state if the context lies in translated code, without changing anything: for stacks and samples.
///
/// # Safety
/// As for [`take`].
pub unsafe fn recover(host_pc: u64, context: *const libc::ucontext_t) -> Option<Recovered> {
    if !(layout::HOT..layout::COLD_END).contains(&host_pc) {
        return None;
    }
    // SAFETY: `Engine::run` put its own address there, and the engine lives as long as its code runs; the thread is in the
    // cache and not in Rust, so nobody changes the table.
    unsafe {
        let state = state();
        let translator = std::ptr::with_exposed_provenance::<Translator>((*state).engine as usize).as_ref()?;
        let mark = translator.cache.recovery.find(host_pc)?;
        let registers = &(*context).uc_mcontext.gregs;
        let mut gpr = FRAME.map(|index| registers[index as usize] as u64);
        let rip = match mark.rule.pc() {
            Pc::Marked => mark.pc,
            Pc::Target => (*state).target,
            Pc::Rcx => gpr[1],
            // The target has just read it there.
            Pc::Popped => std::ptr::with_exposed_provenance::<u64>(gpr[4] as usize).wrapping_sub(1).read_unaligned(),
        };
        if mark.rule.restores_rcx() {
            gpr[1] = (*state).saved_rcx;
        }
        if let Some(register) = mark.rule.scratch_register() {
            gpr[usize::from(register)] = (*state).saved_scratch;
        }
        Some(Recovered { gpr, rip, rflags: registers[libc::REG_EFL as usize] as u64 & !RESUME_FLAG })
    }
}
