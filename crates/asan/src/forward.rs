//! Functions that LLVM's run-time also takes over and that need no check here (yet). A program that was linked against
//! it asks for them without a version, and would get libc's oldest: `realpath(".", NULL)` of 1997 returns NULL. These
//! hooks lead to the newest.
//!
//! Each is a jump through a slot that is filled at the first call; all registers of arguments survive that.

use core::arch::naked_asm;
use leakscope_asan_rt::originals::Original;

macro_rules! forward {
    ($($name:ident)*) => { $(
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name() {
            static ORIGINAL: Original = Original::new(
                match core::ffi::CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                    Ok(name) => name,
                    Err(_) => c"",
                },
            );
            naked_asm!(
                ".cfi_startproc",
                "lea r11, [rip + {slot}]",
                "cmp qword ptr [r11], 0",
                "je {find}",
                "jmp qword ptr [r11]",
                ".cfi_endproc",
                slot = sym ORIGINAL,
                find = sym find,
            )
        }
    )* };
}

/// Looks for the original of the slot in r11, and goes on there.
#[unsafe(naked)]
unsafe extern "C" fn find() {
    naked_asm!(
        ".cfi_startproc",
        "push rax",
        ".cfi_adjust_cfa_offset 8",
        "push rdi",
        ".cfi_adjust_cfa_offset 8",
        "push rsi",
        ".cfi_adjust_cfa_offset 8",
        "push rdx",
        ".cfi_adjust_cfa_offset 8",
        "push rcx",
        ".cfi_adjust_cfa_offset 8",
        "push r8",
        ".cfi_adjust_cfa_offset 8",
        "push r9",
        ".cfi_adjust_cfa_offset 8",
        "sub rsp, 128",
        ".cfi_adjust_cfa_offset 128",
        "movaps [rsp], xmm0",
        "movaps [rsp + 16], xmm1",
        "movaps [rsp + 32], xmm2",
        "movaps [rsp + 48], xmm3",
        "movaps [rsp + 64], xmm4",
        "movaps [rsp + 80], xmm5",
        "movaps [rsp + 96], xmm6",
        "movaps [rsp + 112], xmm7",
        "mov rdi, r11",
        "call {look}",
        "mov r11, rax",
        "movaps xmm0, [rsp]",
        "movaps xmm1, [rsp + 16]",
        "movaps xmm2, [rsp + 32]",
        "movaps xmm3, [rsp + 48]",
        "movaps xmm4, [rsp + 64]",
        "movaps xmm5, [rsp + 80]",
        "movaps xmm6, [rsp + 96]",
        "movaps xmm7, [rsp + 112]",
        "add rsp, 128",
        ".cfi_adjust_cfa_offset -128",
        "pop r9",
        ".cfi_adjust_cfa_offset -8",
        "pop r8",
        ".cfi_adjust_cfa_offset -8",
        "pop rcx",
        ".cfi_adjust_cfa_offset -8",
        "pop rdx",
        ".cfi_adjust_cfa_offset -8",
        "pop rsi",
        ".cfi_adjust_cfa_offset -8",
        "pop rdi",
        ".cfi_adjust_cfa_offset -8",
        "pop rax",
        ".cfi_adjust_cfa_offset -8",
        "jmp r11",
        ".cfi_endproc",
        look = sym look,
    )
}

extern "C" fn look(original: &Original) -> usize {
    match original.get() {
        0 => absent as *const () as usize,
        address => address,
    }
}

/// In place of a function that this libc has not: a program that was linked against one that has it fails as with any
/// missing function, at the call.
extern "C" fn absent() -> usize {
    leakscope_asan_rt::sys::write_all(
        2,
        b"AddressSanitizer: a function that the program calls does not exist in libc\n",
    );
    leakscope_asan_rt::sys::exit_now(127)
}

include!("forward_names.rs");
