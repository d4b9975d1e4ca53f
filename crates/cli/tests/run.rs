//! The command as a user runs it: exit codes, signals, wrong input, files.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;

fn leakscope() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leakscope"));
    command.env_remove("LEAKSCOPE_OPTS").env("HOME", env!("CARGO_TARGET_TMPDIR"));
    command
}

fn run(words: &[&str]) -> Output {
    leakscope().arg("run").args(words).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// A program that leaks 3 blocks of 100 bytes, then does what its first argument says.
fn leaky() -> &'static str {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    let path = PATH.get_or_init(|| {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let (source, path) = (directory.join("leaky.c"), directory.join(format!("leaky-{}", std::process::id())));
        std::fs::write(&source, LEAKY).unwrap();
        let status =
            Command::new("gcc").args(["-g", "-O0", "-pthread", "-o"]).arg(&path).arg(&source).status().unwrap();
        assert!(status.success());
        path
    });
    path.to_str().unwrap()
}

const LEAKY: &str = r#"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
static volatile int got;
static void on_signal(int number) { got = number; }
static void *volatile sink;
__attribute__((noinline)) static void leak(void) {
    for (int i = 0; i < 3; i++) sink = malloc(100);
    sink = NULL;
}
int main(int argc, char **argv) {
    leak();
    if (argc > 2) {
        int wanted = atoi(argv[2]);
        struct sigaction action = {.sa_handler = on_signal};
        sigaction(wanted, &action, NULL);
        sigset_t blocked, old;
        sigemptyset(&blocked);
        sigaddset(&blocked, wanted);
        sigprocmask(SIG_BLOCK, &blocked, &old);
        puts("ready");
        fflush(stdout);
        if (argc > 3) sigprocmask(SIG_SETMASK, &old, NULL);
        while (!got) {
            if (argc > 3) free(malloc(10)); else sigsuspend(&old);
        }
    }
    return argc > 1 ? atoi(argv[1]) : 0;
}
"#;

#[test]
fn exit_codes() {
    for (words, expected) in [
        (&[leaky(), "0"][..], 0),
        (&[leaky(), "7"], 7),
        (&["--error-exitcode=99", leaky(), "7"], 99),
        (&["--error-exitcode=99", "--errors-for-leak-kinds=reachable", leaky(), "7"], 7),
        (&["--error-exitcode=99", "true"], 0),
        (&["--error-exitcode=99", "false"], 1),
    ] {
        let output = run(words);
        assert_eq!(output.status.code(), Some(expected), "{words:?}: {}", stderr(&output));
    }
}

#[test]
fn the_report_names_the_leak() {
    let output = run(&[leaky()]);
    let text = stderr(&output);
    assert!(text.contains("300 bytes in 3 blocks are definitely lost"), "{text}");
    assert!(text.contains("leak (leaky.c:10)"), "{text}");
    assert!(output.stdout.is_empty());
}

#[test]
fn a_deadly_signal_is_passed_on_after_the_report() {
    let output = run(&["sh", "-c", "kill -USR1 $$"]);
    assert_eq!(output.status.signal(), Some(libc::SIGUSR1), "{}", stderr(&output));
    assert!(stderr(&output).contains("==") && stderr(&output).contains("SIGUSR1"), "{}", stderr(&output));
    assert!(!output.status.core_dumped());
}

/// A process with a group of its own, which is gone when the test is, however that ends.
struct Guarded(Child);

impl Guarded {
    fn spawn(command: &mut Command) -> Self {
        let heed_signals = || {
            for signal in [libc::SIGINT, libc::SIGHUP, libc::SIGTERM, libc::SIGUSR1] {
                // SAFETY: takes numbers only, and may be called between fork and exec.
                unsafe { libc::signal(signal, libc::SIG_DFL) };
            }
            Ok(())
        };
        // Whoever starts the tests in the background has their signals ignored, and what they start inherits that.
        // SAFETY: the closure allocates nothing.
        unsafe { command.pre_exec(heed_signals) };
        Self(command.process_group(0).spawn().unwrap())
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: the group is the child's; a group that is gone makes the call fail.
        unsafe { libc::kill(-(self.0.id() as i32), libc::SIGKILL) };
        let _ = self.0.wait();
    }
}

/// Starts `leaky` waiting for a signal; gives the child once the program is ready.
fn waiting(signal: i32, more: &[&str]) -> Guarded {
    let mut command = leakscope();
    command.args(["run", leaky(), "5", &signal.to_string()]).args(more);
    let mut child = Guarded::spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
    let mut line = String::new();
    BufReader::new(child.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    child
}

#[test]
fn signals_from_processes_go_on_to_the_program() {
    for signal in [libc::SIGTERM, libc::SIGHUP, libc::SIGINT, libc::SIGUSR1] {
        let mut guarded = waiting(signal, &[]);
        let child = &mut guarded.0;
        // SAFETY: the process is our child and not waited for.
        assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
        let mut text = String::new();
        child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(5), "signal {signal}: {text}");
        assert!(text.contains("300 bytes in 3 blocks are definitely lost"), "{text}");
    }
}

#[test]
fn snapshots_of_idle_and_busy_programs() {
    for more in [&[][..], &["busy"]] {
        snapshot_of(waiting(libc::SIGTERM, more));
    }
}

fn snapshot_of(mut guarded: Guarded) {
    let child = &mut guarded.0;
    // The traced program is the launcher's only child.
    let path = format!("/proc/{0}/task/{0}/children", child.id());
    let pid = std::fs::read_to_string(path).unwrap().trim().to_owned();
    let output = leakscope().args(["snapshot", &pid]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("300 bytes in 3 blocks are definitely lost"), "{text}");
    // SAFETY: as above.
    assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGTERM) }, 0);
    assert_eq!(child.wait().unwrap().code(), Some(5));
}

#[test]
fn waiting_for_a_daemon_ends_at_the_users_wish() {
    let directory = scratch();
    let fifo = directory.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    // The daemon closes its end of the pipe that we read from.
    let script = format!("(exec 2>&-; read line < {}) & exit 4", fifo.display());
    let mut child = Guarded::spawn(leakscope().args(["run", "bash", "-c", &script]).stderr(Stdio::piped()));
    let mut lines = BufReader::new(child.0.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("waiting for its children")));
    // SAFETY: the process is our child and not waited for.
    assert_eq!(unsafe { libc::kill(child.0.id() as i32, libc::SIGINT) }, 0);
    let rest: Vec<String> = lines.map(|line| line.unwrap()).collect();
    assert_eq!(child.0.wait().unwrap().code(), Some(4), "{rest:?}");
    assert!(rest.iter().any(|line| line.contains("HEAP SUMMARY")), "{rest:?}");
    // Lets the daemon end.
    std::fs::write(&fifo, "end\n").unwrap();
}

#[test]
fn nobody_waits_for_programs_that_are_not_traced() {
    let directory = scratch();
    let fifo = directory.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    // cat holds no end of our pipes and stays until the fifo has been opened and closed.
    let script = format!("exec 2>&-; cat {} >/dev/null & exit 4", fifo.display());
    let output = run(&["bash", "-c", &script]);
    assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
    std::fs::write(&fifo, "end\n").unwrap();
}

#[test]
fn a_program_that_execs_gets_a_hint() {
    let script = format!("exec {}", leaky());
    let output = run(&["sh", "-c", &script]);
    assert!(stderr(&output).contains("--trace-children=yes"), "{}", stderr(&output));
    let output = run(&["--trace-children=yes", "sh", "-c", &script]);
    let text = stderr(&output);
    assert!(text.contains("300 bytes in 3 blocks are definitely lost") && !text.contains("--trace-children"), "{text}");
}

/// Its one function is chosen by the loader's relocation of the program, before any constructor and any allocation.
const DIES_EARLY: &str = r#"
static int one(void) { return 0; }
static void *pick(void) {
    long pid, end;
    __asm__ volatile("syscall" : "=a"(pid) : "a"(39) : "rcx", "r11", "memory");
    __asm__ volatile("syscall" : "=a"(end) : "a"(62), "D"(pid), "S"(9) : "rcx", "r11", "memory");
    return one;
}
int chosen(void) __attribute__((ifunc("pick")));
int main(void) { return chosen(); }
"#;

#[test]
fn a_program_that_ends_before_recording_began_gets_readable_reports() {
    let directory = scratch();
    let at = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (source, program, missing) = (at("early.c"), at("early"), at("missing"));
    std::fs::write(&source, DIES_EARLY).unwrap();
    let build = Command::new("gcc").args(["-O1", "-Wl,-z,now", "-o", &program, &source]).status().unwrap();
    assert!(build.success());
    // A library that is not there: the loader gives up with exit code 127.
    let library = at("libgone.so");
    for words in [
        &["-shared", "-fPIC", "-x", "c", "/dev/null", "-o", &library][..],
        &["-Wl,--no-as-needed", "-o", &missing, "-x", "c", &at("main.c"), "-x", "none", &library],
    ] {
        std::fs::write(at("main.c"), "int main(void) { return 0; }").unwrap();
        assert!(Command::new("gcc").args(words).status().unwrap().success());
    }
    std::fs::remove_file(&library).unwrap();

    for (program, code, signal) in [(&program, None, Some(9)), (&missing, Some(127), None)] {
        let recording = at("out.leak");
        let _ = std::fs::remove_file(&recording);
        let output = run(&["-q", "--error-exitcode=99", "-o", &recording, program]);
        assert_eq!((output.status.code(), output.status.signal()), (code, signal), "{}", stderr(&output));
        assert!(stderr(&output).contains("nothing is known of it"), "{}", stderr(&output));
        let again = leakscope().args(["report", &recording]).output().unwrap();
        let text = String::from_utf8_lossy(&again.stdout);
        assert_eq!(again.status.code(), Some(0), "{}", stderr(&again));
        assert!(text.contains("Nothing was recorded, and blocks are not classified"), "{text}");
        let json = leakscope().args(["report", "--format", "json", &recording]).output().unwrap();
        let json = String::from_utf8_lossy(&json.stdout);
        assert!(json.contains(r#""state":"new""#) && json.contains(r#""classified":false"#), "{json}");
        assert!(json.contains(program.as_str()), "the command stands in the report: {json}");
    }
}

#[test]
fn wrong_input_has_one_sentence_and_exit_code_2() {
    let directory = scratch();
    let at = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(at("bad.supp"), "{\n   name\n   Memcheck:Leak\n   fnu:malloc\n}\n").unwrap();
    std::fs::write(at("foreign.leak"), "this is something else entirely").unwrap();
    let (supp, missing_supp) = (format!("--suppressions={}", at("bad.supp")), format!("--suppressions={}", at("none")));
    let nowhere = at("no/such/file.leak");
    let foreign = at("foreign.leak");
    let none = at("none.leak");
    let log = format!("--log-file={}", at("no/such/log"));
    for (words, expected) in [
        (&["run", "no-such-program"][..], "no such program"),
        (&["run", "/"], "directory"),
        (&["run", &supp, "true"], "bad.supp:4"),
        (&["run", &missing_supp, "true"], "cannot read the suppression file"),
        (&["run", "-o", &nowhere, "true"], "cannot write there"),
        (&["run", &log, "true"], "cannot create the log file"),
        (&["run", "--log-fd=77", "true"], "file descriptor 77"),
        (&["run", "--xml=yes", "true"], "--xml-file"),
        (&["run", "--log-file=%q{NOT_SET_AT_ALL}", "true"], "NOT_SET_AT_ALL is not set"),
        (&["run", "--num-callers=none", "true"], "--num-callers"),
        (&["report", &none], "cannot read the recording"),
        (&["report", &foreign], "foreign.leak"),
        (&["snapshot", "8388608"], "no such process"),
        (&["frobnicate"], "frobnicate"),
    ] {
        let output = leakscope().args(words).output().unwrap();
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {text}");
        assert!(text.contains(expected), "{words:?}: {text}");
        assert!(output.stdout.is_empty(), "{words:?}");
    }
}

#[test]
fn a_full_disk_is_told_and_the_program_still_runs_to_its_end() {
    let directory = scratch();
    let done = directory.path().join("done");
    let script = format!("echo done > {}", done.display());
    let output = run(&["-o", "/dev/full", "sh", "-c", &script]);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("/dev/full: cannot write the report") && text.contains("No space left"), "{text}");
    assert_eq!(std::fs::read_to_string(done).unwrap(), "done\n");
}

#[test]
fn a_broken_pipe_is_no_error() {
    let mut child = leakscope().args(["run", leaky(), "3"]).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(3));
}

#[test]
fn a_recording_gives_the_same_report_again() {
    let directory = scratch();
    let path = directory.path().join("r.leak");
    let first = run(&["-o", path.to_str().unwrap(), leaky()]);
    let again = leakscope().arg("report").arg(&path).output().unwrap();
    assert!(again.status.success(), "{}", stderr(&again));
    assert_eq!(String::from_utf8_lossy(&again.stdout), stderr(&first));
    let names: Vec<_> = std::fs::read_dir(directory.path()).unwrap().collect();
    assert_eq!(names.len(), 1, "no temporary file is left");
    // Cut in the middle it still gives a sentence, not a panic.
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let cut = leakscope().arg("report").arg(&path).output().unwrap();
    assert!(matches!(cut.status.code(), Some(0 | 2)) && stderr(&cut).contains("r.leak"), "{}", stderr(&cut));
}

#[test]
fn log_files_and_xml_files_have_patterns() {
    let directory = scratch();
    let pattern = |suffix: &str| format!("{}/%q{{MARK}}.%p.{suffix}", directory.path().display());
    let output = leakscope()
        .env("MARK", "mark")
        .args([
            "run",
            &format!("--log-file={}", pattern("log")),
            "--xml=yes",
            &format!("--xml-file={}", pattern("xml")),
            leaky(),
        ])
        .output()
        .unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", stderr(&output));
    let mut found: Vec<(String, String)> = std::fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read_to_string(entry.path()).unwrap()))
        .collect();
    found.sort();
    let [(log_name, log), (xml_name, xml)] = &found[..] else { panic!("{found:?}") };
    let pid = log_name.strip_prefix("mark.").unwrap().strip_suffix(".log").unwrap();
    assert!(pid.parse::<u32>().is_ok() && log.contains(&format!("=={pid}==")), "{log}");
    assert_eq!(*xml_name, format!("mark.{pid}.xml"));
    assert!(
        xml.contains("<kind>Leak_DefinitelyLost</kind>") && xml.ends_with("</valgrindoutput>\n\n")
            || xml.trim_end().ends_with("</valgrindoutput>"),
        "{xml}"
    );
}

#[test]
fn defaults_come_before_the_command_line() {
    let home = scratch();
    std::fs::write(home.path().join(".leakscoperc"), "# mine\n--error-exitcode=41\n--quiet\n").unwrap();
    let with = |options: &str, words: &[&str]| {
        leakscope().env("HOME", home.path()).env("LEAKSCOPE_OPTS", options).arg("run").args(words).output().unwrap()
    };
    assert_eq!(with("", &[leaky()]).status.code(), Some(41));
    assert_eq!(with("--error-exitcode=42", &[leaky()]).status.code(), Some(42));
    assert_eq!(with("--error-exitcode=42", &["--error-exitcode=43", leaky()]).status.code(), Some(43));
    for wrong in ["--no-such-option", "program", "--"] {
        let output = with(wrong, &["true"]);
        assert_eq!(output.status.code(), Some(2), "{wrong}");
        assert!(stderr(&output).contains("LEAKSCOPE_OPTS"), "{}", stderr(&output));
    }
}

/// A program that links its own `malloc`: its blocks are not seen, and the report says so in every format.
#[test]
fn an_allocator_inside_the_program_is_told() {
    let directory = scratch();
    let at = |name: &str| directory.path().join(name);
    let text = "#include <stddef.h>\n\
        static char room[1 << 20];\n\
        static size_t used;\n\
        void *malloc(size_t bytes) { void *block = room + used; used += (bytes + 15) & ~15ul; return block; }\n\
        void free(void *block) { (void)block; }\n\
        static void *volatile sink;\n\
        int main(void) { for (int i = 0; i < 1000; i++) sink = malloc(100); sink = NULL; return 0; }\n";
    std::fs::write(at("own.c"), text).unwrap();
    let status = Command::new("gcc").arg("-fno-builtin").arg(at("own.c")).arg("-o").arg(at("own")).status().unwrap();
    assert!(status.success());
    let program = at("own");
    let words = "has an allocator of its own (malloc, free) linked into it, and blocks of that are not seen";
    let text = stderr(&run(&[program.to_str().unwrap()]));
    assert_eq!(text.lines().filter(|line| line.contains(words)).count(), 1, "{text}");
    assert!(text.contains("in use at exit: 0 bytes in 0 blocks"), "the claim is true: {text}");
    let json = stderr(&run(&["--format=json", program.to_str().unwrap()]));
    assert!(json.contains(words), "{json}");
    let other = stderr(&run(&[leaky()]));
    assert!(!other.contains("not seen"), "{other}");
    // Without symbols nothing is claimed.
    assert!(Command::new("strip").arg(&program).status().unwrap().success());
    assert!(!stderr(&run(&[program.to_str().unwrap()])).contains("not seen"));
}

#[test]
fn quiet_runs_say_only_what_was_found() {
    let clean = run(&["-q", "/bin/true"]);
    assert_eq!((clean.status.code(), stderr(&clean).as_str()), (Some(0), ""));
    let found = stderr(&run(&["-q", leaky()]));
    assert!(found.contains("300 bytes in 3 blocks are definitely lost"), "{found}");
    assert!(!found.contains("SUMMARY"), "{found}");
}

#[test]
fn unknown_options_are_refused_before_the_program_starts() {
    for (command, words) in [
        ("run", &["--no-such-option", "/bin/echo", "started"][..]),
        ("run", &["--leak-chek=full", "/bin/echo", "started"]),
        ("run", &["--default-suppressions=maybe", "/bin/echo", "started"]),
        ("run", &["-z", "/bin/echo", "started"]),
        ("snapshot", &["--no-such-option", "1"]),
        ("report", &["--no-such-option", "x.leak"]),
    ] {
        let output = leakscope().arg(command).args(words).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        assert!(stderr(&output).contains(words[0].split('=').next().unwrap()), "{}", stderr(&output));
        assert!(output.stdout.is_empty(), "{words:?}");
    }
    let other = leakscope().arg("no-such-command").output().unwrap();
    assert_eq!(other.status.code(), Some(2));
}

/// Thread-local storage of a library that was loaded later: hidden by default, as Memcheck does, and shown on demand.
#[test]
fn default_suppressions_hide_what_the_loader_keeps() {
    let directory = scratch();
    let at = |name: &str| directory.path().join(name);
    std::fs::write(at("tls.c"), "__thread char room[5000];\nchar *touch(void) { return room; }\n").unwrap();
    let main = "#include <dlfcn.h>\n#include <pthread.h>\n#include <stdio.h>\n#include <unistd.h>\n\
        static void *(*touch)(void);\n\
        static pthread_barrier_t ready;\n\
        static void *live(void *arg) { touch(); pthread_barrier_wait(&ready); for (;;) pause(); return arg; }\n\
        int main(int argc, char **argv) {\n\
            touch = (void *(*)(void))dlsym(dlopen(argv[argc - 1], RTLD_NOW), \"touch\");\n\
            pthread_barrier_init(&ready, 0, 2);\n\
            pthread_t thread;\n\
            pthread_create(&thread, 0, live, 0);\n\
            pthread_barrier_wait(&ready);\n\
            return 0;\n\
        }\n";
    std::fs::write(at("main.c"), main).unwrap();
    for arguments in [&["-shared", "-fPIC", "tls.c", "-o", "tls.so"][..], &["-pthread", "main.c", "-o", "main"]] {
        assert!(Command::new("gcc").current_dir(directory.path()).args(arguments).status().unwrap().success());
    }
    let (program, library) = (at("main"), at("tls.so"));
    let report = |option: &str| {
        stderr(&run(&["--show-leak-kinds=all", option, program.to_str().unwrap(), library.to_str().unwrap()]))
    };
    let has_tls = |text: &str| text.lines().any(|line| line.contains("__tls_get_addr"));
    let hidden = report("--default-suppressions=yes");
    assert!(!has_tls(&hidden), "{hidden}");
    assert!(
        hidden.contains("by glibc: thread-local storage of a library that was loaded later (built-in rules:"),
        "{hidden}"
    );
    let shown = report("--default-suppressions=no");
    assert!(has_tls(&shown) && !shown.contains("built-in rules"), "{shown}");
}
