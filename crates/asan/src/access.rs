//! Bad accesses as instrumented code reports them, and checks that it leaves to us.
//!
//! `__asan_report_*` are naked: they pass the stack pointer and the frame pointer at their entry, so that reports show
//! the caller's. `_noabort` forms come back when the options say so.

use crate::hook;
use crate::memory;
use core::arch::naked_asm;
use core::ffi::{c_int, c_void};
use leakscope_asan_rt::report::access;
use leakscope_asan_rt::shadow_map::{first_poisoned, is_access_poisoned};
use leakscope_asan_rt::unwind::Caller;

macro_rules! reports {
    ($($name:ident => ($bytes:expr, $is_write:expr, $is_fatal:expr);)*) => { $(
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(address: usize) {
            extern "C" fn body(address: usize, rsp: usize, rbp: usize) {
                access::report(&Caller { hook: 0, rsp, rbp }, address, $is_write, $bytes, $is_fatal);
            }
            naked_asm!(".cfi_startproc", "mov rsi, rsp", "mov rdx, rbp", "jmp {}", ".cfi_endproc", sym body)
        }
    )* };
}

reports! {
    __asan_report_load1 => (1, false, true);
    __asan_report_load2 => (2, false, true);
    __asan_report_load4 => (4, false, true);
    __asan_report_load8 => (8, false, true);
    __asan_report_load16 => (16, false, true);
    __asan_report_store1 => (1, true, true);
    __asan_report_store2 => (2, true, true);
    __asan_report_store4 => (4, true, true);
    __asan_report_store8 => (8, true, true);
    __asan_report_store16 => (16, true, true);
    __asan_report_load1_noabort => (1, false, false);
    __asan_report_load2_noabort => (2, false, false);
    __asan_report_load4_noabort => (4, false, false);
    __asan_report_load8_noabort => (8, false, false);
    __asan_report_load16_noabort => (16, false, false);
    __asan_report_store1_noabort => (1, true, false);
    __asan_report_store2_noabort => (2, true, false);
    __asan_report_store4_noabort => (4, true, false);
    __asan_report_store8_noabort => (8, true, false);
    __asan_report_store16_noabort => (16, true, false);
    __asan_report_exp_load1 => (1, false, true);
    __asan_report_exp_load2 => (2, false, true);
    __asan_report_exp_load4 => (4, false, true);
    __asan_report_exp_load8 => (8, false, true);
    __asan_report_exp_load16 => (16, false, true);
    __asan_report_exp_store1 => (1, true, true);
    __asan_report_exp_store2 => (2, true, true);
    __asan_report_exp_store4 => (4, true, true);
    __asan_report_exp_store8 => (8, true, true);
    __asan_report_exp_store16 => (16, true, true);
}

macro_rules! sized_reports {
    ($($name:ident => ($is_write:expr, $is_fatal:expr);)*) => { $(
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(address: usize, bytes: usize) {
            extern "C" fn body(address: usize, bytes: usize, rsp: usize, rbp: usize) {
                let bad = first_poisoned(address, bytes).unwrap_or(address);
                access::report(&Caller { hook: 0, rsp, rbp }, bad, $is_write, bytes, $is_fatal);
            }
            naked_asm!(".cfi_startproc", "mov rdx, rsp", "mov rcx, rbp", "jmp {}", ".cfi_endproc", sym body)
        }
    )* };
}

sized_reports! {
    __asan_report_load_n => (false, true);
    __asan_report_store_n => (true, true);
    __asan_report_load_n_noabort => (false, false);
    __asan_report_store_n_noabort => (true, false);
    __asan_report_exp_load_n => (false, true);
    __asan_report_exp_store_n => (true, true);
}

#[cold]
#[inline(never)]
fn complain(address: usize, is_write: bool, bytes: usize, is_fatal: bool) {
    access::report(&Caller::of_hook(0), address, is_write, bytes, is_fatal);
}

macro_rules! checks {
    ($($name:ident => ($bytes:expr, $is_write:expr, $is_fatal:expr);)*) => { $(
        #[unsafe(no_mangle)]
        extern "C" fn $name(address: usize) {
            if is_access_poisoned(address, $bytes) {
                complain(address, $is_write, $bytes, $is_fatal);
            }
        }
    )* };
}

checks! {
    __asan_load1 => (1, false, true);
    __asan_load2 => (2, false, true);
    __asan_load4 => (4, false, true);
    __asan_load8 => (8, false, true);
    __asan_load16 => (16, false, true);
    __asan_store1 => (1, true, true);
    __asan_store2 => (2, true, true);
    __asan_store4 => (4, true, true);
    __asan_store8 => (8, true, true);
    __asan_store16 => (16, true, true);
    __asan_load1_noabort => (1, false, false);
    __asan_load2_noabort => (2, false, false);
    __asan_load4_noabort => (4, false, false);
    __asan_load8_noabort => (8, false, false);
    __asan_load16_noabort => (16, false, false);
    __asan_store1_noabort => (1, true, false);
    __asan_store2_noabort => (2, true, false);
    __asan_store4_noabort => (4, true, false);
    __asan_store8_noabort => (8, true, false);
    __asan_store16_noabort => (16, true, false);
    __asan_exp_load1 => (1, false, true);
    __asan_exp_load2 => (2, false, true);
    __asan_exp_load4 => (4, false, true);
    __asan_exp_load8 => (8, false, true);
    __asan_exp_load16 => (16, false, true);
    __asan_exp_store1 => (1, true, true);
    __asan_exp_store2 => (2, true, true);
    __asan_exp_store4 => (4, true, true);
    __asan_exp_store8 => (8, true, true);
    __asan_exp_store16 => (16, true, true);
}

macro_rules! sized_checks {
    ($($name:ident => ($is_write:expr, $is_fatal:expr);)*) => { $(
        #[unsafe(no_mangle)]
        extern "C" fn $name(address: usize, bytes: usize) {
            if let Some(bad) = first_poisoned(address, bytes) {
                complain(bad, $is_write, bytes, $is_fatal);
            }
        }
    )* };
}

sized_checks! {
    __asan_loadN => (false, true);
    __asan_storeN => (true, true);
    __asan_loadN_noabort => (false, false);
    __asan_storeN_noabort => (true, false);
    __asan_exp_loadN => (false, true);
    __asan_exp_storeN => (true, true);
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __asan_memcpy(to: *mut c_void, from: *const c_void, bytes: usize) -> *mut c_void {
    // SAFETY: the program's call.
    unsafe { memory::copy(__asan_memcpy as *const () as usize, "memcpy", to, from, bytes, true) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __asan_memmove(to: *mut c_void, from: *const c_void, bytes: usize) -> *mut c_void {
    // SAFETY: the program's call.
    unsafe { memory::copy(__asan_memmove as *const () as usize, "memmove", to, from, bytes, false) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __asan_memset(to: *mut c_void, value: c_int, bytes: usize) -> *mut c_void {
    // SAFETY: the program's call.
    unsafe { memory::set(__asan_memset as *const () as usize, to, value, bytes) }
}

macro_rules! unaligned {
    ($($load:ident, $store:ident, $kind:ty;)*) => { $(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $load(from: *const $kind) -> $kind {
            hook::check_read(0, "", from as usize, size_of::<$kind>());
            // SAFETY: the program's call.
            unsafe { from.read_unaligned() }
        }

        #[unsafe(no_mangle)]
        unsafe extern "C" fn $store(to: *mut $kind, value: $kind) {
            hook::check_write(0, "", to as usize, size_of::<$kind>());
            // SAFETY: the program's call.
            unsafe { to.write_unaligned(value) }
        }
    )* };
}

unaligned! {
    __sanitizer_unaligned_load16, __sanitizer_unaligned_store16, u16;
    __sanitizer_unaligned_load32, __sanitizer_unaligned_store32, u32;
    __sanitizer_unaligned_load64, __sanitizer_unaligned_store64, u64;
}
