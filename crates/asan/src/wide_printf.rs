//! The wprintf family, which the compilers' own libraries leave alone: strings that the format names are checked, and
//! what is written to the program's buffer.

use crate::hook::{check_write, is_checking, originals};
use crate::printf::{Registers, VaList, check_arguments, variadic};
use alloc::vec::Vec;
use core::ffi::{c_char, c_int, c_void};

type Text = *const c_int;
type Buffer = *mut c_int;
const WIDTH: usize = 4;

originals! {
    fn vwprintf(format: Text, list: *mut VaList) -> c_int;
    fn vfwprintf(file: *mut c_void, format: Text, list: *mut VaList) -> c_int;
    fn vswprintf(to: Buffer, room: usize, format: Text, list: *mut VaList) -> c_int;
    fn fgetws(to: Buffer, room: c_int, file: *mut c_void) -> Buffer;
    fn wcslen(text: Text) -> usize;
    fn wcsnlen(text: Text, most: usize) -> usize;
}

/// The format's conversions are the same in narrow formats; what is no ASCII is none of them.
unsafe fn check_wide_arguments(hook: usize, name: &str, format: Text, list: VaList) {
    if !is_checking() {
        return;
    }
    // SAFETY: the program's format.
    let wide = unsafe { core::slice::from_raw_parts(format, real::wcslen(format)) };
    let narrow: Vec<u8> =
        wide.iter().map(|&c| u8::try_from(c).ok().filter(u8::is_ascii).unwrap_or(b'?')).chain([0]).collect();
    // SAFETY: the program's arguments fit its format; the copy is a C string.
    unsafe { check_arguments(hook, name, narrow.as_ptr().cast::<c_char>(), list) };
}

unsafe fn print_bounded(hook: usize, name: &str, to: Buffer, room: usize, format: Text, list: *mut VaList) -> c_int {
    // SAFETY: the program's call.
    unsafe {
        check_wide_arguments(hook, name, format, *list);
        let length = real::vswprintf(to, room, format, list);
        if is_checking() {
            // What did not fit was written as far as there was room.
            let written = usize::try_from(length).unwrap_or_else(|_| real::wcsnlen(to, room));
            check_write(hook, name, to as usize, (written + 1).min(room) * WIDTH);
        }
        length
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn vswprintf(to: Buffer, room: usize, format: Text, list: *mut VaList) -> c_int {
    // SAFETY: the program's call.
    unsafe { print_bounded(vswprintf as *const () as usize, "vswprintf", to, room, format, list) }
}

unsafe extern "C" fn swprintf_body(registers: *const Registers, list: *mut VaList) -> c_int {
    // SAFETY: the hook's registers: buffer, room, format.
    unsafe {
        let [to, room, format, ..] = (*registers).words;
        print_bounded(swprintf as *const () as usize, "swprintf", to as Buffer, room, format as Text, list)
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn vwprintf(format: Text, list: *mut VaList) -> c_int {
    // SAFETY: the program's call.
    unsafe {
        check_wide_arguments(vwprintf as *const () as usize, "vwprintf", format, *list);
        real::vwprintf(format, list)
    }
}

unsafe extern "C" fn wprintf_body(registers: *const Registers, list: *mut VaList) -> c_int {
    // SAFETY: the hook's registers: format.
    unsafe {
        let format = (*registers).words[0] as Text;
        check_wide_arguments(wprintf as *const () as usize, "wprintf", format, *list);
        real::vwprintf(format, list)
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn vfwprintf(file: *mut c_void, format: Text, list: *mut VaList) -> c_int {
    // SAFETY: the program's call.
    unsafe {
        check_wide_arguments(vfwprintf as *const () as usize, "vfwprintf", format, *list);
        real::vfwprintf(file, format, list)
    }
}

unsafe extern "C" fn fwprintf_body(registers: *const Registers, list: *mut VaList) -> c_int {
    // SAFETY: the hook's registers: file, format.
    unsafe {
        let [file, format, ..] = (*registers).words;
        check_wide_arguments(fwprintf as *const () as usize, "fwprintf", format as Text, *list);
        real::vfwprintf(file as *mut c_void, format as Text, list)
    }
}

variadic! {
    swprintf(3) => swprintf_body;
    wprintf(1) => wprintf_body;
    fwprintf(2) => fwprintf_body;
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fgetws(to: Buffer, room: c_int, file: *mut c_void) -> Buffer {
    // SAFETY: the program's call.
    unsafe {
        let line = real::fgetws(to, room, file);
        if !line.is_null() && is_checking() {
            let hook = fgetws as *const () as usize;
            check_write(hook, "fgetws", line as usize, (real::wcslen(line) + 1) * WIDTH);
        }
        line
    }
}
