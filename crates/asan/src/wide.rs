//! wcs*: as `strings`, in units of four bytes. wcscpy and wcsncpy are checked as well.

use crate::hook::{check_overlap, check_read, check_write, is_checking, originals};
use core::ffi::c_int;

type Text = *const c_int;
type Buffer = *mut c_int;
const WIDTH: usize = 4;

originals! {
    fn wcslen(text: Text) -> usize;
    fn wcsnlen(text: Text, most: usize) -> usize;
    fn wcscpy(to: Buffer, from: Text) -> Buffer;
    fn wcsncpy(to: Buffer, from: Text, most: usize) -> Buffer;
    fn wcscat(to: Buffer, from: Text) -> Buffer;
    fn wcsncat(to: Buffer, from: Text, most: usize) -> Buffer;
    fn wcsdup(from: Text) -> Buffer;
    fn wmemcpy(to: Buffer, from: Text, count: usize) -> Buffer;
    fn wmemmove(to: Buffer, from: Text, count: usize) -> Buffer;
    fn wmemset(to: Buffer, value: c_int, count: usize) -> Buffer;
    fn wcscmp(a: Text, b: Text) -> c_int;
    fn wcschr(text: Text, c: c_int) -> Buffer;
}

#[unsafe(no_mangle)]
unsafe extern "C" fn wcslen(text: Text) -> usize {
    // SAFETY: the program's call.
    let length = unsafe { real::wcslen(text) };
    check_read(wcslen as *const () as usize, "wcslen", text as usize, (length + 1) * WIDTH);
    length
}

#[unsafe(no_mangle)]
unsafe extern "C" fn wcsnlen(text: Text, most: usize) -> usize {
    // SAFETY: the program's call.
    let length = unsafe { real::wcsnlen(text, most) };
    check_read(wcsnlen as *const () as usize, "wcsnlen", text as usize, (length + 1).min(most) * WIDTH);
    length
}

#[unsafe(no_mangle)]
unsafe extern "C" fn wcscpy(to: Buffer, from: Text) -> Buffer {
    if is_checking() {
        let hook = wcscpy as *const () as usize;
        // SAFETY: the program's call.
        let bytes = (unsafe { real::wcslen(from) } + 1) * WIDTH;
        check_overlap(hook, "wcscpy", to as usize, bytes, from as usize, bytes);
        check_read(hook, "wcscpy", from as usize, bytes);
        check_write(hook, "wcscpy", to as usize, bytes);
    }
    // SAFETY: the program's call.
    unsafe { real::wcscpy(to, from) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn wcsncpy(to: Buffer, from: Text, most: usize) -> Buffer {
    if is_checking() {
        let hook = wcsncpy as *const () as usize;
        // SAFETY: the program's call.
        let read = (unsafe { real::wcsnlen(from, most) } + 1).min(most) * WIDTH;
        check_overlap(hook, "wcsncpy", to as usize, read, from as usize, read);
        check_read(hook, "wcsncpy", from as usize, read);
        check_write(hook, "wcsncpy", to as usize, most * WIDTH);
    }
    // SAFETY: the program's call.
    unsafe { real::wcsncpy(to, from, most) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn wcscat(to: Buffer, from: Text) -> Buffer {
    if is_checking() {
        let hook = wcscat as *const () as usize;
        // SAFETY: the program's call.
        let (to_length, from_length) = unsafe { (real::wcslen(to), real::wcslen(from)) };
        check_read(hook, "wcscat", from as usize, (from_length + 1) * WIDTH);
        check_read(hook, "wcscat", to as usize, (to_length + 1) * WIDTH);
        check_write(hook, "wcscat", to as usize + to_length * WIDTH, (from_length + 1) * WIDTH);
    }
    // SAFETY: the program's call.
    unsafe { real::wcscat(to, from) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn wcsncat(to: Buffer, from: Text, most: usize) -> Buffer {
    if is_checking() {
        let hook = wcsncat as *const () as usize;
        // SAFETY: the program's call.
        let (to_length, from_length) = unsafe { (real::wcslen(to), real::wcsnlen(from, most)) };
        check_read(hook, "wcsncat", from as usize, (from_length + 1).min(most) * WIDTH);
        check_read(hook, "wcsncat", to as usize, (to_length + 1) * WIDTH);
        check_write(hook, "wcsncat", to as usize + to_length * WIDTH, (from_length + 1) * WIDTH);
    }
    // SAFETY: the program's call.
    unsafe { real::wcsncat(to, from, most) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn wcsdup(from: Text) -> Buffer {
    // SAFETY: the program's call.
    unsafe {
        let bytes = (real::wcslen(from) + 1) * WIDTH;
        check_read(wcsdup as *const () as usize, "wcsdup", from as usize, bytes);
        real::wcsdup(from)
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn wmemcpy(to: Buffer, from: Text, count: usize) -> Buffer {
    let hook = wmemcpy as *const () as usize;
    check_read(hook, "wmemcpy", from as usize, count.wrapping_mul(WIDTH));
    check_write(hook, "wmemcpy", to as usize, count.wrapping_mul(WIDTH));
    // SAFETY: the program's call.
    unsafe { real::wmemcpy(to, from, count) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn wmemmove(to: Buffer, from: Text, count: usize) -> Buffer {
    let hook = wmemmove as *const () as usize;
    check_read(hook, "wmemmove", from as usize, count.wrapping_mul(WIDTH));
    check_write(hook, "wmemmove", to as usize, count.wrapping_mul(WIDTH));
    // SAFETY: the program's call.
    unsafe { real::wmemmove(to, from, count) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn wmemset(to: Buffer, value: c_int, count: usize) -> Buffer {
    check_write(wmemset as *const () as usize, "wmemset", to as usize, count.wrapping_mul(WIDTH));
    // SAFETY: the program's call.
    unsafe { real::wmemset(to, value, count) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn wcscmp(a: Text, b: Text) -> c_int {
    if is_checking() {
        let mut count = 0;
        // SAFETY: the program's call; nothing behind the first difference or end is read.
        unsafe {
            while *a.add(count) == *b.add(count) && *a.add(count) != 0 {
                count += 1;
            }
        }
        let hook = wcscmp as *const () as usize;
        check_read(hook, "wcscmp", a as usize, (count + 1) * WIDTH);
        check_read(hook, "wcscmp", b as usize, (count + 1) * WIDTH);
    }
    // SAFETY: the program's call.
    unsafe { real::wcscmp(a, b) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn wcschr(text: Text, c: c_int) -> Buffer {
    // SAFETY: the program's call.
    let found = unsafe { real::wcschr(text, c) };
    if is_checking() {
        let read = if found.is_null() {
            // SAFETY: as above.
            let length = unsafe { real::wcslen(text) };
            (length + 1) * WIDTH
        } else {
            found as usize - text as usize + WIDTH
        };
        check_read(wcschr as *const () as usize, "wcschr", text as usize, read);
    }
    found
}
