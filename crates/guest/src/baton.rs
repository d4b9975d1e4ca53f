//! The baton: one thread at a time runs the target or touches what the threads share.
//!
//! A queue, so that nobody starves. Who has waited at its head for a slice interrupts the holder with
//! [`crate::signals::PREEMPT`]; so a lonely thread is never interrupted, and no timer ticks. A waiter at place `n` of the
//! queue sleeps `n + 1` slices at most before it looks whether it is at the head.
//!
//! Nothing here allocates. The waiter's node is in its thread, which outlives the wait. Signal handlers read the holder
//! only.

use std::cell::UnsafeCell;
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicU64, Ordering};

use crate::raw;

/// A thread's place in the queue.
#[derive(Debug)]
pub struct Waiter {
    next: AtomicPtr<Waiter>,
    granted: AtomicU32,
    tid: AtomicI32,
}

impl Waiter {
    /// Not waiting.
    #[must_use]
    pub const fn new() -> Self {
        Self { next: AtomicPtr::new(ptr::null_mut()), granted: AtomicU32::new(0), tid: AtomicI32::new(0) }
    }

    /// Sets the thread that waits, or holds, by this node.
    pub fn set_tid(&self, tid: i32) {
        self.tid.store(tid, Ordering::Relaxed);
    }
}

impl Default for Waiter {
    fn default() -> Self {
        Self::new()
    }
}

struct Queue {
    head: *const Waiter,
    tail: *const Waiter,
    length: u32,
    since_ns: u64,
    asked: bool,
    /// Whether the holder must not be interrupted; see [`Baton::keep`].
    kept: bool,
}

/// See the module.
pub struct Baton {
    lock: AtomicU32,
    /// The holder's thread, 0 for none.
    holder: AtomicI32,
    waiting: AtomicU32,
    slice_ns: u64,
    /// When somebody was last let in; see [`Baton::let_in`].
    let_in_ns: AtomicU64,
    queue: UnsafeCell<Queue>,
    interrupt: fn(i32),
}

/// How long a thread that was woken is waited for.
const PATIENCE_NS: u64 = 100_000;

// SAFETY: the queue is touched under `lock` only; its nodes are alive while they are in it.
unsafe impl Sync for Baton {}

const QUEUE: Queue = Queue { head: ptr::null(), tail: ptr::null(), length: 0, since_ns: 0, asked: false, kept: false };

impl Baton {
    /// A baton that nobody holds; `interrupt` makes a thread come to [`Baton::give_way`] soon.
    #[must_use]
    pub const fn new(slice_ns: u64, interrupt: fn(i32)) -> Self {
        Self {
            lock: AtomicU32::new(0),
            holder: AtomicI32::new(0),
            waiting: AtomicU32::new(0),
            slice_ns,
            let_in_ns: AtomicU64::new(0),
            queue: UnsafeCell::new(QUEUE),
            interrupt,
        }
    }

    /// The thread that holds it.
    pub fn holder(&self) -> i32 {
        self.holder.load(Ordering::Relaxed)
    }

    /// Whether somebody waits for it.
    pub fn is_wanted(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) != 0
    }

    fn with_queue<R>(&self, run: impl FnOnce(&mut Queue) -> R) -> R {
        if self.lock.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            // Who had to wait leaves the mark that others may wait as well.
            while self.lock.swap(2, Ordering::Acquire) != 0 {
                futex_wait(&self.lock, 2, None);
            }
        }
        // SAFETY: under the lock.
        let result = run(unsafe { &mut *self.queue.get() });
        if self.lock.swap(0, Ordering::Release) == 2 {
            futex_wake_at(ptr::from_ref(&self.lock) as u64);
        }
        result
    }

    /// Waits for the baton.
    pub fn acquire(&self, me: &Waiter) {
        let tid = me.tid.load(Ordering::Relaxed);
        let place = self.with_queue(|queue| {
            if self.holder() == 0 {
                self.holder.store(tid, Ordering::Relaxed);
                queue.since_ns = now_ns();
                return None;
            }
            Some(self.enqueue(queue, me))
        });
        if let Some(place) = place {
            self.wait(me, place);
        }
    }

    fn enqueue(&self, queue: &mut Queue, me: &Waiter) -> u32 {
        me.granted.store(0, Ordering::Relaxed);
        me.next.store(ptr::null_mut(), Ordering::Relaxed);
        if queue.tail.is_null() {
            queue.head = me;
        } else {
            // SAFETY: nodes in the queue are alive, their threads wait.
            unsafe { (*queue.tail).next.store(ptr::from_ref(me).cast_mut(), Ordering::Relaxed) };
        }
        queue.tail = me;
        queue.length += 1;
        self.waiting.store(queue.length, Ordering::Relaxed);
        queue.length - 1
    }

    fn wait(&self, me: &Waiter, place: u32) {
        let mut wait_ns = self.slice_ns * u64::from(place + 1);
        while me.granted.load(Ordering::Acquire) == 0 {
            if futex_wait(&me.granted, 0, Some(wait_ns)) != -i64::from(libc::ETIMEDOUT) {
                continue;
            }
            wait_ns = self.with_queue(|queue| {
                if me.granted.load(Ordering::Relaxed) != 0 || !ptr::eq(queue.head, me) || queue.kept {
                    return self.slice_ns;
                }
                let left = (queue.since_ns + self.slice_ns).saturating_sub(now_ns());
                if left > 0 {
                    return left;
                }
                // Under the lock: the holder cannot give the baton up before the signal is sent, and `release` lets
                // it arrive before the holder goes on.
                queue.asked = true;
                (self.interrupt)(self.holder());
                self.slice_ns
            });
        }
    }

    /// Hands the baton to who waits longest, or to nobody.
    pub fn release(&self) {
        let (asked, next) = self.with_queue(|queue| {
            let next = queue.head;
            let asked = std::mem::take(&mut queue.asked);
            if next.is_null() {
                self.holder.store(0, Ordering::Relaxed);
            } else {
                // SAFETY: as in `enqueue`.
                let node = unsafe { &*next };
                queue.head = node.next.load(Ordering::Relaxed);
                if queue.head.is_null() {
                    queue.tail = ptr::null();
                }
                queue.length -= 1;
                self.waiting.store(queue.length, Ordering::Relaxed);
                queue.since_ns = now_ns();
                self.holder.store(node.tid.load(Ordering::Relaxed), Ordering::Relaxed);
            }
            (asked, next)
        });
        if !next.is_null() {
            // SAFETY: the thread cannot leave `wait` before the store. After it the node may be reused or gone: its
            // address alone is used for the wake-up, which at worst wakes somebody in vain.
            let granted = unsafe {
                let granted = &raw const (*next).granted;
                (*granted).store(1, Ordering::Release);
                granted as u64
            };
            futex_wake_at(granted);
        }
        if asked {
            // It must not end the call that the thread makes next with EINTR.
            let_interruption_arrive();
        }
    }

    /// For the holder before `execve`: nobody interrupts it from now on, and an interruption that was sent has arrived.
    ///
    /// One that is pending when the program is replaced finds no handler any more, and ends the new program.
    pub fn keep(&self) {
        if self.with_queue(|queue| {
            queue.kept = true;
            std::mem::take(&mut queue.asked)
        }) {
            let_interruption_arrive();
        }
    }

    /// Ends [`Baton::keep`].
    pub fn keep_no_longer(&self) {
        self.with_queue(|queue| queue.kept = false);
    }

    /// Gives the baton to the others that wait now, if there are any.
    pub fn give_way(&self, me: &Waiter) {
        if !self.is_wanted() {
            return;
        }
        self.release();
        self.acquire(me);
    }

    /// For a thread that has released the baton and then woken another: waits for a moment until somebody has it, once in
    /// a slice.
    ///
    /// Who lets a lock go and takes it again at once would hold it whenever its turn ends: the woken one would find it
    /// taken each time, and starve. Now and then it gets the baton while the lock is free.
    pub fn let_in(&self) {
        let begin = now_ns();
        if begin.wrapping_sub(self.let_in_ns.load(Ordering::Relaxed)) < self.slice_ns {
            return;
        }
        self.let_in_ns.store(begin, Ordering::Relaxed);
        while self.holder() == 0 && now_ns() - begin < PATIENCE_NS {
            // SAFETY: it changes nothing.
            unsafe { raw::syscall(libc::SYS_sched_yield, [0; 6]) };
        }
    }

    /// In the child of a fork: only `me` is left, and holds the baton.
    pub fn reset(&self, me: &Waiter) {
        // SAFETY: there is one thread.
        unsafe { *self.queue.get() = QUEUE };
        self.lock.store(0, Ordering::Relaxed);
        self.waiting.store(0, Ordering::Relaxed);
        self.holder.store(me.tid.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// Pending signals are handled on the return from any call.
fn let_interruption_arrive() {
    // SAFETY: it changes nothing.
    unsafe { raw::syscall(libc::SYS_getppid, [0; 6]) };
}

fn now_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes the time.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Sleeps until `word` is no longer `value`, or a wake-up.
pub(crate) fn futex_wait(word: &AtomicU32, value: u32, limit_ns: Option<u64>) -> i64 {
    let limit =
        limit_ns.map(|ns| libc::timespec { tv_sec: (ns / 1_000_000_000) as i64, tv_nsec: (ns % 1_000_000_000) as i64 });
    let time = limit.as_ref().map_or(0, |time| ptr::from_ref(time) as u64);
    let operation = (libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG) as u64;
    // SAFETY: word and time are alive.
    unsafe { raw::syscall(libc::SYS_futex, [ptr::from_ref(word) as u64, operation, value.into(), time, 0, 0]) }
}

/// Wakes one who sleeps by a word of ours; only its address is used.
pub(crate) fn futex_wake_at(address: u64) {
    let operation = (libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG) as u64;
    // SAFETY: it only takes the address.
    unsafe { raw::syscall(libc::SYS_futex, [address, operation, 1, 0, 0, 0]) };
}

#[cfg(test)]
mod tests;
