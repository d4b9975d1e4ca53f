//! What every format says about a finding, in one view: loss records and errors alike.
//!
//! A new kind of error becomes known to all formats for pipelines by one more function like [`of_memory_error`] and its
//! part in [`errors`]; text, JSON and XML have more to say of each and go their own way.

use std::collections::HashMap;

use leakscope_findings::Fingerprint;
use leakscope_findings::analysis::signal_name;
use leakscope_findings::analysis::{Analysis, Frame, LossRecord, MemoryError, MisuseError, Outcome, Stack};
use leakscope_findings::recording::{End, Witness};
use leakscope_findings::witness::Sight;

use crate::Process;
use crate::rules::Rule;
use crate::witnesses::{Identity, Witnesses};
use crate::wording::{self, grouped};

/// Places with live blocks that nobody classified that a process's document lists; it says how many there are.
const MOST_LIVE: usize = 10;

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
    /// Who saw it, with what each saw; empty where only our own tool was there, and where the document is not known.
    pub witnesses: Vec<(&'a Witness, Sight)>,
}

impl Finding<'_> {
    /// What it is the same finding by, whichever tool saw it.
    pub fn identity(&self) -> Identity {
        (self.rule.is_of_blocks(), self.fingerprint)
    }

    /// Whether it says no more than that blocks were live.
    pub fn is_only_live(&self) -> bool {
        self.rule == Rule::of_leak(None) && self.level == Level::Note
    }
}

/// The findings of a process that its options show, errors first, then the largest leaks. Of blocks that are not
/// classified only the largest are listed, unless the options make errors of them.
pub(crate) fn findings(analysis: &Analysis) -> Vec<Finding<'_>> {
    let mut leaks: Vec<Finding<'_>> = analysis.shown_records().map(of_record).collect();
    leaks.sort_by_key(|leak| std::cmp::Reverse((leak.level, leak.bytes, leak.blocks)));
    let mut live = 0;
    leaks.retain(|leak| {
        live += usize::from(leak.is_only_live());
        !leak.is_only_live() || live <= MOST_LIVE
    });
    errors(analysis).chain(leaks).collect()
}

/// The errors of a process: wrong calls, then what another tool found.
pub(crate) fn errors(analysis: &Analysis) -> impl Iterator<Item = Finding<'_>> {
    analysis.shown_misuses().map(of_misuse).chain(analysis.shown_memory_errors().map(of_memory_error))
}

/// The findings of all processes with the process of each. What several tools saw stands there once, as the tool has it
/// that takes it most seriously.
pub(crate) fn all<'a>(processes: &[Process<'a>]) -> Vec<(Process<'a>, Finding<'a>)> {
    let witnesses = Witnesses::of(processes);
    let mut told_by: HashMap<Identity, (Level, &Witness)> = HashMap::new();
    let mut all = Vec::new();
    for &process in processes {
        for mut finding in findings(process.analysis) {
            finding.witnesses = witnesses.of_finding(&finding);
            let this = (finding.level, &process.analysis.witness);
            let teller = told_by.entry(finding.identity()).or_insert(this);
            if this.0 > teller.0 {
                *teller = this;
            }
            all.push((process, finding));
        }
    }
    all.retain(|(process, finding)| told_by[&finding.identity()].1 == &process.analysis.witness);
    all
}

/// A loss record, or live blocks that nobody classified.
pub(crate) fn of_record(record: &LossRecord) -> Finding<'_> {
    let bytes = record.bytes.saturating_add(record.indirect_bytes);
    let blocks = record.blocks.saturating_add(record.indirect_blocks);
    let plural = if blocks == 1 { "block is" } else { "blocks are" };
    let words = record.kind.map_or("live (not classified)", leakscope_model::LeakKind::words);
    let mut title = format!("{} bytes in {} {plural} {words}", grouped(bytes), grouped(blocks));
    if record.indirect_bytes > 0 {
        title += &format!(" ({} direct, {} indirect)", grouped(record.bytes), grouped(record.indirect_bytes));
    }
    let rule = Rule::of_leak(record.kind);
    let level = match record.kind {
        _ if !record.is_error => Level::Note,
        Some(leakscope_model::LeakKind::PossiblyLost) => Level::Warning,
        _ => Level::Error,
    };
    let (stack, fingerprint) = (&record.stack, record.fingerprint);
    let (more, witnesses) = (Vec::new(), Vec::new());
    Finding { rule, level, fingerprint, title, bytes, blocks, count: 1, stack, more, witnesses }
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
        witnesses: Vec::new(),
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
        witnesses: Vec::new(),
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

/// What the live blocks of a process amount to that nobody classified, not escaped; `are_listed` says whether the
/// document has [`findings`].
pub(crate) fn live(analysis: &Analysis, are_listed: bool) -> Option<String> {
    let live = || analysis.shown_records().filter(|record| record.kind.is_none() && !record.is_error);
    let sites = live().count();
    let sum = |of: fn(&LossRecord) -> u64| grouped(live().fold(0_u64, |sum, record| sum.saturating_add(of(record))));
    let listed =
        if are_listed && sites > MOST_LIVE { format!(" (the {MOST_LIVE} largest are listed)") } else { String::new() };
    (sites > 0).then(|| {
        format!(
            "{} bytes in {} blocks of {} places{listed} were live when recording ended; that is no verdict that they leaked",
            sum(|record| record.bytes),
            sum(|record| record.blocks),
            grouped(sites as u64)
        )
    })
}

/// What a reader must know beside the findings, one sentence each, not escaped.
pub(crate) fn notes(analysis: &Analysis) -> Vec<String> {
    not_classified(analysis).into_iter().chain(live(analysis, true)).chain(losses(analysis)).collect()
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
