//! The formats that make one document of all processes, each read back by somebody else's reader.

mod analysed;
#[path = "../../findings/tests/support/mod.rs"]
mod support;

use std::path::PathBuf;

use analysed::{Analysed, HOSTILE, TEXTS, everything, hostile, killed, of, sources, written};
use leakscope_findings::Analysis;
use leakscope_findings::recording::{ProcessRecording, State};
use leakscope_model::LeakKind;
use leakscope_report::{Metric, Process, folded, markdown, pprof};
use proptest::prelude::*;
use serde_json::Value;

/// Errors of both sorts.
fn errors(analysis: &Analysis) -> usize {
    analysis.shown_misuses().count() + analysis.shown_memory_errors().count()
}

/// Compares with a golden file, or writes it.
fn golden(name: &str, found: &str) {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/golden", name].iter().collect();
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, found).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    for (number, (expected, found)) in expected.lines().zip(found.lines()).enumerate() {
        assert_eq!(found, expected, "{name}:{} (BLESS=1 writes it anew)", number + 1);
    }
    assert_eq!(found.lines().count(), expected.lines().count(), "{name} (BLESS=1 writes it anew)");
}

#[test]
fn goldens() {
    let (first, second) = (Analysed::new(everything()), Analysed::new(killed()));
    let both = [first.process(), second.process()];
    golden("documents.sarif", &written("sarif", &both));
    golden("documents.junit.xml", &written("junit", &both));
    golden("documents.github.txt", &written("github", &both));
    golden("documents.gitlab.json", &written("gitlab", &both));
    golden("documents.folded", &written("folded", &both));
    golden("documents.md", &written("markdown", &both));
}

fn schema_errors(schema: &str, document: &Value) -> Vec<String> {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/data", schema].iter().collect();
    let schema: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    validator.iter_errors(document).map(|error| format!("{}: {error}", error.instance_path)).collect()
}

/// The schema is OASIS's own.
#[test]
fn sarif_obeys_its_schema() {
    let all = [everything(), killed(), ProcessRecording::default()]
        .into_iter()
        .chain(HOSTILE.iter().map(|name| hostile(name)));
    for recorded in all {
        let document: Value = serde_json::from_str(&of("sarif", recorded)).unwrap();
        assert_eq!(schema_errors("sarif-2.1.0.schema.json", &document), [""; 0]);
    }
    let empty: Value = serde_json::from_str(&written("sarif", &[])).unwrap();
    assert_eq!(schema_errors("sarif-2.1.0.schema.json", &empty), [""; 0]);
}

#[test]
fn sarif_carries_the_findings() {
    let analysed = Analysed::new(everything());
    let document: Value = serde_json::from_str(&written("sarif", &[analysed.process()])).unwrap();
    let run = &document["runs"][0];
    let results = run["results"].as_array().unwrap();
    let analysis = &analysed.analysis;
    assert_eq!(results.len(), analysis.shown_records().count() + errors(analysis));
    for result in results {
        let index = result["ruleIndex"].as_u64().unwrap() as usize;
        assert_eq!(run["tool"]["driver"]["rules"][index]["id"], result["ruleId"]);
        let flow = result["codeFlows"][0]["threadFlows"][0]["locations"].as_array().unwrap();
        let stack = result["stacks"][0]["frames"].as_array().unwrap();
        assert_eq!(flow.len(), stack.len());
        let name = |location: &Value| location["location"]["logicalLocations"][0]["name"].clone();
        assert_eq!(name(&flow[0]), name(&stack[stack.len() - 1]), "outermost first");
    }
    let definite = results.iter().find(|result| result["ruleId"] == "leak-definite").unwrap();
    assert_eq!(definite["properties"]["bytes"], 64);
    let place = &definite["locations"][0]["physicalLocation"];
    assert_eq!(place["artifactLocation"]["uri"], "src/app.c");
    assert_eq!(place["artifactLocation"]["uriBaseId"], "%SRCROOT%");
    assert_eq!(run["originalUriBaseIds"]["%SRCROOT%"]["uri"], "file:///work/");
    assert_eq!(place["region"]["startLine"], 10);
    let record = analysis.shown_records().find(|record| record.kind == Some(LeakKind::DefinitelyLost)).unwrap();
    assert_eq!(definite["partialFingerprints"]["leakscope/v1"], record.fingerprint.to_string());
    let mut hashes: Vec<&str> =
        results.iter().filter_map(|result| result["partialFingerprints"]["primaryLocationLineHash"].as_str()).collect();
    hashes.sort_unstable();
    hashes.dedup();
    assert_eq!(hashes.len(), results.len(), "GitHub takes equal hashes for one alert");
}

#[test]
fn speedscope_obeys_its_schema_and_adds_up() {
    for recorded in [everything(), killed(), ProcessRecording::default()] {
        let document: Value = serde_json::from_str(&of("speedscope", recorded)).unwrap();
        assert_eq!(schema_errors("speedscope.schema.json", &document), [""; 0]);
    }
    let analysed = Analysed::new(everything());
    let document: Value = serde_json::from_str(&written("speedscope", &[analysed.process()])).unwrap();
    let frames = document["shared"]["frames"].as_array().unwrap().len() as u64;
    for profile in document["profiles"].as_array().unwrap() {
        let weights: u64 = profile["weights"].as_array().unwrap().iter().map(|weight| weight.as_u64().unwrap()).sum();
        assert_eq!(profile["endValue"], weights);
        let mut samples = profile["samples"].as_array().unwrap().iter().flat_map(|stack| stack.as_array().unwrap());
        assert!(samples.all(|frame| frame.as_u64().unwrap() < frames));
    }
    // 48 + 16 + 4096 bytes are lost, 77 more are suppressed.
    assert_eq!(document["profiles"][0]["endValue"], 4160);
}

/// `quick-junit` is the reader of cargo-nextest.
#[test]
fn junit_is_read_by_another_reader() {
    let (first, second) = (Analysed::new(everything()), Analysed::new(killed()));
    let text = written("junit", &[first.process(), second.process()]);
    let report = quick_junit::Report::deserialize_from_str(&text).unwrap();
    assert_eq!(report.test_suites.len(), 2);
    let analysis = &first.analysis;
    let findings = analysis.shown_records().count() + errors(analysis);
    assert_eq!(report.test_suites[0].test_cases.len(), findings);
    let errors = errors(analysis) + analysis.shown_records().filter(|record| record.is_error).count();
    let failed = |case: &&quick_junit::TestCase| matches!(case.status, quick_junit::TestCaseStatus::NonSuccess { .. });
    assert_eq!(report.test_suites[0].test_cases.iter().filter(failed).count(), errors);
    assert_eq!((report.tests, report.failures), (findings + 1, errors));
    assert!(matches!(report.test_suites[1].test_cases[0].status, quick_junit::TestCaseStatus::Skipped { .. }));
    // No rule fits a hostile name.
    let findings = findings + 1;
    for name in HOSTILE {
        let report = quick_junit::Report::deserialize_from_str(&of("junit", hostile(name))).unwrap();
        assert_eq!((report.test_suites.len(), report.test_suites[0].test_cases.len()), (1, findings), "{name:?}");
    }
}

/// `inferno` draws flame graphs out of folded stacks.
#[test]
fn folded_stacks_render() {
    for (metric, total) in [(Metric::Leaked, 4160), (Metric::Live, 1_239_604), (Metric::Total, 1_239_604)] {
        let analysed = Analysed::new(everything());
        let mut text = Vec::new();
        folded::write(&mut text, &[analysed.process()], metric).unwrap();
        let text = String::from_utf8(text).unwrap();
        let sum: u64 = text.lines().map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum();
        assert_eq!(sum, total, "{metric:?}");
        let mut svg = Vec::new();
        inferno::flamegraph::from_lines(&mut Default::default(), text.lines(), &mut svg).unwrap();
        let svg = String::from_utf8(svg).unwrap();
        let document = roxmltree::Document::parse_with_options(
            &svg,
            roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() },
        )
        .unwrap();
        let titles: Vec<&str> =
            document.descendants().filter(|node| node.has_tag_name("title")).filter_map(|node| node.text()).collect();
        assert!(titles.iter().any(|title| title.starts_with("main (")), "{titles:?}");
    }
}

/// What of a workflow command GitHub's runner takes for file, line and message (`@actions/core`, `ActionCommand`).
fn command(line: &str) -> (&str, Vec<(&str, String)>, String) {
    let rest = line.strip_prefix("::").unwrap_or_else(|| panic!("{line}"));
    let (head, message) = rest.split_once("::").unwrap();
    let (word, properties) = head.split_once(' ').unwrap_or((head, ""));
    let unescape = |text: &str| {
        text.replace("%0D", "\r").replace("%0A", "\n").replace("%3A", ":").replace("%2C", ",").replace("%25", "%")
    };
    let properties = properties.split(',').filter_map(|pair| pair.split_once('='));
    (word, properties.map(|(name, value)| (name, unescape(value))).collect(), unescape(message))
}

#[test]
fn annotations_are_one_command_a_finding() {
    let analysed = Analysed::new(everything());
    let findings = analysed.analysis.shown_records().count() + errors(&analysed.analysis);
    let text = written("github", &[analysed.process()]);
    let commands: Vec<_> = text.lines().map(command).collect();
    // One more says what is missing of the recording.
    assert_eq!(commands.len(), findings + 1);
    let (word, properties, message) =
        commands.iter().find(|(_, _, message)| message.contains("definitely lost")).unwrap();
    assert_eq!(*word, "error");
    assert_eq!(properties[..2], [("file", "src/app.c".to_owned()), ("line", "10".to_owned())]);
    assert!(message.contains("\n   by main (app.c:40)\n"), "{message}");
    for name in HOSTILE {
        let text = of("github", hostile(name));
        // Every line is a command of ours, and none has properties that we do not write.
        for line in text.lines() {
            let (word, properties, _) = command(line);
            assert!(["error", "warning", "notice"].contains(&word), "{line}");
            let known = ["file", "line", "col", "title"];
            assert!(properties.iter().all(|(property, _)| known.contains(property)), "{name:?}: {line}");
            let lines: Vec<&String> =
                properties.iter().filter(|(property, _)| *property == "line").map(|(_, value)| value).collect();
            assert!(lines.len() <= 1 && lines.iter().all(|line| line.parse::<u32>().is_ok()), "{line}");
        }
    }
}

#[test]
fn gitlab_findings_are_unique_and_placed() {
    let analysed = Analysed::new(everything());
    let twice = [analysed.process(), analysed.process()];
    let issues: Vec<Value> = serde_json::from_str(&written("gitlab", &twice)).unwrap();
    let mut fingerprints: Vec<&str> = issues.iter().map(|issue| issue["fingerprint"].as_str().unwrap()).collect();
    fingerprints.sort_unstable();
    fingerprints.dedup();
    assert_eq!(fingerprints.len(), issues.len());
    for issue in &issues {
        assert!(["info", "minor", "major", "critical"].contains(&issue["severity"].as_str().unwrap()));
        assert!(issue["location"]["lines"]["begin"].as_u64().unwrap() >= 1);
        let path = issue["location"]["path"].as_str().unwrap();
        assert!(!path.is_empty() && !path.starts_with("./"), "{path}");
    }
}

fn html_of(markdown: &str) -> String {
    let mut html = String::new();
    pulldown_cmark::html::push_html(
        &mut html,
        pulldown_cmark::Parser::new_ext(markdown, pulldown_cmark::Options::all()),
    );
    html
}

/// The names of the elements of a page, as a browser sees them.
fn elements(html: &str) -> Vec<String> {
    let starts = html.match_indices('<').map(|(at, _)| &html[at + 1..]);
    let names = starts.map(|rest| rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '/').collect());
    let mut names: Vec<String> = names.filter(|name: &String| !name.starts_with('/')).collect();
    names.sort_unstable();
    names
}

#[test]
fn markdown_is_short_and_inert() {
    let tame = elements(&html_of(&of("markdown", hostile("x"))));
    assert!(tame.iter().any(|element| element == "table"));
    for name in HOSTILE.iter().filter(|name| !name.is_empty()) {
        let text = of("markdown", hostile(name));
        assert!(text.lines().count() <= markdown::MOST_LINES);
        assert_eq!(elements(&html_of(&text)), tame, "{name:?}\n{text}");
        assert!(!text.contains("://") && !text.contains("www.") && !text.contains('@'), "{text}");
    }
    let many: Vec<Analysed> = (0..40).map(|_| Analysed::new(everything())).chain([Analysed::new(killed())]).collect();
    let many: Vec<Process<'_>> = many.iter().map(Analysed::process).collect();
    let text = written("markdown", &many);
    assert!(text.lines().count() <= markdown::MOST_LINES, "{text}");
    assert!(text.contains("more."));
}

#[test]
fn no_text_format_lets_terminal_escapes_through() {
    for (format, _) in TEXTS {
        let lines = of(format, hostile("x")).lines().count();
        for name in HOSTILE.iter().filter(|name| !name.is_empty()) {
            let text = of(format, hostile(name));
            assert!(text.chars().all(|c| c == '\n' || !c.is_control() && c != '\u{202e}'), "{format} {name:?}: {text}");
            // A name that is long in Markdown is cut, one that ends in a slash has an empty last part.
            assert_eq!(text.lines().count(), lines, "{format} {name:?}");
        }
    }
}

#[test]
fn pprof_is_gzip_and_repeatable() {
    let analysed = Analysed::new(everything());
    let write = || {
        let mut out = Vec::new();
        pprof::write(&mut out, &[analysed.process()]).unwrap();
        out
    };
    let out = write();
    assert_eq!(out[..2], [0x1f, 0x8b]);
    assert_eq!(out, write());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_name_can_be_written(name in "\\PC{0,8}|[\u{0}-\u{ff}]{0,8}|[`|*_<>\\\\:;@#%.w/\\[\\]()!&~-]{0,8}") {
        let analysed = Analysed::new(hostile(&name));
        let processes = [analysed.process()];
        for (format, write) in TEXTS {
            let mut out = Vec::new();
            write(&mut out, &processes);
            let text = String::from_utf8(out).unwrap();
            prop_assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{format}");
        }
        serde_json::from_str::<Value>(&written("sarif", &processes)).unwrap();
        let junit = written("junit", &processes);
        let read = quick_junit::Report::deserialize_from_str(&junit);
        prop_assert!(read.is_ok(), "{:?}\n{junit}", read.err());
        if !name.is_empty() {
            let tame = elements(&html_of(&of("markdown", hostile("x"))));
            prop_assert_eq!(elements(&html_of(&written("markdown", &processes))), tame);
        }
        pprof::write(&mut Vec::new(), &processes).unwrap();
    }
}

#[test]
fn a_difference_is_inert_in_every_format() {
    use leakscope_report::diff;
    let nothing = ProcessRecording { checks: everything().checks, ..ProcessRecording::default() };
    let mut nothing = nothing;
    nothing.checks[0].records = Some(Vec::new());
    nothing.process.state = State::Ended;
    let texts = |name: &str| {
        let found = leakscope_findings::diff::diff(
            &[Analysed::new(nothing.clone()).analysis],
            &[Analysed::new(hostile(name)).analysis],
        );
        assert!(found.is_worse());
        let names = diff::Names { before: name.to_owned(), after: name.to_owned() };
        let mut outs = [Vec::new(), Vec::new(), Vec::new(), Vec::new()];
        diff::text(&mut outs[0], &found, &names).unwrap();
        diff::json(&mut outs[1], &found, &names).unwrap();
        diff::markdown(&mut outs[2], &found, &names, &sources()).unwrap();
        diff::html(&mut outs[3], &found, &names).unwrap();
        outs.map(|out| String::from_utf8(out).unwrap())
    };
    let tame = texts("x");
    for name in HOSTILE.iter().filter(|name| !name.is_empty()) {
        let [text, json, markdown, html] = texts(name);
        for (text, tame) in [(&text, &tame[0]), (&markdown, &tame[2]), (&html, &tame[3])] {
            assert!(text.chars().all(|c| c == '\n' || !c.is_control() && c != '\u{202e}'), "{name:?}: {text}");
            assert_eq!(text.lines().count(), tame.lines().count(), "{name:?}");
        }
        let json: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["before"]["name"], *name);
        assert_eq!(elements(&html_of(&markdown)), elements(&html_of(&tame[2])), "{name:?}");
        assert_eq!(elements(&html), elements(&tame[3]), "{name:?}");
    }
}
