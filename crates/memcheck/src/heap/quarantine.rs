//! Freed blocks in the order in which they may be used again.

use std::collections::VecDeque;

use super::BlockId;

/// Two queues: blocks from a certain size on leave before smaller ones do.
pub(super) struct Quarantine {
    most_bytes: u64,
    big_bytes: u64,
    held_bytes: u64,
    small: VecDeque<(BlockId, u64)>,
    big: VecDeque<(BlockId, u64)>,
}

impl Quarantine {
    pub(super) fn new(most_bytes: u64, big_bytes: u64) -> Self {
        Self { most_bytes, big_bytes, held_bytes: 0, small: VecDeque::new(), big: VecDeque::new() }
    }

    /// Adds a freed block.
    pub(super) fn push(&mut self, id: BlockId, bytes: u64) {
        self.held_bytes += bytes;
        let queue = if bytes >= self.big_bytes { &mut self.big } else { &mut self.small };
        queue.push_back((id, bytes));
    }

    /// A block that must leave; `None` while all of them fit.
    pub(super) fn overflow(&mut self) -> Option<BlockId> {
        if self.held_bytes <= self.most_bytes {
            return None;
        }
        let (id, bytes) = self.big.pop_front().or_else(|| self.small.pop_front())?;
        self.held_bytes -= bytes;
        Some(id)
    }
}
