//! `leakscope memcheck` outside of the target: starts the engine, gives each process its file of events, and hands the
//! events on in their order.
//!
//! ```text
//!  caller                           this module                       engine around the target
//!  Session::start  ---------------> socket, fork, exec ------------->  connects, says Hello
//!  next() <------------------------ one memfd per process ---------->  maps it, reads its options
//!   |  Happening::Event <---------- reads what is published <-------  appends events, connects again ("look!"), waits
//!  taken(shown, hidden) ----------> says so in the header ---------->  goes on
//!  next() <- Happening::Ended <---- pidfd
//! ```
//!
//! One thread: the caller's, which sleeps in `poll`. Unsafe code is in [`file`](self) (the shared header) and in the step
//! between fork and exec.

mod background;
mod file;
mod preflight;
mod program;

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use leakscope_ledger::events::Event;
use leakscope_ledger::layout::{Config, origin};
use leakscope_ledger::wire::{Hello, WIRE_VERSION, Welcome};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::environment::{self, Exec};
use crate::service::End;
use crate::signals::SignalSource;
use crate::spawn::{Request, listen};
use crate::{Error, socket};

pub use background::{Side, Streams};
use file::EventFile;
pub use preflight::check;
pub(crate) use preflight::check_image;

/// A connection that says nothing for so long is closed.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often to look where nothing tells of an end.
const LOOK: Duration = Duration::from_millis(20);

/// What to run, and how.
#[derive(Debug)]
pub struct Launch {
    /// Path of the program, as [`check`] found it.
    pub program: PathBuf,
    /// What the program shall find in `argv[0]`.
    pub argv0: OsString,
    /// The other arguments.
    pub arguments: Vec<OsString>,
    /// The engine's options, as `name=value` lines.
    pub options: String,
}

/// What a session tells its caller.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "one is alive at a time")]
pub enum Happening {
    /// A process said something; it waits until [`Session::taken`] is called, which it must be.
    Event {
        /// Number of the process, from 0.
        process: usize,
        /// What.
        event: Event,
    },
    /// A process ended, or turned into another program, and says nothing any more.
    Ended {
        /// Its number.
        process: usize,
        /// How.
        end: End,
        /// Events that did not fit into its file.
        lost: u64,
    },
    /// The first process has ended, and others still run: they are waited for, here or, see [`Session::split`], elsewhere.
    Waiting {
        /// Their process ids.
        pids: Vec<u32>,
    },
}

struct Traced {
    pid: u32,
    file: EventFile,
    pidfd: Option<OwnedFd>,
    is_forked: bool,
    ended: bool,
}

struct Silent {
    connection: OwnedFd,
    since: Instant,
}

/// A running target and its descendants.
pub struct Session {
    listener: OwnedFd,
    token: [u8; 16],
    options: String,
    child: Child,
    child_end: Option<End>,
    signals: SignalSource,
    inherited: crate::signals::Inherited,
    traced: Vec<Traced>,
    silent: Vec<Silent>,
    said_waiting: bool,
    stop_waiting: bool,
    /// Since when everything that is known has ended.
    all_ended: Option<Instant>,
}

impl Session {
    /// Starts the program in the engine. Call it before any other thread is started.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(launch: Launch) -> Result<Self, Error> {
        let (signals, inherited) = SignalSource::take_over().map_err(Error::system("take over signals"))?;
        let (listener, name, token) = listen()?;
        let engine = program::Engine::unpack()?;
        let mut arguments: Vec<OsString> =
            vec![crate::spawn::address(&name, &token).into(), launch.program.clone().into()];
        arguments.push(launch.argv0);
        arguments.extend(launch.arguments);
        let failed = |source| Error::Start { program: launch.program.clone(), source };
        let request = Request {
            program: engine.path(),
            argv0: "leakscope-memcheck".into(),
            arguments,
            library: PathBuf::new(),
            config: Config::default(),
        };
        let exec = Exec::new(&request, environment::given()).map_err(failed)?;
        let mut command = Command::new(&request.program);
        // SAFETY: async-signal-safe calls only, and nothing is allocated. Addresses that are not randomised keep the
        // engine's brk out of the target's way; where that is forbidden, it is likely to be out of it anyhow.
        unsafe {
            command.pre_exec(move || {
                let persona = libc::personality(0xffff_ffff);
                libc::personality(persona as libc::c_ulong | libc::ADDR_NO_RANDOMIZE as libc::c_ulong);
                inherited.restore().and_then(|()| Err(exec.run()))
            });
        }
        let child = command.spawn().map_err(failed)?;
        Ok(Self {
            listener,
            token,
            options: launch.options,
            child,
            child_end: None,
            signals,
            inherited,
            traced: Vec::new(),
            silent: Vec::new(),
            said_waiting: false,
            stop_waiting: false,
            all_ended: None,
        })
    }

    /// The next thing that happens; `None` when everything has ended.
    pub fn next_happening(&mut self) -> Option<Happening> {
        loop {
            for process in 0..self.traced.len() {
                if let Some(happening) = self.look_at(process) {
                    return Some(happening);
                }
            }
            self.look_at_child();
            let open: Vec<u32> = self.traced.iter().filter(|traced| !traced.ended).map(|traced| traced.pid).collect();
            if self.child_end.is_some() {
                if open.is_empty() {
                    if !self.awaits_child() {
                        return None;
                    }
                } else if self.stop_waiting {
                    return self.give_up();
                } else if !self.said_waiting && !open.contains(&self.child.id()) {
                    self.said_waiting = true;
                    return Some(Happening::Waiting { pids: open });
                }
            }
            self.sleep();
            self.take_signals();
            self.accept();
            self.take_hellos();
        }
    }

    /// Whether a process of which nothing is known yet is on its way; not for ever, as it may have been killed before it
    /// could say a word.
    fn awaits_child(&mut self) -> bool {
        let since = *self.all_ended.get_or_insert_with(Instant::now);
        since.elapsed() < PATIENCE && self.traced.iter().any(|traced| traced.file.awaits_child())
    }

    /// After [`Happening::Waiting`]: lets this process end and leaves what still runs to a copy of it in the background, as
    /// Memcheck's reports of a daemon come from the daemon. In the copy, the session goes on; `None` when there is none.
    pub fn split(&mut self, streams: Streams) -> Option<Side> {
        background::split(streams)
    }

    /// Says that the last event was taken, and how many errors were shown and hidden until now.
    pub fn taken(&mut self, process: usize, shown: u64, hidden: u64) {
        if let Some(traced) = self.traced.get(process) {
            traced.file.set_taken(shown, hidden);
        }
    }

    /// Answers the question that is the last event; before [`Session::taken`].
    pub fn answer_question(&mut self, process: usize, answer: &[(i64, i64)]) {
        if let Some(traced) = self.traced.get(process) {
            traced.file.answer(answer);
        }
    }

    /// Whether a process was forked by another one: its first events, up to the mark, are its parent's.
    pub fn is_forked(&self, process: usize) -> bool {
        self.traced.get(process).is_some_and(|traced| traced.is_forked)
    }

    /// How the first process ended.
    pub fn end(&self) -> End {
        self.child_end.unwrap_or(End::Unknown)
    }

    /// Process id of the program that was started.
    pub fn first_pid(&self) -> u32 {
        self.child.id()
    }

    /// An event of a process, or its end.
    fn look_at(&mut self, process: usize) -> Option<Happening> {
        if self.traced[process].ended {
            return None;
        }
        // Whether it has ended is asked first: what it says before its end is there then.
        let ended = self.has_ended(process);
        let is_replaced = self.traced[process + 1..].iter().any(|other| other.pid == self.traced[process].pid);
        let traced = &mut self.traced[process];
        if let Some(event) = traced.file.next_event() {
            return Some(Happening::Event { process, event });
        }
        if !ended && !is_replaced {
            return None;
        }
        traced.ended = true;
        let (pid, lost) = (traced.pid, traced.file.lost());
        let end = if is_replaced {
            End::Replaced
        } else if pid == self.child.id() {
            self.wait_for_child()
        } else {
            End::Unknown
        };
        Some(Happening::Ended { process, end, lost })
    }

    fn has_ended(&self, process: usize) -> bool {
        let traced = &self.traced[process];
        match &traced.pidfd {
            Some(pidfd) => {
                let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
                matches!(rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(n) if n > 0)
            }
            None => leakscope_process::status::read_status(traced.pid)
                .map_or(true, |status| matches!(status.state, 'Z' | 'X')),
        }
    }

    fn look_at_child(&mut self) {
        if self.child_end.is_none()
            && let Ok(Some(status)) = self.child.try_wait()
        {
            self.child_end = Some(end_of(status));
        }
    }

    fn wait_for_child(&mut self) -> End {
        if self.child_end.is_none() {
            self.child_end = Some(self.child.wait().map_or(End::Unknown, end_of));
        }
        self.end()
    }

    /// The user does not want to wait for what still runs.
    fn give_up(&mut self) -> Option<Happening> {
        let process = self.traced.iter().position(|traced| !traced.ended)?;
        self.traced[process].ended = true;
        Some(Happening::Ended { process, end: End::StillRunning, lost: self.traced[process].file.lost() })
    }

    fn sleep(&self) {
        let mut fds = vec![PollFd::new(&self.listener, PollFlags::IN), PollFd::new(&self.signals, PollFlags::IN)];
        let open = self.traced.iter().filter(|traced| !traced.ended);
        fds.extend(open.filter_map(|traced| traced.pidfd.as_ref()).map(|fd| PollFd::new(fd, PollFlags::IN)));
        fds.extend(self.silent.iter().map(|silent| PollFd::new(&silent.connection, PollFlags::IN)));
        let pause = Timespec { tv_sec: 0, tv_nsec: LOOK.as_nanos() as i64 };
        let _ = rustix::event::poll(&mut fds, Some(&pause));
    }

    fn take_signals(&mut self) {
        while let Some(arrived) = self.signals.next() {
            if self.child_end.is_some() {
                self.stop_waiting = true;
            } else if arrived.by_process
                && let (Some(pid), Some(signal)) =
                    (Pid::from_raw(self.child.id() as i32), Signal::from_named_raw(arrived.signal))
            {
                let _ = rustix::process::kill_process(pid, signal);
            }
        }
    }

    fn accept(&mut self) {
        while let Ok(Some(connection)) = socket::accept(&self.listener) {
            self.silent.push(Silent { connection, since: Instant::now() });
        }
    }

    fn take_hellos(&mut self) {
        for silent in std::mem::take(&mut self.silent) {
            let mut message = [0; Hello::BYTES + 1];
            match socket::receive(&silent.connection, &mut message) {
                // A connection without a word means that there is something to read.
                Ok((bytes, _)) => {
                    if let Some(hello) = Hello::decode(&message[..bytes]) {
                        self.answer(&silent.connection, &hello);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && silent.since.elapsed() < PATIENCE => {
                    self.silent.push(silent);
                }
                Err(_) => {}
            }
        }
    }

    fn answer(&mut self, connection: &OwnedFd, hello: &Hello) {
        let refuse = || {
            let welcome = Welcome { version: WIRE_VERSION, status: 1, file_bytes: 0 };
            let _ = socket::send(connection, &welcome.encode(), None);
        };
        if hello.token != self.token || hello.version != WIRE_VERSION {
            return refuse();
        }
        let Ok((pid, _)) = socket::peer(connection) else { return refuse() };
        let is_first = pid == self.child.id() && self.traced.is_empty();
        let kind = match hello.origin {
            origin::FORK => origin::FORK,
            _ if is_first => origin::START,
            _ => origin::EXEC,
        };
        let Ok(file) = EventFile::create(&self.options, kind) else { return refuse() };
        let pidfd =
            Pid::from_raw(pid as i32).and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
        let welcome = Welcome { version: WIRE_VERSION, status: 0, file_bytes: file.bytes() };
        if socket::send(connection, &welcome.encode(), Some(file.as_fd())).is_ok() {
            self.all_ended = None;
            self.traced.push(Traced { pid, file, pidfd, is_forked: kind == origin::FORK, ended: false });
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.inherited.restore_mask();
    }
}

fn end_of(status: std::process::ExitStatus) -> End {
    match (status.code(), status.signal()) {
        (Some(code), _) => End::Exited(code),
        (None, Some(signal)) => End::Signaled { signal, out_of_memory: false },
        (None, None) => End::Unknown,
    }
}

/// A descriptor's name for exec.
fn descriptor_path(fd: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", fd.as_raw_fd()).into()
}
