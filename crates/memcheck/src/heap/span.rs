//! The region cut into spans, and the way from an address to its slot.
//!
//! Spans follow one another without gaps, in units of 16 KiB. A table tells for each unit which span it is in.

use std::collections::BTreeMap;
use std::ops::Range;

/// The unit of spans.
pub(super) const UNIT_BYTES: u64 = 16 << 10;

/// Some units cut into slots of one size.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    /// Its first address.
    pub(super) start: u64,
    units: u64,
    slot_bytes: u64,
    /// `offset * reciprocal >> 40` is the slot; 0 where there is one only.
    reciprocal: u64,
    slots: u32,
    /// Number of the first slot's block.
    pub(super) first_block: u32,
}

/// Offsets of small slots have less than 20 bits, so that 40 bits of a reciprocal, rounded up, are enough.
const RECIPROCAL_BITS: u32 = 40;

impl Span {
    /// All bytes of it.
    pub(super) fn bytes(&self) -> u64 {
        self.units * UNIT_BYTES
    }
}

/// All spans, in ascending order.
pub(super) struct Spans {
    base: u64,
    end: u64,
    list: Vec<Span>,
    /// For each unit, the number of its span.
    by_unit: Vec<u32>,
    /// Spans of one slot that is free, by units.
    free_big: BTreeMap<u64, Vec<u32>>,
}

impl Spans {
    pub(super) fn new(base: u64, end: u64) -> Self {
        Self { base, end, list: Vec::new(), by_unit: Vec::new(), free_big: BTreeMap::new() }
    }

    /// Where the next span of so many units would begin.
    pub(super) fn next_start(&self, units: u64) -> Option<u64> {
        let start = self.base + self.by_unit.len() as u64 * UNIT_BYTES;
        let end = start.checked_add(units.checked_mul(UNIT_BYTES)?)?;
        (end <= self.end).then_some(start)
    }

    /// Where addresses for spans end.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Adds a span there.
    pub(super) fn push(&mut self, units: u64, slot_bytes: u64, first_block: u32) {
        let start = self.base + self.by_unit.len() as u64 * UNIT_BYTES;
        let number = self.list.len() as u32;
        let slots = (units * UNIT_BYTES / slot_bytes) as u32;
        let reciprocal = if slots > 1 { (1 << RECIPROCAL_BITS) / slot_bytes + 1 } else { 0 };
        self.list.push(Span { start, units, slot_bytes, reciprocal, slots, first_block });
        self.by_unit.resize(self.by_unit.len() + units as usize, number);
    }

    fn span_at(&self, address: u64) -> Option<(u32, &Span)> {
        let unit = address.checked_sub(self.base)? / UNIT_BYTES;
        let number = *self.by_unit.get(usize::try_from(unit).ok()?)?;
        Some((number, self.list.get(number as usize)?))
    }

    /// The number of the block in whose slot an address lies; `None` outside of all slots. Looks at no block.
    #[inline]
    pub(super) fn block_at(&self, address: u64) -> Option<u32> {
        let (_, span) = self.span_at(address)?;
        let slot = ((address - span.start) * span.reciprocal) >> RECIPROCAL_BITS;
        (slot < u64::from(span.slots)).then_some(span.first_block + slot as u32)
    }

    /// First address and bytes of the slot of a block.
    pub(super) fn slot(&self, block: u32) -> (u64, u64) {
        let number = self.list.partition_point(|span| span.first_block <= block) - 1;
        let span = &self.list[number];
        (span.start + u64::from(block - span.first_block) * span.slot_bytes, span.slot_bytes)
    }

    /// Numbers of the blocks, span by span.
    pub(super) fn block_ranges(&self) -> impl Iterator<Item = Range<u32>> + '_ {
        self.list.iter().map(|span| span.first_block..span.first_block + span.slots)
    }

    /// Takes a free span of one slot that fits well: no more than a quarter of it is wasted.
    pub(super) fn take_free_big(&mut self, units: u64) -> Option<Span> {
        let (&found, list) = self.free_big.range_mut(units..=units + units / 4).find(|(_, list)| !list.is_empty())?;
        let number = list.pop()?;
        if list.is_empty() {
            self.free_big.remove(&found);
        }
        self.list.get(number as usize).copied()
    }

    /// Says that the span of one slot at this address is free.
    pub(super) fn free_big(&mut self, start: u64) {
        let Some((number, span)) = self.span_at(start) else { return };
        let units = span.units;
        self.free_big.entry(units).or_default().push(number);
    }

    /// Addresses of all spans.
    pub(super) fn extent(&self) -> Range<u64> {
        self.base..self.base + self.by_unit.len() as u64 * UNIT_BYTES
    }
}
