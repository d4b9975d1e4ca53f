//! A file for speedscope: one profile for each metric and process.
//!
//! Source: speedscope's `file-format-schema.json` (its npm package). Stacks are lists of frame numbers, outermost
//! first; weights are bytes, or blocks for temporary allocations.

use std::collections::HashMap;
use std::io::{self, Write};

use serde_json::{Value, json};

use crate::Process;
use crate::escape::terminal;
use crate::finding;
use crate::profile::{Code, Metric, Profile};

/// Writes the document on all processes.
///
/// # Errors
/// Those of `out`.
pub fn write(out: &mut dyn Write, processes: &[Process<'_>]) -> io::Result<()> {
    let mut frames = Frames::default();
    let mut profiles = Vec::new();
    for &process in processes {
        let profile = Profile::new(process);
        let codes: Vec<Vec<usize>> = (0..profile.recorded().locations.len())
            .map(|location| profile.codes(location as u32).iter().map(|code| frames.number(code)).collect())
            .collect();
        let stacks: Vec<Vec<usize>> = profile
            .samples
            .iter()
            .map(|sample| {
                let of = |&location: &u32| codes.get(location as usize).map(Vec::as_slice).unwrap_or_default();
                let mut stack: Vec<usize> =
                    sample.stack.iter().rev().flat_map(|location| of(location).iter().rev().copied()).collect();
                stack.push(frames.number(&profile.hook(sample.record)));
                stack
            })
            .collect();
        for metric in Metric::ALL {
            profiles.push(one(&profile, metric, &stacks, processes.len() > 1));
        }
    }
    if profiles.is_empty() {
        profiles.push(json!({
            "type": "sampled", "name": "nothing was recorded", "unit": "bytes", "startValue": 0, "endValue": 0,
            "samples": [], "weights": [],
        }));
    }
    let version = processes.first().map_or("", |process| process.analysis.tool_version.as_str());
    let document = json!({
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        "name": processes.first().map_or_else(String::new, |process| terminal(finding::program(process.analysis))),
        "exporter": format!("leakscope {}", terminal(version)),
        "activeProfileIndex": 0,
        "shared": { "frames": frames.list },
        "profiles": profiles,
    });
    serde_json::to_writer(&mut *out, &document)?;
    writeln!(out)
}

fn one(profile: &Profile<'_>, metric: Metric, stacks: &[Vec<usize>], several: bool) -> Value {
    let amounts = profile.samples.iter().map(|sample| sample.amount(metric)).zip(stacks);
    let (weights, samples): (Vec<u64>, Vec<&Vec<usize>>) = amounts.filter(|&(amount, _)| amount > 0).unzip();
    let total = weights.iter().fold(0_u64, |sum, &weight| sum.saturating_add(weight));
    let unit = if metric.counts_blocks() { "none" } else { "bytes" };
    let words = if metric.counts_blocks() { " (blocks)" } else { "" };
    let mut name = format!("{}{words}", metric.word());
    if several {
        let analysis = profile.analysis();
        name = format!("{} ({}): {name}", terminal(finding::program(analysis)), analysis.process.pid);
    }
    json!({
        "type": "sampled", "name": name, "unit": unit, "startValue": 0, "endValue": total,
        "samples": samples, "weights": weights,
    })
}

#[derive(Default)]
struct Frames {
    list: Vec<Value>,
    known: HashMap<Code, usize>,
}

impl Frames {
    fn number(&mut self, code: &Code) -> usize {
        let next = self.list.len();
        let number = *self.known.entry(code.clone()).or_insert(next);
        if number == next {
            let mut frame = json!({ "name": terminal(&code.name) });
            let file = if code.file.is_empty() { &code.module } else { &code.file };
            if !file.is_empty() {
                frame["file"] = json!(terminal(file));
            }
            for (field, value) in [("line", code.line), ("col", code.column)] {
                if value > 0 {
                    frame[field] = json!(value);
                }
            }
            self.list.push(frame);
        }
        number
    }
}
