//! What suppression rules really hide, so that they do not outlive their reason.
//!
//! * A rule that matched nothing is either mistyped or no longer needed.
//! * A rule is broad when it hides several findings, or names nothing but allocation functions and wildcards: it will
//!   hide the next leak too, unseen. Several findings of one module may be meant, so the words say which it is.
//! * A rule with `# leakscope: max-bytes=N` or `max-blocks=N` must not hide more than that; one with `until=DATE` is
//!   over when that day has passed, and what it hid is reported again.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use jiff::civil::Date;
use leakscope_model::AllocFn;

use super::matching::wildcard;
use super::{BUILT_IN_FILE, FramePattern, Limits, Rule, RuleId, Suppressions};
use crate::analysis::{Amount, Analysis, Stack};
use crate::fingerprint::Fingerprint;

/// What is wrong with a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ailment {
    /// It matched nothing.
    Unused,
    /// Its last day is over.
    Expired(Date),
    /// It hides more bytes or blocks than it may.
    OverBudget,
    /// It names nothing but allocation functions and wildcards.
    NamesNothing,
    /// It hides so many different findings, in so many modules.
    Broad {
        /// Findings.
        findings: usize,
        /// Modules that they are in.
        modules: usize,
    },
}

/// What a rule hides, and what is wrong with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleHealth {
    /// Its name.
    pub name: String,
    /// The file it stands in.
    pub file: String,
    /// The line of its name.
    pub line: u32,
    /// Bytes and blocks of leaks that it hides.
    pub hidden: Amount,
    /// Loss records and errors that it hides.
    pub count: u64,
    /// What it may hide at most, and how long.
    pub limits: Limits,
    /// What is wrong with it.
    pub ailments: Vec<Ailment>,
}

impl RuleHealth {
    /// Whether a gate must fail: it is over its budget or its time.
    pub fn breaks_its_word(&self) -> bool {
        self.ailments.iter().any(|ailment| matches!(ailment, Ailment::Expired(_) | Ailment::OverBudget))
    }

    /// What is wrong with it, in words.
    pub fn words(&self) -> Vec<String> {
        self.ailments.iter().map(|ailment| self.word(ailment)).collect()
    }

    fn word(&self, ailment: &Ailment) -> String {
        match ailment {
            Ailment::Unused => "matched nothing".to_owned(),
            Ailment::Expired(until) => format!("its last day was {until}"),
            Ailment::NamesNothing => {
                "over-broad: names nothing but allocation functions and wildcards, so it hides every leak".to_owned()
            }
            Ailment::Broad { findings, modules: 0 | 1 } => {
                format!("over-broad: hides {findings} different findings, all in one module")
            }
            Ailment::Broad { findings, modules } => {
                format!("over-broad: hides {findings} different findings in {modules} modules")
            }
            Ailment::OverBudget => {
                let most = |limit: Option<u64>, what| limit.map(|limit| format!("{limit} {what}"));
                let limits = [most(self.limits.most_bytes, "bytes"), most(self.limits.most_blocks, "blocks")];
                let limits = limits.into_iter().flatten().collect::<Vec<_>>().join(" and ");
                format!("hides {} bytes in {} blocks, and may hide {limits}", self.hidden.bytes, self.hidden.blocks)
            }
        }
    }
}

impl fmt::Display for RuleHealth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.name)
    }
}

/// What a rule hides, while it is added up.
#[derive(Default)]
struct Hidden {
    amount: Amount,
    count: u64,
    fingerprints: BTreeSet<Fingerprint>,
    modules: BTreeSet<Arc<str>>,
}

impl Hidden {
    fn add(&mut self, amount: Amount, count: u64, fingerprint: Fingerprint, stack: &Stack) {
        self.amount.add(amount.bytes, amount.blocks);
        self.count += count;
        self.fingerprints.insert(fingerprint);
        let site = stack.all_frames().iter().find(|frame| !frame.hook).or(stack.all_frames().first());
        self.modules.extend(site.map(|frame| frame.object.clone()));
    }
}

/// The health of each rule, in the order of the files. The analyses must be made with these `suppressions` and with
/// every detail; `expired` are those that were taken out before. Rules that are built in are left out.
pub fn health(suppressions: &Suppressions, expired: &Suppressions, analyses: &[Analysis]) -> Vec<RuleHealth> {
    let hidden = hidden(analyses);
    let mut all: Vec<RuleHealth> = Vec::new();
    // The rules of one line of LeakSanitizer's follow each other and are one for the reader.
    let mut group: Vec<(&Rule, Option<&Hidden>)> = Vec::new();
    let rules = suppressions.rules().iter().enumerate().map(|(i, rule)| (rule, hidden.get(&RuleId(i as u32))));
    for (rule, hides) in rules.filter(|(rule, _)| &*rule.file != BUILT_IN_FILE) {
        if group.first().is_some_and(|(first, _)| (&first.file, first.line) != (&rule.file, rule.line)) {
            all.push(judge(&group, false));
            group.clear();
        }
        group.push((rule, hides));
    }
    if !group.is_empty() {
        all.push(judge(&group, false));
    }
    for rule in expired.rules() {
        if !all.iter().any(|known| (known.file.as_str(), known.line) == (&*rule.file, rule.line)) {
            all.push(judge(&[(rule, None)], true));
        }
    }
    all
}

fn hidden(analyses: &[Analysis]) -> BTreeMap<RuleId, Hidden> {
    let mut hidden: BTreeMap<RuleId, Hidden> = BTreeMap::new();
    for analysis in analyses {
        for record in &analysis.records {
            let Some(rule) = record.suppressed_by else { continue };
            let amount = Amount { bytes: record.bytes, blocks: record.blocks };
            hidden.entry(rule).or_default().add(amount, 1, record.fingerprint, &record.stack);
        }
        let misuses = analysis.misuses.iter().map(|it| (it.suppressed_by, it.count, it.fingerprint, &it.stack));
        let errors = analysis.memory_errors.iter().map(|it| (it.suppressed_by, it.count, it.fingerprint, &it.stack));
        for (rule, count, fingerprint, stack) in misuses.chain(errors) {
            let Some(rule) = rule else { continue };
            hidden.entry(rule).or_default().add(Amount::default(), count, fingerprint, stack);
        }
    }
    hidden
}

/// The health of one rule, which may be written as several.
fn judge(group: &[(&Rule, Option<&Hidden>)], is_expired: bool) -> RuleHealth {
    let rule = group[0].0;
    let (mut fingerprints, mut modules) = (BTreeSet::<&Fingerprint>::new(), BTreeSet::<&Arc<str>>::new());
    let mut health = RuleHealth {
        name: rule.name.to_string(),
        file: rule.file.to_string(),
        line: rule.line,
        limits: rule.limits.clone(),
        ..RuleHealth::default()
    };
    for hides in group.iter().filter_map(|(_, hides)| *hides) {
        health.hidden.add(hides.amount.bytes, hides.amount.blocks);
        health.count += hides.count;
        fingerprints.extend(&hides.fingerprints);
        modules.extend(&hides.modules);
    }
    let Limits { most_bytes, most_blocks, until } = rule.limits;
    if is_expired {
        health.ailments.extend(until.map(Ailment::Expired));
    } else if health.count == 0 {
        health.ailments.push(Ailment::Unused);
    }
    if most_bytes.is_some_and(|most| health.hidden.bytes > most)
        || most_blocks.is_some_and(|most| health.hidden.blocks > most)
    {
        health.ailments.push(Ailment::OverBudget);
    }
    if group.iter().any(|(rule, _)| names_nothing(rule)) {
        health.ailments.push(Ailment::NamesNothing);
    } else if fingerprints.len() > 1 {
        health.ailments.push(Ailment::Broad { findings: fingerprints.len(), modules: modules.len() });
    }
    health
}

/// Whether a rule's lines all match what every leak has: wildcards, and the names of allocation functions.
fn names_nothing(rule: &Rule) -> bool {
    rule.stack.iter().all(|line| match line {
        FramePattern::AnyFrames => true,
        FramePattern::Function(text) => {
            text.trim_matches(['*', '?']).is_empty()
                || AllocFn::ALL.iter().any(|it| wildcard(text, it.symbol()) || wildcard(text, it.demangled()))
        }
        FramePattern::Object(text) | FramePattern::Path(text) | FramePattern::Source { file: text, line: None } => {
            text.trim_matches(['*', '?', '/']).is_empty() || text.contains("vgpreload_memcheck")
        }
        FramePattern::Source { .. } => false,
    })
}
