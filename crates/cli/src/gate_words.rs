//! The gate's verdict in words: one screen of text, JSON, and what JUnit says besides the findings.
//!
//! The JSON document: `schema` (`leakscope-gate`), `version` (1), `passed`, `leaked` and `max_leaked_bytes`, `accepted`
//! (findings that the baseline lets pass), `failures` (each with `reason`, `kind`, `fingerprint`, `bytes`, `blocks`,
//! `place`, `path`, and of the baseline `ceiling`, `until`, `why`), `unseen` entries, `rules` that break their word,
//! `unknown` processes, and `suppression_health` where it was asked for.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use leakscope_findings::analysis::Amount;
use leakscope_findings::gate::{Failure, Reason, Verdict, What};
use leakscope_findings::suppressions::health::RuleHealth;
use serde_json::{Value, json};

/// Rows of one screen.
const MOST_ROWS: usize = 12;
/// Other lists on it.
const MOST_LINES: usize = 4;
/// Longest place in characters.
const LONGEST_PLACE: usize = 100;

/// What the words are about.
pub struct Context<'a> {
    /// What was decided.
    pub verdict: &'a Verdict,
    /// The baseline's file.
    pub baseline: Option<&'a Path>,
    /// The recordings.
    pub files: &'a [PathBuf],
    /// Where sources are relative to.
    pub root: String,
    /// All rules, if they were asked for.
    pub health: Option<&'a [RuleHealth]>,
}

/// `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1 finding`, `2 findings`.
pub fn counted(count: usize, what: &str) -> String {
    match what.strip_suffix('y') {
        Some(front) if count != 1 => format!("{} {front}ies", grouped(count as u64)),
        _ => format!("{} {what}{}", grouped(count as u64), if count == 1 { "" } else { "s" }),
    }
}

/// What fails, by reason: `2 new findings, 1 grown`.
fn summary(verdict: &Verdict) -> String {
    let mut words = Vec::new();
    for reason in Reason::ALL {
        let count = verdict.failures.iter().filter(|failure| failure.reason == reason).count();
        if count > 0 {
            words.push(match reason {
                Reason::New => counted(count, "new finding"),
                _ => format!("{} {}", grouped(count as u64), reason.word()),
            });
        }
    }
    if verdict.is_over_budget() {
        words.push("over --max-leaked".to_owned());
    }
    if !verdict.rules.is_empty() {
        words.push(format!("{} broken", counted(verdict.rules.len(), "suppression limit")));
    }
    words.join(", ")
}

/// What fails that is no finding, one sentence each.
pub fn sentences(words: &Context<'_>) -> Vec<String> {
    let verdict = words.verdict;
    let mut sentences = Vec::new();
    if let (true, Some(most)) = (verdict.is_over_budget(), verdict.most_leaked_bytes) {
        let Amount { bytes, blocks } = verdict.leaked;
        sentences.push(format!(
            "budget: {} bytes in {} blocks are leaked, at most {} bytes may be (--max-leaked)",
            grouped(bytes),
            grouped(blocks),
            grouped(most)
        ));
    }
    for rule in &verdict.rules {
        sentences.push(printable(&format!("suppression {rule}: {}", rule.words().join("; "))));
    }
    sentences
}

/// No control character reaches the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c) { '?' } else { c }).collect()
}

fn place(failure: &Failure, root: &str) -> String {
    let place = failure.finding.place(root);
    let length = place.chars().count();
    if length <= LONGEST_PLACE {
        return place;
    }
    // File and line stand at the end.
    let (front, back) = (LONGEST_PLACE / 2, LONGEST_PLACE / 2 - 3);
    let head: String = place.chars().take(front).collect();
    let tail: String = place.chars().skip(length - back).collect();
    format!("{head}...{tail}")
}

/// What the baseline says of a finding that fails all the same.
fn excuse(failure: &Failure) -> Option<String> {
    let entry = failure.entry.as_ref()?;
    let ceiling = || match failure.finding.what {
        What::Error(_) => format!("at most {} times", grouped(entry.ceiling.blocks)),
        _ => format!("at most {} bytes in {} blocks", grouped(entry.ceiling.bytes), grouped(entry.ceiling.blocks)),
    };
    let reason = if entry.reason.is_empty() { String::new() } else { format!(": {}", entry.reason) };
    let words = match failure.reason {
        Reason::New => return None,
        Reason::Worse => format!("set aside as still reachable{reason}"),
        Reason::Grown => format!("the baseline has {}{reason}", ceiling()),
        Reason::Expired => {
            format!("set aside until {}{reason}", entry.until.map(|day| day.to_string()).unwrap_or_default())
        }
    };
    Some(printable(&words))
}

/// The verdict on one screen.
pub fn text(words: &Context<'_>) -> Vec<u8> {
    let verdict = words.verdict;
    let mut out = String::new();
    let accepted = match (verdict.accepted, words.baseline) {
        (0, _) => String::new(),
        (count, Some(path)) => format!("; {} set aside by {}", counted(count, "finding"), path.display()),
        (count, None) => format!("; {} within --max-leaked", counted(count, "finding")),
    };
    if verdict.passes() {
        let what = if verdict.accepted == 0 { "nothing found" } else { "nothing new" };
        _ = writeln!(out, "leakscope gate: passed: {what}{accepted}");
    } else {
        _ = writeln!(out, "leakscope gate: FAILED: {}{accepted}", summary(verdict));
    }
    rows(&mut out, verdict, &words.root);
    for sentence in sentences(words) {
        _ = writeln!(out, "  {sentence}");
    }
    list(&mut out, "not known: ", verdict.unknown.iter().map(|sentence| printable(sentence)));
    let unseen = verdict.unseen.iter().map(|entry| format!("{} {}", entry.fingerprint, printable(&entry.site)));
    list(&mut out, "not found any more: ", unseen);
    if let Some(health) = words.health {
        out += &health_table(health);
    }
    next(&mut out, words);
    out.into_bytes()
}

fn rows(out: &mut String, verdict: &Verdict, root: &str) {
    if verdict.failures.is_empty() {
        return;
    }
    let kind = |failure: &Failure| failure.finding.what.word().to_owned();
    let shown = &verdict.failures[..verdict.failures.len().min(MOST_ROWS)];
    let width = shown.iter().map(|failure| kind(failure).len()).max().unwrap_or(0);
    _ = writeln!(out, "  {:7} {:>12} {:>9}  {:width$}  {:16}  where", "", "bytes", "blocks", "kind", "fingerprint");
    for failure in shown {
        let finding = &failure.finding;
        _ = writeln!(
            out,
            "  {:7} {:>12} {:>9}  {:width$}  {}  {}",
            failure.reason.word(),
            grouped(finding.amount.bytes),
            grouped(finding.amount.blocks),
            kind(failure),
            finding.fingerprint,
            place(failure, root)
        );
        if let Some(excuse) = excuse(failure) {
            _ = writeln!(out, "          {excuse}");
        }
    }
    if verdict.failures.len() > MOST_ROWS {
        let rest = &verdict.failures[MOST_ROWS..];
        let bytes = rest.iter().fold(0_u64, |sum, failure| sum.saturating_add(failure.finding.amount.bytes));
        _ = writeln!(out, "  ... and {} more, {} bytes", rest.len(), grouped(bytes));
    }
}

fn list(out: &mut String, heading: &str, lines: impl ExactSizeIterator<Item = String>) {
    let count = lines.len();
    for line in lines.take(MOST_LINES) {
        _ = writeln!(out, "  {heading}{line}");
    }
    if count > MOST_LINES {
        _ = writeln!(out, "  {heading}... and {} more", count - MOST_LINES);
    }
}

/// How to go on.
fn next(out: &mut String, words: &Context<'_>) {
    const MOST_FILES: usize = 3;
    let name = |path: &PathBuf| path.display().to_string();
    let mut files = words.files.iter().take(MOST_FILES).map(name).collect::<Vec<_>>().join(" ");
    if words.files.len() > MOST_FILES {
        files += " ...";
    }
    if files.is_empty() {
        // The recordings are thrown away: the reader gets a name to keep them by.
        files = "FILE.leak".to_owned();
        if !words.verdict.failures.is_empty() {
            _ = writeln!(out, "  first:     the same again with -o FILE.leak, to keep the recordings");
        }
    }
    let files = printable(&files);
    let baseline =
        words.baseline.map_or_else(|| "leaks.baseline".to_owned(), |path| printable(&path.display().to_string()));
    if !words.verdict.failures.is_empty() {
        let until = if words.verdict.failures.iter().any(|failure| failure.reason == Reason::Expired) {
            " --until YYYY-MM-DD"
        } else {
            ""
        };
        _ = writeln!(out, "  to fix:    leakscope report {files}   shows the whole stacks");
        _ = writeln!(out, "  to accept: leakscope baseline update --baseline {baseline} --reason 'WHY'{until} {files}");
        if words.baseline.is_none() {
            _ = writeln!(out, "             and then: leakscope gate --baseline {baseline} {files}");
        }
    } else if !words.verdict.unseen.is_empty() {
        _ = writeln!(out, "  to drop them: leakscope baseline update --baseline {baseline} {files}");
    }
}

/// All rules with what they hide.
pub fn health_table(health: &[RuleHealth]) -> String {
    let mut out = String::new();
    if health.is_empty() {
        return "  suppressions: there are none\n".to_owned();
    }
    _ = writeln!(out, "  suppressions:\n  {:>12} {:>9} {:>9}  rule", "bytes", "blocks", "findings");
    for rule in health {
        _ = writeln!(
            out,
            "  {:>12} {:>9} {:>9}  {}",
            grouped(rule.hidden.bytes),
            grouped(rule.hidden.blocks),
            grouped(rule.count),
            printable(&rule.to_string())
        );
        for words in rule.words() {
            _ = writeln!(out, "  {:32}  {}", "", printable(&words));
        }
    }
    out
}

fn rule_value(rule: &RuleHealth) -> Value {
    json!({
        "name": printable(&rule.name), "file": rule.file, "line": rule.line,
        "bytes": rule.hidden.bytes, "blocks": rule.hidden.blocks, "findings": rule.count,
        "max_bytes": rule.limits.most_bytes, "max_blocks": rule.limits.most_blocks,
        "until": rule.limits.until.map(|day| day.to_string()), "problems": rule.words(),
    })
}

/// The verdict for programs.
///
/// # Errors
/// None but those of memory.
pub fn json(words: &Context<'_>) -> Result<Vec<u8>> {
    let verdict = words.verdict;
    let failure = |failure: &Failure| {
        let (finding, entry) = (&failure.finding, failure.entry.as_ref());
        json!({
            "reason": failure.reason.word(),
            "kind": finding.what.word(),
            "fingerprint": finding.fingerprint.to_string(),
            "bytes": finding.amount.bytes,
            "blocks": finding.amount.blocks,
            "place": finding.place(&words.root),
            "path": printable(&finding.path()),
            "ceiling": entry.map(|entry| json!({ "bytes": entry.ceiling.bytes, "blocks": entry.ceiling.blocks })),
            "until": entry.and_then(|entry| entry.until).map(|day| day.to_string()),
            "why": entry.map(|entry| entry.reason.clone()),
        })
    };
    let document = json!({
        "schema": "leakscope-gate",
        "version": 1,
        "passed": verdict.passes(),
        "leaked": { "bytes": verdict.leaked.bytes, "blocks": verdict.leaked.blocks },
        "max_leaked_bytes": verdict.most_leaked_bytes,
        "accepted": verdict.accepted,
        "failures": verdict.failures.iter().map(failure).collect::<Vec<_>>(),
        "unseen": verdict.unseen.iter().map(|entry| entry.fingerprint.to_string()).collect::<Vec<_>>(),
        "rules": verdict.rules.iter().map(rule_value).collect::<Vec<_>>(),
        "unknown": verdict.unknown,
        "suppression_health": words.health.map(|health| health.iter().map(rule_value).collect::<Vec<_>>()),
    });
    let mut bytes = serde_json::to_vec(&document).context("rendering in memory")?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// A JUnit document with a suite for what fails without a finding. Counts of the whole are optional in the format and
/// are left to the reader, who adds up the suites.
pub fn junit_with_gate(document: &[u8], words: &Context<'_>) -> Vec<u8> {
    let text = String::from_utf8_lossy(document);
    let Some((front, rest)) = text.split_once("<testsuites ") else { return document.to_vec() };
    let Some((_, rest)) = rest.split_once('>') else { return document.to_vec() };
    let sentences = sentences(words);
    let mut suite = format!(
        "  <testsuite name=\"leakscope gate\" tests=\"{}\" failures=\"{}\" errors=\"0\" skipped=\"0\" time=\"0\">\n",
        sentences.len().max(1),
        sentences.len()
    );
    for sentence in &sentences {
        let name = if sentence.starts_with("budget") { "budget" } else { "suppressions" };
        _ = writeln!(
            suite,
            "    <testcase classname=\"leakscope gate\" name=\"{name}\" time=\"0\"><failure message=\"{}\"/></testcase>",
            xml(sentence)
        );
    }
    if sentences.is_empty() {
        suite += "    <testcase classname=\"leakscope gate\" name=\"budgets\" time=\"0\"/>\n";
    }
    suite += "  </testsuite>\n";
    format!("{front}<testsuites name=\"leakscope gate\">\n{suite}{}", rest.trim_start_matches('\n')).into_bytes()
}

fn xml(text: &str) -> String {
    let text = printable(text).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    text.replace('"', "&quot;").replace(['\u{fffe}', '\u{ffff}'], "?")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_words() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(number), text);
        }
        assert_eq!(counted(1, "entry"), "1 entry");
        assert_eq!(counted(2, "entry"), "2 entries");
        assert_eq!(counted(2000, "finding"), "2,000 findings");
    }
}
