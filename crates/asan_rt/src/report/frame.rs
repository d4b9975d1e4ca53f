//! Addresses on stacks: whose frame, and which variable of it.
//!
//! Instrumented functions describe their frames by a text: the number of variables, then for each its offset, its size,
//! the length of its name, and the name, with `:line` behind it where the compiler knows it.

use super::{stack, thread_name};
use crate::fake_stack::FakeStack;
use crate::output::Address;
use crate::shadow_map::{self, shadow_of, why};
use crate::{describe_threads, thread};
use alloc::string::String;
use alloc::vec::Vec;
use core::ffi::CStr;
use core::fmt::Write;
use core::sync::atomic::Ordering::Relaxed;

/// A variable of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Variable<'d> {
    /// Offset of its first byte.
    pub start: usize,
    /// Its bytes.
    pub bytes: usize,
    /// Its name.
    pub name: &'d str,
    /// Where it is declared; 0 when unknown.
    pub line: usize,
}

/// Decodes the compiler's description of a frame.
#[must_use]
pub fn decode(text: &str) -> Option<Vec<Variable<'_>>> {
    fn number(text: &str) -> Option<(usize, &str)> {
        let text = text.trim_start_matches(' ');
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (digits, rest) = text.split_at(end);
        Some((digits.parse().ok()?, rest))
    }
    let (count, mut rest) = number(text)?;
    let mut all = Vec::new();
    for _ in 0..count {
        let (start, after) = number(rest)?;
        let (bytes, after) = number(after)?;
        let (length, after) = number(after)?;
        let name = after.strip_prefix(' ')?.get(..length)?;
        rest = after.get(1 + length..)?;
        if bytes == 0 || length == 0 {
            return None;
        }
        let (name, line) = match name.rsplit_once(':') {
            Some((name, line)) if !line.is_empty() && line.bytes().all(|byte| byte.is_ascii_digit()) => {
                (name, line.parse().unwrap_or(0))
            }
            _ => (name, 0),
        };
        all.push(Variable { start, bytes, name, line });
    }
    Some(all)
}

/// How an access lies to a variable; `None` when another variable is nearer.
#[must_use]
pub fn position(
    variable: &Variable<'_>,
    offset: usize,
    access_bytes: usize,
    previous_end: usize,
    next_start: usize,
) -> Option<&'static str> {
    let (start, end) = (variable.start, variable.start + variable.bytes);
    let access_end = offset + access_bytes;
    if offset >= start {
        if access_end <= end {
            return Some("is inside");
        }
        if offset < end {
            return Some("partially overflows");
        }
        return (access_end <= next_start && next_start - access_end >= offset - end).then_some("overflows");
    }
    if access_end > start {
        return Some("partially underflows");
    }
    (offset >= previous_end && offset - previous_end >= start - access_end).then_some("underflows")
}

/// A frame that holds an address.
struct Frame {
    /// Distance of the address from the frame's start.
    offset: usize,
    description: String,
    pc: usize,
}

fn head(frame: usize, address: usize) -> Option<Frame> {
    const MAGIC: usize = 0x41B5_8AB3;
    const RETIRED: usize = 0x45E0_360E;
    // SAFETY: the caller found a left redzone here, or a frame of a fake stack.
    let [magic, description, pc] = unsafe { *(frame as *const [usize; 3]) };
    if magic != MAGIC && magic != RETIRED || !crate::sys::is_readable(description) {
        return None;
    }
    // SAFETY: readable, and a constant of the compiler's.
    let description = unsafe { CStr::from_ptr(description as *const core::ffi::c_char) };
    Some(Frame {
        offset: address - frame,
        description: String::from_utf8_lossy(description.to_bytes()).into_owned(),
        pc,
    })
}

/// The frame on a real stack that holds an address: its left redzone lies below.
fn real_frame(address: usize, low: usize) -> Option<Frame> {
    let byte = |shadow: usize| {
        // SAFETY: the shadow of a thread's stack is mapped.
        unsafe { *(shadow as *const u8) }
    };
    let bottom = shadow_of(low);
    let mut shadow = shadow_of(address);
    while shadow >= bottom && byte(shadow) != why::STACK_LEFT {
        shadow -= 1;
    }
    while shadow >= bottom && byte(shadow) == why::STACK_LEFT {
        shadow -= 1;
    }
    if shadow < bottom {
        return None;
    }
    head((shadow + 1 - shadow_map::OFFSET) << shadow_map::SCALE, address)
}

/// Prints what an address on a stack belongs to. False when it is on none.
pub fn describe(address: usize, access_bytes: usize) -> bool {
    let Some(found) = thread::find_by_stack_address(address) else { return false };
    crate::out!("Address {} is located in stack of thread {}", Address(address), thread_name(found.context.number));
    let frame = match found.fake_frame {
        Some((start, _)) => head(start, address),
        None => {
            // SAFETY: the thread runs: it is the one that reports, or one that shares its stack's address.
            let thread = unsafe { found.context.thread.load(Relaxed).as_ref() };
            thread.and_then(|thread| real_frame(address, thread.stack_low.load(Relaxed)))
        }
    };
    match frame {
        Some(frame) => print_frame(&frame, access_bytes),
        None => crate::out!("\n"),
    }
    crate::out!(
        "HINT: this may be a false positive if your program uses some custom stack unwind mechanism, swapcontext or \
         vfork\n      (longjmp and C++ exceptions *are* supported)\n"
    );
    describe_threads::describe(found.context.number);
    true
}

fn print_frame(frame: &Frame, access_bytes: usize) {
    crate::out!(" at offset {} in frame\n", frame.offset);
    stack::print(&[frame.pc as u64 + 1]);
    let Some(variables) = decode(&frame.description) else {
        crate::out!("AddressSanitizer can't parse the stack frame descriptor: |{}|\n", frame.description);
        return;
    };
    let mut out = String::new();
    let _ = writeln!(out, "  This frame has {} object(s):", variables.len());
    for (number, variable) in variables.iter().enumerate() {
        let previous_end = number.checked_sub(1).and_then(|at| variables.get(at)).map_or(0, |v| v.start + v.bytes);
        let next_start = variables.get(number + 1).map_or(usize::MAX, |v| v.start);
        let _ = write!(out, "    [{}, {}) '{}'", variable.start, variable.start + variable.bytes, variable.name);
        if variable.line > 0 {
            let _ = write!(out, " (line {})", variable.line);
        }
        if let Some(how) = position(variable, frame.offset, access_bytes, previous_end, next_start) {
            let _ = write!(out, " <== Memory access at offset {} {how} this variable", frame.offset);
        }
        out.push('\n');
    }
    crate::output::print(&out);
}

/// Name, start and bytes of the variable that holds an address on a stack; for `__asan_locate_address`.
#[must_use]
pub fn locate(address: usize) -> Option<(String, usize, usize)> {
    let found = thread::find_by_stack_address(address)?;
    let frame = match found.fake_frame {
        Some((start, _)) => head(start, address)?,
        None => {
            // SAFETY: as in `describe`.
            let thread = unsafe { found.context.thread.load(Relaxed).as_ref() }?;
            real_frame(address, thread.stack_low.load(Relaxed))?
        }
    };
    let variables = decode(&frame.description)?;
    let start_of_frame = address - frame.offset;
    variables
        .iter()
        .find(|variable| frame.offset <= variable.start + variable.bytes)
        .map(|variable| (String::from(variable.name), start_of_frame + variable.start, variable.bytes))
}

/// The real stack address that an address of a fake frame stands for.
#[must_use]
pub fn real_stack_of(address: usize) -> Option<(usize, usize, usize)> {
    let (start, end) = thread::find_by_stack_address(address)?.fake_frame?;
    Some((start, end, FakeStack::real_stack_of(start)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_decode() {
        let all = decode("3 32 10 3 buf 64 4 4 x:12 96 1 7 a:b:123").expect("good");
        assert_eq!(all[0], Variable { start: 32, bytes: 10, name: "buf", line: 0 });
        assert_eq!(all[1], Variable { start: 64, bytes: 4, name: "x", line: 12 });
        assert_eq!(all[2], Variable { start: 96, bytes: 1, name: "a:b", line: 123 });
        assert_eq!(decode("1 32 0 1 x"), None);
        assert_eq!(decode("2 32 4 1 x"), None);
        assert_eq!(decode(""), None);
        assert_eq!(decode("1 32 4 99 x"), None);
    }

    #[test]
    fn the_nearest_variable_is_named() {
        let a = Variable { start: 32, bytes: 10, name: "a", line: 0 };
        assert_eq!(position(&a, 32, 1, 0, 64), Some("is inside"));
        assert_eq!(position(&a, 40, 4, 0, 64), Some("partially overflows"));
        assert_eq!(position(&a, 42, 1, 0, 64), Some("overflows"));
        assert_eq!(position(&a, 60, 1, 0, 64), None);
        assert_eq!(position(&a, 31, 1, 0, 64), Some("underflows"));
        assert_eq!(position(&a, 30, 4, 0, 64), Some("partially underflows"));
        assert_eq!(position(&a, 5, 1, 0, 64), None);
    }
}
