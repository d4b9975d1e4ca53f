//! What memory a walk may read: the thread's own stack, or pages that the kernel says are readable.
//!
//! A walk starts at a live rsp, and all of a stack from there up to its highest address is mapped while its thread
//! runs. Other stacks (alternate signal stacks, coroutines) come and go without notice, so nothing is remembered of
//! them: each page is asked for again in each walk.

use core::arch::asm;

/// The addresses of a stack: `low` included, `high` not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StackRange {
    /// Lowest address.
    pub low: u64,
    /// One past the highest address.
    pub high: u64,
}

impl StackRange {
    /// Whether `address` lies in the range.
    #[inline(always)]
    #[must_use]
    pub fn contains(self, address: u64) -> bool {
        self.low <= address && address < self.high
    }
}

const PAGE: u64 = 4096;

/// How often a walk may go from one stack to another.
const MAX_SWITCHES: u32 = 4;

/// The memory that a walk currently reads from.
pub(super) struct View {
    own: StackRange,
    /// Readable now. On the own stack this is from rsp to the top.
    low: u64,
    high: u64,
    switches: u32,
    /// Still on the stack where it started, and that is the thread's own.
    pub(super) only_own: bool,
}

impl View {
    /// `rsp` points at readable memory.
    pub(super) fn at(own: StackRange, rsp: u64) -> Self {
        let mut view = Self { own, low: 0, high: 0, switches: 0, only_own: true };
        view.set(rsp);
        view
    }

    fn set(&mut self, address: u64) {
        self.low = address & !7;
        if self.own.contains(address) {
            self.high = self.own.high;
        } else {
            self.high = (address & !(PAGE - 1)) + PAGE;
            self.only_own = false;
        }
    }

    /// Goes to another stack, if memory at `address` is readable.
    #[cold]
    pub(super) fn switch_to(&mut self, address: u64) -> bool {
        self.only_own = false;
        self.switches += 1;
        if address & 7 != 0 || self.switches > MAX_SWITCHES || !is_readable(address) {
            return false;
        }
        self.set(address);
        true
    }

    /// The word at `address`, if that is on this stack.
    #[inline(always)]
    pub(super) fn load(&mut self, address: u64) -> Option<u64> {
        if address & 7 != 0 || address < self.low || address > self.high.wrapping_sub(8) {
            return self.load_beyond(address);
        }
        // SAFETY: aligned, and inside what is known to be readable.
        Some(unsafe { *(address as *const u64) })
    }

    /// On the own stack everything readable is known. Elsewhere each page is asked for; the frames that a walk left on
    /// another stack (a signal frame's registers) stay readable too.
    #[cold]
    fn load_beyond(&mut self, address: u64) -> Option<u64> {
        if address & 7 != 0 || self.only_own || !is_readable(address) {
            return None;
        }
        if address & !(PAGE - 1) == self.high && !self.own.contains(self.low) {
            self.high += PAGE;
        }
        // SAFETY: aligned, and the kernel has just read it.
        Some(unsafe { *(address as *const u64) })
    }

    /// Whether a CFA computed from a saved register can belong to the stack that `slot` is on.
    pub(super) fn continues_at(&self, slot: u64, next: u64) -> bool {
        /// No frame of a foreign stack is taken to be larger.
        const MAX_FOREIGN_FRAME: u64 = 1 << 20;
        let limit = if self.own.contains(self.low) { self.high } else { slot.saturating_add(MAX_FOREIGN_FRAME) };
        slot < next && next < limit
    }
}

/// Asks the kernel whether the 8 bytes at `address` are readable: `rt_sigprocmask` reads the new set before it refuses
/// an unknown `how`, so it changes nothing. Source: Linux `kernel/signal.c`; abseil uses the same question.
fn is_readable(address: u64) -> bool {
    let result: i64;
    // SAFETY: the call fails with EINVAL or EFAULT whatever the address, and writes nothing.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") libc::SYS_rt_sigprocmask => result,
            in("rdi") -1i64,
            in("rsi") address,
            in("rdx") 0u64,
            in("r10") 8u64,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack)
        );
    }
    result == -i64::from(libc::EINVAL)
}
