//! What a thread has of its own: the busy mark, the unwinder's cache, the pointers to its counters.
//!
//! The thread-local words are reached by initial-exec TLS written in assembly: `thread_local!` in a shared library
//! calls `__tls_get_addr`, which may allocate. A thread's state is made at its first event, by mmap; once the
//! thread has ended (its kernel id is gone) a new thread takes it over, counters included: they only add up.

use crate::memory::{self, map_zeroed};
use crate::raw::{self, call, nr};
use crate::release_queue::ReleaseQueue;
use crate::sites::SiteTable;
use crate::unwind::ThreadCache;
use core::arch::{asm, global_asm};
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64};
use leakscope_ledger::layout::{AreaId, COUNTERS_PER_CHUNK, SiteCounters, ThreadRecord};
use leakscope_ledger::writer::Ledger;

global_asm!(
    ".section .tbss.leakscope_tls,\"awT\",@nobits",
    ".balign 64",
    ".hidden leakscope_tls",
    ".globl leakscope_tls",
    ".type leakscope_tls,@object",
    "leakscope_tls: .zero 64",
    ".size leakscope_tls,64",
    ".text",
);

/// The thread-local words; all zero in a new thread.
#[repr(C)]
pub struct Tls {
    /// This thread's state, or null.
    pub state: *mut ThreadState,
    /// Nonzero while the thread runs our code: whatever allocates then (a signal handler, libc on our behalf) must
    /// not touch the state.
    pub busy: u32,
    /// Whether `until_sample` means anything.
    pub sampling_begun: u32,
    /// Bytes until the next sampled allocation. Hooks written in assembly count it down.
    pub until_sample: i64,
}

/// Where [`Tls::until_sample`] is, for assembly.
pub const UNTIL_SAMPLE: usize = core::mem::offset_of!(Tls, until_sample);
const _: () = assert!(size_of::<Tls>() <= 64);

/// Value of the busy mark while libc works for us: its allocations are none of the program's.
pub const OURS: u32 = 2;

/// Runs `body`, which calls libc for our own purposes: what it allocates is not recorded.
pub fn for_ourselves<R>(body: impl FnOnce() -> R) -> R {
    let words = tls();
    // SAFETY: the calling thread's own words.
    let was_busy = unsafe { core::mem::replace(&mut (*words).busy, OURS) };
    let result = body();
    // SAFETY: as above.
    unsafe { (*words).busy = was_busy };
    result
}

/// The calling thread's words.
#[inline(always)]
pub fn tls() -> *mut Tls {
    let words: *mut Tls;
    // SAFETY: reads the thread pointer and the offset that the linker put into the GOT.
    unsafe {
        asm!(
            "mov {0}, qword ptr [rip + leakscope_tls@GOTTPOFF]",
            "add {0}, qword ptr fs:[0]",
            out(reg) words,
            options(pure, readonly, nostack)
        );
    }
    words
}

/// Chunks of counters that there can be.
const DIRECTORY: usize = (crate::blocks::MAX_SITE as usize + 1) / COUNTERS_PER_CHUNK;

/// A chunk of counters and, in the low bits of its (page-aligned) address, its sites' family.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct TaggedChunk(u64);

impl TaggedChunk {
    /// The family tag (see `sites::family`).
    #[inline(always)]
    pub fn family(self) -> u8 {
        (self.0 & 3) as u8
    }

    #[inline(always)]
    fn counters(self, site: u32) -> *const SiteCounters {
        ((self.0 & !3) as *const SiteCounters).wrapping_add(site as usize % COUNTERS_PER_CHUNK)
    }
}

/// One thread's state. All-zero bytes are a valid new state.
#[repr(C)]
pub struct ThreadState {
    /// Kernel id of the owner.
    pub tid: AtomicU32,
    /// Number of the thread's record in the ledger; 0 when there was no room.
    pub record_number: u32,
    /// Allocations until the next one whose lifetime is measured.
    pub until_lifetime: u32,
    /// The block that the thread allocated last.
    pub last_block: u64,
    /// Block that this thread is in the middle of reallocating: it is marked freed and may still be in use.
    pub pending_start: AtomicU64,
    /// Releases that wait.
    pub queue: ReleaseQueue,
    /// State of the sampling generator.
    pub random: u64,
    /// One past the highest address of the thread's stack (the thread control block of a pthread).
    pub stack_high: AtomicU64,
    /// Where to add what is not recorded by site: the ledger's thread record.
    pub record: *const ThreadRecord,
    next: AtomicPtr<ThreadState>,
    /// The unwinder's part.
    pub cache: ThreadCache,
    directory: [TaggedChunk; DIRECTORY],
}

static ALL: AtomicPtr<ThreadState> = AtomicPtr::new(core::ptr::null_mut());

/// Counters that threads share: for events inside our own code, where the thread's own must not be touched.
static SHARED: [AtomicPtr<SiteCounters>; DIRECTORY] = [const { AtomicPtr::new(core::ptr::null_mut()) }; DIRECTORY];

/// Calls `each` for the state of every thread that has had one, ended ones included.
pub fn for_each_state(mut each: impl FnMut(&'static ThreadState)) {
    let mut at = ALL.load(Acquire);
    while !at.is_null() {
        // SAFETY: states are never freed.
        let state = unsafe { &*at };
        each(state);
        at = state.next.load(Acquire);
    }
}

/// Whether a thread of this process with this id runs.
fn is_alive(pid: u32, tid: u32) -> bool {
    // SAFETY: signal 0 is only a test.
    unsafe { call!(nr::TGKILL, pid, tid, 0) }.is_ok()
}

/// How many states a new thread looks at for one whose owner has ended.
const LOOKS: usize = 4;
/// Where the next new thread starts to look.
static CURSOR: AtomicPtr<ThreadState> = AtomicPtr::new(core::ptr::null_mut());

/// Takes over the state of a thread that has ended, if one of the next few is such.
fn take_over(pid: u32, tid: u32) -> *mut ThreadState {
    let mut at = CURSOR.load(Acquire);
    for _ in 0..LOOKS {
        if at.is_null() {
            at = ALL.load(Acquire);
        }
        // SAFETY: null or a state; states are never freed.
        let Some(state) = (unsafe { at.as_ref() }) else { break };
        let owner = state.tid.load(Relaxed);
        // The same id again: the owner has ended, and the kernel gave its number to this thread.
        if (owner == tid || !is_alive(pid, owner)) && state.tid.compare_exchange(owner, tid, AcqRel, Relaxed).is_ok() {
            CURSOR.store(state.next.load(Relaxed), Relaxed);
            return at;
        }
        at = state.next.load(Relaxed);
    }
    CURSOR.store(at, Relaxed);
    core::ptr::null_mut()
}

/// Gives the calling thread a state. Null when there is no memory. The busy mark must be set.
#[cold]
#[inline(never)]
pub fn attach(ledger: &Ledger) -> *mut ThreadState {
    let (pid, tid) = (raw::getpid(), raw::gettid());
    let mut taken = take_over(pid, tid);
    if taken.is_null() {
        let Ok(fresh) = map_zeroed(size_of::<ThreadState>()) else { return core::ptr::null_mut() };
        taken = fresh.cast::<ThreadState>();
        // SAFETY: a fresh mapping of a ThreadState's size; only this thread knows it.
        let state = unsafe { &mut *taken };
        state.tid.store(tid, Relaxed);
        state.record = core::ptr::null();
        if let Some(number) = ledger.claim(AreaId::Threads, 1)
            && let Some(record) = ledger.thread(number)
        {
            state.record_number = number;
            state.record = record;
        } else {
            ledger.header().lost.threads.fetch_add(1, Relaxed);
        }
        let mut head = ALL.load(Acquire);
        loop {
            state.next.store(head, Relaxed);
            match ALL.compare_exchange(head, taken, AcqRel, Acquire) {
                Ok(_) => break,
                Err(now) => head = now,
            }
        }
    }
    // SAFETY: the state is this thread's alone now.
    let state = unsafe { &mut *taken };
    state.pending_start.store(0, Relaxed);
    state.last_block = 0;
    state.until_lifetime = 1 + tid % leakscope_ledger::layout::LIFETIME_SAMPLE;
    state.random = (raw::tsc() ^ u64::from(tid) << 32) | 1;
    if let Some(record) = state.record() {
        record.tid.store(tid, Relaxed);
        record.state.store(1, Release);
    }
    taken
}

impl ThreadState {
    /// The ledger's record of the thread, if there was room for one.
    #[inline(always)]
    pub fn record(&self) -> Option<&'static ThreadRecord> {
        // SAFETY: null or a record of the ledger, which stays mapped.
        unsafe { self.record.as_ref() }
    }

    /// This thread's counters for a site, and the site's family tag; `None` when there is no room for them.
    #[inline(always)]
    pub fn counters(&mut self, ledger: &Ledger, sites: &SiteTable, site: u32) -> Option<(&'static SiteCounters, u8)> {
        let slot = self.directory.get(site as usize / COUNTERS_PER_CHUNK).copied()?;
        let chunk = if slot.0 != 0 { slot } else { self.new_chunk(ledger, sites, site)? };
        // SAFETY: a chunk is COUNTERS_PER_CHUNK records of the ledger, which stays mapped.
        Some((unsafe { &*chunk.counters(site) }, chunk.family()))
    }

    /// Starts to load this thread's counters for a site.
    #[inline(always)]
    pub fn prefetch_counters(&self, site: u32) {
        if let Some(chunk) = self.directory.get(site as usize / COUNTERS_PER_CHUNK) {
            memory::prefetch(chunk.counters(site));
        }
    }

    #[cold]
    #[inline(never)]
    fn new_chunk(&mut self, ledger: &Ledger, sites: &SiteTable, site: u32) -> Option<TaggedChunk> {
        let counters = claim_chunk(ledger, site, self.record_number)?;
        let chunk = TaggedChunk(counters as u64 | u64::from(sites.family(site)));
        *self.directory.get_mut(site as usize / COUNTERS_PER_CHUNK)? = chunk;
        Some(chunk)
    }
}

fn claim_chunk(ledger: &Ledger, site: u32, thread: u32) -> Option<*const SiteCounters> {
    let Some(number) = ledger.claim(AreaId::Chunks, 1) else {
        ledger.header().lost.counters.fetch_add(1, Relaxed);
        return None;
    };
    let descriptor = ledger.chunk(number)?;
    descriptor.thread.store(thread, Relaxed);
    descriptor.first_site.store(site - site % COUNTERS_PER_CHUNK as u32, Release);
    ledger.publish(AreaId::Counters, number + 1);
    ledger.counters(number * COUNTERS_PER_CHUNK as u32).map(core::ptr::from_ref)
}

/// The counters that all threads share for a site: update them with atomic additions only.
#[cold]
pub fn shared_counters(ledger: &Ledger, site: u32) -> Option<&'static SiteCounters> {
    let slot = SHARED.get(site as usize / COUNTERS_PER_CHUNK)?;
    let mut chunk = slot.load(Acquire);
    if chunk.is_null() {
        let fresh = claim_chunk(ledger, site, 0)?.cast_mut();
        chunk = match slot.compare_exchange(core::ptr::null_mut(), fresh, AcqRel, Acquire) {
            Ok(_) => fresh,
            Err(first) => first,
        };
    }
    // SAFETY: a chunk is COUNTERS_PER_CHUNK records of the ledger, which stays mapped.
    Some(unsafe { &*chunk.add(site as usize % COUNTERS_PER_CHUNK) })
}

/// Whether this process has had more than one thread with a state that may still run.
pub fn has_several() -> bool {
    let (pid, me) = (raw::getpid(), raw::gettid());
    let mut several = false;
    for_each_state(|state| {
        let owner = state.tid.load(Relaxed);
        several |= owner != 0 && owner != me && is_alive(pid, owner);
    });
    several
}

/// In a forked child: the calling thread is the only one left. Other threads' states may be taken over.
pub fn after_fork_in_child() {
    let tid = raw::gettid();
    // SAFETY: the calling thread's own words.
    let mine = unsafe { (*tls()).state };
    for_each_state(|state| {
        if core::ptr::eq(state, mine) {
            state.tid.store(tid, Relaxed);
            if let Some(record) = state.record() {
                record.tid.store(tid, Relaxed);
            }
        } else {
            state.tid.store(0, Relaxed);
            if let Some(record) = state.record() {
                record.state.store(2, Relaxed);
            }
        }
    });
}
