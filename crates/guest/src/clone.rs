//! Threads and processes that the target makes, and their ends.
//!
//! A thread of the target gets a host thread from the C library, which knows how to make thread-local storage for the
//! engine's code. A child of `fork` is a copy of everything; `vfork`, and `clone` with shared memory that is no thread,
//! are a `fork` whose parent waits: what the child changed in the parent's stack frames (`posix_spawn` returns its
//! error so) is copied back at the end.

use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

use leakscope_translate::Gpr;

use crate::baton::{futex_wait, futex_wake_at};
use crate::dispatch::{EFAULT, EINVAL, ENOSYS, Outcome};
use crate::monitor::{Ending, ThreadStart};
use crate::raw::RESTART;
use crate::signals::{self, ALL_BLOCKED};
use crate::task::Task;
use crate::thread::{BATON, Thread, forget_owner, take_over};
use crate::{Cpu, Monitor, raw};

const EAGAIN: i64 = -(libc::EAGAIN as i64);

/// glibc's `SIGSETXID`.
const SETXID: i32 = 33;

/// The lowest byte of `clone`'s flags is the signal for the parent.
const EXIT_SIGNAL: u64 = 0xff;

/// Flags that say where to write ids, which is done here.
const WRITES: u64 = (libc::CLONE_PARENT_SETTID | libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID) as u64;

/// What `clone` and `clone3` ask for.
#[derive(Debug, Clone, Copy)]
struct Request {
    flags: u64,
    exit_signal: u64,
    /// Stack pointer of the child; 0: the parent's.
    stack: u64,
    parent_tid: u64,
    child_tid: u64,
    thread_pointer: u64,
    pidfd: u64,
}

impl Request {
    fn has(&self, flag: i32) -> bool {
        self.flags & flag as u32 as u64 != 0
    }
}

/// The frames that child and parent of a `vfork` share: as they were, and, in memory that both see, as the child
/// left them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SharedStack {
    start: u64,
    bytes: usize,
    /// `bytes` as they were, `bytes` as they became, and a word that says whether they were written.
    memory: *mut u8,
}

const SHARED_STACK_BYTES: u64 = 32 << 10;

impl SharedStack {
    /// Remembers what is above a stack pointer.
    fn new(rsp: u64, end: u64) -> Option<Self> {
        let start = rsp & !7;
        let bytes = end.min(start + SHARED_STACK_BYTES).checked_sub(start)? as usize & !7;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        let length = 2 * bytes + 8;
        // SAFETY: a new map.
        let memory = unsafe { libc::mmap(ptr::null_mut(), length, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        if memory == libc::MAP_FAILED {
            return None;
        }
        let shared = Self { start, bytes, memory: memory.cast() };
        // SAFETY: the first part of the map.
        let before = unsafe { std::slice::from_raw_parts_mut(shared.memory, bytes) };
        if raw::read_bytes(start, before).is_err() {
            shared.drop_memory();
            return None;
        }
        Some(shared)
    }

    fn drop_memory(self) {
        // SAFETY: mapped by `new`, and used by nobody after this.
        unsafe { libc::munmap(self.memory.cast(), 2 * self.bytes + 8) };
    }

    /// In the child: shows the parent what became of the frames.
    pub(crate) fn publish(self) {
        // SAFETY: within the map.
        unsafe {
            let after = std::slice::from_raw_parts_mut(self.memory.add(self.bytes), self.bytes);
            if raw::read_bytes(self.start, after).is_ok() {
                self.memory.add(2 * self.bytes).write(1);
            }
        }
    }

    /// In the parent: makes the child's changes. They are writes that the target means, to memory in use.
    fn adopt<C: Cpu>(self, cpu: &mut C) {
        // SAFETY: within the map; the child is gone.
        let (before, after, is_written) = unsafe {
            (
                std::slice::from_raw_parts(self.memory, self.bytes),
                std::slice::from_raw_parts(self.memory.add(self.bytes), self.bytes),
                *self.memory.add(2 * self.bytes) == 1,
            )
        };
        if is_written {
            for (word, (old, new)) in before.chunks(8).zip(after.chunks(8)).enumerate() {
                if old != new {
                    let address = self.start + 8 * word as u64;
                    cpu.before_write(address, address + 8);
                    let _ = raw::write_bytes(address, new);
                }
            }
        }
        self.drop_memory();
    }
}

/// What a new host thread is given; on its parent's stack until it says that it has read it.
struct Birth<C, M> {
    task: Task<C, M>,
    start: ThreadStart,
    tid: AtomicU32,
}

impl<C: Cpu, M: Monitor<C> + 'static> Task<C, M> {
    pub(crate) fn clone_call(&mut self, cpu: &mut C, a: [u64; 6]) -> i64 {
        let flags = a[0] & !EXIT_SIGNAL & 0xffff_ffff;
        self.clone_with(
            cpu,
            &Request {
                flags,
                exit_signal: a[0] & EXIT_SIGNAL,
                stack: a[1],
                parent_tid: a[2],
                child_tid: a[3],
                thread_pointer: a[4],
                pidfd: a[2],
            },
        )
    }

    pub(crate) fn clone3(&mut self, cpu: &mut C, [address, size, ..]: [u64; 6]) -> i64 {
        /// `struct clone_args` up to `tls`; `set_tid`, `set_tid_size` and `cgroup` follow.
        const BASIC: usize = 64;
        const WHOLE: usize = 88;
        if size < BASIC as u64 || size > 4096 {
            return EINVAL;
        }
        let mut bytes = [0; WHOLE];
        let length = WHOLE.min(size as usize);
        if raw::read_bytes(address, &mut bytes[..length]).is_err() {
            return EFAULT;
        }
        // Chosen ids and control groups: who asks for these can do without `clone3`.
        if bytes[BASIC..].iter().any(|&byte| byte != 0) {
            return ENOSYS;
        }
        let word = |at: usize| {
            let mut part = [0; 8];
            part.copy_from_slice(&bytes[8 * at..8 * at + 8]);
            u64::from_ne_bytes(part)
        };
        let [flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_bytes, thread_pointer] =
            std::array::from_fn(word);
        if flags & EXIT_SIGNAL != 0 || exit_signal > 64 || (stack == 0) != (stack_bytes == 0) {
            return EINVAL;
        }
        let stack = stack.wrapping_add(stack_bytes);
        self.clone_with(cpu, &Request { flags, exit_signal, stack, parent_tid, child_tid, thread_pointer, pidfd })
    }

    pub(crate) fn fork(&mut self, cpu: &mut C) -> i64 {
        self.clone_call(cpu, [libc::SIGCHLD as u64, 0, 0, 0, 0, 0])
    }

    pub(crate) fn vfork(&mut self, cpu: &mut C) -> i64 {
        self.clone_call(cpu, [(libc::SIGCHLD | libc::CLONE_VFORK | libc::CLONE_VM) as u64, 0, 0, 0, 0, 0])
    }

    fn clone_with(&mut self, cpu: &mut C, request: &Request) -> i64 {
        // What the kernel checks first.
        if request.has(libc::CLONE_SIGHAND) && !request.has(libc::CLONE_VM)
            || request.has(libc::CLONE_THREAD) && !request.has(libc::CLONE_SIGHAND)
        {
            return EINVAL;
        }
        if !self.set_kernel_mask(ALL_BLOCKED) {
            return RESTART;
        }
        let result = if request.has(libc::CLONE_THREAD) {
            self.new_thread(cpu, request)
        } else {
            self.new_process(cpu, request)
        };
        self.set_kernel_mask(self.thread().mask());
        result
    }

    fn new_thread(&mut self, cpu: &mut C, request: &Request) -> i64 {
        let mut guest = cpu.guest().clone();
        guest.set_gpr(Gpr::Rax, 0);
        if request.stack != 0 {
            guest.set_gpr(Gpr::Rsp, request.stack);
        }
        if request.has(libc::CLONE_SETTLS) {
            guest.fs_base = request.thread_pointer;
        }
        let start = ThreadStart {
            tid: 0,
            parent: self.thread().tid(),
            stack_pointer: guest.gpr(Gpr::Rsp),
            thread_pointer: guest.fs_base,
        };
        let thread = Box::into_raw(Box::new(Thread::new(guest, self.thread().mask())));
        if request.has(libc::CLONE_CHILD_CLEARTID) {
            // SAFETY: just made.
            unsafe { (*(*thread).local.get()).clear_child_tid = request.child_tid };
        }
        let birth = Birth { task: self.for_thread(thread), start, tid: AtomicU32::new(0) };
        let stack = self.process().host_stacks.take();
        self.process().threads.push(thread);
        let is_started = stack.is_some_and(|(number, base, bytes)| {
            // SAFETY: just made, and the thread does not run yet.
            unsafe { (*(*thread).local.get()).host_stack = Some(number) };
            start_host_thread::<C, M>(&birth, base, bytes)
        });
        // With its first thread the C library takes the signal by which it changes ids in all of them, which in this
        // process is for the target's C library to do.
        signals::install::<C>(&self.process().actions, SETXID);
        if !is_started {
            self.process().threads.retain(|&other| other != thread.cast_const());
            if let Some((number, ..)) = stack {
                self.process().host_stacks.end(number);
            }
            // SAFETY: nobody got it.
            drop(unsafe { Box::from_raw(thread) });
            return EAGAIN;
        }
        while birth.tid.load(Ordering::Acquire) == 0 {
            futex_wait(&birth.tid, 0, None);
        }
        let tid = birth.tid.load(Ordering::Acquire);
        if let Some((number, ..)) = stack {
            self.process().host_stacks.set_tid(number, tid as i32);
        }
        self.write_ids(cpu, request, tid);
        i64::from(tid)
    }

    /// Where parent and child, sharing memory or not, want the new id. As in the kernel, nobody is told of bad addresses.
    fn write_ids(&mut self, cpu: &mut C, request: &Request, tid: u32) {
        let mut write = |address: u64| {
            cpu.before_write(address, address.saturating_add(4));
            let _ = raw::write_u32(address, tid);
        };
        if request.has(libc::CLONE_PARENT_SETTID) {
            write(request.parent_tid);
        }
        if request.has(libc::CLONE_CHILD_SETTID) && request.has(libc::CLONE_VM) && request.has(libc::CLONE_THREAD) {
            write(request.child_tid);
        }
    }

    fn new_process(&mut self, cpu: &mut C, request: &Request) -> i64 {
        let shares_memory = request.has(libc::CLONE_VM);
        if shares_memory && !request.has(libc::CLONE_VFORK) && self.process().warned.insert(libc::SYS_clone as u64) {
            self.monitor().warn("a process that shares its parent's memory gets a copy of it instead");
        }
        let rsp = cpu.guest().gpr(Gpr::Rsp);
        let stack_end = self.process().space.find(rsp).map_or(rsp, |mapping| mapping.end);
        let shared =
            if shares_memory && request.has(libc::CLONE_VFORK) { SharedStack::new(rsp, stack_end) } else { None };
        self.monitor().forking(cpu);
        let pid = make_process(request);
        if pid == 0 {
            self.become_child(cpu, request, shared);
            return 0;
        }
        if pid < 0 {
            self.monitor().fork_failed(cpu);
        }
        if let Some(shared) = shared {
            shared.adopt(cpu);
        }
        if pid > 0 && request.has(libc::CLONE_PARENT_SETTID) {
            cpu.before_write(request.parent_tid, request.parent_tid.saturating_add(4));
            let _ = raw::write_u32(request.parent_tid, pid as u32);
        }
        pid
    }

    fn become_child(&mut self, cpu: &mut C, request: &Request, shared: Option<SharedStack>) {
        let thread = self.thread();
        thread.set_tid(raw::gettid());
        thread.forget_signals();
        BATON.reset(&thread.waiter);
        // The others are not here any more; what they hold of ours stays as it is, and is never freed.
        self.process().threads = vec![thread];
        let own_stack = self.local().host_stack;
        self.process().host_stacks.keep_only(own_stack, thread.tid());
        cpu.attach_thread();
        let local = self.local();
        local.vfork = shared;
        local.clear_child_tid = if request.has(libc::CLONE_CHILD_CLEARTID) { request.child_tid } else { 0 };
        if request.has(libc::CLONE_CHILD_SETTID) {
            cpu.before_write(request.child_tid, request.child_tid.saturating_add(4));
            let _ = raw::write_u32(request.child_tid, thread.tid() as u32);
        }
        let guest = cpu.guest_mut();
        if request.stack != 0 {
            guest.set_gpr(Gpr::Rsp, request.stack);
        }
        if request.has(libc::CLONE_SETTLS) {
            guest.fs_base = request.thread_pointer;
        }
        self.monitor().forked(cpu);
    }

    /// In the child of a `vfork` that ends or executes: see [`SharedStack`].
    pub(crate) fn finish_vfork(&mut self) {
        if let Some(shared) = self.local().vfork {
            shared.publish();
        }
    }

    pub(crate) fn exit_process(&mut self, cpu: &mut C, status: i32) -> ! {
        let status = self.monitor().ending(cpu, &Ending::Exit(status));
        self.finish_vfork();
        loop {
            // SAFETY: the process ends.
            unsafe { raw::syscall(libc::SYS_exit_group, [status as u64, 0, 0, 0, 0, 0]) };
        }
    }

    pub(crate) fn exit_thread(&mut self, cpu: &mut C, status: i32) -> Outcome {
        if self.process().threads.len() == 1 {
            self.exit_process(cpu, status);
        }
        // From here on no signal may find this thread.
        if !self.set_kernel_mask(ALL_BLOCKED) {
            return Outcome::Result(RESTART);
        }
        let thread = self.thread();
        let tid = thread.tid();
        self.monitor().thread_ended(cpu, tid);
        // The kernel marks the locks of a robust list as their dead owner's, clears the id and wakes who waits for it, in
        // this order, when the host thread is gone.
        let address = self.local().clear_child_tid;
        if address != 0 {
            cpu.before_write(address, address.saturating_add(4));
        }
        // SAFETY: the kernel checks the address. The C library does not need its own word: see `host_stacks`.
        unsafe { raw::syscall(libc::SYS_set_tid_address, [address, 0, 0, 0, 0, 0]) };
        if let Some(number) = self.local().host_stack {
            self.process().host_stacks.end(number);
        }
        self.process().threads.retain(|&other| !ptr::eq(other, thread));
        forget_owner(thread);
        // SAFETY: signals are blocked; nothing asks for the thread any more.
        unsafe { signals::attach_thread(ptr::null(), ptr::null_mut()) };
        Outcome::Ended(status)
    }
}

/// `fork` by the C library where it can do it: it knows what of its own is to be set right in the child.
fn make_process(request: &Request) -> i64 {
    let pass = request.flags & !(WRITES | libc::CLONE_SETTLS as u64);
    if pass == 0 && request.exit_signal == libc::SIGCHLD as u64 {
        // SAFETY: all signals are blocked and the baton is held, so that the only thread of the child finds everything
        // in order.
        let pid = unsafe { libc::fork() };
        // SAFETY: errno is this thread's.
        return if pid < 0 { -i64::from(unsafe { *libc::__errno_location() }) } else { i64::from(pid) };
    }
    let shares = libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_THREAD;
    let flags = pass & !(shares as u64) | request.exit_signal;
    // SAFETY: without CLONE_VM the child is a copy, and goes on with a copy of this stack.
    unsafe { raw::syscall(libc::SYS_clone, [flags, 0, request.pidfd, 0, 0, 0]) }
}

fn start_host_thread<C: Cpu, M: Monitor<C> + 'static>(birth: &Birth<C, M>, base: u64, bytes: usize) -> bool {
    let mut attributes = MaybeUninit::<libc::pthread_attr_t>::uninit();
    // SAFETY: the attributes are initialised first; `birth` lives until the thread has read it; the stack is nobody's.
    unsafe {
        libc::pthread_attr_init(attributes.as_mut_ptr());
        libc::pthread_attr_setdetachstate(attributes.as_mut_ptr(), libc::PTHREAD_CREATE_DETACHED);
        libc::pthread_attr_setstack(attributes.as_mut_ptr(), base as *mut c_void, bytes);
        let mut id = MaybeUninit::uninit();
        let argument = ptr::from_ref(birth).cast_mut().cast();
        let error = libc::pthread_create(id.as_mut_ptr(), attributes.as_ptr(), host_thread::<C, M>, argument);
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
        error == 0
    }
}

/// A host thread from its first to its last step. Signals are blocked at both.
extern "C" fn host_thread<C: Cpu, M: Monitor<C> + 'static>(argument: *mut c_void) -> *mut c_void {
    let (mut task, mut start) = {
        // SAFETY: `start_host_thread` gave it, and waits.
        let birth = unsafe { &*argument.cast::<Birth<C, M>>() };
        let tid = raw::gettid();
        let task = birth.task.for_thread(birth.task.thread());
        let start = birth.start;
        task.thread().set_tid(tid);
        let word = &raw const birth.tid as u64;
        birth.tid.store(tid as u32, Ordering::Release);
        // The parent may have gone on after the store: the wake-up goes to an address, not to an object.
        futex_wake_at(word);
        (task, start)
    };
    let thread = task.thread();
    start.tid = thread.tid();
    BATON.acquire(&thread.waiter);
    let stack = task.attach();
    // SAFETY: leaked by `Process::run`; the baton is held.
    let cpu = unsafe { &mut *task.cpu_pointer() };
    take_over(cpu, thread);
    cpu.attach_thread();
    task.monitor().thread_started(cpu, &start);
    task.set_kernel_mask(thread.mask());
    if let Err(error) = cpu.run(&mut task) {
        eprintln!("leakscope: {error}");
        task.exit_process(cpu, 2);
    }
    // Under the baton, as the allocator may be in use otherwise when somebody forks.
    let no_stack = libc::stack_t { ss_sp: ptr::null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
    // SAFETY: signals are blocked, and neither stack nor thread is used after this by anybody.
    unsafe {
        libc::sigaltstack(&no_stack, ptr::null_mut());
        drop(Box::from_raw(stack));
        drop(Box::from_raw(ptr::from_ref(thread).cast_mut()));
    }
    BATON.release();
    ptr::null_mut()
}
