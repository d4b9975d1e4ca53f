//! What became of each test of a suite, kept below `target/accuracy` from run to run: a suite takes hours, and a run may be
//! cut short or be asked to stop. One line a test, in the order in which they ran:
//!
//! ```text
//! test_grammar<TAB>passes<TAB>0.21<TAB>1.80<TAB>2026-11-23
//! ```
//!
//! name, outcome, seconds of the processor natively and under leakscope, day. A test that ran again has a later line.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use leakscope_e2e::target_dir;

use crate::step::first_line;

/// How a test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Natively and under leakscope.
    Passes,
    /// Under leakscope, and passes natively.
    Fails,
    /// Natively; it was not asked under leakscope.
    FailsNatively,
    /// It is natively too slow to be asked under leakscope.
    Slow,
}

const WORDS: [(Outcome, &str); 4] = [
    (Outcome::Passes, "passes"),
    (Outcome::Fails, "fails"),
    (Outcome::FailsNatively, "fails natively"),
    (Outcome::Slow, "slow natively"),
];

impl Outcome {
    /// As it stands in the file.
    pub fn word(self) -> &'static str {
        WORDS.iter().find(|(outcome, _)| *outcome == self).map_or("", |(_, word)| word)
    }
}

/// One test's last run.
#[derive(Debug, Clone, PartialEq)]
pub struct Tested {
    /// How it ended.
    pub outcome: Outcome,
    /// Seconds of the processor, natively and under leakscope.
    pub seconds: [f64; 2],
    /// When, as 2026-11-23.
    pub day: String,
}

/// The results of one suite.
#[derive(Debug)]
pub struct Results {
    path: PathBuf,
    known: BTreeMap<String, Tested>,
}

impl Results {
    /// Those of earlier runs, or an empty file.
    ///
    /// # Errors
    /// The folder cannot be made, or the file cannot be read or removed.
    pub fn open(suite: &str, version: &str, keep: bool) -> Result<Self> {
        let dir = target_dir().join("accuracy");
        std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        let path = dir.join(format!("{}-{version}.tsv", suite.split('\'').next().unwrap_or(suite)));
        let known = match std::fs::read_to_string(&path) {
            Ok(text) if keep => decode(&text),
            Ok(_) => {
                std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
                BTreeMap::new()
            }
            Err(_) => BTreeMap::new(),
        };
        Ok(Self { path, known })
    }

    /// What is known of a test.
    pub fn of(&self, test: &str) -> Option<&Tested> {
        self.known.get(test)
    }

    /// Keeps a test's result; and what it said when it failed, beside the file.
    ///
    /// # Errors
    /// Nothing can be written.
    pub fn add(&mut self, test: &str, outcome: Outcome, seconds: [f64; 2], said: &str) -> Result<()> {
        let tested = Tested { outcome, seconds, day: first_line(&["date", "+%F"]) };
        let mut file = OpenOptions::new().create(true).append(true).open(&self.path);
        let written = file.as_mut().map(|file| file.write_all(encode(test, &tested).as_bytes()));
        if !matches!(written, Ok(Ok(()))) {
            anyhow::bail!("cannot write {}", self.path.display());
        }
        self.known.insert(test.to_owned(), tested);
        if outcome == Outcome::Fails {
            let path = self.output_of(test);
            std::fs::write(&path, said).with_context(|| format!("write {}", path.display()))?;
        }
        Ok(())
    }

    /// Where the output of a failed test lies.
    pub fn output_of(&self, test: &str) -> PathBuf {
        let stem = self.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        self.path.parent().unwrap_or(Path::new(".")).join(format!("{stem}-{}.txt", test.replace('/', "-")))
    }

    /// Of the tests that are in the plan, those that ended so.
    pub fn with(&self, outcome: Outcome, plan: &[String]) -> Vec<String> {
        let is = |test: &&String| self.of(test).is_some_and(|tested| tested.outcome == outcome);
        plan.iter().filter(is).cloned().collect()
    }

    /// The first and the last day of those that are in the plan, or one day.
    pub fn days(&self, plan: &[String]) -> String {
        let mut days: Vec<&str> = plan.iter().filter_map(|test| Some(self.of(test)?.day.as_str())).collect();
        days.sort_unstable();
        match (days.first(), days.last()) {
            (Some(first), Some(last)) if first != last => format!("{first} to {last}"),
            (Some(first), _) => (*first).to_owned(),
            _ => "-".to_owned(),
        }
    }
}

fn encode(test: &str, tested: &Tested) -> String {
    let [natively, here] = tested.seconds;
    format!("{test}\t{}\t{natively:.2}\t{here:.2}\t{}\n", tested.outcome.word(), tested.day)
}

/// A line that a run was writing when it was cut short is passed over: its test runs again.
fn decode(text: &str) -> BTreeMap<String, Tested> {
    let complete = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
    let line = |line: &str| {
        let [test, word, natively, here, day] = line.split('\t').collect::<Vec<_>>()[..] else { return None };
        let (outcome, _) = WORDS.iter().find(|(_, known)| *known == word)?;
        let seconds = [natively.parse().ok()?, here.parse().ok()?];
        Some((test.to_owned(), Tested { outcome: *outcome, seconds, day: day.to_owned() }))
    };
    complete.filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_complete_line_of_a_test_counts() {
        let first = Tested { outcome: Outcome::Fails, seconds: [0.25, 3.5], day: "2026-11-22".into() };
        let second = Tested { outcome: Outcome::Passes, seconds: [0.5, 4.0], day: "2026-11-23".into() };
        let text = encode("a", &first) + &encode("b", &first) + &encode("a", &second) + "b\tpasses\t0.1";
        let known = decode(&text);
        assert_eq!(known.get("a"), Some(&second));
        assert_eq!(known.get("b"), Some(&first));
        assert_eq!(known.len(), 2);
    }

    #[test]
    fn days_are_those_of_the_plan() {
        let tested = |day: &str| Tested { outcome: Outcome::Passes, seconds: [0.0; 2], day: day.to_owned() };
        let known = [("a", "2026-11-22"), ("b", "2026-11-24"), ("gone", "2020-01-01")];
        let known = known.map(|(test, day)| (test.to_owned(), tested(day))).into();
        let results = Results { path: PathBuf::new(), known };
        let plan = ["a".to_owned(), "b".to_owned(), "c".to_owned()];
        assert_eq!(results.days(&plan), "2026-11-22 to 2026-11-24");
        assert_eq!(results.days(&plan[..1]), "2026-11-22");
        assert_eq!(results.days(&plan[2..]), "-");
        assert_eq!(results.with(Outcome::Passes, &plan), ["a", "b"]);
    }
}
