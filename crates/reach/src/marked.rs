//! The result of marking, block by block.

use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicU8, AtomicU32};

use leakscope_model::{Heuristic, LeakKind};

use crate::block::Blocks;

/// What a byte of [`crate::Work::marks`] says.
pub(crate) mod mark_byte {
    use leakscope_model::Heuristic;

    pub(crate) const STATE: u8 = 0b11;
    pub(crate) const UNREACHED: u8 = 0;
    pub(crate) const POSSIBLE: u8 = 1;
    pub(crate) const REACHABLE: u8 = 2;
    pub(crate) const INDIRECT: u8 = 3;
    /// 0, or the heuristic's number and 1.
    pub(crate) const HEURISTIC: u8 = 0b111 << HEURISTIC_SHIFT;
    pub(crate) const HEURISTIC_SHIFT: u8 = 2;
    /// To be scanned: on the mark stack, or left out of it for want of room.
    pub(crate) const PENDING: u8 = 1 << 5;
    /// What of it cannot be read was counted.
    pub(crate) const COUNTED: u8 = 1 << 6;
    /// A start-pointer in a root or a reachable block leads here: no heuristic was needed.
    pub(crate) const DIRECT: u8 = 1 << 7;

    pub(crate) fn of_heuristic(heuristic: Option<Heuristic>) -> u8 {
        heuristic.map_or(0, |h| (h as u8 + 1) << HEURISTIC_SHIFT)
    }

    pub(crate) fn heuristic(mark: u8) -> Option<Heuristic> {
        ((mark & HEURISTIC) >> HEURISTIC_SHIFT).checked_sub(1).and_then(Heuristic::from_u8)
    }
}

/// What marking read, and what it could not read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Bytes of the root set that were looked at or found unreadable.
    pub root_bytes: u64,
    /// Bytes of the root set that could not be read.
    pub unreadable_root_bytes: u64,
    /// Bytes of blocks that could not be read.
    pub unreadable_block_bytes: u64,
}

/// Every block's leak kind.
#[derive(Debug)]
pub struct Marked<'a, B> {
    blocks: B,
    marks: &'a [AtomicU8],
    leaders: &'a [AtomicU32],
    stats: Stats,
}

impl<'a, B: Blocks> Marked<'a, B> {
    pub(crate) fn new(blocks: B, marks: &'a [AtomicU8], leaders: &'a [AtomicU32], stats: Stats) -> Self {
        Self { blocks, marks, leaders, stats }
    }

    /// The blocks, in ascending order; positions in it are the numbers that the other functions take.
    pub fn blocks(&self) -> B {
        self.blocks
    }

    /// The leak kind of a block; `None` if there is no block with this number.
    #[inline]
    pub fn kind(&self, block: usize) -> Option<LeakKind> {
        Some(match self.marks.get(block)?.load(Relaxed) & mark_byte::STATE {
            mark_byte::POSSIBLE => LeakKind::PossiblyLost,
            mark_byte::REACHABLE => LeakKind::StillReachable,
            mark_byte::INDIRECT => LeakKind::IndirectlyLost,
            _ => LeakKind::DefinitelyLost,
        })
    }

    /// The heuristic that took the interior-pointer to a block for a start-pointer.
    ///
    /// Of several, the one that Memcheck tries first. A block that a root or a reachable block points to the start of
    /// has none. As in Memcheck, a possibly lost block can have one: when the pointer was in a possibly lost block.
    #[inline]
    pub fn heuristic(&self, block: usize) -> Option<Heuristic> {
        self.marks.get(block).and_then(|m| mark_byte::heuristic(m.load(Relaxed)))
    }

    /// The definitely lost block that leads to an indirectly lost one; `None` for blocks of other kinds.
    #[inline]
    pub fn leader(&self, block: usize) -> Option<usize> {
        let is_led = self.marks.get(block)?.load(Relaxed) & mark_byte::STATE == mark_byte::INDIRECT;
        self.leaders.get(block).filter(|_| is_led).map(|l| l.load(Relaxed) as usize)
    }

    /// What was read.
    pub fn stats(&self) -> Stats {
        self.stats
    }
}
