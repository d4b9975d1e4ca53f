//! The bytes of a ledger, version 2. Native endianness (x86-64: little), every field naturally aligned.
//!
//! ```text
//! 0          4096        strings   modules   nodes   sites   chunk descriptors   counters   threads
//! +----------+-----------+---------+---------+-------+-------+-------------------+----------+---------
//! | Header   | areas, each at Header.areas[i].offset, page-aligned, `capacity` records of `stride` bytes
//! +----------+-----------+--------------------------------------------------------------------------
//!  ... misuses | checks | check records | series | intervals | interval sites |
//! ```
//!
//! An area is append-only. Modules, nodes, sites, chunks and threads are claimed by raising `used` and filled after that,
//! so a reader can meet a record that is still zero; misuses, intervals and
//! interval sites are filled first and then published by `used` or by their state. The `used`
//! of checks counts all checks so far, over a ring of [`CHECKS`]. No other `used` passes its capacity: what does not fit
//! is counted in [`Lost`]. Record 0 of nodes and threads and string offset 0 (the empty string) are reserved ("none"), and
//! the first [`COUNTERS_PER_CHUNK`] sites are those without a stack, 0 among them for "not recorded".
//!
//! The file is made once with its final, sparse size: growing it under running threads gave SIGBUS.

use core::sync::atomic::{AtomicU32, AtomicU64};

/// First bytes of every ledger.
pub const MAGIC: [u8; 8] = *b"LKSCLEDG";
/// The version that this build writes.
pub const VERSION: u32 = 2;
/// Bytes in front of the first area.
pub const HEADER_BYTES: usize = 4096;

/// The areas, in file order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum AreaId {
    /// Bytes of paths and names; referenced by (offset, length).
    Strings = 0,
    /// [`ModuleRecord`].
    Modules = 1,
    /// [`NodeRecord`], the stack tree.
    Nodes = 2,
    /// [`SiteRecord`].
    Sites = 3,
    /// [`ChunkRecord`]: which sites and thread a counter chunk belongs to.
    Chunks = 4,
    /// [`SiteCounters`] in chunks of [`COUNTERS_PER_CHUNK`]; chunk i starts at record i * that.
    Counters = 5,
    /// [`ThreadRecord`].
    Threads = 6,
    /// [`MisuseRecord`].
    Misuses = 7,
    /// [`CheckHeader`].
    Checks = 8,
    /// [`CheckRecord`]; two halves that successive checks use in turn.
    CheckRecords = 9,
    /// [`SeriesSample`]; written by the observer, not by the target.
    Series = 10,
    /// [`IntervalRecord`]: what happened between `mtrace()` and `muntrace()`.
    Intervals = 11,
    /// [`IntervalSiteRecord`]; those of one interval lie side by side.
    IntervalSites = 12,
}

/// Number of areas.
pub const AREAS: usize = 13;

/// Where an area lies. Written once, before the target starts.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Area {
    /// Bytes from the start of the file; a multiple of 4096.
    pub offset: u64,
    /// Bytes of one record.
    pub stride: u32,
    /// Number of records there is room for.
    pub capacity: u32,
}

/// What the observer asks of the injected code; bits of [`Config::flags`].
pub mod flags {
    /// Follow `exec`: leave LD_PRELOAD and our variable in the environment of children.
    pub const TRACE_CHILDREN: u64 = 1;
    /// Run the leak check when the process ends.
    pub const CHECK_AT_EXIT: u64 = 1 << 1;
    /// Let libc and libstdc++ release what they keep for themselves before the check at exit.
    pub const RUN_FREERES: u64 = 1 << 2;
    /// Fill the slack past a block's end and check it when the block is freed.
    pub const CANARY: u64 = 1 << 3;
    /// Record the stack of every free (for the second stack of a double free).
    pub const FREE_STACKS: u64 = 1 << 4;
    /// Report `realloc` with size zero.
    pub const REALLOC_ZERO_IS_MISUSE: u64 = 1 << 5;
    /// Report new/delete/malloc/free mismatches.
    pub const MISMATCHES: u64 = 1 << 6;
    /// Do not check or record processes that `fork` makes.
    pub const CHILD_SILENT: u64 = 1 << 7;
    /// Take the stacks of threads for roots (off: `--use-stacks=no`).
    pub const STACKS_ARE_ROOTS: u64 = 1 << 8;
    /// Write the addresses of leaked blocks into the check's records, as far as they fit.
    pub const SAMPLE_ADDRESSES: u64 = 1 << 9;
    /// Write a log of all events to [`super::Config::mtrace_log`].
    pub const MTRACE_LOG: u64 = 1 << 10;
}

/// Bytes of the name of an event log, with the zero byte that ends it.
pub const LOG_NAME_BYTES: usize = 1024;

/// Where the injected code writes its event log: an absolute path, ended by a zero byte. `%p` in it is the process id, `%%`
/// a percent sign.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct LogName([u8; LOG_NAME_BYTES]);

impl LogName {
    /// The name; `None` when it is too long or has a zero byte in it.
    pub fn new(name: &[u8]) -> Option<Self> {
        let mut bytes = [0; LOG_NAME_BYTES];
        if name.len() >= LOG_NAME_BYTES || name.contains(&0) {
            return None;
        }
        bytes.get_mut(..name.len())?.copy_from_slice(name);
        Some(Self(bytes))
    }

    /// The bytes in front of the zero byte.
    pub fn get(&self) -> &[u8] {
        self.0.split(|&byte| byte == 0).next().unwrap_or(&[])
    }
}

impl Default for LogName {
    fn default() -> Self {
        Self([0; LOG_NAME_BYTES])
    }
}

impl core::fmt::Debug for LogName {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}", self.get().escape_ascii())
    }
}

/// The observer's wishes. Written once, before the target starts; a forked child's ledger has the same.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Config {
    /// Bits of [`flags`].
    pub flags: u64,
    /// Mean bytes between sampled allocations; 0 records every allocation.
    pub sample_bytes: u64,
    /// Most frames to keep of a stack.
    pub max_frames: u32,
    /// Bits of `HeuristicSet`.
    pub heuristics: u8,
    /// Zero.
    pub reserved: [u8; 3],
    /// For [`flags::MTRACE_LOG`].
    pub mtrace_log: LogName,
}

/// How a process came to have a ledger.
pub mod origin {
    /// `leakscope run` started it.
    pub const START: u32 = 0;
    /// A traced process forked it.
    pub const FORK: u32 = 1;
    /// A traced process replaced itself by `exec`, or spawned it.
    pub const EXEC: u32 = 2;
}

/// Values of [`Header::state`].
pub mod state {
    /// The observer made the ledger; nobody has written to it.
    pub const NEW: u32 = 0;
    /// The injected code records.
    pub const RUNNING: u32 = 1;
    /// The process is at its end and the leak check runs.
    pub const ENDING: u32 = 2;
    /// The injected code has done all that it wanted to do.
    pub const ENDED: u32 = 3;
    /// The injected code could not start; [`super::Header::failure`] is a string reference that says why.
    pub const FAILED: u32 = 4;
}

/// Counts of what could not be recorded. Each is also shown in every report.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Lost {
    /// Allocations whose site did not fit (they are counted at site 0).
    pub sites: AtomicU64,
    /// Stacks cut because the node area was full.
    pub nodes: AtomicU64,
    /// Counter updates that found no chunk.
    pub counters: AtomicU64,
    /// Blocks that the block table could not take; the leak check does not see them.
    pub blocks: AtomicU64,
    /// Stacks cut because they were deeper than `max_frames`.
    pub deep_stacks: AtomicU64,
    /// Stacks that ended at code without unwind information.
    pub broken_stacks: AtomicU64,
    /// Modules or strings that did not fit.
    pub modules: AtomicU64,
    /// Wrong calls that did not fit.
    pub misuses: AtomicU64,
    /// Events of threads that had no thread record.
    pub threads: AtomicU64,
    /// Intervals between `mtrace()` and `muntrace()`, or sites of them, that did not fit.
    pub intervals: AtomicU64,
    /// Zero.
    pub reserved: [AtomicU64; 6],
}

/// Facts about the event log that the target writes (`--mtrace-log`, or `MALLOC_TRACE` and a call of `mtrace()`).
#[derive(Debug)]
#[repr(C)]
pub struct EventLog {
    /// String reference: the file that is written, or was written last; 0 when there was none.
    pub file: AtomicU64,
    /// Lines in it, as of the last flush.
    pub lines: AtomicU64,
    /// Why it ends early: the errno of what failed, 0 when nothing did.
    pub errno: AtomicU32,
    /// Events that are missing in it: too many of signal handlers at once.
    pub lost: AtomicU32,
    /// String reference: what the program's `MALLOC_TRACE` says; 0 when it is not set.
    pub wanted: AtomicU64,
}

/// The first page of the file.
#[derive(Debug)]
#[repr(C)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// [`VERSION`].
    pub version: u32,
    /// [`HEADER_BYTES`].
    pub header_bytes: u32,
    /// Bytes of the whole file.
    pub file_bytes: u64,
    /// Where each area lies, by [`AreaId`].
    pub areas: [Area; AREAS],
    /// The observer's wishes.
    pub config: Config,
    /// Number of published records by area. For [`AreaId::Counters`] in chunks.
    pub used: [AtomicU32; 16],
    /// A value of [`state`].
    pub state: AtomicU32,
    /// A value of [`origin`].
    pub origin: AtomicU32,
    /// Process id, as the target sees it.
    pub pid: AtomicU32,
    /// Its parent at start.
    pub parent_pid: AtomicU32,
    /// CLOCK_REALTIME at start, nanoseconds.
    pub start_realtime_ns: AtomicU64,
    /// CLOCK_MONOTONIC at start, nanoseconds.
    pub start_monotonic_ns: AtomicU64,
    /// Time-stamp counter at start, to turn lifetimes in cycles into time.
    pub start_tsc: AtomicU64,
    /// CLOCK_MONOTONIC at the last leak check or the end, nanoseconds.
    pub end_monotonic_ns: AtomicU64,
    /// Time-stamp counter at the same moment.
    pub end_tsc: AtomicU64,
    /// String reference (see [`string_ref`]): path of the executable.
    pub executable: AtomicU64,
    /// String reference: the arguments, each ended by a zero byte.
    pub command_line: AtomicU64,
    /// String reference: why `state` is FAILED.
    pub failure: AtomicU64,
    /// What could not be recorded.
    pub lost: Lost,
    /// The event log.
    pub event_log: EventLog,
    /// The module list was changed this often (dlopen, dlclose); see [`ModuleRecord`].
    pub epoch: AtomicU32,
    /// Observer: adds one to ask for a leak check of the running target.
    pub snapshot_wanted: AtomicU32,
    /// Target: the last request that it has answered with a complete check.
    pub snapshot_done: AtomicU32,
    /// Target: forked children that have taken their copy of this ledger, or given up.
    pub copies: AtomicU32,
}

const _: () = assert!(core::mem::size_of::<Header>() <= HEADER_BYTES);

/// Packs (offset, length in bytes) of a string into one word: offset in the low 32 bits.
pub const fn string_ref(offset: u32, bytes: u32) -> u64 {
    offset as u64 | (bytes as u64) << 32
}

/// A mapped object. Addresses are valid for stack nodes with `loaded_epoch <= node.epoch < unloaded_epoch`.
#[derive(Debug)]
#[repr(C)]
pub struct ModuleRecord {
    /// Lowest mapped address.
    pub start: AtomicU64,
    /// One past the highest mapped address.
    pub end: AtomicU64,
    /// Run-time address less link-time address.
    pub load_bias: AtomicU64,
    /// String reference: path as the target sees it; empty for the vDSO.
    pub path: AtomicU64,
    /// Epoch at which it was seen first.
    pub loaded_epoch: AtomicU32,
    /// Epoch from which it was gone; `u32::MAX` while it is mapped.
    pub unloaded_epoch: AtomicU32,
    /// Number of valid bytes in `build_id`.
    pub build_id_bytes: AtomicU32,
    /// Zero.
    pub reserved: AtomicU32,
    /// GNU build id, in memory order.
    pub build_id: [AtomicU32; 8],
}

/// One frame of the stack tree: a return address, below it its caller.
#[derive(Debug)]
#[repr(C)]
pub struct NodeRecord {
    /// Return address in the frame (of a signal frame's interrupted code: the address itself plus one).
    pub pc: AtomicU64,
    /// The caller's node; 0 at the outermost frame. Always less than this node's own number.
    pub parent: AtomicU32,
    /// Module epoch at which the node was made.
    pub epoch: AtomicU32,
}

/// Bits of [`SiteRecord::flags`].
pub mod site_flags {
    /// Frames are missing between the kept leaf frames and the outermost frame.
    pub const CUT_DEEP: u32 = 1;
    /// The stack ends at code without unwind information.
    pub const BROKEN: u32 = 2;
    /// The program announced the block itself: no allocation function stands in front of the stack.
    pub const NO_FUNCTION: u32 = 4;
    /// From this bit on: number of the interval (see [`super::IntervalRecord`]) in which the site allocates, plus one; 0
    /// outside of all. Within an interval every stack has a site of its own.
    pub const INTERVAL_SHIFT: u32 = 8;

    /// Number of the interval that these flags name.
    pub const fn interval(flags: u32) -> Option<u32> {
        (flags >> INTERVAL_SHIFT).checked_sub(1)
    }
}

/// An allocation site: a stack and the function that allocated.
#[derive(Debug)]
#[repr(C)]
pub struct SiteRecord {
    /// Innermost frame (the caller of the allocation function); 0 when no stack was taken.
    pub leaf: AtomicU32,
    /// Number of frames.
    pub frames: AtomicU32,
    /// `AllocFn` as a number.
    pub function: AtomicU32,
    /// Bits of [`site_flags`].
    pub flags: AtomicU32,
}

/// Counters in one chunk.
pub const COUNTERS_PER_CHUNK: usize = 32;
/// Buckets of a lifetime histogram.
pub const LIFETIME_BUCKETS: usize = 16;
/// One in this many allocations of a thread has its lifetime measured.
pub const LIFETIME_SAMPLE: u32 = 64;

/// Which sites a chunk of counters is for. Two chunks may hold the same sites for different threads: add them.
#[derive(Debug)]
#[repr(C)]
pub struct ChunkRecord {
    /// Number of the first site; a multiple of [`COUNTERS_PER_CHUNK`].
    pub first_site: AtomicU32,
    /// The thread record whose thread writes it, or 0 when several threads have used it in turn.
    pub thread: AtomicU32,
}

/// What one thread did with the blocks of one site. Only that thread writes; sums over threads are what counts.
/// A block freed by another thread makes one thread's difference negative: only the sum is a number of blocks.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct SiteCounters {
    /// Blocks allocated.
    pub allocated_blocks: AtomicU64,
    /// Bytes requested in them.
    pub allocated_bytes: AtomicU64,
    /// Blocks released.
    pub freed_blocks: AtomicU64,
    /// Bytes in them.
    pub freed_bytes: AtomicU64,
    /// Highest difference of allocated and freed bytes of this thread; summed over threads an upper bound.
    pub peak_bytes: AtomicU64,
    /// Highest difference of blocks, likewise.
    pub peak_blocks: AtomicU64,
    /// Blocks that were freed with no other allocation of the thread in between.
    pub temporary_blocks: AtomicU64,
    /// Largest request in bytes.
    pub largest_bytes: AtomicU64,
    /// Sampled blocks (one in [`LIFETIME_SAMPLE`]) by lifetime: bucket i counts lifetimes of 2^(2i+8) cycles
    /// or more and less than four times that; the first bucket also shorter, the last also longer ones.
    pub lifetimes: [AtomicU32; LIFETIME_BUCKETS],
}

const _: () = assert!(core::mem::size_of::<SiteCounters>() == 128);

/// A thread that allocated. Written at each allocation and release, so it has two cache lines of its own: processors
/// fetch lines in pairs.
#[derive(Debug)]
#[repr(C, align(128))]
pub struct ThreadRecord {
    /// Kernel thread id.
    pub tid: AtomicU32,
    /// 1 while it runs, 2 once it has ended (its record may then be taken over by a new thread).
    pub state: AtomicU32,
    /// Bytes live less bytes freed, by this thread alone; may be negative as two's complement.
    pub live_bytes: AtomicU64,
    /// Highest value of `live_bytes`.
    pub peak_bytes: AtomicU64,
}

const _: () = assert!(core::mem::size_of::<ThreadRecord>() == 128);

/// A wrong call to the allocator; equal ones (kind and stack) are counted, not repeated.
#[derive(Debug)]
#[repr(C)]
pub struct MisuseRecord {
    /// `MisuseKind` as a number.
    pub kind: AtomicU32,
    /// Site of the wrong call: its stack and function.
    pub site: AtomicU32,
    /// Site of the allocation of the block concerned, 0 when unknown.
    pub allocation_site: AtomicU32,
    /// Site of the first free of the block concerned, 0 when unknown.
    pub free_site: AtomicU32,
    /// The address that was passed.
    pub address: AtomicU64,
    /// Start of the block concerned, 0 when unknown.
    pub block_start: AtomicU64,
    /// Requested bytes of the block concerned; for FishySize the size that was asked for.
    pub block_bytes: AtomicU64,
    /// How often it happened.
    pub count: AtomicU32,
    /// Thread record number.
    pub thread: AtomicU32,
    /// For Overrun: how many bytes past the end the first changed byte lies.
    pub overrun_offset: AtomicU64,
}

/// Values of [`CheckHeader::state`].
pub mod check_state {
    /// Running; the records are not complete.
    pub const RUNNING: u32 = 1;
    /// Complete.
    pub const COMPLETE: u32 = 2;
    /// Given up; the reason is in `failure`.
    pub const FAILED: u32 = 3;
}

/// One leak check.
#[derive(Debug)]
#[repr(C)]
pub struct CheckHeader {
    /// A value of [`check_state`].
    pub state: AtomicU32,
    /// `CheckTrigger` as a number.
    pub trigger: AtomicU32,
    /// CLOCK_MONOTONIC, nanoseconds.
    pub monotonic_ns: AtomicU64,
    /// Number of the first record in the check-record area.
    pub first_record: AtomicU32,
    /// Number of records.
    pub records: AtomicU32,
    /// Blocks that were live.
    pub blocks: AtomicU64,
    /// Requested bytes in them.
    pub bytes: AtomicU64,
    /// Bytes of roots that were read.
    pub root_bytes: AtomicU64,
    /// Bytes that could not be read.
    pub unreadable_bytes: AtomicU64,
    /// Threads whose registers and stack were seen.
    pub threads_seen: AtomicU32,
    /// Threads that could not be stopped: their registers are unknown.
    pub threads_unseen: AtomicU32,
    /// Nanoseconds for which the target stood still.
    pub pause_ns: AtomicU64,
    /// Nanoseconds that the check took in all.
    pub check_ns: AtomicU64,
    /// Records that did not fit, and the blocks in them.
    pub lost_records: AtomicU64,
    /// Number of the signal for `FatalSignal`, exit status for `Exit` and `QuickExit`.
    pub status: AtomicU32,
    /// 1 when libc and libstdc++ released their own blocks first.
    pub freeres: AtomicU32,
    /// String reference: why it was given up.
    pub failure: AtomicU64,
}

/// `heuristic` of a check record whose blocks were reached without one.
pub const NO_HEURISTIC: u32 = u32::MAX;

/// Blocks of one check with the same site, kind and heuristic.
#[derive(Debug)]
#[repr(C)]
pub struct CheckRecord {
    /// The allocation site.
    pub site: AtomicU32,
    /// `LeakKind` as a number.
    pub kind: AtomicU32,
    /// `Heuristic` as a number, or [`NO_HEURISTIC`].
    pub heuristic: AtomicU32,
    /// Zero.
    pub reserved: AtomicU32,
    /// Blocks.
    pub blocks: AtomicU64,
    /// Requested bytes in them (direct bytes).
    pub bytes: AtomicU64,
    /// Blocks that are lost only because blocks of this record are.
    pub indirect_blocks: AtomicU64,
    /// Requested bytes in those.
    pub indirect_bytes: AtomicU64,
    /// Start addresses of up to three of the blocks; 0 when unused.
    pub addresses: [AtomicU64; 3],
}

/// The heap at one moment; written by the observer.
#[derive(Debug)]
#[repr(C)]
pub struct SeriesSample {
    /// CLOCK_MONOTONIC, nanoseconds.
    pub monotonic_ns: AtomicU64,
    /// Live requested bytes.
    pub live_bytes: AtomicU64,
    /// Live blocks.
    pub live_blocks: AtomicU64,
    /// Resident set of the target in bytes, 0 when unknown.
    pub resident_bytes: AtomicU64,
}

/// Values of [`IntervalRecord::state`].
pub mod interval_state {
    /// The program is in it, or was killed in it: its sites tell by their counters what is live.
    pub const OPEN: u32 = 1;
    /// `muntrace()` ended it.
    pub const ENDED: u32 = 2;
    /// The end of the program ended it.
    pub const ENDED_WITH_PROGRAM: u32 = 3;
}

/// What a program did between `mtrace()` and `muntrace()`. Only blocks that were allocated in it count; "live" is at its
/// end.
#[derive(Debug)]
#[repr(C)]
pub struct IntervalRecord {
    /// A value of [`interval_state`]; 0 while it is not filled.
    pub state: AtomicU32,
    /// Site whose stack is that of the call of `mtrace()`.
    pub begin_site: AtomicU32,
    /// Site whose stack is that of the call of `muntrace()`, 0 when there was none.
    pub end_site: AtomicU32,
    /// Number of its first record among the interval sites.
    pub first_record: AtomicU32,
    /// Number of its records there: the sites with live blocks.
    pub records: AtomicU32,
    /// Zero.
    pub reserved: AtomicU32,
    /// CLOCK_MONOTONIC at its begin, nanoseconds.
    pub begin_ns: AtomicU64,
    /// CLOCK_MONOTONIC at its end, nanoseconds.
    pub end_ns: AtomicU64,
    /// Blocks allocated.
    pub allocated_blocks: AtomicU64,
    /// Requested bytes in them.
    pub allocated_bytes: AtomicU64,
}

/// What a site allocated in an interval.
#[derive(Debug)]
#[repr(C)]
pub struct IntervalSiteRecord {
    /// The site.
    pub site: AtomicU32,
    /// Zero.
    pub reserved: AtomicU32,
    /// Blocks allocated.
    pub allocated_blocks: AtomicU64,
    /// Requested bytes in them.
    pub allocated_bytes: AtomicU64,
    /// Blocks that are live at the end of the interval.
    pub live_blocks: AtomicU64,
    /// Requested bytes in them.
    pub live_bytes: AtomicU64,
}

/// How much room a ledger has; records by area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Distinct allocation sites.
    pub sites: u32,
    /// Nodes of the stack tree.
    pub nodes: u32,
    /// Chunks of counters.
    pub chunks: u32,
}

impl Capacity {
    /// The usual size: sparse, about 3.5 GiB of file of which only what is used takes memory.
    pub const FULL: Self = Self { sites: 1 << 22, nodes: 1 << 24, chunks: 1 << 19 };
    /// For a limited address space: about 60 MiB.
    pub const SMALL: Self = Self { sites: 1 << 16, nodes: 1 << 19, chunks: 1 << 13 };
}

/// Fixed capacities.
pub const STRING_BYTES: u32 = 4 << 20;
/// Modules, gone ones included.
pub const MODULES: u32 = 8192;
/// Thread records; a record is used again once its thread has ended.
pub const THREADS: u32 = 1 << 16;
/// Distinct wrong calls.
pub const MISUSES: u32 = 1 << 14;
/// Leak checks; the header of check i is record i modulo this.
pub const CHECKS: u32 = 64;
/// Samples of the time series.
pub const SERIES: u32 = 2048;
/// Intervals.
pub const INTERVALS: u32 = 4096;
/// Sites of intervals, of all intervals together.
pub const INTERVAL_SITES: u32 = 1 << 16;

/// The areas for a capacity, and the bytes of the whole file.
pub const fn areas(capacity: Capacity) -> ([Area; AREAS], u64) {
    let shape: [(usize, u32); AREAS] = [
        (1, STRING_BYTES),
        (size_of::<ModuleRecord>(), MODULES),
        (size_of::<NodeRecord>(), capacity.nodes),
        (size_of::<SiteRecord>(), capacity.sites),
        (size_of::<ChunkRecord>(), capacity.chunks),
        (size_of::<SiteCounters>(), capacity.chunks * COUNTERS_PER_CHUNK as u32),
        (size_of::<ThreadRecord>(), THREADS),
        (size_of::<MisuseRecord>(), MISUSES),
        (size_of::<CheckHeader>(), CHECKS),
        (size_of::<CheckRecord>(), capacity.sites),
        (size_of::<SeriesSample>(), SERIES),
        (size_of::<IntervalRecord>(), INTERVALS),
        (size_of::<IntervalSiteRecord>(), INTERVAL_SITES),
    ];
    let mut out = [Area { offset: 0, stride: 0, capacity: 0 }; AREAS];
    let mut offset = HEADER_BYTES as u64;
    let mut i = 0;
    while i < AREAS {
        let (stride, capacity) = shape[i];
        out[i] = Area { offset, stride: stride as u32, capacity };
        offset += (stride as u64 * capacity as u64 + 4095) & !4095;
        i += 1;
    }
    (out, offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_are_page_aligned_and_do_not_overlap() {
        for capacity in [Capacity::FULL, Capacity::SMALL] {
            let (areas, total) = areas(capacity);
            let mut end = HEADER_BYTES as u64;
            for area in areas {
                assert_eq!(area.offset % 4096, 0);
                assert!(area.offset >= end);
                end = area.offset + area.stride as u64 * area.capacity as u64;
            }
            assert!(total >= end && total % 4096 == 0);
        }
    }
}
