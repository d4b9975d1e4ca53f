//! What went wrong, in the words and the layout of LLVM 19: scripts and tests look for these.

pub mod access;
pub mod describe;
pub mod frame;
pub mod globals;
pub mod heap;
pub mod hooks;
pub mod misuse;
pub mod pairs;
pub mod scariness;
pub mod shadow;
pub mod signal;
pub mod stack;

use crate::options::options;
use crate::sys;
use crate::thread;
use alloc::string::String;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize};

/// Kernel number of the thread that reports; 0 for none.
static REPORTING: AtomicU32 = AtomicU32::new(0);
/// Whether the process is ending because of a report.
static IS_DYING: AtomicBool = AtomicBool::new(false);
/// Reports so far.
pub static COUNT: AtomicUsize = AtomicUsize::new(0);

/// A report being written. Other threads wait until it is finished, or for ever if the process ends with it.
pub struct Report {
    is_fatal: bool,
}

impl Report {
    /// Begins a report; prints the line above it.
    #[must_use]
    pub fn begin(is_fatal: bool) -> Self {
        let me = sys::gettid();
        loop {
            match REPORTING.compare_exchange(0, me, AcqRel, Acquire) {
                Ok(_) => break,
                Err(owner) if owner == me => {
                    sys::write_all(2, b"AddressSanitizer: nested bug in the same thread, aborting.\n");
                    sys::exit_now(options().exitcode as i32);
                }
                Err(_) => leakscope_rt::raw::sleep_ns(1_000_000),
            }
        }
        COUNT.fetch_add(1, Relaxed);
        crate::output::begin_report();
        crate::describe_threads::forget();
        crate::out!("=================================================================\n");
        Self { is_fatal: is_fatal || options().halt_on_error }
    }

    /// The first line: what, in which words.
    pub fn headline(&self, text: core::fmt::Arguments<'_>) {
        // The program hears of it before it is told, and may ask for the facts.
        hooks::on_error();
        crate::out_pid!("ERROR: AddressSanitizer: {text}\n");
    }

    /// Ends the report, and the process if it is to end.
    pub fn finish(self) {
        crate::describe_threads::describe(thread::current_number());
        if options().print_stats {
            crate::statistics::print();
        }
        if options().print_cmdline {
            crate::statistics::print_command_line();
        }
        if options().print_module_map == 2 {
            crate::statistics::print_process_map();
        }
        hooks::on_report(&crate::output::kept());
        if self.is_fatal {
            crate::out_pid!("ABORTING\n");
            die();
        }
        REPORTING.store(0, Release);
    }
}

/// Whether a report is being written by the calling thread.
#[must_use]
pub fn is_reporting() -> bool {
    REPORTING.load(Relaxed) == sys::gettid()
}

/// Ends the process as the options say.
pub fn die() -> ! {
    if IS_DYING.swap(true, AcqRel) {
        // Another thread is at it already.
        leakscope_rt::raw::sleep_ns(900_000_000);
        sys::exit_now(options().exitcode as i32);
    }
    if options().print_module_map >= 1 {
        crate::statistics::print_process_map();
    }
    if options().sleep_before_dying > 0 {
        crate::out!("Sleeping for {} second(s) before dying\n", options().sleep_before_dying);
        sys::sleep_seconds(options().sleep_before_dying as u64);
    }
    hooks::on_death();
    if options().abort_on_error {
        crate::signals::restore_default(libc::SIGABRT);
        // SAFETY: does not return.
        unsafe { libc::abort() };
    }
    sys::exit_now(options().exitcode as i32)
}

/// "T3", and its name if it has one.
#[must_use]
pub fn thread_name(number: u32) -> String {
    let Some(context) = thread::context(number) else { return String::from("T-1") };
    let name = context.name();
    if name.is_empty() { alloc::format!("T{number}") } else { alloc::format!("T{number} ({name})") }
}

/// Forgets in a forked child who was reporting.
pub fn after_fork_in_child() {
    REPORTING.store(0, Release);
}
