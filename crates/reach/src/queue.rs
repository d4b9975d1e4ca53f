//! What the workers share: blocks and stretches of memory to scan, and who is at work.
//!
//! Everything is behind one lock that is held for a few instructions. Work is only made by active workers, and a worker
//! becomes active in the same step in which it takes work; so when none is active and nothing is left, all is done.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize};

use crate::stack::Stack;

/// Most blocks that one worker gives to the others at once.
const POOL_BLOCKS: usize = 1024;
/// Most stretches of memory that are being divided at a time.
const SPANS: usize = 8;
/// Bytes of such a stretch that a worker takes at once.
const PIECE_BYTES: u64 = 128 << 10;
/// Blocks of a sweep that a worker takes at once.
const SWEEP_BLOCKS: usize = 1 << 14;
/// Sweeps look at blocks in order of address as long as one finds one in so many blocks to scan.
const SWEEP_DENSITY: usize = 64;

/// What a worker is to do next.
pub(crate) enum Task {
    /// Scan the blocks that were put on its stack.
    Stack,
    /// Scan these addresses, which do not lie in a small block.
    Span { start: u64, end: u64, manner: Manner },
    /// Scan the pending blocks with these numbers; `deep`: and what they lead to.
    Sweep { from: usize, until: usize, deep: bool },
    /// Nothing at the moment.
    Wait,
    /// Nothing ever again.
    Done,
}

/// How a stretch of memory is scanned.
#[derive(Clone, Copy)]
pub(crate) struct Manner {
    /// Whether start-pointers in it make their blocks reachable.
    pub(crate) is_definite: bool,
    /// Whether it is a root, not a block.
    pub(crate) is_root: bool,
    /// Whether unreadable bytes were counted in an earlier scan.
    pub(crate) is_again: bool,
}

#[derive(Default)]
struct Span {
    next: AtomicU64,
    end: AtomicU64,
    is_definite: AtomicBool,
    is_root: AtomicBool,
    is_again: AtomicBool,
}

/// The shared state of a marking.
pub(crate) struct Queue {
    is_locked: AtomicBool,
    is_done: AtomicBool,
    /// Workers that have work.
    active: AtomicU32,
    /// Workers that wait for some.
    hungry: AtomicU32,
    pool: [AtomicU32; POOL_BLOCKS],
    pool_len: AtomicUsize,
    spans: [Span; SPANS],
    /// Whether there are pending blocks that are on no stack.
    has_spilled: AtomicBool,
    /// The first block that the sweep has not come to.
    sweep_next: AtomicUsize,
    is_deep: AtomicBool,
    /// Blocks that the sweep found.
    found: AtomicUsize,
    blocks: usize,
}

impl Queue {
    /// For a heap of so many blocks. The first worker counts as active.
    pub(crate) fn new(blocks: usize) -> Self {
        Self {
            is_locked: AtomicBool::new(false),
            is_done: AtomicBool::new(false),
            active: AtomicU32::new(1),
            hungry: AtomicU32::new(0),
            pool: [const { AtomicU32::new(0) }; POOL_BLOCKS],
            pool_len: AtomicUsize::new(0),
            spans: Default::default(),
            has_spilled: AtomicBool::new(false),
            sweep_next: AtomicUsize::new(blocks),
            is_deep: AtomicBool::new(false),
            found: AtomicUsize::new(usize::MAX),
            blocks,
        }
    }

    fn locked<T>(&self, act: impl FnOnce() -> T) -> T {
        while self.is_locked.swap(true, Acquire) {
            core::hint::spin_loop();
        }
        let result = act();
        self.is_locked.store(false, Release);
        result
    }

    /// Whether the calling worker could give something away.
    #[inline]
    pub(crate) fn is_hungry(&self) -> bool {
        self.hungry.load(Relaxed) > 0 && self.pool_len.load(Relaxed) == 0
    }

    /// Gives away the older half of a stack: what lies there longest leads to most.
    pub(crate) fn give(&self, stack: &mut Stack<'_>) {
        self.locked(|| {
            let len = self.pool_len.load(Relaxed);
            let mut count = 0;
            for (slot, block) in self.pool.iter().skip(len).zip(stack.older_half()) {
                slot.store(block, Relaxed);
                count += 1;
            }
            self.pool_len.store(len + count, Relaxed);
            stack.drop_oldest(count);
        });
    }

    /// Divides a long stretch of memory among the workers. False if there is no room.
    pub(crate) fn divide(&self, start: u64, end: u64, manner: Manner) -> bool {
        // Pieces must begin at whole words.
        if end.saturating_sub(start) < 2 * PIECE_BYTES || !start.is_multiple_of(8) {
            return false;
        }
        self.locked(|| {
            let free = self.spans.iter().find(|s| s.next.load(Relaxed) >= s.end.load(Relaxed));
            if let Some(span) = free {
                span.next.store(start, Relaxed);
                span.end.store(end, Relaxed);
                span.is_definite.store(manner.is_definite, Relaxed);
                span.is_root.store(manner.is_root, Relaxed);
                span.is_again.store(manner.is_again, Relaxed);
            }
            free.is_some()
        })
    }

    /// Some pending block is on no stack.
    #[inline]
    pub(crate) fn spill(&self) {
        if !self.has_spilled.load(Relaxed) {
            self.has_spilled.store(true, Relaxed);
        }
    }

    /// Counts blocks that a sweep found.
    pub(crate) fn count_found(&self, blocks: usize) {
        self.found.fetch_add(blocks, Relaxed);
    }

    /// The calling worker has done what it had taken.
    pub(crate) fn finish(&self) {
        self.locked(|| {
            self.active.store(self.active.load(Relaxed).saturating_sub(1), Relaxed);
        });
    }

    /// The calling worker, which is not active, asks for work.
    pub(crate) fn next(&self, stack: &mut Stack<'_>, was_waiting: &mut bool) -> Task {
        if self.is_done.load(Acquire) {
            return Task::Done;
        }
        let task = self.locked(|| self.pick(stack));
        let waits = matches!(task, Task::Wait);
        if waits != *was_waiting {
            *was_waiting = waits;
            let step = if waits { 1 } else { u32::MAX };
            self.hungry.fetch_add(step, Relaxed);
        }
        task
    }

    fn pick(&self, stack: &mut Stack<'_>) -> Task {
        let task = self.pick_ready(stack).unwrap_or_else(|| {
            if self.active.load(Relaxed) > 0 {
                return Task::Wait;
            }
            if !self.has_spilled.load(Relaxed) {
                self.is_done.store(true, Release);
                return Task::Done;
            }
            let is_dense = self.found.load(Relaxed) > self.blocks / SWEEP_DENSITY;
            self.is_deep.store(!is_dense, Relaxed);
            self.has_spilled.store(false, Relaxed);
            self.found.store(0, Relaxed);
            self.sweep_next.store(0, Relaxed);
            self.pick_ready(stack).unwrap_or(Task::Wait)
        });
        if !matches!(task, Task::Wait | Task::Done) {
            self.active.store(self.active.load(Relaxed) + 1, Relaxed);
        }
        task
    }

    fn pick_ready(&self, stack: &mut Stack<'_>) -> Option<Task> {
        let len = self.pool_len.load(Relaxed);
        if len > 0 {
            // All of it: a short stack only leaves it to a sweep.
            for slot in self.pool.iter().take(len) {
                if !stack.push(slot.load(Relaxed)) {
                    self.spill();
                }
            }
            self.pool_len.store(0, Relaxed);
            return Some(Task::Stack);
        }
        for span in &self.spans {
            let (start, end) = (span.next.load(Relaxed), span.end.load(Relaxed));
            if start < end {
                let stop = end.min(start.saturating_add(PIECE_BYTES));
                span.next.store(stop, Relaxed);
                let manner = Manner {
                    is_definite: span.is_definite.load(Relaxed),
                    is_root: span.is_root.load(Relaxed),
                    is_again: span.is_again.load(Relaxed),
                };
                return Some(Task::Span { start, end: stop, manner });
            }
        }
        let from = self.sweep_next.load(Relaxed);
        if from < self.blocks {
            let until = (from + SWEEP_BLOCKS).min(self.blocks);
            self.sweep_next.store(until, Relaxed);
            return Some(Task::Sweep { from, until, deep: self.is_deep.load(Relaxed) });
        }
        None
    }
}
