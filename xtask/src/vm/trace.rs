//! What live tracing must show of our leaking module: the sites, bytes and counts of the table that `leaky.c` begins with,
//! and of both twins the blocks that they keep, which no tracer can tell from leaks.

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
    let found = records(sections.text("trace", 0)?, &["leaky", "clean"])?;
    let mut seen: Vec<Record> =
        found.iter().map(|(record, _)| record.clone()).filter(|record| record.0 != KEEPS).collect();
    let mut expected: Vec<Record> = table()?
        .into_iter()
        .filter(|row| has_vmalloc || row.allocator != "vmalloc")
        .map(|row| (row.function, row.allocator, "possible".to_owned(), row.bytes * row.blocks, row.blocks))
        .collect();
    expected.sort();
    seen.sort();
    ensure!(seen == expected, "traced records:\n{seen:#?}\nexpected:\n{expected:#?}\nsaid: {said}");
    for (record, value) in &found {
        let notes = value["notes"].to_string();
        for words in ["allocated by insmod (pid ", " s old", "in module "] {
            ensure!(notes.contains(words), "{record:?}: no `{words}` in {notes}");
        }
    }
    quiet(sections, "module")?;
    quiet(sections, "after-kill")?;
    eprintln!("vm: {} of {} seeded leaks traced, on {}", seen.len(), expected.len(), kernel.release);
    Ok(())
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
