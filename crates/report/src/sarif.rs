//! SARIF 2.1.0: findings for code scanning (GitHub, GitLab, Azure DevOps, IDEs). One run for all processes.
//!
//! Source: OASIS, "Static Analysis Results Interchange Format (SARIF) Version 2.1.0"; GitHub, "SARIF support for code
//! scanning". Suppressed findings are left out: GitHub would open alerts for them. The fingerprint stands twice in
//! `partialFingerprints`: under our own name, and as `primaryLocationLineHash`, the only one that GitHub reads.
//! The stack of the allocation is the code flow, outermost caller first.

use std::io::{self, Write};

use leakscope_findings::analysis::{Analysis, Frame, Stack, signal_name};
use leakscope_findings::recording::End;
use serde_json::{Map, Value, json};

use crate::escape::terminal;
use crate::finding::{self, Finding, Level, Occurrences};
use crate::place::{Place, Sources, uri};
use crate::{Process, rules, witnesses};

const SCHEMA: &str = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json";
const ROOT: &str = "%SRCROOT%";

/// Writes the document on all processes.
///
/// # Errors
/// Those of `out`.
pub fn write(out: &mut dyn Write, processes: &[Process<'_>], sources: &Sources) -> io::Result<()> {
    let mut occurrences = Occurrences::default();
    let results: Vec<Value> = finding::all(processes)
        .iter()
        .map(|(process, finding)| result(process.analysis, finding, sources, &mut occurrences))
        .collect();
    let version = processes.first().map_or("", |process| process.analysis.tool_version.as_str());
    let mut run = json!({
        "tool": { "driver": {
            "name": "leakscope",
            "version": terminal(version),
            "rules": rules::ALL.iter().map(rule).collect::<Vec<_>>(),
        }},
        "invocations": processes.iter().map(|process| invocation(process.analysis)).collect::<Vec<_>>(),
        "results": results,
        "columnKind": "utf16CodeUnits",
    });
    if sources.root.starts_with('/') {
        let root = format!("file://{}/", uri(sources.root.trim_end_matches('/')));
        run["originalUriBaseIds"] = json!({ ROOT: { "uri": root } });
    }
    let document = json!({ "$schema": SCHEMA, "version": "2.1.0", "runs": [run] });
    serde_json::to_writer_pretty(&mut *out, &document)?;
    writeln!(out)
}

fn rule(rule: &rules::Rule) -> Value {
    let level = match rule.id {
        "leak-possible" => "warning",
        "leak-reachable" | "live" => "note",
        _ => "error",
    };
    json!({
        "id": rule.id,
        "name": rule.name,
        "shortDescription": { "text": rule.words },
        "fullDescription": { "text": rule.what },
        "help": {
            "text": format!("{} {}", rule.what, rule.help),
            "markdown": format!("**{}** {}", rule.what, rule.help),
        },
        "defaultConfiguration": { "level": level },
        "properties": { "tags": ["memory", "leakscope"], "precision": "high" },
    })
}

fn invocation(analysis: &Analysis) -> Value {
    let process = &analysis.process;
    let mut invocation = json!({
        // Whether the tool did its work, not the program.
        "executionSuccessful": finding::not_classified(analysis).is_none(),
        "processId": process.pid,
        "arguments": process.command_line.iter().skip(1).map(|word| terminal(word)).collect::<Vec<_>>(),
    });
    if process.executable.starts_with('/') {
        invocation["executableLocation"] = json!({ "uri": format!("file://{}", uri(&process.executable)) });
    }
    match analysis.end {
        End::Exited(status) => invocation["exitCode"] = json!(status),
        End::Signalled(signal) => {
            invocation["exitSignalNumber"] = json!(signal);
            invocation["exitSignalName"] = json!(signal_name(signal));
        }
        End::Unknown | End::Running | End::Exec => {}
    }
    let notes = finding::notes(analysis);
    let notes = notes.iter().map(|note| json!({ "level": "warning", "message": { "text": terminal(note) } }));
    invocation["toolExecutionNotifications"] = notes.collect();
    invocation
}

fn result(analysis: &Analysis, finding: &Finding<'_>, sources: &Sources, occurrences: &mut Occurrences) -> Value {
    let occurrence = occurrences.next(finding.fingerprint);
    let at = finding::site(finding.stack).map(finding::line).unwrap_or_default();
    let seen_by = witnesses::words(finding).map_or_else(String::new, |words| format!(" ({words})"));
    let mut result = json!({
        "ruleId": finding.rule.id,
        "ruleIndex": rules::ALL.iter().position(|rule| rule == finding.rule),
        "level": match finding.level {
            Level::Error => "error",
            Level::Warning => "warning",
            Level::Note => "note",
        },
        "message": { "text": terminal(&format!("{}, in {at}{seen_by}", finding.title)) },
        "partialFingerprints": {
            "leakscope/v1": finding.fingerprint.to_string(),
            "primaryLocationLineHash": format!("{}:{occurrence}", finding.fingerprint),
        },
        "occurrenceCount": finding.count,
        "locations": [primary(analysis, finding.stack, sources)],
        "codeFlows": [{
            "message": { "text": "The call path, from the outermost caller to the allocation function" },
            "threadFlows": [{ "locations": flow(finding.stack, sources) }],
        }],
        "stacks": std::iter::once(stack("The call path", finding.stack, sources))
            .chain(finding.more.iter().map(|(words, more)| stack(words, more, sources)))
            .collect::<Vec<_>>(),
        "properties": {
            "bytes": finding.bytes,
            "blocks": finding.blocks,
            "processId": analysis.process.pid,
        },
    });
    if !finding.witnesses.is_empty() {
        result["properties"]["witnesses"] = Value::Array(witnesses::values(finding));
    }
    let related: Vec<Value> = finding.more.iter().filter_map(|(words, stack)| related(words, stack, sources)).collect();
    if !related.is_empty() {
        result["relatedLocations"] = Value::Array(related);
    }
    result
}

/// GitHub refuses results without a location: without any source it is the program itself.
fn primary(analysis: &Analysis, stack: &Stack, sources: &Sources) -> Value {
    match sources.primary(stack) {
        Some((frame, place)) => location(frame, Some(&place)),
        None => {
            let module = finding::site(stack).map_or("", |frame| &*frame.object);
            let path = if module.starts_with('/') { module } else { analysis.process.executable.as_str() };
            let path = if path.is_empty() { "unknown" } else { path };
            let scheme = if path.starts_with('/') { "file://" } else { "" };
            json!({ "physicalLocation": { "artifactLocation": { "uri": format!("{scheme}{}", uri(path)) } } })
        }
    }
}

fn related(words: &str, stack: &Stack, sources: &Sources) -> Option<Value> {
    let (frame, place) = sources.primary(stack)?;
    let mut location = location(frame, Some(&place));
    location["message"] = json!({ "text": terminal(words) });
    Some(location)
}

fn location(frame: &Frame, place: Option<&Place>) -> Value {
    let mut location = Map::new();
    if let Some(place) = place {
        location.insert("physicalLocation".to_owned(), physical(place));
    }
    let mut logical = json!({ "kind": "function", "name": terminal(&finding::code(frame)) });
    if let Some(linkage) = frame.linkage_name.as_deref() {
        logical["decoratedName"] = json!(terminal(linkage));
    }
    location.insert("logicalLocations".to_owned(), json!([logical]));
    Value::Object(location)
}

fn physical(place: &Place) -> Value {
    let artifact = if place.below_root {
        json!({ "uri": uri(&place.path), "uriBaseId": ROOT })
    } else {
        let scheme = if place.path.starts_with('/') { "file://" } else { "" };
        json!({ "uri": format!("{scheme}{}", uri(&place.path)) })
    };
    let mut physical = json!({ "artifactLocation": artifact });
    if place.line > 0 {
        let mut region = json!({ "startLine": place.line });
        if place.column > 0 {
            region["startColumn"] = json!(place.column);
        }
        physical["region"] = region;
    }
    physical
}

fn flow(stack: &Stack, sources: &Sources) -> Vec<Value> {
    let frames = stack.frames();
    let steps = frames.iter().rev().enumerate().map(|(i, frame)| {
        let mut location = location(frame, sources.place(frame).as_ref());
        location["message"] = json!({ "text": terminal(&finding::line(frame)) });
        json!({
            "location": location,
            "nestingLevel": i,
            "importance": if sources.place(frame).is_some_and(|place| place.below_root) { "essential" } else { "important" },
        })
    });
    steps.collect()
}

fn stack(words: &str, stack: &Stack, sources: &Sources) -> Value {
    let frames = stack.frames().iter().map(|frame| {
        let mut value = json!({
            "location": location(frame, sources.place(frame).as_ref()),
            "module": terminal(&frame.object),
        });
        // A library that was not found has no address.
        if frame.svma > 0 && frame.svma <= i64::MAX as u64 {
            value["location"]["physicalLocation"]["address"] = json!({ "relativeAddress": frame.svma });
        }
        value
    });
    json!({ "message": { "text": terminal(words) }, "frames": frames.collect::<Vec<_>>() })
}
