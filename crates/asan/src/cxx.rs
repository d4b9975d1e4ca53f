//! operator new and delete, in all their forms.

use crate::malloc::hooks;
use core::arch::naked_asm;
use leakscope_asan_rt::heap::{self, AllocKind, Deletion, Request};
use leakscope_asan_rt::init;
use leakscope_asan_rt::unwind::Caller;

fn allocate(
    hook: usize,
    bytes: usize,
    alignment: usize,
    kind: AllocKind,
    may_fail: bool,
    at: (usize, usize),
) -> *mut u8 {
    init::ensure();
    let caller = Caller { hook, rsp: at.0, rbp: at.1 };
    heap::allocate(&caller, Request { bytes, alignment, kind, zeroed: false, may_fail })
}

fn release(hook: usize, address: usize, kind: AllocKind, deletion: Deletion, at: (usize, usize)) {
    heap::release(&Caller { hook, rsp: at.0, rbp: at.1 }, address, kind, deletion);
}

macro_rules! news {
    ($($name:ident, $body:ident, $kind:ident, $may_fail:literal;)*) => { $(
        unsafe extern "C" fn $body(bytes: usize, rsp: usize, rbp: usize) -> *mut u8 {
            allocate($name as *const () as usize, bytes, 0, AllocKind::$kind, $may_fail, (rsp, rbp))
        }
    )* };
}

macro_rules! nothrow_news {
    ($($name:ident, $body:ident, $kind:ident;)*) => { $(
        unsafe extern "C" fn $body(bytes: usize, _: usize, rsp: usize, rbp: usize) -> *mut u8 {
            allocate($name as *const () as usize, bytes, 0, AllocKind::$kind, true, (rsp, rbp))
        }
    )* };
}

macro_rules! aligned_news {
    ($($name:ident, $body:ident, $kind:ident;)*) => { $(
        unsafe extern "C" fn $body(bytes: usize, alignment: usize, rsp: usize, rbp: usize) -> *mut u8 {
            allocate($name as *const () as usize, bytes, alignment, AllocKind::$kind, false, (rsp, rbp))
        }
    )* };
}

macro_rules! aligned_nothrow_news {
    ($($name:ident, $body:ident, $kind:ident;)*) => { $(
        unsafe extern "C" fn $body(bytes: usize, alignment: usize, _: usize, rsp: usize, rbp: usize) -> *mut u8 {
            allocate($name as *const () as usize, bytes, alignment, AllocKind::$kind, true, (rsp, rbp))
        }
    )* };
}

news! {
    _Znwm, new_body, New, false;
    _Znam, new_array_body, NewArray, false;
}

nothrow_news! {
    _ZnwmRKSt9nothrow_t, new_nothrow_body, New;
    _ZnamRKSt9nothrow_t, new_array_nothrow_body, NewArray;
}

aligned_news! {
    _ZnwmSt11align_val_t, new_aligned_body, New;
    _ZnamSt11align_val_t, new_array_aligned_body, NewArray;
}

aligned_nothrow_news! {
    _ZnwmSt11align_val_tRKSt9nothrow_t, new_aligned_nothrow_body, New;
    _ZnamSt11align_val_tRKSt9nothrow_t, new_array_aligned_nothrow_body, NewArray;
}

macro_rules! deletes {
    ($($name:ident, $body:ident, $kind:ident, ($($extra:ident),*), $bytes:expr, $alignment:expr;)*) => { $(
        unsafe extern "C" fn $body(address: usize, $($extra: usize,)* rsp: usize, rbp: usize) {
            let deletion = Deletion { bytes: $bytes, alignment: $alignment };
            release($name as *const () as usize, address, AllocKind::$kind, deletion, (rsp, rbp));
        }
    )* };
}

deletes! {
    _ZdlPv, delete_body, New, (), 0, 0;
    _ZdaPv, delete_array_body, NewArray, (), 0, 0;
    _ZdlPvRKSt9nothrow_t, delete_nothrow_body, New, (_tag), 0, 0;
    _ZdaPvRKSt9nothrow_t, delete_array_nothrow_body, NewArray, (_tag), 0, 0;
    _ZdlPvm, delete_sized_body, New, (bytes), bytes, 0;
    _ZdaPvm, delete_array_sized_body, NewArray, (bytes), bytes, 0;
    _ZdlPvSt11align_val_t, delete_aligned_body, New, (alignment), 0, alignment;
    _ZdaPvSt11align_val_t, delete_array_aligned_body, NewArray, (alignment), 0, alignment;
    _ZdlPvSt11align_val_tRKSt9nothrow_t, delete_aligned_nothrow_body, New, (alignment, _tag), 0, alignment;
    _ZdaPvSt11align_val_tRKSt9nothrow_t, delete_array_aligned_nothrow_body, NewArray, (alignment, _tag), 0, alignment;
    _ZdlPvmSt11align_val_t, delete_sized_aligned_body, New, (bytes, alignment), bytes, alignment;
    _ZdaPvmSt11align_val_t, delete_array_sized_aligned_body, NewArray, (bytes, alignment), bytes, alignment;
}

hooks! {
    _Znwm(1) => new_body;
    _Znam(1) => new_array_body;
    _ZnwmRKSt9nothrow_t(2) => new_nothrow_body;
    _ZnamRKSt9nothrow_t(2) => new_array_nothrow_body;
    _ZnwmSt11align_val_t(2) => new_aligned_body;
    _ZnamSt11align_val_t(2) => new_array_aligned_body;
    _ZnwmSt11align_val_tRKSt9nothrow_t(3) => new_aligned_nothrow_body;
    _ZnamSt11align_val_tRKSt9nothrow_t(3) => new_array_aligned_nothrow_body;
    _ZdlPv(1) => delete_body;
    _ZdaPv(1) => delete_array_body;
    _ZdlPvRKSt9nothrow_t(2) => delete_nothrow_body;
    _ZdaPvRKSt9nothrow_t(2) => delete_array_nothrow_body;
    _ZdlPvm(2) => delete_sized_body;
    _ZdaPvm(2) => delete_array_sized_body;
    _ZdlPvSt11align_val_t(2) => delete_aligned_body;
    _ZdaPvSt11align_val_t(2) => delete_array_aligned_body;
    _ZdlPvSt11align_val_tRKSt9nothrow_t(3) => delete_aligned_nothrow_body;
    _ZdaPvSt11align_val_tRKSt9nothrow_t(3) => delete_array_aligned_nothrow_body;
    _ZdlPvmSt11align_val_t(3) => delete_sized_aligned_body;
    _ZdaPvmSt11align_val_t(3) => delete_array_sized_aligned_body;
}
