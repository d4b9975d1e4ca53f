//! Which blocks are still to be scanned: a worker's mark stack, and the pending marks behind it.
//!
//! Every block to be scanned has its pending mark. The stack only says which comes next, so that a short one loses
//! nothing: [`next_pending`] finds what did not fit.

use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicU8, AtomicU32};

use crate::marked::mark_byte;

/// The mark stack of one worker, which alone uses these entries.
pub(crate) struct Stack<'a> {
    pub(crate) entries: &'a [AtomicU32],
    pub(crate) top: usize,
    /// How many entries to use.
    pub(crate) limit: usize,
}

impl Stack<'_> {
    /// False if there is no room.
    #[inline]
    pub(crate) fn push(&mut self, block: u32) -> bool {
        match self.entries.get(self.top) {
            Some(entry) if self.top < self.limit => {
                entry.store(block, Relaxed);
                self.top += 1;
                true
            }
            _ => false,
        }
    }

    /// The entry `depth` below the top.
    #[inline]
    pub(crate) fn peek(&self, depth: usize) -> usize {
        self.top.checked_sub(depth + 1).and_then(|at| self.entries.get(at)).map_or(0, |b| b.load(Relaxed) as usize)
    }

    /// The half that was pushed first.
    pub(crate) fn older_half(&self) -> impl Iterator<Item = u32> {
        self.entries.iter().take(self.top / 2).map(|b| b.load(Relaxed))
    }

    /// Forgets the entries that were pushed first.
    pub(crate) fn drop_oldest(&mut self, count: usize) {
        for (to, from) in self.entries.iter().zip(self.entries.iter().take(self.top).skip(count)) {
            to.store(from.load(Relaxed), Relaxed);
        }
        self.top = self.top.saturating_sub(count);
    }
}

/// The first pending block from `from` on.
#[inline]
pub(crate) fn next_pending(marks: &[AtomicU8], from: usize) -> Option<usize> {
    let mut rest = marks.get(from..)?;
    // Long stretches without one are skipped in steps whose loads need no decision each.
    while let Some((step, behind)) = rest.split_first_chunk::<32>() {
        if step.iter().fold(0, |all, m| all | m.load(Relaxed)) & mark_byte::PENDING != 0 {
            break;
        }
        rest = behind;
    }
    rest.iter().position(|m| m.load(Relaxed) & mark_byte::PENDING != 0).map(|at| marks.len() - rest.len() + at)
}
