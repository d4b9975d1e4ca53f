//! What a program did between `mtrace()` and `muntrace()`, and the log that was written of it.

use serde::{Deserialize, Serialize};

/// What ended an interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum IntervalEnd {
    /// A call of `muntrace()`.
    Muntrace,
    /// The end of the program.
    Program,
    /// Nothing: the program still ran, or was killed in it.
    #[default]
    Open,
}

/// An interval. Only blocks that were allocated in it count; "live" is at its end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interval {
    /// Its number, from 0.
    pub number: u32,
    /// What ended it.
    pub end: IntervalEnd,
    /// Site with the stack of the call of `mtrace()`.
    pub begin_site: u32,
    /// Site with the stack of the call of `muntrace()`, 0 when there was none.
    pub end_site: u32,
    /// CLOCK_MONOTONIC at its begin, nanoseconds.
    pub begin_ns: u64,
    /// CLOCK_MONOTONIC at its end, nanoseconds; 0 when it did not end.
    pub end_ns: u64,
    /// Blocks allocated.
    pub allocated_blocks: u64,
    /// Requested bytes in them.
    pub allocated_bytes: u64,
    /// The sites of live blocks.
    pub sites: Vec<IntervalSite>,
}

/// What a site allocated in an interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntervalSite {
    /// The site.
    pub site: u32,
    /// Blocks allocated.
    pub allocated_blocks: u64,
    /// Requested bytes in them.
    pub allocated_bytes: u64,
    /// Live blocks.
    pub live_blocks: u64,
    /// Requested bytes in them.
    pub live_bytes: u64,
}

/// The log of events that was written: `--mtrace-log`, or `MALLOC_TRACE` and a call of `mtrace()`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventLog {
    /// Its file; empty when there is none.
    pub file: String,
    /// Lines in it, as of the last flush.
    pub lines: u64,
    /// The system's number of the error that ended it early, 0 when none did.
    pub errno: u32,
    /// Events that are missing in it.
    pub lost: u32,
    /// What the program's `MALLOC_TRACE` says; empty when it is not set.
    pub wanted: String,
}
