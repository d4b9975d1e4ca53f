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

/// A release that waits.
#[derive(Default)]
struct Entry {
    /// Start of the block, and above it the number of the function; 0 when the place is empty.
    word: AtomicU64,
    /// Return address of the call.
    caller: AtomicU64,
}

/// The releases that a thread keeps back. All-zero bytes are an empty queue.
#[derive(Default)]
pub struct ReleaseQueue {
    entries: [Entry; LENGTH],
    next: usize,
}

/// A release that has waited long enough.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Release {
    /// Start of the block.
    pub start: u64,
    /// The function that was called.
    pub function: AllocFn,
    /// Return address of the call.
    pub caller: u64,
}

impl Entry {
    #[inline(always)]
    fn take(&self) -> Option<Release> {
        let word = self.word.load(Relaxed);
        self.word.store(0, Relaxed);
        Self::decode(word, self.caller.load(Relaxed))
    }

    #[inline(always)]
    fn decode(word: u64, caller: u64) -> Option<Release> {
        let start = word & ((1 << FUNCTION_SHIFT) - 1);
        if start == 0 {
            return None;
        }
        let function = AllocFn::from_u8((word >> FUNCTION_SHIFT) as u8).unwrap_or(AllocFn::Free);
        Some(Release { start, function, caller })
    }
}

impl ReleaseQueue {
    /// Takes a release in, and gives the one that waits longest, if the queue was full.
    #[inline(always)]
    pub fn exchange(&mut self, start: u64, function: AllocFn, caller: u64) -> Option<Release> {
        let entry = self.entries.get(self.next % LENGTH)?;
        self.next = (self.next + 1) % LENGTH;
        let oldest = Entry::decode(entry.word.load(Relaxed), entry.caller.load(Relaxed));
        entry.caller.store(caller, Relaxed);
        entry.word.store(start | (function as u64) << FUNCTION_SHIFT, Relaxed);
        oldest
    }

    /// Start of the block that waits half its time now; 0 when there is none.
    #[inline(always)]
    pub fn halfway(&self) -> u64 {
        let entry = self.entries.get((self.next + LENGTH / 2) % LENGTH);
        entry.map_or(0, |entry| entry.word.load(Relaxed) & ((1 << FUNCTION_SHIFT) - 1))
    }

    /// Takes out the release that waits longest.
    pub fn take(&mut self) -> Option<Release> {
        let found = (0..LENGTH).map(|i| (self.next + i) % LENGTH).find_map(|at| self.entries.get(at)?.take());
        if found.is_none() {
            self.next = 0;
        }
        found
    }

    /// Takes out what waits in the queue of another thread, which stands still for good.
    pub fn drain_from_outside(&self) -> impl Iterator<Item = Release> + '_ {
        self.entries.iter().filter_map(Entry::take)
    }

    /// Whether a release of `start` waits. Any thread may ask.
    pub fn holds(&self, start: u64) -> bool {
        self.entries.iter().any(|entry| entry.word.load(Relaxed) & ((1 << FUNCTION_SHIFT) - 1) == start)
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
            let release = Release { start: i * 16, function: AllocFn::Delete, caller: random };
            // After a `take` the queue's places are not all full; what comes out is never out of turn.
            let out = queue.exchange(release.start, release.function, release.caller);
            if let Some(out) = out {
                assert_eq!(Some(out), model.pop_front());
            }
            model.push_back(release);
            assert!(model.len() <= LENGTH);
            assert!(queue.holds(release.start) && !queue.holds(release.start + 16));
        }
        while let Some(release) = model.pop_front() {
            assert_eq!(queue.take(), Some(release));
        }
        assert_eq!(queue.take(), None);
        assert_eq!(queue.halfway(), 0);
    }
}
