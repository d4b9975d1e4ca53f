//! Our signal handler, and what the kernel is told of dispositions and masks.
//!
//! The handler allocates nothing and locks nothing. It touches the thread's own pending slot, the baton's holder, and the
//! context that it returns to.

use std::cell::Cell;
use std::ptr;

use leakscope_translate::signal::Taken;

use super::{ALL_BLOCKED, Action, Actions, INFO_BYTES, Info, PREEMPT, SYNCHRONOUS, Set, action, bit};
use crate::Cpu;
use crate::raw::{self, Repair};
use crate::thread::{BATON, Thread};

/// `si_value` of a [`PREEMPT`] of ours.
const MARK: u64 = 0x6c65_616b_7363_6f70;

/// Bytes of the alternate stack that our handler runs on: the kernel's frame with AVX-512, and some calls.
const STACK_BYTES: usize = 64 << 10;

thread_local! {
    /// The target's thread that this host thread is.
    static CURRENT: Cell<*const Thread> = const { Cell::new(ptr::null()) };
}

/// Makes the thread that runs the target leave it soon; see [`crate::baton`].
pub(crate) fn ask(tid: i32) {
    let mut info = Info::new(PREEMPT, libc::SI_QUEUE, 0);
    info.0[24..32].copy_from_slice(&MARK.to_ne_bytes());
    let arguments = [raw::getpid() as u64, tid as u64, PREEMPT as u64, ptr::from_ref(&info) as u64, 0, 0];
    // SAFETY: our handler stands for the signal, on every thread of the target.
    unsafe { raw::syscall(libc::SYS_rt_tgsigqueueinfo, arguments) };
}

/// Makes this host thread the target's `thread` (null: none any more), with a stack for signal handlers.
///
/// # Safety
/// The thread outlives this host thread's signals: they are blocked when it is set to null.
pub(crate) unsafe fn attach_thread(thread: *const Thread, stack: *mut u8) {
    if !stack.is_null() {
        let stack = libc::stack_t { ss_sp: stack.cast(), ss_flags: 0, ss_size: STACK_BYTES };
        // SAFETY: the stack is alive as long as the thread is.
        unsafe { libc::sigaltstack(&stack, ptr::null_mut()) };
    }
    CURRENT.set(thread);
}

/// Memory for [`attach_thread`].
pub(crate) fn new_stack() -> Box<[u8]> {
    vec![0; STACK_BYTES].into_boxed_slice()
}

unsafe extern "C" fn handler<C: Cpu>(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::ucontext_t) {
    // The kernel leaves the target's alignment check on, and no Rust code is made for that.
    // SAFETY: changes this one flag; the stack is the handler's, below its red zone.
    unsafe { std::arch::asm!("pushfq", "and dword ptr [rsp], 0xfffbffff", "popfq") };
    // SAFETY: first in a handler.
    let scope = unsafe { C::enter_handler() };
    // SAFETY: these are the kernel's pointers.
    unsafe { handle::<C>(signal, info, context) };
    drop(scope);
}

/// Not inlined: thread-local storage is used in here, and must not be before the scope was entered.
#[inline(never)]
unsafe fn handle<C: Cpu>(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::ucontext_t) {
    // SAFETY: the kernel's context, of this thread alone.
    let rip = unsafe { &raw mut (*context).uc_mcontext.gregs[libc::REG_RIP as usize] };
    // SAFETY: as above.
    let (host_pc, code) = unsafe { (*rip as u64, (*info).si_code) };
    if SYNCHRONOUS & bit(signal) != 0 && code > 0 && !(signal == libc::SIGSYS && code == SECCOMP) {
        if let Some(Repair::Fault(to)) = raw::repair(host_pc, true) {
            // SAFETY: as above.
            unsafe { *rip = to as i64 };
            return;
        }
        // SAFETY: a synchronous signal with the kernel's pointers, on the alternate stack.
        if unsafe { C::take(signal, info, context) } == Taken::NotGuest {
            // SAFETY: as above.
            report_crash(signal, host_pc, unsafe { (*info).si_addr() } as u64);
            set_default(signal);
        }
        return;
    }
    let thread = CURRENT.get();
    if thread.is_null() {
        return;
    }
    // SAFETY: alive while it is this host thread's.
    let thread = unsafe { &*thread };
    let holds_baton = BATON.holder() == thread.tid();
    // SAFETY: `si_value` is at the same place for all signals that `rt_tgsigqueueinfo` sends.
    if signal == PREEMPT && code == libc::SI_QUEUE && unsafe { (*info).si_value() }.sival_ptr as u64 == MARK {
        if holds_baton {
            // SAFETY: the kernel's context.
            unsafe { C::interrupt(context) };
        }
        return;
    }
    // SAFETY: the kernel's siginfo has this size.
    let info = unsafe { info.cast::<Info>().read_unaligned() };
    let can_wait = (SYNCHRONOUS | bit(PREEMPT)) & bit(signal) != 0;
    if can_wait && (thread.mask() & bit(signal) != 0 || thread.has_pending()) {
        thread.defer(signal, &info);
        return;
    }
    thread.set_pending(&info);
    // SAFETY: the kernel reads as many bytes of the mask as its own sets have.
    unsafe { (&raw mut (*context).uc_sigmask).cast::<Set>().write_unaligned(ALL_BLOCKED) };
    if let Some(Repair::Interrupted(to)) = raw::repair(host_pc, false) {
        // SAFETY: the kernel's context.
        unsafe { *rip = to as i64 };
    } else if holds_baton {
        // SAFETY: the kernel's context.
        unsafe { C::interrupt(context) };
    }
}

/// A line on standard error, without formatting machinery that might allocate.
fn report_crash(signal: i32, host_pc: u64, address: u64) {
    let mut line = [0u8; 160];
    let mut at = 0;
    let mut text = |bytes: &[u8]| {
        line[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    let hex = |value: u64| {
        let mut digits = [0u8; 16];
        for (place, digit) in digits.iter_mut().enumerate() {
            *digit = b"0123456789abcdef"[(value >> (60 - 4 * place)) as usize & 15];
        }
        digits
    };
    text(b"leakscope: signal ");
    text(&[b'0' + (signal / 10) as u8, b'0' + (signal % 10) as u8]);
    text(b" in the engine itself at 0x");
    text(&hex(host_pc));
    text(b", address 0x");
    text(&hex(address));
    text(b"; please report it\n");
    // SAFETY: writes the line.
    unsafe { raw::syscall(libc::SYS_write, [2, line.as_ptr() as u64, at as u64, 0, 0, 0]) };
}

fn rt_sigaction(signal: i32, action: &Action) {
    let arguments = [signal as u64, ptr::from_ref(action) as u64, 0, 8, 0, 0];
    // SAFETY: the layout is the kernel's; handlers are ours, or there is none. libc's function would refuse 32 and 33.
    unsafe { raw::syscall(libc::SYS_rt_sigaction, arguments) };
}

/// Lets the kernel do what it does by default.
pub(crate) fn set_default(signal: i32) {
    rt_sigaction(signal, &Action::default());
}

/// Whether the kernel ignores a signal now.
pub(crate) fn is_ignored(signal: i32) -> bool {
    let mut action = Action::default();
    // SAFETY: writes the action.
    unsafe { raw::syscall(libc::SYS_rt_sigaction, [signal as u64, 0, (&raw mut action) as u64, 8, 0, 0]) };
    action.handler == 1
}

/// What the kernel blocks for this thread now.
pub(crate) fn kernel_mask() -> Set {
    let mut mask = 0;
    // SAFETY: writes the mask.
    unsafe { raw::syscall(libc::SYS_rt_sigprocmask, [0, 0, (&raw mut mask) as u64, 8, 0, 0]) };
    mask
}

/// Tells the kernel about one disposition.
pub(crate) fn install<C: Cpu>(actions: &Actions, signal: i32) {
    if UNCATCHABLE & bit(signal) != 0 {
        return;
    }
    let ours = Action {
        handler: handler::<C> as *const () as u64,
        // With SA_RESTART the kernel itself says which interrupted calls may be made again (see `raw`).
        flags: (libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART) as u64
            | action::RESTORER
            | actions.get(signal).flags & action::KEPT_FLAGS,
        restorer: raw::restorer(),
        mask: ALL_BLOCKED | bit(PREEMPT),
    };
    rt_sigaction(signal, &actions.for_kernel(signal).unwrap_or(ours));
}

const UNCATCHABLE: Set = super::UNTOUCHABLE;

/// `SYS_SECCOMP`: a filter answers a call that we make for the target with a signal, which is the target's.
const SECCOMP: i32 = 1;

/// Tells the kernel about all.
pub(crate) fn install_all<C: Cpu>(actions: &Actions) {
    for signal in 1..=64 {
        install::<C>(actions, signal);
    }
}

/// What the next program inherits: signals that the target ignores, also where our handler stands. Handlers become
/// defaults in `execve`.
pub(crate) fn restore_for_exec(actions: &Actions) {
    for signal in 1..=64 {
        if actions.get(signal).handler == 1 && actions.for_kernel(signal).is_none() && UNCATCHABLE & bit(signal) == 0 {
            rt_sigaction(signal, &Action { handler: 1, ..Action::default() });
        }
    }
}

const _: () = assert!(size_of::<Info>() == INFO_BYTES && size_of::<libc::siginfo_t>() == INFO_BYTES);
