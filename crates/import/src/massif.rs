//! Massif's files.
//!
//! Source: Valgrind 3.19, what `--tool=massif` writes. The last snapshot with a tree says what is live by site; all
//! snapshots are the heap over time. Massif counts bytes, not blocks: a site has one block here. What it folds away
//! (`in 3 places, all below massif's threshold`) keeps the stack as far as it is told.

use std::io::{self, BufRead};

use leakscope_findings::recording::Sample;
use leakscope_model::{AllocFn, Tool};

use crate::lines::{decimal, leading_decimal, leading_hex};
use crate::sink::{Base, FrameText, Front, Process, Sink};

/// Levels of a tree that are followed.
const DEEPEST: usize = crate::sink::DEEPEST;

/// Whether a text begins as such a file does.
pub(crate) fn is_massif(text: &str) -> bool {
    text.starts_with("desc:") && text.contains("\ntime_unit:")
}

#[derive(Default)]
struct File {
    is_ms: bool,
    sample: Sample,
    has_sample: bool,
    /// The way from the root of the tree to the line that was read last.
    path: Vec<u32>,
}

/// Reads a file.
pub(crate) fn read(input: &mut dyn BufRead, sink: &mut Sink) -> io::Result<()> {
    let process = sink.process(0, Tool::Massif);
    let mut file = File::default();
    sink.read_lines(input, process, |process, line| file.line(process, line))?;
    file.end_snapshot(&mut sink.processes[process]);
    Ok(())
}

impl File {
    fn line(&mut self, process: &mut Process, line: &str) -> Option<()> {
        if line.starts_with("#---") || line.trim().is_empty() {
            return Some(());
        }
        let indent = line.len() - line.trim_start_matches(' ').len();
        if line[indent..].starts_with('n') {
            return self.node(process, indent, line.trim_start());
        }
        if let Some(command) = line.strip_prefix("cmd: ") {
            process.out.process.command_line = command.split(' ').map(str::to_owned).collect();
            process.out.process.executable = command.split(' ').next().unwrap_or_default().to_owned();
            return Some(());
        }
        if let Some(unit) = line.strip_prefix("time_unit: ") {
            self.is_ms = unit == "ms";
            return Some(());
        }
        if line.starts_with("desc:") {
            return Some(());
        }
        let (name, value) = line.split_once('=')?;
        match name {
            "snapshot" => {
                self.end_snapshot(process);
                self.has_sample = true;
            }
            "time" => {
                let time = decimal(value)?;
                // Instructions and bytes are no time; they still are an order.
                self.sample.monotonic_ns = if self.is_ms { time.saturating_mul(1_000_000) } else { time };
            }
            "mem_heap_B" => self.sample.live_bytes = decimal(value)?,
            "mem_heap_extra_B" | "mem_stacks_B" => _ = decimal(value)?,
            "heap_tree" => {
                if value != "empty" {
                    process.forget_live();
                    self.path.clear();
                }
            }
            _ => return None,
        }
        Some(())
    }

    fn end_snapshot(&mut self, process: &mut Process) {
        if std::mem::take(&mut self.has_sample) {
            process.sample(std::mem::take(&mut self.sample));
        }
    }

    /// `n2: 5100000 0x10916D: b (jem.c:3)`, indented by its depth.
    fn node(&mut self, process: &mut Process, depth: usize, text: &str) -> Option<()> {
        let (children, rest) = leading_decimal(&text[1..])?;
        let (bytes, rest) = leading_decimal(rest.strip_prefix(": ")?)?;
        let rest = rest.trim_start();
        if depth > DEEPEST || depth > self.path.len() + 1 {
            return None;
        }
        // The root is no frame.
        self.path.truncate(depth.saturating_sub(1));
        if let Some((pc, place)) = leading_hex(rest) {
            if depth == 0 {
                return None;
            }
            let place = place.strip_prefix(": ")?;
            let (text, module) = split(place);
            let module = process.module(module, Base::LinkTime, 0, None);
            let frame = process.frame(&FrameText { pc, module, ..text });
            self.path.push(frame);
        }
        if children == 0 && bytes > 0 {
            let leaf = process.stack(&self.path);
            let site = process.site(leaf, Front::Absent(AllocFn::Malloc));
            process.live(site, bytes, 1);
        }
        Some(())
    }
}

/// Function and place: `b (jem.c:3)`, `f(int) (in /lib/x.so)`.
fn split(text: &str) -> (FrameText<'_>, &str) {
    let mut frame = FrameText { function: text, ..FrameText::default() };
    let mut module = "";
    if let (Some(inner), Some(at)) = (text.strip_suffix(')'), text.rfind(" (")) {
        let place = &inner[at + 2..];
        if let Some(path) = place.strip_prefix("in ") {
            (frame.function, module) = (&text[..at], path);
        } else if let Some((file, Some(line))) = place.rsplit_once(':').map(|(file, line)| (file, decimal(line))) {
            (frame.function, frame.file) = (&text[..at], file);
            frame.line = u32::try_from(line).unwrap_or(0);
        }
    }
    if frame.function == "???" {
        frame.function = "";
    }
    (frame, module)
}
