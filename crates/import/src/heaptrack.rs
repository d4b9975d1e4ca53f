//! heaptrack's files: interpreted ones (`heaptrack.*.zst`), and raw ones (`*.raw.zst`).
//!
//! Source: heaptrack 1.4, what it writes; `src/track/libheaptrack.cpp` and `src/interpret/heaptrack_interpret.cpp` for
//! the meaning. A line begins with its kind, numbers are hex; lists count from 1, allocations from 0.
//!
//! ```text
//! v VERSION FILEVERSION         since file version 3 strings come with their length
//! s LENGTH STRING               interpreted: a string
//! i IP MODULE [FUNCTION [FILE LINE [FUNCTION FILE LINE]...]]    inlined-into functions follow
//! t IP PARENT                   a stack: an instruction pointer of the list (raw: an address), and the caller's stack
//! a SIZE STACK                  interpreted: allocations of this size and stack
//! + ALLOCATION, - ALLOCATION    interpreted: one allocated, one released
//! + SIZE STACK POINTER, - POINTER                               raw
//! x LENGTH EXECUTABLE, X COMMAND, c MILLISECONDS, R PAGES, I PAGESIZE PAGES, m ..., A (attached)
//! ```
//!
//! A stack begins with the caller of `malloc`; `operator new` stands in front of it.

use std::io::{self, BufRead};

use leakscope_findings::recording::Sample;
use leakscope_model::Tool;

use crate::lines::hex;
use crate::sink::{Base, FrameText, Front, Map, Process, Sink};

/// The first line of such a file.
pub(crate) fn is_heaptrack(text: &str) -> bool {
    let mut words = text.lines().next().unwrap_or_default().split(' ');
    words.next() == Some("v")
        && words.next().and_then(hex).is_some()
        && words.next().and_then(hex).is_some_and(|version| version < 32)
        && words.next().is_none()
}

#[derive(Default)]
struct File {
    version: u64,
    strings: Vec<String>,
    /// The location of each instruction pointer.
    locations: Vec<u32>,
    /// The node of each stack.
    nodes: Vec<u32>,
    /// Size and site of each kind of allocation.
    allocations: Vec<(u64, u32)>,
    /// Raw: live blocks by address.
    live: Map<u64, (u64, u32)>,
    /// Raw: the executable, and where modules lie.
    executable: String,
    modules: Vec<(u64, u64, u64, String)>,
    bytes: u64,
    blocks: u64,
    page_bytes: u64,
    resident_bytes: u64,
    last_allocation: Option<u32>,
}

/// Reads a file.
pub(crate) fn read(input: &mut dyn BufRead, sink: &mut Sink) -> io::Result<()> {
    let process = sink.process(0, Tool::Heaptrack);
    let mut file = File { page_bytes: 4096, ..File::default() };
    sink.read_lines(input, process, |process, line| match line {
        _ if line.is_empty() || line.starts_with('#') => Some(()),
        _ => file.line(process, line),
    })
}

impl File {
    /// Reads a line; `None` when it makes no sense.
    fn line(&mut self, process: &mut Process, line: &str) -> Option<()> {
        let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
        let mut numbers = rest.split(' ').map(hex);
        let mut next = || numbers.next().flatten();
        match kind {
            "v" => {
                let version = next()?;
                self.version = next()?;
                process.out.witness.version =
                    format!("{}.{}.{}", version >> 16 & 0xff, version >> 8 & 0xff, version & 0xff);
            }
            "s" => {
                let text = self.sized(rest)?;
                self.strings.push(text.to_owned());
            }
            "x" => {
                self.executable = self.sized(rest)?.to_owned();
            }
            "X" => {
                process.out.process.command_line = rest.split(' ').map(str::to_owned).collect();
                process.out.process.executable = rest.split(' ').next().unwrap_or_default().to_owned();
            }
            "I" => self.page_bytes = next()?.clamp(1, 1 << 20),
            "R" => self.resident_bytes = next()?.saturating_mul(self.page_bytes),
            "c" => {
                let sample = Sample {
                    monotonic_ns: next()?.saturating_mul(1_000_000),
                    live_bytes: self.bytes,
                    live_blocks: self.blocks,
                    resident_bytes: self.resident_bytes,
                };
                process.sample(sample);
            }
            "i" => self.instruction(process, rest)?,
            "t" => self.stack(process, next()?, next()?)?,
            "a" => {
                let (bytes, stack) = (next()?, next()?);
                let leaf = self.node(stack)?;
                self.allocations.push((bytes, process.site(leaf, Front::Caller)));
            }
            "+" => {
                let first = next()?;
                match next() {
                    None => {
                        let &(bytes, site) = self.allocations.get(usize::try_from(first).ok()?)?;
                        self.allocated(process, bytes, site);
                    }
                    Some(stack) => {
                        let address = next()?;
                        let site = process.site(self.node(stack)?, Front::Caller);
                        if let Some((bytes, site)) = self.live.insert(address, (first, site)) {
                            self.released(process, bytes, site);
                        }
                        self.allocated(process, first, site);
                    }
                }
            }
            "-" => {
                let which = next()?;
                let (bytes, site) = if self.allocations.is_empty() {
                    // A block from before the recording is no news.
                    let Some(found) = self.live.remove(&which) else { return Some(()) };
                    found
                } else {
                    *self.allocations.get(usize::try_from(which).ok()?)?
                };
                self.released(process, bytes, site);
            }
            "m" => self.module(rest)?,
            "A" | "S" => {}
            _ => return None,
        }
        Some(())
    }

    /// A string behind its length, or alone before file version 3.
    fn sized<'a>(&self, rest: &'a str) -> Option<&'a str> {
        if self.version < 3 {
            return Some(rest);
        }
        let (length, text) = rest.split_once(' ')?;
        hex(length)?;
        Some(text)
    }

    fn string(&self, number: u64) -> &str {
        let at = usize::try_from(number).ok().and_then(|number| number.checked_sub(1));
        at.and_then(|at| self.strings.get(at)).map_or("", String::as_str)
    }

    fn instruction(&mut self, process: &mut Process, rest: &str) -> Option<()> {
        let numbers: Vec<u64> = rest.split(' ').map_while(hex).collect();
        let (&pc, &module) = (numbers.first()?, numbers.get(1)?);
        let module = process.module(self.string(module), Base::LinkTime, pc, None);
        let mut frames = Vec::new();
        // The recorded address is already inside of the call.
        let mut frame = |process: &mut Process, function: u64, file: u64, line: u64| {
            let text = FrameText {
                pc,
                function: self.string(function),
                file: self.string(file),
                line: u32::try_from(line).unwrap_or(0),
                module,
                ..FrameText::default()
            };
            frames.push(process.frame(&text));
        };
        match &numbers[2..] {
            [] => frame(process, 0, 0, 0),
            [function] => frame(process, *function, 0, 0),
            places => {
                for place in places.chunks_exact(3).take(64) {
                    frame(process, place[0], place[1], place[2]);
                }
            }
        }
        self.locations.push(process.location(&frames));
        Some(())
    }

    fn stack(&mut self, process: &mut Process, ip: u64, parent: u64) -> Option<()> {
        let parent = self.node(parent)?;
        let location = if self.locations.is_empty() {
            let (path, offset) = self.place(ip);
            let module = process.module(&path, Base::LinkTime, ip, offset);
            let frame = process.frame(&FrameText { pc: ip, module, offset, ..FrameText::default() });
            process.location(&[frame])
        } else {
            *self.locations.get(usize::try_from(ip).ok()?.checked_sub(1)?)?
        };
        self.nodes.push(process.node(location, parent));
        Some(())
    }

    /// The node of a stack by its number; 0 is the empty one.
    fn node(&self, stack: u64) -> Option<u32> {
        match usize::try_from(stack).ok()?.checked_sub(1) {
            None => Some(0),
            Some(at) => self.nodes.get(at).copied(),
        }
    }

    /// `m LENGTH PATH ADDRESS [START SIZE]...`, `m 1 x ADDRESS ...` for the executable, `m 1 -` to begin anew.
    fn module(&mut self, rest: &str) -> Option<()> {
        let text = if self.version < 3 { rest } else { rest.split_once(' ')?.1 };
        if text == "-" {
            self.modules.clear();
            return Some(());
        }
        let length = if self.version < 3 { text.find(' ')? } else { hex(rest.split(' ').next()?)? as usize };
        let path = text.get(..length)?;
        let path = if path == "x" { self.executable.clone() } else { path.to_owned() };
        let mut numbers = text.get(length..)?.trim_start().split(' ').map(hex);
        let base = numbers.next()??;
        while let (Some(Some(start)), Some(Some(size))) = (numbers.next(), numbers.next()) {
            let start = base.wrapping_add(start);
            if self.modules.len() < 1 << 20 {
                self.modules.push((start, start.saturating_add(size), base, path.clone()));
            }
        }
        Some(())
    }

    /// Module and link-time address of an address: the base is the run-time address less that.
    fn place(&self, pc: u64) -> (String, Option<u64>) {
        let found = self.modules.iter().find(|(start, end, ..)| (*start..*end).contains(&pc));
        found.map_or((String::new(), None), |(_, _, base, path)| (path.clone(), Some(pc.wrapping_sub(*base))))
    }

    fn allocated(&mut self, process: &mut Process, bytes: u64, site: u32) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.blocks += 1;
        self.last_allocation = Some(site);
        let totals = process.totals(site);
        totals.allocated_blocks += 1;
        totals.allocated_bytes = totals.allocated_bytes.saturating_add(bytes);
        totals.live_blocks += 1;
        totals.live_bytes = totals.live_bytes.saturating_add(bytes);
        totals.peak_blocks = totals.peak_blocks.max(totals.live_blocks);
        totals.peak_bytes = totals.peak_bytes.max(totals.live_bytes);
        totals.largest_bytes = totals.largest_bytes.max(bytes);
    }

    fn released(&mut self, process: &mut Process, bytes: u64, site: u32) {
        self.bytes = self.bytes.saturating_sub(bytes);
        self.blocks = self.blocks.saturating_sub(1);
        let is_temporary = self.last_allocation.take() == Some(site);
        let totals = process.totals(site);
        totals.freed_blocks += 1;
        totals.freed_bytes = totals.freed_bytes.saturating_add(bytes);
        totals.live_blocks = totals.live_blocks.saturating_sub(1);
        totals.live_bytes = totals.live_bytes.saturating_sub(bytes);
        totals.temporary_blocks += u64::from(is_temporary);
    }
}
