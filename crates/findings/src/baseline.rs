//! The findings that a team has set aside: a text file to review and to merge, a line for each.
//!
//! ```text
//! # leakscope baseline 1
//! # FINGERPRINT KIND BYTES BLOCKS WHERE # until=DATE REASON
//!
//! 0d7d2c1b6a594837 definite 2700 61 read_orders < main (orders.cpp) # until=2027-01-31 freed with the new reader
//! c0ffee0123456789 InvalidFree 0 1 drop_it < main (app.c)
//! ```
//!
//! * The fingerprint alone says which finding is meant; the words behind it are for people, and hold no line numbers,
//!   so that they change when the finding does and not when the file above it is edited.
//! * `BYTES` and `BLOCKS` are ceilings: less passes, more fails. For an error `BLOCKS` is how often it happened.
//! * Lines are sorted, so that two branches that add findings mostly add them at different places; a merge may also keep
//!   both sides' lines in any order (git's `merge=union`). Of two lines for one finding the larger ceiling and the
//!   earlier date count.
//! * Comments above a line stay with it. The whole line is one finding, so that `git blame` says who accepted it.

use std::collections::BTreeMap;
use std::fmt;

use jiff::civil::Date;
use leakscope_model::LeakKind;

use crate::analysis::Amount;
use crate::fingerprint::Fingerprint;
use crate::gate::{Finding, What};

/// The first line, without the version.
const VERSION_WORDS: &str = "# leakscope baseline ";
/// The version that this build reads and writes.
const VERSION: &str = "1";
const LEGEND: &str = "# FINGERPRINT KIND BYTES BLOCKS WHERE # until=DATE REASON";
/// Between where a finding is and what people said of it.
const NOTE: &str = " # ";

/// A finding that is set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Which.
    pub fingerprint: Fingerprint,
    /// What it was: a leak kind's option word, `live`, or the name of an error.
    pub kind: String,
    /// The most bytes and blocks that pass; for an error the blocks are how often it may happen.
    pub ceiling: Amount,
    /// Where, for people.
    pub site: String,
    /// The last day on which it passes.
    pub until: Option<Date>,
    /// Why it is set aside.
    pub reason: String,
    /// Comment lines above it.
    comments: Vec<String>,
}

/// The findings that are set aside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Baseline {
    /// Comments in front, up to an empty line.
    head: Vec<String>,
    /// By fingerprint.
    entries: BTreeMap<Fingerprint, Entry>,
    /// Comments behind the last entry.
    tail: Vec<String>,
    /// Entries that came twice.
    duplicates: Vec<Fingerprint>,
}

/// A mistake in a baseline. The words name the file and the line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaselineError {
    /// The file.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// What was expected there.
    pub expected: String,
    /// What was found instead; empty for the end of the file.
    pub found: String,
}

impl fmt::Display for BaselineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "baseline {}:{}: expected {}, found ", self.file, self.line, self.expected)?;
        if self.found.is_empty() { write!(f, "the end of the file") } else { write!(f, "`{}`", printable(&self.found)) }
    }
}

impl std::error::Error for BaselineError {}

/// What [`Baseline::update`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// New entries.
    pub added: Vec<Entry>,
    /// Entries with a higher ceiling than before.
    pub raised: Vec<(Entry, Amount)>,
    /// Entries with a lower ceiling than before.
    pub lowered: Vec<(Entry, Amount)>,
    /// Entries whose finding is gone.
    pub removed: Vec<Entry>,
    /// Entries that got a new date.
    pub extended: Vec<Entry>,
}

/// How [`Baseline::update`] treats entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// For new entries.
    pub reason: String,
    /// For new entries, and for those that have expired.
    pub until: Option<Date>,
    /// Entries that were not seen stay.
    pub keep_unseen: bool,
}

impl Baseline {
    /// Reads the text of the file `file`.
    ///
    /// # Errors
    /// At the first mistake.
    pub fn parse(file: &str, text: &str) -> Result<Self, BaselineError> {
        let mut baseline = Self::default();
        let mut pending: Vec<String> = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let error = |expected: &str, found: &str| BaselineError {
                file: file.to_owned(),
                line: number + 1,
                expected: expected.to_owned(),
                found: found.chars().take(120).collect(),
            };
            let line = line.trim_end();
            match line.strip_prefix(VERSION_WORDS) {
                Some(VERSION) => continue,
                Some(version) => return Err(error("version 1, which this build reads", version)),
                None if number == 0 => return Err(error("the line `# leakscope baseline 1`", line)),
                None => {}
            }
            if ["<<<<<<<", "=======", ">>>>>>>", "|||||||"].iter().any(|marker| line.starts_with(marker)) {
                let expected = "an entry (this is a conflict of a merge: remove the markers and keep the lines of both sides, in any order)";
                return Err(error(expected, line));
            }
            if line.is_empty() {
                if baseline.entries.is_empty() {
                    baseline.head.append(&mut pending);
                }
            } else if line.trim_start().starts_with('#') {
                if line != LEGEND {
                    pending.push(line.to_owned());
                }
            } else {
                let entry = entry(line).map_err(|(expected, found)| error(expected, found))?;
                baseline.insert(Entry { comments: std::mem::take(&mut pending), ..entry });
            }
        }
        if text.is_empty() {
            return Err(BaselineError {
                file: file.to_owned(),
                line: 1,
                expected: "the line `# leakscope baseline 1`".to_owned(),
                found: String::new(),
            });
        }
        baseline.tail = pending;
        Ok(baseline)
    }

    fn insert(&mut self, mut entry: Entry) {
        if let Some(other) = self.entries.remove(&entry.fingerprint) {
            self.duplicates.push(entry.fingerprint);
            entry.ceiling.bytes = entry.ceiling.bytes.max(other.ceiling.bytes);
            entry.ceiling.blocks = entry.ceiling.blocks.max(other.ceiling.blocks);
            entry.until = [entry.until, other.until].into_iter().flatten().min();
            if entry.reason.is_empty() {
                entry.reason = other.reason;
            }
            let comments = std::mem::replace(&mut entry.comments, other.comments);
            entry.comments.extend(comments);
            entry.comments.dedup();
        }
        self.entries.insert(entry.fingerprint, entry);
    }

    /// The text of the file.
    pub fn text(&self) -> String {
        let mut out = format!("{VERSION_WORDS}{VERSION}\n{LEGEND}\n");
        for line in &self.head {
            out += &format!("{line}\n");
        }
        out.push('\n');
        for entry in self.entries.values() {
            for line in &entry.comments {
                out += &format!("{line}\n");
            }
            out += &format!("{entry}\n");
        }
        for line in &self.tail {
            out += &format!("{line}\n");
        }
        out
    }

    /// The entries, by fingerprint.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// The entry for a finding.
    pub fn entry(&self, fingerprint: Fingerprint) -> Option<&Entry> {
        self.entries.get(&fingerprint)
    }

    /// Findings that had several lines.
    pub fn duplicates(&self) -> &[Fingerprint] {
        &self.duplicates
    }

    /// Makes the entries what was found. Entries of kinds that `judged` does not hold stay as they are.
    pub fn update(
        &mut self,
        findings: &[Finding],
        judged: impl Fn(&str) -> bool,
        wishes: &Wishes,
        today: Date,
    ) -> Changes {
        let mut changes = Changes::default();
        let found: BTreeMap<Fingerprint, &Finding> = findings.iter().map(|found| (found.fingerprint, found)).collect();
        if !wishes.keep_unseen {
            let gone = |entry: &Entry| judged(&entry.kind) && !found.contains_key(&entry.fingerprint);
            self.entries.retain(|_, entry| {
                let is_gone = gone(entry);
                if is_gone {
                    changes.removed.push(entry.clone());
                }
                !is_gone
            });
        }
        for finding in findings {
            let fresh = Entry::of(finding);
            match self.entries.get_mut(&finding.fingerprint) {
                None => {
                    let entry = Entry { reason: reason_of(&wishes.reason), until: wishes.until, ..fresh };
                    changes.added.push(entry.clone());
                    self.entries.insert(finding.fingerprint, entry);
                }
                Some(entry) => renew(entry, fresh, wishes, today, &mut changes),
            }
        }
        changes
    }
}

/// Brings an entry up to date. The line stays as it is, to the byte, when the finding is as it was.
fn renew(entry: &mut Entry, fresh: Entry, wishes: &Wishes, today: Date, changes: &mut Changes) {
    let before = entry.ceiling;
    if fresh.ceiling != before {
        (entry.ceiling, entry.kind, entry.site) = (fresh.ceiling, fresh.kind, fresh.site);
        let is_more = entry.ceiling.bytes > before.bytes || entry.ceiling.blocks > before.blocks;
        if is_more { &mut changes.raised } else { &mut changes.lowered }.push((entry.clone(), before));
    } else if fresh.kind != entry.kind {
        entry.kind = fresh.kind;
    }
    if wishes.until.is_some() && entry.is_expired(today) {
        entry.until = wishes.until;
        changes.extended.push(entry.clone());
    }
}

impl Entry {
    fn of(finding: &Finding) -> Self {
        Self {
            fingerprint: finding.fingerprint,
            kind: finding.what.word().to_owned(),
            ceiling: finding.amount,
            site: without_note(&one_line(&finding.path())),
            until: None,
            reason: String::new(),
            comments: Vec::new(),
        }
    }

    /// Whether its last day is over.
    pub fn is_expired(&self, today: Date) -> bool {
        self.until.is_some_and(|until| until < today)
    }

    /// Whether it was set aside as a block that the program can still reach.
    pub fn was_reachable(&self) -> bool {
        self.kind == What::Leak(LeakKind::StillReachable).word()
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { fingerprint, kind, ceiling, site, until, reason, .. } = self;
        write!(f, "{fingerprint} {kind} {} {} {site}", ceiling.bytes, ceiling.blocks)?;
        if until.is_some() || !reason.is_empty() {
            f.write_str(NOTE.trim_end())?;
        }
        if let Some(until) = until {
            write!(f, " until={until}")?;
        }
        if reason.is_empty() { Ok(()) } else { write!(f, " {reason}") }
    }
}

/// Reads a date such as `2027-01-31`.
pub fn date(text: &str) -> Option<Date> {
    // The parser takes more forms; a file that people read has one.
    let date: Date = text.parse().ok()?;
    (date.to_string() == text).then_some(date)
}

/// Reads an entry; `Err` is what was expected, and what was found.
fn entry(line: &str) -> Result<Entry, (&'static str, &str)> {
    const NUMBER: &str = "a number of bytes and a number of blocks behind the kind";
    let (front, note) = match line.split_once(NOTE) {
        Some((front, note)) => (front, note.trim()),
        None => (line, ""),
    };
    let (fingerprint, rest) = word(front);
    let is_fingerprint = fingerprint.len() == 16 && fingerprint.bytes().all(|byte| byte.is_ascii_hexdigit());
    let fingerprint: Fingerprint = Some(fingerprint)
        .filter(|_| is_fingerprint)
        .and_then(|digits| digits.parse().ok())
        .ok_or(("a fingerprint of 16 hexadecimal digits, or a comment", fingerprint))?;
    let (kind, rest) = word(rest);
    if !kind.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return Err((
            "a kind, such as `definite`, `possible` or `InvalidFree`, behind the fingerprint",
            or_line(kind, line),
        ));
    }
    let (bytes, rest) = word(rest);
    let (blocks, site) = word(rest);
    let bytes: u64 = bytes.parse().map_err(|_| (NUMBER, or_line(bytes, line)))?;
    let blocks: u64 = blocks.parse().map_err(|_| (NUMBER, or_line(blocks, line)))?;
    let (until, reason) = match note.strip_prefix("until=") {
        None => (None, note),
        Some(rest) => {
            let (day, reason) = word(rest);
            (Some(date(day).ok_or(("a date such as `until=2027-01-31`", or_line(day, line)))?), reason)
        }
    };
    Ok(Entry {
        fingerprint,
        kind: kind.to_owned(),
        ceiling: Amount { bytes, blocks },
        site: without_note(site),
        until,
        reason: reason.to_owned(),
        comments: Vec::new(),
    })
}

/// A site that cannot be taken for the beginning of a note.
fn without_note(site: &str) -> String {
    site.split_whitespace().map(|word| if word == "#" { "?" } else { word }).collect::<Vec<_>>().join(" ")
}

/// A reason that cannot be taken for a date.
fn reason_of(text: &str) -> String {
    let text = one_line(text);
    if text.starts_with("until=") { format!("({text})") } else { text }
}

/// What was found, or the whole line where nothing was.
fn or_line<'a>(found: &'a str, line: &'a str) -> &'a str {
    if found.is_empty() { line } else { found }
}

/// The first word and what follows it.
fn word(text: &str) -> (&str, &str) {
    let text = text.trim_start();
    let end = text.find(char::is_whitespace).unwrap_or(text.len());
    (&text[..end], text[end..].trim())
}

/// Names and reasons come from anywhere: one line, without what turns a terminal or the direction of text.
fn one_line(text: &str) -> String {
    printable(text).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether a character is more than seen: terminal escapes, ends of lines, and marks that turn the direction of text.
pub(crate) fn is_dangerous(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}')
}

/// `text` with `?` for what is more than seen.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c == '\t' || c == '\n' {
                ' '
            } else if is_dangerous(c) {
                '?'
            } else {
                c
            }
        })
        .collect()
}
