//! `leakscope run --mtrace-log`, and programs that call `mtrace()`: what glibc's own script says of the logs, what
//! glibc's own library writes, and the tables of the fixtures.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use leakscope_e2e::{Ending, Finished, Fixture, Run, Tool, compile, fixtures_dir, leakscope_bin};
use serde_json::Value;

/// Whether the tests of `leakscope` itself are wanted.
fn is_asked() -> bool {
    Tool::from_env().unwrap() == Tool::Leakscope
}

fn leakscope(words: &[&str]) -> Finished {
    Run::new(leakscope_bin()).args(words).limit(Duration::from_secs(120)).finish().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn fixture(file: &str) -> Fixture {
    Fixture::read(&fixtures_dir().join(file)).unwrap()
}

fn built(source: &Path, dir: &Path) -> PathBuf {
    let program = dir.join("program");
    let run = Run::new("gcc").args(["-g", "-O0", "-pthread", "-w", "-o"]).arg(&program).arg(source);
    let finished = run.finish().unwrap();
    assert_eq!(finished.ending, Ending::Exit(0), "{}", finished.stderr);
    program
}

/// A program of a few lines.
fn program(dir: &Path, body: &str) -> PathBuf {
    let source = dir.join("program.c");
    let includes = "#define _GNU_SOURCE\n#include <mcheck.h>\n#include <pthread.h>\n#include <signal.h>\n#include <stdio.h>\n\
                    #include <stdlib.h>\n#include <string.h>\n#include <sys/resource.h>\n#include <sys/wait.h>\n#include <unistd.h>\n";
    std::fs::write(&source, format!("{includes}{body}")).unwrap();
    built(&source, dir)
}

/// The logs of a run in `dir`: that of the first process, and those of its children.
fn logs(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut logs: Vec<PathBuf> = entries.filter(|path| text(path).contains("/log")).collect();
    logs.sort();
    logs
}

/// What glibc's script says; `leakscope mtrace` says the same.
fn verdict(log: &Path) -> String {
    let script = Run::new("/usr/bin/mtrace").arg(log).finish().unwrap();
    let own = leakscope(&["mtrace", "--no-names", text(log)]);
    assert_eq!(String::from_utf8_lossy(&own.stdout), String::from_utf8_lossy(&script.stdout), "{}", log.display());
    assert_eq!(own.ending, script.ending);
    assert_eq!(own.stderr, "", "every line is one of mtrace's");
    String::from_utf8(script.stdout).unwrap()
}

/// Lines that say of something that cannot be.
fn oddities(verdict: &str) -> Vec<&str> {
    verdict.lines().filter(|line| line.starts_with(['+', '-']) && !line.starts_with("---")).collect()
}

/// (bytes, blocks) that were not freed, by the function that allocated them.
fn not_freed(log: &Path) -> BTreeMap<String, (u64, u64)> {
    let named = leakscope(&["mtrace", text(log)]);
    let mut sums: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for line in String::from_utf8(named.stdout).unwrap().lines().filter(|line| line.starts_with("0x")) {
        let size = line.split_whitespace().nth(1).unwrap();
        let bytes = u64::from_str_radix(size.trim_start_matches("0x"), 16).unwrap();
        let function = line.rsplit_once('(').map_or("", |(_, name)| name.trim_end_matches(')'));
        let sum = sums.entry(function.to_owned()).or_default();
        *sum = (sum.0 + bytes, sum.1 + 1);
    }
    sums
}

/// The table of leaks, whatever their kind, by case.
fn table(fixture: &Fixture) -> BTreeMap<String, (u64, u64)> {
    let mut sums: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for row in &fixture.table.leaks {
        let sum = sums.entry(format!("case_{}", row.case)).or_default();
        *sum = (sum.0 + row.bytes, sum.1 + row.blocks);
    }
    sums
}

/// Runs every build of a fixture with a log and compares the cases in it, of all processes together, with the table.
fn hold(file: &str) {
    let fixture = fixture(file);
    for program in compile(&fixture).unwrap() {
        let dir = tempfile::tempdir().unwrap();
        let option = format!("--mtrace-log={}", text(&dir.path().join("log")));
        leakscope(&["run", "-q", &option, text(&program.path)]);
        let logs = logs(dir.path());
        assert_eq!(logs.len(), fixture.reports, "{file}: {logs:?}");
        let mut found: BTreeMap<String, (u64, u64)> = BTreeMap::new();
        for log in &logs {
            assert_eq!(oddities(&verdict(log)), [""; 0], "{file} {}", program.flags);
            for (function, (bytes, blocks)) in not_freed(log) {
                let sum = found.entry(function).or_default();
                *sum = (sum.0 + bytes, sum.1 + blocks);
            }
        }
        found.retain(|function, _| function.starts_with("case_"));
        assert_eq!(found, table(&fixture), "{file} {}", program.flags);
    }
}

#[test]
fn the_script_finds_what_the_tables_say() {
    if !is_asked() {
        return;
    }
    hold("c/mtrace_intervals.c");
    hold("c/fork_child.c");
    hold("c/ends_in__exit.c");
    hold("c/ends_in_sigterm.c");
}

/// The body of a row of the second table in `mtrace_intervals.c`: case, bytes, blocks, allocated.
type Row = (String, u64, u64, u64);

fn interval_rows(source: &str, interval: &str) -> Vec<Row> {
    let rows = source.lines().filter_map(|line| line.strip_prefix(&format!("// {interval} ")));
    rows.map(|row| {
        let fields: Vec<&str> = row.split_whitespace().collect();
        let number = |at: usize| fields[at].parse().unwrap();
        (fields[0].to_owned(), number(1), number(2), number(3))
    })
    .collect()
}

#[test]
fn intervals_hold_what_their_table_says() {
    if !is_asked() {
        return;
    }
    let fixture = fixture("c/mtrace_intervals.c");
    let source = std::fs::read_to_string(&fixture.source).unwrap();
    for program in compile(&fixture).unwrap() {
        let dir = tempfile::tempdir().unwrap();
        let json = dir.path().join("report.json");
        leakscope(&["run", "--format", "json", "-o", text(&json), text(&program.path)]);
        let lines = std::fs::read_to_string(&json).unwrap();
        let mut compared = 0;
        for document in lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
            let is_child = document["process"]["origin"] == "fork";
            let intervals = document["intervals"].as_array().unwrap();
            assert_eq!(intervals.len(), 2);
            for interval in intervals {
                let name = format!("{}{}", interval["number"], if is_child { "c" } else { "p" });
                let ended = if name == "2c" { "program" } else { "muntrace" };
                assert_eq!(interval["end"], ended, "{name}");
                let mut found = interval_cases(interval);
                let mut expected = interval_rows(&source, &name);
                found.sort();
                expected.sort();
                assert!(!expected.is_empty());
                assert_eq!(found, expected, "interval {name}, {}", program.flags);
                let function = if name.starts_with('1') { "first_interval" } else { "main" };
                assert_eq!(interval["begin"]["frames"][0]["function"], function, "{name}");
                compared += 1;
            }
        }
        assert_eq!(compared, 4);
    }
}

/// The records of an interval, summed by the innermost case of their stacks.
fn interval_cases(interval: &Value) -> Vec<Row> {
    let mut sums: BTreeMap<String, (u64, u64, u64)> = BTreeMap::new();
    for record in interval["records"].as_array().unwrap() {
        let frames = record["stack"]["frames"].as_array().unwrap();
        let case = frames.iter().find_map(|frame| frame["function"].as_str()?.strip_prefix("case_"));
        let Some(case) = case else { continue };
        let number = |name: &str| record[name].as_u64().unwrap();
        let sum = sums.entry(case.to_owned()).or_default();
        let (bytes, blocks) = (number("live_bytes"), number("live_blocks"));
        *sum = (sum.0 + bytes, sum.1 + blocks, sum.2 + number("allocated_blocks"));
    }
    sums.into_iter().map(|(case, (bytes, blocks, allocated))| (case, bytes, blocks, allocated)).collect()
}

/// The events of a log without what differs between two runs: each as its caller, sign and size, and instead of its address
/// the number of the event that the block came from.
fn events(log: &Path) -> Vec<String> {
    let mut from: BTreeMap<String, usize> = BTreeMap::new();
    let text = std::fs::read_to_string(log).unwrap();
    let lines = text.lines().filter(|line| line.starts_with('@'));
    lines
        .enumerate()
        .map(|(number, line)| {
            let fields: Vec<&str> = line.split(' ').collect();
            let caller = fields[1].rsplit('/').next().unwrap();
            let block = match fields[2] {
                "+" | ">" => {
                    from.insert(fields[3].to_owned(), number).map_or("fresh".to_owned(), |old| format!("live {old}"))
                }
                _ => from.remove(fields[3]).map_or("unknown".to_owned(), |of| format!("of {of}")),
            };
            format!("{caller} {} {block} {}", fields[2], fields.get(4).unwrap_or(&""))
        })
        .collect()
}

#[test]
fn malloc_trace_gets_the_log_that_glibc_writes() {
    if !is_asked() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/import/traced.c");
    let program = built(&source, dir.path());
    let (native, ours) = (dir.path().join("native"), dir.path().join("ours"));
    let run = Run::new(&program).env("LD_PRELOAD", "libc_malloc_debug.so.0").env("MALLOC_TRACE", text(&native));
    assert_eq!(run.finish().unwrap().ending, Ending::Exit(0));
    // A relative name, as people write it.
    let run = Run::new(leakscope_bin()).args(["run", text(&program)]).env("MALLOC_TRACE", "ours").dir(dir.path());
    let finished = run.finish().unwrap();
    assert_eq!(finished.ending, Ending::Exit(0));
    assert!(events(&native).len() > 8);
    assert_eq!(events(&ours), events(&native));
    assert_eq!(oddities(&verdict(&ours)).len(), 1, "a block that is older than the log");
    assert!(finished.stderr.contains("MALLOC_TRACE is set: `leakscope run` wrote that log"), "{}", finished.stderr);
    let silent = self::program(dir.path(), "int main(void) { return 0; }");
    let run = Run::new(leakscope_bin()).args(["run", text(&silent)]).env("MALLOC_TRACE", "ours").dir(dir.path());
    assert!(run.finish().unwrap().stderr.contains("the program did not call mtrace()"));
}

#[test]
fn the_order_of_lines_can_have_happened() {
    if !is_asked() {
        return;
    }
    // Blocks go from thread to thread, are reallocated and released by whoever has them, while a handler allocates.
    let body = "
        enum { THREADS = 8, SLOTS = 256, ROUNDS = 40000 };
        static void *slots[SLOTS];
        static void on_alarm(int s) { free(malloc(40)); }
        static void *work(void *arg) {
            unsigned x = (unsigned)(size_t)arg * 2654435761u + 1;
            for (int i = 0; i < ROUNDS; i++) {
                x = x * 1664525 + 1013904223;
                void *p = __atomic_exchange_n(&slots[x >> 24], NULL, __ATOMIC_ACQ_REL);
                switch (x >> 16 & 3) {
                case 0: free(p); p = NULL; break;
                case 1: p = realloc(p, 1 + (x >> 8 & 511)); break;
                default: if (!p) p = malloc(1 + (x >> 8 & 511));
                }
                free(__atomic_exchange_n(&slots[x >> 24], p, __ATOMIC_ACQ_REL));
            }
            return NULL;
        }
        int main(void) {
            pthread_t t[THREADS];
            for (size_t i = 0; i < THREADS; i++) pthread_create(&t[i], 0, work, (void *)i);
            for (int i = 0; i < 5; i++) {
                pid_t child = fork();
                if (child == 0) { free(malloc(33)); free(realloc(malloc(34), 77)); _exit(0); }
                waitpid(child, 0, 0);
            }
            for (size_t i = 0; i < THREADS; i++) pthread_join(t[i], 0);
            signal(SIGUSR1, on_alarm);
            for (int i = 0; i < 100; i++) { void *p = malloc(i); raise(SIGUSR1); free(p); }
            for (int i = 0; i < SLOTS; i++) free(slots[i]);
            return 0;
        }";
    let dir = tempfile::tempdir().unwrap();
    let program = program(dir.path(), body);
    let option = format!("--mtrace-log={}", text(&dir.path().join("log")));
    let finished = leakscope(&["run", "-q", "--leak-check=no", &option, text(&program)]);
    assert_eq!(finished.ending, Ending::Exit(0), "{}", finished.stderr);
    let logs = logs(dir.path());
    assert_eq!(logs.len(), 6);
    for log in &logs {
        assert_eq!(oddities(&verdict(log)), [""; 0], "{}", log.display());
    }
    assert_eq!(verdict(&logs[0]), "No memory leaks.\n");
}

#[test]
fn every_kind_of_call_has_its_line() {
    if !is_asked() {
        return;
    }
    let body = "int main(void) {
            void *volatile p = malloc(10), *volatile failed = realloc(p, (size_t)1 << 62);
            if (failed) return 1;
            free(p);
            p = malloc(0);
            p = realloc(p, 20);
            p = realloc(p, 0);
            if (p) return 2;
            void *aligned[6] = { NULL, aligned_alloc(64, 128), calloc(3, 5), valloc(6), reallocarray(NULL, 3, 7), strdup(\"x\") };
            if (posix_memalign(&aligned[0], 32, 48)) return 3;
            for (int i = 0; i < 6; i++) free(aligned[i]);
            return 0;
        }";
    let dir = tempfile::tempdir().unwrap();
    let program = program(dir.path(), body);
    let log = dir.path().join("log");
    let finished = leakscope(&["run", "-q", &format!("--mtrace-log={}", text(&log)), text(&program)]);
    assert_eq!(finished.ending, Ending::Exit(0), "{}", finished.stderr);
    assert_eq!(verdict(&log), "No memory leaks.\n");
    let lines = std::fs::read_to_string(&log).unwrap();
    let signs = lines.lines().filter(|line| line.contains("/program:"));
    let signs: String = signs.map(|line| line.split(' ').nth(2).unwrap().to_owned()).collect();
    // The failed call, the block of no bytes that grows and is released by its size, the six others.
    assert_eq!(signs, format!("+<>!-+<>-{}{}", "+".repeat(5), "-".repeat(6)), "{lines}");
    assert!(lines.contains(" 0\n"), "a size of zero stands without 0x: {lines}");
    assert!(lines.contains(":(__strdup+"), "{lines}");
}

#[test]
fn a_log_is_whole_however_the_program_ends() {
    if !is_asked() {
        return;
    }
    let allocate = "static void *kept; static void some(int n) { for (int i = 0; i < n; i++) kept = malloc(10); }";
    for (end, last, blocks) in [
        ("return 0;", "= End", 100),
        ("_exit(0);", "= End", 100),
        ("quick_exit(0);", "= End", 100),
        ("abort();", "= End", 100),
        ("kill(getpid(), SIGTERM); pause();", "= End", 100),
        ("*(volatile int *)8 = 1;", "= End", 100),
        ("execl(\"/bin/true\", \"true\", (char *)0);", " 0xa", 100),
        ("pthread_exit(0);", "= End", 100),
        ("for (int fd = 0; fd < 2000; fd++) close(fd); some(20); exit(0);", "= End", 120),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let program = program(dir.path(), &format!("{allocate} int main(void) {{ some(100); {end} }}"));
        let log = dir.path().join("log");
        // Without a leak check the handlers of fatal signals are there for the log alone.
        leakscope(&["run", "-q", "--leak-check=no", &format!("--mtrace-log={}", text(&log)), text(&program)]);
        let lines = std::fs::read_to_string(&log).unwrap();
        assert!(lines.starts_with("= Start\n") && lines.ends_with(&format!("{last}\n")), "{end}: {lines}");
        assert_eq!(verdict(&log).matches("     0xa  at ").count(), blocks, "{end}");
    }
}

#[test]
fn a_killed_program_leaves_whole_lines() {
    if !is_asked() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let body = "int main(void) { for (int i = 0; i < 20000; i++) free(malloc(10)); kill(getpid(), SIGKILL); }";
    let program = program(dir.path(), body);
    let log = dir.path().join("log");
    let finished = leakscope(&["run", "-q", &format!("--mtrace-log={}", text(&log)), text(&program)]);
    assert_eq!(finished.ending, Ending::Signal(9));
    let lines = std::fs::read_to_string(&log).unwrap();
    assert!(lines.ends_with('\n') && lines.len() > 1 << 20, "{}", lines.len());
    assert_eq!(oddities(&verdict(&log)), [""; 0]);
}

#[test]
fn a_log_that_cannot_go_on_costs_the_program_nothing() {
    if !is_asked() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let body = "int main(void) {
            struct rlimit limit = { 100000, 100000 };
            setrlimit(RLIMIT_FSIZE, &limit);
            for (int i = 0; i < 20000; i++) free(malloc(10));
            puts(\"done\");
            return 5;
        }";
    let program = program(dir.path(), body);
    let finished = leakscope(&["run", &format!("--mtrace-log={}", text(&log)), text(&program)]);
    assert_eq!(finished.ending, Ending::Exit(5), "{}", finished.stderr);
    assert_eq!(finished.stdout, b"done\n");
    assert!(finished.stderr.contains("could not be written on after"), "{}", finished.stderr);
    let lines = std::fs::read_to_string(&log).unwrap();
    assert!(lines.ends_with('\n') && lines.len() > 50_000 && lines.len() <= 100_000, "{}", lines.len());
    assert_eq!(oddities(&verdict(&log)), [""; 0]);
}

#[test]
fn names_and_mistakes() {
    if !is_asked() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let leaks = "int main(void) { void *volatile p = malloc(9); return p == 0; }";
    let program = program(dir.path(), leaks);
    let run = |option: &str| {
        Run::new(leakscope_bin()).args(["run", option, text(&program)]).dir(dir.path()).finish().unwrap()
    };
    // A relative name with a percent sign and the process id.
    let finished = run("--mtrace-log=log%%.%p");
    let pid = finished.stderr.strip_prefix("==").and_then(|rest| rest.split_once("==")).unwrap().0;
    assert_eq!(logs(dir.path()), [dir.path().join(format!("log%.{pid}"))]);
    assert!(finished.stderr.contains("`leakscope mtrace` and glibc's mtrace script read it"), "{}", finished.stderr);
    for (option, expected) in [
        ("--mtrace-log=/not/there/log", "cannot make the file"),
        ("--mtrace-log=/not/there/%p", "the folder /not/there is not there"),
        ("--mtrace-log=%x", "expected %p, %n, %q{VAR} or %%"),
    ] {
        let finished = run(option);
        assert_eq!(finished.ending, Ending::Exit(2), "{option}");
        assert!(finished.stderr.contains(expected), "{option}: {}", finished.stderr);
    }
    let both = leakscope(&["run", "--sample=1M", "--mtrace-log=log", text(&program)]);
    assert_eq!(both.ending, Ending::Exit(2));
    assert!(both.stderr.contains("cannot be used with"), "{}", both.stderr);
}

#[test]
fn a_daemon_keeps_the_log_that_its_parent_began() {
    if !is_asked() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let body = "int main(void) {
            void *before = malloc(5);
            mtrace();
            void *volatile handed = malloc(11), *volatile kept = malloc(12);
            if (fork() != 0) { int s; wait(&s); _exit(0); }
            free(handed);
            void *volatile own = malloc(13);
            return before == own;
        }";
    let program = program(dir.path(), body);
    let run = Run::new(leakscope_bin()).args(["run", "-q", text(&program)]).dir(dir.path()).env("MALLOC_TRACE", "log");
    assert_eq!(run.finish().unwrap().ending, Ending::Exit(0));
    let logs = logs(dir.path());
    assert_eq!(logs.len(), 2, "{logs:?}");
    let sizes = |log: &Path| {
        let said = verdict(log);
        assert_eq!(oddities(&said), [""; 0]);
        let lines = said.lines().filter(|line| line.starts_with("0x"));
        let mut sizes: Vec<String> = lines.map(|line| line.split_whitespace().nth(1).unwrap().to_owned()).collect();
        sizes.sort();
        sizes
    };
    assert_eq!(sizes(&logs[0]), ["0xb", "0xc"]);
    assert_eq!(sizes(&logs[1]), ["0xc", "0xd"]);
}

#[test]
fn the_report_shows_intervals_as_the_golden_file_has_them() {
    if !is_asked() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let body = "static char *names[2]; static int *table;
        static void name(int number) { names[number] = malloc(10 + number); }
        static void grow(size_t entries) { table = realloc(table, entries * sizeof *table); }
        static void round_of(int number) {
            for (int i = 0; i < 2; i++) { free(names[i]); name(i); }
            grow(100 * (number + 1));
        }
        int main(void) {
            grow(50);
            mtrace();
            round_of(0);
            free(names[0]);
            names[0] = NULL;
            muntrace();
            mtrace();
            round_of(1);
            return 0;
        }";
    let program = program(dir.path(), body);
    let finished = leakscope(&["run", text(&program)]);
    let found = normalised(&finished.stderr);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mtrace/intervals.txt");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &found).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(found, expected, "if the new text is right: cargo xtask bless");
}

/// The interval part of a report without what differs from run to run: process id and addresses.
fn normalised(report: &str) -> String {
    let lines = report.lines().skip_while(|line| !line.contains("INTERVAL SUMMARY")).map(|line| {
        let line = line.split_once("== ").map_or("", |(_, words)| words);
        let words = line.split(' ').map(|word| if word.starts_with("0x") { "0xADDRESS:" } else { word });
        words.collect::<Vec<_>>().join(" ")
    });
    lines.take_while(|line| !line.contains("For lists of")).map(|line| line + "\n").collect()
}
