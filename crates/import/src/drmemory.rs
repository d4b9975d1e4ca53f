//! Dr. Memory's `results.txt`.
//!
//! Source: Dr. Memory's documentation, "Error Types" and "Suppressing Errors", and the results in its test suite
//! (`tests/*.res` give the sentences). `LEAK` is definitely lost; what hangs on it is told in the same line.
//!
//! ```text
//! Error #1: UNADDRESSABLE ACCESS beyond heap bounds: writing 0x0804a02c-0x0804a02d 1 byte(s)
//! # 0 main               [/work/foo.c:32]
//! # 1 libc.so.6!__libc_start_main
//! Note: refers to 0 byte(s) beyond last valid byte in prior malloc
//!
//! Error #2: LEAK 42 direct bytes 0x0804a010-0x0804a03a + 17 indirect bytes
//! # 0 replace_malloc     [/work/drmemory/alloc_replace.c:2580]
//! # 1 foo!main           [/work/foo.c:18]
//! ```

use std::io::{self, BufRead};

use leakscope_findings::recording::{Access, AuxiliaryStack};
use leakscope_model::{ErrorKind, LeakKind, MisuseKind, Tool};

use crate::lines::{decimal, leading_decimal, leading_hex};
use crate::sink::{Base, ErrorHandle, ErrorText, FrameText, Front, Map, Process, Sink};

/// Whether a text begins as such a file does.
pub(crate) fn is_results(text: &str) -> bool {
    text.lines()
        .take(8)
        .any(|line| line.starts_with("Dr. Memory version ") || line.starts_with("Dr. Memory results for pid"))
}

#[derive(Default)]
struct Open {
    number: u64,
    what: String,
    frames: Vec<u32>,
    leaf: Option<u32>,
    notes: Vec<AuxiliaryStack>,
    note: Option<String>,
    tid: u32,
}

#[derive(Default)]
struct File {
    open: Option<Open>,
    handles: Map<u64, ErrorHandle>,
    in_counts: bool,
    /// The record that a frame of another error is not to be mixed with.
    is_summary: bool,
}

/// Reads a file.
pub(crate) fn read(input: &mut dyn BufRead, sink: &mut Sink) -> io::Result<()> {
    let process = sink.process(0, Tool::DrMemory);
    let mut file = File::default();
    sink.read_lines(input, process, |process, line| file.line(process, line))?;
    let process = &mut sink.processes[process];
    if file.open.is_some() {
        process.out.problems.push("the results end within a finding".to_owned());
    }
    file.close(process);
    if !process.has_check() && file.is_summary {
        process.begin_check();
    }
    Ok(())
}

impl File {
    fn line(&mut self, process: &mut Process, line: &str) -> Option<()> {
        let text = line.trim();
        if text.is_empty() {
            self.close(process);
            return Some(());
        }
        if let Some(rest) = text.strip_prefix("Error #")
            && let Some((number, rest)) = leading_decimal(rest.trim_start())
        {
            if self.in_counts {
                let count = decimal(rest.strip_prefix(':')?.trim())?;
                if let Some(&handle) = self.handles.get(&number) {
                    process.set_count(handle, count);
                }
                return Some(());
            }
            self.close(process);
            let what = rest.strip_prefix(':')?.trim().to_owned();
            self.open = Some(Open { number, what, ..Open::default() });
            return Some(());
        }
        if text.starts_with('#') {
            return self.frame(process, text);
        }
        if let Some(note) = text.strip_prefix("Note: ") {
            let open = self.open.as_mut()?;
            open.end_stack(process);
            if let Some((_, thread)) = note.rsplit_once(" in thread ") {
                open.tid = decimal(thread).and_then(|tid| u32::try_from(tid).ok()).unwrap_or(0);
            } else {
                open.note = Some(note.to_owned());
            }
            return Some(());
        }
        self.fact(process, text);
        Some(())
    }

    fn fact(&mut self, process: &mut Process, text: &str) {
        if let Some(rest) = text.strip_prefix("Dr. Memory version ") {
            process.out.witness.version = rest.split(' ').next().unwrap_or_default().to_owned();
        } else if let Some(rest) = text.strip_prefix("Dr. Memory results for pid ") {
            process.out.process.pid = leading_decimal(rest).map_or(0, |(pid, _)| u32::try_from(pid).unwrap_or(0));
            process.out.process.executable = rest.split('"').nth(1).unwrap_or_default().to_owned();
        } else if let Some(rest) = text.strip_prefix("Application cmdline: ") {
            process.out.process.command_line = rest.trim_matches('"').split(' ').map(str::to_owned).collect();
        } else if text.starts_with("DUPLICATE ERROR COUNTS") {
            self.in_counts = true;
        } else if text.starts_with("FINAL SUMMARY") || text.starts_with("SUPPRESSIONS USED") {
            self.close(process);
            self.in_counts = false;
            self.is_summary = true;
        }
    }

    /// `# 1 foo!main           [/work/foo.c:18]`, or `# 1 <not in a module>`, or `#2 0x8048 <libc.so.6+0x17b2>`.
    fn frame(&mut self, process: &mut Process, text: &str) -> Option<()> {
        let (number, rest) = leading_decimal(text[1..].trim_start())?;
        let open = self.open.as_mut()?;
        if number == 0 && !open.frames.is_empty() {
            open.end_stack(process);
        }
        let mut rest = rest.trim();
        let mut frame = FrameText::default();
        if let Some((pc, after)) = leading_hex(rest) {
            frame.pc = pc;
            rest = after.trim_start();
        }
        if let Some((front, place)) = rest.strip_suffix(']').and_then(|rest| rest.rsplit_once('[')) {
            let (file, line) = place.rsplit_once(':').unwrap_or((place, ""));
            // The path may have the offset in its line behind it: `foo.c:18+0x3`.
            frame.file = file;
            frame.line = leading_decimal(line).map_or(0, |(line, _)| u32::try_from(line).unwrap_or(0));
            rest = front.trim_end();
        }
        let mut module = "";
        if let Some((path, offset)) =
            rest.strip_prefix('<').and_then(|rest| rest.strip_suffix('>')).and_then(|rest| rest.rsplit_once("+0x"))
        {
            module = path;
            frame.offset = crate::lines::hex(offset);
            frame.pc = if frame.pc == 0 { frame.offset.unwrap_or(0) } else { frame.pc };
        } else if !rest.starts_with('<') {
            let (path, function) = rest.split_once('!').unwrap_or(("", rest));
            (module, frame.function) = (path, if function == "?" { "" } else { function });
        }
        frame.module = process.module(module, Base::LinkTime, frame.pc, frame.offset);
        let frame = process.frame(&frame);
        if open.frames.len() < crate::sink::DEEPEST {
            open.frames.push(frame);
        }
        Some(())
    }

    fn close(&mut self, process: &mut Process) {
        let Some(mut open) = self.open.take() else { return };
        open.end_stack(process);
        if let Some(handle) = keep(process, &open) {
            self.handles.insert(open.number, handle);
        }
    }
}

impl Open {
    fn end_stack(&mut self, process: &mut Process) {
        let leaf = process.stack(&self.frames);
        self.frames.clear();
        if let Some(label) = self.note.take() {
            if self.notes.len() < crate::sink::MOST_AUXILIARY {
                self.notes.push(AuxiliaryStack { label, leaf });
            }
        } else if self.leaf.is_none() {
            self.leaf = Some(leaf);
        }
    }
}

/// `42 direct bytes 0x0804a010-0x0804a03a + 17 indirect bytes`.
fn leak_bytes(text: &str) -> (u64, u64) {
    let direct = leading_decimal(text.trim_start()).map_or(0, |(bytes, _)| bytes);
    let indirect = text.split_once(" + ").and_then(|(_, rest)| leading_decimal(rest)).map_or(0, |(bytes, _)| bytes);
    (direct, indirect)
}

fn keep(process: &mut Process, open: &Open) -> Option<ErrorHandle> {
    let what = open.what.as_str();
    let leaf = open.leaf.unwrap_or(0);
    let leaks = [
        ("POSSIBLE LEAK ", LeakKind::PossiblyLost),
        ("REACHABLE LEAK ", LeakKind::StillReachable),
        ("LEAK ", LeakKind::DefinitelyLost),
    ];
    for (front, kind) in leaks {
        if let Some(rest) = what.strip_prefix(front) {
            let (direct, indirect) = leak_bytes(rest);
            let site = process.site(leaf, Front::Callee);
            process.leak(site, kind, (direct, 1), (indirect, 0));
            return None;
        }
    }
    let address = what.find("0x").and_then(|at| leading_hex(&what[at..])).map_or(0, |(address, _)| address);
    let mut text = ErrorText {
        leaf,
        address,
        count: 1,
        message: what.to_owned(),
        auxiliary: open.notes.clone(),
        thread: process.thread(open.tid),
        ..ErrorText::default()
    };
    if what.starts_with("INVALID HEAP ARGUMENT") {
        let is_mismatch = what.contains("mismatch") || what.contains("allocated with");
        let was_free = open.notes.iter().any(|note| note.label.contains("freed"));
        let kind = match () {
            () if is_mismatch => MisuseKind::MismatchedFree,
            () if was_free => MisuseKind::DoubleFree,
            () => MisuseKind::InvalidFree,
        };
        return Some(process.misuse(kind, Front::Callee, &text));
    }
    if let Some((_, access)) = what.split_once(": ") {
        text.access = match () {
            () if access.starts_with("writing") => Access::Write,
            () if access.starts_with("reading") => Access::Read,
            () => Access::None,
        };
        text.access_bytes =
            access.split(' ').rev().nth(1).and_then(decimal).filter(|_| access.ends_with("byte(s)")).unwrap_or(0);
    }
    let kind = match () {
        () if what.starts_with("UNADDRESSABLE ACCESS") && text.access == Access::Write => ErrorKind::InvalidWrite,
        () if what.starts_with("UNADDRESSABLE ACCESS") && what.contains("executing") => ErrorKind::InvalidJump,
        () if what.starts_with("UNADDRESSABLE ACCESS") => ErrorKind::InvalidRead,
        () if what.starts_with("UNINITIALIZED READ") => ErrorKind::UninitValue,
        () => ErrorKind::Other,
    };
    Some(process.error(kind, text))
}
