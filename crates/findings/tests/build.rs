//! From a ledger's snapshot to a recording.

use std::time::Instant;

use leakscope_findings::analysis::{Detail, LeakCheck};
use leakscope_findings::recording::{BuildOptions, Names, ProcessRecording, ResolvedFrame, build};
use leakscope_findings::{Options, Suppressions, analyse, decode, encode};
use leakscope_ledger::reader::{
    Check, CheckRecord, CheckState, Misuse, Module, Node, Process, Site, SiteTotals, Snapshot,
};
use leakscope_model::{AllocFn, CheckTrigger, LeakKind, MisuseKind, NodeId, SiteId, ThreadId};

fn module(path: &str, start: u64, loaded_epoch: u32, unloaded_epoch: u32) -> Module {
    Module {
        start,
        end: start + 0x1_0000,
        load_bias: start,
        path: path.into(),
        build_id: vec![1],
        loaded_epoch,
        unloaded_epoch,
    }
}

fn node(pc: u64, parent: u32, epoch: u32) -> Node {
    Node { pc, parent: NodeId(parent), epoch }
}

fn site(leaf: u32) -> Site {
    Site { leaf: NodeId(leaf), frames: 2, function: AllocFn::Malloc, flags: 0 }
}

fn totals(allocated: u64, freed: u64) -> SiteTotals {
    SiteTotals {
        allocated_blocks: allocated,
        allocated_bytes: allocated * 10,
        freed_blocks: freed,
        freed_bytes: freed * 10,
        ..SiteTotals::default()
    }
}

fn check(records: Vec<CheckRecord>) -> Check {
    Check {
        number: 0,
        state: CheckState::Complete,
        trigger: CheckTrigger::Exit,
        monotonic_ns: 0,
        blocks: records.iter().map(|record| record.blocks).sum(),
        bytes: records.iter().map(|record| record.bytes).sum(),
        root_bytes: 0,
        unreadable_bytes: 0,
        threads_seen: 1,
        threads_unseen: 0,
        pause_ns: 0,
        check_ns: 0,
        lost_records: 0,
        status: 0,
        freeres: true,
        failure: Vec::new(),
        records: Some(records),
    }
}

fn record(site: u32, bytes: u64, blocks: u64) -> CheckRecord {
    CheckRecord {
        site: SiteId(site),
        kind: LeakKind::DefinitelyLost,
        heuristic: None,
        blocks,
        bytes,
        indirect_blocks: 0,
        indirect_bytes: 0,
        addresses: [0; 3],
    }
}

/// A library that was unloaded and another that took its place; four sites of which two are of interest.
fn snapshot() -> Snapshot {
    let misuse = Misuse {
        kind: MisuseKind::DoubleFree,
        site: SiteId(3),
        allocation_site: SiteId(0),
        free_site: SiteId(0),
        address: 1,
        block_start: 0,
        block_bytes: 0,
        count: 1,
        thread: ThreadId(1),
        overrun_offset: 0,
    };
    Snapshot {
        modules: vec![
            module("/app", 0x1_0000, 0, u32::MAX),
            module("/old.so", 0x9_0000, 1, 2),
            module("/new.so", 0x9_0000, 2, u32::MAX),
            module("/run/pre.so", 0x5_0000, 0, u32::MAX),
        ],
        nodes: vec![
            node(0, 0, 0),
            node(0x1_0101, 0, 0), // main
            node(0x9_0201, 1, 1), // old.so
            node(0x9_0201, 1, 2), // new.so, the same address
            node(0x1_0301, 1, 0), // only on the stack of a site without live blocks
            node(0x9_0201, 1, 1), // old.so again, from elsewhere in the tree
            node(0xdead, 1, 0),   // in no module
        ],
        sites: vec![site(0), site(2), site(4), site(3), site(6)],
        totals: vec![totals(0, 0), totals(5, 2), totals(9, 9), totals(1, 1), totals(2, 1)],
        misuses: vec![misuse],
        checks: vec![check(vec![record(1, 30, 3)])],
        ..Snapshot::default()
    }
}

fn built(options: &BuildOptions) -> (ProcessRecording, Vec<(u32, Vec<u64>)>) {
    let mut asked = Vec::new();
    let recording = build(&snapshot(), options, &mut |id, module, addresses| {
        asked.push((id.0, addresses.iter().map(|svma| svma.0).collect()));
        let path = String::from_utf8_lossy(&module.path).into_owned();
        let frame = |svma: u64| ResolvedFrame {
            function: Some(format!("{path}:{svma:x}")),
            line: Some(svma as u32),
            ..ResolvedFrame::default()
        };
        addresses.iter().map(|svma| vec![ResolvedFrame { inlined: true, ..frame(svma.0) }, frame(svma.0)]).collect()
    });
    (recording, asked)
}

#[test]
fn each_address_is_looked_up_once_in_the_module_of_its_time() {
    let (wishes, rules) = (Options::default(), Suppressions::new());
    let names = Names::For(&wishes, &rules);
    let options = BuildOptions { names, hook_file_name: "pre.so".into(), ..BuildOptions::default() };
    let (recording, asked) = built(&options);
    // One less than the return address; nothing for node 4, which no report names by default.
    assert_eq!(asked, [(0, vec![0x100]), (1, vec![0x200]), (2, vec![0x200])]);
    assert_eq!(recording.hook_module, Some(3));
    let functions = |site: u32| -> Vec<String> {
        let mut out = Vec::new();
        for number in recording.stack(site) {
            let frames = recording.frames_of(&recording.locations[number as usize]);
            out.extend(frames.iter().map(|frame| recording.string(frame.function).to_string()));
        }
        out
    };
    assert_eq!(functions(1), ["/old.so:200", "/old.so:200", "/app:100", "/app:100"]);
    assert_eq!(functions(3), ["/new.so:200", "/new.so:200", "/app:100", "/app:100"]);
    assert_eq!(functions(2), ["/app:100", "/app:100"], "the frame of a site of no interest has no name");
    assert_eq!((recording.sites[1].totals.live_blocks, recording.sites[1].totals.live_bytes), (3, 30));
    assert!(recording.modules[1].unloaded && !recording.modules[2].unloaded);
}

#[test]
fn all_symbols_are_looked_up_when_asked_for() {
    let (_, asked) = built(&BuildOptions::default());
    assert_eq!(asked, [(0, vec![0x100, 0x300]), (1, vec![0x200]), (2, vec![0x200])]);
}

/// Stacks of libc (module 1) below and above `main` of the program: what is below `main` is not looked up for a report,
/// unless the stack never passes `main`, the user wants it shown, or rules may name it.
#[test]
fn callers_of_main_are_not_looked_up_for_a_report() {
    let snapshot = Snapshot {
        process: Process { executable: b"/app".to_vec(), ..Process::default() },
        modules: vec![module("/app", 0x1_0000, 0, u32::MAX), module("/libc.so.6", 0x9_0000, 0, u32::MAX)],
        nodes: vec![
            node(0, 0, 0),
            node(0x9_0101, 0, 0), // __libc_start_main
            node(0x1_0101, 1, 0), // main
            node(0x9_0201, 2, 0), // a function of libc that main calls
            node(0x9_0301, 0, 0), // a start of a thread
            node(0x1_0201, 4, 0), // a function of the program in that thread
        ],
        sites: vec![site(0), site(3), site(5)],
        totals: vec![totals(0, 0), totals(1, 0), totals(1, 0)],
        checks: vec![check(vec![record(1, 30, 3), record(2, 40, 4)])],
        ..Snapshot::default()
    };
    let asked = |wishes: &Options, rules: &Suppressions| {
        let mut asked = Vec::new();
        let options = BuildOptions { names: Names::For(wishes, rules), ..BuildOptions::default() };
        build(&snapshot, &options, &mut |id, _, addresses| {
            asked.push((id.0, addresses.iter().map(|svma| svma.0).collect::<Vec<u64>>()));
            let name = |svma: u64| if (id.0, svma) == (0, 0x100) { "main".to_owned() } else { format!("f{svma:x}") };
            let frame = |svma| ResolvedFrame { function: Some(name(svma)), ..ResolvedFrame::default() };
            addresses.iter().map(|svma| vec![frame(svma.0)]).collect()
        });
        asked
    };
    let mut rules = Suppressions::new();
    rules.add("x", "{\nr\nMemcheck:Leak\nfun:malloc\nfun:f*\n}\n").unwrap();
    let shown = Options { leak_check: LeakCheck::Full, detail: Detail::Shown, ..Options::default() };
    let all = vec![(0, vec![0x100, 0x200]), (1, vec![0x100, 0x200, 0x300])];
    assert_eq!(asked(&shown, &Suppressions::new()), [(0, vec![0x100, 0x200]), (1, vec![0x200, 0x300])]);
    assert_eq!(asked(&shown, &rules), all);
    assert_eq!(asked(&Options { show_below_main: true, ..shown.clone() }, &Suppressions::new()), all);
    assert_eq!(asked(&Options { detail: Detail::All, ..shown }, &Suppressions::new()), all);
}

/// A program with many sites, as cc1plus: `sites` stacks 20 deep over a tenth as many addresses.
fn large(sites: u32) -> Snapshot {
    let mut snapshot = Snapshot { modules: vec![module("/app", 0x10_0000, 0, u32::MAX)], ..Snapshot::default() };
    snapshot.modules[0].end = 0x1000_0000;
    snapshot.nodes.push(node(0, 0, 0));
    snapshot.sites.push(site(0));
    snapshot.totals.push(totals(0, 0));
    let mut spine = vec![0];
    let mut state = 1_u64;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut records = Vec::new();
    for number in 1..=sites {
        spine.truncate(spine.len().min(13 + random(7) as usize));
        while spine.len() < 20 {
            let parent = *spine.last().unwrap();
            snapshot.nodes.push(node(0x10_0001 + 16 * random(u64::from(sites) / 10), parent, 0));
            spine.push(snapshot.nodes.len() as u32 - 1);
        }
        snapshot.sites.push(site(*spine.last().unwrap()));
        snapshot.totals.push(totals(1000 + random(1000), 900));
        records.push(record(number, 100 + random(10_000), 1 + random(50)));
    }
    snapshot.checks.push(check(records));
    snapshot
}

fn resolved(address: u64) -> Vec<ResolvedFrame> {
    let frame = |name: String, inlined| ResolvedFrame {
        linkage_name: Some(format!("_ZN8compiler{}{name}Ev", name.len())),
        function: Some(format!("compiler::{name}()")),
        file: Some(format!("file{}.cc", address % 300)),
        directory: Some("/usr/src/compiler".into()),
        line: Some(address as u32 % 5000),
        column: Some(7),
        inlined,
    };
    vec![frame(format!("inner_{address:x}"), true), frame(format!("outer_{address:x}"), false)]
}

/// Numbers for the documentation: `cargo test --release -p leakscope-findings --test build -- --ignored --nocapture`.
#[test]
#[ignore = "measures; run it in release"]
fn speed_with_100_000_sites() {
    let snapshot = large(100_000);
    let timed = |what: &str, start: Instant| eprintln!("{what}: {:.0} ms", start.elapsed().as_secs_f64() * 1000.0);
    let start = Instant::now();
    let mut addresses = 0;
    let process = build(&snapshot, &BuildOptions::default(), &mut |_, _, asked| {
        addresses += asked.len();
        asked.iter().map(|svma| resolved(svma.0)).collect()
    });
    timed("build", start);
    eprintln!("{} sites, {} nodes, {addresses} addresses", process.sites.len(), process.nodes.len());
    let recording = leakscope_findings::Recording { processes: vec![process], ..Default::default() };
    let start = Instant::now();
    let bytes = encode(&recording);
    timed("encode", start);
    eprintln!("{} bytes", bytes.len());
    let start = Instant::now();
    let (read, problems) = decode(&bytes).unwrap();
    timed("decode", start);
    assert!(read == recording && problems.is_empty());
    let mut suppressions = Suppressions::new();
    for number in 0..100 {
        let rule = format!("{{\nr\nMemcheck:Leak\n...\nfun:none{number}\n}}\n");
        suppressions.add("x", &rule).unwrap();
    }
    let options = Options { leak_check: LeakCheck::Full, ..Options::default() };
    let start = Instant::now();
    let analysis = analyse("0", &read.processes[0], &options, &Suppressions::new());
    timed("analyse", start);
    eprintln!("{} records", analysis.records.len());
    let start = Instant::now();
    analyse("0", &read.processes[0], &options, &suppressions);
    timed("analyse with 100 rules", start);
}
