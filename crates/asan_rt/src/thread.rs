//! Threads: what each has of its own, and what is remembered of each for reports.

use crate::fake_stack::FakeStack;
use crate::heap::{Cache, LocalQuarantine};
use crate::tls::{self, mark};
use alloc::boxed::Box;
use alloc::string::String;
use core::cell::UnsafeCell;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize};
use leakscope_rt::memory::{Lock, map_slice, unmap_slice};
use leakscope_rt::unwind::{StackRange, ThreadCache, stack_of};

/// Most threads that are remembered by number.
const MOST: usize = 1 << 18;

/// What is remembered of a thread, also after its end.
pub struct Context {
    /// 0 for the main thread.
    pub number: u32,
    /// Who created it.
    pub parent: u32,
    /// The stack of its creation.
    pub stack: u32,
    /// The kernel's number.
    pub kernel_id: AtomicU32,
    /// Whether it runs.
    pub alive: AtomicBool,
    /// Its record while it runs.
    pub thread: AtomicPtr<Thread>,
    /// What pthread_create was given, and what the thread returned, while nothing else may hold them: roots of the leak
    /// check.
    pub pending: [AtomicUsize; 2],
    /// pthread_t, until it is joined or detached; 0 otherwise.
    pub handle: AtomicUsize,
    /// What it was before that, and in its lowest bit whether the thread was detached.
    past_handle: AtomicUsize,
    name: Lock,
    name_text: UnsafeCell<String>,
}
// SAFETY: the name is only touched with its lock held.
unsafe impl Sync for Context {}

impl Context {
    /// The name that the program gave it.
    pub fn name(&self) -> String {
        let _held = self.name.lock();
        // SAFETY: the lock is held.
        unsafe { (*self.name_text.get()).clone() }
    }

    /// Names the thread.
    pub fn set_name(&self, name: &str) {
        let _held = self.name.lock();
        // SAFETY: the lock is held.
        unsafe { *self.name_text.get() = String::from(name) };
    }
}

static CONTEXTS: [AtomicPtr<Context>; MOST] = [const { AtomicPtr::new(core::ptr::null_mut()) }; MOST];
static COUNT: AtomicU32 = AtomicU32::new(0);

/// A running thread's own. All-zero bytes are a valid new one.
#[repr(C)]
pub struct Thread {
    /// What is remembered of it.
    pub context: *const Context,
    /// Lowest address of its stack.
    pub stack_low: AtomicUsize,
    /// One past the highest.
    pub stack_high: AtomicUsize,
    /// Its stack for use-after-return.
    pub fake_stack: AtomicPtr<FakeStack>,
    /// Stack pointer when the program's own code began; 0 when unknown. Above lies its thread-local storage.
    pub entry_sp: AtomicUsize,
    /// How often the leak check was switched off for it.
    pub leaks_off: AtomicUsize,
    /// Free blocks at hand.
    pub cache: UnsafeCell<Cache>,
    /// Released blocks.
    pub quarantine: UnsafeCell<LocalQuarantine>,
    /// The alternate signal stack that is ours: address and bytes.
    pub signal_stack: AtomicUsize,
    /// Bounds of the fiber's stack that is being switched to.
    pub next_stack: [AtomicUsize; 2],
    /// Whether a fiber switch is under way.
    pub is_switching: AtomicBool,
    /// How often the key's destructor has come round.
    pub destructor_rounds: AtomicU32,
    /// The global that is being initialised: which module's dynamic initialiser runs.
    pub errno_kept: AtomicU32,
    /// The unwinder's part.
    pub unwind: ThreadCache,
}
// SAFETY: what is not atomic belongs to the thread itself, or is read when it stands still.
unsafe impl Sync for Thread {}

impl Thread {
    /// Whether an address lies on the thread's stack (or the fiber's that it was said to run on), as far as that is known.
    #[inline(always)]
    pub fn is_on_own_stack(&self, address: usize) -> bool {
        let (low, high) = (self.stack_low.load(Relaxed), self.stack_high.load(Relaxed));
        address.wrapping_sub(low) < high.wrapping_sub(low) || high == 0
    }
}

/// The calling thread's record; null before it has one.
#[inline(always)]
#[must_use]
pub fn current() -> *mut Thread {
    tls::thread_word() as *mut Thread
}

/// The calling thread's number; `u32::MAX` without a record.
#[inline(always)]
#[must_use]
pub fn current_number() -> u32 {
    let thread = current();
    // SAFETY: the calling thread's record has a context for good.
    if thread.is_null() { NO_THREAD } else { unsafe { (*(*thread).context).number } }
}

/// The number in headers where no thread is known.
pub const NO_THREAD: u32 = 0x3_ffff;

/// The context with this number.
#[must_use]
pub fn context(number: u32) -> Option<&'static Context> {
    let context = CONTEXTS.get(number as usize)?.load(Acquire);
    // SAFETY: contexts are never freed.
    unsafe { context.as_ref() }
}

/// The thread that a handle stands for now, while somebody may wait for it. Handles are used again: to be asked before
/// libc is told that nobody will.
#[must_use]
pub fn find_handle(handle: usize) -> Option<&'static Context> {
    youngest_first().find(|context| context.handle.load(Acquire) == handle)
}

impl Context {
    /// Nobody waits for this thread's result any more: it was joined, or detached.
    pub fn forget_handle(&self, handle: usize, is_detached: bool) {
        self.past_handle.store(handle | usize::from(is_detached), Relaxed);
        if self.handle.compare_exchange(handle, 0, AcqRel, Relaxed).is_ok() {
            self.pending[1].store(0, Relaxed);
        }
    }
}

/// Why nobody may wait for the thread with this handle; `None` when somebody may, or nothing is known of it.
#[must_use]
pub fn why_not_to_be_joined(handle: usize) -> Option<&'static str> {
    // Whoever has the handle now may be older than who had it before: a thread gets its number before libc gives it a
    // stack. One whose handle is not known yet may be the one.
    let is_taken = youngest_first().any(|context| [handle, WAITED_FOR].contains(&context.handle.load(Acquire)));
    if is_taken {
        return None;
    }
    let past = youngest_first().map(|context| context.past_handle.load(Relaxed)).find(|past| past & !1 == handle)?;
    (past != 0).then_some(if past & 1 != 0 { "detached" } else { "already joined" })
}

/// In place of a handle that is not known yet.
pub const WAITED_FOR: usize = 1;

fn youngest_first() -> impl Iterator<Item = &'static Context> {
    (0..count()).rev().filter_map(context)
}

/// How many threads there were.
pub fn count() -> u32 {
    COUNT.load(Acquire).min(MOST as u32)
}

/// All threads that were ever seen.
pub fn all() -> impl Iterator<Item = &'static Context> {
    (0..count()).filter_map(context)
}

/// Remembers a new thread.
pub fn new_context(parent: u32, stack: u32) -> &'static Context {
    let number = COUNT.fetch_add(1, AcqRel);
    let context = Box::leak(Box::new(Context {
        number: number.min(MOST as u32 - 1),
        parent,
        stack,
        kernel_id: AtomicU32::new(0),
        alive: AtomicBool::new(true),
        thread: AtomicPtr::new(core::ptr::null_mut()),
        pending: [AtomicUsize::new(0), AtomicUsize::new(0)],
        handle: AtomicUsize::new(0),
        past_handle: AtomicUsize::new(0),
        name: Lock::new(),
        name_text: UnsafeCell::new(String::new()),
    }));
    if let Some(slot) = CONTEXTS.get(number as usize) {
        slot.store(context, Release);
    }
    context
}

/// Makes the calling thread's record. False when there is no memory.
pub fn begin(context: &'static Context, stack: StackRange) -> bool {
    // SAFETY: all-zero bytes are a valid `Thread`.
    let Some([thread]) = (unsafe { map_slice::<Thread>(1, false) }) else { return false };
    thread.context = context;
    thread.unwind.set_stack(stack);
    set_stack(thread, stack);
    context.kernel_id.store(crate::sys::gettid(), Relaxed);
    context.thread.store(thread, Release);
    tls::set_thread_word(&raw mut *thread as usize);
    true
}

/// Notes which stack a thread runs on.
pub fn set_stack(thread: &Thread, stack: StackRange) {
    thread.stack_low.store(stack.low as usize, Relaxed);
    thread.stack_high.store(stack.high as usize, Relaxed);
}

/// Makes a record for a thread that nobody announced (raw clone, or one that started before us).
#[cold]
pub fn adopt() -> bool {
    if tls::marks() & mark::ENDED != 0 {
        return false;
    }
    let here = 0u8;
    let stack = stack_of(&raw const here as u64).unwrap_or_default();
    let context = new_context(NO_THREAD, 0);
    begin(context, stack)
}

/// Ends the calling thread: gives back what it has. It gets no new record afterwards.
pub fn end() {
    let thread = current();
    if thread.is_null() {
        return;
    }
    tls::set_marks(tls::marks() | mark::ENDED);
    // SAFETY: the calling thread's record, which nobody uses after it was taken out of the context.
    unsafe {
        (*(*thread).context).alive.store(false, Release);
        (*(*thread).context).thread.store(core::ptr::null_mut(), Release);
        crate::heap::give_back(thread);
        let fake = (*thread).fake_stack.swap(core::ptr::null_mut(), AcqRel);
        if !fake.is_null() {
            FakeStack::destroy(fake);
        }
        clear_stack_shadow(&*thread);
        tls::set_thread_word(0);
        unmap_slice(core::slice::from_raw_parts_mut(thread, 1));
    }
}

/// Everything on the thread's stack may be used again by whoever gets the memory next.
pub fn clear_stack_shadow(thread: &Thread) {
    let (low, high) = (thread.stack_low.load(Relaxed), thread.stack_high.load(Relaxed));
    if low != 0 && high > low && crate::shadow_map::is_program(low) && high - low <= 1 << 32 {
        // SAFETY: a stack is program memory; its thread is at its end or at its start.
        unsafe { crate::shadow_map::fill(low & !7, (high - low) & !7, 0) };
    }
}

/// What an address is on a thread's stack.
#[derive(Clone, Copy)]
pub struct OnStack {
    /// Whose stack.
    pub context: &'static Context,
    /// The frame of the fake stack that holds the address, if it is one.
    pub fake_frame: Option<(usize, usize)>,
}

/// The thread on whose stack an address lies.
pub fn find_by_stack_address(address: usize) -> Option<OnStack> {
    all().find_map(|context| {
        // SAFETY: a record stays mapped while its thread runs; reports race only with ends of threads.
        let thread = unsafe { context.thread.load(Acquire).as_ref() }?;
        let (low, high) = (thread.stack_low.load(Relaxed), thread.stack_high.load(Relaxed));
        if (low..high).contains(&address) {
            return Some(OnStack { context, fake_frame: None });
        }
        // SAFETY: as above.
        let fake = unsafe { thread.fake_stack.load(Acquire).as_ref() }?;
        fake.frame_at(address).map(|frame| OnStack { context, fake_frame: Some(frame) })
    })
}

/// After a fork only the caller is left.
pub fn after_fork_in_child() {
    let thread = current();
    for context in all() {
        if !core::ptr::eq(context.thread.load(Relaxed), thread) {
            context.alive.store(false, Relaxed);
            context.thread.store(core::ptr::null_mut(), Relaxed);
        } else {
            context.kernel_id.store(crate::sys::gettid(), Relaxed);
        }
    }
}

/// A new thread's stack may be one that was used before: what lies below the stack pointer is as if never used.
pub fn clear_stack_shadow_below(thread: &Thread, sp: usize) {
    let (low, high) = (thread.stack_low.load(Relaxed), thread.stack_high.load(Relaxed));
    if low != 0 && (low..high).contains(&sp) && sp - low <= 1 << 32 {
        // SAFETY: the unused part of the calling thread's stack.
        unsafe { crate::shadow_map::fill(low & !7, (sp - low) & !7, 0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_is_whose_it_is_now() {
        let handle = 0x7f00_1234_5000;
        let (older, younger) = (new_context(0, 0), new_context(0, 0));
        assert_eq!(why_not_to_be_joined(handle), None);
        younger.handle.store(handle, Release);
        assert_eq!(why_not_to_be_joined(handle), None);
        younger.forget_handle(handle, true);
        assert_eq!(why_not_to_be_joined(handle), Some("detached"));
        // The older thread was given the same stack afterwards.
        older.handle.store(WAITED_FOR, Release);
        assert_eq!(why_not_to_be_joined(handle), None);
        older.handle.store(handle, Release);
        assert_eq!(why_not_to_be_joined(handle), None);
        assert!(find_handle(handle).is_some_and(|found| core::ptr::eq(found, older)));
        older.forget_handle(handle, false);
        assert!(why_not_to_be_joined(handle).is_some());
    }
}
