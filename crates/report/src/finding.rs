//! What every format says about a finding, in one view: loss records and errors alike.
//!
//! A new kind of error becomes known to all formats for pipelines by one more function like [`of_memory_error`] and its
//! part in [`errors`]; text, JSON and XML have more to say of each and go their own way.

use leakscope_findings::Fingerprint;
use leakscope_findings::analysis::signal_name;
use leakscope_findings::analysis::{Analysis, Frame, LossRecord, MemoryError, MisuseError, Outcome, Stack};
use leakscope_findings::recording::End;

use crate::Process;
use crate::rules::Rule;
use crate::wording::{self, grouped};

/// How much a finding matters to a pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// It is shown, but is no error by the user's options.
    Note,
    /// A possibly lost block: it may be an interior pointer.
    Warning,
    /// An error.
    Error,
}

/// A loss record or an error of one process.
pub(crate) struct Finding<'a> {
    /// What kind it is.
    pub rule: &'static Rule,
    /// How much it matters.
    pub level: Level,
    /// Identity across builds and machines.
    pub fingerprint: Fingerprint,
    /// One sentence, not escaped.
    pub title: String,
    /// Bytes of a loss record, with those that hang on them; 0 for an error.
    pub bytes: u64,
    /// Blocks of a loss record, with those that hang on them; 0 for an error.
    pub blocks: u64,
    /// How often an error happened; 1 for a loss record.
    pub count: u64,
    /// Where.
    pub stack: &'a Stack,
    /// Where its block came from and went, for an error.
    pub more: Vec<(&'a str, &'a Stack)>,
}

/// The findings of a process that its options show, errors first, then the largest leaks. Blocks that are not
/// classified are no findings.
pub(crate) fn findings(analysis: &Analysis) -> Vec<Finding<'_>> {
    let mut leaks: Vec<Finding<'_>> = analysis.shown_records().filter_map(of_record).collect();
    leaks.sort_by_key(|leak| std::cmp::Reverse((leak.level, leak.bytes, leak.blocks)));
    errors(analysis).chain(leaks).collect()
}

/// The errors of a process: wrong calls, then what another tool found.
pub(crate) fn errors(analysis: &Analysis) -> impl Iterator<Item = Finding<'_>> {
    analysis.shown_misuses().map(of_misuse).chain(analysis.shown_memory_errors().map(of_memory_error))
}

/// The findings of all processes with the process of each.
pub(crate) fn all<'a>(processes: &[Process<'a>]) -> Vec<(Process<'a>, Finding<'a>)> {
    processes
        .iter()
        .flat_map(|&process| findings(process.analysis).into_iter().map(move |finding| (process, finding)))
        .collect()
}

/// A loss record; `None` when it is not classified.
pub(crate) fn of_record(record: &LossRecord) -> Option<Finding<'_>> {
    let kind = record.kind?;
    let bytes = record.bytes.saturating_add(record.indirect_bytes);
    let blocks = record.blocks.saturating_add(record.indirect_blocks);
    let plural = if blocks == 1 { "block is" } else { "blocks are" };
    let mut title = format!("{} bytes in {} {plural} {}", grouped(bytes), grouped(blocks), kind.words());
    if record.indirect_bytes > 0 {
        title += &format!(" ({} direct, {} indirect)", grouped(record.bytes), grouped(record.indirect_bytes));
    }
    let rule = Rule::of_leak(kind);
    let level = match kind {
        _ if !record.is_error => Level::Note,
        leakscope_model::LeakKind::PossiblyLost => Level::Warning,
        _ => Level::Error,
    };
    let (stack, fingerprint) = (&record.stack, record.fingerprint);
    Some(Finding { rule, level, fingerprint, title, bytes, blocks, count: 1, stack, more: Vec::new() })
}

/// What another tool found.
fn of_memory_error(error: &MemoryError) -> Finding<'_> {
    let mut title = if error.message.is_empty() { error.kind.name().to_owned() } else { error.message.to_string() };
    for (words, _) in error.auxiliary.iter().filter(|(_, stack)| stack.is_none()) {
        title += ". ";
        title += words;
    }
    Finding {
        rule: Rule::of_error(error.kind),
        level: Level::Error,
        fingerprint: error.fingerprint,
        title,
        bytes: 0,
        blocks: 0,
        count: error.count,
        stack: &error.stack,
        more: error.auxiliary.iter().filter_map(|(words, stack)| Some((&**words, stack.as_ref()?))).collect(),
    }
}

/// A wrong call.
fn of_misuse(error: &MisuseError) -> Finding<'_> {
    let mut title = wording::misuse(error);
    if let Some(address) = wording::address(error) {
        title += ". ";
        title += &address;
    }
    let block = error.block.as_ref();
    let stacks = [
        ("The block was allocated at", block.and_then(|block| block.allocation.as_ref())),
        ("The block was freed at", block.and_then(|block| block.free.as_ref())),
    ];
    Finding {
        rule: Rule::of_misuse(error.kind),
        level: Level::Error,
        fingerprint: error.fingerprint,
        title,
        bytes: 0,
        blocks: 0,
        count: error.count,
        stack: &error.stack,
        more: stacks.into_iter().filter_map(|(words, stack)| Some((words, stack?))).collect(),
    }
}

/// The frame that a reader thinks of as the place: the innermost one that is not the allocation function.
pub(crate) fn site(stack: &Stack) -> Option<&Frame> {
    stack.frames().iter().find(|frame| !frame.hook).or(stack.frames().first()).map(|frame| &**frame)
}

/// A name for a frame's code, not escaped: the function, or its module and offset.
pub(crate) fn code(frame: &Frame) -> String {
    match frame.function.as_deref() {
        Some(function) if !function.is_empty() => function.to_owned(),
        _ if frame.object.is_empty() => format!("{:#x}", frame.ip),
        _ => format!("{}+{:#x}", file_name(&frame.object), frame.svma),
    }
}

/// A frame in one line, not escaped: `make_node (app.c:10)`.
pub(crate) fn line(frame: &Frame) -> String {
    let code = code(frame);
    match frame.file.as_deref() {
        Some(file) if frame.line > 0 => format!("{code} ({}:{})", file_name(file), frame.line),
        Some(file) => format!("{code} ({})", file_name(file)),
        None if frame.function.is_some() && !frame.object.is_empty() => {
            format!("{code} (in {})", file_name(&frame.object))
        }
        None => code,
    }
}

/// The last part of a path.
pub(crate) fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// What a process is called, not escaped: the file name of its program.
pub(crate) fn program(analysis: &Analysis) -> &str {
    let process = &analysis.process;
    let path = if process.executable.is_empty() {
        process.command_line.first().map_or("unknown program", String::as_str)
    } else {
        &process.executable
    };
    file_name(path)
}

/// Why there are no leaks to report although there may be some, not escaped.
pub(crate) fn not_classified(analysis: &Analysis) -> Option<String> {
    match &analysis.outcome {
        Outcome::Classified(_) => None,
        Outcome::NotClassified(reason) => Some(format!("blocks are not classified: {reason}")),
        Outcome::NotChecked => Some("no leak check was made".to_owned()),
    }
}

/// What of the recording is missing, one sentence each, not escaped.
pub(crate) fn losses(analysis: &Analysis) -> Vec<String> {
    let lost = analysis.lost.words().into_iter().map(|(count, words)| format!("{} {words}", grouped(count)));
    lost.chain(analysis.problems.iter().cloned()).collect()
}

/// How the process ended, in words.
pub(crate) fn end(analysis: &Analysis) -> String {
    match analysis.end {
        End::Unknown => "nobody saw its end".to_owned(),
        End::Running => "still running".to_owned(),
        End::Exited(status) => format!("exited with {status}"),
        End::Signalled(signal) => format!("ended by {}", signal_name(signal)),
        End::Exec => "replaced itself by exec".to_owned(),
    }
}

/// Tells equal fingerprints within one document apart: 1 for the first, 2 for the next.
#[derive(Default)]
pub(crate) struct Occurrences(std::collections::HashMap<Fingerprint, u32>);

impl Occurrences {
    /// The number of this one.
    pub fn next(&mut self, fingerprint: Fingerprint) -> u32 {
        let count = self.0.entry(fingerprint).or_default();
        *count += 1;
        *count
    }
}
