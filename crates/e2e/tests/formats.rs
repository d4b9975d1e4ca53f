//! The formats for pipelines and profile viewers, of real programs, read by other programs; and the difference of two
//! recordings. It needs `go` (package `golang-go`) for `go tool pprof`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use leakscope_e2e::{Ending, Finished, Fixture, Run, Tool, compile, fixtures_dir, leakscope_bin, repo_root};
use serde_json::Value;

fn is_leakscope() -> bool {
    Tool::from_env().unwrap() == Tool::Leakscope
}

fn finish(run: Run) -> Finished {
    let finished = run.clone().limit(Duration::from_secs(60)).finish().unwrap();
    assert_eq!(finished.ending, Ending::Exit(0), "{}\n{}", run.shown(), finished.stderr);
    finished
}

fn said(run: Run) -> String {
    String::from_utf8(finish(run).stdout).unwrap()
}

fn leakscope(words: &[&str]) -> Run {
    Run::new(leakscope_bin()).args(words).dir(repo_root())
}

/// Records the demo program; gives the recording.
fn orders(dir: &Path) -> PathBuf {
    let (program, recording) = (dir.join("orders"), dir.join("orders.leak"));
    let source = fixtures_dir().join("demo/orders.cpp");
    finish(Run::new("g++").args(["-g", "-O1", "-o"]).arg(&program).arg(source));
    finish(leakscope(&["run", "-q", "-o"]).arg(&recording).arg(&program));
    recording
}

fn report(recording: &Path, words: &[&str]) -> String {
    said(leakscope(&["report", "--show-leak-kinds=all"]).args(words).arg(recording))
}

fn json_report(recording: &Path) -> Vec<Value> {
    report(recording, &["--format=json"]).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What `go tool pprof -raw` lists: values and labels of the samples.
fn pprof_samples(profile: &Path) -> Vec<(Vec<u64>, BTreeMap<String, String>)> {
    let raw = said(Run::new("go").args(["tool", "pprof", "-raw"]).arg(profile));
    let mut samples: Vec<(Vec<u64>, BTreeMap<String, String>)> = Vec::new();
    let lines = raw.lines().skip_while(|line| !line.starts_with("Samples:")).skip(2);
    for line in lines.take_while(|line| !line.starts_with("Locations")) {
        match line.split_once(':') {
            Some((values, rest))
                if values.trim().starts_with(|c: char| c.is_ascii_digit()) && !rest.starts_with('[') =>
            {
                let values = values.split_whitespace().map(|value| value.parse().unwrap()).collect();
                samples.push((values, BTreeMap::new()));
            }
            // `                leak_kind:[definite]`
            Some((key, value)) => {
                let value = value.trim_matches(|c| c == '[' || c == ']' || c == ' ').to_owned();
                samples.last_mut().unwrap().1.insert(key.trim().to_owned(), value);
            }
            None => {}
        }
    }
    samples
}

#[test]
fn gos_pprof_reads_the_profile_and_finds_the_same_totals() {
    if !is_leakscope() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let recording = orders(dir.path());
    let profile = dir.path().join("heap.pb.gz");
    report(&recording, &["-o", profile.to_str().unwrap()]);
    let samples = pprof_samples(&profile);
    let document = &json_report(&recording)[0];
    let sum = |index: usize| samples.iter().map(|(values, _)| values[index]).sum::<u64>();
    assert_eq!(sum(0), document["heap"]["allocs"]);
    assert_eq!(sum(1), document["heap"]["allocated_bytes"]);
    for kind in ["definite", "indirect", "possible", "reachable"] {
        let of = samples.iter().filter(|(_, labels)| labels.get("leak_kind").is_some_and(|label| label == kind));
        let bytes: u64 = of.map(|(values, _)| values[3]).sum();
        assert_eq!(bytes, document["leak_totals"][kind]["bytes"], "{kind}");
    }
    let top = said(Run::new("go").args(["tool", "pprof", "-top", "-cum", "-sample_index=inuse_space"]).arg(&profile));
    assert!(top.lines().any(|line| line.ends_with("read_orders (inline)") || line.ends_with(" read_orders")), "{top}");
    let listed =
        said(Run::new("go").args(["tool", "pprof", "-list=print_total", "-sample_index=inuse_space"]).arg(&profile));
    assert!(listed.contains("orders.cpp"), "{listed}");
}

#[test]
fn several_processes_are_one_document() {
    if !is_leakscope() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let program = compile(&Fixture::read(&fixtures_dir().join("c/fork_child.c")).unwrap()).unwrap().remove(0).path;
    let recording = dir.path().join("fork.leak");
    leakscope(&["run", "-q", "-o"]).arg(&recording).arg(&program).finish().unwrap();
    let processes = json_report(&recording).len();
    assert!(processes > 1);
    let sarif: Value = serde_json::from_str(&report(&recording, &["--format=sarif"])).unwrap();
    assert_eq!(sarif["runs"].as_array().unwrap().len(), 1);
    assert_eq!(sarif["runs"][0]["invocations"].as_array().unwrap().len(), processes);
    let junit = report(&recording, &["--format=junit"]);
    let junit = roxmltree::Document::parse(&junit).unwrap();
    assert_eq!(junit.descendants().filter(|node| node.has_tag_name("testsuite")).count(), processes);
    let speedscope: Value = serde_json::from_str(&report(&recording, &["--format=speedscope"])).unwrap();
    assert_eq!(speedscope["profiles"].as_array().unwrap().len(), 5 * processes);
    let gitlab: Value = serde_json::from_str(&report(&recording, &["--format=gitlab"])).unwrap();
    assert!(gitlab.is_array());
    assert!(report(&recording, &["--format=markdown"]).lines().count() <= 60);
    let profile = dir.path().join("fork.pb.gz");
    report(&recording, &["-o", profile.to_str().unwrap()]);
    let pids: std::collections::BTreeSet<String> =
        pprof_samples(&profile).into_iter().filter_map(|(_, labels)| labels.get("pid").cloned()).collect();
    assert_eq!(pids.len(), processes);
    // The same as without a recording in between.
    let direct = dir.path().join("direct.sarif");
    leakscope(&["run", "-q", "-o"]).arg(&direct).arg(&program).finish().unwrap();
    let direct: Value = serde_json::from_slice(&std::fs::read(direct).unwrap()).unwrap();
    assert_eq!(direct["runs"][0]["invocations"].as_array().unwrap().len(), processes);
}

#[test]
fn paths_are_relative_to_the_repository() {
    if !is_leakscope() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let recording = orders(dir.path());
    let annotations = report(&recording, &["--format=github"]);
    let source = std::fs::read_to_string(fixtures_dir().join("demo/orders.cpp")).unwrap();
    let line = 1 + source.lines().position(|line| line.contains("new Order;")).unwrap();
    let expected = format!("::error file=fixtures/demo/orders.cpp,line={line},");
    assert!(annotations.lines().any(|line| line.starts_with(&expected)), "{expected}\n{annotations}");
    // From elsewhere the same file is absolute.
    let elsewhere = said(Run::new(leakscope_bin()).args(["report", "--format=github"]).arg(&recording).dir(dir.path()));
    assert!(elsewhere.contains(&format!("file={}/fixtures/demo/orders.cpp,", repo_root().display())), "{elsewhere}");
}

#[test]
fn folded_stacks_of_each_metric_add_up() {
    if !is_leakscope() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let recording = orders(dir.path());
    let document = &json_report(&recording)[0];
    let lost = ["definite", "indirect", "possible"];
    let leaked: u64 = lost.iter().map(|kind| document["leak_totals"][kind]["bytes"].as_u64().unwrap()).sum();
    for (metric, total) in [("leaked", leaked), ("total", document["heap"]["allocated_bytes"].as_u64().unwrap())] {
        let folded = report(&recording, &["--format=folded", "--metric", metric]);
        let sum: u64 = folded.lines().map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum();
        assert_eq!(sum, total, "{metric}");
        assert!(folded.lines().all(|line| !line.contains("libc_start")), "{folded}");
    }
}

/// A program that leaks as often as its arguments say, in two places.
const LEAKS: &str = "\
#include <stdlib.h>
__attribute__((noinline)) void *first(void) { return malloc(100); }
__attribute__((noinline)) void *second(void) { return malloc(10); }
int main(int argc, char **argv) {
    for (int i = 0; i < atoi(argv[1]); i++) *(void *volatile *)&argv[0] = first();
    for (int i = 0; i < atoi(argv[2]); i++) *(void *volatile *)&argv[0] = second();
    argv[0] = 0;
    return 0;
}
";

#[test]
fn a_difference_names_what_is_new_gone_grown_and_shrunk() {
    if !is_leakscope() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (source, program) = (dir.path().join("leaks.c"), dir.path().join("leaks"));
    std::fs::write(&source, LEAKS).unwrap();
    finish(Run::new("gcc").args(["-g", "-O1", "-o"]).arg(&program).arg(&source));
    let record = |first: &str, second: &str| {
        let recording = dir.path().join(format!("{first}-{second}.leak"));
        finish(leakscope(&["run", "-q", "-o"]).arg(&recording).arg(&program).args([first, second]));
        recording
    };
    let (two_none, five_none, five_three) = (record("2", "0"), record("5", "0"), record("5", "3"));
    // Changes as (word, function, bytes, blocks).
    let changes = |before: &Path, after: &Path| -> Vec<(String, bool, i64, i64)> {
        let text = said(leakscope(&["diff", "--format=json"]).arg(before).arg(after));
        let diff: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&diff["schema"], &diff["basis"]), (&"leakscope-diff".into(), &"leaks".into()));
        let sites = diff["sites"].as_array().unwrap().iter();
        sites
            .map(|site| {
                let is_first = site["stack"].to_string().contains("first (leaks.c");
                let number = |name: &str| site[name].as_i64().unwrap();
                (site["change"].as_str().unwrap().to_owned(), is_first, number("bytes"), number("blocks"))
            })
            .collect()
    };
    assert_eq!(changes(&two_none, &two_none), []);
    assert_eq!(changes(&two_none, &five_none), [("grown".to_owned(), true, 300, 3)]);
    assert_eq!(changes(&two_none, &five_three), [("new".to_owned(), false, 30, 3), ("grown".to_owned(), true, 300, 3)]);
    assert_eq!(
        changes(&five_three, &two_none),
        [("shrunk".to_owned(), true, -300, -3), ("gone".to_owned(), false, -30, -3)]
    );
    let text = said(leakscope(&["diff"]).arg(&two_none).arg(&five_three));
    assert!(text.contains("new: +30 bytes in +3 blocks (0 -> 30 bytes, 0 -> 3 blocks), definitely lost"), "{text}");
    assert!(text.contains("by second (leaks.c:3)"), "{text}");
    let markdown = said(leakscope(&["diff", "--format=markdown"]).arg(&two_none).arg(&five_three));
    assert!(markdown.contains("| grown | +300 | +3 | definitely lost |"), "{markdown}");
    let html = said(leakscope(&["diff", "--format=html"]).arg(&two_none).arg(&five_three));
    assert!(html.contains("<code>second (leaks.c:3)</code>"), "{html}");
    // The exit code is asked for, and only worse is worse.
    let exit = |before: &Path, after: &Path| {
        leakscope(&["diff", "--error-exitcode=7"]).arg(before).arg(after).finish().unwrap().ending
    };
    assert_eq!(exit(&two_none, &five_none), Ending::Exit(7));
    assert_eq!(exit(&five_none, &two_none), Ending::Exit(0));
    let wrong = leakscope(&["diff", "--format=sarif"]).arg(&two_none).arg(&five_none).finish().unwrap();
    assert_eq!(wrong.ending, Ending::Exit(2), "{}", wrong.stderr);
}
