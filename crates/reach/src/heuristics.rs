//! The four reasons to take an interior-pointer for a start-pointer.
//!
//! Source: Valgrind manual, `--leak-check-heuristics`, and Memcheck's behaviour: the order of the tests, and that a
//! word which cannot be read or is not aligned decides against the heuristic.

use leakscope_model::{Avma, Heuristic, HeuristicSet};

use crate::block::Block;
use crate::memory::Memory;

const WORD_BYTES: u64 = 8;
/// No table of virtual functions lies in the first page: spares the look-up for every small integer.
const PAGE_BYTES: u64 = 4096;
/// A table counts as one of virtual functions if so many functions stand in its first words ...
const VTABLE_FUNCTIONS: u32 = 2;
/// ... of which the last one looked at is this many bytes from the first.
const VTABLE_REACH_BYTES: u64 = 20 * WORD_BYTES;

/// The first heuristic of the set, in Memcheck's order, that accepts `pointer` into the interior of `block`.
pub(crate) fn accepts<M: Memory>(pointer: u64, block: Block, set: HeuristicSet, memory: &mut M) -> Option<Heuristic> {
    let start = block.start.0;
    let offset_bytes = pointer.wrapping_sub(start);
    let mut word = |at: u64| {
        if at.is_multiple_of(WORD_BYTES) { memory.word(Avma(at)) } else { None }
    };

    if set.contains(Heuristic::StdString) && offset_bytes == 3 * WORD_BYTES {
        // Length, capacity, reference count, text, a NUL.
        let capacity_bytes = word(start.wrapping_add(WORD_BYTES));
        let fits = capacity_bytes.filter(|c| c.wrapping_add(3 * WORD_BYTES + 1) == block.size_bytes);
        if let (Some(capacity_bytes), Some(length_bytes)) = (fits, word(start))
            && length_bytes <= capacity_bytes
        {
            return Some(Heuristic::StdString);
        }
    }
    if offset_bytes == WORD_BYTES {
        // An interior-pointer at offset 8, so the block has more than 8 bytes.
        let rest_bytes = block.size_bytes.wrapping_sub(WORD_BYTES);
        if let Some(first) = word(start).filter(|w| *w != 0) {
            if set.contains(Heuristic::Length64) && first == rest_bytes {
                return Some(Heuristic::Length64);
            }
            if set.contains(Heuristic::NewArray) && rest_bytes.is_multiple_of(first) {
                return Some(Heuristic::NewArray);
            }
        }
    }
    if set.contains(Heuristic::MultipleInheritance) {
        let may_be_vtable = |w: &u64| (*w).is_multiple_of(WORD_BYTES) && *w >= PAGE_BYTES;
        let inner = word(pointer).filter(may_be_vtable)?;
        let outer = word(start).filter(may_be_vtable)?;
        if is_vtable(inner, memory) && is_vtable(outer, memory) {
            return Some(Heuristic::MultipleInheritance);
        }
    }
    None
}

/// Whether a table of functions is at `address`: null words and pointers into code only, two of the latter.
fn is_vtable<M: Memory>(address: u64, memory: &mut M) -> bool {
    let Some(mapping) = memory.file_mapping(Avma(address)).filter(|m| m.readable) else {
        return false;
    };
    // Memcheck compares with the last byte's address less a word, so the mapping's very last word is never looked at.
    let limit = mapping.end.0.wrapping_sub(1 + WORD_BYTES).min(address.saturating_add(VTABLE_REACH_BYTES));
    let mut functions = 0;
    let mut at = address;
    while at <= limit {
        match memory.word(Avma(at)) {
            None => return false,
            Some(0) => {}
            Some(word) => {
                if !memory.file_mapping(Avma(word)).is_some_and(|m| m.executable) {
                    return false;
                }
                functions += 1;
                if functions == VTABLE_FUNCTIONS {
                    return true;
                }
            }
        }
        at = at.wrapping_add(WORD_BYTES);
    }
    false
}
