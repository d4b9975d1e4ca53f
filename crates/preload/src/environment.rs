//! Our traces in the target's environment: read once, then removed unless children are to be traced as well.

use core::ffi::{CStr, c_char};
use leakscope_rt::raw;

/// The name of our variable with its equals sign.
pub const CTL: &[u8] = b"LEAKSCOPE_CTL=";
/// The dynamic linker's variable with its equals sign.
pub const LD_PRELOAD: &[u8] = b"LD_PRELOAD=";

unsafe extern "C" {
    static mut environ: *mut *mut c_char;
}

/// The process's environment: null-terminated, null before libc has set it up.
pub fn current() -> *mut *mut c_char {
    // SAFETY: reads a pointer variable of libc.
    unsafe { environ }
}

/// The text of an entry.
///
/// # Safety
/// `entry` is a C string.
unsafe fn text<'a>(entry: *const c_char) -> &'a [u8] {
    // SAFETY: the caller vouches.
    unsafe { CStr::from_ptr(entry) }.to_bytes()
}

/// Calls `each` with the value of our variable, if it is set.
pub fn with_ctl<R>(each: impl FnOnce(&[u8]) -> R) -> Option<R> {
    if current().is_null() { with_initial_ctl(each) } else { with_value(CTL, each) }
}

/// Calls `each` with the value of the variable whose name and equals sign are `name`, if it is set. Nothing is set before
/// libc has set `environ` up.
pub fn with_value<R>(name: &[u8], each: impl FnOnce(&[u8]) -> R) -> Option<R> {
    let mut entries = current();
    if entries.is_null() {
        return None;
    }
    // SAFETY: `environ` is a null-terminated array of C strings.
    unsafe {
        while !(*entries).is_null() {
            if let Some(value) = text(*entries).strip_prefix(name) {
                return Some(each(value));
            }
            entries = entries.add(1);
        }
    }
    None
}

/// The same from `/proc`, for the time before libc has set `environ` up.
fn with_initial_ctl<R>(each: impl FnOnce(&[u8]) -> R) -> Option<R> {
    let fd = raw::open_read(c"/proc/self/environ").ok()?;
    let mut window = [0u8; 4096];
    let mut held = 0;
    let mut value = [0u8; 256];
    let mut value_len = None;
    'reading: while let Ok(got) = raw::read(fd, window.get_mut(held..).unwrap_or(&mut [])) {
        let filled = held + got;
        let mut from = 0;
        while let Some(length) = window.get(from..filled).and_then(|rest| rest.iter().position(|&byte| byte == 0)) {
            let entry = window.get(from..from + length).unwrap_or(&[]);
            if let Some(found) = entry.strip_prefix(CTL)
                && let Some(room) = value.get_mut(..found.len())
            {
                room.copy_from_slice(found);
                value_len = Some(found.len());
                break 'reading;
            }
            from += length + 1;
        }
        if got == 0 {
            break;
        }
        // An entry longer than the window is not ours: let it pass by.
        if from == 0 && filled == window.len() {
            held = 0;
        } else {
            window.copy_within(from..filled, 0);
            held = filled - from;
        }
    }
    raw::close(fd);
    value_len.and_then(|length| value.get(..length)).map(each)
}

/// Removes our variable and our entry of LD_PRELOAD, in place: the program sees the environment that it would have
/// seen without us.
pub fn scrub() {
    let entries = current();
    if entries.is_null() {
        return;
    }
    let (mut from, mut to) = (0, 0);
    // SAFETY: `environ` is a null-terminated array of C strings in memory that the program may write to.
    unsafe {
        while !(*entries.add(from)).is_null() {
            let entry = *entries.add(from);
            from += 1;
            let bytes = text(entry);
            if bytes.starts_with(CTL) {
                continue;
            }
            let mut kept = entry;
            if let Some(value) = bytes.strip_prefix(LD_PRELOAD) {
                // Ours is the first name in the list.
                let Some(end) = value.iter().position(|&byte| byte == b':') else { continue };
                let users = entry.add(LD_PRELOAD.len() + end + 1);
                kept = users.sub(LD_PRELOAD.len());
                core::ptr::copy(LD_PRELOAD.as_ptr(), kept.cast(), LD_PRELOAD.len());
            }
            *entries.add(to) = kept;
            to += 1;
        }
        *entries.add(to) = core::ptr::null_mut();
    }
}
