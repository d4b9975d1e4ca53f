//! Copying and filling.

use super::scan::{strlen, strnlen};
use super::{Fault, Watched, check_bytes, check_granules, check_pages};

const WORD: u64 = 8;

/// Whether two ranges share a byte.
fn overlaps(destination: u64, destination_bytes: u64, source: u64, source_bytes: u64) -> bool {
    if destination_bytes == 0 || source_bytes == 0 {
        return false;
    }
    if destination <= source { source - destination < destination_bytes } else { destination - source < source_bytes }
}

/// The bytes of a copy, with what is wrong about them.
fn transfer(memory: &mut impl Watched, destination: u64, source: u64, bytes: u64) -> Result<(), Fault> {
    check_pages(memory, source, bytes, false)?;
    check_pages(memory, destination, bytes, true)?;
    let shadow = memory.shadow();
    if !shadow.is_allowed(source, bytes) || !shadow.is_allowed(destination, bytes) {
        say_what_is_wrong(memory, destination, source, bytes);
    }
    // SAFETY: both ranges are mapped and usable so; `copy` allows for overlap.
    unsafe { core::ptr::copy(source as *const u8, destination as *mut u8, bytes as usize) };
    Ok(())
}

/// Memcheck's copy goes by words where both sides can be aligned at once: bytes up to the boundary, words, bytes.
fn say_what_is_wrong(memory: &mut impl Watched, destination: u64, source: u64, bytes: u64) {
    let (head, words) = if destination % WORD == source % WORD {
        let head = destination.wrapping_neg() % WORD;
        if bytes >= head { (head, (bytes - head) / WORD * WORD) } else { (bytes, 0) }
    } else {
        (0, 0)
    };
    let tail = bytes - head - words;
    let parts = [(0, head, 1), (head, words, WORD), (head + words, tail, 1)];
    for (place, (from, length, granule)) in parts.into_iter().enumerate() {
        check_granules(memory, source + from, length, granule, false, 2 * place as u8);
        check_granules(memory, destination + from, length, granule, true, 2 * place as u8 + 1);
    }
}

/// `memmove`; gives the destination.
pub fn memmove(memory: &mut impl Watched, destination: u64, source: u64, bytes: u64) -> Result<u64, Fault> {
    transfer(memory, destination, source, bytes)?;
    Ok(destination)
}

/// `memcpy`: the ranges must not overlap.
pub fn memcpy(memory: &mut impl Watched, destination: u64, source: u64, bytes: u64) -> Result<u64, Fault> {
    if overlaps(destination, bytes, source, bytes) {
        memory.overlap(destination, source, Some(bytes));
    }
    memmove(memory, destination, source, bytes)
}

/// `memset`
pub fn memset(memory: &mut impl Watched, destination: u64, value: u8, bytes: u64) -> Result<u64, Fault> {
    check_pages(memory, destination, bytes, true)?;
    if !memory.shadow().is_allowed(destination, bytes) {
        let head = (destination.wrapping_neg() % WORD).min(bytes);
        let words = (bytes - head) / WORD * WORD;
        check_bytes(memory, destination, head, true, 0);
        check_granules(memory, destination + head, words, WORD, true, 1);
        check_bytes(memory, destination + head + words, bytes - head - words, true, 2);
    }
    // SAFETY: mapped and writable.
    unsafe { core::ptr::write_bytes(destination as *mut u8, value, bytes as usize) };
    Ok(destination)
}

/// Copies `length` bytes of a string that was read already, and says what is wrong with the destination.
fn put(memory: &mut impl Watched, destination: u64, source: u64, length: u64) -> Result<(), Fault> {
    check_pages(memory, destination, length, true)?;
    check_bytes(memory, destination, length, true, 1);
    // SAFETY: the source was read, the destination is writable; `copy` allows for overlap.
    unsafe { core::ptr::copy(source as *const u8, destination as *mut u8, length as usize) };
    Ok(())
}

/// Writes zeros byte by byte.
fn pad(memory: &mut impl Watched, destination: u64, bytes: u64) -> Result<(), Fault> {
    check_pages(memory, destination, bytes, true)?;
    check_bytes(memory, destination, bytes, true, 2);
    // SAFETY: mapped and writable.
    unsafe { core::ptr::write_bytes(destination as *mut u8, 0, bytes as usize) };
    Ok(())
}

/// `stpcpy`: gives the end of the copy.
pub fn stpcpy(memory: &mut impl Watched, destination: u64, source: u64) -> Result<u64, Fault> {
    let length = strlen(memory, source)?;
    if overlaps(destination, length + 1, source, length + 1) {
        memory.overlap(destination, source, None);
    }
    put(memory, destination, source, length + 1)?;
    Ok(destination + length)
}

/// `strcpy`
pub fn strcpy(memory: &mut impl Watched, destination: u64, source: u64) -> Result<u64, Fault> {
    stpcpy(memory, destination, source)?;
    Ok(destination)
}

/// `stpncpy`: gives the first zero that was written, or the end.
pub fn stpncpy(memory: &mut impl Watched, destination: u64, source: u64, bytes: u64) -> Result<u64, Fault> {
    let length = strnlen(memory, source, bytes)?;
    let read = (length + 1).min(bytes);
    if overlaps(destination, bytes, source, read) {
        memory.overlap(destination, source, Some(bytes));
    }
    put(memory, destination, source, length)?;
    pad(memory, destination + length, bytes - length)?;
    Ok(destination + length)
}

/// `strncpy`
pub fn strncpy(memory: &mut impl Watched, destination: u64, source: u64, bytes: u64) -> Result<u64, Fault> {
    stpncpy(memory, destination, source, bytes)?;
    Ok(destination)
}

/// `strcat`
pub fn strcat(memory: &mut impl Watched, destination: u64, source: u64) -> Result<u64, Fault> {
    let end = destination + strlen(memory, destination)?;
    let length = strlen(memory, source)?;
    if overlaps(destination, end - destination + length + 1, source, length + 1) {
        memory.overlap(destination, source, None);
    }
    put(memory, end, source, length + 1)?;
    Ok(destination)
}

/// `strncat`
pub fn strncat(memory: &mut impl Watched, destination: u64, source: u64, most: u64) -> Result<u64, Fault> {
    let end = destination + strlen(memory, destination)?;
    let length = strnlen(memory, source, most)?;
    if overlaps(destination, end - destination + length + 1, source, (length + 1).min(most)) {
        memory.overlap(destination, source, Some(most));
    }
    put(memory, end, source, length)?;
    pad(memory, end + length, 1)?;
    Ok(destination)
}

/// `strlcpy`: gives the length of the source.
pub fn strlcpy(memory: &mut impl Watched, destination: u64, source: u64, size: u64) -> Result<u64, Fault> {
    let length = strlen(memory, source)?;
    if size > 0 {
        let copied = length.min(size - 1);
        if overlaps(destination, copied + 1, source, length + 1) {
            memory.overlap(destination, source, Some(size));
        }
        put(memory, destination, source, copied)?;
        pad(memory, destination + copied, 1)?;
    }
    Ok(length)
}

/// `strlcat`: gives the length that it tried to make.
pub fn strlcat(memory: &mut impl Watched, destination: u64, source: u64, size: u64) -> Result<u64, Fault> {
    let before = strnlen(memory, destination, size)?;
    let length = strlen(memory, source)?;
    if before < size {
        let copied = length.min(size - before - 1);
        if overlaps(destination, before + copied + 1, source, length + 1) {
            memory.overlap(destination, source, Some(size));
        }
        put(memory, destination + before, source, copied)?;
        pad(memory, destination + before + copied, 1)?;
    }
    Ok(before + length)
}
