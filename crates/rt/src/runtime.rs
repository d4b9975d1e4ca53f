//! What happens at an allocation and at a release: the hot path of the injected code.
//!
//! The hooks call [`allocated`] after the original function has succeeded, and [`released`] before they call it.
//! Both set the thread's busy mark; what allocates while it is set (a signal handler, the dynamic linker on our
//! behalf) is recorded too, but at a site without a stack and in shared counters.

use crate::blocks::{self, BlockInfo, Taken};
use crate::hints;
use crate::lifetimes;
use crate::misuse;
use crate::modules::ModuleList;
use crate::release_queue::{self, Release};
use crate::sites::{SiteTable, family};
use crate::thread::{self, ThreadState, tls};
use crate::unwind::{MAX_FRAMES, Registers, Unwinder, WalkEnd, stack_of};
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::Ordering::{self, Acquire, Relaxed};
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, compiler_fence};
use leakscope_ledger::layout::{LIFETIME_SAMPLE, SiteCounters, flags, site_flags};
use leakscope_ledger::writer::Ledger;
use leakscope_model::AllocFn;

/// The process's unwinder.
pub static UNWINDER: Unwinder = Unwinder::new();
/// The process's sites.
pub static SITES: SiteTable = SiteTable::new();
/// The process's modules.
pub static MODULES: ModuleList = ModuleList::new();

struct LedgerCell(UnsafeCell<MaybeUninit<Ledger>>);
// SAFETY: written once, before READY is set; read only after.
unsafe impl Sync for LedgerCell {}
static LEDGER: LedgerCell = LedgerCell(UnsafeCell::new(MaybeUninit::uninit()));
static READY: AtomicU32 = AtomicU32::new(0);
static FLAGS: AtomicU64 = AtomicU64::new(0);
static MAX_DEPTH: AtomicU32 = AtomicU32::new(MAX_FRAMES as u32);
static SAMPLE_BYTES: AtomicU64 = AtomicU64::new(0);
static GLIBC_CHUNKS: AtomicU32 = AtomicU32::new(0);
static RELEASES_WAIT: AtomicU32 = AtomicU32::new(0);

/// Starts recording into `ledger`. `glibc_chunks` says that blocks have glibc's chunk header in front of them.
/// False when there is no memory.
pub fn start(ledger: Ledger, glibc_chunks: bool) -> bool {
    if !SITES.start(&ledger) {
        return false;
    }
    let config = *ledger.config();
    FLAGS.store(config.flags, Relaxed);
    MAX_DEPTH.store(config.max_frames.clamp(1, MAX_FRAMES as u32), Relaxed);
    SAMPLE_BYTES.store(config.sample_bytes, Relaxed);
    GLIBC_CHUNKS.store(u32::from(glibc_chunks), Relaxed);
    // The stack of every release is wanted, or only a few releases are looked at: then there is nothing to wait for.
    let wait = glibc_chunks && config.flags & flags::FREE_STACKS == 0 && config.sample_bytes == 0;
    RELEASES_WAIT.store(u32::from(wait), Relaxed);
    // SAFETY: nobody reads before READY is set, and `start` is called once.
    unsafe { (*LEDGER.0.get()).write(ledger) };
    READY.store(1, Ordering::Release);
    true
}

/// The ledger, once recording has begun.
#[inline(always)]
pub fn ledger() -> Option<&'static Ledger> {
    if READY.load(Acquire) == 0 {
        return None;
    }
    // SAFETY: READY says that it was written.
    Some(unsafe { (*LEDGER.0.get()).assume_init_ref() })
}

/// Stops recording for good (a forked child that must be silent).
pub fn stop() {
    READY.store(0, Ordering::Release);
}

/// Whether all of these bits of `ledger::layout::flags` are set.
#[inline(always)]
pub fn flag(bits: u64) -> bool {
    FLAGS.load(Relaxed) & bits == bits
}

/// Whether blocks have glibc's chunk header in front of them.
#[inline(always)]
pub fn has_glibc_chunks() -> bool {
    GLIBC_CHUNKS.load(Relaxed) != 0
}

/// Whether only a sample of the allocations is recorded.
#[inline(always)]
pub fn sampling() -> bool {
    SAMPLE_BYTES.load(Relaxed) != 0
}

/// Whether releases may wait (see `release_queue`).
#[inline(always)]
pub fn releases_wait() -> bool {
    RELEASES_WAIT.load(Relaxed) != 0
}

/// Adds to a counter that only this thread writes.
#[inline(always)]
fn add(counter: &AtomicU64, by: u64) -> u64 {
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
#[inline(never)]
fn walk_to_site(ledger: &Ledger, state: &mut ThreadState, function: AllocFn, regs: Registers) -> u32 {
    let mut frames = [0; MAX_FRAMES];
    // SAFETY: as in `site_of`.
    let walked = unsafe { UNWINDER.walk(&raw const state.cache, regs, &mut frames) };
    if crate::roots::is_allocator_code(frames[0]) {
        // What an allocator keeps for itself is none of the program's.
        return OUR_SITE;
    }
    let hash = key(walked.stack_hash ^ u64::from(UNWINDER.epoch()).rotate_right(16), function);
    let site = SITES.find(hash).unwrap_or_else(|| {
        let kept = walked.frames.min(MAX_DEPTH.load(Relaxed) as usize);
        let mut bits = match walked.end {
            WalkEnd::Complete => 0,
            WalkEnd::TooDeep => site_flags::CUT_DEEP,
            WalkEnd::NoRule | WalkEnd::BadStack => site_flags::BROKEN,
        };
        if kept < walked.frames {
            bits |= site_flags::CUT_DEEP;
        }
        if bits & site_flags::CUT_DEEP != 0 {
            ledger.header().lost.deep_stacks.fetch_add(1, Relaxed);
        } else if bits != 0 {
            ledger.header().lost.broken_stacks.fetch_add(1, Relaxed);
        }
        refresh_modules(ledger);
        // The first thread that a program makes brings glibc's handler along; its stack is new.
        crate::stop::stay_installed();
        let modules = MODULES.read(ledger);
        let frames = frames.get(..kept).unwrap_or(&[]);
        let site = SITES.intern(ledger, frames, function, bits, |pc| modules.epoch_of(pc));
        SITES.enter(hash, site);
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
        UNWINDER.set_epoch(ledger.header().epoch.load(Relaxed) as u16);
        SITES.forget_last();
    }
}

/// Records a block that `function` has just returned: `start` is not 0. `regs` are those at the hook's entry.
#[inline(always)]
pub fn allocated(ledger: &Ledger, start: u64, bytes: usize, function: AllocFn, regs: Registers) {
    let done = with_state(ledger, regs, |state| {
        let site = site_of(ledger, state, function, regs);
        enter(ledger, state, start, bytes, site, regs);
    });
    if done.is_none() {
        allocated_while_busy(ledger, start, bytes, function, regs);
    }
}

#[inline(always)]
fn enter(ledger: &Ledger, state: &mut ThreadState, start: u64, bytes: usize, site: u32, regs: Registers) {
    if site == OUR_SITE {
        blocks::insert(start, bytes, site, false, hints::NOTHING);
        return;
    }
    state.until_lifetime = state.until_lifetime.wrapping_sub(1);
    let (mut side, mut sampled) = (false, false);
    if state.until_lifetime == 0 {
        state.until_lifetime = LIFETIME_SAMPLE;
        side = lifetimes::begin(start);
        sampled = true;
    }
    if flag(flags::CANARY) {
        arm_canary(start, bytes);
    }
    let mut hint = hints::NOTHING;
    if let Some((counters, block_family)) = state.counters(ledger, &SITES, site) {
        count_allocation(counters, bytes as u64);
        let is_common = counters.allocated_blocks.load(Relaxed) > release_queue::COMMON_BLOCKS;
        if releases_wait() & is_common & (bytes <= release_queue::MOST_BYTES) & !side & (block_family != family::MIXED)
        {
            hint = hints::may_wait(start, block_family);
        }
    }
    if !blocks::insert(start, bytes, site, side, hint) {
        ledger.header().lost.blocks.fetch_add(1, Relaxed);
    }
    if sampled {
        blocks::sampled(start);
        look_outside(ledger, regs);
    }
    state.last_block = start;
    let bytes = bytes as u64;
    if let Some(record) = state.record() {
        let live = add(&record.live_bytes, bytes);
        if live as i64 > record.peak_bytes.load(Relaxed) as i64 {
            record.peak_bytes.store(live, Relaxed);
        }
    }
}

#[inline(always)]
fn count_allocation(counters: &SiteCounters, bytes: u64) {
    count_allocations(counters, 1, bytes);
    if bytes > counters.largest_bytes.load(Relaxed) {
        counters.largest_bytes.store(bytes, Relaxed);
    }
}

/// Adds allocations to counters that only this thread writes.
#[inline(always)]
pub(crate) fn count_allocations(counters: &SiteCounters, blocks: u64, bytes: u64) {
    let blocks = add(&counters.allocated_blocks, blocks).wrapping_sub(counters.freed_blocks.load(Relaxed));
    let live = add(&counters.allocated_bytes, bytes).wrapping_sub(counters.freed_bytes.load(Relaxed));
    if live as i64 > counters.peak_bytes.load(Relaxed) as i64 {
        counters.peak_bytes.store(live, Relaxed);
    }
    if blocks as i64 > counters.peak_blocks.load(Relaxed) as i64 {
        counters.peak_blocks.store(blocks, Relaxed);
    }
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
    if flag(flags::CANARY) {
        arm_canary(start, bytes);
    }
    if let Some(counters) = thread::shared_counters(ledger, site) {
        counters.allocated_blocks.fetch_add(1, Relaxed);
        counters.allocated_bytes.fetch_add(bytes as u64, Relaxed);
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

/// The site of a stack in a signal handler that has interrupted our own code: walked afresh, and interned only if the
/// interrupted code does not hold a lock.
fn site_while_busy(ledger: &Ledger, start: u64, function: AllocFn, regs: Registers) -> Option<u32> {
    // SAFETY: the calling thread's own words; null or this thread's state, of which only the unwinder's part is used,
    // and that allows for interruptions.
    let state = unsafe { (*tls()).state.as_ref() }?;
    let mut frames = [0; MAX_FRAMES];
    // SAFETY: the cache is this thread's; the hook's caller is suspended in the hook.
    let walked = unsafe { UNWINDER.walk_afresh(&raw const state.cache, regs, &mut frames) };
    let frames = frames.get(..walked.frames.min(MAX_DEPTH.load(Relaxed) as usize))?;
    let bits = if walked.end == WalkEnd::Complete { 0 } else { site_flags::BROKEN };
    let site = MODULES
        .try_read(ledger)
        .and_then(|modules| SITES.try_intern(ledger, frames, function, bits, |pc| modules.epoch_of(pc)));
    if site.is_none() {
        crate::deferred::keep(start, frames, function, bits);
    }
    site
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

/// What became of a release that the program has asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Waiting {
    /// It waits; nothing is to be done now.
    Kept,
    /// It waits, and the block that starts here is to be passed to the original instead.
    Due(u64),
    /// It does not wait: [`released`] is to be called.
    No,
}

/// Lets the release of the block at `start` wait, if it may.
#[inline(always)]
pub fn wait(ledger: &Ledger, start: u64, function: AllocFn, regs: Registers) -> Waiting {
    if !releases_wait() {
        return Waiting::No;
    }
    blocks::prefetch(start);
    let words = tls();
    // SAFETY: the calling thread's own words; the busy mark keeps signal handlers of this thread away from the state.
    // The hook's caller has pushed the return address to which `rsp` points.
    unsafe {
        let Some(state) = (*words).state.as_mut().filter(|_| (*words).busy == 0) else { return Waiting::No };
        // A block that is released right after its allocation is in the cache, and should stay there for the next.
        if state.last_block == start || !hints::claim(start, family::of(function.family())) {
            return Waiting::No;
        }
        (*words).busy = 1;
        compiler_fence(Ordering::SeqCst);
        prefetch(start.wrapping_sub(16));
        let due = state.queue.exchange(start, function, *(regs.rsp as *const u64));
        let halfway = state.queue.halfway();
        if let Some((site, bytes)) = blocks::glance(halfway) {
            state.prefetch_counters(site);
            prefetch(halfway + bytes);
        }
        let passed = due.map(|due| carry_out(ledger, state, &due, true));
        compiler_fence(Ordering::SeqCst);
        (*words).busy = 0;
        passed.map_or(Waiting::Kept, |start| if start == 0 { Waiting::Kept } else { Waiting::Due(start) })
    }
}

#[inline(always)]
fn prefetch(address: u64) {
    use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: a prefetch never faults.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address as *const i8) };
}

/// Records a release that has waited. Gives the block to pass to the original, or 0. What is wrong with it goes
/// unreported where no lock may be taken.
#[inline(always)]
fn carry_out(ledger: &Ledger, state: &mut ThreadState, release: &Release, may_lock: bool) -> u64 {
    let Taken::Live(info) = blocks::take(release.start) else {
        if may_lock {
            misuse::late_double_free(ledger, state, release);
        }
        return 0;
    };
    if let Some((counters, _)) = state.counters(ledger, &SITES, info.site) {
        add(&counters.freed_blocks, 1);
        add(&counters.freed_bytes, info.bytes);
    }
    if let Some(record) = state.record() {
        add(&record.live_bytes, info.bytes.wrapping_neg());
    }
    if flag(flags::CANARY) && !canary_is_whole(info.start, info.bytes as usize) && may_lock {
        misuse::late_overrun(ledger, state, &info, release);
    }
    info.start
}

/// The block whose release by this thread waits longest, to be passed to the original: it waits no more.
#[cold]
pub fn next_due(ledger: &Ledger, regs: Registers) -> Option<u64> {
    let next = |state: &mut ThreadState| {
        while let Some(due) = state.queue.take() {
            let start = carry_out(ledger, state, &due, true);
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
pub fn end_waiting(ledger: &Ledger, others: bool) {
    RELEASES_WAIT.store(0, Ordering::Release);
    // SAFETY: the calling thread's own words; the busy mark is set. Its state counts for all.
    let Some(state) = (unsafe { (*tls()).state.as_mut() }) else { return };
    let may_lock = locks_are_free();
    while let Some(due) = state.queue.take() {
        carry_out(ledger, state, &due, may_lock);
    }
    thread::for_each_state(|other| {
        if !others {
            return;
        }
        for due in other.queue.drain_from_outside() {
            carry_out(ledger, state, &due, may_lock);
        }
    });
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
    if flag(flags::CANARY) && !canary_is_whole(info.start, info.bytes as usize) {
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
    if flag(flags::CANARY) {
        arm_canary(info.start, info.bytes as usize);
    }
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

/// What stands past a block's requested end, up to 16 bytes of it.
const CANARY: [u64; 2] = [0x5A3C_69D1_C396_E7A5, 0xA5C3_96E7_5A3C_69D1];

/// Masks of the last `slack` bytes of two words.
const CANARY_MASKS: [[u64; 2]; 17] = {
    let mut masks = [[0; 2]; 17];
    let mut slack = 1;
    while slack <= 16 {
        masks[slack] = if slack <= 8 { [0, !0 << (64 - 8 * slack)] } else { [!0 << (128 - 8 * slack), !0] };
        slack += 1;
    }
    masks
};

/// Where a block's canary is: the 16 bytes that end with it, and the mask of its own bytes in them. The mask is empty
/// when the allocator gave nothing past the requested end. Without a branch: sizes are as good as random.
#[inline(always)]
fn canary(start: u64, bytes: usize) -> (*mut [u64; 2], [u64; 2]) {
    // SAFETY: glibc keeps the chunk's size, with flags in the low three bits, in the word before a block.
    let size = unsafe { *((start - 8) as *const u64) };
    // A chunk with a mapping of its own (bit 1) does not use the next chunk's first word.
    let usable = ((size & !7) as usize).wrapping_sub(8 + (size as usize & 2) * 4);
    let slack = usable.saturating_sub(bytes).min(16);
    let end = start as usize + bytes.min(usable) + slack;
    (end.wrapping_sub(16) as *mut [u64; 2], CANARY_MASKS.get(slack).copied().unwrap_or([0; 2]))
}

/// Fills what the allocator gave past the requested end, up to 16 bytes.
#[inline(always)]
fn arm_canary(start: u64, bytes: usize) {
    if !has_glibc_chunks() {
        return;
    }
    let (at, mask) = canary(start, bytes);
    // SAFETY: a chunk has at least 24 usable bytes, so the 16 up to the canary's end lie in the block, which nobody
    // but this thread knows yet.
    unsafe {
        let [low, high] = at.read_unaligned();
        at.write_unaligned([low & !mask[0] | CANARY[0] & mask[0], high & !mask[1] | CANARY[1] & mask[1]]);
    }
}

#[inline(always)]
fn canary_is_whole(start: u64, bytes: usize) -> bool {
    if !has_glibc_chunks() {
        return true;
    }
    let (at, mask) = canary(start, bytes);
    // SAFETY: as in `arm_canary`; the block is still the program's.
    let [low, high] = unsafe { at.read_unaligned() };
    ((low ^ CANARY[0]) & mask[0]) | ((high ^ CANARY[1]) & mask[1]) == 0
}

/// How many bytes past the requested end the first changed byte lies; `None` when the canary is whole.
pub(crate) fn first_changed_byte(start: u64, bytes: usize) -> Option<u64> {
    if !has_glibc_chunks() {
        return None;
    }
    let (at, mask) = canary(start, bytes);
    // SAFETY: as in `canary_is_whole`.
    let found = unsafe { at.read_unaligned() };
    (0..16u64)
        .filter(|i| mask[*i as usize / 8] >> (i % 8 * 8) & 0xFF != 0)
        .enumerate()
        .find(|(_, i)| (found[*i as usize / 8] ^ CANARY[*i as usize / 8]) >> (i % 8 * 8) & 0xFF != 0)
        .map(|(past, _)| past as u64)
}
