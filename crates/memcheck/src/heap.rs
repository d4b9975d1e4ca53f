//! The target's heap: where its blocks lie, what surrounds them, and how long freed ones are kept away from reuse.
//!
//! ```text
//!  region   | span: slots of one class            | span | span of one big slot              |
//!  slot     | redzone | block                | redzone and slack |
//!  shadow   | 0xFF .. | 0 ..                 | 0xFF ..           |      of a freed block all 0xFF
//! ```
//!
//! Nothing about a block stands beside it, where the target could overwrite it: for each slot there are records
//! in arrays of their own, found from any address in the slot by two divisions. They outlive the block until the slot is
//! used again, so that an access to freed memory can be told where the block came from and went.
//!
//! Freed slots wait in a quarantine of `--freelist-vol` bytes, oldest out first; blocks from `--freelist-big-blocks` bytes
//! on are thrown out before smaller ones. Source: Valgrind manual, section 4.3.
//!
//! Runs on the engine's stack. Allocates for its own tables with the engine's allocator; memory for blocks comes from
//! [`Pages`]. The caller keeps other threads out.

mod classes;
mod quarantine;
mod records;
mod span;
#[cfg(test)]
mod tests;

use leakscope_model::AllocFn;
use leakscope_shadow::Shadow;

use crate::stacks::StackId;
use classes::{Class, class_of};
use quarantine::Quarantine;
use records::{Place, Records};
use span::{Spans, UNIT_BYTES};

/// Where memory for blocks comes from.
pub trait Pages {
    /// Maps zeroed memory that may be read and written at exactly this place. `false` when there is none left.
    fn map(&mut self, address: u64, bytes: u64) -> bool;

    /// The same for memory of which most will be used, in large pages if there are any. Its shadow will be written, too.
    fn map_large(&mut self, address: u64, bytes: u64) -> bool {
        self.map(address, bytes)
    }

    /// Gives the memory of a range back and makes every access to it fault; its shadow becomes zero.
    fn revoke(&mut self, address: u64, bytes: u64);
}

/// What the options say about the heap. The defaults are Memcheck's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeapOptions {
    /// `--redzone-size`, rounded up to a multiple of 16.
    pub redzone_bytes: u64,
    /// `--freelist-vol`.
    pub quarantine_bytes: u64,
    /// `--freelist-big-blocks`.
    pub big_block_bytes: u64,
    /// `--malloc-fill`.
    pub malloc_fill: Option<u8>,
    /// `--free-fill`.
    pub free_fill: Option<u8>,
    /// `--alignment`: at least so much for every block.
    pub alignment: u64,
}

impl HeapOptions {
    /// Larger requests are no quick ones.
    pub const MOST_QUICK_BYTES: u64 = 16 << 10;
}

impl Default for HeapOptions {
    fn default() -> Self {
        Self {
            redzone_bytes: 16,
            quarantine_bytes: 20_000_000,
            big_block_bytes: 1_000_000,
            malloc_fill: None,
            free_fill: None,
            alignment: 16,
        }
    }
}

/// The life of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// No block has been in it yet.
    Unused,
    /// The target owns the block.
    Live,
    /// Freed, and not to be reused yet.
    Quarantined,
    /// Freed, and free for reuse.
    Free,
}

/// A block, or the last one that was in a slot.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    /// What the allocating function returned.
    pub start: u64,
    /// What it was asked for.
    pub size_bytes: u64,
    /// Where it was allocated.
    pub allocated_at: StackId,
    /// Where it was freed.
    pub freed_at: StackId,
    /// What has become of it.
    pub state: State,
    /// The function that allocated it.
    pub function: AllocFn,
}

/// A slot, and so the block that is or was in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlockId {
    /// The number of its record.
    slot: u32,
    /// The number of its span.
    span: u32,
}

/// What to allocate.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// How much.
    pub size_bytes: u64,
    /// A power of two, or less than 16 for the usual.
    pub alignment: u64,
    /// On behalf of whom.
    pub function: AllocFn,
    /// From where.
    pub stack: StackId,
    /// Whether its bytes must be zero.
    pub zeroed: bool,
}

/// Sums for the heap summary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Blocks that were ever allocated.
    pub allocations: u64,
    /// Calls that freed one.
    pub frees: u64,
    /// Bytes that were ever asked for.
    pub allocated_bytes: u64,
    /// Blocks that are live.
    pub live_blocks: u64,
    /// Bytes in them.
    pub live_bytes: u64,
}

/// The target's heap.
pub struct Heap<P> {
    pages: P,
    shadow: Shadow,
    options: HeapOptions,
    spans: Spans,
    records: Records,
    /// Free slots by class.
    free: Vec<Vec<BlockId>>,
    quarantine: Quarantine,
    totals: Totals,
    /// Up to here memory is mapped beyond what spans need, and forbidden.
    mapped_end: u64,
}

/// What is known of a slot's memory, and of its shadow.
#[derive(Clone, Copy, PartialEq, Eq)]
enum SlotMemory {
    /// It holds what its last owner wrote; all of it is forbidden.
    Used,
    /// It was never used; all of it is forbidden.
    Zeroed,
    /// It was never used, and neither was its shadow, but that it is forbidden up to this address.
    Fresh { forbidden_end: u64 },
}

/// Memory for small slots is mapped in pieces of so much.
const STEP_BYTES: u64 = 64 << 10;

/// In pieces of so much once a heap has grown beyond twice that: large pages of the processor.
const LARGE_BYTES: u64 = 2 << 20;

/// Has a line of memory brought nearer, wherever it is.
#[inline]
fn prefetch(address: u64) {
    // SAFETY: reads nothing, and no address is wrong.
    unsafe { core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(address as *const i8) };
}

/// Free slots from this size on give their memory back; smaller ones keep it, forbidden, until they are used again.
const REVOKED_BYTES: u64 = 4 << 20;

/// The most that can be asked for at once.
const MOST_BYTES: u64 = 1 << 44;

impl<P: Pages> Heap<P> {
    /// An empty heap that grows from `base`, a multiple of 64 KiB, to `end`.
    ///
    /// # Safety
    /// `shadow` describes `[base, end)` in the way that [`Shadow::new`] demands as soon as `pages` has mapped it, and
    /// nobody else maps memory there.
    pub unsafe fn new(pages: P, shadow: Shadow, base: u64, end: u64, mut options: HeapOptions) -> Self {
        options.redzone_bytes = options.redzone_bytes.next_multiple_of(16).clamp(16, 4096);
        options.alignment = options.alignment.next_power_of_two().clamp(16, 4096);
        let quarantine = Quarantine::new(options.quarantine_bytes, options.big_block_bytes);
        let records = Records::new(options.redzone_bytes);
        Self {
            pages,
            shadow,
            options,
            spans: Spans::new(base, end),
            records,
            free: vec![Vec::new(); classes::COUNT],
            quarantine,
            totals: Totals::default(),
            mapped_end: base,
        }
    }

    /// Allocates a block; `None` when there is no memory.
    pub fn allocate(&mut self, request: Request) -> Option<u64> {
        let alignment = request.alignment.max(self.options.alignment);
        if request.size_bytes > MOST_BYTES || alignment > MOST_BYTES {
            return None;
        }
        let redzone = self.options.redzone_bytes;
        // Slots begin at multiples of 16 only.
        let total = redzone + request.size_bytes + redzone + (alignment - 16);
        let (id, memory) = match class_of(total) {
            Class::Small { number, slot_bytes } => self.small(number, slot_bytes)?,
            Class::Big { bytes } => self.big(bytes)?,
        };
        let slot = self.spans.slot(id);
        let start = (slot.0 + redzone).next_multiple_of(alignment);
        self.enter(id, start, slot, &request);
        let end = start + request.size_bytes;
        if let SlotMemory::Fresh { forbidden_end } = memory {
            self.shadow.allow(start, request.size_bytes.min(forbidden_end.saturating_sub(start)));
            self.shadow.forbid(slot.0, start - slot.0);
            // Far behind a large block a wrong access finds nothing of the heap's anyhow.
            self.shadow.forbid(end, (slot.0 + slot.1 - end).min(1 << 20));
        } else {
            self.shadow.allow(start, request.size_bytes);
        }
        // SAFETY: `[start, start + size)` lies in a slot that was free: mapped, writable, and the new owner's.
        unsafe {
            if request.zeroed {
                if memory == SlotMemory::Used {
                    core::ptr::write_bytes(start as *mut u8, 0, request.size_bytes as usize);
                }
            } else if let Some(fill) = self.options.malloc_fill {
                core::ptr::write_bytes(start as *mut u8, fill, request.size_bytes as usize);
            }
        }
        Some(start)
    }

    /// Writes a new block down.
    #[inline]
    fn enter(&mut self, id: BlockId, start: u64, slot: (u64, u64), request: &Request) {
        let place = Place { offset: start - slot.0, bytes: request.size_bytes };
        self.records.enter(id.slot, slot.1, place, request.function, request.stack);
        self.totals.allocations += 1;
        self.totals.allocated_bytes += request.size_bytes;
        self.totals.live_blocks += 1;
        self.totals.live_bytes += request.size_bytes;
    }

    /// As [`Heap::allocate`] where a slot is at hand and the usual alignment will do: calls nobody outside.
    #[inline]
    pub fn allocate_quickly(&mut self, request: Request) -> Option<u64> {
        let redzone = self.options.redzone_bytes;
        if request.size_bytes > HeapOptions::MOST_QUICK_BYTES || self.options.alignment != 16 {
            return None;
        }
        let Class::Small { number, slot_bytes } = class_of(redzone + request.size_bytes + redzone) else {
            return None;
        };
        let free = self.free.get_mut(number)?;
        let id = free.pop()?;
        // What comes next is likely to be far from the caches: its slot, its shadow, and what is kept of it.
        if let Some(&next) = free.last() {
            let start = self.spans.start(next) + redzone;
            prefetch(start);
            prefetch(self.shadow.address_of(start));
            self.records.addresses(next.slot).into_iter().for_each(prefetch);
        }
        let slot = self.spans.start(id);
        let start = slot + redzone;
        self.enter(id, start, (slot, slot_bytes), &request);
        self.shadow.allow(start, request.size_bytes);
        let fill = if request.zeroed { Some(0) } else { self.options.malloc_fill };
        if let Some(byte) = fill {
            // SAFETY: `[start, start + size)` lies in a slot that was free: mapped, writable, and the new owner's.
            unsafe { core::ptr::write_bytes(start as *mut u8, byte, request.size_bytes as usize) };
        }
        Some(start)
    }

    /// A free slot of a class.
    fn small(&mut self, number: usize, slot_bytes: u64) -> Option<(BlockId, SlotMemory)> {
        if let Some(id) = self.free[number].pop() {
            return Some((id, SlotMemory::Used));
        }
        let units = classes::span_units(slot_bytes);
        let slots = units * UNIT_BYTES / slot_bytes;
        let first = self.grow(units, slot_bytes, slots)?;
        // The next allocation takes the lowest one.
        let others = (1..slots as u32).rev().map(|slot| BlockId { slot: first.slot + slot, ..first });
        self.free[number].extend(others);
        Some((first, SlotMemory::Zeroed))
    }

    /// A slot of its own.
    fn big(&mut self, bytes: u64) -> Option<(BlockId, SlotMemory)> {
        let units = bytes.div_ceil(UNIT_BYTES);
        if let Some(id) = self.spans.take_free_big(units) {
            let (start, bytes) = self.spans.slot(id);
            if bytes < REVOKED_BYTES {
                return Some((id, SlotMemory::Used));
            }
            if !self.pages.map(start, bytes) {
                return None;
            }
            return Some((id, SlotMemory::Fresh { forbidden_end: 0 }));
        }
        let forbidden_end = self.mapped_end;
        let first = self.grow(units, units * UNIT_BYTES, 1)?;
        Some((first, SlotMemory::Fresh { forbidden_end }))
    }

    /// A new span; its first slot. Its shadow is forbidden; that of a single slot only where memory was
    /// mapped before, otherwise it is zero.
    fn grow(&mut self, units: u64, slot_bytes: u64, slots: u64) -> Option<BlockId> {
        let first = u32::try_from(self.records.len() as u64 + slots).ok()? - slots as u32;
        let start = self.spans.next_start(units)?;
        self.map_to(start + units * UNIT_BYTES, slots > 1)?;
        let span = self.spans.push(units, slot_bytes, first);
        self.records.grow(slots as usize);
        Some(BlockId { slot: first, span })
    }

    /// Has memory mapped up to an address; for small slots ahead, and forbidden.
    fn map_to(&mut self, end: u64, is_small: bool) -> Option<()> {
        let start = self.mapped_end;
        if end <= start {
            return Some(());
        }
        let is_large = end - self.spans.extent().start > 2 * LARGE_BYTES;
        let step = if is_large { LARGE_BYTES } else { STEP_BYTES };
        let upto = if is_small { end.next_multiple_of(step).min(self.spans.end()) } else { end };
        let is_ahead = upto > end && self.map(start, upto, is_large);
        let upto = if is_ahead { upto } else { end };
        if !is_ahead && !self.map(start, end, false) {
            return None;
        }
        if is_small {
            self.shadow.forbid(start, upto - start);
        }
        self.mapped_end = upto;
        Some(())
    }

    fn map(&mut self, start: u64, end: u64, is_large: bool) -> bool {
        if is_large { self.pages.map_large(start, end - start) } else { self.pages.map(start, end - start) }
    }

    /// The block in whose slot an address lies, if one is or was there.
    #[inline]
    pub fn find(&self, address: u64) -> Option<BlockId> {
        let id = self.spans.block_at(address)?;
        (self.records.state(id.slot) != State::Unused).then_some(id)
    }

    /// The live block that starts at an address.
    #[inline]
    pub fn find_live(&self, start: u64) -> Option<BlockId> {
        let id = self.spans.block_at(start)?;
        let (slot, bytes) = self.spans.slot(id);
        let is_here = || slot + self.records.place(id.slot, bytes).offset == start;
        (self.records.state(id.slot) == State::Live && is_here()).then_some(id)
    }

    /// A block that [`Heap::find`] gave.
    pub fn block(&self, id: BlockId) -> Block {
        let (slot, bytes) = self.spans.slot(id);
        let place = self.records.place(id.slot, bytes);
        let (allocated_at, freed_at) = self.records.stacks(id.slot);
        Block {
            start: slot + place.offset,
            size_bytes: place.bytes,
            allocated_at,
            freed_at,
            state: self.records.state(id.slot),
            function: self.records.function(id.slot),
        }
    }

    /// The function that allocated a block.
    #[inline]
    pub fn function(&self, id: BlockId) -> AllocFn {
        self.records.function(id.slot)
    }

    /// How many bytes were asked for.
    #[inline]
    pub fn size_bytes(&self, id: BlockId) -> u64 {
        self.records.place(id.slot, self.spans.slot(id).1).bytes
    }

    /// Frees a live block.
    pub fn release(&mut self, id: BlockId, stack: StackId) {
        self.give_up(id, stack);
    }

    /// The same, unless the kernel must be asked; then nothing has changed.
    #[inline]
    pub fn release_quickly(&mut self, id: BlockId, stack: StackId) -> bool {
        let can = self.can_release_quickly(id);
        if can {
            self.give_up(id, stack);
        }
        can
    }

    /// Has what a release will look at and write brought nearer.
    #[inline]
    pub fn prepare_release(&self, start: u64) {
        if let Some(id) = self.spans.block_at(start) {
            self.records.addresses(id.slot).into_iter().for_each(prefetch);
            prefetch(self.shadow.address_of(start));
            prefetch(self.shadow.address_of(start + 64));
        }
    }

    /// Whether [`Heap::release_quickly`] will do it.
    #[inline]
    pub fn can_release_quickly(&self, id: BlockId) -> bool {
        let (_, bytes) = self.spans.slot(id);
        bytes <= classes::SMALL_LIMIT && self.quarantine.is_small(self.records.place(id.slot, bytes).bytes)
    }

    #[inline]
    fn give_up(&mut self, id: BlockId, stack: StackId) {
        debug_assert_eq!(self.records.state(id.slot), State::Live);
        let (slot, slot_bytes) = self.spans.slot(id);
        let Place { offset, bytes: size } = self.records.place(id.slot, slot_bytes);
        let start = slot + offset;
        self.records.free(id.slot, stack);
        self.totals.frees += 1;
        self.totals.live_blocks -= 1;
        self.totals.live_bytes -= size;
        if let Some(fill) = self.options.free_fill {
            // SAFETY: the block's bytes are mapped, and nobody may use them any more.
            unsafe { core::ptr::write_bytes(start as *mut u8, fill, size as usize) }
        }
        // A block that the quarantine cannot hold is revoked below, if it is large.
        if size <= self.options.quarantine_bytes || size < REVOKED_BYTES {
            self.shadow.forbid(start, size);
        }
        self.quarantine.push(id, size);
        if self.quarantine.is_over() {
            self.thin_out();
        }
    }

    /// Lets blocks leave the quarantine until the others fit.
    fn thin_out(&mut self) {
        loop {
            let bytes_of = |id: BlockId| self.records.place(id.slot, self.spans.slot(id).1).bytes;
            let Some(out) = self.quarantine.overflow(bytes_of) else { return };
            if let Some(later) = self.quarantine.ahead(8) {
                prefetch(self.records.addresses(later.slot)[0]);
            }
            self.records.set_state(out.slot, State::Free);
            match self.spans.class(out) {
                Some(class) => self.free[class].push(out),
                None => self.retire(out),
            }
        }
    }

    /// A slot of its own is free again.
    fn retire(&mut self, id: BlockId) {
        let (start, bytes) = self.spans.slot(id);
        if bytes >= REVOKED_BYTES {
            self.pages.revoke(start, bytes);
        }
        self.spans.free_big(id);
    }

    /// The live blocks in ascending order.
    pub fn live(&self) -> impl Iterator<Item = BlockId> + '_ {
        self.spans.blocks().filter(|id| self.records.state(id.slot) == State::Live)
    }

    /// The sums.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// How much room lies around a block at least.
    pub fn redzone_bytes(&self) -> u64 {
        self.options.redzone_bytes
    }

    /// The addresses that blocks have come from so far.
    pub fn extent(&self) -> core::ops::Range<u64> {
        self.spans.extent()
    }
}
