//! Releases that wait in a thread's [queue](crate::release_queue): how they get in, and what is done when they leave.

use crate::blocks::{self, Taken};
use crate::memory::prefetch;
use crate::release_queue::{self, Release};
use crate::runtime::{self, MODE, SITES, add, locks_are_free, mode, with_state};
use crate::sites::family;
use crate::thread::{self, ThreadState, tls};
use crate::unwind::Registers;
use crate::{canary, hints, misuse};
use core::sync::atomic::Ordering;
use core::sync::atomic::compiler_fence;
use leakscope_ledger::writer::Ledger;
use leakscope_model::AllocFn;

/// What became of a release that the program has asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Waiting {
    /// It waits; nothing is to be done now.
    Kept,
    /// It waits, and the block that starts here is to be passed to the original instead.
    Due(u64),
    /// It does not wait: [`runtime::released`] is to be called.
    No,
}

/// Whether the release of a block of `bytes` may wait that is its site's `allocated_blocks`th in this thread.
#[inline(always)]
pub(crate) fn may_wait(mode: u32, allocated_blocks: u64, bytes: usize, block_family: u8) -> bool {
    mode & mode::WAIT != 0
        && allocated_blocks > release_queue::COMMON_BLOCKS
        && bytes <= release_queue::MOST_BYTES
        && block_family != family::MIXED
}

/// Lets the release of the block at `start` wait, if it may. `mode` has [`mode::WAIT`].
///
/// # Safety
/// `regs.rsp` points at the return address of the hook.
#[inline(always)]
pub unsafe fn wait(start: u64, function: AllocFn, regs: Registers) -> Waiting {
    let words = tls();
    // SAFETY: the calling thread's own words; the busy mark keeps signal handlers of this thread away from the state.
    unsafe {
        let Some(state) = (*words).state.as_mut() else { return Waiting::No };
        // A block that is released right after its allocation is in the cache, and should stay there for the next.
        if (*words).busy != 0 || state.last_block == start || !blocks::claim(start, family::of(function.family())) {
            return Waiting::No;
        }
        (*words).busy = 1;
        compiler_fence(Ordering::SeqCst);
        prefetch(start.wrapping_sub(16) as *const u8);
        let due = state.queue.exchange(Release::new(start, function, *(regs.rsp as *const u64)));
        let halfway = state.queue.halfway();
        if let Some((site, bytes)) = blocks::glance(halfway) {
            state.prefetch_counters(site);
            prefetch((halfway + bytes) as *const u8);
        }
        let due = match due {
            Some(due) => carry_out(state, due),
            None => 0,
        };
        compiler_fence(Ordering::SeqCst);
        (*words).busy = 0;
        if due == 0 { Waiting::Kept } else { Waiting::Due(due) }
    }
}

/// Records a release that has waited. Gives the block to pass to the original, or 0.
#[inline(always)]
fn carry_out(state: &mut ThreadState, release: Release) -> u64 {
    let start = release.start();
    let Taken::Live(info) = blocks::take_waiting(start) else {
        return late_double_free(state, release);
    };
    if let Some(record) = state.record() {
        add(&record.live_bytes, info.bytes.wrapping_neg());
    }
    if let Some(ledger) = runtime::ledger()
        && let Some((counters, _)) = state.counters(ledger, &SITES, info.site)
    {
        add(&counters.freed_blocks, 1);
        add(&counters.freed_bytes, info.bytes);
    }
    // SAFETY: the mode says that the block is glibc's and has a canary; the allocator does not have it yet.
    if runtime::mode() & mode::CANARY != 0 && !unsafe { canary::is_whole(start, info.bytes as usize) } {
        late_overrun(state, &info, release);
    }
    start
}

#[cold]
#[inline(never)]
fn late_double_free(state: &ThreadState, release: Release) -> u64 {
    if let Some(ledger) = runtime::ledger().filter(|_| locks_are_free()) {
        misuse::late_double_free(ledger, state, release);
    }
    0
}

#[cold]
#[inline(never)]
fn late_overrun(state: &ThreadState, info: &blocks::BlockInfo, release: Release) {
    if let Some(ledger) = runtime::ledger().filter(|_| locks_are_free()) {
        misuse::late_overrun(ledger, state, info, release);
    }
}

/// The block whose release by this thread waits longest, to be passed to the original: it waits no more.
#[cold]
pub fn next_due(ledger: &Ledger, regs: Registers) -> Option<u64> {
    let next = |state: &mut ThreadState| {
        while let Some(due) = state.queue.take() {
            let start = carry_out(state, due);
            if start != 0 {
                return Some(start);
            }
        }
        None
    };
    with_state(ledger, regs, next).flatten()
}

/// At the end of the program: records the releases of this thread that wait, those of `others` too if they stand still
/// for good, and lets none wait any more. The originals never get these blocks. The busy mark must be set.
pub fn end_waiting(others: bool) {
    MODE.fetch_and(!mode::WAIT, Ordering::AcqRel);
    // SAFETY: the calling thread's own words; the busy mark is set. Its state counts for all.
    let Some(state) = (unsafe { (*tls()).state.as_mut() }) else { return };
    while let Some(due) = state.queue.take() {
        carry_out(state, due);
    }
    if others {
        thread::for_each_state(|other| {
            for due in other.queue.drain_from_outside() {
                carry_out(state, due);
            }
        });
    }
}

/// Whether any release waits, in any thread.
pub fn is_any_waiting() -> bool {
    let mut any = false;
    thread::for_each_state(|state| any |= !state.queue.is_empty());
    any
}

/// Whether the release of `start` waits, in any thread.
#[inline(always)]
pub fn is_waiting(start: u64) -> bool {
    hints::says_waits(start) && is_in_a_queue(start)
}

#[cold]
#[inline(never)]
fn is_in_a_queue(start: u64) -> bool {
    let mut found = false;
    thread::for_each_state(|state| found |= state.queue.holds(start));
    found
}
