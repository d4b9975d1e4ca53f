//! Looking for strings and sets of bytes in strings.

use super::scan::{memchr, strlen};
use super::{Bad, Fault, Watched, byte, check_bytes, check_pages};

/// The bytes of a range that was read already.
fn bytes_of(address: u64, bytes: u64) -> &'static [u8] {
    // SAFETY: the caller has read all of it; the slice does not outlive the call of the function.
    unsafe { core::slice::from_raw_parts(address as *const u8, bytes as usize) }
}

/// `strstr`
pub fn strstr(memory: &mut impl Watched, haystack: u64, needle: u64) -> Result<u64, Fault> {
    search(memory, haystack, needle, |a, b| a == b)
}

/// `strcasestr`; letters of ASCII only.
pub fn strcasestr(memory: &mut impl Watched, haystack: u64, needle: u64) -> Result<u64, Fault> {
    search(memory, haystack, needle, |a, b| a.eq_ignore_ascii_case(&b))
}

/// Reads no more of the haystack than what decides: up to the end of the first match.
fn search(memory: &mut impl Watched, haystack: u64, needle: u64, equal: impl Fn(u8, u8) -> bool) -> Result<u64, Fault> {
    let needle = bytes_of(needle, strlen(memory, needle)?);
    let (mut start, mut read) = (haystack, haystack);
    loop {
        for (distance, &wanted) in needle.iter().enumerate() {
            let at = start + distance as u64;
            if at >= read {
                read_byte(memory, at)?;
                read = at + 1;
            }
            if byte(at) == 0 {
                return Ok(0);
            }
            if !equal(byte(at), wanted) {
                start += 1;
                break;
            }
            if distance + 1 == needle.len() {
                return Ok(start);
            }
        }
        if needle.is_empty() {
            return Ok(haystack);
        }
    }
}

fn read_byte(memory: &mut impl Watched, at: u64) -> Result<(), Fault> {
    check_pages(memory, at, 1, false)?;
    if memory.shadow().get(at) != 0 {
        memory.bad(Bad { address: at, bytes: 1, write: false, place: 0 });
    }
    Ok(())
}

/// How many bytes at the start of `string` are in `set` (`strspn`), or are not (`strcspn`).
pub fn span(memory: &mut impl Watched, string: u64, set: u64, within: bool) -> Result<u64, Fault> {
    let mut is_in = [false; 256];
    for &member in bytes_of(set, strlen(memory, set)?) {
        is_in[usize::from(member)] = true;
    }
    let mut length = 0;
    loop {
        let at = string + length;
        read_byte(memory, at)?;
        if byte(at) == 0 || is_in[usize::from(byte(at))] != within {
            return Ok(length);
        }
        length += 1;
    }
}

/// `memmem`
pub fn memmem(memory: &mut impl Watched, area: u64, bytes: u64, needle: u64, length: u64) -> Result<u64, Fault> {
    if length == 0 {
        return Ok(area);
    }
    if length > bytes {
        return Ok(0);
    }
    check_pages(memory, needle, length, false)?;
    check_bytes(memory, needle, length, false, 1);
    let wanted = bytes_of(needle, length);
    let mut from = area;
    loop {
        let found = memchr(memory, from, wanted[0], area + bytes - length + 1 - from)?;
        if found == 0 {
            return Ok(0);
        }
        check_pages(memory, found, length, false)?;
        if bytes_of(found, length) == wanted {
            check_bytes(memory, found, length, false, 0);
            return Ok(found);
        }
        from = found + 1;
        if from > area + bytes - length {
            return Ok(0);
        }
    }
}
