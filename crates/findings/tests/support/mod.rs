//! Recordings made by hand.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::sync::Arc;

use leakscope_findings::recording::{
    Check, CheckRecord, CheckState, End, FrameRecord, Location, Misuse, Module, Node, ProcessFacts, ProcessRecording,
    Sample, Site, State, Thread, Totals,
};
use leakscope_model::{AllocFn, CheckTrigger, Heuristic, LeakKind, MisuseKind};

/// A frame: function, linker's name, file, line.
pub type Named<'a> = (&'a str, &'a str, &'a str, u32);

/// A recording in the making. Module 0 is the hooks' library, 1 the program, 2 libc.
pub struct Maker {
    pub recorded: ProcessRecording,
}

impl Maker {
    pub fn new() -> Self {
        let module = |path: &str, start: u64| Module {
            start,
            end: start + 0x10_0000,
            load_bias: start,
            path: path.into(),
            build_id: vec![0xab; 20],
            unloaded: false,
        };
        let recorded = ProcessRecording {
            process: ProcessFacts {
                pid: 4242,
                parent_pid: 4241,
                state: State::Ended,
                executable: "/work/app".into(),
                command_line: vec!["./app".into(), "--flag".into()],
                start_realtime_ns: 1_700_000_000_000_000_000,
                start_monotonic_ns: 5_000_000_000,
                end_monotonic_ns: 6_234_000_000,
                max_frames: 64,
                ..ProcessFacts::default()
            },
            end: End::Exited(0),
            modules: vec![
                module("/run/leakscope/preload.so", 0x7000_0000),
                module("/work/app", 0x40_0000),
                module("/lib/x86_64-linux-gnu/libc.so.6", 0x7100_0000),
            ],
            hook_module: Some(0),
            strings: vec!["".into()],
            locations: vec![Location::default()],
            nodes: vec![Node::default()],
            sites: vec![Site::default()],
            threads: vec![Thread::default(), Thread { tid: 4242, ..Thread::default() }],
            ..ProcessRecording::default()
        };
        Self { recorded }
    }

    fn string(&mut self, text: &str) -> u32 {
        let strings = &mut self.recorded.strings;
        let known = strings.iter().position(|known| &**known == text);
        known.unwrap_or_else(|| {
            strings.push(Arc::from(text));
            strings.len() - 1
        }) as u32
    }

    /// An address in a module with its frames, innermost (inlined) first.
    pub fn at(&mut self, module: u32, svma: u64, frames: &[Named<'_>]) -> u32 {
        let first_frame = self.recorded.frames.len() as u32;
        for (i, &(function, linkage_name, file, line)) in frames.iter().enumerate() {
            let record = FrameRecord {
                function: self.string(function),
                linkage_name: self.string(linkage_name),
                file: self.string(file),
                directory: if file.is_empty() { 0 } else { self.string("/work/src") },
                line,
                column: 0,
                inlined: i + 1 < frames.len(),
            };
            self.recorded.frames.push(record);
        }
        let pc = self.recorded.modules[module as usize].load_bias + svma;
        let location = Location { pc, module: module + 1, first_frame, frames: frames.len() as u32 };
        self.recorded.locations.push(location);
        self.recorded.locations.len() as u32 - 1
    }

    /// A location in the program with one function of `app.c`.
    pub fn function(&mut self, name: &str, line: u32) -> u32 {
        self.at(1, 0x1000 + u64::from(line) * 16, &[(name, "", "app.c", line)])
    }

    /// A site with this stack, innermost first, with its totals.
    pub fn site(&mut self, function: AllocFn, stack: &[u32], bytes: u64, blocks: u64) -> u32 {
        let nodes = &mut self.recorded.nodes;
        let mut parent = 0;
        for &location in stack.iter().rev() {
            let known = nodes.iter().skip(1).position(|node| *node == Node { location, parent });
            parent = known.map_or_else(
                || {
                    nodes.push(Node { location, parent });
                    nodes.len() as u32 - 1
                },
                |known| known as u32 + 1,
            );
        }
        let totals = Totals {
            allocated_blocks: blocks,
            allocated_bytes: bytes,
            live_blocks: blocks,
            live_bytes: bytes,
            peak_bytes: bytes,
            peak_blocks: blocks,
            largest_bytes: bytes / blocks.max(1),
            ..Totals::default()
        };
        self.recorded.sites.push(Site { leaf: parent, function, flags: 0, totals });
        self.recorded.sites.len() as u32 - 1
    }

    /// A complete check with these records: site, kind, bytes, blocks, indirect bytes, indirect blocks.
    pub fn check(&mut self, records: &[(u32, LeakKind, u64, u64, u64, u64)]) -> &mut Check {
        let records: Vec<CheckRecord> = records
            .iter()
            .map(|&(site, kind, bytes, blocks, indirect_bytes, indirect_blocks)| CheckRecord {
                site,
                kind,
                heuristic: None,
                blocks,
                bytes,
                indirect_blocks,
                indirect_bytes,
                addresses: [0x5000 + u64::from(site) * 16, 0, 0],
            })
            .collect();
        let number = self.recorded.checks.len() as u32;
        self.recorded.checks.push(Check {
            number,
            state: CheckState::Complete,
            trigger: CheckTrigger::Exit,
            monotonic_ns: 6_234_000_000,
            blocks: records.iter().map(|record| record.blocks).sum(),
            bytes: records.iter().map(|record| record.bytes).sum(),
            root_bytes: 65536,
            unreadable_bytes: 0,
            threads_seen: 1,
            threads_unseen: 0,
            pause_ns: 1_500_000,
            check_ns: 2_500_000,
            lost_records: 0,
            status: 0,
            freeres: true,
            failure: String::new(),
            records: Some(records),
        });
        self.recorded.checks.last_mut().expect("just pushed")
    }

    /// A wrong call, once.
    pub fn misuse(&mut self, kind: MisuseKind, site: u32, address: u64) -> &mut Misuse {
        self.recorded.misuses.push(Misuse {
            kind,
            site,
            allocation_site: 0,
            free_site: 0,
            address,
            block_start: 0,
            block_bytes: 0,
            count: 1,
            thread: 1,
            overrun_offset: 0,
        });
        self.recorded.misuses.last_mut().expect("just pushed")
    }
}

/// One of everything: leaks of each kind, inlined frames, a suppressed and a stripped one, wrong calls.
pub fn sample() -> ProcessRecording {
    let mut m = Maker::new();
    let main = m.function("main", 40);
    let start = m.at(2, 0x2724a, &[("__libc_start_call_main", "", "", 0)]);
    let entry = m.at(1, 0x1050, &[("_start", "", "", 0)]);
    let tail = [main, start, entry];
    let with = |first: &[u32]| [first, &tail].concat();

    let make_node = m.function("make_node", 10);
    let build = m.function("build_list", 20);
    let node = m.site(AllocFn::Malloc, &with(&[make_node, build]), 48, 3);
    let head = m.site(AllocFn::Malloc, &with(&[make_node]), 16, 1);
    let push = m.at(
        1,
        0x2000,
        &[
            (
                "std::vector<int, std::allocator<int> >::push_back(int&&)",
                "_ZNSt6vectorIiSaIiEE9push_backEOi",
                "stl_vector.h",
                1278,
            ),
            ("Cache::add(int)", "_ZN5Cache3addEi", "cache.cpp", 7),
        ],
    );
    let cache = m.site(AllocFn::New, &with(&[push]), 4096, 2);
    let stripped = m.at(2, 0x8_0000, &[]);
    let global = m.site(AllocFn::Calloc, &with(&[stripped]), 1_234_567, 1);
    let at_table = m.function("table", 30);
    let array = m.site(AllocFn::NewArray, &with(&[at_table]), 800, 4);
    let at_twice = m.function("twice", 51);
    let at_drop_it = m.function("drop_it", 52);
    let at_huge = m.function("huge", 53);
    let at_known_leak = m.function("known_leak", 60);
    let release = m.function("release", 50);
    let freed = m.site(AllocFn::Free, &with(&[release]), 0, 0);
    let twice = m.site(AllocFn::Free, &with(&[at_twice]), 0, 0);
    let deleted = m.site(AllocFn::Delete, &with(&[at_drop_it]), 0, 0);
    let huge = m.site(AllocFn::Malloc, &with(&[at_huge]), 0, 0);
    let hidden = m.site(AllocFn::Malloc, &with(&[at_known_leak]), 77, 7);

    m.check(&[
        (node, LeakKind::IndirectlyLost, 48, 3, 0, 0),
        (head, LeakKind::DefinitelyLost, 16, 1, 48, 3),
        (cache, LeakKind::PossiblyLost, 4096, 2, 0, 0),
        (global, LeakKind::StillReachable, 1_234_567, 1, 0, 0),
        (array, LeakKind::StillReachable, 800, 4, 0, 0),
        (hidden, LeakKind::DefinitelyLost, 77, 7, 0, 0),
    ])
    .records
    .as_mut()
    .expect("complete")[4]
        .heuristic = Some(Heuristic::NewArray);

    let double = m.misuse(MisuseKind::DoubleFree, twice, 0x5040);
    (double.block_start, double.block_bytes, double.count) = (0x5040, 10, 2);
    (double.allocation_site, double.free_site) = (head, freed);
    m.misuse(MisuseKind::InvalidFree, freed, 0x1234);
    let interior = m.misuse(MisuseKind::InteriorFree, deleted, 0x5043);
    (interior.block_start, interior.block_bytes, interior.allocation_site) = (0x5040, 10, head);
    let mismatch = m.misuse(MisuseKind::MismatchedFree, deleted, 0x5040);
    (mismatch.block_start, mismatch.block_bytes, mismatch.allocation_site) = (0x5040, 10, head);
    mismatch.thread = 2;
    m.misuse(MisuseKind::FishySize, huge, 0).block_bytes = u64::MAX;
    let overrun = m.misuse(MisuseKind::Overrun, freed, 0x5040);
    (overrun.block_start, overrun.block_bytes, overrun.allocation_site) = (0x5040, 10, head);
    overrun.overrun_offset = 2;
    let zero = m.misuse(MisuseKind::ReallocZero, twice, 0x5040);
    (zero.block_start, zero.block_bytes, zero.allocation_site) = (0x5040, 10, head);

    m.recorded.lost.deep_stacks = 3;
    m.recorded.series.push(Sample { monotonic_ns: 5_500_000_000, live_bytes: 9, live_blocks: 1, resident_bytes: 4096 });
    m.recorded
}

/// The rule that hides one leak of [`sample`].
pub const SAMPLE_RULE: &str = "{\n   a known leak\n   Memcheck:Leak\n   fun:malloc\n   fun:known_leak\n}\n";
