//! GitLab's code-quality report: findings as JSON, shown in the merge request.
//!
//! Source: GitLab, "Code Quality", section "Code Quality report format". Fingerprints must be unique, so the second
//! finding with the same one gets its number behind it. A finding without source is shown at the program.

use std::io::{self, Write};

use serde_json::{Value, json};

use crate::escape::terminal;
use crate::finding::{self, Finding, Level, Occurrences};
use crate::place::Sources;
use crate::{Process, witnesses};

/// Writes the document on all processes.
///
/// # Errors
/// Those of `out`.
pub fn write(out: &mut dyn Write, processes: &[Process<'_>], sources: &Sources) -> io::Result<()> {
    let mut occurrences = Occurrences::default();
    let issues: Vec<Value> = finding::all(processes)
        .iter()
        .map(|(process, finding)| issue(*process, finding, sources, &mut occurrences))
        .collect();
    serde_json::to_writer_pretty(&mut *out, &issues)?;
    writeln!(out)
}

fn issue(process: Process<'_>, finding: &Finding<'_>, sources: &Sources, occurrences: &mut Occurrences) -> Value {
    let (path, line) = match sources.primary(finding.stack) {
        Some((_, place)) => (place.path, place.line.max(1)),
        None => (process.analysis.process.executable.clone(), 1),
    };
    let at = finding::site(finding.stack).map(finding::line).unwrap_or_default();
    let occurrence = occurrences.next(finding.fingerprint);
    let fingerprint = match occurrence {
        1 => finding.fingerprint.to_string(),
        _ => format!("{}-{occurrence}", finding.fingerprint),
    };
    let seen_by = witnesses::words(finding).map_or_else(String::new, |words| format!(" ({words})"));
    json!({
        "description": terminal(&format!("{}, in {at}{seen_by}", finding.title)),
        "check_name": finding.rule.id,
        "fingerprint": fingerprint,
        "severity": match finding.level {
            Level::Error if !finding.rule.is_of_blocks() => "critical",
            Level::Error => "major",
            Level::Warning => "minor",
            Level::Note => "info",
        },
        "location": { "path": terminal(&path), "lines": { "begin": line } },
    })
}
