//! Functions of the program that reports call: set by the exporting library, 0 where there is none.

use alloc::ffi::CString;
use core::ffi::c_char;
use core::sync::atomic::AtomicUsize;
use core::sync::atomic::Ordering::Relaxed;

/// `__asan_on_error`.
pub static ON_ERROR: AtomicUsize = AtomicUsize::new(0);
/// `__asan_set_error_report_callback`.
pub static ON_REPORT: AtomicUsize = AtomicUsize::new(0);
/// `__asan_set_death_callback` and `__sanitizer_set_death_callback`.
pub static ON_DEATH: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];
/// `__sanitizer_report_error_summary`.
pub static ON_SUMMARY: AtomicUsize = AtomicUsize::new(0);

fn call(hook: &AtomicUsize) {
    let hook = hook.load(Relaxed);
    if hook != 0 {
        // SAFETY: the program registered a function of this type.
        let function: extern "C" fn() = unsafe { core::mem::transmute(hook) };
        function();
    }
}

fn call_with_text(hook: &AtomicUsize, text: &str) -> bool {
    let hook = hook.load(Relaxed);
    let Some(text) = (hook != 0).then(|| CString::new(text).ok()).flatten() else { return false };
    // SAFETY: the program registered a function of this type.
    let function: extern "C" fn(*const c_char) = unsafe { core::mem::transmute(hook) };
    function(text.as_ptr());
    true
}

/// Something was found.
pub fn on_error() {
    call(&ON_ERROR);
}

/// The whole text of a report.
pub fn on_report(text: &str) {
    call_with_text(&ON_REPORT, text);
}

/// The process ends.
pub fn on_death() {
    ON_DEATH.iter().for_each(call);
}

/// Gives the summary to the program's function; false when it has none.
pub fn summary(text: &str) -> bool {
    call_with_text(&ON_SUMMARY, text)
}
