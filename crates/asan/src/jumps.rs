//! Jumps over frames: longjmp, exceptions, vfork, context switches. What was poisoned on the way is not any more.

use crate::hook::originals;
use crate::stacks::handle_no_return;
use core::arch::naked_asm;
use core::ffi::c_int;
use leakscope_asan_rt::originals::Original;

macro_rules! jumps {
    ($($name:ident, $original:ident, $text:literal;)*) => { $(
        static $original: Original = Original::new($text);

        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name() {
            extern "C" fn prepare() -> usize {
                handle_no_return();
                $original.get()
            }
            // Arguments are kept, the frame is given up, and the original gets the call.
            naked_asm!(
                ".cfi_startproc",
                "push rdi",
                ".cfi_adjust_cfa_offset 8",
                "push rsi",
                ".cfi_adjust_cfa_offset 8",
                "push rdx",
                ".cfi_adjust_cfa_offset 8",
                "call {prepare}",
                "pop rdx",
                ".cfi_adjust_cfa_offset -8",
                "pop rsi",
                ".cfi_adjust_cfa_offset -8",
                "pop rdi",
                ".cfi_adjust_cfa_offset -8",
                "jmp rax",
                ".cfi_endproc",
                prepare = sym prepare,
            )
        }
    )* };
}

jumps! {
    longjmp, LONGJMP, c"longjmp";
    _longjmp, UNDERSCORE_LONGJMP, c"_longjmp";
    siglongjmp, SIGLONGJMP, c"siglongjmp";
    __longjmp_chk, LONGJMP_CHK, c"__longjmp_chk";
    __cxa_throw, CXA_THROW, c"__cxa_throw";
    __cxa_rethrow_primary_exception, CXA_RETHROW, c"__cxa_rethrow_primary_exception";
    _Unwind_RaiseException, RAISE, c"_Unwind_RaiseException";
}

originals! {
    fn swapcontext(from: *mut libc::ucontext_t, to: *const libc::ucontext_t) -> c_int;
}

/// Clears the shadow of the stack that a context has.
unsafe fn clear_context_stack(context: *const libc::ucontext_t) {
    const MOST: usize = 1 << 22;
    // SAFETY: the program's context.
    let stack = unsafe { (*context).uc_stack };
    let (start, bytes) = (stack.ss_sp as usize & !4095, stack.ss_size);
    if start != 0 && bytes <= MOST {
        let end = (stack.ss_sp as usize + bytes).next_multiple_of(4096);
        // SAFETY: the stack of a context that is about to run from where it was left, or from its start.
        unsafe { leakscope_asan_rt::shadow_map::fill(start, end - start, 0) };
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn swapcontext(from: *mut libc::ucontext_t, to: *const libc::ucontext_t) -> c_int {
    static WAS_TOLD: core::sync::atomic::AtomicBool = core::sync::atomic::AtomicBool::new(false);
    if !WAS_TOLD.swap(true, core::sync::atomic::Ordering::Relaxed) {
        leakscope_asan_rt::out_pid!(
            "WARNING: ASan doesn't fully support makecontext/swapcontext functions and may produce false positives in \
             some cases!\n"
        );
    }
    // SAFETY: the program's call.
    unsafe {
        clear_context_stack(to);
        let result = real::swapcontext(from, to);
        // Back again, perhaps after an exception or a longjmp on the other stack.
        clear_context_stack(to);
        result
    }
}

/// vfork's child runs on the parent's stack and would leave its marks there: it gets a copy of its own, as the standard
/// allows.
#[unsafe(no_mangle)]
unsafe extern "C" fn vfork() -> libc::pid_t {
    // SAFETY: fork is allowed wherever vfork is.
    unsafe { libc::fork() }
}
