//! `leakscope monitor` on real programs: one that leaks under `leakscope run`, and its steady twin.
//!
//! Time is compressed: samples each second, and windows of a minute instead of eleven. The program leaks as fast in
//! proportion: 12 MB a minute instead of one.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use leakscope_e2e::{Ending, Run, Tool, leakscope_bin};
use serde_json::Value;

/// In compressed time 15 minutes are 82 s; what a slow machine takes beyond that is not ours.
const PATIENCE: Duration = Duration::from_secs(300);
const FIFTEEN_MINUTES: u64 = 82;

const PROGRAM: &str = r#"
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct request { struct request *next; char text[16000]; };
static struct request *kept;

__attribute__((noinline)) static void keep_request(void) {
    struct request *one = malloc(sizeof *one);
    memset(one, 1, sizeof *one);
    one->next = kept;
    kept = one;
}

__attribute__((noinline)) static void drop_reply(void) {
    char *reply = malloc(4000);
    memset(reply, 2, 4000);
    __asm__ volatile("" : : "r"(reply) : "memory");
}

__attribute__((noinline)) static void serve(int leaks) {
    if (leaks) {
        keep_request();
        drop_reply();
    } else {
        char *text = malloc(20000);
        memset(text, 3, 20000);
        __asm__ volatile("" : : "r"(text) : "memory");
        free(text);
    }
}

int main(int argc, char **argv) {
    for (;;) {
        serve(argc > 1);
        usleep(100000);
    }
}
"#;

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A program under `leakscope run`; the program itself ends with its launcher's end of standard input or by its parent.
struct Traced {
    launcher: Killed,
    pid: u32,
}

impl Drop for Traced {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg("-9").arg(self.pid.to_string()).stderr(Stdio::null()).status();
        let _ = self.launcher.0.wait();
    }
}

fn build(folder: &Path, name: &str) -> PathBuf {
    let (source, program) = (folder.join("server.c"), folder.join(name));
    std::fs::write(&source, PROGRAM).unwrap();
    let gcc = Run::new("gcc").args(["-g", "-O1", "-fno-optimize-sibling-calls", "-o"]).arg(&program).arg(&source);
    assert_eq!(gcc.finish().unwrap().ending, Ending::Exit(0));
    program
}

fn trace(program: &Path, arguments: &[&str]) -> Traced {
    let mut child = Command::new(leakscope_bin())
        .args(["run", "-q", "-o", "/dev/null", "--"])
        .arg(program)
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let begin = Instant::now();
    let pid = loop {
        let path = format!("/proc/{0}/task/{0}/children", child.id());
        let children = std::fs::read_to_string(path).unwrap_or_default();
        if let Some(pid) = children.split_whitespace().next().and_then(|pid| pid.parse().ok()) {
            break pid;
        }
        assert!(child.try_wait().unwrap().is_none() && begin.elapsed() < PATIENCE, "the launcher starts the program");
        std::thread::yield_now();
    };
    Traced { launcher: Killed(child), pid }
}

/// The daemon, and what it says.
struct Daemon {
    child: Killed,
    lines: std::io::Lines<BufReader<ChildStderr>>,
    said: Vec<String>,
}

impl Daemon {
    fn start(config: &Path) -> Self {
        let mut child = Command::new(leakscope_bin())
            .args(["monitor", "run", "--config"])
            .arg(config)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        Self { child: Killed(child), lines, said: Vec::new() }
    }

    /// Reads until a line holds all of these words; gives it.
    fn wait_for(&mut self, words: &[&str]) -> String {
        let begin = Instant::now();
        if let Some(line) = self.said.iter().find(|line| words.iter().all(|word| line.contains(word))) {
            return line.clone();
        }
        loop {
            let line = self.lines.next().unwrap_or_else(|| panic!("the daemon ended: {:#?}", self.said)).unwrap();
            self.said.push(line.clone());
            if words.iter().all(|word| line.contains(word)) {
                return line;
            }
            assert!(begin.elapsed() < PATIENCE, "{words:?} did not come: {:#?}", self.said);
        }
    }

    fn stop(mut self) {
        let done = Command::new("kill").arg(self.child.0.id().to_string()).status().unwrap();
        assert!(done.success());
        assert!(self.child.0.wait().unwrap().success());
    }
}

fn json(arguments: &[&str]) -> Value {
    let output = Command::new(leakscope_bin()).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn frames(record: &Value) -> String {
    record["stack"].to_string()
}

fn http(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{path}: {answer}");
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// A notice with a finding of this key, out of those that the channel hears.
fn hear(notices: &mut impl Iterator<Item = std::io::Result<String>>, heard: &mut Vec<Value>, key: &str) -> Value {
    let of = |notice: &Value| {
        let findings = notice["findings"].as_array().unwrap();
        findings.iter().find(|finding| finding["key"].as_str().unwrap().starts_with(key)).cloned()
    };
    if let Some(found) = heard.iter().find_map(of) {
        return found;
    }
    loop {
        let line = notices.next().expect("the daemon goes on").unwrap();
        let notice: Value = serde_json::from_str(&line).unwrap();
        heard.push(notice);
        if let Some(found) = heard.last().and_then(of) {
            return found;
        }
    }
}

#[test]
fn a_leak_is_alarmed_with_its_site_and_its_twin_never() {
    if Tool::from_env().unwrap() != Tool::Leakscope {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    assert!(Command::new("mkfifo").arg(at("notices")).status().unwrap().success());
    let config = format!(
        "interval = \"1s\"\nwindow = \"1m\"\nleak_check = \"20s\"\nkernel = false\npressure = 100\nstate = \"{0}/state\"\n\
         [[watch]]\nname = \"lse-leaky\"\nwarm_up = \"0s\"\n[[watch]]\nname = \"lse-twin\"\nwarm_up = \"0s\"\n\
         [page]\nlisten = \"127.0.0.1:0\"\n\
         [[command]]\nrun = [\"sh\", \"-c\", \"{{ cat; echo; }} | tr -d '\\n' > {0}/line; echo >> {0}/line; cat {0}/line > {0}/notices\"]\n",
        folder.path().display()
    );
    std::fs::write(at("monitor.toml"), config).unwrap();
    // Opened for reading and writing: it does not end between two notices.
    let fifo = File::options().read(true).write(true).open(at("notices")).unwrap();
    let (mut notices, mut heard) = (BufReader::new(fifo).lines(), Vec::new());
    // The launchers come first: only what has a ledger is judged by it.
    let leaky = trace(&build(folder.path(), "lse-leaky"), &["leak"]);
    let _twin = trace(&build(folder.path(), "lse-twin"), &[]);
    let mut daemon = Daemon::start(&at("monitor.toml"));
    let address = daemon.wait_for(&["the page: http://"]);
    let address = address.split("http://").nth(1).unwrap().trim_end_matches('/').to_owned();
    let begin = Instant::now();
    daemon.wait_for(&["growing: name:lse-leaky: ", " grows by "]);
    let took = begin.elapsed().as_secs();
    eprintln!("alarmed after {took} s; 15 minutes are {FIFTEEN_MINUTES} s in this test");

    let finding = hear(&mut notices, &mut heard, "name:lse-leaky/memory");
    let rate = finding["per_hour"].as_f64().unwrap();
    assert!((0.3..1.3).contains(&(rate / 720e6)), "20 kB in some more than 100 ms: {rate}");
    let site = &finding["evidence"][0];
    assert!(site["stack"].to_string().contains("keep_request (server.c:"), "{finding:#}");
    assert_eq!((&site["source"], &site["is_new"]), (&"ledger".into(), &true.into()));

    // The oracle for identities is the report of `leakscope snapshot`.
    let pid = leaky.pid.to_string();
    let report = json(&["snapshot", "--format=json", "--show-leak-kinds=all", &pid]);
    let records = report["records"].as_array().unwrap();
    let of = |function: &str| records.iter().find(|record| frames(record).contains(function)).unwrap();
    assert_eq!(site["fingerprint"], of("keep_request")["fingerprint"]);
    assert_eq!(of("keep_request")["kind"], "reachable");

    // What nothing points to is found by the periodic check.
    let leak = hear(&mut notices, &mut heard, "name:lse-leaky/leak/");
    assert_eq!(leak["evidence"][0]["source"], "leak check");
    assert_eq!(leak["evidence"][0]["fingerprint"], of("drop_reply")["fingerprint"]);
    assert!(leak["title"].as_str().unwrap().contains("definitely lost at drop_reply (server.c:"), "{leak:#}");

    // The twin: no word of it anywhere, and a verdict that is not growth.
    let board: Value = serde_json::from_str(&http(&address, "/api/board")).unwrap();
    let verdict = |id: &str| {
        let targets = board["targets"].as_array().unwrap();
        targets.iter().find(|target| target["id"] == id).unwrap()["verdict"].clone()
    };
    assert_eq!((verdict("name:lse-leaky"), verdict("name:lse-twin") == "growing"), ("growing".into(), false));
    assert!(!heard.iter().any(|notice| notice.to_string().contains("lse-twin")), "{heard:#?}");
    assert!(
        !daemon.said.iter().any(|line| line.contains("growing") && line.contains("lse-twin")),
        "{:#?}",
        daemon.said
    );

    let found = http(&address, "/api/found?target=name:lse-leaky");
    assert!(found.contains(site["fingerprint"].as_str().unwrap()), "{found}");
    let metrics = http(&address, "/metrics");
    assert!(metrics.contains("leakscope_target_growing{target=\"name:lse-leaky\"} 1\n"), "{metrics}");
    assert!(metrics.contains("leakscope_target_growing{target=\"name:lse-twin\"} 0\n"));
    let why = Run::new(leakscope_bin()).args(["monitor", "why", "lse-leaky", "--config"]).arg(at("monitor.toml"));
    let why = String::from_utf8(why.finish().unwrap().stdout).unwrap();
    assert!(why.contains("GROWS") || why.contains("grows by"), "{why}");
    assert!(why.contains(site["fingerprint"].as_str().unwrap()), "{why}");
    // A second daemon on the same folder is refused.
    let second = Run::new(leakscope_bin()).args(["monitor", "run", "--config"]).arg(at("monitor.toml"));
    let second = second.finish().unwrap();
    assert_eq!(second.ending, Ending::Exit(2));
    assert!(second.stderr.contains("another `leakscope monitor` works there"), "{}", second.stderr);
    daemon.stop();
}

/// A file system of its own, small and ours to fill.
struct Small(PathBuf);

impl Small {
    fn mount(folder: &Path) -> Option<Self> {
        let at = folder.join("small");
        std::fs::create_dir(&at).unwrap();
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"]).arg(&at).output().unwrap();
        if !mount.status.success() {
            eprintln!("left out: no file system can be mounted here: {}", String::from_utf8_lossy(&mount.stderr));
            return None;
        }
        Some(Self(at))
    }

    fn remount(&self, how: &str) {
        let done = Command::new("mount").args(["-o", &format!("remount,{how}")]).arg(&self.0).status().unwrap();
        assert!(done.success());
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_is_said_once_and_loses_nothing() {
    if Tool::from_env().unwrap() != Tool::Leakscope {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let Some(small) = Small::mount(folder.path()) else { return };
    let config = folder.path().join("monitor.toml");
    let text = format!(
        "interval = \"1s\"\nwindow = \"1m\"\nkernel = true\npressure = 100\nstate = \"{}\"\n",
        small.0.join("state").display()
    );
    std::fs::write(&config, text).unwrap();
    let mut daemon = Daemon::start(&config);
    daemon.wait_for(&["watching every 1 s"]);
    let mut filler = File::create(small.0.join("filler")).unwrap();
    // As much as there is room for.
    while filler.write(&[0; 4096]).is_ok_and(|bytes| bytes > 0) {}
    let line = daemon.wait_for(&["history", "cannot write a tick", "make room"]);
    assert!(line.contains("history.sqlite"), "{line}");
    drop(filler);
    std::fs::remove_file(small.0.join("filler")).unwrap();
    daemon.wait_for(&["the history can be written again"]);
    let complaints = daemon.said.iter().filter(|line| line.contains("make room")).count();
    assert_eq!(complaints, 1, "{:#?}", daemon.said);
    daemon.stop();
    let history = Run::new(leakscope_bin())
        .args(["monitor", "history", "kernel:slab", "--csv", "--last=1h", "--config"])
        .arg(&config);
    let rows = String::from_utf8(history.finish().unwrap().stdout).unwrap();
    let at: Vec<u64> = rows.lines().skip(1).map(|row| row.split(',').next().unwrap().parse().unwrap()).collect();
    // The pass that failed, and the one after it.
    assert!(at.len() >= 2 && at.windows(2).all(|pair| pair[1] - pair[0] <= 3), "a gap: {rows}");
    // What cannot be written at all is refused at the start.
    small.remount("ro");
    let refused = Run::new(leakscope_bin()).args(["monitor", "run", "--config"]).arg(&config).finish().unwrap();
    assert_eq!(refused.ending, Ending::Exit(2));
    assert!(refused.stderr.contains("Read-only") && refused.stderr.contains("state"), "{}", refused.stderr);
    // Who only looks needs no writing.
    let status = Run::new(leakscope_bin()).args(["monitor", "status", "--json", "--config"]).arg(&config);
    let status = status.finish().unwrap();
    assert!(String::from_utf8_lossy(&status.stdout).contains("kernel:slab"), "{}", status.stderr);
}

#[test]
fn the_kernel_is_traced_on_a_schedule() {
    if Tool::from_env().unwrap() != Tool::Leakscope {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("monitor.toml");
    let text = format!(
        "interval = \"1s\"\nwindow = \"1m\"\npressure = 100\nkmemleak = \"1h\"\nkernel_trace = \"1h\"\nstate = \"{0}/state\"\n\
         [page]\nlisten = \"127.0.0.1:0\"\n",
        folder.path().display()
    );
    std::fs::write(&config, text).unwrap();
    // What this kernel offers is what `leakscope kernel` says by itself.
    let run = |arguments: &[&str]| Run::new(leakscope_bin()).args(arguments).limit(PATIENCE).finish().unwrap();
    let by_hand = run(&["kernel", "scan", "--min-age=5s", "--format=json"]);
    let trace = run(&["kernel", "trace", "--once", "--for=1s", "--format=json"]);
    let mut daemon = Daemon::start(&config);
    let address = daemon.wait_for(&["the page: http://"]);
    let address = address.split("http://").nth(1).unwrap().trim_end_matches('/').to_owned();
    if by_hand.ending != Ending::Exit(0) {
        let reason = by_hand.stderr.lines().last().unwrap().trim_start_matches("leakscope: ").to_owned();
        daemon.wait_for(&["kmemleak of kernel:kmemleak: ", &reason]);
    }
    if trace.ending == Ending::Exit(0) {
        let begin = Instant::now();
        let found = loop {
            let found: Value = serde_json::from_str(&http(&address, "/api/found?target=kernel:trace")).unwrap();
            if let Some(first) = found["found"].as_array().unwrap().first() {
                break first.clone();
            }
            assert!(begin.elapsed() < PATIENCE, "{:#?}", daemon.said);
            std::thread::sleep(Duration::from_millis(200));
        };
        assert_eq!(found["source"], "kernel trace");
        assert_eq!(found["fingerprint"].as_str().unwrap().len(), 16);
        assert!(found["stack"].as_array().unwrap().len() > 1, "{found}");
    } else {
        let reason = trace.stderr.lines().last().unwrap().trim_start_matches("leakscope: ").to_owned();
        daemon.wait_for(&["kernel trace of kernel:trace: ", &reason]);
    }
    daemon.stop();
}
