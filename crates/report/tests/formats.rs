//! Goldens of all formats on recordings made by hand, and what must hold for hostile names.
//!
//! `BLESS=1 cargo test -p leakscope-report` writes the goldens anew.

#[path = "../../findings/tests/support/mod.rs"]
mod support;

use std::path::PathBuf;

use leakscope_findings::analysis::{LeakCheck, analyse};
use leakscope_findings::recording::{
    CheckState, End, EventLog, Interval, IntervalEnd, IntervalSite, ProcessRecording, State,
};
use leakscope_findings::{Analysis, Options, Suppressions};
use leakscope_model::{AllocFn, CheckTrigger, LeakKind, LeakKindSet, MisuseKind};
use leakscope_report::{Style, json, text, valgrind_xml};
use proptest::prelude::*;
use support::{Maker, SAMPLE_RULE, sample};

fn full() -> Options {
    Options { leak_check: LeakCheck::Full, show_leak_kinds: LeakKindSet::ALL, ..Options::default() }
}

fn analysis(recorded: &ProcessRecording, options: &Options) -> Analysis {
    let mut suppressions = Suppressions::new();
    suppressions.add("app.supp", SAMPLE_RULE).unwrap();
    analyse("0.1.0", recorded, options, &suppressions)
}

fn as_text(analysis: &Analysis, style: &Style) -> String {
    let mut out = Vec::new();
    text::write(&mut out, analysis, style).unwrap();
    String::from_utf8(out).unwrap()
}

fn as_xml(analysis: &Analysis, style: &valgrind_xml::Style) -> String {
    let mut out = Vec::new();
    valgrind_xml::write(&mut out, analysis, style).unwrap();
    String::from_utf8(out).unwrap()
}

fn as_json(analysis: &Analysis) -> String {
    let mut out = Vec::new();
    json::write(&mut out, analysis).unwrap();
    String::from_utf8(out).unwrap()
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

/// A killed process: nothing is classified.
fn killed() -> ProcessRecording {
    let mut recorded = sample();
    recorded.checks[0].state = CheckState::Running;
    recorded.checks[0].records = None;
    recorded.misuses.clear();
    recorded.process.state = State::Running;
    recorded.end = End::Signalled(9);
    recorded
}

/// Nothing wrong.
fn clean() -> ProcessRecording {
    let mut m = Maker::new();
    let main = m.function("main", 1);
    let site = m.site(AllocFn::Malloc, &[main], 100, 10);
    let totals = &mut m.recorded.sites[site as usize].totals;
    (totals.freed_blocks, totals.freed_bytes, totals.live_blocks, totals.live_bytes) = (10, 100, 0, 0);
    m.check(&[]);
    m.recorded
}

/// Killed before the injected library began.
fn unstarted() -> ProcessRecording {
    let mut recorded = ProcessRecording { end: End::Signalled(9), ..ProcessRecording::default() };
    recorded.process.pid = 4242;
    recorded.process.command_line = vec!["./early".into()];
    recorded
}

/// A crash, whose leak check ran in the signal handler.
fn crashed() -> ProcessRecording {
    let mut recorded = sample();
    recorded.misuses.clear();
    recorded.checks[0].trigger = CheckTrigger::FatalSignal;
    recorded.checks[0].status = 11;
    recorded.end = End::Signalled(11);
    recorded
}

/// Calls `mtrace()` twice: once with a `muntrace()` that two sites outlive, once to the end.
fn traced() -> ProcessRecording {
    let mut recorded = sample();
    let live = |site, live_bytes, live_blocks| {
        let (allocated_bytes, allocated_blocks) = (live_bytes * 3, live_blocks * 3);
        IntervalSite { site, allocated_blocks, allocated_bytes, live_blocks, live_bytes }
    };
    let sites = vec![live(1, 4096, 2), live(2, 16, 1)];
    let start = recorded.process.start_monotonic_ns;
    let first = Interval {
        end: IntervalEnd::Muntrace,
        begin_site: 3,
        end_site: 2,
        begin_ns: start + 1_000_000,
        end_ns: start + 3_000_000,
        allocated_blocks: 1234,
        allocated_bytes: 56_789,
        sites,
        ..Interval::default()
    };
    let second = Interval { number: 1, begin_site: 3, begin_ns: start + 4_000_000, ..Interval::default() };
    recorded.intervals = vec![first, second];
    recorded.event_log =
        EventLog { file: "/tmp/trace.log".into(), lines: 12_345, errno: 28, lost: 1, wanted: "trace.log".into() };
    recorded
}

#[test]
fn text_goldens() {
    let sample = sample();
    let plain = Style::default();
    golden("full.txt", &as_text(&analysis(&sample, &full()), &plain));
    golden("summary.txt", &as_text(&analysis(&sample, &Options::default()), &plain));
    let hidden = Options { show_leak_kinds: LeakKindSet::DEFAULT, show_below_main: true, ..full() };
    let all = Style {
        fingerprints: true,
        gen_suppressions: true,
        error_lists: true,
        directories: true,
        verbosity: 2,
        ..plain.clone()
    };
    golden("everything.txt", &as_text(&analysis(&sample, &hidden), &all));
    golden("quiet.txt", &as_text(&analysis(&sample, &full()), &Style { verbosity: 0, ..plain.clone() }));
    golden("killed.txt", &as_text(&analysis(&killed(), &full()), &plain));
    golden("killed_summary.txt", &as_text(&analysis(&killed(), &Options::default()), &plain));
    golden("unstarted.txt", &as_text(&analysis(&unstarted(), &full()), &plain));
    golden("crashed.txt", &as_text(&analysis(&crashed(), &full()), &plain));
    golden("clean.txt", &as_text(&analysis(&clean(), &full()), &plain));
    golden("traced.txt", &as_text(&analysis(&traced(), &full()), &plain));
    golden("traced_summary.txt", &as_text(&analysis(&traced(), &Options::default()), &plain));
    let off = Options { leak_check: LeakCheck::No, ..full() };
    golden("no_leak_check.txt", &as_text(&analysis(&clean(), &off), &plain));
}

#[test]
fn xml_goldens() {
    let style = valgrind_xml::Style {
        tool_command: vec!["leakscope".into(), "run".into(), "--xml=yes".into()],
        user_comment: Some("a <comment>".into()),
        gen_suppressions: true,
    };
    golden("full.xml", &as_xml(&analysis(&sample(), &full()), &style));
    golden("crashed.xml", &as_xml(&analysis(&crashed(), &full()), &valgrind_xml::Style::default()));
    golden("unstarted.xml", &as_xml(&analysis(&unstarted(), &full()), &valgrind_xml::Style::default()));
    golden("killed.xml", &as_xml(&analysis(&killed(), &full()), &valgrind_xml::Style::default()));
}

#[test]
fn colour_adds_escapes_and_nothing_else() {
    for recorded in [sample(), killed(), clean(), crashed()] {
        let analysis = analysis(&recorded, &full());
        let plain = as_text(&analysis, &Style::default());
        let coloured = as_text(&analysis, &Style { colour: true, ..Style::default() });
        assert_ne!(plain, coloured);
        let mut stripped = String::new();
        let mut rest = coloured.as_str();
        while let Some((front, after)) = rest.split_once("\x1b[") {
            stripped.push_str(front);
            rest = after.split_once('m').expect("a colour ends").1;
        }
        stripped.push_str(rest);
        assert_eq!(stripped, plain);
        assert!(!plain.contains('\x1b'));
    }
}

/// Every object of the schema closed, so that a field that nobody described fails the test.
fn closed(schema: &mut serde_json::Value) {
    match schema {
        serde_json::Value::Object(map) => {
            if map.contains_key("properties") {
                map.insert("additionalProperties".to_owned(), false.into());
            }
            map.values_mut().for_each(closed);
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(closed),
        _ => {}
    }
}

#[test]
fn json_obeys_its_schema() {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "../../docs/schema/report-v1.schema.json"].iter().collect();
    let mut schema: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    closed(&mut schema);
    let validator = jsonschema::validator_for(&schema).unwrap();
    for recorded in [sample(), killed(), clean(), crashed(), traced(), ProcessRecording::default()] {
        let document = as_json(&analysis(&recorded, &full()));
        assert_eq!(document.matches('\n').count(), 1, "one document is one line");
        let document: serde_json::Value = serde_json::from_str(&document).unwrap();
        let errors: Vec<String> =
            validator.iter_errors(&document).map(|error| format!("{}: {error}", error.instance_path)).collect();
        assert!(errors.is_empty(), "{errors:#?}");
    }
}

#[test]
fn json_carries_intervals() {
    let document: serde_json::Value = serde_json::from_str(&as_json(&analysis(&traced(), &full()))).unwrap();
    let [first, second] = &document["intervals"].as_array().unwrap()[..] else { panic!("{document}") };
    assert_eq!((&first["end"], &first["duration_ns"]), (&"muntrace".into(), &2_000_000.into()));
    assert_eq!((&first["live_bytes"], &first["allocated_blocks"]), (&4112.into(), &1234.into()));
    assert_eq!(first["records"][0]["live_bytes"], 16);
    assert_eq!(first["records"][0]["allocated_blocks"], 3);
    assert_eq!((&second["end"], &second["duration_ns"], &second["ended_at"]), (&"open".into(), &().into(), &().into()));
    assert_eq!(document["mtrace_log"]["errno"], 28);
    let plain: serde_json::Value = serde_json::from_str(&as_json(&analysis(&sample(), &full()))).unwrap();
    assert!(plain.get("intervals").is_none() && plain.get("mtrace_log").is_none());
}

#[test]
fn json_carries_what_text_says() {
    let analysis = analysis(&sample(), &full());
    let document: serde_json::Value = serde_json::from_str(&as_json(&analysis)).unwrap();
    assert_eq!(document["records"].as_array().unwrap().len(), 6);
    assert_eq!(document["records"][1]["indirect_bytes"], 48);
    assert_eq!(document["records"][2]["suppressed_by"], 0);
    assert_eq!(document["leak_totals"]["definite"]["bytes"], 16);
    assert_eq!(document["errors"][0]["block"]["free"]["frames"][1]["function"], "release");
    assert_eq!(document["lost"]["deep_stacks"], 3);
    assert_eq!(document["error_counts"]["errors"], analysis.errors.errors);
}

/// A recording in which every name is `name`.
fn hostile(name: &str) -> ProcessRecording {
    let mut recorded = sample();
    for string in recorded.strings.iter_mut().skip(1) {
        *string = name.into();
    }
    for module in &mut recorded.modules {
        module.path = name.into();
    }
    recorded.process.command_line = vec![name.to_owned(); 2];
    recorded.process.executable = name.to_owned();
    recorded.problems = vec![name.to_owned()];
    recorded
}

#[test]
fn hostile_names_stay_on_their_line() {
    let names =
        ["\x1b[2J\x1b]0;owned\x07", "a\nb\r==1== LEAK SUMMARY:", "\u{9b}31m", "\u{202e}txt", "</fn></frame>&<!--"];
    for name in names {
        let analysis = analysis(&hostile(name), &full());
        let tame = self::analysis(&hostile("x"), &full());
        let style = Style { error_lists: true, fingerprints: true, verbosity: 2, ..Style::default() };
        let found = as_text(&analysis, &style);
        assert!(!found.contains(['\x1b', '\x07', '\r', '\u{9b}', '\u{202e}']), "{found}");
        assert_eq!(found.lines().count(), as_text(&tame, &style).lines().count());
        let xml = as_xml(&analysis, &valgrind_xml::Style::default());
        assert!(!xml.contains(['\x1b', '\x07', '\r', '\u{9b}', '\u{202e}']) && !xml.contains("<!--"));
        assert_eq!(xml.matches("<frame>").count(), xml.matches("</frame>").count());
        assert_eq!(xml.lines().count(), as_xml(&tame, &valgrind_xml::Style::default()).lines().count());
        let json = as_json(&analysis);
        assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap()["process"]["executable"], name);
    }
}

#[test]
fn the_pieces_are_worded_as_memcheck_words_them() {
    let found = as_text(&analysis(&sample(), &full()), &Style::default());
    // Sentences as Valgrind 3.19 prints them for the same facts.
    for line in [
        "==4242== 64 (16 direct, 48 indirect) bytes in 1 blocks are definitely lost in loss record 2 of 6",
        "==4242== Invalid free() / delete / delete[] / realloc()",
        "==4242==  Address 0x5040 is 0 bytes inside a block of size 10 free'd",
        "==4242==  Block was alloc'd at",
        "==4242==  Address 0x1234 is not stack'd, malloc'd or (recently) free'd",
        "==4242==  Address 0x5043 is 3 bytes inside a block of size 10 alloc'd",
        "==4242== Mismatched free() / delete / delete []",
        "==4242== Argument 'size' of function malloc has a fishy (possibly negative) value: -1",
        "==4242==  Address 0x504c is 2 bytes after a block of size 10 alloc'd",
        "==4242==    definitely lost: 16 bytes in 1 blocks",
        "==4242==    still reachable: 1,235,367 bytes in 5 blocks",
        "==4242==                       of which reachable via heuristic:",
        "==4242==                         newarray           : 800 bytes in 4 blocks",
        "==4242==         suppressed: 77 bytes in 7 blocks",
        "==4242== ERROR SUMMARY: 10 errors from 9 contexts (suppressed: 1 from 1)",
    ] {
        assert!(found.lines().any(|found| found == line), "{line}\nis not in\n{found}");
    }
}

/// What the leak kind of a record is called in each format.
#[test]
fn kinds_have_their_names_in_each_format() {
    let analysis = analysis(&sample(), &full());
    let xml = as_xml(&analysis, &valgrind_xml::Style::default());
    let json: serde_json::Value = serde_json::from_str(&as_json(&analysis)).unwrap();
    for (kind, name) in [
        (LeakKind::DefinitelyLost, "Leak_DefinitelyLost"),
        (LeakKind::IndirectlyLost, "Leak_IndirectlyLost"),
        (LeakKind::PossiblyLost, "Leak_PossiblyLost"),
        (LeakKind::StillReachable, "Leak_StillReachable"),
    ] {
        let shown = analysis.shown_records().filter(|record| record.kind == Some(kind)).count();
        assert_eq!(xml.matches(&format!("<kind>{name}</kind>")).count(), shown);
        let total = analysis.totals.of(kind);
        assert_eq!(json["leak_totals"][kind.option_word()]["bytes"], total.bytes);
    }
    assert_eq!(xml.matches("<kind>InvalidFree</kind>").count(), 3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_name_can_be_written(name in "\\PC{0,8}|[\u{0}-\u{ff}]{0,8}", address in any::<u64>(), size in any::<u64>()) {
        let mut recorded = hostile(&name);
        for misuse in &mut recorded.misuses {
            (misuse.address, misuse.block_bytes) = (address, size);
            misuse.block_start = if misuse.kind == MisuseKind::InvalidFree { 0 } else { size };
        }
        let analysis = analysis(&recorded, &full());
        let xml = as_xml(&analysis, &valgrind_xml::Style { gen_suppressions: true, ..Default::default() });
        prop_assert!(xml.chars().all(|c| c == '\n' || !c.is_control()));
        let document = roxmltree::Document::parse(&xml).map_err(|error| TestCaseError::fail(format!("{error}: {xml}")))?;
        let errors = analysis.shown_misuses().count() + analysis.shown_records().count();
        prop_assert_eq!(document.descendants().filter(|node| node.has_tag_name("error")).count(), errors);
        as_json(&analysis);
        let text = as_text(&analysis, &Style { gen_suppressions: true, ..Style::default() });
        prop_assert!(text.chars().all(|c| c == '\n' || !c.is_control()));
    }
}
