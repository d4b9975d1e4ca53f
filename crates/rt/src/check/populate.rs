//! Fresh memory for a check, brought in by a thread of its own while another fills it.
//!
//! A heap of ten million blocks takes 150 MB to check, and the kernel clearing those pages was a third of the time. The
//! thread begins at the end of each piece, the check at its beginning: they meet where they do, without a word.

use super::threads;
use crate::raw::{self, call};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU32, AtomicU64};

const MOST_PIECES: usize = 8;
/// Bytes brought in with one system call: a huge page.
const STEP: u64 = 2 << 20;

struct Pieces {
    /// First and last-but-one address, both at page boundaries.
    pieces: [(AtomicU64, AtomicU64); MOST_PIECES],
    given: AtomicU32,
    is_over: AtomicU32,
}

/// The thread, if there is one. It ends when this goes.
pub(super) struct Populator(Option<&'static Pieces>);

impl Populator {
    /// Starts the thread where `is_copy` says that the process is ours alone, a heap of so many blocks is worth it, and
    /// there is a processor for it.
    pub(super) fn new(blocks: usize, is_copy: bool) -> Self {
        if !is_copy || !threads::is_worth_a_thread(blocks) || threads::processors() < 2 {
            return Self(None);
        }
        let pieces = Pieces {
            pieces: [const { (AtomicU64::new(0), AtomicU64::new(0)) }; MOST_PIECES],
            given: AtomicU32::new(0),
            is_over: AtomicU32::new(0),
        };
        // SAFETY: it refers to nothing.
        Self(unsafe { threads::new_thread(pieces, work) })
    }

    /// Has the memory of a slice brought in. Its contents stay.
    pub(super) fn bring<T>(&self, slice: &[T]) {
        let Some(pieces) = self.0 else { return };
        let number = pieces.given.load(Relaxed);
        let Some((start, end)) = pieces.pieces.get(number as usize) else { return };
        start.store((slice.as_ptr() as u64).next_multiple_of(4096), Relaxed);
        end.store(slice.as_ptr_range().end as u64 & !4095, Relaxed);
        pieces.given.store(number + 1, Release);
    }
}

impl Drop for Populator {
    fn drop(&mut self) {
        if let Some(pieces) = self.0 {
            pieces.is_over.store(1, Release);
        }
    }
}

extern "C" fn work(pieces: *const Pieces) -> ! {
    const MADVISE: usize = 28;
    /// Since Linux 5.14; what is older says EINVAL, and the pages come in when they are touched.
    const MADV_POPULATE_WRITE: usize = 23;
    // SAFETY: it lies in this thread's stack.
    let pieces = unsafe { &*pieces };
    let mut done = 0;
    while pieces.is_over.load(Acquire) == 0 {
        if done == pieces.given.load(Acquire) {
            raw::sleep_ns(50_000);
            continue;
        }
        let Some((start, end)) = pieces.pieces.get(done as usize) else { break };
        let (start, mut end) = (start.load(Relaxed), end.load(Relaxed));
        while start < end && pieces.is_over.load(Acquire) == 0 {
            let from = start.max((end - 1) & !(STEP - 1));
            // SAFETY: brings in pages of memory that is mapped for good, and changes no byte.
            if unsafe { call!(MADVISE, from, end - from, MADV_POPULATE_WRITE) }.is_err() {
                break;
            }
            end = from;
        }
        done += 1;
    }
    threads::end()
}
