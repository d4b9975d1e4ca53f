//! `start_deactivated`: until an instrumented object comes, the heap serves as a plain one, without redzones that hooks
//! see, without a quarantine, without reports of mismatches. Then it wakes: the options that were asked for begin to
//! count, and every block that there is gets its redzones.
//!
//! While it sleeps, each call goes through a gate, so that waking finds no block halfway between free and live. Awake,
//! the gate is a flag that nobody sets.

use super::{large, regions};
use crate::options::{self, Options, options};
use crate::tls::{self, mark};
use core::cell::UnsafeCell;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use core::sync::atomic::{AtomicBool, AtomicUsize};

static IS_DORMANT: AtomicBool = AtomicBool::new(false);
static IS_WAKING: AtomicBool = AtomicBool::new(false);
/// Threads in a call of the heap, as far as it began while it slept.
static INSIDE: AtomicUsize = AtomicUsize::new(0);

struct Asked(UnsafeCell<Options>);
// SAFETY: written at the start, when there is one thread; read afterwards.
unsafe impl Sync for Asked {}

static ASKED: Asked = Asked(UnsafeCell::new(Options::DEFAULT));

/// Whether the heap sleeps.
#[inline(always)]
#[must_use]
pub fn is_dormant() -> bool {
    IS_DORMANT.load(Relaxed)
}

/// The options as they were asked for, which count when the heap wakes.
#[must_use]
pub fn asked() -> Options {
    // SAFETY: see `Asked`.
    unsafe { *ASKED.0.get() }
}

/// Puts the heap to sleep: at the start, when options were read and there is one thread.
pub fn begin() {
    // SAFETY: the caller says that there is one thread.
    unsafe { *ASKED.0.get() = *options() };
    options::change(|options| {
        (options.quarantine_size, options.quarantine_size_mb, options.thread_local_quarantine_size_kb) = (-1, 0, 0);
        (options.redzone, options.max_redzone) = (16, 16);
        (options.poison_heap, options.alloc_dealloc_mismatch) = (false, false);
        options.allocator_may_return_null = true;
    });
    IS_DORMANT.store(true, SeqCst);
}

fn yield_now() {
    // SAFETY: a system call without arguments.
    unsafe { libc::sched_yield() };
}

/// Runs a call of the heap, during which it does not wake.
#[cold]
pub fn inside<R>(body: impl FnOnce() -> R) -> R {
    let marks = tls::marks();
    if marks & mark::IN_HEAP != 0 {
        return body();
    }
    INSIDE.fetch_add(1, SeqCst);
    while IS_WAKING.load(SeqCst) {
        INSIDE.fetch_sub(1, SeqCst);
        while IS_WAKING.load(SeqCst) {
            yield_now();
        }
        INSIDE.fetch_add(1, SeqCst);
    }
    tls::set_marks(marks | mark::IN_HEAP);
    let result = body();
    tls::set_marks(tls::marks() & !mark::IN_HEAP);
    INSIDE.fetch_sub(1, SeqCst);
    result
}

/// Wakes the heap with these options; what cannot change any more is left as it is. Once: later calls do nothing.
pub fn wake(asked: &Options) {
    if IS_WAKING.swap(true, SeqCst) {
        return;
    }
    if is_dormant() {
        let own = usize::from(tls::marks() & mark::IN_HEAP != 0);
        while INSIDE.load(SeqCst) > own {
            yield_now();
        }
        options::change(|options| {
            options.quarantine_size = asked.quarantine_size;
            options.quarantine_size_mb = asked.quarantine_size_mb;
            options.thread_local_quarantine_size_kb = asked.thread_local_quarantine_size_kb;
            (options.redzone, options.max_redzone) = (asked.redzone, asked.max_redzone);
            (options.poison_heap, options.alloc_dealloc_mismatch) = (asked.poison_heap, asked.alloc_dealloc_mismatch);
            options.allocator_may_return_null = asked.allocator_may_return_null;
            options.allocator_release_to_os_interval_ms = asked.allocator_release_to_os_interval_ms;
            options.malloc_context_size = asked.malloc_context_size;
            options.verbosity = asked.verbosity;
        });
        if asked.poison_heap {
            regions::poison_existing();
            large::poison_existing();
        }
        // Stacks may have another depth now.
        crate::depot::forget_signatures();
        IS_DORMANT.store(false, SeqCst);
    }
    IS_WAKING.store(false, SeqCst);
}

/// In a forked child nobody else is inside.
pub fn after_fork_in_child() {
    INSIDE.store(usize::from(tls::marks() & mark::IN_HEAP != 0), SeqCst);
    IS_WAKING.store(false, SeqCst);
}
