//! Freed blocks in the order in which they may be used again.

use std::collections::VecDeque;

use super::BlockId;

/// Two queues: blocks from a certain size on leave before smaller ones do.
pub(super) struct Quarantine {
    most_bytes: u64,
    /// So much more is held before blocks leave, many in a row: one now and then is what no processor predicts.
    slack_bytes: u64,
    big_bytes: u64,
    held_bytes: u64,
    small: VecDeque<BlockId>,
    big: VecDeque<BlockId>,
}

impl Quarantine {
    pub(super) fn new(most_bytes: u64, big_bytes: u64) -> Self {
        let slack_bytes = most_bytes / 1024;
        Self { most_bytes, slack_bytes, big_bytes, held_bytes: 0, small: VecDeque::new(), big: VecDeque::new() }
    }

    /// Whether blocks of this size, and what leaves for them, are small ones only.
    pub(super) fn is_small(&self, bytes: u64) -> bool {
        bytes < self.big_bytes && bytes <= self.most_bytes && self.big.is_empty()
    }

    /// Adds a freed block.
    #[inline]
    pub(super) fn push(&mut self, id: BlockId, bytes: u64) {
        self.held_bytes += bytes;
        let queue = if bytes >= self.big_bytes { &mut self.big } else { &mut self.small };
        queue.push_back(id);
    }

    /// Whether blocks must leave.
    #[inline]
    pub(super) fn is_over(&self) -> bool {
        self.held_bytes > self.most_bytes + self.slack_bytes
    }

    /// A block that must leave; `None` while all of them fit. `bytes_of` gives their sizes as they were pushed.
    #[inline]
    pub(super) fn overflow(&mut self, bytes_of: impl Fn(BlockId) -> u64) -> Option<BlockId> {
        if self.held_bytes <= self.most_bytes {
            return None;
        }
        let id = self.big.pop_front().or_else(|| self.small.pop_front())?;
        self.held_bytes -= bytes_of(id);
        Some(id)
    }

    /// The small block that leaves so many blocks after the next one.
    #[inline]
    pub(super) fn ahead(&self, blocks: usize) -> Option<BlockId> {
        self.small.get(blocks).copied()
    }
}
