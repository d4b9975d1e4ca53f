//! One pass: sample what is watched, judge it, and say what is wrong now.
//!
//! Explicit targets are read in full. Of `top = N` every name is glanced at (resident memory, which `stat` gives in the same
//! read that finds the process), and the N that have grown most are read in full and kept in the history.

use std::collections::{BTreeMap, HashMap, HashSet};

use leakscope_alerts::Finding;
use leakscope_history::{Event, Row, TargetSample, Values};
use leakscope_sampling::cgroup::{self, GroupMemory};
use leakscope_sampling::machine::{Machine, read_machine};
use leakscope_sampling::select::{Change, Lives, find_targets};
use leakscope_sampling::{Counters, Places, Process, Selector, Target, process};

use crate::config::Config;
use crate::evidence;
use crate::sites::Ledgers;
use crate::targets::{Known, Metric, values};

/// How often limits are read again, seconds.
const LIMITS_SECONDS: f64 = 600.0;
/// Processes whose page tables are walked in one pass.
const ROLLUPS: usize = 4;
/// A group this close to its limit is captured.
const NEAR_LIMIT: f64 = 0.95;
/// A machine with less than this share available is captured.
const NEAR_EMPTY: f64 = 0.03;
/// Between two captures, seconds.
const CAPTURE_SECONDS: f64 = 600.0;
/// How long a target may be without a process between two lives, seconds.
const RESTART_SECONDS: f64 = 600.0;
/// Clock ticks a second, in `/proc`: a constant of Linux's interface.
const TICKS: f64 = 100.0;

/// What came of one pass.
#[derive(Debug, Default)]
pub struct Pass {
    /// Seconds since the epoch.
    pub at: u64,
    /// For the history.
    pub samples: Vec<TargetSample>,
    /// For the history.
    pub events: Vec<Event>,
    /// All that is wrong now.
    pub findings: Vec<Finding>,
    /// What was seen near a limit, to be kept.
    pub capture: Option<String>,
    /// Targets without a process.
    pub missing: Vec<String>,
    /// Processes that have a ledger, with their targets.
    pub traced: Vec<(String, u32)>,
}

/// What is watched, and what is known of it.
pub struct Watch {
    config: Config,
    places: Places,
    lives: Lives,
    known: BTreeMap<String, Known>,
    groups: HashMap<String, GroupMemory>,
    ledgers: Ledgers,
    /// Where the round of page-table walks continues.
    rollup_at: usize,
    rollups: HashMap<u32, (u64, Counters)>,
    captured_at: f64,
    noted: HashSet<String>,
    /// Resident bytes of each name when it was glanced at first.
    first_glance: HashMap<String, f64>,
    /// What was wrong when a target was seen last, and when that was.
    recent: HashMap<String, (f64, Finding)>,
}

impl Watch {
    /// Knows nothing yet.
    pub fn new(config: Config, places: Places) -> Self {
        Self {
            config,
            places,
            lives: Lives::default(),
            known: BTreeMap::new(),
            groups: HashMap::new(),
            ledgers: Ledgers::default(),
            rollup_at: 0,
            rollups: HashMap::new(),
            captured_at: f64::MIN,
            noted: HashSet::new(),
            first_glance: HashMap::new(),
            recent: HashMap::new(),
        }
    }

    /// Continues with a target of a history: its rows, and the life that [`Watch::life_fact`] gave.
    pub fn resume(&mut self, id: &str, rows: &[Row], life: Option<&str>) {
        let manner = self.config.manner(self.config.watch.first().map_or(120, |entry| entry.warm_up_seconds));
        self.known.entry(id.to_owned()).or_insert_with(|| Known::new(manner)).resume(rows);
        let last = rows.last().map_or(0, |row| row.life);
        let mut words = life.unwrap_or_default().splitn(3, ' ');
        let main = (words.next().and_then(|word| word.parse().ok()), words.next().and_then(|word| word.parse().ok()));
        // Without a life that is known the next process seen is another one.
        let main = (main.0.unwrap_or(0), main.1.unwrap_or(0));
        self.lives.resume(id, last, main, words.next().unwrap_or_default().as_bytes().to_vec());
    }

    /// The life of a target as a text to be kept.
    pub fn life_fact(&self, id: &str) -> Option<String> {
        let (_, main, name) = self.lives.known(id)?;
        Some(format!("{} {} {}", main.0, main.1, String::from_utf8_lossy(name)))
    }

    /// Targets and what is known of them.
    pub fn known(&self) -> &BTreeMap<String, Known> {
        &self.known
    }

    /// What is watched and cannot be, said once each.
    pub fn complaints(&mut self, pass: &Pass) -> Vec<String> {
        let mut complaints = Vec::new();
        for id in &pass.missing {
            if self.noted.insert(id.clone()) {
                complaints.push(format!("{id}: no process yet; it is watched as soon as there is one"));
            }
        }
        for sample in &pass.samples {
            let is_blind = sample.values[5].is_some() && sample.values[6].is_none();
            if is_blind && self.noted.insert(format!("{}/fd", sample.target)) {
                complaints.push(format!(
                    "{}: descriptors and page tables of another user's process are not ours to see; run as root to watch them",
                    sample.target
                ));
            }
        }
        complaints
    }

    /// Samples and judges, at `seconds` since the epoch.
    pub fn pass(&mut self, seconds: f64) -> Pass {
        let mut pass = Pass { at: seconds as u64, ..Pass::default() };
        let processes = process::read_processes(&self.places).unwrap_or_default();
        let machine = read_machine(&self.places).unwrap_or_default();
        let uptime = self.places.read("/proc/uptime").and_then(|text| text.split(' ').next()?.parse::<f64>().ok());
        self.ledgers.refresh(&self.places, &processes, seconds, self.config.interval_seconds as f64);
        let mut seen = HashSet::new();
        for entry in self.config.watch.clone() {
            let mut targets = find_targets(&self.places, &entry.selector, &processes);
            if let Selector::Top(most) = entry.selector {
                targets = self.glance(targets, &processes, most);
            }
            for target in targets {
                if target.processes.is_empty() {
                    pass.missing.push(target.id);
                    continue;
                }
                if !seen.insert(target.id.clone()) {
                    continue;
                }
                let is_glance = matches!(entry.selector, Selector::Top(_));
                let Some(counters) = self.counters(&target, &processes, is_glance) else { continue };
                let Some((life, change)) = self.lives.note(&target, &processes) else { continue };
                note_change(&mut pass, &target, change);
                let main = &processes[target.processes[0]];
                let age = uptime.map_or(f64::MAX, |uptime| (uptime - main.start_ticks as f64 / TICKS).max(0.0));
                let manner = self.config.manner(entry.warm_up_seconds);
                let known = self.known.entry(target.id.clone()).or_insert_with(|| Known::new(manner));
                if seconds - known.limits_at >= LIMITS_SECONDS || change != Change::Same {
                    set_limits(known, &self.places, &target, main, entry.limit_bytes, seconds);
                }
                // Without a group of its own, what the machine still has is the limit.
                let mut values = values(&counters);
                if is_glance {
                    values[1] = None;
                }
                let memory = Metric::Memory.of(&values).unwrap_or(0.0) as u64;
                if known.limit.is_none_or(|(_, what)| what == MACHINE) && machine.total_bytes > 0 {
                    known.limit = Some((memory + machine.available_bytes, MACHINE));
                }
                known.observe(seconds, &values, life, age);
                pass.samples.push(TargetSample { target: target.id.clone(), life, values });
                let traced = target.processes.iter().map(|&index| processes[index].pid);
                let traced = traced.filter(|&pid| self.ledgers.live_bytes(pid).is_some());
                pass.traced.extend(traced.map(|pid| (target.id.clone(), pid)));
                self.note_group(&mut pass, &target, &processes, seconds);
                self.add_findings(&mut pass, &target, &processes, seconds);
            }
        }
        if self.config.kernel {
            self.kernel(&mut pass, &machine, seconds);
        }
        self.pressure(&mut pass, &machine, &processes, seconds);
        self.carry_over(&mut pass, seconds);
        pass
    }

    /// What is between two lives still has what was wrong with it: a restart does not resolve a leak.
    fn carry_over(&mut self, pass: &mut Pass, seconds: f64) {
        let sampled: HashSet<&str> = pass.samples.iter().map(|sample| sample.target.as_str()).collect();
        let gone = |target: &str| !sampled.contains(target);
        self.recent.retain(|_, (at, finding)| seconds - *at < RESTART_SECONDS && gone(&finding.target));
        let kept: Vec<Finding> = self.recent.values().map(|(_, finding)| finding.clone()).collect();
        let of_targets = pass.findings.iter().filter(|finding| !gone(&finding.target));
        self.recent.extend(of_targets.map(|finding| (finding.key.clone(), (seconds, finding.clone()))));
        pass.findings.extend(kept);
    }

    /// The names that have grown most, and what they are compared by.
    fn glance(&mut self, mut targets: Vec<Target>, processes: &[Process], most: usize) -> Vec<Target> {
        let resident = |target: &Target| -> f64 {
            target.processes.iter().map(|&index| processes[index].resident_bytes as f64).sum()
        };
        if self.first_glance.len() > 4 * targets.len() + 1000 {
            // Names that never come back: whoever makes thousands of them must not fill our memory.
            self.first_glance.clear();
        }
        for target in &targets {
            self.first_glance.entry(target.id.clone()).or_insert_with(|| resident(target));
        }
        let growth = |target: &Target| {
            let now = resident(target);
            (now - self.first_glance.get(&target.id).copied().unwrap_or(now), now)
        };
        targets.sort_by(|a, b| {
            let (a, b) = (growth(a), growth(b));
            b.0.total_cmp(&a.0).then(b.1.total_cmp(&a.1))
        });
        targets.truncate(most);
        targets
    }

    /// The sum over a target's processes; `None` when all of them are gone meanwhile.
    fn counters(&mut self, target: &Target, processes: &[Process], is_glance: bool) -> Option<Counters> {
        let mut sum: Option<Counters> = None;
        for &index in &target.processes {
            let process = &processes[index];
            let Some(mut counters) = process::read_counters(&self.places, process) else { continue };
            if !is_glance {
                if index % ROLLUPS.max(processes.len() / 8) == self.rollup_at % ROLLUPS.max(processes.len() / 8) {
                    process::read_rollup(&self.places, process.pid, &mut counters);
                    self.rollups.insert(process.pid, (process.start_ticks, counters));
                } else if let Some((start, known)) = self.rollups.get(&process.pid)
                    && *start == process.start_ticks
                {
                    counters.proportional_bytes = known.proportional_bytes;
                    counters.private_dirty_bytes = known.private_dirty_bytes;
                }
            }
            counters.live_bytes = self.ledgers.live_bytes(process.pid);
            match &mut sum {
                Some(sum) => sum.add(&counters),
                None => sum = Some(counters),
            }
        }
        self.rollup_at = self.rollup_at.wrapping_add(1);
        if self.rollups.len() > 4 * processes.len() {
            self.rollups.clear();
        }
        sum
    }

    /// Compares a group's counts with those before.
    fn note_group(&mut self, pass: &mut Pass, target: &Target, processes: &[Process], seconds: f64) {
        let Some(group) = &target.group else { return };
        let now = cgroup::read_memory(&self.places, group);
        let before = self.groups.insert(target.id.clone(), now);
        let risen = |count: fn(&GroupMemory) -> u64| before.as_ref().is_some_and(|before| count(&now) > count(before));
        let is_near = now
            .current_bytes
            .zip(now.limit_bytes)
            .is_some_and(|(current, limit)| current as f64 > limit as f64 * NEAR_LIMIT);
        if risen(|memory| memory.oom_kills) {
            pass.events.push(event(pass.at, target, "oom", "the OOM killer ended a process of the group"));
        }
        if is_near || risen(|memory| memory.oom_kills) {
            let title = evidence::group_title(&target.id, &now);
            pass.findings.push(evidence::urgent(&format!("{}/limit", target.id), &target.id, title, pass.at));
            self.capture(pass, &target.id, target.processes.iter().map(|&index| &processes[index]), seconds);
        }
    }

    fn add_findings(&mut self, pass: &mut Pass, target: &Target, processes: &[Process], _seconds: f64) {
        let Some(known) = self.known.get(&target.id) else { return };
        for metric in Metric::ALL {
            // Memory that grows says it all; the live heap is its evidence.
            let is_said = metric == Metric::Live
                && pass.findings.last().is_some_and(|finding| finding.key == format!("{}/memory", target.id));
            if is_said {
                continue;
            }
            if let Some(mut finding) = evidence::growth(&target.id, metric, known, pass.at) {
                if metric.is_bytes() {
                    let pids: Vec<u32> = target.processes.iter().map(|&index| processes[index].pid).collect();
                    evidence::add_processes(&mut finding, target, processes);
                    finding.evidence = self.ledgers.grown(&pids, finding.since as f64);
                }
                pass.findings.push(finding);
            }
        }
    }

    /// What the kernel has for itself, as targets of their own.
    fn kernel(&mut self, pass: &mut Pass, machine: &Machine, seconds: f64) {
        let manner = self.config.manner(0);
        for (id, bytes) in [
            ("kernel:slab", machine.slab_unreclaimable_bytes),
            ("kernel:vmalloc", machine.vmalloc_bytes),
            ("kernel:page-tables", machine.page_table_bytes),
            ("kernel:percpu", machine.percpu_bytes),
            ("kernel:stacks", machine.stack_bytes),
        ] {
            let mut values = Values::default();
            values[0] = Some(bytes);
            let known = self.known.entry(id.to_owned()).or_insert_with(|| Known::new(manner));
            known.limit = Some((bytes + machine.available_bytes, MACHINE));
            known.observe(seconds, &values, 0, f64::MAX);
            pass.samples.push(TargetSample { target: id.to_owned(), life: 0, values });
            if let Some(mut finding) = evidence::growth(id, Metric::Memory, known, pass.at) {
                if id == "kernel:slab" {
                    finding.details.extend(evidence::slabs(&self.places));
                }
                finding.next = "leakscope kernel status".to_owned();
                pass.findings.push(finding);
            }
        }
    }

    fn pressure(&mut self, pass: &mut Pass, machine: &Machine, processes: &[Process], seconds: f64) {
        let waits = machine.some_pressure.is_some_and(|share| share >= self.config.pressure_percent);
        let is_empty =
            machine.total_bytes > 0 && (machine.available_bytes as f64) < machine.total_bytes as f64 * NEAR_EMPTY;
        if waits || is_empty {
            let title = evidence::machine_title(machine);
            pass.findings.push(evidence::urgent("machine/pressure", "machine", title, pass.at));
            let mut largest: Vec<&Process> = processes.iter().collect();
            largest.sort_by_key(|process| std::cmp::Reverse(process.resident_bytes));
            self.capture(pass, "machine", largest.into_iter().take(20), seconds);
        }
    }

    fn capture<'a>(&mut self, pass: &mut Pass, what: &str, processes: impl Iterator<Item = &'a Process>, seconds: f64) {
        if seconds - self.captured_at >= CAPTURE_SECONDS && pass.capture.is_none() {
            self.captured_at = seconds;
            pass.capture = Some(evidence::capture(&self.places, what, processes, &mut self.ledgers));
        }
    }
}

/// The limit of what has none of its own.
const MACHINE: &str = "the machine's memory";

fn set_limits(
    known: &mut Known,
    places: &Places,
    target: &Target,
    main: &Process,
    configured: Option<u64>,
    seconds: f64,
) {
    known.limits_at = seconds;
    let group = target.group.clone().or_else(|| cgroup::read_group(places, main.pid));
    let of_group = group.and_then(|group| cgroup::read_memory(places, &group).limit_bytes);
    let (address_space, descriptors) = process::read_limits(places, main.pid);
    let candidates = [
        configured.map(|limit| (limit, "the configured limit")),
        of_group.map(|limit| (limit, "its control group's limit")),
        address_space.map(|limit| (limit, "its RLIMIT_AS")),
    ];
    known.limit = candidates.into_iter().flatten().min();
    known.descriptor_limit = descriptors;
}

fn note_change(pass: &mut Pass, target: &Target, change: Change) {
    match change {
        Change::Same | Change::New => {}
        Change::Restarted => pass.events.push(event(pass.at, target, "restart", "its oldest process is a new one")),
        Change::Replaced => pass.events.push(event(pass.at, target, "exec", "its oldest process runs another program")),
    }
}

fn event(at: u64, target: &Target, kind: &str, text: &str) -> Event {
    Event { at, target: target.id.clone(), kind: kind.to_owned(), text: text.to_owned() }
}
