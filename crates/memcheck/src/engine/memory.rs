//! Pages for the target's heap.

use crate::heap::Pages;

use super::shadow;

/// Maps memory at the places that the heap names.
#[derive(Clone, Copy, Debug)]
pub struct GuestPages;

fn map(address: u64, bytes: u64, protection: i32) -> bool {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    // SAFETY: the heap's range of addresses is the heap's alone.
    let at = unsafe { libc::mmap(address as *mut _, bytes as usize, protection, flags, -1, 0) };
    at as u64 == address
}

impl Pages for GuestPages {
    fn map(&mut self, address: u64, bytes: u64) -> bool {
        map(address, bytes, libc::PROT_READ | libc::PROT_WRITE)
    }

    fn revoke(&mut self, address: u64, bytes: u64) {
        map(address, bytes, libc::PROT_NONE);
        forget_shadow(address, bytes);
    }
}

/// Makes the shadow of whole pages zero, and gives its memory back.
pub fn forget_shadow(address: u64, bytes: u64) {
    const LEAST: u64 = 64 << 10;
    if bytes < LEAST {
        shadow().allow(address, bytes);
        return;
    }
    // SAFETY: shadow memory is private and anonymous: dropped pages read as zero.
    let dropped =
        unsafe { libc::madvise(shadow().address_of(address) as *mut _, bytes as usize, libc::MADV_DONTNEED) == 0 };
    if !dropped {
        shadow().allow(address, bytes);
    }
}
