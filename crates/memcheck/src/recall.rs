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
    /// Signature and number of the stack; zeros take no memory until they are written.
    signatures: Vec<[u64; 2]>,
    last_number: u32,
    /// Where the layouts read.
    extent: Range<u64>,
}

impl Default for Recall {
    fn default() -> Self {
        Self {
            layouts: vec![NO_LAYOUT; LAYOUTS].into_boxed_slice(),
            signatures: vec![[0; 2]; SIGNATURES],
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
        let origin = u64::from(layout.number) << 32 | most as u64;
        let mut hash = (symbol ^ origin.wrapping_mul(0xD6E8_FEB8_6659_FD93)).wrapping_mul(MIX);
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
        let [known, stack] = self.signatures[(signature >> 32) as usize % SIGNATURES];
        (known == signature).then_some(StackId(stack as u32))
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
        self.signatures[(signature >> 32) as usize % SIGNATURES] = [signature, stack.0.into()];
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

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// A generator of numbers that is the same in every run: xorshift64*.
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, limit: u64) -> u64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % limit
        }
    }

    const WORDS_OF_STACK: usize = 200;
    /// Return addresses of functions; what follows from one is how large its caller's frame is, and by what it is found.
    const FUNCTIONS: u64 = 24;
    const RBP: usize = 6;

    /// A stack that is walked in the slowest way.
    struct Model {
        memory: Vec<u64>,
    }

    impl Model {
        fn address(&self, word: usize) -> u64 {
            &raw const self.memory[word] as u64
        }

        /// The walk from a word at which a return address lies: the addresses, and what was read on the way.
        fn walk(&self, start: usize, guest: &Guest, most: usize) -> (Vec<u64>, Trace) {
            let (mut addresses, mut trace) = (Vec::new(), Trace::default());
            trace.begin();
            let mut at = start;
            while at < WORDS_OF_STACK && addresses.len() < most {
                let function = self.memory[at];
                if at != start {
                    trace.read(self.address(at));
                }
                addresses.push(function);
                if function >= FUNCTIONS {
                    break;
                }
                at = if function % 5 == 4 {
                    // Found by rbp, as the caller has it: so many words further.
                    trace.uses(RBP);
                    at + 1 + guest.gpr[dwarf_register(RBP)] as usize % 7
                } else {
                    at + 2 + function as usize % 6
                };
            }
            (addresses, trace)
        }
    }

    /// Thousands of walks of stacks that change a word at a time: what is recalled is what a walk gives, and what was walked
    /// is recalled as long as nothing of it changes.
    #[test]
    fn what_is_recalled_is_what_a_walk_would_give() {
        let mut numbers = Numbers(0x1357_9BDF_2468_ACE1);
        let mut model = Model { memory: vec![FUNCTIONS; WORDS_OF_STACK] };
        let mut recall = Recall::default();
        let mut known: HashMap<(Vec<u64>, usize), StackId> = HashMap::new();
        let mut guest = Guest::new();
        let (mut hits, mut kept) = (0, 0);
        for word in &mut model.memory {
            *word = numbers.below(FUNCTIONS);
        }
        for step in 0..60_000 {
            let word = numbers.below(WORDS_OF_STACK as u64) as usize;
            model.memory[word] = numbers.below(FUNCTIONS + 1);
            if numbers.below(4) == 0 {
                guest.gpr[dwarf_register(RBP)] = numbers.below(20);
            }
            if numbers.below(500) == 0 {
                recall.forget();
            }
            let start = numbers.below(12) as usize;
            guest.set_gpr(Gpr::Rsp, model.address(start));
            let most = [4, 12][numbers.below(2) as usize];
            let (addresses, trace) = model.walk(start, &guest, most);
            let next = StackId(known.len() as u32 + 1);
            let expected = *known.entry((addresses, most)).or_insert(next);
            let symbol = 0x1000;
            if let Some(found) = recall.find(&guest, symbol, most) {
                assert_eq!(found, expected, "step {step}");
                hits += 1;
                continue;
            }
            recall.keep(&guest, symbol, most, &trace, expected);
            // Whoever walks more words than are kept, or has another layout in its place, is not recalled.
            if trace.words().len() <= WORDS {
                assert_eq!(recall.find(&guest, symbol, most), Some(expected), "step {step}: just walked");
                kept += 1;
            }
            assert_eq!(recall.find(&guest, symbol + 16, most), None, "another function's");
        }
        assert!(hits > 5000 && kept > 5000, "{hits} recalled, {kept} kept: the test shows nothing");
    }

    #[test]
    fn what_is_unmapped_is_not_read_again() {
        let model = Model { memory: vec![0; WORDS_OF_STACK] };
        let mut guest = Guest::new();
        guest.set_gpr(Gpr::Rsp, model.address(0));
        let (_, trace) = model.walk(0, &guest, 12);
        let mut recall = Recall::default();
        recall.keep(&guest, 7, 12, &trace, StackId(3));
        let (low, high) = (model.address(0), model.address(WORDS_OF_STACK - 1));
        recall.unmapped(high + 8, high + 4096);
        recall.unmapped(low - 4096, low);
        assert_eq!(recall.find(&guest, 7, 12), Some(StackId(3)), "other memory");
        let last = *trace.words().last().unwrap();
        recall.unmapped(last + 7, last + 8);
        assert_eq!(recall.find(&guest, 7, 12), None);
    }

    #[test]
    fn what_cannot_be_repeated_is_not_kept() {
        let model = Model { memory: vec![0; WORDS_OF_STACK] };
        let mut guest = Guest::new();
        guest.set_gpr(Gpr::Rsp, model.address(0));
        let (_, mut trace) = model.walk(0, &guest, 12);
        trace.lose();
        let mut recall = Recall::default();
        recall.keep(&guest, 7, 12, &trace, StackId(3));
        assert_eq!(recall.find(&guest, 7, 12), None);
    }
}
