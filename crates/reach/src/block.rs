//! The heap blocks of a check, and what can be wrong with the list.

use core::fmt;

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

/// Checks that the blocks ascend, do not overlap, and can be numbered.
pub(crate) fn check_all(blocks: &[Block]) -> Result<(), InputError> {
    if blocks.len() >= u32::MAX as usize {
        return Err(InputError::TooManyBlocks);
    }
    let mut previous = Block::default();
    for (at, block) in blocks.iter().enumerate() {
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
        previous = *block;
    }
    Ok(())
}
