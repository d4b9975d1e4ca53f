//! A board and a history that are made up, for the tests of the page and of metrics.

use std::path::Path;

use leakscope_alerts::book::sample_finding;
use leakscope_board::{Board, MachineView, Machines, PartView, TargetView, Verdict};
use leakscope_history::{Event, Found, History, Site, TargetSample, Values};

/// When it is.
pub const NOW: u64 = 1_795_432_800;
/// A name that would be orders to a browser, to Prometheus and to a terminal.
pub const HOSTILE: &str = "name:x</script><img src=x onerror=\"pwned=1\">\\\"&\u{fffd}";

pub fn target(id: &str, verdict: Verdict, memory: f64, shape: fn(f64) -> f64) -> TargetView {
    let grows = verdict == Verdict::Growing;
    TargetView {
        id: id.to_owned(),
        verdict,
        words: match verdict {
            Verdict::Growing => "memory grows by 60 MB/h (57 MB to 63 MB)".to_owned(),
            Verdict::Filling => "memory fills up to 900 MB".to_owned(),
            Verdict::Stable => "stable".to_owned(),
            Verdict::Learning => "learning".to_owned(),
        },
        memory: Some(memory),
        resident: Some(memory * 1.2),
        live_heap: grows.then_some(memory * 0.8),
        threads: Some(12.0),
        descriptors: Some(48.0),
        per_hour: grows.then_some(60e6),
        parts: if grows {
            vec![PartView { part: "heap", bytes: memory * 0.8 }, PartView { part: "mapped_files", bytes: memory * 0.2 }]
        } else {
            Vec::new()
        },
        arenas: grows.then_some(3.0),
        limit: Some(8e9),
        limit_of: Some("the machine's memory".to_owned()),
        hours_left: grows.then(|| (8e9 - memory) / 60e6),
        since: grows.then_some(NOW - 86_400),
        restarts: 2,
        seen: NOW,
        spark: (0..48).map(|step| memory * shape(f64::from(step) / 47.0)).collect(),
    }
}

/// A board with targets of every verdict, an alarm with evidence, and a hostile name.
pub fn board() -> Board {
    let flat: fn(f64) -> f64 = |_| 1.0;
    let saw: fn(f64) -> f64 = |t| 0.7 + 0.3 * (t * 9.0).fract();
    let cache: fn(f64) -> f64 = |t| 1.0 - (-4.0 * t).exp() * 0.8;
    let rise: fn(f64) -> f64 = |t| 0.4 + 0.6 * t;
    let mut targets = vec![
        target("name:shop", Verdict::Growing, 1.44e9, rise),
        target("unit:postgresql.service", Verdict::Filling, 812e6, cache),
        target(HOSTILE, Verdict::Learning, 5e6, flat),
        target("kernel:slab", Verdict::Stable, 96e6, saw),
        target("kernel:page-tables", Verdict::Stable, 11e6, flat),
        target("container:checkout-7f9c", Verdict::Stable, 240e6, saw),
    ];
    for number in 0..14 {
        targets.push(target(&format!("name:worker-{number}"), Verdict::Stable, 30e6 + 1e6 * f64::from(number), saw));
    }
    let mut alarm = sample_finding(NOW);
    alarm.key = "name:shop/memory".to_owned();
    alarm.target = "name:shop".to_owned();
    alarm.title = "name:shop: memory grows by 60 MB/h (57 MB to 63 MB), 4.6 days until the machine's memory".to_owned();
    alarm.details = vec![
        "now 1.4 GB, 1.4 GB more than 24.0 h ago; shown by a window of 11 min, 9.1 standard deviations from no trend"
            .to_owned(),
        "resident 1.7 GB, anonymous 1.4 GB, live heap 1.2 GB".to_owned(),
    ];
    Board {
        at: NOW,
        machine: "web-1".to_owned(),
        interval_seconds: 10,
        pass_seconds: 0.004,
        passes: 8640,
        undelivered: 0,
        targets,
        alarms: vec![alarm],
    }
}

/// A collector's machines: one on which something grows, one that is steady, and one that has been silent for a day and
/// never sent a board.
#[allow(dead_code, reason = "not every test is of many machines")]
pub struct Fleet {
    /// The history of the first one.
    pub history: std::path::PathBuf,
    /// Seconds since the epoch.
    pub now: u64,
}

#[allow(dead_code, reason = "not every test is of many machines")]
impl Fleet {
    /// Its history is made.
    pub fn new(folder: &Path) -> Self {
        let path = folder.join("web-1.sqlite");
        history(&path);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        Self { history: path, now }
    }
}

impl Machines for Fleet {
    fn all(&self) -> Vec<MachineView> {
        let boards = ["db-1", "web-1"].map(|name| MachineView::of(&self.board(name).unwrap(), self.now));
        let silent = MachineView {
            machine: "old-1".to_owned(),
            seen: self.now - 86_400,
            interval_seconds: None,
            alarms: 0,
            targets: Vec::new(),
            first: None,
        };
        boards.into_iter().chain([silent]).collect()
    }

    fn board(&self, machine: &str) -> Option<Board> {
        let mut made = board();
        match machine {
            "web-1" => {}
            "db-1" => {
                made.alarms.clear();
                made.targets.retain(|target| target.id.starts_with("kernel:"));
                made.targets.push(target("unit:postgresql.service", Verdict::Stable, 2.2e9, |_| 1.0));
            }
            _ => return None,
        }
        made.machine = machine.to_owned();
        Some(made)
    }

    fn history(&self, machine: &str) -> Option<std::path::PathBuf> {
        (machine == "web-1").then(|| self.history.clone())
    }
}

/// Two days of samples of the growing target and of the hostile one, events, and findings.
pub fn history(path: &Path) {
    let (mut history, _) = History::open(path).unwrap();
    let start = NOW - 2 * 86_400;
    for step in 0..2 * 1440u64 {
        let at = start + step * 60;
        let mut values = Values::default();
        let age = if step < 1000 { step } else { step - 1000 };
        let memory = 80_000_000 + age * 700_000 + step * 7919 % 9_000_000;
        (values[0], values[1], values[2]) = (Some(memory + 60_000_000), Some(memory), Some(0));
        (values[5], values[6], values[7]) = (Some(12), Some(48), Some(memory * 4 / 5));
        let sample = |target: &str| TargetSample { target: target.to_owned(), life: u16::from(step >= 1000), values };
        let mut shop = sample("name:shop");
        if step.is_multiple_of(7) {
            // Heap, arenas, other, files, shared; regions of arenas.
            let parts = [memory * 8 / 10, 20_000_000, memory / 10, 60_000_000, 4096, 3];
            shop.values[8..].iter_mut().zip(parts).for_each(|(value, part)| *value = Some(part));
        }
        let event = |kind: &str, text: &str| Event {
            at,
            target: "name:shop".to_owned(),
            kind: kind.to_owned(),
            text: text.to_owned(),
        };
        let events = match step {
            1000 => vec![event("restart", "its oldest process is a new one")],
            1600 => vec![event("alarm", "name:shop: memory grows by 42 MB/h </li><img src=x onerror=\"pwned=1\">")],
            _ => Vec::new(),
        };
        history.write_tick(at, &[shop, sample(HOSTILE)], &events).unwrap();
    }
    let found = |target: &str, source: &str, fingerprint: &str, function: &str, bytes| Found {
        target: target.to_owned(),
        source: source.to_owned(),
        fingerprint: fingerprint.to_owned(),
        title: "x".to_owned(),
        stack: ["malloc", function, "serve (server.c:88)", "main (main.c:3)"].map(str::to_owned).to_vec(),
        bytes,
        blocks: bytes / 128,
        first_at: NOW - 86_000,
        last_at: NOW - 60,
    };
    history
        .note_found(&[
            found("name:shop", "ledger", "0123456789abcdef", "load_page (cache.c:12)", 1_150_000_000),
            found("name:shop", "leak check", "fedcba9876543210", "<script>pwned=1</script>", 12_000_000),
            found(HOSTILE, "leak check", "00000000000000aa", "f", 5),
        ])
        .unwrap();
    profiles(&mut history);
}

/// What sites of the growing target had at three moments: before it began to grow, after that, and now.
fn profiles(history: &mut History) {
    let site = |fingerprint: &str, function: &str, bytes: u64| Site {
        fingerprint: fingerprint.to_owned(),
        stack: ["malloc", function, "serve (server.c:88)", "main (main.c:3)"].map(str::to_owned).to_vec(),
        bytes,
        blocks: bytes / 128,
    };
    let taken = |load: u64, warm_up: u64, hostile: u64| {
        let sites = [
            site("0123456789abcdef", "load_page (cache.c:12)", load),
            site("00000000000000cc", "index_words (words.c:40)", 45_000_000),
            site("00000000000000dd", "warm_up (main.c:20)", warm_up),
            site("00000000000000ee", "</script>pwned=1", hostile),
        ];
        sites.into_iter().filter(|site| site.bytes > 0).collect::<Vec<_>>()
    };
    for (ago, sites) in [
        (90_000, taken(20_000_000, 30_000_000, 0)),
        (3600, taken(900_000_000, 0, 0)),
        (60, taken(1_150_000_000, 0, 2_000_000)),
    ] {
        history.note_profile("name:shop", "ledger", NOW - ago, &sites).unwrap();
    }
    let lost = [site("fedcba9876543210", "<script>pwned=1</script>", 12_000_000)];
    history.note_profile("name:shop", "leak check", NOW - 60, &lost).unwrap();
}
