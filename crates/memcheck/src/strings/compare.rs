//! Comparing two strings or areas.

use core::arch::x86_64::{
    __m128i, _mm_and_si128, _mm_cmpeq_epi8, _mm_loadu_si128, _mm_movemask_epi8, _mm_or_si128, _mm_setzero_si128,
};

use super::{Bad, Fault, PAGE, Watched, byte};

const STEP: u64 = 16;

/// Bytes to the end of the page.
fn rest_of_page(address: u64) -> u64 {
    PAGE - address % PAGE
}

/// The first pair of bytes that ends a comparison, and all that is wrong with what comes before it.
///
/// `most` bytes at most; `strings` ends at a byte 0; `fold` says what byte counts for which.
fn compare(
    memory: &mut impl Watched,
    (a, b): (u64, u64),
    most: u64,
    strings: bool,
    fold: impl Fn(u8) -> u8,
    folds: bool,
) -> Result<i32, Fault> {
    let shadow = memory.shadow();
    let mut done = 0;
    let (mut room_a, mut room_b) = (0, 0);
    while done < most {
        let (at_a, at_b) = (a.wrapping_add(done), b.wrapping_add(done));
        for (room, at) in [(&mut room_a, at_a), (&mut room_b, at_b)] {
            if *room == 0 {
                if !memory.is_usable(at, false) {
                    return Err(Fault { address: at, write: false });
                }
                *room = rest_of_page(at);
            }
        }
        let room = room_a.min(room_b).min(most - done);
        if !folds && room >= STEP && is_uneventful(shadow, at_a, at_b, strings) {
            done += STEP;
            room_a -= STEP;
            room_b -= STEP;
            continue;
        }
        for at in [at_a, at_b] {
            if shadow.get(at) != 0 {
                memory.bad(Bad { address: at, bytes: 1, write: false, place: u8::from(at == at_b) });
            }
        }
        let (one, other) = (byte(at_a), byte(at_b));
        let (one_folded, other_folded) = (fold(one), fold(other));
        if one_folded != other_folded {
            return Ok(i32::from(one_folded) - i32::from(other_folded));
        }
        if strings && one == 0 {
            return Ok(0);
        }
        done += 1;
        room_a -= 1;
        room_b -= 1;
    }
    Ok(0)
}

/// Whether the next vector of both is equal, addressable, and (of strings) without an end.
fn is_uneventful(shadow: leakscope_shadow::Shadow, a: u64, b: u64, strings: bool) -> bool {
    // SAFETY: the caller has room for a vector in readable pages at both; shadow of mapped memory is mapped.
    unsafe {
        let load = |at: u64| _mm_loadu_si128(at as *const __m128i);
        let zero = _mm_setzero_si128();
        let (one, other) = (load(a), load(b));
        let wrong = _mm_or_si128(load(shadow.address_of(a)), load(shadow.address_of(b)));
        let fine = _mm_and_si128(_mm_cmpeq_epi8(one, other), _mm_cmpeq_epi8(wrong, zero));
        let ends = if strings { _mm_movemask_epi8(_mm_cmpeq_epi8(one, zero)) } else { 0 };
        _mm_movemask_epi8(fine) == 0xFFFF && ends == 0
    }
}

/// `strcmp`, and `strncmp` with a limit.
pub fn strcmp(memory: &mut impl Watched, a: u64, b: u64, most: u64) -> Result<i32, Fault> {
    compare(memory, (a, b), most, true, |byte| byte, false)
}

/// `strcasecmp`, and `strncasecmp` with a limit; letters of ASCII only, as in the C locale and in UTF-8.
pub fn strcasecmp(memory: &mut impl Watched, a: u64, b: u64, most: u64) -> Result<i32, Fault> {
    compare(memory, (a, b), most, true, |byte| byte.to_ascii_lowercase(), true)
}

/// `memcmp`
pub fn memcmp(memory: &mut impl Watched, a: u64, b: u64, bytes: u64) -> Result<i32, Fault> {
    compare(memory, (a, b), bytes, false, |byte| byte, false)
}
