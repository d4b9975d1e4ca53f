//! Threads for the check in a copy of the process: made without libc, which does not know of them.
//!
//! They share the thread-local storage of the thread that makes them, so they run nothing but the mark phase and
//! [`super::populate`], which use none. The copy has no other threads and ends soon.

use crate::memory::map_slice;
use crate::raw::{self, call, nr};
use crate::roots::{OwnMemory, Survey};
use core::arch::asm;
use core::cell::Cell;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Release};
use leakscope_reach::Crew;

/// Most workers: the mark phase waits for memory, and a few do that as well as many.
const MOST_WORKERS: usize = 4;
/// Fewer blocks are marked before a thread has started.
const BLOCKS_WORTH_IT: usize = 1 << 16;
const STACK_BYTES: usize = 256 << 10;

const WAITING: u32 = 0;
const RUNNING: u32 = 1;
const DONE: u32 = 2;
const NOT_WANTED: u32 = 3;

/// The workers of one mark phase.
pub struct Threads<'s> {
    /// What the first worker reads with.
    first: Cell<Option<OwnMemory<'s>>>,
    survey: &'s Survey,
    workers: usize,
}

impl<'s> Threads<'s> {
    /// As many workers as pay off for so many blocks. Only one where other threads of the program stand still in the
    /// same memory: `is_copy` tells.
    pub fn new(first: OwnMemory<'s>, survey: &'s Survey, blocks: usize, is_copy: bool) -> Self {
        let workers = if is_copy && is_worth_a_thread(blocks) { processors().clamp(1, MOST_WORKERS) } else { 1 };
        Self { first: Cell::new(Some(first)), survey, workers }
    }
}

/// Whether a heap of so many blocks takes longer than a thread takes to start.
pub(super) fn is_worth_a_thread(blocks: usize) -> bool {
    blocks >= BLOCKS_WORTH_IT
}

/// Processors that this thread may run on.
pub(super) fn processors() -> usize {
    const SCHED_GETAFFINITY: usize = 204;
    let mut set = [0u64; 128];
    // SAFETY: the kernel writes at most the given bytes to `set`.
    match unsafe { call!(SCHED_GETAFFINITY, 0, size_of_val(&set), set.as_mut_ptr()) } {
        Ok(_) => set.iter().map(|word| word.count_ones() as usize).sum(),
        Err(_) => 1,
    }
}

/// What a new thread gets. It lies in that thread's stack, which stays: a thread that was called off may come late.
struct Start<'t, 's> {
    state: AtomicU32,
    number: usize,
    survey: &'s Survey,
    task: &'t (dyn Fn(usize, &mut OwnMemory<'s>) + Sync + 't),
}

impl<'s> Crew for Threads<'s> {
    type Memory = OwnMemory<'s>;

    fn workers(&self) -> usize {
        self.workers
    }

    fn run(&self, task: &(dyn Fn(usize, &mut OwnMemory<'s>) + Sync)) {
        let Some(mut first) = self.first.take() else { return };
        let mut starts = [const { None }; MOST_WORKERS];
        for (number, slot) in starts.iter_mut().enumerate().take(self.workers).skip(1) {
            let start = Start { state: AtomicU32::new(WAITING), number, survey: self.survey, task };
            // SAFETY: below, each thread has either ended its task or been called off before `task` goes.
            *slot = unsafe { new_thread(start, begin) };
        }
        task(0, &mut first);
        self.first.set(Some(first));
        for start in starts.into_iter().flatten() {
            let late = start.state.compare_exchange(WAITING, NOT_WANTED, AcqRel, Acquire);
            while late == Err(RUNNING) && start.state.load(Acquire) != DONE {
                raw::sleep_ns(10_000);
            }
        }
    }

    fn rest() {
        raw::sleep_ns(10_000);
    }
}

extern "C" fn begin(start: *const Start<'_, '_>) -> ! {
    // SAFETY: it lies in this thread's stack.
    let start = unsafe { &*start };
    // What it refers to is only there when nobody has called the thread off.
    if start.state.compare_exchange(WAITING, RUNNING, AcqRel, Acquire).is_ok() {
        if let Some(mut memory) = OwnMemory::new(start.survey) {
            (start.task)(start.number, &mut memory);
        }
        start.state.store(DONE, Release);
    }
    end()
}

/// Ends the calling thread only.
pub(super) fn end() -> ! {
    loop {
        // SAFETY: no memory of the thread is given back.
        let _ = unsafe { call!(nr::EXIT, 0) };
    }
}

/// Makes a thread that calls `begin` with what it gets, which lies in its stack from then on. `None` when that fails.
///
/// # Safety
/// What `value` refers to is valid for as long as `begin` uses it.
pub(super) unsafe fn new_thread<'t, T>(value: T, begin: extern "C" fn(*const T) -> !) -> Option<&'t T> {
    // CLONE_VM, FS, FILES, SIGHAND, THREAD, SYSVSEM: a thread like any other, with no identity in libc.
    const FLAGS: usize = 0x100 | 0x200 | 0x400 | 0x800 | 0x1_0000 | 0x4_0000;
    const { assert!(size_of::<T>() <= STACK_BYTES / 4 && align_of::<T>() <= 4096) };
    // SAFETY: integers.
    let stack = unsafe { map_slice::<u64>(STACK_BYTES / 8, false) }?;
    let place = stack.as_mut_ptr().cast::<T>();
    // SAFETY: the mapping is fresh, page-aligned, large enough, and never unmapped.
    unsafe { place.write(value) };
    let [.., function, argument] = stack else { return None };
    *argument = place as u64;
    *function = begin as usize as u64;
    let top: *mut u64 = function;
    let result: isize;
    // SAFETY: the new thread starts on a stack of its own, takes function and argument from it, which leaves it aligned
    // as a call demands, and never comes back here.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "pop rax",
            "pop rdi",
            "call rax",
            "ud2",
            "2:",
            inlateout("rax") nr::CLONE as isize => result,
            in("rdi") FLAGS, in("rsi") top, in("rdx") 0, in("r10") 0, in("r8") 0,
            lateout("rcx") _, lateout("r11") _,
        );
    }
    // SAFETY: written above, and only shared from here on.
    (result > 0).then(|| unsafe { &*place })
}
