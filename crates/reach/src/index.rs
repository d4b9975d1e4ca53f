//! From an address to its block, with one cache miss for the pointers that tell nothing new.
//!
//! The address space between the first and the last block is cut into at most 2^15 *regions* of equal size. Within a
//! region, the stretch from the first block start to the last is cut into *granules* of 64 slots: usually 1 KiB with
//! slots of 16 bytes, the alignment of every allocator. Two bit maps have a word for each granule. `starts`: a block
//! starts in this slot. `settled`: one does, and nothing that points to it can change its mark any more. Most pointers
//! of a big heap are start-pointers to settled blocks, and cost a look at `settled` alone, 8 MiB for each GiB of heap.
//! For the others, the count of blocks that start before the granule plus a popcount is the block's number.
//!
//! A granule with a start that is not on a slot's first byte stays without bits (*irregular*): a binary search over
//! its blocks replaces the popcount, and its blocks are never settled. Pointers beyond the last granule of a
//! region lead to the last block that starts before them, if to any: large blocks and wide gaps cost no granules.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use crate::block::{ALIGNMENT_LOG2, Blocks, iter, partition_point};

/// Slots of a granule: the bits of a word.
const SLOTS_LOG2: u32 = 6;
const MIN_SLOT_LOG2: u32 = 3;
const DEFAULT_SLOT_LOG2: u32 = ALIGNMENT_LOG2;
const MAX_REGIONS_LOG2: u32 = 15;
const MIN_REGION_LOG2: u32 = 20;
/// Granules per block, and in addition: what a thinly spread heap may cost before granules grow.
const GRANULES_PER_BLOCK: u64 = 16;
const SPARE_GRANULES: u64 = 1 << 16;

/// 64 slots of address space: where blocks start. All bits 0 is a valid value.
#[derive(Clone, Copy, Default, Debug)]
#[repr(C)]
pub struct Granule {
    starts: u64,
    /// How many blocks start before the granule.
    first: u64,
}

/// One of the equal parts of the address space that the heap spans. All bits 0 is a valid value.
#[derive(Clone, Copy, Default, Debug)]
#[repr(C)]
pub struct Region {
    /// The first granule's first address.
    base: u64,
    granules: u32,
    first_granule: u32,
    /// How many blocks start before the region, and before its end.
    blocks_before: u32,
    blocks_until: u32,
}

/// How address space is cut up for a heap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Shape {
    slot_log2: u32,
    region_log2: u32,
    pub(crate) regions: usize,
    pub(crate) granules: usize,
}

impl Shape {
    /// The shape for these blocks, which were checked; so many are `unaligned`.
    pub(crate) fn of<B: Blocks>(blocks: B, unaligned: usize) -> Self {
        let (Some(first), Some(last)) = (blocks.get(0), blocks.get(blocks.len().wrapping_sub(1))) else {
            return Self { slot_log2: DEFAULT_SLOT_LOG2, region_log2: MIN_REGION_LOG2, regions: 0, granules: 0 };
        };
        let (lo, end) = (first.start.0, last.start.0.saturating_add(last.span_bytes()));
        let mut slot_log2 = if unaligned > blocks.len() / 16 { MIN_SLOT_LOG2 } else { DEFAULT_SLOT_LOG2 };
        let limit = (blocks.len() as u64).saturating_mul(GRANULES_PER_BLOCK).saturating_add(SPARE_GRANULES);
        loop {
            let mut region_log2 = MIN_REGION_LOG2.max(slot_log2 + SLOTS_LOG2);
            while (end >> region_log2).wrapping_sub(lo >> region_log2) >= (1 << MAX_REGIONS_LOG2) - 1
                && region_log2 < 62
            {
                region_log2 += 1;
            }
            let regions = (end >> region_log2).wrapping_sub(lo >> region_log2).wrapping_add(1);
            let granules = count_granules(blocks, region_log2, slot_log2 + SLOTS_LOG2);
            // 2^50-byte slots leave a handful of granules in any address space: the loop ends.
            if granules <= limit || slot_log2 >= 50 {
                let regions = regions.min(1 << MAX_REGIONS_LOG2) as usize;
                return Self { slot_log2, region_log2, regions, granules: granules.min(u32::MAX as u64) as usize };
            }
            slot_log2 += 1;
        }
    }
}

fn count_granules<B: Blocks>(blocks: B, region_log2: u32, granule_log2: u32) -> u64 {
    let (mut total, mut at) = (0u64, 0);
    while let Some(first) = blocks.get(at) {
        let region = first.start.0 >> region_log2;
        let until = partition_point(blocks, at..blocks.len(), |b| b.start.0 >> region_log2 == region).max(at + 1);
        let last = blocks.get(until - 1).unwrap_or(first);
        let stretch = (last.start.0 >> granule_log2).wrapping_sub(first.start.0 >> granule_log2);
        total = total.saturating_add(stretch.saturating_add(1));
        at = until;
    }
    total
}

fn fill<B: Blocks>(blocks: B, shape: Shape, lo: u64, regions: &mut [Region], granules: &mut [Granule]) {
    let (region_log2, granule_log2) = (shape.region_log2, shape.slot_log2 + SLOTS_LOG2);
    let (mut at, mut next_granule) = (0usize, 0u32);
    for (r, slot) in regions.iter_mut().enumerate() {
        let mut region = Region { first_granule: next_granule, blocks_before: at as u32, ..Region::default() };
        let number = (lo >> region_log2) + r as u64;
        let until = partition_point(blocks, at..blocks.len(), |b| b.start.0 >> region_log2 == number);
        if let (true, Some(first), Some(last)) = (until > at, blocks.get(at), blocks.get(until.wrapping_sub(1))) {
            region.base = first.start.0 >> granule_log2 << granule_log2;
            region.granules = ((last.start.0 - region.base) >> granule_log2) as u32 + 1;
            let from = region.first_granule as usize;
            let granules = granules.get_mut(from..from + region.granules as usize);
            fill_region(blocks, shape, region.base, granules.unwrap_or_default(), at, until);
        }
        at = until;
        next_granule += region.granules;
        region.blocks_until = at as u32;
        *slot = region;
    }
}

fn fill_region<B: Blocks>(blocks: B, shape: Shape, base: u64, granules: &mut [Granule], at: usize, until: usize) {
    let (granule_log2, slot_log2) = (shape.slot_log2 + SLOTS_LOG2, shape.slot_log2);
    let mut inside = iter(blocks, at..until).peekable();
    let mut next = at;
    for (g, granule) in granules.iter_mut().enumerate() {
        granule.first = next as u64;
        let mut starts = 0u64;
        let mut regular = true;
        while let Some(block) = inside.next_if(|b| (b.start.0 - base) >> granule_log2 == g as u64) {
            let offset = block.start.0 - base;
            starts |= 1 << (offset >> slot_log2 & 63);
            // Starts that are multiples of the slot are in different slots, as blocks do not overlap.
            regular &= offset & ((1 << slot_log2) - 1) == 0;
            next += 1;
        }
        granule.starts = if regular { starts } else { 0 };
    }
}

/// The index over one heap.
pub(crate) struct Index<'a, B> {
    blocks: B,
    shape: Shape,
    lo: u64,
    span_bytes: u64,
    regions: &'a [Region],
    granules: &'a [Granule],
    /// For each granule, the starts that are settled.
    settled: &'a [AtomicU64],
}

impl<'a, B: Blocks> Index<'a, B> {
    /// Builds the index of blocks that were checked. The slices have the lengths of `shape`, or more.
    pub(crate) fn build(
        blocks: B,
        shape: Shape,
        regions: &'a mut [Region],
        granules: &'a mut [Granule],
        settled: &'a [AtomicU64],
    ) -> Self {
        let lo = blocks.get(0).map_or(0, |b| b.start.0);
        let last = blocks.get(blocks.len().wrapping_sub(1));
        let end = last.map_or(0, |b| b.start.0 + b.span_bytes());
        let regions = regions.get_mut(..shape.regions).unwrap_or_default();
        let granules = granules.get_mut(..shape.granules).unwrap_or_default();
        let settled = settled.get(..shape.granules).unwrap_or_default();
        settled.iter().for_each(|word| word.store(0, Relaxed));
        fill(blocks, shape, lo, regions, granules);
        Self { blocks, shape, lo, span_bytes: end - lo, regions, granules, settled }
    }

    #[inline]
    fn granule_log2(&self) -> u32 {
        self.shape.slot_log2 + SLOTS_LOG2
    }

    /// Whether an address is between the first block's first byte and the last block's last.
    #[inline]
    pub(crate) fn bounds(&self) -> (u64, u64) {
        (self.lo, self.span_bytes)
    }

    /// The region of an address within the bounds.
    #[inline]
    fn region(&self, address: u64) -> Option<&Region> {
        self.regions.get(((address >> self.shape.region_log2) - (self.lo >> self.shape.region_log2)) as usize)
    }

    /// The granule of an address within the bounds, and the slots up to the address.
    #[inline]
    fn granule(&self, region: &Region, address: u64) -> Option<(usize, u64)> {
        let number = address.wrapping_sub(region.base) >> self.granule_log2();
        let slot = address >> self.shape.slot_log2 & 63;
        (number < region.granules as u64)
            .then_some((region.first_granule as usize + number as usize, u64::MAX >> (63 - slot)))
    }

    /// Whether the pointer, within the bounds, is a start-pointer to a settled block.
    #[inline]
    pub(crate) fn is_settled_start(&self, pointer: u64) -> bool {
        let Some(region) = self.region(pointer) else {
            return false;
        };
        let Some((granule, _)) = self.granule(region, pointer) else {
            return false;
        };
        let settled =
            self.settled.get(granule).map_or(0, |s| s.load(Relaxed) >> (pointer >> self.shape.slot_log2 & 63));
        settled & 1 != 0 && pointer & ((1 << self.shape.slot_log2) - 1) == 0
    }

    /// The number of the last block that starts at or before the pointer, which is within the bounds, and whether
    /// that block is known to be settled.
    #[inline]
    pub(crate) fn nearest(&self, pointer: u64) -> (usize, bool) {
        let Some(region) = self.region(pointer) else {
            return (0, false);
        };
        let Some((at, slots)) = self.granule(region, pointer) else {
            let is_before = pointer < region.base || region.granules == 0;
            let count = if is_before { region.blocks_before } else { region.blocks_until };
            return ((count as usize).saturating_sub(1), false);
        };
        let Granule { starts, first } = self.granules.get(at).copied().unwrap_or_default();
        let until = starts & slots;
        let count = match starts {
            0 => first as usize + self.starts_before(first as usize, at, region, pointer),
            _ => first as usize + until.count_ones() as usize,
        };
        let nearest = (1u64 << 63).wrapping_shr(until.leading_zeros()) & until;
        (count.saturating_sub(1), self.settled.get(at).is_some_and(|s| s.load(Relaxed) & nearest != 0))
    }

    /// For a granule without bits: how many of its blocks start at or before the pointer.
    #[cold]
    fn starts_before(&self, first: usize, granule: usize, region: &Region, pointer: u64) -> usize {
        let is_last = granule + 1 == region.first_granule as usize + region.granules as usize;
        let next = self.granules.get(granule + 1).map_or(0, |g| g.first as usize);
        let until = if is_last { region.blocks_until as usize } else { next };
        partition_point(self.blocks, first..until, |b| b.start.0 <= pointer) - first
    }

    /// No pointer to this block can change its mark any more.
    ///
    /// Two workers may overwrite each other's bit: then one more pointer to the block is looked at. A locked
    /// instruction for each block would cost more.
    #[inline]
    pub(crate) fn settle(&self, start: u64) {
        let Some(region) = self.region(start) else {
            return;
        };
        let Some((granule, _)) = self.granule(region, start) else {
            return;
        };
        let starts = self.granules.get(granule).map_or(0, |g| g.starts);
        if let Some(settled) = self.settled.get(granule) {
            let bit = starts & 1 << (start >> self.shape.slot_log2 & 63);
            settled.store(settled.load(Relaxed) | bit, Relaxed);
        }
    }
}
