//! The stack for locals that are to be seen after their function has returned.
//!
//! Instrumented functions ask for a frame of a class (64 bytes shifted by 0 to 10) and give it back at their end; a
//! frame is used again as late as possible. Functions that end by longjmp or an exception do not give back: frames
//! whose real stack pointer lies below the caller's are collected.
//!
//! Source: the ABI of `__asan_stack_malloc_N`: the last word of a frame holds the address of its flag, which
//! instrumented code itself clears; a frame begins with a magic number, the description of its variables and the
//! function's address.

use crate::options::options;
use crate::shadow_map::{self, why};
use crate::thread::{self, Thread};
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32};
use leakscope_rt::memory::map_aligned;

/// How many classes there are.
pub const CLASSES: usize = 11;
const SMALLEST_LOG2: usize = 6;
/// First word of a frame that was given back.
const RETIRED: usize = 0x45E0_360E;

/// The head of a frame.
#[repr(C)]
struct Frame {
    magic: usize,
    description: usize,
    pc: usize,
    real_stack: usize,
}

/// Where a class has its frames, and which is next.
#[repr(C)]
struct Class {
    /// The next frame's number, to be cut by `mask`.
    next: AtomicU32,
    /// One less than the frames that take turns, a power of two.
    mask: AtomicU32,
    flags: usize,
    frames: usize,
}

/// A thread's fake stack: this head, then a flag for each frame, then the frames, class by class.
#[repr(C)]
pub struct FakeStack {
    classes: [Class; CLASSES],
    stack_log2: u32,
    bytes: usize,
    wants_collection: AtomicBool,
}

const HEAD_BYTES: usize = 4096;
/// So many bytes of frames take turns, as long as they are enough: more than the second cache holds would make every
/// call a miss. With 64 frames at least, what a function left stays to be seen for a while.
const TURNS_BYTES_LOG2: usize = 17;
const TURNS_FRAMES_LOG2: usize = 6;

/// What `__asan_option_detect_stack_use_after_return` tells instrumented code.
pub static IS_ON: AtomicU8 = AtomicU8::new(0);

impl FakeStack {
    fn flags_bytes(stack_log2: u32) -> usize {
        // Class c has 2^(log - 6 - c) frames; together less than twice the first class's.
        (1usize << (stack_log2 as usize + 1 - SMALLEST_LOG2)).next_multiple_of(4096)
    }

    /// Makes one for a stack of that size; null when there is no memory.
    fn create(stack_bytes: usize) -> *mut Self {
        let (least, most) = (options().min_uar_stack_size_log as u32, options().max_uar_stack_size_log as u32);
        let log = stack_bytes.next_power_of_two().trailing_zeros().clamp(least, most.max(least)).clamp(16, 24);
        let bytes = HEAD_BYTES + Self::flags_bytes(log) + (CLASSES << log);
        let Ok(start) = map_aligned(bytes, 4096) else { return core::ptr::null_mut() };
        let fake = start.cast::<Self>();
        // SAFETY: a fresh mapping, zeroed; a head fits.
        unsafe {
            (*fake).stack_log2 = log;
            (*fake).bytes = bytes;
            let mut flags = fake as usize + HEAD_BYTES;
            let mut frames = flags + Self::flags_bytes(log);
            for number in 0..CLASSES {
                let turns_log2 = TURNS_BYTES_LOG2.saturating_sub(SMALLEST_LOG2 + number).max(TURNS_FRAMES_LOG2);
                let frames_log2 = (*fake).frames_log2(number);
                if let Some(class) = (*fake).classes.get_mut(number) {
                    class.mask = AtomicU32::new((1 << turns_log2.min(frames_log2)) - 1);
                    (class.flags, class.frames) = (flags, frames);
                }
                flags += 1 << frames_log2;
                frames += 1 << log;
            }
        }
        fake
    }

    /// Gives back a fake stack.
    ///
    /// # Safety
    /// Its thread has ended.
    pub unsafe fn destroy(fake: *mut Self) {
        // SAFETY: the mapping that `create` made.
        unsafe {
            let bytes = (*fake).bytes;
            shadow_map::fill(fake as usize, bytes, 0);
            leakscope_rt::memory::unmap_slice(core::slice::from_raw_parts_mut(fake.cast::<u8>(), bytes));
        }
    }

    fn base(&self) -> usize {
        core::ptr::from_ref(self) as usize
    }

    fn frames_log2(&self, class: usize) -> usize {
        self.stack_log2 as usize - SMALLEST_LOG2 - class
    }

    fn frames_of(&self, class: usize) -> usize {
        1 << self.frames_log2(class)
    }

    fn frames(&self, class: usize) -> usize {
        self.classes.get(class).map_or(0, |class| class.frames)
    }

    fn flag(&self, class: usize, index: usize) -> &AtomicU8 {
        let flags = self.classes.get(class).map_or(self.base() + HEAD_BYTES, |class| class.flags);
        // SAFETY: within the mapping: one flag for each frame.
        unsafe { &*((flags + index) as *const AtomicU8) }
    }

    /// A frame of a class; 0 when none is free.
    #[inline(always)]
    fn take(&self, number: usize, real_stack: usize) -> usize {
        if self.wants_collection.load(Relaxed) {
            self.collect(real_stack);
        }
        let Some(class) = self.classes.get(number) else { return 0 };
        let (next, mask) = (class.next.load(Relaxed), class.mask.load(Relaxed));
        let index = (next & mask) as usize;
        // SAFETY: within the mapping: one flag for each frame.
        let flag = unsafe { &*((class.flags + index) as *const AtomicU8) };
        if flag.load(Relaxed) != 0 {
            return self.take_another(number, real_stack);
        }
        class.next.store(next.wrapping_add(1), Relaxed);
        Self::hand_out(flag, class.frames + (index << (SMALLEST_LOG2 + number)), number, real_stack)
    }

    /// The frame whose turn it is is in use still: the next free one; if all are in use, as many again join them.
    #[cold]
    #[inline(never)]
    fn take_another(&self, number: usize, real_stack: usize) -> usize {
        let Some(class) = self.classes.get(number) else { return 0 };
        let (next, mask) = (class.next.load(Relaxed), class.mask.load(Relaxed));
        let free = (1..=mask).map(|step| next.wrapping_add(step)).find(|at| {
            let index = (at & mask) as usize;
            self.flag(number, index).load(Relaxed) == 0
        });
        match free {
            Some(at) => class.next.store(at, Relaxed),
            None if (mask as usize + 1) < self.frames_of(number) => {
                class.mask.store(mask * 2 + 1, Relaxed);
                class.next.store(mask + 1, Relaxed);
            }
            None => return 0,
        }
        self.take(number, real_stack)
    }

    #[inline(always)]
    fn hand_out(flag: &AtomicU8, frame: usize, class: usize, real_stack: usize) -> usize {
        flag.store(1, Relaxed);
        // SAFETY: within the mapping, free, and the calling thread's.
        unsafe {
            (*(frame as *mut Frame)).real_stack = real_stack;
            *((frame + (64 << class) - 8) as *mut usize) = core::ptr::from_ref(flag) as usize;
        }
        frame
    }

    /// Takes back frames of functions that ended without saying so.
    #[cold]
    #[inline(never)]
    fn collect(&self, real_stack: usize) {
        let thread = thread::current();
        // SAFETY: the calling thread's record, as `allocate` saw it.
        let (low, high) = unsafe { ((*thread).stack_low.load(Relaxed), (*thread).stack_high.load(Relaxed)) };
        if !(low..high).contains(&real_stack) {
            // On a signal stack: it says nothing of the frames on the thread's own.
            return;
        }
        self.wants_collection.store(false, Relaxed);
        for class in 0..CLASSES {
            for index in 0..self.frames_of(class) {
                let flag = self.flag(class, index);
                if flag.load(Relaxed) == 0 {
                    continue;
                }
                let frame = self.frames(class) + (index << (SMALLEST_LOG2 + class));
                // SAFETY: a frame in use has a head.
                if unsafe { (*(frame as *const Frame)).real_stack } < real_stack {
                    flag.store(0, Relaxed);
                }
            }
        }
    }

    /// Bounds of the frame that holds an address.
    #[must_use]
    pub fn frame_at(&self, address: usize) -> Option<(usize, usize)> {
        let first = self.frames(0);
        let class = address.checked_sub(first)? >> self.stack_log2;
        if class >= CLASSES {
            return None;
        }
        let start = self.frames(class);
        let bytes = 64usize << class;
        let frame = start + (address - start) / bytes * bytes;
        Some((frame, frame + bytes))
    }

    /// The real stack pointer of the function whose frame starts at `frame`.
    #[must_use]
    pub fn real_stack_of(frame: usize) -> usize {
        // SAFETY: the caller got the frame from `frame_at`.
        unsafe { (*(frame as *const Frame)).real_stack }
    }

    /// Bounds of all frames: what lies in them counts as the thread's stack.
    #[must_use]
    pub fn bounds(&self) -> (usize, usize) {
        (self.frames(0), self.base() + self.bytes)
    }

    /// Calls `each` for the bounds of every frame in use.
    pub fn for_each_used(&self, mut each: impl FnMut(usize, usize)) {
        for class in 0..CLASSES {
            for index in 0..self.frames_of(class) {
                if self.flag(class, index).load(Relaxed) != 0 {
                    let frame = self.frames(class) + (index << (SMALLEST_LOG2 + class));
                    each(frame, frame + (64 << class));
                }
            }
        }
    }
}

/// A frame for a function that runs at `real_stack`; 0 when the function is to use its real stack.
#[inline(always)]
pub fn allocate(class: usize, real_stack: usize) -> usize {
    let thread = thread::current();
    if thread.is_null() {
        return 0;
    }
    // SAFETY: the calling thread's record.
    let thread = unsafe { &*thread };
    let mut fake = thread.fake_stack.load(Relaxed);
    if fake as usize <= BUSY {
        fake = make(thread, fake as usize);
        if fake.is_null() {
            return 0;
        }
    }
    // SAFETY: the thread's own fake stack.
    let frame = unsafe { (*fake).take(class, real_stack) };
    if frame != 0 {
        // SAFETY: a frame of ours. The function poisons its redzones itself.
        unsafe { shadow_map::fill(frame, 64 << class, 0) };
    }
    frame
}

/// In place of a fake stack while it is made, or while a fiber without one runs.
const BUSY: usize = 1;

#[cold]
#[inline(never)]
fn make(thread: &Thread, now: usize) -> *mut FakeStack {
    if now == BUSY {
        return core::ptr::null_mut();
    }
    let bytes = thread.stack_high.load(Relaxed).saturating_sub(thread.stack_low.load(Relaxed));
    if bytes == 0 {
        return core::ptr::null_mut();
    }
    let fake = FakeStack::create(bytes);
    if options().verbosity > 0 && !fake.is_null() {
        // SAFETY: made just now.
        let (end, log, size) = unsafe { (fake as usize + (*fake).bytes, (*fake).stack_log2, (*fake).bytes) };
        crate::out!(
            "T{}: FakeStack created: {:p} -- 0x{end:x} stack_size_log: {log}; mmapped {}K, noreserve=0 \n",
            thread::current_number(),
            fake,
            size >> 10
        );
    }
    thread.fake_stack.store(fake, Relaxed);
    fake
}

/// A frame goes back.
#[inline(always)]
pub fn release(class: usize, frame: usize) {
    // SAFETY: instrumented code gives back what it got: a frame with its flag's address in the last word.
    unsafe {
        let flag = *((frame + (64 << class) - 8) as *const usize) as *const AtomicU8;
        (*flag).store(0, Relaxed);
        (*(frame as *mut Frame)).magic = RETIRED;
        shadow_map::fill(frame, 64 << class, why::STACK_AFTER_RETURN);
    }
}

/// The calling thread jumps out of functions: their frames are to be collected.
pub fn note_jump() {
    let thread = thread::current();
    if thread.is_null() {
        return;
    }
    // SAFETY: the calling thread's record and fake stack.
    unsafe {
        let fake = (*thread).fake_stack.load(Acquire);
        if fake as usize > BUSY {
            (*fake).wants_collection.store(true, Relaxed);
        }
    }
}

/// Takes the calling thread's fake stack away, for a switch of fibers; what `restore` is given later.
pub fn detach(thread: &Thread) -> usize {
    thread.fake_stack.swap(core::ptr::null_mut(), AcqRel) as usize
}
