//! Looking for a byte.

use core::arch::x86_64::{
    __m128i, _mm_cmpeq_epi8, _mm_load_si128, _mm_loadu_si128, _mm_movemask_epi8, _mm_or_si128, _mm_set1_epi8,
    _mm_setzero_si128,
};

use super::{Bad, Fault, PAGE, Watched, byte};

const STEP: u64 = 16;

/// Where a search ended.
struct Hit {
    /// Bytes before the one that ended it, or all of them.
    bytes: u64,
    /// Whether a byte ended it, not the length.
    found: bool,
}

/// Reads from `start` until one of two bytes comes, at most `most` bytes.
fn find(memory: &mut impl Watched, start: u64, most: u64, one: u8, other: u8) -> Result<Hit, Fault> {
    let shadow = memory.shadow();
    // SAFETY: SSE2 is part of x86-64.
    let (ones, others) = unsafe { (_mm_set1_epi8(one as i8), _mm_set1_epi8(other as i8)) };
    let (mut done, mut page_end) = (0u64, start);
    while done < most {
        let at = start.wrapping_add(done);
        if at == page_end || done == 0 {
            if !memory.is_usable(at, false) {
                return Err(Fault { address: at, write: false });
            }
            page_end = (at | (PAGE - 1)).wrapping_add(1);
        }
        let block = at & !(STEP - 1);
        let skipped = (at - block) as u32;
        // SAFETY: an aligned vector lies in the page of its byte `at`, which is readable; the shadow of mapped memory
        // is mapped.
        let (hits, forbidden) = unsafe {
            let bytes = _mm_load_si128(block as *const __m128i);
            let hits = _mm_or_si128(_mm_cmpeq_epi8(bytes, ones), _mm_cmpeq_epi8(bytes, others));
            let allowed =
                _mm_cmpeq_epi8(_mm_loadu_si128(shadow.address_of(block) as *const __m128i), _mm_setzero_si128());
            (_mm_movemask_epi8(hits) as u32 >> skipped, (!_mm_movemask_epi8(allowed) as u32 & 0xFFFF) >> skipped)
        };
        let here = (STEP - u64::from(skipped)).min(most - done);
        let hit = (hits != 0).then(|| u64::from(hits.trailing_zeros())).filter(|&at| at < here);
        let touched = hit.map_or(here, |hit| hit + 1);
        if forbidden != 0 {
            for bit in (0..touched).filter(|&bit| forbidden & 1 << bit != 0) {
                memory.bad(Bad { address: at + bit, bytes: 1, write: false, place: 0 });
            }
        }
        if let Some(hit) = hit {
            return Ok(Hit { bytes: done + hit, found: true });
        }
        done += here;
    }
    Ok(Hit { bytes: most, found: false })
}

/// `strlen`
pub fn strlen(memory: &mut impl Watched, string: u64) -> Result<u64, Fault> {
    find(memory, string, u64::MAX, 0, 0).map(|hit| hit.bytes)
}

/// `strnlen`
pub fn strnlen(memory: &mut impl Watched, string: u64, most: u64) -> Result<u64, Fault> {
    find(memory, string, most, 0, 0).map(|hit| hit.bytes)
}

/// `strchr`, and `strchrnul`, which gives the end instead of 0.
pub fn strchr(memory: &mut impl Watched, string: u64, wanted: u8, or_end: bool) -> Result<u64, Fault> {
    let hit = find(memory, string, u64::MAX, wanted, 0)?;
    let at = string.wrapping_add(hit.bytes);
    Ok(if or_end || byte(at) == wanted { at } else { 0 })
}

/// `memchr`; `rawmemchr` with no limit.
pub fn memchr(memory: &mut impl Watched, area: u64, wanted: u8, bytes: u64) -> Result<u64, Fault> {
    let hit = find(memory, area, bytes, wanted, wanted)?;
    Ok(if hit.found { area.wrapping_add(hit.bytes) } else { 0 })
}

/// `memrchr`
pub fn memrchr(memory: &mut impl Watched, area: u64, wanted: u8, bytes: u64) -> Result<u64, Fault> {
    let shadow = memory.shadow();
    let mut page = u64::MAX;
    for at in (area..area.saturating_add(bytes)).rev() {
        if at / PAGE != page {
            if !memory.is_usable(at, false) {
                return Err(Fault { address: at, write: false });
            }
            page = at / PAGE;
        }
        if shadow.get(at) != 0 {
            memory.bad(Bad { address: at, bytes: 1, write: false, place: 0 });
        }
        if byte(at) == wanted {
            return Ok(at);
        }
    }
    Ok(0)
}

/// `strrchr`
pub fn strrchr(memory: &mut impl Watched, string: u64, wanted: u8) -> Result<u64, Fault> {
    let end = string.wrapping_add(strlen(memory, string)?);
    // All of it was just read.
    Ok((string..=end).rev().find(|&at| byte(at) == wanted).unwrap_or(0))
}
