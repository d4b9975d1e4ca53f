//! The log itself: the buffer, the file behind it, and what a line looks like.

use super::callers::{self, Hex};
use super::file::{File, Path};
use super::lock::OwnedLock;
use super::{Event, Sign, allocator_of};
use crate::blocks::{self, BlockInfo};
use crate::raw::{self, Errno};
use crate::runtime::{MODE, OUR_SITE, mode};
use core::cell::UnsafeCell;
use core::sync::atomic::Ordering::{AcqRel, Relaxed};
use leakscope_ledger::writer::Ledger;

/// Bytes that are kept back; what a program that is killed loses of its log at most.
const BUFFER_BYTES: usize = 64 << 10;
/// Longest line; a caller's text that does not fit is left out.
const MOST_LINE: usize = 8 << 10;

/// What the child of a `fork` has to write into its own file first.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum History {
    /// Its blocks: the log of a whole run.
    Blocks,
    /// What the parent's file held, so many bytes: a log that began with `mtrace()` knows only the blocks since.
    Parents(u64),
}

/// How far the log is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Off,
    Open,
    /// Of a forked child before its first event.
    Pending(History),
}

pub(super) struct Log {
    pub(super) state: State,
    pub(super) file: File,
    /// Whether it began with the process and not with `mtrace()`.
    pub(super) whole_run: bool,
    buffer: [u8; BUFFER_BYTES],
    pub(super) used: usize,
    pub(super) lines: u64,
    pub(super) written_bytes: u64,
    /// The process that the file belongs to: a process made around libc's `fork` must not write to it.
    pub(super) owner_pid: u32,
}

pub(super) struct LogCell(pub(super) UnsafeCell<Log>);
// SAFETY: touched only by the owner of `LOCK`, and by the only thread of a forked child.
unsafe impl Sync for LogCell {}
pub(super) static LOG: LogCell = LogCell(UnsafeCell::new(Log {
    state: State::Off,
    file: File::none(),
    whole_run: false,
    buffer: [0; BUFFER_BYTES],
    used: 0,
    lines: 0,
    written_bytes: 0,
    owner_pid: 0,
}));
pub(super) static LOCK: OwnedLock = OwnedLock::new();

impl Log {
    /// Appends bytes that fit by the checks of the callers.
    fn put(&mut self, bytes: &[u8]) {
        if let Some(to) = self.buffer.get_mut(self.used..self.used + bytes.len()) {
            to.copy_from_slice(bytes);
            self.used += bytes.len();
        }
    }

    pub(super) fn write(&mut self, ledger: &Ledger, event: &Event, text: Option<&[u8]>) {
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
    pub(super) fn flush(&mut self, ledger: &Ledger) {
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
    pub(super) fn fail(&mut self, ledger: &Ledger, error: Errno) {
        MODE.fetch_and(!mode::LOGGING, AcqRel);
        self.state = State::Off;
        self.used = 0;
        self.file.close();
        ledger.header().event_log.errno.store(error.0.unsigned_abs().max(1), Relaxed);
        raw::complain("cannot write the mtrace log; it ends early, see the report");
    }

    /// Takes a file that was just created.
    pub(super) fn begin(&mut self, ledger: &Ledger, whole_run: bool) {
        self.state = State::Open;
        self.whole_run = whole_run;
        (self.used, self.lines, self.written_bytes) = (0, 0, 0);
        self.owner_pid = raw::getpid();
        let facts = &ledger.header().event_log;
        // A program may begin the same log again and again.
        if !ledger.string_is(facts.file.load(Relaxed), self.file.path().get()) {
            facts.file.store(ledger.store_string(self.file.path().get()), Relaxed);
        }
        facts.lines.store(0, Relaxed);
    }

    pub(super) fn start_line(&mut self) {
        self.put(b"= Start\n");
        self.lines += 1;
    }

    /// In a forked child with its first event: opens its own file, with what went before.
    pub(super) fn ensure_open(&mut self, ledger: &Ledger, event: &Event, gone: Option<BlockInfo>) {
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

    pub(super) fn end(&mut self, ledger: &Ledger) {
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

    pub(super) fn cut_to_lines(&mut self) {
        let lines = self.buffer.get(..self.used).unwrap_or(&[]);
        self.used = lines.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    }
}

pub(super) struct PathCell(pub(super) UnsafeCell<Path>);
// SAFETY: touched only by the owner of `LOCK`.
unsafe impl Sync for PathCell {}
