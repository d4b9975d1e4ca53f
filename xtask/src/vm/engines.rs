//! The tracer and kmemleak on the same leaks: one identity each, so that baselines, diffs and gates take either.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::kmemleak::{records, table};
use super::{Kernel, Sections};

/// Fingerprints by leaking function.
fn identities(json: &str) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (record, value) in records(json, &["leaky"])? {
        let fingerprint = value["fingerprint"].as_str().unwrap_or_default().to_owned();
        found.entry(record.0).or_default().insert(fingerprint);
    }
    Ok(found)
}

/// Judges `scripts/engines.sh`.
pub(super) fn judge(kernel: &Kernel, sections: &Sections) -> Result<()> {
    let (traced, scanned) = (identities(sections.text("trace", 0)?)?, identities(sections.text("scan", 0)?)?);
    let by_both: BTreeSet<String> =
        table()?.into_iter().filter(|row| row.kmemleak.is_some()).map(|row| row.function).collect();
    // What the tracer's tables had of an address may still lie somewhere that kmemleak scans: it may miss one.
    ensure!(scanned.len() + 1 >= by_both.len(), "the scan has {scanned:#?}");
    for (function, own) in &scanned {
        let trace = traced.get(function);
        ensure!(
            by_both.contains(function) && trace.is_some_and(|trace| own.is_subset(trace)),
            "{function}: {trace:?} by the tracer, {own:?} by kmemleak; {}",
            sections.text("said", 0)?
        );
    }
    sections.text("baseline", 0)?;
    let gate = sections.get("gate")?;
    ensure!(gate.code < 2 && !gate.text.contains("leaky"), "new by the gate: {}", gate.text);
    let diff = sections.text("diff", 0)?;
    let report: Value = serde_json::from_str(diff.get(diff.find('{').unwrap_or(0)..).unwrap_or_default())?;
    for site in report["sites"].as_array().with_context(|| format!("no sites: {diff}"))? {
        let (stack, change) = (site["stack"].to_string(), site["change"].as_str().unwrap_or_default());
        if let Some(function) = scanned.keys().find(|function| stack.contains(function.as_str())) {
            ensure!(change != "new", "{function} is {change}: {site}");
        }
    }
    eprintln!("vm: {} leaks have one identity in both engines, on {}", scanned.len(), kernel.release);
    Ok(())
}
