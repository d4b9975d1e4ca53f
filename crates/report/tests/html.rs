//! The page's data and its size; what a browser makes of it is tested end to end.

#[path = "../../findings/tests/support/mod.rs"]
mod support;

use std::io::Read;

use base64::Engine;
use leakscope_findings::analysis::{LeakCheck, analyse};
use leakscope_findings::recording::{CheckRecord, Node, ProcessRecording, Sample};
use leakscope_findings::{Analysis, Options, Suppressions};
use leakscope_model::{AllocFn, LeakKind, LeakKindSet};
use leakscope_report::{Process, Sources, html};
use serde_json::Value;
use support::{Maker, SAMPLE_RULE, sample};

fn analysed(recorded: &ProcessRecording, num_callers: usize) -> Analysis {
    let options =
        Options { leak_check: LeakCheck::Full, show_leak_kinds: LeakKindSet::ALL, num_callers, ..Options::default() };
    let mut suppressions = Suppressions::new();
    suppressions.add("app.supp", SAMPLE_RULE).unwrap();
    analyse("0.1.0", recorded, &options, &suppressions)
}

fn page_of(recorded: &ProcessRecording, num_callers: usize, read: &mut dyn FnMut(&str) -> Option<String>) -> String {
    let analysis = analysed(recorded, num_callers);
    let mut out = Vec::new();
    let sources = Sources { root: "/work".to_owned() };
    html::write(&mut out, &[Process { recorded, analysis: &analysis }], &sources, read).unwrap();
    String::from_utf8(out).unwrap()
}

/// The data of a page, as its program reads it.
fn data_of(page: &str) -> Value {
    let (_, rest) = page.split_once("id=\"data\"").unwrap();
    let (attributes, rest) = rest.split_once('>').unwrap();
    let text = rest.split_once("</script>").unwrap().0;
    if !attributes.contains("deflate") {
        return serde_json::from_str(text).unwrap();
    }
    let packed = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
    let mut json = String::new();
    flate2::read::ZlibDecoder::new(packed.as_slice()).read_to_string(&mut json).unwrap();
    serde_json::from_str(&json).unwrap()
}

fn data(recorded: &ProcessRecording) -> Value {
    data_of(&page_of(recorded, 12, &mut |_| None))
}

/// Names of a stack, innermost first.
fn stack(data: &Value, node: &Value) -> Vec<String> {
    let number = |list: &Value, at: u64| list[at as usize].as_u64().unwrap();
    let (mut node, mut names) = (node.as_u64().unwrap(), Vec::new());
    while node != 0 {
        let frame = number(&data["nodes"]["frame"], node);
        let name = number(&data["frames"]["name"], frame);
        names.push(data["texts"][name as usize].as_str().unwrap().to_owned());
        node -= number(&data["nodes"]["up"], node);
    }
    names
}

fn sum(column: &Value) -> u64 {
    column.as_array().unwrap().iter().map(|value| value.as_u64().unwrap()).sum()
}

#[test]
fn sites_and_records_are_those_of_the_analysis() {
    let recorded = sample();
    let data = data(&recorded);
    let analysis = analysed(&recorded, 12);
    assert_eq!(sum(&data["sites"]["live"]), recorded.sites.iter().map(|site| site.totals.live_bytes).sum::<u64>());
    // 48 + 16 + 4096; what a rule hides is not leaked.
    assert_eq!(sum(&data["sites"]["leaked"]), 4160);
    let records = data["records"].as_array().unwrap();
    assert_eq!(records.len(), analysis.records.len() + analysis.shown_misuses().count());
    assert_eq!(records.iter().filter(|record| record["suppressed"] == true).count(), 1);
    let definite = records.iter().find(|record| record["bytes"] == 64).unwrap();
    assert_eq!(stack(&data, &definite["node"]), ["malloc", "make_node", "main"]);
    let double =
        records.iter().find(|record| data["kinds"][record["kind"].as_u64().unwrap() as usize]["id"] == "double-free");
    let double = double.unwrap();
    assert_eq!(double["count"], 2);
    assert_eq!(stack(&data, &double["more"][1][1]), ["free", "release", "main"]);
    assert_eq!(data["processes"][0]["totals"][0], serde_json::json!([16, 1]));
}

/// A recording with `count` sites of 30 frames, of which the outer ones are shared as in a real program, all leaked.
fn large(count: u64) -> ProcessRecording {
    let mut m = Maker::new();
    let functions: Vec<u32> = (0..3000)
        .map(|number| {
            let name = format!(
                "namespace_{}::Class{}<int, std::allocator<int>>::method_{number}(int)",
                number % 17,
                number % 211
            );
            let file = format!("module_{}/file_{}.cpp", number % 40, number % 300);
            m.at(1, 0x1000 + number * 16, &[(&name, "", &file, number as u32 % 900 + 1)])
        })
        .collect();
    let mut records = Vec::new();
    let mut nodes = std::collections::HashMap::new();
    // A generator that is the same everywhere (Numerical Recipes' constants).
    let mut state = 1_u64;
    for number in 0..count {
        let mut parent = 0;
        for depth in (0..30_u64).rev() {
            // Near the root few functions call many; at the leaf every site is its own.
            let spread = 1 + count * (30 - depth).pow(3) / 27_000;
            let pick = (number % spread) * 31 + depth * 97;
            let node = Node { location: functions[(pick % 3000) as usize], parent };
            parent = *nodes.entry((node.location, parent)).or_insert_with(|| {
                m.recorded.nodes.push(node);
                m.recorded.nodes.len() as u32 - 1
            });
        }
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let bytes = state >> 50;
        let site = m.site(AllocFn::Malloc, &[], bytes, 1 + (state >> 40) % 9);
        m.recorded.sites[site as usize].leaf = parent;
        records.push((site, LeakKind::DefinitelyLost, bytes, 1, 0, 0));
    }
    m.check(&records);
    m.recorded
}

/// One moment a second for a week, with one high peak.
fn week() -> Vec<Sample> {
    let moment = |second: u64| Sample {
        monotonic_ns: 5_000_000_000 + second * 1_000_000_000,
        live_bytes: if second == 400_000 { 1 << 40 } else { 1_000_000 + second * 10 },
        live_blocks: second,
        resident_bytes: 50_000_000,
    };
    (0..7 * 24 * 3600).map(moment).collect()
}

#[test]
fn five_thousand_sites_and_a_week_are_less_than_two_megabytes() {
    let mut recorded = large(5000);
    recorded.series = week();
    let page = page_of(&recorded, 12, &mut |_| Some("a line of source, as long as lines of source are\n".repeat(900)));
    assert!(page.len() < 2_000_000, "{} bytes", page.len());
    let data = data_of(&page);
    assert_eq!(data["sites"]["node"].as_array().unwrap().len(), 5000);
    assert_eq!(data["records"].as_array().unwrap().len(), 5000);
    assert!(!data["sources"].as_array().unwrap().is_empty());
    let series = &data["processes"][0]["series"];
    let live = series["live"].as_array().unwrap();
    assert!(live.len() <= 1001, "{}", live.len());
    assert!(live.contains(&(1_u64 << 40).into()), "the peak of one second is kept");
    assert_eq!(live.last().unwrap(), &Value::from(1_000_000 + (7 * 24 * 3600 - 1) * 10));
    let seconds: Vec<f64> = series["seconds"].as_array().unwrap().iter().map(|at| at.as_f64().unwrap()).collect();
    assert!(seconds.is_sorted());
}

#[test]
fn records_have_their_whole_stack() {
    let recorded = large(50);
    let data = data_of(&page_of(&recorded, 4, &mut |_| None));
    for record in data["records"].as_array().unwrap() {
        assert_eq!(stack(&data, &record["node"]).len(), 31);
    }
}

#[test]
fn several_leak_checks_show_what_grew() {
    let mut m = Maker::new();
    let functions = ["first", "second", "third"].map(|name| m.function(name, 7));
    let sites = functions.map(|function| m.site(AllocFn::Malloc, &[function], 1, 1));
    let reachable =
        |bytes: [u64; 3]| [0, 1, 2].map(|site| (sites[site], LeakKind::StillReachable, bytes[site], 1, 0, 0));
    m.check(&reachable([10, 10, 10]));
    m.check(&reachable([500, 10, 5]));
    m.check(&reachable([100, 20, 9]));
    m.recorded.checks[0].monotonic_ns = 5_500_000_000;
    let record = CheckRecord { bytes: 3, ..m.recorded.checks[2].records.as_ref().unwrap()[0] };
    m.recorded.checks[2].records.as_mut().unwrap().push(record);
    let data = data(&m.recorded);
    let growth = &data["processes"][0]["growth"];
    assert_eq!(growth["seconds"][0], 0.5);
    let sites = growth["sites"].as_array().unwrap();
    assert_eq!(sites.len(), 2);
    assert_eq!((stack(&data, &sites[0][0])[1].as_str(), &sites[0][1]), ("first", &serde_json::json!([10, 500, 103])));
    assert_eq!((stack(&data, &sites[1][0])[1].as_str(), &sites[1][1]), ("second", &serde_json::json!([10, 10, 20])));
}

#[test]
fn sources_are_lines_around_findings() {
    let text: String = (1..=60).map(|line| format!("line {line} </script>\u{1b}[31m\n")).collect();
    let mut asked = Vec::new();
    let page = page_of(&sample(), 12, &mut |path| {
        asked.push(path.to_owned());
        (path == "/work/src/app.c").then(|| text.clone())
    });
    asked.sort();
    assert_eq!(asked, ["/work/src/app.c", "/work/src/cache.cpp", "/work/src/stl_vector.h"]);
    let data = data_of(&page);
    assert_eq!(data["sources"].as_array().unwrap().len(), 1);
    let path = data["sources"][0][0].as_u64().unwrap() as usize;
    assert_eq!(data["texts"][path], "src/app.c");
    let lines = data["sources"][0][1].as_array().unwrap();
    let numbers: Vec<u64> = lines.iter().map(|line| line[0].as_u64().unwrap()).collect();
    assert_eq!(numbers[..9], [6, 7, 8, 9, 10, 11, 12, 13, 14], "around make_node, line 10");
    assert_eq!(lines[0][1], "line 6 </script>\\x1b[31m");
    // The line of the suppressed record is not there.
    assert!(!numbers.contains(&60));
}

#[test]
fn nothing_of_a_recording_becomes_markup() {
    for name in
        ["</script><img src=x onerror=alert(1)>", "<!--<script>", "\u{1b}[2J", "\u{202e}", "]]>", "\u{2028}\"'`"]
    {
        let mut recorded = sample();
        for string in recorded.strings.iter_mut().skip(1) {
            *string = name.into();
        }
        recorded.modules.iter_mut().for_each(|module| module.path = name.into());
        recorded.process.command_line = vec![name.to_owned()];
        recorded.process.executable = name.to_owned();
        recorded.problems = vec![name.to_owned()];
        let tame = page_of(&sample(), 12, &mut |_| None);
        let page = page_of(&recorded, 12, &mut |_| Some(format!("{name}\n").repeat(100)));
        let (before, after) = page.split_once("</title>").unwrap();
        assert!(!before.contains("<img") && !before.contains("<!--"), "{before}");
        assert_eq!(page.matches("</script").count(), tame.matches("</script").count(), "{name:?}");
        assert_eq!(page.matches("<script").count(), tame.matches("<script").count(), "{name:?}");
        assert!(!page.contains(['\u{1b}', '\u{202e}', '\u{2028}']));
        assert!(after.matches("<img").count() == 0);
        data_of(&page);
    }
}

/// Names can be read in the page's source where there is little.
#[test]
fn a_small_page_is_readable() {
    assert!(page_of(&sample(), 12, &mut |_| None).contains("\"make_node\""));
}
