//! Memory of our own inside the target: anonymous mappings, never the target's heap.
//!
//! Every mapping is registered, so that the leak check can leave it out of the root set. Nothing is ever unmapped
//! except by the function that mapped it.

use crate::raw::{self, Errno, call, nr};
use core::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

const PROT_READ_WRITE: usize = 3;
const MAP_SHARED: usize = 1;
const MAP_PRIVATE: usize = 2;
const MAP_ANONYMOUS: usize = 0x20;
const MAP_NORESERVE: usize = 0x4000;

/// Bytes of a huge page.
pub const HUGE_PAGE: usize = 2 << 20;

/// Most mappings of our own that are remembered.
const MAX_MAPPINGS: usize = 1 << 14;

/// A mapping of ours.
struct Mapping {
    start: AtomicU64,
    bytes: AtomicU64,
}

static MAPPINGS: [Mapping; MAX_MAPPINGS] =
    [const { Mapping { start: AtomicU64::new(0), bytes: AtomicU64::new(0) } }; MAX_MAPPINGS];
static MAPPING_COUNT: AtomicU32 = AtomicU32::new(0);

fn register(start: u64, bytes: u64) {
    let count = (MAPPING_COUNT.load(Acquire) as usize).min(MAX_MAPPINGS);
    // Slots that were given back serve again; the last 64 are where they are.
    for mapping in &MAPPINGS[count.saturating_sub(64)..count] {
        if mapping.start.load(Relaxed) == 0 && mapping.start.compare_exchange(0, 1, AcqRel, Relaxed).is_ok() {
            mapping.bytes.store(bytes, Relaxed);
            mapping.start.store(start, Release);
            return;
        }
    }
    let index = MAPPING_COUNT.fetch_add(1, AcqRel) as usize;
    if let Some(mapping) = MAPPINGS.get(index) {
        mapping.bytes.store(bytes, Relaxed);
        mapping.start.store(start, Release);
    } else {
        // Past the registry the mapping is only scanned as a root: blocks may look reachable, none look lost.
        MAPPING_COUNT.fetch_sub(1, AcqRel);
    }
}

/// Calls `each(start, bytes)` for every mapping of ours.
pub fn own_mappings(mut each: impl FnMut(u64, u64)) {
    let count = (MAPPING_COUNT.load(Acquire) as usize).min(MAX_MAPPINGS);
    for mapping in &MAPPINGS[..count] {
        let start = mapping.start.load(Acquire);
        if start > 1 {
            each(start, mapping.bytes.load(Relaxed));
        }
    }
}

/// Maps `bytes` of zeroed memory that is touched lazily.
///
/// # Errors
/// The errno of mmap.
pub fn map_zeroed(bytes: usize) -> Result<*mut u8, Errno> {
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
    let start = unsafe { call!(nr::MMAP, 0, bytes, PROT_READ_WRITE, flags, -1isize, 0) }?;
    register(start as u64, bytes as u64);
    Ok(start as *mut u8)
}

/// As [`map_zeroed`], at a multiple of `alignment`, a power of two.
///
/// # Errors
/// The errno of mmap.
pub fn map_aligned(bytes: usize, alignment: usize) -> Result<*mut u8, Errno> {
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    let bytes = bytes.next_multiple_of(4096);
    // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing; what is cut off again is its own.
    unsafe {
        let whole = call!(nr::MMAP, 0, bytes + alignment, PROT_READ_WRITE, flags, -1isize, 0)?;
        let start = whole.next_multiple_of(alignment);
        if start > whole {
            let _ = call!(nr::MUNMAP, whole, start - whole);
        }
        let _ = call!(nr::MUNMAP, start + bytes, whole + alignment - start);
        register(start as u64, bytes as u64);
        Ok(start as *mut u8)
    }
}

/// As [`map_zeroed`], but with huge pages where the kernel has them: for tables that are about to be filled.
///
/// # Errors
/// The errno of mmap.
pub fn map_zeroed_huge(bytes: usize) -> Result<*mut u8, Errno> {
    const MADV_HUGEPAGE: usize = 14;
    let start = if bytes >= HUGE_PAGE { map_aligned(bytes, HUGE_PAGE)? } else { map_zeroed(bytes)? };
    // SAFETY: advice on our own mapping.
    let _ = unsafe { call!(nr::MADVISE, start, bytes, MADV_HUGEPAGE) };
    Ok(start)
}

/// Starts to load what `place` refers to into the cache.
#[inline(always)]
pub fn prefetch<T>(place: *const T) {
    use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: a prefetch never faults, whatever the address.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(place.cast()) };
}

/// Turns two megabytes of a mapping, from a multiple of two megabytes on, into a huge page now, if the kernel can.
pub fn collapse(page: usize) {
    const MADV_HUGEPAGE: usize = 14;
    const MADV_COLLAPSE: usize = 25;
    // SAFETY: advice; the memory keeps its contents.
    unsafe {
        let _ = call!(nr::MADVISE, page, HUGE_PAGE, MADV_HUGEPAGE);
        let _ = call!(nr::MADVISE, page, HUGE_PAGE, MADV_COLLAPSE);
    }
}

/// Maps a file for reading and writing, shared.
///
/// # Errors
/// The errno of mmap.
pub fn map_shared(fd: i32, bytes: usize) -> Result<*mut u8, Errno> {
    // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
    let start = unsafe { call!(nr::MMAP, 0, bytes, PROT_READ_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0) }?;
    register(start as u64, bytes as u64);
    Ok(start as *mut u8)
}

/// Moves the mapping at `from` over the one at `to`, of the same length.
///
/// # Errors
/// The errno of mremap; then both are as before.
///
/// # Safety
/// Both are mappings of ours of `bytes` bytes, and no reference into `from` is used afterwards.
pub unsafe fn replace_mapping(from: *mut u8, to: *mut u8, bytes: usize) -> Result<(), Errno> {
    const MAYMOVE_FIXED: usize = 3;
    // SAFETY: the caller vouches for both mappings.
    unsafe { call!(nr::MREMAP, from, bytes, bytes, MAYMOVE_FIXED, to) }?;
    for mapping in &MAPPINGS[..(MAPPING_COUNT.load(Acquire) as usize).min(MAX_MAPPINGS)] {
        if mapping.start.load(Relaxed) == from as u64 {
            mapping.start.store(0, Release);
        }
    }
    Ok(())
}

/// Maps zeroed memory and sees it as a slice of `T`, for tables that live until the process ends.
///
/// # Safety
/// All-zero bytes are a valid `T`.
pub unsafe fn map_slice<T>(len: usize, huge: bool) -> Option<&'static mut [T]> {
    let bytes = len.checked_mul(size_of::<T>())?.max(1).checked_next_multiple_of(4096)?;
    let start = if huge { map_zeroed_huge(bytes) } else { map_zeroed(bytes) }.ok()?;
    // SAFETY: a fresh private mapping of enough bytes, page-aligned, zeroed; `T` is valid for zero bytes.
    Some(unsafe { core::slice::from_raw_parts_mut(start.cast::<T>(), len) })
}

/// Gives back what [`map_slice`] made.
///
/// # Safety
/// `slice` is whole as [`map_slice`] gave it (or empty), and nothing refers to it any more.
pub unsafe fn unmap_slice<T>(slice: &'static mut [T]) {
    if slice.is_empty() {
        return;
    }
    let start = slice.as_mut_ptr() as u64;
    let bytes = size_of_val(slice).next_multiple_of(4096);
    // Out of the registry first: the address may be used again as soon as it is free.
    for mapping in &MAPPINGS[..(MAPPING_COUNT.load(Acquire) as usize).min(MAX_MAPPINGS)] {
        if mapping.start.compare_exchange(start, 0, AcqRel, Relaxed).is_ok() {
            break;
        }
    }
    // SAFETY: the caller vouches that the mapping is ours and unused.
    let _ = unsafe { call!(nr::MUNMAP, start, bytes) };
}

/// A lock for the rare paths (new sites, new modules). It is only taken with the thread's busy mark set, so a
/// signal handler of the same thread never waits for it; and it is held across fork by the forking thread.
pub struct Lock(AtomicU32);

impl Lock {
    /// An open lock.
    pub const fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Takes the lock. Returns a guard that opens it.
    pub fn lock(&self) -> LockGuard<'_> {
        self.acquire();
        LockGuard(self)
    }

    /// Takes the lock if it is open.
    pub fn try_lock(&self) -> Option<LockGuard<'_>> {
        self.0.compare_exchange(0, 1, Acquire, Relaxed).ok().map(|_| LockGuard(self))
    }

    /// Whether the lock is open at this moment.
    pub fn is_open(&self) -> bool {
        self.0.load(Acquire) == 0
    }

    /// Takes the lock without a guard.
    pub fn acquire(&self) {
        const FUTEX_WAIT_PRIVATE: usize = 128;
        if self.0.compare_exchange(0, 1, Acquire, Relaxed).is_ok() {
            return;
        }
        while self.0.swap(2, Acquire) != 0 {
            // SAFETY: waits on our own word.
            let _ = unsafe { call!(nr::FUTEX, self.0.as_ptr(), FUTEX_WAIT_PRIVATE, 2, 0) };
        }
    }

    /// Opens the lock.
    pub fn release(&self) {
        const FUTEX_WAKE_PRIVATE: usize = 129;
        if self.0.swap(0, Release) == 2 {
            // SAFETY: wakes waiters on our own word.
            let _ = unsafe { call!(nr::FUTEX, self.0.as_ptr(), FUTEX_WAKE_PRIVATE, 1) };
        }
    }
}

impl Default for Lock {
    fn default() -> Self {
        Self::new()
    }
}

/// Opens the lock when dropped.
pub struct LockGuard<'a>(&'a Lock);

impl Drop for LockGuard<'_> {
    fn drop(&mut self) {
        self.0.release();
    }
}

/// Whether `bytes` from `start` are all mapped, by mincore; `start` need not be aligned.
pub fn is_mapped(start: u64, bytes: u64) -> bool {
    let mut residency = [0u8; 64];
    let mut page = start & !4095;
    let Some(end) = start.checked_add(bytes) else { return false };
    while page < end {
        let length = (end - page).min(64 * 4096).next_multiple_of(4096);
        // SAFETY: mincore writes one byte per page, at most 64, to `residency`.
        if unsafe {
            raw::syscall(nr::MINCORE, [page as usize, length as usize, residency.as_mut_ptr() as usize, 0, 0, 0])
        }
        .is_err()
        {
            return false;
        }
        page += length;
    }
    true
}
