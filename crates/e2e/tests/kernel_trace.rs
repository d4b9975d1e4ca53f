//! `leakscope kernel trace` and `leakscope trace` as they are used, on the kernel that runs here. Where programs may not be
//! loaded, each test says so and passes: `cargo xtask vm` runs the tracer then.
//!
//! Oracles: the number of objects that a program of ours makes, and the identity of the same leak under `leakscope run`.

mod screen;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use leakscope_e2e::{Ending, Run, Tool, leakscope_bin, repo_root};
use screen::Screen;
use serde_json::Value;

/// One tracer at a time: each takes time from the others' programs.
static ALONE: Mutex<()> = Mutex::new(());

/// Objects that a program makes in a step.
const HELD: usize = 300;

/// The lock; `None` where another tool is tested.
fn alone() -> Option<MutexGuard<'static, ()>> {
    (Tool::from_env().unwrap() == Tool::Leakscope).then(|| ALONE.lock().unwrap_or_else(PoisonError::into_inner))
}

/// A program that makes eventfds, each of which has one file and one block of kmalloc, and closes them, when it is told.
struct Holder {
    child: Child,
    said: BufReader<std::process::ChildStdout>,
}

impl Holder {
    fn start(name: &str) -> Self {
        let script = format!(
            "import os,sys\nopen('/proc/self/comm','w').write('{name}')\nheld=[]\nprint('ready',flush=True)\n\
             for line in sys.stdin:\n if line=='hold\\n': held=[os.eventfd(0) for _ in range({HELD})]\n else:\n  \
             for f in held: os.close(f)\n  held=[]\n print('done',flush=True)\n"
        );
        let mut child = Command::new("python3")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3");
        let said = BufReader::new(child.stdout.take().expect("piped"));
        let mut holder = Self { child, said };
        holder.hear();
        holder
    }

    fn pid(&self) -> String {
        self.child.id().to_string()
    }

    fn hear(&mut self) {
        let mut line = String::new();
        self.said.read_line(&mut line).expect("it answers");
        assert!(matches!(line.as_str(), "ready\n" | "done\n"), "{line:?}");
    }

    /// Lets it do something, and waits until it has.
    fn tell(&mut self, word: &str) {
        writeln!(self.child.stdin.as_mut().expect("piped"), "{word}").expect("it reads");
        self.hear();
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A tracer that watches until it is interrupted.
struct Tracer {
    child: Child,
    errors: BufReader<std::process::ChildStderr>,
    out: PathBuf,
    _folder: tempfile::TempDir,
}

impl Tracer {
    /// Starts it and waits until it watches; `None` where it may not.
    #[expect(clippy::zombie_processes, reason = "whoever drops it waits")]
    fn start(words: &[&str]) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let mut child = Command::new(leakscope_bin())
            .args(words)
            .args(["--for", "0"])
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(&out).unwrap())
            .stderr(Stdio::piped())
            .spawn()
            .expect("leakscope");
        let mut errors = BufReader::new(child.stderr.take().expect("piped"));
        let mut said = String::new();
        loop {
            let begin = said.len();
            if errors.read_line(&mut said).expect("text") == 0 {
                child.wait().expect("it ends");
                assert!(!said.contains("does not take"), "{said}");
                eprintln!("not run here: {said}");
                return None;
            }
            if said[begin..].contains("Ctrl-C ends it") {
                return Some(Self { child, errors, out, _folder: folder });
            }
        }
    }

    /// Interrupts it: its exit code, what it printed, and what it said.
    fn interrupt(mut self) -> (Option<i32>, String, String) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it runs");
        let mut said = String::new();
        self.errors.read_to_string(&mut said).expect("text");
        let status = self.child.wait().expect("it ends");
        (status.code(), std::fs::read_to_string(&self.out).unwrap(), said)
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // Of a test that has failed; otherwise it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run(words: &[&str]) -> (Ending, String, String) {
    let finished = Run::new(leakscope_bin()).args(words).finish().unwrap();
    (finished.ending, String::from_utf8_lossy(&finished.stdout).into_owned(), finished.stderr)
}

/// A line of `--print-events`: whether it is a release, the address, and who called.
fn event(line: &str, pid: &str) -> (bool, String, String) {
    // Time, task/process/thread, alloc or free, kind, address, "N of M" of an allocation, caller.
    let words: Vec<&str> = line.split_whitespace().collect();
    let [seconds, task, what, "kmalloc", address, rest @ ..] = &words[..] else { panic!("{line}") };
    assert!(seconds.parse::<f64>().is_ok() && task.starts_with(&format!("lse-events/{pid}/")), "{line}");
    if *what == "free" {
        return (true, (*address).to_owned(), String::new());
    }
    let [requested, "of", usable, caller, ..] = rest else { panic!("{line}") };
    let number = |word: &str| word.parse::<u64>().unwrap_or_else(|_| panic!("{line}"));
    assert!(*what == "alloc" && number(requested) <= number(usable), "{line}");
    (false, (*address).to_owned(), (*caller).to_owned())
}

#[test]
fn events_are_printed_one_by_one() {
    let Some(_alone) = alone() else { return };
    let mut holder = Holder::start("lse-events");
    let pid = holder.pid();
    let words = ["kernel", "trace", "--kmalloc", "--pid", &pid, "--print-events", "--events-per-second"];
    let Some(tracer) = Tracer::start(&[&words[..], &["1000000"]].concat()) else { return };
    holder.tell("hold");
    holder.tell("close");
    let (code, out, said) = tracer.interrupt();
    let mut by_caller: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut released = BTreeSet::new();
    for line in out.lines() {
        let (is_release, address, caller) = event(line, &pid);
        if is_release {
            released.insert(address);
        } else {
            by_caller.entry(caller).or_default().push(address);
        }
    }
    let contexts = by_caller.values().find(|addresses| addresses.len() == HELD);
    let contexts = contexts.unwrap_or_else(|| panic!("no caller with {HELD}: {out}{said}"));
    assert!(contexts.iter().all(|address| released.contains(address)), "{out}");
    assert_eq!(code, Some(0));
    assert!(said.contains(&format!("{} events printed; 0 above the rate", out.lines().count())), "{said}");

    // A rate bounds what is printed, and what is above it is counted.
    let Some(tracer) = Tracer::start(&[&words[..], &["10"]].concat()) else { return };
    holder.tell("hold");
    holder.tell("close");
    let (_, out, said) = tracer.interrupt();
    let numbers: Vec<usize> = said.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    assert!(numbers.len() >= 2 && numbers[0] == out.lines().count() && numbers[0] < HELD, "{said}");
    assert!(numbers[0] + numbers[1] >= 2 * HELD, "{said}");
}

/// Objects of the cache of open files that a report has.
fn files(json: &str) -> u64 {
    let report: Value = serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {json}"));
    let sites = report["sites"].as_array().expect("sites").iter();
    let blocks = sites.filter(|site| site["cache"] == "filp").map(|site| {
        assert_eq!(site["outstanding"]["blocks"]["margin"], 0.0, "everything is tracked");
        site["outstanding"]["blocks"]["value"].as_f64().expect("a number")
    });
    blocks.sum::<f64>() as u64
}

/// A control group of our own, with one process in it; removed at the end.
struct Group(PathBuf);

impl Group {
    /// `None` where none can be made.
    fn with(pid: &str) -> Option<Self> {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let root = mounts.lines().find_map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            (words.get(2) == Some(&"cgroup2")).then(|| PathBuf::from(words[1]))
        })?;
        let group = Self(root.join(format!("leakscope-test-{pid}")));
        std::fs::create_dir(&group.0).ok()?;
        std::fs::write(group.0.join("cgroup.procs"), pid).ok()?;
        Some(group)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
fn only_what_is_asked_for_is_tracked() {
    let Some(_alone) = alone() else { return };
    let mut others = [Holder::start("lse-one"), Holder::start("lse-two")];
    let [one, two] = others.each_ref().map(Holder::pid);
    let group = Group::with(&two);
    let mut filters = vec![vec!["--pid", &one], vec!["--comm", "lse-two"]];
    let path = group.as_ref().map(|group| group.0.to_str().unwrap().to_owned());
    match &path {
        Some(path) => filters.push(vec!["--cgroup", path]),
        None => eprintln!("--cgroup is not run here: no control group can be made"),
    }
    for filter in filters {
        let words = ["kernel", "trace", "--slab", "--sample", "0", "--min-age", "0", "--json"];
        let Some(tracer) = Tracer::start(&[&words[..], &filter].concat()) else { return };
        others.iter_mut().for_each(|holder| holder.tell("hold"));
        let (code, out, said) = tracer.interrupt();
        others.iter_mut().for_each(|holder| holder.tell("close"));
        assert_eq!((code, files(&out)), (Some(0), HELD as u64), "{filter:?}: {said}");
    }
    // The process has to leave its group before that goes.
    drop(others);
    for (words, why) in [
        (["--module", "no_such_module"], "no_such_module is not loaded"),
        (["--cgroup", "/no/such/group"], "/no/such/group"),
    ] {
        let (ending, _, said) = run(&[&["kernel", "trace", "--for", "1s"][..], &words].concat());
        assert_eq!((ending, said.lines().count()), (Ending::Exit(2), 1), "{said}");
        assert!(said.contains(why), "{said}");
    }
}

#[test]
fn the_view_follows_what_is_outstanding() {
    let Some(_alone) = alone() else { return };
    let mut holder = Holder::start("lse-view");
    let pid = holder.pid();
    let words = ["kernel", "trace", "--slab", "--sample", "0", "--min-age", "0", "--for", "0", "--pid", &pid];
    match Tracer::start(&words[..words.len() - 4]) {
        Some(tracer) => drop(tracer.interrupt()),
        None => return,
    }
    let mut screen = Screen::start(&[&words[..], &["--interval", "200ms"]].concat());
    screen.until_shown("outstanding after");
    holder.tell("hold");
    let shown = format!("in {HELD} blocks  slab filp");
    screen.until_shown(&shown);
    holder.tell("close");
    screen.until("what is closed is gone", |screen| !screen.contents().contains(&shown));
    // Ctrl-C.
    screen.press("\x03");
    assert!(screen.child.wait().unwrap().success());
}

/// Numbers of the BPF programs that a process has open.
fn programs_of(pid: u32) -> Vec<u32> {
    let folder = std::fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("the process is there");
    let texts = folder.flatten().filter_map(|entry| std::fs::read_to_string(entry.path()).ok());
    texts.filter_map(|text| text.lines().find_map(|line| line.strip_prefix("prog_id:")?.trim().parse().ok())).collect()
}

/// Whether the kernel has a program of this number.
fn is_loaded(number: u32) -> bool {
    const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;
    let mut attributes = [0u32; 16];
    attributes[0] = number;
    // SAFETY: the kernel reads so many bytes, and writes none for this command.
    let fd =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_GET_FD_BY_ID, &raw const attributes, size_of_val(&attributes)) };
    if fd >= 0 {
        // SAFETY: the descriptor was made above, and nobody else knows it.
        unsafe { libc::close(fd as i32) };
    }
    fd >= 0
}

/// Waits for readers of RCU, after which the kernel lets programs go.
fn grace_period() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_long = 1;
    // SAFETY: the command takes no memory.
    unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
}

#[test]
fn an_interrupted_tracer_leaves_nothing() {
    let Some(_alone) = alone() else { return };
    let Some(tracer) = Tracer::start(&["kernel", "trace", "--once"]) else { return };
    let programs = programs_of(tracer.child.id());
    assert!(programs.len() >= 8 && programs.iter().all(|&number| is_loaded(number)), "{programs:?}");
    let (code, out, said) = tracer.interrupt();
    assert_eq!(code, Some(0), "{said}");
    assert!(out.contains("outstanding after"), "{out}");
    let is_gone = |_: &u32| {
        grace_period();
        !programs.iter().any(|&number| is_loaded(number))
    };
    assert!((0..2000).any(|round| is_gone(&round)), "still loaded, of {programs:?}");
}

/// The fingerprints of the records that have `function` in their stack and at least `blocks` blocks. Smaller ones come and
/// go: the kernel makes the table of descriptors larger, or takes a page for a list of owners.
fn identities(recording: &Path, function: &str, blocks: usize) -> BTreeSet<String> {
    let (ending, out, said) =
        run(&["report", "--format=json", "--leak-check=full", "--show-leak-kinds=all", recording.to_str().unwrap()]);
    assert!(matches!(ending, Ending::Exit(0)), "{said}");
    let mut found = BTreeSet::new();
    for line in out.lines().filter(|line| line.starts_with('{')) {
        let report: Value = serde_json::from_str(line).unwrap();
        for record in report["records"].as_array().unwrap() {
            let has = record["blocks"].as_u64().unwrap();
            if record["stack"].to_string().contains(function) && has >= blocks as u64 {
                found.insert(record["fingerprint"].as_str().unwrap().to_owned());
            }
        }
    }
    found
}

/// The same leak of `blocks` blocks in two recordings: every report has it, it is neither new nor gone, and a baseline of
/// one holds it back in the other.
fn compare(first: &Path, second: &Path, function: &str, blocks: usize) {
    let own = identities(first, function, blocks);
    assert!(!own.is_empty(), "{function} is in no record");
    assert_eq!(own, identities(second, function, blocks), "{function}");
    let [first, second] = [first, second].map(|path| path.to_str().unwrap());
    for format in ["text", "html"] {
        let (ending, out, said) = run(&["report", &format!("--format={format}"), "--num-callers=50", first]);
        assert!(ending == Ending::Exit(0) && out.contains(function), "{format}: {said}");
    }
    let (_, out, said) = run(&["diff", "--format=json", first, second]);
    let report: Value = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}{said}"));
    let sites = report["sites"].as_array().expect("sites").iter();
    let changes: Vec<&str> = sites
        .filter(|site| own.contains(site["fingerprint"].as_str().expect("a fingerprint")))
        .filter_map(|site| site["change"].as_str())
        .filter(|change| ["new", "gone"].contains(change))
        .collect();
    assert!(changes.is_empty(), "{changes:?}: {out}");
    let folder = tempfile::tempdir().unwrap();
    let baseline = folder.path().join("baseline");
    let baseline = baseline.to_str().unwrap();
    let names_own = |out: &str| own.iter().any(|fingerprint| out.contains(fingerprint));
    let (ending, out, _) = run(&["gate", second]);
    assert!(ending == Ending::Exit(1) && names_own(&out), "without a baseline: {out}");
    assert_eq!(run(&["baseline", "update", "--baseline", baseline, first]).0, Ending::Exit(0));
    let (ending, out, said) = run(&["gate", "--new-only", "--baseline", baseline, second]);
    assert!(matches!(ending, Ending::Exit(0 | 1)) && !names_own(&out), "{out}{said}");
}

#[test]
fn recordings_of_the_kernel_compare() {
    let Some(_alone) = alone() else { return };
    let folder = tempfile::tempdir().unwrap();
    let paths = ["first.leak", "second.leak"].map(|name| folder.path().join(name));
    for path in &paths {
        let mut holder = Holder::start("lse-record");
        let pid = holder.pid();
        let words = ["kernel", "trace", "--kmalloc", "--sample", "0", "--min-age", "0", "--once", "--pid", &pid, "-o"];
        let Some(tracer) = Tracer::start(&[&words[..], &[path.to_str().unwrap()]].concat()) else { return };
        holder.tell("hold");
        let (code, _, said) = tracer.interrupt();
        assert_eq!(code, Some(0), "{said}");
    }
    compare(&paths[0], &paths[1], "eventfd", HELD / 2);
}

/// Blocks that [`LEAKY`] leaks.
const LOST: usize = 50;

/// Leaks `LOST` blocks when it is told to, in a function of its own.
const LEAKY: &str = "#include <stdio.h>\n#include <stdlib.h>\n\
    __attribute__((noinline)) void *lose_block(void) { void *p = malloc(4000); __asm__ volatile(\"\" ::: \"memory\"); return p; }\n\
    int main(void) { char line[8]; puts(\"ready\"); fflush(stdout);\n\
    while (fgets(line, sizeof line, stdin)) { for (int i = 0; i < LOST; i++) lose_block(); puts(\"done\"); fflush(stdout); }\n\
    return 0; }\n";

#[test]
fn recordings_of_a_program_compare() {
    let Some(_alone) = alone() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (source, program) = (folder.path().join("leaky.c"), folder.path().join("leaky"));
    std::fs::write(&source, LEAKY).unwrap();
    let built = Run::new("gcc")
        .args(["-g", "-O1", &format!("-DLOST={LOST}"), "-o"])
        .arg(&program)
        .arg(&source)
        .finish()
        .unwrap();
    assert_eq!(built.ending, Ending::Exit(0), "{}", built.stderr);
    let paths = ["first.leak", "second.leak", "run.leak"].map(|name| folder.path().join(name));
    for path in &paths[..2] {
        let mut child =
            Command::new(&program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the program");
        let said = BufReader::new(child.stdout.take().expect("piped"));
        let mut holder = Holder { child, said };
        holder.hear();
        let pid = holder.pid();
        let words = ["trace", "--sample", "0", "--min-age", "0", "--once", "-o", path.to_str().unwrap(), &pid];
        let Some(tracer) = Tracer::start(&words) else { return };
        holder.tell("go");
        let (code, _, said) = tracer.interrupt();
        assert_eq!(code, Some(0), "{said}");
    }
    compare(&paths[0], &paths[1], "lose_block", LOST);
    // The engine inside of the program gives the leak the same identity.
    let input = folder.path().join("input");
    std::fs::write(&input, "go\n").unwrap();
    let ran = Run::new(leakscope_bin()).args(["run", "-q", "-o"]).arg(&paths[2]).arg(&program).stdin(&input);
    assert_eq!(ran.finish().unwrap().ending, Ending::Exit(0));
    assert_eq!(identities(&paths[0], "lose_block", LOST), identities(&paths[2], "lose_block", LOST));
}

/// The build script itself, as cargo runs it, where there is no compiler for BPF.
#[test]
fn a_build_without_clang_says_so_and_goes_on() {
    if Tool::from_env().unwrap() != Tool::Leakscope {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("build");
    let source = repo_root().join("crates/ebpf");
    let built = Run::new("rustc").args(["--edition=2024", "-o"]).arg(&program).arg(source.join("build.rs"));
    assert_eq!(built.finish().unwrap().ending, Ending::Exit(0));
    let finished = Run::new(&program)
        .env("PATH", folder.path())
        .env("CLANG", "no-such-clang")
        .env("OUT_DIR", folder.path())
        .dir(&source)
        .finish()
        .unwrap();
    assert_eq!(finished.ending, Ending::Exit(0), "{}", finished.stderr);
    let said = String::from_utf8_lossy(&finished.stdout).into_owned();
    let warning = said.lines().find(|line| line.starts_with("cargo::warning=")).unwrap_or_else(|| panic!("{said}"));
    for words in ["`kernel trace` and `trace` are left out", "install clang"] {
        assert!(warning.contains(words), "{warning}");
    }
    // What the command says at run time.
    assert!(said.contains("cargo::rustc-env=LEAKSCOPE_EBPF_ABSENT=no clang"), "{said}");
    assert_eq!(std::fs::metadata(folder.path().join("kmem.bpf.o")).unwrap().len(), 0);
}
