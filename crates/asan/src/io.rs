//! Functions of libc that read or write a range which their arguments or results tell.

use crate::hook::{check_read, check_write, length_of, originals};
use core::ffi::{c_char, c_int, c_void};

type Text = *const c_char;

/// Hooks for functions that write as many bytes as they return.
macro_rules! readers {
    ($(fn $name:ident($($before:ident: $b:ty,)* [$to:ident] $(, $after:ident: $a:ty)*) -> $result:ty;)*) => {
        mod readers { use super::*; originals! { $( fn $name($($before: $b,)* $to: *mut c_void $(, $after: $a)*) -> $result; )* }
        $(
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $name($($before: $b,)* $to: *mut c_void $(, $after: $a)*) -> $result {
                // SAFETY: the program's call.
                let result = unsafe { real::$name($($before,)* $to $(, $after)*) };
                if let Ok(bytes) = usize::try_from(result) {
                    check_write($name as *const () as usize, stringify!($name), $to as usize, bytes);
                }
                result
            }
        )* }
    };
}

readers! {
    fn read(fd: c_int, [to], bytes: usize) -> isize;
    fn pread(fd: c_int, [to], bytes: usize, offset: i64) -> isize;
    fn pread64(fd: c_int, [to], bytes: usize, offset: i64) -> isize;
    fn readlink(path: Text, [to], bytes: usize) -> isize;
    fn readlinkat(fd: c_int, path: Text, [to], bytes: usize) -> isize;
    fn getrandom([to], bytes: usize, flags: u32) -> isize;
}

/// Hooks for functions that read as many bytes as they return.
macro_rules! writers {
    ($(fn $name:ident($($before:ident: $b:ty,)* [$from:ident] $(, $after:ident: $a:ty)*) -> $result:ty;)*) => {
        mod writers { use super::*; originals! { $( fn $name($($before: $b,)* $from: *const c_void $(, $after: $a)*) -> $result; )* }
        $(
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $name($($before: $b,)* $from: *const c_void $(, $after: $a)*) -> $result {
                // SAFETY: the program's call.
                let result = unsafe { real::$name($($before,)* $from $(, $after)*) };
                if let Ok(bytes) = usize::try_from(result) {
                    check_read($name as *const () as usize, stringify!($name), $from as usize, bytes);
                }
                result
            }
        )* }
    };
}

writers! {
    fn write(fd: c_int, [from], bytes: usize) -> isize;
    fn pwrite(fd: c_int, [from], bytes: usize, offset: i64) -> isize;
    fn pwrite64(fd: c_int, [from], bytes: usize, offset: i64) -> isize;
}

originals! {
    fn fread(to: *mut c_void, bytes: usize, count: usize, file: *mut c_void) -> usize;
    fn fwrite(from: *const c_void, bytes: usize, count: usize, file: *mut c_void) -> usize;
    fn fgets(to: *mut c_char, room: c_int, file: *mut c_void) -> *mut c_char;
    fn fputs(text: Text, file: *mut c_void) -> c_int;
    fn puts(text: Text) -> c_int;
    fn getcwd(to: *mut c_char, room: usize) -> *mut c_char;
    fn realpath(path: Text, to: *mut c_char) -> *mut c_char;
    fn getline(line: *mut *mut c_char, room: *mut usize, file: *mut c_void) -> isize;
    fn getdelim(line: *mut *mut c_char, room: *mut usize, delimiter: c_int, file: *mut c_void) -> isize;
    fn fopen(path: Text, mode: Text) -> *mut c_void;
    fn fopen64(path: Text, mode: Text) -> *mut c_void;
    fn opendir(path: Text) -> *mut c_void;
    fn pthread_sigmask(how: c_int, set: *const c_void, old: *mut c_void) -> c_int;
    fn sigprocmask(how: c_int, set: *const c_void, old: *mut c_void) -> c_int;
    fn time(to: *mut i64) -> i64;
    fn frexp(x: f64, exponent: *mut c_int) -> f64;
    fn getentropy(to: *mut c_void, bytes: usize) -> c_int;
    fn accept(fd: c_int, address: *mut c_void, bytes: *mut u32) -> c_int;
    fn recv(fd: c_int, to: *mut c_void, bytes: usize, flags: c_int) -> isize;
    fn recvfrom(fd: c_int, to: *mut c_void, bytes: usize, flags: c_int, address: *mut c_void, room: *mut u32) -> isize;
    fn sendto(fd: c_int, from: *const c_void, bytes: usize, flags: c_int, address: *const c_void, room: u32) -> isize;
    fn send(fd: c_int, from: *const c_void, bytes: usize, flags: c_int) -> isize;
    fn frexpf(x: f32, exponent: *mut c_int) -> f32;
    fn wcrtomb(to: *mut c_char, c: c_int, state: *mut c_void) -> usize;
    fn readv(fd: c_int, parts: *const Part, count: c_int) -> isize;
    fn writev(fd: c_int, parts: *const Part, count: c_int) -> isize;
    fn preadv(fd: c_int, parts: *const Part, count: c_int, offset: i64) -> isize;
    fn pwritev(fd: c_int, parts: *const Part, count: c_int, offset: i64) -> isize;
    fn backtrace(to: *mut *mut c_void, room: c_int) -> c_int;
    fn backtrace_symbols(from: *const *mut c_void, count: c_int) -> *mut *mut c_char;
    fn ioctl(fd: c_int, request: usize, argument: *mut c_void) -> c_int;
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fread(to: *mut c_void, bytes: usize, count: usize, file: *mut c_void) -> usize {
    // SAFETY: the program's call.
    let read = unsafe { real::fread(to, bytes, count, file) };
    check_write(fread as *const () as usize, "fread", to as usize, read * bytes);
    read
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fwrite(from: *const c_void, bytes: usize, count: usize, file: *mut c_void) -> usize {
    // SAFETY: the program's call.
    let written = unsafe { real::fwrite(from, bytes, count, file) };
    check_read(fwrite as *const () as usize, "fwrite", from as usize, written * bytes);
    written
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fgets(to: *mut c_char, room: c_int, file: *mut c_void) -> *mut c_char {
    // SAFETY: the program's call.
    let line = unsafe { real::fgets(to, room, file) };
    if !line.is_null() {
        check_write(fgets as *const () as usize, "fgets", to as usize, length_of(to) + 1);
    }
    line
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fputs(text: Text, file: *mut c_void) -> c_int {
    check_read(fputs as *const () as usize, "fputs", text as usize, length_of(text) + 1);
    // SAFETY: the program's call.
    unsafe { real::fputs(text, file) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn puts(text: Text) -> c_int {
    check_read(puts as *const () as usize, "puts", text as usize, length_of(text) + 1);
    // SAFETY: the program's call.
    unsafe { real::puts(text) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn getcwd(to: *mut c_char, room: usize) -> *mut c_char {
    // SAFETY: the program's call.
    let path = unsafe { real::getcwd(to, room) };
    if !path.is_null() {
        check_write(getcwd as *const () as usize, "getcwd", path as usize, length_of(path) + 1);
    }
    path
}

#[unsafe(no_mangle)]
unsafe extern "C" fn realpath(path: Text, to: *mut c_char) -> *mut c_char {
    let hook = realpath as *const () as usize;
    if !path.is_null() {
        check_read(hook, "realpath", path as usize, length_of(path) + 1);
    }
    // SAFETY: the program's call.
    let found = unsafe { real::realpath(path, to) };
    if !found.is_null() {
        check_write(hook, "realpath", found as usize, length_of(found) + 1);
    }
    found
}

/// Lines that libc allocates: the pointer, the room and the line are written.
fn check_line(hook: usize, name: &str, line: *mut *mut c_char, room: *mut usize, length: isize) {
    if let Ok(length) = usize::try_from(length) {
        check_write(hook, name, line as usize, 8);
        check_write(hook, name, room as usize, 8);
        // SAFETY: libc has just written it.
        check_write(hook, name, unsafe { *line } as usize, length + 1);
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn getline(line: *mut *mut c_char, room: *mut usize, file: *mut c_void) -> isize {
    // SAFETY: the program's call.
    let length = unsafe { real::getline(line, room, file) };
    check_line(getline as *const () as usize, "getline", line, room, length);
    length
}

macro_rules! delimited {
    ($($name:ident)*) => { $(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(line: *mut *mut c_char, room: *mut usize, end: c_int, file: *mut c_void) -> isize {
            // SAFETY: the program's call.
            let length = unsafe { real::getdelim(line, room, end, file) };
            check_line($name as *const () as usize, stringify!($name), line, room, length);
            length
        }
    )* };
}

delimited! { getdelim __getdelim }

macro_rules! by_path {
    ($($name:ident($($extra:ident)?);)*) => { $(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(path: Text $(, $extra: Text)?) -> *mut c_void {
            let hook = $name as *const () as usize;
            if !path.is_null() {
                check_read(hook, stringify!($name), path as usize, length_of(path) + 1);
            }
            $(check_read(hook, stringify!($name), $extra as usize, length_of($extra) + 1);)?
            // SAFETY: the program's call.
            unsafe { real::$name(path $(, $extra)?) }
        }
    )* };
}

by_path! {
    fopen(mode);
    fopen64(mode);
    opendir();
}

const SIGNAL_SET_BYTES: usize = 128;

macro_rules! masks {
    ($($name:ident)*) => { $(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(how: c_int, set: *const c_void, old: *mut c_void) -> c_int {
            let hook = $name as *const () as usize;
            if !set.is_null() {
                check_read(hook, stringify!($name), set as usize, SIGNAL_SET_BYTES);
            }
            // SAFETY: the program's call.
            let result = unsafe { real::$name(how, set, old) };
            if result == 0 && !old.is_null() {
                check_write(hook, stringify!($name), old as usize, SIGNAL_SET_BYTES);
            }
            result
        }
    )* };
}

masks! { pthread_sigmask sigprocmask }

#[unsafe(no_mangle)]
unsafe extern "C" fn time(to: *mut i64) -> i64 {
    let mut here = 0;
    // SAFETY: our own word.
    let now = unsafe { real::time(&raw mut here) };
    if !to.is_null() {
        check_write(time as *const () as usize, "time", to as usize, 8);
        // SAFETY: the program's own pointer.
        unsafe { *to = now };
    }
    now
}

#[unsafe(no_mangle)]
unsafe extern "C" fn frexp(x: f64, exponent: *mut c_int) -> f64 {
    // SAFETY: the program's call.
    let result = unsafe { real::frexp(x, exponent) };
    check_write(frexp as *const () as usize, "frexp", exponent as usize, 4);
    result
}

#[unsafe(no_mangle)]
unsafe extern "C" fn getentropy(to: *mut c_void, bytes: usize) -> c_int {
    // SAFETY: the program's call.
    let result = unsafe { real::getentropy(to, bytes) };
    if result == 0 {
        check_write(getentropy as *const () as usize, "getentropy", to as usize, bytes);
    }
    result
}

/// With MSG_TRUNC the result is the length of the message, of which only so much is written as there is room for.
#[unsafe(no_mangle)]
unsafe extern "C" fn recv(fd: c_int, to: *mut c_void, bytes: usize, flags: c_int) -> isize {
    // SAFETY: the program's call.
    let result = unsafe { real::recv(fd, to, bytes, flags) };
    if let Ok(received) = usize::try_from(result) {
        check_write(recv as *const () as usize, "recv", to as usize, received.min(bytes));
    }
    result
}

#[unsafe(no_mangle)]
unsafe extern "C" fn recvfrom(
    fd: c_int,
    to: *mut c_void,
    bytes: usize,
    flags: c_int,
    address: *mut c_void,
    room: *mut u32,
) -> isize {
    // SAFETY: the program's call.
    let result = unsafe { real::recvfrom(fd, to, bytes, flags, address, room) };
    if let Ok(received) = usize::try_from(result) {
        check_write(recvfrom as *const () as usize, "recvfrom", to as usize, received.min(bytes));
    }
    result
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sendto(
    fd: c_int,
    from: *const c_void,
    bytes: usize,
    flags: c_int,
    address: *const c_void,
    room: u32,
) -> isize {
    // SAFETY: the program's call.
    let result = unsafe { real::sendto(fd, from, bytes, flags, address, room) };
    if let Ok(sent) = usize::try_from(result)
        && leakscope_asan_rt::options::options().intercept_send
    {
        check_read(sendto as *const () as usize, "sendto", from as usize, sent.min(bytes));
    }
    result
}

#[unsafe(no_mangle)]
unsafe extern "C" fn send(fd: c_int, from: *const c_void, bytes: usize, flags: c_int) -> isize {
    // SAFETY: the program's call.
    let result = unsafe { real::send(fd, from, bytes, flags) };
    if let Ok(sent) = usize::try_from(result)
        && leakscope_asan_rt::options::options().intercept_send
    {
        check_read(send as *const () as usize, "send", from as usize, sent.min(bytes));
    }
    result
}

#[unsafe(no_mangle)]
unsafe extern "C" fn frexpf(x: f32, exponent: *mut c_int) -> f32 {
    // SAFETY: the program's call.
    let result = unsafe { real::frexpf(x, exponent) };
    check_write(frexpf as *const () as usize, "frexpf", exponent as usize, 4);
    result
}

static FREXPL: leakscope_asan_rt::originals::Original = leakscope_asan_rt::originals::Original::new(c"frexpl");

/// A long double comes and goes on the x87 stack, which Rust cannot name: the check is done before, and the original
/// gets the call as it is.
#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn frexpl() {
    extern "C" fn prepare(exponent: usize) -> usize {
        check_write(frexpl as *const () as usize, "frexpl", exponent, 4);
        FREXPL.get()
    }
    core::arch::naked_asm!(
        ".cfi_startproc",
        "push rdi",
        ".cfi_adjust_cfa_offset 8",
        "call {prepare}",
        "pop rdi",
        ".cfi_adjust_cfa_offset -8",
        "jmp rax",
        ".cfi_endproc",
        prepare = sym prepare,
    )
}

#[unsafe(no_mangle)]
unsafe extern "C" fn wcrtomb(to: *mut c_char, c: c_int, state: *mut c_void) -> usize {
    if to.is_null() {
        // SAFETY: the program's call.
        return unsafe { real::wcrtomb(to, c, state) };
    }
    // Into room of our own first: how much it is, is known afterwards.
    let mut here = [0 as c_char; 32];
    // SAFETY: more room than any encoding needs.
    let bytes = unsafe { real::wcrtomb(here.as_mut_ptr(), c, state) };
    if bytes <= here.len() {
        check_write(wcrtomb as *const () as usize, "wcrtomb", to as usize, bytes);
        // SAFETY: the program's buffer, checked.
        unsafe { leakscope_asan_rt::originals::copy_bytes(to as usize, here.as_ptr() as usize, bytes) };
    }
    bytes
}

/// A part of a scattered read or write.
#[repr(C)]
pub struct Part {
    start: usize,
    bytes: usize,
}

/// Checks as many bytes of the parts as were moved.
unsafe fn check_parts(hook: usize, name: &str, parts: *const Part, count: c_int, moved: isize, is_write: bool) {
    let Ok(mut left) = usize::try_from(moved) else { return };
    for number in 0..usize::try_from(count).unwrap_or(0) {
        // SAFETY: the program's parts.
        let part = unsafe { &*parts.add(number) };
        let bytes = part.bytes.min(left);
        crate::hook::check(hook, name, part.start, bytes, is_write);
        left -= bytes;
        if left == 0 {
            break;
        }
    }
}

macro_rules! scattered {
    ($($name:ident($($offset:ident)?) $by:ident, $is_write:literal;)*) => { $(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(fd: c_int, parts: *const Part, count: c_int $(, $offset: i64)?) -> isize {
            // SAFETY: the program's call.
            unsafe {
                let moved = real::$by(fd, parts, count $(, $offset)?);
                check_parts($name as *const () as usize, stringify!($name), parts, count, moved, $is_write);
                moved
            }
        }
    )* };
}

scattered! {
    readv() readv, true;
    writev() writev, false;
    preadv(offset) preadv, true;
    preadv64(offset) preadv, true;
    pwritev(offset) pwritev, false;
    pwritev64(offset) pwritev, false;
}

#[unsafe(no_mangle)]
unsafe extern "C" fn backtrace(to: *mut *mut c_void, room: c_int) -> c_int {
    // SAFETY: the program's call.
    let count = unsafe { real::backtrace(to, room) };
    if let Ok(count) = usize::try_from(count) {
        check_write(backtrace as *const () as usize, "backtrace", to as usize, count * 8);
    }
    count
}

#[unsafe(no_mangle)]
unsafe extern "C" fn backtrace_symbols(from: *const *mut c_void, count: c_int) -> *mut *mut c_char {
    if let Ok(count) = usize::try_from(count) {
        check_read(backtrace_symbols as *const () as usize, "backtrace_symbols", from as usize, count * 8);
    }
    // SAFETY: the program's call.
    unsafe { real::backtrace_symbols(from, count) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ioctl(fd: c_int, request: usize, argument: *mut c_void) -> c_int {
    const READS_AN_INT: [usize; 4] = [0x5421, 0x5452, 0x8901, 0x8902];
    if leakscope_asan_rt::options::options().handle_ioctl && READS_AN_INT.contains(&request) {
        check_read(ioctl as *const () as usize, "ioctl", argument as usize, 4);
    }
    // SAFETY: the program's call.
    unsafe { real::ioctl(fd, request, argument) }
}
