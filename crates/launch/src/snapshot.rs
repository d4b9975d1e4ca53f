//! A leak check of a running target, on demand: the client's side, and the launcher's state for each request.
//!
//! The launcher adds one to `snapshot_wanted` and sends a signal; its handler, which the injected code has
//! installed, checks and sets `snapshot_done`. The signal is sent only where a handler stands: by default it
//! would end the process.

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire};
use std::time::{Duration, Instant};

use leakscope_ledger::layout::check_state;
use leakscope_process::status::read_status;
use rustix::net::sockopt::{self, Timeout};

use crate::control::{GRANTED, REFUSED, REQUEST, SLOTS, is_trusted, name};
use crate::ledger_file::LedgerFile;
use crate::{Error, socket};

/// A program that allocates notices a request by itself; only an idle one gets a signal, which may end a `sleep` early.
const NUDGE_AFTER: Duration = Duration::from_millis(150);
/// The signal that asks the target to look at `snapshot_wanted`: glibc's own for `setuid` in threads, which
/// no program can block through libc. The injected code's handler stands in front of glibc's, and glibc's
/// ignores what comes from another process.
pub const NUDGE_SIGNAL: i32 = 33;
/// How often to look whether the check is done.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);
/// A check of ten million blocks takes about a second.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long to wait for a target without a handler: it may just be starting.
const STARTING_PATIENCE: Duration = Duration::from_secs(10);
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
        Err(_) => {
            return Err(refused(format!("process {pid}: there is no such process; `ps -e` lists those that run")));
        }
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
            let text =
                text.map_or(Cow::Borrowed("its launcher gave no reason"), |(_, text)| String::from_utf8_lossy(text));
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
    /// The signal was sent.
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
        if is_done(&self.ledger, wanted) {
            match self.ledger.reopen_read_only() {
                Ok(file) => self.reply(GRANTED, "", Some(file.as_fd())),
                Err(error) => self.reply(REFUSED, &format!("cannot pass the ledger on: {error}"), None),
            }
            return Step::Done;
        }
        let waited = self.since.elapsed();
        if !self.nudged && waited >= NUDGE_AFTER {
            // Without a handler it is tried again: the injected code may still be starting.
            self.nudged = nudge(self.pid);
        }
        if waited >= if self.nudged { PATIENCE } else { STARTING_PATIENCE } {
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
                self.wanted = Some(ask(&self.ledger));
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

    /// What is known of a check that did not come in time, and the next step.
    fn excuse(&self) -> String {
        let seconds = self.since.elapsed().as_secs();
        let Ok(status) = read_status(self.pid) else {
            return "it ended before the check was done; `leakscope run` reports it".to_owned();
        };
        if matches!(status.state, 'T' | 't') {
            return "it is stopped; continue it (fg, kill -CONT, or the debugger) and try again".to_owned();
        }
        if !status.catches(NUDGE_SIGNAL) {
            return format!(
                "its injected library did not take the request within {seconds} s (no handler for signal {NUDGE_SIGNAL}); look whether `leakscope run` said that it could not start"
            );
        }
        match self.ledger.last_check_state() {
            Some(check_state::RUNNING) => {
                format!(
                    "the leak check has begun and is not done after {seconds} s; try again when the machine has less to do"
                )
            }
            _ if status.state == 'D' => {
                format!(
                    "no leak check within {seconds} s: it waits in the kernel for a device (state D); try again when that is over"
                )
            }
            _ => {
                let blocked = status.blocked_signals >> (NUDGE_SIGNAL - 1) & 1 != 0;
                let why = if blocked { "its main thread blocks" } else { "it has not reacted to" };
                format!(
                    "no leak check within {seconds} s: {why} signal {NUDGE_SIGNAL}; try again, or end the program to have its report"
                )
            }
        }
    }

    fn reply(&self, status: u8, text: &str, fd: Option<BorrowedFd<'_>>) {
        let mut message = vec![status];
        message.extend_from_slice(text.as_bytes());
        // A client that is gone needs no answer.
        let _ = socket::send(&self.connection, &message, fd);
    }
}

/// Asks for a check; gives the value of `snapshot_done` that answers.
pub(crate) fn ask(ledger: &LedgerFile) -> u32 {
    ledger.header().snapshot_wanted.fetch_add(1, AcqRel).wrapping_add(1)
}

/// Whether a check that was asked for is done.
pub(crate) fn is_done(ledger: &LedgerFile, wanted: u32) -> bool {
    let done = ledger.header().snapshot_done.load(Acquire);
    done.wrapping_sub(wanted) as i32 >= 0
}

/// Sends the target the signal, if a handler for [`NUDGE_SIGNAL`] is there; whether it was sent.
pub(crate) fn nudge(pid: u32) -> bool {
    let handled = read_status(pid).is_ok_and(|status| status.catches(NUDGE_SIGNAL));
    // SAFETY: kill has no preconditions; the process has not been waited for or is watched by a pidfd.
    handled && unsafe { libc::kill(pid as i32, NUDGE_SIGNAL) } == 0
}
