//! Wrong calls to the allocator: recognised, recorded once per kind and stack, and survived.
//!
//! All of it runs off the hot path, with the thread's busy mark set.

use crate::blocks::{self, BlockInfo};
use crate::memory::Lock;
use crate::release_queue::Release;
use crate::runtime::{self, Verdict, flag, site_of};
use crate::sites::family;
use crate::thread::ThreadState;
use crate::unwind::Registers;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{Acquire, Relaxed};
use leakscope_ledger::layout::{AreaId, flags, site_flags};
use leakscope_ledger::writer::Ledger;
use leakscope_model::{AllocFn, MisuseKind};

static LOCK: Lock = Lock::new();

/// In a forked child: another thread may have held the lock.
pub fn after_fork_in_child() {
    LOCK.release();
}

/// Whether the lock is open at this moment.
pub(crate) fn is_open() -> bool {
    LOCK.is_open()
}

/// Furthest that a block's start is looked for below an address inside it.
const INTERIOR_REACH: u64 = 1 << 30;
/// Nearer starts that do not cover the address (freed ones left behind in a larger block) are passed over.
const INTERIOR_TRIES: usize = 4096;

/// Everything that a record says besides its kind and the stack of the call.
#[derive(Clone, Copy, Default)]
struct Details {
    address: u64,
    block: Option<BlockInfo>,
    free_site: u32,
    block_bytes: u64,
    overrun_offset: u64,
}

fn record(
    ledger: &Ledger,
    state: &mut ThreadState,
    kind: MisuseKind,
    function: AllocFn,
    regs: Registers,
    details: &Details,
) {
    let site = site_of(ledger, state, function, regs);
    record_at(ledger, state, kind, site, details);
}

fn record_at(ledger: &Ledger, state: &ThreadState, kind: MisuseKind, site: u32, details: &Details) {
    let _guard = LOCK.lock();
    let used = ledger.used(AreaId::Misuses);
    for number in 0..used {
        let Some(known) = ledger.misuse(number) else { break };
        if known.kind.load(Relaxed) == kind as u32 && known.site.load(Relaxed) == site {
            known.count.fetch_add(1, Relaxed);
            return;
        }
    }
    let Some(new) = ledger.misuse(used) else {
        ledger.header().lost.misuses.fetch_add(1, Relaxed);
        return;
    };
    new.kind.store(kind as u32, Relaxed);
    new.site.store(site, Relaxed);
    new.allocation_site.store(details.block.map_or(0, |block| block.site), Relaxed);
    new.free_site.store(details.free_site, Relaxed);
    new.address.store(details.address, Relaxed);
    new.block_start.store(details.block.map_or(0, |block| block.start), Relaxed);
    new.block_bytes.store(details.block.map_or(details.block_bytes, |block| block.bytes), Relaxed);
    new.thread.store(state.record_number, Relaxed);
    new.overrun_offset.store(details.overrun_offset, Relaxed);
    new.count.store(1, Relaxed);
    ledger.publish(AreaId::Misuses, used + 1);
}

/// The block, live if there is one, that covers an address.
fn covering(address: u64) -> Option<BlockInfo> {
    let mut at = address;
    let mut freed = None;
    for _ in 0..INTERIOR_TRIES {
        let reach = INTERIOR_REACH.saturating_sub(address - at);
        let Some(block) = blocks::find_covering(at, reach) else { break };
        if address < block.start + block.bytes.max(1) {
            if !block.freed {
                return Some(block);
            }
            freed = freed.or(Some(block));
        }
        let Some(below) = block.start.checked_sub(1) else { break };
        at = below;
    }
    freed
}

/// [`covering`], with blocks whose release waits taken for freed.
fn covering_now(address: u64) -> Option<BlockInfo> {
    let block = covering(address)?;
    Some(BlockInfo { freed: block.freed || crate::waiting::is_waiting(block.start), ..block })
}

/// The site of a release that has waited: of its stack only the return address is still known.
fn late_site(ledger: &Ledger, release: Release) -> u32 {
    let modules = runtime::MODULES.read(ledger);
    runtime::SITES.intern(ledger, &[release.caller], release.function(), site_flags::BROKEN, |pc| modules.epoch_of(pc))
}

/// A block whose release waited was released by somebody else meanwhile: two threads at the very same moment.
#[cold]
#[inline(never)]
pub fn late_double_free(ledger: &Ledger, state: &ThreadState, release: Release) {
    let block = blocks::lookup(release.start());
    let details = Details { address: release.start(), block, ..Details::default() };
    record_at(ledger, state, MisuseKind::DoubleFree, late_site(ledger, release), &details);
}

fn first_changed_byte(block: &BlockInfo) -> Option<u64> {
    // SAFETY: the canary of this block was just found changed: it has one, and nobody has released it yet.
    unsafe { crate::canary::first_changed_byte(block.start, block.bytes as usize) }
}

/// The bytes past the end of a block have changed, found when its release had waited.
#[cold]
#[inline(never)]
pub fn late_overrun(ledger: &Ledger, state: &ThreadState, block: &BlockInfo, release: Release) {
    let Some(offset) = first_changed_byte(block) else { return };
    let details = Details { address: block.start, block: Some(*block), overrun_offset: offset, ..Details::default() };
    record_at(ledger, state, MisuseKind::Overrun, late_site(ledger, release), &details);
}

/// Whether an address can be no heap block of anybody: in a module, on a thread's stack, or not mapped at all.
fn is_no_heap(ledger: &Ledger, state: &ThreadState, address: u64) -> bool {
    if state.cache.own().contains(address) || !crate::memory::is_mapped(address, 1) {
        return true;
    }
    runtime::refresh_modules(ledger);
    runtime::MODULES.read(ledger).find(address).is_some()
}

/// `function` wants to release `start`, where no live block begins.
#[cold]
#[inline(never)]
pub fn release_of_no_block(
    ledger: &Ledger,
    state: &mut ThreadState,
    start: u64,
    function: AllocFn,
    regs: Registers,
) -> Verdict {
    if crate::runtime::sampling() {
        return Verdict::Foreign;
    }
    let block = covering_now(start);
    let is_realloc = matches!(function, AllocFn::Realloc | AllocFn::Reallocarray);
    let kind = match block {
        Some(block) if block.freed && block.start == start => MisuseKind::DoubleFree,
        Some(block) if !block.freed => MisuseKind::InteriorFree,
        Some(_) => MisuseKind::InvalidFree,
        None if is_no_heap(ledger, state, start) => MisuseKind::InvalidFree,
        None => return Verdict::Foreign,
    };
    let kind = if is_realloc { MisuseKind::InvalidRealloc } else { kind };
    let free_site = block.filter(|block| block.freed).map_or(0, |block| recall_free(block.start));
    let details = Details { address: start, block, free_site, ..Details::default() };
    record(ledger, state, kind, function, regs, &details);
    Verdict::Refused
}

/// A block of one family is released by a function of another.
#[cold]
#[inline(never)]
pub fn maybe_mismatch(
    ledger: &Ledger,
    state: &mut ThreadState,
    block: &BlockInfo,
    block_family: u8,
    function: AllocFn,
    regs: Registers,
) {
    if !flag(flags::MISMATCHES) {
        return;
    }
    if block_family == family::MIXED {
        let made_by = ledger.site(block.site).and_then(|site| AllocFn::from_u8(site.function.load(Relaxed) as u8));
        if made_by.is_none_or(|made_by| made_by.family() == function.family()) {
            return;
        }
    }
    let details = Details { address: block.start, block: Some(*block), ..Details::default() };
    record(ledger, state, MisuseKind::MismatchedFree, function, regs, &details);
}

/// The bytes past a block's end have changed.
#[cold]
#[inline(never)]
pub fn overrun(ledger: &Ledger, state: &mut ThreadState, block: &BlockInfo, function: AllocFn, regs: Registers) {
    let Some(offset) = first_changed_byte(block) else { return };
    let details = Details { address: block.start, block: Some(*block), overrun_offset: offset, ..Details::default() };
    record(ledger, state, MisuseKind::Overrun, function, regs, &details);
}

/// `function` was asked for `bytes`, which can only be a negative number; or `realloc` for none.
#[cold]
#[inline(never)]
pub fn odd_size(ledger: &Ledger, kind: MisuseKind, bytes: u64, function: AllocFn, regs: Registers) {
    let _ = runtime::with_state(ledger, regs, |state| {
        let details = Details { block_bytes: bytes, ..Details::default() };
        record(ledger, state, kind, function, regs, &details);
    });
}

struct FreeStack {
    start: AtomicU64,
    site: AtomicU64,
}

const FREE_STACKS: usize = 1 << 16;
static FREES: [FreeStack; FREE_STACKS] =
    [const { FreeStack { start: AtomicU64::new(0), site: AtomicU64::new(0) } }; FREE_STACKS];

fn free_slot(start: u64) -> &'static FreeStack {
    &FREES[((start >> 4).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 48) as usize & (FREE_STACKS - 1)]
}

/// Keeps the stack of a release, for the second stack of a later double free.
#[cold]
#[inline(never)]
pub fn remember_free(ledger: &Ledger, state: &mut ThreadState, block: &BlockInfo, function: AllocFn, regs: Registers) {
    let site = site_of(ledger, state, function, regs);
    let slot = free_slot(block.start);
    slot.start.store(0, Relaxed);
    slot.site.store(u64::from(site), Relaxed);
    slot.start.store(block.start, core::sync::atomic::Ordering::Release);
}

fn recall_free(start: u64) -> u32 {
    let slot = free_slot(start);
    if slot.start.load(Acquire) == start { slot.site.load(Relaxed) as u32 } else { 0 }
}
