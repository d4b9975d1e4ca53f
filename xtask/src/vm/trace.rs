//! What live tracing must show of our leaking module: the sites, bytes and counts of the table that `leaky.c` begins with,
//! and of both twins the blocks that they keep, which no tracer can tell from leaks.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::kmemleak::{Record, records, table};
use super::{Kernel, Sections};

/// The function that keeps blocks in a global array.
const KEEPS: &str = "keep_blocks";

/// Judges `scripts/trace.sh`.
pub(super) fn judge(kernel: &Kernel, sections: &Sections) -> Result<()> {
    let refusal = sections.text("not-root", 2)?.trim();
    ensure!(refusal.contains("run it with sudo"), "not root: {refusal}");
    let said = sections.text("said", 0)?;
    let has_vmalloc = !said.contains("no tracepoints for vmalloc") && said.contains("vmalloc");
    let mut found = records(sections.text("trace", 0)?, &["leaky", "clean"])?;
    // What the kernel keeps for a cache or a mapping (names, sysfs, its own records of areas, the array of a mapping's
    // pages) is no block of the module's.
    let table = table()?;
    let is_own = |record: &Record| table.iter().all(|row| row.function != record.0 || row.allocator == record.1);
    found.retain(|(record, value)| (is_direct(value) || record.1 == "vmalloc") && is_own(record));
    // A loop that the compiler unrolls has several call sites.
    let mut sums: BTreeMap<(String, String, String), (u64, u64)> = BTreeMap::new();
    for ((function, allocator, kind, bytes, blocks), _) in found.iter().filter(|(record, _)| record.0 != KEEPS) {
        let sum = sums.entry((function.clone(), allocator.clone(), kind.clone())).or_default();
        *sum = (sum.0 + bytes, sum.1 + blocks);
    }
    let seen: Vec<Record> = sums
        .into_iter()
        .map(|((function, allocator, kind), (bytes, blocks))| (function, allocator, kind, bytes, blocks))
        .collect();
    let mut expected: Vec<Record> = table
        .iter()
        .filter(|row| has_vmalloc || row.allocator != "vmalloc")
        .cloned()
        .map(|row| (row.function, row.allocator, "possible".to_owned(), row.bytes * row.blocks, row.blocks))
        .collect();
    expected.sort();
    ensure!(seen == expected, "traced records:\n{seen:#?}\nexpected:\n{expected:#?}\nsaid: {said}");
    for (record, value) in &found {
        let notes = value["notes"].to_string();
        // The guest's shell is its first program and its insmod too.
        for words in ["allocated by init (pid ", " s old", "in module "] {
            ensure!(notes.contains(words), "{record:?}: no `{words}` in {notes}");
        }
    }
    quiet(sections, "module")?;
    quiet(sections, "after-kill")?;
    eprintln!("vm: {} of {} seeded leaks traced, on {}", seen.len(), expected.len(), kernel.release);
    Ok(())
}

/// Whether the module itself called the allocator, which is the first frame.
fn is_direct(record: &Value) -> bool {
    matches!(record["stack"]["frames"][1]["module"].as_str(), Some("leaky" | "clean"))
}

/// A later tracer sees nothing of the module, and works after another one was killed.
fn quiet(sections: &Sections, name: &str) -> Result<()> {
    let text = sections.text(name, 0)?;
    let document: Value = serde_json::from_str(text.get(text.find('{').unwrap_or(0)..).unwrap_or_default())
        .with_context(|| format!("{name}: no JSON: {text}"))?;
    let sites = document["sites"].as_array().with_context(|| format!("{name}: no sites"))?;
    let of_leaky = sites.iter().filter(|site| site["module"].as_str() == Some("leaky")).count();
    ensure!(of_leaky == 0, "{name}: {text}");
    Ok(())
}
