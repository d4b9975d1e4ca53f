//! The exported C symbols of the malloc family. Each is a naked function that adds the caller's stack pointer (which
//! points at the return address) and frame pointer to the arguments: our own frames need no unwinding.

use crate::{allocator, originals};
use core::arch::naked_asm;
use core::ffi::{c_int, c_void};
use leakscope_model::AllocFn;
use leakscope_rt::runtime::{MODE, mode};
use leakscope_rt::sampling::RECORDED;
use leakscope_rt::thread::UNTIL_SAMPLE;
use leakscope_rt::unwind::Registers;

/// A hook with one argument.
macro_rules! hook1 {
    ($($symbol:ident => $body:path;)*) => { $(
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $symbol() {
            naked_asm!(".cfi_startproc", "mov rsi, rsp", "mov rdx, rbp", "jmp {}", ".cfi_endproc", sym $body)
        }
    )* };
}

/// A hook with two arguments.
macro_rules! hook2 {
    ($($symbol:ident => $body:path;)*) => { $(
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $symbol() {
            naked_asm!(".cfi_startproc", "mov rdx, rsp", "mov rcx, rbp", "jmp {}", ".cfi_endproc", sym $body)
        }
    )* };
}

/// The hook of a function that releases its first argument. While only a sample is recorded, nearly every block can be
/// seen to be none of it at once (see `leakscope_rt::sampling::RECORDED`): then the original gets the call as it is.
macro_rules! release_hooks {
    ($($symbol:ident => $body:path;)*) => { $(
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $symbol() {
            naked_asm!(
                ".cfi_startproc",
                "test dword ptr [rip + {mode}], {sampling}",
                "jnz 2f",
                "3:",
                "mov rsi, rsp",
                "mov rdx, rbp",
                "jmp {body}",
                "2:",
                "mov rax, rdi",
                "mov rcx, rdi",
                "shr rax, 12",
                "shr rcx, 28",
                "xor eax, ecx",
                "movzx eax, ax",
                "lea rcx, [rip + {recorded}]",
                "cmp byte ptr [rcx + rax], 0",
                "jne 3b",
                "jmp qword ptr [rip + {original}]",
                ".cfi_endproc",
                mode = sym MODE,
                sampling = const mode::SAMPLING,
                recorded = sym RECORDED,
                original = sym originals::free::ORIGINAL,
                body = sym $body,
            )
        }
    )* };
}
pub(crate) use release_hooks;

/// While only a sample is recorded: counts the bytes and goes on with the original unless the sample is due.
#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn malloc() {
    naked_asm!(
        ".cfi_startproc",
        "test dword ptr [rip + {mode}], {sampling}",
        "jnz 2f",
        "3:",
        "mov rsi, rsp",
        "mov rdx, rbp",
        "jmp {body}",
        "2:",
        // As many bytes as are asked for, but at least one.
        "mov rcx, rdi",
        "cmp rcx, 1",
        "adc rcx, 0",
        "mov rax, qword ptr [rip + leakscope_tls@GOTTPOFF]",
        "sub qword ptr fs:[rax + {until_sample}], rcx",
        "jle 3b",
        "jmp qword ptr [rip + {original}]",
        ".cfi_endproc",
        mode = sym MODE,
        sampling = const mode::SAMPLING,
        until_sample = const UNTIL_SAMPLE,
        original = sym originals::malloc::ORIGINAL,
        body = sym malloc_body,
    )
}

release_hooks! {
    free => free_body;
    cfree => cfree_body;
}

hook1! {
    valloc => valloc_body;
    pvalloc => pvalloc_body;
}

hook2! {
    calloc => calloc_body;
    realloc => realloc_body;
    memalign => memalign_body;
    aligned_alloc => aligned_alloc_body;
}

#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn posix_memalign() {
    naked_asm!(".cfi_startproc", "mov rcx, rsp", "mov r8, rbp", "jmp {}", ".cfi_endproc", sym posix_memalign_body)
}

#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn reallocarray() {
    naked_asm!(".cfi_startproc", "mov rcx, rsp", "mov r8, rbp", "jmp {}", ".cfi_endproc", sym reallocarray_body)
}

unsafe extern "C" fn malloc_body(bytes: usize, rsp: u64, rbp: u64) -> *mut c_void {
    // SAFETY: the program calls malloc.
    unsafe { allocator::allocate(bytes, AllocFn::Malloc, Registers { rsp, rbp }) }
}

unsafe extern "C" fn calloc_body(count: usize, each: usize, rsp: u64, rbp: u64) -> *mut c_void {
    // SAFETY: the program calls calloc.
    unsafe { allocator::allocate_zeroed(count, each, Registers { rsp, rbp }) }
}

unsafe extern "C" fn realloc_body(block: *mut c_void, bytes: usize, rsp: u64, rbp: u64) -> *mut c_void {
    // SAFETY: the program calls realloc.
    unsafe { allocator::reallocate(block, bytes, AllocFn::Realloc, Registers { rsp, rbp }) }
}

unsafe extern "C" fn reallocarray_body(
    block: *mut c_void,
    count: usize,
    each: usize,
    rsp: u64,
    rbp: u64,
) -> *mut c_void {
    let Some(bytes) = count.checked_mul(each) else {
        // SAFETY: errno is the calling thread's.
        unsafe { *libc::__errno_location() = libc::ENOMEM };
        return core::ptr::null_mut();
    };
    // SAFETY: the program calls reallocarray.
    unsafe { allocator::reallocate(block, bytes, AllocFn::Reallocarray, Registers { rsp, rbp }) }
}

unsafe extern "C" fn memalign_body(alignment: usize, bytes: usize, rsp: u64, rbp: u64) -> *mut c_void {
    // SAFETY: the program calls memalign.
    unsafe { allocator::allocate_aligned(alignment, bytes, AllocFn::Memalign, Registers { rsp, rbp }) }
}

unsafe extern "C" fn aligned_alloc_body(alignment: usize, bytes: usize, rsp: u64, rbp: u64) -> *mut c_void {
    // SAFETY: the program calls aligned_alloc.
    unsafe { allocator::allocate_aligned(alignment, bytes, AllocFn::AlignedAlloc, Registers { rsp, rbp }) }
}

unsafe extern "C" fn posix_memalign_body(
    out: *mut *mut c_void,
    alignment: usize,
    bytes: usize,
    rsp: u64,
    rbp: u64,
) -> c_int {
    // SAFETY: the program calls posix_memalign.
    unsafe { allocator::allocate_posix(out, alignment, bytes, Registers { rsp, rbp }) }
}

unsafe extern "C" fn valloc_body(bytes: usize, rsp: u64, rbp: u64) -> *mut c_void {
    // SAFETY: the program calls valloc.
    unsafe { allocator::allocate_pages(bytes, AllocFn::Valloc, Registers { rsp, rbp }) }
}

unsafe extern "C" fn pvalloc_body(bytes: usize, rsp: u64, rbp: u64) -> *mut c_void {
    // SAFETY: the program calls pvalloc.
    unsafe { allocator::allocate_pages(bytes, AllocFn::Pvalloc, Registers { rsp, rbp }) }
}

unsafe extern "C" fn free_body(block: *mut c_void, rsp: u64, rbp: u64) {
    // SAFETY: the program calls free.
    unsafe { allocator::release(block, AllocFn::Free, Registers { rsp, rbp }) }
}

unsafe extern "C" fn cfree_body(block: *mut c_void, rsp: u64, rbp: u64) {
    // SAFETY: the program calls cfree.
    unsafe { allocator::release(block, AllocFn::Cfree, Registers { rsp, rbp }) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn malloc_usable_size(block: *mut c_void) -> usize {
    // SAFETY: the program calls malloc_usable_size.
    unsafe { allocator::usable_bytes(block) }
}
