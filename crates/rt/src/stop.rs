//! Standing the other threads still for the moment of a leak check, without ptrace.
//!
//! Each thread gets signal [`SIGNAL`], whose handler stores the interrupted registers and waits. A program cannot
//! block this signal through libc: glibc keeps it for `setuid` in threads, and installs its own handler when the first
//! thread is made. Ours then takes its place again and passes on to it what is not ours. Our signals carry a word by
//! which they are known, however late they come: glibc's handler would follow a null pointer for one that it did not
//! send. A thread that sleeps in a system call which would return EINTR in spite of SA_RESTART is left alone when the
//! program is to go on: `/proc` tells its stack pointer and arguments.

use crate::proc_maps;
use crate::raw::{self, call, nr};
use crate::registers::RegisterFile;
use core::arch::naked_asm;
use core::cell::UnsafeCell;
use core::ffi::c_void;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU32, AtomicUsize};

/// The signal that stops a thread, or asks an idle program for a check.
pub const SIGNAL: i32 = 33;

/// Most threads that are stopped; the rest counts as unseen.
const MOST: usize = 4096;

const PATIENCE_NS: u64 = 300_000_000;

const WAITING: u32 = 1;
/// The thread's handler is writing its registers.
const STOPPING: u32 = 2;
const STOPPED: u32 = 3;
const KNOWN_FROM_PROC: u32 = 4;

struct Slot {
    tid: AtomicU32,
    state: AtomicU32,
    registers: UnsafeCell<RegisterFile>,
}

// SAFETY: `registers` is written by the slot's owner before it sets STOPPED, and read after that was seen.
unsafe impl Sync for Slot {}

static SLOTS: [Slot; MOST] = [const {
    Slot {
        tid: AtomicU32::new(0),
        state: AtomicU32::new(0),
        registers: UnsafeCell::new(RegisterFile { rsp: 0, words: [0; 15], vectors: 0 }),
    }
}; MOST];
static USED: AtomicU32 = AtomicU32::new(0);
/// 1 while threads are to stand still; they wait on this word.
static HOLD: AtomicU32 = AtomicU32::new(0);
static ON_REQUEST: AtomicU32 = AtomicU32::new(0);

#[repr(C)]
struct KernelAction {
    handler: usize,
    flags: u64,
    restorer: usize,
    mask: u64,
}

#[unsafe(naked)]
unsafe extern "C" fn restorer() {
    naked_asm!("mov eax, 15", "syscall")
}

/// What to do when somebody outside asks an idle program for a check: gets the interrupted registers.
pub type OnRequest = fn(&RegisterFile);

static REQUEST: UnsafeCell2 = UnsafeCell2(UnsafeCell::new(None));
struct UnsafeCell2(UnsafeCell<Option<OnRequest>>);
// SAFETY: written once by `install`, before the handler can run.
unsafe impl Sync for UnsafeCell2 {}

/// glibc's handler, once it has been found in our place.
static CHAINED: AtomicUsize = AtomicUsize::new(0);

/// Installs the handler. `on_request` runs in the handler when the signal comes from another process.
pub fn install(on_request: OnRequest) {
    // SAFETY: nothing reads it yet: the handler is installed just below.
    unsafe { *REQUEST.0.get() = Some(on_request) };
    stay_installed();
}

/// Puts the handler back in its place if glibc has put its own there.
pub fn stay_installed() {
    const SA_SIGINFO_RESTORER_ONSTACK_RESTART: u64 = 4 | 0x0400_0000 | 0x0800_0000 | 0x1000_0000;
    let ours = handler as *const () as usize;
    let mut present = KernelAction { handler: 0, flags: 0, restorer: 0, mask: 0 };
    // SAFETY: the kernel writes the present action.
    if unsafe { call!(nr::RT_SIGACTION, SIGNAL, 0, &raw mut present, 8) }.is_err() || present.handler == ours {
        return;
    }
    CHAINED.store(present.handler, Release);
    let action = KernelAction {
        handler: ours,
        flags: SA_SIGINFO_RESTORER_ONSTACK_RESTART,
        restorer: restorer as *const () as usize,
        mask: !0,
    };
    // SAFETY: the structure is the kernel's sigaction; the old action is not asked for.
    let _ = unsafe { call!(nr::RT_SIGACTION, SIGNAL, &raw const action, 0, 8) };
}

unsafe extern "C" fn handler(signal: i32, info: *mut libc::siginfo_t, context: *mut c_void) {
    const SI_TKILL: i32 = -6;
    // SAFETY: the kernel gives a valid siginfo and context; `si_pid` is set for these codes.
    let (code, sender, word) = unsafe { ((*info).si_code, (*info).si_pid(), (*info).si_value().sival_ptr) };
    let is_of_this_process = sender as u32 == raw::getpid();
    if code == libc::SI_QUEUE && is_of_this_process && word.addr() == HOLD.as_ptr().addr() {
        // SAFETY: as above.
        unsafe { hold_still(context.cast()) };
    } else if code == SI_TKILL && is_of_this_process {
        // SAFETY: as above.
        unsafe { pass_on(signal, info, context) };
    } else if ON_REQUEST.swap(1, AcqRel) == 0 {
        // SAFETY: as above; REQUEST was written before the handler was installed.
        unsafe {
            let registers = RegisterFile::of_signal(context.cast());
            if let Some(on_request) = *REQUEST.0.get() {
                on_request(&registers);
            }
        }
        ON_REQUEST.store(0, Release);
    }
}

/// Gives a signal that is not ours to glibc's handler.
///
/// # Safety
/// The arguments are those of the running handler.
unsafe fn pass_on(signal: i32, info: *mut libc::siginfo_t, context: *mut c_void) {
    let chained = CHAINED.load(Acquire);
    if chained > 1 {
        // SAFETY: glibc installed it with SA_SIGINFO; 0 and 1 are SIG_DFL and SIG_IGN.
        unsafe {
            let function: unsafe extern "C" fn(i32, *mut libc::siginfo_t, *mut c_void) = core::mem::transmute(chained);
            function(signal, info, context);
        }
    }
}

/// Sends a thread of this process the signal that [`handler`] knows as ours.
fn send(pid: u32, tid: u32) -> Result<usize, raw::Errno> {
    const RT_TGSIGQUEUEINFO: usize = 297;
    /// `siginfo_t` as the kernel reads it. Source: Linux `include/uapi/asm-generic/siginfo.h`.
    #[repr(C)]
    struct QueuedSignal {
        signal: i32,
        errno: i32,
        code: i32,
        _gap: i32,
        pid: u32,
        uid: u32,
        value: usize,
        _rest: [u64; 12],
    }
    const _: () = assert!(size_of::<QueuedSignal>() == 128);
    let value = HOLD.as_ptr().addr();
    let info =
        QueuedSignal { signal: SIGNAL, errno: 0, code: libc::SI_QUEUE, _gap: 0, pid, uid: 0, value, _rest: [0; 12] };
    // SAFETY: sends a signal that we handle; the kernel reads `info`.
    unsafe { call!(RT_TGSIGQUEUEINFO, pid, tid, SIGNAL, &raw const info) }
}

/// Stores this thread's registers and waits until the hold ends. Does nothing when this thread is not asked to any more.
///
/// # Safety
/// `context` is that of the running handler.
unsafe fn hold_still(context: *const libc::ucontext_t) {
    const FUTEX_WAIT_PRIVATE: usize = 128;
    let tid = raw::gettid();
    let used = (USED.load(Acquire) as usize).min(MOST);
    let Some(slot) = SLOTS[..used].iter().find(|slot| slot.tid.load(Relaxed) == tid) else { return };
    if HOLD.load(Acquire) != 1 || slot.state.compare_exchange(WAITING, STOPPING, AcqRel, Relaxed).is_err() {
        return;
    }
    // SAFETY: this thread owns the slot until it sets STOPPED.
    unsafe {
        let mut registers = RegisterFile::of_signal(context);
        // A leaf function may keep values in the 128 bytes below its stack pointer.
        registers.rsp = registers.rsp.wrapping_sub(128);
        *slot.registers.get() = registers;
    }
    slot.state.store(STOPPED, Release);
    while HOLD.load(Acquire) == 1 {
        // SAFETY: waits on our own word.
        let _ = unsafe { call!(nr::FUTEX, HOLD.as_ptr(), FUTEX_WAIT_PRIVATE, 1, 0) };
    }
}

/// How stopping went.
#[derive(Clone, Copy, Default, Debug)]
pub struct Stopped {
    /// Threads other than the caller whose registers are known.
    pub seen: u32,
    /// Threads that could not be stopped.
    pub unseen: u32,
}

/// Stops all other threads. `program_goes_on` spares threads in system calls that must not be interrupted.
pub fn stop_others(program_goes_on: bool) -> Stopped {
    let (pid, me) = (raw::getpid(), raw::gettid());
    stay_installed();
    USED.store(0, Release);
    HOLD.store(1, Release);
    let mut result = Stopped::default();
    let mut used = 0usize;
    // A thread that is being made while we look is found by a second look; three are ample for sane programs.
    for _ in 0..8 {
        let before = used;
        for_each_task(|tid| {
            if tid == me || SLOTS[..used].iter().any(|slot| slot.tid.load(Relaxed) == tid) {
                return;
            }
            let Some(slot) = SLOTS.get(used) else {
                result.unseen += 1;
                return;
            };
            slot.tid.store(tid, Relaxed);
            slot.state.store(WAITING, Release);
            used += 1;
            USED.store(used as u32, Release);
            if program_goes_on && let Some(registers) = asleep(tid, true) {
                // SAFETY: the thread gets no signal, so nobody else writes to its slot.
                unsafe { *slot.registers.get() = registers };
                slot.state.store(KNOWN_FROM_PROC, Release);
                return;
            }
            if send(pid, tid).is_err() {
                slot.state.store(0, Release);
            }
        });
        wait_for(&SLOTS[before..used]);
        if used == before {
            break;
        }
    }
    for slot in &SLOTS[..used] {
        while slot.state.load(Acquire) == STOPPING {
            raw::sleep_ns(20_000);
        }
        match slot.state.load(Acquire) {
            STOPPED | KNOWN_FROM_PROC => result.seen += 1,
            WAITING => match asleep(slot.tid.load(Relaxed), false) {
                Some(registers) if slot.state.compare_exchange(WAITING, KNOWN_FROM_PROC, AcqRel, Relaxed).is_ok() => {
                    // SAFETY: the handler leaves the slot alone once it is not WAITING.
                    unsafe { *slot.registers.get() = registers };
                    result.seen += 1;
                }
                _ => result.unseen += 1,
            },
            _ => {}
        }
    }
    result
}

fn wait_for(slots: &[Slot]) {
    let deadline = raw::clock_ns(1) + PATIENCE_NS;
    let mut turns = 0u32;
    while slots.iter().any(|slot| slot.state.load(Acquire) == WAITING) && raw::clock_ns(1) < deadline {
        turns += 1;
        raw::sleep_ns(if turns < 50 { 20_000 } else { 500_000 });
    }
}

/// Lets the threads go on.
pub fn resume() {
    const FUTEX_WAKE_PRIVATE: usize = 129;
    HOLD.store(0, Release);
    // SAFETY: wakes waiters on our own word.
    let _ = unsafe { call!(nr::FUTEX, HOLD.as_ptr(), FUTEX_WAKE_PRIVATE, i32::MAX) };
}

/// Calls `each` with the registers of every other thread that was stopped or is known from `/proc`.
pub fn for_each_stopped(mut each: impl FnMut(&RegisterFile)) {
    for slot in &SLOTS[..(USED.load(Acquire) as usize).min(MOST)] {
        if matches!(slot.state.load(Acquire), STOPPED | KNOWN_FROM_PROC) {
            // SAFETY: the owner has finished writing.
            each(unsafe { &*slot.registers.get() });
        }
    }
}

/// System calls that return EINTR after a handler although it was installed with SA_RESTART (signal(7)).
const NEVER_RESTARTED: [u64; 19] =
    [7, 23, 34, 35, 65, 69, 70, 128, 130, 202, 208, 219, 220, 230, 232, 270, 271, 281, 441];

/// Stack pointer and arguments of a thread that sleeps in a system call, from `/proc`; with `only_fragile`, only when
/// the call must not be interrupted. The registers that calls preserve are not known.
fn asleep(tid: u32, only_fragile: bool) -> Option<RegisterFile> {
    let mut path = [0u8; 48];
    let path = path_of(&mut path, tid)?;
    let fd = raw::open_read(path).ok()?;
    let mut found = None;
    proc_maps::for_each_line(fd, |line| {
        let mut words = [0u64; 9];
        let mut count = 0;
        for field in line.split(|&byte| byte == b' ') {
            let Ok(text) = core::str::from_utf8(field) else { return };
            let value = match text.strip_prefix("0x") {
                Some(digits) => u64::from_str_radix(digits, 16).ok(),
                None => text.parse().ok(),
            };
            let (Some(value), Some(word)) = (value, words.get_mut(count)) else { return };
            *word = value;
            count += 1;
        }
        let [number, arguments @ .., rsp, _pc] = words;
        if count == 9 && (!only_fragile || NEVER_RESTARTED.contains(&number)) {
            let mut registers = RegisterFile { rsp, ..RegisterFile::default() };
            for (word, argument) in registers.words.iter_mut().zip(arguments) {
                *word = argument;
            }
            found = Some(registers);
        }
    });
    raw::close(fd);
    found
}

fn path_of(buffer: &mut [u8; 48], tid: u32) -> Option<&core::ffi::CStr> {
    let mut digits = [0u8; 10];
    let mut at = digits.len();
    let mut rest = tid;
    loop {
        at -= 1;
        *digits.get_mut(at)? = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    let mut length = 0;
    for part in [b"/proc/self/task/".as_slice(), digits.get(at..)?, b"/syscall\0"] {
        buffer.get_mut(length..length + part.len())?.copy_from_slice(part);
        length += part.len();
    }
    core::ffi::CStr::from_bytes_with_nul(buffer.get(..length)?).ok()
}

/// Calls `each` with the id of every thread of this process.
fn for_each_task(mut each: impl FnMut(u32)) {
    let Ok(fd) = raw::open_read(c"/proc/self/task") else { return };
    let mut buffer = [0u64; 512];
    loop {
        // SAFETY: the kernel writes at most the buffer's bytes.
        let got = unsafe { call!(nr::GETDENTS64, fd, buffer.as_mut_ptr(), size_of_val(&buffer)) }.unwrap_or(0);
        if got == 0 {
            break;
        }
        // SAFETY: u64s seen as bytes.
        let bytes = unsafe { core::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), got.min(size_of_val(&buffer))) };
        let mut at = 0;
        // struct linux_dirent64: inode 8, offset 8, record length 2, type 1, name.
        while let Some(entry) = bytes.get(at..)
            && let Some(&[low, high]) = entry.get(16..18).and_then(|two| two.first_chunk())
        {
            let length = usize::from(u16::from_le_bytes([low, high]));
            if length < 20 {
                break;
            }
            let name = entry.get(19..length).unwrap_or(&[]);
            let name = name.split(|&byte| byte == 0).next().unwrap_or(&[]);
            if let Some(tid) = core::str::from_utf8(name).ok().and_then(|name| name.parse().ok()) {
                each(tid);
            }
            at += length;
        }
    }
    raw::close(fd);
}
