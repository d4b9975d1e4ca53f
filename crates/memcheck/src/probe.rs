//! Looking at memory of the target that may not be there, by the guest kernel's copies that survive a fault.

use leakscope_guest::raw;

/// Whether a byte can be read.
#[inline]
pub fn can_read(address: u64) -> bool {
    raw::read_bytes(address, &mut [0]).is_ok()
}

/// Whether a byte can be written; it keeps its value. No other thread of the target runs meanwhile.
pub fn can_write(address: u64) -> bool {
    let mut byte = [0];
    raw::read_bytes(address, &mut byte).is_ok() && raw::write_bytes(address, &byte).is_ok()
}

/// Copies memory of the target; `false` when not all of it can be read.
pub fn read(address: u64, into: &mut [u8]) -> bool {
    raw::read_bytes(address, into).is_ok()
}

/// A word of the target's memory.
#[inline]
pub fn word(address: u64) -> Option<u64> {
    raw::read_u64(address).ok()
}

/// A string of the target's memory, shorter than `most` bytes.
pub fn text(address: u64, most: usize) -> Option<Vec<u8>> {
    raw::read_string(address, most).ok()
}
