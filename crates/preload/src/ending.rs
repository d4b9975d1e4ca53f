//! The end: where the leak check of the whole run starts.
//!
//! `exit` and a return from `main` end in our library's destructor. It does not check at once, because destructors of
//! other libraries may still free: it registers one more exit handler, and libc runs that after all destructors.
//! `_exit`, `_Exit` and `quick_exit` are hooked. Fatal signals come from `signals`, requests from outside from
//! `leakscope_rt::stop`.

use crate::originals;
use crate::start::{is_own_process, symbol};
use core::arch::naked_asm;
use core::cell::UnsafeCell;
use core::ffi::{c_int, c_void};
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use leakscope_ledger::layout::{flags, state};
use leakscope_model::CheckTrigger;
use leakscope_rt::check::{self, Surroundings};
use leakscope_rt::registers::{Preserved, RegisterFile, preserved_registers};
use leakscope_rt::thread::{for_ourselves, tls};
use leakscope_rt::unwind::Registers;
use leakscope_rt::{event_log, intervals, raw, runtime};

struct Once<T>(UnsafeCell<T>);
// SAFETY: written before any reader exists (at start), or only by the thread that ends the process.
unsafe impl<T> Sync for Once<T> {}

static SURROUNDINGS: Once<Option<Surroundings>> = Once(UnsafeCell::new(None));
/// The registers with which the program called `exit`; rsp is 0 when `main` returned instead.
static EXIT_REGISTERS: Once<Preserved> = Once(UnsafeCell::new(Preserved { rsp: 0, words: [0; 6] }));
static EXIT_STATUS: AtomicU32 = AtomicU32::new(0);
static ENDING: AtomicU32 = AtomicU32::new(0);

/// Keeps what the leak check will need.
pub fn keep_surroundings(surroundings: Surroundings) {
    // SAFETY: called once, at start.
    unsafe { *SURROUNDINGS.0.get() = Some(surroundings) };
}

unsafe extern "C" {
    fn __cxa_atexit(function: extern "C" fn(*mut c_void), argument: *mut c_void, dso: *mut c_void) -> c_int;
}

/// Our library's destructor.
pub extern "C" fn destructor() {
    if is_own_process() && runtime::ledger().is_some() {
        // SAFETY: libc takes handlers while it runs handlers, and runs them next.
        for_ourselves(|| unsafe { __cxa_atexit(at_exit, core::ptr::null_mut(), core::ptr::null_mut()) });
    }
}

extern "C" fn at_exit(_: *mut c_void) {
    // SAFETY: only the thread in `exit` writes and reads.
    let mut registers = RegisterFile::from(unsafe { *EXIT_REGISTERS.0.get() });
    if registers.rsp == 0 {
        registers.rsp = stack_above_exit();
    }
    finish(CheckTrigger::Exit, EXIT_STATUS.load(Relaxed) as c_int, &registers);
}

/// Stack pointer in front of libc's `exit`, which `main` returned to: what is below is no longer the program's.
#[inline(never)]
fn stack_above_exit() -> u64 {
    let mut here = Preserved::default();
    // SAFETY: `here` is valid for writing.
    unsafe { preserved_registers(&raw mut here) };
    let exit = originals::exit::ORIGINAL.address() as u64;
    // The first word from here up that is a return address in `exit` marks its frame. Its caller's begins somewhat
    // above; a few dead words more do no harm.
    for bytes in [16 << 10, 4 << 10, 1 << 10] {
        if exit == 0 || !leakscope_rt::memory::is_mapped(here.rsp, bytes) {
            continue;
        }
        for at in (here.rsp..here.rsp + bytes).step_by(8) {
            // SAFETY: mapped, as just asked, and this thread's own stack.
            if (exit..exit + 64).contains(&unsafe { *(at as *const u64) }) {
                return at + 8;
            }
        }
    }
    here.rsp
}

/// Checks once, at the end of the process.
fn finish(trigger: CheckTrigger, status: c_int, registers: &RegisterFile) {
    let Some(ledger) = runtime::ledger() else { return };
    if !is_own_process() || ENDING.swap(1, AcqRel) != 0 {
        return;
    }
    let header = ledger.header();
    header.state.store(state::ENDING, Release);
    end_intervals_and_log(trigger);
    if runtime::flag(flags::CHECK_AT_EXIT) && !runtime::sampling() {
        run_check(trigger, status, registers);
    }
    header.end_tsc.store(raw::tsc(), Relaxed);
    header.end_monotonic_ns.store(raw::clock_ns(1), Relaxed);
    header.state.store(state::ENDED, Release);
}

/// Before the leak check, while other threads can still open a lock.
fn end_intervals_and_log(trigger: CheckTrigger) {
    let Some(ledger) = runtime::ledger() else { return };
    let words = tls();
    // SAFETY: the calling thread's own words.
    let was_busy = unsafe { core::mem::replace(&mut (*words).busy, 1) };
    if was_busy == 0 || runtime::locks_are_free() {
        intervals::end_with_process(ledger);
    }
    // SAFETY: as above.
    unsafe { (*words).busy = was_busy };
    // As glibc's own mtrace does it: only a program that comes to its end in order lets libc clean up.
    let freeres = if trigger == CheckTrigger::Exit && event_log::is_on() { freeres() } else { [None, None] };
    event_log::end_with_process(ledger, &freeres);
}

/// libc's and libstdc++'s functions that release what they keep for themselves, if they are to run.
fn freeres() -> [Option<unsafe extern "C" fn()>; 2] {
    if !runtime::flag(flags::RUN_FREERES) {
        return [None, None];
    }
    [c"__libc_freeres", c"_ZN9__gnu_cxx9__freeresEv"].map(|name| {
        let address = for_ourselves(|| symbol(name));
        // SAFETY: both take no arguments and return nothing.
        (!address.is_null()).then(|| unsafe { core::mem::transmute::<*mut c_void, unsafe extern "C" fn()>(address) })
    })
}

fn run_check(trigger: CheckTrigger, status: c_int, registers: &RegisterFile) {
    // SAFETY: written at start.
    let (Some(ledger), Some(mut surroundings)) = (runtime::ledger(), unsafe { *SURROUNDINGS.0.get() }) else { return };
    surroundings.freeres = freeres();
    let words = tls();
    // SAFETY: the calling thread's own words.
    let was_busy = unsafe { core::mem::replace(&mut (*words).busy, 1) };
    // Busy already: a signal has interrupted our own code, perhaps with a lock held.
    if was_busy == 0 || runtime::locks_are_free() {
        check::run(ledger, trigger, status, registers, &surroundings);
    }
    // SAFETY: as above.
    unsafe { (*words).busy = was_busy };
}

/// Somebody outside wants a check of the running program.
pub fn on_request(registers: &RegisterFile) {
    let Some(ledger) = runtime::ledger() else { return };
    let header = ledger.header();
    if header.snapshot_wanted.load(Acquire) != header.snapshot_done.load(Acquire) && ENDING.load(Acquire) == 0 {
        on_own_stack(registers, CheckTrigger::OnDemand);
    }
}

/// The same from inside a hook, which the program called with these registers.
pub fn on_wanted(registers: Registers) {
    if ENDING.load(Acquire) == 0 {
        let mut here = Preserved::default();
        // SAFETY: `here` is valid for writing.
        unsafe { preserved_registers(&raw mut here) };
        let mut file = RegisterFile::from(here);
        // Registers that our own frames have saved lie between here and the hook's entry.
        file.rsp = here.rsp.min(registers.rsp);
        on_own_stack(&file, CheckTrigger::OnDemand);
    }
}

/// The program is about to replace itself; checked in case it succeeds.
pub fn before_exec(registers: &RegisterFile) {
    if is_own_process() && runtime::flag(flags::CHECK_AT_EXIT) && !runtime::sampling() {
        run_check(CheckTrigger::Exec, 0, registers);
    }
}

/// A signal is about to end the process.
pub fn on_fatal_signal(signal: c_int, registers: &RegisterFile) {
    EXIT_STATUS.store(signal as u32, Relaxed);
    on_own_stack(registers, CheckTrigger::FatalSignal);
}

const STACK_BYTES: usize = 512 << 10;

/// Runs a check from a signal handler, whose stack may be small, on a stack of our own.
fn on_own_stack(registers: &RegisterFile, trigger: CheckTrigger) {
    let Ok(low) = leakscope_rt::memory::map_zeroed(STACK_BYTES) else { return };
    let job = (*registers, trigger);
    // SAFETY: `low` is a fresh mapping of STACK_BYTES; `checked` gets the pair by pointer and does not unwind.
    unsafe { call_on_stack((&raw const job).cast(), low as usize + STACK_BYTES, checked) };
    // SAFETY: nobody runs on it any more.
    unsafe { leakscope_rt::memory::unmap_slice(core::slice::from_raw_parts_mut(low, STACK_BYTES)) };
}

unsafe extern "C" fn checked(job: *const c_void) {
    // SAFETY: `on_own_stack` passes exactly this pair.
    let (registers, trigger) = unsafe { &*job.cast::<(RegisterFile, CheckTrigger)>() };
    match trigger {
        CheckTrigger::FatalSignal => finish(*trigger, EXIT_STATUS.load(Relaxed) as c_int, registers),
        _ => run_check(*trigger, 0, registers),
    }
}

#[unsafe(naked)]
unsafe extern "C" fn call_on_stack(argument: *const c_void, top: usize, function: unsafe extern "C" fn(*const c_void)) {
    naked_asm!(
        ".cfi_startproc",
        "push rbp",
        ".cfi_adjust_cfa_offset 8",
        ".cfi_offset rbp, -16",
        "mov rbp, rsp",
        ".cfi_def_cfa_register rbp",
        "mov rsp, rsi",
        "and rsp, -16",
        "call rdx",
        "mov rsp, rbp",
        "pop rbp",
        ".cfi_def_cfa rsp, 8",
        "ret",
        ".cfi_endproc",
    )
}

unsafe extern "C" fn note_exit(status: c_int, registers: *const Preserved) {
    if is_own_process() {
        EXIT_STATUS.store(status as u32, Relaxed);
        // SAFETY: the hook below passes its own stack; only the thread that ends the process gets here.
        unsafe { *EXIT_REGISTERS.0.get() = *registers };
    }
    originals::exit::ORIGINAL.find();
    originals::quick_exit::ORIGINAL.find();
}

unsafe extern "C" fn note_exit_now(status: c_int, registers: *const Preserved) {
    originals::exit_now::ORIGINAL.find();
    // SAFETY: the hook below passes its own stack.
    finish(CheckTrigger::QuickExit, status, &RegisterFile::from(unsafe { *registers }));
}

/// Hooks that never return to the caller: they store the preserved registers on the stack, call a body with the status
/// and a pointer to them, and enter the original with the status.
macro_rules! exit_hooks {
    ($($symbol:ident => $body:ident, $original:ident;)*) => { $(
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $symbol() {
            naked_asm!(
                ".cfi_startproc",
                "lea rax, [rsp + 8]",
                "push rdi",
                ".cfi_adjust_cfa_offset 8",
                "push r15", "push r14", "push r13", "push r12", "push rbp", "push rbx", "push rax",
                ".cfi_adjust_cfa_offset 56",
                "mov rsi, rsp",
                // Eight pushes after the return address: eight bytes are missing to a multiple of 16.
                "sub rsp, 8",
                ".cfi_adjust_cfa_offset 8",
                "call {body}",
                "mov rdi, [rsp + 64]",
                "add rsp, 72",
                ".cfi_adjust_cfa_offset -72",
                "jmp qword ptr [rip + {original}]",
                ".cfi_endproc",
                body = sym $body,
                original = sym originals::$original::ORIGINAL,
            )
        }
    )* };
}

exit_hooks! {
    exit => note_exit, exit;
    quick_exit => note_quick_exit, quick_exit;
    _exit => note_exit_now, exit_now;
    _Exit => note_exit_now, exit_now;
}

unsafe extern "C" fn note_quick_exit(status: c_int, registers: *const Preserved) {
    // SAFETY: as in `note_exit`.
    unsafe { note_exit(status, registers) };
    // The handlers that the program registered run first: ours was registered before all of them.
}

extern "C" fn at_quick_exit(_: *mut c_void) {
    // SAFETY: only the thread that ends the process reads and writes.
    let registers = RegisterFile::from(unsafe { *EXIT_REGISTERS.0.get() });
    finish(CheckTrigger::QuickExit, EXIT_STATUS.load(Relaxed) as c_int, &registers);
}

/// Registers what tells us that `quick_exit` has run the program's own handlers.
pub fn register() {
    unsafe extern "C" {
        fn __cxa_at_quick_exit(function: extern "C" fn(*mut c_void), dso: *mut c_void) -> c_int;
    }
    // SAFETY: registers our function.
    for_ourselves(|| unsafe { __cxa_at_quick_exit(at_quick_exit, core::ptr::null_mut()) });
}
