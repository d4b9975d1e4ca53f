//! What has been said, so that it is said once: one alarm a finding and state, repeats, quiet hours, a digest, a maximum a day.
//!
//! Pure: the time comes from the caller, as seconds since the epoch and the local hour. The whole book is serializable.
//!
//! ```text
//!                    opened               grown: twice the value since what was said last
//!  (nothing) ---------------------> open -----------------------------------------------> open
//!                                    |  repeat: still there after the interval
//!                                    +----> resolved: not found any more
//! ```
//!
//! In quiet hours only urgent notices go out; the rest is said together when they end. What exceeds the maximum a day is
//! counted, and the next day's first notice says how many there were.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

const DAY: u64 = 86_400;
/// A value that has become so many times larger is said again.
const GROWN: f64 = 2.0;

/// An allocation site or a leak that stands behind a finding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// What found it: `ledger`, `leak check`, `kmemleak`, `kernel trace`.
    pub source: String,
    /// Its identity, the same as in leakscope's reports.
    pub fingerprint: String,
    /// When it was seen first, if that was before this alarm; `None` when it is new.
    pub known_since: Option<u64>,
    /// One line: how much, by how much more, in which process.
    pub title: String,
    /// Its frames, innermost first, each with file and line where they are known.
    pub stack: Vec<String>,
    /// Bytes that are alive.
    pub bytes: u64,
    /// Blocks that are alive.
    pub blocks: u64,
}

impl Evidence {
    /// Frames that are shown in one line.
    const FRAMES: usize = 6;

    /// One line for people.
    pub fn line(&self) -> String {
        let age = match self.known_since {
            Some(at) => format!("known since {}", crate::format::time(at)),
            None => "new".to_owned(),
        };
        let shown = self.stack.iter().take(Self::FRAMES).map(String::as_str).collect::<Vec<_>>().join(" < ");
        let more = if self.stack.len() > Self::FRAMES { " < ..." } else { "" };
        format!("{} {} ({age}): {}: {shown}{more}", self.source, self.fingerprint, self.title)
    }
}

/// Something that is wrong now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// The same for the same thing, across restarts of everything: `name:nginx/resident`.
    pub key: String,
    /// The target, fit to be shown.
    pub target: String,
    /// One line: what grows, how fast, how long until the limit.
    pub title: String,
    /// More lines: since when, what the values are.
    pub details: Vec<String>,
    /// The sites and leaks behind it, with their identities.
    #[serde(default)]
    pub evidence: Vec<Evidence>,
    /// What to type next.
    pub next: String,
    /// The value now, by which growth is judged.
    pub value: f64,
    /// Bytes or things an hour.
    pub per_hour: f64,
    /// Hours until the limit, if there is one.
    pub hours_left: Option<f64>,
    /// Since when, seconds since the epoch.
    pub since: u64,
    /// Whether quiet hours do not matter.
    pub urgent: bool,
    /// The last values, for a chart: seconds since the epoch and value.
    pub series: Vec<(u64, f64)>,
}

impl Finding {
    /// All lines below the title: the details, and a line for each piece of evidence.
    pub fn lines(&self) -> Vec<String> {
        self.details.iter().cloned().chain(self.evidence.iter().map(Evidence::line)).collect()
    }
}

/// What a notice says of its findings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// They are new.
    Opened,
    /// They have become much larger.
    Grown,
    /// They are still there.
    Repeated,
    /// They are gone.
    Resolved,
    /// What came together while nothing was to be said.
    Digest,
    /// Nothing is wrong: a trial of the channels.
    Test,
}

impl Kind {
    /// One word for people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Opened => "growing",
            Self::Grown => "still growing, much larger",
            Self::Repeated => "still growing",
            Self::Resolved => "resolved",
            Self::Digest => "digest",
            Self::Test => "test",
        }
    }
}

/// A message to be sent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Notice {
    /// What it says of the findings.
    pub kind: Kind,
    /// The machine.
    pub machine: String,
    /// When, seconds since the epoch.
    pub at: u64,
    /// What it is about; of a digest, each with its own kind.
    pub findings: Vec<(Kind, Finding)>,
    /// Notices that were not sent, because of the maximum a day.
    pub withheld: u32,
}

/// When to speak.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Seconds after which an open finding is said again; `None` never.
    pub repeat_seconds: Option<u64>,
    /// Local hours from and to which only what is urgent goes out; may go over midnight.
    pub quiet_hours: Option<(u8, u8)>,
    /// Most notices in 24 hours.
    pub most_a_day: u32,
    /// Whether findings are gathered and said once a day, at this local hour; urgent ones at once.
    pub digest_hour: Option<u8>,
}

impl Default for Policy {
    fn default() -> Self {
        Self { repeat_seconds: Some(DAY), quiet_hours: None, most_a_day: 20, digest_hour: None }
    }
}

/// An open finding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Open {
    finding: Finding,
    said_at: u64,
    said_value: f64,
    /// Whether anybody has heard of it.
    said: bool,
}

/// What has been said.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Book {
    open: BTreeMap<String, Open>,
    /// Waits for the end of quiet hours or for the digest.
    waiting: Vec<(Kind, Finding)>,
    /// Times of the notices of the last day.
    sent: Vec<u64>,
    withheld: u32,
    last_digest_day: Option<u64>,
}

impl Book {
    /// Compares all that is wrong now with what was; gives what is to be said, at most one notice a call.
    ///
    /// `local_hour` is 0 to 23; `machine` stands in the notice.
    pub fn update(
        &mut self,
        found: &[Finding],
        policy: &Policy,
        at: u64,
        local_hour: u8,
        machine: &str,
    ) -> Option<Notice> {
        let mut now = self.compare(found, policy, at);
        self.sent.retain(|&sent| sent + DAY > at);
        let is_quiet = policy.quiet_hours.is_some_and(|(from, to)| is_between(local_hour, from, to));
        let gathers = policy.digest_hour.is_some();
        if is_quiet || gathers {
            let (urgent, rest): (Vec<_>, Vec<_>) =
                now.into_iter().partition(|(kind, finding)| finding.urgent && *kind != Kind::Resolved);
            self.waiting.extend(rest);
            now = urgent;
        }
        let digest_due = match policy.digest_hour {
            Some(hour) => local_hour == hour && self.last_digest_day.is_none_or(|day| at.saturating_sub(day) > DAY / 2),
            None => true,
        };
        let mut is_digest = false;
        if !is_quiet && digest_due && !self.waiting.is_empty() {
            let mut all = settle(std::mem::take(&mut self.waiting));
            is_digest = !all.is_empty();
            all.append(&mut now);
            now = all;
            self.last_digest_day = Some(at);
        }
        if now.is_empty() {
            return None;
        }
        if self.sent.len() >= policy.most_a_day as usize {
            self.withheld += 1;
            return None;
        }
        self.sent.push(at);
        let same = now.iter().all(|(kind, _)| *kind == now[0].0);
        Some(Notice {
            kind: if is_digest || !same { Kind::Digest } else { now[0].0 },
            machine: machine.to_owned(),
            at,
            findings: now,
            withheld: std::mem::take(&mut self.withheld),
        })
    }

    fn compare(&mut self, found: &[Finding], policy: &Policy, at: u64) -> Vec<(Kind, Finding)> {
        let mut now = Vec::new();
        for finding in found {
            let Some(open) = self.open.get_mut(&finding.key) else {
                now.push((Kind::Opened, finding.clone()));
                let open = Open { finding: finding.clone(), said_at: at, said_value: finding.value, said: true };
                self.open.insert(finding.key.clone(), open);
                continue;
            };
            let has_become_urgent = finding.urgent && !open.finding.urgent;
            open.finding = finding.clone();
            let kind = if has_become_urgent || finding.value >= GROWN * open.said_value.max(1.0) {
                Kind::Grown
            } else if policy.repeat_seconds.is_some_and(|seconds| at.saturating_sub(open.said_at) >= seconds) {
                Kind::Repeated
            } else {
                continue;
            };
            (open.said_at, open.said_value) = (at, finding.value);
            now.push((kind, finding.clone()));
        }
        let gone: Vec<String> =
            self.open.keys().filter(|key| !found.iter().any(|finding| finding.key == **key)).cloned().collect();
        for key in gone {
            if let Some(open) = self.open.remove(&key) {
                now.push((Kind::Resolved, open.finding));
            }
        }
        now
    }

    /// What is open.
    pub fn open(&self) -> impl Iterator<Item = &Finding> {
        self.open.values().map(|open| &open.finding)
    }
}

/// What came and went while nobody was told needs not be told; of the rest the newest word counts.
fn settle(waiting: Vec<(Kind, Finding)>) -> Vec<(Kind, Finding)> {
    let mut settled: Vec<(Kind, Finding)> = Vec::new();
    for (kind, finding) in waiting {
        match settled.iter().position(|(_, known)| known.key == finding.key) {
            Some(index) if kind == Kind::Resolved && settled[index].0 == Kind::Opened => {
                settled.remove(index);
            }
            Some(index) => {
                let first = settled[index].0;
                settled[index] = (if first == Kind::Opened { first } else { kind }, finding);
            }
            None => settled.push((kind, finding)),
        }
    }
    settled
}

fn is_between(hour: u8, from: u8, to: u8) -> bool {
    if from <= to { (from..to).contains(&hour) } else { hour >= from || hour < to }
}

/// A finding that says that nothing is wrong, for trials of the channels.
pub fn sample_finding(at: u64) -> Finding {
    let series = (0..96)
        .map(|step| (at.saturating_sub((96 - step) * 900), 200e6 + 3e6 * step as f64 + (step * 37 % 11) as f64 * 2e6));
    Finding {
        key: "test".to_owned(),
        target: "name:example".to_owned(),
        title: "example grows by 12.0 MB/h (11.4 to 12.6), 4.2 days until its limit".to_owned(),
        details: vec![
            "This is a test: nothing is wrong.".to_owned(),
            "resident memory 488 MB, since yesterday".to_owned(),
        ],
        evidence: vec![Evidence {
            source: "ledger".to_owned(),
            fingerprint: "0123456789abcdef".to_owned(),
            known_since: None,
            title: "12 MB more in 60 min, 288 MB live in 2304 blocks".to_owned(),
            stack: ["malloc", "load_page (cache.c:12)", "serve (server.c:88)", "main (main.c:3)"]
                .map(str::to_owned)
                .to_vec(),
            bytes: 288_000_000,
            blocks: 2304,
        }],
        next: "leakscope monitor why name:example".to_owned(),
        value: 488e6,
        per_hour: 12e6,
        hours_left: Some(100.8),
        since: at.saturating_sub(DAY),
        urgent: false,
        series: series.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(key: &str, value: f64) -> Finding {
        Finding { key: key.into(), value, ..sample_finding(1_000_000) }
    }

    fn kinds(notice: Option<Notice>) -> Vec<(Kind, String)> {
        notice.into_iter().flat_map(|n| n.findings).map(|(kind, finding)| (kind, finding.key)).collect()
    }

    #[test]
    fn one_alarm_a_finding_and_state() {
        let mut book = Book::default();
        let policy = Policy { repeat_seconds: Some(3600), ..Policy::default() };
        let mut say = |found: &[Finding], at| kinds(book.update(found, &policy, at, 12, "m"));
        assert_eq!(say(&[finding("a", 10.0)], 0), [(Kind::Opened, "a".into())]);
        assert_eq!(say(&[finding("a", 11.0)], 10), []);
        assert_eq!(
            say(&[finding("a", 20.0), finding("b", 1.0)], 20),
            [(Kind::Grown, "a".into()), (Kind::Opened, "b".into())]
        );
        assert_eq!(say(&[finding("a", 21.0), finding("b", 1.0)], 30), []);
        assert_eq!(say(&[finding("a", 22.0)], 3619), [(Kind::Resolved, "b".into())]);
        assert_eq!(say(&[finding("a", 22.0)], 3620), [(Kind::Repeated, "a".into())]);
        assert_eq!(say(&[], 3630), [(Kind::Resolved, "a".into())]);
        assert_eq!(say(&[], 3640), []);
    }

    #[test]
    fn quiet_hours_hold_back_what_can_wait() {
        let mut book = Book::default();
        let policy = Policy { quiet_hours: Some((22, 7)), ..Policy::default() };
        assert_eq!(book.update(&[finding("a", 1.0), finding("b", 1.0)], &policy, 0, 23, "m"), None);
        let urgent = Finding { urgent: true, ..finding("c", 1.0) };
        let found = [finding("a", 1.0), urgent.clone()];
        assert_eq!(kinds(book.update(&found, &policy, 10, 3, "m")), [(Kind::Opened, "c".into())]);
        let notice = book.update(&found, &policy, 20, 7, "m").unwrap();
        assert_eq!(notice.kind, Kind::Digest);
        assert_eq!(kinds(Some(notice)), [(Kind::Opened, "a".into())], "b came and went");
    }

    #[test]
    fn a_digest_once_a_day() {
        let mut book = Book::default();
        let policy = Policy { digest_hour: Some(8), ..Policy::default() };
        assert_eq!(book.update(&[finding("a", 1.0)], &policy, 0, 5, "m"), None);
        assert_eq!(kinds(book.update(&[finding("a", 1.0)], &policy, 3 * 3600, 8, "m")), [(Kind::Opened, "a".into())]);
        assert_eq!(book.update(&[finding("a", 1.0), finding("b", 1.0)], &policy, 3 * 3600 + 60, 8, "m"), None);
        let next = book.update(&[finding("a", 1.0), finding("b", 1.0)], &policy, 27 * 3600, 8, "m");
        assert_eq!(kinds(next), [(Kind::Opened, "b".into()), (Kind::Repeated, "a".into())]);
    }

    #[test]
    fn a_thousand_findings_are_not_a_thousand_mails() {
        let mut book = Book::default();
        let policy = Policy { most_a_day: 3, ..Policy::default() };
        let mut found = Vec::new();
        let mut sent = 0;
        for number in 0..1000u64 {
            found.push(finding(&number.to_string(), 1.0));
            sent += usize::from(book.update(&found, &policy, number, 12, "m").is_some());
        }
        assert_eq!(sent, 3);
        found.push(finding("next day", 1.0));
        let notice = book.update(&found, &policy, 2 + DAY, 12, "m").unwrap();
        assert_eq!(notice.withheld, 997);
    }

    #[test]
    fn the_book_survives_as_text() {
        let mut book = Book::default();
        book.update(&[finding("a", 1.5)], &Policy::default(), 5, 12, "m");
        let text = serde_json::to_string(&book).unwrap();
        let mut again: Book = serde_json::from_str(&text).unwrap();
        assert_eq!(again, book);
        assert_eq!(again.update(&[finding("a", 1.5)], &Policy::default(), 15, 12, "m"), None);
    }

    #[test]
    fn evidence_says_whether_it_is_new() {
        let mut finding = finding("a", 1.0);
        finding.evidence[0].stack = (0..9).map(|n| format!("f{n}")).collect();
        let line = finding.lines().pop().unwrap();
        assert_eq!(
            line,
            "ledger 0123456789abcdef (new): 12 MB more in 60 min, 288 MB live in 2304 blocks: f0 < f1 < f2 < f3 < f4 < f5 < ..."
        );
        finding.evidence[0].known_since = Some(1_700_000_000);
        assert!(finding.lines().pop().unwrap().contains("(known since 2023-11-14T22:13:20Z)"));
        // What an earlier version kept has none.
        let mut text = serde_json::to_value(&finding).unwrap();
        text.as_object_mut().unwrap().remove("evidence");
        assert_eq!(serde_json::from_value::<Finding>(text).unwrap().evidence, []);
    }

    #[test]
    fn hours_over_midnight() {
        let inside: Vec<u8> = (0..24).filter(|&hour| is_between(hour, 22, 7)).collect();
        assert_eq!(inside, [0, 1, 2, 3, 4, 5, 6, 22, 23]);
        assert!(is_between(13, 12, 14) && !is_between(14, 12, 14));
    }
}
