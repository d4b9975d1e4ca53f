//! The exported C++ operators. `operator new` asks `malloc`, as libstdc++'s and libc++'s do; when that fails the
//! original is entered as if it had been called in the first place, so that new-handlers run and std::bad_alloc is
//! thrown with no frame of ours on the stack.

use crate::allocator;
use crate::hooks::release_hooks;
use crate::originals;
use core::arch::naked_asm;
use core::ffi::c_void;
use leakscope_model::AllocFn;
use leakscope_rt::runtime::{MODE, mode};
use leakscope_rt::sampling::RECORDED;
use leakscope_rt::thread::UNTIL_SAMPLE;
use leakscope_rt::unwind::Registers;

/// `operator new` forms whose first argument is the size; the second, if any, is kept for the original.
macro_rules! new_hooks {
    ($($symbol:ident, $body:ident, $function:ident, $original:ident;)*) => { $(
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $symbol() {
            naked_asm!(
                ".cfi_startproc",
                "push rdi",
                ".cfi_adjust_cfa_offset 8",
                "push rsi",
                ".cfi_adjust_cfa_offset 8",
                "sub rsp, 8",
                ".cfi_adjust_cfa_offset 8",
                "test dword ptr [rip + {mode}], {sampling}",
                "jnz 3f",
                "4:",
                "lea rsi, [rsp + 24]",
                "mov rdx, rbp",
                "call {body}",
                "5:",
                "add rsp, 8",
                ".cfi_adjust_cfa_offset -8",
                "pop rsi",
                ".cfi_adjust_cfa_offset -8",
                "pop rdi",
                ".cfi_adjust_cfa_offset -8",
                "test rax, rax",
                "jz 2f",
                "ret",
                "2:",
                "cmp qword ptr [rip + {original}], 0",
                "je 6f",
                "jmp qword ptr [rip + {original}]",
                // While only a sample is recorded, as in the hook of `malloc`.
                "3:",
                ".cfi_adjust_cfa_offset 24",
                "mov rcx, rdi",
                "cmp rcx, 1",
                "adc rcx, 0",
                "mov rax, qword ptr [rip + leakscope_tls@GOTTPOFF]",
                "sub qword ptr fs:[rax + {until_sample}], rcx",
                "jle 4b",
                "call qword ptr [rip + {malloc}]",
                "jmp 5b",
                // The allocation has failed there, and the original is not known yet: our body fails too, and finds it.
                "6:",
                ".cfi_adjust_cfa_offset -24",
                "push rdi",
                ".cfi_adjust_cfa_offset 8",
                "push rsi",
                ".cfi_adjust_cfa_offset 8",
                "sub rsp, 8",
                ".cfi_adjust_cfa_offset 8",
                "jmp 4b",
                ".cfi_endproc",
                mode = sym MODE,
                sampling = const mode::SAMPLING,
                until_sample = const UNTIL_SAMPLE,
                malloc = sym originals::malloc::ORIGINAL,
                body = sym $body,
                original = sym originals::$original::ORIGINAL,
            )
        }

        unsafe extern "C" fn $body(bytes: usize, rsp: u64, rbp: u64) -> *mut c_void {
            // SAFETY: the program calls operator new; a size of 0 gives a block of its own.
            let block = unsafe { allocator::allocate(bytes, AllocFn::$function, Registers { rsp, rbp }) };
            if block.is_null() {
                let _ = originals::$original::ORIGINAL.find_or_abort();
            }
            block
        }
    )* };
}

/// `operator new` forms with an alignment as the second argument.
macro_rules! aligned_new_hooks {
    ($($symbol:ident, $body:ident, $function:ident, $original:ident;)*) => { $(
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $symbol() {
            naked_asm!(
                ".cfi_startproc",
                "push rdi",
                ".cfi_adjust_cfa_offset 8",
                "push rsi",
                ".cfi_adjust_cfa_offset 8",
                "push rdx",
                ".cfi_adjust_cfa_offset 8",
                "lea rdx, [rsp + 24]",
                "mov rcx, rbp",
                "call {body}",
                "pop rdx",
                ".cfi_adjust_cfa_offset -8",
                "pop rsi",
                ".cfi_adjust_cfa_offset -8",
                "pop rdi",
                ".cfi_adjust_cfa_offset -8",
                "test rax, rax",
                "jz 2f",
                "ret",
                "2:",
                "jmp qword ptr [rip + {original}]",
                ".cfi_endproc",
                body = sym $body,
                original = sym originals::$original::ORIGINAL,
            )
        }

        unsafe extern "C" fn $body(bytes: usize, alignment: usize, rsp: u64, rbp: u64) -> *mut c_void {
            let regs = Registers { rsp, rbp };
            // SAFETY: the program calls operator new.
            let block = unsafe { allocator::allocate_aligned(alignment, bytes, AllocFn::$function, regs) };
            if block.is_null() {
                let _ = originals::$original::ORIGINAL.find_or_abort();
            }
            block
        }
    )* };
}

new_hooks! {
    _Znwm, new_body, New, new;
    _ZnwmRKSt9nothrow_t, new_nothrow_body, NewNothrow, new_nothrow;
    _Znam, new_array_body, NewArray, new_array;
    _ZnamRKSt9nothrow_t, new_array_nothrow_body, NewArrayNothrow, new_array_nothrow;
}

aligned_new_hooks! {
    _ZnwmSt11align_val_t, new_aligned_body, NewAligned, new_aligned;
    _ZnwmSt11align_val_tRKSt9nothrow_t, new_aligned_nothrow_body, NewAlignedNothrow, new_aligned_nothrow;
    _ZnamSt11align_val_t, new_array_aligned_body, NewArrayAligned, new_array_aligned;
    _ZnamSt11align_val_tRKSt9nothrow_t, new_array_aligned_nothrow_body, NewArrayAlignedNothrow, new_array_aligned_nothrow;
}

/// `operator delete` forms: only the block matters; a size or an alignment makes no difference to the allocator.
macro_rules! delete_bodies {
    ($($body:ident => $function:ident;)*) => { $(
        unsafe extern "C" fn $body(block: *mut c_void, rsp: u64, rbp: u64) {
            // SAFETY: the program calls operator delete.
            unsafe { allocator::release(block, AllocFn::$function, Registers { rsp, rbp }) }
        }
    )* };
}

release_hooks! {
    _ZdlPv => delete_body;
    _ZdlPvm => delete_sized_body;
    _ZdlPvRKSt9nothrow_t => delete_nothrow_body;
    _ZdlPvSt11align_val_t => delete_aligned_body;
    _ZdlPvmSt11align_val_t => delete_sized_aligned_body;
    _ZdlPvSt11align_val_tRKSt9nothrow_t => delete_aligned_nothrow_body;
    _ZdaPv => delete_array_body;
    _ZdaPvm => delete_array_sized_body;
    _ZdaPvRKSt9nothrow_t => delete_array_nothrow_body;
    _ZdaPvSt11align_val_t => delete_array_aligned_body;
    _ZdaPvmSt11align_val_t => delete_array_sized_aligned_body;
    _ZdaPvSt11align_val_tRKSt9nothrow_t => delete_array_aligned_nothrow_body;
}

delete_bodies! {
    delete_body => Delete;
    delete_sized_body => DeleteSized;
    delete_nothrow_body => DeleteNothrow;
    delete_aligned_body => DeleteAligned;
    delete_sized_aligned_body => DeleteSizedAligned;
    delete_aligned_nothrow_body => DeleteAlignedNothrow;
    delete_array_body => DeleteArray;
    delete_array_sized_body => DeleteArraySized;
    delete_array_nothrow_body => DeleteArrayNothrow;
    delete_array_aligned_body => DeleteArrayAligned;
    delete_array_sized_aligned_body => DeleteArraySizedAligned;
    delete_array_aligned_nothrow_body => DeleteArrayAlignedNothrow;
}
