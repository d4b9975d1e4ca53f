//! The shadow: one byte for eight of the program's, at a fixed place.
//!
//! Source: the ABI between compilers and the run-time on x86-64 Linux (scale 3, offset 0x7fff8000).
//!
//! | range | what |
//! |---|---|
//! | 0x10007fff8000..0x7fffffffffff | high memory |
//! | 0x02008fff7000..0x10007fff7fff | high shadow |
//! | 0x00008fff7000..0x02008fff6fff | gap, no access |
//! | 0x00007fff8000..0x00008fff6fff | low shadow |
//! | 0x000000000000..0x00007fff7fff | low memory |

use crate::sys::{self, Advice};
use core::sync::atomic::AtomicBool;
use core::sync::atomic::Ordering::Relaxed;

/// Where the shadow of address 0 is.
pub const OFFSET: usize = 0x7fff_8000;
/// Log2 of the bytes that a shadow byte stands for.
pub const SCALE: usize = 3;
/// Last byte that a program can have.
pub const HIGH_MEMORY_END: usize = 0x7fff_ffff_ffff;
/// First byte of high memory.
pub const HIGH_MEMORY_START: usize = HIGH_SHADOW_END;
/// First byte of the high shadow.
pub const HIGH_SHADOW_START: usize = 0x0200_8fff_7000;
/// One past the high shadow.
pub const HIGH_SHADOW_END: usize = 0x1000_7fff_8000;
/// One past the low shadow, where the gap begins.
pub const LOW_SHADOW_END: usize = 0x8fff_7000;

/// What a shadow byte over 127 says: why these bytes may not be touched. Source: the reports' legend.
pub mod why {
    #![allow(missing_docs)]
    pub const HEAP_REDZONE: u8 = 0xfa;
    pub const HEAP_FREED: u8 = 0xfd;
    pub const STACK_LEFT: u8 = 0xf1;
    pub const STACK_MIDDLE: u8 = 0xf2;
    pub const STACK_RIGHT: u8 = 0xf3;
    pub const STACK_AFTER_RETURN: u8 = 0xf5;
    pub const INIT_ORDER: u8 = 0xf6;
    pub const USER_POISONED: u8 = 0xf7;
    pub const STACK_AFTER_SCOPE: u8 = 0xf8;
    pub const GLOBAL_REDZONE: u8 = 0xf9;
    pub const CONTAINER: u8 = 0xfc;
    pub const ARRAY_COOKIE: u8 = 0xac;
    pub const INTRA_OBJECT: u8 = 0xbb;
    pub const ALLOCA_LEFT: u8 = 0xca;
    pub const ALLOCA_RIGHT: u8 = 0xcb;
    pub const INTERNAL: u8 = 0xfe;
}

/// The address of the shadow byte for `address`.
#[inline(always)]
#[must_use]
pub const fn shadow_of(address: usize) -> usize {
    (address >> SCALE) + OFFSET
}

/// Whether the address belongs to the program and so has a shadow.
#[inline(always)]
#[must_use]
pub const fn is_program(address: usize) -> bool {
    address < OFFSET || (address >= HIGH_MEMORY_START && address <= HIGH_MEMORY_END)
}

/// Whether the address lies in the shadow itself.
#[must_use]
pub const fn is_shadow(address: usize) -> bool {
    (address >= OFFSET && address < LOW_SHADOW_END) || (address >= HIGH_SHADOW_START && address < HIGH_SHADOW_END)
}

/// Whether the address lies in the gap.
#[must_use]
pub const fn is_gap(address: usize) -> bool {
    address >= LOW_SHADOW_END && address < HIGH_SHADOW_START
}

/// The shadow byte for an address of the program.
#[inline(always)]
#[must_use]
pub fn shadow_byte(address: usize) -> u8 {
    // SAFETY: the shadow of program memory is mapped for the life of the process.
    unsafe { *(shadow_of(address) as *const u8) }
}

/// Reserves the shadow. Says which step failed.
///
/// # Errors
/// A part of the address space is not free, or may not be had.
pub fn map() -> Result<(), &'static str> {
    let low = (OFFSET, LOW_SHADOW_END - OFFSET);
    let high = (HIGH_SHADOW_START, HIGH_SHADOW_END - HIGH_SHADOW_START);
    for (start, bytes) in [low, high] {
        sys::map_free_range(start, bytes, true).map_err(|_| "ReserveShadowMemoryRange")?;
        // SAFETY: fresh memory of our own.
        unsafe {
            sys::advise(start, bytes, Advice::NoHugePage);
            sys::advise(start, bytes, Advice::DontDump);
        }
    }
    Ok(())
}

/// Makes the gap inaccessible.
///
/// # Errors
/// It is not free.
pub fn protect_gap() -> Result<(), sys::Errno> {
    sys::map_free_range(LOW_SHADOW_END, HIGH_SHADOW_START - LOW_SHADOW_END, false)
}

/// Whether the gap has a shadow of its own.
static IS_GAP_MEMORY: AtomicBool = AtomicBool::new(false);

/// Leaves the gap to whoever maps memory there (drivers do) and gives it a shadow, which lies in the gap as well.
///
/// # Errors
/// The place of that shadow is not free.
pub fn open_gap() -> Result<(), sys::Errno> {
    let start = shadow_of(LOW_SHADOW_END) & !(sys::PAGE - 1);
    let end = shadow_of(HIGH_SHADOW_START).next_multiple_of(sys::PAGE);
    sys::map_free_range(start, end - start, true)?;
    // SAFETY: fresh memory of our own.
    unsafe {
        sys::advise(start, end - start, Advice::NoHugePage);
        sys::advise(start, end - start, Advice::DontDump);
    }
    IS_GAP_MEMORY.store(true, Relaxed);
    Ok(())
}

/// As [`is_program`], but true in the gap as well when that has a shadow: for what is not asked often.
#[must_use]
pub fn has_shadow(address: usize) -> bool {
    is_program(address) || (is_gap(address) && IS_GAP_MEMORY.load(Relaxed))
}

/// Whether an address lies in the shadow, that of the gap included.
#[must_use]
pub fn is_readable_shadow(address: usize) -> bool {
    let of_gap = shadow_of(LOW_SHADOW_END)..shadow_of(HIGH_SHADOW_START);
    is_shadow(address) || (of_gap.contains(&address) && IS_GAP_MEMORY.load(Relaxed))
}

/// Ranges of zero shadow from this size on are given back to the kernel rather than written.
const WORTH_DROPPING: usize = 64 << 10;

/// Sets the shadow of `bytes` from `start`, both multiples of 8, to `value`.
///
/// # Safety
/// The range is the program's memory and the caller decides over its state.
#[inline]
pub unsafe fn fill(start: usize, bytes: usize, value: u8) {
    let shadow = shadow_of(start);
    let count = bytes >> SCALE;
    // SAFETY: the shadow of program memory is mapped; the caller decides over it.
    unsafe {
        if value == 0 && count >= WORTH_DROPPING {
            let first = shadow.next_multiple_of(sys::PAGE);
            let last = (shadow + count) & !(sys::PAGE - 1);
            fill_bytes(shadow, first - shadow, 0);
            sys::advise(first, last - first, Advice::DontNeed);
            fill_bytes(last, shadow + count - last, 0);
        } else {
            fill_bytes(shadow, count, value);
        }
    }
}

/// memset that is never a call of the exported one.
///
/// # Safety
/// The range is writable.
#[inline(always)]
pub unsafe fn fill_bytes(mut at: usize, mut count: usize, value: u8) {
    let wide = u64::from(value).wrapping_mul(0x0101_0101_0101_0101);
    // SAFETY: the caller vouches for the range; every store is inside of it.
    unsafe {
        if count > 256 {
            core::arch::asm!(
                "rep stosb",
                inout("rcx") count => _, inout("rdi") at => _, in("al") value,
                options(nostack, preserves_flags)
            );
            return;
        }
        while count >= 8 {
            (at as *mut u64).write_unaligned(wide);
            at += 8;
            count -= 8;
        }
        if count >= 4 {
            (at as *mut u32).write_unaligned(wide as u32);
            at += 4;
            count -= 4;
        }
        if count & 2 != 0 {
            (at as *mut u16).write_unaligned(wide as u16);
            at += 2;
        }
        if count & 1 != 0 {
            (at as *mut u8).write(value);
        }
    }
}

/// As [`fill`], for an end that need not be a multiple of 8: the last shadow byte says how many bytes are good.
///
/// # Safety
/// As [`fill`].
#[inline(always)]
pub unsafe fn unpoison_object(start: usize, bytes: usize) {
    // SAFETY: the caller's; the byte behind whole granules is the object's own partial one.
    unsafe {
        fill(start, bytes & !7, 0);
        if bytes & 7 != 0 {
            *(shadow_of(start + bytes) as *mut u8) = (bytes & 7) as u8;
        }
    }
}

/// Whether a byte of the program may not be touched.
#[inline(always)]
#[must_use]
pub fn is_poisoned(address: usize) -> bool {
    let shadow = shadow_byte(address) as i8;
    shadow != 0 && (address & 7) as i8 >= shadow
}

/// Whether an access of `bytes` (1 to 16) from `address` touches a poisoned byte. Outside of the program's memory
/// nothing is poisoned: the access itself faults.
#[inline(always)]
#[must_use]
pub fn is_access_poisoned(address: usize, bytes: usize) -> bool {
    if bytes == 0 {
        return false;
    }
    let last = address.wrapping_add(bytes - 1);
    if !is_program(address) || !is_program(last) {
        return false;
    }
    is_poisoned(last) || is_poisoned(address) || (bytes > 8 && is_poisoned(address + 8))
}

/// The first poisoned address of a range; `None` if there is none. A range that is not the program's memory counts as
/// poisoned where it leaves that.
#[inline(always)]
#[must_use]
pub fn first_poisoned(start: usize, bytes: usize) -> Option<usize> {
    if is_short_and_clean(start, bytes) { None } else { look_for_poisoned(start, bytes) }
}

/// Whether a range of at most 57 bytes (64 if aligned) is the program's and good: one load of its shadow. Not for longer
/// ranges, nor for empty ones.
#[inline(always)]
#[must_use]
pub fn is_short_and_clean(start: usize, bytes: usize) -> bool {
    /// The load must not reach past the shadow's ends.
    const MARGIN: usize = 8 << SCALE;
    let last = start.wrapping_add(bytes).wrapping_sub(1);
    let full = (last >> SCALE).wrapping_sub(start >> SCALE);
    let is_inside =
        start < OFFSET - MARGIN || start.wrapping_sub(HIGH_MEMORY_START) < HIGH_MEMORY_END - MARGIN - HIGH_MEMORY_START;
    if full >= 8 || !is_inside {
        return false;
    }
    // SAFETY: shadow of the program's memory is mapped, see above for its ends.
    let shadow = unsafe { (shadow_of(start) as *const u64).read_unaligned() };
    // Every granule but the last is needed to its end: a partial one does not do.
    let partial = (shadow >> (full * 8)) as i8;
    shadow & ((1 << (full * 8)) - 1) == 0 && (partial == 0 || ((last & 7) as i8) < partial)
}

#[inline(never)]
fn look_for_poisoned(start: usize, bytes: usize) -> Option<usize> {
    if bytes == 0 {
        return None;
    }
    let end = start.wrapping_add(bytes);
    if !is_program(start) {
        return Some(start);
    }
    if end < start || !is_program(end - 1) {
        return Some(end);
    }
    let first = shadow_of(start);
    if !is_poisoned(end - 1) && is_zero(first, shadow_of(end - 1) - first) {
        return None;
    }
    (start..end).find(|&address| is_poisoned(address))
}

/// Whether `count` bytes of shadow are zero.
#[inline]
fn is_zero(mut at: usize, mut count: usize) -> bool {
    // SAFETY: shadow of the program's memory is mapped.
    unsafe {
        while count >= 32 {
            let words = at as *const u64;
            let any = words.read_unaligned()
                | words.add(1).read_unaligned()
                | words.add(2).read_unaligned()
                | words.add(3).read_unaligned();
            if any != 0 {
                return false;
            }
            at += 32;
            count -= 32;
        }
        while count >= 8 {
            if (at as *const u64).read_unaligned() != 0 {
                return false;
            }
            at += 8;
            count -= 8;
        }
        while count > 0 {
            if *(at as *const u8) != 0 {
                return false;
            }
            at += 1;
            count -= 1;
        }
    }
    true
}
