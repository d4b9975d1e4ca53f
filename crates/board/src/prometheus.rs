//! The board for Prometheus. Source: Prometheus, "Exposition formats", text format 0.0.4, and "Metric and label naming".
//!
//! The labels are `target`, and `part` of five words where memory is told by its parts. Targets are as many as are configured, but of `top = N` the names change, and anybody can
//! start programs of new names: over the life of a daemon at most [`MOST_NAMES`] are exported, and what is left out is
//! counted.

use std::collections::BTreeSet;
use std::fmt::Write;

use crate::instruments::{Kind, OF_MONITOR, OF_PART, OF_TARGET};
use crate::machines::MachineView;
use crate::view::{Board, Verdict};

/// Names that are exported over the life of a daemon.
pub const MOST_NAMES: usize = 1000;
/// The content type of the text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The names that have been exported.
#[derive(Clone, Debug, Default)]
pub struct Exported(BTreeSet<String>);

impl Exported {
    /// Whether a name may be exported: it has been before, or there is room.
    fn admit(&mut self, name: &str) -> bool {
        if !self.0.contains(name) && self.0.len() < MOST_NAMES {
            self.0.insert(name.to_owned());
        }
        self.0.contains(name)
    }
}

/// The text.
pub fn text(board: &Board, exported: &mut Exported) -> String {
    let targets: Vec<_> = board.targets.iter().filter(|target| exported.admit(&target.id)).collect();
    let mut out = String::with_capacity(1024 + targets.len() * 600);
    for instrument in OF_TARGET {
        head(&mut out, instrument.prometheus, instrument.help, instrument.kind);
        for target in &targets {
            if let Some(value) = (instrument.value)(target) {
                let _ = writeln!(out, "{}{{target=\"{}\"}} {value}", instrument.prometheus, label(&target.id));
            }
        }
    }
    head(&mut out, OF_PART.prometheus, OF_PART.help, OF_PART.kind);
    for target in &targets {
        for part in &target.parts {
            if let Some(value) = (OF_PART.value)(part) {
                let (name, target) = (OF_PART.prometheus, label(&target.id));
                let _ = writeln!(out, "{name}{{target=\"{target}\",part=\"{}\"}} {value}", part.part);
            }
        }
    }
    for instrument in OF_MONITOR {
        head(&mut out, instrument.prometheus, instrument.help, instrument.kind);
        if let Some(value) = (instrument.value)(board) {
            let _ = writeln!(out, "{} {value}", instrument.prometheus);
        }
    }
    let left_out = board.targets.len() - targets.len();
    let _ = writeln!(
        out,
        "# HELP leakscope_targets_not_exported Targets without metrics: {MOST_NAMES} names were exported before them.\n\
         # TYPE leakscope_targets_not_exported gauge\nleakscope_targets_not_exported {left_out}"
    );
    build_info(&mut out);
    out
}

/// A gauge of each machine that a collector knows: its name, what it is, and its value.
type OfMachine = (&'static str, &'static str, fn(&MachineView) -> Option<f64>);

const OF_MACHINE: &[OfMachine] = &[
    ("leakscope_machine_last_heard_timestamp_seconds", "When the machine was heard of last.", |machine| {
        Some(machine.seen as f64)
    }),
    (
        "leakscope_machine_interval_seconds",
        "How often the machine's monitor looks, and is to be heard of.",
        |machine| machine.interval_seconds.map(|seconds| seconds as f64),
    ),
    ("leakscope_machine_open_alarms", "Alarms that are open there.", |machine| Some(machine.alarms as f64)),
    ("leakscope_machine_targets", "Targets that are watched there.", |machine| Some(machine.targets.len() as f64)),
    ("leakscope_machine_growing_targets", "Targets there whose memory grows.", |machine| {
        Some(machine.targets.iter().filter(|(_, verdict)| *verdict == Verdict::Growing).count() as f64)
    }),
    (
        "leakscope_machine_until_limit_seconds",
        "Time until the first of its targets that grow meets its limit.",
        |machine| Some(machine.first.as_ref()?.hours_left? * 3600.0),
    ),
];

/// The text of a collector. The label `machine` has one value for each machine that was given a token.
pub fn text_of_machines(machines: &[MachineView]) -> String {
    let mut out = String::with_capacity(1024 + machines.len() * 400);
    for (name, help, value) in OF_MACHINE {
        head(&mut out, name, help, Kind::Gauge);
        for machine in machines {
            if let Some(value) = value(machine) {
                let _ = writeln!(out, "{name}{{machine=\"{}\"}} {value}", label(&machine.machine));
            }
        }
    }
    build_info(&mut out);
    out
}

fn build_info(out: &mut String) {
    head(out, "leakscope_build_info", "The version that runs, always 1.", Kind::Gauge);
    let _ = writeln!(out, "leakscope_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"));
}

fn head(out: &mut String, name: &str, help: &str, kind: Kind) {
    let kind = if kind == Kind::Counter { "counter" } else { "gauge" };
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// What a label's value escapes.
fn label(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
