//! Released blocks wait here, so that a use after release is seen. First in, first out; bounded by bytes.
//!
//! Batches of addresses, not links in the blocks: what a program writes after a release cannot lead us astray, and the
//! headers of what is next can be loaded ahead.

use super::{large, regions};
use core::cell::UnsafeCell;
use core::sync::atomic::AtomicUsize;
use core::sync::atomic::Ordering::Relaxed;
use leakscope_rt::memory::{Lock, map_zeroed};

const BATCH_BYTES: usize = 8192;
/// Each takes five bytes.
const BATCH_ENTRIES: usize = (BATCH_BYTES - 24) / 20 * 4;
/// In place of a class: a large block.
const LARGE: u8 = u8::MAX;
/// Batches mapped at a time.
const STEP: usize = 16;

/// Some released blocks.
#[repr(C)]
pub struct Batch {
    next: *mut Batch,
    bytes: usize,
    count: usize,
    /// For each the place in its class's region, or the unit of large blocks.
    places: [u32; BATCH_ENTRIES],
    classes: [u8; BATCH_ENTRIES],
}

const _: () = assert!(size_of::<Batch>() <= BATCH_BYTES);

impl Batch {
    /// How many blocks there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The user's address of a block; `None` past the last one.
    #[inline(always)]
    pub fn block(&self, number: usize) -> Option<usize> {
        if number >= self.count {
            return None;
        }
        let (&place, &class) = (self.places.get(number)?, self.classes.get(number)?);
        if class == LARGE { large::user_at_unit(place) } else { Some(regions::unpack(usize::from(class), place)) }
    }
}

/// A list of batches, newest first in `first` for pushing, oldest first for taking.
#[derive(Clone, Copy)]
struct List {
    first: *mut Batch,
    last: *mut Batch,
    bytes: usize,
}

impl List {
    const EMPTY: Self = Self { first: core::ptr::null_mut(), last: core::ptr::null_mut(), bytes: 0 };

    /// Appends another list.
    ///
    /// # Safety
    /// Both lists are whole and nobody else's.
    unsafe fn append(&mut self, other: Self) {
        if other.first.is_null() {
            return;
        }
        if self.last.is_null() {
            self.first = other.first;
        } else {
            // SAFETY: a batch of ours.
            unsafe { (*self.last).next = other.first };
        }
        self.last = other.last;
        self.bytes += other.bytes;
    }
}

/// A thread's part. All-zero bytes are an empty one.
#[repr(C)]
pub struct LocalQuarantine {
    list: List,
}

struct Global {
    lock: Lock,
    list: UnsafeCell<List>,
    unused: UnsafeCell<*mut Batch>,
}
// SAFETY: the lists are only touched with the lock held.
unsafe impl Sync for Global {}

static GLOBAL: Global =
    Global { lock: Lock::new(), list: UnsafeCell::new(List::EMPTY), unused: UnsafeCell::new(core::ptr::null_mut()) };
static GLOBAL_BYTES: AtomicUsize = AtomicUsize::new(0);

fn new_batch() -> *mut Batch {
    let _held = GLOBAL.lock.lock();
    // SAFETY: the lock is held; batches are zeroed or were emptied.
    unsafe {
        let unused = &mut *GLOBAL.unused.get();
        if unused.is_null() {
            let Ok(fresh) = map_zeroed(BATCH_BYTES * STEP) else { return core::ptr::null_mut() };
            for i in 0..STEP {
                let batch = fresh.add(i * BATCH_BYTES).cast::<Batch>();
                (*batch).next = *unused;
                *unused = batch;
            }
        }
        let batch = *unused;
        *unused = (*batch).next;
        ((*batch).next, (*batch).bytes, (*batch).count) = (core::ptr::null_mut(), 0, 0);
        batch
    }
}

/// Gives back an emptied batch.
///
/// # Safety
/// Nobody uses it any more.
pub unsafe fn drop_batch(batch: *mut Batch) {
    let _held = GLOBAL.lock.lock();
    // SAFETY: the lock is held, the batch is the caller's.
    unsafe {
        let unused = &mut *GLOBAL.unused.get();
        (*batch).next = *unused;
        *unused = batch;
    }
}

impl LocalQuarantine {
    /// Bytes that wait here.
    #[inline(always)]
    pub fn bytes(&self) -> usize {
        self.list.bytes
    }

    /// Adds a block. False when there is no memory for the list.
    #[inline(always)]
    pub fn push(&mut self, block: usize, bytes: usize) -> bool {
        let mut batch = self.list.last;
        // SAFETY: batches in the list are ours and valid.
        unsafe {
            if batch.is_null() || (*batch).count == BATCH_ENTRIES {
                batch = new_batch();
                if batch.is_null() {
                    return false;
                }
                self.list.append(List { first: batch, last: batch, bytes: 0 });
            }
            let at = (*batch).count;
            let (place, class) = if regions::contains(block) {
                let class = regions::class_at(block);
                (regions::pack(class, block), class as u8)
            } else {
                (large::unit_of(block), LARGE)
            };
            if let (Some(slot), Some(its_class)) = ((*batch).places.get_mut(at), (*batch).classes.get_mut(at)) {
                (*slot, *its_class) = (place, class);
            }
            (*batch).count = at + 1;
            (*batch).bytes += bytes;
        }
        self.list.bytes += bytes;
        true
    }

    /// Hands everything to the process's quarantine.
    pub fn hand_over(&mut self) {
        let _held = GLOBAL.lock.lock();
        // SAFETY: the lock is held; the local list is the caller's.
        unsafe {
            let global = &mut *GLOBAL.list.get();
            global.append(self.list);
            GLOBAL_BYTES.store(global.bytes, Relaxed);
        }
        self.list = List::EMPTY;
    }
}

/// Bytes in the process's quarantine.
pub fn global_bytes() -> usize {
    GLOBAL_BYTES.load(Relaxed)
}

/// The oldest batch, if there is more than `limit_bytes`; it is the caller's, to be given to [`drop_batch`].
pub fn take_over_limit(limit_bytes: usize) -> Option<*mut Batch> {
    let _held = GLOBAL.lock.lock();
    // SAFETY: the lock is held.
    unsafe {
        let global = &mut *GLOBAL.list.get();
        if global.bytes <= limit_bytes || global.first.is_null() {
            return None;
        }
        let batch = global.first;
        global.first = (*batch).next;
        if global.first.is_null() {
            global.last = core::ptr::null_mut();
        }
        global.bytes -= (*batch).bytes;
        GLOBAL_BYTES.store(global.bytes, Relaxed);
        Some(batch)
    }
}

/// Takes the lock before a fork.
pub fn lock_all() {
    GLOBAL.lock.acquire();
}

/// Opens the lock after a fork.
pub fn unlock_all() {
    GLOBAL.lock.release();
}
