//! Recordings with their analyses, and all formats as functions: what the tests of the formats share.
#![allow(dead_code, reason = "each test binary uses a part")]

use leakscope_findings::analysis::{LeakCheck, analyse};
use leakscope_findings::recording::{Access, AuxiliaryStack, CheckState, End, MemoryError, ProcessRecording, State};
use leakscope_findings::{Analysis, Options, Suppressions};
use leakscope_model::{ErrorKind, LeakKindSet};
use leakscope_report::{Metric, Process, Sources, folded, github, gitlab, junit, markdown, sarif, speedscope};

use crate::support::{SAMPLE_RULE, sample};

/// A recording with its analysis.
pub struct Analysed {
    pub recorded: ProcessRecording,
    pub analysis: Analysis,
}

impl Analysed {
    pub fn new(recorded: ProcessRecording) -> Self {
        let options = Options { leak_check: LeakCheck::Full, show_leak_kinds: LeakKindSet::ALL, ..Options::default() };
        let mut suppressions = Suppressions::new();
        suppressions.add("app.supp", SAMPLE_RULE).unwrap();
        let analysis = analyse("0.1.0", &recorded, &options, &suppressions);
        Self { recorded, analysis }
    }

    pub fn process(&self) -> Process<'_> {
        Process { recorded: &self.recorded, analysis: &self.analysis }
    }
}

/// The sample, and an error that another tool found.
pub fn everything() -> ProcessRecording {
    let mut recorded = sample();
    let leaf = recorded.sites[1].leaf;
    let auxiliary = [("Address 0x5040 is 0 bytes after a block of size 10 alloc'd", leaf), ("no stack", 0)];
    recorded.memory_errors.push(MemoryError {
        kind: ErrorKind::InvalidRead,
        access: Access::Read,
        access_bytes: 4,
        address: 0x5040,
        message: "Invalid read of size 4".to_owned(),
        leaf,
        auxiliary: auxiliary.map(|(label, leaf)| AuxiliaryStack { label: label.to_owned(), leaf }).to_vec(),
        count: 3,
        thread: 1,
    });
    recorded
}

/// A killed process: nothing is classified.
pub fn killed() -> ProcessRecording {
    let mut recorded = everything();
    recorded.checks[0].state = CheckState::Running;
    recorded.checks[0].records = None;
    recorded.misuses.clear();
    recorded.memory_errors.clear();
    recorded.process.pid = 4243;
    recorded.process.state = State::Running;
    recorded.end = End::Signalled(9);
    recorded
}

/// A recording in which every name is `name`.
pub fn hostile(name: &str) -> ProcessRecording {
    let mut recorded = everything();
    for string in recorded.strings.iter_mut().skip(1) {
        *string = name.into();
    }
    for module in &mut recorded.modules {
        module.path = name.into();
    }
    recorded.process.command_line = vec![name.to_owned(); 2];
    recorded.process.executable = name.to_owned();
    recorded.problems = vec![name.to_owned()];
    for error in &mut recorded.memory_errors {
        error.message = name.to_owned();
        error.auxiliary.iter_mut().for_each(|other| other.label = name.to_owned());
    }
    recorded
}

/// Names that somebody could give to a function, a file or a module.
pub const HOSTILE: &[&str] = &[
    "\x1b[2J\x1b]0;owned\x07",
    "a\n::error file=x::owned",
    "a\r\n==1== x",
    "\u{202e}txt",
    "</failure></testcase>&<!--]]>",
    "</script><img src=x onerror=alert(1)>",
    "`|](javascript:alert(1)) ![x](http://evil) @everyone #1 www.evil.example https://evil.example",
    "\\|<b>*bold* __bold__ ~~gone~~ | a | b",
    "%0A::error::owned,line=1::",
    "a;b 12\nmain 99",
    "",
];

pub fn sources() -> Sources {
    Sources { root: "/work".to_owned() }
}

pub type Write = fn(&mut Vec<u8>, &[Process<'_>]);
pub const TEXTS: &[(&str, Write)] = &[
    ("sarif", |out, processes| sarif::write(out, processes, &sources()).unwrap()),
    ("junit", |out, processes| junit::write(out, processes).unwrap()),
    ("github", |out, processes| github::write(out, processes, &sources()).unwrap()),
    ("gitlab", |out, processes| gitlab::write(out, processes, &sources()).unwrap()),
    ("folded", |out, processes| folded::write(out, processes, Metric::Live).unwrap()),
    ("speedscope", |out, processes| speedscope::write(out, processes).unwrap()),
    ("markdown", |out, processes| markdown::write(out, processes, &sources()).unwrap()),
];

pub fn written(format: &str, processes: &[Process<'_>]) -> String {
    let mut out = Vec::new();
    TEXTS.iter().find(|(name, _)| *name == format).unwrap().1(&mut out, processes);
    String::from_utf8(out).unwrap()
}

pub fn of(format: &str, recorded: ProcessRecording) -> String {
    written(format, &[Analysed::new(recorded).process()])
}
