//! What must fail a build: findings that nobody has set aside, ceilings and budgets that are exceeded.
//!
//! Findings of all processes are merged by fingerprint, as in [`crate::diff`]: their bytes and blocks add up, and a
//! definitely lost record counts with what hangs on it, unless indirectly lost ones are judged by themselves. So the
//! recordings of a suite that ran in several parts are judged as if it had run at once.

use std::collections::btree_map::Entry as Slot;
use std::collections::{BTreeMap, BTreeSet};

use jiff::civil::Date;
use leakscope_model::{LeakKind, LeakKindSet};

use crate::analysis::{Amount, Analysis, Frame, Outcome, Stack};
use crate::baseline::{Baseline, Entry, printable};
use crate::diff::diff;
use crate::fingerprint::{Fingerprint, call_path};
use crate::suppressions::health::RuleHealth;

/// What must fail: `--fail-on`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailOn {
    /// Leaks of these kinds.
    pub kinds: LeakKindSet,
    /// Live blocks of processes that are not classified.
    pub live: bool,
    /// Wrong calls to the allocator and other memory errors.
    pub errors: bool,
    /// More than the baseline's ceiling.
    pub growth: bool,
}

impl Default for FailOn {
    fn default() -> Self {
        Self { kinds: LeakKindSet::DEFAULT, live: false, errors: true, growth: true }
    }
}

impl FailOn {
    /// Whether findings of this kind (a word of a baseline) are judged.
    pub fn judges(&self, kind: &str) -> bool {
        match LeakKind::ALL.into_iter().find(|leak| leak.option_word() == kind) {
            Some(leak) => self.kinds.contains(leak),
            None if kind == What::Live.word() => self.live,
            None => self.errors,
        }
    }
}

/// What a finding is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// An error, by its name.
    Error(String),
    /// A leak, of the worst kind that any process has it in.
    Leak(LeakKind),
    /// Blocks that nobody classified.
    Live,
}

impl What {
    /// One word, as it stands in a baseline.
    pub fn word(&self) -> &str {
        match self {
            Self::Error(name) => name,
            Self::Leak(kind) => kind.option_word(),
            Self::Live => "live",
        }
    }
}

/// A finding of all processes together.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Its identity.
    pub fingerprint: Fingerprint,
    /// What it is.
    pub what: What,
    /// Bytes and blocks. Of an error no bytes, and how often it happened.
    pub amount: Amount,
    /// Where, of the largest record.
    pub stack: Stack,
    /// Whether the first frame is the allocation function.
    has_callee: bool,
}

impl Finding {
    /// The call path without lines: `make_node < build_list < main (app.c)`.
    pub fn path(&self) -> String {
        const MOST: usize = 4;
        let mut frames: Vec<Frame> = self.stack.all_frames().iter().map(|frame| (**frame).clone()).collect();
        if let (false, Some(first)) = (self.has_callee, frames.first().cloned()) {
            frames.insert(0, first);
        }
        let path = call_path(&frames);
        let mut words = path.iter().take(MOST).cloned().collect::<Vec<_>>().join(" < ");
        if path.len() > MOST {
            words += " < ...";
        }
        let file = self.frame("").and_then(|frame| frame.file.as_deref()).map(file_name);
        match file {
            Some(file) if !file.is_empty() => format!("{words} ({file})"),
            _ => words,
        }
    }

    /// The frame to look at: the innermost one of sources below `root` (empty for none), else outside of what compilers,
    /// the system and package managers bring along, else the innermost below the allocation function.
    pub fn frame(&self, root: &str) -> Option<&Frame> {
        const FOREIGN: [&str; 4] = ["/usr/", "/rustc/", "/.cargo/registry/", "/rustlib/"];
        let called = || self.stack.frames().iter().filter(|frame| !frame.hook).map(|frame| &**frame);
        let placed = || called().filter_map(|frame| Some((frame, path(frame)?))).filter(|(frame, _)| frame.line > 0);
        let is_foreign = |path: &str| !path.starts_with('/') || FOREIGN.iter().any(|part| path.contains(part));
        placed()
            .find(|(_, path)| below(path, root).is_some())
            .or_else(|| placed().find(|(_, path)| !is_foreign(path)))
            .or_else(|| placed().next())
            .map(|(frame, _)| frame)
            .or_else(|| called().next())
    }

    /// Where, in one line that holds no control character: `make_node (src/app.c:10)`.
    pub fn place(&self, root: &str) -> String {
        let Some(frame) = self.frame(root) else { return "an unknown place".to_owned() };
        let code = match frame.function.as_deref() {
            Some(function) if !function.is_empty() => function.to_owned(),
            _ => format!("{}+{:#x}", file_name(&frame.object), frame.svma),
        };
        let words = match path(frame) {
            Some(path) if frame.line > 0 => format!("{code} ({}:{})", below(&path, root).unwrap_or(&path), frame.line),
            // Without lines the callers say more than the wrapper of malloc that is innermost.
            _ if frame.function.is_some() => self.path(),
            _ => code,
        };
        printable(&words)
    }
}

/// Directory and file of a frame.
fn path(frame: &Frame) -> Option<String> {
    let file = frame.file.as_deref().filter(|file| !file.is_empty())?;
    let directory = frame.directory.as_deref().unwrap_or_default().trim_end_matches('/');
    Some(if directory.is_empty() || file.starts_with('/') { file.to_owned() } else { format!("{directory}/{file}") })
}

/// The path from `root` on, if it lies below it.
fn below<'a>(path: &'a str, root: &str) -> Option<&'a str> {
    let root = root.trim_end_matches('/');
    path.strip_prefix(root)?.strip_prefix('/').filter(|_| !root.is_empty())
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The findings that `fail_on` is about, merged, errors first, then the largest. The analyses must be made with the
/// leak kinds of `fail_on` to be shown.
pub fn findings(analyses: &[Analysis], fail_on: &FailOn) -> Vec<Finding> {
    let (classified, others): (Vec<Analysis>, Vec<Analysis>) =
        analyses.iter().cloned().partition(|analysis| matches!(analysis.outcome, Outcome::Classified(_)));
    let mut found: Vec<Finding> = Vec::new();
    if fail_on.errors {
        found.extend(errors(analyses));
    }
    let leaks = diff(&[], &classified).sites.into_iter().filter_map(|site| Some((What::Leak(site.kind?), site)));
    let live = if fail_on.live { diff(&[], &others).sites } else { Vec::new() };
    // One site may be classified in one process and not in another: the classified one says more.
    let mut sites: BTreeMap<Fingerprint, Finding> = BTreeMap::new();
    for (what, site) in leaks.chain(live.into_iter().map(|site| (What::Live, site))) {
        match sites.entry(site.fingerprint) {
            Slot::Occupied(mut known) => known.get_mut().amount.add(site.after.bytes, site.after.blocks),
            Slot::Vacant(slot) => {
                let (amount, stack, fingerprint) = (site.after, site.stack, site.fingerprint);
                slot.insert(Finding { fingerprint, what, amount, stack, has_callee: true });
            }
        }
    }
    found.extend(sites.into_values());
    found.sort_by(|a, b| order(a).cmp(&order(b)));
    found
}

/// Errors first, then the most bytes.
fn order(finding: &Finding) -> impl Ord {
    let is_leak = !matches!(finding.what, What::Error(_));
    (is_leak, std::cmp::Reverse((finding.amount.bytes, finding.amount.blocks)), finding.fingerprint)
}

/// Errors of all processes that no rule hides, by fingerprint.
fn errors(analyses: &[Analysis]) -> impl Iterator<Item = Finding> {
    let mut found: BTreeMap<Fingerprint, Finding> = BTreeMap::new();
    let mut add = |fingerprint, name: String, count, stack: &Stack, has_callee| {
        let new = || {
            let what = What::Error(name);
            Finding { fingerprint, what, amount: Amount::default(), stack: stack.clone(), has_callee }
        };
        found.entry(fingerprint).or_insert_with(new).amount.add(0, count);
    };
    for analysis in analyses {
        for error in analysis.shown_misuses() {
            add(error.fingerprint, format!("{:?}", error.kind), error.count, &error.stack, true);
        }
        for error in analysis.shown_memory_errors() {
            add(error.fingerprint, error.kind.name().to_owned(), error.count, &error.stack, false);
        }
    }
    found.into_values()
}

/// Why a finding fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Nobody has set it aside.
    New,
    /// It was set aside as a block that can be reached, and is lost now.
    Worse,
    /// It is more than its ceiling.
    Grown,
    /// The day up to which it was set aside is over.
    Expired,
}

impl Reason {
    /// In the order of a report.
    pub const ALL: [Self; 4] = [Self::New, Self::Worse, Self::Grown, Self::Expired];

    /// One word.
    pub fn word(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Worse => "worse",
            Self::Grown => "grown",
            Self::Expired => "expired",
        }
    }
}

/// A finding that fails.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Which.
    pub finding: Finding,
    /// Why.
    pub reason: Reason,
    /// What the baseline has on it.
    pub entry: Option<Entry>,
}

/// What the gate says.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Findings that fail: errors first, then the largest.
    pub failures: Vec<Failure>,
    /// All leaks and live blocks that are judged, set aside or not.
    pub leaked: Amount,
    /// `--max-leaked`.
    pub most_leaked_bytes: Option<u64>,
    /// Findings that the baseline lets pass.
    pub accepted: usize,
    /// Entries of the baseline that were not found.
    pub unseen: Vec<Entry>,
    /// Rules of suppression files that hide more than they may, or longer.
    pub rules: Vec<RuleHealth>,
    /// Processes of which nobody knows what they leaked, one sentence each.
    pub unknown: Vec<String>,
}

impl Verdict {
    /// Whether nothing fails.
    pub fn passes(&self) -> bool {
        self.failures.is_empty() && !self.is_over_budget() && self.rules.is_empty()
    }

    /// Whether more is leaked than `--max-leaked`.
    pub fn is_over_budget(&self) -> bool {
        self.most_leaked_bytes.is_some_and(|most| self.leaked.bytes > most)
    }
}

/// Holds findings against a baseline and a budget. Without a baseline, a budget alone decides on leaks, and when it is
/// exceeded they all are to blame; without either, every finding is new.
pub fn judge(
    findings: Vec<Finding>,
    fail_on: &FailOn,
    baseline: Option<&Baseline>,
    most_leaked_bytes: Option<u64>,
    today: Date,
) -> Verdict {
    let mut verdict = Verdict { most_leaked_bytes, ..Verdict::default() };
    if let Some(baseline) = baseline {
        let seen: BTreeSet<Fingerprint> = findings.iter().map(|finding| finding.fingerprint).collect();
        let is_unseen = |entry: &&Entry| fail_on.judges(&entry.kind) && !seen.contains(&entry.fingerprint);
        let unseen = baseline.entries().filter(is_unseen);
        verdict.unseen = unseen.cloned().collect();
    }
    let is_leak = |finding: &Finding| !matches!(finding.what, What::Error(_));
    for finding in findings.iter().filter(|finding| is_leak(finding)) {
        verdict.leaked.add(finding.amount.bytes, finding.amount.blocks);
    }
    let is_within_budget = most_leaked_bytes.is_some() && !verdict.is_over_budget();
    for finding in findings {
        let entry = baseline.and_then(|baseline| baseline.entry(finding.fingerprint));
        let reason = match entry {
            None if baseline.is_none() && is_leak(&finding) && is_within_budget => None,
            None => Some(Reason::New),
            Some(entry) => why(&finding, entry, fail_on, today),
        };
        match reason {
            Some(reason) => verdict.failures.push(Failure { finding, reason, entry: entry.cloned() }),
            None => verdict.accepted += 1,
        }
    }
    verdict
}

/// Why a finding fails although the baseline has it.
fn why(finding: &Finding, entry: &Entry, fail_on: &FailOn, today: Date) -> Option<Reason> {
    let Amount { bytes, blocks } = finding.amount;
    if entry.is_expired(today) {
        Some(Reason::Expired)
    } else if entry.was_reachable() && matches!(finding.what, What::Leak(kind) if kind != LeakKind::StillReachable) {
        Some(Reason::Worse)
    } else if fail_on.growth && (bytes > entry.ceiling.bytes || blocks > entry.ceiling.blocks) {
        Some(Reason::Grown)
    } else {
        None
    }
}
