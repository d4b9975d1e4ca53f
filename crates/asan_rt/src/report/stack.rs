//! Stacks in reports: one line a function, by `stack_trace_format`.

use crate::options::{has_gcc_words, options};
use crate::output::Address;
use crate::symbolize::{self, Frame};
use alloc::borrow::Cow;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

const DEFAULT_FORMAT: &str = "    #%n %p %F %L";

/// Appends a frame as the format says. `number` is its place in the stack.
pub fn render(out: &mut String, format: &str, number: usize, frame: &Frame) {
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match rest.next() {
            Some('%') => out.push('%'),
            Some('n') => _ = write!(out, "{number}"),
            Some('p') => _ = write!(out, "{}", Address(frame.address)),
            Some('m') => out.push_str(frame.module.as_deref().unwrap_or("")),
            Some('o') => _ = write!(out, "0x{:x}", frame.offset),
            Some('b') => build_id(out, frame),
            Some('f') => out.push_str(&function(frame).unwrap_or_default()),
            Some('q') => out.push_str("0x0"),
            Some('s') => out.push_str(frame.file.as_deref().unwrap_or("")),
            Some('l') => _ = write!(out, "{}", frame.line),
            Some('c') => _ = write!(out, "{}", frame.column),
            Some('F') => {
                if let Some(function) = function(frame) {
                    _ = write!(out, "in {function}");
                }
            }
            Some('S') => source(out, frame),
            Some('L') => {
                if frame.file.is_some() {
                    source(out, frame);
                } else if frame.module.is_some() {
                    place(out, frame);
                    if !frame.build_id.is_empty() && !has_gcc_words() {
                        out.push(' ');
                        build_id(out, frame);
                    }
                } else {
                    out.push_str("(<unknown module>)");
                }
            }
            Some('M') => {
                if frame.module.is_some() {
                    place(out, frame);
                    if !frame.build_id.is_empty() && !has_gcc_words() {
                        out.push(' ');
                        build_id(out, frame);
                    }
                } else {
                    _ = write!(out, "({})", Address(frame.address));
                }
            }
            Some(other) => {
                out.push('%');
                out.push(other);
            }
            None => out.push('%'),
        }
    }
}

/// A function's name. gcc's library calls what stands in for libc's functions interceptors.
fn function(frame: &Frame) -> Option<Cow<'_, str>> {
    let name = frame.function.as_deref()?;
    let is_hook = has_gcc_words() && crate::modules::is_own_code(frame.address);
    if is_hook && !name.starts_with("operator ") && !name.starts_with("__") {
        return Some(Cow::Owned(alloc::format!("__interceptor_{name}")));
    }
    Some(Cow::Borrowed(name))
}

fn source(out: &mut String, frame: &Frame) {
    let file = frame.file.as_deref().unwrap_or("");
    if options().symbolize_vs_style && frame.line > 0 {
        _ = write!(out, "{file}({}", frame.line);
        if frame.column > 0 {
            _ = write!(out, ",{}", frame.column);
        }
        out.push(')');
        return;
    }
    out.push_str(file);
    if frame.line > 0 {
        _ = write!(out, ":{}", frame.line);
        if frame.column > 0 && !has_gcc_words() {
            _ = write!(out, ":{}", frame.column);
        }
    }
}

fn place(out: &mut String, frame: &Frame) {
    _ = write!(out, "({}+0x{:x})", frame.module.as_deref().unwrap_or(""), frame.offset);
}

fn build_id(out: &mut String, frame: &Frame) {
    if frame.build_id.is_empty() {
        return;
    }
    out.push_str("(BuildId: ");
    for byte in &frame.build_id {
        _ = write!(out, "{byte:02x}");
    }
    out.push(')');
}

/// The functions of a stack of return addresses, inlined ones included.
#[must_use]
pub fn symbolized(frames: &[u64]) -> Vec<Frame> {
    frames.iter().flat_map(|&pc| symbolize::frames_at((pc as usize).wrapping_sub(1))).collect()
}

/// The text of a stack of return addresses, with an empty line behind it.
#[must_use]
pub fn text(frames: &[u64]) -> String {
    let mut out = String::new();
    if frames.is_empty() {
        out.push_str("    <empty stack>\n\n");
        return out;
    }
    let all = symbolized(frames);
    let is_default = options().stack_trace_format == "DEFAULT" || crate::output::is_copied();
    let format = if is_default { DEFAULT_FORMAT } else { options().stack_trace_format };
    for (number, frame) in all.iter().enumerate() {
        let start = out.len();
        render(&mut out, format, number, frame);
        // What the last field leaves empty leaves a space.
        while out.len() > start && out.ends_with(' ') {
            out.pop();
        }
        out.push('\n');
    }
    let wanted = usize::try_from(options().dedup_token_length).unwrap_or(0);
    if wanted > 0 {
        out.push_str("\nDEDUP_TOKEN: ");
        let names = all.iter().filter_map(|frame| frame.function.as_deref());
        for (i, name) in names.take(wanted).enumerate() {
            if i > 0 {
                out.push_str("--");
            }
            out.push_str(name);
        }
        out.push('\n');
    }
    out.push('\n');
    out
}

/// Prints a stack.
pub fn print(frames: &[u64]) {
    crate::output::print(&text(frames));
}

fn is_internal(frame: &Frame) -> bool {
    if has_gcc_words() {
        return false;
    }
    let in_headers = frame.file.as_deref().is_some_and(|file| {
        file.contains("/compiler-rt/lib/") || file.contains("/include/c++/") || file.contains("/include/g++")
    });
    in_headers || crate::modules::is_own_code(frame.address)
}

/// The last line: what, where, in which function.
pub fn summary(what: &str, frames: &[u64]) {
    if !options().print_summary {
        return;
    }
    let all = symbolized(frames);
    let mut line = String::from(what);
    if let Some(frame) = all.iter().find(|frame| !is_internal(frame)).or_else(|| all.first()) {
        line.push(' ');
        render(&mut line, "%L %F", 0, frame);
    }
    summary_line(&line);
}

/// The last line, as given.
pub fn summary_line(line: &str) {
    if !options().print_summary {
        return;
    }
    let text = alloc::format!("SUMMARY: AddressSanitizer: {}", line.trim_end());
    if !super::hooks::summary(&text) {
        crate::out!("{text}\n");
    }
}
