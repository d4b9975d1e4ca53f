//! What memleak of bcc and of libbpf-tools prints: outstanding allocations by stack, again and again.
//!
//! Source: bcc 0.26, what its `memleak` prints of programs and of a kernel; `libbpf-tools/memleak.c`. Every listing stands for itself: the
//! last one says what is live, and all of them are the heap over time. Only the busiest stacks are listed (ten unless
//! `-T` asks for more), so sums are lower bounds.

use leakscope_findings::recording::Sample;
use leakscope_model::Tool;

use crate::lines::{hex, leading_decimal};
use crate::sink::{Base, FrameText, Front, Sink};

/// Reads the lines of listings.
#[derive(Default)]
pub(crate) struct Memleak {
    open: Option<Open>,
    is_begun: bool,
    sum: (u64, u64),
    /// Seconds since midnight, and the midnights that passed.
    clock: (u64, u64),
}

struct Open {
    bytes: u64,
    blocks: u64,
    frames: Vec<u32>,
}

/// `[11:16:33] Top 2 stacks with outstanding allocations:`: seconds since midnight.
fn heading(line: &str) -> Option<u64> {
    let (time, rest) = line.strip_prefix('[')?.split_once("] Top ")?;
    if !rest.contains("stacks with outstanding allocations") {
        return None;
    }
    let mut parts = time.split(':').map(|part| part.trim().parse::<u64>().ok());
    let mut part = || parts.next().flatten().filter(|&part| part < 100);
    Some(part()? * 3600 + part()? * 60 + part()?)
}

/// `80 bytes in 5 allocations from stack`.
fn amounts(line: &str) -> Option<(u64, u64)> {
    let (bytes, rest) = leading_decimal(line.trim_start())?;
    let (blocks, rest) = leading_decimal(rest.strip_prefix(" bytes in ")?)?;
    rest.starts_with(" allocations from stack").then_some((bytes, blocks))
}

/// Whether a text has a listing in it.
pub(crate) fn is_listing(text: &str) -> bool {
    text.lines().any(|line| heading(line).is_some() || amounts(line).is_some())
}

/// A frame of either tool: `main+0x6d [allocs]`, `0x55d0 main+0x6d [allocs]`, `0 [<55d0>] main+0x6d`,
/// `1 [<7f00>]  (/lib/x.so+0x12)`, `[unknown]`.
fn frame(text: &str) -> Option<(u64, &str, &str, Option<u64>)> {
    let mut rest = text.trim();
    if let Some((_, after)) = leading_decimal(rest)
        && after.trim_start().starts_with("[<")
    {
        rest = after.trim_start();
    }
    let mut pc = 0;
    if let Some((address, after)) = rest.strip_prefix("[<").and_then(|rest| rest.split_once(">]")) {
        pc = hex(address)?;
        rest = after.trim_start();
    } else if rest.starts_with("0x") {
        let (address, after) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        pc = hex(address)?;
        rest = after.trim_start();
    }
    if let Some((module, offset)) =
        rest.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')).and_then(|rest| rest.rsplit_once("+0x"))
    {
        return Some((pc, "", module, Some(hex(offset)?)));
    }
    let (symbol, module) = match rest.strip_suffix(']').and_then(|rest| rest.rsplit_once(" [")) {
        Some((symbol, module)) => (symbol.trim(), module),
        None => (rest, ""),
    };
    let (function, offset) = match symbol.rsplit_once("+0x") {
        Some((function, offset)) => (function, hex(offset)?),
        None => (symbol, 0),
    };
    if function.is_empty() && pc == 0 {
        return None;
    }
    let function = if function == "[unknown]" || function == "unknown" { "" } else { function };
    // Without an address the offset tells two calls in a function apart.
    Some((if pc == 0 { offset } else { pc }, function, module, None))
}

impl Memleak {
    /// Reads a line if it belongs to a listing.
    pub(crate) fn line(&mut self, sink: &mut Sink, number: u64, line: &str) -> bool {
        if let Some(seconds) = heading(line) {
            self.close(sink);
            self.end_listing(sink);
            let process = sink.process(0, Tool::BccMemleak);
            sink[process].forget_live();
            if seconds < self.clock.0 {
                self.clock.1 += 1;
            }
            self.clock.0 = seconds;
            self.is_begun = true;
            return true;
        }
        if let Some(pid) = line.strip_prefix("Attaching to pid ").and_then(leading_decimal) {
            let process = sink.process(0, Tool::BccMemleak);
            sink[process].out.process.pid = u32::try_from(pid.0).unwrap_or(0);
            return true;
        }
        if let Some((bytes, blocks)) = amounts(line) {
            self.close(sink);
            self.open = Some(Open { bytes, blocks, frames: Vec::new() });
            return true;
        }
        let Some(open) = &mut self.open else { return false };
        let text = line.trim();
        if text.is_empty() || !line.starts_with([' ', '\t']) {
            self.close(sink);
            return text.is_empty();
        }
        if text.starts_with("addr = ") {
            return true;
        }
        let Some((pc, function, module, offset)) = frame(text) else {
            sink.unread(number, line);
            return true;
        };
        let process = sink.process(0, Tool::BccMemleak);
        let process = &mut sink[process];
        let module = process.module(module, Base::LinkTime, pc, offset);
        let frame = process.frame(&FrameText { pc, function, module, offset, ..FrameText::default() });
        if open.frames.len() < crate::sink::DEEPEST {
            open.frames.push(frame);
        }
        true
    }

    fn close(&mut self, sink: &mut Sink) {
        let Some(open) = self.open.take() else { return };
        let process = sink.process(0, Tool::BccMemleak);
        let process = &mut sink[process];
        let leaf = process.stack(&open.frames);
        let site = process.site(leaf, Front::Caller);
        process.live(site, open.bytes, open.blocks);
        self.sum = (self.sum.0.saturating_add(open.bytes), self.sum.1.saturating_add(open.blocks));
    }

    fn end_listing(&mut self, sink: &mut Sink) {
        let (live_bytes, live_blocks) = std::mem::take(&mut self.sum);
        if !self.is_begun {
            return;
        }
        let process = sink.process(0, Tool::BccMemleak);
        let seconds = self.clock.1 * 86_400 + self.clock.0;
        let sample =
            Sample { monotonic_ns: seconds.saturating_mul(1_000_000_000), live_bytes, live_blocks, resident_bytes: 0 };
        sink[process].sample(sample);
    }

    /// The end of the log.
    pub(crate) fn finish(&mut self, sink: &mut Sink) {
        self.close(sink);
        self.end_listing(sink);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_by_table() {
        for (text, expected) in [
            ("main+0x6d [allocs]", Some((0x6d, "main", "allocs", None))),
            ("0x000055d0 main+0x6d [allocs]", Some((0x55d0, "main", "allocs", None))),
            ("0 [<000055d0>] main+0x6d", Some((0x55d0, "main", "", None))),
            ("1 [<00007f00>]  (/lib/x.so+0x12)", Some((0x7f00, "", "/lib/x.so", Some(0x12)))),
            ("bpf_prog_load [kernel]", Some((0, "bpf_prog_load", "kernel", None))),
            ("0x55d0 [unknown]", Some((0x55d0, "", "", None))),
            ("std::vector<int>::f(int)+0x1 [x]", Some((1, "std::vector<int>::f(int)", "x", None))),
            ("", None),
        ] {
            assert_eq!(frame(text), expected, "{text}");
        }
        assert_eq!(heading("[11:16:33] Top 2 stacks with outstanding allocations:"), Some(40_593));
        assert_eq!(amounts("\t80 bytes in 5 allocations from stack"), Some((80, 5)));
    }
}
