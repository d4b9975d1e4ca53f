//! The C library's string and memory functions, with every byte that they touch looked up.
//!
//! The C library's own read more than they may: whole vectors, aligned so that they never fault. An address checker
//! would find errors there that are none, and miss those that are some. So these stand in for them, as Memcheck's do.
//! What is wrong is reported in the granules in which Memcheck's versions touch memory, so that sizes in
//! reports agree: bytes in strings, words where copies can go by words. The work is done all the same, as the
//! processor would do it, but for memory that is not mapped: then the function gives [`Fault`].
//!
//! Source: C11 7.24 and 7.29.4, POSIX.1-2017, glibc's manual ("String and Array Utilities"); Valgrind's manual, section
//! 4.2.7 (overlaps), and the behaviour of 3.19.

mod compare;
mod copy;
pub mod quick;
mod scan;
mod search;
#[cfg(test)]
mod tests;
mod wide;

use leakscope_shadow::Shadow;

pub use compare::{memcmp, strcasecmp, strcmp};
pub use copy::{memcpy, memmove, memset, stpcpy, stpncpy, strcat, strcpy, strlcat, strlcpy, strncat, strncpy};
pub use scan::{memchr, memrchr, strchr, strlen, strnlen, strrchr};
pub use search::{memmem, span, strcasestr, strstr};
pub use wide::{wcschr, wcscmp, wcscpy, wcslen, wcsnlen, wcsrchr, wmemchr, wmemcmp, wmemset};

/// Memory of the target is not mapped, or may not be used in this way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The first byte that could not be used.
    pub address: u64,
    /// It was to be written.
    pub write: bool,
}

/// An access of a function to bytes that the target may not use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bad {
    /// The first byte of the access.
    pub address: u64,
    /// Its size.
    pub bytes: u64,
    /// It was to be written.
    pub write: bool,
    /// Which of the function's accesses: those of different places in it are different errors.
    pub place: u8,
}

/// The target's memory, and who wants to know what is wrong with it.
pub trait Watched {
    /// Its shadow.
    fn shadow(&self) -> Shadow;

    /// Whether the page with this byte can be read (and written).
    fn is_usable(&mut self, address: u64, write: bool) -> bool;

    /// An access was wrong; it is carried out all the same.
    fn bad(&mut self, bad: Bad);

    /// Source and destination overlap. `bytes` is given where the function has a length.
    fn overlap(&mut self, destination: u64, source: u64, bytes: Option<u64>);
}

const PAGE: u64 = 4096;

/// Makes sure that a range can be used at all, page by page.
fn check_pages(memory: &mut impl Watched, address: u64, bytes: u64, write: bool) -> Result<(), Fault> {
    if bytes == 0 {
        return Ok(());
    }
    let mut at = address;
    loop {
        if !memory.is_usable(at, write) {
            return Err(Fault { address: at, write });
        }
        let next = (at | (PAGE - 1)).wrapping_add(1);
        if next == 0 || next.wrapping_sub(address) >= bytes {
            return Ok(());
        }
        at = next;
    }
}

/// Looks up a range that is touched byte by byte, and says what is wrong with it.
fn check_bytes(memory: &mut impl Watched, address: u64, bytes: u64, write: bool, place: u8) {
    check_granules(memory, address, bytes, 1, write, place);
}

/// The same for a range that is touched in granules of a size.
fn check_granules(memory: &mut impl Watched, address: u64, bytes: u64, granule: u64, write: bool, place: u8) {
    let shadow = memory.shadow();
    let mut done = 0;
    while done < bytes {
        let Some(first) = shadow.first_forbidden(address + done, bytes - done) else { return };
        let start = (done + first) / granule * granule;
        memory.bad(Bad { address: address + start, bytes: granule.min(bytes - start), write, place });
        done = start + granule;
    }
}

/// A byte of the target that is known to be readable.
fn byte(address: u64) -> u8 {
    // SAFETY: callers have asked `is_usable` for the page.
    unsafe { *(address as *const u8) }
}
