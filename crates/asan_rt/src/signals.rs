//! Handlers for deadly signals, on a stack of their own.

use crate::options::{Handle, options};
use crate::originals::Original;
use crate::report::signal::{Signal, report};
use crate::thread;
use core::ffi::{c_int, c_void};
use core::sync::atomic::Ordering::Relaxed;

const SIGNAL_STACK_BYTES: usize = 64 << 10;

static SIGACTION: Original = Original::new(c"sigaction");
static SIGALTSTACK: Original = Original::new(c"sigaltstack");

/// sigaction(2) by libc's own function.
///
/// # Safety
/// As sigaction.
pub unsafe fn real_sigaction(signal: c_int, new: *const libc::sigaction, old: *mut libc::sigaction) -> c_int {
    let address = SIGACTION.get();
    if address == 0 {
        return -1;
    }
    // SAFETY: the address of sigaction; the caller vouches for the arguments.
    unsafe {
        let function: unsafe extern "C" fn(c_int, *const libc::sigaction, *mut libc::sigaction) -> c_int =
            core::mem::transmute(address);
        function(signal, new, old)
    }
}

/// sigaltstack(2) by libc's own function.
///
/// # Safety
/// As sigaltstack.
pub unsafe fn real_sigaltstack(new: *const libc::stack_t, old: *mut libc::stack_t) -> c_int {
    let address = SIGALTSTACK.get();
    if address == 0 {
        return -1;
    }
    // SAFETY: the address of sigaltstack; the caller vouches for the arguments.
    unsafe {
        let function: unsafe extern "C" fn(*const libc::stack_t, *mut libc::stack_t) -> c_int =
            core::mem::transmute(address);
        function(new, old)
    }
}

/// How a signal is to be handled.
#[must_use]
pub fn handling(signal: c_int) -> Handle {
    let mode = match signal {
        libc::SIGABRT => options().handle_abort,
        libc::SIGILL => options().handle_sigill,
        libc::SIGTRAP => options().handle_sigtrap,
        libc::SIGFPE => options().handle_sigfpe,
        libc::SIGSEGV => options().handle_segv,
        libc::SIGBUS => options().handle_sigbus,
        _ => Handle(0),
    };
    if mode.is_ours() && !options().allow_user_segv_handler { Handle(2) } else { mode }
}

/// Installs the handlers that the options ask for.
pub fn install() {
    for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGABRT, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP] {
        if !handling(signal).is_ours() {
            continue;
        }
        // SAFETY: zeroed is a valid sigaction; the handler has the type that SA_SIGINFO asks for.
        unsafe {
            let mut action: libc::sigaction = core::mem::zeroed();
            action.sa_sigaction = on_deadly_signal as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
            if options().use_sigaltstack {
                action.sa_flags |= libc::SA_ONSTACK;
            }
            real_sigaction(signal, &raw const action, core::ptr::null_mut());
        }
    }
}

/// The default action again.
pub fn restore_default(signal: c_int) {
    // SAFETY: zeroed is SIG_DFL.
    unsafe {
        let action: libc::sigaction = core::mem::zeroed();
        real_sigaction(signal, &raw const action, core::ptr::null_mut());
    }
}

/// Gives the calling thread a signal stack if it has none.
pub fn set_signal_stack() {
    if !options().use_sigaltstack {
        return;
    }
    let thread = thread::current();
    if thread.is_null() {
        return;
    }
    // SAFETY: the calling thread's record; the stack is a mapping of our own.
    unsafe {
        let mut old: libc::stack_t = core::mem::zeroed();
        real_sigaltstack(core::ptr::null(), &raw mut old);
        if old.ss_flags & libc::SS_DISABLE == 0 {
            return;
        }
        let Ok(memory) = leakscope_rt::memory::map_zeroed(SIGNAL_STACK_BYTES) else { return };
        let new = libc::stack_t { ss_sp: memory.cast::<c_void>(), ss_flags: 0, ss_size: SIGNAL_STACK_BYTES };
        if real_sigaltstack(&raw const new, core::ptr::null_mut()) == 0 {
            (*thread).signal_stack.store(memory as usize, Relaxed);
        }
    }
}

/// Takes our signal stack away from the calling thread.
pub fn unset_signal_stack() {
    let thread = thread::current();
    if thread.is_null() {
        return;
    }
    // SAFETY: the calling thread's record; the mapping was made by `set_signal_stack`.
    unsafe {
        let memory = (*thread).signal_stack.swap(0, Relaxed);
        if memory == 0 {
            return;
        }
        let mut old: libc::stack_t = core::mem::zeroed();
        real_sigaltstack(core::ptr::null(), &raw mut old);
        if old.ss_sp as usize == memory {
            let none = libc::stack_t { ss_sp: core::ptr::null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
            real_sigaltstack(&raw const none, core::ptr::null_mut());
        }
        leakscope_rt::memory::unmap_slice(core::slice::from_raw_parts_mut(memory as *mut u8, SIGNAL_STACK_BYTES));
    }
}

unsafe extern "C" fn on_deadly_signal(number: c_int, info: *const libc::siginfo_t, context: *const c_void) {
    // SAFETY: the kernel's arguments.
    let (address, code) = unsafe { ((*info).si_addr() as usize, (*info).si_code) };
    crate::sys::write_all(2, b"AddressSanitizer:DEADLYSIGNAL\n");
    // Sent by somebody rather than caused: then the address means nothing.
    let is_fault = code > 0 && code != libc::SI_KERNEL;
    let signal = Signal {
        number,
        address: if is_fault || number == libc::SIGSEGV { address } else { 0 },
        has_address: true,
        context: context.cast::<libc::ucontext_t>(),
    };
    report(&signal)
}
