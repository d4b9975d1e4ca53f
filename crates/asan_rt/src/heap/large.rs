//! Large blocks: each a span of pages of its own, in a part of the address space where a table tells the span of any
//! address.
//!
//! Spans are cut from 2 TiB of address space and used again by size; their pages go back to the kernel meanwhile.

use crate::shadow_map::{self, why};
use crate::sys::{self, Advice};
use core::cell::UnsafeCell;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU32, AtomicUsize};
use leakscope_rt::memory::{Lock, map_zeroed};

/// Where large blocks begin.
pub const BASE: usize = 0x5800_0000_0000;
const SPACE_BYTES: usize = 2 << 40;
/// One past the address space of large blocks.
pub const END: usize = BASE + SPACE_BYTES;
const UNIT_LOG2: usize = 16;
const UNIT: usize = 1 << UNIT_LOG2;
const UNITS: usize = SPACE_BYTES >> UNIT_LOG2;
/// Sizes are rounded up to an eighth of their power of two, so that spans fit again.
const BUCKETS: usize = 64 * 8;

struct State {
    next_unit: usize,
    /// First free span of each size, as unit + 1.
    free: [u32; BUCKETS],
}

struct Space {
    lock: Lock,
    /// For each unit: that of its span's start, plus 1; 0 where no span is. Then for span starts, the units; the next free span
    /// of the size; the pages that are mapped.
    table: AtomicUsize,
    used_units: AtomicUsize,
    state: UnsafeCell<State>,
}
// SAFETY: the state is only touched with the lock held.
unsafe impl Sync for Space {}

static SPACE: Space = Space {
    lock: Lock::new(),
    table: AtomicUsize::new(0),
    used_units: AtomicUsize::new(0),
    state: UnsafeCell::new(State { next_unit: 0, free: [0; BUCKETS] }),
};

/// Blocks of these sizes get huge pages: tables in which programs look around, each look a miss of small pages'
/// translations. Of larger ones programs often use a part only, which huge pages would make memory of.
const HUGE_PAGES: core::ops::RangeInclusive<usize> = 4 << 20..=64 << 20;

/// Bytes of live and quarantined large blocks.
pub static MAPPED_BYTES: AtomicUsize = AtomicUsize::new(0);

fn entry(table: usize, part: usize, unit: usize) -> Option<&'static AtomicU32> {
    if table == 0 || unit >= UNITS {
        return None;
    }
    // SAFETY: four arrays of UNITS words were mapped at `table` for good.
    Some(unsafe { &*((table + (part * UNITS + unit) * 4) as *const AtomicU32) })
}

fn entry_now(part: usize, unit: usize) -> Option<&'static AtomicU32> {
    entry(SPACE.table.load(Acquire), part, unit)
}

/// Reserves the address space.
pub fn reserve() -> bool {
    sys::map_free_range(BASE, SPACE_BYTES, false).is_ok()
}

/// Whether an address lies in this part of the address space.
#[inline(always)]
#[must_use]
pub fn contains(address: usize) -> bool {
    address.wrapping_sub(BASE) < SPACE_BYTES
}

fn units_for(bytes: usize) -> Option<usize> {
    let units = bytes.checked_add(UNIT - 1)? >> UNIT_LOG2;
    let step = (units.next_power_of_two() / 16).max(1);
    Some(units.next_multiple_of(step))
}

fn bucket_of(units: usize) -> usize {
    let log = (usize::BITS - 1 - units.leading_zeros()) as usize;
    let eighth = if log >= 3 { (units >> (log - 3)) & 7 } else { units & 7 };
    (log * 8 + eighth).min(BUCKETS - 1)
}

/// Maps a span for `bytes`; its start, and how many bytes it has. All of it is poisoned as a redzone; its bytes are 0.
#[cold]
#[inline(never)]
#[must_use]
pub fn take(bytes: usize) -> Option<(usize, usize)> {
    let units = units_for(bytes).filter(|&units| units < UNITS / 2)?;
    let limit = crate::options::options().mmap_limit_mb;
    let mapped = bytes.next_multiple_of(sys::PAGE);
    let all = MAPPED_BYTES.load(Relaxed) + super::regions::MAPPED_BYTES.load(Relaxed);
    if limit > 0 && all + mapped > (limit as usize) << 20 {
        super::over_mmap_limit(limit);
    }
    let unit = {
        let _held = SPACE.lock.lock();
        let mut table = SPACE.table.load(Acquire);
        if table == 0 {
            table = map_zeroed(UNITS * 16).ok()? as usize;
            SPACE.table.store(table, Release);
        }
        // SAFETY: the lock is held.
        let state = unsafe { &mut *SPACE.state.get() };
        let head = state.free.get_mut(bucket_of(units))?;
        match (*head as usize).checked_sub(1).filter(|&unit| span_units(unit) >= units) {
            Some(unit) => {
                *head = entry(table, 2, unit)?.load(Relaxed);
                unit
            }
            None => {
                let unit = state.next_unit;
                if unit + units > UNITS {
                    return None;
                }
                state.next_unit += units;
                entry(table, 1, unit)?.store(units as u32, Relaxed);
                SPACE.used_units.store(state.next_unit, Release);
                unit
            }
        }
    };
    let start = BASE + (unit << UNIT_LOG2);
    let span = span_units(unit) << UNIT_LOG2;
    // SAFETY: the span is ours alone.
    if unsafe { sys::map_at(start, mapped, true) }.is_err() {
        give_span(unit);
        return None;
    }
    if HUGE_PAGES.contains(&mapped) && crate::options::options().huge_pages {
        // SAFETY: fresh memory.
        unsafe { sys::advise(start, mapped, Advice::HugePage) };
    }
    MAPPED_BYTES.fetch_add(mapped, Relaxed);
    entry_now(3, unit)?.store((mapped / sys::PAGE) as u32, Release);
    for number in unit..unit + (span >> UNIT_LOG2) {
        entry_now(0, number)?.store(unit as u32 + 1, Release);
    }
    Some((start, mapped))
}

fn span_units(unit: usize) -> usize {
    entry_now(1, unit).map_or(0, |entry| entry.load(Relaxed) as usize)
}

/// Bytes that are mapped of the span that starts at `start`.
#[must_use]
pub fn mapped_bytes(start: usize) -> Option<usize> {
    Some(entry_now(3, (start - BASE) >> UNIT_LOG2)?.load(Acquire) as usize * sys::PAGE)
}

fn give_span(unit: usize) {
    let _held = SPACE.lock.lock();
    // SAFETY: the lock is held.
    let state = unsafe { &mut *SPACE.state.get() };
    if let (Some(head), Some(next)) = (state.free.get_mut(bucket_of(span_units(unit))), entry_now(2, unit)) {
        next.store(*head, Relaxed);
        *head = unit as u32 + 1;
    }
}

/// Notes for the units of a span that they belong to none. The table of a huge span gives its pages back.
fn forget_units(unit: usize, units: usize) {
    const WORTH_DROPPING: usize = 1 << 16;
    let table = SPACE.table.load(Acquire);
    let (first, last) = (table + unit * 4, table + (unit + units) * 4);
    let (first_page, last_page) = (first.next_multiple_of(sys::PAGE), last & !(sys::PAGE - 1));
    let is_huge = table != 0 && units >= WORTH_DROPPING;
    if is_huge {
        // SAFETY: whole pages of the table, of entries that all become zero.
        unsafe { sys::advise(first_page, last_page - first_page, Advice::DontNeed) };
    }
    for number in unit..unit + units {
        let at = table + number * 4;
        if is_huge && (first_page..last_page).contains(&at) {
            continue;
        }
        if let Some(entry) = entry(table, 0, number) {
            entry.store(0, Release);
        }
    }
}

/// Leaves a part of a free span to the program, which maps memory of its own there (by an address that it got from us
/// once); false when blocks may lie or come there.
pub fn cede(start: usize, bytes: usize) -> bool {
    if !contains(start) || bytes > SPACE_BYTES {
        return false;
    }
    let _held = SPACE.lock.lock();
    let (mut unit, wanted) = (0, (start - BASE) >> UNIT_LOG2);
    let used = SPACE.used_units.load(Acquire);
    while unit < used && unit + span_units(unit).max(1) <= wanted {
        unit += span_units(unit).max(1);
    }
    let units = span_units(unit);
    let is_free = unit < used && entry_now(0, unit).is_some_and(|entry| entry.load(Acquire) == 0);
    if !is_free || start + bytes > BASE + ((unit + units) << UNIT_LOG2) {
        return false;
    }
    // SAFETY: the lock is held.
    let state = unsafe { &mut *SPACE.state.get() };
    let Some(head) = state.free.get_mut(bucket_of(units)) else { return false };
    let next_of = |number: u32| entry_now(2, number as usize - 1).map_or(0, |next| next.load(Relaxed));
    let this = unit as u32 + 1;
    if *head == this {
        *head = next_of(this);
    }
    let mut at = *head;
    while at != 0 {
        let next = next_of(at);
        if next == this
            && let Some(link) = entry_now(2, at as usize - 1)
        {
            link.store(next_of(this), Relaxed);
        }
        at = next_of(at);
    }
    true
}

/// Gives a span back; its pages become inaccessible.
pub fn give(start: usize, mapped: usize) {
    let unit = (start - BASE) >> UNIT_LOG2;
    forget_units(unit, span_units(unit));
    // SAFETY: nobody uses the span any more.
    unsafe {
        let _ = sys::map_at(start, mapped, false);
        // What is not mapped needs no shadow.
        shadow_map::fill(start, mapped, 0);
    }
    MAPPED_BYTES.fetch_sub(mapped, Relaxed);
    give_span(unit);
}

/// Sets the shadow in front of and behind the user's part of a fresh span to that of redzones. What was given back
/// before has a shadow of zeroes, so the user's part needs none written.
///
/// # Safety
/// The span is fresh from [`take`], the user's part lies inside.
pub unsafe fn poison_ends(start: usize, mapped: usize, user: usize, bytes: usize) {
    let first_after = (user + bytes).next_multiple_of(8);
    // SAFETY: parts of the span.
    unsafe {
        shadow_map::fill(start, user - start, why::HEAP_REDZONE);
        if bytes & 7 != 0 {
            *(shadow_map::shadow_of(user + bytes) as *mut u8) = (bytes & 7) as u8;
        }
        shadow_map::fill(first_after, start + mapped - first_after, why::HEAP_REDZONE);
    }
}

/// Gives live blocks their redzones: until now `poison_heap` was off.
pub fn poison_existing() {
    for_each_span(|start| {
        let mapped = mapped_bytes(start).unwrap_or(0);
        // SAFETY: a mapped span.
        unsafe { super::poison_around(start, mapped, 1 << 44) };
    });
}

/// The unit of an address of a span.
pub fn unit_of(address: usize) -> u32 {
    ((address - BASE) >> UNIT_LOG2) as u32
}

/// The user's address of the block whose span holds a unit.
pub fn user_at_unit(unit: u32) -> Option<usize> {
    span_at(BASE + ((unit as usize) << UNIT_LOG2)).map(|start| super::chunk::of_block(start, 1 << 44).0)
}

/// The start of the span that holds an address.
#[must_use]
pub fn span_at(address: usize) -> Option<usize> {
    if !contains(address) {
        return None;
    }
    let start = entry_now(0, (address - BASE) >> UNIT_LOG2)?.load(Acquire).checked_sub(1)?;
    Some(BASE + ((start as usize) << UNIT_LOG2))
}

/// Calls `each(start)` for every mapped span, by rising address.
pub fn for_each_span(mut each: impl FnMut(usize)) {
    let mut unit = 0;
    while unit < SPACE.used_units.load(Acquire) {
        let units = span_units(unit).max(1);
        if entry_now(0, unit).is_some_and(|entry| entry.load(Acquire) != 0) {
            each(BASE + (unit << UNIT_LOG2));
        }
        unit += units;
    }
}

/// Lets the pages of a quarantined span go; its shadow stays poisoned.
///
/// # Safety
/// The range is whole pages of a block that has been released.
pub unsafe fn drop_pages(start: usize, bytes: usize) {
    // SAFETY: the caller vouches that the contents are not needed.
    unsafe { sys::advise(start, bytes, Advice::DontNeed) };
}

/// Takes the lock before a fork.
pub fn lock_all() {
    SPACE.lock.acquire();
}

/// Opens the lock after a fork.
pub fn unlock_all() {
    SPACE.lock.release();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_of_a_bucket_fit_each_other() {
        for units in 1..100_000usize {
            let rounded = units_for(units << UNIT_LOG2).expect("small");
            assert!(rounded >= units && rounded <= units + units / 7 + 1, "{units} {rounded}");
            assert!(bucket_of(rounded) < BUCKETS);
        }
    }
}
