//! Loss records: merging, order, suppression, totals.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use leakscope_model::{AllocFn, Heuristic, LeakKind, LeakKindSet};

use super::stacks::Stacks;
use super::{Amount, Detail, LeakCheck, LeakTotals, LossRecord, Options, Resolution, Stack, Uses};
use crate::fingerprint::Fingerprint;
use crate::recording::{CheckRecord, ProcessRecording, Totals};
use crate::suppressions::{Error, Matcher};

/// Records and their totals.
#[derive(Default)]
pub(super) struct Leaks {
    pub(super) records: Vec<LossRecord>,
    pub(super) totals: LeakTotals,
}

/// A loss record while blocks are merged into it.
struct Merged {
    kind: Option<LeakKind>,
    first_site: u32,
    sites: Vec<u32>,
    direct: Amount,
    indirect: Amount,
    heuristics: [Amount; Heuristic::ALL.len()],
    addresses: Vec<u64>,
}

/// What must agree for blocks to be in one record.
type Key = (Option<LeakKind>, AllocFn, Vec<u32>);

/// Merges by key; the order of first occurrence is kept.
struct Merger<'a> {
    stacks: &'a Stacks<'a>,
    addresses: usize,
    known: HashMap<Key, usize, RandomState>,
    merged: Vec<Merged>,
}

impl<'a> Merger<'a> {
    fn new(stacks: &'a Stacks<'a>, resolution: Resolution) -> Self {
        let addresses = match resolution {
            Resolution::Low => 2,
            Resolution::Med => 4,
            Resolution::High => usize::MAX,
        };
        Self { stacks, addresses, known: HashMap::default(), merged: Vec::new() }
    }

    fn entry(&mut self, kind: Option<LeakKind>, site: u32) -> &mut Merged {
        let (function, locations) = self.stacks.key(site, self.addresses);
        let next = self.merged.len();
        let at = *self.known.entry((kind, function, locations)).or_insert(next);
        if at == next {
            self.merged.push(Merged {
                kind,
                first_site: site,
                sites: Vec::new(),
                direct: Amount::default(),
                indirect: Amount::default(),
                heuristics: Default::default(),
                addresses: Vec::new(),
            });
        }
        let merged = &mut self.merged[at];
        merged.first_site = merged.first_site.min(site);
        merged.sites.push(site);
        merged
    }

    /// Smallest first, as Memcheck sorts: all bytes, kind, blocks, age.
    fn finish(mut self) -> Vec<Merged> {
        for record in &mut self.merged {
            // A site comes once for each heuristic.
            record.sites.sort_unstable();
            record.sites.dedup();
        }
        self.merged.sort_by_key(|record| {
            let bytes = record.direct.bytes.saturating_add(record.indirect.bytes);
            (bytes, record.kind, record.direct.blocks, record.first_site)
        });
        self.merged
    }
}

/// Records of a complete leak check.
pub(super) fn classified(
    recorded: &ProcessRecording,
    check: u32,
    stacks: &Stacks<'_>,
    matcher: &mut Matcher<'_>,
    options: &Options,
    uses: &mut Uses,
) -> Leaks {
    let mut merger = Merger::new(stacks, options.leak_resolution);
    let mut totals = LeakTotals::default();
    let check = recorded.checks.iter().find(|candidate| candidate.number == check);
    for record in check.and_then(|check| check.records.as_deref()).unwrap_or_default() {
        add(merger.entry(Some(record.kind), record.site), record);
        if let Some(heuristic) = record.heuristic {
            totals.by_heuristic[heuristic as usize].add(record.bytes, record.blocks);
        }
    }
    let records = merger
        .finish()
        .into_iter()
        .enumerate()
        .map(|(i, merged)| {
            let mut record = bare_record(stacks, i, &merged);
            judge(&mut record, &merged, stacks, matcher, options, uses, &mut totals);
            let is_wanted = record.shown || record.is_error || options.detail == Detail::All;
            if is_wanted { detailed(recorded, stacks, merged, record) } else { record }
        })
        .collect();
    Leaks { records, totals }
}

fn add(merged: &mut Merged, record: &CheckRecord) {
    merged.direct.add(record.bytes, record.blocks);
    // What hangs on possibly lost and reachable blocks is classified by itself.
    if record.kind == LeakKind::DefinitelyLost {
        merged.indirect.add(record.indirect_bytes, record.indirect_blocks);
    }
    if let Some(heuristic) = record.heuristic {
        merged.heuristics[heuristic as usize].add(record.bytes, record.blocks);
    }
    merged.addresses.extend(record.addresses.iter().filter(|&&address| address != 0));
}

/// Live blocks by site, for a process without a complete leak check.
pub(super) fn live(recorded: &ProcessRecording, stacks: &Stacks<'_>, options: &Options) -> Leaks {
    let mut merger = Merger::new(stacks, options.leak_resolution);
    for (number, site) in recorded.sites.iter().enumerate() {
        if site.totals.live_blocks > 0 {
            merger.entry(None, number as u32).direct.add(site.totals.live_bytes, site.totals.live_blocks);
        }
    }
    let is_wanted = is_detailed(None, options);
    let records = merger
        .finish()
        .into_iter()
        .enumerate()
        .map(|(i, merged)| {
            let mut record = bare_record(stacks, i, &merged);
            record.shown = options.leak_check == LeakCheck::Full;
            if is_wanted { detailed(recorded, stacks, merged, record) } else { record }
        })
        .collect();
    Leaks { records, totals: LeakTotals::default() }
}

/// Whether the stacks of records of this kind are wanted, unless a rule hides them.
pub(super) fn is_detailed(kind: Option<LeakKind>, options: &Options) -> bool {
    let is_of = |kinds: LeakKindSet| kind.is_none_or(|kind| kinds.contains(kind));
    let full = options.leak_check == LeakCheck::Full;
    options.detail == Detail::All || full && (is_of(options.show_leak_kinds) || is_of(options.errors_for_leak_kinds))
}

/// What is known without a stack.
fn bare_record(stacks: &Stacks<'_>, index: usize, merged: &Merged) -> LossRecord {
    LossRecord {
        number: index as u32 + 1,
        kind: merged.kind,
        bytes: merged.direct.bytes,
        blocks: merged.direct.blocks,
        indirect_bytes: merged.indirect.bytes,
        indirect_blocks: merged.indirect.blocks,
        function: stacks.function(merged.first_site),
        fingerprint: Fingerprint::default(),
        stack: Stack::default(),
        addresses: Vec::new(),
        suppressed_by: None,
        shown: false,
        is_error: false,
        heuristics: merged.heuristics,
        totals: Totals::default(),
        notes: Vec::new(),
    }
}

/// Adds the rest.
fn detailed(recorded: &ProcessRecording, stacks: &Stacks<'_>, merged: Merged, record: LossRecord) -> LossRecord {
    let mut totals = Totals::default();
    for site in merged.sites.iter().filter_map(|&site| recorded.sites.get(site as usize)) {
        sum(&mut totals, &site.totals);
    }
    LossRecord {
        notes: merged.sites.iter().flat_map(|&site| notes(recorded, site, record.kind)).collect(),
        stack: stacks.stack(merged.first_site),
        fingerprint: stacks.leak_fingerprint(&merged.sites),
        addresses: merged.addresses,
        totals,
        ..record
    }
}

/// The notes on a site that are about a kind. They stand sorted by site.
fn notes(recorded: &ProcessRecording, site: u32, kind: Option<LeakKind>) -> impl Iterator<Item = String> {
    let first = recorded.site_notes.partition_point(|note| note.site < site);
    let of_site = recorded.site_notes[first..].iter().take_while(move |note| note.site == site);
    let is_about = move |wanted: Option<u8>| wanted.is_none_or(|wanted| kind.is_some_and(|kind| kind as u8 == wanted));
    of_site.filter(move |note| is_about(note.kind)).map(|note| note.text.clone())
}

fn sum(into: &mut Totals, from: &Totals) {
    into.allocated_blocks = into.allocated_blocks.saturating_add(from.allocated_blocks);
    into.allocated_bytes = into.allocated_bytes.saturating_add(from.allocated_bytes);
    into.freed_blocks = into.freed_blocks.saturating_add(from.freed_blocks);
    into.freed_bytes = into.freed_bytes.saturating_add(from.freed_bytes);
    into.live_blocks = into.live_blocks.saturating_add(from.live_blocks);
    into.live_bytes = into.live_bytes.saturating_add(from.live_bytes);
    into.peak_bytes = into.peak_bytes.saturating_add(from.peak_bytes);
    into.peak_blocks = into.peak_blocks.saturating_add(from.peak_blocks);
    into.temporary_blocks = into.temporary_blocks.saturating_add(from.temporary_blocks);
    into.largest_bytes = into.largest_bytes.max(from.largest_bytes);
    if into.lifetimes.len() < from.lifetimes.len() {
        into.lifetimes.resize(from.lifetimes.len(), 0);
    }
    for (into, from) in into.lifetimes.iter_mut().zip(&from.lifetimes) {
        *into = into.saturating_add(*from);
    }
}

/// Suppressed, shown, an error? And into which total.
fn judge(
    record: &mut LossRecord,
    merged: &Merged,
    stacks: &Stacks<'_>,
    matcher: &mut Matcher<'_>,
    options: &Options,
    uses: &mut Uses,
    totals: &mut LeakTotals,
) {
    let Some(kind) = record.kind else { return };
    let full = options.leak_check == LeakCheck::Full;
    let is_error = full && options.errors_for_leak_kinds.contains(kind);
    let amount = Amount { bytes: record.bytes, blocks: record.blocks };
    record.suppressed_by = matcher.find(&Error::Leak(kind), stacks.frames(merged.first_site));
    if let Some(rule) = record.suppressed_by {
        totals.suppressed.add(amount.bytes, amount.blocks);
        uses.hit(rule, 1, amount);
        if is_error {
            uses.suppressed_error(1);
        }
    } else {
        totals.by_kind[kind as usize].add(amount.bytes, amount.blocks);
        record.shown = full && options.show_leak_kinds.contains(kind);
        record.is_error = is_error;
    }
}
