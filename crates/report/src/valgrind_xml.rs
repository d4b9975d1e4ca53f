//! Valgrind's XML, protocol version 4, one document for one process.
//!
//! Source: Valgrind 3.19, `docs/internals/xml-output-protocol4.txt`. The protocol has no place for the heap and
//! leak summaries, nor for fingerprints, nor for live blocks that are not classified; the other formats have.
//! `ReallocSizeZero` is the kind of Valgrind 3.21. A write past the end of a block that was found at its
//! release is `InvalidWrite`, without a size.

pub mod live;

use std::io::{self, Write};
use std::sync::Arc;

use leakscope_findings::analysis::{
    Analysis, Frame, LossRecord, MemoryError, MisuseError, Outcome, Stack, signal_name,
};
use leakscope_findings::suppressions::{Error, Generated, generate};
use leakscope_model::{LeakKind, Tool};

use crate::escape::xml;
use crate::text::ended_by_signal;
use crate::{finding, wording};

/// What the document holds beside the findings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// The tool's own command line: program and options, without the target's.
    pub tool_command: Vec<String>,
    /// Lines of the user's own (`--xml-user-comment`), put into `<usercomment>` escaped.
    pub user_comment: Option<String>,
    /// Add a suppression to each error (`--gen-suppressions=all`).
    pub gen_suppressions: bool,
}

/// Writes the document on one process.
///
/// # Errors
/// Those of `out`.
pub fn write(out: &mut dyn Write, analysis: &Analysis, style: &Style) -> io::Result<()> {
    let mut document = Document { out, style, unique: 0 };
    document.head(analysis, "a memory leak finder")?;
    document.status("RUNNING", 0)?;
    let mut counts = Vec::new();
    for misuse in analysis.shown_misuses() {
        counts.push((misuse.count, document.unique));
        document.misuse(misuse)?;
    }
    for error in analysis.shown_memory_errors() {
        counts.push((error.count, document.unique));
        document.memory_error(error)?;
    }
    if let Some(signal) = ended_by_signal(analysis) {
        document.fatal_signal(signal)?;
    }
    document.status("FINISHED", duration_ns(analysis))?;
    if matches!(analysis.outcome, Outcome::Classified(_)) {
        for record in analysis.shown_records() {
            document.loss_record(record, analysis.records.len(), None)?;
        }
    }
    document.tail(&counts, analysis)
}

fn duration_ns(analysis: &Analysis) -> u64 {
    analysis.process.end_monotonic_ns.saturating_sub(analysis.process.start_monotonic_ns)
}

struct Document<'a> {
    out: &'a mut dyn Write,
    style: &'a Style,
    /// Number of the next error.
    unique: u64,
}

impl Document<'_> {
    fn line(&mut self, line: &str) -> io::Result<()> {
        writeln!(self.out, "{line}")
    }

    /// `<tag>text</tag>`, escaped.
    fn element(&mut self, indent: usize, tag: &str, text: &str) -> io::Result<()> {
        writeln!(self.out, "{:indent$}<{tag}>{}</{tag}>", "", xml(text))
    }

    /// `purpose` is what the tool calls itself.
    fn head(&mut self, analysis: &Analysis, purpose: &str) -> io::Result<()> {
        let process = &analysis.process;
        self.line("<?xml version=\"1.0\"?>\n\n<valgrindoutput>\n")?;
        self.line("<protocolversion>4</protocolversion>\n<protocoltool>memcheck</protocoltool>\n")?;
        self.line("<preamble>")?;
        let leakscope = format!("leakscope {}", analysis.tool_version);
        let made_by = match analysis.witness.tool {
            Tool::Leakscope => format!("{leakscope}, {purpose}"),
            _ => format!("{}, imported by {leakscope}", analysis.witness),
        };
        self.element(2, "line", &made_by)?;
        self.element(2, "line", &format!("Command: {}", process.command_line.join(" ")))?;
        // The protocol has no other place to say that silence about leaks is not their absence.
        if let Outcome::NotClassified(reason) = &analysis.outcome {
            self.element(2, "line", &format!("Live blocks are not classified: {reason}"))?;
            if let Some(live) = finding::live(analysis, false) {
                self.element(2, "line", &live)?;
            }
        }
        self.line("</preamble>\n")?;
        self.line(&format!("<pid>{}</pid>\n<ppid>{}</ppid>\n<tool>memcheck</tool>", process.pid, process.parent_pid))?;
        if let Some(comment) = &self.style.user_comment {
            self.element(0, "usercomment", &comment.clone())?;
        }
        self.line("\n<args>\n  <vargv>")?;
        self.arguments(&self.style.tool_command.clone(), "leakscope")?;
        self.line("  </vargv>\n  <argv>")?;
        self.arguments(&process.command_line, &process.executable)?;
        self.line("  </argv>\n</args>\n")
    }

    fn arguments(&mut self, command: &[String], otherwise: &str) -> io::Result<()> {
        let (program, arguments) = match command.split_first() {
            Some((program, arguments)) => (program.as_str(), arguments),
            None => (otherwise, [].as_slice()),
        };
        self.element(4, "exe", program)?;
        for argument in arguments {
            self.element(4, "arg", argument)?;
        }
        Ok(())
    }

    fn status(&mut self, state: &str, since_start_ns: u64) -> io::Result<()> {
        let ms = since_start_ns / 1_000_000;
        let (seconds, minutes) = (ms / 1000 % 60, ms / 60_000 % 60);
        let (hours, days) = (ms / 3_600_000 % 24, ms / 86_400_000);
        let time = format!("{days:02}:{hours:02}:{minutes:02}:{seconds:02}.{:03}", ms % 1000);
        self.line(&format!("<status>\n  <state>{state}</state>\n  <time>{time} </time>\n</status>\n"))
    }

    fn open_error(&mut self, thread: u32, kind: &str) -> io::Result<()> {
        let unique = self.unique;
        self.unique += 1;
        // Numbers begin at 1, as in Valgrind.
        let thread = thread.max(1);
        self.line(&format!("<error>\n  <unique>{unique:#x}</unique>\n  <tid>{thread}</tid>\n  <kind>{kind}</kind>"))
    }

    fn close_error(&mut self, error: &Error, stack: &Stack) -> io::Result<()> {
        if self.style.gen_suppressions {
            self.suppression(&generate(error, stack.frames()))?;
        }
        self.line("</error>\n")
    }

    fn misuse(&mut self, error: &MisuseError) -> io::Result<()> {
        self.open_error(error.thread, wording::misuse_kind(error.kind))?;
        self.element(2, "what", &wording::misuse(error))?;
        self.stack(&error.stack)?;
        if let Some(words) = wording::address(error) {
            self.element(2, "auxwhat", &words)?;
        }
        self.about(&error.about)?;
        if let Some(block) = &error.block {
            let (first, second) =
                if wording::is_free(error) { (&block.free, &block.allocation) } else { (&block.allocation, &None) };
            if let Some(stack) = first {
                self.stack(stack)?;
            }
            if let Some(stack) = second {
                self.element(2, "auxwhat", "Block was alloc'd at")?;
                self.stack(stack)?;
            }
        }
        self.close_error(&Error::Misuse(error.kind), &error.stack)
    }

    /// An error that another tool found.
    fn memory_error(&mut self, error: &MemoryError) -> io::Result<()> {
        self.open_error(error.thread, error.kind.name())?;
        self.element(2, "what", &error.message)?;
        self.stack(&error.stack)?;
        self.about(&error.auxiliary)?;
        let (kind, bytes, message) = (error.kind, error.access_bytes, error.message.to_string());
        self.close_error(&Error::Memory { kind, bytes, message }, &error.stack)
    }

    /// What is known of an address.
    fn about(&mut self, lines: &[(Arc<str>, Option<Stack>)]) -> io::Result<()> {
        for (label, stack) in lines {
            self.element(2, "auxwhat", label)?;
            if let Some(stack) = stack {
                self.stack(stack)?;
            }
        }
        Ok(())
    }

    fn loss_record(&mut self, record: &LossRecord, of: usize, before: Option<&Analysis>) -> io::Result<()> {
        let Some(kind) = record.kind else { return Ok(()) };
        let (name, bytes) = match kind {
            LeakKind::DefinitelyLost => ("Leak_DefinitelyLost", record.bytes.saturating_add(record.indirect_bytes)),
            LeakKind::IndirectlyLost => ("Leak_IndirectlyLost", record.bytes),
            LeakKind::PossiblyLost => ("Leak_PossiblyLost", record.bytes),
            LeakKind::StillReachable => ("Leak_StillReachable", record.bytes),
        };
        self.open_error(1, name)?;
        self.line("  <xwhat>")?;
        let earlier = before.map(|before| wording::Earlier::of(record, before));
        self.element(4, "text", &wording::loss_record(record, of, earlier))?;
        self.line(&format!("    <leakedbytes>{bytes}</leakedbytes>"))?;
        self.line(&format!("    <leakedblocks>{}</leakedblocks>\n  </xwhat>", record.blocks))?;
        self.stack(&record.stack)?;
        self.close_error(&Error::Leak(kind), &record.stack)
    }

    fn stack(&mut self, stack: &Stack) -> io::Result<()> {
        self.line("  <stack>")?;
        for frame in stack.frames() {
            self.frame(frame)?;
        }
        self.line("  </stack>")
    }

    fn frame(&mut self, frame: &Frame) -> io::Result<()> {
        self.line(&format!("    <frame>\n      <ip>0x{:X}</ip>", frame.ip))?;
        if !frame.object.is_empty() {
            self.element(6, "obj", &frame.object)?;
        }
        if let Some(function) = &frame.function {
            self.element(6, "fn", function)?;
        }
        if let Some(file) = &frame.file {
            if let Some(directory) = &frame.directory {
                self.element(6, "dir", directory)?;
            }
            self.element(6, "file", file)?;
            self.line(&format!("      <line>{}</line>", frame.line))?;
        }
        self.line("    </frame>")
    }

    fn suppression(&mut self, rule: &Generated) -> io::Result<()> {
        self.line("  <suppression>")?;
        self.element(4, "sname", Generated::NAME)?;
        self.element(4, "skind", &rule.kind)?;
        if let Some(extra) = &rule.extra {
            self.element(4, "skaux", extra)?;
        }
        for (what, name) in &rule.frames {
            self.line(&format!("    <sframe> <{what}>{}</{what}> </sframe>", xml(name)))?;
        }
        // The end mark of a CDATA section inside of one is written as two sections.
        let text = rule.text().replace("]]>", "]]]]><![CDATA[>");
        let text: String = text.chars().map(|c| if c == '\u{fffe}' || c == '\u{ffff}' { '?' } else { c }).collect();
        self.line(&format!("    <rawtext>\n<![CDATA[\n{text}]]>\n    </rawtext>\n  </suppression>"))
    }

    fn fatal_signal(&mut self, signal: i32) -> io::Result<()> {
        let name = signal_name(signal);
        self.line(&format!("<fatal_signal>\n  <tid>1</tid>\n  <signo>{signal}</signo>\n  <signame>{name}</signame>"))?;
        self.line("  <sicode>0</sicode>\n  <stack>\n  </stack>\n</fatal_signal>\n")
    }

    fn tail(&mut self, counts: &[(u64, u64)], analysis: &Analysis) -> io::Result<()> {
        self.line("<errorcounts>")?;
        for (count, unique) in counts {
            self.line("  <pair>")?;
            self.line(&format!("    <count>{count}</count>\n    <unique>{unique:#x}</unique>\n  </pair>"))?;
        }
        self.line("</errorcounts>\n\n<suppcounts>")?;
        for used in &analysis.used_suppressions {
            self.line(&format!("  <pair>\n    <count>{}</count>", used.count))?;
            self.element(4, "name", &used.name)?;
            self.line("  </pair>")?;
        }
        self.line("</suppcounts>\n\n</valgrindoutput>\n")
    }
}
