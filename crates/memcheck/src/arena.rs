//! The engine's own allocator: memory from `mmap` only, far away from what the target sees.
//!
//! Size classes of powers of two and three quarters of them up to 32 KiB from chunks of 1 MiB; larger ones are mapped one
//! by one and grow by `mremap`, which suits the tables that double. Memory of a class is kept for that class.
//!
//! One thread of the engine runs at a time, but for a thread that is just being born: hence a lock, which a signal
//! handler must not need, as nothing that runs in one allocates.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::UnsafeCell;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, Ordering};

const CLASSES: usize = 24;
const SMALLEST: usize = 16;
const LARGEST: usize = 32 << 10;
const CHUNK: usize = 1 << 20;
const PAGE: usize = 4096;
/// Tables of this size and more are looked up here and there: large pages save the processor much.
const LARGE: usize = 4 << 20;

/// A block that is free: it holds the next one.
struct Free {
    next: Option<NonNull<Free>>,
}

struct Pools {
    free: [Option<NonNull<Free>>; CLASSES],
    at: usize,
    end: usize,
}

/// The allocator; to be a `static`.
pub struct Arena {
    lock: AtomicBool,
    pools: UnsafeCell<Pools>,
}

// SAFETY: the pools are touched under the lock only.
unsafe impl Sync for Arena {}

/// Number and bytes of the class for a size: 16, 24, 32, 48, 64, 96, ...
fn class_of(bytes: usize) -> (usize, usize) {
    let bytes = bytes.max(SMALLEST);
    let power = bytes.next_power_of_two();
    let number = 2 * (power.trailing_zeros() - SMALLEST.trailing_zeros()) as usize;
    if number > 0 && bytes <= power / 4 * 3 { (number - 1, power / 4 * 3) } else { (number, power) }
}

fn map(bytes: usize) -> usize {
    // SAFETY: a new private map at an address of the kernel's choice.
    let at = unsafe {
        libc::mmap(
            ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if at == libc::MAP_FAILED {
        return 0;
    }
    if bytes >= LARGE {
        // SAFETY: advice for a mapping of our own.
        unsafe { libc::madvise(at, bytes, libc::MADV_HUGEPAGE) };
    }
    at as usize
}

fn is_small(layout: Layout) -> bool {
    layout.size() <= LARGEST && layout.align() <= SMALLEST
}

impl Arena {
    /// Nothing allocated.
    #[expect(clippy::new_without_default, reason = "a static needs a const function")]
    pub const fn new() -> Self {
        Self { lock: AtomicBool::new(false), pools: UnsafeCell::new(Pools { free: [None; CLASSES], at: 0, end: 0 }) }
    }

    fn small(&self, bytes: usize) -> *mut u8 {
        let (class, bytes) = class_of(bytes);
        while self.lock.swap(true, Ordering::Acquire) {
            std::hint::spin_loop();
        }
        // SAFETY: under the lock; free blocks hold what was written below.
        let at = unsafe {
            let pools = &mut *self.pools.get();
            match pools.free[class] {
                Some(block) => {
                    pools.free[class] = block.as_ref().next;
                    block.as_ptr().cast()
                }
                None => pools.cut(bytes),
            }
        };
        self.lock.store(false, Ordering::Release);
        at
    }
}

impl Pools {
    fn cut(&mut self, bytes: usize) -> *mut u8 {
        if bytes.is_multiple_of(SMALLEST) {
            self.at = self.at.next_multiple_of(SMALLEST);
        }
        if self.end.saturating_sub(self.at) < bytes {
            // What is left of the chunk is lost: at most a class's size.
            match map(CHUNK) {
                0 => return ptr::null_mut(),
                chunk => (self.at, self.end) = (chunk, chunk + CHUNK),
            }
        }
        self.at += bytes;
        (self.at - bytes) as *mut u8
    }
}

// SAFETY: blocks are disjoint, as large and as aligned as asked for: classes are multiples of 8, of 16 where 16 is asked
// for (see `alloc`), and maps are pages.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_small(layout) {
            // 24 is the only class that is not a multiple of 16.
            let bytes = if layout.align() > 8 { layout.size().next_multiple_of(16) } else { layout.size() };
            return self.small(if layout.align() > 8 && bytes <= 32 { 32 } else { bytes });
        }
        if layout.align() <= PAGE {
            return map(layout.size().next_multiple_of(PAGE)) as *mut u8;
        }
        // Nobody asks for more than a page; what is in front stays mapped.
        match map(layout.size().next_multiple_of(PAGE) + layout.align()) {
            0 => ptr::null_mut(),
            at => at.next_multiple_of(layout.align()) as *mut u8,
        }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        if !is_small(layout) {
            // SAFETY: `alloc` mapped these pages for this block alone.
            unsafe { libc::munmap(at.cast(), layout.size().next_multiple_of(PAGE)) };
            return;
        }
        let bytes = if layout.align() > 8 { layout.size().next_multiple_of(16) } else { layout.size() };
        let (class, _) = class_of(if layout.align() > 8 && bytes <= 32 { 32 } else { bytes });
        while self.lock.swap(true, Ordering::Acquire) {
            std::hint::spin_loop();
        }
        // SAFETY: under the lock; the block is at least 16 bytes, aligned to 8, and nobody's any more.
        unsafe {
            let pools = &mut *self.pools.get();
            at.cast::<Free>().write(Free { next: pools.free[class] });
            pools.free[class] = NonNull::new(at.cast());
        }
        self.lock.store(false, Ordering::Release);
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract.
        let at = unsafe { self.alloc(layout) };
        if !at.is_null() && is_small(layout) {
            // SAFETY: just allocated with this size. Fresh maps are zero.
            unsafe { ptr::write_bytes(at, 0, layout.size()) };
        }
        at
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller guarantees that the size is valid with this alignment.
        let wanted = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        if !is_small(layout) && !is_small(wanted) && layout.align() <= PAGE {
            let (old, new) = (layout.size().next_multiple_of(PAGE), size.next_multiple_of(PAGE));
            if old == new {
                return at;
            }
            // SAFETY: the pages are this block's alone.
            let moved = unsafe { libc::mremap(at.cast(), old, new, libc::MREMAP_MAYMOVE) };
            return if moved == libc::MAP_FAILED { ptr::null_mut() } else { moved.cast() };
        }
        // SAFETY: the caller's contract for `at`; the new block is disjoint and large enough for the copy.
        unsafe {
            let to = self.alloc(wanted);
            if !to.is_null() {
                ptr::copy_nonoverlapping(at, to, layout.size().min(size));
                self.dealloc(at, layout);
            }
            to
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_tight_and_in_order() {
        let mut previous = (0, 16);
        for bytes in 1..=LARGEST {
            let (number, size) = class_of(bytes);
            assert!(size >= bytes && number < CLASSES);
            assert!((number, size) == previous || number == previous.0 + 1 && previous.1 < bytes, "{bytes}");
            previous = (number, size);
        }
        assert_eq!(previous.1, LARGEST);
    }

    #[test]
    fn blocks_keep_what_was_written() {
        let arena = Arena::new();
        let mut seed = 1u64;
        let mut next = |limit: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % limit
        };
        let mut held: Vec<(*mut u8, Layout, u8)> = Vec::new();
        let check = |&(at, layout, byte): &(*mut u8, Layout, u8)| {
            // SAFETY: the block is live and was filled.
            let bytes = unsafe { std::slice::from_raw_parts(at, layout.size()) };
            assert!(bytes.iter().all(|&b| b == byte), "{layout:?}");
        };
        for step in 0..6000u64 {
            let bits = 1 + next(17);
            let size = (1 + next(1 << bits)) as usize;
            // SAFETY: sizes are not zero, layouts those of the allocation; all writes are within.
            unsafe {
                match next(4) {
                    0 if !held.is_empty() => {
                        let block = held.swap_remove(next(held.len() as u64) as usize);
                        check(&block);
                        arena.dealloc(block.0, block.1);
                    }
                    1 if !held.is_empty() => {
                        let nth = next(held.len() as u64) as usize;
                        let (at, layout, byte) = held[nth];
                        let at = arena.realloc(at, layout, size);
                        let kept = size.min(layout.size());
                        assert!(std::slice::from_raw_parts(at, kept).iter().all(|&b| b == byte));
                        ptr::write_bytes(at, byte, size);
                        held[nth] = (at, Layout::from_size_align(size, layout.align()).unwrap(), byte);
                    }
                    _ => {
                        let layout = Layout::from_size_align(size, 1 << next(13)).unwrap();
                        let at = arena.alloc_zeroed(layout);
                        assert!((at as usize).is_multiple_of(layout.align()));
                        check(&(at, layout, 0));
                        ptr::write_bytes(at, step as u8, size);
                        held.push((at, layout, step as u8));
                    }
                }
            }
            if held.len() > 300 {
                let block = held.swap_remove(0);
                check(&block);
                // SAFETY: as above.
                unsafe { arena.dealloc(block.0, block.1) };
            }
        }
        held.iter().for_each(check);
    }
}
