//! Reads the target's memory where nothing may be mapped: a fault ends the read, not the process.

use std::arch::global_asm;

global_asm!(
    // rdi: to, rsi: from, rcx: bytes (fourth argument); gives the bytes that are left, not 0 after a fault.
    ".globl leakscope_translate_probe",
    "leakscope_translate_probe:",
    "rep movsb",
    ".globl leakscope_translate_probe_end",
    "leakscope_translate_probe_end:",
    "mov rax, rcx",
    "ret",
    // rdi: from; gives the word, and 0 in rdx.
    ".globl leakscope_translate_probe_word",
    "leakscope_translate_probe_word:",
    "mov rax, qword ptr [rdi]",
    "xor edx, edx",
    "ret",
    ".globl leakscope_translate_probe_no_word",
    "leakscope_translate_probe_no_word:",
    "mov edx, 1",
    "ret",
);

#[repr(C)]
struct Word {
    value: u64,
    is_missing: u64,
}

unsafe extern "C" {
    fn leakscope_translate_probe(to: *mut u8, from: *const u8, unused: u64, bytes: u64) -> u64;
    fn leakscope_translate_probe_end();
    fn leakscope_translate_probe_word(from: *const u64) -> Word;
    fn leakscope_translate_probe_no_word();
}

/// Reads a word of the target's memory; `None` when it is not all there.
#[inline]
#[must_use]
pub fn word(address: u64) -> Option<u64> {
    if address > crate::GUEST_END - 8 {
        return None;
    }
    let from = std::ptr::with_exposed_provenance(address as usize);
    // SAFETY: a fault is taken by `signal::take`, as in `read`.
    let word = unsafe { leakscope_translate_probe_word(from) };
    (word.is_missing == 0).then_some(word.value)
}

/// Reads up to eight bytes, zero-extended.
pub(crate) fn read(address: u64, bytes: u64) -> Option<u64> {
    let mut value = [0u8; 8];
    let from = std::ptr::with_exposed_provenance(address as usize);
    // SAFETY: writes `bytes <= 8` bytes to `value`; a fault of the read is taken by `signal::take`, which goes on at the
    // end. Without signal handlers the process dies of it, as the target would.
    let left = unsafe { leakscope_translate_probe(value.as_mut_ptr(), from, 0, bytes.min(8)) };
    (left == 0).then(|| u64::from_le_bytes(value))
}

/// Where a fault at this address of the engine goes on.
pub(crate) fn after_fault(host_pc: u64) -> Option<u64> {
    if host_pc == leakscope_translate_probe_word as *const () as u64 {
        return Some(leakscope_translate_probe_no_word as *const () as u64);
    }
    let end = leakscope_translate_probe_end as *const () as u64;
    (leakscope_translate_probe as *const () as u64..end).contains(&host_pc).then_some(end)
}
