//! Recalls stacks that were walked before, without walking.
//!
//! A walk reads the words in which return addresses lie, and those saved registers that frames are found by. Where
//! these words lie, as distances from the stack pointer, is a *layout*, kept by return address and stack pointer of
//! the allocation function's caller. At the next call from there the words of the layout are read all at once, with no
//! word waiting for another, and mixed with the layout's number into a signature. Each signature was entered by a walk that
//! read these very words: frame by frame, equal words lead to equal frames. A hit is believed, as in `leakscope-rt`: two
//! of a million stacks share 64 bits with a probability below 10^-7.
//!
//! When modules come or go, rules change, and everything is forgotten; when memory is unmapped in which a layout reads, too.
//! Nothing here allocates once it exists: it runs in quick hooks.

use std::ops::Range;

use leakscope_translate::{Gpr, Guest};

use crate::stacks::StackId;
use crate::unwind::{Trace, dwarf_register};

/// Words of a layout; walks that read more are not kept.
const WORDS: usize = 26;
const LAYOUTS: usize = 1 << 10;
const SIGNATURES: usize = 1 << 15;
const MIX: u64 = 0x9E37_79B9_7F4A_7C15;

#[derive(Clone, Copy)]
struct Layout {
    return_address: u64,
    stack_pointer: u64,
    /// Number of the layout; 0 for none.
    number: u32,
    /// Registers that the walk used as they were, by DWARF's numbers.
    registers: u16,
    count: u16,
    offsets: [u32; WORDS],
}

const NO_LAYOUT: Layout =
    Layout { return_address: 0, stack_pointer: 0, number: 0, registers: 0, count: 0, offsets: [0; WORDS] };

/// No addresses; any address makes it larger.
const NOWHERE: Range<u64> = Range { start: u64::MAX, end: 0 };

/// The memory of walks.
pub struct Recall {
    layouts: Box<[Layout]>,
    signatures: Vec<(u64, StackId)>,
    last_number: u32,
    /// Where the layouts read.
    extent: Range<u64>,
}

impl Default for Recall {
    fn default() -> Self {
        Self {
            layouts: vec![NO_LAYOUT; LAYOUTS].into_boxed_slice(),
            signatures: vec![(0, StackId::NONE); SIGNATURES],
            last_number: 0,
            extent: NOWHERE,
        }
    }
}

/// What a walk starts from.
#[derive(Clone, Copy)]
struct Place {
    return_address: u64,
    stack_pointer: u64,
    slot: usize,
}

impl Recall {
    fn place(guest: &Guest) -> Place {
        let stack_pointer = guest.gpr(Gpr::Rsp);
        // SAFETY: the target just called a function, so its stack is there.
        let return_address = unsafe { (stack_pointer as *const u64).read_unaligned() };
        let hash = (return_address ^ stack_pointer.rotate_left(32)).wrapping_mul(MIX);
        Place { return_address, stack_pointer, slot: (hash >> 54) as usize % LAYOUTS }
    }

    fn signature(layout: &Layout, guest: &Guest, symbol: u64, most: usize) -> u64 {
        let mut hash = (symbol ^ u64::from(layout.number) << 40 ^ (most as u64) << 52).wrapping_mul(MIX);
        for (number, &offset) in layout.offsets[..usize::from(layout.count)].iter().enumerate() {
            // SAFETY: the layout was read before at the same stack pointer, and its memory was not unmapped since.
            let word = unsafe { ((layout.stack_pointer + u64::from(offset)) as *const u64).read_unaligned() };
            // The multiplications do not wait for each other.
            let mixed = (word ^ (number as u64 + 1).wrapping_mul(0xD6E8_FEB8_6659_FD93)).wrapping_mul(MIX);
            hash = hash.rotate_left(7) ^ mixed ^ mixed >> 32;
        }
        let mut left = layout.registers;
        while left != 0 {
            let value = guest.gpr[dwarf_register(left.trailing_zeros() as usize)];
            hash = (hash.rotate_left(7) ^ value).wrapping_mul(MIX);
            left &= left - 1;
        }
        // 0 is no signature.
        (hash ^ hash >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9) | 1
    }

    /// The stack of a guest that stands at the first instruction of the function at `symbol`, if it was walked before.
    pub fn find(&self, guest: &Guest, symbol: u64, most: usize) -> Option<StackId> {
        let place = Self::place(guest);
        let layout = &self.layouts[place.slot];
        if layout.number == 0
            || layout.return_address != place.return_address
            || layout.stack_pointer != place.stack_pointer
        {
            return None;
        }
        let signature = Self::signature(layout, guest, symbol, most);
        let (known, stack) = self.signatures[(signature >> 32) as usize % SIGNATURES];
        (known == signature).then_some(stack)
    }

    /// Keeps what a walk from here found.
    pub fn keep(&mut self, guest: &Guest, symbol: u64, most: usize, trace: &Trace, stack: StackId) {
        let words = trace.words();
        if !trace.is_repeatable() || words.len() > WORDS {
            return;
        }
        let place = Self::place(guest);
        let mut layout = Layout {
            return_address: place.return_address,
            stack_pointer: place.stack_pointer,
            number: 0,
            registers: trace.registers(),
            count: words.len() as u16,
            offsets: [0; WORDS],
        };
        for (offset, &word) in layout.offsets.iter_mut().zip(words) {
            let Ok(distance) = u32::try_from(word.wrapping_sub(place.stack_pointer)) else { return };
            *offset = distance;
            self.extent = self.extent.start.min(word)..self.extent.end.max(word + 8);
        }
        let known = &mut self.layouts[place.slot];
        layout.number = known.number;
        let is_same = known.number != 0
            && known.return_address == layout.return_address
            && known.stack_pointer == layout.stack_pointer
            && known.registers == layout.registers
            && known.count == layout.count
            && known.offsets == layout.offsets;
        if !is_same {
            self.last_number = self.last_number.wrapping_add(1).max(1);
            layout.number = self.last_number;
            *known = layout;
        }
        let signature = Self::signature(&layout, guest, symbol, most);
        self.signatures[(signature >> 32) as usize % SIGNATURES] = (signature, stack);
    }

    /// Memory is not what it was: nothing is read there any more.
    pub fn unmapped(&mut self, start: u64, end: u64) {
        if start < self.extent.end && self.extent.start < end {
            self.forget();
        }
    }

    /// Rules have changed: nothing is recalled.
    pub fn forget(&mut self) {
        if self.extent.end != 0 {
            self.layouts.fill(NO_LAYOUT);
            self.extent = NOWHERE;
        }
    }
}
