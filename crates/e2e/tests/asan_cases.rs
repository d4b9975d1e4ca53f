//! `fixtures/asan/flaws.toml` in the flows of `flows.toml`: programs with one flaw each, and the same without. Of the
//! first, the run-time library has to tell the right kind, of the others nothing.
//!
//! Programs are built by gcc and by clang, without optimisation and with it. What is optimised may have lost its flaw:
//! there the better of gcc's and clang's own libraries says what is to be seen. `LEAKSCOPE_E2E_FULL=1` takes every flaw
//! in two flows; otherwise each is seen once, by one of the compilers. `--nocapture` shows the scores.

#[path = "asan_cases/library.rs"]
mod library;
#[path = "asan_cases/program.rs"]
mod program;
#[path = "asan_cases/rare.rs"]
mod rare;
#[path = "asan_cases/stress.rs"]
mod stress;
#[path = "asan_cases/wrong_pointers.rs"]
mod wrong_pointers;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use leakscope_e2e::{Ending, Run};
use library::{Library, is_full};
use program::{Case, Table};

/// How programs are built.
struct Build {
    name: &'static str,
    c: &'static [&'static str],
    cpp: &'static [&'static str],
    is_optimised: bool,
}

const FLAGS: [&str; 8] = [
    "-g",
    "-w",
    "-pthread",
    "-fsanitize=address",
    "-fno-omit-frame-pointer",
    "-D_GNU_SOURCE",
    "-U_FORTIFY_SOURCE",
    "-D_GLIBCXX_SANITIZE_VECTOR",
];

const BUILDS: [Build; 3] = [
    Build { name: "gcc -O0", c: &["gcc", "-O0"], cpp: &["g++", "-O0"], is_optimised: false },
    Build {
        name: "clang -O0",
        c: &["clang-19", "-O0", "-shared-libasan"],
        cpp: &["clang++-19", "-O0", "-shared-libasan"],
        is_optimised: false,
    },
    Build {
        name: "clang -O2",
        c: &["clang-19", "-O2", "-shared-libasan"],
        cpp: &["clang++-19", "-O2", "-shared-libasan"],
        is_optimised: true,
    },
];

/// Builds the cases as one program, which is told a case's number and whether it is the bad one.
fn compile(build: &Build, cases: &[Case], folder: &Path, is_cpp: bool) -> PathBuf {
    let source = folder.join(if is_cpp { "cases.cpp" } else { "cases.c" });
    std::fs::write(&source, program::text(cases)).unwrap();
    let path = folder.join(if is_cpp { "cases_cpp" } else { "cases_c" });
    let words = if is_cpp { build.cpp } else { build.c };
    let run = Run::new(words[0]).args(&words[1..]).args(FLAGS).arg("-o").arg(&path).arg(&source);
    let run = run.limit(std::time::Duration::from_secs(600));
    let finished = run.finish().unwrap();
    assert_eq!(finished.ending, Ending::Exit(0), "{}: {}", run.shown(), finished.stderr);
    path
}

/// The kind that a report's summary tells; nothing when there is no report.
fn kind(stderr: &str) -> Option<&str> {
    let words = stderr.lines().find_map(|line| line.strip_prefix("SUMMARY: AddressSanitizer: "))?;
    if words.contains("byte(s) leaked in") { Some("leak") } else { words.split_whitespace().next() }
}

fn tell(library: &Library, program: &Path, number: usize, bad: bool) -> (Ending, String) {
    let which = if bad { "bad" } else { "good" };
    let run = Run::new(program).args([&number.to_string(), which]).env("LD_LIBRARY_PATH", library.folder());
    let options = "detect_leaks=1:detect_stack_use_after_return=1:symbolize=0";
    let finished = run.env("ASAN_OPTIONS", options).finish().unwrap();
    (finished.ending, finished.stderr)
}

fn is_right(case: &Case, stderr: &str) -> bool {
    kind(stderr).is_some_and(|told| case.kinds.iter().any(|kind| told == kind))
}

/// What was seen of one build's cases.
struct Seen {
    /// Case to what our library told, of those that were to be told rightly and were not.
    wrong: Vec<String>,
    /// Cases told rightly by each library.
    scores: BTreeMap<&'static str, usize>,
}

fn look(build: &Build, cases: &[Case], program: &Path, ours: &Library, stock: &[Library]) -> Seen {
    let mut seen = Seen { wrong: Vec::new(), scores: BTreeMap::new() };
    let silent = |ending: Ending, stderr: &str| ending == Ending::Exit(0) && stderr.is_empty();
    // All the good ones in one process; one by one only to tell which of them is not.
    let (ending, stderr) = tell(ours, program, usize::MAX, false);
    if !silent(ending, &stderr) {
        for (number, case) in cases.iter().enumerate() {
            let (ending, stderr) = tell(ours, program, number, false);
            if !silent(ending, &stderr) {
                seen.wrong.push(format!("{} {}, good: {ending:?} {stderr}", build.name, case.name));
            }
        }
        if seen.wrong.is_empty() {
            seen.wrong.push(format!("{}, all good ones together: {ending:?} {stderr}", build.name));
        }
    }
    for (number, case) in cases.iter().enumerate() {
        let (ending, stderr) = tell(ours, program, number, true);
        let right = is_right(case, &stderr);
        *seen.scores.entry("leakscope").or_default() += usize::from(right);
        let mut is_seen_by_others = false;
        for library in stock {
            let told = is_right(case, &tell(library, program, number, true).1);
            is_seen_by_others |= told;
            *seen.scores.entry(library.name()).or_default() += usize::from(told);
        }
        if !right && (!build.is_optimised || is_seen_by_others) {
            let first = stderr.lines().find(|line| line.contains("SUMMARY")).unwrap_or("no report");
            seen.wrong.push(format!("{} {}: {:?} wanted, {ending:?} {first}", build.name, case.name, case.kinds));
        }
    }
    seen
}

/// Cases of each build: all of them in the full run, else each flaw for one build, in a flow of its own.
fn share(table: &Table, build: usize) -> Vec<Case> {
    let rounds = if is_full() { 2 } else { 1 };
    let mut cases = Vec::new();
    for (number, flaw) in table.flaws.iter().enumerate() {
        // The matrix of places and operations is thinned: each operation meets each place in some build.
        if !is_full() && (number % (BUILDS.len() * 3) != build * 3 + number / 16 % 3) && flaw.is_combined {
            continue;
        }
        if !is_full() && number % BUILDS.len() != build && !flaw.is_combined {
            continue;
        }
        let fitting: Vec<_> = table.flows.iter().filter(|flow| flow.fits(flaw)).collect();
        for round in 0..rounds {
            let flow = fitting[(number * 7 + build * 5 + round * 11) % fitting.len()];
            cases.push(Case::new(flaw, flow));
        }
    }
    cases
}

#[test]
fn each_flaw_is_told_and_its_twin_is_not() {
    let table = Table::read();
    let ours = Library::ours();
    let stock = Library::stock();
    let mut wrong = Vec::new();
    for (number, build) in BUILDS.iter().enumerate() {
        let all = share(&table, number);
        for is_cpp in [false, true] {
            let cases: Vec<Case> = all.iter().filter(|case| case.is_cpp == is_cpp).cloned().collect();
            assert!(!cases.is_empty(), "{} has cases in both languages", build.name);
            let folder = tempfile::tempdir().unwrap();
            let program = compile(build, &cases, folder.path(), is_cpp);
            // The others' verdicts cost twice our own: they are asked where they are needed.
            let asked = if is_full() || build.is_optimised { &stock[..] } else { &[] };
            let seen = look(build, &cases, &program, &ours, asked);
            let language = if is_cpp { "C++" } else { "C" };
            println!("{} {language}: {} flaws, told rightly by {:?}", build.name, cases.len(), seen.scores);
            wrong.extend(seen.wrong);
        }
    }
    assert!(wrong.is_empty(), "{} of the cases:\n{}", wrong.len(), wrong.join("\n"));
}
