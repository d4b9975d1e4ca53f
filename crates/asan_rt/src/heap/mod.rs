//! The program's heap: size classes with redzones, a cache for each thread, and a quarantine.
//!
//! A block, by rising address: the redzone (its last 16 bytes are the header), the user's bytes, what is left of the
//! block. Everything but the user's bytes is poisoned; what lies behind a block is the next one's redzone.

mod cache;
pub mod chunk;
pub mod classes;
pub mod dormant;
pub mod large;
pub mod quarantine;
pub mod regions;
mod release;

pub use cache::Cache;
pub use chunk::{AllocKind, Chunk, Facts, State};
pub use quarantine::LocalQuarantine;
pub use release::{Deletion, live_bytes, local_quarantine_limit, purge, quarantine_limit, reallocate, release};

use crate::options::options;
use crate::report::heap as report;
use crate::shadow_map::{self, why};
use crate::thread::{self, Thread};
use crate::unwind::Caller;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicBool, AtomicUsize};
use leakscope_rt::memory::{Lock, map_slice};

/// No allocation may be larger.
pub const LARGEST_ALLOCATION: usize = 1 << 40;
const SMALLEST_USER: usize = 16;
const LARGE_FRONT_BYTES: usize = 8192;

/// What the program and its past threads did.
pub static COUNTERS: Counters = Counters {
    mallocs: AtomicUsize::new(0),
    malloc_bytes: AtomicUsize::new(0),
    frees: AtomicUsize::new(0),
    freed_bytes: AtomicUsize::new(0),
};

/// Totals over all threads.
pub struct Counters {
    /// Allocations.
    pub mallocs: AtomicUsize,
    /// Their bytes.
    pub malloc_bytes: AtomicUsize,
    /// Releases.
    pub frees: AtomicUsize,
    /// Their bytes.
    pub freed_bytes: AtomicUsize,
}

/// Whether the soft limit of resident memory is passed: then allocations fail.
pub static IS_OVER_LIMIT: AtomicBool = AtomicBool::new(false);
/// Whether somebody wants to hear of allocations.
pub static HAS_HOOKS: AtomicBool = AtomicBool::new(false);
/// Called for each new block and each release, when [`HAS_HOOKS`]: two functions of the exporting library.
pub static HOOKS: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];

/// Reserves the address space of the heap. False when it is not free.
pub fn start() -> bool {
    regions::reserve() && large::reserve()
}

/// What an allocation asks for.
#[derive(Clone, Copy)]
pub struct Request {
    /// How many bytes.
    pub bytes: usize,
    /// A power of two; 0 when none was asked for.
    pub alignment: usize,
    /// The family of the function that was called.
    pub kind: AllocKind,
    /// Whether the bytes must be 0.
    pub zeroed: bool,
    /// Whether the caller can take a null: only then may there be one.
    pub may_fail: bool,
}

/// Bytes of the redzone in front of a block of `bytes`: larger blocks are overrun further.
#[inline(always)]
fn redzone_for(bytes: usize) -> usize {
    let by_size = if bytes <= 64 {
        16
    } else if bytes <= 128 {
        32
    } else if bytes <= 512 {
        64
    } else if bytes <= 4096 {
        128
    } else if bytes <= 1 << 14 {
        256
    } else if bytes <= 1 << 15 {
        512
    } else if bytes <= 1 << 16 {
        1024
    } else {
        2048
    };
    let (least, most) = (options().redzone as usize, options().max_redzone as usize);
    by_size.max(least).min(most.max(least)).max(16)
}

struct Orphans {
    lock: Lock,
    record: AtomicUsize,
}

/// For threads that have no record (they are ending, or cannot get one): one that they share.
static ORPHANS: Orphans = Orphans { lock: Lock::new(), record: AtomicUsize::new(0) };

/// Runs `body` with the calling thread's caches.
#[inline(always)]
pub(crate) fn with_thread<R>(body: impl FnOnce(&Thread) -> R) -> R {
    let thread = thread::current();
    if thread.is_null() {
        return with_orphans(body);
    }
    // SAFETY: the calling thread's own record.
    body(unsafe { &*thread })
}

#[cold]
#[inline(never)]
fn with_orphans<R>(body: impl FnOnce(&Thread) -> R) -> R {
    if thread::adopt() {
        // SAFETY: made just now.
        return body(unsafe { &*thread::current() });
    }
    let _held = ORPHANS.lock.lock();
    let mut record = ORPHANS.record.load(Relaxed);
    if record == 0 {
        // SAFETY: all-zero bytes are a valid record.
        let Some([fresh]) = (unsafe { map_slice::<Thread>(1, false) }) else {
            crate::sys::write_all(2, b"AddressSanitizer: out of memory for a thread's record\n");
            crate::sys::exit_now(1)
        };
        record = &raw mut *fresh as usize;
        ORPHANS.record.store(record, Relaxed);
    }
    // SAFETY: mapped for good; the lock is held.
    body(unsafe { &*(record as *const Thread) })
}

/// A place for a block: the user's address, and whether its bytes are known to be 0.
struct Place {
    block: usize,
    user: usize,
    is_zero: bool,
}

#[inline(always)]
fn place(request: &Request, redzone: usize) -> Option<Place> {
    let bytes = request.bytes.max(SMALLEST_USER);
    let slack = if request.alignment > 16 { request.alignment } else { 0 };
    let needed = redzone + bytes + slack;
    if needed > classes::LARGEST {
        return place_large(request, redzone, bytes + slack);
    }
    let class = classes::class_of(needed);
    let block = with_thread(|thread| {
        // SAFETY: the calling thread's own cache.
        unsafe { (*thread.cache.get()).pop(class) }
    })?;
    let user = align(block + redzone, request.alignment);
    if options().poison_heap {
        // SAFETY: the block is free and ours; all of it is poisoned, so only the user's part is to be set.
        unsafe {
            let bytes = request.bytes;
            shadow_map::unpoison_object(user, if options().poison_partial { bytes } else { bytes.next_multiple_of(8) });
        }
    } else {
        // SAFETY: as above.
        unsafe { shadow_map::fill(block, classes::size_of(class), 0) };
    }
    Some(Place { block, user, is_zero: false })
}

#[cold]
#[inline(never)]
fn place_large(request: &Request, redzone: usize, bytes: usize) -> Option<Place> {
    // What lies far in front of a large block is seen as well: address space costs nothing, and one page is touched.
    let front = redzone.max(LARGE_FRONT_BYTES);
    let (block, mapped) = large::take(front + bytes + redzone)?;
    let user = align(block + front, request.alignment);
    if options().poison_heap {
        // SAFETY: the span is fresh, the user's part lies inside.
        unsafe { large::poison_ends(block, mapped, user, request.bytes) };
    }
    Some(Place { block, user, is_zero: true })
}

#[inline(always)]
fn align(address: usize, alignment: usize) -> usize {
    if alignment > 16 { (address + alignment - 1) & !(alignment - 1) } else { address }
}

/// Allocates. Null when that fails and the program may be told so; otherwise a failure is reported and fatal.
#[inline(always)]
pub fn allocate(caller: &Caller, request: Request) -> *mut u8 {
    if dormant::is_dormant() {
        return allocate_asleep(caller, &request);
    }
    allocate_now(caller, request)
}

#[cold]
#[inline(never)]
fn allocate_asleep(caller: &Caller, request: &Request) -> *mut u8 {
    dormant::inside(|| allocate_now(caller, *request))
}

#[inline(always)]
fn allocate_now(caller: &Caller, mut request: Request) -> *mut u8 {
    request.bytes = request.bytes.max(1);
    let prepared = caller.prepare();
    let redzone = redzone_for(request.bytes);
    let too_big = (options().max_allocation_size_mb as usize) << 20;
    if request.bytes >= classes::LARGEST
        && (request.bytes > LARGEST_ALLOCATION
            || request.bytes + request.alignment > LARGEST_ALLOCATION
            || (too_big > 0 && request.bytes > too_big))
    {
        return refuse_size(caller, &request, redzone, too_big);
    }
    if IS_OVER_LIMIT.load(Relaxed) {
        return refuse(&request, || report::rss_limit(caller));
    }
    let Some(Place { block, user, is_zero }) = place(&request, redzone) else {
        return refuse(&request, || report::out_of_memory(caller, request.bytes));
    };
    let chunk = Chunk(user);
    chunk::mark_block(block, chunk);
    let here = 0u8;
    let sp = if caller.rsp != 0 { caller.rsp } else { &raw const here as usize };
    let (thread, ignored, on_other_stack) = with_thread(|thread| {
        // SAFETY: the calling thread's own cache; the context lives for good.
        unsafe {
            (*thread.cache.get()).count_allocation(request.bytes);
            let number = if thread.context.is_null() { thread::NO_THREAD } else { (*thread.context).number };
            (number, thread.leaks_off.load(Relaxed) != 0, !thread.is_on_own_stack(sp))
        }
    });
    chunk.write(Facts {
        state: State::Allocated,
        kind: request.kind,
        alignment: chunk::alignment_code(request.alignment),
        stack: caller.stack_of(prepared),
        requested_bytes: request.bytes,
        thread,
        ignored,
        on_other_stack,
    });
    // SAFETY: the user's part of a fresh block.
    unsafe {
        if request.zeroed {
            if !is_zero {
                crate::originals::set_bytes(user, 0, request.bytes);
            }
        } else {
            let most = options().max_malloc_fill_size as usize;
            let (bytes, value) = (request.bytes.min(most), options().malloc_fill_byte as u8);
            if bytes <= 64 {
                shadow_map::fill_bytes(user, bytes, value);
            } else {
                crate::originals::set_bytes(user, value, bytes);
            }
        }
    }
    if HAS_HOOKS.load(Relaxed) {
        run_allocation_hook(user, request.bytes);
    }
    user as *mut u8
}

#[cold]
fn run_allocation_hook(user: usize, bytes: usize) {
    let hook = HOOKS[0].load(Relaxed);
    if hook != 0 {
        // SAFETY: the exporting library registered a function of this type.
        let hook: extern "C" fn(usize, usize) = unsafe { core::mem::transmute(hook) };
        hook(user, bytes);
    }
}

#[cold]
fn run_release_hook(user: usize) -> bool {
    let hook = HOOKS[1].load(Relaxed);
    if hook == 0 {
        return false;
    }
    // SAFETY: as above. It says whether the release is to be ignored.
    let hook: extern "C" fn(usize) -> bool = unsafe { core::mem::transmute(hook) };
    hook(user)
}

#[cold]
#[inline(never)]
fn refuse_size(caller: &Caller, request: &Request, redzone: usize, limit: usize) -> *mut u8 {
    let most = if limit > 0 { limit.min(LARGEST_ALLOCATION) } else { LARGEST_ALLOCATION };
    if options().allocator_may_return_null && request.may_fail {
        crate::out_pid!("WARNING: AddressSanitizer failed to allocate 0x{:x} bytes\n", request.bytes);
    }
    let adjusted =
        request.bytes.wrapping_add(redzone).wrapping_add(if request.alignment > 16 { request.alignment } else { 0 });
    refuse(request, || report::allocation_too_big(caller, request.bytes, adjusted, most))
}

/// `mmap_limit_mb` is reached: the end.
#[cold]
pub(crate) fn over_mmap_limit(limit: i64) -> ! {
    crate::out_pid!(
        "AddressSanitizer: CHECK failed: \"((total_mmaped >> 20)) < ((common_flags()->mmap_limit_mb))\" \
         (0x{limit:x}, 0x{limit:x})\n"
    );
    crate::report::die()
}

/// Fails an allocation: by null where the options and the function allow it.
#[cold]
#[inline(never)]
pub fn refuse(request: &Request, report: impl FnOnce()) -> *mut u8 {
    if !options().allocator_may_return_null || !request.may_fail {
        report();
    }
    // SAFETY: errno is the calling thread's.
    unsafe { *libc::__errno_location() = libc::ENOMEM };
    core::ptr::null_mut()
}

/// The chunk whose user's part starts at `address`, if a header lies in front of it.
#[inline(always)]
#[must_use]
pub fn chunk_of(address: usize) -> Option<(Chunk, Facts)> {
    if regions::contains(address) {
        // Blocks that were never handed out may not be accessible.
        if !regions::may_have_header(address) || address & 7 != 0 {
            return None;
        }
    } else if large::span_at(address).is_none_or(|start| chunk::of_block(start, 1 << 44).0 != address) {
        return None;
    }
    let chunk = Chunk(address);
    chunk.read().map(|facts| (chunk, facts))
}

/// A block, live or released, that an address belongs to or is near to.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// The user's part.
    pub user: usize,
    /// What its header says.
    pub facts: Facts,
}

/// The block around an address: the one whose bytes hold it, redzones included.
#[must_use]
pub fn find(address: usize) -> Option<Found> {
    let (block, bytes) = match regions::block_at(address) {
        Some(found) => found,
        None => (large::span_at(address)?, 1 << 44),
    };
    let chunk = chunk::of_block(block, bytes);
    let facts = chunk.read().filter(|facts| facts.state != State::Free)?;
    Some(Found { user: chunk.0, facts })
}

/// The block that a report on `address` should name: the one that holds it or, in a redzone, the nearer neighbour.
#[must_use]
pub fn find_for_report(address: usize, access_bytes: usize) -> Option<Found> {
    let here = find(address);
    let Some((block, _)) = regions::block_at(address) else { return here.or_else(|| first_behind(address)) };
    let is_left_of = here.is_none_or(|found| address < found.user);
    if !is_left_of {
        return here;
    }
    let size = classes::size_of_class(regions::class_at(address));
    // In front of the user's part: perhaps past the end of the block before.
    let left = (block >= size + regions::BASE).then(|| find(block - size)).flatten();
    let Some(left) = left.filter(|left| regions::class_at(left.user) == regions::class_at(address)) else {
        return here;
    };
    let Some(right) = here else { return Some(left) };
    let past_left = address.saturating_sub(left.user + left.facts.requested_bytes);
    let before_right = right.user.saturating_sub(address + access_bytes.max(1) - 1);
    // Live blocks go before released ones, then the nearer one.
    let is_live = |found: &Found| found.facts.state == State::Allocated;
    match (is_live(&left), is_live(&right)) {
        (true, false) => Some(left),
        (false, true) => Some(right),
        _ if past_left <= before_right => Some(left),
        _ => Some(right),
    }
}

/// The first block behind an address that lies in front of all blocks of its class.
fn first_behind(address: usize) -> Option<Found> {
    const FAR: usize = 16 << 10;
    if !regions::contains(address) {
        return None;
    }
    let size = classes::size_of_class(regions::class_at(address));
    (1..=FAR / size + 1).find_map(|step| find(address + step * size))
}

/// Calls `each` for every live or quarantined block.
pub fn for_each(mut each: impl FnMut(Found)) {
    let mut visit = |block: usize, bytes: usize| {
        let chunk = chunk::of_block(block, bytes);
        if let Some(facts) = chunk.read().filter(|facts| facts.state != State::Free) {
            each(Found { user: chunk.0, facts });
        }
    };
    regions::for_each_block(&mut visit);
    large::for_each_span(|start| visit(start, 1 << 44));
}

/// Allocations, their bytes, releases and their bytes, of all threads together.
#[must_use]
pub fn totals() -> [usize; 4] {
    let mut sums = [&COUNTERS.mallocs, &COUNTERS.malloc_bytes, &COUNTERS.frees, &COUNTERS.freed_bytes]
        .map(|counter| counter.load(Relaxed));
    for context in thread::all() {
        // SAFETY: a record stays mapped while its thread runs; counters of running threads may lag.
        if let Some(thread) = unsafe { context.thread.load(Relaxed).as_ref() } {
            // SAFETY: as above; plain words are read.
            for (sum, count) in sums.iter_mut().zip(unsafe { (*thread.cache.get()).counted() }) {
                *sum += count;
            }
        }
    }
    sums
}

/// Whether an address lies in the heap's part of the address space.
#[must_use]
pub fn is_heap_space(address: usize) -> bool {
    regions::contains(address) || large::contains(address)
}

/// Gives back what an ending thread has at hand.
///
/// # Safety
/// `thread` is the calling thread's record.
pub unsafe fn give_back(thread: *const Thread) {
    // SAFETY: the calling thread's own.
    unsafe {
        (*(*thread).quarantine.get()).hand_over();
        (*(*thread).cache.get()).drain();
        (*(*thread).cache.get()).settle_counters();
    }
}

/// Takes every lock of the heap before a fork.
pub fn lock_all() {
    ORPHANS.lock.acquire();
    quarantine::lock_all();
    regions::lock_all();
    large::lock_all();
}

/// Opens them after it.
pub fn unlock_all() {
    large::unlock_all();
    regions::unlock_all();
    quarantine::unlock_all();
    ORPHANS.lock.release();
}

/// Poisons what is not the user's of the `bytes` from `block`, in which the user's part begins within `reach`.
///
/// # Safety
/// A block of ours, whose state nobody changes meanwhile.
unsafe fn poison_around(block: usize, bytes: usize, reach: usize) {
    let chunk = chunk::of_block(block, reach);
    let end = block + bytes;
    // SAFETY: parts of the block.
    unsafe {
        match chunk.read() {
            Some(facts) if facts.state == State::Allocated => {
                let last = chunk.0 + facts.requested_bytes;
                shadow_map::fill(block, chunk.0 - block, why::HEAP_REDZONE);
                if last & 7 != 0 && options().poison_partial {
                    *(shadow_map::shadow_of(last) as *mut u8) = (last & 7) as u8;
                }
                let rest = last.next_multiple_of(8).min(end);
                shadow_map::fill(rest, end - rest, why::HEAP_REDZONE);
            }
            None if !chunk.is_free() => {} // A live block whose header the program wrote over.
            _ => shadow_map::fill(block, bytes, why::HEAP_REDZONE),
        }
    }
}

/// Poisons memory that user code may not touch any more.
///
/// # Safety
/// The range belongs to a block of ours.
unsafe fn poison_released(user: usize, bytes: usize) {
    if options().poison_heap {
        // SAFETY: the caller's.
        unsafe { shadow_map::fill(user, bytes.next_multiple_of(8), why::HEAP_FREED) };
    }
}
