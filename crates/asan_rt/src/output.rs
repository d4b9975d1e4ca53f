//! Where reports go: standard error, or a file (`log_path`); and a copy of the report at hand, for callbacks.

use crate::options::options;
use crate::sys;
use alloc::string::String;
use core::cell::UnsafeCell;
use core::fmt::{Arguments, Write};
use core::sync::atomic::{AtomicI32, AtomicU32, AtomicUsize, Ordering::Relaxed};
use leakscope_rt::memory::Lock;

/// The descriptor set by `__sanitizer_set_report_fd`; -1: as the options say.
static REPORT_FD: AtomicI32 = AtomicI32::new(2);
/// The process that opened the log file: a forked child opens its own.
static LOG_OWNER: AtomicU32 = AtomicU32::new(0);

struct Held {
    lock: Lock,
    /// Prefix of the log file; empty for none.
    path: UnsafeCell<String>,
    /// The report at hand.
    kept: UnsafeCell<String>,
}
// SAFETY: both strings are only touched with the lock held.
unsafe impl Sync for Held {}

static HELD: Held =
    Held { lock: Lock::new(), path: UnsafeCell::new(String::new()), kept: UnsafeCell::new(String::new()) };

/// Called with every piece of text, `__sanitizer_on_print`; 0 when there is none.
pub static ON_PRINT: AtomicUsize = AtomicUsize::new(0);

/// `__sanitizer_set_report_path`: a prefix, "stdout" or "stderr".
pub fn set_path(path: &str) {
    let _held = HELD.lock.lock();
    match path {
        "" | "stderr" => REPORT_FD.store(2, Relaxed),
        "stdout" => REPORT_FD.store(1, Relaxed),
        _ => {
            // SAFETY: the lock is held.
            unsafe { *HELD.path.get() = String::from(path) };
            LOG_OWNER.store(0, Relaxed);
            REPORT_FD.store(-1, Relaxed);
        }
    }
}

/// `__sanitizer_set_report_fd`.
pub fn set_fd(fd: i32) {
    REPORT_FD.store(fd, Relaxed);
}

/// The name of the file that reports go to: what `__sanitizer_get_report_path` says.
pub fn path() -> String {
    let _held = HELD.lock.lock();
    if REPORT_FD.load(Relaxed) >= 0 && LOG_OWNER.load(Relaxed) == 0 {
        return String::from(if REPORT_FD.load(Relaxed) == 1 { "stdout" } else { "stderr" });
    }
    // SAFETY: the lock is held.
    full_path(unsafe { &*HELD.path.get() })
}

fn full_path(prefix: &str) -> String {
    let mut name = String::from(prefix);
    if options().log_exe_name {
        let exe = crate::modules::executable();
        let _ = write!(name, ".{}", exe.rsplit('/').next().unwrap_or(""));
    }
    let _ = write!(name, ".{}{}", sys::getpid(), options().log_suffix);
    name
}

/// The descriptor to write to now; opens the log file if need be.
fn fd() -> i32 {
    let fd = REPORT_FD.load(Relaxed);
    if fd >= 0 && (LOG_OWNER.load(Relaxed) == 0 || LOG_OWNER.load(Relaxed) == sys::getpid()) {
        return fd;
    }
    // SAFETY: the caller holds the lock.
    let mut path = full_path(unsafe { &*HELD.path.get() });
    path.push('\0');
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC | libc::O_CLOEXEC;
    let opened = core::ffi::CStr::from_bytes_until_nul(path.as_bytes())
        .map_err(|_| sys::Errno(libc::EINVAL))
        .and_then(|path| sys::open(path, flags, 0o660));
    match opened {
        Ok(fd) => {
            REPORT_FD.store(fd, Relaxed);
            LOG_OWNER.store(sys::getpid(), Relaxed);
            fd
        }
        Err(sys::Errno(reason)) => {
            let mut text = String::from("ERROR: Can't open file: ");
            text.push_str(path.trim_end_matches('\0'));
            let _ = writeln!(text, " (reason: {reason})");
            sys::write_all(2, text.as_bytes());
            sys::exit_now(options().exitcode as i32)
        }
    }
}

/// Writes a piece of text.
pub fn print(text: &str) {
    let _held = HELD.lock.lock();
    sys::write_all(fd(), text.as_bytes());
    let hook = ON_PRINT.load(Relaxed);
    if hook != 0
        && let Ok(text) = alloc::ffi::CString::new(text)
    {
        // SAFETY: the program's function of this type.
        let hook: extern "C" fn(*const core::ffi::c_char) = unsafe { core::mem::transmute(hook) };
        hook(text.as_ptr());
    }
    // SAFETY: the lock is held.
    let kept = unsafe { &mut *HELD.kept.get() };
    kept.push_str(text);
    if kept.len() > 1 << 20 {
        kept.clear();
    }
}

/// As [`print()`], formatted.
pub fn print_args(arguments: Arguments<'_>) {
    let mut text = String::new();
    let _ = text.write_fmt(arguments);
    print(&text);
}

/// Starts a new report: what was kept is forgotten.
pub fn begin_report() {
    let _held = HELD.lock.lock();
    // SAFETY: the lock is held.
    unsafe { (*HELD.kept.get()).clear() };
}

/// The report at hand so far.
pub fn kept() -> String {
    let _held = HELD.lock.lock();
    // SAFETY: the lock is held.
    unsafe { (*HELD.kept.get()).clone() }
}

/// Writes to the report.
#[macro_export]
macro_rules! out {
    ($($arg:tt)*) => { $crate::output::print_args(format_args!($($arg)*)) };
}

/// Writes to the report, after `==PID==`.
#[macro_export]
macro_rules! out_pid {
    ($($arg:tt)*) => {
        $crate::output::print_args(format_args!("=={}=={}", $crate::sys::getpid(), format_args!($($arg)*)))
    };
}

/// An address as reports show it: at least twelve digits.
pub struct Address(pub usize);

impl core::fmt::Display for Address {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "0x{:012x}", self.0)
    }
}
