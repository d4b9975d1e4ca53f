//! One thread of the target on its host thread: the engine's callbacks.
//!
//! All unsafe access to what threads share is here: it is used with the baton held, in short borrows that end before the
//! baton is given up ([`Task::blocking`]).

use leakscope_translate::{Action, BadAccess, CodeRegion, Cpuid, Engine, Fault, Gpr, Tool};

use crate::process::Process;
use crate::signals;
use crate::thread::{BATON, Local, Thread, take_over};
use crate::{Cpu, Monitor, raw};

/// See the module.
pub struct Task<C, M> {
    process: *mut Process,
    monitor: *mut M,
    cpu: *mut C,
    thread: *const Thread,
}

impl<C: Cpu, M: Monitor<C> + 'static> Task<C, M> {
    pub(crate) fn new(process: *mut Process, monitor: *mut M, cpu: *mut C, thread: *const Thread) -> Self {
        Self { process, monitor, cpu, thread }
    }

    /// The pointers, for another thread's task.
    pub(crate) fn for_thread(&self, thread: *const Thread) -> Self {
        Self { thread, ..*self }
    }

    /// The monitor of the task that a light hook got as its tool.
    ///
    /// # Safety
    /// `tool` is what a [`leakscope_translate::LightHook`] was called with, and `Self` is the type that runs.
    pub unsafe fn monitor_of<'a>(tool: *mut ()) -> &'a mut M {
        // SAFETY: the caller's promise; the hook's thread has the baton, and no other reference is used meanwhile.
        unsafe { &mut *(*tool.cast::<Self>()).monitor }
    }

    /// The process of the task that a light hook got as its tool.
    ///
    /// # Safety
    /// As for [`Task::monitor_of`].
    pub unsafe fn process_of<'a>(tool: *mut ()) -> &'a Process {
        // SAFETY: as there.
        unsafe { &*(*tool.cast::<Self>()).process }
    }

    /// Id of the thread of the task that a light hook got as its tool.
    ///
    /// # Safety
    /// As for [`Task::monitor_of`].
    pub unsafe fn tid_of(tool: *mut ()) -> i32 {
        // SAFETY: as there.
        unsafe { (*tool.cast::<Self>()).thread().tid() }
    }

    pub(crate) fn process(&mut self) -> &mut Process {
        // SAFETY: leaked by `Process::run`; this thread has the baton, and the borrow ends with that of `self`.
        unsafe { &mut *self.process }
    }

    pub(crate) fn monitor(&mut self) -> &mut M {
        // SAFETY: as above.
        unsafe { &mut *self.monitor }
    }

    pub(crate) fn cpu_pointer(&self) -> *mut C {
        self.cpu
    }

    pub(crate) fn thread(&self) -> &'static Thread {
        // SAFETY: the thread's object lives until the host thread's last step, after all callbacks.
        unsafe { &*self.thread }
    }

    pub(crate) fn local(&mut self) -> &mut Local {
        // SAFETY: only this thread's callbacks, and a fork's child, use it.
        unsafe { &mut *self.thread().local.get() }
    }

    /// Makes this host thread the target's. Returns the stack of its signal handlers, which whoever ends the thread frees.
    pub(crate) fn attach(&self) -> *mut [u8] {
        let stack = Box::into_raw(signals::new_stack());
        // SAFETY: stack and thread live as long as the host thread; `clone` takes the thread away first.
        unsafe { signals::attach_thread(self.thread, stack.cast()) };
        stack
    }

    /// Makes a call that may block: others run meanwhile. [`raw::RESTART`] if a signal is pending.
    ///
    /// # Safety
    /// As for [`raw::syscall`].
    pub(crate) unsafe fn blocking(&mut self, cpu: &mut C, number: u64, arguments: [u64; 6]) -> i64 {
        if self.process().threads.len() == 1 {
            // SAFETY: the caller's promise.
            return unsafe { raw::interruptible(number, arguments, self.thread().pending_word()) };
        }
        BATON.release();
        // SAFETY: the caller's promise.
        let result = unsafe { raw::interruptible(number, arguments, self.thread().pending_word()) };
        if number == libc::SYS_futex as u64 && result > 0 && wakes(arguments[1]) {
            BATON.let_in();
        }
        self.acquire(cpu);
        result
    }

    /// Waits for the baton and puts this thread's registers into the CPU.
    pub(crate) fn acquire(&mut self, cpu: &mut C) {
        BATON.acquire(&self.thread().waiter);
        // What is behind these pointers was changed by others: the compiler must not know better.
        std::hint::black_box((&raw mut *cpu, self.process, self.monitor));
        take_over(cpu, self.thread());
    }

    /// Lets the others run that wait.
    pub(crate) fn give_way(&mut self, cpu: &mut C) {
        if BATON.is_wanted() {
            BATON.release();
            self.acquire(cpu);
        }
    }

    /// [`Tool::syscall`].
    pub fn on_syscall(&mut self, cpu: &mut C) -> Action {
        self.dispatch(cpu)
    }

    /// [`Tool::stopped`].
    pub fn on_stopped(&mut self, cpu: &mut C) -> Action {
        self.give_way(cpu);
        self.deliver_pending(cpu);
        Action::Continue
    }

    /// [`Tool::fault`].
    pub fn on_fault(&mut self, cpu: &mut C, fault: Fault) -> Action {
        self.monitor().faulted(cpu, &fault);
        self.deliver_fault(cpu, &fault);
        if !self.set_kernel_mask(self.thread().mask()) {
            self.deliver_pending(cpu);
        }
        Action::Continue
    }

    /// [`Tool::code_region`].
    pub fn on_code_region(&mut self, address: u64) -> Option<CodeRegion> {
        self.process().space.code_region(address)
    }

    /// The monitor's side of the [`Tool`].
    pub fn on_bad_access(&mut self, cpu: &mut C, access: BadAccess) -> Action {
        self.monitor().bad_access(cpu, access)
    }

    /// Number and arguments of the call in the registers.
    pub(crate) fn call_registers(cpu: &C) -> (u64, [u64; 6]) {
        let guest = cpu.guest();
        let arguments = [Gpr::Rdi, Gpr::Rsi, Gpr::Rdx, Gpr::R10, Gpr::R8, Gpr::R9].map(|register| guest.gpr(register));
        (guest.gpr(Gpr::Rax), arguments)
    }
}

impl<M: Monitor<Engine> + 'static> Tool for Task<Engine, M> {
    fn syscall(&mut self, engine: &mut Engine) -> Action {
        self.on_syscall(engine)
    }

    fn bad_access(&mut self, engine: &mut Engine, access: BadAccess) -> Action {
        self.on_bad_access(engine, access)
    }

    fn fault(&mut self, engine: &mut Engine, fault: Fault) -> Action {
        self.on_fault(engine, fault)
    }

    fn stopped(&mut self, engine: &mut Engine) -> Action {
        self.on_stopped(engine)
    }

    fn replaced(&mut self, engine: &mut Engine, cookie: u64) -> Action {
        self.monitor().replaced(engine, cookie)
    }

    fn client_request(&mut self, engine: &mut Engine) -> Action {
        self.monitor().client_request(engine)
    }

    fn cpuid(&mut self, leaf: u32, subleaf: u32, native: Cpuid) -> Cpuid {
        self.monitor().cpuid(leaf, subleaf, native)
    }

    fn code_region(&mut self, address: u64) -> Option<CodeRegion> {
        self.on_code_region(address)
    }
}

/// Whether an operation of `futex` wakes others.
fn wakes(operation: u64) -> bool {
    let operation = operation as i32 & !(libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME);
    matches!(
        operation,
        libc::FUTEX_WAKE
            | libc::FUTEX_WAKE_BITSET
            | libc::FUTEX_WAKE_OP
            | libc::FUTEX_REQUEUE
            | libc::FUTEX_CMP_REQUEUE
    )
}
