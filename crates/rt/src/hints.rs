//! What is known of a block without looking into the block table: four bits for each 32 bytes of heap.
//!
//! The table's word of a block is mostly cold when the block is released, and so is the block. A release must be
//! judged at once, because only now the caller's stack can be taken; everything else can wait until both are in the
//! cache (see [`crate::release_queue`]). The hint is an eighth of the table and mostly warm: it says whether a block
//! of this family starts here and its release may wait.
//!
//! Two blocks share a byte, and threads update it without a lock: an update can get lost. So a hint is never trusted
//! where that would do harm:
//!
//! * "may wait" that has come back after a release: seen when the release is carried out, the table knows.
//! * "waits" that has come back: confirmed by a look into the queues.
//! * "nothing" that has come back: the release is carried out at once.
//!
//! May run in any thread and in signal handlers.

use crate::blocks;
use core::sync::atomic::AtomicU8;
use core::sync::atomic::Ordering::Relaxed;

/// Nothing is known.
pub const NOTHING: u8 = 0;
/// The first of two values, by the half of the granule: the block was released, and the release waits.
const WAITS: u8 = 7;

#[inline(always)]
fn half(start: u64) -> u8 {
    (start >> 4) as u8 & 1
}

/// The hint of a block whose release may wait. `family` is a tag of [`crate::sites::family`] but `MIXED`.
#[inline(always)]
pub fn may_wait(start: u64, family: u8) -> u8 {
    1 + half(start) * 3 + family
}

/// How far left the four bits of a start stand in their byte.
#[inline(always)]
fn shift(start: u64) -> u32 {
    (start >> 3) as u32 & 4
}

/// Stores a hint.
#[inline(always)]
pub fn set(start: u64, hint: u8) {
    if let Some(byte) = blocks::hint_byte(start) {
        set_in(byte, start, hint);
    }
}

#[inline(always)]
pub(crate) fn set_in(byte: &AtomicU8, start: u64, hint: u8) {
    let old = u32::from(byte.load(Relaxed));
    // What is the same already is not written: most bytes are shared with other threads.
    let difference = (old >> shift(start) ^ u32::from(hint)) & 15;
    if difference != 0 {
        byte.store((old ^ difference << shift(start)) as u8, Relaxed);
    }
}

/// Whether a block of this family starts at `start` and its release may wait; then it does from now on.
#[inline(always)]
pub fn claim(start: u64, family: u8) -> bool {
    blocks::claim(start, family)
}

#[inline(always)]
pub(crate) fn claim_in(byte: &AtomicU8, start: u64, family: u8) -> bool {
    let old = u32::from(byte.load(Relaxed));
    let expected = u32::from(may_wait(start, family));
    if start & 15 != 0 || old >> shift(start) & 15 != expected {
        return false;
    }
    byte.store((old ^ (expected ^ u32::from(WAITS + half(start))) << shift(start)) as u8, Relaxed);
    true
}

/// Whether the hint says that a release of `start` waits. To be confirmed.
#[inline(always)]
pub fn says_waits(start: u64) -> bool {
    let hint = blocks::hint_byte(start).map_or(0, |byte| byte.load(Relaxed) >> shift(start) & 15);
    hint == WAITS + half(start) && start & 15 == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sites::family;

    #[test]
    fn a_claim_needs_the_very_block_and_its_family_and_succeeds_once() {
        let base = 0x2000_0000_0000u64;
        assert!(!claim(base, family::MALLOC));
        for (at, of) in [(base, family::MALLOC), (base + 48, family::NEW), (base + 64, family::NEW_ARRAY)] {
            assert!(blocks::insert(at, 8, 3, false, may_wait(at, of)));
        }
        assert!(!claim(base + 16, family::MALLOC) && !claim(base + 8, family::MALLOC));
        assert!(!claim(base + 32, family::NEW) && !claim(base + 48, family::MALLOC));
        for (at, of) in [(base + 64, family::NEW_ARRAY), (base, family::MALLOC), (base + 48, family::NEW)] {
            assert!(!says_waits(at));
            assert!(claim(at, of));
            assert!(says_waits(at) && !claim(at, of));
        }
        set(base + 48, NOTHING);
        assert!(says_waits(base) && !says_waits(base + 48));
    }
}
