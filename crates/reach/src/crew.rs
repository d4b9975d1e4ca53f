//! Who marks: one worker, or several at once.

use core::cell::RefCell;

use crate::memory::Memory;

/// Workers that share the marking. The caller makes the threads; here is only what they do.
pub trait Crew {
    /// How a worker reads the target's memory.
    type Memory: Memory;

    /// How many workers there are at most, at least 1.
    fn workers(&self) -> usize;

    /// Calls `task` with each number below [`Crew::workers`] and that worker's memory, at the same time, and waits for all.
    /// Number 0 must be called; a worker that cannot be had may be left out.
    fn run(&self, task: &(dyn Fn(usize, &mut Self::Memory) + Sync));

    /// A worker has nothing to do for the moment.
    fn rest() {
        core::hint::spin_loop();
    }
}

/// The calling thread alone.
pub(crate) struct Alone<'m, M>(pub(crate) RefCell<&'m mut M>);

impl<M: Memory> Crew for Alone<'_, M> {
    type Memory = M;

    fn workers(&self) -> usize {
        1
    }

    fn run(&self, task: &(dyn Fn(usize, &mut M) + Sync)) {
        // Not borrowed elsewhere: only `run` does, and no task calls it.
        if let Ok(mut memory) = self.0.try_borrow_mut() {
            task(0, &mut memory);
        }
    }
}
