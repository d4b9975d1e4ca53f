//! `accuracy`: real programs natively, under leakscope and under Memcheck. A program must print and return the same as
//! natively, and the leak records must be Memcheck's; each difference has an explanation in docs/accuracy.toml.

mod drive;
mod memcheck;
mod programs;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use leakscope_e2e::{Report, repo_root};
use serde::Deserialize;

use self::drive::{Checker, Observed, observe};
use self::programs::{Subject, make_inputs, subjects};
use crate::bench::tools::Tool;
use crate::generated::rewrite;
use crate::step::{build_leakscope, first_line};

const KINDS: [&str; 4] = ["definite", "indirect", "possible", "reachable"];

#[derive(Deserialize)]
struct Notes {
    /// Program to the reason why its records differ from Memcheck's.
    differences: BTreeMap<String, String>,
    /// For `accuracy memcheck`: program to the reason why it behaves otherwise or is reported otherwise.
    #[serde(default)]
    memcheck: BTreeMap<String, String>,
    /// For `accuracy memcheck`: program to the reason why its leaks are others than Memcheck's.
    #[serde(default)]
    memcheck_leaks: BTreeMap<String, String>,
}

fn notes() -> Result<Notes> {
    let path = repo_root().join("docs/accuracy.toml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("read {}", path.display()))
}

struct Row {
    name: &'static str,
    behaves: Result<(), String>,
    ours: Result<[(u64, u64); 4], String>,
    theirs: Result<[(u64, u64); 4], String>,
}

impl Row {
    fn same_records(&self) -> bool {
        matches!((&self.ours, &self.theirs), (Ok(ours), Ok(theirs)) if ours == theirs)
    }
}

/// Compares the named programs, or all that are installed.
///
/// # Errors
/// A program does not behave as natively, a difference has no explanation, or an input cannot be made.
pub fn run(words: &[String]) -> Result<()> {
    if let Some((first, rest)) = words.split_first()
        && first == "memcheck"
    {
        return memcheck::run(rest);
    }
    let (flags, names): (Vec<&String>, Vec<&String>) = words.iter().partition(|word| word.starts_with('-'));
    let write = match flags.iter().map(|flag| flag.as_str()).collect::<Vec<_>>()[..] {
        [] => false,
        ["--write"] => true,
        _ => bail!("usage: cargo xtask accuracy [NAME..] [--write], or accuracy memcheck [NAME..] [--quick] [--write]"),
    };
    build_leakscope()?;
    let inputs = tempfile::tempdir()?;
    make_inputs(inputs.path())?;
    let mut rows = Vec::new();
    for subject in subjects() {
        if names.is_empty() || names.iter().any(|name| *name == subject.name) {
            let row = compare(&subject, inputs.path())?;
            println!("{}", row_text(&row));
            rows.push(row);
        }
    }
    if rows.is_empty() {
        bail!("no program of this name is installed");
    }
    let notes = notes()?;
    if write {
        rewrite(&repo_root().join("docs/accuracy.md"), "accuracy", &page(&rows, &notes))?;
    }
    judge(&rows, &notes)
}

fn compare(subject: &Subject, inputs: &Path) -> Result<Row> {
    let native = observe(subject, Checker::Native, inputs).with_context(|| format!("{} natively", subject.name))?;
    let ours = observe(subject, Checker::Leakscope, inputs);
    let theirs = observe(subject, Checker::Memcheck, inputs);
    let behaves = match &ours {
        Err(error) => Err(format!("{error:#}")),
        Ok(ours) if ours.ending != native.ending => {
            Err(format!("ended {:?}, natively {:?}", ours.ending, native.ending))
        }
        Ok(ours) if ours.stdout != native.stdout => Err("printed something else than natively".to_owned()),
        Ok(_) => Ok(()),
    };
    Ok(Row { name: subject.name, behaves, ours: totals(ours), theirs: totals(theirs) })
}

fn totals(observed: Result<Observed>) -> Result<[(u64, u64); 4], String> {
    let observed = observed.map_err(|error| format!("{error:#}"))?;
    match (observed.report, observed.trouble) {
        (Some(report), _) => Ok(KINDS.map(|kind| by_kind(&report, kind))),
        (None, trouble) => Err(trouble.unwrap_or_else(|| "no report".to_owned())),
    }
}

fn by_kind(report: &Report, kind: &str) -> (u64, u64) {
    report.total(kind)
}

fn judge(rows: &[Row], notes: &Notes) -> Result<()> {
    let mut wrong = Vec::new();
    for row in rows {
        if let Err(reason) = &row.behaves {
            wrong.push(format!("{}: {reason}", row.name));
        }
        let explained = notes.differences.contains_key(row.name);
        if !row.same_records() && !explained {
            wrong.push(format!("{}: other records than Memcheck, and no line in docs/accuracy.toml", row.name));
        }
    }
    let equal = rows.iter().filter(|row| row.same_records()).count();
    eprintln!("accuracy: {} programs, {equal} with the same bytes and blocks as Memcheck in every kind", rows.len());
    if !wrong.is_empty() {
        bail!("accuracy:\n  {}", wrong.join("\n  "));
    }
    Ok(())
}

fn cells(totals: &Result<[(u64, u64); 4], String>) -> String {
    match totals {
        Ok(kinds) => {
            kinds.map(|(bytes, blocks)| if blocks == 0 { "0".into() } else { format!("{bytes}/{blocks}") }).join(" | ")
        }
        Err(reason) => format!("{} | | |", one_line(reason)),
    }
}

fn one_line(text: &str) -> String {
    text.replace(['\n', '|'], " ").chars().take(120).collect()
}

fn row_text(row: &Row) -> String {
    let behaves = match &row.behaves {
        Ok(()) => "same".to_owned(),
        Err(reason) => one_line(reason),
    };
    let verdict = if row.same_records() { "equal" } else { "differs" };
    format!("| {} | {behaves} | {} | {} | {verdict} |", row.name, cells(&row.ours), cells(&row.theirs))
}

fn page(rows: &[Row], notes: &Notes) -> String {
    let equal = rows.iter().filter(|row| row.same_records()).count();
    let same = rows.iter().filter(|row| row.behaves.is_ok()).count();
    let mut text = format!(
        "{} programs; {same} print and return the same as natively; {equal} have the same bytes and blocks as Memcheck in \
         every kind. {}, {}, Linux {}.\n\nBytes/blocks of definite, indirect, possible and reachable records: leakscope's, \
         then Memcheck's.\n\n",
        rows.len(),
        Tool::Leakscope.version(),
        Tool::Memcheck.version(),
        first_line(&["uname", "-r"])
    );
    text += "| program | behaves | def. | ind. | poss. | reach. | M def. | M ind. | M poss. | M reach. | records |\n";
    text += "|---|---|---|---|---|---|---|---|---|---|---|\n";
    for row in rows {
        text += &row_text(row);
        text.push('\n');
    }
    text += "\nDifferences:\n\n";
    for row in rows.iter().filter(|row| !row.same_records()) {
        let note = notes.differences.get(row.name).map_or("not explained yet", String::as_str);
        text += &format!("- **{}**: {note}\n", row.name);
    }
    text
}
