//! What hooks are made of: originals, and checks of ranges.

use leakscope_asan_rt::report::{access, misuse};
use leakscope_asan_rt::shadow_map::{first_poisoned, is_program, is_shadow, shadow_of};
use leakscope_asan_rt::tls::{self, mark};
use leakscope_asan_rt::unwind::Caller;
use leakscope_asan_rt::{init, suppressions};

/// Functions that call libc's own: `originals! { fn name(arg: type) -> type; }`.
macro_rules! originals {
    ($(fn $name:ident($($arg:ident: $kind:ty),* $(,)?) $(-> $result:ty)?;)*) => {
        #[allow(dead_code, clippy::missing_safety_doc)]
        mod real {
            #[allow(unused_imports)]
            use super::*;
            $(
                #[inline(always)]
                pub unsafe fn $name($($arg: $kind),*) $(-> $result)? {
                    const NAME: &core::ffi::CStr =
                        match core::ffi::CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                            Ok(name) => name,
                            Err(_) => c"",
                        };
                    static ORIGINAL: leakscope_asan_rt::originals::Original =
                        leakscope_asan_rt::originals::Original::new(NAME);
                    // SAFETY: dlsym's address for a function of this type; the caller vouches for the arguments.
                    unsafe {
                        let function: unsafe extern "C" fn($($kind),*) $(-> $result)? =
                            core::mem::transmute(ORIGINAL.get());
                        function($($arg),*)
                    }
                }
            )*
        }
    };
}
pub(crate) use originals;

/// Whether hooks check: after the start, and not while libc works for us.
#[inline(always)]
pub fn is_checking() -> bool {
    init::is_ready() && tls::marks() & mark::OURS == 0
}

/// Runs `body`, in which libc works on our behalf.
pub fn for_ourselves<R>(body: impl FnOnce() -> R) -> R {
    let before = tls::marks();
    tls::set_marks(before | mark::OURS);
    let result = body();
    tls::set_marks(before);
    result
}

/// Checks that `bytes` from `address` may be read or written by `hook`, which is called `name`.
#[inline(always)]
pub fn check(hook: usize, name: &str, address: usize, bytes: usize, is_write: bool) {
    if bytes == 0 || !is_checking() {
        return;
    }
    if address.wrapping_add(bytes) < address {
        return overflow(hook, address, bytes);
    }
    if let Some(bad) = first_poisoned(address, bytes) {
        let is_nobodys = bad == address && !is_program(bad);
        if !is_nobodys || !is_accessible_all_the_same(bad) {
            complain(hook, name, bad, bytes, is_write);
        }
    }
}

/// [`check`] for reading.
#[inline(always)]
pub fn check_read(hook: usize, name: &str, address: usize, bytes: usize) {
    check(hook, name, address, bytes, false);
}

/// [`check`] for writing.
#[inline(always)]
pub fn check_write(hook: usize, name: &str, address: usize, bytes: usize) {
    check(hook, name, address, bytes, true);
}

#[cold]
#[inline(never)]
fn overflow(hook: usize, address: usize, bytes: usize) {
    misuse::negative_size(&Caller::of_hook(hook), address, bytes);
}

#[cold]
#[inline(never)]
fn complain(hook: usize, name: &str, bad: usize, bytes: usize, is_write: bool) {
    if suppressions::is_interceptor_suppressed(name) {
        return;
    }
    let caller = Caller::of_hook(hook);
    access::report(&caller, bad, is_write, bytes, false);
}

/// For ranges that begin where nobody's memory is: touches them, so that the fault tells of the access, as it would
/// without us. What a driver has put into the gap of the shadow survives that.
#[cold]
fn is_accessible_all_the_same(address: usize) -> bool {
    // What the shadow says of the shadow lies in the gap.
    let at = if is_shadow(address) { shadow_of(address) } else { address };
    // SAFETY: nothing of Rust's lies there. The program is about to do the same; if it faults, the signal's handler tells.
    unsafe { (at as *const u8).read_volatile() };
    true
}

/// Checks that two ranges do not overlap.
#[inline(always)]
pub fn check_overlap(hook: usize, name: &str, to: usize, to_bytes: usize, from: usize, from_bytes: usize) {
    let (to_end, from_end) = (to.wrapping_add(to_bytes), from.wrapping_add(from_bytes));
    if to != from && to < from_end && from < to_end && is_checking() {
        misuse::overlap(&Caller::of_hook(hook), name, (to, to_bytes), (from, from_bytes));
    }
}

/// Length of a C string, by words; reads no further than the aligned word with its end.
#[inline]
pub fn length_of(text: *const core::ffi::c_char) -> usize {
    // SAFETY: callers pass what their own caller says is a C string; a wrong one faults as it would in libc.
    unsafe { libc_strnlen(text, usize::MAX) }
}

/// Length of a string of at most `most` bytes.
#[inline]
pub fn length_up_to(text: *const core::ffi::c_char, most: usize) -> usize {
    // SAFETY: as above.
    unsafe { libc_strnlen(text, most) }
}

originals! {
    fn strnlen(text: *const core::ffi::c_char, most: usize) -> usize;
    fn strlen(text: *const core::ffi::c_char) -> usize;
}

#[inline(always)]
unsafe fn libc_strnlen(text: *const core::ffi::c_char, most: usize) -> usize {
    // SAFETY: the caller's.
    unsafe { if most == usize::MAX { real::strlen(text) } else { real::strnlen(text, most) } }
}
