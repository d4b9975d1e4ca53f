//! Hooks of the functions with which a program looks at the allocator's books: releases that wait are carried out
//! first, so that it sees the numbers that it would see without us.

use crate::{allocator, originals};
use core::arch::naked_asm;
use leakscope_rt::unwind::Registers;

/// Hooks that save the arguments (two at most, a hidden pointer to the result included), have the calling thread's
/// releases carried out, and enter the original.
macro_rules! query_hooks {
    ($($symbol:ident => $body:ident;)*) => { $(
        unsafe extern "C" fn $body(rsp: u64, rbp: u64) {
            originals::$symbol::ORIGINAL.find_or_abort();
            // SAFETY: the hook below passes its own stack.
            unsafe { allocator::release_waiting(Registers { rsp, rbp }) };
        }

        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $symbol() {
            naked_asm!(
                ".cfi_startproc",
                "push rdi",
                ".cfi_adjust_cfa_offset 8",
                "push rsi",
                ".cfi_adjust_cfa_offset 8",
                "lea rdi, [rsp + 16]",
                "mov rsi, rbp",
                // Three words with the return address: one is missing to a multiple of 16.
                "sub rsp, 8",
                ".cfi_adjust_cfa_offset 8",
                "call {body}",
                "add rsp, 8",
                ".cfi_adjust_cfa_offset -8",
                "pop rsi",
                ".cfi_adjust_cfa_offset -8",
                "pop rdi",
                ".cfi_adjust_cfa_offset -8",
                "jmp qword ptr [rip + {original}]",
                ".cfi_endproc",
                body = sym $body,
                original = sym originals::$symbol::ORIGINAL,
            )
        }
    )* };
}

query_hooks! {
    mallinfo => mallinfo_body;
    mallinfo2 => mallinfo2_body;
    malloc_info => malloc_info_body;
    malloc_stats => malloc_stats_body;
    malloc_trim => malloc_trim_body;
}
