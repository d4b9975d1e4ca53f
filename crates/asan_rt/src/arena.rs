//! The heap of our own: what reports, option strings and thread records are made of. Never the target's heap.
//!
//! Powers of two with a free list each, from mappings that are registered as ours, so that the leak check does not
//! take them for roots. It serves cold paths: one lock is enough.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use leakscope_rt::memory::{Lock, map_zeroed};

const SMALLEST_LOG2: u32 = 5;
const CLASSES: usize = 12;
/// Larger blocks are mappings of their own.
const LARGEST: usize = 1 << (SMALLEST_LOG2 + CLASSES as u32 - 1);
const STEP: usize = 1 << 20;

struct State {
    free: [usize; CLASSES],
    next: usize,
    end: usize,
}

/// The allocator; the injected library has it as its `#[global_allocator]`.
pub struct Arena {
    lock: Lock,
    state: UnsafeCell<State>,
}

// SAFETY: the state is only touched with the lock held.
unsafe impl Sync for Arena {}

impl Arena {
    /// An empty heap.
    #[must_use]
    pub const fn new() -> Self {
        Self { lock: Lock::new(), state: UnsafeCell::new(State { free: [0; CLASSES], next: 0, end: 0 }) }
    }

    /// Opens the lock in a forked child, whoever held it.
    pub fn after_fork_in_child(&self) {
        if !self.lock.is_open() {
            self.lock.release();
        }
    }
}

impl Default for Arena {
    fn default() -> Self {
        Self::new()
    }
}

#[cold]
fn out_of_memory() -> ! {
    crate::sys::write_all(2, b"ERROR: Failed to mmap\n");
    crate::sys::exit_now(1)
}

/// The one heap of our own.
pub static ARENA: Arena = Arena::new();

/// What the injected library names as its `#[global_allocator]`: [`ARENA`].
pub struct Global;

// SAFETY: everything is the arena's.
unsafe impl GlobalAlloc for Global {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's.
        unsafe { ARENA.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's.
        unsafe { ARENA.dealloc(block, layout) }
    }
}

/// Runs `body`, during which nobody else allocates here; it must not allocate itself.
pub fn with_arena_locked<R>(body: impl FnOnce() -> R) -> R {
    let _held = ARENA.lock.lock();
    body()
}

fn class_of(bytes: usize) -> usize {
    (bytes.next_power_of_two().trailing_zeros().max(SMALLEST_LOG2) - SMALLEST_LOG2) as usize
}

// SAFETY: blocks are disjoint pieces of fresh mappings, as large and as aligned as their class.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let bytes = layout.size().max(layout.align());
        if bytes > LARGEST {
            return map_zeroed(bytes.next_multiple_of(4096)).unwrap_or_else(|_| out_of_memory());
        }
        let class = class_of(bytes);
        let size = 1usize << (class as u32 + SMALLEST_LOG2);
        let _held = self.lock.lock();
        // SAFETY: the lock is held.
        let state = unsafe { &mut *self.state.get() };
        let Some(head) = state.free.get_mut(class) else { return core::ptr::null_mut() };
        if *head != 0 {
            let block = *head;
            // SAFETY: a free block holds the next one's address.
            *head = unsafe { *(block as *const usize) };
            return block as *mut u8;
        }
        let start = state.next.next_multiple_of(size);
        if start + size > state.end {
            let Ok(fresh) = map_zeroed(STEP) else { out_of_memory() };
            state.next = fresh as usize + size;
            state.end = fresh as usize + STEP;
            return fresh;
        }
        state.next = start + size;
        start as *mut u8
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let bytes = layout.size().max(layout.align());
        if bytes > LARGEST {
            // SAFETY: a mapping of its own, as alloc made it. It stays in the registry of our mappings: harmless.
            unsafe { crate::sys::advise(block as usize, bytes.next_multiple_of(4096), crate::sys::Advice::DontNeed) };
            return;
        }
        let _held = self.lock.lock();
        // SAFETY: the lock is held; the block is free from now on and large enough for an address.
        unsafe {
            let state = &mut *self.state.get();
            if let Some(head) = state.free.get_mut(class_of(bytes)) {
                *block.cast::<usize>() = *head;
                *head = block as usize;
            }
        }
    }
}
