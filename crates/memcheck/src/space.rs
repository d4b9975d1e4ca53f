//! The target's address space: what it has mapped where, and where the next mapping goes.
//!
//! ```text
//!  0x10000     .. 0x1000_0000      programs at fixed addresses, position-independent programs, the brk
//!  0x1000_0000 .. 0x3400_0000      not the target's: code cache, tables, the engine
//!  0x3400_0000 .. 0x7FFF_0000      files and executable memory: code runs fastest below 2 GB
//!  0x0400_0000_0000 ..             other memory, stacks
//!  0x0800_0000_0000 .. 0x1800_0000_0000   the heap
//! ```

use std::collections::BTreeMap;
use std::ops::Range;

/// Programs that may lie anywhere begin here.
pub const PROGRAM_BASE: u64 = 0x40_0000;
/// Programs and the brk end here.
pub const PROGRAM_END: u64 = 0x1000_0000;
/// Files and executable memory.
pub const LOW: Range<u64> = 0x3400_0000..0x7FFF_0000;
/// Everything else.
pub const HIGH: Range<u64> = 0x0400_0000_0000..0x0800_0000_0000;
/// The heap.
pub const HEAP: Range<u64> = 0x0800_0000_0000..0x1800_0000_0000;
/// No mapping of the target ends above this.
pub const END: u64 = 0x3000_0000_0000;

const PAGE: u64 = 4096;

/// What a mapping is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Use {
    /// A file, by the number of its path, from an offset on.
    File {
        /// Number of the path in [`Space::path`].
        path: u32,
        /// Offset of the mapping's first byte.
        offset: u64,
    },
    /// Memory without a file.
    Anonymous,
    /// The stack of the first thread.
    Stack,
    /// What `brk` gives.
    Brk,
}

/// A mapping of the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First byte.
    pub start: u64,
    /// First byte after it.
    pub end: u64,
    /// `PROT_*`.
    pub protection: i32,
    /// `MAP_SHARED`.
    pub shared: bool,
    /// What for.
    pub usage: Use,
}

/// All mappings of the target.
#[derive(Default)]
pub struct Space {
    by_start: BTreeMap<u64, Mapping>,
    paths: Vec<Vec<u8>>,
}

impl Space {
    /// An empty address space.
    pub fn new() -> Self {
        Self::default()
    }

    /// The number of a path.
    pub fn intern_path(&mut self, path: &[u8]) -> u32 {
        if let Some(at) = self.paths.iter().position(|known| known == path) {
            return at as u32;
        }
        self.paths.push(path.to_vec());
        self.paths.len() as u32 - 1
    }

    /// A path by its number.
    pub fn path(&self, number: u32) -> &[u8] {
        self.paths.get(number as usize).map_or(&[], Vec::as_slice)
    }

    /// Adds a mapping in the place of whatever was there.
    pub fn add(&mut self, mapping: Mapping) {
        self.remove(mapping.start, mapping.end);
        if mapping.start < mapping.end {
            self.by_start.insert(mapping.start, mapping);
        }
    }

    /// Cuts the mappings at an address.
    fn split(&mut self, at: u64) {
        let Some((_, mapping)) = self.by_start.range_mut(..at).next_back() else { return };
        if mapping.end <= at {
            return;
        }
        let mut upper = mapping.clone();
        if let Use::File { offset, .. } = &mut upper.usage {
            *offset += at - mapping.start;
        }
        mapping.end = at;
        upper.start = at;
        self.by_start.insert(at, upper);
    }

    /// Takes a range away; gives what was there.
    pub fn remove(&mut self, start: u64, end: u64) -> Vec<Mapping> {
        self.split(start);
        self.split(end);
        self.by_start.extract_if(start..end.max(start), |_, _| true).map(|(_, mapping)| mapping).collect()
    }

    /// Changes the protection of a range.
    pub fn protect(&mut self, start: u64, end: u64, protection: i32) {
        self.split(start);
        self.split(end);
        for (_, mapping) in self.by_start.range_mut(start..end.max(start)) {
            mapping.protection = protection;
        }
    }

    /// The mapping around an address.
    pub fn find(&self, address: u64) -> Option<&Mapping> {
        self.by_start.range(..=address).next_back().map(|(_, mapping)| mapping).filter(|m| address < m.end)
    }

    /// Whether nothing of a range is mapped.
    pub fn is_free(&self, start: u64, end: u64) -> bool {
        self.by_start.range(..end).next_back().is_none_or(|(_, mapping)| mapping.end <= start)
    }

    /// All mappings in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = &Mapping> {
        self.by_start.values()
    }

    /// The lowest free place of a size within a range, from `from` on, with a page between neighbours.
    pub fn room(&self, bytes: u64, within: &Range<u64>, from: u64) -> Option<u64> {
        let mut at = from.max(within.start);
        if let Some((_, mapping)) = self.by_start.range(..=at).next_back() {
            at = at.max(mapping.end);
        }
        for (&start, mapping) in self.by_start.range(at..within.end) {
            if start - at >= bytes {
                break;
            }
            at = mapping.end;
        }
        (at.checked_add(bytes)? <= within.end).then_some(at.next_multiple_of(PAGE))
    }

    /// Whether the target may have a mapping at a fixed place.
    pub fn is_allowed(start: u64, bytes: u64) -> bool {
        let Some(end) = start.checked_add(bytes) else { return false };
        let is_within = |range: &Range<u64>| range.start <= start && end <= range.end;
        is_within(&(0..PROGRAM_END)) || is_within(&LOW) || is_within(&(0x8000_0000..HEAP.start)) || is_within(&(HEAP.end..END))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(start: u64, end: u64, offset: u64) -> Mapping {
        let usage = Use::File { path: 0, offset };
        Mapping { start: start * PAGE, end: end * PAGE, protection: 1, shared: false, usage }
    }

    /// Against one entry for each page.
    #[test]
    fn ranges_behave_as_an_array_of_pages() {
        const PAGES: u64 = 60;
        let mut model: Vec<Option<(u64, i32)>> = vec![None; PAGES as usize];
        let mut space = Space::new();
        let mut seed = 3u64;
        let mut next = |limit: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % limit
        };
        for _ in 0..5000 {
            let start = next(PAGES);
            let end = start + 1 + next((PAGES - start).min(12));
            let range = start as usize..end as usize;
            match next(3) {
                0 => {
                    let offset = next(100) * PAGE;
                    space.add(mapping(start, end, offset));
                    for page in range.clone() {
                        model[page] = Some((offset + (page as u64 - start) * PAGE, 1));
                    }
                }
                1 => {
                    let removed = space.remove(start * PAGE, end * PAGE);
                    let pages: u64 = removed.iter().map(|m| (m.end - m.start) / PAGE).sum();
                    assert_eq!(pages, model[range.clone()].iter().flatten().count() as u64);
                    model[range.clone()].fill(None);
                }
                _ => {
                    space.protect(start * PAGE, end * PAGE, 7);
                    model[range.clone()].iter_mut().flatten().for_each(|page| page.1 = 7);
                }
            }
            for (page, expected) in model.iter().enumerate() {
                let at = page as u64 * PAGE + 5;
                let found = space.find(at).map(|m| match m.usage {
                    Use::File { offset, .. } => (offset + (at - 5 - m.start), m.protection),
                    _ => unreachable!("all are files"),
                });
                assert_eq!(found, *expected);
            }
            assert_eq!(space.is_free(start * PAGE, end * PAGE), model[range].iter().all(Option::is_none));
            let bytes = (1 + next(6)) * PAGE;
            let room = space.room(bytes, &(0..PAGES * PAGE), 0);
            let wanted = (bytes / PAGE) as usize;
            let expected = model.windows(wanted).position(|pages| pages.iter().all(Option::is_none));
            assert_eq!(room, expected.map(|page| page as u64 * PAGE));
        }
    }

    #[test]
    fn places_that_are_not_the_targets_are_refused() {
        for (start, bytes, expected) in [
            (0x40_0000, 0x1000, true),
            (0xFFF_F000, 0x1000, true),
            (0xFFF_F000, 0x2000, false),
            (0x2000_0000, 0x1000, false),
            (0x3400_0000, 0x1000, true),
            (0x7FFE_F000, 0x2000, false),
            (0x0400_0000_0000, 1 << 30, true),
            (0x0900_0000_0000, 0x1000, false),
            (END - 0x1000, 0x1000, true),
            (END - 0x1000, 0x2000, false),
            (u64::MAX - 10, 0x1000, false),
        ] {
            assert_eq!(Space::is_allowed(start, bytes), expected, "{start:x}");
        }
    }
}
