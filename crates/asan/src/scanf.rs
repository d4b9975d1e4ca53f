//! The scanf family: what was written is checked, conversion by conversion.

use crate::hook::{check_write, is_checking, length_of, originals};
use crate::printf::{Registers, VaList, scan_targets, variadic};
use core::ffi::{c_char, c_int, c_void};

type Text = *const c_char;

originals! {
    fn vscanf(format: Text, list: *mut VaList) -> c_int;
    fn vfscanf(file: *mut c_void, format: Text, list: *mut VaList) -> c_int;
    fn vsscanf(text: Text, format: Text, list: *mut VaList) -> c_int;
    fn __isoc99_vscanf(format: Text, list: *mut VaList) -> c_int;
    fn __isoc99_vfscanf(file: *mut c_void, format: Text, list: *mut VaList) -> c_int;
    fn __isoc99_vsscanf(text: Text, format: Text, list: *mut VaList) -> c_int;
}

/// Scans by `scan`, then checks as many targets as were filled.
unsafe fn checked(
    hook: usize,
    name: &str,
    format: Text,
    list: *mut VaList,
    scan: impl FnOnce(*mut VaList) -> c_int,
) -> c_int {
    // SAFETY: the program's arguments.
    let targets = if is_checking() { unsafe { scan_targets(format, *list) } } else { alloc::vec::Vec::new() };
    let filled = scan(list);
    let mut left = filled;
    for (address, bytes, is_count) in targets {
        if !is_count {
            if left <= 0 {
                break;
            }
            left -= 1;
        }
        let bytes = bytes.unwrap_or_else(|| length_of(address as Text) + 1);
        check_write(hook, name, address, bytes);
    }
    filled
}

macro_rules! family {
    ($($by_list:ident, $by_arguments:ident, $body:ident, $real:ident, ($($first:ident: $kind:ty)?), $fixed:literal;)*) => { $(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $by_list($($first: $kind,)? format: Text, list: *mut VaList) -> c_int {
            // SAFETY: the program's call.
            unsafe {
                let hook = $by_list as *const () as usize;
                checked(hook, stringify!($by_list), format, list, |list| real::$real($($first,)? format, list))
            }
        }

        unsafe extern "C" fn $body(registers: *const Registers, list: *mut VaList) -> c_int {
            // SAFETY: the hook's registers.
            unsafe {
                let words = &(*registers).words;
                $(let $first = words[0] as $kind;)?
                let format = words[$fixed - 1] as Text;
                let hook = $by_arguments as *const () as usize;
                checked(hook, stringify!($by_arguments), format, list, |list| real::$real($($first,)? format, list))
            }
        }

        variadic! { $by_arguments($fixed) => $body; }
    )* };
}

family! {
    vscanf, scanf, scanf_body, vscanf, (), 1;
    vfscanf, fscanf, fscanf_body, vfscanf, (file: *mut c_void), 2;
    vsscanf, sscanf, sscanf_body, vsscanf, (text: Text), 2;
    __isoc99_vscanf, __isoc99_scanf, isoc99_scanf_body, __isoc99_vscanf, (), 1;
    __isoc99_vfscanf, __isoc99_fscanf, isoc99_fscanf_body, __isoc99_vfscanf, (file: *mut c_void), 2;
    __isoc99_vsscanf, __isoc99_sscanf, isoc99_sscanf_body, __isoc99_vsscanf, (text: Text), 2;
    __isoc23_vscanf, __isoc23_scanf, isoc23_scanf_body, __isoc99_vscanf, (), 1;
    __isoc23_vfscanf, __isoc23_fscanf, isoc23_fscanf_body, __isoc99_vfscanf, (file: *mut c_void), 2;
    __isoc23_vsscanf, __isoc23_sscanf, isoc23_sscanf_body, __isoc99_vsscanf, (text: Text), 2;
}
