//! The daemon: passes at their times, alarms on their way, and an orderly end. And one pass alone, for cron.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use leakscope_alerts::{Book, Channel, Finding, Kind, Notice, Outbox, book::sample_finding};
use leakscope_board::{Board, Shared};
use leakscope_history::{Event, Found, History, Scale, Site};
use leakscope_sampling::Places;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::board;
use crate::checks::{self, Checks, Order, Outcome};
use crate::config::Config;
use crate::cores;
use crate::error::MonitorError;
use crate::outlets;
use crate::sites;
use crate::state::State;
use crate::targets::Resuming;
use crate::timeline::Timeline;
use crate::watch::{FORGET_SECONDS, Pass, Watch};

/// How often the queue is looked at, when nothing new is put into it.
const DELIVERY_SECONDS: u64 = 15;
/// Samples that wait for a disk that is full.
const WAITING_PASSES: usize = 60;
/// How often the history hears again of a site that goes on growing, seconds.
const NOTE_SECONDS: u64 = 600;
/// What was noted so recently was noted for this very alarm, seconds.
const FRESH_SECONDS: u64 = 5;
/// How often groups and processes that are not far from their limit are looked at between passes.
const GUARD: Duration = Duration::from_secs(1);
/// Targets whose sites are kept in one pass.
const PROFILES: usize = 2;
/// Pieces of evidence whose noting is remembered.
const MOST_NOTED: usize = 10_000;
/// How often a collector says what it was told.
const TOLD_EVERY: Duration = Duration::from_millis(500);
/// How long the last delivery may take at the end.
const LAST_DELIVERY: Duration = Duration::from_secs(5);

/// What the outside hears of: one line each.
pub type Say<'a> = &'a mut dyn FnMut(&str);

/// A monitor at work.
struct Monitor {
    config: Config,
    state: State,
    watch: Watch,
    history: History,
    book: Book,
    outbox: Outbox,
    timeline: Timeline,
    waiting: Vec<Pass>,
    disk_complained: bool,
    machine: String,
    lives: HashMap<String, String>,
    checks: Checks,
    shared: Shared,
    passes: u64,
    /// When each piece of evidence was noted in the history last.
    noted: HashMap<(String, String), u64>,
    /// When the sites of each target were kept last.
    profiled: HashMap<String, u64>,
    /// Leakscope itself, for what is done by runs of its own.
    program: PathBuf,
    /// Cores that are being taken; each ends with what is to be said of it.
    cores: Vec<JoinHandle<String>>,
    complained: Vec<String>,
}

impl Monitor {
    fn open(config: Config, program: &Path, say: Say<'_>) -> Result<Self, MonitorError> {
        let state = State::take(&config.state)?;
        let (history, damaged) = state.history()?;
        if let Some(aside) = damaged {
            say(&format!("the history was damaged; it is {} now, and a new one has begun", aside.display()));
        }
        let mut watch = Watch::new(config.clone(), Places::default());
        let (real, steady) = clocks();
        let newest = history.newest();
        let boot = boot_id();
        let same_boot = history.fact("boot")?.is_some_and(|known| known == boot);
        for target in history.targets() {
            // Names that came and went long ago are not filled into memory again.
            let oldest = (real - FORGET_SECONDS).max(0.0) as u64;
            if history.rows(&target, Scale::Hour, oldest, u64::MAX >> 1)?.is_empty() {
                continue;
            }
            let mut resuming = Resuming::default();
            history.all_pieces(&target, real as u64, &mut |rows| watch.resume_rows(&target, &mut resuming, rows))?;
            // After a boot the same process id and start time are another process.
            let life = if same_boot { history.fact(&format!("life {target}"))? } else { None };
            watch.resume_life(&target, &resuming, life.as_deref());
        }
        let machine = config.machine.clone().unwrap_or_else(host_name);
        let timeline = Timeline::start(real, steady, newest.map(|at| at as f64));
        let (book, outbox) = (state.book(), state.outbox()?);
        let mut checks = Checks::new(config.checks, book.open(), real);
        for order in [Order::Kmemleak, Order::KernelTrace] {
            if let Some(at) = history.fact(&format!("checked {}", order.source()))?.and_then(|text| text.parse().ok()) {
                checks.resume(order.source(), at);
            }
        }
        let mut monitor = Self {
            config,
            state,
            watch,
            history,
            book,
            outbox,
            timeline,
            waiting: Vec::new(),
            disk_complained: false,
            machine,
            lives: HashMap::new(),
            checks,
            shared: Shared::default(),
            passes: 0,
            noted: HashMap::new(),
            profiled: HashMap::new(),
            program: program.to_owned(),
            cores: Vec::new(),
            complained: Vec::new(),
        };
        monitor.history.set_facts(&[("boot".to_owned(), &boot)])?;
        Ok(monitor)
    }

    /// One pass; gives what is wrong now. `check` makes the checks that are due.
    fn pass(&mut self, check: &mut dyn FnMut(&mut Checks, Order), say: Say<'_>) -> Vec<Finding> {
        let begin = Instant::now();
        let (real, steady) = clocks();
        let seconds = self.timeline.now(real, steady);
        let mut pass = self.watch.pass(seconds);
        for complaint in self.watch.complaints(&pass) {
            say(&complaint);
        }
        if let Some(text) = pass.capture.take() {
            match self.state.keep_capture(pass.at, &text) {
                Ok(path) => say(&format!("near a limit: {}", path.display())),
                Err(error) => say(&error.to_string()),
            }
        }
        self.take_cores(&mut pass, say);
        let due = self.checks.due(seconds, &pass.traced);
        self.keep_checked(&due, seconds);
        due.into_iter().for_each(|order| check(&mut self.checks, order));
        for outcome in self.checks.outcomes() {
            self.note_outcome(outcome, seconds, say);
        }
        let mut findings = std::mem::take(&mut pass.findings);
        findings.extend(self.checks.findings(seconds));
        self.date(&mut findings, pass.at);
        self.speak(&findings, &mut pass, say);
        // After that, so that a site is new in the alarm that it is found by.
        self.profile(&pass, say);
        self.publish(&pass, begin);
        self.write(pass, say);
        findings
    }

    /// Lets cores be taken, each by a run of its own, and says what has come of those before.
    fn take_cores(&mut self, pass: &mut Pass, say: Say<'_>) {
        for (target, pid) in std::mem::take(&mut pass.cores) {
            let path = match self.state.core_path(pass.at, pid) {
                Ok(path) => path,
                Err(error) => {
                    say(&error.to_string());
                    continue;
                }
            };
            let text = format!("a core of process {pid} is taken: {}", path.display());
            pass.events.push(Event { at: pass.at, target, kind: "core".to_owned(), text });
            let (program, most) = (self.program.clone(), self.config.core_bytes);
            self.cores.push(thread::spawn(move || cores::run(&program, pid, &path, most)));
        }
        let (done, going) = std::mem::take(&mut self.cores).into_iter().partition(JoinHandle::is_finished);
        self.cores = going;
        say_cores(done, say);
    }

    /// Says what is new, and lets the queue have it.
    fn speak(&mut self, findings: &[Finding], pass: &mut Pass, say: Say<'_>) {
        let hour = local_hour(pass.at as f64);
        let Some(notice) = self.book.update(findings, &self.config.policy, pass.at, hour, &self.machine) else {
            return;
        };
        for (kind, finding) in &notice.findings {
            say(&format!("{}: {}", kind.word(), finding.title));
            let kind = if *kind == Kind::Resolved { "resolved" } else { "alarm" };
            pass.events.push(Event {
                at: pass.at,
                target: finding.target.clone(),
                kind: kind.to_owned(),
                text: finding.title.clone(),
            });
        }
        // First the queue, then the book: a crash between them says it twice rather than never.
        if let Err(error) = self.outbox.put(&notice, &self.config.channels) {
            say(&error.to_string());
        }
        if let Err(error) = self.state.keep_book(&self.book) {
            say(&error.to_string());
        }
    }

    /// Takes the outcome of a check into the history.
    fn note_outcome(&mut self, outcome: Outcome, seconds: f64, say: Say<'_>) {
        let (target, source) = (outcome.order.target().to_owned(), outcome.order.source());
        let noted = self.checks.note(outcome, seconds);
        // What this kernel does not offer is said once, not every hour.
        match noted.complaint {
            Some(line) if self.complained.contains(&line) => {}
            Some(line) => {
                say(&line);
                self.complained.push(line);
            }
            None => self.keep_profile(&target, source, (&noted.found, &noted.profile), seconds as u64, say),
        }
    }

    /// Keeps what was found, and what each site has now.
    fn keep_profile(&mut self, target: &str, source: &str, kept: (&[Found], &[Site]), at: u64, say: Say<'_>) {
        let (found, profile) = kept;
        let written =
            self.history.note_found(found).and_then(|()| self.history.note_profile(target, source, at, profile));
        if let Err(error) = written {
            self.complain(&error.to_string(), say);
        }
    }

    /// Keeps what the sites of programs with a ledger have now, of few targets at a time: naming sites takes a while.
    fn profile(&mut self, pass: &Pass, say: Say<'_>) {
        let mut traced: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
        for (target, pid) in &pass.traced {
            traced.entry(target).or_default().push(*pid);
        }
        self.profiled.retain(|target, _| traced.contains_key(target.as_str()));
        let every = self.config.window_seconds as u64;
        let age = |target: &str| self.profiled.get(target).map_or(u64::MAX, |at| pass.at.saturating_sub(*at));
        let mut due: Vec<(u64, &str)> = traced.keys().map(|target| (age(target), *target)).collect();
        due.retain(|(age, _)| *age >= every);
        due.sort_unstable_by(|a, b| b.cmp(a));
        for (_, target) in due.into_iter().take(PROFILES) {
            let sites = self.watch.profile(&traced[target]);
            self.keep_profile(target, sites::SOURCE, (&[], &sites), pass.at, say);
            self.profiled.insert(target.to_owned(), pass.at);
        }
    }

    /// Keeps when checks were made, so that a daemon that is restarted often does not make them each time.
    fn keep_checked(&mut self, due: &[Order], seconds: f64) {
        let at = format!("{seconds:.0}");
        let facts: Vec<(String, &str)> =
            due.iter().map(|order| (format!("checked {}", order.source()), at.as_str())).collect();
        if !facts.is_empty() {
            // Without it the next daemon checks sooner than it must.
            let _ = self.history.set_facts(&facts);
        }
    }

    /// Says of each piece of evidence since when it is known, and notes it in the history. What is new stays new as long as
    /// its alarm is open.
    fn date(&mut self, findings: &mut [Finding], at: u64) {
        let mut found = Vec::new();
        for finding in findings {
            let before = self.book.open().find(|open| open.key == finding.key);
            for one in &mut finding.evidence {
                let known = before.and_then(|open| open.evidence.iter().find(|b| b.fingerprint == one.fingerprint));
                one.known_since = match known {
                    Some(known) => known.known_since,
                    None => self
                        .history
                        .first_seen(&finding.target, &one.fingerprint)
                        .ok()
                        .flatten()
                        .filter(|&first| first + FRESH_SECONDS < at),
                };
                let key = (finding.target.clone(), one.fingerprint.clone());
                if self.noted.get(&key).is_none_or(|&noted| at.abs_diff(noted) >= NOTE_SECONDS) {
                    self.noted.insert(key, at);
                    found.push(checks::found(&finding.target, one, at));
                }
            }
        }
        if self.noted.len() > MOST_NOTED {
            self.noted.clear();
        }
        if !found.is_empty() {
            // A full disk is said where samples are written.
            let _ = self.history.note_found(&found);
        }
    }

    /// Lets others see this pass.
    fn publish(&mut self, pass: &Pass, begin: Instant) {
        self.passes += 1;
        if self.config.page.is_none() && self.config.otlp.is_none() && self.config.collector.is_none() {
            return;
        }
        let known = self.watch.known();
        let views = pass
            .samples
            .iter()
            .filter_map(|sample| Some(board::view(&sample.target, known.get(&sample.target)?, sample.life, pass.at)));
        let mut targets: Vec<_> = views.collect();
        targets.sort_by(|a, b| a.id.cmp(&b.id));
        self.shared.publish(Board {
            at: pass.at,
            machine: self.machine.clone(),
            interval_seconds: self.config.interval_seconds,
            pass_seconds: begin.elapsed().as_secs_f64(),
            passes: self.passes,
            undelivered: self.outbox.len() as u64,
            targets,
            alarms: self.book.open().cloned().collect(),
        });
    }

    fn complain(&mut self, line: &str, say: Say<'_>) {
        if !std::mem::replace(&mut self.disk_complained, true) {
            say(line);
        }
    }

    /// Writes what waits, oldest first. A full disk is said once; what cannot be kept meanwhile is the oldest.
    fn write(&mut self, pass: Pass, say: Say<'_>) {
        self.waiting.push(pass);
        while let Some(pass) = self.waiting.first() {
            match self.history.write_tick(pass.at, &pass.samples, &pass.events) {
                Ok(()) => {
                    self.waiting.remove(0);
                    if std::mem::take(&mut self.disk_complained) {
                        say("the history can be written again");
                    }
                }
                Err(error) => {
                    self.complain(&error.to_string(), say);
                    if self.waiting.len() > WAITING_PASSES {
                        self.waiting.remove(0);
                    }
                    return;
                }
            }
        }
        self.keep_lives();
    }

    /// Keeps which process each target is, when it has become another one.
    fn keep_lives(&mut self) {
        let mut changed = Vec::new();
        for id in self.watch.known().keys() {
            let fact = self.watch.life_fact(id).filter(|fact| self.lives.get(id) != Some(fact));
            changed.extend(fact.map(|fact| (id.clone(), fact)));
        }
        let facts: Vec<(String, &str)> =
            changed.iter().map(|(id, fact)| (format!("life {id}"), fact.as_str())).collect();
        if !facts.is_empty() && self.history.set_facts(&facts).is_ok() {
            self.lives.extend(changed);
        }
        let known = self.watch.known();
        self.lives.retain(|id, _| known.contains_key(id));
    }
}

/// Waits for cores, and says what has come of them.
fn say_cores(cores: Vec<JoinHandle<String>>, say: Say<'_>) {
    for core in cores {
        say(&core.join().unwrap_or_else(|_| "a core: its thread is gone".to_owned()));
    }
}

/// Waits for the next pass, or less long when a group comes near its limit; gives whether to end.
fn wait(watch: &Watch, stopped: &mpsc::Receiver<i32>, until: Duration) -> bool {
    loop {
        let left = until.saturating_sub(steady_now());
        let is_guarding = watch.is_guarding(clocks().0);
        match stopped.recv_timeout(if is_guarding { left.min(GUARD) } else { left }) {
            Ok(SIGHUP) => return false,
            Ok(_) | Err(RecvTimeoutError::Disconnected) => return true,
            Err(RecvTimeoutError::Timeout) if steady_now() >= until => return false,
            Err(RecvTimeoutError::Timeout) if is_guarding && watch.is_near_limit() => return false,
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

/// Runs until SIGTERM or SIGINT. `program` is leakscope itself, which makes the checks.
///
/// # Errors
/// When the state folder, the history or the queue cannot be used at the start, or the page cannot listen.
pub fn run(config: Config, program: &Path, say: Say<'_>) -> Result<(), MonitorError> {
    let interval = Duration::from_secs(config.interval_seconds);
    let channels = config.channels.clone();
    let mut monitor = Monitor::open(config, program, say)?;
    let (stop, stopped) = mpsc::channel();
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(|source| MonitorError::File {
        path: PathBuf::from("/proc/self"),
        what: "catch signals",
        source,
    })?;
    thread::spawn(move || {
        for signal in signals.forever() {
            // Nobody may be listening any more.
            let _ = stop.send(signal);
        }
    });
    let (wake, wakes) = mpsc::channel::<()>();
    let (tell, told) = mpsc::channel::<String>();
    let outbox = monitor.state.outbox()?;
    let history = State::history_path(&monitor.config.state);
    outlets::start(&monitor.config, &monitor.shared, history, &tell)?.iter().for_each(|line| say(line));
    let deliverer = thread::spawn(move || deliver_all(&outbox, &channels, &wakes, &tell));
    say(&format!("watching every {} s; state in {}", interval.as_secs(), monitor.config.state.display()));
    let mut next = steady_now();
    loop {
        let before = monitor.book.clone();
        monitor.pass(&mut |checks, order| checks.start(program, order), say);
        if monitor.book != before {
            let _ = wake.send(());
        }
        told.try_iter().for_each(|line| say(&line));
        // When we were suspended or starved, what was missed is missed.
        next = (next + interval).max(steady_now());
        if wait(&monitor.watch, &stopped, next) {
            break;
        }
        // What came before its time puts the ones behind it off.
        next = next.min(steady_now());
    }
    drop(wake);
    let waited = steady_now();
    while !deliverer.is_finished() && steady_now() - waited < LAST_DELIVERY {
        thread::sleep(Duration::from_millis(20));
    }
    told.try_iter().for_each(|line| say(&line));
    Ok(())
}

/// Says what is told until SIGTERM or SIGINT.
///
/// # Errors
/// When signals cannot be caught.
pub fn until_told(told: &mpsc::Receiver<String>, say: Say<'_>) -> Result<(), MonitorError> {
    let failed = |source| MonitorError::File { path: PathBuf::from("/proc/self"), what: "catch signals", source };
    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(failed)?;
    let (stop, stopped) = mpsc::channel();
    thread::spawn(move || {
        // Nobody may be listening any more.
        signals.forever().next().into_iter().for_each(|signal| _ = stop.send(signal));
    });
    while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(TOLD_EVERY) {
        told.try_iter().for_each(|line| say(&line));
    }
    told.try_iter().for_each(|line| say(&line));
    Ok(())
}

/// Delivers until nobody wakes us any more.
fn deliver_all(outbox: &Outbox, channels: &[Channel], wakes: &mpsc::Receiver<()>, tell: &mpsc::Sender<String>) {
    let mut complained: Vec<String> = Vec::new();
    loop {
        let is_last =
            matches!(wakes.recv_timeout(Duration::from_secs(DELIVERY_SECONDS)), Err(RecvTimeoutError::Disconnected));
        let delivery = outbox.deliver(channels, clocks().0 as u64);
        for failure in delivery.failures {
            let line = failure.to_string();
            // The same refusal every half minute is no news.
            if !complained.contains(&line) {
                let _ = tell.send(line.clone());
                complained.push(line);
            }
        }
        if delivery.sent > 0 {
            complained.clear();
        }
        if is_last {
            return;
        }
    }
}

/// One pass for cron, with the memory of those before; gives what is wrong.
///
/// # Errors
/// As of [`run`]; what cannot be delivered stays in the queue and is said.
pub fn once(config: Config, program: &Path, say: Say<'_>) -> Result<Vec<Finding>, MonitorError> {
    let channels = config.channels.clone();
    let mut monitor = Monitor::open(config, program, say)?;
    let mut due = Vec::new();
    let mut findings = monitor.pass(&mut |_, order| due.push(order), say);
    if !due.is_empty() {
        let running = std::sync::Mutex::new(None);
        for order in due {
            let leaks = checks::run(program, &order, &running);
            let at = clocks().0;
            monitor.note_outcome(Outcome { order, leaks }, at, say);
        }
        // What the checks have found is said by a pass of its own.
        findings = monitor.pass(&mut |_, _| (), say);
    }
    for failure in monitor.outbox.deliver(&channels, clocks().0 as u64).failures {
        say(&failure.to_string());
    }
    if let Some(collector) = &monitor.config.collector {
        let history = State::history_path(&monitor.config.state);
        if let Some(line) = outlets::send_once(collector, history, &monitor.shared)? {
            say(&line);
        }
    }
    Ok(findings)
}

/// Sends a sample through every channel; gives each channel's name and what came of it.
pub fn test_alert(config: &Config) -> Vec<(String, Result<(), leakscope_alerts::AlertError>)> {
    let at = clocks().0 as u64;
    let notice = Notice {
        kind: Kind::Test,
        machine: config.machine.clone().unwrap_or_else(host_name),
        at,
        findings: vec![(Kind::Test, sample_finding(at))],
        withheld: 0,
    };
    config.channels.iter().map(|channel| (channel.name(), channel.send(&notice))).collect()
}

/// Seconds of the machine's clock, and of one that nobody sets and that goes on while the machine sleeps.
fn clocks() -> (f64, f64) {
    let real = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    (real, steady_now().as_secs_f64())
}

fn steady_now() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(time.tv_sec.max(0) as u64, time.tv_nsec.max(0) as u32)
}

fn local_hour(seconds: f64) -> u8 {
    let time = jiff::Timestamp::from_second(seconds as i64).unwrap_or_default();
    time.to_zoned(jiff::tz::TimeZone::system()).hour().unsigned_abs()
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
