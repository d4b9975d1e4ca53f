//! The table of outstanding blocks that exact tracing fills (`bpf/table.h`), read along while programs write it.

use crate::layout::Block;
use crate::load;
use crate::{Error, sys};

/// Slots of a bucket: seven, and a place that is not used.
const STRIDE: usize = 8;
/// `WAYS`.
const WAYS: usize = 7;
/// Fewest blocks for which it is worth having.
const LEAST_BLOCKS: u32 = 64;

/// Room for so many blocks, in both tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// Buckets, a power of two; 0: there is no table.
    pub(crate) buckets: u32,
    /// Room in the kernel's own map, for blocks whose bucket is full.
    pub(crate) others: u32,
}

impl Sizes {
    /// Divides room for `blocks`.
    pub(crate) fn of(blocks: u32) -> Self {
        // The order of writes that it relies on is that of x86-64.
        if blocks < LEAST_BLOCKS || cfg!(not(target_arch = "x86_64")) {
            return Self { buckets: 0, others: blocks };
        }
        let buckets = 1 << (blocks / STRIDE as u32).ilog2();
        Self { buckets, others: blocks - buckets * WAYS as u32 }
    }

    /// Slots of all buckets, at least one bucket's: a map cannot be empty.
    pub(crate) fn slots(self) -> u32 {
        self.buckets.max(1) * STRIDE as u32
    }
}

/// The table, in the memory of its maps.
pub(crate) struct Table {
    buckets: sys::Shared,
    slots: sys::Shared,
    count: usize,
}

impl Table {
    /// Maps the memory.
    pub(crate) fn new(ebpf: &aya::Ebpf, sizes: Sizes) -> Result<Self, Error> {
        let map = |name: &str, words: usize| {
            let fd = load::map_fd(ebpf, name)?;
            sys::Shared::new(std::os::fd::AsFd::as_fd(&fd), words)
                .map_err(|error| Error::Command { what: "map the table of blocks", error })
        };
        let count = sizes.buckets as usize;
        Ok(Self {
            buckets: map("buckets", count.max(1) * STRIDE)?,
            slots: map("slots", sizes.slots() as usize * Block::WORDS)?,
            count,
        })
    }

    /// Adds the blocks that it holds. One that comes or goes meanwhile may be among them or not, but is whole.
    pub(crate) fn append(&self, blocks: &mut Vec<(u64, Block)>) {
        for slot in (0..self.count).flat_map(|bucket| (0..WAYS).map(move |way| bucket * STRIDE + way)) {
            let key = self.buckets.word(slot);
            if key == 0 {
                continue;
            }
            let read = || Block::of(std::array::from_fn(|word| self.slots.word(slot * Block::WORDS + word)));
            let block = read();
            if self.buckets.word(slot) == key && read() == block {
                blocks.push((key, block));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_divided_and_kept() {
        for blocks in [1, 63, 64, 1000, 1024, 1 << 18, (1 << 20) + 5] {
            let sizes = Sizes::of(blocks);
            assert_eq!(sizes.buckets * 7 + sizes.others, blocks);
            assert!(sizes.others > 0 && (sizes.buckets == 0 || sizes.buckets.is_power_of_two()), "{sizes:?}");
        }
    }

    #[test]
    fn words_are_blocks() {
        let second = u64::from_ne_bytes([1, 0, 0, 0, 2, 0, 0, 0]);
        let block = Block::of([10, 11, 12, 13, 14, second, second, 0]);
        let expected = Block {
            born_ns: 10,
            cgroup: 11,
            requested: 12,
            usable: 13,
            weight: 14,
            site: 1,
            tgid: 2,
            order: 1,
            kind: 2,
            unused: 0,
        };
        assert_eq!(block, expected);
    }
}
