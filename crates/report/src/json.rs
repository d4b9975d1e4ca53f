//! The report for programs: everything, as one JSON document on one line for one process.
//!
//! Several processes are several lines (JSON Lines). The schema is `docs/schema/report-v1.schema.json`; fields
//! are only ever added within version 1. Addresses are strings in hexadecimal, because many readers keep
//! numbers as doubles; bytes, blocks and nanoseconds are numbers.

use std::io::{self, Write};

use leakscope_findings::analysis::{
    Amount, Analysis, Frame, LeakCheck, LossRecord, MemoryError, MisuseError, Outcome, Resolution, Stack, signal_name,
};
use leakscope_findings::recording::{Access, End, Origin, Sample, State, Totals};
use leakscope_model::{CheckTrigger, Heuristic, LeakKind, LeakKindSet, MisuseKind};
use serde::Serialize;

use crate::escape::InertJson;
use crate::intervals::{IntervalView, LogView};

/// Version of the schema.
pub const VERSION: u32 = 1;

/// Writes the document on one process, and a newline.
///
/// # Errors
/// Those of `out`.
pub fn write(out: &mut dyn Write, analysis: &Analysis) -> io::Result<()> {
    let mut inert = serde_json::Serializer::with_formatter(&mut *out, InertJson);
    Document::new(analysis).serialize(&mut inert).map_err(io::Error::from)?;
    writeln!(out)
}

#[derive(Serialize)]
struct Document<'a> {
    schema: &'static str,
    version: u32,
    tool: Tool<'a>,
    process: Process<'a>,
    options: Options,
    outcome: OutcomeView<'a>,
    heap: Heap,
    leak_totals: LeakTotals,
    error_counts: ErrorCounts,
    records: Vec<Record<'a>>,
    errors: Vec<Misuse<'a>>,
    /// Only of what another tool recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    witness: Option<Witness<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    memory_errors: Vec<MemoryErrorView<'a>>,
    /// Only of programs that call `mtrace()`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    intervals: Vec<IntervalView<'a>>,
    /// Only where there is something to say of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    mtrace_log: Option<LogView<'a>>,
    suppressions: Vec<Suppression<'a>>,
    lost: Lost,
    problems: &'a [String],
    series: Vec<Moment>,
}

#[derive(Serialize)]
struct Tool<'a> {
    name: &'static str,
    version: &'a str,
}

#[derive(Serialize)]
struct Process<'a> {
    pid: u32,
    parent_pid: u32,
    origin: &'static str,
    state: &'static str,
    executable: &'a str,
    command_line: &'a [String],
    failure: Option<&'a str>,
    start_unix_ns: u64,
    duration_ns: u64,
    end: EndView,
    sample_bytes: u64,
    max_frames: u32,
}

#[derive(Serialize)]
struct EndView {
    kind: &'static str,
    status: Option<i32>,
    signal: Option<i32>,
    signal_name: Option<String>,
}

#[derive(Serialize)]
struct Options {
    leak_check: &'static str,
    show_leak_kinds: Vec<&'static str>,
    errors_for_leak_kinds: Vec<&'static str>,
    leak_resolution: &'static str,
    num_callers: usize,
    show_below_main: bool,
}

#[derive(Serialize)]
struct OutcomeView<'a> {
    classified: bool,
    reason: Option<&'a str>,
    check: Option<Check>,
}

#[derive(Serialize)]
struct Check {
    number: u32,
    trigger: &'static str,
    status: u32,
    root_bytes: u64,
    unreadable_bytes: u64,
    threads_seen: u32,
    threads_unseen: u32,
    pause_ns: u64,
    check_ns: u64,
    lost_records: u64,
    freeres: bool,
}

#[derive(Serialize)]
struct Heap {
    in_use_bytes: u64,
    in_use_blocks: u64,
    allocs: u64,
    frees: u64,
    allocated_bytes: u64,
}

#[derive(Serialize)]
struct BytesBlocks {
    bytes: u64,
    blocks: u64,
}

impl From<Amount> for BytesBlocks {
    fn from(amount: Amount) -> Self {
        Self { bytes: amount.bytes, blocks: amount.blocks }
    }
}

#[derive(Serialize)]
struct LeakTotals {
    definite: BytesBlocks,
    indirect: BytesBlocks,
    possible: BytesBlocks,
    reachable: BytesBlocks,
    suppressed: BytesBlocks,
    heuristics: Heuristics,
}

#[derive(Serialize)]
struct Heuristics {
    stdstring: BytesBlocks,
    length64: BytesBlocks,
    newarray: BytesBlocks,
    multipleinheritance: BytesBlocks,
}

impl From<[Amount; 4]> for Heuristics {
    fn from(amounts: [Amount; 4]) -> Self {
        let of = |heuristic: Heuristic| amounts[heuristic as usize].into();
        Self {
            stdstring: of(Heuristic::StdString),
            length64: of(Heuristic::Length64),
            newarray: of(Heuristic::NewArray),
            multipleinheritance: of(Heuristic::MultipleInheritance),
        }
    }
}

#[derive(Serialize)]
struct ErrorCounts {
    errors: u64,
    contexts: u64,
    suppressed: u64,
    suppressed_contexts: u64,
}

#[derive(Serialize)]
struct Record<'a> {
    number: u32,
    kind: Option<&'static str>,
    bytes: u64,
    blocks: u64,
    indirect_bytes: u64,
    indirect_blocks: u64,
    function: &'static str,
    fingerprint: String,
    shown: bool,
    is_error: bool,
    suppressed_by: Option<u32>,
    addresses: Vec<String>,
    heuristics: Heuristics,
    site: &'a Totals,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    notes: &'a [String],
    stack: StackView<'a>,
}

#[derive(Serialize)]
pub(crate) struct StackView<'a> {
    shown: usize,
    cut: bool,
    broken: bool,
    frames: Vec<FrameView<'a>>,
}

#[derive(Serialize)]
struct FrameView<'a> {
    address: String,
    module: Option<&'a str>,
    module_offset: String,
    function: Option<&'a str>,
    linkage_name: Option<&'a str>,
    directory: Option<&'a str>,
    file: Option<&'a str>,
    line: Option<u32>,
    column: Option<u32>,
    inlined: bool,
}

#[derive(Serialize)]
struct Misuse<'a> {
    kind: &'static str,
    count: u64,
    thread: u32,
    tid: u32,
    function: &'static str,
    address: String,
    requested_bytes: u64,
    overrun_offset: u64,
    fingerprint: String,
    suppressed_by: Option<u32>,
    stack: StackView<'a>,
    block: Option<Block<'a>>,
}

#[derive(Serialize)]
struct Witness<'a> {
    name: &'static str,
    version: &'a str,
}

#[derive(Serialize)]
struct MemoryErrorView<'a> {
    kind: &'static str,
    access: Option<&'static str>,
    access_bytes: u64,
    address: String,
    message: &'a str,
    count: u64,
    thread: u32,
    tid: u32,
    fingerprint: String,
    suppressed_by: Option<u32>,
    stack: StackView<'a>,
    auxiliary: Vec<AuxiliaryView<'a>>,
}

#[derive(Serialize)]
struct AuxiliaryView<'a> {
    label: &'a str,
    stack: Option<StackView<'a>>,
}

#[derive(Serialize)]
struct Block<'a> {
    start: String,
    bytes: u64,
    allocation: Option<StackView<'a>>,
    free: Option<StackView<'a>>,
}

#[derive(Serialize)]
struct Suppression<'a> {
    rule: u32,
    name: &'a str,
    file: &'a str,
    line: u32,
    count: u64,
    blocks: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct Lost {
    sites: u64,
    nodes: u64,
    counters: u64,
    blocks: u64,
    deep_stacks: u64,
    broken_stacks: u64,
    modules: u64,
    misuses: u64,
    threads: u64,
    intervals: u64,
}

#[derive(Serialize)]
struct Moment {
    time_ns: u64,
    live_bytes: u64,
    live_blocks: u64,
    resident_bytes: u64,
}

fn hex(number: u64) -> String {
    format!("{number:#x}")
}

fn some_if<T: Default + PartialEq>(value: T) -> Option<T> {
    (value != T::default()).then_some(value)
}

fn kinds(set: LeakKindSet) -> Vec<&'static str> {
    LeakKind::ALL.into_iter().rev().filter(|&kind| set.contains(kind)).map(LeakKind::option_word).collect()
}

impl<'a> Document<'a> {
    fn new(analysis: &'a Analysis) -> Self {
        let (heap, errors, lost) = (&analysis.heap, &analysis.errors, &analysis.lost);
        Self {
            schema: "leakscope-report",
            version: VERSION,
            tool: Tool { name: "leakscope", version: &analysis.tool_version },
            process: process(analysis),
            options: options(analysis),
            outcome: outcome(analysis),
            heap: Heap {
                in_use_bytes: heap.in_use_bytes,
                in_use_blocks: heap.in_use_blocks,
                allocs: heap.allocs,
                frees: heap.frees,
                allocated_bytes: heap.allocated_bytes,
            },
            leak_totals: LeakTotals {
                definite: analysis.totals.of(LeakKind::DefinitelyLost).into(),
                indirect: analysis.totals.of(LeakKind::IndirectlyLost).into(),
                possible: analysis.totals.of(LeakKind::PossiblyLost).into(),
                reachable: analysis.totals.of(LeakKind::StillReachable).into(),
                suppressed: analysis.totals.suppressed.into(),
                heuristics: analysis.totals.by_heuristic.into(),
            },
            error_counts: ErrorCounts {
                errors: errors.errors,
                contexts: errors.contexts,
                suppressed: errors.suppressed,
                suppressed_contexts: errors.suppressed_contexts,
            },
            records: analysis.records.iter().map(record).collect(),
            errors: analysis.misuses.iter().map(misuse).collect(),
            witness: (analysis.witness.tool != leakscope_model::Tool::Leakscope)
                .then(|| Witness { name: analysis.witness.tool.name(), version: &analysis.witness.version }),
            memory_errors: analysis.memory_errors.iter().map(memory_error).collect(),
            intervals: analysis.intervals.iter().map(IntervalView::new).collect(),
            mtrace_log: LogView::new(analysis),
            suppressions: suppressions(analysis),
            lost: Lost {
                sites: lost.sites,
                nodes: lost.nodes,
                counters: lost.counters,
                blocks: lost.blocks,
                deep_stacks: lost.deep_stacks,
                broken_stacks: lost.broken_stacks,
                modules: lost.modules,
                misuses: lost.misuses,
                threads: lost.threads,
                intervals: lost.intervals,
            },
            problems: &analysis.problems,
            series: analysis.series.iter().map(|sample| moment(analysis, sample)).collect(),
        }
    }
}

fn process(analysis: &Analysis) -> Process<'_> {
    let process = &analysis.process;
    let end = match analysis.end {
        End::Unknown => EndView { kind: "unknown", status: None, signal: None, signal_name: None },
        End::Running => EndView { kind: "running", status: None, signal: None, signal_name: None },
        End::Exec => EndView { kind: "exec", status: None, signal: None, signal_name: None },
        End::Exited(status) => EndView { kind: "exited", status: Some(status), signal: None, signal_name: None },
        End::Signalled(signal) => {
            EndView { kind: "signalled", status: None, signal: Some(signal), signal_name: Some(signal_name(signal)) }
        }
    };
    Process {
        pid: process.pid,
        parent_pid: process.parent_pid,
        origin: match process.origin {
            Origin::Start => "start",
            Origin::Fork => "fork",
            Origin::Exec => "exec",
        },
        state: match process.state {
            State::New => "new",
            State::Running => "running",
            State::Ending => "ending",
            State::Ended => "ended",
            State::Failed => "failed",
        },
        executable: &process.executable,
        command_line: &process.command_line,
        failure: some_if(process.failure.as_str()),
        start_unix_ns: process.start_realtime_ns,
        duration_ns: process.end_monotonic_ns.saturating_sub(process.start_monotonic_ns),
        end,
        sample_bytes: process.sample_bytes,
        max_frames: process.max_frames,
    }
}

fn options(analysis: &Analysis) -> Options {
    let options = &analysis.options;
    Options {
        leak_check: match options.leak_check {
            LeakCheck::No => "no",
            LeakCheck::Summary => "summary",
            LeakCheck::Full => "full",
        },
        show_leak_kinds: kinds(options.show_leak_kinds),
        errors_for_leak_kinds: kinds(options.errors_for_leak_kinds),
        leak_resolution: match options.leak_resolution {
            Resolution::Low => "low",
            Resolution::Med => "med",
            Resolution::High => "high",
        },
        num_callers: options.num_callers,
        show_below_main: options.show_below_main,
    }
}

fn outcome(analysis: &Analysis) -> OutcomeView<'_> {
    match &analysis.outcome {
        Outcome::Classified(check) => OutcomeView {
            classified: true,
            reason: None,
            check: Some(Check {
                number: check.number,
                trigger: match check.trigger {
                    CheckTrigger::Exit => "exit",
                    CheckTrigger::QuickExit => "quick_exit",
                    CheckTrigger::FatalSignal => "fatal_signal",
                    CheckTrigger::Exec => "exec",
                    CheckTrigger::OnDemand => "on_demand",
                },
                status: check.status,
                root_bytes: check.root_bytes,
                unreadable_bytes: check.unreadable_bytes,
                threads_seen: check.threads_seen,
                threads_unseen: check.threads_unseen,
                pause_ns: check.pause_ns,
                check_ns: check.check_ns,
                lost_records: check.lost_records,
                freeres: check.freeres,
            }),
        },
        Outcome::NotClassified(reason) => OutcomeView { classified: false, reason: Some(reason.as_str()), check: None },
        Outcome::NotChecked => OutcomeView { classified: false, reason: Some("no leak check was made"), check: None },
    }
}

fn record(record: &LossRecord) -> Record<'_> {
    Record {
        number: record.number,
        kind: record.kind.map(LeakKind::option_word),
        bytes: record.bytes,
        blocks: record.blocks,
        indirect_bytes: record.indirect_bytes,
        indirect_blocks: record.indirect_blocks,
        function: record.function.symbol(),
        fingerprint: record.fingerprint.to_string(),
        shown: record.shown,
        is_error: record.is_error,
        suppressed_by: record.suppressed_by.map(|rule| rule.0),
        addresses: record.addresses.iter().map(|&address| hex(address)).collect(),
        heuristics: record.heuristics.into(),
        site: &record.totals,
        notes: &record.notes,
        stack: stack(&record.stack),
    }
}

pub(crate) fn stack(stack: &Stack) -> StackView<'_> {
    StackView {
        shown: stack.frames().len(),
        cut: stack.is_cut(),
        broken: stack.is_broken(),
        frames: stack.all_frames().iter().map(|shared| frame(shared)).collect(),
    }
}

fn frame(frame: &Frame) -> FrameView<'_> {
    FrameView {
        address: hex(frame.ip),
        module: some_if(&*frame.object),
        module_offset: hex(frame.svma),
        function: frame.function.as_deref(),
        linkage_name: frame.linkage_name.as_deref(),
        directory: frame.directory.as_deref(),
        file: frame.file.as_deref(),
        line: some_if(frame.line),
        column: some_if(frame.column),
        inlined: frame.inlined,
    }
}

fn memory_error(error: &MemoryError) -> MemoryErrorView<'_> {
    MemoryErrorView {
        kind: error.kind.name(),
        access: match error.access {
            Access::None => None,
            Access::Read => Some("read"),
            Access::Write => Some("write"),
        },
        access_bytes: error.access_bytes,
        address: hex(error.address),
        message: &error.message,
        count: error.count,
        thread: error.thread,
        tid: error.tid,
        fingerprint: error.fingerprint.to_string(),
        suppressed_by: error.suppressed_by.map(|rule| rule.0),
        stack: stack(&error.stack),
        auxiliary: error
            .auxiliary
            .iter()
            .map(|(label, other)| AuxiliaryView { label, stack: other.as_ref().map(stack) })
            .collect(),
    }
}

fn misuse(error: &MisuseError) -> Misuse<'_> {
    Misuse {
        kind: match error.kind {
            MisuseKind::DoubleFree => "double_free",
            MisuseKind::InvalidFree => "invalid_free",
            MisuseKind::InteriorFree => "interior_free",
            MisuseKind::MismatchedFree => "mismatched_free",
            MisuseKind::InvalidRealloc => "invalid_realloc",
            MisuseKind::Overrun => "overrun",
            MisuseKind::FishySize => "fishy_size",
            MisuseKind::ReallocZero => "realloc_zero",
        },
        count: error.count,
        thread: error.thread,
        tid: error.tid,
        function: error.function.symbol(),
        address: hex(error.address),
        requested_bytes: error.requested_bytes,
        overrun_offset: error.overrun_offset,
        fingerprint: error.fingerprint.to_string(),
        suppressed_by: error.suppressed_by.map(|rule| rule.0),
        stack: stack(&error.stack),
        block: error.block.as_ref().map(|block| Block {
            start: hex(block.start),
            bytes: block.bytes,
            allocation: block.allocation.as_ref().map(stack),
            free: block.free.as_ref().map(stack),
        }),
    }
}

fn suppressions(analysis: &Analysis) -> Vec<Suppression<'_>> {
    let used = analysis.used_suppressions.iter();
    used.map(|used| Suppression {
        rule: used.rule.0,
        name: &used.name,
        file: &used.file,
        line: used.line,
        count: used.count,
        blocks: used.blocks,
        bytes: used.bytes,
    })
    .collect()
}

fn moment(analysis: &Analysis, sample: &Sample) -> Moment {
    Moment {
        time_ns: sample.monotonic_ns.saturating_sub(analysis.process.start_monotonic_ns),
        live_bytes: sample.live_bytes,
        live_blocks: sample.live_blocks,
        resident_bytes: sample.resident_bytes,
    }
}
