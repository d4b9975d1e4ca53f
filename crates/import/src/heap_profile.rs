//! Text heap profiles: jemalloc's `heap_v2`, and the older one of gperftools, whose name it bears.
//!
//! Source: jemalloc 5.3 `src/prof_sys.c` (what is written) and `bin/jeprof.in` (how samples are scaled up); gperftools
//! 2.10 `src/heap-profile-table.cc`. A profile has addresses alone, with the process's memory map at its end, so names
//! come from the files that the map names. Addresses are return addresses.
//!
//! ```text
//! heap_v2/524288                                     mean bytes between samples
//!   t*: 201: 5918720 [0: 0]                          all threads: live objects: bytes [ever allocated: bytes]
//! @ 0x7f78b52a2630 0x55e96c1c9155 ...
//!   t*: 100: 102400 [0: 0]
//!   t0: 100: 102400 [0: 0]                           one thread: a part of the line above
//!
//! MAPPED_LIBRARIES:
//! 55e96c1c9000-55e96c1ca000 r-xp 00001000 fe:00 10258668                   /tmp/s/jem
//!
//! heap profile:    200:  5100000 [   201:  5100077] @ heapprofile
//!    100:  5000000 [   100:  5000000] @ 0x56308571d155 ...
//! ```

use std::io::{self, BufRead};

use leakscope_model::Tool;

use crate::lines::{decimal, hex};
use crate::sink::{FrameText, Front, Mapping, Process, Sink};

/// Mappings that are kept; no process has more.
const MOST_MAPPINGS: usize = 1 << 20;

/// What is known while a profile is read.
struct Profile {
    /// Mean bytes between samples; 1 when every allocation is there.
    sample_bytes: u64,
    is_jemalloc: bool,
    leaf: Option<u32>,
    in_maps: bool,
}

/// Whether a text begins as such a profile does.
pub(crate) fn is_profile(text: &str) -> bool {
    text.starts_with("heap_v2/") || text.starts_with("heap profile: ")
}

/// `100:  5000000 [   100:  5000000]` and what follows: live objects and bytes, objects and bytes of all time.
fn counts(text: &str) -> Option<([u64; 4], &str)> {
    let (live, rest) = text.split_once('[')?;
    let (all, rest) = rest.split_once(']')?;
    let pair = |text: &str| {
        let (objects, bytes) = text.split_once(':')?;
        Some((decimal(objects.trim())?, decimal(bytes.trim())?))
    };
    let ((live_objects, live_bytes), (objects, bytes)) = (pair(live)?, pair(all)?);
    Some(([live_objects, live_bytes, objects, bytes], rest.trim()))
}

/// What a sample of `objects` stands for: an object of mean size s is in the sample with probability 1 - e^(-s/period).
fn scaled(objects: u64, bytes: u64, period: u64) -> (u64, u64) {
    if period <= 1 || objects == 0 || bytes == 0 {
        return (objects, bytes);
    }
    let mean = bytes as f64 / objects as f64;
    let factor = 1.0 / -(-mean / period as f64).exp_m1();
    ((objects as f64 * factor).round() as u64, (bytes as f64 * factor).round() as u64)
}

/// Reads a profile.
pub(crate) fn read(input: &mut dyn BufRead, sink: &mut Sink) -> io::Result<()> {
    let process = sink.process(0, Tool::Pprof);
    let mut profile = Profile { sample_bytes: 1, is_jemalloc: false, leaf: None, in_maps: false };
    sink.read_lines(
        input,
        process,
        |process, line| if line.trim().is_empty() { Some(()) } else { profile.line(process, line) },
    )
}

impl Profile {
    fn line(&mut self, process: &mut Process, line: &str) -> Option<()> {
        if self.in_maps {
            return mapping(process, line);
        }
        if let Some(period) = line.strip_prefix("heap_v2/") {
            self.begin_jemalloc(process, decimal(period.trim())?);
            return Some(());
        }
        if let Some(rest) = line.strip_prefix("heap profile: ") {
            let (_, kind) = counts(rest)?;
            if let Some(period) = kind.strip_prefix("@ heap_v2/") {
                self.begin_jemalloc(process, decimal(period.trim())?);
            }
            return Some(());
        }
        let trimmed = line.trim_start();
        if trimmed.starts_with("MAPPED_LIBRARIES:") {
            self.in_maps = true;
            return Some(());
        }
        if let Some(stack) = trimmed.strip_prefix('@') {
            self.leaf = Some(stack_of(process, stack)?);
            return Some(());
        }
        if let Some(all_threads) = trimmed.strip_prefix("t*:") {
            let (numbers, _) = counts(all_threads)?;
            // The first line counts the whole heap.
            if let Some(leaf) = self.leaf {
                self.add(process, leaf, numbers);
            }
            return Some(());
        }
        if trimmed.starts_with('t') {
            return counts(trimmed.split_once(':')?.1).map(|_| ());
        }
        let (numbers, rest) = counts(trimmed)?;
        let stack = rest.strip_prefix('@');
        let leaf = match stack {
            Some(stack) => stack_of(process, stack)?,
            None => self.leaf?,
        };
        self.add(process, leaf, numbers);
        Some(())
    }

    fn begin_jemalloc(&mut self, process: &mut Process, period: u64) {
        self.is_jemalloc = true;
        self.sample_bytes = period.max(1);
        process.out.witness.tool = Tool::Jemalloc;
        process.out.process.sample_bytes = if period > 1 { period } else { 0 };
    }

    fn add(&self, process: &mut Process, leaf: u32, [live_objects, live_bytes, objects, bytes]: [u64; 4]) {
        let site = process.site(leaf, if self.is_jemalloc { Front::Deep } else { Front::Caller });
        let (live_objects, live_bytes) = scaled(live_objects, live_bytes, self.sample_bytes);
        let (objects, bytes) = scaled(objects, bytes, self.sample_bytes);
        // Without prof_accum jemalloc writes zeros for what was ever allocated.
        let (objects, bytes) = (objects.max(live_objects), bytes.max(live_bytes));
        let totals = process.totals(site);
        totals.live_blocks = totals.live_blocks.saturating_add(live_objects);
        totals.live_bytes = totals.live_bytes.saturating_add(live_bytes);
        totals.allocated_blocks = totals.allocated_blocks.saturating_add(objects);
        totals.allocated_bytes = totals.allocated_bytes.saturating_add(bytes);
        totals.freed_blocks = totals.allocated_blocks - totals.live_blocks.min(totals.allocated_blocks);
        totals.freed_bytes = totals.allocated_bytes - totals.live_bytes.min(totals.allocated_bytes);
    }
}

fn stack_of(process: &mut Process, text: &str) -> Option<u32> {
    let mut frames = Vec::new();
    for address in text.split_whitespace().take(crate::sink::DEEPEST) {
        let pc = hex(address)?.wrapping_sub(1);
        frames.push(process.frame(&FrameText { pc, ..FrameText::default() }));
    }
    Some(process.stack(&frames))
}

/// A line of `/proc/PID/maps`.
fn mapping(process: &mut Process, line: &str) -> Option<()> {
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let (start, end) = (hex(start)?, hex(end)?);
    let path = words.nth(4).map_or("", |first| line.find(first).map_or("", |at| line[at..].trim()));
    if start < end && path.starts_with('/') && process.mappings.len() < MOST_MAPPINGS {
        if process.out.process.executable.is_empty() {
            path.clone_into(&mut process.out.process.executable);
            process.out.process.command_line = vec![path.to_owned()];
        }
        process.mappings.push(Mapping { start, end, path: path.into() });
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_by_table() {
        assert_eq!(counts(" 100: 102400 [1: 2]"), Some(([100, 102_400, 1, 2], "")));
        assert_eq!(counts("   0:        0 [     1:       77] @ 0x1"), Some(([0, 0, 1, 77], "@ 0x1")));
        assert_eq!(counts("x"), None);
    }

    #[test]
    fn samples_are_scaled_as_jeprof_does() {
        assert_eq!(scaled(3, 300, 1), (3, 300));
        // A block as large as the period is seen with probability 1 - 1/e.
        assert_eq!(scaled(100, 100 * 4096, 4096), (158, 647_978));
        // Large blocks are always seen.
        assert_eq!(scaled(2, 2 << 30, 4096), (2, 2 << 30));
    }
}
