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
mod lock;

use crate::blocks::{self, BlockInfo};
use crate::raw::{self, Errno};
use crate::runtime::{self, MODE, OUR_SITE, mode};
use crate::thread::{self, tls};
use crate::unwind::Registers;
use callers::Hex;
use core::cell::UnsafeCell;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use core::sync::atomic::{AtomicU32, AtomicU64, compiler_fence};
use file::{File, Path};
use leakscope_ledger::layout::{AreaId, flags, origin, site_flags};
use leakscope_ledger::writer::Ledger;
use lock::{OwnedLock, Owner};

/// Bytes that are kept back; what a program that is killed loses of its log at most.
const BUFFER_BYTES: usize = 64 << 10;
/// Longest line; a caller's text that does not fit is left out.
const MOST_LINE: usize = 8 << 10;

/// What the child of a `fork` has to write into its own file first.
#[derive(Clone, Copy, PartialEq, Eq)]
enum History {
    /// Its blocks: the log of a whole run.
    Blocks,
    /// What the parent's file held, so many bytes: a log that began with `mtrace()` knows only the blocks since.
    Parents(u64),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Off,
    Open,
    /// Of a forked child before its first event.
    Pending(History),
}

struct Log {
    state: State,
    file: File,
    /// Whether it began with the process and not with `mtrace()`.
    whole_run: bool,
    buffer: [u8; BUFFER_BYTES],
    used: usize,
    lines: u64,
    written_bytes: u64,
    /// The process that the file belongs to: a process made around libc's `fork` must not write to it.
    owner_pid: u32,
}

struct LogCell(UnsafeCell<Log>);
// SAFETY: touched only by the owner of `LOCK`, and by the only thread of a forked child.
unsafe impl Sync for LogCell {}
static LOG: LogCell = LogCell(UnsafeCell::new(Log {
    state: State::Off,
    file: File::none(),
    whole_run: false,
    buffer: [0; BUFFER_BYTES],
    used: 0,
    lines: 0,
    written_bytes: 0,
    owner_pid: 0,
}));
static LOCK: OwnedLock = OwnedLock::new();

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
    callers::known(caller, ledger.header().epoch.load(Relaxed)).or_else(|| {
        if caller == 0 { None } else { callers::find_out(ledger, caller, interrupts) }
    })
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

impl Log {
    /// Appends bytes that fit by the checks of the callers.
    fn put(&mut self, bytes: &[u8]) {
        if let Some(to) = self.buffer.get_mut(self.used..self.used + bytes.len()) {
            to.copy_from_slice(bytes);
            self.used += bytes.len();
        }
    }

    fn write(&mut self, ledger: &Ledger, event: &Event, text: Option<&[u8]>) {
        if self.state != State::Open {
            return;
        }
        if self.used + MOST_LINE > BUFFER_BYTES {
            self.flush(ledger);
        }
        let begin = self.used;
        match text.filter(|text| text.len() + 128 < MOST_LINE) {
            Some(text) => {
                self.put(b"@ ");
                self.put(text);
                self.put(b" ");
            }
            None if event.caller != 0 => {
                self.put(b"@ [");
                self.put(Hex::new(event.caller).prefixed());
                self.put(b"] ");
            }
            None => {}
        }
        self.put(&[event.sign as u8, b' ']);
        self.put(Hex::new(event.address).prefixed());
        if matches!(event.sign, Sign::Allocated | Sign::Reallocated | Sign::Failed) {
            self.put(b" ");
            // As `%#lx` has it: zero stands alone.
            let bytes = Hex::new(event.bytes);
            self.put(if event.bytes == 0 { bytes.digits() } else { bytes.prefixed() });
        }
        self.put(b"\n");
        debug_assert!(self.used - begin <= MOST_LINE);
        self.lines += 1;
    }

    /// Writes the buffer to the file. When that fails the log ends here.
    fn flush(&mut self, ledger: &Ledger) {
        let used = core::mem::take(&mut self.used);
        // A process that was made around libc's `fork` has a copy of the buffer, but no right to the file.
        if self.state != State::Open || used == 0 || self.owner_pid != raw::getpid() {
            return;
        }
        match self.file.write(self.buffer.get(..used).unwrap_or(&[])) {
            Ok(()) => {
                self.written_bytes += used as u64;
                ledger.header().event_log.lines.store(self.lines, Relaxed);
            }
            Err(error) => self.fail(ledger, error),
        }
    }

    /// The log ends early; said once, and in the report.
    #[cold]
    fn fail(&mut self, ledger: &Ledger, error: Errno) {
        MODE.fetch_and(!mode::LOGGING, AcqRel);
        self.state = State::Off;
        self.used = 0;
        self.file.close();
        ledger.header().event_log.errno.store(error.0.unsigned_abs().max(1), Relaxed);
        raw::complain("cannot write the mtrace log; it ends early, see the report");
    }

    /// Takes a file that was just created.
    fn begin(&mut self, ledger: &Ledger, whole_run: bool) {
        self.state = State::Open;
        self.whole_run = whole_run;
        (self.used, self.lines, self.written_bytes) = (0, 0, 0);
        self.owner_pid = raw::getpid();
        let facts = &ledger.header().event_log;
        facts.file.store(ledger.store_string(self.file.path().get()), Relaxed);
        facts.lines.store(0, Relaxed);
    }

    fn start_line(&mut self) {
        self.put(b"= Start\n");
        self.lines += 1;
    }

    /// In a forked child with its first event: opens its own file, with what went before.
    fn ensure_open(&mut self, ledger: &Ledger, event: &Event, gone: Option<BlockInfo>) {
        if let State::Pending(history) = self.state {
            self.open_own(ledger, history, event, gone);
        }
    }

    #[cold]
    #[inline(never)]
    fn open_own(&mut self, ledger: &Ledger, history: History, event: &Event, gone: Option<BlockInfo>) {
        static PARENTS: PathCell = PathCell(UnsafeCell::new(Path::new()));
        static OWN: PathCell = PathCell(UnsafeCell::new(Path::new()));
        // SAFETY: the caller has the lock; too large for the stack of a signal handler.
        let (parents, own) = unsafe { (&mut *PARENTS.0.get(), &mut *OWN.0.get()) };
        *parents = *self.file.path();
        let created = if self.whole_run {
            own.expand(ledger.config().mtrace_log.get(), raw::getpid(), true)
        } else {
            *own = *parents;
            own.push(b".").and_then(|()| own.push_number(raw::getpid()))
        }
        .and_then(|()| self.file.create(own));
        if let Err(error) = created {
            return self.fail(ledger, error);
        }
        self.begin(ledger, self.whole_run);
        match history {
            History::Parents(bytes) => match self.file.append_begin_of(parents, bytes) {
                Ok(()) => self.written_bytes = bytes,
                Err(error) => self.fail(ledger, error),
            },
            History::Blocks => {
                self.start_line();
                let new = if event.sign == Sign::Allocated { event.address } else { 0 };
                let mut write = |block: BlockInfo| {
                    let caller = allocator_of(ledger, block.site);
                    let text = callers::known(caller, ledger.header().epoch.load(Relaxed))
                        .or_else(|| callers::find_out(ledger, caller, true));
                    let event = Event { sign: Sign::Allocated, address: block.start, bytes: block.bytes, caller };
                    self.write(ledger, &event, text);
                };
                gone.into_iter().for_each(&mut write);
                blocks::for_each(|block| {
                    if !block.freed && block.site != OUR_SITE && block.start != new {
                        write(block);
                    }
                });
            }
        }
    }
}

struct PathCell(UnsafeCell<Path>);
// SAFETY: touched only by the owner of `LOCK`.
unsafe impl Sync for PathCell {}

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

impl Log {
    fn end(&mut self, ledger: &Ledger) {
        if self.state == State::Open {
            self.put(b"= End\n");
            self.lines += 1;
            self.flush(ledger);
        }
        if self.state != State::Off {
            MODE.fetch_and(!mode::LOGGING, AcqRel);
            self.state = State::Off;
            self.file.close();
        }
    }
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

impl Log {
    fn cut_to_lines(&mut self) {
        let lines = self.buffer.get(..self.used).unwrap_or(&[]);
        self.used = lines.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    }
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
