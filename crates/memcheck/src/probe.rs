//! Looking at memory of the target that may not be there, by the guest kernel's copies that survive a fault.
//!
//! Those refuse what lies outside of the target's address space. Tests look at their own memory, through the kernel.

#[cfg(not(test))]
fn read_bytes(address: u64, into: &mut [u8]) -> bool {
    leakscope_guest::raw::read_bytes(address, into).is_ok()
}

#[cfg(not(test))]
fn write_bytes(address: u64, from: &[u8]) -> bool {
    leakscope_guest::raw::write_bytes(address, from).is_ok()
}

#[cfg(test)]
fn read_bytes(address: u64, into: &mut [u8]) -> bool {
    let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let remote = libc::iovec { iov_base: address as *mut _, iov_len: into.len() };
    // SAFETY: writes to `into` only, as long as it is; what cannot be read makes the call fail.
    unsafe { libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 0) == into.len() as isize }
}

#[cfg(test)]
fn write_bytes(address: u64, from: &[u8]) -> bool {
    let local = libc::iovec { iov_base: from.as_ptr().cast_mut().cast(), iov_len: from.len() };
    let remote = libc::iovec { iov_base: address as *mut _, iov_len: from.len() };
    // SAFETY: `can_write`, which alone calls this, writes what is there already.
    unsafe { libc::process_vm_writev(libc::getpid(), &local, 1, &remote, 1, 0) == from.len() as isize }
}

/// Whether a byte can be read.
#[inline]
pub fn can_read(address: u64) -> bool {
    read_bytes(address, &mut [0])
}

/// Whether a byte can be written; it keeps its value. No other thread of the target runs meanwhile.
pub fn can_write(address: u64) -> bool {
    let mut byte = [0];
    read_bytes(address, &mut byte) && write_bytes(address, &byte)
}

/// Copies memory of the target; `false` when not all of it can be read.
#[inline]
pub fn read(address: u64, into: &mut [u8]) -> bool {
    read_bytes(address, into)
}

/// A word of the target's memory.
#[cfg(not(test))]
#[inline]
pub fn word(address: u64) -> Option<u64> {
    leakscope_translate::read_word(address)
}

/// A word of the test's memory.
#[cfg(test)]
pub fn word(address: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    read_bytes(address, &mut bytes).then(|| u64::from_le_bytes(bytes))
}

/// A string of the target's memory, at most `most` bytes of it.
pub fn text(address: u64, most: usize) -> Option<Vec<u8>> {
    let mut found = Vec::new();
    let mut byte = [0];
    while found.len() < most {
        if !read_bytes(address.wrapping_add(found.len() as u64), &mut byte) {
            return None;
        }
        if byte[0] == 0 {
            return Some(found);
        }
        found.push(byte[0]);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_no_fault() {
        // SAFETY: the maps are this test's own.
        let base = unsafe {
            let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let base = libc::mmap(std::ptr::null_mut(), 3 * 4096, libc::PROT_READ | libc::PROT_WRITE, anonymous, -1, 0);
            std::ptr::write_bytes(base.cast::<u8>(), b'x', 2 * 4096);
            libc::mprotect(base.byte_add(4096), 4096, libc::PROT_READ);
            libc::mprotect(base.byte_add(8192), 4096, libc::PROT_NONE);
            base as u64
        };
        assert_eq!([base, base + 4096, base + 8192, 0].map(can_read), [true, true, false, false]);
        assert_eq!([base, base + 4096, base + 8192, 0].map(can_write), [true, false, false, false]);
        let mut bytes = [0; 100];
        assert!(read(base + 4096 - 50, &mut bytes) && bytes == [b'x'; 100]);
        assert!(!read(base + 8192 - 50, &mut bytes));
        assert_eq!((text(base + 8192 - 3, 3), text(base + 8192 - 3, 4), word(base + 8192 - 7)), (None, None, None));
        assert_eq!(word(base), Some(u64::from_le_bytes([b'x'; 8])));
        assert_eq!(text(c"text".as_ptr() as u64, 5), Some(b"text".to_vec()));
    }
}
