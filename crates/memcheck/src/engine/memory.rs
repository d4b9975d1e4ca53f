//! Pages for the target's heap.

use crate::heap::Pages;

use super::shadow;

/// Maps memory at the places that the heap names.
#[derive(Clone, Copy, Debug)]
pub struct GuestPages;

const LARGE: u64 = 2 << 20;

fn prefer_large_pages(address: u64, bytes: u64) {
    // SAFETY: advice for mappings of the engine's own; where it is not followed nothing changes. It sets no errno that
    // anybody reads: whoever grows the heap runs with the engine's FS.
    unsafe { libc::madvise(address as *mut _, bytes as usize, libc::MADV_HUGEPAGE) };
}

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

    fn map_large(&mut self, address: u64, bytes: u64) -> bool {
        if !map(address, bytes, libc::PROT_READ | libc::PROT_WRITE) {
            return false;
        }
        prefer_large_pages(address, bytes);
        // The shadow's large pages have other borders.
        let first = shadow().address_of(address) & !(LARGE - 1);
        prefer_large_pages(first + LARGE, (bytes & !(LARGE - 1)).max(LARGE));
        true
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
