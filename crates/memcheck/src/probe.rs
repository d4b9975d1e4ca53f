//! Looking at memory of the target that may not be there: a load (and store) whose fault is part of the plan.
//!
//! The handler of SIGSEGV and SIGBUS asks [`landing`] first. Any thread, any time.

use std::arch::global_asm;

global_asm!(
    ".globl leakscope_probe_read",
    "leakscope_probe_read:",
    "mov al, byte ptr [rdi]",
    ".globl leakscope_probe_read_end",
    "leakscope_probe_read_end:",
    "mov eax, 1",
    "ret",
    ".globl leakscope_probe_write",
    "leakscope_probe_write:",
    "lock or byte ptr [rdi], 0",
    ".globl leakscope_probe_write_end",
    "leakscope_probe_write_end:",
    "mov eax, 1",
    "ret",
    ".globl leakscope_probe_failed",
    "leakscope_probe_failed:",
    "xor eax, eax",
    "ret",
);

unsafe extern "C" {
    fn leakscope_probe_read(address: u64) -> u64;
    fn leakscope_probe_read_end();
    fn leakscope_probe_write(address: u64) -> u64;
    fn leakscope_probe_write_end();
    fn leakscope_probe_failed();
}

/// Whether a byte can be read. Only with [`landing`] in the handler of SIGSEGV and SIGBUS.
#[inline]
pub fn can_read(address: u64) -> bool {
    // SAFETY: a fault of the only load goes on at the other return.
    unsafe { leakscope_probe_read(address) != 0 }
}

/// Whether a byte can be written; it keeps its value.
#[inline]
pub fn can_write(address: u64) -> bool {
    // SAFETY: as above; the access is one locked instruction, so that no other thread's write is undone.
    unsafe { leakscope_probe_write(address) != 0 }
}

/// Where to go on when an instruction at this address faulted, if it is one of ours.
pub fn landing(pc: u64) -> Option<u64> {
    let within = |start: unsafe extern "C" fn(u64) -> u64, end: unsafe extern "C" fn()| {
        (start as usize as u64..end as usize as u64).contains(&pc)
    };
    let is_ours = within(leakscope_probe_read, leakscope_probe_read_end)
        || within(leakscope_probe_write, leakscope_probe_write_end);
    is_ours.then_some(leakscope_probe_failed as *const () as u64)
}

/// Copies memory of the target as far as it can be read; `false` when not all of it can.
pub fn read(address: u64, into: &mut [u8]) -> bool {
    const PAGE: u64 = 4096;
    let mut done = 0;
    while done < into.len() {
        let at = address.wrapping_add(done as u64);
        if !can_read(at) {
            return false;
        }
        let room = ((PAGE - at % PAGE) as usize).min(into.len() - done);
        // SAFETY: the rest of a page of which a byte can be read.
        unsafe { std::ptr::copy_nonoverlapping(at as *const u8, into[done..].as_mut_ptr(), room) };
        done += room;
    }
    true
}

/// A word of the target's memory.
pub fn word(address: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    read(address, &mut bytes).then(|| u64::from_le_bytes(bytes))
}

/// A string of the target's memory, at most `most` bytes of it.
pub fn text(address: u64, most: usize) -> Option<Vec<u8>> {
    let mut found = Vec::new();
    let mut byte = [0];
    while found.len() < most {
        if !read(address.wrapping_add(found.len() as u64), &mut byte) {
            return None;
        }
        if byte[0] == 0 {
            return Some(found);
        }
        found.push(byte[0]);
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    extern "C" fn handler(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
        // SAFETY: the kernel gives a ucontext.
        unsafe {
            let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
            match landing(registers[libc::REG_RIP as usize] as u64) {
                Some(pc) => registers[libc::REG_RIP as usize] = pc as i64,
                None => libc::abort(),
            }
        }
    }

    #[test]
    fn what_is_not_there_is_no_fault() {
        // SAFETY: the handler is async-signal-safe; the maps are this test's own.
        let base = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
            libc::sigaction(libc::SIGSEGV, &action, std::ptr::null_mut());
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
        assert_eq!(text(base + 8192 - 3, 3), Some(b"xxx".to_vec()));
        assert_eq!((text(base + 8192 - 3, 4), word(base + 8192 - 7)), (None, None));
        assert_eq!(word(base), Some(u64::from_le_bytes([b'x'; 8])));
    }
}
