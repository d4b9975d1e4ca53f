//! Processes that the target makes: forked children get a ledger of their own, `exec` may be followed.

use crate::{connect, ending, environment, originals, start};
use core::cell::UnsafeCell;
use core::ffi::{CStr, c_char, c_int, c_void};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU32, AtomicUsize};
use leakscope_ledger::layout::{flags, origin, state};
use leakscope_ledger::writer::Ledger;
use leakscope_rt::registers::{Preserved, RegisterFile, preserved_registers};
use leakscope_rt::thread::{self, tls};
use leakscope_rt::{event_log, intervals, memory, raw, runtime};

const CTL_BYTES: usize = 256;
struct Ctl(UnsafeCell<[u8; CTL_BYTES]>);
// SAFETY: written at start, before anybody reads.
unsafe impl Sync for Ctl {}
static CTL: Ctl = Ctl(UnsafeCell::new([0; CTL_BYTES]));
static CTL_LENGTH: AtomicUsize = AtomicUsize::new(0);

/// Keeps the value of our variable for forked children.
pub fn keep_ctl(value: &[u8]) {
    // SAFETY: called once, at start.
    if let Some(room) = unsafe { &mut *CTL.0.get() }.get_mut(..value.len()) {
        room.copy_from_slice(value);
        CTL_LENGTH.store(value.len(), Release);
    }
}

fn ctl() -> &'static [u8] {
    // SAFETY: not written after start.
    unsafe { &*CTL.0.get() }.get(..CTL_LENGTH.load(Relaxed)).unwrap_or(&[])
}

/// Registers the handlers that libc calls around `fork`. Registered before the program's own: so ours run last before
/// the fork, and first after it.
pub fn register() {
    unsafe extern "C" {
        fn __register_atfork(
            prepare: extern "C" fn(),
            parent: extern "C" fn(),
            child: extern "C" fn(),
            dso: *mut c_void,
        ) -> c_int;
    }
    // SAFETY: registers our functions.
    thread::for_ourselves(|| unsafe { __register_atfork(prepare, parent, child, core::ptr::null_mut()) });
}

/// Whether the process had more threads when it last forked.
static HAD_THREADS: AtomicU32 = AtomicU32::new(0);

fn set_busy(busy: u32) {
    // SAFETY: the calling thread's own words.
    unsafe { (*tls()).busy = busy };
}

extern "C" fn prepare() {
    if let Some(ledger) = runtime::ledger() {
        set_busy(1);
        event_log::before_fork(ledger);
        COPIES.store(ledger.header().copies.load(Relaxed), Relaxed);
        HAD_THREADS.store(u32::from(thread::has_several()), Relaxed);
        runtime::MODULES.before_fork();
        runtime::SITES.before_fork();
    }
}

/// Copies of the ledger that children had taken before the last `fork`.
static COPIES: AtomicU32 = AtomicU32::new(0);

/// Waits a second at most until the child has its copy of the ledger, if an interval is open: what this thread does now
/// must not be in the child's.
fn wait_for_copy(ledger: &Ledger) {
    const WAIT: usize = 0;
    let (copies, before) = (&ledger.header().copies, COPIES.load(Relaxed));
    for _ in 0..100 {
        if intervals::tag() == 0 || copies.load(Acquire) != before {
            return;
        }
        let ten_milliseconds = [0u64, 10_000_000];
        let args = [copies.as_ptr() as usize, WAIT, before as usize, ten_milliseconds.as_ptr() as usize, 0, 0];
        // SAFETY: waits on a word of the ledger, which stays mapped; the kernel reads the time.
        let _ = unsafe { raw::syscall(raw::nr::FUTEX, args) };
    }
}

/// In the child: the parent may go on.
fn copy_is_taken(parents: &Ledger) {
    const WAKE: usize = 1;
    let copies = &parents.header().copies;
    copies.fetch_add(1, Release);
    // SAFETY: wakes waiters on a word of the ledger.
    let _ = unsafe { raw::syscall(raw::nr::FUTEX, [copies.as_ptr() as usize, WAKE, i32::MAX as usize, 0, 0, 0]) };
}

extern "C" fn parent() {
    if let Some(ledger) = runtime::ledger() {
        wait_for_copy(ledger);
        runtime::SITES.after_fork();
        runtime::MODULES.after_fork_in_parent();
        event_log::after_fork_in_parent(ledger);
        set_busy(0);
    }
}

extern "C" fn child() {
    if let Some(ledger) = runtime::ledger() {
        runtime::SITES.after_fork();
        runtime::MODULES.after_fork_in_child(HAD_THREADS.load(Relaxed) != 0);
        start::set_own_process();
        thread::after_fork_in_child();
        leakscope_rt::misuse::after_fork_in_child();
        leakscope_rt::check::after_fork_in_child();
        intervals::after_fork_in_child();
        event_log::after_fork_in_child();
        if runtime::flag(flags::CHILD_SILENT) || own_ledger(ledger).is_none() {
            copy_is_taken(ledger);
            // Nothing may be written to the parent's ledger any more.
            runtime::stop();
        }
        set_busy(0);
    }
}

/// Puts a ledger of the child's own in the place of the parent's, with the same contents so far.
fn own_ledger(parents: &Ledger) -> Option<()> {
    let (fd, bytes) = connect::ask(ctl(), origin::FORK).ok()?;
    let mapped = memory::map_shared(fd, bytes as usize);
    raw::close(fd);
    let base = mapped.ok()?;
    // SAFETY: mapped just now, for `bytes`.
    let fresh = unsafe { Ledger::attach(base, bytes) }?;
    if bytes != parents.header().file_bytes {
        return None;
    }
    fresh.copy_contents_from(parents);
    copy_is_taken(parents);
    start::describe_process(&fresh);
    fresh.header().executable.store(parents.header().executable.load(Relaxed), Relaxed);
    fresh.header().command_line.store(parents.header().command_line.load(Relaxed), Relaxed);
    fresh.header().state.store(state::RUNNING, Release);
    // SAFETY: both are mappings of ours of this length; `fresh` is not used afterwards.
    unsafe { memory::replace_mapping(base, parents.base(), bytes as usize) }.ok()
}

/// An environment with our two variables in it, for `exec` with an environment that the program made itself.
struct Extended {
    entries: [*const c_char; 4096],
    ctl: [u8; CTL_BYTES + 32],
}

fn wants_following() -> bool {
    runtime::ledger().is_some() && runtime::flag(flags::TRACE_CHILDREN)
}

/// Adds our variables to `environment` unless they are there.
///
/// # Safety
/// `environment` is a null-terminated array of C strings.
unsafe fn extend(environment: *const *const c_char) -> Option<&'static mut Extended> {
    let ours = environment::current();
    if environment.is_null() || ours.is_null() || core::ptr::eq(environment, ours.cast()) {
        return None;
    }
    let extended = memory::map_zeroed(size_of::<Extended>()).ok()?.cast::<Extended>();
    // SAFETY: fresh zeroed memory: null pointers and zero bytes.
    let extended = unsafe { &mut *extended };
    let mut used = 0;
    // SAFETY: the caller vouches for the array; libc for its own.
    unsafe {
        let mut at = environment;
        while !(*at).is_null() {
            if CStr::from_ptr(*at).to_bytes().starts_with(environment::CTL) {
                return None;
            }
            // A program's own LD_PRELOAD would replace ours: ours holds the user's as well.
            if !CStr::from_ptr(*at).to_bytes().starts_with(environment::LD_PRELOAD) {
                *extended.entries.get_mut(used)? = *at;
                used += 1;
            }
            at = at.add(1);
        }
        let mut at = ours;
        while !(*at).is_null() {
            if CStr::from_ptr(*at).to_bytes().starts_with(environment::LD_PRELOAD) {
                *extended.entries.get_mut(used)? = *at;
                used += 1;
            }
            at = at.add(1);
        }
    }
    let name = environment::CTL;
    extended.ctl.get_mut(..name.len())?.copy_from_slice(name);
    extended.ctl.get_mut(name.len()..name.len() + ctl().len())?.copy_from_slice(ctl());
    let text = extended.ctl.as_ptr().cast();
    *extended.entries.get_mut(used).filter(|_| used + 1 < 4096)? = text;
    Some(extended)
}

#[inline(always)]
fn check_first() {
    let mut here = Preserved::default();
    // SAFETY: `here` is valid for writing.
    unsafe { preserved_registers(&raw mut here) };
    if let Some(ledger) = runtime::ledger().filter(|_| start::is_own_process()) {
        event_log::flush(ledger);
    }
    // A forked child that runs another program is the common case, and not an end worth a leak check.
    if runtime::ledger().is_some_and(|ledger| ledger.header().origin.load(Relaxed) != origin::FORK) {
        ending::before_exec(&RegisterFile::from(here));
    }
}

type Strings = *const *const c_char;

/// # Safety
/// As execve(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn execve(path: *const c_char, arguments: Strings, environment: Strings) -> c_int {
    check_first();
    let Some(original) = originals::execve::find() else { return -1 };
    // SAFETY: the caller's contract is execve's.
    unsafe {
        match if wants_following() { extend(environment) } else { None } {
            Some(extended) => original(path, arguments, extended.entries.as_ptr()),
            None => original(path, arguments, environment),
        }
    }
}

/// # Safety
/// As execvpe(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn execvpe(file: *const c_char, arguments: Strings, environment: Strings) -> c_int {
    check_first();
    let Some(original) = originals::execvpe::find() else { return -1 };
    // SAFETY: the caller's contract is execvpe's.
    unsafe {
        match if wants_following() { extend(environment) } else { None } {
            Some(extended) => original(file, arguments, extended.entries.as_ptr()),
            None => original(file, arguments, environment),
        }
    }
}

/// # Safety
/// As execv(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn execv(path: *const c_char, arguments: Strings) -> c_int {
    check_first();
    let Some(original) = originals::execve::find() else { return -1 };
    // SAFETY: the caller's contract is execv's, which is execve with the present environment.
    unsafe { original(path, arguments, environment::current().cast()) }
}

/// # Safety
/// As execvp(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn execvp(file: *const c_char, arguments: Strings) -> c_int {
    check_first();
    let Some(original) = originals::execvpe::find() else { return -1 };
    // SAFETY: the caller's contract is execvp's, which is execvpe with the present environment.
    unsafe { original(file, arguments, environment::current().cast()) }
}

/// The variadic forms: all argument registers are kept, and the original is entered as if it had been called at once.
/// They use the present environment, which holds our variables when children are followed.
macro_rules! variadic_exec_hooks {
    ($($symbol:ident, $body:ident, $original:ident;)*) => { $(
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $symbol() {
            core::arch::naked_asm!(
                ".cfi_startproc",
                "push rdi", "push rsi", "push rdx", "push rcx", "push r8", "push r9", "push rax",
                ".cfi_adjust_cfa_offset 56",
                "call {body}",
                "pop rax", "pop r9", "pop r8", "pop rcx", "pop rdx", "pop rsi", "pop rdi",
                ".cfi_adjust_cfa_offset -56",
                "jmp qword ptr [rip + {original}]",
                ".cfi_endproc",
                body = sym $body,
                original = sym originals::$original::ORIGINAL,
            )
        }

        unsafe extern "C" fn $body() {
            check_first();
            originals::$original::ORIGINAL.find_or_abort();
        }
    )* };
}

variadic_exec_hooks! {
    execl, before_execl, execl;
    execlp, before_execlp, execlp;
    execle, before_execle, execle;
}

/// # Safety
/// As fexecve(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn fexecve(fd: c_int, arguments: Strings, environment: Strings) -> c_int {
    check_first();
    let Some(original) = originals::fexecve::find() else { return -1 };
    // SAFETY: the caller's contract is fexecve's.
    unsafe {
        match if wants_following() { extend(environment) } else { None } {
            Some(extended) => original(fd, arguments, extended.entries.as_ptr()),
            None => original(fd, arguments, environment),
        }
    }
}

/// # Safety
/// As dlclose(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn dlclose(handle: *mut c_void) -> c_int {
    let Some(original) = originals::dlclose::find() else { return -1 };
    // SAFETY: the caller's contract is dlclose's.
    let result = unsafe { original(handle) };
    if let Some(ledger) = runtime::ledger() {
        // SAFETY: the calling thread's own words.
        let was_busy = unsafe { core::mem::replace(&mut (*tls()).busy, 1) };
        runtime::refresh_modules(ledger);
        set_busy(was_busy);
    }
    result
}
