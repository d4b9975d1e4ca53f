//! str*: the strings that are read are checked up to where the function needs them, with `strict_string_checks` up to
//! their ends; what is written is checked before it is.

use crate::comparisons::{self, Comparison};
use crate::hook::{self, check_overlap, check_read, check_write, is_checking, length_of, length_up_to, originals};
use core::ffi::{c_char, c_int, c_long, c_longlong};
use leakscope_asan_rt::heap::{self, AllocKind, Request};
use leakscope_asan_rt::options::options;
use leakscope_asan_rt::originals::copy_bytes;
use leakscope_asan_rt::unwind::Caller;

type Text = *const c_char;
type Buffer = *mut c_char;

originals! {
    fn strstr(a: Text, b: Text) -> Buffer;
    fn strcasestr(a: Text, b: Text) -> Buffer;
    fn strchr(text: Text, c: c_int) -> Buffer;
    fn strchrnul(text: Text, c: c_int) -> Buffer;
    fn strrchr(text: Text, c: c_int) -> Buffer;
    fn strspn(a: Text, b: Text) -> usize;
    fn strcspn(a: Text, b: Text) -> usize;
    fn strpbrk(a: Text, b: Text) -> Buffer;
    fn strtok(a: Buffer, b: Text) -> Buffer;
    fn strtol(text: Text, end: *mut Buffer, base: c_int) -> c_long;
    fn strtoll(text: Text, end: *mut Buffer, base: c_int) -> c_longlong;
    fn strtoimax(text: Text, end: *mut Buffer, base: c_int) -> c_longlong;
    fn strtoumax(text: Text, end: *mut Buffer, base: c_int) -> c_longlong;
}

/// Checks a string of which `needed` bytes are read; its whole, with its end, when checks are strict.
#[inline(always)]
fn check_text(hook: usize, name: &str, text: Text, needed: usize) {
    if is_checking() {
        let bytes = if options().strict_string_checks { length_of(text) + 1 } else { needed };
        check_read(hook, name, text as usize, bytes);
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(text: Text) -> usize {
    let length = length_of(text);
    if hook::is_checking() && options().intercept_strlen {
        check_read(strlen as *const () as usize, "strlen", text as usize, length + 1);
    }
    length
}

#[unsafe(no_mangle)]
unsafe extern "C" fn strnlen(text: Text, most: usize) -> usize {
    let length = length_up_to(text, most);
    if is_checking() && options().intercept_strlen {
        check_read(strnlen as *const () as usize, "strnlen", text as usize, (length + 1).min(most));
    }
    length
}

fn copies_are_checked() -> bool {
    is_checking() && options().replace_str
}

#[unsafe(no_mangle)]
unsafe extern "C" fn strcpy(to: Buffer, from: Text) -> Buffer {
    let hook = strcpy as *const () as usize;
    let bytes = length_of(from) + 1;
    if copies_are_checked() {
        check_overlap(hook, "strcpy", to as usize, bytes, from as usize, bytes);
        check_read(hook, "strcpy", from as usize, bytes);
        check_write(hook, "strcpy", to as usize, bytes);
    }
    // SAFETY: the program's call.
    unsafe { copy_bytes(to as usize, from as usize, bytes) };
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn stpcpy(to: Buffer, from: Text) -> Buffer {
    let hook = stpcpy as *const () as usize;
    let bytes = length_of(from) + 1;
    if copies_are_checked() {
        check_overlap(hook, "stpcpy", to as usize, bytes, from as usize, bytes);
        check_read(hook, "stpcpy", from as usize, bytes);
        check_write(hook, "stpcpy", to as usize, bytes);
    }
    // SAFETY: the program's call.
    unsafe {
        copy_bytes(to as usize, from as usize, bytes);
        to.add(bytes - 1)
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn strncpy(to: Buffer, from: Text, most: usize) -> Buffer {
    let hook = strncpy as *const () as usize;
    let bytes = (length_up_to(from, most) + 1).min(most);
    if copies_are_checked() {
        check_overlap(hook, "strncpy", to as usize, bytes, from as usize, bytes);
        check_read(hook, "strncpy", from as usize, bytes);
        check_write(hook, "strncpy", to as usize, most);
    }
    // SAFETY: the program's call. The rest is filled with zeroes.
    unsafe {
        copy_bytes(to as usize, from as usize, bytes);
        leakscope_asan_rt::originals::set_bytes(to as usize + bytes, 0, most - bytes);
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn strcat(to: Buffer, from: Text) -> Buffer {
    let hook = strcat as *const () as usize;
    let (to_length, from_length) = (length_of(to), length_of(from));
    if copies_are_checked() {
        check_text(hook, "strcat", to, to_length);
        check_read(hook, "strcat", from as usize, from_length + 1);
        check_write(hook, "strcat", to as usize + to_length, from_length + 1);
        if from_length > 0 {
            check_overlap(hook, "strcat", to as usize, to_length + from_length + 1, from as usize, from_length + 1);
        }
    }
    // SAFETY: the program's call.
    unsafe { copy_bytes(to as usize + to_length, from as usize, from_length + 1) };
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn strncat(to: Buffer, from: Text, most: usize) -> Buffer {
    let hook = strncat as *const () as usize;
    let (to_length, from_length) = (length_of(to), length_up_to(from, most));
    if copies_are_checked() {
        check_text(hook, "strncat", to, to_length);
        check_read(hook, "strncat", from as usize, (from_length + 1).min(most));
        check_write(hook, "strncat", to as usize + to_length, from_length + 1);
        if from_length > 0 {
            check_overlap(hook, "strncat", to as usize, to_length + from_length + 1, from as usize, from_length + 1);
        }
    }
    // SAFETY: the program's call.
    unsafe {
        copy_bytes(to as usize + to_length, from as usize, from_length);
        *to.add(to_length + from_length) = 0;
    }
    to
}

unsafe fn duplicate(hook: usize, from: Text, length: usize) -> Buffer {
    let request = Request { bytes: length + 1, alignment: 0, kind: AllocKind::Malloc, zeroed: false, may_fail: true };
    let copy = heap::allocate(&Caller::of_hook(hook), request);
    if !copy.is_null() {
        // SAFETY: a fresh block of that size.
        unsafe {
            copy_bytes(copy as usize, from as usize, length);
            *copy.add(length) = 0;
        }
    }
    copy.cast()
}

macro_rules! duplicates {
    ($($name:ident, $bounded:ident;)*) => { $(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(from: Text) -> Buffer {
            leakscope_asan_rt::init::ensure();
            let hook = $name as *const () as usize;
            let length = length_of(from);
            if copies_are_checked() {
                check_read(hook, stringify!($name), from as usize, length + 1);
            }
            // SAFETY: the program's call.
            unsafe { duplicate(hook, from, length) }
        }

        #[unsafe(no_mangle)]
        unsafe extern "C" fn $bounded(from: Text, most: usize) -> Buffer {
            leakscope_asan_rt::init::ensure();
            let hook = $bounded as *const () as usize;
            let length = length_up_to(from, most);
            if is_checking() && options().intercept_strndup {
                check_text(hook, stringify!($bounded), from, (length + 1).min(most));
            }
            // SAFETY: the program's call.
            unsafe { duplicate(hook, from, length) }
        }
    )* };
}

duplicates! {
    strdup, strndup;
    __strdup, __strndup;
}

/// Compares up to `most` bytes: the result, -1, 0 or 1, and how many bytes of both were read.
unsafe fn compared(a: Text, b: Text, most: usize, fold: bool) -> (c_int, usize) {
    let lower = |byte: u8| if fold { byte.to_ascii_lowercase() } else { byte };
    let mut at = 0;
    while at < most {
        // SAFETY: the program's strings; nothing behind the first difference or end is read.
        let (x, y) = unsafe { (*a.add(at) as u8, *b.add(at) as u8) };
        at += 1;
        let (x, y) = (lower(x), lower(y));
        if x != y {
            return (if x < y { -1 } else { 1 }, at);
        }
        if x == 0 {
            break;
        }
    }
    (0, at)
}

macro_rules! comparisons {
    ($($name:ident, $fold:literal, $which:ident;)*) => { $(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(a: Text, b: Text) -> c_int {
            // SAFETY: the program's call.
            let (result, bytes) = unsafe { compared(a, b, usize::MAX, $fold) };
            if is_checking() && options().intercept_strcmp {
                let hook = $name as *const () as usize;
                check_text(hook, stringify!($name), a, bytes);
                check_text(hook, stringify!($name), b, bytes);
            }
            let words = [a as usize, b as usize, result as usize, 0, 0];
            comparisons::tell(Comparison::$which, $name as *const () as usize, words);
            result
        }
    )* };
}

comparisons! {
    strcmp, false, Strcmp;
    strcasecmp, true, Strcasecmp;
}

macro_rules! bounded_comparisons {
    ($($name:ident, $fold:literal, $which:ident;)*) => { $(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(a: Text, b: Text, most: usize) -> c_int {
            // SAFETY: the program's call.
            let (result, bytes) = unsafe { compared(a, b, most, $fold) };
            if is_checking() && options().intercept_strcmp {
                let hook = $name as *const () as usize;
                for text in [a, b] {
                    let whole = options().strict_string_checks;
                    let read = if whole { (length_up_to(text, most) + 1).min(most) } else { bytes };
                    check_read(hook, stringify!($name), text as usize, read);
                }
            }
            let words = [a as usize, b as usize, most, result as usize, 0];
            comparisons::tell(Comparison::$which, $name as *const () as usize, words);
            result
        }
    )* };
}

bounded_comparisons! {
    strncmp, false, Strncmp;
    strncasecmp, true, Strncasecmp;
}

macro_rules! searches {
    ($($name:ident, $which:ident;)*) => { $(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(text: Text, needle: Text) -> Buffer {
            // SAFETY: the program's call.
            let found = unsafe { real::$name(text, needle) };
            if is_checking() && options().intercept_strstr {
                let hook = $name as *const () as usize;
                let needle_length = length_of(needle);
                let read = if found.is_null() { length_of(text) + 1 } else { found as usize - text as usize + needle_length };
                check_text(hook, stringify!($name), text, read);
                check_read(hook, stringify!($name), needle as usize, needle_length + 1);
            }
            let words = [text as usize, needle as usize, found as usize, 0, 0];
            comparisons::tell(Comparison::$which, $name as *const () as usize, words);
            found
        }
    )* };
}

searches! {
    strstr, Strstr;
    strcasestr, Strcasestr;
}

#[unsafe(no_mangle)]
unsafe extern "C" fn strchr(text: Text, c: c_int) -> Buffer {
    // SAFETY: the program's call.
    let found = unsafe { real::strchr(text, c) };
    if is_checking() && options().intercept_strchr {
        let read = if found.is_null() { length_of(text) + 1 } else { found as usize - text as usize + 1 };
        check_text(strchr as *const () as usize, "strchr", text, read);
    }
    found
}

#[unsafe(no_mangle)]
unsafe extern "C" fn index(text: Text, c: c_int) -> Buffer {
    // SAFETY: the program's call.
    let found = unsafe { real::strchr(text, c) };
    if is_checking() && options().intercept_strchr {
        let read = if found.is_null() { length_of(text) + 1 } else { found as usize - text as usize + 1 };
        check_text(index as *const () as usize, "index", text, read);
    }
    found
}

#[unsafe(no_mangle)]
unsafe extern "C" fn strchrnul(text: Text, c: c_int) -> Buffer {
    // SAFETY: the program's call.
    let found = unsafe { real::strchrnul(text, c) };
    if is_checking() && options().intercept_strchr {
        check_text(strchrnul as *const () as usize, "strchrnul", text, found as usize - text as usize + 1);
    }
    found
}

#[unsafe(no_mangle)]
unsafe extern "C" fn strrchr(text: Text, c: c_int) -> Buffer {
    if is_checking() && options().intercept_strchr {
        check_read(strrchr as *const () as usize, "strrchr", text as usize, length_of(text) + 1);
    }
    // SAFETY: the program's call.
    unsafe { real::strrchr(text, c) }
}

macro_rules! spans {
    ($($name:ident;)*) => { $(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(text: Text, set: Text) -> usize {
            // SAFETY: the program's call.
            let length = unsafe { real::$name(text, set) };
            if is_checking() && options().intercept_strspn {
                let hook = $name as *const () as usize;
                check_read(hook, stringify!($name), set as usize, length_of(set) + 1);
                check_text(hook, stringify!($name), text, length + 1);
            }
            length
        }
    )* };
}

spans! {
    strspn;
    strcspn;
}

#[unsafe(no_mangle)]
unsafe extern "C" fn strpbrk(text: Text, set: Text) -> Buffer {
    // SAFETY: the program's call.
    let found = unsafe { real::strpbrk(text, set) };
    if is_checking() && options().intercept_strpbrk {
        let hook = strpbrk as *const () as usize;
        check_read(hook, "strpbrk", set as usize, length_of(set) + 1);
        let read = if found.is_null() { length_of(text) + 1 } else { found as usize - text as usize + 1 };
        check_text(hook, "strpbrk", text, read);
    }
    found
}

#[unsafe(no_mangle)]
unsafe extern "C" fn strtok(text: Buffer, delimiters: Text) -> Buffer {
    let hook = strtok as *const () as usize;
    let checked = is_checking() && options().intercept_strtok;
    if checked && options().strict_string_checks {
        if !text.is_null() {
            check_read(hook, "strtok", text as usize, length_of(text) + 1);
        }
        check_read(hook, "strtok", delimiters as usize, length_of(delimiters) + 1);
    } else if checked {
        if !text.is_null() {
            check_read(hook, "strtok", text as usize, 1);
        }
        check_read(hook, "strtok", delimiters as usize, 1);
    }
    // SAFETY: the program's call.
    let token = unsafe { real::strtok(text, delimiters) };
    if checked && !token.is_null() && !options().strict_string_checks {
        check_read(hook, "strtok", token as usize, length_of(token) + 1);
    }
    token
}

/// Checks the digits that a conversion read: up to `end`, or the whole string when checks are strict.
fn check_number(hook: usize, name: &str, text: Text, end: usize) {
    if !is_checking() || !options().replace_str && !options().strict_string_checks {
        return;
    }
    // Where nothing was converted the end is the start, but blanks and a sign were read.
    let mut at = end;
    if at == text as usize {
        // SAFETY: the program's string.
        unsafe {
            let mut scan = text;
            while matches!(*scan as u8, b' ' | b'\t'..=b'\r') {
                scan = scan.add(1);
            }
            if matches!(*scan as u8, b'+' | b'-') {
                scan = scan.add(1);
            }
            at = scan as usize;
        }
    }
    check_text(hook, name, text, at - text as usize + 1);
}

macro_rules! conversions {
    ($($name:ident, $by:ident -> $kind:ty;)*) => { $(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(text: Text, end: *mut Buffer, base: c_int) -> $kind {
            let mut real_end = core::ptr::null_mut();
            // SAFETY: the program's call.
            let number = unsafe { real::$by(text, &raw mut real_end, base) };
            if base == 0 || (2..=36).contains(&base) {
                check_number($name as *const () as usize, stringify!($name), text, real_end as usize);
            } else {
                // With an impossible base nothing need be read.
                check_text($name as *const () as usize, stringify!($name), text, 0);
            }
            if !end.is_null() {
                // SAFETY: the program's own pointer.
                unsafe { *end = real_end };
            }
            number
        }
    )* };
}

conversions! {
    strtol, strtol -> c_long;
    strtoll, strtoll -> c_longlong;
    strtoimax, strtoimax -> c_longlong;
    strtoumax, strtoumax -> c_longlong;
    __isoc23_strtol, strtol -> c_long;
    __isoc23_strtoll, strtoll -> c_longlong;
    __isoc23_strtoimax, strtoimax -> c_longlong;
    __isoc23_strtoumax, strtoumax -> c_longlong;
}

macro_rules! decimal {
    ($($name:ident, $by:ident -> $kind:ty;)*) => { $(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(text: Text) -> $kind {
            let mut end = core::ptr::null_mut();
            // SAFETY: the program's call.
            let number = unsafe { real::$by(text, &raw mut end, 10) };
            check_number($name as *const () as usize, stringify!($name), text, end as usize);
            number as $kind
        }
    )* };
}

decimal! {
    atoi, strtol -> c_int;
    atol, strtol -> c_long;
    atoll, strtoll -> c_longlong;
}
