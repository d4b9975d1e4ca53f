//! Markdown for a comment on a pull request: at most [`MOST_LINES`] lines, whatever was found.
//!
//! Names stand in `<code>` elements with every character that could be markup as a character reference: code spans
//! between backticks cannot hold a backtick or, in tables, a bar.

use std::io::{self, Write};

use leakscope_findings::analysis::{Amount, Analysis, LossRecord};
use leakscope_model::LeakKind;

use crate::Process;
use crate::escape::markdown;
use crate::finding::{self, Finding, Level};
use crate::place::Sources;
use crate::wording::grouped;

/// The longest comment.
pub const MOST_LINES: usize = 60;
/// Findings in the table.
const MOST_ROWS: usize = 15;
/// Findings with their stacks, and frames of each.
const MOST_STACKS: usize = 3;
const MOST_FRAMES: usize = 6;
/// Notes on what is missing.
const MOST_NOTES: usize = 4;
/// Longest name in characters, so that a template does not fill the screen.
const LONGEST_NAME: usize = 120;

/// Writes the comment on all processes.
///
/// # Errors
/// Those of `out`.
pub fn write(out: &mut dyn Write, processes: &[Process<'_>], sources: &Sources) -> io::Result<()> {
    let mut findings = finding::all(processes);
    // They have a table of their own.
    findings.retain(|(_, finding)| !finding.is_only_live());
    let mut lines = vec![heading(processes, &findings), String::new()];
    totals(&mut lines, processes);
    table(&mut lines, &findings, sources);
    live(&mut lines, processes, sources);
    notes(&mut lines, processes);
    stacks(&mut lines, &findings);
    while lines.last().is_some_and(String::is_empty) {
        lines.pop();
    }
    debug_assert!(lines.len() <= MOST_LINES, "{} lines", lines.len());
    lines.truncate(MOST_LINES);
    for line in lines {
        writeln!(out, "{line}")?;
    }
    Ok(())
}

/// Short enough for a table cell, escaped.
pub(crate) fn short(name: &str) -> String {
    if name.chars().count() <= LONGEST_NAME {
        return markdown(name);
    }
    let front: String = name.chars().take(LONGEST_NAME - 3).collect();
    markdown(&format!("{front}..."))
}

fn heading(processes: &[Process<'_>], findings: &[(Process<'_>, Finding<'_>)]) -> String {
    let errors = findings.iter().filter(|(_, finding)| finding.level > Level::Note).count();
    let of = match processes {
        [] => "an empty recording".to_owned(),
        [one] => format!("<code>{}</code>", short(finding::program(one.analysis))),
        [one, ..] => {
            format!("<code>{}</code> and {} more processes", short(finding::program(one.analysis)), processes.len() - 1)
        }
    };
    let words = match errors {
        0 if processes.iter().any(|process| finding::not_classified(process.analysis).is_some()) => {
            "leaks are not known".to_owned()
        }
        0 => "no leaks found".to_owned(),
        1 => "1 finding".to_owned(),
        _ => format!("{} findings", grouped(errors as u64)),
    };
    format!("### leakscope: {words} in {of}")
}

fn totals(lines: &mut Vec<String>, processes: &[Process<'_>]) {
    let sum = |of: &dyn Fn(&Analysis) -> Amount| {
        processes.iter().map(|process| of(process.analysis)).fold(Amount::default(), |sum, amount| Amount {
            bytes: sum.bytes.saturating_add(amount.bytes),
            blocks: sum.blocks.saturating_add(amount.blocks),
        })
    };
    if processes.iter().all(|process| finding::not_classified(process.analysis).is_some()) {
        return;
    }
    lines.push("| | bytes | blocks |".to_owned());
    lines.push("|---|---:|---:|".to_owned());
    for kind in LeakKind::ALL.into_iter().rev() {
        let Amount { bytes, blocks } = sum(&|analysis| analysis.totals.of(kind));
        lines.push(format!("| {} | {} | {} |", kind.words(), grouped(bytes), grouped(blocks)));
    }
    let Amount { bytes, blocks } = sum(&|analysis| analysis.totals.suppressed);
    if blocks > 0 {
        lines.push(format!("| suppressed | {} | {} |", grouped(bytes), grouped(blocks)));
    }
    lines.push(String::new());
}

fn table(lines: &mut Vec<String>, findings: &[(Process<'_>, Finding<'_>)], sources: &Sources) {
    if findings.is_empty() {
        return;
    }
    let has_witnesses = findings.iter().any(|(_, finding)| !finding.witnesses.is_empty());
    let (head, line) = if has_witnesses { ("| seen by ", "|---") } else { ("", "") };
    lines.push(format!("| finding | bytes | blocks | where {head}| fingerprint |"));
    lines.push(format!("|---|---:|---:|---{line}|---|"));
    for (_, finding) in findings.iter().take(MOST_ROWS) {
        let amount = |number: u64| if finding.blocks == 0 { String::new() } else { grouped(number) };
        let names: Vec<String> = finding
            .witnesses
            .iter()
            .map(|(witness, _)| format!("<code>{}</code>", short(&witness.to_string())))
            .collect();
        let seen_by = if has_witnesses { format!("| {} ", names.join("<br>")) } else { String::new() };
        lines.push(format!(
            "| {} | {} | {} | {} {seen_by}| <code>{}</code> |",
            finding.rule.words,
            amount(finding.bytes),
            amount(finding.blocks),
            place(finding, sources),
            finding.fingerprint
        ));
    }
    if findings.len() > MOST_ROWS {
        lines.push(String::new());
        lines.push(format!("... and {} more.", grouped((findings.len() - MOST_ROWS) as u64)));
    }
    lines.push(String::new());
}

/// The innermost function of the user's own code, with its path.
fn place(finding: &Finding<'_>, sources: &Sources) -> String {
    match sources.primary(finding.stack) {
        Some((frame, place)) if place.line > 0 => format!(
            "<code>{}</code> at <code>{}</code>",
            short(&finding::code(frame)),
            short(&format!("{}:{}", place.path, place.line))
        ),
        _ => finding::site(finding.stack)
            .map_or_else(String::new, |frame| format!("<code>{}</code>", short(&finding::line(frame)))),
    }
}

/// The largest live blocks of processes whose blocks are not classified.
fn live(lines: &mut Vec<String>, processes: &[Process<'_>], sources: &Sources) {
    let mut records: Vec<&LossRecord> = processes
        .iter()
        .flat_map(|process| process.analysis.shown_records())
        .filter(|record| record.kind.is_none() && !record.is_error)
        .collect();
    if records.is_empty() {
        return;
    }
    records.sort_by_key(|record| std::cmp::Reverse(record.bytes));
    lines.push("| live (not classified) | blocks | where |".to_owned());
    lines.push("|---:|---:|---|".to_owned());
    // The table of findings and this one share their room.
    for record in records.iter().take(5) {
        let at = match sources.primary(&record.stack) {
            Some((frame, _)) => Some(frame),
            None => finding::site(&record.stack),
        };
        let at = at.map(finding::line).unwrap_or_default();
        lines.push(format!(
            "| {} bytes | {} | <code>{}</code> |",
            grouped(record.bytes),
            grouped(record.blocks),
            short(&at)
        ));
    }
    lines.push(String::new());
}

fn notes(lines: &mut Vec<String>, processes: &[Process<'_>]) {
    let sentences: Vec<String> = processes
        .iter()
        .flat_map(|process| {
            let program = finding::program(process.analysis);
            let sentences = finding::not_classified(process.analysis).into_iter();
            sentences.chain(finding::losses(process.analysis)).map(move |sentence| format!("{program}: {sentence}"))
        })
        .collect();
    for sentence in sentences.iter().take(MOST_NOTES) {
        lines.push(format!("> <code>{}</code>  ", short(sentence)));
    }
    if sentences.len() > MOST_NOTES {
        lines.push(format!("> and {} more notes", sentences.len() - MOST_NOTES));
    }
    if !sentences.is_empty() {
        lines.push(String::new());
    }
}

fn stacks(lines: &mut Vec<String>, findings: &[(Process<'_>, Finding<'_>)]) {
    for (_, finding) in findings.iter().take(MOST_STACKS) {
        let frames = finding.stack.frames();
        let room = MOST_LINES.saturating_sub(lines.len());
        // The element's own two lines, a line for the rest, and one that says that frames are missing.
        if room < 5 {
            break;
        }
        let shown = frames.len().min(MOST_FRAMES).min(room - 3);
        lines.push(format!("<details><summary>{}</summary><pre>", short(&finding.title)));
        lines.extend(frames.iter().take(shown).map(|frame| short(&finding::line(frame))));
        if frames.len() > shown {
            lines.push(format!("... {} more", frames.len() - shown));
        }
        lines.push("</pre></details>".to_owned());
    }
}
