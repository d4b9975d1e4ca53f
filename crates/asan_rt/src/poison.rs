//! Poisoning on request: by the program, by containers, by instrumented code.

use crate::options::options;
use crate::shadow_map::{self, has_shadow, is_poisoned, is_program, shadow_byte, shadow_of, why};

fn set(shadow: usize, value: u8) {
    // SAFETY: callers saw that the address is the program's.
    unsafe { *(shadow as *mut u8) = value };
}

/// Poisons (`is_poison`) or unpoisons `bytes` from `start`, both any number. At the ends, granules that hold other
/// bytes too keep what can be kept: only the front of a granule can be addressable.
fn mark(start: usize, bytes: usize, is_poison: bool) {
    if bytes == 0 || !options().allow_user_poisoning || !has_shadow(start) || !has_shadow(start + bytes - 1) {
        return;
    }
    let end = start + bytes;
    let (first, last) = (start & !7, end & !7);
    let (first_offset, last_offset) = ((start & 7) as u8, (end & 7) as u8);
    let (first_byte, last_byte) = (shadow_byte(first), if last_offset != 0 { shadow_byte(last) } else { 0 });
    if first == last {
        // Inside one granule.
        let in_front = first_byte > 0 && first_byte < 128 && first_byte <= last_offset;
        if is_poison {
            if first_byte == 0 || first_byte < 128 {
                // What lies behind stays good only if the mark reaches its end.
                let reaches_end = first_byte != 0 && in_front || last_offset == 0;
                if reaches_end {
                    set(shadow_of(first), if first_offset == 0 { why::USER_POISONED } else { first_offset });
                }
            }
        } else if first_byte != 0 {
            set(shadow_of(first), if first_byte < 128 { first_byte.max(last_offset) } else { last_offset });
        }
        return;
    }
    let mut whole = first;
    if first_offset != 0 {
        let new = match (is_poison, first_byte) {
            (true, 0) => first_offset,
            (true, byte) if byte < 128 => byte.min(first_offset),
            (true, byte) => byte,
            (false, _) => 0,
        };
        set(shadow_of(first), new);
        whole += 8;
    }
    // SAFETY: whole granules of the program's memory.
    unsafe { shadow_map::fill(whole, last - whole, if is_poison { why::USER_POISONED } else { 0 }) };
    if last_offset == 0 {
        return;
    }
    if is_poison {
        if last_byte > 0 && last_byte < 128 && last_byte <= last_offset {
            set(shadow_of(last), why::USER_POISONED);
        }
    } else if last_byte != 0 {
        set(shadow_of(last), if last_byte < 128 { last_byte.max(last_offset) } else { last_offset });
    }
}

/// `__asan_poison_memory_region`.
pub fn poison(start: usize, bytes: usize) {
    mark(start, bytes, true);
}

/// `__asan_unpoison_memory_region`.
pub fn unpoison(start: usize, bytes: usize) {
    mark(start, bytes, false);
}

/// Sets the shadow of a container's storage of which `new` is in use.
///
/// Only the front of a granule can be good alone. So in the granule where the used part begins, what lies before it is
/// good too; where the storage ends inside a granule whose rest is good (somebody else's), all of that stays good; and
/// the granule where the storage begins keeps its front.
fn annotate((begin, end): (usize, usize), (used_begin, used_end): (usize, usize)) {
    let is_tail_good = end & 7 != 0 && !is_poisoned(end);
    let mut granule = begin & !7;
    while granule < end {
        let next = granule + 8;
        let is_used = used_begin < used_end && used_begin < next && used_end > granule;
        let byte = shadow_byte(granule);
        let front = (begin.max(granule) - granule) as u8;
        let new = if next > end && is_tail_good {
            byte
        } else if is_used {
            if used_end >= next { 0 } else { (used_end - granule) as u8 }
        } else if front == 0 {
            why::CONTAINER
        } else if byte == 0 || (byte < 128 && byte >= front) {
            front
        } else {
            byte
        };
        set(shadow_of(granule), new);
        granule = next;
    }
}

/// `__sanitizer_annotate_contiguous_container`; false when the bounds are in the wrong order.
#[must_use]
pub fn annotate_container(begin: usize, end: usize, old_middle: usize, new_middle: usize) -> bool {
    if !options().detect_container_overflow {
        return true;
    }
    let in_order = begin <= old_middle && begin <= new_middle && old_middle <= end && new_middle <= end && begin <= end;
    if !in_order {
        return false;
    }
    if old_middle != new_middle {
        annotate((begin, end), (begin, new_middle));
    }
    true
}

/// `__sanitizer_annotate_double_ended_contiguous_container`; false when the bounds are in the wrong order.
#[must_use]
pub fn annotate_double_ended(bounds: [usize; 6]) -> bool {
    let [begin, end, old_begin, old_end, new_begin, new_end] = bounds;
    if !options().detect_container_overflow {
        return true;
    }
    let in_order = begin <= end
        && begin <= old_begin
        && old_begin <= old_end
        && old_end <= end
        && begin <= new_begin
        && new_begin <= new_end
        && new_end <= end;
    if !in_order {
        return false;
    }
    if (old_begin, old_end) != (new_begin, new_end) {
        annotate((begin, end), (new_begin, new_end));
    }
    true
}

/// The first byte of a container whose state is not what [`annotate`] makes of these bounds; 0 if all are.
#[must_use]
pub fn find_bad_in_container(begin: usize, used_begin: usize, used_end: usize, end: usize) -> usize {
    if !options().detect_container_overflow {
        return 0;
    }
    let checked_end = if end & 7 != 0 && !is_poisoned(end) { (end & !7).max(begin) } else { end };
    let good = if used_begin < used_end { (used_begin & !7).max(begin)..used_end } else { 0..0 };
    (begin..checked_end).find(|address| is_poisoned(*address) == good.contains(address)).unwrap_or(0)
}

/// `__asan_poison_cxx_array_cookie`: the word in front of a `new[]` with destructors.
pub fn poison_array_cookie(address: usize) {
    if options().poison_array_cookie && is_program(address) {
        set(shadow_of(address), why::ARRAY_COOKIE);
    }
}

/// `__asan_load_cxx_array_cookie`: the count, 0 when the block has been released.
///
/// # Safety
/// `at` is the address of a cookie.
#[must_use]
pub unsafe fn load_array_cookie(at: usize) -> usize {
    match shadow_byte(at) {
        why::HEAP_FREED if options().poison_array_cookie => {
            crate::out_pid!("AddressSanitizer: loaded array cookie from free-d memory; expect a double-free report\n");
            return 0;
        }
        // Not ours to judge: the class has an operator new of its own.
        _ => {}
    }
    // SAFETY: the caller's.
    unsafe { *(at as *const usize) }
}

/// Bytes of redzone around a dynamic variable.
const ALLOCA_REDZONE: usize = 32;

/// `__asan_alloca_poison`.
pub fn poison_alloca(start: usize, bytes: usize) {
    let end = start + bytes;
    let partial = end & (ALLOCA_REDZONE - 1);
    let right = end.next_multiple_of(ALLOCA_REDZONE);
    // SAFETY: the compiler laid out these redzones.
    unsafe {
        shadow_map::fill(start - ALLOCA_REDZONE, ALLOCA_REDZONE, why::ALLOCA_LEFT);
        if partial != 0 {
            let whole = end & !7;
            shadow_map::fill(whole, right - whole, why::ALLOCA_RIGHT);
            if end & 7 != 0 {
                set(shadow_of(whole), (end & 7) as u8);
            }
        }
        shadow_map::fill(right, ALLOCA_REDZONE, why::ALLOCA_RIGHT);
    }
}

/// `__asan_allocas_unpoison`: everything between the top of the stack and where the variables began.
pub fn unpoison_allocas(top: usize, bottom: usize) {
    if top != 0 && top <= bottom {
        // SAFETY: the compiler's stack range.
        unsafe { shadow_map::fill(top & !7, (bottom - top).next_multiple_of(8), 0) };
    }
}

/// The room between two fields; its start need not be a multiple of 8, its end is.
pub fn set_intra_object(start: usize, bytes: usize, is_poison: bool) {
    let end = start + bytes;
    let first = start.next_multiple_of(8);
    if first != start {
        set(shadow_of(start), if is_poison { (start & 7) as u8 } else { 0 });
    }
    if end > first {
        // SAFETY: inside an object of the program's.
        unsafe { shadow_map::fill(first, end - first, if is_poison { why::INTRA_OBJECT } else { 0 }) };
    }
}
