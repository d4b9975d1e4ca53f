//! UndefinedBehaviorSanitizer's findings. clang's shared library of AddressSanitizer has their functions in it, so a
//! program that was built with `-fsanitize=address,undefined` asks for them; with gcc it brings libubsan along.
//!
//! The compiler passes a description (place, types) and the operands: integers of up to 64 bits and small floats in the
//! word itself, larger ones by address. Each place is told once, which its description remembers in the column. Source:
//! clang's code generation (`CGExpr.cpp`, `EmitCheck`), and what LLVM 19's library prints.

use crate::options::options;
use crate::report;
use alloc::format;
use alloc::string::{String, ToString};
use core::ffi::{CStr, c_char};
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicU8, AtomicU32};

/// A place in the program's source.
#[repr(C)]
pub struct Place {
    file: *const c_char,
    line: u32,
    column: AtomicU32,
}

/// A type: what it is, how wide, its name in quotes.
#[repr(C)]
pub struct Type {
    kind: u16,
    info: u16,
    name: [c_char; 1],
}

const INTEGER: u16 = 0;
const FLOAT: u16 = 1;

/// An operand.
#[derive(Clone, Copy)]
enum Operand {
    Signed(i128),
    Unsigned(u128),
    Float(f64),
    Unknown,
}

impl Operand {
    fn is_negative(self) -> bool {
        matches!(self, Self::Signed(value) if value < 0)
    }

    fn is_minus_one(self) -> bool {
        matches!(self, Self::Signed(-1))
    }
}

impl core::fmt::Display for Operand {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match *self {
            Self::Signed(value) if i64::try_from(value).is_err() => write!(f, "0x{value:032x}"),
            Self::Unsigned(value) if u64::try_from(value).is_err() => write!(f, "0x{value:032x}"),
            Self::Signed(value) => write!(f, "{value}"),
            Self::Unsigned(value) => write!(f, "{value}"),
            Self::Float(value) => f.write_str(&six_digits(value)),
            Self::Unknown => f.write_str("<unknown>"),
        }
    }
}

/// As printf's `%g` writes it.
fn six_digits(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return value.to_string();
    }
    let scientific = format!("{value:.5e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let trimmed = |text: &str| match text.contains('.') {
        true => String::from(text.trim_end_matches('0').trim_end_matches('.')),
        false => String::from(text),
    };
    match exponent {
        -4..=5 => trimmed(&format!("{value:.*}", (5 - exponent) as usize)),
        _ => format!("{}e{}{:02}", trimmed(digits), if exponent < 0 { '-' } else { '+' }, exponent.abs()),
    }
}

impl Type {
    /// The name, in the quotes that the compiler puts around it.
    fn name(&self) -> String {
        // SAFETY: the compiler's constant ends with a zero byte.
        unsafe { CStr::from_ptr(&raw const self.name as *const c_char) }.to_string_lossy().into_owned()
    }

    fn bits(&self) -> u32 {
        1 << (self.info >> 1)
    }

    fn is_signed(&self) -> bool {
        self.kind == INTEGER && self.info & 1 == 1
    }

    /// The operand that a word is, or leads to.
    fn operand(&self, word: usize) -> Operand {
        match self.kind {
            INTEGER if self.bits() <= 64 => {
                let unused = 64 - self.bits();
                if self.is_signed() {
                    Operand::Signed((((word as i64) << unused) >> unused).into())
                } else {
                    Operand::Unsigned((((word as u64) << unused) >> unused).into())
                }
            }
            INTEGER if self.bits() == 128 => {
                // SAFETY: the compiler passes the address of a wide operand.
                let value = unsafe { (word as *const u128).read_unaligned() };
                if self.is_signed() { Operand::Signed(value as i128) } else { Operand::Unsigned(value) }
            }
            FLOAT if self.info == 32 => Operand::Float(f32::from_bits(word as u32).into()),
            FLOAT if self.info == 64 => Operand::Float(f64::from_bits(word as u64)),
            // SAFETY: as above: x87's ten bytes.
            FLOAT if self.info == 80 || self.info == 128 => unsafe { extended(word as *const u8) },
            _ => Operand::Unknown,
        }
    }
}

/// x87's extended precision: 64 bits of mantissa, 15 of exponent, a sign.
unsafe fn extended(at: *const u8) -> Operand {
    // SAFETY: the caller's.
    let (mantissa, head) = unsafe { (at.cast::<u64>().read_unaligned(), at.add(8).cast::<u16>().read_unaligned()) };
    let mut value = mantissa as f64;
    let exponent = i32::from(head & 0x7fff) - 16383 - 63;
    for _ in 0..exponent.unsigned_abs().min(20_000) {
        value = if exponent < 0 { value / 2.0 } else { value * 2.0 };
    }
    Operand::Float(if head >> 15 == 1 { -value } else { value })
}

/// What a handler is given first: all descriptions begin with a place.
#[derive(Clone, Copy)]
pub struct Description(*const Place);

impl Description {
    /// # Safety
    /// What the compiler passed.
    #[must_use]
    pub const unsafe fn new(data: *const Place) -> Self {
        Self(data)
    }

    /// The `n`th type behind the place.
    fn type_at(&self, n: usize) -> &Type {
        // SAFETY: the handlers that ask have so many types in their descriptions.
        unsafe { &**self.0.add(1).cast::<*const Type>().add(n) }
    }

    /// The bytes behind a place and `types` types.
    fn bytes_after(&self, types: usize) -> [u8; 2] {
        // SAFETY: as above.
        unsafe { *self.0.add(1).cast::<*const Type>().add(types).cast::<[u8; 2]>() }
    }
}

/// `FILE:LINE:COLUMN`, as far as it is known.
fn shown(place: &Place, column: u32) -> String {
    let file = match place.file.is_null() {
        true => String::from("<unknown>"),
        // SAFETY: a constant of the compiler's.
        false => unsafe { CStr::from_ptr(place.file) }.to_string_lossy().into_owned(),
    };
    let prefix = options().strip_path_prefix;
    let file = match file.find(prefix) {
        Some(at) if !prefix.is_empty() => String::from(file.get(at + prefix.len()..).unwrap_or("")),
        _ => file,
    };
    match (place.line, column) {
        (0, _) => file,
        (line, 0) => format!("{file}:{line}"),
        (line, column) => format!("{file}:{line}:{column}"),
    }
}

/// Tells a finding once. `is_fatal`: the end.
fn tell(place: *const Place, message: &str, is_fatal: bool) {
    tell_with(place, message, (core::ptr::null(), ""), is_fatal);
}

/// [`tell`], with what another place has to do with it.
fn tell_with(place: *const Place, message: &str, note: (*const Place, &str), is_fatal: bool) {
    // SAFETY: the compiler's description, which is writable for this purpose.
    let Some(place) = (unsafe { place.as_ref() }) else { return };
    let column = place.column.swap(u32::MAX, Relaxed);
    if column != u32::MAX {
        let at = shown(place, column);
        crate::out!("{at}: runtime error: {message}\n");
        // SAFETY: null, or a part of the compiler's description.
        if let Some(other) = unsafe { note.0.as_ref() }.filter(|other| !other.file.is_null()) {
            crate::out!("{}: note: {} specified here\n", shown(other, other.column.load(Relaxed)), note.1);
        }
        if wishes() & PRINT_STACK != 0 {
            report::stack::print(&crate::unwind::Caller::of_hook(0).frames(256));
        }
        if options().print_summary {
            crate::out!("SUMMARY: UndefinedBehaviorSanitizer: undefined-behavior {at} \n");
        }
    }
    if is_fatal || (column != u32::MAX && wishes() & HALT != 0) {
        report::die();
    }
}

const WERE_READ: u8 = 1;
const PRINT_STACK: u8 = 2;
const HALT: u8 = 4;

/// Of `UBSAN_OPTIONS`, what has an effect here.
fn wishes() -> u8 {
    static WISHES: AtomicU8 = AtomicU8::new(0);
    let known = WISHES.load(Relaxed);
    if known != 0 {
        return known;
    }
    let text = crate::init::environment("UBSAN_OPTIONS").unwrap_or_default();
    let is_on = |name: &str| {
        let mut pairs = text.split([':', ',', ' ']).rev().filter_map(|pair| pair.split_once('='));
        pairs.find(|(key, _)| *key == name).is_some_and(|(_, value)| matches!(value, "1" | "true" | "yes"))
    };
    let stack = if is_on("print_stacktrace") { PRINT_STACK } else { 0 };
    let halt = if is_on("halt_on_error") { HALT } else { 0 };
    WISHES.store(WERE_READ | stack | halt, Relaxed);
    WERE_READ | stack | halt
}

/// What the program did with an object, by the compiler's number.
fn access_words(number: u8) -> &'static str {
    const WORDS: [&str; 12] = [
        "load of",
        "store to",
        "reference binding to",
        "member access within",
        "member call on",
        "constructor call on",
        "downcast of",
        "downcast of",
        "upcast of",
        "cast to virtual base of",
        "_Nonnull binding to",
        "dynamic operation on",
    ];
    WORDS.get(usize::from(number)).copied().unwrap_or("use of")
}

/// `type_mismatch_v1`.
pub fn type_mismatch(data: Description, pointer: usize, is_fatal: bool) {
    let [alignment, access] = data.bytes_after(1);
    let (alignment, name, what) = (1usize << (alignment & 63), data.type_at(0).name(), access_words(access));
    let message = if pointer == 0 {
        format!("{what} null pointer of type {name}")
    } else if pointer & (alignment - 1) != 0 {
        format!("{what} misaligned address 0x{pointer:012x} for type {name}, which requires {alignment} byte alignment")
    } else {
        format!("{what} address 0x{pointer:012x} with insufficient space for an object of type {name}")
    };
    tell(data.0, &message, is_fatal);
}

/// `add_overflow`, `sub_overflow` and `mul_overflow`.
pub fn overflow(data: Description, sign: &str, left: usize, right: usize, is_fatal: bool) {
    let of = data.type_at(0);
    let kind = if of.is_signed() { "signed" } else { "unsigned" };
    let (left, right, name) = (of.operand(left), of.operand(right), of.name());
    let message = format!("{kind} integer overflow: {left} {sign} {right} cannot be represented in type {name}");
    tell(data.0, &message, is_fatal);
}

/// `negate_overflow`.
pub fn negation(data: Description, value: usize, is_fatal: bool) {
    let of = data.type_at(0);
    let more = if of.is_signed() { "; cast to an unsigned type to negate this value to itself" } else { "" };
    let message = format!("negation of {} cannot be represented in type {}{more}", of.operand(value), of.name());
    tell(data.0, &message, is_fatal);
}

/// `divrem_overflow`.
pub fn division(data: Description, left: usize, right: usize, is_fatal: bool) {
    let of = data.type_at(0);
    let message = match of.operand(right).is_minus_one() {
        true => format!("division of {} by -1 cannot be represented in type {}", of.operand(left), of.name()),
        false => String::from("division by zero"),
    };
    tell(data.0, &message, is_fatal);
}

/// `shift_out_of_bounds`.
pub fn shift(data: Description, left: usize, right: usize, is_fatal: bool) {
    let (of, by) = (data.type_at(0), data.type_at(1));
    let (value, places) = (of.operand(left), by.operand(right));
    let is_wide = match places {
        Operand::Signed(places) => places >= of.bits().into(),
        Operand::Unsigned(places) => places >= of.bits().into(),
        _ => false,
    };
    let message = if places.is_negative() {
        format!("shift exponent {places} is negative")
    } else if is_wide {
        format!("shift exponent {places} is too large for {}-bit type {}", of.bits(), of.name())
    } else if value.is_negative() {
        format!("left shift of negative value {value}")
    } else {
        format!("left shift of {value} by {places} places cannot be represented in type {}", of.name())
    };
    tell(data.0, &message, is_fatal);
}

/// `out_of_bounds`.
pub fn index(data: Description, index: usize, is_fatal: bool) {
    let message = format!("index {} out of bounds for type {}", data.type_at(1).operand(index), data.type_at(0).name());
    tell(data.0, &message, is_fatal);
}

/// `vla_bound_not_positive`.
pub fn bound(data: Description, bound: usize, is_fatal: bool) {
    let value = data.type_at(0).operand(bound);
    tell(data.0, &format!("variable length array bound evaluates to non-positive value {value}"), is_fatal);
}

/// `float_cast_overflow`.
pub fn float_cast(data: Description, value: usize, is_fatal: bool) {
    let (from, to) = (data.type_at(0), data.type_at(1));
    let message = format!("{} is outside the range of representable values of type {}", from.operand(value), to.name());
    tell(data.0, &message, is_fatal);
}

/// `load_invalid_value`.
pub fn invalid_value(data: Description, value: usize, is_fatal: bool) {
    let of = data.type_at(0);
    let message = format!("load of value {}, which is not a valid value for type {}", of.operand(value), of.name());
    tell(data.0, &message, is_fatal);
}

/// `implicit_conversion`.
pub fn conversion(data: Description, from: usize, to: usize, is_fatal: bool) {
    let (of, into) = (data.type_at(0), data.type_at(1));
    let sign = |of: &Type| if of.is_signed() { "signed" } else { "unsigned" };
    let message = format!(
        "implicit conversion from type {} of value {} ({}-bit, {}) to type {} changed the value to {} ({}-bit, {})",
        of.name(),
        of.operand(from),
        of.bits(),
        sign(of),
        into.name(),
        into.operand(to),
        into.bits(),
        sign(into)
    );
    tell(data.0, &message, is_fatal);
}

/// `invalid_builtin`.
pub fn builtin(data: Description, is_fatal: bool) {
    let [kind, _] = data.bytes_after(0);
    let message = match kind {
        0 => "passing zero to ctz(), which is not a valid argument",
        1 => "passing zero to clz(), which is not a valid argument",
        _ => "assumption is violated during execution",
    };
    tell(data.0, message, is_fatal);
}

/// `alignment_assumption`.
pub fn alignment(data: Description, pointer: usize, alignment: usize, offset: usize, is_fatal: bool) {
    // SAFETY: a second place stands between the first and the type.
    let name = unsafe { (**data.0.add(2).cast::<*const Type>()).name() };
    let with_offset = if offset == 0 { String::new() } else { format!(" (with offset of {offset} byte)") };
    let _ = pointer;
    let message = format!("assumption of {alignment} byte alignment{with_offset} for pointer of type {name} failed");
    tell(data.0, &message, is_fatal);
}

/// `nonnull_arg` and `nullability_arg`: a description has two places and the argument's number.
pub fn null_argument(data: Description, words: &str, what: &str, is_fatal: bool) {
    // SAFETY: see above.
    let (attribute, number) = unsafe { (data.0.add(1), *data.0.add(2).cast::<i32>()) };
    tell_with(data.0, &format!("null pointer passed as argument {number}, {words}"), (attribute, what), is_fatal);
}

/// `nonnull_return_v1` and `nullability_return_v1`, whose place is told apart.
pub fn null_result(data: Description, place: *const Place, words: &str, what: &str, is_fatal: bool) {
    tell_with(place, &format!("null pointer returned from function {words}"), (data.0, what), is_fatal);
}

/// `pointer_overflow`.
pub fn pointer(data: Description, base: usize, result: usize, is_fatal: bool) {
    let message = match (base, result) {
        (0, 0) => String::from("applying zero offset to null pointer"),
        (0, _) => format!("applying non-zero offset {result} to null pointer"),
        (_, 0) => format!("applying non-zero offset to non-null pointer 0x{base:012x} produced null pointer"),
        _ if (base as isize >= 0) == (result as isize >= 0) => {
            let what =
                if base > result { "addition of unsigned offset to" } else { "subtraction of unsigned offset from" };
            format!("{what} 0x{base:012x} overflowed to 0x{result:012x}")
        }
        _ => format!("pointer index expression with base 0x{base:012x} overflowed to 0x{result:012x}"),
    };
    tell(data.0, &message, is_fatal);
}

/// `function_type_mismatch`.
pub fn function_type(data: Description, function: usize, is_fatal: bool) {
    let frame = crate::symbolize::frames_at(function).pop().and_then(|frame| frame.function);
    let name = frame.unwrap_or_else(|| String::from("(unknown)"));
    let message =
        format!("call to function {name} through pointer to incorrect function type {}", data.type_at(0).name());
    tell(data.0, &message, is_fatal);
}

/// A finding without operands.
pub fn plain(data: Description, message: &str, is_fatal: bool) {
    tell(data.0, message, is_fatal);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_as_printf_writes_them() {
        for (value, expected) in [
            (0.0, "0"),
            (1.0, "1"),
            (-2.5, "-2.5"),
            (1e10, "1e+10"),
            (123_456_789.0, "1.23457e+08"),
            (0.000_012_345, "1.2345e-05"),
            (99999.5, "99999.5"),
        ] {
            assert_eq!(six_digits(value), expected);
        }
    }
}
