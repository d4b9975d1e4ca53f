//! Stacks of blocks that a signal handler allocated while it interrupted our own code with a lock held.
//!
//! The block is in the table at once, at its function's site without a stack; the stack waits here until the interrupted
//! code, or a leak check, gives it a site.

use crate::blocks;
use crate::runtime::{MODULES, SITES};
use crate::sites::SiteTable;
use crate::thread::shared_counters;
use core::cell::UnsafeCell;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use leakscope_ledger::writer::Ledger;
use leakscope_model::AllocFn;

const MOST_FRAMES: usize = 48;
const SLOTS: usize = 64;

const FREE: u32 = 0;
const BEING_WRITTEN: u32 = 1;
const WAITING: u32 = 2;

#[derive(Clone, Copy)]
struct Kept {
    start: u64,
    function: AllocFn,
    flags: u32,
    len: usize,
    frames: [u64; MOST_FRAMES],
}

struct Slot {
    state: AtomicU32,
    kept: UnsafeCell<Kept>,
}

// SAFETY: `kept` is touched only by whoever took the slot from FREE or WAITING to BEING_WRITTEN.
unsafe impl Sync for Slot {}

static SLOT_LIST: [Slot; SLOTS] = [const {
    Slot {
        state: AtomicU32::new(FREE),
        kept: UnsafeCell::new(Kept { start: 0, function: AllocFn::Malloc, flags: 0, len: 0, frames: [0; MOST_FRAMES] }),
    }
}; SLOTS];
static WAITING_COUNT: AtomicU32 = AtomicU32::new(0);

fn take(slot: &Slot, from: u32) -> bool {
    slot.state.compare_exchange(from, BEING_WRITTEN, AcqRel, Relaxed).is_ok()
}

/// Keeps the stack of the block at `start`, leaf first; the innermost frames if it is deep. With no slot free the block
/// stays without a stack.
pub fn keep(start: u64, frames: &[u64], function: AllocFn, flags: u32) {
    let Some(slot) = SLOT_LIST.iter().find(|slot| take(slot, FREE)) else { return };
    let len = frames.len().min(MOST_FRAMES);
    // SAFETY: the slot is ours until the state changes.
    let kept = unsafe { &mut *slot.kept.get() };
    (kept.start, kept.function, kept.flags, kept.len) = (start, function, flags, len);
    if let (Some(to), Some(from)) = (kept.frames.get_mut(..len), frames.get(..len)) {
        to.copy_from_slice(from);
    }
    slot.state.store(WAITING, Release);
    WAITING_COUNT.fetch_add(1, Release);
}

/// Gives the blocks whose stacks wait their sites. The busy mark must be set and no lock of ours held.
pub fn settle(ledger: &Ledger) {
    if WAITING_COUNT.load(Acquire) == 0 {
        return;
    }
    for slot in &SLOT_LIST {
        if !take(slot, WAITING) {
            continue;
        }
        WAITING_COUNT.fetch_sub(1, Relaxed);
        // SAFETY: the slot is ours until the state changes.
        let kept = unsafe { *slot.kept.get() };
        slot.state.store(FREE, Release);
        let bare = SiteTable::bare_site(kept.function);
        let Some(block) = blocks::lookup(kept.start).filter(|block| !block.freed && block.site == bare) else {
            continue;
        };
        let site = {
            let modules = MODULES.read(ledger);
            let frames = kept.frames.get(..kept.len).unwrap_or(&[]);
            SITES.intern(ledger, frames, kept.function, kept.flags, |pc| modules.epoch_of(pc))
        };
        blocks::set_site(kept.start, site);
        if let (Some(from), Some(to)) = (shared_counters(ledger, bare), shared_counters(ledger, site)) {
            from.allocated_blocks.fetch_sub(1, Relaxed);
            from.allocated_bytes.fetch_sub(block.bytes, Relaxed);
            to.allocated_blocks.fetch_add(1, Relaxed);
            to.allocated_bytes.fetch_add(block.bytes, Relaxed);
        }
    }
}
