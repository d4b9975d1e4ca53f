//! One finding that several tools saw, and blocks that nobody classified, in every format that has findings.

mod analysed;
#[path = "../../findings/tests/support/mod.rs"]
mod support;

use std::io::Read;

use analysed::{Analysed, everything, killed, of, sources, written};
use leakscope_findings::recording::{CheckState, ProcessRecording, State, Witness};
use leakscope_model::{AllocFn, LeakKind, Tool};
use leakscope_report::{Process, html, pprof, valgrind_xml};
use serde_json::Value;
use support::Maker;

fn by(tool: Tool, version: &str, mut recorded: ProcessRecording) -> Analysed {
    recorded.witness = Witness { tool, version: version.to_owned() };
    Analysed::new(recorded)
}

/// A leak of 48 bytes in `make`, as a tool classified it, and one of `own` that this tool alone saw.
fn leaks(kind: LeakKind, own: &str) -> ProcessRecording {
    let mut m = Maker::new();
    let (main, make, own) = (m.function("main", 40), m.function("make", 10), m.function(own, 70));
    let shared = m.site(AllocFn::Malloc, &[make, main], 48, 3);
    let alone = m.site(AllocFn::Malloc, &[own, main], 7, 1);
    m.check(&[(shared, kind, 48, 3, 0, 0), (alone, LeakKind::DefinitelyLost, 7, 1, 0, 0)]);
    m.recorded
}

fn three() -> [Analysed; 3] {
    [
        by(Tool::Leakscope, "", leaks(LeakKind::PossiblyLost, "ours")),
        by(Tool::Memcheck, "3.19.0", leaks(LeakKind::DefinitelyLost, "theirs")),
        by(Tool::LeakSanitizer, "", leaks(LeakKind::DefinitelyLost, "its")),
    ]
}

const ALL: &str = "seen by leakscope, Valgrind Memcheck 3.19.0 and LeakSanitizer";

/// What stands in the document for the leak that all saw, once: as Memcheck has it, who was first to call it definite.
#[test]
fn one_finding_stands_once_and_names_its_witnesses() {
    let analysed = three();
    let all = analysed.each_ref().map(Analysed::process);
    let sarif: Value = serde_json::from_str(&written("sarif", &all)).unwrap();
    let results = sarif["runs"][0]["results"].as_array().unwrap();
    assert_eq!(results.len(), 4);
    let in_make: Vec<&Value> =
        results.iter().filter(|result| result["message"]["text"].as_str().unwrap().contains(", in make ")).collect();
    let [shared] = in_make[..] else { panic!("{in_make:?}") };
    assert_eq!((&shared["ruleId"], &shared["level"]), (&"leak-definite".into(), &"error".into()));
    assert!(shared["message"]["text"].as_str().unwrap().ends_with(&format!("({ALL})")), "{shared}");
    let sight = |tool: &str, kind: &str| serde_json::json!({ "tool": tool, "bytes": 48, "blocks": 3, "kind": kind });
    let mut memcheck = sight("Valgrind Memcheck", "definite");
    memcheck["version"] = "3.19.0".into();
    let expected = [sight("leakscope", "possible"), memcheck, sight("LeakSanitizer", "definite")];
    assert_eq!(*shared["properties"]["witnesses"].as_array().unwrap(), expected);

    let gitlab: Vec<Value> = serde_json::from_str(&written("gitlab", &all)).unwrap();
    assert_eq!(gitlab.len(), 4);
    assert!(gitlab.iter().any(|issue| issue["description"].as_str().unwrap().ends_with(&format!("({ALL})"))));
    let github = written("github", &all);
    assert_eq!(github.lines().count(), 4);
    assert_eq!(github.lines().filter(|line| line.contains(&format!("%0A  {ALL}%0A"))).count(), 1, "{github}");
    let markdown = written("markdown", &all);
    assert!(markdown.contains("| where | seen by | fingerprint |"), "{markdown}");
    let row = "<code>leakscope</code><br><code>Valgrind Memcheck 3.19.0</code><br><code>LeakSanitizer</code>";
    assert_eq!(markdown.matches(row).count(), 1, "{markdown}");
}

#[test]
fn each_suite_page_and_profile_names_the_tool() {
    let analysed = three();
    let all = analysed.each_ref().map(Analysed::process);
    // Every tool is a suite of its own.
    let junit = written("junit", &all);
    let report = quick_junit::Report::deserialize_from_str(&junit).unwrap();
    let tools: Vec<&str> = report
        .test_suites
        .iter()
        .flat_map(|suite| suite.properties.iter().filter(|it| it.name.as_str() == "tool"))
        .map(|property| property.value.as_str())
        .collect();
    assert_eq!(tools, ["leakscope", "Valgrind Memcheck 3.19.0", "LeakSanitizer"]);
    assert_eq!(junit.matches(ALL).count(), 3);
    let mut page = Vec::new();
    html::write(&mut page, &all, &sources(), &mut |_| None).unwrap();
    assert_eq!(String::from_utf8(page).unwrap().matches(ALL).count(), 3);
    let xml = |analysed: &Analysed| {
        let mut out = Vec::new();
        valgrind_xml::write(&mut out, &analysed.analysis, &valgrind_xml::Style::default()).unwrap();
        String::from_utf8(out).unwrap()
    };
    assert!(xml(&analysed[0]).contains("<line>leakscope 0.1.0, a memory leak finder</line>"));
    assert!(xml(&analysed[1]).contains("<line>Valgrind Memcheck 3.19.0, imported by leakscope 0.1.0</line>"));
    let strings = |processes: &[Process<'_>]| {
        let (mut out, mut plain) = (Vec::new(), Vec::new());
        pprof::write(&mut out, processes).unwrap();
        flate2::read::GzDecoder::new(out.as_slice()).read_to_end(&mut plain).unwrap();
        String::from_utf8_lossy(&plain).into_owned()
    };
    assert!(["tool", "leakscope", "LeakSanitizer", "Valgrind Memcheck"].iter().all(|it| strings(&all).contains(it)));
    assert!(!strings(&all[..1]).contains("Memcheck"));
}

#[test]
fn what_only_our_own_tool_saw_goes_without_saying() {
    for format in ["sarif", "gitlab", "github", "markdown", "junit"] {
        assert!(!of(format, everything()).contains("seen by"), "{format}");
        let one = by(Tool::Memcheck, "3.19.0", leaks(LeakKind::DefinitelyLost, "theirs"));
        assert!(written(format, &[one.process()]).contains("seen by"), "{format}");
    }
}

/// A process whose blocks nobody classified, with so many sites of 1, 2, 3, ... bytes.
fn live(sites: u32) -> ProcessRecording {
    let mut m = Maker::new();
    let main = m.function("main", 1);
    for number in 1..=sites {
        let function = m.function(&format!("site_{number}"), 100 + number);
        m.site(AllocFn::Malloc, &[function, main], u64::from(number), 1);
    }
    m.check(&[]);
    m.recorded.checks[0].state = CheckState::Running;
    m.recorded.checks[0].records = None;
    m.recorded.process.state = State::Running;
    m.recorded
}

#[test]
fn blocks_that_nobody_classified_are_notes_and_no_verdict() {
    const SENTENCE: &str = "78 bytes in 12 blocks of 12 places (the 10 largest are listed) were live when recording ended; that is no verdict that they leaked";
    let sarif: Value = serde_json::from_str(&of("sarif", live(12))).unwrap();
    let run = &sarif["runs"][0];
    let results = run["results"].as_array().unwrap();
    assert_eq!(results.len(), 10);
    assert!(results.iter().all(|result| result["ruleId"] == "live" && result["level"] == "note"));
    assert_eq!(results[0]["properties"]["bytes"], 12, "the largest first");
    let notes = run["invocations"][0]["toolExecutionNotifications"].as_array().unwrap();
    assert!(notes.iter().any(|note| note["message"]["text"] == SENTENCE), "{notes:?}");
    let gitlab: Vec<Value> = serde_json::from_str(&of("gitlab", live(12))).unwrap();
    assert!(gitlab.len() == 10 && gitlab.iter().all(|issue| issue["severity"] == "info"));
    let github = of("github", live(12));
    assert_eq!(github.lines().filter(|line| line.contains("title=live%2C not classified::")).count(), 10);
    assert!(github.lines().all(|line| line.starts_with("::notice ")), "{github}");
    assert!(github.contains(SENTENCE));
    let report = quick_junit::Report::deserialize_from_str(&of("junit", live(12))).unwrap();
    assert_eq!((report.tests, report.failures, report.errors), (1, 0, 0));
    let case = &report.test_suites[0].test_cases[0];
    assert!(matches!(case.status, quick_junit::TestCaseStatus::Skipped { .. }));
    let words = case.system_out.as_ref().unwrap().as_str();
    assert!(words.starts_with(SENTENCE) && words.lines().count() == 11, "{words}");
    assert!(!of("github", live(3)).contains("are listed"));
}

/// A gate that was told to fail on live blocks marks them as errors; then all of them are told, as failures.
#[test]
fn live_blocks_that_must_fail_do() {
    let mut analysed = Analysed::new(live(12));
    for record in &mut analysed.analysis.records {
        record.is_error = true;
    }
    let all = [analysed.process()];
    let sarif: Value = serde_json::from_str(&written("sarif", &all)).unwrap();
    let results = sarif["runs"][0]["results"].as_array().unwrap();
    assert!(results.len() == 12 && results.iter().all(|result| result["level"] == "error"));
    assert_eq!(quick_junit::Report::deserialize_from_str(&written("junit", &all)).unwrap().failures, 12);
    assert_eq!(written("github", &all).lines().filter(|line| line.starts_with("::error ")).count(), 12);
    let gitlab: Vec<Value> = serde_json::from_str(&written("gitlab", &all)).unwrap();
    assert!(gitlab.len() == 12 && gitlab.iter().all(|issue| issue["severity"] == "major"));
}

/// Where another tool classified what is live here, its verdict counts.
#[test]
fn a_verdict_outweighs_liveness() {
    let classified = by(Tool::Memcheck, "3.19.0", everything());
    let live = by(Tool::Heaptrack, "1.4", killed());
    let all = [live.process(), classified.process()];
    let sarif: Value = serde_json::from_str(&written("sarif", &all)).unwrap();
    let results = sarif["runs"][0]["results"].as_array().unwrap();
    let node: Vec<&Value> =
        results.iter().filter(|it| it["properties"]["witnesses"].as_array().unwrap().len() == 2).collect();
    assert!(!node.is_empty());
    for result in node.iter().filter(|result| result["level"] != "note") {
        assert_ne!(result["ruleId"], "live");
        let kinds: Vec<&str> = result["properties"]["witnesses"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| it["kind"].as_str().unwrap())
            .collect();
        assert!(kinds.contains(&"live") && kinds.contains(&"definite") || kinds.contains(&"possible"), "{kinds:?}");
    }
}
