//! The same for strings of `wchar_t`, four bytes each.

use super::copy::memmove;
use super::{Bad, Fault, Watched, check_granules, check_pages};

const WIDTH: u64 = 4;

/// Reads one character.
fn read(memory: &mut impl Watched, at: u64) -> Result<i32, Fault> {
    check_pages(memory, at, WIDTH, false)?;
    if !memory.shadow().is_allowed(at, WIDTH) {
        memory.bad(Bad { address: at, bytes: WIDTH, write: false, place: 0 });
    }
    // SAFETY: readable; wide strings need not be aligned.
    Ok(unsafe { (at as *const i32).read_unaligned() })
}

/// `wcsnlen`
pub fn wcsnlen(memory: &mut impl Watched, string: u64, most: u64) -> Result<u64, Fault> {
    for length in 0..most {
        if read(memory, string + length * WIDTH)? == 0 {
            return Ok(length);
        }
    }
    Ok(most)
}

/// `wcslen`
pub fn wcslen(memory: &mut impl Watched, string: u64) -> Result<u64, Fault> {
    wcsnlen(memory, string, u64::MAX)
}

/// `wcschr`
pub fn wcschr(memory: &mut impl Watched, string: u64, wanted: i32) -> Result<u64, Fault> {
    let mut at = string;
    loop {
        let character = read(memory, at)?;
        if character == wanted {
            return Ok(at);
        }
        if character == 0 {
            return Ok(0);
        }
        at += WIDTH;
    }
}

/// `wcsrchr`
pub fn wcsrchr(memory: &mut impl Watched, string: u64, wanted: i32) -> Result<u64, Fault> {
    let (mut at, mut last) = (string, 0);
    loop {
        let character = read(memory, at)?;
        if character == wanted {
            last = at;
        }
        if character == 0 {
            return Ok(last);
        }
        at += WIDTH;
    }
}

/// `wmemchr`
pub fn wmemchr(memory: &mut impl Watched, area: u64, wanted: i32, characters: u64) -> Result<u64, Fault> {
    for number in 0..characters {
        if read(memory, area + number * WIDTH)? == wanted {
            return Ok(area + number * WIDTH);
        }
    }
    Ok(0)
}

fn compare(memory: &mut impl Watched, a: u64, b: u64, most: u64, strings: bool) -> Result<i32, Fault> {
    for number in 0..most {
        let (one, other) = (read(memory, a + number * WIDTH)?, read(memory, b + number * WIDTH)?);
        if one != other {
            return Ok(if one < other { -1 } else { 1 });
        }
        if strings && one == 0 {
            break;
        }
    }
    Ok(0)
}

/// `wcscmp`, and `wcsncmp` with a limit.
pub fn wcscmp(memory: &mut impl Watched, a: u64, b: u64, most: u64) -> Result<i32, Fault> {
    compare(memory, a, b, most, true)
}

/// `wmemcmp`
pub fn wmemcmp(memory: &mut impl Watched, a: u64, b: u64, characters: u64) -> Result<i32, Fault> {
    compare(memory, a, b, characters, false)
}

/// `wcscpy`; gives the end of the copy, as `wcpcpy` does.
pub fn wcscpy(memory: &mut impl Watched, destination: u64, source: u64) -> Result<u64, Fault> {
    let bytes = (wcslen(memory, source)? + 1) * WIDTH;
    if destination < source + bytes && source < destination + bytes {
        memory.overlap(destination, source, None);
    }
    check_pages(memory, destination, bytes, true)?;
    check_granules(memory, destination, bytes, WIDTH, true, 1);
    // SAFETY: the source was read, the destination is writable; `copy` allows for overlap.
    unsafe { core::ptr::copy(source as *const u8, destination as *mut u8, bytes as usize) };
    Ok(destination + bytes - WIDTH)
}

/// `wmemset`
pub fn wmemset(memory: &mut impl Watched, destination: u64, value: i32, characters: u64) -> Result<u64, Fault> {
    if characters == 0 {
        return Ok(destination);
    }
    let bytes = characters * WIDTH;
    check_pages(memory, destination, bytes, true)?;
    check_granules(memory, destination, bytes, WIDTH, true, 1);
    // SAFETY: writable; the first character is then doubled up by copies.
    unsafe { (destination as *mut i32).write_unaligned(value) };
    let mut filled = WIDTH;
    while filled < bytes {
        let next = filled.min(bytes - filled);
        memmove(memory, destination + filled, destination, next)?;
        filled += next;
    }
    Ok(destination)
}
