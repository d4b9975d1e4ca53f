//! Stacks of host threads.
//!
//! The C library would keep them itself, but it waits for the kernel to clear a thread's id before it uses a stack
//! again, and the kernel clears one word only: the one that the target waits for, so that a thread is gone for
//! everybody once it was joined. So the stacks are ours, and one is free when its thread does not exist any more.

use std::ptr;

use crate::raw;

/// Reports with unwinding and symbols fit.
const BYTES: usize = 1 << 20;

/// Not accessible, below the stack.
const GUARD_BYTES: usize = 4096;

#[derive(Debug, Clone, Copy)]
struct HostStack {
    base: u64,
    /// The thread on it; 0 if there was none yet.
    tid: i32,
    has_ended: bool,
}

/// All stacks that were ever made. They are kept.
#[derive(Debug, Default)]
pub(crate) struct HostStacks {
    list: Vec<HostStack>,
}

/// Whether a thread of this process does not exist.
fn is_gone(tid: i32) -> bool {
    // SAFETY: signal 0 is none.
    let result = unsafe { raw::syscall(libc::SYS_tgkill, [raw::getpid() as u64, tid as u64, 0, 0, 0, 0]) };
    result == -i64::from(libc::ESRCH)
}

impl HostStacks {
    /// A stack that nobody uses: its number, its lowest usable address and its length.
    pub fn take(&mut self) -> Option<(usize, u64, usize)> {
        let free = self.list.iter().position(|stack| stack.has_ended && (stack.tid == 0 || is_gone(stack.tid)));
        let number = match free {
            Some(number) => number,
            None => {
                self.list.push(HostStack { base: map()?, tid: 0, has_ended: false });
                self.list.len() - 1
            }
        };
        let stack = &mut self.list[number];
        stack.has_ended = false;
        Some((number, stack.base + GUARD_BYTES as u64, BYTES - GUARD_BYTES))
    }

    /// Says which thread is on a stack.
    pub fn set_tid(&mut self, number: usize, tid: i32) {
        self.list[number].tid = tid;
    }

    /// The thread on it ends, or never began.
    pub fn end(&mut self, number: usize) {
        self.list[number].has_ended = true;
    }

    /// In the child of a fork: only the caller's stack is in use.
    pub fn keep_only(&mut self, own: Option<usize>, tid: i32) {
        for (number, stack) in self.list.iter_mut().enumerate() {
            let is_own = own == Some(number);
            *stack = HostStack { tid: if is_own { tid } else { 0 }, has_ended: !is_own, ..*stack };
        }
    }
}

fn map() -> Option<u64> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_STACK;
    // SAFETY: a new map, whose lowest page nobody gets.
    unsafe {
        let base = libc::mmap(ptr::null_mut(), BYTES, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
        if base == libc::MAP_FAILED {
            return None;
        }
        libc::mprotect(base, GUARD_BYTES, libc::PROT_NONE);
        Some(base as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_is_free_when_its_thread_is_gone() {
        let mut stacks = HostStacks::default();
        let (first, base, bytes) = stacks.take().unwrap();
        stacks.set_tid(first, raw::gettid());
        // SAFETY: both ends of the stack.
        unsafe {
            (base as *mut u8).write(1);
            ((base + bytes as u64 - 1) as *mut u8).write(1);
        }
        let (second, ..) = stacks.take().unwrap();
        assert_ne!(first, second);
        stacks.end(first);
        assert_eq!(stacks.take().unwrap().0, 2, "this thread is not gone");
        let gone = std::thread::spawn(raw::gettid).join().unwrap();
        while !is_gone(gone) {
            std::thread::yield_now();
        }
        stacks.set_tid(second, gone);
        stacks.end(second);
        assert_eq!(stacks.take().unwrap().0, second);
        stacks.keep_only(Some(2), raw::gettid());
        assert_eq!((stacks.take().unwrap().0, stacks.take().unwrap().0, stacks.take().unwrap().0), (0, 1, 3));
    }
}
