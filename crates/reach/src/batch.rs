//! Words that are looked up together, so that the cache misses of many overlap.

use crate::block::Blocks;
use crate::index::Index;

/// Words looked at together; a power of two.
pub(crate) const BATCH_WORDS: usize = 512;

/// Words that may be pointers: first all within the heap's bounds, then those that may tell something new, with
/// the number of the block that each leads to.
pub(crate) struct Batch {
    pub(crate) pointers: [u64; BATCH_WORDS],
    pub(crate) blocks: [u32; BATCH_WORDS],
    pub(crate) len: usize,
}

impl Batch {
    pub(crate) fn room(&self) -> usize {
        BATCH_WORDS - self.len
    }

    /// Takes the words within the bounds. There is room for all.
    #[inline]
    pub(crate) fn take(&mut self, words: &[u64], (lo, span_bytes): (u64, u64)) {
        let mut len = self.len;
        for &word in words {
            // Stores first and keeps it or not: no branch to mispredict. The mask spares the bounds check.
            self.pointers[len & (BATCH_WORDS - 1)] = word;
            len += (word.wrapping_sub(lo) < span_bytes) as usize;
        }
        self.len = len.min(BATCH_WORDS);
    }

    /// Drops what tells nothing new, then finds the blocks. `ends` are the ends of stretches, and stay so.
    ///
    /// The loops keep or drop without branches, so that the loads of many pointers are under way at once.
    #[inline]
    pub(crate) fn locate<B: Blocks>(&mut self, index: &Index<'_, B>, blocks: B, ends: &mut [usize]) {
        self.keep(ends, |pointer, _| (!index.is_settled_start(pointer), 0));
        self.keep(ends, |pointer, _| {
            let (block, is_settled) = index.nearest(pointer);
            (!is_settled, block as u32)
        });
        self.keep(ends, |pointer, at| {
            let block = blocks.get(at as usize);
            (block.is_some_and(|b| b.covers(pointer)), at)
        });
    }

    #[inline]
    fn keep(&mut self, ends: &mut [usize], test: impl Fn(u64, u32) -> (bool, u32)) {
        let (mut from, mut kept) = (0, 0);
        for end in ends {
            for i in from..*end {
                let at = i & (BATCH_WORDS - 1);
                let pointer = self.pointers[at];
                let (keep, block) = test(pointer, self.blocks[at]);
                let to = kept & (BATCH_WORDS - 1);
                self.pointers[to] = pointer;
                self.blocks[to] = block;
                kept += keep as usize;
            }
            from = *end;
            *end = kept;
        }
        self.len = kept;
    }
}
