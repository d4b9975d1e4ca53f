//! The memory that the mark phase works in. The caller provides it.

use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};

use crate::block::{Blocks, InputError, check_all};
use crate::index::{Granule, Region, Shape};

/// How many elements the slices of [`Work`] need for a heap.
///
/// In bytes, for 10 million blocks in 2 GiB: 10 MB marks, 40 MB leaders, up to 40 MB stack, 32 MB granules, 16 MB
/// settled. Fresh anonymous memory is ideal: what is never written to costs nothing (leaders of a heap without leaks,
/// a stack that stays low). Huge pages help, as `marks`, `granules` and `settled` are read at random.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WorkSizes {
    /// Elements of [`Work::marks`].
    pub marks: usize,
    /// Elements of [`Work::leaders`].
    pub leaders: usize,
    /// Elements of [`Work::stack`] with which no block has to be looked for; one element is enough to be right.
    pub stack: usize,
    /// Elements of [`Work::regions`].
    pub regions: usize,
    /// Elements of [`Work::granules`].
    pub granules: usize,
    /// Elements of [`Work::settled`].
    pub settled: usize,
    shape: Shape,
}

impl WorkSizes {
    /// The sizes for these blocks.
    ///
    /// # Errors
    ///
    /// If the blocks are out of order, overlap or leave the address space.
    pub fn for_blocks<B: Blocks>(blocks: B) -> Result<Self, InputError> {
        let unaligned = check_all(blocks)?;
        let shape = Shape::of(blocks, unaligned);
        let n = blocks.len();
        Ok(Self {
            marks: n,
            leaders: n,
            stack: n,
            regions: shape.regions,
            granules: shape.granules,
            settled: shape.granules,
            shape,
        })
    }

    pub(crate) fn shape(&self) -> Shape {
        self.shape
    }

    pub(crate) fn check(&self, work: &Work<'_>) -> Result<(), InputError> {
        let lengths = [
            ("marks", self.marks, work.marks.len()),
            ("leaders", self.leaders, work.leaders.len()),
            ("stack", self.stack.min(1), work.stack.len()),
            ("regions", self.regions, work.regions.len()),
            ("granules", self.granules, work.granules.len()),
            ("settled", self.settled, work.settled.len()),
        ];
        match lengths.into_iter().find(|(_, needed, given)| given < needed) {
            Some((field, needed, given)) => Err(InputError::WorkTooSmall { field, needed, given }),
            None => Ok(()),
        }
    }
}

/// Memory to work in, with any contents. [`WorkSizes`] tells how much.
#[derive(Debug)]
pub struct Work<'a> {
    /// What [`WorkSizes::for_blocks`] said of the very blocks that are marked: they are not looked at again.
    pub sizes: WorkSizes,
    /// One byte a block: what is known of it.
    pub marks: &'a [AtomicU8],
    /// One word of 32 bits a block: who leads an indirectly lost one.
    pub leaders: &'a [AtomicU32],
    /// The mark stack. If it is short, blocks wait in `marks` and are found again: slower, with equal kinds.
    pub stack: &'a [AtomicU32],
    /// Parts of the address space.
    pub regions: &'a mut [Region],
    /// Where blocks start.
    pub granules: &'a mut [Granule],
    /// For each granule, which of its blocks nothing more can be learnt about.
    pub settled: &'a [AtomicU64],
}
