//! Annotations of GitHub Actions: one workflow command a line, shown beside the changed code.
//!
//! Source: GitHub, "Workflow commands for GitHub Actions", and `@actions/core`'s escaping: `%`, CR and LF in the
//! message, also `:` and `,` in properties. GitHub shows ten errors and ten warnings of a step, so the largest come
//! first. A line that does not begin with `::` is only a line of the log.

use std::io::{self, Write};

use crate::escape::terminal;
use crate::finding::{self, Finding, Level};
use crate::place::Sources;
use crate::{Process, witnesses};

/// Writes a line for each finding of all processes.
///
/// # Errors
/// Those of `out`.
pub fn write(out: &mut dyn Write, processes: &[Process<'_>], sources: &Sources) -> io::Result<()> {
    let mut findings = finding::all(processes);
    findings.sort_by_key(|(_, finding)| std::cmp::Reverse(finding.level));
    for (_, finding) in &findings {
        writeln!(out, "{}", command(finding, sources))?;
    }
    for process in processes {
        let program = finding::program(process.analysis);
        for sentence in finding::notes(process.analysis) {
            writeln!(out, "::notice title=leakscope::{}", data(&format!("{program}: {sentence}")))?;
        }
    }
    Ok(())
}

fn command(finding: &Finding<'_>, sources: &Sources) -> String {
    let word = match finding.level {
        Level::Error => "error",
        Level::Warning => "warning",
        Level::Note => "notice",
    };
    let mut properties = Vec::new();
    if let Some((_, place)) = sources.primary(finding.stack) {
        properties.push(format!("file={}", property(&place.path)));
        if place.line > 0 {
            properties.push(format!("line={}", place.line));
        }
        if place.column > 0 {
            properties.push(format!("col={}", place.column));
        }
    }
    properties.push(format!("title={}", property(finding.rule.words)));
    let mut message = data(&finding.title);
    if let Some(words) = witnesses::words(finding) {
        message += &format!("%0A  {}", data(&words));
    }
    for (heading, stack) in std::iter::once(("", finding.stack)).chain(finding.more.iter().copied()) {
        if !heading.is_empty() {
            message += &format!("%0A  {}", data(heading));
        }
        for (i, frame) in stack.frames().iter().enumerate() {
            message += &format!("%0A   {} {}", if i == 0 { "at" } else { "by" }, data(&finding::line(frame)));
        }
    }
    format!("::{word} {}::{message}%0A[{}]", properties.join(","), finding.fingerprint)
}

/// Text of a message. What could start a line of its own never reaches this point unescaped.
fn data(text: &str) -> String {
    terminal(text).replace('%', "%25")
}

/// The value of a property.
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}
