//! Whether two pointers belong to one object.

use crate::shadow_map::{first_poisoned, is_program};
use crate::{globals, heap, thread};

/// Pointers that are near each other and with nothing poisoned in between need no look at objects.
const NEAR: usize = 2048;

/// Whether a comparison or difference of two pointers means nothing.
#[must_use]
pub fn is_invalid(first: usize, second: usize) -> bool {
    let (left, right) = (first.min(second), first.max(second));
    if right - left <= NEAR && is_program(left) {
        return first_poisoned(left, right - left).is_some();
    }
    // One of them in the heap: both in one block, one past its end included.
    let block_of = |address: usize| {
        heap::find(address)
            .filter(|found| {
                found.facts.state == heap::State::Allocated
                    && address >= found.user
                    && address <= found.user + found.facts.requested_bytes
            })
            .map(|found| found.user)
    };
    let (left_block, right_block) = (block_of(left), block_of(right));
    if left_block.is_some() || right_block.is_some() {
        return left_block != right_block;
    }
    // Of stacks only the calling thread's is looked at.
    let me = thread::current_number();
    let on_own_stack =
        |address: usize| thread::find_by_stack_address(address).is_some_and(|found| found.context.number == me);
    let variable_of = |address: usize| crate::report::frame::locate(address).map(|(_, start, _)| start);
    match (on_own_stack(left), on_own_stack(right)) {
        (true, true) => return variable_of(left) != variable_of(right),
        (false, false) => {}
        _ => return true,
    }
    let global_of = |address: usize| {
        globals::near(address)
            .iter()
            .map(|registered| registered.global)
            .find(|global| (global.start..=global.start + global.bytes).contains(&address))
            .map(|global| global.start)
    };
    match (global_of(left), global_of(right)) {
        (Some(a), Some(b)) => a != b,
        (None, None) => false,
        _ => true,
    }
}
