//! What is known of a block: 16 bytes in front of the user's, and 8 in a released block's own memory.
//!
//! ```text
//! word 0: state (8) | allocated by (4), alignment asked for (4) | check (16) | allocation stack (32)
//! word 1: requested bytes (44) | ignored by the leak check (1) | on another stack (1) | allocating thread (18)
//! ```
//!
//! The check is a hash of the address and of everything but the state: a header that was written over is told from one
//! that was not. Where the user's part does not follow the block's start closely, the block's first two words tell
//! where the header is.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

/// Bytes of a header.
pub const HEADER_BYTES: usize = 16;
/// First word of a block whose header is elsewhere.
const ELSEWHERE: u64 = 0x1ea5_5c09_e0a5_a9aa;

/// What a block is now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum State {
    /// Not handed out, or given back for good.
    Free = 0,
    /// The program's.
    Allocated = 2,
    /// Released, and not used again yet.
    Quarantined = 3,
}

/// The family of functions that a block comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum AllocKind {
    /// malloc and the like.
    Malloc = 1,
    /// operator new.
    New = 2,
    /// operator new[].
    NewArray = 3,
}

impl AllocKind {
    fn of(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Malloc),
            2 => Some(Self::New),
            3 => Some(Self::NewArray),
            _ => None,
        }
    }
}

/// A block by its user's address; the header lies in front.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chunk(pub usize);

/// Everything a header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Facts {
    /// What the block is now.
    pub state: State,
    /// Who allocated it.
    pub kind: AllocKind,
    /// The alignment that was asked for, see [`alignment_code`].
    pub alignment: u8,
    /// The allocation stack's number.
    pub stack: u32,
    /// What the program asked for.
    pub requested_bytes: usize,
    /// The allocating thread's number.
    pub thread: u32,
    /// Not to be reported as a leak.
    pub ignored: bool,
    /// Allocated while the thread ran on a stack that is not its own: a coroutine's, a signal handler's.
    pub on_other_stack: bool,
}

const IGNORED: u64 = 1 << 44;
const ON_OTHER_STACK: u64 = 1 << 45;
const SIZE_MASK: u64 = (1 << 44) - 1;

impl Chunk {
    #[inline(always)]
    fn words(self) -> &'static [AtomicU64; 2] {
        // SAFETY: callers made the chunk from an address in a heap of ours, in front of which memory is accessible.
        unsafe { &*((self.0 - HEADER_BYTES) as *const [AtomicU64; 2]) }
    }

    #[inline(always)]
    fn check(self, word0: u64, word1: u64) -> u64 {
        let mixed = ((self.0 as u64).rotate_left(17) ^ (word0 >> 32 | (word0 & 0xff00) << 32) ^ word1)
            .wrapping_mul(0x9E37_79B9_7F4A_7C15);
        mixed >> 48
    }

    /// Writes the header of a block that is handed out now.
    #[inline(always)]
    pub fn write(self, facts: Facts) {
        let word1 = facts.requested_bytes as u64 & SIZE_MASK
            | if facts.ignored { IGNORED } else { 0 }
            | if facts.on_other_stack { ON_OTHER_STACK } else { 0 }
            | u64::from(facts.thread & 0x3_ffff) << 46;
        let word0 = u64::from(facts.stack) << 32 | (facts.kind as u64 | u64::from(facts.alignment) << 4) << 8;
        let [first, second] = self.words();
        second.store(word1, Relaxed);
        first.store(word0 | self.check(word0, word1) << 16 | facts.state as u64, Release);
    }

    /// Reads the header; `None` if it is not one (any more).
    #[inline(always)]
    pub fn read(self) -> Option<Facts> {
        let [first, second] = self.words();
        let (word0, word1) = (first.load(Acquire), second.load(Relaxed));
        if (word0 >> 16) & 0xffff != self.check(word0, word1) {
            return None;
        }
        let state = match word0 as u8 {
            0 => State::Free,
            2 => State::Allocated,
            3 => State::Quarantined,
            _ => return None,
        };
        Some(Facts {
            state,
            kind: AllocKind::of((word0 >> 8) as u8 & 15)?,
            alignment: (word0 >> 12) as u8 & 15,
            stack: (word0 >> 32) as u32,
            requested_bytes: (word1 & SIZE_MASK) as usize,
            thread: (word1 >> 46) as u32,
            ignored: word1 & IGNORED != 0,
            on_other_stack: word1 & ON_OTHER_STACK != 0,
        })
    }

    /// Whether both words are zero: a block that was never handed out.
    pub fn is_blank(self) -> bool {
        self.words().iter().all(|word| word.load(Relaxed) == 0)
    }

    /// Whether the header's first byte says that the block is free, whatever the rest is.
    pub fn is_free(self) -> bool {
        self.words()[0].load(Relaxed) as u8 == State::Free as u8
    }

    /// From one state to another; false if it was in neither or somebody else was faster.
    #[inline(always)]
    pub fn change_state(self, from: State, to: State) -> bool {
        let first = &self.words()[0];
        let word = first.load(Relaxed);
        word as u8 == from as u8 && first.compare_exchange(word, word & !0xff | to as u64, AcqRel, Relaxed).is_ok()
    }

    /// Where the release is remembered: the user's first word, which the program has no right to any more.
    fn release_word(self) -> &'static AtomicU64 {
        // SAFETY: every block has room for 16 bytes of the user's.
        unsafe { &*(self.0 as *const AtomicU64) }
    }

    /// Remembers who released the block.
    #[inline(always)]
    pub fn set_release(self, stack: u32, thread: u32) {
        self.release_word().store(u64::from(stack) << 32 | u64::from(thread), Relaxed);
    }

    /// Stack and thread of the release.
    pub fn release(self) -> (u32, u32) {
        let word = self.release_word().load(Relaxed);
        ((word >> 32) as u32, word as u32)
    }
}

/// How a header keeps an alignment: 0 for less than 8, else its logarithm less 2; from 512 on they are all one.
#[must_use]
pub const fn alignment_code(alignment: usize) -> u8 {
    if alignment < 8 {
        return 0;
    }
    let log = alignment.trailing_zeros() as u8;
    if log > 9 { 7 } else { log - 2 }
}

/// The alignment of a code; 0 for none in particular.
#[must_use]
pub const fn alignment_of_code(code: u8) -> usize {
    if code == 0 { 0 } else { 1 << (code + 2) }
}

/// Notes in the block's first words where the header is.
#[inline(always)]
pub fn mark_block(block: usize, chunk: Chunk) {
    if chunk.0 - HEADER_BYTES > block {
        // SAFETY: the block has at least 16 bytes in front of the header.
        unsafe { *(block as *mut [u64; 2]) = [ELSEWHERE, chunk.0 as u64] };
    }
}

/// The chunk of a block that starts at `block` and has `bytes`.
#[must_use]
pub fn of_block(block: usize, bytes: usize) -> Chunk {
    // SAFETY: blocks are at least 32 accessible bytes.
    let [mark, user] = unsafe { *(block as *const [u64; 2]) };
    let user = user as usize;
    let fits = user.wrapping_sub(block) < bytes && user & 7 == 0;
    if mark == ELSEWHERE && fits { Chunk(user) } else { Chunk(block + HEADER_BYTES) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_tell_what_was_written_and_notice_damage() {
        let mut memory = [0u64; 8];
        let chunk = Chunk(memory.as_mut_ptr() as usize + 16);
        assert!(chunk.is_blank());
        for (ignored, on_other_stack) in [(false, true), (true, false)] {
            for kind in [AllocKind::Malloc, AllocKind::New, AllocKind::NewArray] {
                let facts = Facts {
                    state: State::Allocated,
                    kind,
                    alignment: alignment_code(64),
                    stack: 0xdead_beef,
                    requested_bytes: 0xabc_dead_beef,
                    thread: 0x3_1234,
                    ignored,
                    on_other_stack,
                };
                chunk.write(facts);
                assert_eq!(chunk.read(), Some(facts));
            }
        }
        assert!(!chunk.change_state(State::Quarantined, State::Free));
        assert!(chunk.change_state(State::Allocated, State::Quarantined));
        assert_eq!(chunk.read().map(|facts| facts.state), Some(State::Quarantined));
        let mut noticed = 0;
        for bit in 0..128 {
            let word = &chunk.words()[bit / 64];
            word.fetch_xor(1 << (bit % 64), Relaxed);
            noticed += u32::from(chunk.read().is_none_or(|facts| facts.state != State::Quarantined));
            word.fetch_xor(1 << (bit % 64), Relaxed);
        }
        assert!(noticed >= 120, "{noticed} of 128 flipped bits are noticed");
    }
}
