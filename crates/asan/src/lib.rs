//! The library that instrumented programs call: the ABI of `-fsanitize=address`, its public interface, and hooks for
//! libc's functions. A thin composition root: what they do is in `leakscope_asan_rt`.
//!
//! | file | exported |
//! |---|---|
//! | `access` | `__asan_report_*`, `__asan_load*`, `__asan_store*`, `__asan_mem*` |
//! | `stacks` | fake stacks, shadow of stacks, allocas, `__asan_handle_no_return` |
//! | `interface`, `common_interface`, `leak_interface` | the headers in `sanitizer/` |
//! | `globals` | registration of globals, initialisation order |
//! | `malloc`, `cxx` | allocation |
//! | `memory`, `strings`, `wide`, `printf`, `wide_printf`, `scanf`, `io`, `waits` | hooks that check ranges |
//! | `threads`, `jumps`, `signals`, `processes` | hooks that keep our records true |
//! | `aliases` | the names under which programs with hooks of their own reach ours |
//! | `comparisons` | what fuzzers hear of comparisons |
//! | `undefined` | `__ubsan_*`, which clang's library has in it |
//! | `libc_checks`, `syscalls` | names that programs and other run-times ask for, and that need nothing |
//! | `forward` | names that must lead to the newest version of libc's function, as linked programs ask for no version |
#![no_std]

extern crate alloc;

mod access;
mod aliases;
mod common_interface;
mod comparisons;
mod cxx;
mod forward;
mod globals;
mod hook;
mod interface;
mod io;
mod jumps;
mod leak_interface;
mod libc_checks;
mod malloc;
mod memory;
mod printf;
mod processes;
mod scanf;
mod signals;
mod stacks;
mod start;
mod strings;
mod syscalls;
mod threads;
mod undefined;
mod waits;
mod wide;
mod wide_printf;

use leakscope_asan_rt::arena::Global;

// The precompiled `alloc` names a personality although nothing unwinds: this one lets foreign exceptions pass.
core::arch::global_asm!(
    ".hidden rust_eh_personality",
    ".globl rust_eh_personality",
    ".type rust_eh_personality,@function",
    "rust_eh_personality:",
    // _URC_CONTINUE_UNWIND
    "mov eax, 8",
    "ret",
    ".hidden _Unwind_Resume",
    ".globl _Unwind_Resume",
    ".type _Unwind_Resume,@function",
    "_Unwind_Resume:",
    "ud2",
);

#[global_allocator]
static GLOBAL: Global = Global;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    leakscope_rt::raw::complain("internal error in the address sanitizer; please report it");
    leakscope_asan_rt::sys::exit_now(1)
}
