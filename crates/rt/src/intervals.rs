//! What a program does between `mtrace()` and `muntrace()`, as an interval of the report.
//!
//! While an interval is open every stack gets a site of its own: the interval's number stands in the site's flags, which
//! belong to its identity. So blocks that are allocated in it are told from all others, however and whenever
//! they are released, and nothing is done at an allocation that would not be done anyway. Stacks that are known by an
//! unwind signature are looked at anew, because the unwinder's epoch changes at both ends.
//!
//! At its end the counters of its sites are what is live: they go into the ledger by site.
//! Releases do not wait in an interval, because the counters do not know those that do.
//!
//! Any thread; not in a signal handler that has interrupted our own code.

use crate::memory::{Lock, map_slice, unmap_slice};
use crate::raw;
use crate::runtime::{self, MODULES, SITES, UNWINDER};
use crate::thread::ThreadState;
use crate::unwind::{Registers, WalkEnd, Walked};
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use leakscope_ledger::layout::{AreaId, COUNTERS_PER_CHUNK, IntervalRecord, interval_state, site_flags};
use leakscope_ledger::writer::Ledger;
use leakscope_model::AllocFn;

static LOCK: Lock = Lock::new();
/// Number of the open interval plus one, where site flags have it; 0 outside of all.
static TAG: AtomicU32 = AtomicU32::new(0);
/// How often an interval has begun or ended.
static CHANGES: AtomicU32 = AtomicU32::new(0);

/// What the flags of sites that are made now get.
#[inline]
pub fn tag() -> u32 {
    TAG.load(Acquire)
}

/// Added to the module epoch for the unwinder.
pub fn changes() -> u32 {
    CHANGES.load(Acquire)
}

/// In a forked child: another thread may have held the lock. An open interval goes on in the child.
pub fn after_fork_in_child() {
    LOCK.release();
}

/// Stacks have other sites from now on. The tag comes first: who sees the new epoch sees it too.
fn change(ledger: &Ledger, tag: u32) {
    TAG.store(tag, Release);
    CHANGES.fetch_add(1, Release);
    runtime::set_unwinder_epoch(ledger);
}

/// The program has called `mtrace()`. Nothing happens in an interval that is open.
pub fn begin(ledger: &Ledger, regs: Registers) {
    let begun = runtime::with_state(ledger, regs, |state| {
        let site = caller_site(ledger, state, regs);
        let _guard = LOCK.lock();
        if tag() != 0 {
            return;
        }
        let number = ledger.claim(AreaId::Intervals, 1);
        let Some((number, record)) = number.and_then(|number| Some((number, ledger.interval(number)?))) else {
            ledger.header().lost.intervals.fetch_add(1, Relaxed);
            return;
        };
        record.begin_site.store(site, Relaxed);
        record.begin_ns.store(raw::clock_ns(1), Relaxed);
        record.state.store(interval_state::OPEN, Release);
        runtime::let_none_wait();
        change(ledger, (number + 1) << site_flags::INTERVAL_SHIFT);
    });
    if begun.is_none() {
        ledger.header().lost.intervals.fetch_add(1, Relaxed);
    }
}

/// The program has called `muntrace()`.
pub fn end(ledger: &Ledger, regs: Registers) {
    let _ = runtime::with_state(ledger, regs, |state| {
        if tag() != 0 {
            let site = caller_site(ledger, state, regs);
            close(ledger, interval_state::ENDED, site);
        }
    });
}

/// The process ends. The busy mark must be set.
pub fn end_with_process(ledger: &Ledger) {
    if tag() != 0 && LOCK.is_open() {
        close(ledger, interval_state::ENDED_WITH_PROGRAM, 0);
    }
}

fn close(ledger: &Ledger, state: u32, end_site: u32) {
    let _guard = LOCK.lock();
    let Some(number) = site_flags::interval(tag()) else { return };
    change(ledger, 0);
    let Some(record) = ledger.interval(number) else { return };
    record.end_site.store(end_site, Relaxed);
    record.end_ns.store(raw::clock_ns(1), Relaxed);
    if summarise(ledger, number, record).is_none() {
        ledger.header().lost.intervals.fetch_add(1, Relaxed);
    }
    record.state.store(state, Release);
}

/// A site with the stack of the hook's caller. It never allocates: no call of an allocation function returns there.
fn caller_site(ledger: &Ledger, state: &mut ThreadState, regs: Registers) -> u32 {
    let intern = |walked: Walked<'_>| {
        let bits = match walked.end {
            WalkEnd::Complete => 0,
            WalkEnd::TooDeep => site_flags::CUT_DEEP,
            WalkEnd::NoRule | WalkEnd::BadStack => site_flags::BROKEN,
        };
        runtime::refresh_modules(ledger);
        let modules = MODULES.read(ledger);
        SITES.intern(ledger, walked.frames, AllocFn::Malloc, bits, |pc| modules.epoch_of(pc))
    };
    // SAFETY: the cache is this thread's; the hook's caller is suspended in the hook.
    unsafe { UNWINDER.walk(&raw const state.cache, regs, intern) }
}

/// What all threads did at one site.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Sum {
    allocated_blocks: u64,
    allocated_bytes: u64,
    freed_blocks: u64,
    freed_bytes: u64,
}

impl Sum {
    fn live_blocks(&self) -> u64 {
        let live = self.allocated_blocks.wrapping_sub(self.freed_blocks);
        if (live as i64) < 0 { 0 } else { live }
    }

    fn live_bytes(&self) -> u64 {
        let live = self.allocated_bytes.wrapping_sub(self.freed_bytes);
        if (live as i64) < 0 { 0 } else { live }
    }
}

/// Adds up the counters of an interval's sites and writes them. `None` when there was no room for the sites.
fn summarise(ledger: &Ledger, number: u32, record: &IntervalRecord) -> Option<()> {
    let sites = ledger.used(AreaId::Sites) as usize;
    // SAFETY: integers.
    let sums = unsafe { map_slice::<Sum>(sites, false) }?;
    let is_of_it = |site: usize| {
        let record = ledger.site(site as u32);
        record.is_some_and(|record| site_flags::interval(record.flags.load(Relaxed)) == Some(number))
    };
    for chunk in 0..ledger.used(AreaId::Chunks) {
        let first = ledger.chunk(chunk).map_or(0, |chunk| chunk.first_site.load(Acquire)) as usize;
        for offset in 0..COUNTERS_PER_CHUNK {
            let (Some(sum), Some(counters)) =
                (sums.get_mut(first + offset), ledger.counters(chunk * COUNTERS_PER_CHUNK as u32 + offset as u32))
            else {
                continue;
            };
            if counters.allocated_blocks.load(Relaxed) | counters.freed_blocks.load(Relaxed) != 0
                && is_of_it(first + offset)
            {
                let add = |to: &mut u64, more: u64| *to = to.wrapping_add(more);
                add(&mut sum.allocated_blocks, counters.allocated_blocks.load(Relaxed));
                add(&mut sum.allocated_bytes, counters.allocated_bytes.load(Relaxed));
                add(&mut sum.freed_blocks, counters.freed_blocks.load(Relaxed));
                add(&mut sum.freed_bytes, counters.freed_bytes.load(Relaxed));
            }
        }
    }
    let total = |of: fn(&Sum) -> u64| sums.iter().fold(0u64, |all, sum| all.wrapping_add(of(sum)));
    record.allocated_blocks.store(total(|sum| sum.allocated_blocks), Relaxed);
    record.allocated_bytes.store(total(|sum| sum.allocated_bytes), Relaxed);
    let live = sums.iter().filter(|sum| sum.live_blocks() > 0).count() as u32;
    let written = ledger.claim(AreaId::IntervalSites, live).map(|first| {
        record.first_record.store(first, Relaxed);
        record.records.store(live, Relaxed);
        let of_it = sums.iter().enumerate().filter(|(_, sum)| sum.live_blocks() > 0);
        for (at, (site, sum)) in (first..).zip(of_it) {
            let Some(record) = ledger.interval_site(at) else { break };
            record.site.store(site as u32, Relaxed);
            record.allocated_blocks.store(sum.allocated_blocks, Relaxed);
            record.allocated_bytes.store(sum.allocated_bytes, Relaxed);
            record.live_blocks.store(sum.live_blocks(), Relaxed);
            record.live_bytes.store(sum.live_bytes(), Relaxed);
        }
    });
    // SAFETY: nothing refers to it any more.
    unsafe { unmap_slice(sums) };
    written
}
