//! `leakscope monitor collect` under 500 agents, killed and started again meanwhile: nothing is lost, and nothing is there
//! twice.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use leakscope_alerts::Secret;
use leakscope_collect::{Pause, Push, PushOptions, history_of, machines};
use leakscope_e2e::leakscope_bin;
use leakscope_history::{Event, History, Row, Scale, TargetSample, Values};
use rustix::process::{Resource, getrlimit, setrlimit};

const AGENTS: usize = 500;
const TICKS: u64 = 40;
const TARGETS: u64 = 3;
/// Samples that are sent at a time: each agent has eight requests to make.
const AT_A_TIME: usize = 15;
/// Requests that are answered before each time the collector is killed.
const KILLS: [usize; 3] = [500, 1000, 1000];
const PATIENCE: Duration = Duration::from_secs(300);

struct Collector(Child);

impl Drop for Collector {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Collector {
    /// Starts it; gives where it listens.
    fn start(config: &Path) -> (Self, String) {
        let mut child = Command::new(leakscope_bin())
            .args(["monitor", "collect", "--config"])
            .arg(config)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let collector = Self(child);
        let address = lines.by_ref().map_while(Result::ok).find_map(|line| {
            let (_, rest) = line.split_once("collecting at http://")?;
            Some(rest.split(' ').next()?.to_owned())
        });
        // What it says later must not fill the pipe.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        (collector, address.expect("it says where it listens"))
    }
}

fn name(agent: usize) -> String {
    format!("machine-{agent:03}")
}

fn token(agent: usize) -> String {
    format!("{:032x}", 0x1234_5678_9abc_def0_u128 * (agent as u128 + 1))
}

/// A history as an agent would have written it, across the end of an hour.
fn write(path: &Path, agent: usize) {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let start = now / 3600 * 3600 - 2 * 3600 - TICKS * 5 + agent as u64 % 10;
    let (mut history, _) = History::open(path).unwrap();
    for step in 0..TICKS {
        let at = start + step * 10;
        let sample = |target: u64| {
            let mut values = Values::default();
            (values[0], values[5]) = (Some(agent as u64 * 1_000_000 + step * 100 + target), Some(target));
            TargetSample { target: format!("name:program{target}"), life: 0, values }
        };
        let samples: Vec<TargetSample> = (0..TARGETS).map(sample).collect();
        let event = Event { at, target: "name:program0".into(), kind: "restart".into(), text: step.to_string() };
        history.write_tick(at, &samples, &[event]).unwrap();
    }
}

/// Every sample and event of a history.
fn all(path: &Path) -> (Vec<(String, Vec<Row>)>, Vec<Event>) {
    let history = History::open_read_only(path).unwrap();
    let rows = |target: String| {
        let rows = history.rows(&target, Scale::Raw, 0, u64::MAX >> 1).unwrap();
        (target, rows)
    };
    (history.targets().into_iter().map(rows).collect(), history.events(None, 10_000).unwrap())
}

/// Pushes until nothing is new, however often that fails; says each time that something was taken.
fn push(options: PushOptions, chance: u32, sent: &mpsc::Sender<()>) {
    let mut push = Push::new(options).unwrap();
    push.set_most_samples(AT_A_TIME);
    let (mut pause, begin) = (Pause::default(), Instant::now());
    loop {
        match push.step() {
            Ok(pushed) if pushed.ticks == 0 => return,
            Ok(_) => {
                pause.succeeded();
                // Nobody counts any more after the last kill.
                let _ = sent.send(());
            }
            Err(error) => {
                assert!(begin.elapsed() < PATIENCE, "{error}");
                std::thread::sleep(pause.failed(&error, chance));
            }
        }
    }
}

#[test]
fn five_hundred_agents_and_a_collector_that_is_killed() {
    // Each agent has a connection and, for a moment, a file and its journal.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, rustix::process::Rlimit { current: limit.maximum, ..limit }).unwrap();
    let shm = Path::new("/dev/shm");
    let folder = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.unwrap();
    let below = |name: &str| folder.path().join(name);
    std::fs::create_dir(below("tokens")).unwrap();
    std::fs::create_dir(below("agents")).unwrap();
    let history = |agent: usize| -> PathBuf { below("agents").join(name(agent)) };
    for agent in 0..AGENTS {
        std::fs::write(below("tokens").join(name(agent)), token(agent)).unwrap();
        write(&history(agent), agent);
    }
    let config = below("collect.toml");
    let configure = |listen: &str| {
        let (tokens, state) = (below("tokens"), below("state"));
        let text = format!(
            "listen = \"{listen}\"\ntokens = \"{}\"\nstate = \"{}\"\nqueue = 16\n",
            tokens.display(),
            state.display()
        );
        std::fs::write(&config, text).unwrap();
    };
    configure("127.0.0.1:0");
    let begin = Instant::now();
    let (mut collector, address) = Collector::start(&config);
    configure(&address);
    let (sent, counted) = mpsc::channel();
    let agents: Vec<_> = (0..AGENTS)
        .map(|agent| {
            let options = PushOptions {
                url: format!("http://{address}"),
                token: Secret::File(below("tokens").join(name(agent))),
                ca_file: None,
                history: history(agent),
            };
            let (sent, chance) = (sent.clone(), agent as u32 * 37);
            std::thread::Builder::new().stack_size(1 << 20).spawn(move || push(options, chance, &sent)).unwrap()
        })
        .collect();
    for requests in KILLS {
        for _ in 0..requests {
            counted.recv_timeout(PATIENCE).expect("agents get on");
        }
        // SIGKILL: whatever it was doing.
        drop(collector);
        (collector, _) = Collector::start(&config);
    }
    agents.into_iter().for_each(|agent| agent.join().unwrap());
    let took = begin.elapsed();
    drop(collector);
    assert_eq!(machines(&below("state")).len(), AGENTS);
    let mut rows = 0;
    for agent in 0..AGENTS {
        let (sent, kept) = (all(&history(agent)), all(&history_of(&below("state"), &name(agent))));
        rows += kept.0.iter().map(|(_, rows)| rows.len()).sum::<usize>();
        assert!(sent == kept, "{}: {sent:#?} is not {kept:#?}", name(agent));
    }
    assert_eq!(rows, AGENTS * (TICKS * TARGETS) as usize);
    eprintln!("{AGENTS} agents, {rows} samples, {} kills: {took:?}", KILLS.len());
}

/// The body of an answer.
fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{path}: {head}");
    body.to_owned()
}

#[test]
fn the_page_shows_what_a_monitor_says_of_its_machine() {
    let folder = tempfile::tempdir().unwrap();
    let below = |name: &str| folder.path().join(name);
    std::fs::create_dir(below("tokens")).unwrap();
    std::fs::write(below("tokens/web1"), token(1)).unwrap();
    let text = format!(
        "listen = \"127.0.0.1:0\"\ntokens = \"{}\"\nstate = \"{}\"\n[page]\nlisten = \"127.0.0.1:0\"\n",
        below("tokens").display(),
        below("collected").display()
    );
    std::fs::write(below("collect.toml"), text).unwrap();
    let mut child = Command::new(leakscope_bin())
        .args(["monitor", "collect", "--config"])
        .arg(below("collect.toml"))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let _collector = Collector(child);
    let mut said = |words: &str| {
        let line = lines.find(|line| line.contains(words)).unwrap();
        line.split_once(words).unwrap().1.split([' ', '/']).next().unwrap().to_owned()
    };
    let (collector, page) = (said("collecting at http://"), said("the page: http://"));
    assert_eq!(get(&page, "/api/machines"), "{\"machines\":[]}");
    let text = format!(
        "pressure = 100\nstate = \"{}\"\n[collector]\nurl = \"http://{collector}\"\ntoken_file = \"{}\"\n",
        below("state").display(),
        below("tokens/web1").display()
    );
    std::fs::write(below("monitor.toml"), text).unwrap();
    for _ in 0..2 {
        let mut once = Command::new(leakscope_bin());
        let output = once.args(["monitor", "once", "--config"]).arg(below("monitor.toml")).output().unwrap();
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let json = |path: &str| -> serde_json::Value { serde_json::from_str(&get(&page, path)).unwrap() };
    let all = json("/api/machines");
    let machine = &all["machines"][0];
    assert_eq!((&machine["machine"], all["machines"].as_array().unwrap().len()), (&"web1".into(), 1));
    let targets: Vec<&str> =
        machine["targets"].as_array().unwrap().iter().map(|one| one[0].as_str().unwrap()).collect();
    let expected = ["kernel:page-tables", "kernel:percpu", "kernel:slab", "kernel:stacks", "kernel:vmalloc"];
    assert_eq!(targets, expected);
    let board = json("/api/board?machine=web1");
    assert_eq!((&board["machine"], &board["targets"][2]["verdict"]), (&"web1".into(), &"learning".into()));
    let metrics = get(&page, "/metrics");
    let seen = machine["seen"].as_u64().unwrap();
    for expected in [
        format!("leakscope_machine_last_heard_timestamp_seconds{{machine=\"web1\"}} {seen}\n"),
        format!("leakscope_machine_targets{{machine=\"web1\"}} {}\n", targets.len()),
    ] {
        assert!(metrics.contains(&expected), "{expected}: {metrics}");
    }
    // What the page draws is what the machine's own history has.
    let series = json("/api/series?machine=web1&target=kernel:slab&seconds=3600");
    let history = History::open_read_only(&below("state/history.sqlite")).unwrap();
    let rows = history.rows("kernel:slab", Scale::Raw, 0, u64::MAX >> 1).unwrap();
    let values: Vec<Option<u64>> = rows.iter().map(|row| row.values[0]).collect();
    assert_eq!((&series["values"]["resident"], values.is_empty()), (&serde_json::json!(values), false));
    assert_eq!(board["targets"][2]["resident"].as_f64(), values.last().unwrap().map(|bytes| bytes as f64));
}
