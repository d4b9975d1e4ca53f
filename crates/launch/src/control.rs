//! The names and packets of the control path: how another `leakscope` reaches the launcher of a process.
//!
//! For each traced process the launcher listens on an abstract socket whose name holds the user and the
//! process id. Anybody may create or list such names, so both sides look at who is at the other end: only
//! the same user or root is answered, and only the same user's or root's answer is believed. A name that a
//! stranger has taken is passed over: there are [`SLOTS`] of them.
//!
//! Request: [`REQUEST`]. Reply: one status byte, then a sentence; with status [`GRANTED`] the ledger's memfd,
//! opened for reading, as ancillary data.

use std::io;
use std::os::fd::OwnedFd;

use crate::socket;

/// The one request there is.
pub(crate) const REQUEST: &[u8] = b"leakscope snapshot 1";
/// Status of a reply: a check is done, the ledger comes with it.
pub(crate) const GRANTED: u8 = 0;
/// Status of a reply: none; the sentence says why.
pub(crate) const REFUSED: u8 = 1;
/// Names to try for one process.
pub(crate) const SLOTS: u32 = 4;

/// The abstract name for process `pid` of user `uid`.
pub(crate) fn name(uid: u32, pid: u32, slot: u32) -> String {
    format!("leakscope-control-{uid}-{pid}-{slot}")
}

/// Listens for requests about process `pid`.
pub(crate) fn listen(pid: u32) -> io::Result<OwnedFd> {
    let uid = rustix::process::geteuid().as_raw();
    let mut result = Err(io::Error::from(io::ErrorKind::AddrInUse));
    for slot in 0..SLOTS {
        result = socket::listen(&name(uid, pid, slot));
        if !matches!(&result, Err(error) if error.kind() == io::ErrorKind::AddrInUse) {
            break;
        }
    }
    result
}

/// Whether user `uid` at the other end may ask, or be believed.
pub(crate) fn is_trusted(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}
