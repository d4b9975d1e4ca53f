//! What KASAN, KFENCE and SLUB's checks must say of our module of bugs: exactly those of the table that `buggy.c` begins
//! with; and what leakscope says where a kernel refuses.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use leakscope_e2e::fixtures_dir;
use serde_json::Value;

use super::kmemleak::{is_one_sentence, records, status_row, table as leaks};
use super::{Kernel, Sections};

/// A checker of the kernel, by its column in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Checker {
    Kasan,
    Kfence,
    Slub,
}

impl Checker {
    /// What reports call it.
    fn witness(self) -> &'static str {
        match self {
            Self::Kasan => "KASAN",
            Self::Kfence => "KFENCE",
            Self::Slub => "SLUB debug",
        }
    }
}

/// A row of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Bug {
    function: String,
    /// What KASAN calls it.
    word: String,
    /// What leakscope makes of it, by checker.
    kinds: [Option<String>; 3],
}

/// The table that `buggy.c` begins with.
fn table() -> Result<Vec<Bug>> {
    let path = fixtures_dir().join("kernel/modules/buggy.c");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let row = |line: &str| {
        let words: Vec<&str> = line.strip_prefix(" * ")?.split_whitespace().collect();
        let &[_, function, word, kasan, kfence, slub] = &words[..] else { return None };
        let kind = |kind: &str| (kind != "-").then(|| kind.to_owned());
        let kinds = [kind(kasan), kind(kfence), kind(slub)];
        function.starts_with("bug_").then(|| Bug { function: function.to_owned(), word: word.to_owned(), kinds })
    };
    let rows: Vec<Bug> = text.lines().filter_map(row).collect();
    ensure!(!rows.is_empty(), "{}: no table", path.display());
    Ok(rows)
}

/// Kind, function and words of what a checker found.
type Found = (String, String, String);

/// What a checker found, of the documents that `leakscope import` wrote.
fn findings(text: &str, checker: Checker) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    for line in text.lines().filter(|line| line.starts_with('{')) {
        let report: Value = serde_json::from_str(line).with_context(|| format!("no JSON: {line}"))?;
        if report["witness"]["name"].as_str() != Some(checker.witness()) {
            continue;
        }
        for error in ["errors", "memory_errors"].iter().flat_map(|name| report[name].as_array().into_iter().flatten()) {
            let frames = error["stack"]["frames"].as_array().cloned().unwrap_or_default();
            let function = |frame: &Value| frame["function"].as_str().unwrap_or_default().to_owned();
            let of_module = frames.iter().map(function).find(|name| name.starts_with("bug_")).unwrap_or_default();
            let word = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
            found.push((word("kind"), of_module, word("message")));
        }
    }
    Ok(found)
}

/// Whether a checker's reports are those of the table, no more and no less.
pub(super) fn judge_reports(text: &str, checker: Checker) -> Result<usize> {
    let rows = table()?;
    let kind = |bug: &Bug| bug.kinds[checker as usize].clone();
    let expected: BTreeSet<(String, String)> =
        rows.iter().filter_map(|bug| Some((kind(bug)?, bug.function.clone()))).collect();
    let found = findings(text, checker)?;
    let seen: BTreeSet<(String, String)> =
        found.iter().map(|(kind, function, _)| (kind.clone(), function.clone())).collect();
    ensure!(seen == expected, "{}: {seen:#?}\nexpected: {expected:#?}\n{text}", checker.witness());
    for (_, function, message) in found.iter().filter(|(.., message)| checker == Checker::Kasan && !message.is_empty())
    {
        let word = rows.iter().find(|bug| bug.function == *function).map(|bug| bug.word.as_str()).unwrap_or_default();
        ensure!(message.contains(word), "KASAN calls it {word}: {message}");
    }
    Ok(expected.len())
}

/// Judges `scripts/kasan.sh`.
pub(super) fn judge(kernel: &Kernel, sections: &Sections) -> Result<()> {
    for (name, words) in [
        ("no-memory", &["until the next boot", "emory"][..]),
        ("no-btf", &["CONFIG_DEBUG_INFO_BTF"]),
        ("integrity", &["lockdown (integrity)", "boot with"]),
        ("confidentiality", &["lockdown", "boot with"]),
    ] {
        is_one_sentence(sections, name, words)?;
    }
    for (name, word) in
        [("KASAN", " yes "), ("KFENCE", " off "), ("page_owner", " yes "), ("kmemleak", " off "), ("BTF", " no ")]
    {
        let line = status_row(sections, "status", name)?;
        ensure!(line.contains(word), "{name}: `{line}` instead of{word}");
    }
    let line = status_row(sections, "status-locked", "no lockdown")?;
    ensure!(line.contains(" no ") && line.contains("confidentiality"), "{line}");
    let bugs = judge_reports(sections.text("kasan", 0)?, Checker::Kasan)?;
    let guarded = judge_reports(sections.text("kfence", 0)?, Checker::Kfence)?;
    pages(sections)?;
    eprintln!("vm: {bugs} bugs by KASAN and {guarded} by KFENCE, on {}", kernel.release);
    Ok(())
}

/// The pages that `leaky.c` leaks, in page_owner's list of stacks, which counts pages.
fn pages(sections: &Sections) -> Result<()> {
    let rows = leaks()?;
    let row = rows.iter().find(|row| row.allocator == "alloc_pages").context("the table leaks no pages")?;
    let found = records(sections.text("page-stacks", 0)?, &["leaky"])?;
    let own = found.iter().filter(|(record, _)| (&record.0, &record.1) == (&row.function, &row.allocator));
    let bytes: u64 = own.map(|(record, _)| record.3).sum();
    ensure!(bytes == row.bytes * row.blocks, "page_owner: {bytes} bytes in {}, of {found:#?}", row.function);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_the_module_is_read() {
        let rows = table().unwrap();
        let count = |checker: Checker| rows.iter().filter(|row| row.kinds[checker as usize].is_some()).count();
        assert_eq!((rows.len(), count(Checker::Kasan), count(Checker::Kfence), count(Checker::Slub)), (9, 9, 6, 4));
    }

    #[test]
    fn what_is_missing_and_what_is_too_much_is_noticed() {
        let report = |kind: &str, function: &str| {
            format!(
                r#"{{"witness":{{"name":"SLUB debug"}},"errors":[{{"kind":"{kind}","stack":{{"frames":[{{"function":"drop_block"}},{{"function":"{function}"}}]}}}}]}}"#
            )
        };
        let all: Vec<String> = table()
            .unwrap()
            .iter()
            .filter_map(|bug| Some(report(bug.kinds[Checker::Slub as usize].as_ref()?, &bug.function)))
            .collect();
        assert_eq!(judge_reports(&all.join("\n"), Checker::Slub).unwrap(), all.len());
        assert!(judge_reports(&all[1..].join("\n"), Checker::Slub).is_err());
        let more = [all.join("\n"), report("double_free", "bug_read_past")].join("\n");
        assert!(judge_reports(&more, Checker::Slub).is_err());
    }
}
