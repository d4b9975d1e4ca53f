//! Large inputs, the same at every call: a recording with many sites, Valgrind's XML, a log of glibc's mtrace.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::Arc;

use leakscope_findings::Recording;
use leakscope_findings::recording::{
    Check, CheckRecord, CheckState, End, FrameRecord, Location, Module, Node, ProcessFacts, ProcessRecording, Sample,
    Site, State, Totals,
};
use leakscope_model::{AllocFn, CheckTrigger, LeakKind};

/// Samples of the heap in a recording; the ledger keeps no more, however long a program runs.
pub const SAMPLES: u64 = 2048;
/// Leak checks in a recording: four a day.
pub const CHECKS: u32 = 28;
/// Blocks that are live at one time in an mtrace log.
pub const LIVE_BLOCKS: usize = 10_000;
/// Callers in an mtrace log.
pub const CALLERS: u64 = 500;

const WEEK_NS: u64 = 7 * 24 * 3600 * 1_000_000_000;
const FUNCTIONS: u64 = 3000;
const DEEPEST: u64 = 24;
const SHALLOWEST: u64 = 8;
/// Every so many sites one grows from check to check.
const GROWING: u32 = 50;

/// SplitMix64. Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

fn function_name(number: u64) -> String {
    format!("shop::component_{}::Session::handle_request_{number}(shop::Request const&)", number % 40)
}

/// A program that ran for a week, with so many sites.
pub fn recording(sites: u32) -> Recording {
    let mut numbers = Numbers(u64::from(sites));
    let mut process = empty_process();
    let mut known: HashMap<(u32, u64), u32> = HashMap::new();
    process.sites.push(Site::default());
    for number in 1..=sites {
        let mut node = step(&mut process, &mut known, 0, 0);
        for depth in 1..SHALLOWEST + numbers.below(DEEPEST - SHALLOWEST) {
            // Few ways near `main`, many far from it.
            let ways = if depth < 4 { 6 } else { 3 };
            node = step(&mut process, &mut known, node, 1 + numbers.below(ways));
        }
        // A path of its own, as sites are told apart by their stacks.
        node = step(&mut process, &mut known, node, 1000 + u64::from(number));
        let blocks = 1 + numbers.below(500);
        process.sites.push(site(node, blocks, blocks * (16 + numbers.below(4000))));
    }
    process.checks = (0..CHECKS).map(|number| check(&process.sites, number)).collect();
    process.series = series(&process);
    Recording { tool_version: "0.1.0".to_owned(), processes: vec![process], ..Recording::default() }
}

fn empty_process() -> ProcessRecording {
    let mut strings: Vec<Arc<str>> = vec!["".into(), "service.cpp".into(), "/srv/build/src".into(), "main".into()];
    strings.extend((0..FUNCTIONS).map(|number| Arc::from(function_name(number))));
    ProcessRecording {
        process: ProcessFacts {
            pid: 4242,
            parent_pid: 1,
            state: State::Ended,
            executable: "/srv/bin/service".to_owned(),
            command_line: vec!["service".to_owned(), "--listen".to_owned()],
            start_realtime_ns: 1_790_000_000_000_000_000,
            start_monotonic_ns: 1,
            end_monotonic_ns: 1 + WEEK_NS,
            max_frames: 256,
            ..ProcessFacts::default()
        },
        end: End::Exited(0),
        modules: vec![Module { start: 0x1000, end: 0x4000_0000, path: "/srv/bin/service".into(), ..Module::default() }],
        strings,
        locations: vec![Location::default()],
        nodes: vec![Node::default()],
        ..ProcessRecording::default()
    }
}

/// The node of a call out of `parent`, made at its first use.
fn step(process: &mut ProcessRecording, known: &mut HashMap<(u32, u64), u32>, parent: u32, way: u64) -> u32 {
    *known.entry((parent, way)).or_insert_with(|| {
        let number = process.nodes.len() as u64;
        let function = if parent == 0 { 3 } else { 4 + Numbers(number).below(FUNCTIONS) as u32 };
        let first_frame = process.frames.len() as u32;
        let line = 1 + (number % 900) as u32;
        process.frames.push(FrameRecord { function, file: 1, directory: 2, line, ..FrameRecord::default() });
        process.locations.push(Location { pc: 0x1000 + 16 * number, module: 1, first_frame, frames: 1 });
        process.nodes.push(Node { location: process.locations.len() as u32 - 1, parent });
        number as u32
    })
}

fn site(leaf: u32, blocks: u64, bytes: u64) -> Site {
    let totals = Totals {
        allocated_blocks: blocks * 40,
        allocated_bytes: bytes * 40,
        freed_blocks: blocks * 39,
        freed_bytes: bytes * 39,
        live_blocks: blocks,
        live_bytes: bytes,
        peak_bytes: bytes * 2,
        peak_blocks: blocks * 2,
        temporary_blocks: blocks,
        largest_bytes: bytes / blocks,
        lifetimes: vec![1, 20, 300, 40, 5],
    };
    Site { leaf, function: AllocFn::Malloc, flags: 0, totals }
}

fn check(sites: &[Site], number: u32) -> Check {
    let record = |(index, site): (usize, &Site)| {
        let index = index as u32;
        // What grows has reached its last size at the last check.
        let part = if index.is_multiple_of(GROWING) { u64::from(number + 1) } else { u64::from(CHECKS) };
        let (blocks, bytes) = (site.totals.live_blocks, site.totals.live_bytes * part / u64::from(CHECKS));
        let kind =
            [LeakKind::StillReachable, LeakKind::DefinitelyLost, LeakKind::StillReachable, LeakKind::PossiblyLost]
                [index as usize % 4];
        let addresses = [0x7f00_0000_0000 + u64::from(index) * 64, 0, 0];
        CheckRecord {
            site: index,
            kind,
            heuristic: None,
            blocks,
            bytes,
            indirect_blocks: 0,
            indirect_bytes: 0,
            addresses,
        }
    };
    let records: Vec<CheckRecord> = sites.iter().enumerate().skip(1).map(record).collect();
    let is_last = number + 1 == CHECKS;
    Check {
        number,
        state: CheckState::Complete,
        trigger: if is_last { CheckTrigger::Exit } else { CheckTrigger::OnDemand },
        monotonic_ns: 1 + WEEK_NS / u64::from(CHECKS) * u64::from(number + 1),
        blocks: records.iter().map(|record| record.blocks).sum(),
        bytes: records.iter().map(|record| record.bytes).sum(),
        root_bytes: 1 << 20,
        unreadable_bytes: 0,
        threads_seen: 8,
        threads_unseen: 0,
        pause_ns: 3_000_000,
        check_ns: 300_000_000,
        lost_records: 0,
        status: 0,
        freeres: is_last,
        failure: String::new(),
        records: Some(records),
    }
}

fn series(process: &ProcessRecording) -> Vec<Sample> {
    let last: u64 = process.sites.iter().map(|site| site.totals.live_bytes).sum();
    let sample = |number: u64| {
        let live_bytes = last / 2 + last / 2 * number / SAMPLES;
        let monotonic_ns = 1 + WEEK_NS / SAMPLES * (number + 1);
        Sample { monotonic_ns, live_bytes, live_blocks: live_bytes / 100, resident_bytes: live_bytes * 3 / 2 }
    };
    (0..SAMPLES).map(sample).collect()
}

/// A report of Memcheck with so many loss records of 12 frames, no two with the same stack.
///
/// # Errors
/// It cannot be written.
pub fn valgrind_xml(out: &mut impl Write, errors: u32) -> io::Result<()> {
    out.write_all(
        b"<?xml version=\"1.0\"?>\n\n<valgrindoutput>\n\n<protocolversion>4</protocolversion>\n\
          <protocoltool>memcheck</protocoltool>\n\n<pid>4242</pid>\n<ppid>1</ppid>\n<tool>memcheck</tool>\n\n\
          <args>\n  <argv>\n    <exe>./service</exe>\n  </argv>\n</args>\n\n\
          <status>\n  <state>FINISHED</state>\n  <time>00:00:00:10.000 </time>\n</status>\n\n",
    )?;
    let mut numbers = Numbers(1);
    for number in 0..errors {
        write!(
            out,
            "<error>\n  <unique>{number:#x}</unique>\n  <tid>1</tid>\n  <kind>Leak_DefinitelyLost</kind>\n  <xwhat>\n    \
             <text>32 bytes in 2 blocks are definitely lost in loss record {} of {errors}</text>\n    \
             <leakedbytes>32</leakedbytes>\n    <leakedblocks>2</leakedblocks>\n  </xwhat>\n  <stack>\n    <frame>\n      \
             <ip>0x4841F2F</ip>\n      <obj>/usr/libexec/valgrind/vgpreload_memcheck-amd64-linux.so</obj>\n      \
             <fn>operator new(unsigned long)</fn>\n    </frame>\n",
            number + 1
        )?;
        for depth in 0..11 {
            // The innermost function is this record's own.
            let function = if depth == 0 { u64::from(number) } else { numbers.below(FUNCTIONS) };
            write!(
                out,
                "    <frame>\n      <ip>{:#X}</ip>\n      <obj>/srv/bin/service</obj>\n      <fn>{}</fn>\n      \
                 <dir>/srv/build/src</dir>\n      <file>service.cpp</file>\n      <line>{}</line>\n    </frame>\n",
                0x40_0000 + function * 64,
                function_name(function).replace('&', "&amp;"),
                1 + function % 900
            )?;
        }
        out.write_all(b"  </stack>\n</error>\n\n")?;
    }
    out.write_all(b"</valgrindoutput>\n")
}

/// A log of glibc's mtrace with so many events; the blocks that live last are never freed.
///
/// # Errors
/// It cannot be written.
pub fn mtrace_log(out: &mut impl Write, events: u32) -> io::Result<()> {
    let mut numbers = Numbers(2);
    let mut live = Vec::with_capacity(LIVE_BLOCKS);
    out.write_all(b"= Start\n")?;
    for number in 0..u64::from(events) {
        let caller = 0x1000 + numbers.below(CALLERS) * 16;
        if live.len() == LIVE_BLOCKS || (live.len() > LIVE_BLOCKS / 2 && number % 2 == 1) {
            let address: u64 = live.swap_remove(numbers.below(live.len() as u64) as usize);
            writeln!(out, "@ /srv/bin/service:[{caller:#x}] - {address:#x}")?;
        } else {
            let address = 0x5563_4e08_0000 + number * 32;
            live.push(address);
            writeln!(out, "@ /srv/bin/service:[{caller:#x}] + {address:#x} {:#x}", 1 + numbers.below(4096))?;
        }
    }
    Ok(())
}
