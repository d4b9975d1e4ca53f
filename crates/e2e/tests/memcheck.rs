//! `leakscope memcheck` on programs of our own: each wrong access is found once, in the function that makes it, and the
//! program does what it does natively.
//!
//! `LEAKSCOPE_E2E_TOOL=valgrind` holds the tables against Memcheck instead.

use std::collections::BTreeMap;
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
