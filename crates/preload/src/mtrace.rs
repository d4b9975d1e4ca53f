//! `mtrace` and `muntrace`, which a program calls to have glibc log what happens between them.
//!
//! The originals are not called: since glibc 2.34 they do nothing without a library of their own, and before it the log
//! would name our hooks as the callers. The log that `MALLOC_TRACE` names is written here instead (`event_log`), and
//! with or without it the report gets an interval (`intervals`).

use crate::{environment, start};
use core::arch::naked_asm;
use leakscope_rt::unwind::Registers;
use leakscope_rt::{event_log, intervals, runtime};

const MALLOC_TRACE: &[u8] = b"MALLOC_TRACE=";

#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn mtrace() {
    naked_asm!(".cfi_startproc", "mov rdi, rsp", "mov rsi, rbp", "jmp {}", ".cfi_endproc", sym begin)
}

#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn muntrace() {
    naked_asm!(".cfi_startproc", "mov rdi, rsp", "mov rsi, rbp", "jmp {}", ".cfi_endproc", sym end)
}

unsafe extern "C" fn begin(rsp: u64, rbp: u64) {
    if runtime::ledger().is_none() {
        start::late(|| ());
    }
    let Some(ledger) = runtime::ledger() else { return };
    note_wish();
    environment::with_value(MALLOC_TRACE, |name| event_log::begin_with_mtrace(ledger, name));
    intervals::begin(ledger, Registers { rsp, rbp });
}

unsafe extern "C" fn end(rsp: u64, rbp: u64) {
    let Some(ledger) = runtime::ledger() else { return };
    intervals::end(ledger, Registers { rsp, rbp });
    event_log::end_with_muntrace(ledger);
    runtime::let_wait_again(ledger);
}

/// Tells the observer that the program has `MALLOC_TRACE` set.
pub fn note_wish() {
    use core::sync::atomic::Ordering::Relaxed;
    let Some(ledger) = runtime::ledger() else { return };
    let wanted = &ledger.header().event_log.wanted;
    environment::with_value(MALLOC_TRACE, |name| {
        if wanted.load(Relaxed) == 0 {
            wanted.store(ledger.store_string(name), Relaxed);
        }
    });
}

/// Whether something is to be written at the end of the process, however it ends.
pub fn is_log_wanted() -> bool {
    use core::sync::atomic::Ordering::Relaxed;
    let wanted = |ledger: &leakscope_ledger::writer::Ledger| ledger.header().event_log.wanted.load(Relaxed) != 0;
    runtime::flag(leakscope_ledger::layout::flags::MTRACE_LOG) || runtime::ledger().is_some_and(wanted)
}
