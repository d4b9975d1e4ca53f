//! A bad access: by what the shadow says, its kind.

use super::scariness::Scariness;
use super::{Report, describe, shadow, stack, thread_name};
use crate::output::Address;
use crate::shadow_map::{has_shadow, shadow_of, why};
use crate::thread;
use crate::unwind::Caller;
use alloc::vec::Vec;
use core::cell::UnsafeCell;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::Ordering::Relaxed;
use leakscope_rt::memory::Lock;

/// What `__asan_get_report_*` tell: the access that was reported last.
#[derive(Clone, Copy, Default)]
pub struct Last {
    /// Where the code was.
    pub pc: usize,
    /// Frame pointer.
    pub bp: usize,
    /// Stack pointer.
    pub sp: usize,
    /// The address.
    pub address: usize,
    /// Whether it was written to.
    pub is_write: bool,
    /// How many bytes.
    pub bytes: usize,
    /// The word for it.
    pub what: &'static str,
}

struct Kept {
    lock: Lock,
    last: UnsafeCell<Option<Last>>,
    seen: UnsafeCell<Vec<usize>>,
}
// SAFETY: only touched with the lock held.
unsafe impl Sync for Kept {}

static KEPT: Kept = Kept { lock: Lock::new(), last: UnsafeCell::new(None), seen: UnsafeCell::new(Vec::new()) };
/// For `__asan_test_only_reported_buggy_pointer`: only whether there was a report is wanted.
pub static TEST_ONLY: AtomicBool = AtomicBool::new(false);

/// The access that was reported last.
pub fn last() -> Option<Last> {
    let _held = KEPT.lock.lock();
    // SAFETY: the lock is held.
    unsafe { *KEPT.last.get() }
}

/// Keeps what is being reported for `__asan_get_report_*`.
pub fn keep(last: Last) {
    let _held = KEPT.lock.lock();
    // SAFETY: the lock is held.
    unsafe { *KEPT.last.get() = Some(last) };
}

/// Most places in the code that findings are told of before the process is given up.
const MOST_PLACES: usize = 25;

/// Whether this place in the code was reported before, and its reports are to be told once.
fn was_seen(pc: usize) -> bool {
    if !crate::options::options().suppress_equal_pcs {
        return false;
    }
    let _held = KEPT.lock.lock();
    // SAFETY: the lock is held.
    let seen = unsafe { &mut *KEPT.seen.get() };
    if seen.contains(&pc) {
        return true;
    }
    if seen.len() >= MOST_PLACES {
        // A program that goes on with so many findings is beyond help.
        drop(_held);
        crate::out_pid!("AddressSanitizer: too many findings at different places; the process ends\n");
        super::die();
    }
    seen.push(pc);
    false
}

/// The word for a shadow byte, with its scariness.
fn kind_of(shadow_byte: u8) -> (&'static str, u32) {
    match shadow_byte {
        why::HEAP_REDZONE | why::ARRAY_COOKIE => ("heap-buffer-overflow", 10),
        why::HEAP_FREED => ("heap-use-after-free", 20),
        why::STACK_LEFT => ("stack-buffer-underflow", 25),
        why::INIT_ORDER => ("initialization-order-fiasco", 1),
        why::STACK_MIDDLE | why::STACK_RIGHT => ("stack-buffer-overflow", 25),
        why::STACK_AFTER_RETURN => ("stack-use-after-return", 30),
        why::USER_POISONED => ("use-after-poison", 20),
        why::CONTAINER => ("container-overflow", 10),
        why::STACK_AFTER_SCOPE => ("stack-use-after-scope", 10),
        why::GLOBAL_REDZONE => ("global-buffer-overflow", 10),
        why::INTRA_OBJECT => ("intra-object-overflow", 10),
        why::ALLOCA_LEFT | why::ALLOCA_RIGHT => ("dynamic-stack-buffer-overflow", 25),
        _ => ("unknown-crash", 0),
    }
}

/// The shadow byte that explains why an access is bad, and its address.
fn explaining(address: usize, bytes: usize) -> (u8, usize) {
    let byte = |at: usize| {
        // SAFETY: the shadow of program memory, or the byte behind it, is mapped.
        unsafe { *(at as *const u8) }
    };
    let mut at = shadow_of(address);
    if byte(at) == 0 && bytes > 8 {
        at += 1;
    }
    // A partial granule: what follows tells what was run into.
    if byte(at) > 0 && byte(at) < 128 {
        at += 1;
    }
    (byte(at), at)
}

/// Reports an access to `address`, 0 bytes for one of unknown size. Comes back when the program may go on.
#[cold]
#[inline(never)]
pub fn report(caller: &Caller, address: usize, is_write: bool, bytes: usize, is_fatal: bool) {
    let pc = caller.pc();
    if !is_fatal && (was_seen(pc) || crate::suppressions::is_stack_suppressed(caller)) {
        return;
    }
    let (bp, sp) = caller.bp_sp();
    let frames = caller.frames(256);
    report_at(pc, bp, sp, &frames, address, is_write, bytes, is_fatal);
}

/// As [`report`], for a place in the code that is told.
#[allow(clippy::too_many_arguments, reason = "the fields of one line of the report")]
pub fn report_at(
    pc: usize,
    bp: usize,
    sp: usize,
    frames: &[u64],
    address: usize,
    is_write: bool,
    bytes: usize,
    is_fatal: bool,
) {
    let report = Report::begin(is_fatal);
    let mut scariness = Scariness::default();
    scariness.add_access(bytes, is_write);
    let mut what = "unknown-crash";
    if has_shadow(address) {
        let (byte, at) = explaining(address, bytes);
        let (kind, score) = kind_of(byte);
        what = kind;
        let bonus = if !is_write && matches!(byte, why::HEAP_FREED | why::STACK_AFTER_RETURN) { 18 } else { 0 };
        if score > 0 {
            scariness.add(score + bonus, kind);
        }
        // SAFETY: the neighbours of a mapped shadow byte.
        let (left, right) = unsafe { (*((at - 1) as *const u8), *((at + 1) as *const u8)) };
        let has_bounds = matches!(
            byte,
            why::HEAP_REDZONE
                | why::STACK_LEFT
                | why::STACK_MIDDLE
                | why::STACK_RIGHT
                | why::GLOBAL_REDZONE
                | why::ALLOCA_LEFT
                | why::ALLOCA_RIGHT
        );
        if left > 127 && right > 127 && has_bounds {
            scariness.add(10, "far-from-bounds");
        }
    }
    keep(Last { pc, bp, sp, address, is_write, bytes, what });
    report.headline(format_args!(
        "{what} on address {} at pc {} bp {} sp {}",
        Address(address),
        Address(pc),
        Address(bp),
        Address(sp)
    ));
    let direction = match (bytes, is_write) {
        (0, _) => "ACCESS",
        (_, true) => "WRITE",
        (_, false) => "READ",
    };
    crate::out!(
        "{direction} of size {bytes} at {} thread {}\n",
        Address(address),
        thread_name(thread::current_number())
    );
    scariness.print();
    stack::print(frames);
    describe::describe(address, bytes, what);
    if what == "container-overflow" {
        crate::out!(
            "HINT: if you don't care about these errors you may set ASAN_OPTIONS=detect_container_overflow=0.\nIf you \
             suspect a false positive see also: \
             https://github.com/google/sanitizers/wiki/AddressSanitizerContainerOverflow.\n"
        );
    }
    stack::summary(what, frames);
    shadow::print(address);
    report.finish();
    TEST_ONLY.store(true, Relaxed);
}
