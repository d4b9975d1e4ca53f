//! Blocks of size classes: each class has 32 GiB of address space of its own, so that any address tells its class
//! and its block by arithmetic.
//!
//! Free blocks are known by a stack of numbers at the end of the region, not by links in the blocks: what a program
//! writes after a release cannot lead us astray.

use super::classes::{COUNT, block_start, size_of, size_of_class};
use crate::shadow_map::{self, why};
use crate::sys::{self, Advice};
use core::cell::UnsafeCell;
use core::sync::atomic::AtomicUsize;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use leakscope_rt::memory::{Lock, map_slice, unmap_slice};

/// Where the regions begin.
pub const BASE: usize = 0x5000_0000_0000;
const REGION_LOG2: usize = 35;
const REGION_BYTES: usize = 1 << REGION_LOG2;
/// One past the last region.
pub const END: usize = BASE + COUNT * REGION_BYTES;
/// Part of a region for blocks; the rest is the stack of free ones.
const BLOCKS_BYTES: usize = REGION_BYTES / 8 * 7;
/// How much is made accessible at a time, at most: as much as there is already, so that a class of few blocks takes few
/// pages.
const STEP: usize = 256 << 10;
/// And at least: the memory of one page of shadow.
const SMALLEST_STEP: usize = sys::PAGE << shadow_map::SCALE;
/// A class of small blocks that has this much will need more: its pages come at once, so many bytes at a time.
const FILLED_STEP: usize = 64 << 10;
const MOST_FILLED_BLOCK: usize = 8 << 10;
/// So many bytes at least, and so many eighths of its region, have been given back since a class last looked for free
/// pages before it looks again.
const WORTH_A_LOOK: usize = 1 << 20;
/// What follows the last block is a redzone as well.
const TAIL_BYTES: usize = sys::PAGE;
/// At the start of a region nothing is handed out: what reaches far in front of its first block is still a redzone.
const FRONT_BYTES: usize = 16 << 10;

struct State {
    /// Bytes that are accessible and poisoned.
    ready: usize,
    /// Entries of the stack of free blocks that are accessible.
    stack_ready: usize,
    free: usize,
    /// Bytes of blocks that came back since the last look for free pages.
    returned_bytes: usize,
    /// When that was, how often pages were released, and how many bytes the last time.
    last_look_ms: u64,
    releases: usize,
    last_released_bytes: usize,
}

impl State {
    const NEW: Self = Self {
        ready: 0,
        stack_ready: 0,
        free: 0,
        returned_bytes: 0,
        last_look_ms: 0,
        releases: 0,
        last_released_bytes: 0,
    };
}

struct Region {
    lock: Lock,
    /// Bytes handed out at least once.
    used: AtomicUsize,
    state: UnsafeCell<State>,
}
// SAFETY: the state is only touched with the lock held.
unsafe impl Sync for Region {}

static REGIONS: [Region; COUNT] =
    [const { Region { lock: Lock::new(), used: AtomicUsize::new(0), state: UnsafeCell::new(State::NEW) } }; COUNT];

/// Bytes made accessible so far, for the heap's statistics.
pub static MAPPED_BYTES: AtomicUsize = AtomicUsize::new(0);

/// Reserves the address space.
pub fn reserve() -> bool {
    sys::map_free_range(BASE, COUNT * REGION_BYTES, false).is_ok()
}

/// Whether an address lies in a region.
#[inline(always)]
#[must_use]
pub fn contains(address: usize) -> bool {
    address.wrapping_sub(BASE) < COUNT * REGION_BYTES
}

/// The class of the region that holds an address.
#[inline(always)]
#[must_use]
pub fn class_at(address: usize) -> usize {
    address.wrapping_sub(BASE) >> REGION_LOG2
}

/// Start of a region.
#[inline(always)]
fn start_of(class: usize) -> usize {
    BASE + (class << REGION_LOG2)
}

/// The block that holds an address, if it was ever handed out.
#[must_use]
pub fn block_at(address: usize) -> Option<(usize, usize)> {
    if !contains(address) {
        return None;
    }
    let class = class_at(address);
    let size = size_of(class);
    let start = start_of(class);
    let block = start + block_start(class, address - start);
    let is_used = block + size - start <= REGIONS.get(class)?.used.load(Acquire);
    (is_used && block - start >= FRONT_BYTES.next_multiple_of(size)).then_some((block, size))
}

/// Whether a header can lie in front of an address: the memory there is accessible.
#[inline(always)]
#[must_use]
pub fn may_have_header(address: usize) -> bool {
    let class = class_at(address);
    let offset = address - start_of(class);
    REGIONS.get(class).is_some_and(|region| offset < region.used.load(Acquire)) && offset >= FRONT_BYTES + 16
}

/// What a thread keeps of free blocks is the distance from the region's start in units of 16 bytes.
#[inline(always)]
#[must_use]
pub fn pack(class: usize, block: usize) -> u32 {
    ((block - start_of(class)) >> 4) as u32
}

/// The opposite of [`pack`].
#[inline(always)]
#[must_use]
pub fn unpack(class: usize, packed: u32) -> usize {
    start_of(class) + ((packed as usize) << 4)
}

fn stack_of(class: usize) -> *mut u32 {
    (start_of(class) + BLOCKS_BYTES) as *mut u32
}

/// Fills `out` with free blocks; gives how many. 0: no memory.
#[cold]
#[inline(never)]
pub fn take(class: usize, out: &mut [u32]) -> usize {
    let Some(region) = REGIONS.get(class) else { return 0 };
    let _held = region.lock.lock();
    // SAFETY: the lock is held.
    let state = unsafe { &mut *region.state.get() };
    let mut taken = 0;
    while taken < out.len() && state.free > 0 {
        state.free -= 1;
        // SAFETY: entries below `free` were written.
        let packed = unsafe { *stack_of(class).add(state.free) };
        if let Some(slot) = out.get_mut(taken) {
            *slot = packed;
        }
        taken += 1;
    }
    if taken > 0 {
        return taken;
    }
    let size = size_of_class(class);
    let mut used = region.used.load(Relaxed);
    if used == 0 {
        used = FRONT_BYTES.next_multiple_of(size);
    }
    let wanted = out.len().min((STEP / size).max(1));
    let mut now = used;
    for slot in out.iter_mut().take(wanted) {
        if now + size + TAIL_BYTES > state.ready && !make_ready(class, state, now + size + TAIL_BYTES) {
            break;
        }
        *slot = (now >> 4) as u32;
        now += size;
        taken += 1;
    }
    // Handed out from the end: what is popped first is the lowest.
    if let Some(fresh) = out.get_mut(..taken) {
        fresh.reverse();
    }
    region.used.store(now, Release);
    taken
}

fn make_ready(class: usize, state: &mut State, needed: usize) -> bool {
    let from = start_of(class) + state.ready;
    let is_filled = state.ready >= 2 * FILLED_STEP && size_of(class) <= MOST_FILLED_BLOCK;
    let step = if is_filled { FILLED_STEP } else { state.ready.next_multiple_of(SMALLEST_STEP) };
    let step = step.clamp(SMALLEST_STEP, STEP);
    let bytes = (needed - state.ready).next_multiple_of(step);
    if state.ready + bytes > BLOCKS_BYTES {
        return false;
    }
    let limit = crate::options::options().mmap_limit_mb;
    if limit > 0 && MAPPED_BYTES.load(Relaxed) + bytes > (limit as usize) << 20 {
        super::over_mmap_limit(limit);
    }
    // SAFETY: the rest of this region is reserved and unused; its shadow is ours to set.
    unsafe {
        let mapped = if is_filled { sys::map_filled_at(from, bytes) } else { sys::map_at(from, bytes, true) };
        if mapped.is_err() {
            return false;
        }
        if crate::options::options().poison_heap {
            shadow_map::fill(from, bytes, why::HEAP_REDZONE);
        }
    }
    MAPPED_BYTES.fetch_add(bytes, Relaxed);
    state.ready += bytes;
    true
}

/// Takes blocks back.
#[cold]
#[inline(never)]
pub fn give(class: usize, blocks: &[u32]) {
    let Some(region) = REGIONS.get(class) else { return };
    let _held = region.lock.lock();
    // SAFETY: the lock is held.
    let state = unsafe { &mut *region.state.get() };
    let needed = state.free + blocks.len();
    if needed > state.stack_ready {
        let more = (needed - state.stack_ready).next_multiple_of(STEP / 4);
        let from = stack_of(class) as usize + state.stack_ready * 4;
        // SAFETY: the end of the region is reserved for this.
        if unsafe { sys::map_at(from, more * 4, true) }.is_err() {
            // The blocks are lost, not the program.
            return;
        }
        state.stack_ready += more;
    }
    for (i, packed) in blocks.iter().enumerate() {
        // SAFETY: accessible, see above.
        unsafe { *stack_of(class).add(state.free + i) = *packed };
    }
    state.free = needed;
    state.returned_bytes += blocks.len() * size_of(class);
    let interval_ms = crate::options::options().allocator_release_to_os_interval_ms;
    let used = region.used.load(Relaxed);
    if state.returned_bytes >= WORTH_A_LOOK.max(used / 8) && interval_ms >= 0 {
        if crate::sys::now_ms().saturating_sub(state.last_look_ms) >= interval_ms as u64 {
            release_pages(class, state, used);
        } else {
            // Too early: the clock is asked again after some more.
            state.returned_bytes -= WORTH_A_LOOK / 4;
        }
    }
}

/// Lets pages go that lie wholly in free blocks; they read as zero when they are next used.
#[cold]
#[inline(never)]
fn release_pages(class: usize, state: &mut State, used: usize) {
    state.returned_bytes = 0;
    state.last_look_ms = sys::now_ms();
    let (start, size) = (start_of(class), size_of_class(class));
    // SAFETY: numbers, for which zero bytes are valid.
    let Some(free_bytes) = (unsafe { map_slice::<u16>(used.div_ceil(sys::PAGE), false) }) else { return };
    for number in 0..state.free {
        // SAFETY: entries below `free` were written.
        let mut at = unpack(class, unsafe { *stack_of(class).add(number) }) - start;
        let end = at + size;
        while at < end {
            let part = end.min((at / sys::PAGE + 1) * sys::PAGE) - at;
            if let Some(bytes) = free_bytes.get_mut(at / sys::PAGE) {
                *bytes += part as u16;
            }
            at += part;
        }
    }
    let (mut page, mut released) = (0, 0);
    for run in free_bytes.chunk_by(|a, b| (usize::from(*a) == sys::PAGE) == (usize::from(*b) == sys::PAGE)) {
        if run.first().is_some_and(|&bytes| usize::from(bytes) == sys::PAGE) {
            // SAFETY: whole pages of blocks that nobody has; the region's lock is held, so nobody gets them now.
            unsafe { sys::advise(start + page * sys::PAGE, run.len() * sys::PAGE, Advice::DontNeed) };
            released += run.len() * sys::PAGE;
        }
        page += run.len();
    }
    // SAFETY: mapped above; nobody refers to it any more.
    unsafe { unmap_slice(free_bytes) };
    if released > 0 {
        state.releases += 1;
        state.last_released_bytes = released;
    }
}

/// Lets the free pages of all classes go, however long ago that was done last.
pub fn release_all_pages() {
    for (class, region) in REGIONS.iter().enumerate() {
        let _held = region.lock.lock();
        // SAFETY: the lock is held.
        let state = unsafe { &mut *region.state.get() };
        release_pages(class, state, region.used.load(Relaxed));
    }
}

/// What statistics say of a class.
pub struct ClassFacts {
    /// Its number, and the bytes of its blocks.
    pub class: usize,
    /// Bytes of a block.
    pub block_bytes: usize,
    /// Bytes of memory that it has taken so far.
    pub mapped_bytes: usize,
    /// Blocks that were handed out at least once, and those of them that are free now; threads' caches count as handed out.
    pub blocks: usize,
    /// See `blocks`.
    pub free_blocks: usize,
    /// How often pages were released.
    pub releases: usize,
    /// How many bytes the last time.
    pub last_released_bytes: usize,
    /// Where its region is.
    pub start: usize,
}

/// Calls `each` for every class that has been used.
pub fn for_each_class(mut each: impl FnMut(ClassFacts)) {
    for (class, region) in REGIONS.iter().enumerate() {
        let used = region.used.load(Acquire);
        if used == 0 {
            continue;
        }
        let _held = region.lock.lock();
        // SAFETY: the lock is held.
        let state = unsafe { &*region.state.get() };
        let block_bytes = size_of_class(class);
        each(ClassFacts {
            class,
            block_bytes,
            mapped_bytes: state.ready,
            blocks: used.saturating_sub(FRONT_BYTES.next_multiple_of(block_bytes)) / block_bytes,
            free_blocks: state.free,
            releases: state.releases,
            last_released_bytes: state.last_released_bytes,
            start: start_of(class),
        });
    }
}

/// Calls `each(block, bytes)` for every block that was ever handed out, by rising address.
pub fn for_each_block(mut each: impl FnMut(usize, usize)) {
    for (class, region) in REGIONS.iter().enumerate() {
        let (size, start) = (size_of_class(class), start_of(class));
        let used = region.used.load(Acquire);
        let mut at = FRONT_BYTES.next_multiple_of(size);
        while at + size <= used {
            each(start + at, size);
            at += size;
        }
    }
}

/// Poisons everything but the bytes of live blocks: until now `poison_heap` was off.
pub fn poison_existing() {
    for (class, region) in REGIONS.iter().enumerate() {
        let _held = region.lock.lock();
        // SAFETY: the lock is held.
        let ready = unsafe { (*region.state.get()).ready };
        let (size, start) = (size_of_class(class), start_of(class));
        let used = region.used.load(Relaxed);
        let first = FRONT_BYTES.next_multiple_of(size).min(ready);
        let end = used.max(first);
        // SAFETY: accessible parts of the region outside of all blocks, and its blocks.
        unsafe {
            shadow_map::fill(start, first, why::HEAP_REDZONE);
            shadow_map::fill(start + end, ready - end, why::HEAP_REDZONE);
            for block in (first..used).step_by(size) {
                super::poison_around(start + block, size, size);
            }
        }
    }
}

/// Takes every lock before a fork.
pub fn lock_all() {
    for region in &REGIONS {
        region.lock.acquire();
    }
}

/// Opens every lock after a fork.
pub fn unlock_all() {
    for region in &REGIONS {
        region.lock.release();
    }
}
