//! What lies below the stack pointer of a thread that begins: unaddressable, so that a pointer into a frame that has returned
//! is found in every thread's stack.
//!
//! The translator keeps the shadow of a stack by making bad what is given back and good what a check fails in
//! (`leakscope_translate::StackMarking`): for that the unused part has to be bad from the beginning. Only what is a
//! stack for certain is marked: the range that `clone3` was given, as glibc 2.34 and later call it. (`clone` gives no size, and
//! the mapping around its stack pointer may hold other things.) It is addressable again when the thread has ended, as its
//! memory may be used for other things then.
//!
//! Runs in the monitor's callbacks.

use leakscope_translate::Guest;

use crate::engine::{Memcheck, shadow};
use crate::probe;

/// What lies between the stack pointer and the first byte that is not the stack's.
const RED_ZONE: u64 = 128;
/// The most that is marked of a thread's stack: what is marked takes memory.
const MOST_MARKED: u64 = 256 << 10;
/// The same when there are many threads.
const MOST_MARKED_OF_MANY: u64 = 32 << 10;
const MANY: usize = 32;

impl Memcheck {
    /// Keeps the stack that `clone3` is called with. Source: `struct clone_args` of Linux' `sched.h`.
    pub fn keep_given_stack(&mut self, arguments: u64) {
        let (Some(start), Some(bytes)) = (probe::word(arguments + 40), probe::word(arguments + 48)) else { return };
        if let Some(end) = start.checked_add(bytes).filter(|_| bytes > 0) {
            self.threads.give_stack(start..end);
        }
    }

    /// The calling thread begins at this stack pointer.
    pub fn begin_stack(&mut self, guest: &mut Guest, stack_pointer: u64) {
        let stack = self.threads.take_stack(stack_pointer).unwrap_or(0..0);
        guest.stack = [stack.start, stack.end];
        if !self.options.stack_marks || !stack.contains(&stack_pointer.wrapping_sub(RED_ZONE + 1)) {
            return;
        }
        let most = if self.threads.count() > MANY { MOST_MARKED_OF_MANY } else { MOST_MARKED };
        let end = stack_pointer - RED_ZONE;
        let unused = stack.start.max(end.saturating_sub(most))..end;
        shadow().forbid(unused.start, unused.end - unused.start);
        self.threads.current().unused = unused;
    }
}
