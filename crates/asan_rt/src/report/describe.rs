//! What an address is: a block of the heap, a variable, a place in the shadow.

use super::{frame, stack, thread_name};
use crate::options::has_gcc_words;
use crate::output::Address;
use crate::shadow_map;
use crate::{depot, describe_threads, globals, heap, thread};

/// Prints what an address is. `what` is the word for the finding: some kinds add to what is said of globals.
pub fn describe(address: usize, access_bytes: usize, what: &str) {
    if describe_shadow(address) {
        return;
    }
    // The heap's own space, or a block around it; then stacks; then globals.
    if describe_heap(address, access_bytes) || frame::describe(address, access_bytes) {
        return;
    }
    if describe_globals(address, access_bytes, what) {
        return;
    }
    crate::out!(
        "Address {} is a wild pointer inside of access range of size {}.\n",
        Address(address),
        Address(access_bytes)
    );
}

fn describe_shadow(address: usize) -> bool {
    let area = match address {
        _ if shadow_map::is_gap(address) => "shadow gap",
        _ if shadow_map::is_shadow(address) && address < shadow_map::LOW_SHADOW_END => "low shadow",
        _ if shadow_map::is_shadow(address) => "high shadow",
        _ => return false,
    };
    crate::out!("Address {} is located in the {area} area.\n", Address(address));
    true
}

/// The words for where an address lies: gcc's library has others.
fn words(place: &'static str) -> &'static str {
    match place {
        "before" if has_gcc_words() => "to the left of",
        "after" if has_gcc_words() => "to the right of",
        _ => place,
    }
}

/// Prints where an address is, relative to a block: for the heap and for anything with bounds.
fn relation(address: usize, access_bytes: usize, start: usize, bytes: usize) -> (usize, usize, &'static str) {
    let end = start + bytes;
    if address < start {
        (address, start - address, "before")
    } else if address + access_bytes > end {
        // An access that begins inside is told by the first byte behind.
        (address.max(end), address.saturating_sub(end), "after")
    } else {
        (address, address - start, "inside of")
    }
}

/// Prints the block near an address, and its stacks. False when the heap has none there.
pub fn describe_heap(address: usize, access_bytes: usize) -> bool {
    if !heap::is_heap_space(address) {
        return false;
    }
    let Some(found) = heap::find_for_report(address, access_bytes) else { return false };
    let (start, bytes) = (found.user, found.facts.requested_bytes);
    let (shown, distance, place) = relation(address, access_bytes, start, bytes);
    crate::out!(
        "{} is located {distance} bytes {} {bytes}-byte region [{},{})\n",
        Address(shown),
        words(place),
        Address(start),
        Address(start + bytes)
    );
    let allocating = found.facts.thread;
    if found.facts.state == heap::State::Quarantined {
        let (release_stack, release_thread) = heap::Chunk(start).release();
        crate::out!("freed by thread {} here:\n", thread_name(release_thread));
        stack::print(&depot::frames(release_stack));
        crate::out!("previously allocated by thread {} here:\n", thread_name(allocating));
        stack::print(&depot::frames(found.facts.stack));
        describe_threads::describe(thread::current_number());
        describe_threads::describe(release_thread);
    } else {
        crate::out!("allocated by thread {} here:\n", thread_name(allocating));
        stack::print(&depot::frames(found.facts.stack));
        describe_threads::describe(thread::current_number());
    }
    describe_threads::describe(allocating);
    true
}

/// Prints the globals near an address. False when there are none.
pub fn describe_globals(address: usize, access_bytes: usize, what: &str) -> bool {
    let near = globals::near(address);
    for registered in &near {
        let global = &registered.global;
        let (shown, distance, place) = if address < global.start {
            (address, global.start - address, "before")
        } else if address + access_bytes > global.start + global.bytes {
            let end = global.start + global.bytes;
            (address.max(end), address.saturating_sub(end), "after")
        } else {
            (address, address - global.start, "inside of")
        };
        crate::out!(
            "{} is located {distance} bytes {} global variable '{}' defined in '{}' ({}) of size {}\n",
            Address(shown),
            words(place),
            crate::symbolize::demangle(global.name()),
            super::globals::place(global),
            Address(global.start),
            global.bytes
        );
        super::globals::print_text(global);
        if what == "initialization-order-fiasco" {
            crate::out!("  registered at:\n");
            stack::print(&depot::frames(registered.site));
        }
    }
    !near.is_empty()
}

/// `__asan_describe_address`.
pub fn describe_alone(address: usize) {
    describe(address, 1, "");
}
