//! What changed between two recordings, by fingerprint.
//!
//! Where both are classified, the loss records that the options show are compared; else live blocks by site, which
//! every recording has. Several records with one fingerprint (two calls in one function, several processes) add up
//! on each side first. A definitely lost record counts with what hangs on it, unless indirectly lost records are
//! compared by themselves. Growth is not a leak kind: it says that a site holds more than it did.

use std::collections::HashMap;

use leakscope_model::LeakKind;

use crate::analysis::{Amount, Analysis, LossRecord, Outcome, Stack};
use crate::fingerprint::Fingerprint;

/// What was compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// Loss records of the kinds that the options show.
    Leaks,
    /// Live blocks by site: at least one side is not classified.
    Live,
}

/// What happened to a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// It is in the second recording only.
    New,
    /// It holds more bytes, or as many bytes in more blocks.
    Grown,
    /// It holds fewer.
    Shrunk,
    /// It is in the first recording only.
    Gone,
}

impl Change {
    /// In the order of a report.
    pub const ALL: [Self; 4] = [Self::New, Self::Grown, Self::Shrunk, Self::Gone];

    /// One word.
    pub fn word(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Grown => "grown",
            Self::Shrunk => "shrunk",
            Self::Gone => "gone",
        }
    }
}

/// A site that is not as it was.
#[derive(Clone, Debug)]
pub struct SiteChange {
    /// Its identity.
    pub fingerprint: Fingerprint,
    /// What happened.
    pub change: Change,
    /// What it held.
    pub before: Amount,
    /// What it holds.
    pub after: Amount,
    /// The worst kind of its records, on the side that has it last; `None` when live blocks are compared.
    pub kind: Option<LeakKind>,
    /// Where, of the largest record on the side that has it last.
    pub stack: Stack,
}

impl SiteChange {
    /// Bytes more than before.
    pub fn bytes(&self) -> i128 {
        i128::from(self.after.bytes) - i128::from(self.before.bytes)
    }

    /// Blocks more than before.
    pub fn blocks(&self) -> i128 {
        i128::from(self.after.blocks) - i128::from(self.before.blocks)
    }
}

/// The difference of two recordings.
#[derive(Clone, Debug)]
pub struct Diff {
    /// What was compared.
    pub basis: Basis,
    /// All sites that changed: new, grown, shrunk, gone; the largest change first within each.
    pub sites: Vec<SiteChange>,
    /// Sites that are as they were.
    pub unchanged: usize,
    /// Everything that was compared, in the first recording.
    pub before: Amount,
    /// Everything that was compared, in the second.
    pub after: Amount,
}

impl Diff {
    /// Whether something is new or has grown.
    pub fn is_worse(&self) -> bool {
        self.sites.iter().any(|site| matches!(site.change, Change::New | Change::Grown))
    }
}

/// One side, added up.
#[derive(Default)]
struct Side<'a> {
    sites: HashMap<Fingerprint, Entry<'a>>,
    total: Amount,
}

struct Entry<'a> {
    amount: Amount,
    largest: &'a LossRecord,
    kind: Option<LeakKind>,
}

/// Compares the processes of one recording with those of another.
pub fn diff(before: &[Analysis], after: &[Analysis]) -> Diff {
    let is_classified = |analysis: &Analysis| matches!(analysis.outcome, Outcome::Classified(_));
    let basis = if before.iter().chain(after).all(is_classified) { Basis::Leaks } else { Basis::Live };
    let (before, after) = (side(before, basis), side(after, basis));
    let mut sites = Vec::new();
    let mut unchanged = 0;
    for (&fingerprint, entry) in &after.sites {
        let was = before.sites.get(&fingerprint).map(|entry| entry.amount);
        let before = was.unwrap_or_default();
        let change = match (entry.amount.bytes, entry.amount.blocks).cmp(&(before.bytes, before.blocks)) {
            _ if was.is_none() => Change::New,
            std::cmp::Ordering::Greater => Change::Grown,
            std::cmp::Ordering::Less => Change::Shrunk,
            std::cmp::Ordering::Equal => {
                unchanged += 1;
                continue;
            }
        };
        sites.push(site_change(fingerprint, change, before, entry.amount, entry));
    }
    for (&fingerprint, entry) in before.sites.iter().filter(|(fingerprint, _)| !after.sites.contains_key(fingerprint)) {
        sites.push(site_change(fingerprint, Change::Gone, entry.amount, Amount::default(), entry));
    }
    sites.sort_by_key(|site| {
        let (bytes, blocks) = (site.bytes().unsigned_abs(), site.blocks().unsigned_abs());
        (site.change, std::cmp::Reverse((bytes, blocks)), site.fingerprint)
    });
    Diff { basis, sites, unchanged, before: before.total, after: after.total }
}

fn site_change(fingerprint: Fingerprint, change: Change, before: Amount, after: Amount, of: &Entry<'_>) -> SiteChange {
    SiteChange { fingerprint, change, before, after, kind: of.kind, stack: of.largest.stack.clone() }
}

fn side(analyses: &[Analysis], basis: Basis) -> Side<'_> {
    let mut side = Side::default();
    for analysis in analyses {
        let kinds = analysis.options.show_leak_kinds;
        for record in &analysis.records {
            if record.suppressed_by.is_some() {
                continue;
            }
            let mut amount = Amount { bytes: record.bytes, blocks: record.blocks };
            if basis == Basis::Leaks {
                let Some(kind) = record.kind.filter(|&kind| kinds.contains(kind)) else { continue };
                if kind == LeakKind::DefinitelyLost && !kinds.contains(LeakKind::IndirectlyLost) {
                    add(&mut amount, Amount { bytes: record.indirect_bytes, blocks: record.indirect_blocks });
                }
            }
            add(&mut side.total, amount);
            let kind = record.kind.filter(|_| basis == Basis::Leaks);
            let entry = side.sites.entry(record.fingerprint).or_insert(Entry {
                amount: Amount::default(),
                largest: record,
                kind,
            });
            add(&mut entry.amount, amount);
            entry.kind = entry.kind.max(kind);
            if record.bytes > entry.largest.bytes {
                entry.largest = record;
            }
        }
    }
    side
}

fn add(sum: &mut Amount, amount: Amount) {
    sum.bytes = sum.bytes.saturating_add(amount.bytes);
    sum.blocks = sum.blocks.saturating_add(amount.blocks);
}
