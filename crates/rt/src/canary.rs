//! What stands past a block's requested end: up to 16 bytes of what the allocator gave, filled at the allocation and
//! looked at when the block is released.
//!
//! Only for glibc's blocks, whose header says how much there is. Without a branch: sizes are as good as random.

use core::arch::x86_64::{
    __m128i, _mm_and_si128, _mm_andnot_si128, _mm_cmpeq_epi8, _mm_loadu_si128, _mm_movemask_epi8, _mm_or_si128,
    _mm_storeu_si128,
};

/// Bytes that a canary has at the most.
const MOST: usize = 16;

#[repr(align(16))]
struct Bytes([u8; MOST]);

static CANARY: Bytes =
    Bytes([0xA5, 0xE7, 0x96, 0xC3, 0xD1, 0x69, 0x3C, 0x5A, 0x5A, 0x3C, 0x69, 0xD1, 0xC3, 0x96, 0xE7, 0xA5]);

/// 16 bytes of zero and 16 of ones: from byte n on, a mask of the last n bytes of a vector.
static MASKS: [u8; 2 * MOST] = {
    let mut masks = [0; 2 * MOST];
    let mut at = MOST;
    while at < masks.len() {
        masks[at] = 0xFF;
        at += 1;
    }
    masks
};

/// Where a block's canary is: the 16 bytes that end with it, and how many of them it has; none when the allocator gave
/// nothing past the requested end.
#[inline(always)]
fn place(start: u64, bytes: usize) -> (*mut __m128i, usize) {
    // SAFETY: glibc keeps the chunk's size, with flags in the low three bits, in the word before a block.
    let size = unsafe { *((start - 8) as *const usize) };
    // A chunk with a mapping of its own (bit 1) does not use the next chunk's first word.
    let usable = (size & !7).wrapping_sub(8 + (size & 2) * 4);
    let slack = usable.saturating_sub(bytes).min(MOST);
    ((start as usize + bytes.min(usable) + slack).wrapping_sub(MOST) as *mut __m128i, slack)
}

#[inline(always)]
fn mask(slack: usize) -> __m128i {
    // SAFETY: `place` gives at most MOST.
    unsafe { _mm_loadu_si128(MASKS.as_ptr().add(slack).cast()) }
}

#[inline(always)]
fn canary() -> __m128i {
    // SAFETY: 16 bytes.
    unsafe { _mm_loadu_si128(CANARY.0.as_ptr().cast()) }
}

/// Fills what the allocator gave past the requested end, up to 16 bytes.
///
/// # Safety
/// `start` is a block of glibc's of `bytes` requested bytes that nobody but this thread knows yet.
#[inline(always)]
pub unsafe fn arm(start: u64, bytes: usize) {
    let (at, slack) = place(start, bytes);
    // SAFETY: a chunk has at least 24 usable bytes, so the 16 up to the canary's end lie in the block.
    unsafe {
        let (old, mask) = (_mm_loadu_si128(at), mask(slack));
        _mm_storeu_si128(at, _mm_or_si128(_mm_andnot_si128(mask, old), _mm_and_si128(mask, canary())));
    }
}

/// Whether nobody has written past the requested end.
///
/// # Safety
/// `start` is a live block of glibc's of `bytes` requested bytes whose canary was armed.
#[inline(always)]
pub unsafe fn is_whole(start: u64, bytes: usize) -> bool {
    let (at, slack) = place(start, bytes);
    // SAFETY: as in `arm`.
    let same = unsafe { _mm_movemask_epi8(_mm_cmpeq_epi8(_mm_loadu_si128(at), canary())) };
    // Bit i of `same` is byte i of the vector; the canary has the last `slack` ones.
    (!same as u32 & 0xFFFF) >> (MOST - slack) == 0
}

/// How many bytes past the requested end the first changed byte lies; `None` when the canary is whole.
///
/// # Safety
/// As for [`is_whole`].
#[cold]
pub unsafe fn first_changed_byte(start: u64, bytes: usize) -> Option<u64> {
    let (at, slack) = place(start, bytes);
    // SAFETY: as in `arm`.
    let found = unsafe { at.cast::<[u8; MOST]>().read_unaligned() };
    let pairs = found.iter().zip(&CANARY.0).skip(MOST - slack);
    pairs.enumerate().find(|(_, (found, expected))| found != expected).map(|(past, _)| past as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_past_the_end_is_watched_and_no_other() {
        for chunk_bytes in [32usize, 48, 208, 4112] {
            for bytes in 0..=chunk_bytes - 8 {
                // A block of glibc's: the size of its chunk in front, the last word of the chunk shared with the next.
                let mut memory = vec![0x1111_1111_1111_1111u64; chunk_bytes / 8 + 2];
                memory[1] = chunk_bytes as u64 | 1;
                let start = memory.as_ptr() as u64 + 16;
                let before = memory.clone();
                let armed = (chunk_bytes - 8 - bytes).min(MOST);
                // SAFETY: laid out as glibc does; the vector is ours.
                unsafe {
                    arm(start, bytes);
                    assert!(is_whole(start, bytes));
                    assert_eq!(first_changed_byte(start, bytes), None);
                    for at in (0..chunk_bytes - 8).map(|at| (start + at as u64) as *mut u8) {
                        let offset = (at as u64 - start) as usize;
                        let kept = at.read();
                        if offset < bytes || offset >= bytes + armed {
                            assert_eq!(kept, 0x11, "byte {offset} of a block of {bytes} was changed");
                        }
                        at.write(!kept);
                        let past = offset.checked_sub(bytes).filter(|&past| past < armed);
                        assert_eq!(is_whole(start, bytes), past.is_none(), "byte {offset} of a block of {bytes}");
                        assert_eq!(first_changed_byte(start, bytes), past.map(|past| past as u64));
                        at.write(kept);
                    }
                }
                assert_eq!(memory[..2], before[..2]);
            }
        }
    }
}
