//! The hooks' bodies for malloc and its relatives: call the original, tell the run-time.

use crate::originals;
use crate::start;
use core::ffi::c_void;
use core::sync::atomic::AtomicUsize;
use core::sync::atomic::Ordering::Relaxed;
use leakscope_ledger::layout::flags;
use leakscope_model::{AllocFn, MisuseKind};
use leakscope_rt::unwind::Registers;
use leakscope_rt::waiting::{self, Waiting};
use leakscope_rt::{blocks, event_log, misuse, runtime};
use runtime::{Verdict, mode};

/// Memory for allocations before the originals are known: `dlsym` itself allocates.
const BOOTSTRAP_BYTES: usize = 64 << 10;
#[repr(align(64))]
struct Bootstrap(core::cell::UnsafeCell<[u8; BOOTSTRAP_BYTES]>);
// SAFETY: handed out in parts that do not overlap.
unsafe impl Sync for Bootstrap {}
static BOOTSTRAP: Bootstrap = Bootstrap(core::cell::UnsafeCell::new([0; BOOTSTRAP_BYTES]));
static BOOTSTRAP_USED: AtomicUsize = AtomicUsize::new(0);

#[cold]
fn bootstrap(bytes: usize, alignment: usize) -> *mut c_void {
    let step = alignment.clamp(16, 4096);
    let Some(room) = bytes.checked_add(step + 16) else { return core::ptr::null_mut() };
    let at = BOOTSTRAP_USED.fetch_add(room.next_multiple_of(16), Relaxed);
    if at + room > BOOTSTRAP_BYTES {
        return core::ptr::null_mut();
    }
    let start = BOOTSTRAP.0.get() as usize + at + 16;
    let aligned = start.next_multiple_of(step);
    // Hooks written in assembly must not pass it to the original.
    for page in (start..=start + bytes).step_by(4096) {
        leakscope_rt::sampling::watch(page as u64);
    }
    leakscope_rt::sampling::watch((aligned + bytes) as u64);
    // SAFETY: the part [at, at + room) is ours alone; the word before the block holds its size, for realloc.
    unsafe { ((aligned - 8) as *mut usize).write(bytes) };
    aligned as *mut c_void
}

#[inline(always)]
fn is_bootstrap(block: *mut c_void) -> bool {
    (block as usize).wrapping_sub(BOOTSTRAP.0.get() as usize) < BOOTSTRAP_BYTES
}

/// What to ask the original for, so that blocks keep the distance that the block table needs.
#[inline(always)]
fn forwarded(bytes: usize) -> usize {
    if runtime::has_glibc_chunks() { bytes } else { blocks::forwarded_bytes(bytes) }
}

/// Tells the run-time of a block that an original returned.
#[inline(always)]
fn made(block: *mut c_void, bytes: usize, function: AllocFn, regs: Registers) -> *mut c_void {
    let mode = runtime::mode();
    if block.is_null() || mode & (mode::RECORDING | mode::SAMPLING | mode::LOGGING) != mode::RECORDING {
        return made_specially(block, bytes, function, regs);
    }
    runtime::allocated(block as u64, bytes, function, regs) as *mut c_void
}

#[cold]
#[inline(never)]
fn made_specially(block: *mut c_void, bytes: usize, function: AllocFn, regs: Registers) -> *mut c_void {
    let Some(ledger) = runtime::ledger() else { return block };
    let mode = runtime::mode();
    if block.is_null() {
        failed(bytes, function, regs);
    } else if mode & mode::LOGGING != 0 {
        if mode & mode::LOG_ONLY == 0 {
            runtime::allocated(block as u64, bytes, function, regs);
        }
        event_log::allocated(ledger, block as u64, bytes, regs);
    } else if runtime::sampling() {
        if !COUNTED_BY_HOOKS.contains(&function) {
            leakscope_rt::sampling::count(bytes);
        }
        leakscope_rt::sampling::allocated(ledger, block as u64, bytes, function, regs);
    }
    block
}

/// Functions whose hooks count the bytes towards the next sample by themselves.
const COUNTED_BY_HOOKS: [AllocFn; 5] =
    [AllocFn::Malloc, AllocFn::New, AllocFn::NewNothrow, AllocFn::NewArray, AllocFn::NewArrayNothrow];

#[cold]
#[inline(never)]
fn failed(bytes: usize, function: AllocFn, regs: Registers) {
    if bytes as isize <= -1 {
        odd_size(bytes, function, regs);
    }
}

#[cold]
#[inline(never)]
fn odd_size(bytes: usize, function: AllocFn, regs: Registers) {
    if let Some(ledger) = runtime::ledger() {
        misuse::odd_size(ledger, MisuseKind::FishySize, bytes as u64, function, regs);
    }
}

/// `malloc`, and `operator new` in all forms without alignment.
#[inline(always)]
pub unsafe fn allocate(bytes: usize, function: AllocFn, regs: Registers) -> *mut c_void {
    if runtime::mode() & mode::GLIBC_CHUNKS == 0 {
        // SAFETY: passed on.
        return unsafe { allocate_elsewhere(bytes, function, regs) };
    }
    match originals::malloc::get() {
        // SAFETY: the original's contract is malloc's.
        Some(original) => made(unsafe { original(bytes) }, bytes, function, regs),
        None => core::ptr::null_mut(),
    }
}

/// As [`allocate`], before recording has begun or with another allocator than glibc's.
#[cold]
#[inline(never)]
unsafe fn allocate_elsewhere(bytes: usize, function: AllocFn, regs: Registers) -> *mut c_void {
    let body = || match originals::malloc::get() {
        // SAFETY: the original's contract is malloc's.
        Some(original) => made(unsafe { original(forwarded(bytes)) }, bytes, function, regs),
        None => bootstrap(bytes, 16),
    };
    if runtime::ledger().is_some() { body() } else { start::late(body) }
}

/// `calloc`.
#[inline(always)]
pub unsafe fn allocate_zeroed(count: usize, each: usize, regs: Registers) -> *mut c_void {
    let body = || match (originals::calloc::get(), count.checked_mul(each)) {
        (Some(original), Some(bytes)) => {
            if (count | each) as isize <= -1 {
                odd_size(if (each as isize) < 0 { each } else { count }, AllocFn::Calloc, regs);
            }
            // SAFETY: the original's contract is calloc's.
            made(unsafe { original(1, forwarded(bytes)) }, bytes, AllocFn::Calloc, regs)
        }
        // SAFETY: as above; it will refuse.
        (Some(original), None) => unsafe { original(count, each) },
        (None, Some(bytes)) => bootstrap(bytes, 16),
        (None, None) => core::ptr::null_mut(),
    };
    if runtime::ledger().is_some() { body() } else { start::late(body) }
}

/// `memalign`, `aligned_alloc`, `operator new` with alignment.
pub unsafe fn allocate_aligned(alignment: usize, bytes: usize, function: AllocFn, regs: Registers) -> *mut c_void {
    let body = || {
        let original = match function {
            AllocFn::AlignedAlloc => originals::aligned_alloc::get(),
            _ => originals::memalign::get(),
        };
        match original {
            // SAFETY: the original's contract is memalign's.
            Some(original) => made(unsafe { original(alignment, forwarded(bytes)) }, bytes, function, regs),
            None => bootstrap(bytes, alignment),
        }
    };
    if runtime::ledger().is_some() { body() } else { start::late(body) }
}

/// `posix_memalign`.
pub unsafe fn allocate_posix(out: *mut *mut c_void, alignment: usize, bytes: usize, regs: Registers) -> i32 {
    let body = || match originals::posix_memalign::get() {
        Some(original) => {
            // SAFETY: the original's contract is posix_memalign's, whose caller vouches for `out`.
            unsafe {
                let result = original(out, alignment, forwarded(bytes));
                if result == 0 {
                    made(*out, bytes, AllocFn::PosixMemalign, regs);
                } else {
                    made(core::ptr::null_mut(), bytes, AllocFn::PosixMemalign, regs);
                }
                result
            }
        }
        None => libc::ENOMEM,
    };
    if runtime::ledger().is_some() { body() } else { start::late(body) }
}

/// `valloc` and `pvalloc`.
pub unsafe fn allocate_pages(bytes: usize, function: AllocFn, regs: Registers) -> *mut c_void {
    let body = || {
        let whole_pages = function == AllocFn::Pvalloc;
        let bytes = if whole_pages { bytes.checked_next_multiple_of(4096).unwrap_or(bytes) } else { bytes };
        let original = if whole_pages { originals::pvalloc::get() } else { originals::valloc::get() };
        match original {
            // SAFETY: the original's contract is valloc's.
            Some(original) => made(unsafe { original(forwarded(bytes)) }, bytes, function, regs),
            None => bootstrap(bytes, 4096),
        }
    };
    if runtime::ledger().is_some() { body() } else { start::late(body) }
}

/// `realloc` and `reallocarray`.
#[inline(always)]
pub unsafe fn reallocate(block: *mut c_void, bytes: usize, function: AllocFn, regs: Registers) -> *mut c_void {
    if block.is_null() {
        // SAFETY: as malloc.
        return unsafe { allocate(bytes, function, regs) };
    }
    if is_bootstrap(block) {
        // SAFETY: `bootstrap` wrote the size before the block; the new block has room for what is copied.
        return unsafe {
            let fresh = allocate(bytes, function, regs);
            if !fresh.is_null() {
                let old_bytes = *((block as usize - 8) as *const usize);
                core::ptr::copy_nonoverlapping(block.cast::<u8>(), fresh.cast(), old_bytes.min(bytes));
            }
            fresh
        };
    }
    let Some(original) = originals::realloc::get() else { return core::ptr::null_mut() };
    let Some(ledger) = runtime::ledger() else {
        // SAFETY: the original's contract is realloc's.
        return unsafe { original(block, bytes) };
    };
    if runtime::mode() & (mode::SAMPLING | mode::LOGGING) != 0 {
        // SAFETY: as above.
        return unsafe { reallocate_specially(original, block, bytes, function, regs) };
    }
    let verdict = runtime::released(ledger, block as u64, function, regs);
    if verdict == Verdict::Refused {
        return core::ptr::null_mut();
    }
    // SAFETY: the original's contract is realloc's.
    let fresh = runtime::while_pending(block as u64, || unsafe {
        original(block, if bytes == 0 { 0 } else { forwarded(bytes) })
    });
    if fresh.is_null() {
        if bytes != 0
            && let Verdict::Known(info) = verdict
        {
            runtime::still_there(ledger, &info, regs);
            failed(bytes, function, regs);
        }
        return fresh;
    }
    made(fresh, bytes, function, regs)
}

/// While only a sample is recorded, or events are logged.
#[cold]
unsafe fn reallocate_specially(
    original: originals::realloc::Function,
    block: *mut c_void,
    bytes: usize,
    function: AllocFn,
    regs: Registers,
) -> *mut c_void {
    if runtime::mode() & mode::LOGGING != 0 {
        // SAFETY: passed on.
        return unsafe { reallocate_logged(original, block, bytes, function, regs) };
    }
    if let Some(ledger) = runtime::ledger() {
        leakscope_rt::sampling::released(ledger, block as u64, function, regs);
    }
    // SAFETY: the original's contract is realloc's.
    let fresh = unsafe { original(block, if bytes == 0 { 0 } else { forwarded(bytes) }) };
    if fresh.is_null() { fresh } else { made(fresh, bytes, function, regs) }
}

/// As [`reallocate`], with lines in the event log.
unsafe fn reallocate_logged(
    original: originals::realloc::Function,
    block: *mut c_void,
    bytes: usize,
    function: AllocFn,
    regs: Registers,
) -> *mut c_void {
    let Some(ledger) = runtime::ledger() else { return core::ptr::null_mut() };
    let start = block as u64;
    let (verdict, known) = match judged(start, function, regs) {
        Some(Verdict::Known(info)) => (Verdict::Known(info), Some(info)),
        other => (other.unwrap_or(Verdict::Foreign), None),
    };
    if bytes == 0 {
        event_log::released(ledger, start, known, regs);
    } else {
        event_log::reallocating(ledger, start, known, regs);
    }
    if verdict == Verdict::Refused {
        if bytes != 0 {
            event_log::realloc_failed(ledger, start, None, bytes, regs);
        }
        return core::ptr::null_mut();
    }
    // SAFETY: the original's contract is realloc's.
    let fresh =
        runtime::while_pending(start, || unsafe { original(block, if bytes == 0 { 0 } else { forwarded(bytes) }) });
    if fresh.is_null() {
        if bytes != 0 {
            if let Some(info) = known.filter(|_| runtime::mode() & mode::LOG_ONLY == 0) {
                runtime::still_there(ledger, &info, regs);
            }
            event_log::realloc_failed(ledger, start, known, bytes, regs);
            failed(bytes, function, regs);
        }
        return fresh;
    }
    if runtime::mode() & mode::LOG_ONLY == 0 {
        runtime::allocated(fresh as u64, bytes, function, regs);
    }
    if bytes == 0 {
        event_log::allocated(ledger, fresh as u64, bytes, regs);
    } else {
        event_log::reallocated(ledger, fresh as u64, bytes, regs);
    }
    fresh
}

/// The verdict on a release; `None` where nothing is recorded.
fn judged(start: u64, function: AllocFn, regs: Registers) -> Option<Verdict> {
    let ledger = runtime::ledger()?;
    if runtime::mode() & mode::LOG_ONLY == 0 {
        return Some(runtime::released(ledger, start, function, regs));
    }
    blocks::lookup(start).filter(|info| !info.freed).map(Verdict::Known)
}

/// As [`judged`], while only a sample is recorded, or events are logged: with its line.
#[cold]
#[inline(never)]
fn judged_specially(start: u64, function: AllocFn, regs: Registers) -> Option<Verdict> {
    let ledger = runtime::ledger()?;
    if runtime::sampling() {
        leakscope_rt::sampling::released(ledger, start, function, regs);
        return None;
    }
    let verdict = judged(start, function, regs);
    let known = match verdict {
        Some(Verdict::Known(info)) => Some(info),
        _ => None,
    };
    event_log::released(ledger, start, known, regs);
    verdict
}

/// `free`, `cfree`, and `operator delete` in all forms.
#[inline(always)]
pub unsafe fn release(block: *mut c_void, function: AllocFn, regs: Registers) {
    let mut block = block;
    if runtime::mode() & mode::WAIT != 0 {
        // SAFETY: the hooks pass their caller's registers.
        match unsafe { waiting::wait(block as u64, function, regs) } {
            Waiting::Kept => return,
            Waiting::Due(start) => block = start as *mut c_void,
            // SAFETY: passed on.
            Waiting::No => return unsafe { release_now(block, function, regs) },
        }
        if let Some(original) = originals::free::get() {
            // SAFETY: the program has released this block.
            unsafe { original(block) }
        }
        return;
    }
    // SAFETY: passed on.
    unsafe { release_now(block, function, regs) }
}

/// As [`release`], for a block whose release does not wait.
#[inline(never)]
unsafe fn release_now(block: *mut c_void, function: AllocFn, regs: Registers) {
    if block.is_null() || is_bootstrap(block) {
        return;
    }
    let mode = runtime::mode();
    let verdict = match runtime::ledger() {
        Some(ledger) if mode & (mode::SAMPLING | mode::LOGGING) == 0 => {
            Some(runtime::released(ledger, block as u64, function, regs))
        }
        Some(_) => judged_specially(block as u64, function, regs),
        None => None,
    };
    if verdict == Some(Verdict::Refused) {
        return;
    }
    let foreign = verdict == Some(Verdict::Foreign);
    if foreign && function.family() != leakscope_model::AllocFamily::Malloc {
        // SAFETY: the block is not one of ours; its own operator delete knows it.
        return unsafe { release_foreign(block, function) };
    }
    match originals::free::get() {
        // SAFETY: the original's contract is free's.
        Some(original) => unsafe { original(block) },
        None => start::late(|| {
            if let Some(original) = originals::free::get() {
                // SAFETY: as above.
                unsafe { original(block) }
            }
        }),
    }
}

/// Carries out the releases of this thread that wait.
///
/// # Safety
/// The calling thread is in a hook, and `regs` are those at its entry; no lock of the allocator is held.
pub unsafe fn release_waiting(regs: Registers) {
    let (Some(ledger), Some(original)) = (runtime::ledger(), originals::free::get()) else { return };
    while let Some(start) = waiting::next_due(ledger, regs) {
        // SAFETY: the program has released this block.
        unsafe { original(start as *mut c_void) };
    }
}

#[cold]
#[inline(never)]
unsafe fn release_foreign(block: *mut c_void, function: AllocFn) {
    let original = match function.family() {
        leakscope_model::AllocFamily::NewArray => originals::delete_array::find(),
        _ => originals::delete::find(),
    };
    if let Some(original) = original.or(originals::free::get()) {
        // SAFETY: the caller's contract is operator delete's.
        unsafe { original(block) }
    }
}

/// `malloc_usable_size`.
pub unsafe fn usable_bytes(block: *mut c_void) -> usize {
    if block.is_null() || is_bootstrap(block) {
        return if block.is_null() {
            0
        } else {
            // SAFETY: `bootstrap` wrote the size before the block.
            unsafe { *((block as usize - 8) as *const usize) }
        };
    }
    if runtime::ledger().is_some() && !runtime::sampling() {
        match blocks::lookup(block as u64).filter(|info| !info.freed) {
            // What lies past the requested end holds our canary: the program must not think that it may use it.
            Some(info) if runtime::flag(flags::CANARY) && runtime::has_glibc_chunks() => return info.bytes as usize,
            Some(_) => {}
            None if !leakscope_rt::memory::is_mapped(block as u64, 1) => return 0,
            None => {}
        }
    }
    match originals::malloc_usable_size::get() {
        // SAFETY: the original's contract is malloc_usable_size's.
        Some(original) => unsafe { original(block) },
        None => 0,
    }
}
