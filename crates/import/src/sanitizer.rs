//! Reports of AddressSanitizer, LeakSanitizer and MemorySanitizer, gcc's and clang's.
//!
//! Source: compiler-rt's `sanitizer_stacktrace_printer.cpp` and `asan_errors.cpp` (LLVM 19), and what gcc 12 and clang
//! 19 print. Only the head of a report names its process, so the lines after it belong to the report that began last:
//! `log_path` keeps processes apart where they write at the same time. The first frame of an allocation or a release is
//! the interceptor; `strdup` and its like are interceptors too, and stay.

use leakscope_findings::recording::{Access, AuxiliaryStack};
use leakscope_model::{ErrorKind, LeakKind, MisuseKind, Tool};

use crate::lines::{decimal, hex, leading_decimal, leading_hex};
use crate::sink::{Base, ErrorText, FrameText, Front, Sink};

/// Reads the lines of reports.
#[derive(Default)]
pub(crate) struct Sanitizer {
    process: usize,
    report: Report,
    frames: Vec<u32>,
    /// Number of the next frame.
    next: u64,
}

/// What is open.
#[derive(Default)]
enum Report {
    #[default]
    None,
    /// A leak report, between two records.
    Leaks,
    /// A record of one: kind, bytes, blocks.
    Leak(LeakKind, u64, u64),
    Error(Box<Open>),
}

/// An error whose lines are read.
#[derive(Default)]
struct Open {
    kind: String,
    message: String,
    access: Access,
    is_write: Option<bool>,
    text: ErrorText,
    has_stack: bool,
    label: Option<String>,
    is_inside: bool,
}

impl Open {
    fn note(&mut self, label: String, leaf: u32) {
        if self.text.auxiliary.len() < crate::sink::MOST_AUXILIARY {
            self.text.auxiliary.push(AuxiliaryStack { label, leaf });
        }
    }
}

/// `==7==ERROR: AddressSanitizer: heap-use-after-free on address ...`: process, tool, the rest.
fn head(line: &str) -> Option<(u32, Tool, &str)> {
    let (pid, rest) = line.strip_prefix("==")?.split_once("==")?;
    let rest = rest.strip_prefix("ERROR: ").or_else(|| rest.strip_prefix("WARNING: "))?;
    let (tool, rest) = rest.split_once(": ")?;
    let tool = match tool {
        "AddressSanitizer" | "HWAddressSanitizer" => Tool::AddressSanitizer,
        "LeakSanitizer" => Tool::LeakSanitizer,
        "MemorySanitizer" => Tool::MemorySanitizer,
        _ => return None,
    };
    Some((pid.trim().parse().ok()?, tool, rest))
}

/// Whether a text has the head of a report in it.
pub(crate) fn is_report(text: &str) -> bool {
    text.lines().any(|line| head(&crate::lines::without_colour(line)).is_some())
}

/// A frame as it is printed: number, address, function, place.
#[derive(Debug, Default, PartialEq, Eq)]
struct Line<'a> {
    number: u64,
    pc: u64,
    function: &'a str,
    file: &'a str,
    line: u32,
    column: u32,
    module: &'a str,
    offset: Option<u64>,
    build_id: &'a str,
}

/// `    #1 0x55aa in copy(char const*) /tmp/x.cpp:17:3`, or `#1 0x55aa  (/tmp/x+0x17) (BuildId: 12ab)`.
fn frame(text: &str) -> Option<Line<'_>> {
    let (number, rest) = leading_decimal(text.trim_start().strip_prefix('#')?)?;
    let (pc, rest) = leading_hex(rest.trim_start())?;
    let mut frame = Line { number, pc, ..Line::default() };
    let mut rest = rest.trim();
    if let Some((front, id)) = rest.strip_suffix(')').and_then(|rest| rest.rsplit_once("(BuildId: ")) {
        frame.build_id = id;
        rest = front.trim_end();
    }
    if let Some((front, place)) = rest.strip_suffix(')').and_then(|rest| rest.rsplit_once('('))
        && let Some((module, offset)) = place.rsplit_once('+')
        && offset.starts_with("0x")
        && (front.is_empty() || front.ends_with(' '))
    {
        frame.offset = Some(hex(offset)?);
        frame.module = module;
        rest = front.trim_end();
    }
    if let Some(named) = rest.strip_prefix("in ") {
        let (function, place) = if frame.offset.is_some() { (named, "") } else { split_place(named) };
        frame.function = function;
        (frame.file, frame.line, frame.column) = position(place);
    }
    Some(frame)
}

/// A function and the place behind it: both may hold spaces.
fn split_place(text: &str) -> (&str, &str) {
    let at = text.find(" /").or_else(|| text.rfind(' ').filter(|&at| looks_like_place(&text[at + 1..])));
    at.map_or((text, ""), |at| (text[..at].trim_end(), text[at + 1..].trim()))
}

/// The last word of `foo(int) const` is none.
fn looks_like_place(word: &str) -> bool {
    word.contains('.') || word.contains(':') && !word.ends_with(')') || word.starts_with('<') && word.ends_with('>')
}

/// `/tmp/x.cpp:17:3` as path, line and column.
fn position(place: &str) -> (&str, u32, u32) {
    let number = |text: &str| decimal(text).and_then(|number| u32::try_from(number).ok());
    if place.starts_with('<') {
        return ("", 0, 0);
    }
    let Some((front, Some(last))) = place.rsplit_once(':').map(|(front, last)| (front, number(last))) else {
        return (place, 0, 0);
    };
    match front.rsplit_once(':').map(|(path, line)| (path, number(line))) {
        Some((path, Some(line))) => (path, line, last),
        _ => (front, last, 0),
    }
}

/// The function that an interceptor stands for.
fn intercepted(function: &str) -> &str {
    for front in ["__interceptor_trampoline_", "___interceptor_", "__interceptor_"] {
        if let Some(rest) = function.strip_prefix(front) {
            return rest;
        }
    }
    if let Some(rest) = function.strip_prefix("__asan_").filter(|rest| rest.starts_with("mem")) {
        return rest;
    }
    function
}

impl Sanitizer {
    /// Reads a line if it belongs to a report.
    pub(crate) fn line(&mut self, sink: &mut Sink, number: u64, line: &str) -> bool {
        if let Some((pid, tool, rest)) = head(line) {
            self.close(sink);
            self.begin(sink, pid, tool, rest);
            return true;
        }
        if matches!(self.report, Report::None) {
            return false;
        }
        if line.starts_with("SUMMARY: ") || line.ends_with("==ABORTING") {
            if line.starts_with("SUMMARY: AddressSanitizer") {
                sink[self.process].out.witness.tool = Tool::AddressSanitizer;
            }
            self.close(sink);
            self.report = Report::None;
            return true;
        }
        let trimmed = line.trim_start();
        if trimmed.starts_with('#') && line.starts_with(' ') {
            self.frame(sink, number, line);
            return true;
        }
        if matches!(self.report, Report::Leaks | Report::Leak(..)) {
            return self.leak_line(sink, number, line);
        }
        self.error_line(sink, line)
    }

    fn begin(&mut self, sink: &mut Sink, pid: u32, tool: Tool, rest: &str) {
        // One process may report leaks as well as errors: it is found by its id alone.
        self.process = sink.process(pid, Tool::AddressSanitizer);
        let process = &mut sink[self.process];
        let is_new = process.out.memory_errors.is_empty() && process.out.misuses.is_empty() && !process.has_check();
        if is_new || tool == Tool::AddressSanitizer {
            process.out.witness.tool = tool;
        }
        if tool == Tool::LeakSanitizer {
            process.begin_check();
            self.report = Report::Leaks;
            return;
        }
        let mut open = Open { message: rest.to_owned(), ..Open::default() };
        let word = rest.split([' ', ':']).next().unwrap_or_default();
        open.kind = match () {
            () if rest.starts_with("attempting double-free") => "double-free",
            () if rest.starts_with("attempting free on address") => "bad-free",
            () if rest.starts_with("requested allocation size") => "allocation-size-too-big",
            () if rest.starts_with("attempting to call malloc_usable_size") => "bad-malloc_usable_size",
            () => word,
        }
        .to_owned();
        let end = [" at pc ", " (pc ", " in thread "].iter().filter_map(|end| rest.find(end)).min();
        open.message.truncate(end.unwrap_or(rest.len()));
        open.text.address = match () {
            () if open.kind == "allocation-size-too-big" => 0,
            () => rest.find("0x").and_then(|at| leading_hex(&rest[at..])).map_or(0, |(address, _)| address),
        };
        if open.kind == "allocation-size-too-big" || open.kind == "calloc-overflow" {
            open.text.block_bytes = rest.find("0x").and_then(|at| leading_hex(&rest[at..])).map_or(0, |(size, _)| size);
        }
        self.report = Report::Error(Box::new(open));
    }

    fn frame(&mut self, sink: &mut Sink, number: u64, line: &str) {
        let Some(read) = frame(line) else {
            sink.unread(number, line);
            return;
        };
        if read.number != self.next && read.number != 0 {
            // Lines of another process stand between, or are lost.
            sink.unread(number, line);
            return;
        }
        if read.number == 0 && !self.frames.is_empty() {
            self.close_stack(sink);
        }
        self.next = read.number + 1;
        let process = &mut sink[self.process];
        let module = process.module(read.module, Base::LinkTime, read.pc, read.offset);
        if let Some(text) = module.checked_sub(1).map(|number| &mut process.modules[number as usize])
            && text.build_id.is_empty()
        {
            text.build_id = build_id(read.build_id);
        }
        if process.out.process.executable.is_empty() && !read.module.is_empty() && !read.module.contains(".so") {
            read.module.clone_into(&mut process.out.process.executable);
            process.out.process.command_line = vec![read.module.to_owned()];
        }
        let frame = process.frame(&FrameText {
            pc: read.pc,
            function: intercepted(read.function),
            file: read.file,
            directory: "",
            line: read.line,
            column: read.column,
            module,
            offset: read.offset,
        });
        if self.frames.len() < crate::sink::DEEPEST {
            self.frames.push(frame);
        }
    }

    fn leak_line(&mut self, sink: &mut Sink, number: u64, line: &str) -> bool {
        let kind = match line {
            _ if line.starts_with("Direct leak of ") => LeakKind::DefinitelyLost,
            _ if line.starts_with("Indirect leak of ") => LeakKind::IndirectlyLost,
            _ => {
                if line.trim().is_empty() {
                    self.close(sink);
                }
                return true;
            }
        };
        self.close(sink);
        let amounts = line.split_once(" of ").and_then(|(_, rest)| leading_decimal(rest));
        let read = amounts.and_then(|(bytes, rest)| {
            let (blocks, _) = leading_decimal(rest.strip_prefix(" byte(s) in ")?)?;
            Some((bytes, blocks))
        });
        match read {
            Some((bytes, blocks)) => self.report = Report::Leak(kind, bytes, blocks),
            None => sink.unread(number, line),
        }
        true
    }

    fn error_line(&mut self, sink: &mut Sink, line: &str) -> bool {
        let is_end = line.trim().is_empty();
        let Report::Error(open) = &mut self.report else { return false };
        let text = line.trim();
        let access = text.strip_prefix("READ of size ").map(|rest| (false, rest));
        let access = access.or_else(|| text.strip_prefix("WRITE of size ").map(|rest| (true, rest)));
        if let Some((is_write, rest)) = access {
            open.is_write = Some(is_write);
            open.access = if is_write { Access::Write } else { Access::Read };
            open.text.access_bytes = leading_decimal(rest).map_or(0, |(bytes, _)| bytes);
            let end = text.find(" at 0x").unwrap_or(text.len());
            open.message = format!("{}: {}", open.kind, &text[..end]);
        } else if text.contains("signal is caused by a READ") {
            (open.is_write, open.access) = (Some(false), Access::Read);
        } else if text.contains("signal is caused by a WRITE") {
            (open.is_write, open.access) = (Some(true), Access::Write);
        } else if let Some((region, is_inside)) = region(text) {
            (open.text.block_start, open.text.block_bytes) = region;
            open.is_inside = is_inside;
            self.close_stack(sink);
            if let Report::Error(open) = &mut self.report {
                open.note(text.to_owned(), 0);
            }
        } else if is_label(text) {
            self.close_stack(sink);
            if let Report::Error(open) = &mut self.report {
                open.label = Some(text.trim_end_matches(':').to_owned());
            }
        } else if is_end {
            self.close_stack(sink);
        }
        true
    }

    /// Ends the stack that is open, if any.
    fn close_stack(&mut self, sink: &mut Sink) {
        self.next = 0;
        let leaf = if self.frames.is_empty() { 0 } else { sink[self.process].stack(&self.frames) };
        self.frames.clear();
        let Report::Error(open) = &mut self.report else { return };
        let label = open.label.take();
        if leaf == 0 && label.is_none() {
            return;
        }
        match label {
            None if !open.has_stack => {
                open.has_stack = true;
                open.text.leaf = leaf;
            }
            label => {
                let label = label.unwrap_or_default();
                if label.starts_with("freed by") {
                    open.text.free = leaf;
                } else if label.contains("allocated by") {
                    open.text.allocation = leaf;
                }
                open.note(label, leaf);
            }
        }
    }

    /// Keeps what is open.
    fn close(&mut self, sink: &mut Sink) {
        if let Report::Leak(kind, bytes, blocks) = self.report {
            let process = &mut sink[self.process];
            let leaf = process.stack(&self.frames);
            self.frames.clear();
            self.next = 0;
            let site = process.site(leaf, Front::Callee);
            process.leak(site, kind, (bytes, blocks), (0, 0));
            self.report = Report::Leaks;
            return;
        }
        self.close_stack(sink);
        if matches!(self.report, Report::Error(_))
            && let Report::Error(open) = std::mem::take(&mut self.report)
        {
            keep(sink, self.process, *open);
        }
    }

    /// The end of the log.
    pub(crate) fn finish(&mut self, sink: &mut Sink) {
        if !matches!(self.report, Report::None) {
            self.close(sink);
            sink[self.process].out.problems.push("the log ends within a report".to_owned());
        }
    }
}

fn keep(sink: &mut Sink, process: usize, open: Open) {
    let Open { kind, message, access, is_write, mut text, is_inside, .. } = open;
    let process = &mut sink[process];
    text.count = 1;
    let misuse = match kind.as_str() {
        "double-free" => Some(MisuseKind::DoubleFree),
        "bad-free" if is_inside && text.address != text.block_start => Some(MisuseKind::InteriorFree),
        "bad-free" => Some(MisuseKind::InvalidFree),
        "alloc-dealloc-mismatch" | "new-delete-type-mismatch" => Some(MisuseKind::MismatchedFree),
        "allocation-size-too-big" | "calloc-overflow" | "reallocarray-overflow" => Some(MisuseKind::FishySize),
        _ => None,
    };
    if let Some(misuse) = misuse {
        process.misuse(misuse, Front::Callee, &text);
        return;
    }
    text.access = access;
    text.message = message;
    process.error(ErrorKind::from_asan(&kind, is_write), text);
}

/// `0x602000000013 is located 3 bytes inside of 16-byte region [0x602000000010,0x602000000020)`.
fn region(text: &str) -> Option<((u64, u64), bool)> {
    let (_, rest) = text.split_once(" is located ")?;
    let (_, range) = rest.split_once("-byte region [")?;
    let (start, rest) = leading_hex(range)?;
    let (end, _) = leading_hex(rest.strip_prefix(',')?.trim_start())?;
    Some(((start, end.checked_sub(start)?), rest_is_inside(text)))
}

fn rest_is_inside(text: &str) -> bool {
    text.contains(" bytes inside of ")
}

/// A line whose stack follows.
fn is_label(text: &str) -> bool {
    let label = text.trim_end_matches(':');
    (label.ends_with(" here") && (label.contains("allocated by") || label.contains("freed by")))
        || label.contains(" created by ")
        || text.contains("is located in stack of thread")
        || label.ends_with(" was created by a heap allocation")
        || label.ends_with(" was stored to memory at")
        || label.starts_with("Memory was marked as uninitialized")
}

/// A build id in hex; empty when it is none.
fn build_id(text: &str) -> Vec<u8> {
    if text.len() > 128 || !text.len().is_multiple_of(2) || !text.is_ascii() {
        return Vec::new();
    }
    (0..text.len()).step_by(2).map_while(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_by_table() {
        for (text, function, file, line, column, module, offset) in [
            ("    #0 0x1 in main /tmp/a b/x.c:3", "main", "/tmp/a b/x.c", 3, 0, "", None),
            ("    #1 0x1 in f(int, char const*) x.cpp:17:9", "f(int, char const*)", "x.cpp", 17, 9, "", None),
            (
                "    #1 0x1 in operator new(unsigned long) (/b/x+0x1f)",
                "operator new(unsigned long)",
                "",
                0,
                0,
                "/b/x",
                Some(31),
            ),
            ("    #2 0x1  (/lib/libc.so.6+0x20) (BuildId: 93ac)", "", "", 0, 0, "/lib/libc.so.6", Some(32)),
            (
                "    #2 0x1 in start(void*) asan_interceptors.cpp.o",
                "start(void*)",
                "asan_interceptors.cpp.o",
                0,
                0,
                "",
                None,
            ),
            ("    #2 0x1 in A::f() const", "A::f() const", "", 0, 0, "", None),
            ("    #2 0x1 in main ../x/y.h:58:16", "main", "../x/y.h", 58, 16, "", None),
            ("    #2 0x1 in f <null>", "f", "", 0, 0, "", None),
            ("    #3 0x1  (<unknown module>)", "", "", 0, 0, "", None),
        ] {
            let read = frame(text).unwrap();
            assert_eq!((read.function, read.file, read.line, read.column), (function, file, line, column), "{text}");
            assert_eq!((read.module, read.offset), (module, offset), "{text}");
        }
        for text in ["    #x 0x1 in f", "    # 1", "    #1 main"] {
            assert_eq!(frame(text), None, "{text}");
        }
    }

    #[test]
    fn names_by_table() {
        for (name, expected) in [
            ("__interceptor_malloc", "malloc"),
            ("__asan_memcpy", "memcpy"),
            ("__asan_init", "__asan_init"),
            ("main", "main"),
        ] {
            assert_eq!(intercepted(name), expected);
        }
    }
}
