//! The one thread-local word: the calling thread's [`crate::thread::Thread`], by initial-exec TLS in assembly
//! (`thread_local!` in a shared library calls `__tls_get_addr`, which may allocate).

use core::arch::{asm, global_asm};

global_asm!(
    ".section .tbss.leakscope_asan_tls,\"awT\",@nobits",
    ".balign 16",
    ".hidden leakscope_asan_tls",
    ".globl leakscope_asan_tls",
    ".type leakscope_asan_tls,@object",
    "leakscope_asan_tls: .zero 16",
    ".size leakscope_asan_tls,16",
    ".text",
);

/// The calling thread's two words, by number.
#[inline(always)]
fn words() -> *mut usize {
    let words: *mut usize;
    // SAFETY: reads the thread pointer and the offset that the linker put into the GOT.
    unsafe {
        asm!(
            "mov {0}, qword ptr [rip + leakscope_asan_tls@GOTTPOFF]",
            "add {0}, qword ptr fs:[0]",
            out(reg) words,
            options(pure, readonly, nostack, preserves_flags)
        );
    }
    words
}

/// The first word: the thread's record, 0 when it has none.
#[inline(always)]
pub fn thread_word() -> usize {
    // SAFETY: the calling thread's own word.
    unsafe { *words() }
}

/// Sets the first word.
pub fn set_thread_word(word: usize) {
    // SAFETY: the calling thread's own word.
    unsafe { *words() = word }
}

/// The second word: marks of the moment, see the constants in [`mark`].
#[inline(always)]
pub fn marks() -> usize {
    // SAFETY: the calling thread's own word.
    unsafe { *words().add(1) }
}

/// Sets the second word.
#[inline(always)]
pub fn set_marks(marks: usize) {
    // SAFETY: the calling thread's own word.
    unsafe { *words().add(1) = marks }
}

/// Bits of [`marks`].
pub mod mark {
    /// Inside libc on our own behalf: no checks.
    pub const OURS: usize = 1;
    /// The thread has ended: it gets no new record.
    pub const ENDED: usize = 2;
    /// In a call of the heap that began while that slept.
    pub const IN_HEAP: usize = 4;
}
