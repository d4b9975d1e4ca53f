//! What runs the target's instructions: the translating engine, or, in tests, the processor itself.

use leakscope_translate::signal::{self, HandlerScope, Taken};
use leakscope_translate::{Engine, Error, Guest, layout};

use crate::{Monitor, Task};

/// A CPU that stops for system calls and signals. [`Engine`] is one; tests have another that runs the target natively.
pub trait Cpu: Sized + 'static {
    /// What a signal handler holds while its thread pointer is the engine's.
    type HandlerScope;

    /// The running thread's state.
    fn guest(&self) -> &Guest;

    /// The running thread's state, to change.
    fn guest_mut(&mut self) -> &mut Guest;

    /// See [`Engine::mapping_changed`].
    fn mapping_changed(&mut self, start: u64, end: u64);

    /// See [`Engine::before_write`].
    fn before_write(&mut self, start: u64, end: u64);

    /// See [`Engine::run`].
    ///
    /// # Errors
    /// An instruction cannot be run: an error of the engine.
    fn run<M: Monitor<Self> + 'static>(&mut self, task: &mut Task<Self, M>) -> Result<i32, Error>;

    /// Called on each new host thread before anything else, and in the child of a fork.
    fn attach_thread(&mut self) {}

    /// See [`HandlerScope::enter`].
    ///
    /// # Safety
    /// To be called first in a signal handler.
    unsafe fn enter_handler() -> Self::HandlerScope;

    /// See [`signal::take`].
    ///
    /// # Safety
    /// As there.
    unsafe fn take(number: i32, info: *const libc::siginfo_t, context: *mut libc::ucontext_t) -> Taken;

    /// See [`signal::interrupt`].
    ///
    /// # Safety
    /// As there.
    unsafe fn interrupt(context: *mut libc::ucontext_t);
}

impl Cpu for Engine {
    type HandlerScope = Option<HandlerScope>;

    fn guest(&self) -> &Guest {
        self.guest()
    }

    fn guest_mut(&mut self) -> &mut Guest {
        self.guest_mut()
    }

    fn mapping_changed(&mut self, start: u64, end: u64) {
        self.mapping_changed(start, end);
    }

    fn before_write(&mut self, start: u64, end: u64) {
        self.before_write(start, end);
    }

    fn run<M: Monitor<Self> + 'static>(&mut self, task: &mut Task<Self, M>) -> Result<i32, Error> {
        self.run(task)
    }

    unsafe fn enter_handler() -> Option<HandlerScope> {
        // The state page knows the one thread that runs. Threads that wait, or are in a call, have their own thread
        // pointer already; who has the target's is in the cache.
        // SAFETY: the state page is mapped as long as handlers are installed, and begins with the guest.
        let guest_fs = unsafe { (*std::ptr::with_exposed_provenance::<Guest>(layout::STATE as usize)).fs_base };
        let fs: u64;
        // SAFETY: `Engine::new` found FSGSBASE.
        unsafe { std::arch::asm!("rdfsbase {}", out(reg) fs, options(nomem, nostack)) };
        // SAFETY: the caller's promise.
        (fs == guest_fs).then(|| unsafe { HandlerScope::enter() })
    }

    unsafe fn take(number: i32, info: *const libc::siginfo_t, context: *mut libc::ucontext_t) -> Taken {
        // SAFETY: the caller's promise.
        unsafe { signal::take(number, info, context) }
    }

    unsafe fn interrupt(context: *mut libc::ucontext_t) {
        // SAFETY: the caller's promise.
        unsafe { signal::interrupt(context) }
    }
}
