//! What `kernel trace` and `trace` share: the loop that watches, the budget, groups of sites, and where reports go.

mod events;
mod json;
mod text;

use std::collections::{BTreeMap, HashMap};
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::ArgMatches;
use leakscope_ebpf::interrupts::Interrupts;
use leakscope_ebpf::{Budget, Counters, Decision, Kind, LiveSite, Owner, SAMPLE_NS, Snapshot, Watch};
use leakscope_findings::ProcessRecording;
use leakscope_findings::recording::Sample;
use leakscope_import::TraceFacts;

use crate::flags::ViewArgs;
use crate::flags::trace::WatchArgs;
use crate::kernel::trace::{Cgroups, Kernel};
use crate::output::{Destination, Outputs, Replacement};
use crate::plan::View;
use crate::{documents, record};

pub use events::print_events;

/// Of each interval this share is measured: measuring costs something too.
const MEASURED_SHARE: u32 = 50;
/// Most sampled points of a site's growth that are kept.
const MOST_POINTS: usize = 64;

/// Where addresses get their names.
pub enum Target {
    /// The running kernel.
    Kernel(Kernel),
    /// A program: frames are named at the end.
    User,
}

/// A site's stack, cleaned and named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    /// Return addresses that belong to the site.
    pub addresses: Vec<u64>,
    /// Functions from the caller of the allocator on.
    pub names: Vec<String>,
    /// The allocation function.
    pub function: String,
    /// The innermost module, `vmlinux` for the kernel itself.
    pub module: String,
    /// Whether the mapping has a guard page.
    pub has_guard_page: bool,
    /// Whether it was allocated in an interrupt: who ran then is not to blame.
    pub is_interrupt: bool,
    /// The allocator that wanted it, where pages were allocated for another one's blocks.
    pub backs: Option<&'static str>,
}

impl Target {
    /// Learns new names, if there are any; gives whether addresses may have other ones now.
    fn refresh(&mut self) -> bool {
        match self {
            Self::Kernel(kernel) => kernel.refresh(),
            Self::User => false,
        }
    }

    fn resolve(&self, addresses: &[u64]) -> Resolved {
        match self {
            Self::Kernel(kernel) => kernel.resolve(addresses),
            Self::User => Resolved {
                addresses: addresses.to_vec(),
                names: addresses.iter().map(|address| format!("{address:#x}")).collect(),
                ..Resolved::default()
            },
        }
    }

    /// ` name` of an address, empty for none.
    pub fn name_of(&self, address: u64) -> String {
        match self {
            Self::Kernel(kernel) => kernel.name_of(address),
            Self::User => String::new(),
        }
    }
}

/// Sites with the same own stack.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// Of which memory.
    pub kind: Kind,
    /// The slab cache, empty when there is none.
    pub cache: String,
    /// Return addresses, innermost first.
    pub addresses: Vec<u64>,
    /// The program that they are of, 0 for the kernel.
    pub tgid: u32,
    /// Functions from the caller of the allocator on.
    pub names: Vec<String>,
    /// The allocation function.
    pub function: String,
    /// The innermost module.
    pub module: String,
    /// What is outstanding.
    pub live: Owner,
    /// Blocks in the table.
    pub sampled: u64,
    /// Allocated while tracing.
    pub allocated_bytes: f64,
    /// Allocated while tracing.
    pub allocated_blocks: f64,
    /// Age of the oldest, nanoseconds.
    pub oldest_ns: u64,
    /// Age of the youngest, nanoseconds.
    pub youngest_ns: u64,
    /// Who allocated most of it.
    pub owner: String,
    /// Blocks whose release was not seen, and which were taken off.
    pub missed_frees: u64,
    /// Bytes a second, once there are enough points.
    pub growth: Option<f64>,
    /// Whether it was allocated in an interrupt.
    pub is_interrupt: bool,
    /// The allocator whose blocks these pages hold.
    pub backs: Option<&'static str>,
}

impl Group {
    /// Adds what another group of the same stack has.
    pub fn merge(&mut self, other: &Self) {
        self.live.merge(&other.live);
        self.sampled += other.sampled;
        self.allocated_bytes += other.allocated_bytes;
        self.allocated_blocks += other.allocated_blocks;
        self.oldest_ns = self.oldest_ns.max(other.oldest_ns);
        self.youngest_ns = self.youngest_ns.min(other.youngest_ns);
        self.missed_frees += other.missed_frees;
        self.growth = self.growth.zip(other.growth).map(|(own, other)| own + other);
    }

    /// Who, since when, how sure: a sentence.
    pub fn note(&self) -> String {
        let mut text = String::new();
        if self.is_interrupt {
            text += "allocated in interrupts";
        } else if !self.owner.is_empty() {
            text += &format!("allocated by {}", self.owner);
        }
        let (oldest, youngest) = (self.oldest_ns / 1_000_000_000, self.youngest_ns / 1_000_000_000);
        text +=
            &if oldest == youngest { format!(", {oldest} s old") } else { format!(", {youngest} to {oldest} s old") };
        if !self.cache.is_empty() {
            text += &format!("; slab cache {}", self.cache);
        }
        if !matches!(self.module.as_str(), "" | "vmlinux") {
            text += &format!("; in module {}", self.module);
        }
        if let Some(allocator) = self.backs {
            text += &format!("; pages for blocks of {allocator}");
        }
        if self.live.bytes.variance > 0.0 {
            text += &format!("; estimated from {} samples, +-{:.0} bytes", self.sampled, self.live.bytes.margin());
        }
        match self.growth {
            Some(rate) if rate >= 1.0 => text += &format!("; growing by {rate:.0} bytes a second"),
            Some(_) => text += "; not growing",
            None => {}
        }
        if self.missed_frees > 0 {
            text += &format!("; doubtful: {} releases here were not seen", self.missed_frees);
        }
        text.trim_start_matches(", ").to_owned()
    }
}

/// What makes sites one group: kind, cache, program, stack.
type Key = (Kind, String, u32, Vec<u64>);

/// What is known at one moment.
pub struct Moment {
    /// Sites, most bytes first.
    pub groups: Vec<Group>,
    /// The tables.
    pub snapshot: Snapshot,
    /// Exact counts, and what was lost.
    pub counters: Counters,
    /// Outstanding by module.
    pub modules: Vec<(String, Owner)>,
    /// Outstanding by control group.
    pub cgroups: Vec<(String, Owner)>,
    /// Outstanding by process.
    pub processes: Vec<(String, Owner)>,
    /// Kinds that are traced.
    pub kinds: Vec<Kind>,
    /// Mean bytes between samples now.
    pub sample_bytes: u64,
    /// Since the start.
    pub elapsed: Duration,
}

/// A window of watching.
pub struct Session<'a> {
    args: &'a WatchArgs,
    /// Least age that is shown.
    pub min_age: Duration,
    budget: Option<Budget>,
    cgroups: Cgroups,
    resolved: HashMap<u32, Resolved>,
    growth: HashMap<Key, Vec<(f64, f64)>>,
    series: Vec<Sample>,
    started: Instant,
    started_realtime_ns: u64,
    /// Whether it was said that the budget cannot be kept.
    is_over: bool,
    /// What the user should know, one sentence each.
    pub notes: Vec<String>,
    /// What tracing took of the processors when it was last measured, percent.
    pub percent: Option<f64>,
}

impl<'a> Session<'a> {
    /// A session that begins now.
    pub fn new(args: &'a WatchArgs, sample_bytes: u64) -> Self {
        const USUAL_BUDGET: f64 = 2.0;
        // Who asks for everything gets it, unless he says what it may cost.
        let budget = args.max_overhead.or((sample_bytes != 0).then_some(USUAL_BUDGET));
        Self {
            args,
            min_age: args.min_age(),
            budget: budget.map(|percent| Budget::new(percent, sample_bytes)),
            cgroups: Cgroups::read(),
            resolved: HashMap::new(),
            growth: HashMap::new(),
            series: Vec::new(),
            started: Instant::now(),
            started_realtime_ns: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)),
            is_over: false,
            notes: Vec::new(),
            percent: None,
        }
    }

    /// Watches until the window ends or somebody interrupts; gives what was outstanding then.
    ///
    /// # Errors
    /// When the tracer cannot be read.
    pub fn watch(
        &mut self,
        tracer: &mut dyn Watch,
        target: &mut Target,
        interrupts: &Interrupts,
        may_draw: bool,
    ) -> Result<Moment> {
        self.notes.extend(tracer.notes().iter().cloned());
        let draws = may_draw && !self.args.once && !self.args.json && std::io::stdout().is_terminal();
        let end = (!self.args.window.is_zero()).then(|| self.started + self.args.window);
        let interval = self.args.interval.max(Duration::from_millis(200));
        loop {
            let left = end.map_or(interval, |end| end.saturating_duration_since(Instant::now()).min(interval));
            let slice = left / MEASURED_SHARE;
            let is_stopped = interrupts.wait(left - slice) || self.measure(tracer, interrupts, slice)?;
            if is_stopped || end.is_some_and(|end| Instant::now() >= end) {
                break;
            }
            let moment = self.moment(tracer, target)?;
            if draws {
                let mut out = std::io::stdout().lock();
                let screen = text::render(&moment, self, self.args.top, true);
                let screen = text::fitted(&screen, ratatui::crossterm::terminal::size().ok());
                // Home, clear: a view that stays in place.
                let _ = write!(out, "\x1b[H\x1b[2J{screen}").and_then(|()| out.flush());
            }
        }
        tracer.stop_allocations();
        let moment = self.moment(tracer, target)?;
        if draws {
            print!("\x1b[H\x1b[2J");
        }
        Ok(moment)
    }

    /// Measures what tracing costs and keeps it within the budget; gives whether somebody interrupted.
    fn measure(&mut self, tracer: &mut dyn Watch, interrupts: &Interrupts, slice: Duration) -> Result<bool> {
        let statistics = tracer.measure()?;
        let before = tracer.counters()?;
        let since = Instant::now();
        let is_stopped = interrupts.wait(slice);
        let after = tracer.counters()?;
        let elapsed = since.elapsed().as_nanos() as f64;
        drop(statistics);
        let processors = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        if elapsed < 1e6 {
            return Ok(is_stopped);
        }
        let run_ns = after.run_time_ns().saturating_sub(before.run_time_ns()) as f64;
        let percent = run_ns / (elapsed * processors) * 100.0;
        let sampled_share = after.samples_since(&before, tracer.sample_bytes()) * SAMPLE_NS / run_ns.max(1.0);
        self.percent = Some(percent);
        let Some(budget) = &mut self.budget else { return Ok(is_stopped) };
        let (sentence, rate) = match budget.decide(percent, sampled_share, tracer.sample_bytes()) {
            Decision::Keep => return Ok(is_stopped),
            Decision::SampleLess(bytes) => (
                format!("tracing took {percent:.1} % of the processors: from now on one sample in {} KiB", bytes >> 10),
                bytes,
            ),
            Decision::SampleMore(bytes) => (
                format!("tracing takes {percent:.1} % of the processors: one sample in {} KiB again", bytes >> 10),
                bytes,
            ),
            Decision::OverBudget => {
                let sentence = format!(
                    "tracing took {percent:.1} % of the processors, and fewer samples would not change that: the kernel \
                     allocates too often; trace fewer kinds of memory (--pages is the most)"
                );
                if !std::mem::replace(&mut self.is_over, true) {
                    self.say(sentence);
                }
                return Ok(is_stopped);
            }
        };
        tracer.set_sample(rate)?;
        self.say(sentence);
        Ok(is_stopped)
    }

    /// A sentence for the user, now and in the report. Of many only the last are kept.
    fn say(&mut self, sentence: String) {
        const MOST: usize = 32;
        if !std::io::stderr().is_terminal() {
            eprintln!("leakscope: {sentence}");
        }
        if self.notes.len() >= MOST {
            self.notes.remove(MOST / 2);
        }
        self.notes.push(sentence);
    }

    fn moment(&mut self, tracer: &mut dyn Watch, target: &mut Target) -> Result<Moment> {
        if target.refresh() {
            self.resolved.clear();
        }
        let target = &*target;
        let min_age_ns = u64::try_from(self.min_age.as_nanos()).unwrap_or(u64::MAX);
        let snapshot = tracer.snapshot(min_age_ns)?;
        let names = tracer.names()?;
        let groups = self.group(&snapshot, target, &names);
        let mut modules: BTreeMap<&str, Owner> = BTreeMap::new();
        for group in &groups {
            modules.entry(&group.module).or_default().merge(&group.live);
        }
        let mut modules: Vec<(String, Owner)> =
            modules.into_iter().map(|(name, owner)| (name.to_owned(), owner)).collect();
        modules.sort_by(|a, b| b.1.bytes.value.total_cmp(&a.1.bytes.value));
        let (live_bytes, live_blocks) = outstanding(&snapshot);
        self.series.push(Sample { monotonic_ns: snapshot.at_ns, live_bytes, live_blocks, resident_bytes: 0 });
        let cgroups = snapshot.cgroups.iter().map(|(id, owner)| (self.cgroups.name(*id), *owner)).collect();
        let processes = snapshot.processes.iter().map(|(tgid, owner)| (process_name(&names, *tgid), *owner)).collect();
        Ok(Moment {
            groups,
            modules,
            cgroups,
            processes,
            counters: tracer.counters()?,
            kinds: tracer.kinds().to_vec(),
            sample_bytes: tracer.sample_bytes(),
            elapsed: self.started.elapsed(),
            snapshot,
        })
    }

    /// Merges sites whose own stacks are the same, and follows their growth.
    fn group(&mut self, snapshot: &Snapshot, target: &Target, names: &BTreeMap<u32, String>) -> Vec<Group> {
        let mut groups: HashMap<Key, Group> = HashMap::new();
        for site in &snapshot.sites {
            let resolved = self.resolved.entry(site.number).or_insert_with(|| target.resolve(&site.site.addresses));
            let mut live = site.live;
            // The guard page behind a mapping is not what was asked for, and not memory.
            let guard = crate::kernel::trace::guard_bytes(resolved) * live.blocks.value;
            if site.kind == Kind::Vmalloc {
                live.bytes.value -= guard.min(live.bytes.value);
                live.usable.value -= guard.min(live.usable.value);
            }
            let key = (site.kind, site.site.cache.clone(), site.site.tgid, resolved.addresses.clone());
            match groups.get_mut(&key) {
                Some(group) => group.merge(&group_of(site, resolved, live, names)),
                None => {
                    groups.insert(key, group_of(site, resolved, live, names));
                }
            }
        }
        let now = snapshot.at_ns as f64 / 1e9;
        for (key, group) in &mut groups {
            let points = self.growth.entry(key.clone()).or_default();
            if points.len() >= MOST_POINTS {
                points.remove(1);
            }
            points.push((now, group.live.bytes.value));
            group.growth = slope(points);
        }
        let mut groups: Vec<Group> = groups.into_values().collect();
        groups.sort_by(|a, b| {
            b.live.bytes.value.total_cmp(&a.live.bytes.value).then_with(|| a.addresses.cmp(&b.addresses))
        });
        groups
    }

    /// What the recording says of the session.
    pub fn facts(&self, last: &Moment) -> TraceFacts {
        let elapsed_ns = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let mut problems = self.notes.clone();
        problems.extend(text::lost_words(last));
        TraceFacts {
            start_realtime_ns: self.started_realtime_ns,
            start_monotonic_ns: last.snapshot.at_ns.saturating_sub(elapsed_ns),
            end_monotonic_ns: last.snapshot.at_ns,
            sample_bytes: last.sample_bytes,
            series: self.series.clone(),
            problems,
            ..TraceFacts::default()
        }
    }
}

fn group_of(site: &LiveSite, resolved: &Resolved, live: Owner, names: &BTreeMap<u32, String>) -> Group {
    Group {
        kind: site.kind,
        cache: site.site.cache.clone(),
        addresses: resolved.addresses.clone(),
        tgid: site.site.tgid,
        names: resolved.names.clone(),
        function: resolved.function.clone(),
        module: resolved.module.clone(),
        live,
        sampled: site.sampled,
        allocated_bytes: site.sums.bytes,
        allocated_blocks: site.sums.blocks,
        oldest_ns: site.oldest_ns,
        youngest_ns: site.youngest_ns,
        owner: process_name(names, site.tgid),
        missed_frees: site.sums.missed_frees,
        growth: None,
        is_interrupt: resolved.is_interrupt,
        backs: resolved.backs.filter(|_| site.kind == Kind::Pages),
    }
}

/// Bytes and blocks that are outstanding; slabs are made of pages, so pages count only where nothing else is traced.
fn outstanding(snapshot: &Snapshot) -> (u64, u64) {
    let has_others = snapshot.all.keys().any(|kind| *kind != Kind::Pages);
    let counted = snapshot.all.iter().filter(|(kind, _)| !has_others || **kind != Kind::Pages);
    let sums = counted.fold((0.0, 0.0), |sums, (_, owner)| (sums.0 + owner.bytes.value, sums.1 + owner.blocks.value));
    (sums.0 as u64, sums.1 as u64)
}

fn process_name(names: &BTreeMap<u32, String>, tgid: u32) -> String {
    match (names.get(&tgid), tgid) {
        (_, 0) => "the kernel's idle task".to_owned(),
        (Some(name), _) => format!("{name} (pid {tgid})"),
        (None, _) => format!("pid {tgid}"),
    }
}

/// Least squares through the points; `None` when there are too few to tell.
fn slope(points: &[(f64, f64)]) -> Option<f64> {
    const FEWEST: usize = 4;
    if points.len() < FEWEST {
        return None;
    }
    let count = points.len() as f64;
    let (mean_x, mean_y) =
        points.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0 / count, sum.1 + point.1 / count));
    let (mut above, mut below) = (0.0, 0.0);
    for &(x, y) in points {
        above += (x - mean_x) * (y - mean_y);
        below += (x - mean_x) * (x - mean_x);
    }
    (below > 0.0).then(|| above / below)
}

/// Where reports go.
pub struct Reports {
    /// How they look.
    pub view: View,
    outputs: Outputs,
    recordings: Vec<Replacement>,
    /// Whether reports were asked for, beside our own table.
    wants_reports: bool,
}

impl Reports {
    /// Opens what the command line names.
    ///
    /// # Errors
    /// When options contradict each other or a file cannot be written.
    pub fn open(args: &ViewArgs, matches: &ArgMatches) -> Result<Self> {
        let mut view = View::new(args, matches, Destination::Stdout)?;
        let wants_reports = args.format.is_some() || args.xml || args.log_file.is_some();
        if !wants_reports {
            // Standard output is for our own table.
            view.targets.retain(|target| !matches!(target.destination, Destination::Stdout));
        }
        let mut outputs = Outputs::default();
        outputs.prepare(&view.targets)?;
        let recordings = view.recordings.iter().map(|path| Replacement::create(path)).collect::<Result<Vec<_>>>()?;
        Ok(Self { view, outputs, recordings, wants_reports })
    }

    /// Whether only findings are wanted.
    pub fn is_quiet(&self) -> bool {
        self.view.quiet
    }

    /// Whether our own table is wanted.
    pub fn wants_table(&self) -> bool {
        let has_stdout = self.view.targets.iter().any(|target| matches!(target.destination, Destination::Stdout));
        !(self.view.quiet || self.wants_reports && has_stdout)
    }

    /// Writes the reports and recordings; gives whether there are errors.
    ///
    /// # Errors
    /// When one cannot be written.
    pub fn write(&mut self, processes: Vec<ProcessRecording>) -> Result<bool> {
        let mut recording = record::empty_recording();
        recording.processes = processes;
        let mut errors = false;
        for process in &recording.processes {
            errors |= record::report(process, &recording.tool_version, &self.view, &mut self.outputs)?.has_errors();
        }
        documents::write(&recording, &self.view, leakscope_report::Metric::Leaked, &mut self.outputs)?;
        record::save(&recording, std::mem::take(&mut self.recordings))?;
        std::mem::take(&mut self.outputs).finish()?;
        Ok(errors)
    }

    /// The code to exit with.
    pub fn exit_code(&self, has_errors: bool) -> ExitCode {
        if has_errors { ExitCode::from(self.view.error_exitcode) } else { ExitCode::SUCCESS }
    }
}

/// Prints the table, or JSON, at the end.
///
/// # Errors
/// When standard output cannot be written, for other reasons than that nobody reads it.
pub fn print_last(args: &WatchArgs, reports: &Reports, last: &Moment, session: &Session<'_>) -> Result<()> {
    let text = if args.json {
        json::render(last, session)
    } else if reports.wants_table() {
        text::render(last, session, args.top, false)
    } else {
        return Ok(());
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("standard output"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_the_slope() {
        assert_eq!(slope(&[(0.0, 0.0), (1.0, 100.0), (2.0, 200.0)]), None, "three points tell nothing");
        let rate = slope(&[(0.0, 0.0), (1.0, 100.0), (2.0, 200.0), (3.0, 300.0)]).unwrap();
        assert!((rate - 100.0).abs() < 1e-9);
        let flat = slope(&[(0.0, 50.0), (1.0, 50.0), (2.0, 50.0), (3.0, 50.0)]).unwrap();
        assert!(flat.abs() < 1e-9);
    }
}
