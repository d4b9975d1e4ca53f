//! What other tools found: through the container, through the rules, and one finding of several witnesses.

use std::sync::Arc;

use leakscope_findings::analysis::{LeakCheck, Options, Outcome};
use leakscope_findings::recording::{
    Access, AuxiliaryStack, FrameRecord, Location, MemoryError, Node, ProcessRecording, Site, State, Witness,
};
use leakscope_findings::witness::{Class, combine};
use leakscope_findings::{Recording, Suppressions, analyse, decode, encode};
use leakscope_model::{ErrorKind, Tool};

/// A process with the stack `inner < main`, an invalid read there, and a live block.
fn process(tool: Tool, live_bytes: u64) -> ProcessRecording {
    let names = ["", "inner", "main"];
    let mut process = ProcessRecording {
        strings: names.iter().map(|name| Arc::from(*name)).collect(),
        frames: (1..3).map(|function| FrameRecord { function, ..FrameRecord::default() }).collect(),
        locations: vec![
            Location::default(),
            Location { pc: 0x10, first_frame: 0, frames: 1, ..Location::default() },
            Location { pc: 0x20, first_frame: 1, frames: 1, ..Location::default() },
        ],
        nodes: vec![Node::default(), Node { location: 2, parent: 0 }, Node { location: 1, parent: 1 }],
        sites: vec![Site::default(), Site { leaf: 2, ..Site::default() }],
        witness: Witness { tool, version: "1".to_owned() },
        ..ProcessRecording::default()
    };
    process.process.state = State::Ended;
    process.sites[1].totals.live_bytes = live_bytes;
    process.sites[1].totals.live_blocks = u64::from(live_bytes > 0);
    process.memory_errors = vec![MemoryError {
        kind: ErrorKind::InvalidRead,
        access: Access::Read,
        access_bytes: 4,
        address: 0x1000,
        message: "Invalid read of size 4".to_owned(),
        leaf: 2,
        auxiliary: vec![AuxiliaryStack { label: "Block was alloc'd at".to_owned(), leaf: 1 }],
        count: 3,
        thread: 0,
    }];
    process
}

fn full() -> Options {
    Options { leak_check: LeakCheck::Full, ..Options::default() }
}

#[test]
fn foreign_findings_survive_the_container() {
    let recording = Recording { processes: vec![process(Tool::Memcheck, 7)], ..Recording::default() };
    let (again, problems) = decode(&encode(&recording)).unwrap();
    assert_eq!(again, recording);
    assert_eq!(problems, []);
}

#[test]
fn our_own_recordings_have_no_section_of_it() {
    let mut own = process(Tool::Leakscope, 7);
    own.memory_errors.clear();
    own.witness = Witness::default();
    let bytes = encode(&Recording { processes: vec![own], ..Recording::default() });
    assert!(!bytes.windows(4).any(|window| window == b"WITN"));
}

#[test]
fn an_earlier_build_skips_the_section() {
    // What it does with a tag that it does not know.
    let recording = Recording { processes: vec![process(Tool::Memcheck, 7)], ..Recording::default() };
    let mut bytes = encode(&recording);
    let at = bytes.windows(4).position(|window| window == b"WITN").unwrap();
    bytes[at..at + 4].copy_from_slice(b"ZZZZ");
    let (again, problems) = decode(&bytes).unwrap();
    assert_eq!(problems, []);
    assert_eq!(again.processes[0].sites, recording.processes[0].sites);
    assert_eq!(again.processes[0].memory_errors, []);
}

#[test]
fn memory_errors_count_and_rules_hide_them() {
    let recorded = process(Tool::Memcheck, 0);
    let analysis = analyse("0", &recorded, &full(), &Suppressions::new());
    assert_eq!((analysis.errors.errors, analysis.errors.contexts), (3, 1));
    assert_eq!(analysis.outcome, Outcome::NotChecked);
    let stack: Vec<_> = analysis.memory_errors[0].stack.frames().iter().map(|frame| frame.function.clone()).collect();
    assert_eq!(stack, [Some("inner".into()), Some("main".into())]);
    for (rule, hides) in [
        ("Addr4\n   fun:inner", true),
        ("Addr4\n   fun:inner\n   fun:main", true),
        ("Addr8\n   fun:inner", false),
        ("Value4\n   fun:inner", false),
        ("Addr4\n   fun:main", false),
        ("Leak\n   fun:inner", false),
    ] {
        let mut rules = Suppressions::new();
        rules.add("rules", &format!("{{\n   name\n   Memcheck:{rule}\n}}\n")).unwrap();
        let analysis = analyse("0", &recorded, &full(), &rules);
        assert_eq!(analysis.memory_errors[0].suppressed_by.is_some(), hides, "{rule}");
        assert_eq!(analysis.errors.suppressed, if hides { 3 } else { 0 }, "{rule}");
    }
}

#[test]
fn equal_findings_of_two_tools_are_one() {
    let analyses: Vec<_> = [process(Tool::Memcheck, 7), process(Tool::AddressSanitizer, 7), process(Tool::Memcheck, 5)]
        .iter()
        .map(|process| analyse("0", process, &full(), &Suppressions::new()))
        .collect();
    assert!(matches!(&analyses[0].outcome, Outcome::NotClassified(why) if why.contains("Memcheck")));
    let combined = combine(&analyses);
    assert_eq!(combined.len(), 2);
    let leak = combined.iter().find(|finding| finding.class == Class::Leak).unwrap();
    assert_eq!(leak.path, ["inner", "main"]);
    let sights: Vec<_> = leak.witnesses.iter().map(|(who, sight)| (who.tool, sight.bytes, sight.count)).collect();
    assert_eq!(sights, [(Tool::Memcheck, 12, 2), (Tool::AddressSanitizer, 7, 1)]);
    let error = combined.iter().find(|finding| finding.class == Class::MemoryError).unwrap();
    assert_eq!((error.error.as_str(), error.witnesses.len()), ("InvalidRead", 2));
}
