//! Valgrind's text: `==PID== ` in front of every line, the lines of several processes mixed as they come.
//!
//! Source: what Memcheck 3.19 prints. A finding is a sentence, a stack, and other sentences and stacks up to an empty
//! line. `-s` repeats the findings after the ERROR SUMMARY, with their counts.

use leakscope_model::{LeakKind, Tool};

use crate::lines::{decimal, leading_decimal, leading_hex};
use crate::memcheck::{self, Finding};
use crate::sink::{FrameText, Map, Sink};

/// Reads lines of any number of processes.
#[derive(Default)]
pub(crate) struct ValgrindText {
    states: Map<u32, State>,
}

/// What is open in the output of one process.
#[derive(Default)]
struct State {
    finding: Option<Open>,
    last_record: u64,
    tid: u32,
    /// After the ERROR SUMMARY findings come a second time.
    repeats: bool,
    /// How often the next repeated finding happened.
    count: u64,
    in_leak_summary: bool,
}

/// A finding whose lines are read.
#[derive(Default)]
struct Open {
    finding: Finding,
    loss: Option<memcheck::Loss>,
    frames: Vec<u32>,
    /// A sentence whose stack may follow.
    label: Option<String>,
    has_stack: bool,
}

/// The process and the rest of a line of Valgrind's; `None` for any other line.
pub(crate) fn prefix(line: &str) -> Option<(u32, &str)> {
    let (inner, rest) = line.strip_prefix("==")?.split_once("==")?;
    // With --time-stamp=yes the time comes first.
    let pid = inner.rsplit(' ').next()?.parse().ok()?;
    Some((pid, rest.strip_prefix(' ').unwrap_or(rest)))
}

/// `   at 0x4841F2F: operator new(unsigned long) (in /usr/lib/x.so)`, without the indent and `at`.
fn frame(text: &str) -> Option<(FrameText<'_>, &str)> {
    let (pc, rest) = leading_hex(text)?;
    let rest = rest.strip_prefix(": ")?;
    let mut frame = FrameText { pc, function: rest, ..FrameText::default() };
    let mut module = "";
    if let (Some(inner), Some(at)) = (rest.strip_suffix(')'), rest.rfind(" (")) {
        let place = &inner[at + 2..];
        if let Some(path) = place.strip_prefix("in ") {
            (frame.function, module) = (&rest[..at], path);
        } else if let Some((file, Some(line))) = place.rsplit_once(':').map(|(file, line)| (file, decimal(line))) {
            frame.function = &rest[..at];
            frame.file = file;
            frame.line = u32::try_from(line).unwrap_or(0);
        }
    }
    if frame.function == "???" {
        frame.function = "";
    }
    Some((frame, module))
}

impl ValgrindText {
    /// Reads a line if it is one of Valgrind's.
    pub(crate) fn line(&mut self, sink: &mut Sink, number: u64, line: &str) -> bool {
        let Some((pid, text)) = prefix(line) else { return false };
        if self.states.len() >= crate::sink::MOST_PROCESSES && !self.states.contains_key(&pid) {
            return true;
        }
        let state = self.states.entry(pid).or_default();
        if let Some(text) = text.strip_prefix("   at ").or_else(|| text.strip_prefix("   by ")) {
            let starts = line.contains("==    at ");
            let Some(open) = &mut state.finding else {
                // Frames of a message that is no finding, or of a finding whose beginning is lost.
                return true;
            };
            let Some((mut frame, module)) = frame(text) else {
                sink.unread(number, line);
                return true;
            };
            let process = sink.process(pid, Tool::Memcheck);
            // A label that waits belongs to the stack that begins here.
            if starts && open.has_stack {
                close_stack(sink, process, open);
            }
            frame.module = sink[process].module(module, crate::sink::Base::LinkTime, 0, None);
            let frame = sink[process].frame(&frame);
            open.has_stack = true;
            if open.frames.len() < crate::sink::DEEPEST {
                open.frames.push(frame);
            }
            return true;
        }
        if text.trim().is_empty() {
            close(sink, pid, state);
            return true;
        }
        if let Some(rest) = text.strip_prefix(' ').filter(|rest| !rest.starts_with("  "))
            && let Some(open) = &mut state.finding
        {
            let process = sink.process(pid, Tool::Memcheck);
            close_stack(sink, process, open);
            open.label = Some(rest.trim().to_owned());
            return true;
        }
        self.sentence(sink, number, pid, text);
        true
    }

    /// A line that is neither a frame nor about an open finding.
    fn sentence(&mut self, sink: &mut Sink, number: u64, pid: u32, text: &str) {
        let state = self.states.entry(pid).or_default();
        let trimmed = text.trim();
        if let Some((count, rest)) = leading_decimal(text)
            && rest.contains(" in context ")
        {
            state.count = count;
            return;
        }
        let loss = memcheck::loss(text);
        if loss.is_some() || memcheck::kind_of(text).is_some() {
            close(sink, pid, state);
            sink.process(pid, Tool::Memcheck);
            let finding = Finding { what: text.to_owned(), tid: state.tid, ..Finding::default() };
            state.finding = Some(Open { finding, loss, ..Open::default() });
            return;
        }
        if text.contains(" blocks are ") {
            sink.unread(number, text);
            return;
        }
        if let Some(thread) = text.strip_prefix("Thread ") {
            state.tid = leading_decimal(thread).map_or(state.tid, |(tid, _)| u32::try_from(tid).unwrap_or(0));
            return;
        }
        if state.in_leak_summary && summary_line(sink, pid, trimmed) {
            return;
        }
        match trimmed {
            "LEAK SUMMARY:" => {
                let process = sink.process(pid, Tool::Memcheck);
                if !sink[process].has_check() {
                    sink[process].begin_check();
                }
                state.in_leak_summary = true;
                return;
            }
            "HEAP SUMMARY:" => {
                state.in_leak_summary = false;
                return;
            }
            _ => {}
        }
        if trimmed.starts_with("All heap blocks were freed") {
            let process = sink.process(pid, Tool::Memcheck);
            sink[process].begin_check();
        } else if trimmed.starts_with("ERROR SUMMARY:") {
            state.repeats = true;
            state.in_leak_summary = false;
        } else {
            fact(sink, pid, trimmed);
        }
    }

    /// The end of the log.
    pub(crate) fn finish(&mut self, sink: &mut Sink) {
        let mut open: Vec<u32> = self.states.iter().filter(|(_, s)| s.finding.is_some()).map(|(&pid, _)| pid).collect();
        open.sort_unstable();
        for pid in open {
            if let Some(state) = self.states.get_mut(&pid) {
                close(sink, pid, state);
                let process = sink.process(pid, Tool::Memcheck);
                sink[process].out.problems.push("the log ends within a finding".to_owned());
            }
        }
    }
}

fn close_stack(sink: &mut Sink, process: usize, open: &mut Open) {
    let label = open.label.take();
    if !open.has_stack && label.is_none() {
        return;
    }
    let leaf = sink[process].stack(&open.frames);
    open.frames.clear();
    open.has_stack = false;
    match label {
        Some(label) => open.finding.note(label, leaf),
        None if open.finding.stack.is_none() => open.finding.stack = Some(leaf),
        None => open.finding.note(String::new(), leaf),
    }
}

fn close(sink: &mut Sink, pid: u32, state: &mut State) {
    let Some(mut open) = state.finding.take() else { return };
    let process = sink.process(pid, Tool::Memcheck);
    close_stack(sink, process, &mut open);
    let count = std::mem::take(&mut state.count);
    if let Some(loss) = open.loss {
        // A repeated leak has nothing new to say.
        if !state.repeats {
            memcheck::keep_loss(&mut sink[process], loss, open.finding.stack.unwrap_or(0), &mut state.last_record);
        }
        return;
    }
    let handle = memcheck::keep(&mut sink[process], open.finding);
    if let (true, Some(handle)) = (state.repeats, handle) {
        sink[process].set_count(handle, count);
    }
}

/// `definitely lost: 235 bytes in 4 blocks`: what no record shows (without `--show-leak-kinds=all`) has no site.
fn summary_line(sink: &mut Sink, pid: u32, line: &str) -> bool {
    let Some((words, amounts)) = line.split_once(": ") else { return false };
    let Some(kind) = LeakKind::ALL.into_iter().find(|kind| kind.words() == words) else { return false };
    let Some((bytes, rest)) = leading_decimal(amounts) else { return false };
    let blocks = rest.split(" in ").nth(1).and_then(leading_decimal).map_or(0, |(blocks, _)| blocks);
    let process = sink.process(pid, Tool::Memcheck);
    let records = sink[process].out.checks.last().and_then(|check| check.records.as_deref()).unwrap_or_default();
    let of_kind = records.iter().filter(|record| record.kind == kind);
    let (known_bytes, known_blocks) = of_kind.fold((0_u64, 0_u64), |(bytes, blocks), record| {
        (bytes.saturating_add(record.bytes), blocks.saturating_add(record.blocks))
    });
    let rest = (bytes.saturating_sub(known_bytes), blocks.saturating_sub(known_blocks));
    if rest != (0, 0) {
        sink[process].leak(0, kind, rest, (0, 0));
    }
    true
}

/// A line about the process as a whole.
fn fact(sink: &mut Sink, pid: u32, line: &str) {
    let known = [
        "Memcheck, a memory error detector",
        "Using Valgrind-",
        "Command: ",
        "Parent PID: ",
        "in use at exit: ",
        "total heap usage: ",
    ];
    let Some(front) = known.into_iter().find(|front| line.starts_with(front)) else { return };
    let process = sink.process(pid, Tool::Memcheck);
    let process = &mut sink[process];
    let rest = &line[front.len()..];
    match front {
        "Using Valgrind-" => {
            process.out.witness.version = rest.split(' ').next().unwrap_or_default().to_owned();
        }
        "Command: " => {
            process.out.process.command_line = rest.split(' ').map(str::to_owned).collect();
            process.out.process.executable = rest.split(' ').next().unwrap_or_default().to_owned();
        }
        "Parent PID: " => process.out.process.parent_pid = rest.parse().unwrap_or(0),
        "in use at exit: " => {
            if !process.has_check() {
                process.begin_check();
            }
            let bytes = leading_decimal(rest).map_or(0, |(bytes, _)| bytes);
            let blocks = rest.split(" in ").nth(1).and_then(leading_decimal).map_or(0, |(blocks, _)| blocks);
            if let Some(check) = process.out.checks.last_mut() {
                (check.bytes, check.blocks) = (bytes, blocks);
            }
        }
        "total heap usage: " => {
            let mut numbers = rest.split(", ").filter_map(|part| leading_decimal(part)).map(|(number, _)| number);
            if let (Some(allocations), Some(releases), Some(bytes)) = (numbers.next(), numbers.next(), numbers.next()) {
                process.heap = Some((allocations, releases, bytes));
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_by_table() {
        assert_eq!(prefix("==27733== Command: ./x"), Some((27733, "Command: ./x")));
        assert_eq!(prefix("==27733=="), Some((27733, "")));
        assert_eq!(prefix("==00:00:00:01.250 7==    at 0x1: f (x.c:1)"), Some((7, "   at 0x1: f (x.c:1)")));
        assert_eq!(prefix("--27733-- Reading syms"), None);
        assert_eq!(prefix("===="), None);
        assert_eq!(prefix("== x =="), None);
    }

    #[test]
    fn frames_by_table() {
        for (text, function, file, line, module) in [
            ("0x1: f (x.c:12)", "f", "x.c", 12, ""),
            ("0x1: operator new(unsigned long) (in /a b/x.so)", "operator new(unsigned long)", "", 0, "/a b/x.so"),
            ("0x1: ??? (in /x)", "", "", 0, "/x"),
            ("0x1: f(int (*)(char)) (x.cpp:3)", "f(int (*)(char))", "x.cpp", 3, ""),
            ("0x1: f(int)", "f(int)", "", 0, ""),
            ("0x1: ???", "", "", 0, ""),
        ] {
            let (frame, found) = frame(text).unwrap();
            assert_eq!((frame.function, frame.file, frame.line, found), (function, file, line, module), "{text}");
        }
        assert!(frame("x: f").is_none());
        assert!(frame("0x1 f").is_none());
    }
}
