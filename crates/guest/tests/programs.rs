//! Programs under the kernel interface against the same programs alone: same output, same end.
//!
//! Each fixture runs three times: natively, on the processor with its system calls caught (an error there is the kernel
//! interface's), and on the translating engine. At the end, the interface's list of mappings has to be the kernel's.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

fn folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The runner, built once as the static executable that it has to be.
fn runner() -> &'static Path {
    static RUNNER: OnceLock<PathBuf> = OnceLock::new();
    RUNNER.get_or_init(|| {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guest_run");
        let status = Command::new("sh")
            .arg(folder().join("examples/build.sh"))
            .env("CARGO_TARGET_DIR", &target)
            .stderr(Stdio::null())
            .status()
            .expect("sh runs");
        assert!(status.success(), "crates/guest/examples/build.sh fails: run it to see why");
        target.join("x86_64-unknown-linux-gnu/release/examples/guest_run")
    })
}

/// A program whose name is the fixture's, with what goes with it.
fn build(fixture: &str, to: &Path) -> PathBuf {
    let program = to.join(fixture);
    let status = Command::new("gcc")
        .args(["-O1", "-g", "-w", "-pthread", "-o"])
        .arg(&program)
        .arg(folder().join(format!("fixtures/{fixture}.c")))
        .status()
        .expect("gcc is installed (cargo xtask setup)");
    assert!(status.success());
    program
}

fn run(mut command: Command) -> Output {
    // A hang is a failure, and `timeout` says so with its status.
    command.stdin(Stdio::null()).output().expect("timeout is installed")
}

fn limited(seconds: u32) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", &seconds.to_string()]);
    command
}

fn same(what: &str, native: &Output, ours: &Output) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert_eq!(text(&ours.stdout), text(&native.stdout), "{what}: output; standard error: {}", text(&ours.stderr));
    assert_eq!((ours.status.code(), ours.status.signal()), (native.status.code(), native.status.signal()), "{what}");
}

fn compare(fixture: &str, seconds: u32) {
    let folder = tempfile::tempdir().unwrap();
    let program = build(fixture, folder.path());
    let started = |options: &[&str]| {
        let mut command = limited(seconds);
        if !options.is_empty() {
            command.arg(runner()).args(&options[1..]);
        }
        command.arg(&program);
        run(command)
    };
    let native = started(&[]);
    assert!(!native.stdout.is_empty(), "{fixture} says nothing: {native:?}");
    same(&format!("{fixture} on the processor"), &native, &started(&["run", "--native", "--verify"]));
    same(&format!("{fixture} on the engine"), &native, &started(&["run", "--verify"]));
    same(&format!("{fixture} with checks"), &native, &started(&["run", "--checks"]));
    same(&format!("{fixture} with children"), &native, &started(&["run", "--verify", "--children"]));
}

/// A shell command on programs of the distribution.
fn compare_shell(what: &str, script: &str, seconds: u32) {
    let folder = tempfile::tempdir().unwrap();
    let started = |prefix: &[&str]| {
        let mut command = limited(seconds);
        command.args(prefix).args(["/bin/bash", "-c", script]).current_dir(folder.path());
        run(command)
    };
    let native = started(&[]);
    let runner = runner().to_str().unwrap();
    same(what, &native, &started(&[runner]));
    same(&format!("{what}, children as well"), &native, &started(&[runner, "--verify", "--children"]));
}

#[test]
fn threads() {
    compare("threads", 60);
}

#[test]
fn signals() {
    compare("signals", 60);
}

#[test]
fn processes() {
    compare("processes", 120);
}

#[test]
fn memory() {
    compare("memory", 60);
}

#[test]
fn storm() {
    compare("storm", 120);
}

#[test]
fn fairness() {
    compare("fairness", 60);
}

#[test]
fn shells() {
    compare_shell(
        "pipes and traps",
        "trap 'echo trapped' USR1; kill -USR1 $$; seq 1 1000 | sort -rn | head -3; (exit 4); echo $?; \
         x=$(cat <(echo sub)); echo $x; sleep 10 & kill %1; wait %1; echo $?; set -- a b; echo $#; \
         for i in 1 2 3; do echo $i; done | while read y; do echo r$y; done; ulimit -s 4096; bash -c 'ulimit -s'; exit 9",
        120,
    );
    compare_shell("death by a signal", "kill -SEGV $$", 60);
    compare_shell("many jobs", "for i in $(seq 20); do (echo $i; exit $i) & done | sort -n; wait; echo done", 120);
}

#[test]
fn perl() {
    compare_shell(
        "perl",
        r#"perl -e '$SIG{ALRM} = sub { print "alarm\n"; $n++ }; alarm 1; 1 until $n; print `echo sub`;
           $p = fork; exit 3 if !$p; waitpid $p, 0; print $? >> 8, "\n"; open F, "|-", "cat" or die; print F "piped\n";
           close F; print system("exit 5") >> 8, "\n"; kill "TERM", $$; sleep 5'"#,
        60,
    );
}

#[test]
fn make() {
    compare_shell(
        "make -j",
        "printf 'all: $(addprefix f,1 2 3 4 5 6 7 8)\\n\\t@cat $^ | sort\\nf%%:\\n\\t@echo $@ > $@; sleep 0.0$*\\nbad:\\n\\t@exit 3\\n' \
         > Makefile; make -j4 all; make bad 2>/dev/null; echo $?",
        120,
    );
}
