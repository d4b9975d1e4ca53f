//! Signals of the launcher: which it takes over while a target runs, and how it dies by one itself.
//!
//! The launcher blocks them and reads them from a signalfd, so that no handler is needed. The target gets the
//! mask and the dispositions that we were started with. Sources: signal(7), signalfd(2).

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// What we take over: from another process they go on to the target; the terminal's reach it by themselves.
const TAKEN: [i32; 6] = [libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGHUP, libc::SIGUSR1, libc::SIGUSR2];

/// Whether SIGPIPE was ignored when we were started; Rust's runtime overwrites the disposition before `main`.
static SIGPIPE_WAS_IGNORED: AtomicBool = AtomicBool::new(false);

extern "C" fn note_sigpipe() {
    SIGPIPE_WAS_IGNORED.store(is_ignored(libc::SIGPIPE), Ordering::Relaxed);
}

// SAFETY: functions in .init_array run once before `main`, with the process still single-threaded; this one
// calls sigaction and stores to a static, neither of which needs Rust's runtime.
#[unsafe(link_section = ".init_array")]
#[used]
static NOTE_SIGPIPE: extern "C" fn() = note_sigpipe;

fn is_ignored(signal: i32) -> bool {
    // SAFETY: sigaction is plain old data, for which all zeros is a value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: a null new action only asks; `action` is writable.
    unsafe { libc::sigaction(signal, std::ptr::null(), &mut action) == 0 && action.sa_sigaction == libc::SIG_IGN }
}

fn set_of(signals: &[i32]) -> libc::sigset_t {
    // SAFETY: sigset_t is plain old data; sigemptyset initialises it, sigaddset gets valid signal numbers.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for &signal in signals {
            libc::sigaddset(&mut set, signal);
        }
        set
    }
}

impl std::fmt::Debug for Inherited {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inherited").field("sigpipe_ignored", &self.sigpipe_ignored).finish_non_exhaustive()
    }
}

/// What the target shall find: the mask and the SIGPIPE disposition that we were started with.
#[derive(Clone, Copy)]
pub(crate) struct Inherited {
    mask: libc::sigset_t,
    sigpipe_ignored: bool,
}

impl Inherited {
    /// Puts it back; for the child between fork and exec, hence async-signal-safe.
    pub(crate) fn restore(&self) -> io::Result<()> {
        let sigpipe = if self.sigpipe_ignored { libc::SIG_IGN } else { libc::SIG_DFL };
        // SAFETY: both calls are async-signal-safe and get valid arguments; SIG_IGN and SIG_DFL need no handler.
        unsafe {
            if libc::signal(libc::SIGPIPE, sigpipe) == libc::SIG_ERR {
                return Err(io::Error::last_os_error());
            }
        }
        self.restore_mask()
    }

    /// Puts back the mask alone; also for our own thread when the work is done.
    pub(crate) fn restore_mask(&self) -> io::Result<()> {
        // SAFETY: async-signal-safe, as far as it changes the calling thread's mask; the set is initialised.
        let refused = unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.mask, std::ptr::null_mut()) };
        if refused == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(refused)) }
    }
}

/// The signals taken over, readable as a file.
pub(crate) struct SignalSource {
    file: File,
}

/// A signal that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arrived {
    /// Its number.
    pub(crate) signal: i32,
    /// Whether a process sent it to us; otherwise the kernel did, for the terminal's foreground group.
    pub(crate) by_process: bool,
}

impl SignalSource {
    /// Takes the signals over from here on; for the calling thread and those that it starts. A signal that
    /// was ignored (as under nohup) stays ignored.
    pub(crate) fn take_over() -> io::Result<(Self, Inherited)> {
        let taken: Vec<i32> = TAKEN.into_iter().filter(|&signal| !is_ignored(signal)).collect();
        let set = set_of(&taken);
        let mut mask = set_of(&[]);
        // SAFETY: both sets are initialised.
        let refused = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, &mut mask) };
        if refused != 0 {
            return Err(io::Error::from_raw_os_error(refused));
        }
        // SAFETY: the set is initialised; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and ours alone.
        let file = unsafe { File::from_raw_fd(fd) };
        let sigpipe_ignored = SIGPIPE_WAS_IGNORED.load(Ordering::Relaxed);
        Ok((Self { file }, Inherited { mask, sigpipe_ignored }))
    }

    /// The next signal, `None` when there is none just now.
    pub(crate) fn next(&mut self) -> Option<Arrived> {
        const BYTES: usize = size_of::<libc::signalfd_siginfo>();
        let mut record = [0; BYTES];
        let word = |record: &[u8; BYTES], at: usize| {
            i32::from_ne_bytes([record[at], record[at + 1], record[at + 2], record[at + 3]])
        };
        match self.file.read(&mut record) {
            // struct signalfd_siginfo: signo at 0, errno at 4, code at 8.
            Ok(BYTES) => Some(Arrived { signal: word(&record, 0), by_process: word(&record, 8) <= 0 }),
            _ => None,
        }
    }
}

impl AsFd for SignalSource {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Ends this process by `signal`, as the target ended, so that a shell sees the same. Without a core of ours.
pub fn die_by_signal(signal: i32) -> ! {
    let none = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
    let _ = rustix::process::setrlimit(rustix::process::Resource::Core, none);
    let set = set_of(&[signal]);
    // SAFETY: the disposition is set to its default and the signal unblocked and raised for this thread; all
    // arguments are valid, and for an unknown number the calls fail without effect.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
        libc::raise(signal);
    }
    std::process::exit(128 + signal)
}
