//! The exported C++ operators. `operator new` asks `malloc`, as libstdc++'s and libc++'s do; when that fails the
//! original is entered as if it had been called in the first place, so that new-handlers run and std::bad_alloc is
//! thrown with no frame of ours on the stack.

use crate::allocator;
use crate::hooks::hook1;
use crate::originals;
use core::arch::naked_asm;
use core::ffi::c_void;
use leakscope_model::AllocFn;
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
                "lea rsi, [rsp + 24]",
                "mov rdx, rbp",
                "call {body}",
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
                "jmp qword ptr [rip + {original}]",
                ".cfi_endproc",
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

hook1! {
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
