//! The heap blocks of a check, and what can be wrong with the list.

use core::fmt;
use core::ops::Range;

use leakscope_model::Avma;

/// One live heap block: 16 bytes, so that four of them share a cache line.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(C)]
pub struct Block {
    /// The address that the allocator returned.
    pub start: Avma,
    /// The size that the program asked for.
    pub size_bytes: u64,
}

impl Block {
    /// How many addresses lead to the block: its size, but at least 1.
    ///
    /// Memcheck does the same: otherwise nothing could point to a block of size 0.
    #[inline]
    pub(crate) fn span_bytes(&self) -> u64 {
        self.size_bytes.max(1)
    }

    /// Whether an address is in the block.
    #[inline]
    pub(crate) fn covers(&self, address: u64) -> bool {
        address.wrapping_sub(self.start.0) < self.span_bytes()
    }
}

/// The live blocks in ascending order, as a slice or in a form that takes less memory.
pub trait Blocks: Copy + Sync {
    /// How many there are.
    fn len(self) -> usize;

    /// The block with this number; `None` from [`Blocks::len`] on.
    fn get(self, number: usize) -> Option<Block>;

    /// Whether there is none.
    fn is_empty(self) -> bool {
        self.len() == 0
    }
}

impl Blocks for &[Block] {
    #[inline]
    fn len(self) -> usize {
        <[Block]>::len(self)
    }

    #[inline]
    fn get(self, number: usize) -> Option<Block> {
        <[Block]>::get(self, number).copied()
    }
}

/// The blocks of a range of numbers.
pub(crate) fn iter<B: Blocks>(blocks: B, numbers: Range<usize>) -> impl Iterator<Item = Block> {
    numbers.map_while(move |number| blocks.get(number))
}

/// The first number in the range whose block `is_before` does not hold for; it holds for all before that one.
pub(crate) fn partition_point<B: Blocks>(
    blocks: B,
    numbers: Range<usize>,
    is_before: impl Fn(&Block) -> bool,
) -> usize {
    let (mut low, mut high) = (numbers.start, numbers.end);
    while low < high {
        let middle = low + (high - low) / 2;
        if blocks.get(middle).is_some_and(|b| is_before(&b)) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

/// Why a heap cannot be checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InputError {
    /// Block `at` starts below its predecessor.
    Unsorted {
        /// The block's position in the slice.
        at: usize,
    },
    /// Block `at` starts in its predecessor.
    Overlap {
        /// The block's position in the slice.
        at: usize,
    },
    /// Block `at` goes beyond the end of the address space.
    Wraps {
        /// The block's position in the slice.
        at: usize,
    },
    /// More than 2^32 - 2 blocks.
    TooManyBlocks,
    /// A slice of the work memory is shorter than [`crate::WorkSizes`] demands.
    WorkTooSmall {
        /// The field of [`crate::Work`].
        field: &'static str,
        /// The elements that it must have.
        needed: usize,
        /// The elements that it has.
        given: usize,
    },
}

impl fmt::Display for InputError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Unsorted { at } => {
                write!(f, "heap block {at}: starts below block {}; expected ascending addresses", at - 1)
            }
            Self::Overlap { at } => write!(f, "heap block {at}: starts inside block {}", at - 1),
            Self::Wraps { at } => write!(f, "heap block {at}: goes beyond the end of the address space"),
            Self::TooManyBlocks => write!(f, "more heap blocks than one leak check can number (2^32 - 2)"),
            Self::WorkTooSmall { field, needed, given } => {
                write!(f, "work memory `{field}`: {given} elements given, {needed} needed")
            }
        }
    }
}

impl core::error::Error for InputError {}

/// What allocators align blocks to.
pub(crate) const ALIGNMENT_LOG2: u32 = 4;

/// Checks that the blocks ascend, do not overlap, and can be numbered. Returns how many are not aligned as usual.
pub(crate) fn check_all<B: Blocks>(blocks: B) -> Result<usize, InputError> {
    if blocks.len() >= u32::MAX as usize {
        return Err(InputError::TooManyBlocks);
    }
    let (mut previous, mut unaligned) = (Block::default(), 0);
    for (at, block) in iter(blocks, 0..blocks.len()).enumerate() {
        if at > 0 && block.start < previous.start {
            return Err(InputError::Unsorted { at });
        }
        if at > 0 && block.start.0 - previous.start.0 < previous.span_bytes() {
            return Err(InputError::Overlap { at });
        }
        // The address after the last byte must be a number as well: ends are computed all over.
        if block.start.0.checked_add(block.span_bytes()).is_none() {
            return Err(InputError::Wraps { at });
        }
        unaligned += usize::from(block.start.0 % (1 << ALIGNMENT_LOG2) != 0);
        previous = block;
    }
    Ok(unaligned)
}
