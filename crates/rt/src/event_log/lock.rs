//! A lock that knows its owner, so that a signal handler sees that it has interrupted it and must not wait.
//!
//! ```text
//! bit 31 threads wait | bit 30 handlers have left something | 29..0 the owner's kernel thread id, 0 when it is open
//! ```

use crate::raw::{call, nr};
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

const WAITERS: u32 = 1 << 31;
const LEFT: u32 = 1 << 30;
const OWNER: u32 = LEFT - 1;

/// Who may own the lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owner(u32);

impl Owner {
    /// The thread with this kernel id.
    pub fn new(tid: u32) -> Self {
        Self(tid & OWNER)
    }
}

/// The lock.
pub struct OwnedLock(AtomicU32);

impl OwnedLock {
    /// An open lock.
    pub const fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Whether this thread has it: only a signal handler can find that.
    pub fn is_held_by(&self, me: Owner) -> bool {
        self.0.load(Relaxed) & OWNER == me.0
    }

    /// Takes the lock if it is open.
    pub fn try_acquire(&self, me: Owner) -> bool {
        self.0.compare_exchange(0, me.0, Acquire, Relaxed).is_ok()
    }

    /// Takes the lock; false, at once, when the calling thread has it already.
    pub fn acquire(&self, me: Owner) -> bool {
        const FUTEX_WAIT_PRIVATE: usize = 128;
        let mut mark = 0;
        loop {
            match self.0.compare_exchange(0, me.0 | mark, Acquire, Relaxed) {
                Ok(_) => return true,
                Err(now) if now & OWNER == me.0 => return false,
                Err(now) => {
                    let waits = now | WAITERS;
                    if now == waits || self.0.compare_exchange(now, waits, Relaxed, Relaxed).is_ok() {
                        // SAFETY: waits on our own word.
                        let _ = unsafe { call!(nr::FUTEX, self.0.as_ptr(), FUTEX_WAIT_PRIVATE, waits, 0) };
                        // Whoever wakes one does not know whether more wait.
                        mark = WAITERS;
                    }
                }
            }
        }
    }

    /// Opens the lock; false when signal handlers have left something to do first.
    pub fn release(&self, me: Owner) -> bool {
        const FUTEX_WAKE_PRIVATE: usize = 129;
        loop {
            let now = self.0.load(Relaxed);
            if now & LEFT != 0 {
                self.0.fetch_and(!LEFT, AcqRel);
                return false;
            }
            if now & OWNER != me.0 {
                return true;
            }
            if self.0.compare_exchange(now, 0, AcqRel, Relaxed).is_ok() {
                if now & WAITERS != 0 {
                    // SAFETY: wakes a waiter on our own word.
                    let _ = unsafe { call!(nr::FUTEX, self.0.as_ptr(), FUTEX_WAKE_PRIVATE, 1) };
                }
                return true;
            }
        }
    }

    /// In a signal handler that has interrupted the owner: it has left something.
    pub fn mark_left(&self) {
        self.0.fetch_or(LEFT, AcqRel);
    }

    /// In a forked child, whose only thread calls: opens it, whoever had it.
    pub fn reset(&self) {
        self.0.store(0, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_nobody_sleeps_for_ever() {
        static LOCK: OwnedLock = OwnedLock::new();
        static SUM: AtomicU32 = AtomicU32::new(0);
        let threads: Vec<_> = (1..=8)
            .map(|number| {
                std::thread::spawn(move || {
                    let me = Owner::new(number);
                    for _ in 0..20_000 {
                        assert!(LOCK.acquire(me));
                        assert!(LOCK.is_held_by(me) && !LOCK.acquire(me));
                        // Not atomic on purpose: only the lock makes it right.
                        SUM.store(SUM.load(Relaxed) + 1, Relaxed);
                        assert!(LOCK.release(me));
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(SUM.load(Relaxed), 160_000);
    }

    #[test]
    fn what_is_left_is_done_before_it_opens() {
        let lock = OwnedLock::new();
        let (me, other) = (Owner::new(1), Owner::new(2));
        assert!(lock.acquire(me));
        lock.mark_left();
        assert!(!lock.release(me) && !lock.try_acquire(other));
        assert!(lock.release(me) && lock.try_acquire(other));
    }
}
