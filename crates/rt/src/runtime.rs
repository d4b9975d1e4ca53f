//! What happens at an allocation and at a release: the hot path of the injected code.
//!
//! The hooks call [`allocated`] after the original function has succeeded, and [`released`] before they call it.
//! Both set the thread's busy mark; what allocates while it is set (a signal handler, the dynamic linker on our
//! behalf) is recorded too, but at a site without a stack and in shared counters.

use crate::blocks::{self, BlockInfo, Taken};
use crate::canary;
use crate::hints;
use crate::intervals;
use crate::lifetimes;
use crate::misuse;
use crate::modules::ModuleList;
use crate::sites::{SiteTable, family};
use crate::thread::{self, ThreadState, tls};
use crate::unwind::{MAX_FRAMES, Registers, Unwinder, WalkEnd, Walked, stack_of};
use crate::waiting::{self, is_waiting};
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::Ordering::{self, Acquire, Relaxed};
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, compiler_fence};
use leakscope_ledger::layout::{LIFETIME_SAMPLE, SiteCounters, flags, site_flags, state};
use leakscope_ledger::writer::Ledger;
use leakscope_model::AllocFn;

/// The process's unwinder.
pub static UNWINDER: Unwinder = Unwinder::new();
/// The process's sites.
pub static SITES: SiteTable = SiteTable::new();
/// The process's modules.
pub static MODULES: ModuleList = ModuleList::new();

struct LedgerCell(UnsafeCell<MaybeUninit<Ledger>>);
// SAFETY: written once, before MODE is set; read only after.
unsafe impl Sync for LedgerCell {}
static LEDGER: LedgerCell = LedgerCell(UnsafeCell::new(MaybeUninit::uninit()));
/// How this process is recorded: bits of [`mode`]; 0 until recording begins. Hooks written in assembly read it.
pub static MODE: AtomicU32 = AtomicU32::new(0);
static FLAGS: AtomicU64 = AtomicU64::new(0);
static MAX_DEPTH: AtomicU32 = AtomicU32::new(MAX_FRAMES as u32);

/// Bits of [`MODE`].
pub mod mode {
    /// Recording has begun, and the ledger is there.
    pub const RECORDING: u32 = 1;
    /// Only a sample of the allocations is recorded.
    pub const SAMPLING: u32 = 2;
    /// Blocks have glibc's chunk header in front of them.
    pub const GLIBC_CHUNKS: u32 = 4;
    /// Blocks have a canary.
    pub const CANARY: u32 = 8;
    /// Releases may wait (see [`crate::waiting`]).
    pub const WAIT: u32 = 16;
    /// Events are logged (see [`crate::event_log`]).
    pub const LOGGING: u32 = 32;
    /// Nothing is recorded, only logged: in a copy of the process that lets libc release what it keeps.
    pub const LOG_ONLY: u32 = 64;
    /// Releases may wait whenever nothing forbids it.
    pub const MAY_WAIT: u32 = 128;
}

/// Starts recording into `ledger`. `glibc_chunks` says that blocks have glibc's chunk header in front of them.
/// False when there is no memory.
pub fn start(ledger: Ledger, glibc_chunks: bool) -> bool {
    if !SITES.start(&ledger) {
        return false;
    }
    let config = *ledger.config();
    FLAGS.store(config.flags, Relaxed);
    MAX_DEPTH.store(config.max_frames.clamp(1, MAX_FRAMES as u32), Relaxed);
    let mut mode = mode::RECORDING;
    if glibc_chunks {
        mode |= mode::GLIBC_CHUNKS;
        if config.flags & flags::CANARY != 0 {
            mode |= mode::CANARY;
        }
        // Where the stack of every release is wanted, no release may wait.
        if config.flags & flags::FREE_STACKS == 0 {
            mode |= mode::WAIT | mode::MAY_WAIT;
        }
    }
    if config.sample_bytes != 0 {
        mode = mode & mode::GLIBC_CHUNKS | mode::RECORDING | mode::SAMPLING;
    }
    // SAFETY: nobody reads before MODE is set, and `start` is called once.
    unsafe { (*LEDGER.0.get()).write(ledger) };
    MODE.store(mode, Ordering::Release);
    true
}

/// The ledger, once recording has begun.
#[inline(always)]
pub fn ledger() -> Option<&'static Ledger> {
    if MODE.load(Acquire) == 0 {
        return None;
    }
    // SAFETY: MODE says that it was written.
    Some(unsafe { (*LEDGER.0.get()).assume_init_ref() })
}

/// Stops recording for good (a forked child that must be silent).
pub fn stop() {
    MODE.store(0, Ordering::Release);
}

/// Whether all of these bits of `ledger::layout::flags` are set.
#[inline(always)]
pub fn flag(bits: u64) -> bool {
    FLAGS.load(Relaxed) & bits == bits
}

/// How this process is recorded: bits of the module [`mode`]. 0 when it is not.
#[inline(always)]
pub fn mode() -> u32 {
    MODE.load(Acquire)
}

/// Whether blocks have glibc's chunk header in front of them.
#[inline(always)]
pub fn has_glibc_chunks() -> bool {
    mode() & mode::GLIBC_CHUNKS != 0
}

/// Whether only a sample of the allocations is recorded.
#[inline(always)]
pub fn sampling() -> bool {
    mode() & mode::SAMPLING != 0
}

/// Lets no release wait until [`let_wait_again`].
pub fn let_none_wait() {
    MODE.fetch_and(!mode::WAIT, Ordering::AcqRel);
}

/// Lets releases wait again, unless an interval is open, events are logged, or the process is at its end.
pub fn let_wait_again(ledger: &Ledger) {
    let is_running = ledger.header().state.load(Relaxed) == state::RUNNING;
    if is_running && intervals::tag() == 0 && mode() & (mode::MAY_WAIT | mode::LOGGING) == mode::MAY_WAIT {
        MODE.fetch_or(mode::WAIT, Ordering::AcqRel);
    }
}

/// Adds to a counter that only this thread writes.
#[inline(always)]
pub(crate) fn add(counter: &AtomicU64, by: u64) -> u64 {
    let sum = counter.load(Relaxed).wrapping_add(by);
    counter.store(sum, Relaxed);
    sum
}

/// Runs `body` on the calling thread's state with the busy mark set; `None` when it is set already or there is no
/// memory for a state.
#[inline(always)]
pub fn with_state<R>(ledger: &Ledger, regs: Registers, body: impl FnOnce(&mut ThreadState) -> R) -> Option<R> {
    let words = tls();
    // SAFETY: the calling thread's own words; the busy mark keeps signal handlers of this thread away from the state.
    unsafe {
        if (*words).busy != 0 {
            return None;
        }
        (*words).busy = 1;
        compiler_fence(Ordering::SeqCst);
        let mut state = (*words).state;
        if state.is_null() {
            state = attach(ledger, regs);
            (*words).state = state;
        }
        let result = state.as_mut().map(body);
        compiler_fence(Ordering::SeqCst);
        (*words).busy = 0;
        result
    }
}

/// Address space that the kernel reserves for the main stack at the least (mmap's gap).
const MAIN_STACK_BYTES: u64 = 120 << 20;

#[cold]
#[inline(never)]
fn attach(ledger: &Ledger, regs: Registers) -> *mut ThreadState {
    let state = thread::attach(ledger);
    crate::stop::stay_installed();
    // SAFETY: null or this thread's state.
    if let Some(state) = unsafe { state.as_ref() }
        && let Some(mut stack) = stack_of(regs.rsp)
    {
        state.stack_high.store(stack.high, Relaxed);
        if state.tid.load(Relaxed) == crate::raw::getpid() {
            // The main stack grows; the kernel keeps at least this much below it free of other mappings.
            stack.low = stack.low.min(stack.high.saturating_sub(MAIN_STACK_BYTES));
        }
        state.cache.set_stack(stack);
    }
    state
}

/// The key under which a function's signatures and hashes are kept; never 0.
#[inline(always)]
fn key(value: u64, function: AllocFn) -> u64 {
    value.wrapping_add((function as u64).wrapping_mul(0xD6E8_FEB8_6659_FD93)).max(1)
}

/// The site of the present stack for `function`.
#[inline(always)]
pub fn site_of(ledger: &Ledger, state: &mut ThreadState, function: AllocFn, regs: Registers) -> u32 {
    // SAFETY: the cache is this thread's; the hook's caller is suspended in the hook.
    if let Some(site) = unsafe {
        UNWINDER.recall(&raw const state.cache, regs, |signature| SITES.recall(key(signature.get(), function)))
    } {
        return site;
    }
    walk_to_site(ledger, state, function, regs)
}

#[cold]
fn walk_to_site(ledger: &Ledger, state: &mut ThreadState, function: AllocFn, regs: Registers) -> u32 {
    // SAFETY: as in `site_of`.
    unsafe { UNWINDER.walk(&raw const state.cache, regs, |walked| site_of_walk(ledger, function, walked)) }
}

fn site_of_walk(ledger: &Ledger, function: AllocFn, walked: Walked<'_>) -> u32 {
    if walked.frames.first().is_some_and(|&caller| crate::roots::is_allocator_code(caller)) {
        // What an allocator keeps for itself is none of the program's.
        return OUR_SITE;
    }
    let epoch = UNWINDER.epoch();
    let hash = key(walked.stack_hash ^ u64::from(epoch).rotate_right(16), function);
    let site = SITES.find(hash).unwrap_or_else(|| {
        let kept = walked.frames.len().min(MAX_DEPTH.load(Relaxed) as usize);
        let mut bits = match walked.end {
            WalkEnd::Complete => 0,
            WalkEnd::TooDeep => site_flags::CUT_DEEP,
            WalkEnd::NoRule | WalkEnd::BadStack => site_flags::BROKEN,
        };
        if kept < walked.frames.len() {
            bits |= site_flags::CUT_DEEP;
        }
        // Not before the epoch: see `intervals::change`.
        let tag = intervals::tag();
        if bits & site_flags::CUT_DEEP != 0 {
            ledger.header().lost.deep_stacks.fetch_add(1, Relaxed);
        } else if bits != 0 {
            ledger.header().lost.broken_stacks.fetch_add(1, Relaxed);
        }
        refresh_modules(ledger);
        // The first thread that a program makes brings glibc's handler along; its stack is new.
        crate::stop::stay_installed();
        let modules = MODULES.read(ledger);
        let frames = walked.frames.get(..kept).unwrap_or(&[]);
        let site = SITES.intern(ledger, frames, function, bits | tag, |pc| modules.epoch_of(pc));
        SITES.enter(hash, site, epoch);
        drop(modules);
        crate::deferred::settle(ledger);
        site
    });
    if let Some(signature) = walked.signature {
        SITES.remember(key(signature.get(), function), site);
    }
    site
}

/// Whether our locks are free, now or within a few milliseconds. A signal handler that has interrupted their holder would
/// wait for ever.
pub fn locks_are_free() -> bool {
    for _ in 0..10 {
        if MODULES.is_open() && SITES.is_open() && misuse::is_open() {
            return true;
        }
        crate::raw::sleep_ns(1_000_000);
    }
    false
}

/// Brings the module list up to date, and makes the unwinder forget what was unloaded. The busy mark must be set.
pub fn refresh_modules(ledger: &Ledger) {
    if MODULES.refresh(ledger) {
        set_unwinder_epoch(ledger);
        SITES.forget_last();
    }
}

/// Makes the unwinder forget: code has gone, or an interval has begun or ended.
pub(crate) fn set_unwinder_epoch(ledger: &Ledger) {
    UNWINDER.set_epoch(ledger.header().epoch.load(Relaxed).wrapping_add(intervals::changes()) as u16);
}

/// Records a block that `function` has just returned: `start` is not 0, and is given back. `regs` are those at the hook's
/// entry. Only while every allocation is recorded.
#[inline(never)]
pub fn allocated(start: u64, bytes: usize, function: AllocFn, regs: Registers) -> u64 {
    let mode = mode();
    let Some(ledger) = ledger() else { return start };
    let words = tls();
    // SAFETY: the calling thread's own words; the busy mark keeps signal handlers of this thread away from the state.
    unsafe {
        match (*words).state.as_mut() {
            Some(state) if (*words).busy == 0 => {
                (*words).busy = 1;
                compiler_fence(Ordering::SeqCst);
                let site = site_of(ledger, state, function, regs);
                enter(ledger, state, mode, start, bytes, site, regs);
                compiler_fence(Ordering::SeqCst);
                (*words).busy = 0;
            }
            _ => allocated_first_or_busy(ledger, mode, start, bytes, function, regs),
        }
    }
    start
}

/// The first allocation of a thread, or one in a signal handler that has interrupted our own code.
#[cold]
#[inline(never)]
fn allocated_first_or_busy(ledger: &Ledger, mode: u32, start: u64, bytes: usize, function: AllocFn, regs: Registers) {
    let done = with_state(ledger, regs, |state| {
        let site = site_of(ledger, state, function, regs);
        enter(ledger, state, mode, start, bytes, site, regs);
    });
    if done.is_none() {
        allocated_while_busy(ledger, start, bytes, function, regs);
    }
}

#[inline(always)]
fn enter(ledger: &Ledger, state: &mut ThreadState, mode: u32, start: u64, bytes: usize, site: u32, regs: Registers) {
    if mode & mode::CANARY != 0 {
        // SAFETY: the mode says that the block is glibc's; nobody else knows it yet.
        unsafe { canary::arm(start, bytes) };
    }
    let Some((counters, block_family)) = state.counters(ledger, &SITES, site) else {
        return enter_uncounted(ledger, start, bytes, site);
    };
    if site == OUR_SITE {
        return enter_uncounted(ledger, start, bytes, site);
    }
    let allocated_blocks = count_allocation(counters, bytes as u64);
    state.until_lifetime = state.until_lifetime.wrapping_sub(1);
    let sampled = state.until_lifetime == 0;
    let mut side = false;
    let mut hint = hints::NOTHING;
    if sampled {
        state.until_lifetime = LIFETIME_SAMPLE;
        side = lifetimes::begin(start);
    } else if waiting::may_wait(mode, allocated_blocks, bytes, block_family) {
        hint = hints::may_wait(start, block_family);
    }
    if !blocks::insert(start, bytes, site, side, hint) {
        ledger.header().lost.blocks.fetch_add(1, Relaxed);
    }
    state.last_block = start;
    if let Some(record) = state.record() {
        let live = add(&record.live_bytes, bytes as u64);
        if live as i64 > record.peak_bytes.load(Relaxed) as i64 {
            record.peak_bytes.store(live, Relaxed);
        }
    }
    if sampled {
        blocks::sampled(start);
        look_outside(ledger, regs);
    }
}

/// A block of our own, or one for whose site there are no counters.
#[cold]
#[inline(never)]
fn enter_uncounted(ledger: &Ledger, start: u64, bytes: usize, site: u32) {
    if !blocks::insert(start, bytes, site, false, hints::NOTHING) {
        ledger.header().lost.blocks.fetch_add(1, Relaxed);
    }
}

/// Counts an allocation; gives the number of the site's allocations in this thread.
#[inline(always)]
fn count_allocation(counters: &SiteCounters, bytes: u64) -> u64 {
    if bytes > counters.largest_bytes.load(Relaxed) {
        counters.largest_bytes.store(bytes, Relaxed);
    }
    count_allocations(counters, 1, bytes)
}

/// Adds allocations to counters that only this thread writes; gives their number.
#[inline(always)]
pub(crate) fn count_allocations(counters: &SiteCounters, blocks: u64, bytes: u64) -> u64 {
    let allocated_blocks = add(&counters.allocated_blocks, blocks);
    let blocks = allocated_blocks.wrapping_sub(counters.freed_blocks.load(Relaxed));
    let live = add(&counters.allocated_bytes, bytes).wrapping_sub(counters.freed_bytes.load(Relaxed));
    if live as i64 > counters.peak_bytes.load(Relaxed) as i64 {
        counters.peak_bytes.store(live, Relaxed);
    }
    if blocks as i64 > counters.peak_blocks.load(Relaxed) as i64 {
        counters.peak_blocks.store(blocks, Relaxed);
    }
    allocated_blocks
}

/// Site of blocks that libc holds on our behalf: known, so that their release is right, but none of the program's.
pub const OUR_SITE: u32 = leakscope_ledger::layout::COUNTERS_PER_CHUNK as u32 - 1;
// `SiteTable` gives each function a site below it.
const _: () =
    assert!(AllocFn::Realloc as u32 + 1 < OUR_SITE && (AllocFn::NewArrayAlignedNothrow as u32) < OUR_SITE - 1);

#[cold]
#[inline(never)]
fn allocated_while_busy(ledger: &Ledger, start: u64, bytes: usize, function: AllocFn, regs: Registers) {
    // SAFETY: the calling thread's own words.
    if unsafe { (*tls()).busy } == thread::OURS {
        blocks::insert(start, bytes, OUR_SITE, false, hints::NOTHING);
        return;
    }
    let site = site_while_busy(ledger, start, function, regs).unwrap_or(SiteTable::bare_site(function));
    if !blocks::insert(start, bytes, site, false, hints::NOTHING) {
        ledger.header().lost.blocks.fetch_add(1, Relaxed);
    }
    arm_canary(start, bytes);
    if let Some(counters) = thread::shared_counters(ledger, site) {
        counters.allocated_blocks.fetch_add(1, Relaxed);
        counters.allocated_bytes.fetch_add(bytes as u64, Relaxed);
    }
}

fn arm_canary(start: u64, bytes: usize) {
    if mode() & mode::CANARY != 0 {
        // SAFETY: the mode says that the block is glibc's; it is this thread's to fill.
        unsafe { canary::arm(start, bytes) };
    }
}

/// Called when the observer has asked for a leak check, from inside a hook.
pub type OnWanted = fn(Registers);
static ON_WANTED: AtomicUsize = AtomicUsize::new(0);

/// Tells what to do when a leak check is wanted.
pub fn on_wanted(function: OnWanted) {
    ON_WANTED.store(function as usize, Ordering::Release);
}

/// Now and then: does the observer want a leak check? A program that allocates finds out by itself, without a signal.
#[cold]
fn look_outside(ledger: &Ledger, regs: Registers) {
    let header = ledger.header();
    if header.snapshot_wanted.load(Relaxed) != header.snapshot_done.load(Relaxed) {
        let function = ON_WANTED.load(Acquire);
        if function != 0 {
            // SAFETY: `on_wanted` stored a function of this type.
            let function: OnWanted = unsafe { core::mem::transmute(function) };
            function(regs);
        }
    }
}

/// The site of a stack in a signal handler that has interrupted our own code: interned only if the interrupted code does
/// not hold a lock.
fn site_while_busy(ledger: &Ledger, start: u64, function: AllocFn, regs: Registers) -> Option<u32> {
    // SAFETY: the calling thread's own words; null or this thread's state, of which only the unwinder's part is used,
    // and that allows for interruptions.
    let state = unsafe { (*tls()).state.as_ref() }?;
    let keep = |walked: Walked<'_>| {
        let frames = walked.frames.get(..walked.frames.len().min(MAX_DEPTH.load(Relaxed) as usize))?;
        let bits = intervals::tag() | if walked.end == WalkEnd::Complete { 0 } else { site_flags::BROKEN };
        let site = MODULES
            .try_read(ledger)
            .and_then(|modules| SITES.try_intern(ledger, frames, function, bits, |pc| modules.epoch_of(pc)));
        if site.is_none() {
            crate::deferred::keep(start, frames, function, bits);
        }
        site
    };
    // SAFETY: the cache is this thread's; the hook's caller is suspended in the hook.
    unsafe { UNWINDER.walk_interrupting(&raw const state.cache, regs, keep) }
}

/// What the hook is to do with a release.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Pass it on to the original; the block was known.
    Known(BlockInfo),
    /// Pass it on; the block was never seen (allocated before us, or around us).
    Foreign,
    /// Do not pass it on: it was a wrong call, and it has been recorded.
    Refused,
}

/// Records that `function` is about to release the block at `start` (not 0).
#[inline(always)]
pub fn released(ledger: &Ledger, start: u64, function: AllocFn, regs: Registers) -> Verdict {
    with_state(ledger, regs, |state| {
        if is_waiting(start) {
            return misuse::release_of_no_block(ledger, state, start, function, regs);
        }
        match blocks::take(start) {
            Taken::Live(info) => {
                leave(ledger, state, &info, function, regs);
                Verdict::Known(info)
            }
            Taken::Freed(_) | Taken::Unknown => misuse::release_of_no_block(ledger, state, start, function, regs),
        }
    })
    .unwrap_or_else(|| released_while_busy(ledger, start))
}

#[inline(always)]
fn leave(ledger: &Ledger, state: &mut ThreadState, info: &BlockInfo, function: AllocFn, regs: Registers) {
    if info.site == OUR_SITE {
        return;
    }
    if let Some((counters, block_family)) = state.counters(ledger, &SITES, info.site) {
        add(&counters.freed_blocks, 1);
        add(&counters.freed_bytes, info.bytes);
        if state.last_block == info.start {
            add(&counters.temporary_blocks, 1);
            state.last_block = 0;
        }
        if info.side {
            lifetimes::end(info.start, counters);
        }
        if block_family != family::of(function.family()) {
            misuse::maybe_mismatch(ledger, state, info, block_family, function, regs);
        }
    }
    if let Some(record) = state.record() {
        add(&record.live_bytes, info.bytes.wrapping_neg());
    }
    // SAFETY: the mode says that the block is glibc's and has a canary.
    if mode() & mode::CANARY != 0 && !unsafe { canary::is_whole(info.start, info.bytes as usize) } {
        misuse::overrun(ledger, state, info, function, regs);
    }
    if flag(flags::FREE_STACKS) {
        misuse::remember_free(ledger, state, info, function, regs);
    }
}

#[cold]
#[inline(never)]
fn released_while_busy(ledger: &Ledger, start: u64) -> Verdict {
    if is_waiting(start) {
        return Verdict::Refused;
    }
    match blocks::take(start) {
        Taken::Live(info) => {
            if info.site != OUR_SITE
                && let Some(counters) = thread::shared_counters(ledger, info.site)
            {
                counters.freed_blocks.fetch_add(1, Relaxed);
                counters.freed_bytes.fetch_add(info.bytes, Relaxed);
            }
            Verdict::Known(info)
        }
        // A wrong call inside a signal handler that interrupted us: without a stack there is nothing to report.
        Taken::Freed(_) => Verdict::Refused,
        Taken::Unknown => Verdict::Foreign,
    }
}

/// Runs `body`, an original `realloc`, while the leak check takes the old block for live.
#[inline(always)]
pub fn while_pending<R>(start: u64, body: impl FnOnce() -> R) -> R {
    // SAFETY: the calling thread's own words; null or this thread's state, of which one atomic is used.
    let state = unsafe { (*tls()).state.as_ref() };
    if let Some(state) = state {
        state.pending_start.store(start, Ordering::Release);
    }
    let result = body();
    if let Some(state) = state {
        state.pending_start.store(0, Ordering::Release);
    }
    result
}

/// A `realloc` failed after [`released`]: the old block is still there.
#[cold]
pub fn still_there(ledger: &Ledger, info: &BlockInfo, regs: Registers) {
    blocks::put_back(info.start);
    arm_canary(info.start, info.bytes as usize);
    let done = with_state(ledger, regs, |state| {
        if let Some((counters, _)) = state.counters(ledger, &SITES, info.site) {
            add(&counters.freed_blocks, 1u64.wrapping_neg());
            add(&counters.freed_bytes, info.bytes.wrapping_neg());
        }
    });
    if done.is_none()
        && let Some(counters) = thread::shared_counters(ledger, info.site)
    {
        counters.freed_blocks.fetch_sub(1, Relaxed);
        counters.freed_bytes.fetch_sub(info.bytes, Relaxed);
    }
}
