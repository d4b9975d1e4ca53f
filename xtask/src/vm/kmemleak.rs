//! What kmemleak must show of our leaking module: exactly the sites, bytes and counts of the table that `leaky.c` begins
//! with, and nothing of its twin.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use leakscope_e2e::fixtures_dir;
use serde_json::Value;

use super::checkers::{Checker, judge_reports};
use super::{Kernel, Sections};

/// A row of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// The function that leaks.
    pub(crate) function: String,
    /// What it calls.
    pub(crate) allocator: String,
    /// Bytes of a block as they were asked for.
    pub(crate) bytes: u64,
    /// Blocks.
    pub(crate) blocks: u64,
    /// Bytes of a block as kmemleak knows them; `None` when it knows nothing.
    pub(crate) kmemleak: Option<u64>,
}

/// The table that `leaky.c` begins with.
///
/// # Errors
/// It cannot be read.
pub(crate) fn table() -> Result<Vec<Row>> {
    let path = fixtures_dir().join("kernel/modules/leaky.c");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let row = |line: &str| {
        let words: Vec<&str> = line.trim_start_matches(" *").split_whitespace().collect();
        let &[_, function, allocator, bytes, blocks, kmemleak] = &words[..] else { return None };
        Some(Row {
            function: function.to_owned(),
            allocator: allocator.to_owned(),
            bytes: bytes.parse().ok()?,
            blocks: blocks.parse().ok()?,
            kmemleak: kmemleak.parse().ok(),
        })
    };
    let rows: Vec<Row> = text.lines().filter_map(row).collect();
    ensure!(!rows.is_empty(), "{}: no table", path.display());
    Ok(rows)
}

/// A loss record of a report: leaking function, allocation function, kind, bytes, blocks.
pub(super) type Record = (String, String, String, u64, u64);

/// The records of a report, by its JSON, of the modules that are named.
pub(super) fn records(json: &str, modules: &[&str]) -> Result<Vec<(Record, Value)>> {
    // The first line may be a warning of the kernel's loader.
    let report: Value = serde_json::from_str(json.get(json.find('{').unwrap_or(0)..).unwrap_or_default())
        .with_context(|| format!("the report is no JSON: {json}"))?;
    let all = report["records"].as_array();
    let mut found = Vec::new();
    for record in all.with_context(|| format!("no records: {json}"))? {
        let frames = record["stack"]["frames"].as_array().cloned().unwrap_or_default();
        let is_of = |frame: &Value| modules.iter().any(|module| frame["module"].as_str() == Some(module));
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        if !frames.iter().any(is_of) {
            continue;
        }
        let first = frames.iter().find(|frame| is_of(frame)).map(|frame| word(&frame["function"])).unwrap_or_default();
        let (bytes, blocks) = (record["bytes"].as_u64().unwrap_or(0), record["blocks"].as_u64().unwrap_or(0));
        found.push(((first, word(&record["function"]), word(&record["kind"]), bytes, blocks), record.clone()));
    }
    Ok(found)
}

/// Judges `scripts/kmemleak.sh`.
pub(super) fn judge(kernel: &Kernel, sections: &Sections) -> Result<()> {
    refusals(sections)?;
    status(sections)?;
    let text = sections.text("scan", 0)?;
    let found = records(text, &["leaky", "clean"])?;
    let mut expected: Vec<Record> = table()?
        .into_iter()
        .filter_map(|row| {
            let bytes = row.kmemleak? * row.blocks;
            Some((row.function, row.allocator, "definite".to_owned(), bytes, row.blocks))
        })
        .collect();
    // A loop that the compiler unrolls has several call sites.
    let mut sums: BTreeMap<(String, String, String), (u64, u64)> = BTreeMap::new();
    for ((function, allocator, kind, bytes, blocks), _) in &found {
        let sum = sums.entry((function.clone(), allocator.clone(), kind.clone())).or_default();
        *sum = (sum.0 + bytes, sum.1 + blocks);
    }
    let seen: Vec<Record> = sums
        .into_iter()
        .map(|((function, allocator, kind), (bytes, blocks))| (function, allocator, kind, bytes, blocks))
        .collect();
    expected.sort();
    ensure!(seen == expected, "kmemleak's records:\n{seen:#?}\nexpected:\n{expected:#?}");
    for (record, value) in &found {
        details(record, value)?;
    }
    later(sections)?;
    let reports = sections.text("checkers", 0)?;
    let bugs = judge_reports(reports, Checker::Kfence)? + judge_reports(reports, Checker::Slub)?;
    eprintln!("vm: {} of {} seeded leaks, {bugs} bugs, on {}", seen.len(), expected.len(), kernel.release);
    Ok(())
}

/// Who, since when, growing or not; and the line of the source.
pub(super) fn details(record: &Record, value: &Value) -> Result<()> {
    let notes = value["notes"].to_string();
    for words in ["allocated by insmod (pid ", " s ago", "in module leaky", "not growing"] {
        ensure!(notes.contains(words), "{record:?}: no `{words}` in {notes}");
    }
    let frames = value["stack"]["frames"].as_array().cloned().unwrap_or_default();
    let own = frames.iter().find(|frame| frame["function"].as_str() == Some(&record.0));
    let own = own.with_context(|| format!("no frame of {}", record.0))?;
    ensure!(own["file"].as_str() == Some("leaky.c"), "{record:?}: no file in {own}");
    let line = own["line"].as_u64().and_then(|line| usize::try_from(line).ok()).unwrap_or(0);
    let text = std::fs::read_to_string(fixtures_dir().join("kernel/modules/leaky.c"))?;
    let source = text.lines().nth(line.wrapping_sub(1)).unwrap_or_default();
    ensure!(source.contains("alloc"), "{record:?}: line {line} is `{source}`");
    Ok(())
}

fn refusals(sections: &Sections) -> Result<()> {
    for (name, words) in [
        ("unmounted", "mount -t debugfs none /sys/kernel/debug"),
        ("unmounted-again", "debugfs is not mounted"),
        ("not-root", "sudo"),
        ("foreign-dump", "no format that is known"),
        ("no-object", "kmemleak knows no object there"),
        ("disabled", "until the next boot"),
    ] {
        is_one_sentence(sections, name, &[words])?;
    }
    Ok(())
}

/// Whether a command was refused with one sentence that has these words, and exit code 2.
pub(super) fn is_one_sentence(sections: &Sections, name: &str, words: &[&str]) -> Result<()> {
    let text = sections.text(name, 2)?.trim();
    for words in words {
        ensure!(text.contains(words), "{name}: no `{words}` in {text}");
    }
    ensure!(text.lines().filter(|line| line.starts_with("leakscope: ")).count() == 1, "{name}: {text}");
    Ok(())
}

/// The row of a means in what `leakscope kernel status` printed.
pub(super) fn status_row(sections: &Sections, section: &str, name: &str) -> Result<String> {
    let text = sections.text(section, 0)?;
    Ok(text.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned())
}

fn status(sections: &Sections) -> Result<()> {
    for (name, word) in [
        ("debugfs", " off "),
        ("kmemleak", " off "),
        ("capabilities", " yes "),
        ("BPF", " yes "),
        ("BTF", " yes "),
        ("SLUB debug", " yes "),
        ("page_owner", " off "),
        ("allocinfo", " off "),
        ("KFENCE", " off "),
        ("KASAN", " no "),
    ] {
        let line = status_row(sections, "status", name)?;
        ensure!(line.contains(word), "{name}: `{line}` instead of{word}");
    }
    let line = status_row(sections, "status-at-end", "KFENCE")?;
    ensure!(line.contains(" yes "), "{line}");
    let line = status_row(sections, "status-at-end", "kmemleak")?;
    ensure!(line.contains(" off ") && line.contains("disabled"), "{line}");
    Ok(())
}

/// The second scan, the difference, and what was set aside.
fn later(sections: &Sections) -> Result<()> {
    let second = records(sections.text("second", 0)?, &["leaky", "clean"])?;
    let more: Vec<&Record> = second.iter().map(|(record, _)| record).filter(|record| record.0 == "leak_more").collect();
    let expected = ("leak_more".to_owned(), "kmalloc".to_owned(), "definite".to_owned(), 768, 3);
    ensure!(more == [&expected], "{more:?}");
    let diff = sections.text("diff", 0)?;
    let report: Value = serde_json::from_str(diff.get(diff.find('{').unwrap_or(0)..).unwrap_or_default())?;
    let mut changes: BTreeMap<String, Vec<(i64, i64)>> = BTreeMap::new();
    for site in report["sites"].as_array().with_context(|| format!("no sites: {diff}"))? {
        let stack = site["stack"].to_string();
        if ["leaky.c:", "(in leaky)", "(in clean)"].iter().any(|place| stack.contains(place)) {
            let change = site["change"].as_str().unwrap_or_default().to_owned();
            let number = |value: &Value| value.as_i64().unwrap_or(0);
            changes
                .entry(change)
                .or_default()
                .push((number(&site["after"]["bytes"]), number(&site["after"]["blocks"])));
        }
    }
    // The second scan had no file with lines: what was there before is the same all the same.
    let new = BTreeMap::from([("new".to_owned(), vec![(768, 3)])]);
    ensure!(changes == new, "the difference is {changes:?}: {diff}");
    sections.text("gate", 1)?;
    let object = sections.text("object", 0)?;
    ensure!(object.starts_with("Object") && object.contains("min_count"), "{object}");
    sections.text("set", 0)?;
    sections.text("clear", 0)?;
    let cleared = records(sections.text("cleared", 0)?, &["leaky", "clean"])?;
    ensure!(cleared.is_empty(), "set aside, and reported again: {cleared:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_the_module_is_read() {
        let rows = table().unwrap();
        let sum = |pick: fn(&Row) -> u64| rows.iter().map(pick).sum::<u64>();
        assert_eq!((rows.len(), sum(|row| row.blocks)), (8, 29));
        let pages = rows.iter().find(|row| row.function == "leak_pages").unwrap();
        assert_eq!((pages.bytes, pages.kmemleak), (16_384, None));
    }
}
