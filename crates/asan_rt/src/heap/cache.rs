//! The free blocks that a thread has at hand, by class.

use super::classes::{COUNT, size_of_class};
use super::regions;
use core::sync::atomic::Ordering::Relaxed;

/// Most blocks of a class at hand.
const MOST: usize = 64;
/// Most bytes of a class at hand, beyond two blocks.
const MOST_BYTES: usize = 64 << 10;

/// Pages of resting blocks that a thread drops whatever else it does: 5 ms of the kernel's work.
const PAGES_AT_FIRST: usize = 4096;
/// And after so many calls of the heap one more: an eighth of their time at most.
const CALLS_FOR_A_PAGE: usize = 64;
/// The call of the kernel itself costs as much as a page.
const PAGES_OF_A_CALL: usize = 1;

#[repr(C)]
struct List {
    count: u32,
    blocks: [u32; MOST],
}

/// All classes. All-zero bytes are an empty cache.
#[repr(C)]
pub struct Cache {
    mallocs: usize,
    malloc_bytes: usize,
    frees: usize,
    freed_bytes: usize,
    /// What dropping pages of resting blocks has cost, in pages.
    dropping: usize,
    lists: [List; COUNT],
}

const fn capacity(class: usize) -> usize {
    let fitting = MOST_BYTES / size_of_class(class);
    if fitting < 2 {
        2
    } else if fitting > MOST {
        MOST
    } else {
        fitting
    }
}

static CAPACITY: [u8; COUNT] = {
    let mut table = [0; COUNT];
    let mut class = 0;
    while class < COUNT {
        table[class] = capacity(class) as u8;
        class += 1;
    }
    table
};

impl Cache {
    /// Counts an allocation of this thread.
    #[inline(always)]
    pub fn count_allocation(&mut self, bytes: usize) {
        self.mallocs += 1;
        self.malloc_bytes += bytes;
    }

    /// Counts a release of this thread.
    #[inline(always)]
    pub fn count_release(&mut self, bytes: usize) {
        self.frees += 1;
        self.freed_bytes += bytes;
    }

    /// Allocations, their bytes, releases, their bytes.
    pub fn counted(&self) -> [usize; 4] {
        [self.mallocs, self.malloc_bytes, self.frees, self.freed_bytes]
    }

    /// Whether a resting block may lose so many pages; counts them. The kernel takes and clears each page anew when the block
    /// is next used, so that what is done without need stays a small part of the time that the heap's calls take.
    pub fn may_drop_pages(&mut self, pages: usize) -> bool {
        let cost = self.dropping + pages + PAGES_OF_A_CALL;
        let is_due = cost <= PAGES_AT_FIRST + (self.mallocs + self.frees) / CALLS_FOR_A_PAGE;
        if is_due {
            self.dropping = cost;
        }
        is_due
    }

    /// Adds what was counted to the process's totals.
    pub fn settle_counters(&mut self) {
        let totals = &super::COUNTERS;
        self.dropping = 0;
        for (total, count) in [
            (&totals.mallocs, &mut self.mallocs),
            (&totals.malloc_bytes, &mut self.malloc_bytes),
            (&totals.frees, &mut self.frees),
            (&totals.freed_bytes, &mut self.freed_bytes),
        ] {
            total.fetch_add(core::mem::take(count), Relaxed);
        }
    }

    /// A free block of a class.
    #[inline(always)]
    pub fn pop(&mut self, class: usize) -> Option<usize> {
        let list = self.lists.get_mut(class)?;
        if list.count == 0 {
            let most = usize::from(*CAPACITY.get(class)?) / 2;
            list.count = regions::take(class, list.blocks.get_mut(..most.max(1))?) as u32;
            if list.count == 0 {
                return None;
            }
        }
        list.count -= 1;
        let at = list.count as usize;
        // The next block of this class has waited long in the quarantine: nothing of it is in the cache.
        if let Some(&next) = list.blocks.get(at.wrapping_sub(1)) {
            let next = regions::unpack(class, next);
            leakscope_rt::memory::prefetch(next as *const u8);
            leakscope_rt::memory::prefetch(crate::shadow_map::shadow_of(next) as *const u8);
        }
        list.blocks.get(at).map(|&packed| regions::unpack(class, packed))
    }

    /// Keeps a free block.
    #[inline(always)]
    pub fn push(&mut self, class: usize, block: usize) {
        let (Some(list), Some(&most)) = (self.lists.get_mut(class), CAPACITY.get(class)) else { return };
        if list.count >= u32::from(most) {
            let half = usize::from(most) / 2;
            let count = list.count as usize;
            regions::give(class, list.blocks.get(..half).unwrap_or(&[]));
            list.blocks.copy_within(half..count, 0);
            list.count -= half as u32;
        }
        if let Some(slot) = list.blocks.get_mut(list.count as usize) {
            *slot = regions::pack(class, block);
            list.count += 1;
        }
    }

    /// Gives everything back.
    pub fn drain(&mut self) {
        for (class, list) in self.lists.iter_mut().enumerate() {
            regions::give(class, list.blocks.get(..list.count as usize).unwrap_or(&[]));
            list.count = 0;
        }
    }
}
