//! The target's address space: which mappings it has, where new ones go, and what belongs to the engine.
//!
//! Bookkeeping only; the calls are made in `memory_calls`. A slow model of pages is the oracle of its tests.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use leakscope_translate::{CodeKind, CodeRegion, FAST_CODE_END, GUEST_END, layout};

/// Bytes of a page.
pub const PAGE: u64 = 4096;

/// Where ELF files, executable memory and `MAP_32BIT` go: above the engine, below 2 GB.
pub const LOW: Range<u64> = 0x4000_0000..FAST_CODE_END;

/// Where everything else goes.
pub const HIGH: Range<u64> = 0x1000_0000_0000..0x2000_0000_0000;

/// Where the program break starts, and how far it may go.
pub const HEAP: Range<u64> = 0x0e00_0000_0000..0x0f00_0000_0000;

/// The lowest address that the target may map, as `vm.mmap_min_addr` is by default.
const LOWEST: u64 = 0x1_0000;

/// Large mappings are aligned as huge pages want it.
const HUGE: u64 = 2 << 20;

/// What is behind a mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backing {
    /// Zeroes at first.
    Anonymous,
    /// A file.
    File {
        /// As `/proc/self/fd` names it; empty if it has no name or nobody asked.
        path: Arc<[u8]>,
        /// Where in the file the mapping begins.
        offset: u64,
    },
    /// The program break.
    Heap,
    /// The first thread's stack.
    Stack,
    /// `shmat`.
    SystemV,
}

/// A range of the target's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// First byte.
    pub start: u64,
    /// First byte after it.
    pub end: u64,
    /// `PROT_*`.
    pub protection: i32,
    /// Whether writes go to others as well.
    pub shared: bool,
    /// What is behind it.
    pub backing: Backing,
}

impl Mapping {
    fn part(&self, start: u64, end: u64) -> Self {
        let mut part = Self { start, end, ..self.clone() };
        if let Backing::File { offset, .. } = &mut part.backing {
            *offset += start - self.start;
        }
        part
    }

    fn continues_as(&self, next: &Self) -> bool {
        self.end == next.start
            && self.protection == next.protection
            && self.shared == next.shared
            && self.backing == next.backing
            && matches!(self.backing, Backing::Anonymous | Backing::Heap)
            && !self.shared
    }
}

/// The list. Ranges are in whole pages.
#[derive(Debug, Default)]
pub struct Space {
    mappings: BTreeMap<u64, Mapping>,
    /// The engine's, sorted.
    reserved: Vec<Range<u64>>,
    /// The engine's too, but the target may use it and change its protection.
    lent: Option<Range<u64>>,
    /// What of that is executable, with `PROT_*`.
    lent_code: BTreeMap<u64, (u64, i32)>,
    next_low: u64,
    next_high: u64,
    mapped_bytes: u64,
    /// End of the program break, not rounded.
    pub program_break: u64,
}

/// Rounds up to pages; `None` if that wraps.
#[must_use]
pub fn page_up(bytes: u64) -> Option<u64> {
    bytes.checked_add(PAGE - 1).map(|sum| sum & !(PAGE - 1))
}

impl Space {
    /// Nothing mapped; the areas of the engine's layout and `others` are reserved.
    #[must_use]
    pub fn new(others: &[Range<u64>]) -> Self {
        let mut reserved = vec![
            layout::HOT..layout::COLD_END,
            layout::STATE..layout::STATE + layout::STATE_BYTES as u64,
            layout::TABLES..layout::TABLES + layout::TABLES_BYTES as u64,
            layout::PSEUDO,
        ];
        reserved.extend(others.iter().filter(|range| range.start < GUEST_END).cloned());
        reserved.sort_by_key(|range| range.start);
        Self { reserved, next_low: LOW.start, next_high: HIGH.start, program_break: HEAP.start, ..Self::default() }
    }

    /// Adds what is the engine's.
    pub fn reserve(&mut self, range: Range<u64>) {
        self.reserved.push(range);
        self.reserved.sort_by_key(|range| range.start);
    }

    /// Says where the engine keeps memory that it gives to the target: a heap of its own, whose mappings are not listed.
    pub fn lend(&mut self, range: Range<u64>) {
        self.lent = Some(range);
    }

    /// Whether an address lies in what [`Space::lend`] named.
    #[must_use]
    pub fn is_lent(&self, address: u64) -> bool {
        self.lent.as_ref().is_some_and(|lent| lent.contains(&address))
    }

    fn protect_lent(&mut self, start: u64, end: u64, protection: i32) {
        let Some(lent) = &self.lent else { return };
        let (start, end) = (start.max(lent.start), end.min(lent.end));
        if start >= end {
            return;
        }
        let cut: Vec<_> = self
            .lent_code
            .range(..end)
            .filter(|&(_, &(other_end, _))| start < other_end)
            .map(|(&other, &rest)| (other, rest))
            .collect();
        for (other, (other_end, kept)) in cut {
            self.lent_code.remove(&other);
            if other < start {
                self.lent_code.insert(other, (start, kept));
            }
            if end < other_end {
                self.lent_code.insert(end, (other_end, kept));
            }
        }
        if protection & libc::PROT_EXEC != 0 {
            self.lent_code.insert(start, (end, protection));
        }
    }

    /// All mappings, by address.
    pub fn iter(&self) -> impl Iterator<Item = &Mapping> {
        self.mappings.values()
    }

    /// Sum of the lengths of all mappings.
    #[must_use]
    pub fn mapped_bytes(&self) -> u64 {
        self.mapped_bytes
    }

    /// The mapping around an address.
    #[must_use]
    pub fn find(&self, address: u64) -> Option<&Mapping> {
        let (_, mapping) = self.mappings.range(..=address).next_back()?;
        (address < mapping.end).then_some(mapping)
    }

    /// Mappings that have bytes in a range, in order.
    pub fn within(&self, start: u64, end: u64) -> impl Iterator<Item = &Mapping> {
        let first = self.find(start).map_or(start, |mapping| mapping.start);
        self.mappings.range(first..end.max(first)).map(|(_, mapping)| mapping)
    }

    /// Whether every byte of a range is mapped.
    #[must_use]
    pub fn is_mapped(&self, start: u64, end: u64) -> bool {
        let mut at = start;
        for mapping in self.within(start, end) {
            if mapping.start > at {
                return false;
            }
            at = mapping.end;
        }
        at >= end
    }

    /// Whether a range touches what the engine owns, or lies outside of what a target may have.
    #[must_use]
    pub fn is_reserved(&self, start: u64, end: u64) -> bool {
        start < LOWEST || end > GUEST_END || self.reserved.iter().any(|own| own.start < end && start < own.end)
    }

    /// The parts of a range that the engine does not own, in order.
    #[must_use]
    pub fn allowed(&self, start: u64, end: u64) -> Vec<Range<u64>> {
        let end = end.min(GUEST_END);
        let mut parts = Vec::new();
        let mut at = start;
        for own in self.reserved.iter().filter(|own| own.start < end && start < own.end) {
            if at < own.start {
                parts.push(at..own.start);
            }
            at = at.max(own.end);
        }
        if at < end {
            parts.push(at..end);
        }
        parts
    }

    /// Adds a mapping, in the place of what was there.
    pub fn record(&mut self, mapping: Mapping) {
        self.remove(mapping.start, mapping.end);
        self.mapped_bytes += mapping.end - mapping.start;
        self.insert_merged(mapping);
    }

    fn insert_merged(&mut self, mut mapping: Mapping) {
        if let Some((_, before)) = self.mappings.range(..mapping.start).next_back()
            && before.continues_as(&mapping)
        {
            mapping.start = before.start;
            self.mappings.remove(&mapping.start);
        }
        if let Some(after) = self.mappings.get(&mapping.end)
            && mapping.continues_as(after)
        {
            let end = after.end;
            self.mappings.remove(&mapping.end);
            mapping.end = end;
        }
        self.mappings.insert(mapping.start, mapping);
    }

    /// Cuts mappings so that none reaches over `at`.
    fn split(&mut self, at: u64) {
        let Some(mapping) = self.find(at).filter(|mapping| mapping.start < at).cloned() else { return };
        self.mappings.insert(mapping.start, mapping.part(mapping.start, at));
        self.mappings.insert(at, mapping.part(at, mapping.end));
    }

    /// Takes a range out.
    pub fn remove(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        self.split(start);
        self.split(end);
        let starts: Vec<u64> = self.mappings.range(start..end).map(|(start, _)| *start).collect();
        for start in starts {
            if let Some(mapping) = self.mappings.remove(&start) {
                self.mapped_bytes -= mapping.end - mapping.start;
            }
        }
    }

    /// Changes the protection of a range.
    pub fn protect(&mut self, start: u64, end: u64, protection: i32) {
        if start >= end {
            return;
        }
        self.protect_lent(start, end, protection);
        self.split(start);
        self.split(end);
        let starts: Vec<u64> = self.mappings.range(start..end).map(|(start, _)| *start).collect();
        for start in starts {
            if let Some(mut mapping) = self.mappings.remove(&start) {
                mapping.protection = protection;
                self.insert_merged(mapping);
            }
        }
        // The one behind the range may continue its last part now.
        if let Some(after) = self.mappings.remove(&end) {
            self.insert_merged(after);
        }
    }

    /// Whether nothing is in a range, the engine included.
    #[must_use]
    pub fn is_free(&self, start: u64, end: u64) -> bool {
        !self.is_reserved(start, end) && self.within(start, end).next().is_none()
    }

    /// A free range for a new mapping, in the low window if it can be. The window's search goes on where the last
    /// one ended, so that addresses are used again late.
    #[must_use]
    pub fn place(&mut self, bytes: u64, low: bool) -> Option<u64> {
        let align = if bytes >= HUGE && !low { HUGE } else { PAGE };
        let (window, next) = if low { (LOW, self.next_low) } else { (HIGH, self.next_high) };
        let found = self
            .first_fit(next.max(window.start)..window.end, bytes, align)
            .or_else(|| self.first_fit(window, bytes, align))?;
        *(if low { &mut self.next_low } else { &mut self.next_high }) = found + bytes;
        Some(found)
    }

    fn first_fit(&self, window: Range<u64>, bytes: u64, align: u64) -> Option<u64> {
        let mut at = window.start.next_multiple_of(align);
        loop {
            let end = at.checked_add(bytes)?;
            if end > window.end {
                return None;
            }
            let mapped = self.within(at, end).last().map(|mapping| mapping.end);
            let own = self.reserved.iter().filter(|own| own.start < end && at < own.end).map(|own| own.end).max();
            match mapped.max(own) {
                None => return Some(at),
                Some(blocked) => at = blocked.next_multiple_of(align),
            }
        }
    }

    /// The answer to [`leakscope_translate::Tool::code_region`].
    #[must_use]
    pub fn code_region(&self, address: u64) -> Option<CodeRegion> {
        if self.is_lent(address) {
            return self.lent_region(address);
        }
        let mapping = self.find(address).filter(|mapping| mapping.protection & libc::PROT_EXEC != 0)?;
        let kind = if mapping.shared {
            CodeKind::Aliased
        } else if mapping.protection & libc::PROT_WRITE != 0 {
            CodeKind::Writable
        } else {
            CodeKind::Fixed
        };
        Some(CodeRegion { start: mapping.start, end: mapping.end, kind, protection: mapping.protection })
    }

    /// Pages that can be written are not protected: the engine writes to its heap when it likes.
    fn lent_region(&self, address: u64) -> Option<CodeRegion> {
        let (&start, &(end, protection)) = self.lent_code.range(..=address).next_back()?;
        let kind = if protection & libc::PROT_WRITE != 0 { CodeKind::Aliased } else { CodeKind::Fixed };
        (address < end).then_some(CodeRegion { start, end, kind, protection })
    }
}

#[cfg(test)]
mod tests;
