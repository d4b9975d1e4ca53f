//! Reading the target's code, mapping the engine's memory: the raw operations that the rest builds on.

use crate::{Error, probe};

/// Maps zeroed memory at a fixed address that must be free.
pub(crate) fn map(what: &'static str, address: u64, bytes: usize, protection: i32) -> Result<(), Error> {
    // SAFETY: NOREPLACE never touches what is mapped already.
    let got = unsafe {
        libc::mmap(
            address as *mut libc::c_void,
            bytes,
            protection,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE,
            -1,
            0,
        )
    };
    if got as u64 == address {
        return Ok(());
    }
    let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
    if got != libc::MAP_FAILED {
        // SAFETY: an old kernel took the address for a hint; the mapping is ours.
        unsafe { libc::munmap(got, bytes) };
    }
    Err(Error::AddressTaken { what, address, errno: if errno == 0 { libc::EEXIST } else { errno } })
}

/// A large page of the processor.
pub(crate) const LARGE_PAGE: u64 = 2 << 20;

/// Asks for large pages: translated code is spread over many small ones, and each costs a fault and a TLB entry.
pub(crate) fn prefer_large_pages(address: u64, bytes: usize) {
    // SAFETY: advice for the engine's own mapping; where it is not followed nothing changes.
    unsafe { libc::madvise(address as *mut libc::c_void, bytes, libc::MADV_HUGEPAGE) };
}

/// Makes one large page of memory that is in use already. Kernels before 6.1 cannot, and leave it as it is.
pub(crate) fn make_large_page(address: u64) {
    const MADV_COLLAPSE: i32 = 25;
    prefer_large_pages(address, LARGE_PAGE as usize);
    // SAFETY: as above.
    unsafe { libc::madvise(address as *mut libc::c_void, LARGE_PAGE as usize, MADV_COLLAPSE) };
}

/// Unmaps what [`map`] mapped.
pub(crate) fn unmap(address: u64, bytes: usize) {
    // SAFETY: the engine owns the range and is being dropped.
    unsafe { libc::munmap(address as *mut libc::c_void, bytes) };
}

/// Changes the protection of the target's pages.
pub(crate) fn protect(start: u64, end: u64, protection: i32) {
    // SAFETY: at most takes the right to write away from the target's pages, or gives back what the target set.
    unsafe { libc::mprotect(start as *mut libc::c_void, (end - start) as usize, protection) };
}

/// The target's code as a slice.
///
/// # Safety
/// The tool said that `[start, end)` is executable memory, so it is mapped; nothing runs that writes to it while the
/// slice lives (the target is stopped in the run loop).
pub(crate) unsafe fn code<'a>(start: u64, end: u64) -> &'a [u8] {
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance(start as usize), (end - start) as usize) }
}

/// Puts code into the cache.
///
/// # Safety
/// `[at, at + bytes.len())` lies in the cache, and no thread executes it now.
pub(crate) unsafe fn put(at: u64, bytes: &[u8]) {
    // SAFETY: the caller's promise; the cache is mapped readable, writable and executable.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), std::ptr::with_exposed_provenance_mut(at as usize), bytes.len());
    }
}

/// Ranges longer than this are looked at in part: the access itself will fault in what is not mapped.
const LONGEST_LOOK: u64 = 256 << 20;

/// Whether any byte of the target's range has a shadow that is not 0. Shadow that is not mapped counts as 0.
pub(crate) fn shadow_is_set(address: u64, bytes: u64) -> bool {
    let end = address.saturating_add(bytes.min(LONGEST_LOOK));
    if end > crate::GUEST_END {
        return false;
    }
    let mut at = address;
    while at < end {
        let next = end.min((at & !0xfff) + 0x1000);
        let (from, to) = (at + crate::SHADOW_OFFSET, next + crate::SHADOW_OFFSET);
        // SAFETY: the first byte could be read, so its page is mapped, and the range ends with the page.
        if probe::read(from, 1).is_some() && unsafe { code(from, to) }.iter().any(|&byte| byte != 0) {
            return true;
        }
        at = next;
    }
    false
}

/// Sets bytes of the shadow, which is mapped for everything that the target uses as a stack.
pub(crate) fn fill_shadow(at: u64, bytes: u64, value: u8) {
    // SAFETY: shadow memory; nobody holds references into it.
    unsafe { std::ptr::write_bytes(std::ptr::with_exposed_provenance_mut::<u8>(at as usize), value, bytes as usize) };
}

/// Sets GS base of this thread to the shadow's offset.
pub(crate) fn set_gs_to_shadow() {
    // SAFETY: `Engine::new` found FSGSBASE; nothing on x86-64 Linux in user mode uses GS but the target, whose GS base
    // is virtual.
    unsafe { std::arch::asm!("wrgsbase {}", in(reg) crate::SHADOW_OFFSET, options(nostack, nomem)) };
}
