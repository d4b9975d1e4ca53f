//! Releases that wait: what a release needs to read is fetched into the cache while the program goes on.
//!
//! A release reads the block table, the block's header and its last bytes, each mostly in no cache: an unmodified
//! program waits for one of them, we would for three. So a thread keeps its last [`LENGTH`] releases back. When one
//! comes in, the processor is told to fetch what is needed for it; half a queue later the table's word is there and
//! says where the block's end and the site's counters are; when it leaves the queue, all is at hand: it is counted,
//! its canary is looked at, and the original `free` gets the block. That this takes less time than the program's own
//! `free` would without us is no accident.
//!
//! What the program can tell by it: nothing. Its blocks stay taken a little longer, at most [`LENGTH`] of at most
//! [`MOST_BYTES`] for each thread. Only blocks that a [hint](crate::hints) vouches for wait: a wrong release never
//! does, because its stack must be taken when it happens. A leak check takes blocks that wait for released.
//!
//! The queue belongs to its thread; other threads only look.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;
use leakscope_model::AllocFn;

/// Releases that a thread keeps back.
pub const LENGTH: usize = 16;
/// Largest block that waits, in bytes.
pub const MOST_BYTES: usize = 4096;
/// Blocks of a site that a thread has to allocate before they wait: those of rare sites are looked at at once, so that
/// a write past their end is reported with the whole stack of the release.
pub const COMMON_BLOCKS: u64 = 8;

const FUNCTION_SHIFT: u32 = 48;

/// A release: the block's start, and above it the number of the function that was called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Release {
    word: u64,
    /// Return address of the call.
    pub caller: u64,
}

impl Release {
    /// Of the block at `start`, which is not 0.
    #[inline(always)]
    pub fn new(start: u64, function: AllocFn, caller: u64) -> Self {
        Self { word: start | (function as u64) << FUNCTION_SHIFT, caller }
    }

    /// Start of the block.
    #[inline(always)]
    pub fn start(self) -> u64 {
        self.word & ((1 << FUNCTION_SHIFT) - 1)
    }

    /// The function that was called.
    pub fn function(self) -> AllocFn {
        AllocFn::from_u8((self.word >> FUNCTION_SHIFT) as u8).unwrap_or(AllocFn::Free)
    }
}

/// A place in the queue; `word` is 0 when it is empty.
#[derive(Default)]
struct Entry {
    word: AtomicU64,
    caller: AtomicU64,
}

impl Entry {
    #[inline(always)]
    fn get(&self) -> Option<Release> {
        let word = self.word.load(Relaxed);
        (word != 0).then(|| Release { word, caller: self.caller.load(Relaxed) })
    }

    fn take(&self) -> Option<Release> {
        let release = self.get();
        self.word.store(0, Relaxed);
        release
    }
}

/// The releases that a thread keeps back. All-zero bytes are an empty queue.
#[derive(Default)]
pub struct ReleaseQueue {
    entries: [Entry; LENGTH],
    next: usize,
}

impl ReleaseQueue {
    /// Takes a release in, and gives the one that waits longest, if the queue was full.
    #[inline(always)]
    pub fn exchange(&mut self, release: Release) -> Option<Release> {
        let entry = &self.entries[self.next % LENGTH];
        self.next = self.next.wrapping_add(1);
        let oldest = entry.get();
        entry.caller.store(release.caller, Relaxed);
        entry.word.store(release.word, Relaxed);
        oldest
    }

    /// Start of the block that waits half its time now; 0 when there is none.
    #[inline(always)]
    pub fn halfway(&self) -> u64 {
        let word = self.entries[(self.next.wrapping_add(LENGTH / 2)) % LENGTH].word.load(Relaxed);
        word & ((1 << FUNCTION_SHIFT) - 1)
    }

    /// Takes out the release that waits longest.
    pub fn take(&mut self) -> Option<Release> {
        (0..LENGTH).find_map(|i| self.entries[self.next.wrapping_add(i) % LENGTH].take())
    }

    /// Takes out what waits in the queue of another thread, which stands still for good.
    pub fn drain_from_outside(&self) -> impl Iterator<Item = Release> + '_ {
        self.entries.iter().filter_map(Entry::take)
    }

    /// Whether no release waits. Any thread may ask.
    pub fn is_empty(&self) -> bool {
        self.entries.iter().all(|entry| entry.word.load(Relaxed) == 0)
    }

    /// Whether a release of `start` waits. Any thread may ask.
    pub fn holds(&self, start: u64) -> bool {
        self.entries.iter().any(|entry| entry.get().is_some_and(|release| release.start() == start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    #[test]
    fn it_is_a_queue() {
        let mut queue = ReleaseQueue::default();
        let mut model = VecDeque::new();
        let mut random = 12345u64;
        for i in 1..10_000u64 {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            if random >> 60 == 0 {
                assert_eq!(queue.take(), model.pop_front());
                continue;
            }
            let release = Release::new(i * 16, AllocFn::Delete, random);
            assert_eq!((release.start(), release.function()), (i * 16, AllocFn::Delete));
            // After a `take` the queue's places are not all full; what comes out is never out of turn.
            let out = queue.exchange(release);
            if let Some(out) = out {
                assert_eq!(Some(out), model.pop_front());
            }
            model.push_back(release);
            assert!(model.len() <= LENGTH);
            assert!(queue.holds(release.start()) && !queue.holds(release.start() + 16));
        }
        while let Some(release) = model.pop_front() {
            assert_eq!(queue.take(), Some(release));
        }
        assert_eq!(queue.take(), None);
        assert_eq!(queue.halfway(), 0);
    }
}
