//! The conservative mark phase: which heap blocks a program can still reach, and what leads to the lost ones.
//!
//! # The story
//!
//! The heap is a directed graph. Its nodes are the root set (the words of writable memory outside the heap, and
//! the registers) and the heap blocks. Its edges are pointers: any aligned word whose value lies in a block. A
//! *start-pointer* holds the address of the block's first byte, an *interior-pointer* one of the other bytes. A
//! block of size 0 counts as one byte long here, so that a pointer can lead to it at all. Words at addresses that
//! are not multiples of 8 are no pointers, and neither is the address one past a block's end.
//!
//! 1. **Marking** ([`mark`]). Every root is read, in the order given, then the registers; each block that a root
//!    points to goes on the mark stack, and each block on the stack is scanned in turn. A block is *still
//!    reachable* if a chain of start-pointers leads to it, *possibly lost* if every chain uses an
//!    interior-pointer. A block that was seen as possibly lost and turns out to be reachable is scanned again,
//!    because what it points to improves too. The heuristics turn certain interior-pointers into start-pointers:
//!    those that C++ compilers and some libraries make on purpose.
//! 2. **Cliques.** What remains is lost. In order of address, each block that is still unreached gathers every
//!    unreached block that it leads to, over pointers of either sort: those are *indirectly lost* and it is their
//!    *leader*, *definitely lost*. When a later leader finds a pointer to an earlier one, it gathers that as well,
//!    with all that it had gathered before. Blocks that were gathered are not scanned again, so a leader to which only
//!    blocks of its own clique point stays one, even if a later clique leads there. Hence of a lost cycle at most the
//!    block with the lowest address is definitely lost, and no block is in two cliques.
//! 3. **Records** ([`Marked::aggregate`]). Blocks are merged by leak kind and allocation site. A record of
//!    definitely lost blocks also counts the blocks and bytes that its leaders gathered; those appear in their own
//!    indirectly lost records too.
//!
//! Source: Valgrind manual, section 4.2.8, and the behaviour of Memcheck 3.19, which this reproduces block by block.
//!
//! # Order, and several workers
//!
//! Kinds, leaders and the heuristics that are named do not depend on the order in which blocks are visited. So blocks
//! are scanned in groups whose cache misses overlap, and several workers can mark at once ([`mark_together`]): marks
//! only ever rise. Which heuristic is named for a block that several accept is the one difference to Memcheck, where it
//! is the last one found: only the totals by heuristic could tell.
//!
//! # Where it may run
//!
//! Anywhere, a signal handler and a forked copy of the target included: no I/O, no allocation, no panic on any
//! input, about 20 KiB of stack. All memory comes from the caller as slices ([`Work`]); the caller also reads the
//! target's memory ([`Memory`]).
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod aggregate;
mod batch;
mod block;
mod crew;
mod heuristics;
mod index;
mod mark;
mod marked;
mod memory;
mod queue;
mod stack;
mod work;

pub use aggregate::{Aggregate, LossRecord, Tally};
pub use block::{Block, Blocks, InputError};
pub use crew::Crew;
pub use index::{Granule, Region};
pub use mark::{Roots, mark, mark_together};
pub use marked::{Marked, Stats};
pub use memory::{FileMapping, Memory};
pub use work::{Work, WorkSizes};
