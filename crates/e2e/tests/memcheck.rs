//! `leakscope memcheck` on programs of our own: each wrong access is found once, in the function that makes it, and the
//! program does what it does natively.
//!
//! `LEAKSCOPE_E2E_TOOL=valgrind` holds the tables against Memcheck instead.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use leakscope_e2e::{Ending, Fixture, Program, Run, Tool, compile, fixtures_dir, leakscope_bin, parse_report};

/// The start of a command line of the checker.
fn start(tool: Tool) -> Run {
    match tool {
        Tool::Leakscope => Run::new(leakscope_bin()).arg("memcheck"),
        Tool::Valgrind => tool.start(),
    }
}

fn hold(fixture: &Fixture, program: &Program) -> Result<()> {
    let tool = Tool::from_env()?;
    let scratch = tempfile::tempdir()?;
    let file = scratch.path().join("report.xml");
    let limit = Duration::from_secs(60);
    let run = start(tool).args(["--xml=yes", &format!("--xml-file={}", file.display()), "--leak-check=full"]);
    let finished = run.arg(&program.path).limit(limit).finish()?;
    ensure!(finished.ending == Ending::Exit(0), "it ended with {:?}: {}", finished.ending, finished.stderr);
    let text = std::fs::read_to_string(&file).with_context(|| finished.stderr.clone())?;
    let report = parse_report(&text)?;

    let mut found: BTreeMap<(String, String), u64> = BTreeMap::new();
    for error in &report.errors {
        let case = error.stack.iter().find_map(|frame| frame.function.strip_prefix("case_"));
        let case = case.unwrap_or("(outside of every case)").to_owned();
        *found.entry((case, error.kind.clone())).or_default() += error.count;
    }
    let differs = |row: &&leakscope_e2e::MisuseRow| tool == Tool::Leakscope || row.valgrind_differs.is_none();
    let expected: BTreeMap<(String, String), u64> = fixture
        .table
        .misuse
        .iter()
        .filter(differs)
        .map(|row| ((row.case.clone(), row.error.clone()), row.count))
        .collect();
    ensure!(found == expected, "found {found:#?}\nexpected {expected:#?}");
    ensure!(report.leaks.is_empty(), "leaks: {:?}", report.leaks);
    Ok(())
}

#[test]
fn each_wrong_access_is_found_once() {
    let fixture = Fixture::read(&fixtures_dir().join("memcheck/accesses.c")).unwrap();
    for program in compile(&fixture).unwrap() {
        hold(&fixture, &program).unwrap_or_else(|error| panic!("built with {}: {error:#}", program.flags));
    }
}

/// Memcheck itself tells of more: see the fixture.
#[test]
fn frames_of_threads_that_have_returned_are_found() {
    if Tool::from_env().unwrap() != Tool::Leakscope {
        return;
    }
    let fixture = Fixture::read(&fixtures_dir().join("memcheck/stacks.c")).unwrap();
    for program in compile(&fixture).unwrap() {
        hold(&fixture, &program).unwrap_or_else(|error| panic!("built with {}: {error:#}", program.flags));
    }
}

/// Programs of the distribution do what they do natively, and nothing is found in them.
#[test]
fn real_programs_are_left_alone() {
    let scratch = tempfile::tempdir().unwrap();
    let text: String = (0..5000).map(|n| format!("line {} of {n}\n", n * 7919 % 5000)).collect();
    let input = scratch.path().join("input");
    std::fs::write(&input, text).unwrap();
    let input = input.to_str().unwrap();
    for words in [
        &["/bin/ls", "/etc"][..],
        &["/usr/bin/sort", "-k2n", input],
        &["/usr/bin/perl", "-e", "my %h; $h{$_ % 97} .= $_ for 1..20000; print map { length $h{$_} } sort keys %h"],
        &["/bin/sh", "-c", "for i in 1 2 3; do echo $i; done | wc -l; exit 7"],
        &["/bin/gzip", "-c", "-n", input],
    ] {
        let native = Run::new(words[0]).args(&words[1..]).finish().unwrap();
        let run = start(Tool::Leakscope).args(["-q", "--leak-check=no", "--error-exitcode=99"]).args(words);
        let here = run.limit(Duration::from_secs(120)).finish().unwrap();
        assert_eq!(here.ending, native.ending, "{words:?}: {}", here.stderr);
        assert_eq!(here.stderr, native.stderr, "{words:?}");
        assert!(here.stdout == native.stdout, "{words:?}");
    }
}

/// Builds a program of `fixtures/memcheck` with these flags.
fn build(name: &str, flags: &[&str], folder: &std::path::Path) -> std::path::PathBuf {
    let program = folder.join(name);
    let source = fixtures_dir().join("memcheck").join(format!("{name}.c"));
    let finished = Run::new("cc").args(["-g", "-w"]).args(flags).arg("-o").arg(&program).arg(&source).finish().unwrap();
    assert_eq!(finished.ending, Ending::Exit(0), "{}", finished.stderr);
    program
}

/// The lines of a report without what stands in front of them.
fn words(report: &str) -> Vec<&str> {
    report.lines().filter_map(|line| Some(line.strip_prefix("==")?.split_once("==")?.1.trim())).collect()
}

/// Whether a text has these pieces in their order, from its beginning to its end.
fn fits(pattern: &str, text: &str) -> bool {
    let mut pieces = pattern.split('*');
    let Some(mut rest) = pieces.next().and_then(|first| text.strip_prefix(first)) else { return false };
    let pieces: Vec<&str> = pieces.collect();
    let Some((last, middle)) = pieces.split_last() else { return rest.is_empty() };
    for piece in middle {
        let Some(at) = rest.find(piece) else { return false };
        rest = &rest[at + piece.len()..];
    }
    rest.ends_with(last)
}

/// What is said of addresses of variables, with debug information of variables and without; Memcheck says the same.
#[test]
fn variables_are_named() {
    let tool = Tool::from_env().unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let program = build("variables", &["-O0"], scratch.path());
    let source = std::fs::read_to_string(fixtures_dir().join("memcheck/variables.c")).unwrap();
    for (column, option) in [(0, "--read-var-info=yes"), (1, "--read-var-info=no")] {
        let run = start(tool).args(["-q", "--leak-check=no", option]).arg(&program);
        let finished = run.limit(Duration::from_secs(60)).finish().unwrap();
        let lines = words(&finished.stderr);
        let mut compared = 0;
        for (number, line) in source.lines().enumerate() {
            let Some((_, expected)) = line.split_once("; // ").filter(|(code, _)| code.contains("touch(")) else {
                continue;
            };
            let is_more = expected.starts_with('!');
            let expected = expected.trim_start_matches("! ").split(" | ").nth(column).unwrap();
            if is_more && tool == Tool::Valgrind && column == 0 {
                continue;
            }
            let caller = format!("(variables.c:{})", number + 1);
            let at = lines.iter().position(|line| line.starts_with("by ") && line.ends_with(&caller));
            let at = at.unwrap_or_else(|| panic!("{caller} is not in {}", finished.stderr));
            let said =
                lines[at..].iter().skip_while(|line| line.starts_with("by ")).take_while(|line| !line.is_empty());
            let said: Vec<&str> = said.copied().filter(|line| !line.starts_with("at 0x")).collect();
            assert!(fits(expected, &said.join(" ")), "{option}: {expected}\n{}", said.join(" "));
            compared += 1;
        }
        assert!(compared > 8, "{compared} sentences were compared");
    }
}

/// Each flaw of an array is found that the table does not except, and every twin without one is left alone, with
/// optimisation and without.
#[test]
fn arrays_that_are_overrun_are_found() {
    let source = std::fs::read_to_string(fixtures_dir().join("memcheck/arrays.c")).unwrap();
    let table = source.lines().skip_while(|line| !line.starts_with("// case ")).skip(1);
    let rows: Vec<Vec<&str>> =
        table.map_while(|line| line.strip_prefix("// ")).map(|line| line.split_whitespace().collect()).collect();
    assert!(rows.len() > 20);
    for flags in [&["-O0"][..], &["-O2", "-fno-builtin", "-U_FORTIFY_SOURCE"]] {
        let scratch = tempfile::tempdir().unwrap();
        let program = build("arrays", &[flags, &["-fno-stack-protector"]].concat(), scratch.path());
        for row in &rows {
            let (case, error) = (row[0], row[1]);
            for twin in [&[][..], &["clean"]] {
                if error == "-" && twin.is_empty() {
                    continue;
                }
                let file = scratch.path().join("report.xml");
                let run = start(Tool::Leakscope)
                    .args(["-q", "--leak-check=no", "--check-arrays=yes", "--xml=yes"])
                    .arg(format!("--xml-file={}", file.display()))
                    .arg(&program)
                    .arg(case)
                    .args(twin);
                let finished = run.limit(Duration::from_secs(60)).finish().unwrap();
                let text = std::fs::read_to_string(&file).unwrap();
                let report =
                    parse_report(&text).unwrap_or_else(|error| panic!("{case}: {error:#} {}", finished.stderr));
                let kinds: Vec<&str> = report.errors.iter().map(|error| error.kind.as_str()).collect();
                let expected: &[&str] = if twin.is_empty() { &[error] } else { &[] };
                // After a flaw, what follows may be wrong, too.
                assert_eq!(kinds.get(..1).unwrap_or_default(), expected, "{case} {twin:?} {flags:?}: {text}");
            }
        }
    }
}

/// Functions that the program wraps by `valgrind.h` run in their wrappers, and those reach the functions.
#[test]
fn functions_can_be_wrapped() {
    let scratch = tempfile::tempdir().unwrap();
    let program = build("wrapping", &["-O1", "-fno-builtin"], scratch.path());
    let run = start(Tool::from_env().unwrap()).args(["-q", "--error-exitcode=9"]).arg(&program);
    let finished = run.limit(Duration::from_secs(60)).finish().unwrap();
    assert_eq!(finished.ending, Ending::Exit(0), "{}", finished.stderr);
    let printed = String::from_utf8_lossy(&finished.stdout).into_owned();
    assert_eq!(printed, "wrapped 3+4=8; factorial 120 in 5 calls; wrapped puts: hello\n");
}

/// Open descriptors are listed with the place where they were opened, the last one first.
#[test]
fn descriptors_are_tracked() {
    let tool = Tool::from_env().unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let program = build("descriptors", &["-O0"], scratch.path());
    let run = start(tool).args(["--track-fds=yes", "--leak-check=no"]).arg(&program);
    let finished = run.limit(Duration::from_secs(60)).finish().unwrap();
    let lines = words(&finished.stderr);
    let at = |wanted: &str| {
        let found = lines.iter().position(|line| fits(wanted, line));
        found.unwrap_or_else(|| panic!("no {wanted:?} in {}", finished.stderr))
    };
    let head = at("FILE DESCRIPTORS: * open (3 std) at exit.");
    let order = [
        "Open file descriptor 40:*",
        "Open AF_UNIX socket *: <unknown>",
        "Open AF_UNIX socket *: <unknown>",
        "Open AF_INET socket *: 127.0.0.1:* <-> unbound",
        "Open file descriptor *: /dev/null",
    ];
    let listed: Vec<&str> = lines[head..].iter().copied().filter(|line| line.starts_with("Open ")).collect();
    for (number, wanted) in order.iter().enumerate() {
        assert!(fits(wanted, listed[number]), "{wanted}: {listed:#?}");
    }
    let opener = at("Open file descriptor *: /dev/null") + 1;
    let stack = lines[opener..].iter().take_while(|line| line.starts_with("at ") || line.starts_with("by "));
    assert!(stack.clone().any(|line| line.ends_with("open_it (descriptors.c:9)")), "{}", finished.stderr);
    assert!(lines.iter().all(|line| !line.contains("closed")), "{}", finished.stderr);
}

/// Who starts a daemon waits for the first process only; what is wrong in the daemon comes when it happens. All that is
/// awaited here is the end of pipes: of the front's output, and of the log.
#[test]
fn a_daemon_goes_on_and_is_reported() {
    let scratch = tempfile::tempdir().unwrap();
    let program = build("daemon", &["-O0"], scratch.path());
    let (log, go) = (scratch.path().join("log"), scratch.path().join("go"));
    let made = Run::new("mkfifo").args([&log, &go]).finish().unwrap();
    assert_eq!(made.ending, Ending::Exit(0), "{}", made.stderr);
    // Open for reading too, so that this does not wait for the daemon.
    let mut daemon = std::fs::File::options().read(true).write(true).open(&go).unwrap();
    let place = log.clone();
    let reader = std::thread::spawn(move || std::fs::read_to_string(place).unwrap());
    let tool = Tool::from_env().unwrap();
    let checker =
        start(tool).args(["--leak-check=no", &format!("--log-file={}", log.display())]).arg(&program).arg(&go);
    let script = format!("said=$({}); echo $? $said", checker.shown());
    let front = Run::new("sh").args(["-c", &script]).limit(Duration::from_secs(60)).finish().unwrap();
    daemon.write_all(b"!").unwrap();
    let log = reader.join().unwrap();
    let said = String::from_utf8_lossy(&front.stdout).into_owned();
    let (code, child) = said.trim().split_once(' ').unwrap_or_else(|| panic!("{said} {}", front.stderr));
    assert_eq!(code, "3", "{}", front.stderr);
    let (of_child, of_first): (Vec<&str>, Vec<&str>) =
        log.lines().partition(|line| line.starts_with(&format!("=={child}==")));
    let has = |lines: &[&str], words: &str| lines.iter().any(|line| line.contains(words));
    assert!(has(&of_child, "Invalid read of size 1"), "{log}");
    assert!(!has(&of_first, "Invalid read"), "{log}");
    if tool == Tool::Leakscope {
        assert!(has(&of_child, "ERROR SUMMARY: 1 errors from 1 contexts"), "{log}");
        assert!(has(&of_first, "ERROR SUMMARY: 0 errors from 0 contexts"), "{log}");
    }
}

/// Of two threads that work alike none starves, whether they only count, make system calls, or take one lock in turns. On an
/// idle machine the slower one does a quarter of the faster one's work or more; a thread that starves does next to none, as
/// under Memcheck it may with the lock.
#[test]
fn no_thread_starves() {
    let scratch = tempfile::tempdir().unwrap();
    let program = build("fairness", &["-O1", "-pthread"], scratch.path());
    let tool = Tool::from_env().unwrap();
    let manners = if tool == Tool::Leakscope { &["count", "calls", "mutex"][..] } else { &["count", "calls"] };
    for manner in manners {
        let run = start(tool).args(["-q", "--leak-check=no"]).arg(&program);
        let finished = run.args([manner, "500000"]).limit(Duration::from_secs(120)).finish().unwrap();
        assert_eq!(finished.ending, Ending::Exit(0), "{manner}: {}", finished.stderr);
        let percent: u64 = String::from_utf8_lossy(&finished.stdout).trim().parse().unwrap();
        println!("{manner}: one thread did {percent} % of what the other did");
        assert!(percent >= 10, "{manner}: one thread did {percent} % of what the other did");
    }
}

#[test]
fn code_may_grow_in_the_middle_of_an_instruction() {
    let scratch = tempfile::tempdir().unwrap();
    let program = build("grown_code", &["-O1"], scratch.path());
    let native = Run::new(&program).finish().unwrap();
    assert_eq!(native.ending, Ending::Exit(0), "{}", native.stderr);
    let run = start(Tool::from_env().unwrap()).args(["-q", "--leak-check=no"]).arg(&program);
    let here = run.limit(Duration::from_secs(60)).finish().unwrap();
    assert_eq!((here.ending, here.stderr.as_str()), (Ending::Exit(0), ""));
    assert_eq!(here.stdout, native.stdout);
}
