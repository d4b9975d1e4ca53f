//! The region cut into spans, and the way from an address to its slot.
//!
//! Spans follow one another without gaps, in units of 16 KiB. A table tells for each unit which span it is in.

use std::collections::BTreeMap;
use std::ops::Range;

use super::BlockId;
use super::classes::{self, Class};

/// The unit of spans.
pub(super) const UNIT_BYTES: u64 = 16 << 10;

/// Some units cut into slots of one size. Two of them fill a line of the processor's caches.
#[derive(Clone, Copy, Debug)]
struct Span {
    /// Its first address.
    start: u64,
    /// `offset * reciprocal >> 40` is the slot; 0 where there is one only.
    reciprocal: u64,
    units: u32,
    /// 0 where there is one slot only: all of it.
    slot_bytes: u32,
    /// Number of the first slot.
    first: u32,
    slots: u16,
    class: u8,
}

/// Offsets of small slots have less than 20 bits, so that 40 bits of a reciprocal, rounded up, are enough.
const RECIPROCAL_BITS: u32 = 40;

/// The class of a span of one slot.
const BIG: u8 = u8::MAX;
const _: () = assert!(classes::COUNT < BIG as usize && size_of::<Span>() == 32);

impl Span {
    fn slot_bytes(&self) -> u64 {
        if self.class == BIG { u64::from(self.units) * UNIT_BYTES } else { self.slot_bytes.into() }
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
    free_big: BTreeMap<u64, Vec<BlockId>>,
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

    /// Adds a span there, of one slot or of slots of a class; gives its number.
    pub(super) fn push(&mut self, units: u64, slot_bytes: u64, first: u32) -> u32 {
        let start = self.base + self.by_unit.len() as u64 * UNIT_BYTES;
        let number = self.list.len() as u32;
        let span = match classes::class_of(slot_bytes) {
            Class::Small { number: class, .. } => Span {
                start,
                reciprocal: (1 << RECIPROCAL_BITS) / slot_bytes + 1,
                units: units as u32,
                slot_bytes: slot_bytes as u32,
                first,
                slots: (units * UNIT_BYTES / slot_bytes) as u16,
                class: class as u8,
            },
            Class::Big { .. } => {
                Span { start, reciprocal: 0, units: units as u32, slot_bytes: 0, first, slots: 1, class: BIG }
            }
        };
        self.list.push(span);
        self.by_unit.resize(self.by_unit.len() + units as usize, number);
        number
    }

    fn of(&self, id: BlockId) -> &Span {
        &self.list[id.span as usize]
    }

    /// The slot that an address lies in; `None` outside of all slots.
    #[inline]
    pub(super) fn block_at(&self, address: u64) -> Option<BlockId> {
        let unit = address.checked_sub(self.base)? / UNIT_BYTES;
        let number = *self.by_unit.get(usize::try_from(unit).ok()?)?;
        let span = self.list.get(number as usize)?;
        let slot = ((address - span.start) * span.reciprocal) >> RECIPROCAL_BITS;
        (slot < u64::from(span.slots)).then_some(BlockId { slot: span.first + slot as u32, span: number })
    }

    /// First address of a slot.
    #[inline]
    pub(super) fn start(&self, id: BlockId) -> u64 {
        let span = self.of(id);
        span.start + u64::from(id.slot - span.first) * u64::from(span.slot_bytes)
    }

    /// First address and bytes of a slot.
    #[inline]
    pub(super) fn slot(&self, id: BlockId) -> (u64, u64) {
        (self.start(id), self.of(id).slot_bytes())
    }

    /// The class of a slot; `None` for one in a span of its own.
    #[inline]
    pub(super) fn class(&self, id: BlockId) -> Option<usize> {
        let class = self.of(id).class;
        (class != BIG).then_some(class.into())
    }

    /// All slots, in ascending order.
    pub(super) fn blocks(&self) -> impl Iterator<Item = BlockId> + '_ {
        let slots = |(number, span): (usize, &Span)| {
            let first = span.first;
            (0..u32::from(span.slots)).map(move |slot| BlockId { slot: first + slot, span: number as u32 })
        };
        self.list.iter().enumerate().flat_map(slots)
    }

    /// Takes a free span of one slot that fits well: no more than a quarter of it is wasted.
    pub(super) fn take_free_big(&mut self, units: u64) -> Option<BlockId> {
        let (&found, list) = self.free_big.range_mut(units..=units + units / 4).find(|(_, list)| !list.is_empty())?;
        let id = list.pop()?;
        if list.is_empty() {
            self.free_big.remove(&found);
        }
        Some(id)
    }

    /// Says that the span of this one slot is free.
    pub(super) fn free_big(&mut self, id: BlockId) {
        let units = self.of(id).units;
        self.free_big.entry(units.into()).or_default().push(id);
    }

    /// Addresses of all spans.
    pub(super) fn extent(&self) -> Range<u64> {
        self.base..self.base + self.by_unit.len() as u64 * UNIT_BYTES
    }
}
