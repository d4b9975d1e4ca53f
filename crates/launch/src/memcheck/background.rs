//! Two processes out of one: the one that the user waits for ends, the other goes on in the background.
//!
//! Sound only while there is one thread, which is looked up first. Sources: fork(2), setsid(2).

use std::fs::File;
use std::os::fd::AsFd;

/// Which of the two this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that was there before.
    Front,
    /// Its copy, without a terminal.
    Background,
}

/// What the copy still writes to. The other streams are closed to it, as a shell that reads them waits for their end.
#[derive(Clone, Copy, Debug)]
pub struct Streams {
    /// Standard output.
    pub output: bool,
    /// Standard error.
    pub error: bool,
}

/// `None` when there are other threads, or no process can be made.
pub(super) fn split(streams: Streams) -> Option<Side> {
    if std::fs::read_dir("/proc/self/task").ok()?.count() != 1 {
        return None;
    }
    let nothing = File::options().read(true).write(true).open("/dev/null").ok()?;
    // SAFETY: this is the only thread, so the child is a whole copy, locks of the C library and of Rust's included.
    match unsafe { libc::fork() } {
        0 => {}
        -1 => return None,
        _ => return Some(Side::Front),
    }
    // The terminal's signals are for the programs that it shows. It cannot fail: a new process leads no group.
    let _ = rustix::process::setsid();
    let _ = rustix::stdio::dup2_stdin(nothing.as_fd());
    if !streams.output {
        let _ = rustix::stdio::dup2_stdout(nothing.as_fd());
    }
    if !streams.error {
        let _ = rustix::stdio::dup2_stderr(nothing.as_fd());
    }
    Some(Side::Background)
}
