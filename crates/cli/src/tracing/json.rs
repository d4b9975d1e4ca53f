//! `--json`: what a moment holds, for programs. Sizes are in bytes, times in seconds; docs/trace.md lists the fields.

use leakscope_ebpf::{Estimate, Owner};
use serde_json::{Value, json};

use super::{Moment, Session};

/// The document, with a line's end.
pub fn render(moment: &Moment, session: &Session<'_>) -> String {
    let lost = &moment.counters.lost;
    let kinds: Vec<Value> = moment
        .kinds
        .iter()
        .map(|&kind| {
            let live = moment.snapshot.all.get(&kind).copied().unwrap_or_default();
            let (allocations, allocated_bytes) = moment.counters.allocations(kind);
            let (releases, unknown_releases) = moment.counters.releases(kind);
            json!({
                "kind": kind.name(), "outstanding": owner(&live), "allocations": allocations,
                "allocated_bytes": allocated_bytes, "releases": releases, "unknown_releases": unknown_releases,
            })
        })
        .collect();
    let sites: Vec<Value> = moment
        .groups
        .iter()
        .map(|group| {
            json!({
                "kind": group.kind.name(), "cache": group.cache, "module": group.module, "function": group.function,
                "stack": group.names, "outstanding": owner(&group.live), "samples": group.sampled,
                "allocated_bytes": group.allocated_bytes, "allocated_blocks": group.allocated_blocks,
                "oldest_seconds": group.oldest_ns as f64 / 1e9, "youngest_seconds": group.youngest_ns as f64 / 1e9,
                "owner": group.owner, "missed_releases": group.missed_frees, "in_interrupt": group.is_interrupt,
                "growth_bytes_per_second": group.growth,
            })
        })
        .collect();
    let document = json!({
        "format": "leakscope-trace", "version": 1,
        "elapsed_seconds": moment.elapsed.as_secs_f64(), "min_age_seconds": session.min_age.as_secs_f64(),
        "sample_bytes": moment.sample_bytes, "overhead_percent": session.percent, "kinds": kinds, "sites": sites,
        "modules": owners(&moment.modules), "cgroups": owners(&moment.cgroups), "processes": owners(&moment.processes),
        "lost": {
            "blocks_full": lost.blocks_full, "blocks_busy": lost.blocks_busy, "block_bytes": lost.block_bytes,
            "releases_busy": lost.frees_busy, "stacks_full": lost.stacks_full, "stacks_failed": lost.stacks_failed,
            "stacks_cut": lost.stacks_cut, "missed_releases": lost.missed_frees, "bulk_blocks": lost.bulk_blocks,
            "events_missed": lost.events_missed, "names": lost.names, "calls": lost.calls,
            "stacks_wrong": lost.stacks_wrong,
        },
        "notes": session.notes,
    });
    format!("{document:#}\n")
}

fn owners(owners: &[(String, Owner)]) -> Vec<Value> {
    owners.iter().map(|(name, of)| json!({ "name": name, "outstanding": owner(of) })).collect()
}

fn owner(of: &Owner) -> Value {
    json!({ "bytes": estimate(of.bytes), "usable_bytes": estimate(of.usable), "blocks": estimate(of.blocks) })
}

/// The estimate, and half the width of its 95 % interval: 0 when it is exact.
fn estimate(of: Estimate) -> Value {
    json!({ "value": of.value, "margin": of.margin() })
}
