//! Waiting that SIGINT and SIGTERM end, so that a tracer can report when it is asked to stop.
//!
//! The signals are blocked and read from a descriptor: nothing runs in signal context. Made before other threads are,
//! so that they inherit the mask. A tracer that dies without reading them leaves nothing behind either: programs go
//! with their descriptors.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// SIGINT and SIGTERM, blocked for as long as this lives.
pub struct Interrupts {
    fd: OwnedFd,
}

impl Interrupts {
    /// Blocks the signals.
    ///
    /// # Errors
    /// When the kernel gives no descriptor.
    pub fn block() -> io::Result<Self> {
        // SAFETY: the set is ours and initialised by sigemptyset before it is used; the calls take no other memory.
        let fd = unsafe {
            let mut set = std::mem::zeroed::<libc::sigset_t>();
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, libc::SIGINT);
            libc::sigaddset(&raw mut set, libc::SIGTERM);
            if libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
            libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: signalfd just opened it.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Waits so long, or until a signal comes; gives whether one did.
    pub fn wait(&self, time: Duration) -> bool {
        let deadline = std::time::Instant::now() + time;
        loop {
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            let mut poll = libc::pollfd { fd: self.fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            let milliseconds =
                i32::try_from(left.as_millis() + u128::from(!left.subsec_nanos().is_multiple_of(1_000_000)));
            // SAFETY: one pollfd of ours.
            let ready = unsafe { libc::poll(&raw mut poll, 1, milliseconds.unwrap_or(i32::MAX)) };
            if ready > 0 {
                return true;
            }
            if std::time::Instant::now() >= deadline {
                return false;
            }
        }
    }
}
