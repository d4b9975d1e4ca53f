//! A leak check of a running target, on demand: the client's side, and the launcher's state for each request.
//!
//! The launcher adds one to `snapshot_wanted`; the injected code looks at the word in its next call of the
//! allocator, checks, and sets `snapshot_done`. A target that is idle is sent a signal, whose handler the
//! injected code has installed, and only if it has: by default the signal would end the process.

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire};
use std::time::{Duration, Instant};

use leakscope_process::status::read_status;
use rustix::net::sockopt::{self, Timeout};

use crate::control::{GRANTED, REFUSED, REQUEST, SLOTS, is_trusted, name};
use crate::ledger_file::LedgerFile;
use crate::{Error, socket};

/// The signal that wakes an idle target; the injected code installs a handler for it.
pub const NUDGE_SIGNAL: i32 = 62;
/// A target that calls the allocator needs no signal.
const NUDGE_AFTER: Duration = Duration::from_millis(100);
/// How often to look whether the check is done.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);
/// A check of ten million blocks takes about a second.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the client waits for the launcher's answer, which comes within [`PATIENCE`].
const CLIENT_PATIENCE: Duration = Duration::from_secs(35);
/// How often to ask anew when the connection is lost.
const ATTEMPTS: u32 = 50;

/// Asks the launcher of process `pid` for a leak check now; gives the ledger, which holds it as its last one.
///
/// # Errors
/// When no launcher of ours answers for `pid`, the process is not there or does not react in time.
pub fn request(pid: u32) -> Result<File, Error> {
    let refused = |text: String| Error::Snapshot(text);
    let owner = match read_status(pid) {
        Ok(status) => status.uids.1,
        Err(_) => return Err(refused(format!("process {pid}: there is no such process; `ps -e` lists those that run"))),
    };
    let mut attempts = 1;
    let (reply, fd) = loop {
        let connection = connect(pid, owner).ok_or_else(|| {
            refused(format!(
                "process {pid} was not started by `leakscope run` of this user (on this machine and in this container); start the program with `leakscope run -- PROGRAM` first"
            ))
        })?;
        match exchange(&connection) {
            Ok(answer) => break answer,
            // The program turned into another one by exec just now: its new ledger has a new listener.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset && attempts < ATTEMPTS => attempts += 1,
            Err(error) => {
                return Err(refused(format!(
                    "process {pid}: its launcher does not answer ({error}); try again, or look whether `leakscope run` still runs"
                )));
            }
        }
    };
    match (reply.split_first(), fd) {
        (Some((&GRANTED, _)), Some(fd)) => Ok(File::from(fd)),
        (text, _) => {
            let text = text.map_or(Cow::Borrowed("its launcher gave no reason"), |(_, text)| String::from_utf8_lossy(text));
            Err(refused(format!("process {pid}: {text}")))
        }
    }
}

/// Sends the request; gives the reply's bytes and the descriptor that came with it.
fn exchange(connection: &OwnedFd) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    sockopt::set_socket_timeout(connection, Timeout::Recv, Some(CLIENT_PATIENCE))?;
    socket::send(connection, REQUEST, None)?;
    let mut reply = [0; 1024];
    match socket::receive(connection, &mut reply)? {
        (0, _) => Err(io::ErrorKind::ConnectionReset.into()),
        (bytes, fd) => Ok((reply[..bytes].to_vec(), fd)),
    }
}

/// A connection to the launcher of `pid`, which belongs to the process's owner or to us.
fn connect(pid: u32, owner: u32) -> Option<OwnedFd> {
    let own = rustix::process::geteuid().as_raw();
    let mut uids = vec![own, owner, 0];
    uids.dedup();
    uids.into_iter().flat_map(|uid| (0..SLOTS).map(move |slot| name(uid, pid, slot))).find_map(|name| {
        let connection = socket::connect(&name).ok()?;
        let (_, uid) = socket::peer(&connection).ok()?;
        // Root may look at everybody's processes; the launcher answers root.
        (is_trusted(uid) || own == 0).then_some(connection)
    })
}

/// Whether a request goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// Not done yet.
    GoOn,
    /// Answered, or the client is gone.
    Done,
}

/// A request that the launcher has not answered yet.
pub(crate) struct Pending {
    connection: OwnedFd,
    pid: u32,
    ledger: Arc<LedgerFile>,
    since: Instant,
    /// Value of `snapshot_done` that answers the request; `None` until the request has been read.
    wanted: Option<u32>,
    nudged: bool,
}

impl Pending {
    /// A connection on which the request is still to come.
    pub(crate) fn new(connection: OwnedFd, pid: u32, ledger: Arc<LedgerFile>) -> Self {
        Self { connection, pid, ledger, since: Instant::now(), wanted: None, nudged: false }
    }

    /// The process that it is about.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// The connection, while the request is still to come.
    pub(crate) fn unread(&self) -> Option<BorrowedFd<'_>> {
        self.wanted.is_none().then(|| self.connection.as_fd())
    }

    /// When to look again.
    pub(crate) fn due(&self) -> Instant {
        if self.wanted.is_some() { Instant::now() + LOOK_INTERVAL } else { self.since + PATIENCE }
    }

    /// Does what can be done now.
    pub(crate) fn step(&mut self) -> Step {
        let Some(wanted) = self.wanted else { return self.read_request() };
        let done = self.ledger.header().snapshot_done.load(Acquire);
        if (done.wrapping_sub(wanted) as i32) >= 0 {
            match self.ledger.reopen_read_only() {
                Ok(file) => self.reply(GRANTED, "", Some(file.as_fd())),
                Err(error) => self.reply(REFUSED, &format!("cannot pass the ledger on: {error}"), None),
            }
            return Step::Done;
        }
        let waited = self.since.elapsed();
        if waited >= NUDGE_AFTER && !self.nudged {
            self.nudged = true;
            nudge(self.pid);
        }
        if waited >= PATIENCE {
            let text = self.excuse();
            self.reply(REFUSED, &text, None);
            return Step::Done;
        }
        Step::GoOn
    }

    fn read_request(&mut self) -> Step {
        let mut message = [0; REQUEST.len() + 1];
        match socket::receive(&self.connection, &mut message) {
            Ok((bytes, _)) if &message[..bytes] == REQUEST => {
                let before = self.ledger.header().snapshot_wanted.fetch_add(1, AcqRel);
                self.wanted = Some(before.wrapping_add(1));
                self.since = Instant::now();
                Step::GoOn
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && self.since.elapsed() < PATIENCE => Step::GoOn,
            Ok((1.., _)) => {
                self.reply(REFUSED, "its launcher is another version of leakscope; use the same one", None);
                Step::Done
            }
            _ => Step::Done,
        }
    }

    /// Tells the client that the process ended before the check was done.
    pub(crate) fn process_ended(&mut self) {
        self.reply(REFUSED, "it ended before the check was done; `leakscope run` reports it", None);
    }

    fn excuse(&self) -> String {
        let seconds = PATIENCE.as_secs();
        match read_status(self.pid) {
            Ok(status) if matches!(status.state, 'T' | 't') => {
                "it is stopped; continue it (fg, kill -CONT, or the debugger) and try again".to_owned()
            }
            Ok(status) if !status.catches(NUDGE_SIGNAL) => format!(
                "it did not call the allocator for {seconds} s, and signal {NUDGE_SIGNAL} is not ours to wake it; try again when it does something"
            ),
            _ => format!("no leak check within {seconds} s; try again when it has less to do"),
        }
    }

    fn reply(&self, status: u8, text: &str, fd: Option<BorrowedFd<'_>>) {
        let mut message = vec![status];
        message.extend_from_slice(text.as_bytes());
        // A client that is gone needs no answer.
        let _ = socket::send(&self.connection, &message, fd);
    }
}

/// Wakes an idle target, if its handler for [`NUDGE_SIGNAL`] is there; whether it was sent.
fn nudge(pid: u32) -> bool {
    let handled = read_status(pid).is_ok_and(|status| status.catches(NUDGE_SIGNAL));
    // SAFETY: kill has no preconditions; the process has not been waited for or is watched by a pidfd.
    handled && unsafe { libc::kill(pid as i32, NUDGE_SIGNAL) } == 0
}
