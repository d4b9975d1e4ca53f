//! From blocks to loss records.

use core::cmp::Ordering;

use leakscope_model::{LeakKind, SiteId};

use crate::block::{Blocks, iter};
use crate::marked::Marked;

/// A number of blocks and their bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Tally {
    /// How many blocks.
    pub blocks: u64,
    /// Their requested sizes.
    pub bytes: u64,
}

impl Tally {
    fn add(&mut self, bytes: u64) {
        self.blocks = self.blocks.saturating_add(1);
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

/// The blocks of one leak kind from one allocation site. All bits 0 is a valid value: no blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct LossRecord {
    site: u32,
    kind: u8,
    /// The blocks themselves.
    pub direct: Tally,
    /// For definitely lost blocks, the indirectly lost ones that they lead to.
    pub indirect: Tally,
    /// Of `direct`, what each heuristic made reachable, by [`leakscope_model::Heuristic`]'s number.
    pub by_heuristic: [Tally; 4],
}

impl LossRecord {
    /// The allocation site.
    pub fn site(&self) -> SiteId {
        SiteId(self.site)
    }

    /// The leak kind.
    pub fn kind(&self) -> LeakKind {
        LeakKind::from_u8(self.kind).unwrap_or(LeakKind::DefinitelyLost)
    }

    /// Direct and indirect bytes: what Memcheck sorts by and prints first.
    pub fn total_bytes(&self) -> u64 {
        self.direct.bytes.saturating_add(self.indirect.bytes)
    }

    fn is_free(&self) -> bool {
        self.direct.blocks == 0 && self.indirect.blocks == 0
    }

    fn is_for(&self, site: SiteId, kind: LeakKind) -> bool {
        self.site == site.0 && self.kind == kind as u8
    }

    /// Memcheck's order: total bytes, kind, blocks, and the site that allocated first.
    fn order(&self, other: &Self) -> Ordering {
        let key = |r: &Self| (r.total_bytes(), r.kind, r.direct.blocks, r.site);
        key(self).cmp(&key(other))
    }
}

/// What [`Marked::aggregate`] counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Aggregate {
    /// How many loss records were written.
    pub records: usize,
    /// All blocks, by [`LeakKind`]'s number, those without a record included.
    pub by_kind: [Tally; 4],
    /// Of these, the blocks for which a heuristic matched, by [`leakscope_model::Heuristic`]'s number.
    pub by_heuristic: [Tally; 4],
    /// Of `by_kind`, the blocks that found no room in the records, by kind.
    pub without_record: [Tally; 4],
}

impl Aggregate {
    /// Whether the caller's slice was too short for all records.
    pub fn is_full(&self) -> bool {
        self.without_record.iter().any(|t| t.blocks > 0)
    }
}

impl<B: Blocks> Marked<'_, B> {
    /// Merges the blocks by leak kind and allocation site, as Memcheck does with `--leak-resolution=high`.
    ///
    /// `site_of` gives a block's allocation site, by the block's number. The first [`Aggregate::records`] elements of
    /// `records` are the result, smallest first, in Memcheck's order of printing. The slice serves as a hash table
    /// meanwhile: twice as many elements as there are records make it fast.
    pub fn aggregate(&self, site_of: impl Fn(usize) -> SiteId, records: &mut [LossRecord]) -> Aggregate {
        records.fill(LossRecord::default());
        let mut result = Aggregate::default();
        let mut last = usize::MAX;
        let blocks = self.blocks();
        for (number, block) in iter(blocks, 0..blocks.len()).enumerate() {
            let Some(kind) = self.kind(number) else {
                continue;
            };
            let bytes = block.size_bytes;
            let heuristic = self.heuristic(number).map(|h| h as usize);
            result.by_kind[kind as usize].add(bytes);
            if let Some(h) = heuristic {
                result.by_heuristic[h].add(bytes);
            }
            // Neighbours in memory are often of one site and kind.
            let site = site_of(number);
            let is_last = records.get(last).is_some_and(|r| !r.is_free() && r.is_for(site, kind));
            match if is_last { Some(last) } else { slot(records, site, kind) } {
                Some(at) => {
                    last = at;
                    let record = &mut records[at];
                    record.direct.add(bytes);
                    if let Some(h) = heuristic {
                        record.by_heuristic[h].add(bytes);
                    }
                }
                None => result.without_record[kind as usize].add(bytes),
            }
            if let Some(leader) = self.leader(number)
                && let Some(at) = slot(records, site_of(leader), LeakKind::DefinitelyLost)
            {
                records[at].indirect.add(bytes);
            }
        }
        result.records = compact(records);
        if let Some(records) = records.get_mut(..result.records) {
            records.sort_unstable_by(LossRecord::order);
        }
        result
    }
}

/// Slots looked at for one key: a table that is too short must not cost a walk over all of it for each block.
const MAX_PROBES: usize = 256;

/// Where the record of a site and kind is, new if need be; `None` if there is neither it nor room for it.
fn slot(records: &mut [LossRecord], site: SiteId, kind: LeakKind) -> Option<usize> {
    // Fibonacci hashing; the high half of the product picks the slot.
    let hash = (u64::from(site.0) << 2 | kind as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    let home = ((hash as u128 * records.len() as u128) >> 32) as usize;
    let (before, after) = records.split_at(home.min(records.len()));
    let near = after.iter().zip(home..).chain(before.iter().zip(0..)).take(MAX_PROBES);
    let (_, at) = near.into_iter().find(|(r, _)| r.is_free() || r.is_for(site, kind))?;
    let record = records.get_mut(at)?;
    if record.is_free() {
        (record.site, record.kind) = (site.0, kind as u8);
    }
    Some(at)
}

/// Moves the records in use to the front.
fn compact(records: &mut [LossRecord]) -> usize {
    let mut used = 0;
    for at in 0..records.len() {
        if !records[at].is_free() {
            records.swap(used, at);
            used += 1;
        }
    }
    used
}
