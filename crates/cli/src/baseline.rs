//! `leakscope baseline`: the findings that a team has set aside, in a file that people review and git merges.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::ArgMatches;
use leakscope_findings::baseline::{Baseline, Changes, Entry, Wishes};

use crate::flags::{BaselineArgs, BaselineCommand, UpdateArgs};
use crate::gate::{self, Analysed, read_baseline, today};
use crate::gate_words::{counted, grouped};
use crate::output::{self, Destination, Replacement};
use crate::plan::View;

/// Entries that are named one by one.
const MOST_NAMED: usize = 20;

/// Runs the subcommand.
///
/// # Errors
/// When a file cannot be read or written.
pub fn main(args: &BaselineArgs, matches: &ArgMatches) -> Result<ExitCode> {
    match &args.command {
        BaselineCommand::Update(args) => update(args, matches.subcommand().map_or(matches, |(_, matches)| matches)),
        BaselineCommand::Check(args) => check(&args.file),
        BaselineCommand::Show(args) => show(&args.file),
    }
}

fn update(args: &UpdateArgs, matches: &ArgMatches) -> Result<ExitCode> {
    let mut view = View::new(&args.view, matches, Destination::Stdout)?;
    let path = &args.baseline;
    let is_new = !path.exists();
    let mut baseline = if is_new { Baseline::default() } else { read_baseline(path)? };
    let fail_on = args.fail_on.unwrap_or_default();
    let recording = gate::read(&args.files, &view)?;
    let found = Analysed::new(&recording, &mut view, &fail_on)?.findings(&fail_on)?;
    let wishes = Wishes { reason: args.reason.clone(), until: args.until, keep_unseen: args.keep_unseen };
    let changes = baseline.update(&found, |kind| fail_on.judges(kind), &wishes, today());
    let mut file = Replacement::create(path)?;
    file.write(baseline.text().as_bytes())?;
    file.commit()?;
    if !view.quiet {
        let words = if is_new { "written" } else { "updated" };
        let mut out = said(&baseline, &changes, &format!("{}: {words}", path.display()));
        if is_new {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            _ = writeln!(
                out,
                "next: commit it, and `{name} merge=union` in .gitattributes, so that branches merge without conflict"
            );
        }
        output::print(&out)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What was done, for people.
fn said(baseline: &Baseline, changes: &Changes, heading: &str) -> String {
    let Changes { added, raised, lowered, removed, extended } = changes;
    let mut out = format!(
        "{heading}: {}; {} added, {} raised, {} lowered, {} gone\n",
        counted(baseline.entries().count(), "finding"),
        added.len(),
        raised.len(),
        lowered.len(),
        removed.len()
    );
    let plain = |entries: &[Entry]| entries.iter().map(Entry::to_string).collect::<Vec<_>>();
    let from = |entries: &[(Entry, leakscope_findings::analysis::Amount)]| {
        let line = |(entry, before): &(Entry, leakscope_findings::analysis::Amount)| {
            format!("{entry}\n            was {} bytes in {} blocks", grouped(before.bytes), grouped(before.blocks))
        };
        entries.iter().map(line).collect::<Vec<_>>()
    };
    for (word, lines) in [
        ("added", plain(added)),
        ("raised", from(raised)),
        ("lowered", from(lowered)),
        ("gone", plain(removed)),
        ("extended", plain(extended)),
    ] {
        for line in lines.iter().take(MOST_NAMED) {
            _ = writeln!(out, "  {word:8}  {line}");
        }
        if lines.len() > MOST_NAMED {
            _ = writeln!(out, "  {word:8}  ... and {} more", lines.len() - MOST_NAMED);
        }
    }
    out
}

fn check(path: &Path) -> Result<ExitCode> {
    let (baseline, today) = (read_baseline(path)?, today());
    let name = path.display();
    let mut out = format!("{name}: {}\n", counted(baseline.entries().count(), "finding"));
    let mut is_good = true;
    for entry in baseline.entries().filter(|entry| entry.is_expired(today)) {
        is_good = false;
        _ = writeln!(out, "  expired   {entry}");
    }
    for entry in baseline.duplicates().iter().filter_map(|&fingerprint| baseline.entry(fingerprint)) {
        is_good = false;
        _ = writeln!(
            out,
            "  twice     {entry}\n            what both lines say together; `leakscope baseline update` writes it"
        );
    }
    output::print(&out)?;
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn show(path: &Path) -> Result<ExitCode> {
    let (baseline, today) = (read_baseline(path)?, today());
    let mut entries: Vec<&Entry> = baseline.entries().collect();
    entries.sort_by_key(|entry| (std::cmp::Reverse(entry.ceiling.bytes), entry.fingerprint));
    let bytes = entries.iter().fold(0_u64, |sum, entry| sum.saturating_add(entry.ceiling.bytes));
    let mut out =
        format!("{}: {}, at most {} bytes\n", path.display(), counted(entries.len(), "finding"), grouped(bytes));
    for entry in entries {
        let (bytes, blocks) = (grouped(entry.ceiling.bytes), grouped(entry.ceiling.blocks));
        _ = writeln!(out, "  {bytes:>12} {blocks:>9}  {:12} {}  {}", entry.kind, entry.fingerprint, entry.site);
        let expired = if entry.is_expired(today) { " (over)" } else { "" };
        let until = entry.until.map(|day| format!("until {day}{expired} "));
        if until.is_some() || !entry.reason.is_empty() {
            _ = writeln!(out, "{:38}  {}{}", "", until.unwrap_or_default(), entry.reason);
        }
    }
    output::print(&out)?;
    Ok(ExitCode::SUCCESS)
}
