//! Intervals between `mtrace()` and `muntrace()`, and what is to be said of the log: words and JSON.

use leakscope_findings::analysis::{Analysis, Interval, IntervalRecord};
use leakscope_findings::recording::IntervalEnd;
use serde::Serialize;

use crate::json::{StackView, stack};
use crate::wording::grouped;

/// The first line of an interval.
pub(crate) fn summary(interval: &Interval) -> String {
    let (allocated, live) = (interval.allocated, interval.live);
    let when = match interval.end {
        IntervalEnd::Muntrace => "live at its end",
        IntervalEnd::Program => "live at the end of the program, which ended it",
        IntervalEnd::Open => "live now: it has not ended",
    };
    format!(
        "interval {}: {} allocs, {} bytes allocated; {} bytes in {} blocks of them {when}",
        interval.number,
        grouped(allocated.blocks),
        grouped(allocated.bytes),
        grouped(live.bytes),
        grouped(live.blocks),
    )
}

/// The first line of one of its records.
pub(crate) fn record(interval: &Interval, record: &IntervalRecord, number: usize) -> String {
    format!(
        "{} bytes in {} blocks of {} allocated are live in interval {}, record {} of {}",
        grouped(record.live.bytes),
        grouped(record.live.blocks),
        grouped(record.allocated.blocks),
        interval.number,
        grouped(number as u64),
        grouped(interval.records.len() as u64),
    )
}

/// What is to be said of the log of events, one sentence each.
pub(crate) fn log_notes(analysis: &Analysis) -> Vec<String> {
    let log = &analysis.event_log;
    let mut notes = Vec::new();
    let name = if log.file.is_empty() { "the mtrace log".to_owned() } else { format!("the mtrace log {}", log.file) };
    let lines = grouped(log.lines);
    if log.errno != 0 {
        let why = std::io::Error::from_raw_os_error(i32::try_from(log.errno).unwrap_or(0));
        notes.push(format!("{name} could not be written on after {lines} lines: {why}"));
    } else if !log.file.is_empty() {
        notes.push(format!("{name} has {lines} lines; `leakscope mtrace` and glibc's mtrace script read it"));
    }
    if log.lost > 0 {
        notes.push(format!("{} events of signal handlers are missing in {name}", grouped(log.lost.into())));
    }
    let wanted = &log.wanted;
    if wanted.is_empty() {
        return notes;
    }
    notes.push(if analysis.process.sample_bytes > 0 {
        format!("MALLOC_TRACE={wanted} is set, but nothing was written to it: only a sample was recorded")
    } else if analysis.logs_whole_run() {
        format!("MALLOC_TRACE={wanted} is set, but nothing was written to it: --mtrace-log has the events")
    } else if log.file.is_empty() && log.errno == 0 {
        format!(
            "MALLOC_TRACE={wanted} is set, but the program did not call mtrace(), so nothing was written to it; \
             --mtrace-log=FILE logs any program"
        )
    } else {
        "MALLOC_TRACE is set: `leakscope run` wrote that log; without it, glibc 2.34 and later write one only with \
         LD_PRELOAD=libc_malloc_debug.so.0"
            .to_owned()
    });
    notes
}

#[derive(Serialize)]
pub(crate) struct IntervalView<'a> {
    number: u32,
    end: &'static str,
    begin_ns: u64,
    duration_ns: Option<u64>,
    allocated_bytes: u64,
    allocated_blocks: u64,
    live_bytes: u64,
    live_blocks: u64,
    begin: StackView<'a>,
    ended_at: Option<StackView<'a>>,
    records: Vec<RecordView<'a>>,
}

#[derive(Serialize)]
struct RecordView<'a> {
    live_bytes: u64,
    live_blocks: u64,
    allocated_bytes: u64,
    allocated_blocks: u64,
    function: &'static str,
    fingerprint: String,
    stack: StackView<'a>,
}

/// The log of events, as far as there is one.
#[derive(Serialize)]
pub(crate) struct LogView<'a> {
    file: Option<&'a str>,
    lines: u64,
    errno: Option<u32>,
    lost: u32,
    malloc_trace: Option<&'a str>,
}

impl<'a> IntervalView<'a> {
    pub(crate) fn new(interval: &'a Interval) -> Self {
        Self {
            number: interval.number,
            end: match interval.end {
                IntervalEnd::Muntrace => "muntrace",
                IntervalEnd::Program => "program",
                IntervalEnd::Open => "open",
            },
            begin_ns: interval.begin_ns,
            duration_ns: interval.duration_ns,
            allocated_bytes: interval.allocated.bytes,
            allocated_blocks: interval.allocated.blocks,
            live_bytes: interval.live.bytes,
            live_blocks: interval.live.blocks,
            begin: stack(&interval.begin),
            ended_at: interval.ended_at.as_ref().map(stack),
            records: interval
                .records
                .iter()
                .map(|record| RecordView {
                    live_bytes: record.live.bytes,
                    live_blocks: record.live.blocks,
                    allocated_bytes: record.allocated.bytes,
                    allocated_blocks: record.allocated.blocks,
                    function: record.function.symbol(),
                    fingerprint: record.fingerprint.to_string(),
                    stack: stack(&record.stack),
                })
                .collect(),
        }
    }
}

impl<'a> LogView<'a> {
    pub(crate) fn new(analysis: &'a Analysis) -> Option<Self> {
        let log = &analysis.event_log;
        (*log != Default::default()).then(|| Self {
            file: Some(log.file.as_str()).filter(|file| !file.is_empty()),
            lines: log.lines,
            errno: Some(log.errno).filter(|&errno| errno != 0),
            lost: log.lost,
            malloc_trace: Some(log.wanted.as_str()).filter(|wanted| !wanted.is_empty()),
        })
    }
}
