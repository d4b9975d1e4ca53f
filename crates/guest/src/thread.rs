//! What is known of a thread of the target beside its registers, and who has the registers.
//!
//! The running thread's registers are in the CPU's state. They stay there when it gives the baton up; who gets the baton
//! next moves them to their owner first (`take_over`), so that a call that nobody else runs during costs no copy.

use std::cell::UnsafeCell;
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicU64, Ordering};

use leakscope_translate::Guest;

use crate::Cpu;
use crate::baton::{Baton, Waiter};
use crate::signals::frame::AltStack;
use crate::signals::{self, Info, Set, bit};

/// How long a thread runs while others wait.
const SLICE_NS: u64 = 1_000_000;

/// The baton of the process.
pub(crate) static BATON: Baton = Baton::new(SLICE_NS, signals::ask);

/// Whose registers are in the CPU's state. Touched with the baton held.
static OWNER: AtomicPtr<Thread> = AtomicPtr::new(ptr::null_mut());

/// A thread of the target.
///
/// The handler of its own host thread reads `tid` and `mask` and writes `pending` and `deferred`; everything else belongs
/// to who holds the baton.
pub(crate) struct Thread {
    pub waiter: Waiter,
    tid: AtomicI32,
    mask: AtomicU64,
    pending: AtomicU32,
    pending_info: UnsafeCell<Info>,
    deferred: AtomicU64,
    deferred_info: UnsafeCell<[Info; 8]>,
    saved: UnsafeCell<Guest>,
    pub local: UnsafeCell<Local>,
}

/// What system calls set for a thread.
#[derive(Debug, Clone)]
pub(crate) struct Local {
    pub altstack: AltStack,
    pub clear_child_tid: u64,
    /// Number of its host thread's stack; none for the first thread.
    pub host_stack: Option<usize>,
    /// In the child of a `vfork`: what its parent has to learn of.
    pub vfork: Option<crate::clone::SharedStack>,
}

/// Places of `deferred_info`: the synchronous signals, and [`signals::PREEMPT`].
fn place(signal: i32) -> usize {
    match signal {
        libc::SIGSEGV => 0,
        libc::SIGBUS => 1,
        libc::SIGFPE => 2,
        libc::SIGILL => 3,
        libc::SIGTRAP => 4,
        libc::SIGSYS => 5,
        _ => 6,
    }
}

impl Thread {
    /// A thread that will begin with these registers.
    pub fn new(guest: Guest, mask: Set) -> Self {
        let nothing = Info([0; signals::INFO_BYTES]);
        Self {
            waiter: Waiter::new(),
            tid: AtomicI32::new(0),
            mask: AtomicU64::new(mask),
            pending: AtomicU32::new(0),
            pending_info: UnsafeCell::new(nothing),
            deferred: AtomicU64::new(0),
            deferred_info: UnsafeCell::new([nothing; 8]),
            saved: UnsafeCell::new(guest),
            local: UnsafeCell::new(Local {
                altstack: AltStack::NONE,
                clear_child_tid: 0,
                host_stack: None,
                vfork: None,
            }),
        }
    }

    pub fn tid(&self) -> i32 {
        self.tid.load(Ordering::Relaxed)
    }

    pub fn set_tid(&self, tid: i32) {
        self.tid.store(tid, Ordering::Relaxed);
        self.waiter.set_tid(tid);
    }

    /// The signals that the target blocks.
    pub fn mask(&self) -> Set {
        self.mask.load(Ordering::Relaxed)
    }

    pub fn set_mask(&self, mask: Set) {
        self.mask.store(mask & !signals::UNTOUCHABLE, Ordering::Relaxed);
    }

    /// The word that interruptible calls look at.
    pub fn pending_word(&self) -> &AtomicU32 {
        &self.pending
    }

    pub fn has_pending(&self) -> bool {
        self.pending.load(Ordering::Acquire) != 0
    }

    /// In the handler: a signal to deliver; the kernel sends no other one until then.
    pub fn set_pending(&self, info: &Info) {
        // SAFETY: the slot is this host thread's, and free: all signals are blocked while it is in use.
        unsafe { *self.pending_info.get() = *info };
        self.pending.store(1, Ordering::Release);
    }

    /// The signal that waits, without taking it.
    pub fn peek_pending(&self) -> Option<Info> {
        // SAFETY: set before the word, by this host thread.
        self.has_pending().then(|| unsafe { *self.pending_info.get() })
    }

    pub fn take_pending(&self) -> Option<Info> {
        let info = self.peek_pending()?;
        // Not before there is one: it may come right now, and from then on the kernel blocks all others.
        self.pending.store(0, Ordering::Release);
        Some(info)
    }

    /// In the handler: a signal that the kernel cannot hold back although the target blocks it. One of each kind.
    pub fn defer(&self, signal: i32, info: &Info) {
        if self.deferred.load(Ordering::Relaxed) & bit(signal) == 0 {
            // SAFETY: this host thread's, and nobody reads it before the bit is set.
            unsafe { (*self.deferred_info.get())[place(signal)] = *info };
            self.deferred.fetch_or(bit(signal), Ordering::Release);
        }
    }

    /// Deferred signals, blocked or not.
    pub fn deferred(&self) -> Set {
        self.deferred.load(Ordering::Acquire)
    }

    /// Takes a deferred signal that is not in `blocked`.
    pub fn take_deferred(&self, blocked: Set) -> Option<Info> {
        let ready = self.deferred() & !blocked;
        if ready == 0 {
            return None;
        }
        let signal = ready.trailing_zeros() as i32 + 1;
        // SAFETY: written before the bit was set, and not again before it is cleared.
        let info = unsafe { (*self.deferred_info.get())[place(signal)] };
        self.deferred.fetch_and(!bit(signal), Ordering::Release);
        Some(info)
    }

    /// In the child of a fork: what waits for the parent is the parent's.
    pub fn forget_signals(&self) {
        self.deferred.store(0, Ordering::Relaxed);
    }
}

/// With the baton held: moves the registers of the thread that ran last to their place, and this one's into the CPU.
pub(crate) fn take_over<C: Cpu>(cpu: &mut C, thread: &Thread) {
    let me = ptr::from_ref(thread).cast_mut();
    let owner = OWNER.swap(me, Ordering::Relaxed);
    if owner == me {
        return;
    }
    if !owner.is_null() {
        // SAFETY: threads that are freed are taken out of `OWNER` first; the baton is held.
        unsafe { (*(*owner).saved.get()).copy_from(cpu.guest()) };
    }
    // SAFETY: this thread's, and the baton is held.
    cpu.guest_mut().copy_from(unsafe { &*thread.saved.get() });
}

/// With the baton held: what a thread's registers are, wherever they are now.
pub(crate) fn registers<'a, C: Cpu>(cpu: &'a C, thread: &'a Thread) -> &'a Guest {
    if ptr::eq(OWNER.load(Ordering::Relaxed), thread) {
        return cpu.guest();
    }
    // SAFETY: written by `take_over` only, with the baton held.
    unsafe { &*thread.saved.get() }
}

/// With the baton held: the registers of a thread whose turn it is not.
pub(crate) fn saved_registers(thread: &Thread) -> Option<&Guest> {
    let is_owner = ptr::eq(OWNER.load(Ordering::Relaxed), thread);
    // SAFETY: written by `take_over` only, with the baton held.
    (!is_owner).then(|| unsafe { &*thread.saved.get() })
}

/// With the baton held: nobody needs the registers in the CPU any more.
pub(crate) fn forget_owner(thread: &Thread) {
    let me = ptr::from_ref(thread).cast_mut();
    let _ = OWNER.compare_exchange(me, ptr::null_mut(), Ordering::Relaxed, Ordering::Relaxed);
}
