//! Who called a hook: stacks by `leakscope_rt`'s unwinder, numbered by the depot.

use crate::depot;
use crate::options::options;
use crate::thread;
use alloc::vec::Vec;
use core::arch::naked_asm;
use leakscope_rt::registers::{Preserved, preserved_registers};
use leakscope_rt::unwind::{MAX_FRAMES, Registers, Unwinder, Walked};

/// The process's unwinder.
pub static UNWINDER: Unwinder = Unwinder::new();

/// A call of one of our exported functions.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// The exported function that was called, which reports name first; 0 when it is not to be shown.
    pub hook: usize,
    /// Stack pointer at its entry, where the return address is; 0 if it was not kept: then the walk starts here.
    pub rsp: usize,
    /// Frame pointer register at its entry.
    pub rbp: usize,
}

/// What [`Caller::prepare`] found.
#[derive(Clone, Copy)]
pub struct Prepared(Option<core::num::NonZeroU64>);

impl Caller {
    /// A caller whose registers were not kept: its stack is found by walking through our own frames.
    #[must_use]
    pub const fn of_hook(hook: usize) -> Self {
        Self { hook, rsp: 0, rbp: 0 }
    }

    /// The return address: where the hook was called.
    #[must_use]
    pub fn pc(&self) -> usize {
        if self.rsp != 0 {
            // SAFETY: at entry the stack pointer points at the return address.
            return unsafe { *(self.rsp as *const usize) };
        }
        self.frames(2).get(usize::from(self.hook != 0)).map_or(0, |&pc| pc as usize)
    }

    /// Frame pointer and stack pointer, for the first line of a report.
    #[must_use]
    pub fn bp_sp(&self) -> (usize, usize) {
        if self.rsp != 0 {
            return (self.rbp, self.rsp);
        }
        let mut preserved = Preserved::default();
        // SAFETY: `preserved` is ours.
        unsafe { preserved_registers(&raw mut preserved) };
        (preserved.words[1] as usize, preserved.rsp as usize)
    }

    /// Begins to look for the number of this stack: what [`Caller::stack_of`] needs is on its way into the cache
    /// while other work is done.
    #[inline(always)]
    #[must_use]
    pub fn prepare(&self) -> Prepared {
        let thread = thread::current();
        if self.rsp == 0 || thread.is_null() {
            return Prepared(None);
        }
        let registers = Registers { rsp: self.rsp as u64, rbp: self.rbp as u64 };
        // SAFETY: the calling thread's own record; its caller is suspended in the hook.
        let signature = unsafe { UNWINDER.signature(&raw const (*thread).unwind, registers) };
        if let Some(signature) = signature {
            depot::prefetch(signature, self.hook as u64);
        }
        Prepared(signature)
    }

    /// The number of the stack that [`Caller::prepare`] began with.
    #[inline(always)]
    #[must_use]
    pub fn stack_of(&self, prepared: Prepared) -> u32 {
        match prepared.0.and_then(|signature| depot::recall(signature, self.hook as u64)) {
            Some(stack) => stack,
            None => self.stack(),
        }
    }

    /// The number of this stack, as deep as `malloc_context_size` says. Quick when the stack was seen before.
    #[inline(always)]
    #[must_use]
    pub fn stack(&self) -> u32 {
        let thread = thread::current();
        if self.rsp == 0 || thread.is_null() {
            return self.stack_slowly();
        }
        let registers = Registers { rsp: self.rsp as u64, rbp: self.rbp as u64 };
        // SAFETY: the calling thread's own record; its caller is suspended in the hook.
        let known = unsafe {
            UNWINDER
                .recall(&raw const (*thread).unwind, registers, |signature| depot::recall(signature, self.hook as u64))
        };
        match known {
            Some(stack) => stack,
            None => self.stack_slowly(),
        }
    }

    #[cold]
    #[inline(never)]
    fn stack_slowly(&self) -> u32 {
        let depth = options().malloc_context_size.clamp(0, depot::MOST_FRAMES as i64) as usize;
        let mut frames = [0u64; MAX_FRAMES + 1];
        let (count, signature) = self.walk(&mut frames);
        let stack = depot::intern(frames.get(..count.min(depth.max(1))).unwrap_or(&[]));
        if let Some(signature) = signature.filter(|_| stack != 0) {
            depot::remember(signature, self.hook as u64, stack);
        }
        stack
    }

    /// At most `most` frames, leaf first.
    #[must_use]
    pub fn frames(&self, most: usize) -> Vec<u64> {
        let mut frames = [0u64; MAX_FRAMES + 1];
        let (count, _) = self.walk(&mut frames);
        frames.get(..count.min(most)).unwrap_or(&[]).to_vec()
    }

    fn walk(&self, out: &mut [u64; MAX_FRAMES + 1]) -> (usize, Option<core::num::NonZeroU64>) {
        let mut walked = Walking { frames: [0; MAX_FRAMES], count: 0, signature: None };
        let thread = thread::current();
        if thread.is_null() {
            return (0, None);
        }
        let is_inside = self.rsp == 0;
        if is_inside {
            // SAFETY: the callback gets what it expects, and its caller is suspended meanwhile.
            unsafe { call_with_registers(walk_from_here, (&raw mut walked).cast()) };
        } else {
            let registers = Registers { rsp: self.rsp as u64, rbp: self.rbp as u64 };
            // SAFETY: the calling thread's record; the hook's caller is suspended in it.
            unsafe { UNWINDER.walk(&raw const (*thread).unwind, registers, |found| walked.take(found)) };
        }
        let found = walked.frames.get(..walked.count).unwrap_or(&[]);
        let skipped = if is_inside {
            found.iter().take_while(|&&pc| crate::modules::is_own_code(pc as usize)).count()
        } else {
            0
        };
        let mut count = 0;
        if self.hook != 0 {
            out[0] = self.hook as u64 + 1;
            count = 1;
        }
        for &pc in found.iter().skip(skipped) {
            if let Some(slot) = out.get_mut(count) {
                *slot = pc;
                count += 1;
            }
        }
        (count, walked.signature)
    }
}

struct Walking {
    frames: [u64; MAX_FRAMES],
    count: usize,
    signature: Option<core::num::NonZeroU64>,
}

impl Walking {
    fn take(&mut self, found: Walked<'_>) {
        self.count = found.frames.len();
        if let Some(frames) = self.frames.get_mut(..self.count) {
            frames.copy_from_slice(found.frames);
        }
        self.signature = found.signature;
    }
}

unsafe extern "C" fn walk_from_here(out: *mut u8, rsp: u64, rbp: u64) {
    let thread = thread::current();
    // SAFETY: `walk` passes its `Walking`, and is suspended; the calling thread has a record.
    unsafe {
        let out = &mut *out.cast::<Walking>();
        let registers = Registers { rsp, rbp };
        UNWINDER.walk_afresh(&raw const (*thread).unwind, registers, |found| out.take(found));
    }
}

/// Calls `function(data, rsp, rbp)` with the caller's registers as they are at this call.
///
/// # Safety
/// `function` is sound with `data`.
#[unsafe(naked)]
unsafe extern "C" fn call_with_registers(function: unsafe extern "C" fn(*mut u8, u64, u64), data: *mut u8) {
    naked_asm!(
        ".cfi_startproc",
        "mov rax, rdi",
        "mov rdi, rsi",
        "mov rsi, rsp",
        "mov rdx, rbp",
        "sub rsp, 8",
        ".cfi_adjust_cfa_offset 8",
        "call rax",
        "add rsp, 8",
        ".cfi_adjust_cfa_offset -8",
        "ret",
        ".cfi_endproc",
    )
}

/// The stack that a signal interrupted: first its pc, then the callers. `context` is what the handler got.
///
/// # Safety
/// Called in the handler of that signal.
#[must_use]
pub unsafe fn interrupted(context: *const libc::ucontext_t) -> Vec<u64> {
    // SAFETY: the caller's.
    let general = unsafe { &(*context).uc_mcontext.gregs };
    let (pc, sp, bp) = (
        general[libc::REG_RIP as usize] as u64,
        general[libc::REG_RSP as usize] as u64,
        general[libc::REG_RBP as usize] as u64,
    );
    let mut all = Caller::of_hook(0).frames(MAX_FRAMES);
    if let Some(at) = all.iter().position(|&frame| frame == pc.wrapping_add(1)) {
        all.drain(..at);
    } else {
        all.clear();
        all.push(pc.wrapping_add(1));
    }
    if all.len() == 1 {
        // No rules for the pc (a wild jump, an unmapped page): what lies on top of the stack is where it came from.
        follow_frame_pointers(&mut all, sp, bp);
    }
    all
}

fn follow_frame_pointers(frames: &mut Vec<u64>, sp: u64, mut bp: u64) {
    let is_code = |pc: u64| crate::modules::find(pc.wrapping_sub(1) as usize).is_some();
    if let Some(top) = crate::sys::peek_word(sp as usize).filter(|&pc| is_code(pc)) {
        frames.push(top);
    }
    let mut low = sp;
    while frames.len() < 64 && bp & 7 == 0 && bp > low {
        let (Some(next), Some(pc)) = (crate::sys::peek_word(bp as usize), crate::sys::peek_word(bp as usize + 8))
        else {
            break;
        };
        if !is_code(pc) {
            break;
        }
        frames.push(pc);
        (low, bp) = (bp, next);
    }
}
