//! One pass: sample what is watched, judge it, and say what is wrong now.
//!
//! Explicit targets are read in full. Of `top = N` every name is glanced at (resident memory, which `stat` gives in the same
//! read that finds the process), and the N that have grown most are read in full and kept in the history.

use std::collections::{BTreeMap, HashMap, HashSet};

use leakscope_alerts::Finding;
use leakscope_history::{Event, Row, Site, TargetSample, Values};
use leakscope_sampling::cgroup::{self, GroupMemory};
use leakscope_sampling::machine::{Machine, read_machine};
use leakscope_sampling::select::{Change, Lives, find_targets};
use leakscope_sampling::{Counters, Places, Process, Selector, Target, process};

use crate::composition::{Candidate, Composition};
use crate::config::{Config, CorePolicy, WatchEntry};
use crate::evidence;
use crate::limits::{LIMITS_SECONDS, ProcessLimits, Room, Rooms};
use crate::sites::Ledgers;
use crate::targets::{Known, Metric, Resuming, values};

/// Processes whose page tables are walked in one pass.
const ROLLUPS: usize = 4;
/// A group or a process this close to its limit is captured.
const NEAR_LIMIT: f64 = 0.95;
/// A group or a process this close to its limit is looked at between passes.
const GUARDED: f64 = 0.75;
/// A machine with less than this share available is captured.
const NEAR_EMPTY: f64 = 0.03;
/// Between two captures, seconds.
const CAPTURE_SECONDS: f64 = 600.0;
/// How long a target may be without a process between two lives, seconds.
const RESTART_SECONDS: f64 = 600.0;
/// A target that has no process for so long is forgotten, seconds: what runs once a week is not.
pub const FORGET_SECONDS: f64 = 8.0 * 86_400.0;
/// Targets that are known at most: of names that come and go, those seen longest ago are forgotten.
const MOST_KNOWN: usize = 1000;
/// Things that were said once.
const MOST_NOTED: usize = 10_000;
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
    /// Processes of which a core is to be taken, with their targets.
    pub cores: Vec<(String, u32)>,
    /// Targets without a process.
    pub missing: Vec<String>,
    /// Targets whose processes are not ours to look into.
    pub blind: Vec<String>,
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
    composition: Composition,
    limits: ProcessLimits,
    /// Groups that are not far from their limit, and bytes that are near it.
    guarded: Vec<(String, u64)>,
    /// Likewise: processes and their limits of addresses.
    guarded_processes: Vec<Room>,
    /// Lives of which a core has been taken.
    cored: HashMap<String, u16>,
    captured_at: f64,
    noted: HashSet<String>,
    /// Resident bytes of each name when it was glanced at first.
    first_glance: HashMap<String, f64>,
    /// Groups in which the OOM killer was, and when that was seen.
    killed: HashMap<String, (f64, Finding)>,
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
            composition: Composition::default(),
            limits: ProcessLimits::default(),
            guarded: Vec::new(),
            guarded_processes: Vec::new(),
            cored: HashMap::new(),
            captured_at: f64::MIN,
            noted: HashSet::new(),
            first_glance: HashMap::new(),
            killed: HashMap::new(),
            recent: HashMap::new(),
        }
    }

    /// Continues with a target of a history: its rows, and the life that [`Watch::life_fact`] gave.
    pub fn resume(&mut self, id: &str, rows: &[Row], life: Option<&str>) {
        let mut resuming = Resuming::default();
        self.resume_rows(id, &mut resuming, rows);
        self.resume_life(id, &resuming, life);
    }

    /// Some rows of a target; `resuming` knows of those before.
    pub fn resume_rows(&mut self, id: &str, resuming: &mut Resuming, rows: &[Row]) {
        let manner = self.config.manner(self.config.watch.first().map_or(120, |entry| entry.warm_up_seconds));
        resuming.add(self.known.entry(id.to_owned()).or_insert_with(|| Known::new(manner)), rows);
    }

    /// After all rows of a target: the life that [`Watch::life_fact`] gave.
    pub fn resume_life(&mut self, id: &str, resuming: &Resuming, life: Option<&str>) {
        let mut words = life.unwrap_or_default().splitn(3, ' ');
        let main = (words.next().and_then(|word| word.parse().ok()), words.next().and_then(|word| word.parse().ok()));
        // Without a life that is known the next process seen is another one.
        let main = (main.0.unwrap_or(0), main.1.unwrap_or(0));
        self.lives.resume(id, resuming.life(), main, words.next().unwrap_or_default().as_bytes().to_vec());
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

    /// What the sites of some processes have now, as [`Ledgers::profile`] says.
    pub fn profile(&mut self, pids: &[u32]) -> Vec<Site> {
        self.ledgers.profile(pids)
    }

    /// What is watched and cannot be, said once each.
    pub fn complaints(&mut self, pass: &Pass) -> Vec<String> {
        let mut complaints = Vec::new();
        for id in &pass.missing {
            if self.noted.insert(id.clone()) {
                complaints.push(format!("{id}: no process yet; it is watched as soon as there is one"));
            }
        }
        let blind: Vec<&String> = pass.blind.iter().filter(|id| self.noted.insert(format!("{id}/fd"))).collect();
        if let Some(first) = blind.first() {
            let more = if blind.len() > 1 { format!(" and {} more", blind.len() - 1) } else { String::new() };
            complaints.push(format!(
                "{first}{more}: of another user's process only its resident memory can be seen; run as root to watch the rest"
            ));
        }
        if self.noted.len() > MOST_NOTED {
            self.noted.clear();
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
        self.composition.read(&self.places, seconds);
        self.guarded.clear();
        self.guarded_processes.clear();
        let moment = Moment { seconds, uptime, machine: &machine, processes: &processes };
        let (mut seen, mut candidates) = (HashSet::new(), Vec::new());
        for entry in self.config.watch.clone() {
            let mut targets = find_targets(&self.places, &entry.selector, &processes);
            if let Selector::Top(most) = entry.selector {
                targets = self.glance(targets, &processes, most);
            }
            for target in targets {
                if target.processes.is_empty() {
                    // The OOM killer may have ended the last one.
                    self.note_group(&mut pass, &entry, &target, 0, &moment);
                    pass.missing.push(target.id);
                } else if seen.insert(target.id.clone()) {
                    self.target(&mut pass, &entry, &target, &moment, &mut candidates);
                }
            }
        }
        self.composition.set_candidates(candidates);
        if self.config.kernel {
            self.kernel(&mut pass, &machine, seconds);
        }
        self.pressure(&mut pass, &machine, &processes, seconds);
        self.carry_over(&mut pass, seconds);
        self.limits.forget(seconds);
        self.forget(seconds);
        pass
    }

    /// Samples and judges one target.
    fn target(
        &mut self,
        pass: &mut Pass,
        entry: &WatchEntry,
        target: &Target,
        moment: &Moment<'_>,
        candidates: &mut Vec<Candidate>,
    ) {
        let Moment { seconds, processes, .. } = *moment;
        let is_glance = matches!(entry.selector, Selector::Top(_));
        let Some((counters, rooms)) = self.counters(target, processes, is_glance, seconds) else { return };
        let Some((life, change)) = self.lives.note(target, processes) else { return };
        note_change(pass, target, change);
        let main = &processes[target.processes[0]];
        let age = moment.uptime.map_or(f64::MAX, |uptime| (uptime - main.start_ticks as f64 / TICKS).max(0.0));
        let manner = self.config.manner(entry.warm_up_seconds);
        let pids = || target.processes.iter().map(|&index| processes[index].pid);
        let parts = self.composition.fresh(pids(), seconds);
        let known = self.known.entry(target.id.clone()).or_insert_with(|| Known::new(manner));
        if seconds - known.limits_at >= LIMITS_SECONDS || change != Change::Same {
            set_limits(known, &self.places, target, main, entry.limit_bytes, seconds);
            known.descriptor_limit = self.limits.of(&self.places, main, seconds).descriptors;
            if !process::is_ours_to_see(&self.places, main.pid) {
                pass.blind.push(if is_glance { "top".to_owned() } else { target.id.clone() });
            }
        }
        let mut values = values(&counters, parts);
        if is_glance {
            values[1] = None;
        }
        let memory = Metric::Memory.of(&values).unwrap_or(0.0) as u64;
        // What somebody has written down is believed rather than what the machine has.
        let of_machine = Some((memory + moment.machine.available_bytes, MACHINE))
            .filter(|_| moment.machine.total_bytes > 0 && entry.limit_bytes.is_none());
        let of_addresses = rooms.least.map(|room| (memory.saturating_add(room.left()), room.bound.words()));
        known.limit = [known.fixed_limit, of_addresses, of_machine].into_iter().flatten().min();
        known.observe(seconds, &values, life, age);
        pass.samples.push(TargetSample { target: target.id.clone(), life, values });
        let traced = pids().filter(|&pid| self.ledgers.live_bytes(pid).is_some());
        pass.traced.extend(traced.map(|pid| (target.id.clone(), pid)));
        self.note_group(pass, entry, target, life, moment);
        self.note_room(pass, entry, target, life, &rooms, moment);
        let said = pass.findings.len();
        self.add_findings(pass, target, processes);
        let key = format!("{}/{}", target.id, Metric::Memory.word());
        let is_suspect = pass.findings[said..].iter().any(|finding| finding.key == key);
        if is_suspect || !is_glance {
            candidates.extend(target.processes.iter().map(|&index| {
                let Process { pid, start_ticks, .. } = processes[index];
                Candidate { pid, start_ticks, is_suspect }
            }));
        }
    }

    /// Forgets what has not been seen for long: names come and go, and whoever makes thousands must not fill our memory.
    fn forget(&mut self, seconds: f64) {
        let oldest = seconds - FORGET_SECONDS;
        let is_full = self.known.len() > MOST_KNOWN;
        if !is_full && self.known.values().all(|known| known.seen >= oldest) {
            return;
        }
        let mut times: Vec<f64> = self.known.values().map(|known| known.seen).collect();
        times.sort_by(f64::total_cmp);
        let least = if is_full { times[times.len() - MOST_KNOWN * 9 / 10].max(oldest) } else { oldest };
        // What is seen now stays, however much it is.
        self.known.retain(|_, known| known.seen >= least.min(seconds));
        let known = &self.known;
        self.lives.retain(|id| known.contains_key(id));
        self.groups.retain(|id, _| known.contains_key(id));
        self.cored.retain(|id, _| known.contains_key(id));
    }

    /// Whether a group or a process has come near its limit since the last pass, so that a capture must not wait for the next one.
    pub fn is_near_limit(&self) -> bool {
        let is_near =
            |(group, near): &(String, u64)| cgroup::read_current(&self.places, group).is_some_and(|now| now > *near);
        let is_full = |room: &Room| {
            let near = room.limit_bytes as f64 * NEAR_LIMIT;
            room.read_used(&self.places).is_some_and(|now| now as f64 > near)
        };
        self.guarded.iter().any(is_near) || self.guarded_processes.iter().any(is_full)
    }

    /// Whether [`Watch::is_near_limit`] is to be asked between passes.
    pub fn is_guarding(&self, seconds: f64) -> bool {
        !(self.guarded.is_empty() && self.guarded_processes.is_empty()) && seconds - self.captured_at >= CAPTURE_SECONDS
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
        // A process that was ended is an alarm for a while, whether another one has taken its place or not.
        self.killed.retain(|_, (at, _)| seconds - *at < RESTART_SECONDS);
        pass.findings.extend(self.killed.values().map(|(_, finding)| finding.clone()));
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

    /// The sum over a target's processes, and how near the tightest are to their limits of addresses; `None` when all of
    /// them are gone meanwhile.
    fn counters(
        &mut self,
        target: &Target,
        processes: &[Process],
        is_glance: bool,
        seconds: f64,
    ) -> Option<(Counters, Rooms)> {
        let mut sum: Option<Counters> = None;
        let mut rooms = Rooms::default();
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
            self.limits.note(&self.places, process, &counters, seconds, &mut rooms);
            match &mut sum {
                Some(sum) => sum.add(&counters),
                None => sum = Some(counters),
            }
        }
        self.rollup_at = self.rollup_at.wrapping_add(1);
        if self.rollups.len() > 4 * processes.len() {
            self.rollups.clear();
        }
        sum.map(|sum| (sum, rooms))
    }

    /// A process that has mapped nearly all that it may is captured before an allocation fails.
    fn note_room(
        &mut self,
        pass: &mut Pass,
        entry: &WatchEntry,
        target: &Target,
        life: u16,
        rooms: &Rooms,
        moment: &Moment<'_>,
    ) {
        let Some(room) = rooms.fullest.filter(|room| room.share() >= GUARDED) else { return };
        if room.share() <= NEAR_LIMIT {
            self.guarded_processes.push(room);
            return;
        }
        let title = evidence::room_title(&target.id, &room);
        pass.findings.push(evidence::urgent(&format!("{}/addresses", target.id), &target.id, title, pass.at));
        let own = moment.processes.iter().filter(|process| process.pid == room.pid);
        self.capture(pass, &target.id, own, moment.seconds);
        self.take_core(pass, entry, target, life, Some(room.pid));
    }

    /// Has a core taken, once in each life of a target, when that is asked for.
    fn take_core(&mut self, pass: &mut Pass, entry: &WatchEntry, target: &Target, life: u16, pid: Option<u32>) {
        if entry.core == CorePolicy::Once && self.cored.get(&target.id) != Some(&life) {
            pass.cores.extend(pid.map(|pid| (target.id.clone(), pid)));
            self.cored.insert(target.id.clone(), life);
        }
    }

    /// Compares a group's counts with those before.
    fn note_group(&mut self, pass: &mut Pass, entry: &WatchEntry, target: &Target, life: u16, moment: &Moment<'_>) {
        let Some(group) = &target.group else { return };
        let Moment { seconds, processes, .. } = *moment;
        let now = cgroup::read_memory(&self.places, group);
        let before = self.groups.insert(target.id.clone(), now);
        let killed = before.as_ref().is_some_and(|before| now.oom_kills > before.oom_kills);
        let share = now.share().unwrap_or(0.0);
        if let Some(limit) = now.limit_bytes.filter(|_| (GUARDED..NEAR_LIMIT).contains(&share)) {
            self.guarded.push((group.clone(), (limit as f64 * NEAR_LIMIT) as u64 + now.reclaimable_bytes));
        }
        if killed {
            pass.events.push(event(pass.at, target, "oom", "the OOM killer ended a process of the group"));
            // Said by itself: that the group came near its limit may have been said already.
            let title = evidence::oom_title(&target.id, &now);
            let finding = evidence::urgent(&format!("{}/oom", target.id), &target.id, title, pass.at);
            self.killed.insert(target.id.clone(), (seconds, finding));
        }
        if share <= NEAR_LIMIT {
            return;
        }
        let title = evidence::group_title(&target.id, &now);
        pass.findings.push(evidence::urgent(&format!("{}/limit", target.id), &target.id, title, pass.at));
        let own = || target.processes.iter().map(|&index| &processes[index]);
        self.capture(pass, &target.id, own(), seconds);
        let largest = own().max_by_key(|process| process.resident_bytes);
        self.take_core(pass, entry, target, life, largest.map(|process| process.pid));
    }

    fn add_findings(&mut self, pass: &mut Pass, target: &Target, processes: &[Process]) {
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

/// What one pass knows of the machine.
struct Moment<'a> {
    seconds: f64,
    uptime: Option<f64>,
    machine: &'a Machine,
    processes: &'a [Process],
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
    let candidates = [
        configured.map(|limit| (limit, "the configured limit")),
        of_group.map(|limit| (limit, "its control group's limit")),
    ];
    known.fixed_limit = candidates.into_iter().flatten().min();
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
