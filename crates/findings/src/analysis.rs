//! Findings out of a recording, as Memcheck makes them.
//!
//! Source of the rules: Valgrind's manual (sections 4.2 and 4.3) and the behaviour of 3.19. A stack has the
//! allocation function as frame 0 and is cut to `num_callers` addresses (an address may stand for several
//! inlined frames). Loss records merge blocks of one leak kind whose first 2, 4 or all addresses agree; they
//! are numbered smallest first. Suppressed records count neither in the totals by kind nor as errors.

mod intervals;
mod leaks;
mod memory_errors;
mod misuses;
mod stacks;

use std::sync::Arc;

use leakscope_model::{AllocFn, CheckTrigger, LeakKind, LeakKindSet, MisuseKind, Tool};

use crate::fingerprint::Fingerprint;
use crate::recording::{self, CheckState, End, Lost, ProcessFacts, ProcessRecording, Totals};
use crate::suppressions::{Error, Matcher, RuleId, Suppressions};

pub use intervals::{Interval, IntervalRecord};
pub use memory_errors::MemoryError;
pub use stacks::{Frame, Stack};

/// How much the leak check says: `--leak-check`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LeakCheck {
    /// Nothing.
    No,
    /// Totals by kind.
    #[default]
    Summary,
    /// Totals and loss records.
    Full,
}

/// How many addresses must agree for two blocks to be in one loss record: `--leak-resolution`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resolution {
    /// Two.
    Low,
    /// Four.
    Med,
    /// All of them.
    #[default]
    High,
}

/// How much of each loss record an analysis holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Detail {
    /// Everything.
    #[default]
    All,
    /// Stack, fingerprint, addresses and totals only of records that are shown or count as errors; the others have
    /// their number, kind, bytes and blocks. A compiler run has 10,000 records and shows six.
    Shown,
}

/// The user's wishes. [`Options::default`] is Memcheck's default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `--leak-check`.
    pub leak_check: LeakCheck,
    /// `--show-leak-kinds`.
    pub show_leak_kinds: LeakKindSet,
    /// `--errors-for-leak-kinds`.
    pub errors_for_leak_kinds: LeakKindSet,
    /// `--leak-resolution`.
    pub leak_resolution: Resolution,
    /// `--num-callers`: most addresses of a stack, the allocation function included.
    pub num_callers: usize,
    /// `--show-below-main`.
    pub show_below_main: bool,
    /// `--show-mismatched-frees`.
    pub show_mismatched_frees: bool,
    /// Number of the leak check to report; `None` for the last complete one.
    pub check: Option<u32>,
    /// How much of each record is wanted.
    pub detail: Detail,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            leak_check: LeakCheck::Summary,
            show_leak_kinds: LeakKindSet::DEFAULT,
            errors_for_leak_kinds: LeakKindSet::DEFAULT,
            leak_resolution: Resolution::High,
            num_callers: 12,
            show_below_main: false,
            show_mismatched_frees: true,
            check: None,
            detail: Detail::All,
        }
    }
}

/// What a report says about one process.
#[derive(Clone, Debug)]
pub struct Analysis {
    /// Version of the tool that recorded.
    pub tool_version: String,
    /// Who was recorded.
    pub process: ProcessFacts,
    /// How it ended.
    pub end: End,
    /// The wishes that this was made with.
    pub options: Options,
    /// Whether blocks are classified.
    pub outcome: Outcome,
    /// Allocations in all.
    pub heap: HeapSummary,
    /// Wrong calls, merged and in order of their first occurrence.
    pub misuses: Vec<MisuseError>,
    /// Loss records, smallest first, suppressed ones included. Of a process whose blocks are not classified,
    /// live blocks by site.
    pub records: Vec<LossRecord>,
    /// Blocks of the leak check by kind.
    pub totals: LeakTotals,
    /// Rules that hid something, in the order of the files.
    pub used_suppressions: Vec<UsedSuppression>,
    /// Errors, as Memcheck's ERROR SUMMARY counts them.
    pub errors: ErrorCounts,
    /// What could not be recorded.
    pub lost: Lost,
    /// What of the recording could not be read, one sentence each.
    pub problems: Vec<String>,
    /// The heap over time.
    pub series: Vec<recording::Sample>,
    /// Which tool saw all this.
    pub witness: recording::Witness,
    /// Memory errors that another tool found, suppressed ones included.
    pub memory_errors: Vec<MemoryError>,
    /// What happened between calls of `mtrace()` and `muntrace()`, oldest first. Their records are no loss records: a block
    /// that is live at the end of an interval may be released later.
    pub intervals: Vec<Interval>,
    /// The log of events that was written.
    pub event_log: recording::EventLog,
}

impl Analysis {
    /// Loss records that the options ask for, suppressed ones left out.
    pub fn shown_records(&self) -> impl Iterator<Item = &LossRecord> {
        self.records.iter().filter(|record| record.shown)
    }

    /// Wrong calls that are not suppressed.
    pub fn shown_misuses(&self) -> impl Iterator<Item = &MisuseError> {
        self.misuses.iter().filter(|misuse| misuse.suppressed_by.is_none())
    }

    /// Memory errors that are not suppressed.
    pub fn shown_memory_errors(&self) -> impl Iterator<Item = &MemoryError> {
        self.memory_errors.iter().filter(|error| error.suppressed_by.is_none())
    }

    /// Whether `--mtrace-log` was given.
    pub fn logs_whole_run(&self) -> bool {
        self.process.flags & leakscope_ledger::layout::flags::MTRACE_LOG != 0
    }

    /// Whether `--error-exitcode` applies.
    pub fn has_errors(&self) -> bool {
        self.errors.errors > 0
    }
}

/// Whether blocks are classified, and why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// By this leak check.
    Classified(CheckFacts),
    /// They are not; the reason completes "not classified: ", such as `the process was killed by SIGKILL`.
    NotClassified(String),
    /// Nobody asked for a leak check.
    NotChecked,
}

/// Facts about the leak check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckFacts {
    /// Its number.
    pub number: u32,
    /// What started it.
    pub trigger: CheckTrigger,
    /// Signal for `FatalSignal`, exit status for `Exit` and `QuickExit`.
    pub status: u32,
    /// Bytes of roots that were read.
    pub root_bytes: u64,
    /// Bytes that could not be read.
    pub unreadable_bytes: u64,
    /// Threads whose registers and stack were seen.
    pub threads_seen: u32,
    /// Threads whose registers are unknown.
    pub threads_unseen: u32,
    /// Nanoseconds for which the target stood still.
    pub pause_ns: u64,
    /// Nanoseconds that the check took in all.
    pub check_ns: u64,
    /// Records that did not fit.
    pub lost_records: u64,
    /// Whether libc and libstdc++ released their own blocks first.
    pub freeres: bool,
}

/// Memcheck's HEAP SUMMARY.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeapSummary {
    /// Requested bytes of live blocks.
    pub in_use_bytes: u64,
    /// Live blocks.
    pub in_use_blocks: u64,
    /// Blocks that were ever allocated.
    pub allocs: u64,
    /// Calls that released a block, or were meant to.
    pub frees: u64,
    /// Requested bytes that were ever allocated.
    pub allocated_bytes: u64,
}

/// Bytes and blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Requested bytes.
    pub bytes: u64,
    /// Blocks.
    pub blocks: u64,
}

impl Amount {
    pub(crate) fn add(&mut self, bytes: u64, blocks: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.blocks = self.blocks.saturating_add(blocks);
    }
}

/// Memcheck's LEAK SUMMARY.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeakTotals {
    /// By [`LeakKind`] as a number.
    pub by_kind: [Amount; 4],
    /// Blocks that count as reachable only by a heuristic, by `Heuristic` as a number.
    pub by_heuristic: [Amount; 4],
    /// Blocks of suppressed records, of any kind.
    pub suppressed: Amount,
}

impl LeakTotals {
    /// The total of a kind.
    pub fn of(&self, kind: LeakKind) -> Amount {
        self.by_kind[kind as usize]
    }
}

/// Blocks merged by leak kind and stack.
#[derive(Clone, Debug)]
pub struct LossRecord {
    /// From 1, smallest record first.
    pub number: u32,
    /// The kind; `None` when blocks are not classified.
    pub kind: Option<LeakKind>,
    /// Requested bytes (direct bytes).
    pub bytes: u64,
    /// Blocks.
    pub blocks: u64,
    /// Bytes that are lost only because these blocks are.
    pub indirect_bytes: u64,
    /// Blocks that are lost only because these blocks are.
    pub indirect_blocks: u64,
    /// The function that allocated.
    pub function: AllocFn,
    /// Where.
    pub stack: Stack,
    /// Identity across builds and machines.
    pub fingerprint: Fingerprint,
    /// Start addresses of some of the blocks.
    pub addresses: Vec<u64>,
    /// The rule that hides it.
    pub suppressed_by: Option<RuleId>,
    /// Whether the options ask for it and no rule hides it.
    pub shown: bool,
    /// Whether it counts as an error.
    pub is_error: bool,
    /// Blocks among them that count as reachable only by a heuristic, by `Heuristic` as a number.
    pub heuristics: [Amount; 4],
    /// What happened at its sites over the whole run.
    pub totals: Totals,
    /// What else is known of its blocks, a sentence each.
    pub notes: Vec<String>,
}

/// Equal wrong calls.
#[derive(Clone, Debug)]
pub struct MisuseError {
    /// What was wrong.
    pub kind: MisuseKind,
    /// How often.
    pub count: u64,
    /// Number of the first thread that did it.
    pub thread: u32,
    /// Its kernel thread id, 0 when unknown.
    pub tid: u32,
    /// The function that was called.
    pub function: AllocFn,
    /// Where.
    pub stack: Stack,
    /// The address that was passed.
    pub address: u64,
    /// The block concerned.
    pub block: Option<Block>,
    /// For `FishySize` the size that was asked for.
    pub requested_bytes: u64,
    /// For `Overrun`: bytes past the end at which the first changed byte lies.
    pub overrun_offset: u64,
    /// What is known of the address when it is in no block, with a stack or without.
    pub about: Vec<(Arc<str>, Option<Stack>)>,
    /// Identity across builds and machines.
    pub fingerprint: Fingerprint,
    /// The rule that hides it.
    pub suppressed_by: Option<RuleId>,
}

/// The block that a wrong call concerned.
#[derive(Clone, Debug)]
pub struct Block {
    /// Its start.
    pub start: u64,
    /// Its requested bytes.
    pub bytes: u64,
    /// Where it was allocated.
    pub allocation: Option<Stack>,
    /// Where it was first freed.
    pub free: Option<Stack>,
}

/// Memcheck's ERROR SUMMARY.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ErrorCounts {
    /// Errors, each as often as it happened.
    pub errors: u64,
    /// Distinct errors.
    pub contexts: u64,
    /// Errors that rules hid.
    pub suppressed: u64,
    /// Distinct errors that rules hid.
    pub suppressed_contexts: u64,
}

/// A rule that hid something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsedSuppression {
    /// Which.
    pub rule: RuleId,
    /// Its name.
    pub name: Arc<str>,
    /// The file it stands in.
    pub file: Arc<str>,
    /// The line of its name.
    pub line: u32,
    /// Errors and loss records that it hid.
    pub count: u64,
    /// Blocks of the loss records among them.
    pub blocks: u64,
    /// Bytes in those.
    pub bytes: u64,
}

/// What `options` and `suppressions` make of one process of a recording.
pub fn analyse(
    tool_version: &str,
    recorded: &ProcessRecording,
    options: &Options,
    suppressions: &Suppressions,
) -> Analysis {
    let stacks = stacks::Stacks::new(recorded, options);
    let mut uses = Uses::default();
    let mut matcher = Matcher::new(suppressions);
    let misuses = misuses::merge(recorded, &stacks, &mut matcher, options, &mut uses);
    let outcome = outcome(recorded, options);
    let leaks = match &outcome {
        Outcome::Classified(facts) => {
            leaks::classified(recorded, facts.number, &stacks, &mut matcher, options, &mut uses)
        }
        Outcome::NotClassified(_) => leaks::live(recorded, &stacks, options),
        Outcome::NotChecked => leaks::Leaks::default(),
    };
    let memory_errors = memory_errors::errors(recorded, &stacks, &mut matcher, &mut uses);
    let mut errors = uses.errors;
    for error in memory_errors.iter().filter(|error| error.suppressed_by.is_none()) {
        errors.errors += error.count;
        errors.contexts += 1;
    }
    for misuse in misuses.iter().filter(|misuse| misuse.suppressed_by.is_none()) {
        errors.errors += misuse.count;
        errors.contexts += 1;
    }
    let leak_errors = leaks.records.iter().filter(|record| record.is_error).count() as u64;
    errors.errors += leak_errors;
    errors.contexts += leak_errors;
    let mut problems = recorded.problems.clone();
    problems.extend(check_problems(recorded));
    Analysis {
        tool_version: tool_version.to_owned(),
        process: recorded.process.clone(),
        end: recorded.end,
        options: options.clone(),
        heap: heap_summary(recorded, &outcome),
        outcome,
        misuses,
        records: leaks.records,
        totals: leaks.totals,
        used_suppressions: uses.finish(suppressions),
        errors,
        lost: recorded.lost,
        problems,
        series: recorded.series.clone(),
        witness: recorded.witness.clone(),
        memory_errors,
        intervals: intervals::intervals(recorded, &stacks, options),
        event_log: recorded.event_log.clone(),
    }
}

/// Sites whose stacks need names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SitesToName {
    /// Of these as far as a report shows it.
    pub shown: Vec<u32>,
    /// Of these the whole stack, because rules may look at all of it.
    pub whole: Vec<u32>,
}

/// The sites whose stacks an analysis with these wishes names; numbers may repeat. Records are merged by address, so
/// that no name is needed to find out, and most rules name an object that most stacks do not pass.
pub fn sites_to_name(recorded: &ProcessRecording, options: &Options, suppressions: &Suppressions) -> SitesToName {
    let mut sites = SitesToName::default();
    let called = recorded.misuses.iter().map(|misuse| misuse.site);
    if suppressions.rules().is_empty() { &mut sites.shown } else { &mut sites.whole }.extend(called);
    sites.shown.extend(recorded.misuses.iter().flat_map(|misuse| [misuse.allocation_site, misuse.free_site]));
    sites.shown.extend(intervals::sites_to_name(recorded, options));
    match outcome(recorded, options) {
        Outcome::Classified(facts) => {
            let records = recorded.checks.iter().find(|check| check.number == facts.number);
            let records = records.and_then(|check| check.records.as_deref()).unwrap_or_default();
            let stacks = stacks::Stacks::new(recorded, options);
            let mut matcher = Matcher::before_naming(suppressions);
            for record in records {
                if matcher.find(&Error::Leak(record.kind), stacks.frames(record.site)).is_some() {
                    sites.whole.push(record.site);
                }
                if leaks::is_detailed(Some(record.kind), options) {
                    sites.shown.push(record.site);
                }
            }
        }
        Outcome::NotClassified(_) if leaks::is_detailed(None, options) => {
            let live = recorded.sites.iter().enumerate().filter(|(_, site)| site.totals.live_blocks > 0);
            sites.shown.extend(live.map(|(number, _)| number as u32));
        }
        Outcome::NotClassified(_) | Outcome::NotChecked => {}
    }
    sites
}

/// Hits by rule while an analysis is made.
#[derive(Default)]
pub(crate) struct Uses {
    by_rule: std::collections::BTreeMap<RuleId, (u64, Amount)>,
    errors: ErrorCounts,
}

impl Uses {
    pub(crate) fn hit(&mut self, rule: RuleId, count: u64, amount: Amount) {
        let entry = self.by_rule.entry(rule).or_default();
        entry.0 += count;
        entry.1.add(amount.bytes, amount.blocks);
    }

    pub(crate) fn suppressed_error(&mut self, count: u64) {
        self.errors.suppressed += count;
        self.errors.suppressed_contexts += 1;
    }

    fn finish(self, suppressions: &Suppressions) -> Vec<UsedSuppression> {
        self.by_rule
            .into_iter()
            .filter_map(|(id, (count, amount))| {
                let rule = suppressions.rule(id)?;
                Some(UsedSuppression {
                    rule: id,
                    name: rule.name.clone(),
                    file: rule.file.clone(),
                    line: rule.line,
                    count,
                    blocks: amount.blocks,
                    bytes: amount.bytes,
                })
            })
            .collect()
    }
}

/// Which check to report, or why there is none.
fn outcome(recorded: &ProcessRecording, options: &Options) -> Outcome {
    let check = match options.check {
        Some(number) => recorded.checks.iter().find(|check| check.number == number && check.records.is_some()),
        None => recorded.last_complete_check().filter(|check| !is_stale(check, recorded)),
    };
    if let Some(check) = check {
        return Outcome::Classified(CheckFacts {
            number: check.number,
            trigger: check.trigger,
            status: check.status,
            root_bytes: check.root_bytes,
            unreadable_bytes: check.unreadable_bytes,
            threads_seen: check.threads_seen,
            threads_unseen: check.threads_unseen,
            pause_ns: check.pause_ns,
            check_ns: check.check_ns,
            lost_records: check.lost_records,
            freeres: check.freeres,
        });
    }
    let given_up = recorded.checks.iter().rev().find(|check| check.state == CheckState::Failed);
    let reason = match recorded.end {
        _ if options.check.is_some() => "the recording has no such leak check".to_owned(),
        End::Signalled(signal) if recorded.process.state == recording::State::New => {
            format!("the process was killed by {} before it began to record", signal_name(signal))
        }
        End::Signalled(signal) => format!("the process was killed by {}", signal_name(signal)),
        _ if given_up.is_some() => {
            format!("the leak check was given up: {}", given_up.map_or("", |check| &check.failure))
        }
        _ if recorded.witness.tool != Tool::Leakscope => {
            // A report of errors alone says nothing of live blocks.
            if recorded.sites.iter().all(|site| site.totals.live_blocks == 0) {
                return Outcome::NotChecked;
            }
            format!("{} told nothing of how blocks can be reached", recorded.witness.tool.name())
        }
        _ if recorded.process.state == recording::State::Ended => return Outcome::NotChecked,
        End::Running => "the process is still running".to_owned(),
        End::Exec => "the process replaced itself by exec before a leak check".to_owned(),
        End::Exited(_) | End::Unknown => match recorded.process.state {
            recording::State::Failed => format!("recording could not start: {}", recorded.process.failure),
            recording::State::New => "the process never began to record".to_owned(),
            recording::State::Ending => "the process ended during the leak check".to_owned(),
            recording::State::Running | recording::State::Ended => "the process ended before a leak check".to_owned(),
        },
    };
    Outcome::NotClassified(reason)
}

/// Whether a check was made on demand and the process has gone on since, to an end without a check.
fn is_stale(check: &recording::Check, recorded: &ProcessRecording) -> bool {
    check.trigger == CheckTrigger::OnDemand
        && matches!(recorded.end, End::Signalled(_) | End::Exited(_) | End::Exec)
        && recorded.process.state != recording::State::Ended
}

/// Failed and partial checks, as sentences.
fn check_problems(recorded: &ProcessRecording) -> Vec<String> {
    recorded
        .checks
        .iter()
        .filter_map(|check| match check.state {
            CheckState::Failed => Some(format!("leak check {} was given up: {}", check.number, check.failure)),
            CheckState::Running => Some(format!("leak check {} did not come to its end", check.number)),
            CheckState::Complete => None,
        })
        .collect()
}

fn heap_summary(recorded: &ProcessRecording, outcome: &Outcome) -> HeapSummary {
    let mut sum = HeapSummary::default();
    for site in &recorded.sites {
        let totals = &site.totals;
        sum.allocs = sum.allocs.wrapping_add(totals.allocated_blocks);
        sum.frees = sum.frees.wrapping_add(totals.freed_blocks);
        sum.allocated_bytes = sum.allocated_bytes.wrapping_add(totals.allocated_bytes);
        sum.in_use_blocks = sum.in_use_blocks.saturating_add(totals.live_blocks);
        sum.in_use_bytes = sum.in_use_bytes.saturating_add(totals.live_bytes);
    }
    // Memcheck counts calls: those that released nothing are frees too.
    for misuse in &recorded.misuses {
        if matches!(misuse.kind, MisuseKind::DoubleFree | MisuseKind::InvalidFree | MisuseKind::InteriorFree) {
            sum.frees = sum.frees.wrapping_add(u64::from(misuse.count));
        }
    }
    // What was live when the check ran is the number that its records add up to; the process may have
    // gone on to allocate or release (libc's own buffers) since.
    if let Outcome::Classified(facts) = outcome
        && let Some(check) = recorded.checks.iter().find(|check| check.number == facts.number)
    {
        sum.in_use_blocks = check.blocks;
        sum.in_use_bytes = check.bytes;
    }
    sum
}

/// The name of a signal on Linux x86-64, such as `SIGSEGV`.
pub fn signal_name(signal: i32) -> String {
    const NAMES: [&str; 32] = [
        "",
        "SIGHUP",
        "SIGINT",
        "SIGQUIT",
        "SIGILL",
        "SIGTRAP",
        "SIGABRT",
        "SIGBUS",
        "SIGFPE",
        "SIGKILL",
        "SIGUSR1",
        "SIGSEGV",
        "SIGUSR2",
        "SIGPIPE",
        "SIGALRM",
        "SIGTERM",
        "SIGSTKFLT",
        "SIGCHLD",
        "SIGCONT",
        "SIGSTOP",
        "SIGTSTP",
        "SIGTTIN",
        "SIGTTOU",
        "SIGURG",
        "SIGXCPU",
        "SIGXFSZ",
        "SIGVTALRM",
        "SIGPROF",
        "SIGWINCH",
        "SIGIO",
        "SIGPWR",
        "SIGSYS",
    ];
    match usize::try_from(signal).ok().and_then(|number| NAMES.get(number)) {
        Some(name) if !name.is_empty() => (*name).to_owned(),
        _ if (34..=64).contains(&signal) => format!("SIGRT{}", signal - 32),
        _ => format!("signal {signal}"),
    }
}
