//! `leakscope monitor` on real programs: one that leaks under `leakscope run`, and its steady twin.
//!
//! Time is compressed: samples each second, and windows of a minute instead of eleven. The program leaks as fast in
//! proportion: 12 MB a minute instead of one.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
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
    let profiles: Value = serde_json::from_str(&http(&address, "/api/profiles?target=name:lse-leaky")).unwrap();
    let taken = profiles["sources"]["ledger"].as_array().and_then(|times| times.last()?.as_u64()).expect("a profile");
    let profile = http(&address, &format!("/api/profile?target=name:lse-leaky&source=ledger&at={taken}"));
    assert!(profile.contains(site["fingerprint"].as_str().unwrap()) && profile.contains("keep_request"), "{profile}");
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
        // On a machine where nothing happens a sample may find nothing: files stay that each have an inode and a name.
        let mut made = 0;
        let found = loop {
            let found: Value = serde_json::from_str(&http(&address, "/api/found?target=kernel:trace")).unwrap();
            if let Some(first) = found["found"].as_array().unwrap().first() {
                break first.clone();
            }
            assert!(begin.elapsed() < PATIENCE, "{:#?}", daemon.said);
            for number in made..made + 500 {
                File::create(folder.path().join(number.to_string())).unwrap();
            }
            made += 500;
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

/// A control group of its own with a limit for memory, in whichever version this machine has.
struct Group {
    folder: PathBuf,
    name: String,
}

impl Group {
    fn new(name: &str, limit: &str) -> Option<Self> {
        let second = Path::new("/sys/fs/cgroup");
        let (root, limit_file, swap_file) = if second.join("cgroup.controllers").exists() {
            // The controller must be handed down to groups below the root.
            let _ = std::fs::write(second.join("cgroup.subtree_control"), "+memory");
            (second.to_owned(), "memory.max", "memory.swap.max")
        } else {
            (second.join("memory"), "memory.limit_in_bytes", "memory.swappiness")
        };
        let folder = root.join(name);
        let made = std::fs::create_dir(&folder).and_then(|()| std::fs::write(folder.join(limit_file), limit));
        if let Err(error) = made {
            eprintln!("left out: no control group with a limit can be made here: {error}");
            let _ = std::fs::remove_dir(&folder);
            return None;
        }
        // Without swap there is nothing to keep from it.
        let _ = std::fs::write(folder.join(swap_file), "0");
        Some(Self { folder, name: format!("/{name}") })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A process that is being ended keeps its group for a moment.
        let begin = Instant::now();
        while std::fs::remove_dir(&self.folder).is_err() && begin.elapsed() < Duration::from_secs(10) {
            std::thread::yield_now();
        }
    }
}

/// Adds as many megabytes as each line says, and writes them.
const GROWS: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
int main(void) {
    long megabytes;
    while (scanf("%ld", &megabytes) == 1) {
        memset(malloc(megabytes << 20), 1, megabytes << 20);
        puts("done");
        fflush(stdout);
    }
}
"#;

#[test]
fn near_its_limit_a_group_is_captured_before_the_oom_killer_comes() {
    if Tool::from_env().unwrap() != Tool::Leakscope {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let Some(group) = Group::new(&format!("leakscope-test-{}", std::process::id()), "134217728") else { return };
    std::fs::write(at("grows.c"), GROWS).unwrap();
    let gcc = Run::new("gcc").args(["-g", "-o"]).arg(at("lse-grows")).arg(at("grows.c"));
    assert_eq!(gcc.finish().unwrap().ending, Ending::Exit(0));
    let config = format!(
        "interval = \"2s\"\nkernel = false\npressure = 100\nstate = \"{}\"\nwindow = \"2m\"\n[[watch]]\ncgroup = \"{}\"\ncore = \"once\"\n",
        at("state").display(),
        group.name
    );
    std::fs::write(at("monitor.toml"), config).unwrap();
    let script = "echo $$ > \"$0/cgroup.procs\" && exec \"$1\"";
    let mut child = Command::new("sh")
        .args(["-c", script])
        .arg(&group.folder)
        .arg(at("lse-grows"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut child = Killed(child);
    let mut lines = BufReader::new(output).lines();
    let mut grow = |megabytes: u32| {
        writeln!(input, "{megabytes}").unwrap();
        lines.next()
    };
    assert_eq!(grow(60).unwrap().unwrap(), "done");
    let mut daemon = Daemon::start(&at("monitor.toml"));
    daemon.wait_for(&["watching every 2 s"]);
    // 126 of 128 MiB: above 95 %.
    assert_eq!(grow(66).unwrap().unwrap(), "done");
    let line = daemon.wait_for(&["near a limit: ", "captures/"]);
    let capture = std::fs::read_to_string(line.split("near a limit: ").nth(1).unwrap()).unwrap();
    for expected in ["lse-grows", "Rss:", "other anonymous memory 13", "regions of arenas"] {
        assert!(capture.contains(expected), "{expected}: {capture}");
    }
    daemon.wait_for(&["growing: cgroup:", " of 134 MB in its control group, 0 OOM kills"]);
    let line = daemon.wait_for(&["core of process ", "the process stood still for "]);
    assert!(line.contains(&child.0.id().to_string()) && line.contains("1 threads"), "{line}");
    let core = std::fs::read_dir(at("state/cores")).unwrap().next().unwrap().unwrap();
    let meta = core.metadata().unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&meta.permissions()) & 0o777, 0o600);
    assert!(meta.len() > 120 << 20, "{meta:?}");
    let gdb = Run::new("gdb").args(["-nx", "-batch", "-ex", "backtrace"]).arg(at("lse-grows")).arg(core.path());
    let said = gdb.finish().unwrap();
    assert!(String::from_utf8_lossy(&said.stdout).contains("main ()"), "{}", said.stderr);
    // All of that came in time: it still runs. Then it asks for too much.
    assert!(child.0.try_wait().unwrap().is_none());
    assert!(grow(200).is_none_or(|line| line.is_err()), "the OOM killer came");
    let status = child.0.wait().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{status}");
    daemon.wait_for(&["growing: cgroup:", ": the OOM killer ended a process of its control group of 134 MB; 1 so far"]);
    daemon.stop();
    let history =
        Run::new(leakscope_bin()).args(["monitor", "history", &group.name, "--config"]).arg(at("monitor.toml"));
    let history = String::from_utf8(history.finish().unwrap().stdout).unwrap();
    for expected in ["oom       the OOM killer ended", "core      a core of process ", "made of"] {
        assert!(history.contains(expected), "{expected}: {history}");
    }
}

/// As near the limit of a group: what the program itself may map.
#[test]
fn near_its_own_limit_a_program_is_captured_before_memory_is_refused() {
    if Tool::from_env().unwrap() != Tool::Leakscope {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("grows.c"), GROWS).unwrap();
    let gcc = Run::new("gcc").args(["-g", "-o"]).arg(at("lse-bounded")).arg(at("grows.c"));
    assert_eq!(gcc.finish().unwrap().ending, Ending::Exit(0));
    let config = format!(
        "interval = \"12s\"\nkernel = false\npressure = 100\nstate = \"{}\"\n[[watch]]\nname = \"lse-bounded\"\n",
        at("state").display(),
    );
    std::fs::write(at("monitor.toml"), config).unwrap();
    let mut child = Command::new("sh")
        .args(["-c", "ulimit -v 262144; exec \"$0\""])
        .arg(at("lse-bounded"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let child = Killed(child);
    let mut lines = BufReader::new(output).lines();
    let mut grow = |megabytes: u32| {
        writeln!(input, "{megabytes}").unwrap();
        lines.next()
    };
    assert_eq!(grow(210).unwrap().unwrap(), "done");
    let mut daemon = Daemon::start(&at("monitor.toml"));
    daemon.wait_for(&["watching every 12 s"]);
    // 250 of 256 MiB, and as soon as they are mapped: they need not be written yet.
    assert_eq!(grow(38).unwrap().unwrap(), "done");
    let line = daemon.wait_for(&["near a limit: ", "captures/"]);
    let capture = std::fs::read_to_string(line.split("near a limit: ").nth(1).unwrap()).unwrap();
    for expected in [&format!("process {} lse-bounded", child.0.id()), "Rss:", "other anonymous memory 2"] {
        assert!(capture.contains(expected), "{expected}: {capture}");
    }
    daemon.wait_for(&["growing: name:lse-bounded: ", "of 268 MB addresses are mapped", "RLIMIT_AS"]);
    // It still goes on; more is refused, and that ends it.
    assert_eq!(grow(1).unwrap().unwrap(), "done");
    assert!(grow(20).is_none());
}

/// A small generator of moments: the same in each run.
fn moments(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}

fn sqlite(path: &Path, words: &str) -> String {
    let output = Command::new("sqlite3").arg("-readonly").arg(path).arg(words).output().expect("sqlite3 is installed");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Killed at moments of all kinds: the file stays whole, and what a reader has seen stays in it. `LEAKSCOPE_TEST_KILLS`
/// says how often.
#[test]
fn killed_again_and_again_it_loses_nothing_that_was_kept() {
    if Tool::from_env().unwrap() != Tool::Leakscope {
        return;
    }
    let kills = std::env::var("LEAKSCOPE_TEST_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(30u32);
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    // An hour of rows becomes chunks when the next hour begins, so that kills meet that step as well.
    let config = format!(
        "interval = \"1s\"\nwindow = \"1m\"\nkernel = true\npressure = 100\nstate = \"{}\"\n[[watch]]\ntop = 20\n",
        at("state").display()
    );
    std::fs::write(at("monitor.toml"), config).unwrap();
    let path = at("state/history.sqlite");
    let newest = || sqlite(&path, "SELECT coalesce(max(at), 0) FROM ticks").parse::<u64>().unwrap_or(0);
    let rows = || sqlite(&path, "SELECT count(*) FROM ticks").parse::<u64>().unwrap_or(0);
    let mut next = moments(0x9e37_79b9_7f4a_7c15);
    for kill in 0..kills {
        let (known, before) = (rows(), newest());
        let daemon = Command::new(leakscope_bin())
            .args(["monitor", "run", "--config"])
            .arg(at("monitor.toml"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut daemon = Killed(daemon);
        let begin = Instant::now();
        if kill % 2 == 0 {
            // As soon as somebody has seen a row of it.
            while newest() <= before {
                assert!(
                    daemon.0.try_wait().unwrap().is_none() && begin.elapsed() < PATIENCE,
                    "it writes its first row"
                );
            }
        } else {
            // In the middle of whatever it does then: opening, the first pass, the first write, or its sleep.
            std::thread::sleep(Duration::from_micros(next() % 300_000));
        }
        let (seen, newest_seen) = (rows(), newest());
        daemon.0.kill().unwrap();
        daemon.0.wait().unwrap();
        assert!(seen >= known && rows() >= seen, "kill {kill}: {known} rows, {seen} seen, {} left", rows());
        assert!(newest() >= newest_seen, "kill {kill}");
        assert_eq!(sqlite(&path, "PRAGMA integrity_check"), "ok", "kill {kill}");
    }
    assert!(!at("state/history.damaged").exists());
    // The next one goes on, with the alarms and the queue as they were.
    let mut daemon = Daemon::start(&at("monitor.toml"));
    daemon.wait_for(&["watching every 1 s"]);
    let last = newest();
    let begin = Instant::now();
    while newest() <= last {
        assert!(begin.elapsed() < PATIENCE);
    }
    assert!(!daemon.said.iter().any(|line| line.contains("damaged")), "{:#?}", daemon.said);
    daemon.stop();
    let history = Run::new(leakscope_bin())
        .args(["monitor", "history", "kernel:slab", "--csv", "--last=1h", "--config"])
        .arg(at("monitor.toml"));
    let text = String::from_utf8(history.finish().unwrap().stdout).unwrap();
    let times: Vec<u64> = text.lines().skip(1).map(|row| row.split(',').next().unwrap().parse().unwrap()).collect();
    assert!(times.windows(2).all(|pair| pair[1] > pair[0]), "a row twice: {text}");
    assert!(times.len() as u64 >= u64::from(kills / 2), "{kills} kills and {} rows", times.len());
}

/// A user's own monitor: what belongs to others is watched as far as it can be, and that is said once.
#[test]
fn without_root_what_cannot_be_seen_is_said_once() {
    const NOBODY: u32 = 65534;
    if Tool::from_env().unwrap() != Tool::Leakscope || !rustix::process::geteuid().is_root() {
        eprintln!("left out: another user's process is needed, and only root can start one");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    // Where the build lies need not be everybody's to read.
    std::fs::copy(leakscope_bin(), at("leakscope")).unwrap();
    std::fs::copy("/bin/sleep", at("lse-foreign")).unwrap();
    std::fs::copy("/bin/sleep", at("lse-own")).unwrap();
    std::fs::create_dir(at("state")).unwrap();
    let config = format!(
        "interval = \"1s\"\nwindow = \"1m\"\nkernel = false\nstate = \"{}\"\n\
         [[watch]]\nname = \"lse-foreign\"\n[[watch]]\nname = \"lse-own\"\n",
        at("state").display()
    );
    std::fs::write(at("monitor.toml"), config).unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(folder.path(), open).unwrap();
    std::os::unix::fs::chown(at("state"), Some(NOBODY), Some(NOBODY)).unwrap();
    let sleep = |name: &str| {
        let mut command = Command::new(at(name));
        command.arg("1000");
        command
    };
    let as_nobody = |command: &mut Command| command.uid(NOBODY).gid(NOBODY).spawn().unwrap();
    let _foreign = Killed(sleep("lse-foreign").spawn().unwrap());
    let _own = Killed(as_nobody(&mut sleep("lse-own")));
    let mut run = Command::new(at("leakscope"));
    run.args(["monitor", "run", "--config"]).arg(at("monitor.toml")).current_dir("/");
    let mut daemon = Killed(as_nobody(run.stderr(Stdio::from(File::create(at("said")).unwrap()))));
    let rows = || sqlite(&at("state/history.sqlite"), "SELECT count(*) FROM ticks").parse::<u64>().unwrap_or(0);
    let begin = Instant::now();
    while rows() < 4 {
        assert!(daemon.0.try_wait().unwrap().is_none() && begin.elapsed() < PATIENCE, "it watches");
        std::thread::yield_now();
    }
    let said = std::fs::read_to_string(at("said")).unwrap();
    let blind: Vec<&str> = said.lines().filter(|line| line.contains("another user's")).collect();
    assert!(
        matches!(blind[..], [line] if line.contains("name:lse-foreign:") && line.contains("run as root")),
        "{said}"
    );
    let row = |name: &str| {
        let mut history = Command::new(at("leakscope"));
        history.args(["monitor", "history", name, "--csv", "--last=1h", "--config"]).arg(at("monitor.toml"));
        let text = String::from_utf8(history.output().unwrap().stdout).unwrap();
        text.lines().last().unwrap_or_default().to_owned()
    };
    for name in ["name:lse-foreign", "name:lse-own"] {
        let resident = row(name).split(',').nth(2).and_then(|text| text.parse::<u64>().ok());
        assert!(resident.is_some_and(|bytes| bytes > 0), "{name}: {}", row(name));
    }
}
