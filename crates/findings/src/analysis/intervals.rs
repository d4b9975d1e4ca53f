//! Intervals between `mtrace()` and `muntrace()`: live blocks by stack.

use std::collections::HashMap;

use leakscope_model::AllocFn;

use super::stacks::{Stack, Stacks};
use super::{Amount, LeakCheck, Options, Resolution};
use crate::fingerprint::Fingerprint;
use crate::recording::{IntervalEnd, ProcessRecording};

/// What a program did between `mtrace()` and `muntrace()`. Only blocks that were allocated in it count.
#[derive(Clone, Debug)]
pub struct Interval {
    /// From 1.
    pub number: u32,
    /// What ended it.
    pub end: IntervalEnd,
    /// Where `mtrace()` was called.
    pub begin: Stack,
    /// Where `muntrace()` was called, if it was.
    pub ended_at: Option<Stack>,
    /// Nanoseconds from the start of the process to its begin.
    pub begin_ns: u64,
    /// Its length in nanoseconds; `None` when it did not end.
    pub duration_ns: Option<u64>,
    /// What was allocated in it.
    pub allocated: Amount,
    /// What of that was live at its end.
    pub live: Amount,
    /// Live blocks by stack, smallest first.
    pub records: Vec<IntervalRecord>,
}

/// Blocks of an interval with the same stack.
#[derive(Clone, Debug)]
pub struct IntervalRecord {
    /// Live at the end of the interval.
    pub live: Amount,
    /// Allocated in the interval.
    pub allocated: Amount,
    /// The function that allocated.
    pub function: AllocFn,
    /// Where.
    pub stack: Stack,
    /// That of a leak at this place.
    pub fingerprint: Fingerprint,
}

/// Whether their stacks are wanted.
fn are_detailed(options: &Options) -> bool {
    options.leak_check == LeakCheck::Full
}

/// The sites whose stacks are wanted.
pub(super) fn sites_to_name(recorded: &ProcessRecording, options: &Options) -> Vec<u32> {
    if !are_detailed(options) {
        return Vec::new();
    }
    let of = |interval: &crate::recording::Interval| {
        let live = interval.sites.iter().map(|record| record.site);
        live.chain([interval.begin_site, interval.end_site].into_iter().filter(|&site| site != 0)).collect::<Vec<_>>()
    };
    recorded.intervals.iter().flat_map(of).collect()
}

pub(super) fn intervals(recorded: &ProcessRecording, stacks: &Stacks<'_>, options: &Options) -> Vec<Interval> {
    recorded.intervals.iter().map(|interval| one(recorded, interval, stacks, options)).collect()
}

fn one(
    recorded: &ProcessRecording,
    interval: &crate::recording::Interval,
    stacks: &Stacks<'_>,
    options: &Options,
) -> Interval {
    let mut live = Amount::default();
    interval.sites.iter().for_each(|site| live.add(site.live_bytes, site.live_blocks));
    let caller = |site: u32| stacks.bare(recorded.sites.get(site as usize).map_or(0, |site| site.leaf));
    let ended = interval.end != IntervalEnd::Open;
    Interval {
        number: interval.number.saturating_add(1),
        end: interval.end,
        begin: caller(interval.begin_site),
        ended_at: (interval.end == IntervalEnd::Muntrace).then(|| caller(interval.end_site)),
        begin_ns: interval.begin_ns.saturating_sub(recorded.process.start_monotonic_ns),
        duration_ns: ended.then(|| interval.end_ns.saturating_sub(interval.begin_ns)),
        allocated: Amount { bytes: interval.allocated_bytes, blocks: interval.allocated_blocks },
        live,
        records: if are_detailed(options) { records(interval, stacks, options) } else { Vec::new() },
    }
}

fn records(interval: &crate::recording::Interval, stacks: &Stacks<'_>, options: &Options) -> Vec<IntervalRecord> {
    let addresses = match options.leak_resolution {
        Resolution::Low => 2,
        Resolution::Med => 4,
        Resolution::High => usize::MAX,
    };
    let mut known: HashMap<(AllocFn, Vec<u32>), usize> = HashMap::new();
    let mut merged: Vec<(Vec<u32>, Amount, Amount)> = Vec::new();
    for site in &interval.sites {
        let next = merged.len();
        let at = *known.entry(stacks.key(site.site, addresses)).or_insert(next);
        if at == next {
            merged.push(Default::default());
        }
        let (sites, live, allocated) = &mut merged[at];
        sites.push(site.site);
        live.add(site.live_bytes, site.live_blocks);
        allocated.add(site.allocated_bytes, site.allocated_blocks);
    }
    // As loss records are sorted.
    merged.sort_by_key(|(sites, live, _)| (live.bytes, live.blocks, sites.first().copied()));
    merged
        .into_iter()
        .map(|(sites, live, allocated)| {
            let first = sites.first().copied().unwrap_or_default();
            IntervalRecord {
                live,
                allocated,
                function: stacks.function(first),
                stack: stacks.stack(first),
                fingerprint: stacks.leak_fingerprint(&sites),
            }
        })
        .collect()
}
