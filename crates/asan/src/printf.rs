//! The printf family: strings and counts that the format names are checked, and what is written to the program's
//! buffer.
//!
//! The variadic hooks are naked: they make a `va_list` of their registers and call a body, which hands a copy to the
//! function with `v` in its name.

use crate::hook::{check_read, check_write, is_checking, length_of, length_up_to, originals};
use alloc::vec::Vec;
use core::ffi::{c_char, c_int, c_void};
use core::sync::atomic::AtomicBool;
use core::sync::atomic::Ordering::Relaxed;
use leakscope_asan_rt::options::options;

type Text = *const c_char;

/// A `va_list` of the System V ABI.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct VaList {
    general_offset: u32,
    float_offset: u32,
    overflow: usize,
    saved: usize,
}

impl VaList {
    /// The next argument of an integer's or pointer's class.
    ///
    /// # Safety
    /// There is one.
    pub unsafe fn next_word(&mut self) -> u64 {
        // SAFETY: the caller's; both areas are laid out by the ABI.
        unsafe {
            if self.general_offset < 48 {
                let at = self.saved + self.general_offset as usize;
                self.general_offset += 8;
                return *(at as *const u64);
            }
            let at = self.overflow;
            self.overflow += 8;
            *(at as *const u64)
        }
    }

    /// Passes over a double, or a long double.
    pub fn skip_float(&mut self, is_long: bool) {
        if is_long {
            self.overflow = self.overflow.next_multiple_of(16) + 16;
        } else if self.float_offset < 176 {
            self.float_offset += 16;
        } else {
            self.overflow += 8;
        }
    }
}

/// What a body gets: the registers of arguments, and the arguments behind the fixed ones.
#[repr(C)]
pub struct Registers {
    /// rdi, rsi, rdx, rcx, r8, r9.
    pub words: [usize; 6],
}

/// Variadic hooks with so many fixed arguments.
macro_rules! variadic {
    ($($name:ident($fixed:literal) => $body:path;)*) => { $(
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name() {
            core::arch::naked_asm!(
                ".cfi_startproc",
                "sub rsp, 216",
                ".cfi_adjust_cfa_offset 216",
                "mov [rsp], rdi",
                "mov [rsp + 8], rsi",
                "mov [rsp + 16], rdx",
                "mov [rsp + 24], rcx",
                "mov [rsp + 32], r8",
                "mov [rsp + 40], r9",
                "test al, al",
                "je 2f",
                "movaps [rsp + 48], xmm0",
                "movaps [rsp + 64], xmm1",
                "movaps [rsp + 80], xmm2",
                "movaps [rsp + 96], xmm3",
                "movaps [rsp + 112], xmm4",
                "movaps [rsp + 128], xmm5",
                "movaps [rsp + 144], xmm6",
                "movaps [rsp + 160], xmm7",
                "2:",
                "mov dword ptr [rsp + 176], {fixed}",
                "mov dword ptr [rsp + 180], 48",
                "lea rax, [rsp + 224]",
                "mov [rsp + 184], rax",
                "mov [rsp + 192], rsp",
                "mov rdi, rsp",
                "lea rsi, [rsp + 176]",
                "call {body}",
                "add rsp, 216",
                ".cfi_adjust_cfa_offset -216",
                "ret",
                ".cfi_endproc",
                fixed = const $fixed * 8,
                body = sym $body,
            )
        }
    )* };
}
pub(crate) use variadic;

originals! {
    fn vprintf(format: Text, list: *mut VaList) -> c_int;
    fn vfprintf(file: *mut c_void, format: Text, list: *mut VaList) -> c_int;
    fn vsnprintf(to: *mut c_char, room: usize, format: Text, list: *mut VaList) -> c_int;
    fn vsprintf(to: *mut c_char, format: Text, list: *mut VaList) -> c_int;
    fn vasprintf(to: *mut *mut c_char, format: Text, list: *mut VaList) -> c_int;
}

/// What a conversion takes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Taken {
    Nothing,
    Word,
    Float,
    LongFloat,
    Text(Option<i64>, bool),
    Count(usize),
}

struct Format<'f> {
    rest: &'f [u8],
}

impl Format<'_> {
    fn number(&mut self) -> Option<i64> {
        let digits = self.rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (number, rest) = self.rest.split_at(digits);
        self.rest = rest;
        core::str::from_utf8(number).ok()?.parse().ok()
    }

    fn accept(&mut self, byte: u8) -> bool {
        let is_there = self.rest.first() == Some(&byte);
        if is_there {
            self.rest = self.rest.get(1..).unwrap_or(&[]);
        }
        is_there
    }
}

/// Checks what a format makes printf read and write. Formats with numbered arguments are left to libc.
pub unsafe fn check_arguments(hook: usize, name: &str, format: Text, mut list: VaList) {
    if !is_checking() || !options().check_printf {
        return;
    }
    let length = length_of(format);
    check_read(hook, name, format as usize, length + 1);
    // SAFETY: a C string of this length.
    let bytes = unsafe { core::slice::from_raw_parts(format.cast::<u8>(), length) };
    let mut format = Format { rest: bytes };
    while let Some(at) = format.rest.iter().position(|&byte| byte == b'%') {
        format.rest = format.rest.get(at + 1..).unwrap_or(&[]);
        // SAFETY: the program's arguments fit its format.
        let Some(taken) = (unsafe { conversion(&mut format, &mut list) }) else { return warn(bytes, format.rest) };
        // SAFETY: as above.
        unsafe {
            match taken {
                Taken::Nothing => {}
                Taken::Word => _ = list.next_word(),
                Taken::Float => list.skip_float(false),
                Taken::LongFloat => list.skip_float(true),
                Taken::Count(bytes) => check_write(hook, name, list.next_word() as usize, bytes),
                Taken::Text(precision, is_wide) => {
                    let text = list.next_word() as usize;
                    check_string(hook, name, text, precision, is_wide);
                }
            }
        }
    }
}

/// Tells once that a format was not understood; its arguments are not checked.
#[cold]
fn warn(format: &[u8], rest: &[u8]) {
    static WAS_TOLD: AtomicBool = AtomicBool::new(false);
    if WAS_TOLD.swap(true, Relaxed) {
        return;
    }
    let read = format.get(..format.len() - rest.len()).unwrap_or(&[]);
    let start = read.iter().rposition(|&byte| byte == b'%').unwrap_or(0);
    leakscope_asan_rt::out_pid!(
        "AddressSanitizer: WARNING: unexpected format specifier in printf interceptor: {} (reported once per process)\n",
        alloc::string::String::from_utf8_lossy(read.get(start..).unwrap_or(&[]))
    );
}

fn check_string(hook: usize, name: &str, text: usize, precision: Option<i64>, is_wide: bool) {
    if text == 0 {
        return;
    }
    if is_wide {
        let mut count = 0usize;
        let most = precision.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX);
        // SAFETY: the program's wide string.
        while count < most && unsafe { *((text + count * 4) as *const u32) } != 0 {
            count += 1;
        }
        check_read(hook, name, text, (count + 1).min(most) * 4);
        return;
    }
    match precision.and_then(|most| usize::try_from(most).ok()) {
        Some(most) => {
            let length = length_up_to(text as Text, most);
            check_read(hook, name, text, (length + 1).min(most));
        }
        None => check_read(hook, name, text, length_of(text as Text) + 1),
    }
}

/// Decodes one conversion behind its `%`, and takes widths from the arguments. `None`: not understood.
unsafe fn conversion(format: &mut Format<'_>, list: &mut VaList) -> Option<Taken> {
    while matches!(format.rest.first(), Some(b'-' | b'+' | b' ' | b'#' | b'0' | b'\'' | b'I')) {
        format.rest = format.rest.get(1..)?;
    }
    if format.accept(b'*') {
        // SAFETY: the program's arguments fit its format.
        _ = unsafe { list.next_word() };
    } else if format.number().is_some() && format.rest.first() == Some(&b'$') {
        return None;
    }
    let mut precision = None;
    if format.accept(b'.') {
        precision = if format.accept(b'*') {
            // SAFETY: as above.
            Some(i64::from(unsafe { list.next_word() } as i32))
        } else {
            Some(format.number().unwrap_or(0))
        };
    }
    let rest = format.rest;
    let sizes: [(&[u8], usize); 8] =
        [(b"hh", 1), (b"h", 2), (b"ll", 8), (b"l", 8), (b"j", 8), (b"z", 8), (b"t", 8), (b"L", 16)];
    let (modifier, bytes) =
        sizes.iter().find(|(text, _)| rest.starts_with(text)).map_or((&b""[..], 4), |&(t, n)| (t, n));
    format.rest = rest.get(modifier.len()..)?;
    let (&letter, rest) = format.rest.split_first()?;
    format.rest = rest;
    Some(match letter {
        b'%' | b'm' => Taken::Nothing,
        b'd' | b'i' | b'u' | b'o' | b'x' | b'X' | b'c' | b'C' | b'p' => Taken::Word,
        b'a' | b'A' | b'e' | b'E' | b'f' | b'F' | b'g' | b'G' if modifier == b"L" => Taken::LongFloat,
        b'a' | b'A' | b'e' | b'E' | b'f' | b'F' | b'g' | b'G' => Taken::Float,
        b's' => Taken::Text(precision, modifier == b"l"),
        b'S' => Taken::Text(precision, true),
        b'n' => Taken::Count(bytes),
        _ => return None,
    })
}

macro_rules! to_files {
    ($($v:ident, $name:ident, $body:ident;)*) => { $(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $v(file: *mut c_void, format: Text, list: *mut VaList) -> c_int {
            // SAFETY: the program's call.
            unsafe {
                check_arguments($v as *const () as usize, stringify!($v), format, *list);
                real::vfprintf(file, format, list)
            }
        }

        unsafe extern "C" fn $body(registers: *const Registers, list: *mut VaList) -> c_int {
            // SAFETY: the hook's registers: file, format.
            unsafe {
                let [file, format, ..] = (*registers).words;
                check_arguments($name as *const () as usize, stringify!($name), format as Text, *list);
                real::vfprintf(file as *mut c_void, format as Text, list)
            }
        }
        variadic! { $name(2) => $body; }
    )* };
}

to_files! {
    vfprintf, fprintf, fprintf_body;
    __isoc99_vfprintf, __isoc99_fprintf, isoc99_fprintf_body;
}

macro_rules! to_stdout {
    ($($v:ident, $name:ident, $body:ident;)*) => { $(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $v(format: Text, list: *mut VaList) -> c_int {
            // SAFETY: the program's call.
            unsafe {
                check_arguments($v as *const () as usize, stringify!($v), format, *list);
                real::vprintf(format, list)
            }
        }

        unsafe extern "C" fn $body(registers: *const Registers, list: *mut VaList) -> c_int {
            // SAFETY: the hook's registers: format.
            unsafe {
                let format = (*registers).words[0] as Text;
                check_arguments($name as *const () as usize, stringify!($name), format, *list);
                real::vprintf(format, list)
            }
        }
        variadic! { $name(1) => $body; }
    )* };
}

to_stdout! {
    vprintf, printf, printf_body;
    __isoc99_vprintf, __isoc99_printf, isoc99_printf_body;
}

unsafe fn print_bounded(
    hook: usize,
    name: &str,
    to: *mut c_char,
    room: usize,
    format: Text,
    list: *mut VaList,
) -> c_int {
    // SAFETY: the program's call.
    unsafe {
        check_arguments(hook, name, format, *list);
        let length = real::vsnprintf(to, room, format, list);
        if let Ok(length) = usize::try_from(length) {
            check_write(hook, name, to as usize, (length + 1).min(room));
        }
        length
    }
}

unsafe fn print_unbounded(hook: usize, name: &str, to: *mut c_char, format: Text, list: *mut VaList) -> c_int {
    // SAFETY: the program's call.
    unsafe {
        check_arguments(hook, name, format, *list);
        if is_checking() {
            // How much it will be, before it is written over something.
            let mut copy = *list;
            if let Ok(length) = usize::try_from(real::vsnprintf(core::ptr::null_mut(), 0, format, &raw mut copy)) {
                check_write(hook, name, to as usize, length + 1);
            }
        }
        real::vsprintf(to, format, list)
    }
}

macro_rules! to_buffers {
    ($($v:ident, $name:ident, $body:ident;)*) => { $(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $v(to: *mut c_char, room: usize, format: Text, list: *mut VaList) -> c_int {
            // SAFETY: the program's call.
            unsafe { print_bounded($v as *const () as usize, stringify!($v), to, room, format, list) }
        }

        unsafe extern "C" fn $body(registers: *const Registers, list: *mut VaList) -> c_int {
            // SAFETY: the hook's registers: buffer, room, format.
            unsafe {
                let [to, room, format, ..] = (*registers).words;
                let hook = $name as *const () as usize;
                print_bounded(hook, stringify!($name), to as *mut c_char, room, format as Text, list)
            }
        }
        variadic! { $name(3) => $body; }
    )* };
}

to_buffers! {
    vsnprintf, snprintf, snprintf_body;
    __isoc99_vsnprintf, __isoc99_snprintf, isoc99_snprintf_body;
}

macro_rules! to_unbounded_buffers {
    ($($v:ident, $name:ident, $body:ident;)*) => { $(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $v(to: *mut c_char, format: Text, list: *mut VaList) -> c_int {
            // SAFETY: the program's call.
            unsafe { print_unbounded($v as *const () as usize, stringify!($v), to, format, list) }
        }

        unsafe extern "C" fn $body(registers: *const Registers, list: *mut VaList) -> c_int {
            // SAFETY: the hook's registers: buffer, format.
            unsafe {
                let [to, format, ..] = (*registers).words;
                let hook = $name as *const () as usize;
                print_unbounded(hook, stringify!($name), to as *mut c_char, format as Text, list)
            }
        }
        variadic! { $name(2) => $body; }
    )* };
}

to_unbounded_buffers! {
    vsprintf, sprintf, sprintf_body;
    __isoc99_vsprintf, __isoc99_sprintf, isoc99_sprintf_body;
}

#[unsafe(no_mangle)]
unsafe extern "C" fn vasprintf(to: *mut *mut c_char, format: Text, list: *mut VaList) -> c_int {
    // SAFETY: the program's call.
    unsafe { print_allocated(vasprintf as *const () as usize, "vasprintf", to, format, list) }
}

unsafe fn print_allocated(hook: usize, name: &str, to: *mut *mut c_char, format: Text, list: *mut VaList) -> c_int {
    check_write(hook, name, to as usize, 8);
    // SAFETY: the program's call.
    unsafe {
        check_arguments(hook, name, format, *list);
        real::vasprintf(to, format, list)
    }
}

unsafe extern "C" fn asprintf_body(registers: *const Registers, list: *mut VaList) -> c_int {
    // SAFETY: the hook's registers: pointer, format.
    unsafe {
        let [to, format, ..] = (*registers).words;
        print_allocated(asprintf as *const () as usize, "asprintf", to as *mut *mut c_char, format as Text, list)
    }
}

variadic! {
    asprintf(2) => asprintf_body;
    __snprintf_chk(5) => snprintf_chk_body;
    __sprintf_chk(4) => sprintf_chk_body;
    __fprintf_chk(3) => fprintf_chk_body;
    __printf_chk(2) => printf_chk_body;
}

unsafe extern "C" fn snprintf_chk_body(registers: *const Registers, list: *mut VaList) -> c_int {
    // SAFETY: the hook's registers: buffer, room, flag, size, format.
    unsafe {
        let [to, room, flag, size, format, _] = (*registers).words;
        let hook = __snprintf_chk as *const () as usize;
        let _ = (flag, size);
        print_bounded(hook, "snprintf", to as *mut c_char, room, format as Text, list)
    }
}

unsafe extern "C" fn sprintf_chk_body(registers: *const Registers, list: *mut VaList) -> c_int {
    // SAFETY: the hook's registers: buffer, flag, size, format.
    unsafe {
        let [to, flag, size, format, ..] = (*registers).words;
        let hook = __sprintf_chk as *const () as usize;
        let _ = (flag, size);
        print_unbounded(hook, "sprintf", to as *mut c_char, format as Text, list)
    }
}

unsafe extern "C" fn fprintf_chk_body(registers: *const Registers, list: *mut VaList) -> c_int {
    // SAFETY: the hook's registers: file, flag, format.
    unsafe {
        let [file, flag, format, ..] = (*registers).words;
        let _ = flag;
        check_arguments(__fprintf_chk as *const () as usize, "fprintf", format as Text, *list);
        real::vfprintf(file as *mut c_void, format as Text, list)
    }
}

unsafe extern "C" fn printf_chk_body(registers: *const Registers, list: *mut VaList) -> c_int {
    // SAFETY: the hook's registers: flag, format.
    unsafe {
        let [flag, format, ..] = (*registers).words;
        let _ = flag;
        check_arguments(__printf_chk as *const () as usize, "printf", format as Text, *list);
        real::vprintf(format as Text, list)
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __vsnprintf_chk(
    to: *mut c_char,
    room: usize,
    _flag: c_int,
    _size: usize,
    format: Text,
    list: *mut VaList,
) -> c_int {
    // SAFETY: the program's call.
    unsafe { print_bounded(__vsnprintf_chk as *const () as usize, "vsnprintf", to, room, format, list) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __vsprintf_chk(
    to: *mut c_char,
    _flag: c_int,
    _size: usize,
    format: Text,
    list: *mut VaList,
) -> c_int {
    // SAFETY: the program's call.
    unsafe { print_unbounded(__vsprintf_chk as *const () as usize, "vsprintf", to, format, list) }
}

/// Where a conversion of scanf writes, and how many bytes: `None` for one that is as long as what was read.
pub type Target = (usize, Option<usize>, bool);

/// The places that a scanf format writes to.
///
/// # Safety
/// The program's format and arguments.
pub unsafe fn scan_targets(format: Text, mut list: VaList) -> Vec<Target> {
    let mut targets = Vec::new();
    // SAFETY: a C string of this length.
    let bytes = unsafe { core::slice::from_raw_parts(format.cast::<u8>(), length_of(format)) };
    let mut format = Format { rest: bytes };
    while let Some(at) = format.rest.iter().position(|&byte| byte == b'%') {
        format.rest = format.rest.get(at + 1..).unwrap_or(&[]);
        if format.accept(b'%') {
            continue;
        }
        let is_dropped = format.accept(b'*');
        let width = format.number();
        if format.rest.first() == Some(&b'$') {
            return targets;
        }
        let is_allocated = format.accept(b'm');
        let rest = format.rest;
        let sizes: [(&[u8], usize); 8] =
            [(b"hh", 1), (b"h", 2), (b"ll", 8), (b"l", 8), (b"j", 8), (b"z", 8), (b"t", 8), (b"L", 16)];
        let (modifier, integer) =
            sizes.iter().find(|(text, _)| rest.starts_with(text)).map_or((&b""[..], 4), |&(t, n)| (t, n));
        format.rest = rest.get(modifier.len()..).unwrap_or(&[]);
        let Some((&letter, rest)) = format.rest.split_first() else { return targets };
        format.rest = rest;
        if letter == b'[' {
            skip_set(&mut format);
        }
        if is_dropped {
            continue;
        }
        let unit = if modifier == b"l" || matches!(letter, b'S' | b'C') { 4 } else { 1 };
        let width = width.and_then(|width| usize::try_from(width).ok());
        let bytes = match letter {
            _ if is_allocated => Some(8),
            b'd' | b'i' | b'u' | b'o' | b'x' | b'X' | b'n' => Some(integer),
            b'a' | b'A' | b'e' | b'E' | b'f' | b'F' | b'g' | b'G' => Some(match modifier {
                b"L" => 16,
                b"l" => 8,
                _ => 4,
            }),
            b'c' | b'C' => Some(width.unwrap_or(1) * unit),
            b's' | b'S' | b'[' => width.map(|width| (width + 1) * unit),
            b'p' => Some(8),
            _ => return targets,
        };
        // SAFETY: the program's arguments fit its format.
        targets.push((unsafe { list.next_word() } as usize, bytes, letter == b'n'));
    }
    targets
}

fn skip_set(format: &mut Format<'_>) {
    format.accept(b'^');
    format.accept(b']');
    let end = format.rest.iter().position(|&byte| byte == b']').map_or(format.rest.len(), |at| at + 1);
    format.rest = format.rest.get(end..).unwrap_or(&[]);
}
