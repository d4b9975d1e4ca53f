//! A log of every allocation and release, in the words of glibc's mtrace.
//!
//! ```text
//! = Start
//! @ ./prog:[0x11b1] + 0x55634e0854a0 0xa
//! @ ./prog:[0x1216] < 0x55634e0854a0
//! @ ./prog:[0x1216] > 0x55634e085500 0xfa0
//! @ ./prog:[0x1226] - 0x55634e085500
//! = End
//! ```
//!
//! The lines are in an order that can have happened: the line of a release is written before the allocator gets the block,
//! that of an allocation after it has given it. A `realloc` is both, so `<` is written before and `>` after it, and lines
//! of other threads may stand between them. (glibc writes both after it, when another thread may have got the old
//! block already.)
//!
//! One buffer for all threads, under a lock that knows its owner: a signal handler that has interrupted the owner leaves
//! its events with it, and the owner writes them before it opens the lock. The buffer goes to the file whole lines
//! at a time, so that the file is a log at any moment.
//!
//! A forked child never writes to its parent's file. It opens one of its own with its first event.
//!
//! May run in any thread and in signal handlers. No allocation, no lock that the target may hold.
//! Source of the lines: glibc 2.36 `malloc/mtrace-impl.c`.

mod callers;
mod file;
mod life;
mod lock;
mod log;

use crate::blocks::{self, BlockInfo};
use crate::raw;
use crate::runtime::{self, OUR_SITE, mode};
use crate::thread::{self, tls};
use crate::unwind::Registers;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use core::sync::atomic::{AtomicU32, AtomicU64, compiler_fence};
use leakscope_ledger::layout::{AreaId, flags, site_flags};
use leakscope_ledger::writer::Ledger;
use lock::Owner;
use log::{LOCK, LOG};

pub use life::{
    after_fork_in_child, after_fork_in_parent, before_fork, begin_with_mtrace, begin_with_process, end_with_muntrace,
    end_with_process, flush, is_on,
};

/// What a line says happened; the character is mtrace's.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sign {
    Allocated = b'+' as isize,
    Released = b'-' as isize,
    Reallocating = b'<' as isize,
    Reallocated = b'>' as isize,
    Failed = b'!' as isize,
}

#[derive(Clone, Copy)]
struct Event {
    sign: Sign,
    address: u64,
    /// Of signs that have one.
    bytes: u64,
    /// Return address of the call.
    caller: u64,
}

/// Events of signal handlers that have interrupted the owner of the lock.
struct Left {
    sign: AtomicU32,
    address: AtomicU64,
    bytes: AtomicU64,
    caller: AtomicU64,
}
const MOST_LEFT: usize = 64;
static LEFT: [Left; MOST_LEFT] = [const {
    Left { sign: AtomicU32::new(0), address: AtomicU64::new(0), bytes: AtomicU64::new(0), caller: AtomicU64::new(0) }
}; MOST_LEFT];
static LEFT_COUNT: AtomicU32 = AtomicU32::new(0);

/// The return address of a hook's call.
///
/// `regs.rsp` points at it (see `Registers`).
fn caller_of(regs: Registers) -> u64 {
    // SAFETY: the hooks pass their stack pointer at entry, and the caller is suspended in the hook.
    unsafe { *(regs.rsp as *const u64) }
}

/// A block that an original has returned, and that is recorded.
#[cold]
#[inline(never)]
pub fn allocated(ledger: &Ledger, start: u64, bytes: usize, regs: Registers) {
    if blocks::lookup(start).is_some_and(|block| block.site == OUR_SITE) {
        return;
    }
    append(ledger, Event { sign: Sign::Allocated, address: start, bytes: bytes as u64, caller: caller_of(regs) }, None);
}

/// A block that the program releases, right or wrong, before the original gets it. `known` is what the table knew.
#[cold]
#[inline(never)]
pub fn released(ledger: &Ledger, start: u64, known: Option<BlockInfo>, regs: Registers) {
    if known.is_some_and(|block| block.site == OUR_SITE) || !is_told_of(ledger, known) {
        return;
    }
    append(ledger, Event { sign: Sign::Released, address: start, bytes: 0, caller: caller_of(regs) }, known);
}

/// Whether the log has told of a block: libc also releases what it has kept since before the log began, and to say so
/// would only puzzle.
fn is_told_of(ledger: &Ledger, known: Option<BlockInfo>) -> bool {
    if runtime::mode() & mode::LOG_ONLY == 0 {
        return true;
    }
    let Some(block) = known else { return false };
    let bits = ledger.site(block.site).map_or(0, |site| site.flags.load(Relaxed));
    let last = ledger.used(AreaId::Intervals).checked_sub(1);
    runtime::flag(flags::MTRACE_LOG) || (last.is_some() && site_flags::interval(bits) == last)
}

/// A block whose `realloc` the original is about to get.
#[cold]
pub fn reallocating(ledger: &Ledger, start: u64, known: Option<BlockInfo>, regs: Registers) {
    append(ledger, Event { sign: Sign::Reallocating, address: start, bytes: 0, caller: caller_of(regs) }, known);
}

/// The block that a `realloc` gave, after [`reallocating`].
#[cold]
pub fn reallocated(ledger: &Ledger, start: u64, bytes: usize, regs: Registers) {
    let bytes = bytes as u64;
    append(ledger, Event { sign: Sign::Reallocated, address: start, bytes, caller: caller_of(regs) }, None);
}

/// A `realloc` to `bytes` that failed, after [`reallocating`]: a block that was `known` is live as before, as the one that
/// its own caller allocated.
#[cold]
pub fn realloc_failed(ledger: &Ledger, start: u64, known: Option<BlockInfo>, bytes: usize, regs: Registers) {
    if let Some(block) = known {
        let caller = allocator_of(ledger, block.site);
        append(ledger, Event { sign: Sign::Reallocated, address: start, bytes: block.bytes, caller }, None);
    }
    let event = Event { sign: Sign::Failed, address: start, bytes: bytes as u64, caller: caller_of(regs) };
    append(ledger, event, None);
}

/// The return address of the call that allocated at a site; 0 when it has no stack.
fn allocator_of(ledger: &Ledger, site: u32) -> u64 {
    let leaf = ledger.site(site).map_or(0, |site| site.leaf.load(Relaxed));
    ledger.node(leaf).filter(|_| leaf != 0).map_or(0, |node| node.pc.load(Relaxed))
}

/// The calling thread, as the lock knows it.
fn this_thread() -> Owner {
    // SAFETY: the calling thread's own words; null or its state.
    let known = unsafe { (*tls()).state.as_ref() }.map_or(0, |state| state.tid.load(Relaxed));
    Owner::new(if known == 0 { raw::gettid() } else { known })
}

/// Runs `body` with the busy mark set, and tells it whether it was set before.
fn while_busy<R>(body: impl FnOnce(bool) -> R) -> R {
    let words = tls();
    // SAFETY: the calling thread's own words.
    let was_busy = unsafe { core::mem::replace(&mut (*words).busy, 1) };
    compiler_fence(SeqCst);
    let result = body(was_busy != 0);
    compiler_fence(SeqCst);
    // SAFETY: as above.
    unsafe { (*words).busy = was_busy };
    result
}

/// Writes a line. `gone` is a block that the event has taken out of the table.
fn append(ledger: &Ledger, event: Event, gone: Option<BlockInfo>) {
    // SAFETY: the calling thread's own words.
    if unsafe { (*tls()).busy } == thread::OURS {
        return;
    }
    while_busy(|interrupts| {
        let me = this_thread();
        if LOCK.is_held_by(me) {
            return leave(event);
        }
        // Before the lock: it may take a while, and the linker's lock.
        let text = text_of(ledger, event.caller, interrupts);
        if LOCK.acquire(me) {
            // SAFETY: this thread has the lock.
            let log = unsafe { &mut *LOG.0.get() };
            log.ensure_open(ledger, &event, gone);
            log.write(ledger, &event, text);
            open_lock(ledger, me);
        }
    });
}

/// Writes what signal handlers have left, and opens the lock.
fn open_lock(ledger: &Ledger, me: Owner) {
    while !LOCK.release(me) {
        write_left(ledger);
    }
}

/// The text of a caller; what is not known of it stays away.
fn text_of(ledger: &Ledger, caller: u64, interrupts: bool) -> Option<&'static [u8]> {
    callers::known(caller, ledger.header().epoch.load(Relaxed))
        .or_else(|| if caller == 0 { None } else { callers::find_out(ledger, caller, interrupts) })
}

/// Leaves an event to the owner of the lock, which the calling signal handler has interrupted.
fn leave(event: Event) {
    let at = LEFT_COUNT.fetch_add(1, AcqRel) as usize;
    if let Some(left) = LEFT.get(at) {
        left.address.store(event.address, Relaxed);
        left.bytes.store(event.bytes, Relaxed);
        left.caller.store(event.caller, Relaxed);
        left.sign.store(event.sign as u32, Release);
    }
    LOCK.mark_left();
}

/// Writes what signal handlers have left. The calling thread has the lock.
#[cold]
fn write_left(ledger: &Ledger) {
    let count = LEFT_COUNT.swap(0, AcqRel) as usize;
    // SAFETY: the caller has the lock.
    let log = unsafe { &mut *LOG.0.get() };
    for left in LEFT.get(..count.min(MOST_LEFT)).unwrap_or(&[]) {
        let sign = match left.sign.swap(0, Acquire) as u8 {
            b'+' => Sign::Allocated,
            b'-' => Sign::Released,
            b'<' => Sign::Reallocating,
            b'>' => Sign::Reallocated,
            b'!' => Sign::Failed,
            _ => continue,
        };
        let (address, caller) = (left.address.load(Relaxed), left.caller.load(Relaxed));
        let event = Event { sign, address, bytes: left.bytes.load(Relaxed), caller };
        let text = callers::known(caller, ledger.header().epoch.load(Relaxed));
        log.ensure_open(ledger, &event, None);
        log.write(ledger, &event, text);
    }
    ledger.header().event_log.lost.fetch_add(count.saturating_sub(MOST_LEFT) as u32, Relaxed);
}
