//! Ledgers laid out by hand from `layout`: read back whole, cut, and with bytes changed at random.

use core::mem::offset_of;

use leakscope_model::{
    AllocFn, CheckTrigger, Heuristic, HeuristicSet, LeakKind, MisuseKind, ModuleId, NodeId, SiteId, ThreadId,
};

use super::*;
use crate::layout::{
    self, AREAS, Area, AreaId, COUNTERS_PER_CHUNK, Header, MAGIC, NO_HEURISTIC, VERSION, check_state, interval_state,
    origin, site_flags, state, string_ref,
};

/// A ledger in the making: small areas, so that thousands of damaged copies are cheap.
struct Builder {
    bytes: Vec<u8>,
    areas: [Area; AREAS],
    strings: u32,
}

const ROOM: [u32; AREAS] = [512, 4, 64, 64, 4, 4 * COUNTERS_PER_CHUNK as u32, 8, 8, 64, 16, 8, 4, 16];

impl Builder {
    fn new() -> Self {
        let (mut areas, _) = layout::areas(layout::Capacity::SMALL);
        let mut offset = layout::HEADER_BYTES as u64;
        for (area, room) in areas.iter_mut().zip(ROOM) {
            *area = Area { offset, capacity: room, ..*area };
            offset += (u64::from(area.stride) * u64::from(room)).next_multiple_of(4096);
        }
        let mut builder = Self { bytes: vec![0; offset as usize], areas, strings: 1 };
        builder.bytes[..8].copy_from_slice(&MAGIC);
        builder.header_u32(offset_of!(Header, version), VERSION);
        builder.header_u32(offset_of!(Header, header_bytes), layout::HEADER_BYTES as u32);
        builder.header_u64(offset_of!(Header, file_bytes), offset);
        for (i, area) in areas.iter().enumerate() {
            let at = offset_of!(Header, areas) + i * size_of::<Area>();
            builder.header_u64(at + offset_of!(Area, offset), area.offset);
            builder.header_u32(at + offset_of!(Area, stride), area.stride);
            builder.header_u32(at + offset_of!(Area, capacity), area.capacity);
        }
        builder.used(AreaId::Nodes, 1);
        builder.used(AreaId::Sites, 1);
        builder.used(AreaId::Threads, 1);
        builder
    }

    fn header_u32(&mut self, at: usize, value: u32) {
        self.bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }

    fn header_u64(&mut self, at: usize, value: u64) {
        self.bytes[at..at + 8].copy_from_slice(&value.to_ne_bytes());
    }

    fn used(&mut self, area: AreaId, count: u32) {
        self.header_u32(offset_of!(Header, used) + area as usize * 4, count);
    }

    fn u32(&mut self, area: AreaId, record: u32, field: usize, value: u32) {
        let area = self.areas[area as usize];
        self.header_u32((area.offset + u64::from(record) * u64::from(area.stride)) as usize + field, value);
    }

    fn u64(&mut self, area: AreaId, record: u32, field: usize, value: u64) {
        let area = self.areas[area as usize];
        self.header_u64((area.offset + u64::from(record) * u64::from(area.stride)) as usize + field, value);
    }

    fn string(&mut self, text: &[u8]) -> u64 {
        let at = self.strings;
        let start = self.areas[AreaId::Strings as usize].offset as usize + at as usize;
        self.bytes[start..start + text.len()].copy_from_slice(text);
        self.strings += text.len() as u32;
        self.used(AreaId::Strings, self.strings);
        string_ref(at, text.len() as u32)
    }

    fn node(&mut self, number: u32, pc: u64, parent: u32, epoch: u32) {
        use layout::NodeRecord as R;
        self.u64(AreaId::Nodes, number, offset_of!(R, pc), pc);
        self.u32(AreaId::Nodes, number, offset_of!(R, parent), parent);
        self.u32(AreaId::Nodes, number, offset_of!(R, epoch), epoch);
        self.used(AreaId::Nodes, number + 1);
    }

    fn site(&mut self, number: u32, leaf: u32, frames: u32, function: u32) {
        use layout::SiteRecord as R;
        self.u32(AreaId::Sites, number, offset_of!(R, leaf), leaf);
        self.u32(AreaId::Sites, number, offset_of!(R, frames), frames);
        self.u32(AreaId::Sites, number, offset_of!(R, function), function);
        self.used(AreaId::Sites, number + 1);
    }

    /// The first six counters of a site in a chunk.
    fn counters(&mut self, chunk: u32, site: u32, values: [u64; 6]) {
        let record = chunk * COUNTERS_PER_CHUNK as u32 + site % COUNTERS_PER_CHUNK as u32;
        for (i, value) in values.into_iter().enumerate() {
            self.u64(AreaId::Counters, record, i * 8, value);
        }
        let lifetimes = offset_of!(layout::SiteCounters, lifetimes);
        self.u32(AreaId::Counters, record, lifetimes + 8, 3);
    }

    fn chunk(&mut self, chunk: u32, first_site: u32, thread: u32) {
        use layout::ChunkRecord as R;
        self.u32(AreaId::Chunks, chunk, offset_of!(R, first_site), first_site);
        self.u32(AreaId::Chunks, chunk, offset_of!(R, thread), thread);
        self.used(AreaId::Chunks, chunk + 1);
        self.used(AreaId::Counters, chunk + 1);
    }

    fn check(&mut self, number: u32, state: u32, first_record: u32, records: u32) {
        use layout::CheckHeader as R;
        let slot = number % layout::CHECKS;
        self.u32(AreaId::Checks, slot, offset_of!(R, state), state);
        self.u32(AreaId::Checks, slot, offset_of!(R, trigger), CheckTrigger::FatalSignal as u32);
        self.u32(AreaId::Checks, slot, offset_of!(R, first_record), first_record);
        self.u32(AreaId::Checks, slot, offset_of!(R, records), records);
        self.u64(AreaId::Checks, slot, offset_of!(R, blocks), 4);
        self.u64(AreaId::Checks, slot, offset_of!(R, bytes), 400);
        self.u32(AreaId::Checks, slot, offset_of!(R, status), 11);
        self.u32(AreaId::Checks, slot, offset_of!(R, freeres), 1);
        self.used(AreaId::Checks, number + 1);
    }

    fn interval(&mut self, number: u32, state: u32, first_record: u32, records: u32) {
        use layout::IntervalRecord as R;
        self.u32(AreaId::Intervals, number, offset_of!(R, state), state);
        self.u32(AreaId::Intervals, number, offset_of!(R, begin_site), 2);
        self.u32(AreaId::Intervals, number, offset_of!(R, first_record), first_record);
        self.u32(AreaId::Intervals, number, offset_of!(R, records), records);
        self.u64(AreaId::Intervals, number, offset_of!(R, begin_ns), 2000);
        self.u64(AreaId::Intervals, number, offset_of!(R, allocated_blocks), 6);
        self.used(AreaId::Intervals, number + 1);
    }

    fn interval_site(&mut self, number: u32, site: u32, values: [u64; 4]) {
        use layout::IntervalSiteRecord as R;
        self.u32(AreaId::IntervalSites, number, offset_of!(R, site), site);
        for (i, value) in values.into_iter().enumerate() {
            self.u64(AreaId::IntervalSites, number, offset_of!(R, allocated_blocks) + i * 8, value);
        }
        self.used(AreaId::IntervalSites, number + 1);
    }

    fn check_record(&mut self, number: u32, site: u32, kind: LeakKind, heuristic: u32) {
        use layout::CheckRecord as R;
        self.u32(AreaId::CheckRecords, number, offset_of!(R, site), site);
        self.u32(AreaId::CheckRecords, number, offset_of!(R, kind), kind as u32);
        self.u32(AreaId::CheckRecords, number, offset_of!(R, heuristic), heuristic);
        self.u64(AreaId::CheckRecords, number, offset_of!(R, blocks), 2);
        self.u64(AreaId::CheckRecords, number, offset_of!(R, bytes), 200);
        self.u64(AreaId::CheckRecords, number, offset_of!(R, addresses), 0x5000);
    }
}

/// A ledger with something in each area.
fn full() -> Builder {
    let mut b = Builder::new();
    let executable = b.string(b"/usr/bin/app");
    let command_line = b.string(b"app\0--flag\0\0");
    b.header_u64(offset_of!(Header, executable), executable);
    b.header_u64(offset_of!(Header, command_line), command_line);
    b.header_u32(offset_of!(Header, pid), 77);
    b.header_u32(offset_of!(Header, parent_pid), 76);
    b.header_u32(offset_of!(Header, origin), origin::FORK);
    b.header_u32(offset_of!(Header, state), state::ENDED);
    b.header_u64(offset_of!(Header, start_monotonic_ns), 1000);
    b.header_u64(offset_of!(Header, lost) + offset_of!(layout::Lost, blocks), 5);
    b.bytes[offset_of!(Header, config) + offset_of!(layout::Config, heuristics)] = 0xff;

    use layout::ModuleRecord as M;
    for (number, loaded, unloaded) in [(0, 0, 2), (1, 2, u32::MAX)] {
        b.u64(AreaId::Modules, number, offset_of!(M, start), 0x1000);
        b.u64(AreaId::Modules, number, offset_of!(M, end), 0x3000);
        b.u64(AreaId::Modules, number, offset_of!(M, load_bias), 0x1000);
        b.u64(AreaId::Modules, number, offset_of!(M, path), executable);
        b.u32(AreaId::Modules, number, offset_of!(M, loaded_epoch), loaded);
        b.u32(AreaId::Modules, number, offset_of!(M, unloaded_epoch), unloaded);
        b.u32(AreaId::Modules, number, offset_of!(M, build_id_bytes), 4);
        b.u32(AreaId::Modules, number, offset_of!(M, build_id), u32::from_ne_bytes([1, 2, 3, 4]));
    }
    b.used(AreaId::Modules, 2);

    b.node(1, 0x1100, 0, 1);
    b.node(2, 0x1200, 1, 1);
    b.node(3, 0x1300, 2, 2);
    b.site(1, 2, 2, AllocFn::New as u32);
    b.site(2, 3, 3, AllocFn::Malloc as u32);
    // Two threads in the same sites: one allocates, the other releases more than it allocated.
    b.chunk(0, 0, 1);
    b.counters(0, 1, [10, 1000, 4, 400, 600, 6]);
    b.chunk(1, 0, 2);
    b.counters(1, 1, [0, 0, 3, 300, 0, 0]);
    b.counters(1, 2, [1, 10, 2, 20, 10, 1]);
    b.u32(AreaId::Threads, 1, offset_of!(layout::ThreadRecord, tid), 4242);
    b.u64(AreaId::Threads, 1, offset_of!(layout::ThreadRecord, live_bytes), (-5_i64) as u64);
    b.used(AreaId::Threads, 2);

    use layout::MisuseRecord as W;
    b.u32(AreaId::Misuses, 0, offset_of!(W, kind), MisuseKind::MismatchedFree as u32);
    b.u32(AreaId::Misuses, 0, offset_of!(W, site), 2);
    b.u32(AreaId::Misuses, 0, offset_of!(W, allocation_site), 1);
    b.u64(AreaId::Misuses, 0, offset_of!(W, address), 0x5000);
    b.u32(AreaId::Misuses, 0, offset_of!(W, count), 3);
    b.used(AreaId::Misuses, 1);

    b.check(0, check_state::COMPLETE, 0, 2);
    b.check_record(0, 1, LeakKind::DefinitelyLost, NO_HEURISTIC);
    b.check_record(1, 2, LeakKind::StillReachable, Heuristic::NewArray as u32);
    b.u64(AreaId::Series, 0, offset_of!(layout::SeriesSample, live_bytes), 99);
    b.used(AreaId::Series, 1);

    let (log, wanted) = (b.string(b"/tmp/log.77"), b.string(b"log"));
    let at = offset_of!(Header, event_log);
    b.header_u64(at + offset_of!(layout::EventLog, file), log);
    b.header_u64(at + offset_of!(layout::EventLog, wanted), wanted);
    b.header_u64(at + offset_of!(layout::EventLog, lines), 12);
    b.interval(0, interval_state::ENDED, 0, 2);
    b.interval_site(0, 1, [5, 500, 2, 200]);
    b.interval_site(1, 2, [1, 10, 1, 10]);
    b
}

fn read(bytes: &[u8]) -> Result<Snapshot, LedgerError> {
    Snapshot::read(bytes, bytes.len() as u64)
}

#[test]
fn everything_written_is_read() {
    let snapshot = read(&full().bytes).unwrap();
    assert_eq!(snapshot.problems, Vec::<String>::new());
    let process = &snapshot.process;
    assert_eq!((process.pid, process.parent_pid), (77, 76));
    assert_eq!((process.origin, process.state), (Origin::Fork, State::Ended));
    assert_eq!(process.executable, b"/usr/bin/app");
    assert_eq!(process.command_line, [b"app".to_vec(), b"--flag".to_vec(), b"".to_vec()]);
    assert_eq!(process.config.heuristics, HeuristicSet::ALL);
    assert_eq!(snapshot.lost, Lost { blocks: 5, ..Lost::default() });

    assert_eq!(snapshot.modules.len(), 2);
    assert_eq!(snapshot.modules[0].build_id, [1, 2, 3, 4]);
    let index = snapshot.module_index();
    let find = |pc, epoch| index.find(&snapshot.modules, pc, epoch);
    assert_eq!(find(0x1100, 1), Some(ModuleId(0)));
    assert_eq!(find(0x1100, 2), Some(ModuleId(1)));
    assert_eq!((find(0xfff, 1), find(0x3000, 1)), (None, None));
    assert_eq!(snapshot.modules[0].svma(0x1100).0, 0x100);

    let stack: Vec<(u32, u64)> = snapshot.stack(SiteId(2)).map(|(id, node)| (id.0, node.lookup_pc())).collect();
    assert_eq!(stack, [(3, 0x12ff), (2, 0x11ff), (1, 0x10ff)]);
    assert_eq!(snapshot.stack(SiteId(0)).count(), 0);
    assert_eq!(snapshot.sites[1].function, AllocFn::New);

    let totals = &snapshot.totals[1];
    assert_eq!((totals.allocated_blocks, totals.freed_bytes), (10, 700));
    assert_eq!((totals.live_blocks(), totals.live_bytes()), (3, 300));
    assert_eq!(totals.lifetimes[2], 6);
    // More freed than allocated can only be a torn read.
    assert_eq!((snapshot.totals[2].live_blocks(), snapshot.totals[2].live_bytes()), (0, 0));

    assert_eq!(snapshot.threads[1], Thread { tid: 4242, live_bytes: -5, ..Thread::default() });
    let misuse = &snapshot.misuses[0];
    assert_eq!((misuse.kind, misuse.site, misuse.allocation_site), (MisuseKind::MismatchedFree, SiteId(2), SiteId(1)));
    assert_eq!((misuse.thread, misuse.count), (ThreadId(0), 3));
    let check = snapshot.last_complete_check().unwrap();
    assert_eq!((check.trigger, check.status, check.freeres), (CheckTrigger::FatalSignal, 11, true));
    let records = check.records.as_ref().unwrap();
    assert_eq!((records[0].kind, records[0].heuristic), (LeakKind::DefinitelyLost, None));
    assert_eq!(records[1].heuristic, Some(Heuristic::NewArray));
    assert_eq!(snapshot.series[0].live_bytes, 99);
}

#[test]
fn an_interval_holds_what_was_live_at_its_end_or_is_live_while_it_is_open() {
    let mut b = full();
    // Site 1 allocates in interval 1, which is open; site 2 in interval 0.
    let flags = offset_of!(layout::SiteRecord, flags);
    b.u32(AreaId::Sites, 1, flags, 2 << site_flags::INTERVAL_SHIFT | site_flags::BROKEN);
    b.u32(AreaId::Sites, 2, flags, 1 << site_flags::INTERVAL_SHIFT);
    b.interval(1, interval_state::OPEN, 0, 0);
    let snapshot = read(&b.bytes).unwrap();
    assert_eq!(snapshot.problems, Vec::<String>::new());
    let [ended, open] = &snapshot.intervals[..] else { panic!("{:?}", snapshot.intervals) };
    assert_eq!((ended.end, ended.begin_site, ended.allocated_blocks), (IntervalEnd::Muntrace, SiteId(2), 6));
    let first =
        IntervalSite { site: SiteId(1), allocated_blocks: 5, allocated_bytes: 500, live_blocks: 2, live_bytes: 200 };
    assert_eq!((ended.sites[0], ended.sites.len()), (first, 2));
    // Of the counters of site 1 in all threads.
    let now = IntervalSite { allocated_blocks: 10, allocated_bytes: 1000, live_blocks: 3, live_bytes: 300, ..first };
    assert_eq!((open.end, &open.sites[..]), (IntervalEnd::Open, &[now][..]));
    let log = EventLog { file: b"/tmp/log.77".to_vec(), lines: 12, wanted: b"log".to_vec(), ..EventLog::default() };
    assert_eq!(snapshot.event_log, log);
}

#[test]
fn intervals_share_no_records_and_name_sites_that_are_there() {
    let mut b = full();
    b.interval(1, interval_state::ENDED, 1, 2);
    b.interval(2, interval_state::ENDED_WITH_PROGRAM, 2, 50);
    b.interval_site(2, 99, [1, 1, 1, 1]);
    b.interval(3, 77, 0, 0);
    let snapshot = read(&b.bytes).unwrap();
    let sites: Vec<usize> = snapshot.intervals.iter().map(|interval| interval.sites.len()).collect();
    assert_eq!(sites, [2, 0, 1]);
    assert_eq!(snapshot.intervals[2].sites[0].site, SiteId(0));
    assert_eq!(
        snapshot.problems,
        [
            "1 intervals are damaged; they are left out",
            "51 sites of intervals are missing",
            "1 stacks of intervals are missing"
        ]
    );
}

#[test]
fn what_is_no_ledger_is_refused_in_one_sentence() {
    let words = |bytes: &[u8]| read(bytes).unwrap_err().to_string();
    assert!(words(&[]).starts_with("0 bytes are too few for a ledger"));
    assert!(words(&[0; 5000]).starts_with("not a leakscope ledger"));
    let mut newer = full();
    newer.header_u32(offset_of!(Header, version), 5);
    assert_eq!(words(&newer.bytes), "format version 5; this build reads 2-2. help: upgrade leakscope, or record again");
}

#[test]
fn a_cut_file_keeps_what_is_there() {
    let whole = full();
    let sites = whole.areas[AreaId::Sites as usize];
    // Cut in the second record of the sites: node 1 to 3 are whole, site 1 is not.
    let cut = &whole.bytes[..sites.offset as usize + sites.stride as usize + 1];
    let snapshot = read(cut).unwrap();
    assert_eq!(snapshot.nodes.len(), 4);
    assert_eq!(snapshot.sites.len(), 1);
    assert_eq!(snapshot.totals.len(), 1);
    assert!(snapshot.problems[0].starts_with("the file is cut short"));
    assert!(snapshot.problems.iter().any(|problem| problem == "2 of 3 allocation sites are missing"));
    // The size that the caller gives counts, not what the source would yield.
    let told = Snapshot::read(&whole.bytes[..], cut.len() as u64).unwrap();
    assert_eq!(told, snapshot);
}

#[test]
fn a_source_that_fails_midway_keeps_the_numbering() {
    /// Ends before its announced size, as a file on a failing disk.
    struct Failing<'a>(&'a [u8], u64);
    impl ReadAt for Failing<'_> {
        fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
            let failed = ReadError { offset, bytes: buf.len() as u64, errno: 5 };
            if offset == self.1 { Err(failed) } else { self.0.read_at(offset, buf) }
        }
    }
    let whole = full();
    let nodes = whole.areas[AreaId::Nodes as usize].offset;
    let snapshot = Snapshot::read(&Failing(&whole.bytes, nodes), whole.bytes.len() as u64).unwrap();
    assert_eq!(snapshot.nodes.len(), 4);
    assert_eq!(snapshot.sites[2].leaf, NodeId(3));
    assert_eq!(snapshot.problems, ["4 stack frames could not be read"]);
}

#[test]
fn only_records_that_nobody_can_have_overwritten_count() {
    // Checks 0 and 1 in the two halves; check 2 has begun in the half of check 0.
    let mut b = full();
    b.check(1, check_state::COMPLETE, 8, 1);
    b.check_record(8, 1, LeakKind::PossiblyLost, NO_HEURISTIC);
    b.check(2, check_state::RUNNING, 0, 0);
    let snapshot = read(&b.bytes).unwrap();
    let classified: Vec<(u32, bool)> = snapshot.checks.iter().map(|c| (c.number, c.records.is_some())).collect();
    assert_eq!(classified, [(0, false), (1, true), (2, false)]);
    assert_eq!(snapshot.last_complete_check().unwrap().number, 1);

    // The ring of headers: of 70 checks the first six are gone.
    let mut b = full();
    for number in 0..70 {
        b.check(number, check_state::COMPLETE, number % 2 * 8, 1);
    }
    b.check_record(8, 1, LeakKind::PossiblyLost, NO_HEURISTIC);
    let snapshot = read(&b.bytes).unwrap();
    assert_eq!(snapshot.checks.len(), 64);
    assert_eq!(snapshot.checks[0].number, 6);
    assert_eq!(snapshot.checks.iter().filter(|check| check.records.is_some()).count(), 2);
}

#[test]
fn what_is_claimed_but_not_filled_is_left_out() {
    let mut b = full();
    b.used(AreaId::Misuses, 3);
    b.used(AreaId::Checks, 2);
    b.used(AreaId::Sites, 5);
    b.used(AreaId::Modules, 3);
    let snapshot = read(&b.bytes).unwrap();
    assert_eq!((snapshot.misuses.len(), snapshot.checks.len()), (1, 1));
    assert!(snapshot.last_complete_check().is_some());
    assert_eq!(snapshot.stack(SiteId(4)).count(), 0);
    assert_eq!(snapshot.problems, Vec::<String>::new());
}

#[test]
fn hostile_references_are_cut() {
    let mut b = full();
    b.node(3, 0x1300, 3, 0);
    b.site(1, 1_000_000, 9, 9999);
    b.used(AreaId::Sites, 3);
    b.check_record(0, 50_000, LeakKind::DefinitelyLost, NO_HEURISTIC);
    b.check_record(1, 1, LeakKind::DefinitelyLost, 77);
    b.header_u64(offset_of!(Header, executable), string_ref(u32::MAX, u32::MAX));
    b.used(AreaId::Series, u32::MAX);
    let snapshot = read(&b.bytes).unwrap();
    assert_eq!(snapshot.nodes[3].parent, NodeId(0));
    assert_eq!((snapshot.sites[1].leaf, snapshot.sites[1].function), (NodeId(0), AllocFn::Malloc));
    let records = snapshot.checks[0].records.as_ref().unwrap();
    assert_eq!((records.len(), records[0].site), (1, SiteId(0)));
    assert_eq!(snapshot.process.executable, b"");
    assert_eq!(snapshot.series.len(), 8);
    assert_eq!(snapshot.problems.len(), 7, "{:?}", snapshot.problems);
}

/// What every snapshot promises, whatever the bytes were.
fn assert_invariants(snapshot: &Snapshot, file_bytes: usize) {
    assert!(snapshot.nodes.iter().enumerate().all(|(i, node)| node.parent.0 == 0 || (node.parent.0 as usize) < i));
    let sites = snapshot.sites.len().max(1);
    assert!(snapshot.sites.iter().all(|site| (site.leaf.0 as usize) < snapshot.nodes.len().max(1)));
    assert_eq!(snapshot.totals.len(), snapshot.sites.len());
    let in_range = |site: SiteId| (site.0 as usize) < sites;
    assert!(snapshot.misuses.iter().all(|m| in_range(m.site) && in_range(m.allocation_site) && in_range(m.free_site)));
    for check in &snapshot.checks {
        assert!(check.records.iter().flatten().all(|record| in_range(record.site)));
    }
    for interval in &snapshot.intervals {
        assert!(in_range(interval.begin_site) && in_range(interval.end_site));
        assert!(interval.sites.iter().all(|record| in_range(record.site)));
    }
    let records: usize = snapshot.intervals.iter().map(|interval| interval.sites.len()).sum();
    assert!(records * 40 <= 2 * file_bytes);
    let strings = snapshot.modules.iter().map(|module| module.path.len()).max().unwrap_or(0);
    assert!(
        strings <= file_bytes && snapshot.nodes.len() * 16 <= file_bytes && snapshot.sites.len() * 16 <= file_bytes
    );
    for site in 0..snapshot.sites.len() {
        assert!(snapshot.stack(SiteId(site as u32)).count() < snapshot.nodes.len().max(1));
    }
    let index = snapshot.module_index();
    for node in &snapshot.nodes {
        let slow = snapshot.modules.iter().any(|module| module.covers(node.lookup_pc(), node.epoch));
        assert_eq!(index.find(&snapshot.modules, node.lookup_pc(), node.epoch).is_some(), slow);
    }
}

#[test]
fn random_damage_never_panics_and_breaks_no_promise() {
    let whole = full().bytes;
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        // xorshift64*
        seed ^= seed >> 12;
        seed ^= seed << 25;
        seed ^= seed >> 27;
        (seed.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % below
    };
    const VALUES: [u8; 6] = [0, 1, 0x7f, 0x80, 0xfe, 0xff];
    // Bytes that are used: the rest of each area is zero and changing it changes little.
    let used: Vec<usize> = (0..whole.len()).filter(|&i| i < 2048 || whole[i] != 0).collect();
    let mut readable = 0;
    for round in 0..6000 {
        let mut bytes = whole.clone();
        for _ in 0..1 + random(6) {
            let at = if random(4) == 0 { random(bytes.len()) } else { used[random(used.len())] };
            bytes[at] = if random(2) == 0 { VALUES[random(VALUES.len())] } else { random(256) as u8 };
        }
        if round % 5 == 0 {
            bytes.truncate(random(bytes.len()));
        }
        if let Ok(snapshot) = read(&bytes) {
            readable += 1;
            assert_invariants(&snapshot, bytes.len());
        }
    }
    assert!(readable > 3000, "{readable} of 6000 were read: damage in the body must not refuse a ledger");
}
