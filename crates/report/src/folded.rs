//! Folded stacks: `main;build_list;make_node;malloc 48`, one line a stack, for flame graph tools.
//!
//! Source: Brendan Gregg's `stackcollapse` programs. Frames are functions, outermost first, without files and lines,
//! so that equal paths add up. A `;` in a name becomes `:`, since it separates frames. With several processes the
//! first frame is the program and its id.

use std::collections::BTreeMap;
use std::io::{self, Write};

use crate::Process;
use crate::escape::terminal;
use crate::finding;
use crate::profile::{Metric, Profile};

/// Writes all stacks with what `metric` says of them.
///
/// # Errors
/// Those of `out`.
pub fn write(out: &mut dyn Write, processes: &[Process<'_>], metric: Metric) -> io::Result<()> {
    let mut lines: BTreeMap<String, u64> = BTreeMap::new();
    for &process in processes {
        let analysis = process.analysis;
        let profile = Profile::new(process);
        let names: Vec<Vec<String>> = (0..profile.recorded().locations.len())
            .map(|location| profile.codes(location as u32).iter().map(|code| name(&code.name)).collect())
            .collect();
        for sample in &profile.samples {
            let amount = sample.amount(metric);
            if amount == 0 {
                continue;
            }
            let mut frames = Vec::new();
            if processes.len() > 1 {
                frames.push(name(&format!("{} ({})", finding::program(analysis), analysis.process.pid)));
            }
            for &location in sample.stack.iter().rev() {
                let of = names.get(location as usize).map(Vec::as_slice).unwrap_or_default();
                frames.extend(of.iter().rev().cloned());
            }
            frames.push(name(sample.record.function.demangled()));
            let line = lines.entry(frames.join(";")).or_default();
            *line = line.saturating_add(amount);
        }
    }
    for (stack, amount) in lines {
        writeln!(out, "{stack} {amount}")?;
    }
    Ok(())
}

fn name(text: &str) -> String {
    terminal(text).replace(';', ":")
}
