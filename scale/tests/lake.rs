//! Histories to Parquet and back: by DataFusion, and by DuckDB, which we did not write, against what SQLite holds.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use leakscope_history::{Event, History, METRICS, Row, Scale, TargetSample};

const MACHINES: [&str; 3] = ["web1", "web2", "db"];
/// 2026-11-22 21:00:00, so that a day ends on the way.
const START: u64 = 1_795_381_200;

/// What `cargo xtask setup` installs below target/python, or another Python that has the same.
fn python() -> Command {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/python/bin/python");
    let path = std::env::var_os("LEAKSCOPE_PYTHON").map_or(own, PathBuf::from);
    assert!(path.exists(), "{}: not there; next: cargo xtask setup", path.display());
    Command::new(path)
}

/// Runs the program; gives what it prints.
fn lake(words: &[&str], variables: &[(String, String)]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_leakscope-lake"))
        .args(words)
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Lines of comma-separated values without commas in them, without the first.
fn fields(text: &str) -> Vec<Vec<String>> {
    text.lines().skip(1).map(|line| line.split(',').map(str::to_owned).collect()).collect()
}

/// A collector's state folder: each machine with a program that leaks, one that does not, and the kernel.
fn write(state: &Path, from: u64, ticks: u64) {
    for (number, machine) in (0u64..).zip(MACHINES) {
        let folder = state.join("machines").join(machine);
        std::fs::create_dir_all(&folder).unwrap();
        let (mut history, _) = History::open(&folder.join("history.sqlite")).unwrap();
        for step in from..from + ticks {
            let at = START + step * 20 + number;
            let sample = |target: &str, resident: u64, anonymous: Option<u64>| {
                let mut values = [None; METRICS];
                (values[0], values[1], values[5]) = (Some(resident), anonymous, Some(7 + step % 3));
                (values[2], values[6]) = ((step % 4 == 0).then_some(step), Some(100));
                TargetSample { target: target.to_owned(), life: (step / 600) as u16, values }
            };
            let wave = step * step * 7919 % 40_961;
            let samples = [
                sample("name:leaky", 300_000_000 + step * 1000 * (number + 1) + wave, Some(step * 1000 * (number + 1))),
                sample("unit:steady 'x'.service", 200_000_000 + wave, None),
                sample("kernel:slab", 1_000_000 + step % 5, None),
            ];
            let event = Event { at, target: "name:leaky".into(), kind: "restart".into(), text: format!("step {step}") };
            let events: Vec<Event> = (step % 300 == 0).then_some(event).into_iter().collect();
            history.write_tick(at, &samples, &events).unwrap();
        }
    }
}

fn history(state: &Path, machine: &str) -> History {
    History::open_read_only(&state.join("machines").join(machine).join("history.sqlite")).unwrap()
}

fn raw(state: &Path, machine: &str, target: &str) -> Vec<Row> {
    history(state, machine).rows(target, Scale::Raw, 0, u64::MAX >> 1).unwrap()
}

/// Files below a folder, by their paths in it.
fn files(folder: &Path) -> BTreeMap<String, u64> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
                found.insert(name, path.metadata().unwrap().len());
            }
        }
    }
    found
}

/// All samples in order: by SQL of DataFusion, and out of SQLite.
fn all_of_lake(url: &str, variables: &[(String, String)]) -> Vec<Vec<String>> {
    let sql = "SELECT machine, target, at_seconds, life, resident, anonymous, swap, threads, service, day FROM samples \
               ORDER BY machine, target, at_seconds";
    fields(&lake(&["query", url, "--sql", sql, "--csv"], variables))
}

fn all_of_sqlite(state: &Path) -> Vec<Vec<String>> {
    let mut all = Vec::new();
    for machine in MACHINES {
        for (target, service) in
            [("kernel:slab", "kernel"), ("name:leaky", "leaky"), ("unit:steady 'x'.service", "steady__x_.service")]
        {
            for row in raw(state, machine, target) {
                let value = |metric: usize| row.values[metric].map_or(String::new(), |value| value.to_string());
                let day = if row.at < 1_795_392_000 { "2026-11-22" } else { "2026-11-23" };
                let (at, life) = (row.at.to_string(), row.life.to_string());
                let values = [0, 1, 2, 5].map(value);
                let texts = [machine, target, &at, &life].map(str::to_owned);
                let ends = [service, day].map(str::to_owned);
                all.push(texts.into_iter().chain(values).chain(ends).collect());
            }
        }
    }
    all.sort_by(|a: &Vec<String>, b| (&a[0], &a[1], a[2].len(), &a[2]).cmp(&(&b[0], &b[1], b[2].len(), &b[2])));
    all
}

/// The same numbers, whether they are written with a point or without.
fn assert_same(found: &[Vec<String>], expected: &[Vec<String>], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}: {found:?} is not {expected:?}");
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found.len(), expected.len(), "{what}: {found:?} is not {expected:?}");
        for (a, b) in found.iter().zip(expected) {
            let same = match (a.parse::<f64>(), b.parse::<f64>()) {
                (Ok(a), Ok(b)) => (a - b).abs() <= 1e-6 * a.abs().max(b.abs()).max(1.0),
                _ => a == b,
            };
            assert!(same, "{what}: {found:?} is not {expected:?}");
        }
    }
}

#[test]
fn exported_once_and_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let (state, place) = (folder.path().join("state"), folder.path().join("lake"));
    let (url, source) = (place.to_str().unwrap(), state.to_str().unwrap());
    let export = || lake(&["export", "--state", source, "--to", url, "--source", "c1"], &[]);
    write(&state, 0, 500);
    let said = export();
    assert!(said.starts_with("4500 samples and 6 events of 3 machines"), "{said}");
    assert_eq!(all_of_lake(url, &[]), all_of_sqlite(&state));
    let before = files(&place);
    assert!(before.contains_key("samples/day=2026-11-22/service=leaky/c1-000000-000.parquet"), "{before:?}");
    // Nothing is new, then something is.
    assert!(export().starts_with("0 samples and 0 events of 0 machines"));
    assert_eq!(files(&place), before);
    write(&state, 500, 800);
    export();
    assert_eq!(all_of_lake(url, &[]), all_of_sqlite(&state));
    let events = fields(&lake(
        &["query", url, "--csv", "--sql", "SELECT machine, at_seconds, text FROM events ORDER BY at_seconds, machine"],
        &[],
    ));
    assert_eq!(events.len(), MACHINES.len() * 5);
    assert_eq!(events[1], ["web2", &(START + 1).to_string(), "step 0"]);
    for machine in MACHINES {
        let kept = history(&state, machine).events(None, 100).unwrap().len();
        assert_eq!(events.iter().filter(|event| event[0] == machine).count(), kept);
    }
}

#[test]
fn a_run_that_did_not_end_is_done_once() {
    let folder = tempfile::tempdir().unwrap();
    let (state, place) = (folder.path().join("state"), folder.path().join("lake"));
    let (url, source) = (place.to_str().unwrap(), state.to_str().unwrap());
    let export = || lake(&["export", "--state", source, "--to", url, "--source", "c1"], &[]);
    write(&state, 0, 700);
    export();
    let (first, done) = (files(&place), std::fs::read_to_string(place.join("_leakscope/c1.json")).unwrap());
    // As if it had been killed after most of its files: the plan is there, that it is done is not.
    let upto = done.split_once("\"upto\":").unwrap().1;
    let upto = &upto[..=upto.find('}').unwrap()];
    let under_way = format!("{{\"version\":1,\"next\":0,\"upto\":{{}},\"under_way\":{upto}}}");
    std::fs::write(place.join("_leakscope/c1.json"), &under_way).unwrap();
    let lost = "samples/day=2026-11-22/service=leaky/c1-000000-000.parquet";
    std::fs::remove_file(place.join(lost)).unwrap();
    // Meanwhile there is more.
    write(&state, 700, 100);
    let said = export();
    assert!(said.contains("files were there from a run that had not ended"), "{said}");
    assert_eq!(files(&place)[lost], first[lost]);
    assert_eq!(all_of_lake(url, &[]), all_of_sqlite(&state));
}

#[test]
fn one_export_at_a_time_and_wrong_words() {
    let folder = tempfile::tempdir().unwrap();
    let refuse = |words: &[&str], expected: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_leakscope-lake")).args(words).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && errors.contains(expected), "{words:?}: {errors}");
    };
    let below = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (state, place) = (below("state"), below("lake"));
    refuse(&["export", "--state", &state, "--to", &place], "no history");
    write(Path::new(&state), 0, 5);
    refuse(&["export", "--state", &state, "--to", &place], "name it with --source");
    refuse(&["export", "--state", &state, "--to", &place, "--source", "../x"], "expected letters, digits");
    refuse(&["export", "--state", &state, "--to", "ftp://x/y", "--source", "c"], "expected a folder or s3://");
    refuse(&["query", &place, "--sql", "SELECT nothing FROM samples"], "understand SELECT nothing");
    refuse(&["query", &place, "history"], "history of what?");
    let lock = std::fs::File::create(Path::new(&state).join("lake.lock")).unwrap();
    lock.lock().unwrap();
    refuse(&["export", "--state", &state, "--to", &place, "--source", "c"], "another export works there");
}

/// The answers that SQLite's rows give, by loops.
struct Slow<'a> {
    state: &'a Path,
}

impl Slow<'_> {
    fn memory(row: &Row) -> f64 {
        let anonymous = row.values[1].map(|anonymous| anonymous + row.values[2].unwrap_or(0));
        anonymous.or(row.values[0]).unwrap() as f64
    }

    fn status(&self) -> Vec<Vec<String>> {
        let mut rows = Vec::new();
        for machine in ["db", "web1", "web2"] {
            for target in ["kernel:slab", "name:leaky", "unit:steady 'x'.service"] {
                let newest = *raw(self.state, machine, target).last().unwrap();
                let texts = [newest.at.to_string(), newest.life.to_string(), Self::memory(&newest).to_string()];
                let counts = [5, 6].map(|metric: usize| newest.values[metric].unwrap().to_string());
                rows.push([machine, target].map(str::to_owned).into_iter().chain(texts).chain(counts).collect());
            }
        }
        rows
    }

    /// Ordinary least squares by centred sums, over each hour's lowest.
    fn growth(&self, machine: &str, target: &str) -> f64 {
        let mut lows: BTreeMap<u64, f64> = BTreeMap::new();
        for row in raw(self.state, machine, target) {
            let low = lows.entry(row.at / 3600).or_insert(f64::MAX);
            *low = low.min(Self::memory(&row));
        }
        let points: Vec<(f64, f64)> = lows.into_iter().map(|(hour, low)| (hour as f64, low)).collect();
        let mean = |f: fn(&(f64, f64)) -> f64| points.iter().map(f).sum::<f64>() / points.len() as f64;
        let (x, y) = (mean(|p| p.0), mean(|p| p.1));
        let across: f64 = points.iter().map(|p| (p.0 - x) * (p.1 - y)).sum();
        across / points.iter().map(|p| (p.0 - x) * (p.0 - x)).sum::<f64>()
    }
}

const DUCK: &str = r#"
import csv, sys, duckdb
place, sql = sys.argv[1], sys.argv[2]
db = duckdb.connect()
for name, folders in (("samples", "*/*"), ("events", "*")):
    db.execute(f"CREATE VIEW {name} AS SELECT * FROM read_parquet('{place}/{name}/{folders}/*.parquet', "
               "hive_partitioning = true, hive_types_autocast = false, union_by_name = true)")
writer = csv.writer(sys.stdout, lineterminator="\n")
result = db.execute(sql)
writer.writerow(column[0] for column in result.description)
writer.writerows(("" if value is None else value for value in row) for row in result.fetchall())
"#;

/// DuckDB's answer.
fn duck(place: &str, sql: &str) -> Vec<Vec<String>> {
    let output = python().args(["-c", DUCK, place, sql]).output().unwrap();
    assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
    fields(&String::from_utf8(output.stdout).unwrap())
}

#[test]
fn sqlite_datafusion_and_duckdb_say_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (state, place) = (folder.path().join("state"), folder.path().join("lake"));
    let url = place.to_str().unwrap();
    write(&state, 0, 1300);
    lake(&["export", "--state", state.to_str().unwrap(), "--to", url, "--source", "c1"], &[]);
    let slow = Slow { state: &state };
    let until = (START + 1300 * 20).to_string();
    let ask = |words: &[&str]| {
        let all = [&["query", url, "--until", &until, "--csv"], words].concat();
        let sql = lake(&[&all[..], &["--show-sql"]].concat(), &[]);
        let answer = fields(&lake(&all, &[]));
        assert_same(&duck(url, &sql), &answer, &sql);
        answer
    };
    assert_same(&ask(&["status"]), &slow.status(), "status");
    assert_same(&ask(&["status", "--machine", "db"]), &slow.status()[..3], "status of one");
    let growth = ask(&["top-growth", "--most", "3"]);
    let names: Vec<(&str, &str)> = growth.iter().map(|row| (row[0].as_str(), row[1].as_str())).collect();
    assert_eq!(names[..3], [("db", "name:leaky"), ("web2", "name:leaky"), ("web1", "name:leaky")], "{growth:?}");
    for row in &growth {
        let (found, expected): (f64, f64) = (row[2].parse().unwrap(), slow.growth(&row[0], &row[1]));
        assert!((found - expected).abs() <= 1e-6 * expected.abs().max(1.0), "{row:?}: {expected}");
    }
    // A leak of 1000 bytes each 20 s and machine number.
    assert!((growth[0][2].parse::<f64>().unwrap() / (3000.0 * 180.0) - 1.0).abs() < 0.02, "{growth:?}");
    for target in ["name:leaky", "unit:steady 'x'.service"] {
        let found = ask(&["history", target, "--machine", "web2", "--bin", "5m"]);
        let kept = history(&state, "web2").rows(target, Scale::FiveMinutes, 0, u64::MAX >> 1).unwrap();
        assert_eq!(found.len(), kept.len());
        for (found, kept) in found.iter().zip(kept) {
            let number = |column: usize| found[column].parse::<f64>().unwrap();
            assert_eq!((number(1), number(2)), (kept.at as f64, f64::from(kept.life)));
            // SQLite's means are rounded.
            assert!((number(4) - kept.values[0].unwrap() as f64).abs() <= 0.5, "{found:?} is not {kept:?}");
            let (low, high) = kept.extremes.unwrap();
            assert_eq!((number(5), number(6)), (low as f64, high as f64));
        }
    }
    assert_eq!(ask(&["events", "--most", "100"]).len(), MACHINES.len() * 5);
    let all = duck(
        url,
        "SELECT machine, target, at_seconds, life, resident, anonymous, swap, threads, service, day FROM samples ORDER BY machine, target, at_seconds",
    );
    assert_eq!(all, all_of_sqlite(&state));
}

const MOTO: &str = r#"
import sys, boto3
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1",
                      aws_access_key_id="a", aws_secret_access_key="b")
client.create_bucket(Bucket="lake")
print(port, flush=True)
sys.stdin.read()
"#;

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_store_that_speaks_s3() {
    let mut child =
        python().args(["-c", MOTO]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let _server = Server(child);
    let port: u16 = line.trim().parse().expect("moto says its port");
    let variables: Vec<(String, String)> = [
        ("AWS_ENDPOINT", format!("http://127.0.0.1:{port}")),
        ("AWS_ALLOW_HTTP", "true".to_owned()),
        ("AWS_ACCESS_KEY_ID", "a".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "b".to_owned()),
        ("AWS_REGION", "us-east-1".to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let url = "s3://lake/some/prefix";
    let export = || lake(&["export", "--state", state.to_str().unwrap(), "--to", url, "--source", "c1"], &variables);
    write(&state, 0, 400);
    export();
    write(&state, 400, 400);
    let said = export();
    assert!(said.starts_with("3600 samples"), "{said}");
    assert!(export().starts_with("0 samples"));
    assert_eq!(all_of_lake(url, &variables), all_of_sqlite(&state));
}
