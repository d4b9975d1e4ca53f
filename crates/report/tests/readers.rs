//! What other people's programs read out of our documents. `cargo xtask setup` installs them: valgrind-ci, sarif-tools
//! and junitparser come from Python's index (`xtask/python.txt`), `go tool pprof` is Go's.

mod analysed;
#[path = "../../findings/tests/support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use analysed::{Analysed, everything, killed, written};
use leakscope_model::LeakKind;
use leakscope_report::{pprof, valgrind_xml};
use serde_json::Value;

/// A program of `cargo xtask setup`, or of PATH.
fn program(name: &str) -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/python/bin").join(name);
    if own.exists() { own } else { name.into() }
}

fn said(name: &str, words: &[&str]) -> String {
    let output = Command::new(program(name)).args(words).output();
    let output = output.unwrap_or_else(|error| panic!("{name}: {error}; `cargo xtask setup` installs it"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} {words:?}: {}: {stderr}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// A scratch folder that goes away.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("readers-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, contents).unwrap();
        path.into_os_string().into_string().unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A continuous-integration tool that reads Memcheck's XML counts our errors, at our places.
#[test]
fn valgrind_ci_reads_our_xml() {
    let analysed = Analysed::new(everything());
    let mut xml = Vec::new();
    let style = valgrind_xml::Style { gen_suppressions: true, ..Default::default() };
    valgrind_xml::write(&mut xml, &analysed.analysis, &style).unwrap();
    let folder = Folder::new("valgrind-ci");
    let path = folder.write("a.xml", xml);
    let analysis = &analysed.analysis;
    let errors = analysis.shown_misuses().count() + analysis.shown_memory_errors().count();
    let all = errors + analysis.shown_records().count();
    assert_eq!(said("valgrind-ci", &[&path, "--number-of-errors"]).trim(), format!("{all} errors."));
    let summary = said("valgrind-ci", &[&path, "--summary"]);
    for (line, kind) in [("10", "Leak_DefinitelyLost"), ("1278", "Leak_PossiblyLost"), ("53", "FishyValue")] {
        // A line stands once; kinds behind the first one stand below it.
        let at = summary.find(&format!("line {line}: ")).unwrap_or_else(|| panic!("{line}: {summary}"));
        let part = summary[at + 5..].split("line ").next().unwrap();
        assert!(part.contains(&format!("{kind}\t(1 errors)")), "{line} {kind}: {summary}");
    }
}

/// Microsoft's reader of SARIF finds every result with its rule, level and place.
#[test]
fn sarif_tools_read_our_sarif() {
    let (first, second) = (Analysed::new(everything()), Analysed::new(killed()));
    let text = written("sarif", &[first.process(), second.process()]);
    let document: Value = serde_json::from_str(&text).unwrap();
    let folder = Folder::new("sarif");
    let (path, table) = (folder.write("a.sarif", text), folder.write("a.csv", ""));
    said("sarif", &["csv", "--output", &table, &path]);
    let rows = std::fs::read_to_string(&table).unwrap();
    let results = document["runs"][0]["results"].as_array().unwrap();
    for level in ["error", "warning", "note"] {
        let expected = results.iter().filter(|result| result["level"] == level).count();
        let found = rows.lines().filter(|row| row.contains(&format!(",{level},"))).count();
        assert!(found == expected && expected > 0, "{level}: {found}, not {expected}\n{rows}");
    }
    assert!(rows.lines().any(|row| row.contains("leak-definite") && row.contains("src/app.c,10")), "{rows}");
    assert!(rows.lines().any(|row| row.contains("live")), "{rows}");
}

/// What junitparser sees of a case.
const JUNIT_CASES: &str = "
import json, sys
from junitparser import JUnitXml
for suite in JUnitXml.fromfile(sys.argv[1]):
    for case in suite:
        print(json.dumps([suite.tests, suite.failures, suite.skipped, case.name,
                          [type(result).__name__ for result in case.result], case.system_out or '']))
";

#[test]
fn junitparser_reads_our_junit() {
    let (first, second) = (Analysed::new(everything()), Analysed::new(killed()));
    let folder = Folder::new("junit");
    let path = folder.write("a.xml", written("junit", &[first.process(), second.process()]));
    let rows: Vec<Value> =
        said("python3", &["-c", JUNIT_CASES, &path]).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let analysis = &first.analysis;
    let errors = analysis.shown_misuses().count() + analysis.shown_memory_errors().count();
    let failures = errors + analysis.shown_records().filter(|record| record.is_error).count();
    let tests = errors + analysis.shown_records().count();
    assert_eq!(rows.len(), tests + 1);
    assert_eq!((&rows[0][0], &rows[0][1]), (&tests.into(), &failures.into()));
    let failed = |row: &&Value| row[4] == serde_json::json!(["Failure"]);
    assert_eq!(rows.iter().filter(failed).count(), failures);
    let last = &rows[tests];
    assert_eq!((&last[1], &last[2], &last[4]), (&0.into(), &1.into(), &serde_json::json!(["Skipped"])));
    assert!(last[5].as_str().unwrap().contains("no verdict"), "{last}");
}

#[test]
fn go_reads_our_profile() {
    let analysed = Analysed::new(everything());
    let mut profile = Vec::new();
    pprof::write(&mut profile, &[analysed.process()]).unwrap();
    let folder = Folder::new("pprof");
    let path = folder.write("a.pb.gz", profile);
    let top = said("go", &["tool", "pprof", "-top", "-unit=B", "-tagfocus=leak_kind=definite", &path]);
    let definite = analysed.analysis.totals.of(LeakKind::DefinitelyLost).bytes;
    assert!(top.lines().any(|line| line.contains(&format!("{definite}B")) && line.ends_with(" malloc")), "{top}");
}

/// GitLab's documentation, "Code Quality report format": what a finding must and may have.
#[test]
fn gitlab_obeys_the_documented_format() {
    let text = |pattern: &str| serde_json::json!({ "type": "string", "pattern": pattern });
    let schema = serde_json::json!({
        "type": "array",
        "items": {
            "type": "object",
            "required": ["description", "check_name", "fingerprint", "severity", "location"],
            "additionalProperties": false,
            "properties": {
                "description": text("."),
                "check_name": text("^[a-z-]+$"),
                "fingerprint": text("^[0-9a-f]{16}(-[0-9]+)?$"),
                "severity": { "enum": ["info", "minor", "major", "critical", "blocker"] },
                "location": {
                    "type": "object",
                    "required": ["path", "lines"],
                    "additionalProperties": false,
                    "properties": {
                        "path": text("^[^.].*[^/]$"),
                        "lines": {
                            "type": "object",
                            "required": ["begin"],
                            "additionalProperties": false,
                            "properties": { "begin": { "type": "integer", "minimum": 1 } },
                        },
                    },
                },
            },
        },
    });
    let validator = jsonschema::validator_for(&schema).unwrap();
    let (first, second) = (Analysed::new(everything()), Analysed::new(killed()));
    let document: Value = serde_json::from_str(&written("gitlab", &[first.process(), second.process()])).unwrap();
    assert!(document.as_array().unwrap().len() > 10);
    let errors: Vec<String> =
        validator.iter_errors(&document).map(|error| format!("{}: {error}", error.instance_path)).collect();
    assert_eq!(errors, [""; 0]);
    let empty: Value = serde_json::from_str(&written("gitlab", &[])).unwrap();
    assert!(validator.is_valid(&empty), "{empty}");
}
