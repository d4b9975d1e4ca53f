//! The daemon: passes at their times, alarms on their way, and an orderly end. And one pass alone, for cron.

use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use leakscope_alerts::{Book, Channel, Finding, Kind, Notice, Outbox, book::sample_finding};
use leakscope_history::{Event, History};
use leakscope_sampling::Places;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::config::Config;
use crate::error::MonitorError;
use crate::state::State;
use crate::timeline::Timeline;
use crate::watch::{Pass, Watch};

/// How often the queue is looked at, when nothing new is put into it.
const DELIVERY_SECONDS: u64 = 15;
/// Samples that wait for a disk that is full.
const WAITING_PASSES: usize = 60;
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
    lives: std::collections::HashMap<String, String>,
}

impl Monitor {
    fn open(config: Config, say: Say<'_>) -> Result<Self, MonitorError> {
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
            let rows = history.all_rows(&target, real as u64)?;
            // After a boot the same process id and start time are another process.
            let life = if same_boot { history.fact(&format!("life {target}"))? } else { None };
            watch.resume(&target, &rows, life.as_deref());
        }
        let machine = config.machine.clone().unwrap_or_else(host_name);
        let timeline = Timeline::start(real, steady, newest.map(|at| at as f64));
        let (book, outbox) = (state.book(), state.outbox()?);
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
            lives: std::collections::HashMap::new(),
        };
        monitor.history.set_facts(&[("boot".to_owned(), &boot)])?;
        Ok(monitor)
    }

    /// One pass; gives what is wrong now.
    fn pass(&mut self, say: Say<'_>) -> Vec<Finding> {
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
        let findings = std::mem::take(&mut pass.findings);
        let hour = local_hour(seconds);
        let notice = self.book.update(&findings, &self.config.policy, pass.at, hour, &self.machine);
        if let Some(notice) = notice {
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
        self.write(pass, say);
        findings
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
                    if !std::mem::replace(&mut self.disk_complained, true) {
                        say(&error.to_string());
                    }
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
    }
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// When the state folder, the history or the queue cannot be used at the start.
pub fn run(config: Config, say: Say<'_>) -> Result<(), MonitorError> {
    let interval = Duration::from_secs(config.interval_seconds);
    let channels = config.channels.clone();
    let mut monitor = Monitor::open(config, say)?;
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
    let deliverer = thread::spawn(move || deliver_all(&outbox, &channels, &wakes, &tell));
    say(&format!("watching every {} s; state in {}", interval.as_secs(), monitor.config.state.display()));
    let mut next = steady_now();
    loop {
        let before = monitor.book.clone();
        monitor.pass(say);
        if monitor.book != before {
            let _ = wake.send(());
        }
        told.try_iter().for_each(|line| say(&line));
        next += interval;
        let now = steady_now();
        if next < now {
            // We were suspended or starved: what was missed is missed.
            next = now;
        }
        match stopped.recv_timeout(next - now) {
            Ok(SIGHUP) | Err(RecvTimeoutError::Timeout) => {}
            Ok(_) | Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    drop(wake);
    let waited = steady_now();
    while !deliverer.is_finished() && steady_now() - waited < LAST_DELIVERY {
        thread::sleep(Duration::from_millis(20));
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
pub fn once(config: Config, say: Say<'_>) -> Result<Vec<Finding>, MonitorError> {
    let channels = config.channels.clone();
    let mut monitor = Monitor::open(config, say)?;
    let findings = monitor.pass(say);
    for failure in monitor.outbox.deliver(&channels, clocks().0 as u64).failures {
        say(&failure.to_string());
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
