//! The service thread: one poll loop that answers Hellos, samples the series, forwards signals, serves
//! snapshots and notices ends.
//!
//! Within one turn messages come before ends: a process that said Hello and died at once still gets counted.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use leakscope_ledger::layout::{self, Capacity, Config, origin};
use leakscope_ledger::wire::{Hello, WIRE_VERSION, Welcome};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Resource, Signal};

use crate::ledger_file::{LedgerFile, fitting_capacity};
use crate::oom::OomWatch;
use crate::series::{Sampler, sample_now};
use crate::signals::SignalSource;
use crate::snapshot::{Pending, Step};
use crate::spawn::Token;
use crate::unannounced::Marks;
use crate::{Error, control, snapshot, socket, unannounced};

/// A connection that says nothing for so long is closed: anybody can connect.
const HELLO_PATIENCE: Duration = Duration::from_secs(5);
/// Connections that have not said anything yet, at most.
const MOST_SILENT: usize = 256;
/// How often to look where the kernel gives no pidfd.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// How long to wait at the end for processes that have not asked for their ledger yet, and how often to look.
const SETTLE_PATIENCE: Duration = Duration::from_secs(1);
const SETTLE_INTERVAL: Duration = Duration::from_millis(2);
/// How long a check of what still runs may take when the user does not want to wait longer.
const LAST_CHECK_PATIENCE: Duration = Duration::from_secs(2);

/// How a process ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// With this exit code.
    Exited(i32),
    /// By this signal.
    Signaled {
        /// Its number.
        signal: i32,
        /// Whether the OOM killer sent it, as far as the control group's counter tells.
        out_of_memory: bool,
    },
    /// It started another program in its place, which has a ledger of its own.
    Replaced,
    /// It ended, but is not our child: how is not known here (a completed check in the ledger may say it).
    Unknown,
    /// It still runs; the user did not want to wait.
    StillRunning,
}

/// A process that is not going to write to its ledger any more.
#[derive(Debug)]
pub struct Ended {
    /// Process id in our namespace.
    pub pid: u32,
    /// Its parent's, as the process itself saw it.
    pub parent_pid: u32,
    /// Value of [`layout::origin`].
    pub origin: u32,
    /// How it ended.
    pub end: End,
    /// What it left.
    pub ledger: Arc<LedgerFile>,
}

/// What a session tells its caller.
#[derive(Debug)]
pub enum Event {
    /// A traced process ended.
    Ended(Ended),
    /// The program that was started has ended; comes once, after its own [`Event::Ended`].
    FirstEnded {
        /// How.
        end: End,
        /// Whether the injected code ran in it (or in a program that it turned into).
        started: bool,
    },
    /// The first process has ended, and these traced ones still run: we wait for them.
    Waiting {
        /// Their process ids.
        pids: Vec<u32>,
    },
    /// A process asked for a ledger and could not get one; it runs untraced.
    NoLedger {
        /// Its process id.
        pid: u32,
        /// Why.
        reason: String,
    },
}

/// How we learn that a process ends.
enum Watch {
    /// Readable when it ends.
    PidFd(OwnedFd),
    /// The kernel has no pidfds for us: look from time to time.
    Look,
}

impl Watch {
    fn new(pid: u32) -> Self {
        let pidfd =
            Pid::from_raw(pid as i32).and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
        pidfd.map_or(Self::Look, Self::PidFd)
    }

    fn has_ended(&self, pid: u32) -> bool {
        match self {
            Self::PidFd(pidfd) => is_readable(pidfd),
            Self::Look => {
                leakscope_process::status::read_status(pid).is_ok_and(|status| matches!(status.state, 'Z' | 'X'))
            }
        }
    }
}

fn is_readable(fd: impl AsFd) -> bool {
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    matches!(rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(n) if n > 0)
}

/// A process with a ledger.
struct Traced {
    pid: u32,
    parent_pid: u32,
    origin: u32,
    ledger: Arc<LedgerFile>,
    watch: Watch,
    control: Option<OwnedFd>,
}

/// A connection that has not said Hello yet.
struct Silent {
    connection: OwnedFd,
    since: Instant,
}

/// State of the loop.
pub(crate) struct Service {
    listener: OwnedFd,
    token: Token,
    config: Config,
    capacity: Capacity,
    first: Child,
    first_watch: Watch,
    first_end: Option<End>,
    started: bool,
    signals: SignalSource,
    events: Sender<Event>,
    oom: OomWatch,
    sampler: Sampler,
    traced: Vec<Traced>,
    silent: Vec<Silent>,
    snapshots: Vec<Pending>,
    stop_waiting: bool,
    marks: Marks,
    /// Since when only processes that have not said Hello yet keep us.
    settling_since: Option<Instant>,
}

impl Service {
    /// Ready to run beside `first`.
    pub(crate) fn new(
        listener: OwnedFd,
        variable: Vec<u8>,
        token: Token,
        config: Config,
        first: Child,
        signals: SignalSource,
        events: Sender<Event>,
    ) -> Result<Self, Error> {
        let capacity = fitting_capacity();
        raise_own_limits();
        Ok(Self {
            listener,
            token,
            config,
            capacity,
            first_watch: Watch::new(first.id()),
            first,
            first_end: None,
            started: false,
            signals,
            events,
            oom: OomWatch::start(),
            sampler: Sampler::start(Instant::now()),
            traced: Vec::new(),
            silent: Vec::new(),
            snapshots: Vec::new(),
            stop_waiting: false,
            marks: Marks { inodes: Vec::new(), variable },
            settling_since: None,
        })
    }

    /// Runs until the first process and all traced ones have ended, or the user does not want to wait longer.
    pub(crate) fn run(mut self) {
        loop {
            self.wait();
            self.take_signals();
            self.accept();
            self.take_hellos();
            self.take_snapshot_requests();
            self.step_snapshots();
            if Instant::now() >= self.sampler.due() {
                let processes = self.traced.iter().map(|traced| (traced.pid, &*traced.ledger));
                self.sampler.sample(processes);
            }
            self.take_ends();
            if self.first_end.is_some() && (self.stop_waiting || self.traced.is_empty() && self.is_settled()) {
                break;
            }
        }
        self.check_what_runs();
        for index in (0..self.traced.len()).rev() {
            self.finish(index, End::StillRunning);
        }
    }

    /// Asks the processes that are left for a leak check, and waits for it a little.
    fn check_what_runs(&self) {
        let asked: Vec<_> = self.traced.iter().map(|traced| (traced, snapshot::ask(&traced.ledger))).collect();
        let since = Instant::now();
        let mut nudged = vec![false; asked.len()];
        while since.elapsed() < LAST_CHECK_PATIENCE {
            let mut open = asked
                .iter()
                .zip(&mut nudged)
                .filter(|((traced, wanted), _)| !snapshot::is_done(&traced.ledger, *wanted));
            let Some(((traced, _), nudged)) = open.next() else { return };
            if !*nudged {
                *nudged = snapshot::nudge(traced.pid);
            }
            std::thread::sleep(SETTLE_INTERVAL);
        }
    }

    /// With no traced process left: whether none is about to become one.
    fn is_settled(&mut self) -> bool {
        let silent_children = self.config.flags & layout::flags::CHILD_SILENT != 0
            && self.config.flags & layout::flags::TRACE_CHILDREN == 0;
        let since = *self.settling_since.get_or_insert_with(Instant::now);
        silent_children || since.elapsed() >= SETTLE_PATIENCE || !unannounced::exist(self.first.id(), &self.marks)
    }

    /// Sleeps until something is to do.
    fn wait(&self) {
        let mut fds = vec![PollFd::new(&self.listener, PollFlags::IN), PollFd::new(&self.signals, PollFlags::IN)];
        let mut looking = false;
        let first = self.first_end.is_none().then_some(&self.first_watch);
        for watch in first.into_iter().chain(self.traced.iter().map(|traced| &traced.watch)) {
            match watch {
                Watch::PidFd(pidfd) => fds.push(PollFd::new(pidfd, PollFlags::IN)),
                Watch::Look => looking = true,
            }
        }
        fds.extend(
            self.traced.iter().filter_map(|traced| traced.control.as_ref()).map(|fd| PollFd::new(fd, PollFlags::IN)),
        );
        fds.extend(self.silent.iter().map(|silent| PollFd::new(&silent.connection, PollFlags::IN)));
        fds.extend(
            self.snapshots.iter().filter_map(Pending::unread).map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)),
        );

        let now = Instant::now();
        let mut until = if self.traced.is_empty() { now + Duration::from_secs(60) } else { self.sampler.due() };
        if self.settling_since.is_some() {
            until = until.min(now + SETTLE_INTERVAL);
        }
        if looking || self.first_end.is_some() {
            until = until.min(now + LOOK_INTERVAL);
        }
        for due in self
            .silent
            .iter()
            .map(|silent| silent.since + HELLO_PATIENCE)
            .chain(self.snapshots.iter().map(Pending::due))
        {
            until = until.min(due);
        }
        let pause = until.saturating_duration_since(now);
        let pause = Timespec { tv_sec: pause.as_secs() as i64, tv_nsec: pause.subsec_nanos().into() };
        // An error (a signal, no memory) makes this turn a short one; everything is looked at anyway.
        let _ = rustix::event::poll(&mut fds, Some(&pause));
    }

    fn take_signals(&mut self) {
        while let Some(arrived) = self.signals.next() {
            if self.first_end.is_some() {
                self.stop_waiting = true;
            } else if arrived.by_process {
                self.forward(arrived.signal);
            }
        }
    }

    /// Sends a signal to the first process; it is our child and not yet waited for, so the number is its own.
    fn forward(&self, signal: i32) {
        let (Some(pid), Some(signal)) = (Pid::from_raw(self.first.id() as i32), Signal::from_named_raw(signal)) else {
            return;
        };
        let _ = rustix::process::kill_process(pid, signal);
    }

    fn accept(&mut self) {
        while self.silent.len() < MOST_SILENT {
            let Ok(Some(connection)) = socket::accept(&self.listener) else { return };
            self.silent.push(Silent { connection, since: Instant::now() });
        }
    }

    fn take_hellos(&mut self) {
        let mut waiting = Vec::new();
        for silent in std::mem::take(&mut self.silent) {
            let mut message = [0; Hello::BYTES + 1];
            match socket::receive(&silent.connection, &mut message) {
                Ok((bytes, _)) => {
                    if let Some(hello) = Hello::decode(&message[..bytes]) {
                        self.answer(&silent.connection, &hello);
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    if silent.since.elapsed() < HELLO_PATIENCE {
                        waiting.push(silent);
                    }
                }
                Err(_) => {}
            }
        }
        self.silent = waiting;
    }

    fn answer(&mut self, connection: &OwnedFd, hello: &Hello) {
        let refuse = || {
            let welcome = Welcome { version: WIRE_VERSION, status: 1, file_bytes: 0 };
            let _ = socket::send(connection, &welcome.encode(), None);
        };
        if hello.token != self.token || hello.version != WIRE_VERSION {
            return refuse();
        }
        // The number in the message is from the target's namespace; ours comes from the kernel.
        let Ok((pid, _)) = socket::peer(connection) else { return refuse() };
        let is_first = pid == self.first.id() && !self.started;
        let origin = match hello.origin {
            origin::FORK => origin::FORK,
            _ if is_first => origin::START,
            _ => origin::EXEC,
        };
        let ledger = match LedgerFile::create(&self.config, self.capacity, origin) {
            Ok(ledger) => Arc::new(ledger),
            Err(error) => {
                let _ = self.events.send(Event::NoLedger { pid, reason: error.to_string() });
                return refuse();
            }
        };
        self.marks.inodes.push(ledger.inode());
        if let Some(index) = self.traced.iter().position(|traced| traced.pid == pid) {
            self.finish(index, End::Replaced);
        }
        let header = ledger.header();
        header.pid.store(hello.pid, std::sync::atomic::Ordering::Relaxed);
        header.parent_pid.store(hello.parent_pid, std::sync::atomic::Ordering::Relaxed);
        let watch = Watch::new(pid);
        let control = control::listen(pid).ok();
        let welcome = Welcome { version: WIRE_VERSION, status: 0, file_bytes: ledger.file_bytes() };
        if socket::send(connection, &welcome.encode(), Some(ledger.as_fd())).is_err() {
            // It died meanwhile, or gave up: it runs untraced, and there is nothing to report.
            return;
        }
        self.settling_since = None;
        self.started |= pid == self.first.id();
        self.traced.push(Traced { pid, parent_pid: hello.parent_pid, origin, ledger, watch, control });
        if self.first_end.is_some() && self.traced.len() == 1 {
            self.say_waiting();
        }
    }

    fn take_snapshot_requests(&mut self) {
        for traced in &self.traced {
            let Some(control) = &traced.control else { continue };
            while self.snapshots.len() < MOST_SILENT {
                let Ok(Some(connection)) = socket::accept(control) else { break };
                let trusted = socket::peer(&connection).is_ok_and(|(_, uid)| control::is_trusted(uid));
                if trusted {
                    self.snapshots.push(Pending::new(connection, traced.pid, Arc::clone(&traced.ledger)));
                }
            }
        }
    }

    fn step_snapshots(&mut self) {
        self.snapshots.retain_mut(|pending| pending.step() == Step::GoOn);
    }

    fn take_ends(&mut self) {
        let first_pid = self.first.id();
        for index in (0..self.traced.len()).rev() {
            let traced = &self.traced[index];
            if traced.pid != first_pid && traced.watch.has_ended(traced.pid) {
                self.finish(index, End::Unknown);
            }
        }
        if self.first_end.is_some() {
            self.drop_strangers();
        }
        if self.first_end.is_some() || !self.first_watch.has_ended(first_pid) {
            return;
        }
        let end = self.first.wait().map_or(End::Unknown, |status| self.end_of(status));
        if let Some(index) = self.traced.iter().position(|traced| traced.pid == first_pid) {
            self.finish(index, end);
        }
        self.first_end = Some(end);
        self.drop_strangers();
        let _ = self.events.send(Event::FirstEnded { end, started: self.started });
        self.say_waiting();
    }

    /// Nobody waits for a process that has turned into a program that is not traced: it does not map its
    /// ledger any more.
    fn drop_strangers(&mut self) {
        for index in (0..self.traced.len()).rev() {
            let traced = &self.traced[index];
            let has_left = traced.ledger.started() && unannounced::maps_no(traced.pid, traced.ledger.inode());
            if has_left {
                self.finish(index, End::Replaced);
            }
        }
    }

    fn say_waiting(&self) {
        if !self.traced.is_empty() {
            let _ = self.events.send(Event::Waiting { pids: self.traced.iter().map(|traced| traced.pid).collect() });
        }
    }

    fn end_of(&self, status: ExitStatus) -> End {
        match (status.code(), status.signal()) {
            (Some(code), _) => End::Exited(code),
            (None, Some(signal)) => {
                End::Signaled { signal, out_of_memory: signal == libc::SIGKILL && self.oom.struck() }
            }
            (None, None) => End::Unknown,
        }
    }

    /// Takes a process out and gives its ledger to the caller.
    fn finish(&mut self, index: usize, end: End) {
        let Traced { pid, parent_pid, origin, ledger, .. } = self.traced.swap_remove(index);
        for pending in self.snapshots.iter_mut().filter(|pending| pending.pid() == pid) {
            pending.process_ended();
        }
        self.snapshots.retain(|pending| pending.pid() != pid);
        // A process that died between Welcome and its first record has nothing to tell.
        if ledger.header().state.load(std::sync::atomic::Ordering::Acquire) == layout::state::NEW {
            self.started &= pid != self.first.id() || origin != origin::START;
            return;
        }
        sample_now(pid, &ledger);
        let _ = self.events.send(Event::Ended(Ended { pid, parent_pid, origin, end, ledger }));
    }
}

/// Raises our own soft limits: ledgers are large sparse files, and each process takes a few descriptors. The
/// target was started before and keeps the user's limits.
fn raise_own_limits() {
    for resource in [Resource::Fsize, Resource::Nofile] {
        let mut limit = rustix::process::getrlimit(resource);
        limit.current = limit.maximum;
        let _ = rustix::process::setrlimit(resource, limit);
    }
}
