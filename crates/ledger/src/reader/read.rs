//! Areas into vectors.

use core::mem::offset_of;
use std::format;
use std::string::String;
use std::vec;
use std::vec::Vec;

use leakscope_model::{AllocFn, HeuristicSet, MisuseKind, NodeId, SiteId, ThreadId};

use super::{
    Config, LedgerError, Lost, Misuse, Module, Node, Origin, Process, ReadAt, Sample, Site, SiteTotals, Snapshot,
    State, Thread, checks, intervals,
};
use crate::layout::{self, AREAS, Area, AreaId, COUNTERS_PER_CHUNK, Capacity, Header};

/// Bytes read at a time: large enough for few system calls, small enough to be no cost.
const PIECE_BYTES: usize = 1 << 20;

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).map_or(0, |word| {
        let mut out = [0; 8];
        out.copy_from_slice(word);
        u64::from_ne_bytes(out)
    })
}

/// A field of a record of layout.rs out of its bytes.
macro_rules! field {
    ($bytes:expr, u32, $record:ty, $field:ident) => {
        $crate::reader::read::u32_at($bytes, core::mem::offset_of!($record, $field))
    };
    ($bytes:expr, u64, $record:ty, $field:ident) => {
        $crate::reader::read::u64_at($bytes, core::mem::offset_of!($record, $field))
    };
}
pub(super) use field;

/// The ledger while it is read: where its areas lie, and what was wrong so far.
pub(super) struct Ledger<'a, S: ?Sized> {
    source: &'a S,
    file_bytes: u64,
    areas: [Area; AREAS],
    pub(super) problems: Vec<String>,
}

/// An area's name in messages.
fn name(id: AreaId) -> &'static str {
    match id {
        AreaId::Strings => "strings",
        AreaId::Modules => "modules",
        AreaId::Nodes => "stack frames",
        AreaId::Sites => "allocation sites",
        AreaId::Chunks => "counter chunks",
        AreaId::Counters => "counters",
        AreaId::Threads => "threads",
        AreaId::Misuses => "wrong calls",
        AreaId::Checks => "leak checks",
        AreaId::CheckRecords => "records of leak checks",
        AreaId::Series => "samples",
        AreaId::Intervals => "intervals",
        AreaId::IntervalSites => "sites of intervals",
    }
}

const ALL_AREAS: [AreaId; AREAS] = [
    AreaId::Strings,
    AreaId::Modules,
    AreaId::Nodes,
    AreaId::Sites,
    AreaId::Chunks,
    AreaId::Counters,
    AreaId::Threads,
    AreaId::Misuses,
    AreaId::Checks,
    AreaId::CheckRecords,
    AreaId::Series,
    AreaId::Intervals,
    AreaId::IntervalSites,
];

impl<'a, S: ReadAt + ?Sized> Ledger<'a, S> {
    /// The areas of `header`, each checked; a bad one has room for nothing.
    fn open(source: &'a S, file_bytes: u64, header: &[u8]) -> Self {
        let (expected, _) = layout::areas(Capacity::FULL);
        let mut ledger = Self { source, file_bytes, areas: expected, problems: Vec::new() };
        let claimed = field!(header, u64, Header, file_bytes);
        if claimed > file_bytes {
            ledger.problems.push(format!("the file is cut short: {file_bytes} of {claimed} bytes are there"));
        }
        for id in ALL_AREAS {
            let at = offset_of!(Header, areas) + id as usize * size_of::<Area>();
            let area = Area {
                offset: u64_at(header, at + offset_of!(Area, offset)),
                stride: u32_at(header, at + offset_of!(Area, stride)),
                capacity: u32_at(header, at + offset_of!(Area, capacity)),
            };
            ledger.areas[id as usize] = ledger.checked_area(id, area, expected[id as usize]);
        }
        ledger
    }

    fn checked_area(&mut self, id: AreaId, found: Area, expected: Area) -> Area {
        let nothing = Area { offset: layout::HEADER_BYTES as u64, stride: expected.stride, capacity: 0 };
        if found.stride != expected.stride || found.offset < layout::HEADER_BYTES as u64 {
            self.problems.push(format!("the header's entry for the {} is damaged; they are left out", name(id)));
            return nothing;
        }
        // More than any build of this version makes room for is a lie, and would cost memory.
        let capacity = found.capacity.min(expected.capacity);
        let present = self.file_bytes.saturating_sub(found.offset) / u64::from(found.stride);
        Area { capacity: capacity.min(u32::try_from(present).unwrap_or(u32::MAX)), ..found }
    }

    /// Records that there is room for, in the file as it is.
    pub(super) fn capacity(&self, id: AreaId) -> u32 {
        self.areas[id as usize].capacity
    }

    /// The published number of records, read anew, as the header has it.
    pub(super) fn claimed(&mut self, id: AreaId) -> u32 {
        let mut word = [0; 4];
        let offset = offset_of!(Header, used) + id as usize * 4;
        match self.source.read_at(offset as u64, &mut word) {
            Ok(()) => u32::from_ne_bytes(word),
            Err(error) => {
                self.problems.push(format!("{error}; the {} are left out", name(id)));
                0
            }
        }
    }

    /// The published number of records, cut to what is there.
    pub(super) fn used(&mut self, id: AreaId) -> u32 {
        let claimed = self.claimed(id);
        let room = self.capacity(id);
        if claimed > room {
            self.problems.push(format!("{} of {claimed} {} are missing", claimed - room, name(id)));
        }
        claimed.min(room)
    }

    /// Calls `each` with (number, bytes) of `count` records from `first` on.
    pub(super) fn records(&mut self, id: AreaId, first: u32, count: u32, mut each: impl FnMut(u32, &[u8])) {
        let area = self.areas[id as usize];
        let stride = area.stride as usize;
        let end = first.saturating_add(count).min(area.capacity);
        let per_piece = (PIECE_BYTES / stride).max(1) as u32;
        let mut buf = vec![0; stride * per_piece.min(end.saturating_sub(first)) as usize];
        let mut unread = 0;
        let mut next = first;
        while next < end {
            let number = per_piece.min(end - next);
            let bytes = &mut buf[..stride * number as usize];
            let offset = area.offset + u64::from(next) * u64::from(area.stride);
            match self.source.read_at(offset, bytes) {
                Ok(()) => {
                    for (i, record) in bytes.chunks_exact(stride).enumerate() {
                        each(next + i as u32, record);
                    }
                }
                Err(_) => unread += number,
            }
            next += number;
        }
        if unread > 0 {
            self.problems.push(format!("{unread} {} could not be read", name(id)));
        }
    }

    /// Adds a problem when `count` things are `what`.
    pub(super) fn note(&mut self, count: u64, what: &str) {
        if count > 0 {
            self.problems.push(format!("{count} {what}"));
        }
    }
}

pub(super) fn snapshot<S: ReadAt + ?Sized>(source: &S, file_bytes: u64) -> Result<Snapshot, LedgerError> {
    let mut header = vec![0; layout::HEADER_BYTES];
    if file_bytes < header.len() as u64 {
        return Err(LedgerError::TooShort { file_bytes });
    }
    source.read_at(0, &mut header).map_err(LedgerError::Read)?;
    if header[..layout::MAGIC.len()] != layout::MAGIC {
        return Err(LedgerError::NotALedger);
    }
    let version = field!(&header, u32, Header, version);
    if version != layout::VERSION {
        return Err(LedgerError::Version(version));
    }

    let mut ledger = Ledger::open(source, file_bytes, &header);
    // Referrers before what they refer to; see the head of the module.
    let series = read_series(&mut ledger);
    let (raw_checks, check_records) = checks::read_raw(&mut ledger);
    let raw_misuses = read_misuses(&mut ledger);
    let raw_intervals = intervals::read_raw(&mut ledger);
    let counters = read_counters(&mut ledger);
    let threads = read_threads(&mut ledger);
    let raw_sites = read_sites(&mut ledger);
    let nodes = read_nodes(&mut ledger);
    let raw_modules = read_modules(&mut ledger);
    // The facts that the target writes while it runs, as late as the strings that they refer to.
    source.read_at(0, &mut header).map_err(LedgerError::Read)?;
    let strings = Strings::read(&mut ledger);

    let sites = finish_sites(&mut ledger, raw_sites, nodes.len());
    let misuses = finish_misuses(&mut ledger, raw_misuses, sites.len());
    let totals = finish_totals(&mut ledger, counters, sites.len());
    let intervals = intervals::finish(&mut ledger, raw_intervals, &sites, &totals);
    let mut bad_strings = 0;
    let modules = raw_modules
        .into_iter()
        .map(|(mut module, path)| {
            module.path = strings.get(path, &mut bad_strings);
            module
        })
        .collect();
    let checks = checks::finish(&mut ledger, raw_checks, check_records, sites.len(), |string| {
        strings.get(string, &mut bad_strings)
    });
    let process = read_process(&mut ledger, &header, |string| strings.get(string, &mut bad_strings));
    let event_log = intervals::read_event_log(&header, |string| strings.get(string, &mut bad_strings));
    ledger.note(bad_strings, "strings lie outside of the file");
    Ok(Snapshot {
        process,
        lost: read_lost(&header),
        modules,
        nodes,
        sites,
        totals,
        threads,
        misuses,
        checks,
        series,
        intervals,
        event_log,
        problems: ledger.problems,
    })
}

/// The string area.
struct Strings(Vec<u8>);

impl Strings {
    fn read<S: ReadAt + ?Sized>(ledger: &mut Ledger<'_, S>) -> Self {
        let used = ledger.used(AreaId::Strings);
        let mut bytes = Vec::with_capacity(used as usize);
        ledger.records(AreaId::Strings, 0, used, |_, byte| bytes.extend_from_slice(byte));
        Self(bytes)
    }

    /// The string of a reference; a bad one is counted and empty.
    fn get(&self, reference: u64, bad: &mut u64) -> Vec<u8> {
        let start = (reference & 0xffff_ffff) as usize;
        let bytes = (reference >> 32) as usize;
        if bytes == 0 {
            return Vec::new();
        }
        match self.0.get(start..start.saturating_add(bytes)) {
            Some(string) => string.to_vec(),
            None => {
                *bad += 1;
                Vec::new()
            }
        }
    }
}

fn read_process<S: ReadAt + ?Sized>(
    ledger: &mut Ledger<'_, S>,
    header: &[u8],
    mut string: impl FnMut(u64) -> Vec<u8>,
) -> Process {
    let config = offset_of!(Header, config);
    let mut command_line: Vec<Vec<u8>> =
        string(field!(header, u64, Header, command_line)).split(|&byte| byte == 0).map(<[u8]>::to_vec).collect();
    // Each argument is ended, not separated, by a zero byte.
    if command_line.last().is_some_and(Vec::is_empty) {
        command_line.pop();
    }
    let origin = match field!(header, u32, Header, origin) {
        layout::origin::FORK => Origin::Fork,
        layout::origin::EXEC => Origin::Exec,
        layout::origin::START => Origin::Start,
        other => {
            ledger.problems.push(format!("unknown origin {other} of the process"));
            Origin::Start
        }
    };
    let state = match field!(header, u32, Header, state) {
        layout::state::NEW => State::New,
        layout::state::RUNNING => State::Running,
        layout::state::ENDING => State::Ending,
        layout::state::ENDED => State::Ended,
        layout::state::FAILED => State::Failed,
        other => {
            ledger.problems.push(format!("unknown state {other} of the process; taken for running"));
            State::Running
        }
    };
    Process {
        pid: field!(header, u32, Header, pid),
        parent_pid: field!(header, u32, Header, parent_pid),
        origin,
        state,
        executable: string(field!(header, u64, Header, executable)),
        command_line,
        failure: string(field!(header, u64, Header, failure)),
        start_realtime_ns: field!(header, u64, Header, start_realtime_ns),
        start_monotonic_ns: field!(header, u64, Header, start_monotonic_ns),
        end_monotonic_ns: field!(header, u64, Header, end_monotonic_ns),
        start_tsc: field!(header, u64, Header, start_tsc),
        end_tsc: field!(header, u64, Header, end_tsc),
        epoch: field!(header, u32, Header, epoch),
        config: Config {
            flags: u64_at(header, config + offset_of!(layout::Config, flags)),
            sample_bytes: u64_at(header, config + offset_of!(layout::Config, sample_bytes)),
            max_frames: u32_at(header, config + offset_of!(layout::Config, max_frames)),
            heuristics: HeuristicSet::from_bits(header[config + offset_of!(layout::Config, heuristics)]),
        },
    }
}

fn read_lost(header: &[u8]) -> Lost {
    let at = offset_of!(Header, lost);
    let count = |field: usize| u64_at(header, at + field);
    Lost {
        sites: count(offset_of!(layout::Lost, sites)),
        nodes: count(offset_of!(layout::Lost, nodes)),
        counters: count(offset_of!(layout::Lost, counters)),
        blocks: count(offset_of!(layout::Lost, blocks)),
        deep_stacks: count(offset_of!(layout::Lost, deep_stacks)),
        broken_stacks: count(offset_of!(layout::Lost, broken_stacks)),
        modules: count(offset_of!(layout::Lost, modules)),
        misuses: count(offset_of!(layout::Lost, misuses)),
        threads: count(offset_of!(layout::Lost, threads)),
        intervals: count(offset_of!(layout::Lost, intervals)),
    }
}

/// A vector with an entry for each of `used` records, so that a failed read leaves numbers in step.
fn slots<T: Clone>(used: u32, empty: T) -> Vec<T> {
    vec![empty; used as usize]
}

fn read_series<S: ReadAt + ?Sized>(ledger: &mut Ledger<'_, S>) -> Vec<Sample> {
    use layout::SeriesSample as Record;
    let used = ledger.used(AreaId::Series);
    let mut out = Vec::with_capacity(used as usize);
    ledger.records(AreaId::Series, 0, used, |_, bytes| {
        out.push(Sample {
            monotonic_ns: field!(bytes, u64, Record, monotonic_ns),
            live_bytes: field!(bytes, u64, Record, live_bytes),
            live_blocks: field!(bytes, u64, Record, live_blocks),
            resident_bytes: field!(bytes, u64, Record, resident_bytes),
        });
    });
    out
}

fn read_misuses<S: ReadAt + ?Sized>(ledger: &mut Ledger<'_, S>) -> Vec<Misuse> {
    use layout::MisuseRecord as Record;
    let used = ledger.used(AreaId::Misuses);
    let mut out = Vec::with_capacity(used as usize);
    let mut unknown = 0;
    ledger.records(AreaId::Misuses, 0, used, |_, bytes| {
        let number = field!(bytes, u32, Record, kind);
        // Room is claimed before it is filled, and `count` is written last.
        if field!(bytes, u32, Record, count) == 0 {
            return;
        }
        let Some(kind) = u8::try_from(number).ok().and_then(MisuseKind::from_u8) else {
            unknown += 1;
            return;
        };
        out.push(Misuse {
            kind,
            site: SiteId(field!(bytes, u32, Record, site)),
            allocation_site: SiteId(field!(bytes, u32, Record, allocation_site)),
            free_site: SiteId(field!(bytes, u32, Record, free_site)),
            address: field!(bytes, u64, Record, address),
            block_start: field!(bytes, u64, Record, block_start),
            block_bytes: field!(bytes, u64, Record, block_bytes),
            count: field!(bytes, u32, Record, count),
            thread: ThreadId(field!(bytes, u32, Record, thread)),
            overrun_offset: field!(bytes, u64, Record, overrun_offset),
        });
    });
    ledger.note(unknown, "wrong calls are of an unknown kind; they are left out");
    out
}

fn finish_misuses<S: ReadAt + ?Sized>(
    ledger: &mut Ledger<'_, S>,
    mut misuses: Vec<Misuse>,
    sites: usize,
) -> Vec<Misuse> {
    let mut bad = 0;
    for misuse in &mut misuses {
        for site in [&mut misuse.site, &mut misuse.allocation_site, &mut misuse.free_site] {
            if site.0 as usize >= sites.max(1) {
                *site = SiteId(0);
                bad += 1;
            }
        }
    }
    ledger.note(bad, "stacks of wrong calls are missing");
    misuses
}

/// Sums by site number, as far as any chunk reaches.
fn read_counters<S: ReadAt + ?Sized>(ledger: &mut Ledger<'_, S>) -> Vec<SiteTotals> {
    use layout::SiteCounters as Record;
    let chunks = ledger.used(AreaId::Chunks);
    let per_chunk = COUNTERS_PER_CHUNK as u32;
    let room = ledger.capacity(AreaId::Counters) / per_chunk;
    let sites = ledger.capacity(AreaId::Sites);
    let mut first_sites = slots(chunks, u32::MAX);
    ledger.records(AreaId::Chunks, 0, chunks, |number, bytes| {
        first_sites[number as usize] = field!(bytes, u32, layout::ChunkRecord, first_site);
    });
    let mut bad = 0;
    for first in &mut first_sites {
        if *first >= sites || *first % per_chunk != 0 {
            bad += 1;
            *first = u32::MAX;
        }
    }
    let greatest = first_sites.iter().filter(|&&first| first != u32::MAX).max();
    let mut totals = slots(greatest.map_or(0, |first| first + per_chunk), SiteTotals::default());
    let readable = chunks.min(room);
    ledger.records(AreaId::Counters, 0, readable * per_chunk, |number, bytes| {
        let first = first_sites[(number / per_chunk) as usize];
        if first == u32::MAX {
            return;
        }
        let sum = &mut totals[(first + number % per_chunk) as usize];
        let add = |into: &mut u64, value: u64| *into = into.wrapping_add(value);
        add(&mut sum.allocated_blocks, field!(bytes, u64, Record, allocated_blocks));
        add(&mut sum.allocated_bytes, field!(bytes, u64, Record, allocated_bytes));
        add(&mut sum.freed_blocks, field!(bytes, u64, Record, freed_blocks));
        add(&mut sum.freed_bytes, field!(bytes, u64, Record, freed_bytes));
        sum.peak_bytes = sum.peak_bytes.saturating_add(field!(bytes, u64, Record, peak_bytes));
        sum.peak_blocks = sum.peak_blocks.saturating_add(field!(bytes, u64, Record, peak_blocks));
        add(&mut sum.temporary_blocks, field!(bytes, u64, Record, temporary_blocks));
        sum.largest_bytes = sum.largest_bytes.max(field!(bytes, u64, Record, largest_bytes));
        for (i, bucket) in sum.lifetimes.iter_mut().enumerate() {
            *bucket = bucket.saturating_add(u32_at(bytes, offset_of!(Record, lifetimes) + 4 * i));
        }
    });
    ledger.note(bad, "counter chunks belong to no site; they are left out");
    ledger.note(u64::from(chunks - readable), "counter chunks are missing");
    totals
}

fn finish_totals<S: ReadAt + ?Sized>(
    ledger: &mut Ledger<'_, S>,
    mut totals: Vec<SiteTotals>,
    sites: usize,
) -> Vec<SiteTotals> {
    let beyond = totals.iter().skip(sites.max(1)).filter(|sum| **sum != SiteTotals::default()).count();
    ledger.note(beyond as u64, "counters belong to sites that are missing");
    totals.resize(sites, SiteTotals::default());
    totals
}

fn read_threads<S: ReadAt + ?Sized>(ledger: &mut Ledger<'_, S>) -> Vec<Thread> {
    use layout::ThreadRecord as Record;
    let used = ledger.used(AreaId::Threads);
    let mut out = slots(used, Thread::default());
    ledger.records(AreaId::Threads, 0, used, |number, bytes| {
        out[number as usize] = Thread {
            tid: field!(bytes, u32, Record, tid),
            ended: field!(bytes, u32, Record, state) == 2,
            live_bytes: field!(bytes, u64, Record, live_bytes) as i64,
            peak_bytes: field!(bytes, u64, Record, peak_bytes),
        };
    });
    out
}

fn read_sites<S: ReadAt + ?Sized>(ledger: &mut Ledger<'_, S>) -> Vec<Site> {
    use layout::SiteRecord as Record;
    let used = ledger.used(AreaId::Sites);
    let mut out = slots(used, Site::default());
    let mut unknown = 0;
    ledger.records(AreaId::Sites, 0, used, |number, bytes| {
        let function = u8::try_from(field!(bytes, u32, Record, function)).ok().and_then(AllocFn::from_u8);
        unknown += u64::from(function.is_none());
        out[number as usize] = Site {
            leaf: NodeId(field!(bytes, u32, Record, leaf)),
            frames: field!(bytes, u32, Record, frames),
            function: function.unwrap_or(AllocFn::Malloc),
            flags: field!(bytes, u32, Record, flags),
        };
    });
    ledger.note(unknown, "sites name an unknown function; it is shown as malloc");
    out
}

fn finish_sites<S: ReadAt + ?Sized>(ledger: &mut Ledger<'_, S>, mut sites: Vec<Site>, nodes: usize) -> Vec<Site> {
    let mut bad = 0;
    for site in &mut sites {
        if site.leaf.0 as usize >= nodes.max(1) {
            site.leaf = NodeId(0);
            bad += 1;
        }
    }
    ledger.note(bad, "sites have lost their stack");
    sites
}

fn read_nodes<S: ReadAt + ?Sized>(ledger: &mut Ledger<'_, S>) -> Vec<Node> {
    use layout::NodeRecord as Record;
    let used = ledger.used(AreaId::Nodes);
    let mut out = slots(used, Node::default());
    let mut bad = 0;
    ledger.records(AreaId::Nodes, 0, used, |number, bytes| {
        let mut parent = field!(bytes, u32, Record, parent);
        if parent >= number {
            bad += u64::from(number != 0);
            parent = 0;
        }
        out[number as usize] = Node {
            pc: field!(bytes, u64, Record, pc),
            parent: NodeId(parent),
            epoch: field!(bytes, u32, Record, epoch),
        };
    });
    ledger.note(bad, "stack frames have lost their caller");
    out
}

/// Modules with the reference of their path.
fn read_modules<S: ReadAt + ?Sized>(ledger: &mut Ledger<'_, S>) -> Vec<(Module, u64)> {
    use layout::ModuleRecord as Record;
    let used = ledger.used(AreaId::Modules);
    let mut out = slots(used, (Module::default(), 0));
    ledger.records(AreaId::Modules, 0, used, |number, bytes| {
        let at = offset_of!(Record, build_id);
        let build_id_bytes = (field!(bytes, u32, Record, build_id_bytes) as usize).min(32);
        let module = Module {
            start: field!(bytes, u64, Record, start),
            end: field!(bytes, u64, Record, end),
            load_bias: field!(bytes, u64, Record, load_bias),
            path: Vec::new(),
            build_id: bytes[at..at + build_id_bytes].to_vec(),
            loaded_epoch: field!(bytes, u32, Record, loaded_epoch),
            unloaded_epoch: field!(bytes, u32, Record, unloaded_epoch),
        };
        out[number as usize] = (module, field!(bytes, u64, Record, path));
    });
    out
}
