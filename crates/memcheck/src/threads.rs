//! The target's threads, as errors name them.

use std::collections::HashMap;
use std::ops::Range;

use leakscope_guest::View;

/// A thread of the target.
#[derive(Clone, Debug, Default)]
pub struct Thread {
    /// Its number, from 1.
    pub number: u32,
    /// The kernel's.
    pub tid: u32,
    /// Where its stack is.
    pub stack: Range<u64>,
    /// What of it was made unaddressable before the thread began.
    pub unused: Range<u64>,
    /// Errors are not reported while this is above zero (`VALGRIND_DISABLE_ERROR_REPORTING`).
    pub errors_disabled: u32,
    /// The function whose wrapper was called last.
    pub wrapped: u64,
}

/// All threads that there are.
#[derive(Debug, Default)]
pub struct Threads {
    by_tid: HashMap<u32, Thread>,
    last_number: u32,
    /// Stacks that were given to threads which have not begun yet.
    given: Vec<Range<u64>>,
}

/// Stacks that are remembered for threads that have not begun: one for each thread that may be on its way.
const MOST_GIVEN: usize = 64;

/// The kernel's number of the calling thread.
fn own_tid() -> u32 {
    // SAFETY: a plain call.
    unsafe { libc::gettid() as u32 }
}

/// The calling thread's name, if it is not that of the program.
pub fn name() -> String {
    let own = own_tid();
    if own == std::process::id() {
        return String::new();
    }
    let name = std::fs::read_to_string(format!("/proc/self/task/{own}/comm")).unwrap_or_default();
    name.trim_end().to_owned()
}

impl Threads {
    /// The calling thread: each thread of the target has a thread of the kernel to itself.
    pub fn current(&mut self) -> &mut Thread {
        self.get(own_tid())
    }

    fn get(&mut self, tid: u32) -> &mut Thread {
        let Self { by_tid, last_number, .. } = self;
        by_tid.entry(tid).or_insert_with(|| {
            *last_number += 1;
            Thread { number: *last_number, tid, ..Thread::default() }
        })
    }

    /// A thread begins, with this stack pointer.
    pub fn begin(&mut self, tid: u32, stack_pointer: u64, view: Option<&View>) {
        // The stack pointer may stand at the very end of the mapping.
        let mapping = view.and_then(|view| view.space().find(stack_pointer.wrapping_sub(1)));
        let stack = mapping.map_or(0..0, |mapping| mapping.start..mapping.end);
        self.get(tid).stack = stack;
    }

    /// A thread is about to be made with this stack.
    pub fn give_stack(&mut self, stack: Range<u64>) {
        self.given.retain(|other| other.end != stack.end);
        if self.given.len() == MOST_GIVEN {
            self.given.remove(0);
        }
        self.given.push(stack);
    }

    /// The stack of a thread that begins at this stack pointer, if it was given one of known size.
    pub fn take_stack(&mut self, stack_pointer: u64) -> Option<Range<u64>> {
        let at = self.given.iter().position(|stack| stack.end == stack_pointer)?;
        Some(self.given.swap_remove(at))
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.by_tid.len()
    }

    /// A thread has ended.
    pub fn end(&mut self, tid: u32) -> Option<Thread> {
        self.by_tid.remove(&tid)
    }

    /// After fork the calling thread is the only one.
    pub fn keep_current(&mut self, parent: u32) {
        let thread = self.by_tid.remove(&parent).unwrap_or_default();
        let tid = own_tid();
        self.by_tid.clear();
        let number = thread.number.max(1);
        self.last_number = self.last_number.max(number);
        self.by_tid.insert(tid, Thread { tid, number, ..thread });
    }

    /// The kernel's number of a thread.
    pub fn tid(&self, number: u32) -> Option<u32> {
        self.by_tid.values().find(|thread| thread.number == number).map(|thread| thread.tid)
    }

    /// The number of the thread on whose stack an address is.
    pub fn stack_owner(&self, address: u64) -> Option<u32> {
        self.by_tid.values().find(|thread| thread.stack.contains(&address)).map(|thread| thread.number)
    }
}
