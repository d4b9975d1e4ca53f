//! The board for Prometheus. Source: Prometheus, "Exposition formats", text format 0.0.4, and "Metric and label naming".
//!
//! The labels are `target`, and `part` of five words where memory is told by its parts. Targets are as many as are configured, but of `top = N` the names change, and anybody can
//! start programs of new names: over the life of a daemon at most [`MOST_NAMES`] are exported, and what is left out is
//! counted.

use std::collections::BTreeSet;
use std::fmt::Write;

use crate::instruments::{Instrument, Kind, OF_MONITOR, OF_PART, OF_TARGET};
use crate::view::Board;

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
        head(&mut out, instrument);
        for target in &targets {
            if let Some(value) = (instrument.value)(target) {
                let _ = writeln!(out, "{}{{target=\"{}\"}} {value}", instrument.prometheus, label(&target.id));
            }
        }
    }
    head(&mut out, &OF_PART);
    for target in &targets {
        for part in &target.parts {
            if let Some(value) = (OF_PART.value)(part) {
                let (name, target) = (OF_PART.prometheus, label(&target.id));
                let _ = writeln!(out, "{name}{{target=\"{target}\",part=\"{}\"}} {value}", part.part);
            }
        }
    }
    for instrument in OF_MONITOR {
        head(&mut out, instrument);
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
    let version = env!("CARGO_PKG_VERSION");
    let _ = writeln!(
        out,
        "# HELP leakscope_build_info The version that runs, always 1.\n# TYPE leakscope_build_info gauge\n\
         leakscope_build_info{{version=\"{version}\"}} 1"
    );
    out
}

fn head<T>(out: &mut String, instrument: &Instrument<T>) {
    let kind = if instrument.kind == Kind::Counter { "counter" } else { "gauge" };
    let _ = writeln!(out, "# HELP {0} {1}\n# TYPE {0} {kind}", instrument.prometheus, instrument.help);
}

/// What a label's value escapes.
fn label(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
