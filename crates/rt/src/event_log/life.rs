//! When the log begins and ends, and what becomes of it around `fork`.

use super::callers;
use super::file::Path;
use super::lock::Owner;
use super::log::{History, LOCK, LOG, Log, PathCell, State};
use super::{LEFT_COUNT, open_lock, this_thread, while_busy, write_left};
use crate::raw::{self, Errno};
use crate::runtime::{self, MODE, mode};
use crate::thread::tls;
use core::cell::UnsafeCell;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{AcqRel, Relaxed};
use leakscope_ledger::layout::{flags, origin};
use leakscope_ledger::writer::Ledger;

/// Runs `body` on the log with the lock held, unless a signal handler has interrupted the calling thread's own use of it.
fn with_log<R>(ledger: &Ledger, body: impl FnOnce(&mut Log) -> R) -> Option<R> {
    while_busy(|_| {
        let me = this_thread();
        LOCK.acquire(me).then(|| {
            // SAFETY: this thread has the lock.
            let result = body(unsafe { &mut *LOG.0.get() });
            open_lock(ledger, me);
            result
        })
    })
}

/// Whether events are logged now.
pub fn is_on() -> bool {
    runtime::mode() & mode::LOGGING != 0
}

/// Begins the log of the whole run that the observer wants.
pub fn begin_with_process(ledger: &Ledger) {
    if !runtime::flag(flags::MTRACE_LOG) || runtime::sampling() {
        return;
    }
    let is_first = ledger.header().origin.load(Relaxed) == origin::START;
    begin(ledger, true, |log, path| {
        path.expand(ledger.config().mtrace_log.get(), raw::getpid(), !is_first)?;
        // A program that replaces itself keeps its process id: the log of what it was stays.
        if is_first { log.file.create(path) } else { log.file.create_fresh(path) }
    });
}

/// Begins the log that `MALLOC_TRACE` names, when the program calls `mtrace()`. Nothing happens while another is written.
pub fn begin_with_mtrace(ledger: &Ledger, name: &[u8]) {
    if is_on() || name.is_empty() || runtime::sampling() {
        return;
    }
    begin(ledger, false, |log, path| {
        path.clear();
        path.push(name)?;
        log.file.create(path)
    });
}

fn begin(ledger: &Ledger, whole_run: bool, create: impl FnOnce(&mut Log, &mut Path) -> Result<(), Errno>) {
    static PATH: PathCell = PathCell(UnsafeCell::new(Path::new()));
    with_log(ledger, |log| {
        if log.state != State::Off {
            return;
        }
        // SAFETY: the lock is held.
        match create(log, unsafe { &mut *PATH.0.get() }) {
            Ok(()) => {
                log.begin(ledger, whole_run);
                log.start_line();
                ledger.header().event_log.errno.store(0, Relaxed);
                runtime::let_none_wait();
                MODE.fetch_or(mode::LOGGING, AcqRel);
            }
            Err(error) => log.fail(ledger, error),
        }
    });
}

/// Ends the log that `mtrace()` began.
pub fn end_with_muntrace(ledger: &Ledger) {
    with_log(ledger, |log| {
        if !log.whole_run {
            log.end(ledger);
        }
    });
}

/// Waits for the lock a second at most: at the end of a process, in a signal handler perhaps, the thread that has it may
/// never come back. False when it did not open it, or the calling thread itself has it.
fn acquire_soon(me: Owner) -> bool {
    for _ in 0..1000 {
        if LOCK.is_held_by(me) {
            return false;
        }
        if LOCK.try_acquire(me) {
            return true;
        }
        raw::sleep_ns(1_000_000);
    }
    false
}

/// Writes out what the buffer holds: the program is about to replace itself, perhaps.
pub fn flush(ledger: &Ledger) {
    if is_on() {
        while_busy(|_| {
            let me = this_thread();
            if acquire_soon(me) {
                // SAFETY: this thread has the lock.
                unsafe { &mut *LOG.0.get() }.flush(ledger);
                open_lock(ledger, me);
            }
        });
    }
}

/// Ends the log with the process. `freeres` are libc's functions that release what it keeps for itself: what they release
/// is logged too, as glibc's mtrace does it, by a copy of the process.
pub fn end_with_process(ledger: &Ledger, freeres: &[Option<unsafe extern "C" fn()>]) {
    if !is_on() {
        return;
    }
    while_busy(|_| {
        let me = this_thread();
        let opened = acquire_soon(me);
        if !opened && !LOCK.is_held_by(me) {
            return;
        }
        // SAFETY: this thread has the lock, or has interrupted itself: then a line may be cut, and goes.
        let log = unsafe { &mut *LOG.0.get() };
        if !opened {
            log.cut_to_lines();
        }
        log.flush(ledger);
        if log.state == State::Open && freeres.iter().any(Option::is_some) {
            let keep = log.file.descriptor();
            crate::check::in_harmless_copy(Some(keep), || {
                MODE.fetch_or(mode::LOG_ONLY, AcqRel);
                log.owner_pid = raw::getpid();
                while !LOCK.release(me) {
                    write_left(ledger);
                }
                let words = tls();
                // SAFETY: the calling thread's own words; the functions take no arguments.
                unsafe {
                    (*words).busy = 0;
                    freeres.iter().rev().flatten().for_each(|function| function());
                    (*words).busy = 1;
                }
                with_log(ledger, |log| log.flush(ledger));
            });
            log.lines = ledger.header().event_log.lines.load(Relaxed);
        }
        log.end(ledger);
        if opened {
            open_lock(ledger, me);
        }
    });
}

/// Whether the forking thread has taken the lock: it has not when it has interrupted itself.
static HELD_FOR_FORK: AtomicU32 = AtomicU32::new(0);

/// Before a `fork`: what was logged goes to the parent's file, and the child finds nothing half done. The busy mark is set.
pub fn before_fork(ledger: &Ledger) {
    callers::before_fork();
    let held = LOCK.acquire(this_thread());
    HELD_FOR_FORK.store(u32::from(held), Relaxed);
    if held {
        // SAFETY: this thread has the lock.
        unsafe { &mut *LOG.0.get() }.flush(ledger);
    }
}

/// After a `fork`, in the parent.
pub fn after_fork_in_parent(ledger: &Ledger) {
    if HELD_FOR_FORK.load(Relaxed) != 0 {
        open_lock(ledger, this_thread());
    }
    callers::after_fork();
}

/// After a `fork`, in the child: the file is the parent's, and another is opened when there is something to write.
pub fn after_fork_in_child() {
    LOCK.reset();
    LEFT_COUNT.store(0, Relaxed);
    callers::after_fork();
    // SAFETY: the only thread of this process.
    let log = unsafe { &mut *LOG.0.get() };
    log.used = 0;
    if log.state == State::Open {
        let history = if log.whole_run { History::Blocks } else { History::Parents(log.written_bytes) };
        log.state = State::Pending(history);
        log.file.leave();
    }
}
