//! Where reports go: standard error, or a file (`log_path`); and a copy of the report at hand, for callbacks.

use crate::options::options;
use crate::sys;
use alloc::string::String;
use core::cell::UnsafeCell;
use core::fmt::{Arguments, Write};
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicUsize, Ordering::Relaxed};
use leakscope_rt::memory::Lock;

/// The descriptor set by `__sanitizer_set_report_fd`; -1: as the options say.
static REPORT_FD: AtomicI32 = AtomicI32::new(2);
/// The process that opened the log file: a forked child opens its own.
static LOG_OWNER: AtomicU32 = AtomicU32::new(0);

/// The file that reports are written to a second time, for whoever started us; -1 while there is none.
static COPY_FD: AtomicI32 = AtomicI32::new(-1);
/// The process that opened it.
static COPY_OWNER: AtomicU32 = AtomicU32::new(0);
/// Whether somebody wants that.
static IS_COPIED: AtomicBool = AtomicBool::new(false);

struct Held {
    lock: Lock,
    /// Prefix of the log file; empty for none.
    path: UnsafeCell<String>,
    /// Prefix of the second file.
    copy: UnsafeCell<String>,
    /// The report at hand.
    kept: UnsafeCell<String>,
}
// SAFETY: the strings are only touched with the lock held.
unsafe impl Sync for Held {}

static HELD: Held = Held {
    lock: Lock::new(),
    path: UnsafeCell::new(String::new()),
    copy: UnsafeCell::new(String::new()),
    kept: UnsafeCell::new(String::new()),
};

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

/// Makes the folders that a path leads through; the first that cannot be made.
///
/// # Errors
/// That folder.
pub fn make_folders(path: &str) -> Result<(), String> {
    for (at, _) in path.match_indices('/').filter(|&(at, _)| at > 0) {
        let folder = path.get(..at).unwrap_or("");
        let Ok(text) = alloc::ffi::CString::new(folder) else { return Err(String::from(folder)) };
        if let Ok(fd) = sys::open(&text, libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC, 0) {
            sys::close(fd);
            continue;
        }
        // SAFETY: a C string.
        if unsafe { libc::mkdir(text.as_ptr(), 0o777) } != 0 {
            return Err(String::from(folder));
        }
    }
    Ok(())
}

/// Has reports written a second time, each process to a file of its own: `prefix.PID`.
pub fn set_copy(prefix: &str) {
    let _held = HELD.lock.lock();
    // SAFETY: the lock is held.
    unsafe { *HELD.copy.get() = String::from(prefix) };
    IS_COPIED.store(true, Relaxed);
}

/// Whether reports are written a second time: then they are to be read by a program.
pub fn is_copied() -> bool {
    IS_COPIED.load(Relaxed)
}

/// Writes to the second file. The caller holds the lock.
fn write_copy(text: &str) {
    if COPY_OWNER.load(Relaxed) != sys::getpid() {
        // SAFETY: the lock is held.
        let path = alloc::format!("{}.{}\0", unsafe { &*HELD.copy.get() }, sys::getpid());
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_APPEND | libc::O_CLOEXEC;
        let Ok(path) = core::ffi::CStr::from_bytes_until_nul(path.as_bytes()) else { return };
        COPY_FD.store(sys::open(path, flags, 0o600).unwrap_or(-1), Relaxed);
        COPY_OWNER.store(sys::getpid(), Relaxed);
    }
    if COPY_FD.load(Relaxed) >= 0 {
        sys::write_all(COPY_FD.load(Relaxed), text.as_bytes());
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
    if is_copied() {
        write_copy(text);
    }
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
