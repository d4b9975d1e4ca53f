//! The table of live blocks: one 32-bit word for each 32 bytes of heap, found by address.
//!
//! It keeps the layout of the heap as it would be without us (no headers), needs no lock and no search, and costs
//! an eighth of the heap. It rests on one fact that the hooks uphold: **starts of live blocks are at least 32 bytes
//! apart and 16-byte aligned**, and a block of more than [`SMALL_MAX`] bytes owns the following granule too.
//! glibc's chunks have that by themselves (n <= 40 takes 32 or 48 bytes, more takes 64); for other allocators the
//! hooks ask for at least [`forwarded_bytes`].
//!
//! ```text
//! start word   bit 31 = 0 | 30 freed | 29 side record | 28..23 size, or 63: in the next word | 22 start+16 | 21..0 site
//! size word    bit 31 = 1 | 30..0 requested bytes          (granule after the start word's)
//! 0            nothing starts in this granule
//! ```
//!
//! A freed block's start word stays, marked, until the address is used again: that is how a double free is known,
//! and how the leak check tells heap from other memory. Blocks of 2 GiB and more have their size in [`HUGE`].
//!
//! The table is private memory: `fork` gives the leak check a frozen copy for nothing.
//! May run in any thread and in signal handlers.

use crate::{hints, memory};
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, AtomicU64};

/// Largest request whose size fits the start word.
pub const SMALL_MAX: usize = 40;
/// Bytes of heap for one word.
pub const GRANULE: u64 = 32;
const REGION_SHIFT: u32 = 25;
/// Words of a region; one more follows for the size word of a block in the last granule.
pub const REGION_WORDS: usize = 1 << (REGION_SHIFT - 5);
/// Where a region's hints (see [`crate::hints`]) begin, in bytes.
const HINTS_AT: usize = REGION_WORDS * 4 + 4096;
/// Bytes of them: one for two granules.
const HINT_BYTES: usize = REGION_WORDS / 2;
const REGIONS: usize = 1 << (47 - REGION_SHIFT);
const SIZE_WORD: u32 = 1 << 31;
const FREED: u32 = 1 << 30;
const SIDE: u32 = 1 << 29;
const SIZE_SHIFT: u32 = 23;
const SIZE_NEXT: u32 = 63;
const UPPER_HALF: u32 = 1 << 22;
/// Sites that fit a word.
pub const MAX_SITE: u32 = (1 << 22) - 1;
/// Size word of a block whose size is in [`HUGE`].
const SIZE_HUGE: u32 = (1 << 31) - 1;

static REGION_TABLE: [AtomicPtr<AtomicU32>; REGIONS] = [const { AtomicPtr::new(core::ptr::null_mut()) }; REGIONS];
static LOWEST_REGION: AtomicU64 = AtomicU64::new(u64::MAX);
static HIGHEST_REGION: AtomicU64 = AtomicU64::new(0);

/// Blocks of 2 GiB and more: there is no program with many of them.
struct Huge {
    start: AtomicU64,
    bytes: AtomicU64,
}
static HUGE: [Huge; 1024] = [const { Huge { start: AtomicU64::new(0), bytes: AtomicU64::new(0) } }; 1024];

/// What the table knows of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockInfo {
    /// Address that the program got.
    pub start: u64,
    /// Requested bytes.
    pub bytes: u64,
    /// Allocation site number.
    pub site: u32,
    /// Whether it has been released.
    pub freed: bool,
    /// Whether its lifetime is being measured.
    pub side: bool,
}

/// What became of an attempt to release a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Taken {
    /// It was live and is now marked freed.
    Live(BlockInfo),
    /// A block started here and was released before.
    Freed(BlockInfo),
    /// No block is known to start here.
    Unknown,
}

/// Bytes to ask an allocator for which does not keep starts 32 bytes apart by itself.
#[inline]
pub fn forwarded_bytes(requested: usize) -> usize {
    if requested <= SMALL_MAX { if requested <= 32 { 32 } else { 48 } } else { requested.max(64) }
}

#[inline(always)]
fn region(address: u64) -> *mut AtomicU32 {
    REGION_TABLE[(address >> REGION_SHIFT) as usize & (REGIONS - 1)].load(Acquire)
}

#[inline(always)]
fn word_index(address: u64) -> usize {
    (address >> 5) as usize & (REGION_WORDS - 1)
}

/// A word of a region.
///
/// # Safety
/// `region` is a region's mapping and `index <= REGION_WORDS`.
#[inline(always)]
unsafe fn word(region: *mut AtomicU32, index: usize) -> &'static AtomicU32 {
    // SAFETY: regions are mapped with REGION_WORDS + 1 words and never unmapped.
    unsafe { &*region.add(index) }
}

#[cold]
#[inline(never)]
fn new_region(address: u64) -> *mut AtomicU32 {
    let slot = &REGION_TABLE[(address >> REGION_SHIFT) as usize & (REGIONS - 1)];
    if address >> 47 != 0 {
        return core::ptr::null_mut();
    }
    let Ok(fresh) = memory::map_aligned(HINTS_AT + HINT_BYTES, memory::HUGE_PAGE) else {
        return core::ptr::null_mut();
    };
    match slot.compare_exchange(core::ptr::null_mut(), fresh.cast(), AcqRel, Acquire) {
        Ok(_) => {
            LOWEST_REGION.fetch_min(address >> REGION_SHIFT, AcqRel);
            HIGHEST_REGION.fetch_max(address >> REGION_SHIFT, AcqRel);
            fresh.cast()
        }
        // Another thread was first. The spare mapping was never touched and stays as address space.
        Err(first) => first,
    }
}

/// Sampled allocations in a part of the heap after which its part of the table moves to a huge page.
const HUGE_AFTER: u8 = 32;
/// By 16 MiB of heap, which is what a huge page of the table covers.
static SAMPLES: [AtomicU8; 1 << (47 - 24)] = [const { AtomicU8::new(0) }; 1 << (47 - 24)];

/// Counts a sampled allocation. Where many blocks are, one entry of the processor's TLB for 16 MiB of heap is worth more
/// than the memory of the pages between.
#[cold]
pub fn sampled(start: u64) {
    let words = region(start);
    if words.is_null() {
        return;
    }
    if let Some(samples) = SAMPLES.get((start >> 24) as usize)
        && samples.load(Relaxed) < HUGE_AFTER
        && samples.fetch_add(1, Relaxed) == HUGE_AFTER - 1
    {
        memory::collapse((words as usize + word_index(start) * 4) & !(memory::HUGE_PAGE - 1));
    }
}

/// The byte of the hint at `start`; `None` where no block ever was.
#[inline(always)]
pub(crate) fn hint_byte(start: u64) -> Option<&'static AtomicU8> {
    let words = region(start);
    // SAFETY: `words` is the region of `start`.
    (!words.is_null()).then(|| unsafe { hint_in(words, start) })
}

/// The byte of the hint at `start`.
///
/// # Safety
/// `words` is the region of `start`.
#[inline(always)]
unsafe fn hint_in(words: *mut AtomicU32, start: u64) -> &'static AtomicU8 {
    // SAFETY: a region is mapped with HINT_BYTES bytes at HINTS_AT, and never unmapped.
    unsafe { &*words.cast::<AtomicU8>().add(HINTS_AT + ((start >> 6) as usize & (HINT_BYTES - 1))) }
}

/// As [`hints::claim`]; starts to load the table's word too.
#[inline(always)]
pub(crate) fn claim(start: u64, family: u8) -> bool {
    let words = region(start);
    if words.is_null() {
        return false;
    }
    prefetch_word(words, start);
    // SAFETY: `words` is the region of `start`.
    hints::claim_in(unsafe { hint_in(words, start) }, start, family)
}

/// Starts to load the table's word for a release of `start`: it is mostly cold.
#[inline(always)]
fn prefetch_word(words: *mut AtomicU32, start: u64) {
    memory::prefetch(words.wrapping_add(word_index(start)));
}

/// The site and the requested bytes of the block at `start`, for fetching what goes with it: they may be wrong.
#[inline(always)]
pub fn glance(start: u64) -> Option<(u32, u64)> {
    let words = region(start);
    if words.is_null() {
        return None;
    }
    let index = word_index(start);
    // SAFETY: `words` is a region, the index less than REGION_WORDS.
    let (entry, size) = unsafe { (word(words, index).load(Relaxed), word(words, index + 1).load(Relaxed)) };
    let code = entry >> SIZE_SHIFT & 63;
    Some((entry & MAX_SITE, u64::from(core::hint::select_unpredictable(code == SIZE_NEXT, size & !SIZE_WORD, code))))
}

/// Enters a block with a hint. False when there is no memory for the table; the block is then unknown.
///
/// `start` is 16-byte aligned, and the spacing rule of the module's head holds.
#[inline(always)]
pub fn insert(start: u64, bytes: usize, site: u32, side: bool, hint: u8) -> bool {
    let mut words = region(start);
    if words.is_null() {
        words = new_region(start);
        if words.is_null() {
            return false;
        }
    }
    let index = word_index(start);
    let large = bytes > SMALL_MAX;
    let mut size = bytes as u32;
    if bytes >= SIZE_HUGE as usize {
        size = insert_huge(start, bytes as u64);
    }
    let code = if large { SIZE_NEXT } else { size };
    let half = ((start >> 4) as u32 & 1) * UPPER_HALF;
    let entry = code << SIZE_SHIFT | half | (u32::from(side) * SIDE) | site & MAX_SITE;
    // Sizes are as good as random: the size word is stored without a branch, for a small block to nowhere.
    // SAFETY: `words` is a region, the index less than REGION_WORDS, so that of the next granule is at most that.
    let (slot, next) = unsafe { (word(words, index), word(words, index + 1)) };
    let nowhere = AtomicU32::new(0);
    core::hint::select_unpredictable(large, next, &nowhere).store(size | SIZE_WORD, Relaxed);
    slot.store(entry, Release);
    // SAFETY: `words` is the region of `start`.
    hints::set_in(unsafe { hint_in(words, start) }, start, hint);
    true
}

#[cold]
fn insert_huge(start: u64, bytes: u64) -> u32 {
    for slot in &HUGE {
        let seen = slot.start.load(Relaxed);
        if seen == start || (seen == 0 && slot.start.compare_exchange(0, start, AcqRel, Relaxed).is_ok()) {
            slot.bytes.store(bytes, Release);
            return SIZE_HUGE;
        }
    }
    SIZE_HUGE - 1
}

#[cold]
fn huge_bytes(start: u64) -> u64 {
    HUGE.iter()
        .find(|slot| slot.start.load(Acquire) == start)
        .map_or(u64::from(SIZE_HUGE), |slot| slot.bytes.load(Acquire))
}

/// Decodes the start word at `index` of `words`.
///
/// # Safety
/// As for [`word`] with `index < REGION_WORDS`.
#[inline(always)]
unsafe fn decode(words: *mut AtomicU32, index: usize, entry: u32, granule_start: u64) -> BlockInfo {
    let start = granule_start + u64::from(entry & UPPER_HALF) / u64::from(UPPER_HALF / 16);
    let code = entry >> SIZE_SHIFT & 63;
    // SAFETY: index + 1 <= REGION_WORDS.
    let size = unsafe { word(words, index + 1) }.load(Relaxed);
    // A freed block's size word may have become a start word of a newer block: then its size is not known.
    let large = if size & SIZE_WORD == 0 { 0 } else { size & !SIZE_WORD };
    let mut bytes = u64::from(core::hint::select_unpredictable(code == SIZE_NEXT, large, code));
    if bytes == u64::from(SIZE_HUGE) {
        bytes = huge_bytes(start);
    }
    BlockInfo { start, bytes, site: entry & MAX_SITE, freed: entry & FREED != 0, side: entry & SIDE != 0 }
}

/// Marks the block that starts at `start` as freed, and forgets its hint.
#[inline(always)]
pub fn take(start: u64) -> Taken {
    let taken = take_waiting(start);
    if matches!(taken, Taken::Live(_)) {
        hints::set(start, hints::NOTHING);
    }
    taken
}

/// As [`take`], for a block whose release has waited: its hint stays.
#[inline(always)]
pub fn take_waiting(start: u64) -> Taken {
    let words = region(start);
    if words.is_null() || start & 15 != 0 {
        return Taken::Unknown;
    }
    let index = word_index(start);
    // SAFETY: `words` is a region, the index less than REGION_WORDS.
    let slot = unsafe { word(words, index) };
    let entry = slot.load(Relaxed);
    let half = (start >> 4) as u32 % 2 * UPPER_HALF;
    if entry == 0 || entry & (SIZE_WORD | UPPER_HALF) != half {
        return Taken::Unknown;
    }
    // SAFETY: as above.
    let info = BlockInfo { start, ..unsafe { decode(words, index, entry, start & !(GRANULE - 1)) } };
    if info.freed {
        return Taken::Freed(info);
    }
    slot.store(entry | FREED, Release);
    Taken::Live(info)
}

/// Whether a live block is known to start at `start`: the cheap question of sampled mode.
#[inline(always)]
pub fn is_recorded(start: u64) -> bool {
    let words = region(start);
    if words.is_null() {
        return false;
    }
    // SAFETY: `words` is a region, the index less than REGION_WORDS.
    let entry = unsafe { word(words, word_index(start)) }.load(Relaxed);
    entry != 0 && entry & (SIZE_WORD | FREED) == 0 && (entry & UPPER_HALF != 0) == (start & 16 != 0)
}

/// Undoes [`take`]: the block turned out to stay (a `realloc` that failed).
pub fn put_back(start: u64) {
    let words = region(start);
    if !words.is_null() {
        // SAFETY: `words` is a region, the index less than REGION_WORDS.
        unsafe { word(words, word_index(start)) }.fetch_and(!FREED, AcqRel);
    }
}

/// The block that starts at `start`, live or freed.
pub fn lookup(start: u64) -> Option<BlockInfo> {
    find_covering(start, 0).filter(|info| info.start == start)
}

/// Puts another site in place of the one of a live or freed block.
pub fn set_site(start: u64, site: u32) {
    let words = region(start);
    if !words.is_null() {
        // SAFETY: `words` is a region, the index less than REGION_WORDS.
        let slot = unsafe { word(words, word_index(start)) };
        let entry = slot.load(Relaxed);
        if entry != 0 && entry & SIZE_WORD == 0 {
            slot.store(entry & !MAX_SITE | site & MAX_SITE, Release);
        }
    }
}

/// The nearest block at or below `address` that starts at most `reach_bytes` below it. The caller checks its size.
pub fn find_covering(address: u64, reach_bytes: u64) -> Option<BlockInfo> {
    let lowest = address.saturating_sub(reach_bytes) & !(GRANULE - 1);
    let mut granule = address & !(GRANULE - 1);
    loop {
        let words = region(granule);
        if words.is_null() {
            // Whole regions without blocks are passed over at once.
            granule &= !((1 << REGION_SHIFT) - 1);
        } else {
            let index = word_index(granule);
            // SAFETY: `words` is a region, the index less than REGION_WORDS.
            let entry = unsafe { word(words, index) }.load(Acquire);
            if entry != 0 && entry & SIZE_WORD == 0 {
                // SAFETY: as above.
                let info = unsafe { decode(words, index, entry, granule) };
                if info.start <= address {
                    return Some(info);
                }
            }
        }
        if granule <= lowest || granule < GRANULE {
            return None;
        }
        granule -= GRANULE;
    }
}

/// About how many blocks are live: from one word pair of each page of the table, each time at another place in it.
pub fn estimate_live() -> usize {
    const PAIRS: usize = 4096 / size_of::<u64>();
    let (low, high) = (LOWEST_REGION.load(Acquire), HIGHEST_REGION.load(Acquire));
    let mut seen = 0;
    let mut place = 0;
    for number in low..high.saturating_add(1) {
        let words = region(number << REGION_SHIFT);
        if words.is_null() {
            continue;
        }
        for page in 0..REGION_WORDS / 2 / PAIRS {
            place = (place + 197) % PAIRS;
            // SAFETY: a region has REGION_WORDS words and is page-aligned, so this is an aligned word pair.
            let both = unsafe { &*words.cast::<AtomicU64>().add(page * PAIRS + place) }.load(Relaxed);
            seen +=
                [both as u32, (both >> 32) as u32].iter().filter(|&&w| w != 0 && w & (SIZE_WORD | FREED) == 0).count();
        }
    }
    seen * PAIRS
}

/// Calls `each` for every known block, freed ones included, by rising address.
pub fn for_each(mut each: impl FnMut(BlockInfo)) {
    let (low, high) = (LOWEST_REGION.load(Acquire), HIGHEST_REGION.load(Acquire));
    if low > high {
        return;
    }
    for number in low..=high {
        let words = region(number << REGION_SHIFT);
        if words.is_null() {
            continue;
        }
        let base = number << REGION_SHIFT;
        for pair in 0..REGION_WORDS / 2 {
            // SAFETY: a region has REGION_WORDS words and is page-aligned, so this is an aligned word pair.
            let both = unsafe { &*words.cast::<AtomicU64>().add(pair) }.load(Relaxed);
            if both == 0 {
                continue;
            }
            for index in [pair * 2, pair * 2 + 1] {
                let entry = if index & 1 == 0 { both as u32 } else { (both >> 32) as u32 };
                if entry != 0 && entry & SIZE_WORD == 0 {
                    // SAFETY: index < REGION_WORDS.
                    each(unsafe { decode(words, index, entry, base + index as u64 * GRANULE) });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The table is one per process; each test keeps to addresses of its own.

    #[test]
    fn a_block_is_live_then_freed_then_unknown_elsewhere() {
        let base = 0x1000_0000_0000u64;
        assert_eq!(take(base), Taken::Unknown);
        assert!(insert(base + 16, 24, 7, false, hints::NOTHING));
        assert_eq!(take(base), Taken::Unknown);
        let info = BlockInfo { start: base + 16, bytes: 24, site: 7, freed: false, side: false };
        assert_eq!(take(base + 16), Taken::Live(info));
        assert_eq!(take(base + 16), Taken::Freed(BlockInfo { freed: true, ..info }));
        put_back(base + 16);
        assert_eq!(take(base + 16), Taken::Live(info));
    }

    #[test]
    fn live_blocks_are_estimated_without_reading_them_all() {
        let base = 0x1300_0000_0000u64;
        let before = estimate_live() as i64;
        let blocks = 400_000;
        for number in 0..blocks {
            assert!(insert(base + number * 208, 200, 7, false, hints::NOTHING));
        }
        let estimate = estimate_live() as i64 - before;
        assert!((estimate - blocks as i64).abs() < blocks as i64 / 10, "{estimate} of {blocks}");
        for number in 0..blocks {
            assert!(matches!(take(base + number * 208), Taken::Live(_)));
        }
        assert!(estimate_live() as i64 - before < blocks as i64 / 10, "released blocks do not count");
    }

    #[test]
    fn every_size_survives_and_the_last_granule_of_a_region_keeps_its_size_word() {
        let region_end = 0x1000_1000_0000u64;
        for (i, bytes) in [0usize, 1, 40, 41, 4096, (1 << 31) - 3, 1 << 31, 1 << 40].into_iter().enumerate() {
            let start = 0x1100_0000_0000 + i as u64 * 64;
            assert!(insert(start, bytes, i as u32 + 1, true, hints::NOTHING));
            assert_eq!(lookup(start).map(|info| (info.bytes, info.side)), Some((bytes as u64, true)));
        }
        assert!(insert(region_end - 32, 100, 3, false, hints::NOTHING));
        assert!(insert(region_end, 8, 4, false, hints::NOTHING));
        assert_eq!(lookup(region_end - 32).map(|info| info.bytes), Some(100));
        assert_eq!(lookup(region_end).map(|info| info.bytes), Some(8));
    }

    #[test]
    fn the_table_agrees_with_a_map_under_a_random_walk() {
        use std::collections::BTreeMap;
        let base = 0x1200_0000_0000u64;
        let mut model: BTreeMap<u64, (u64, u32)> = BTreeMap::new();
        let mut seed = 88_172_645_463_325_252u64;
        let mut random = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        for _ in 0..200_000 {
            // Starts on a 16-byte grid, at least 32 bytes or the block's size (rounded as glibc does) apart.
            let start = base + (random() % 4096) * 16;
            let bytes = random() % 200;
            let span = |bytes: u64| (bytes + 8).next_multiple_of(16).max(32);
            let free_above = model.range(start..).next().is_none_or(|(&next, _)| next >= start + span(bytes));
            let free_below = model.range(..start).next_back().is_none_or(|(&at, &(size, _))| at + span(size) <= start);
            if let Some((size, site)) = model.remove(&start) {
                let info = BlockInfo { start, bytes: size, site, freed: false, side: false };
                assert_eq!(take(start), Taken::Live(info));
            } else if free_above && free_below {
                let site = (random() % u64::from(MAX_SITE)) as u32;
                assert!(insert(start, bytes as usize, site, false, hints::NOTHING));
                model.insert(start, (bytes, site));
            } else {
                assert!(!matches!(take(start), Taken::Live(_)));
            }
        }
        let mut seen = Vec::new();
        for_each(|info| {
            if !info.freed && (base..base + 4096 * 16).contains(&info.start) {
                seen.push((info.start, (info.bytes, info.site)));
            }
        });
        assert_eq!(seen, model.into_iter().collect::<Vec<_>>());
    }
}
