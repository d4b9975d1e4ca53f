//! A self-contained recording: what the ledgers of one run held, and names for the addresses in them.
//!
//! It can be reported on a machine that has neither the binaries nor their debug information. Names are kept
//! once per recording process and referred to by number; addresses are symbolised once per (module, address).

mod build;
mod codes;
mod engine;
mod foreign;
mod intervals;
mod strings;

use std::sync::Arc;

use leakscope_model::{AllocFn, CheckTrigger, Heuristic, LeakKind, MisuseKind};
use serde::{Deserialize, Serialize};

pub use build::{BuildOptions, Names, Resolve, ResolvedFrame, build};
pub use engine::Collector;
pub use foreign::{Access, AuxiliaryStack, MemoryError, Witness};
pub use intervals::{EventLog, Interval, IntervalEnd, IntervalSite};
pub use strings::Strings;

/// The ledgers of one run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Recording {
    /// Version of the tool that recorded, such as `0.1.0`.
    pub tool_version: String,
    /// The machine.
    pub host: Host,
    /// The processes, in the order in which they started.
    pub processes: Vec<ProcessRecording>,
}

impl Recording {
    /// Adds the processes of another recording, which keeps this one's tool version and host.
    pub fn merge(&mut self, other: Recording) {
        self.processes.extend(other.processes);
        self.processes.sort_by_key(|process| process.process.start_realtime_ns);
    }
}

/// The machine on which a recording was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// The kernel, as `uname -sr` prints it.
    pub kernel: String,
    /// The architecture, such as `x86_64`.
    pub architecture: String,
}

/// One process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProcessRecording {
    /// Who was recorded.
    pub process: ProcessFacts,
    /// How it ended, as far as the observer knows.
    pub end: End,
    /// What could not be recorded.
    pub lost: Lost,
    /// What of the ledger could not be read, one sentence each.
    pub problems: Vec<String>,
    /// Modules by number.
    pub modules: Vec<Module>,
    /// Number of the module that holds our hooks.
    pub hook_module: Option<u32>,
    /// Names by number; 0 is the empty string and stands for "unknown".
    pub strings: Vec<Arc<str>>,
    /// Symbolised frames; [`Location`] refers to runs of them.
    pub frames: Vec<FrameRecord>,
    /// Unique addresses.
    pub locations: Vec<Location>,
    /// The stack tree; node 0 is the root.
    pub nodes: Vec<Node>,
    /// Allocation sites; site 0 is "not recorded".
    pub sites: Vec<Site>,
    /// Threads; thread 0 is "not recorded".
    pub threads: Vec<Thread>,
    /// Wrong calls to the allocator.
    pub misuses: Vec<Misuse>,
    /// Leak checks, oldest first.
    pub checks: Vec<Check>,
    /// The heap over time, oldest first.
    pub series: Vec<Sample>,
    /// Which tool saw all this.
    #[serde(default)]
    pub witness: Witness,
    /// Memory errors that another tool found.
    #[serde(default)]
    pub memory_errors: Vec<MemoryError>,
    /// What happened between calls of `mtrace()` and `muntrace()`, oldest first.
    #[serde(default)]
    pub intervals: Vec<Interval>,
    /// The log of events that was written.
    #[serde(default)]
    pub event_log: EventLog,
    /// Where the program has its own allocation functions, for which an engine stood in.
    #[serde(default)]
    pub functions: Vec<FunctionPlace>,
    /// What is known of addresses of wrong calls that are in no block.
    #[serde(default)]
    pub misuse_notes: Vec<MisuseNote>,
    /// What else is known of the blocks of a site, sorted by site.
    #[serde(default)]
    pub site_notes: Vec<SiteNote>,
}

/// A sentence on the blocks of a site, such as who allocated them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteNote {
    /// The site.
    pub site: u32,
    /// The leak kind that it is about, as a number; `None` for all.
    pub kind: Option<u8>,
    /// The sentence, one line, without a point.
    pub text: String,
}

/// What is known of the address of a wrong call that is in no block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MisuseNote {
    /// Number of the wrong call.
    pub misuse: u32,
    /// In Memcheck's words.
    pub about: Vec<AuxiliaryStack>,
}

/// Where the program has an allocation function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionPlace {
    /// Which.
    #[serde(with = "codes::alloc_fn")]
    pub function: AllocFn,
    /// Address at run time.
    pub address: u64,
    /// Number of the module.
    pub module: Option<u32>,
}

/// Facts about a process. Paths and arguments are shown, not opened: bytes that are not UTF-8 are replaced.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessFacts {
    /// Process id as the target saw it.
    pub pid: u32,
    /// Its parent at start.
    pub parent_pid: u32,
    /// How it came to be recorded.
    pub origin: Origin,
    /// How far it came.
    pub state: State,
    /// Path of the executable.
    pub executable: String,
    /// The arguments, program name first.
    pub command_line: Vec<String>,
    /// Why recording could not start; empty otherwise.
    pub failure: String,
    /// CLOCK_REALTIME at start, nanoseconds.
    pub start_realtime_ns: u64,
    /// CLOCK_MONOTONIC at start, nanoseconds.
    pub start_monotonic_ns: u64,
    /// CLOCK_MONOTONIC at the last leak check or the end, nanoseconds; 0 when unknown.
    pub end_monotonic_ns: u64,
    /// Cycles of the time-stamp counter between these two moments, 0 when unknown.
    pub cycles: u64,
    /// Bits of `leakscope_ledger::layout::flags`.
    pub flags: u64,
    /// Mean bytes between sampled allocations; 0 when every allocation was recorded.
    pub sample_bytes: u64,
    /// Most frames that were kept of a stack.
    pub max_frames: u32,
}

/// How a process came to be recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// `leakscope run` started it.
    #[default]
    Start,
    /// A traced process forked it.
    Fork,
    /// A traced process replaced itself by `exec`, or spawned it.
    Exec,
}

/// How far a process came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// It never wrote to its ledger.
    #[default]
    New,
    /// It ran when the ledger was read, or was killed while it did.
    Running,
    /// Its leak check at the end ran, or it was killed meanwhile.
    Ending,
    /// It came to its end in order.
    Ended,
    /// Recording could not start.
    Failed,
}

/// How a process ended, as its parent or the observer saw it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// Nobody saw it.
    #[default]
    Unknown,
    /// It still ran when the ledger was read.
    Running,
    /// It exited with this status.
    Exited(i32),
    /// This signal ended it.
    Signalled(i32),
    /// It replaced itself by `exec`.
    Exec,
}

/// Counts of what could not be recorded; see `leakscope_ledger::layout::Lost`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// Allocations whose site did not fit.
    pub sites: u64,
    /// Stacks cut because the room for frames was full.
    pub nodes: u64,
    /// Counter updates that found no room.
    pub counters: u64,
    /// Blocks that the leak check did not see.
    pub blocks: u64,
    /// Stacks cut because they were too deep.
    pub deep_stacks: u64,
    /// Stacks that ended at code without unwind information.
    pub broken_stacks: u64,
    /// Modules or strings that did not fit.
    pub modules: u64,
    /// Wrong calls that did not fit.
    pub misuses: u64,
    /// Events of threads without a record.
    pub threads: u64,
    /// Intervals between `mtrace()` and `muntrace()`, or sites of them, that did not fit. Files keep it with the intervals.
    #[serde(skip)]
    pub intervals: u64,
}

impl Lost {
    /// What was lost and how often, as words for a report; only counts above zero.
    pub fn words(&self) -> Vec<(u64, &'static str)> {
        [
            (
                self.sites,
                "allocation has no site: there was no room for more sites",
                "allocations have no site: there was no room for more sites",
            ),
            (
                self.nodes,
                "stack is cut: there was no room for more frames",
                "stacks are cut: there was no room for more frames",
            ),
            (
                self.counters,
                "counter update is lost: there was no room for more counters",
                "counter updates are lost: there was no room for more counters",
            ),
            (
                self.blocks,
                "block is missing from the leak check: the block table was full",
                "blocks are missing from the leak check: the block table was full",
            ),
            (
                self.deep_stacks,
                "stack is cut: it was deeper than the limit",
                "stacks are cut: they were deeper than the limit",
            ),
            (
                self.broken_stacks,
                "stack is cut: it reached code without unwind information",
                "stacks are cut: they reached code without unwind information",
            ),
            (
                self.modules,
                "module is missing: there was no room for more",
                "modules are missing: there was no room for more",
            ),
            (
                self.misuses,
                "wrong call is missing: there was no room for more",
                "wrong calls are missing: there was no room for more",
            ),
            (
                self.threads,
                "event of a thread is missing: there was no room for more threads",
                "events of threads are missing: there was no room for more threads",
            ),
            (
                self.intervals,
                "interval between mtrace() and muntrace() is missing or incomplete: there was no room",
                "intervals between mtrace() and muntrace() are missing or incomplete: there was no room",
            ),
        ]
        .into_iter()
        .filter(|&(count, ..)| count > 0)
        .map(|(count, one, many)| (count, if count == 1 { one } else { many }))
        .collect()
    }
}

/// A mapped object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Module {
    /// Lowest mapped address.
    pub start: u64,
    /// One past the highest mapped address.
    pub end: u64,
    /// Run-time address less link-time address, wrapping.
    pub load_bias: u64,
    /// Path as the target saw it; empty for the vDSO.
    pub path: Arc<str>,
    /// GNU build id; empty when it has none.
    pub build_id: Vec<u8>,
    /// Whether it was unloaded before the end.
    pub unloaded: bool,
}

/// A symbolised frame. The strings are numbers into [`ProcessRecording::strings`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FrameRecord {
    /// Name for people (demangled).
    pub function: u32,
    /// Name for the linker (mangled); 0 when it is the same or unknown.
    pub linkage_name: u32,
    /// Name of the source file.
    pub file: u32,
    /// Its directory.
    pub directory: u32,
    /// Line, 0 when unknown.
    pub line: u32,
    /// Column, 0 when unknown.
    pub column: u32,
    /// Whether the function was inlined into that of the next frame.
    pub inlined: bool,
}

/// A unique address in a module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Location {
    /// The address that was looked up: the last byte of the call instruction.
    pub pc: u64,
    /// Module number plus one; 0 when the address is in no module.
    pub module: u32,
    /// Number of the first frame, innermost inlined function first.
    pub first_frame: u32,
    /// Number of frames; 0 when nothing is known but the address.
    pub frames: u32,
}

/// A frame of the stack tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Number of its location.
    pub location: u32,
    /// The caller's node, less than this node's own number; 0 at the outermost frame.
    pub parent: u32,
}

/// An allocation site and what happened there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Site {
    /// The innermost frame: the caller of `function`. 0 when no stack was taken.
    pub leaf: u32,
    /// The function that allocated or released.
    #[serde(with = "codes::alloc_fn")]
    pub function: AllocFn,
    /// Bits of `leakscope_ledger::layout::site_flags`.
    pub flags: u32,
    /// What all threads did.
    pub totals: Totals,
}

impl Default for Site {
    fn default() -> Self {
        Self { leaf: 0, function: AllocFn::Malloc, flags: 0, totals: Totals::default() }
    }
}

/// What all threads together did with the blocks of a site.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Blocks allocated.
    pub allocated_blocks: u64,
    /// Bytes requested in them.
    pub allocated_bytes: u64,
    /// Blocks released.
    pub freed_blocks: u64,
    /// Bytes in them.
    pub freed_bytes: u64,
    /// Blocks live at the end.
    pub live_blocks: u64,
    /// Bytes in them.
    pub live_bytes: u64,
    /// Upper bound of the live bytes at any time.
    pub peak_bytes: u64,
    /// Upper bound of the live blocks at any time.
    pub peak_blocks: u64,
    /// Blocks that were freed with no other allocation of the thread in between.
    pub temporary_blocks: u64,
    /// Largest request in bytes.
    pub largest_bytes: u64,
    /// Sampled blocks by lifetime, from 2^8 cycles on in steps of four; empty when none was measured.
    pub lifetimes: Vec<u32>,
}

/// A thread that allocated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thread {
    /// Kernel thread id.
    pub tid: u32,
    /// Whether it had ended.
    pub ended: bool,
    /// Bytes allocated less bytes freed by this thread alone.
    pub live_bytes: i64,
    /// Highest value of `live_bytes`.
    pub peak_bytes: u64,
}

/// A wrong call to the allocator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Misuse {
    /// What was wrong.
    #[serde(with = "codes::misuse_kind")]
    pub kind: MisuseKind,
    /// Site of the call.
    pub site: u32,
    /// Site of the allocation of the block concerned, 0 when unknown.
    pub allocation_site: u32,
    /// Site of the first free of the block concerned, 0 when unknown.
    pub free_site: u32,
    /// The address that was passed.
    pub address: u64,
    /// Start of the block concerned, 0 when unknown.
    pub block_start: u64,
    /// Requested bytes of that block; for `FishySize` the size that was asked for.
    pub block_bytes: u64,
    /// How often it happened.
    pub count: u32,
    /// Number of the first thread that did it.
    pub thread: u32,
    /// For `Overrun`: bytes past the end at which the first changed byte lies.
    pub overrun_offset: u64,
}

/// What became of a leak check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CheckState {
    /// It had not ended.
    Running,
    /// It ended.
    Complete,
    /// It was given up.
    Failed,
}

/// One leak check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Its number, from 0.
    pub number: u32,
    /// What became of it.
    pub state: CheckState,
    /// What started it.
    #[serde(with = "codes::check_trigger")]
    pub trigger: CheckTrigger,
    /// CLOCK_MONOTONIC, nanoseconds.
    pub monotonic_ns: u64,
    /// Blocks that were live.
    pub blocks: u64,
    /// Requested bytes in them.
    pub bytes: u64,
    /// Bytes of roots that were read.
    pub root_bytes: u64,
    /// Bytes that could not be read.
    pub unreadable_bytes: u64,
    /// Threads whose registers and stack were seen.
    pub threads_seen: u32,
    /// Threads whose registers are unknown.
    pub threads_unseen: u32,
    /// Nanoseconds for which the target stood still.
    pub pause_ns: u64,
    /// Nanoseconds that the check took in all.
    pub check_ns: u64,
    /// Records that did not fit.
    pub lost_records: u64,
    /// Signal for `FatalSignal`, exit status for `Exit` and `QuickExit`.
    pub status: u32,
    /// Whether libc and libstdc++ released their own blocks first.
    pub freeres: bool,
    /// Why it was given up; empty otherwise.
    pub failure: String,
    /// What it found; `None` when it is not complete, or its records are gone.
    pub records: Option<Vec<CheckRecord>>,
}

/// Blocks of one check with the same site, kind and heuristic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckRecord {
    /// The allocation site.
    pub site: u32,
    /// How they can still be reached.
    #[serde(with = "codes::leak_kind")]
    pub kind: LeakKind,
    /// The heuristic by which they were reached.
    #[serde(with = "codes::heuristic")]
    pub heuristic: Option<Heuristic>,
    /// Blocks.
    pub blocks: u64,
    /// Requested bytes in them.
    pub bytes: u64,
    /// Blocks that are lost only because these are.
    pub indirect_blocks: u64,
    /// Requested bytes in those.
    pub indirect_bytes: u64,
    /// Start addresses of up to three of the blocks; 0 when unused.
    pub addresses: [u64; 3],
}

/// The heap at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// CLOCK_MONOTONIC, nanoseconds.
    pub monotonic_ns: u64,
    /// Live requested bytes.
    pub live_bytes: u64,
    /// Live blocks.
    pub live_blocks: u64,
    /// Resident set of the target in bytes, 0 when unknown.
    pub resident_bytes: u64,
}

impl ProcessRecording {
    /// The name with this number; empty when unknown.
    pub fn string(&self, number: u32) -> Arc<str> {
        self.strings.get(number as usize).cloned().unwrap_or_default()
    }

    /// Module of a location.
    pub fn module_of(&self, location: &Location) -> Option<&Module> {
        self.modules.get(location.module.checked_sub(1)? as usize)
    }

    /// Symbolised frames of a location, innermost first.
    pub fn frames_of(&self, location: &Location) -> &[FrameRecord] {
        let first = location.first_frame as usize;
        self.frames.get(first..first.saturating_add(location.frames as usize)).unwrap_or(&[])
    }

    /// Numbers of the locations of a site's stack, innermost first.
    pub fn stack(&self, site: u32) -> impl Iterator<Item = u32> {
        self.stack_nodes(site).map(|node| self.nodes[node as usize].location)
    }

    /// Numbers of the nodes of a site's stack, innermost first; each is there.
    pub(crate) fn stack_nodes(&self, site: u32) -> impl Iterator<Item = u32> {
        self.nodes_from(self.sites.get(site as usize).map_or(0, |site| site.leaf))
    }

    /// Numbers of the nodes from `leaf` outwards; each is there.
    pub(crate) fn nodes_from(&self, leaf: u32) -> impl Iterator<Item = u32> {
        let mut next = leaf;
        std::iter::from_fn(move || {
            let number = next;
            let node = self.nodes.get(number as usize).filter(|_| number != 0)?;
            // A decoded recording is as hostile as a ledger: only a smaller number is a caller.
            next = if node.parent < number { node.parent } else { 0 };
            Some(number)
        })
    }

    /// The last leak check that came to its end and whose records are there.
    pub fn last_complete_check(&self) -> Option<&Check> {
        self.checks.iter().rev().find(|check| check.records.is_some())
    }
}
