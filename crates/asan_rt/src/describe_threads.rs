//! Where the threads of a report come from: each is told once.

use crate::options::options;
use crate::report::{stack, thread_name};
use crate::{depot, thread};
use alloc::vec::Vec;
use core::cell::UnsafeCell;
use leakscope_rt::memory::Lock;

struct Told {
    lock: Lock,
    numbers: UnsafeCell<Vec<u32>>,
}
// SAFETY: only touched with the lock held.
unsafe impl Sync for Told {}

static TOLD: Told = Told { lock: Lock::new(), numbers: UnsafeCell::new(Vec::new()) };

/// A new report begins.
pub fn forget() {
    let _held = TOLD.lock.lock();
    // SAFETY: the lock is held.
    unsafe { (*TOLD.numbers.get()).clear() };
}

/// Prints where a thread was created, and those before it.
pub fn describe(number: u32) {
    let Some(context) = thread::context(number) else { return };
    // The main thread needs no explanation.
    if number == 0 {
        return;
    }
    {
        let _held = TOLD.lock.lock();
        // SAFETY: the lock is held.
        let told = unsafe { &mut *TOLD.numbers.get() };
        if told.contains(&number) {
            return;
        }
        told.push(number);
    }
    crate::out!("Thread {}", thread_name(number));
    if thread::context(context.parent).is_none() {
        crate::out!(" created by unknown thread\n");
        return;
    }
    crate::out!(" created by {} here:\n", thread_name(context.parent));
    stack::print(&depot::frames(context.stack));
    if options().print_full_thread_history {
        describe(context.parent);
    }
}
