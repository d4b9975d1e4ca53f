//! One finding, seen by several tools: findings of several processes and tools by their fingerprint.

use std::collections::BTreeMap;

use leakscope_model::LeakKind;

use crate::analysis::Analysis;
use crate::fingerprint::{Fingerprint, call_path};
use crate::recording::Witness;

/// What a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// A leak, or live blocks of one place.
    Leak,
    /// A wrong call to the allocator.
    Misuse,
    /// Another memory error.
    MemoryError,
}

/// What one tool saw of a finding, its processes added up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sight {
    /// Bytes; 0 for an error.
    pub bytes: u64,
    /// Blocks, or how often the error happened.
    pub count: u64,
    /// The worst leak kind that the tool gave, if it gives any.
    pub kind: Option<LeakKind>,
}

/// A finding with all who saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Combined {
    /// Its identity.
    pub fingerprint: Fingerprint,
    /// What it is.
    pub class: Class,
    /// The error, such as `InvalidRead`; empty for a leak.
    pub error: String,
    /// Its call path, innermost function first.
    pub path: Vec<String>,
    /// Who saw it.
    pub witnesses: BTreeMap<Witness, Sight>,
}

/// Findings of all analyses by fingerprint, those with most witnesses first, then by bytes. What a rule hides is
/// left out; so are reachable blocks, which are no finding.
pub fn combine<'a>(analyses: impl IntoIterator<Item = &'a Analysis>) -> Vec<Combined> {
    let mut found: BTreeMap<(Class, Fingerprint), Combined> = BTreeMap::new();
    let mut add = |witness: &Witness, class, error: String, fingerprint, path: Vec<String>, sight: Sight| {
        let new = || Combined { fingerprint, class, error, path, witnesses: BTreeMap::new() };
        let known = found.entry((class, fingerprint)).or_insert_with(new).witnesses.entry(witness.clone()).or_default();
        known.bytes = known.bytes.saturating_add(sight.bytes);
        known.count = known.count.saturating_add(sight.count);
        known.kind = known.kind.max(sight.kind);
    };
    for analysis in analyses {
        let path = |stack: &crate::analysis::Stack, has_callee: bool| {
            let mut frames: Vec<_> = stack.all_frames().iter().map(|frame| (**frame).clone()).collect();
            if let (false, Some(first)) = (has_callee, frames.first().cloned()) {
                frames.insert(0, first);
            }
            call_path(&frames)
        };
        let leaks = analysis.records.iter().filter(|record| record.suppressed_by.is_none());
        for record in leaks.filter(|record| record.kind != Some(LeakKind::StillReachable)) {
            let sight = Sight { bytes: record.bytes, count: record.blocks, kind: record.kind };
            let path = path(&record.stack, true);
            add(&analysis.witness, Class::Leak, String::new(), record.fingerprint, path, sight);
        }
        for error in analysis.shown_misuses() {
            let sight = Sight { bytes: 0, count: error.count, kind: None };
            let (name, path) = (format!("{:?}", error.kind), path(&error.stack, true));
            add(&analysis.witness, Class::Misuse, name, error.fingerprint, path, sight);
        }
        for error in analysis.shown_memory_errors() {
            let sight = Sight { bytes: 0, count: error.count, kind: None };
            let (name, path) = (error.kind.name().to_owned(), path(&error.stack, false));
            add(&analysis.witness, Class::MemoryError, name, error.fingerprint, path, sight);
        }
    }
    let mut found: Vec<Combined> = found.into_values().collect();
    let bytes = |finding: &Combined| finding.witnesses.values().map(|sight| sight.bytes).max().unwrap_or(0);
    found.sort_by_key(|finding| {
        (std::cmp::Reverse(finding.witnesses.len()), std::cmp::Reverse(bytes(finding)), finding.fingerprint)
    });
    found
}
