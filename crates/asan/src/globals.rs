//! Registration of globals, and their initialisation.

use core::arch::naked_asm;
use core::ffi::c_char;
use leakscope_asan_rt::globals::{self, Global};
use leakscope_asan_rt::report::globals::odr_violation;
use leakscope_asan_rt::unwind::Caller;

macro_rules! with_registers_3 {
    ($($name:ident => $body:path;)*) => { $(
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name() {
            naked_asm!(".cfi_startproc", "mov rcx, rsp", "mov r8, rbp", "jmp {}", ".cfi_endproc", sym $body)
        }
    )* };
}

with_registers_3! {
    __asan_register_globals => register;
    __asan_register_elf_globals => register_image;
    __asan_register_image_globals => register_image_one;
}

unsafe extern "C" fn register(first: *const Global, count: usize, _: usize, rsp: usize, rbp: usize) {
    let caller = Caller { hook: __asan_register_globals as *const () as usize, rsp, rbp };
    // SAFETY: the object's own descriptions.
    unsafe { globals::register(&caller, first, count) }.iter().for_each(odr_violation);
}

unsafe extern "C" fn register_image(flag: *mut usize, start: usize, stop: usize, rsp: usize, rbp: usize) {
    let caller = Caller { hook: __asan_register_globals as *const () as usize, rsp, rbp };
    // SAFETY: the object's own descriptions.
    unsafe { globals::register_image(&caller, flag, start, stop) }.iter().for_each(odr_violation);
}

unsafe extern "C" fn register_image_one(_flag: *mut usize, _: usize, _: usize, _rsp: usize, _rbp: usize) {
    // Mach-O only: there are no such images here.
}

#[unsafe(no_mangle)]
extern "C" fn __asan_unregister_image_globals(_flag: *mut usize) {}

#[unsafe(no_mangle)]
unsafe extern "C" fn __asan_unregister_globals(first: *const Global, count: usize) {
    // SAFETY: the object's own descriptions.
    unsafe { globals::unregister(first, count) };
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __asan_unregister_elf_globals(flag: *mut usize, start: usize, stop: usize) {
    // SAFETY: the object's own descriptions.
    unsafe { globals::unregister_image(flag, start, stop) };
}

#[unsafe(no_mangle)]
extern "C" fn __asan_before_dynamic_init(module: *const c_char) {
    globals::before_initialisers(module);
}

#[unsafe(no_mangle)]
extern "C" fn __asan_after_dynamic_init() {
    globals::after_initialisers();
}
