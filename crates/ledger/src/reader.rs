//! What an observer makes of a ledger: an owned, checked copy.
//!
//! The bytes are hostile. The target may be running (they change under us), may have been killed at any
//! instruction, or may have scribbled over the mapping. So every index, count, offset, string reference,
//! enum number and parent link is checked, nothing is allocated for a number that the file merely claims
//! (room is bounded by the file's real size and by the capacities of [`layout`]), and what
//! cannot be read becomes a line in [`Snapshot::problems`] while everything else is kept.
//!
//! Areas are read in reverse order of reference: checks, misuses and counters before sites, sites before nodes,
//! nodes before modules, modules before strings. The writer publishes in the other order, so whatever a record
//! refers to is already published when its own area is read.
//!
//! Runs in our own process only; allocates; does no I/O but through [`ReadAt`].

mod checks;
mod intervals;
mod read;
mod source;
#[cfg(test)]
mod tests;

use leakscope_model::{
    AllocFn, CheckTrigger, Heuristic, HeuristicSet, LeakKind, MisuseKind, ModuleId, NodeId, SiteId, Svma, ThreadId,
};
use std::string::String;
use std::vec::Vec;

#[cfg(doc)]
use crate::layout;
use crate::layout::LIFETIME_BUCKETS;

pub use intervals::{EventLog, Interval, IntervalEnd, IntervalSite};
pub use source::{LedgerError, ReadAt, ReadError};

/// Everything that a ledger held at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Who was recorded.
    pub process: Process,
    /// What the writer could not record.
    pub lost: Lost,
    /// Modules by [`ModuleId`].
    pub modules: Vec<Module>,
    /// The stack tree by [`NodeId`]; node 0 is the root and has no meaning of its own.
    pub nodes: Vec<Node>,
    /// Allocation sites by [`SiteId`]; site 0 is "not recorded".
    pub sites: Vec<Site>,
    /// What all threads together did at each site; as long as `sites`.
    pub totals: Vec<SiteTotals>,
    /// Threads by [`ThreadId`]; thread 0 is "not recorded".
    pub threads: Vec<Thread>,
    /// Wrong calls to the allocator.
    pub misuses: Vec<Misuse>,
    /// Leak checks, oldest first.
    pub checks: Vec<Check>,
    /// The heap over time, oldest first.
    pub series: Vec<Sample>,
    /// What happened between calls of `mtrace()` and `muntrace()`, oldest first.
    pub intervals: Vec<Interval>,
    /// The log that the target wrote.
    pub event_log: EventLog,
    /// What could not be read, one sentence each; empty for a healthy ledger.
    pub problems: Vec<String>,
}

/// Facts about the recorded process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Process id as the target saw it.
    pub pid: u32,
    /// Its parent at start.
    pub parent_pid: u32,
    /// How it came to have a ledger.
    pub origin: Origin,
    /// How far it came.
    pub state: State,
    /// Path of the executable, in the bytes of the file system.
    pub executable: Vec<u8>,
    /// The arguments, program name first.
    pub command_line: Vec<Vec<u8>>,
    /// Why recording could not start; empty otherwise.
    pub failure: Vec<u8>,
    /// CLOCK_REALTIME at start, nanoseconds.
    pub start_realtime_ns: u64,
    /// CLOCK_MONOTONIC at start, nanoseconds.
    pub start_monotonic_ns: u64,
    /// CLOCK_MONOTONIC at the last leak check or the end, nanoseconds; 0 when there was none.
    pub end_monotonic_ns: u64,
    /// Time-stamp counter at start.
    pub start_tsc: u64,
    /// Time-stamp counter at `end_monotonic_ns`.
    pub end_tsc: u64,
    /// Number of changes of the module list.
    pub epoch: u32,
    /// The observer's wishes.
    pub config: Config,
}

impl Default for Process {
    fn default() -> Self {
        Self {
            pid: 0,
            parent_pid: 0,
            origin: Origin::Start,
            state: State::New,
            executable: Vec::new(),
            command_line: Vec::new(),
            failure: Vec::new(),
            start_realtime_ns: 0,
            start_monotonic_ns: 0,
            end_monotonic_ns: 0,
            start_tsc: 0,
            end_tsc: 0,
            epoch: 0,
            config: Config::default(),
        }
    }
}

/// What was asked of the injected code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Bits of [`layout::flags`].
    pub flags: u64,
    /// Mean bytes between sampled allocations; 0 when every allocation was recorded.
    pub sample_bytes: u64,
    /// Most frames that were kept of a stack.
    pub max_frames: u32,
    /// Heuristics of the leak check.
    pub heuristics: HeuristicSet,
}

impl Default for Config {
    fn default() -> Self {
        Self { flags: 0, sample_bytes: 0, max_frames: 0, heuristics: HeuristicSet::NONE }
    }
}

/// How a process came to have a ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// `leakscope run` started it.
    Start,
    /// A traced process forked it.
    Fork,
    /// A traced process replaced itself by `exec`, or spawned it.
    Exec,
}

/// How far a process came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nobody has written to the ledger.
    New,
    /// It runs, or was killed while it did.
    Running,
    /// Its leak check at the end runs, or it was killed meanwhile.
    Ending,
    /// It came to its end in order.
    Ended,
    /// Recording could not start.
    Failed,
}

/// Counts of what the writer could not record; see [`layout::Lost`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Allocations whose site did not fit.
    pub sites: u64,
    /// Stacks cut because the node area was full.
    pub nodes: u64,
    /// Counter updates that found no chunk.
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
    /// Intervals, or sites of them, that did not fit.
    pub intervals: u64,
}

/// A mapped object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Module {
    /// Lowest mapped address.
    pub start: u64,
    /// One past the highest mapped address.
    pub end: u64,
    /// Run-time address less link-time address, wrapping.
    pub load_bias: u64,
    /// Path as the target saw it, in the bytes of the file system; empty for the vDSO.
    pub path: Vec<u8>,
    /// GNU build id; empty when it has none.
    pub build_id: Vec<u8>,
    /// Epoch at which it was seen first.
    pub loaded_epoch: u32,
    /// Epoch from which it was gone; `u32::MAX` while it is mapped.
    pub unloaded_epoch: u32,
}

impl Module {
    /// The link-time address of a run-time address in this module.
    pub fn svma(&self, avma: u64) -> Svma {
        Svma(avma.wrapping_sub(self.load_bias))
    }

    /// Whether the module was mapped around `avma` at `epoch`.
    pub fn covers(&self, avma: u64, epoch: u32) -> bool {
        self.start <= avma && avma < self.end && self.loaded_epoch <= epoch && epoch < self.unloaded_epoch
    }
}

/// One frame of the stack tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Return address.
    pub pc: u64,
    /// The caller's node, always less than this node's own number; 0 at the outermost frame.
    pub parent: NodeId,
    /// Module epoch at which the node was made.
    pub epoch: u32,
}

impl Node {
    /// The address to look up: the call instruction's last byte, not the instruction after it.
    pub fn lookup_pc(&self) -> u64 {
        self.pc.wrapping_sub(1)
    }
}

/// An allocation site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    /// Innermost frame: the caller of `function`. 0 when no stack was taken.
    pub leaf: NodeId,
    /// Number of frames that the writer counted.
    pub frames: u32,
    /// The function that allocated (or, for the stack of a free, released).
    pub function: AllocFn,
    /// Bits of [`layout::site_flags`].
    pub flags: u32,
}

impl Default for Site {
    fn default() -> Self {
        Self { leaf: NodeId(0), frames: 0, function: AllocFn::Malloc, flags: 0 }
    }
}

/// What all threads did with the blocks of one site; sums are modulo 2^64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SiteTotals {
    /// Blocks allocated.
    pub allocated_blocks: u64,
    /// Bytes requested in them.
    pub allocated_bytes: u64,
    /// Blocks released.
    pub freed_blocks: u64,
    /// Bytes in them.
    pub freed_bytes: u64,
    /// Upper bound of the live bytes at any time.
    pub peak_bytes: u64,
    /// Upper bound of the live blocks at any time.
    pub peak_blocks: u64,
    /// Blocks that were freed with no other allocation of the thread in between.
    pub temporary_blocks: u64,
    /// Largest request in bytes.
    pub largest_bytes: u64,
    /// Sampled blocks by lifetime; see [`layout::SiteCounters::lifetimes`].
    pub lifetimes: [u32; LIFETIME_BUCKETS],
}

impl SiteTotals {
    /// Blocks that are live; 0 where a torn read would make the difference negative.
    pub fn live_blocks(&self) -> u64 {
        difference(self.allocated_blocks, self.freed_blocks)
    }

    /// Requested bytes that are live, likewise.
    pub fn live_bytes(&self) -> u64 {
        difference(self.allocated_bytes, self.freed_bytes)
    }
}

fn difference(allocated: u64, freed: u64) -> u64 {
    u64::try_from(allocated.wrapping_sub(freed) as i64).unwrap_or(0)
}

/// A thread that allocated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Thread {
    /// Kernel thread id; of the last thread that used the record.
    pub tid: u32,
    /// Whether it had ended.
    pub ended: bool,
    /// Bytes allocated less bytes freed by this thread alone; negative for a consumer.
    pub live_bytes: i64,
    /// Highest value of `live_bytes`.
    pub peak_bytes: u64,
}

/// A wrong call to the allocator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Misuse {
    /// What was wrong.
    pub kind: MisuseKind,
    /// Site of the call.
    pub site: SiteId,
    /// Site of the allocation of the block concerned, 0 when unknown.
    pub allocation_site: SiteId,
    /// Site of the first free of the block concerned, 0 when unknown.
    pub free_site: SiteId,
    /// The address that was passed.
    pub address: u64,
    /// Start of the block concerned, 0 when unknown.
    pub block_start: u64,
    /// Requested bytes of that block; for `FishySize` the size that was asked for.
    pub block_bytes: u64,
    /// How often it happened.
    pub count: u32,
    /// The first thread that did it.
    pub thread: ThreadId,
    /// For `Overrun`: bytes past the end at which the first changed byte lies.
    pub overrun_offset: u64,
}

/// What became of a leak check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckState {
    /// It had not ended: its blocks are not classified.
    Running,
    /// It ended; `records` are what it found.
    Complete,
    /// It was given up.
    Failed,
}

/// One leak check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Its number; the ledger keeps the last [`layout::CHECKS`].
    pub number: u32,
    /// What became of it.
    pub state: CheckState,
    /// What started it.
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
    pub failure: Vec<u8>,
    /// What it found; `None` when it is not complete, or a later check has used the room again.
    pub records: Option<Vec<CheckRecord>>,
}

/// Blocks of one check with the same site, kind and heuristic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckRecord {
    /// The allocation site.
    pub site: SiteId,
    /// How they can still be reached.
    pub kind: LeakKind,
    /// The heuristic by which they were reached.
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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

impl Snapshot {
    /// Reads and checks a ledger of `file_bytes` real bytes.
    ///
    /// # Errors
    /// When it is no ledger at all, or of a version that this build does not read. Damage further in is told
    /// in [`Snapshot::problems`] instead.
    pub fn read(source: &(impl ReadAt + ?Sized), file_bytes: u64) -> Result<Self, LedgerError> {
        read::snapshot(source, file_bytes)
    }

    /// The last leak check that came to its end and whose records are still there.
    pub fn last_complete_check(&self) -> Option<&Check> {
        self.checks.iter().rev().find(|check| check.records.is_some())
    }

    /// The frames of a site's stack, innermost first; empty for an unknown site.
    pub fn stack(&self, site: SiteId) -> impl Iterator<Item = (NodeId, &Node)> {
        let leaf = self.sites.get(site.0 as usize).map_or(NodeId(0), |site| site.leaf);
        let mut next = leaf;
        core::iter::from_fn(move || {
            let id = next;
            let node = self.nodes.get(id.0 as usize).filter(|_| id.0 != 0)?;
            // Each parent is less than its child (checked on reading), so this ends.
            next = node.parent;
            Some((id, node))
        })
    }

    /// The modules in an order that makes [`ModuleIndex::find`] fast.
    pub fn module_index(&self) -> ModuleIndex {
        ModuleIndex::new(&self.modules)
    }
}

/// Modules sorted by address, for many look-ups.
#[derive(Clone, Debug)]
pub struct ModuleIndex {
    /// (start, number), sorted.
    starts: Vec<(u64, u32)>,
    /// The greatest end of `starts[..=i]`: where a search backwards may stop.
    greatest_end: Vec<u64>,
}

impl ModuleIndex {
    fn new(modules: &[Module]) -> Self {
        let mut starts: Vec<(u64, u32)> =
            modules.iter().enumerate().map(|(number, module)| (module.start, number as u32)).collect();
        starts.sort_unstable();
        let mut greatest = 0;
        let greatest_end = starts
            .iter()
            .map(|&(_, number)| {
                greatest = modules[number as usize].end.max(greatest);
                greatest
            })
            .collect();
        Self { starts, greatest_end }
    }

    /// The module around `avma` at `epoch`; of several the one that was loaded last.
    /// `modules` must be the slice that the index was made of.
    pub fn find(&self, modules: &[Module], avma: u64, epoch: u32) -> Option<ModuleId> {
        let mut at = self.starts.partition_point(|&(start, _)| start <= avma);
        let mut best: Option<(u32, u32)> = None;
        while at > 0 && self.greatest_end[at - 1] > avma {
            at -= 1;
            let number = self.starts[at].1;
            let module = modules.get(number as usize)?;
            if module.covers(avma, epoch) && best.is_none_or(|(loaded, _)| loaded <= module.loaded_epoch) {
                best = Some((module.loaded_epoch, number));
            }
        }
        best.map(|(_, number)| ModuleId(number))
    }
}
