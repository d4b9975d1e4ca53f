//! What is known of each slot's block, by the slot's number, in as few bytes as possible: what every call looks at in one
//! word, apart from what only reports ask for. Blocks come back in random order, so that the words of a heap of
//! a hundred thousand blocks have to fit the processor's second cache for a call not to wait for memory.
//!
//! ```text
//!  bits of a word   0..2 state | 2..8 function | 8..16 extra | 16..32 slack
//!  a slot           redzone, 16 * extra | the block | slack
//! ```
//!
//! What does not fit (slots of their own, alignments of many KiB) says [`WIDE`] for `extra`, and lies in a table.

use std::collections::HashMap;

use leakscope_model::AllocFn;

use super::State;
use crate::stacks::{BuildMixed, StackId};

/// The largest number of a function that fits.
const FUNCTIONS: u8 = 1 << 6;
const WIDE: u64 = 0xFF;
const _: () = assert!(AllocFn::ALL.len() + AllocFn::KERNEL.len() <= FUNCTIONS as usize);

/// Where a block lies in its slot, as distance and size in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

#[derive(Clone, Copy)]
struct Stacks {
    allocated_at: StackId,
    freed_at: StackId,
}

/// All slots' records. Numbers that were never given to [`Records::grow`] panic.
pub(super) struct Records {
    redzone_bytes: u64,
    words: Vec<u32>,
    stacks: Vec<Stacks>,
    wide: HashMap<u32, Place, BuildMixed>,
}

fn state_of(word: u32) -> State {
    match word & 3 {
        0 => State::Unused,
        1 => State::Live,
        2 => State::Quarantined,
        _ => State::Free,
    }
}

impl Records {
    /// No slots, of a heap whose blocks lie at least `redzone_bytes`, a multiple of 16, behind their slots' beginnings.
    pub(super) fn new(redzone_bytes: u64) -> Self {
        Self { redzone_bytes, words: Vec::new(), stacks: Vec::new(), wide: HashMap::default() }
    }

    /// How many slots there are.
    pub(super) fn len(&self) -> usize {
        self.words.len()
    }

    /// Adds unused slots.
    pub(super) fn grow(&mut self, slots: usize) {
        self.words.resize(self.words.len() + slots, 0);
        self.stacks.resize(self.words.len(), Stacks { allocated_at: StackId::NONE, freed_at: StackId::NONE });
    }

    /// A new block in a slot of `slot_bytes`.
    #[inline]
    pub(super) fn enter(&mut self, slot: u32, slot_bytes: u64, place: Place, function: AllocFn, stack: StackId) {
        let extra = (place.offset - self.redzone_bytes) / 16;
        let slack = slot_bytes - place.offset - place.bytes;
        let base = State::Live as u32 | u32::from(function as u8) << 2;
        self.words[slot as usize] = if extra < WIDE && slack <= u64::from(u16::MAX) {
            base | (extra as u32) << 8 | (slack as u32) << 16
        } else {
            self.wide.insert(slot, place);
            base | (WIDE as u32) << 8
        };
        self.stacks[slot as usize].allocated_at = stack;
    }

    /// What has become of the block.
    #[inline]
    pub(super) fn state(&self, slot: u32) -> State {
        state_of(self.words[slot as usize])
    }

    /// The same, changed.
    #[inline]
    pub(super) fn set_state(&mut self, slot: u32, state: State) {
        let word = &mut self.words[slot as usize];
        *word = *word & !3 | state as u32;
    }

    /// The function that allocated the block.
    #[inline]
    pub(super) fn function(&self, slot: u32) -> AllocFn {
        AllocFn::from_u8((self.words[slot as usize] >> 2) as u8 & (FUNCTIONS - 1)).unwrap_or(AllocFn::Malloc)
    }

    /// Where the block of a slot of `slot_bytes` lies in it.
    #[inline]
    pub(super) fn place(&self, slot: u32, slot_bytes: u64) -> Place {
        let word = u64::from(self.words[slot as usize]);
        let extra = word >> 8 & 0xFF;
        if extra == WIDE {
            return self.wide.get(&slot).copied().unwrap_or(Place { offset: self.redzone_bytes, bytes: 0 });
        }
        let offset = self.redzone_bytes + 16 * extra;
        Place { offset, bytes: slot_bytes - offset - (word >> 16) }
    }

    /// The block was freed there.
    #[inline]
    pub(super) fn free(&mut self, slot: u32, stack: StackId) {
        self.set_state(slot, State::Quarantined);
        self.stacks[slot as usize].freed_at = stack;
    }

    /// Where the block was allocated and freed.
    pub(super) fn stacks(&self, slot: u32) -> (StackId, StackId) {
        let Stacks { allocated_at, freed_at } = self.stacks[slot as usize];
        // A live block's is that of the slot's last owner.
        (allocated_at, if self.state(slot) == State::Live { StackId::NONE } else { freed_at })
    }

    /// Addresses of the two records of a slot, to be prefetched.
    #[inline]
    pub(super) fn addresses(&self, slot: u32) -> [u64; 2] {
        let word = self.words.as_ptr().wrapping_add(slot as usize);
        let stacks = self.stacks.as_ptr().wrapping_add(slot as usize);
        [word.addr() as u64, stacks.addr() as u64]
    }
}
