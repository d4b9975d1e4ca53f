//! What the engine of `leakscope memcheck` tells, as recordings: of all events, or of a single one.
//!
//! Events go into a [`Snapshot`], as if a ledger had held them, so that naming, merging, fingerprints and reports are
//! those of `leakscope run`. Errors of access are added to it afterwards, as an importer adds those of another tool.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use leakscope_ledger::events::{self, Event, What};
use leakscope_ledger::layout::site_flags;
use leakscope_ledger::reader::{self, CheckState, Module, Node, Site, SiteTotals, Snapshot, Thread};
use leakscope_model::{AllocFn, MisuseKind, NodeId, SiteId, ThreadId};

use super::build::{BuildOptions, Resolve, build};
use super::{Access, AuxiliaryStack, FunctionPlace, MemoryError, MisuseNote, ProcessRecording};

/// The events of one process so far.
#[derive(Clone, Debug, Default)]
pub struct Collector {
    everything: Part,
    /// Modules and their changes, which every part needs.
    modules: Vec<Module>,
    epoch: u32,
    process: reader::Process,
    heap: events::Heap,
    /// Where the program has its own allocation functions.
    functions: Vec<FunctionPlace>,
    /// Where errors went: wrong calls and errors of access, by the engine's number.
    places: HashMap<u32, Place, RandomState>,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    Misuse(usize),
    Memory(usize),
}

/// A snapshot that grows.
#[derive(Clone, Debug)]
struct Part {
    snapshot: Snapshot,
    errors: Vec<MemoryError>,
    nodes: HashMap<(u32, u64, u32), u32, RandomState>,
    sites: HashMap<(u32, AllocFn, u32), u32, RandomState>,
    misuse_notes: Vec<MisuseNote>,
}

/// When an address was code: now, or before its module was unmapped.
#[derive(Clone, Copy)]
struct Time<'a> {
    modules: &'a [Module],
    now: u32,
}

impl Time<'_> {
    /// The number of the module around an address.
    fn module(self, address: u64) -> Option<u32> {
        let holds = |module: &Module| module.start <= address && address < module.end;
        self.modules.iter().rposition(holds).map(|number| number as u32)
    }

    fn of(self, pc: u64) -> u32 {
        let at = pc.wrapping_sub(1);
        let holds = |module: &&Module| module.start <= at && at < module.end;
        match self.modules.iter().rev().find(holds) {
            Some(module) if module.unloaded_epoch <= self.now => module.unloaded_epoch - 1,
            _ => self.now,
        }
    }
}

impl Default for Part {
    fn default() -> Self {
        // Number 0 of each means "none".
        let snapshot = Snapshot {
            nodes: vec![Node::default()],
            sites: vec![Site::default()],
            totals: vec![SiteTotals::default()],
            threads: vec![Thread::default()],
            ..Snapshot::default()
        };
        Self {
            snapshot,
            errors: Vec::new(),
            nodes: HashMap::default(),
            sites: HashMap::default(),
            misuse_notes: Vec::new(),
        }
    }
}

impl Part {
    /// The node of a stack's innermost address.
    fn leaf(&mut self, stack: &[u64], time: Time<'_>) -> u32 {
        let mut parent = 0;
        for &pc in stack.iter().rev() {
            let epoch = time.of(pc);
            let next = self.snapshot.nodes.len() as u32;
            let number = *self.nodes.entry((parent, pc, epoch)).or_insert(next);
            if number == next {
                self.snapshot.nodes.push(Node { pc, parent: NodeId(parent), epoch });
            }
            parent = number;
        }
        parent
    }

    /// The site of a stack that begins with the function itself.
    fn site(&mut self, function: AllocFn, stack: &[u64], time: Time<'_>) -> SiteId {
        if stack.is_empty() {
            return SiteId(0);
        }
        let leaf = self.leaf(&stack[1..], time);
        let flags = if stack[0] == events::NO_FUNCTION { site_flags::NO_FUNCTION } else { 0 };
        let next = self.snapshot.sites.len() as u32;
        let number = *self.sites.entry((leaf, function, flags)).or_insert(next);
        if number == next {
            let frames = stack.len() as u32 - 1;
            self.snapshot.sites.push(Site { leaf: NodeId(leaf), frames, function, flags });
            self.snapshot.totals.push(SiteTotals::default());
        }
        SiteId(number)
    }

    fn thread(&mut self, number: u32, tid: u32) -> u32 {
        // Threads are numbered from 1 and are few; a wrong number must not make room for millions.
        let number = number.min(1 << 16);
        let threads = &mut self.snapshot.threads;
        if threads.len() <= number as usize {
            threads.resize(number as usize + 1, Thread::default());
        }
        threads[number as usize].tid = tid;
        number
    }

    fn error(&mut self, error: &events::Error, time: Time<'_>) -> Place {
        let thread = self.thread(error.thread, error.tid);
        match &error.what {
            What::Memory { kind, access, bytes, address, message } => {
                let leaf = self.leaf(&error.stack, time);
                let auxiliary = self.about(error, time);
                let access = match access {
                    1 => Access::Read,
                    2 => Access::Write,
                    _ => Access::None,
                };
                self.errors.push(MemoryError {
                    kind: *kind,
                    access,
                    access_bytes: *bytes,
                    address: *address,
                    message: message.clone(),
                    leaf,
                    auxiliary,
                    count: 1,
                    thread,
                });
                Place::Memory(self.errors.len() - 1)
            }
            What::Misuse { kind, function, address, block } => {
                let site = self.site(*function, &error.stack, time);
                let mut misuse = reader::Misuse {
                    kind: *kind,
                    site,
                    allocation_site: SiteId(0),
                    free_site: SiteId(0),
                    address: *address,
                    block_start: 0,
                    block_bytes: if *kind == MisuseKind::FishySize { *address } else { 0 },
                    count: 1,
                    thread: ThreadId(thread),
                    overrun_offset: 0,
                };
                if let Some(block) = block {
                    misuse.block_start = block.start;
                    misuse.block_bytes = block.bytes;
                    misuse.allocation_site = self.site(block.function, &block.allocated, time);
                    misuse.free_site = self.site(block.freed_by, &block.freed, time);
                }
                if !error.auxiliary.is_empty() {
                    let about = self.about(error, time);
                    self.misuse_notes.push(MisuseNote { misuse: self.snapshot.misuses.len() as u32, about });
                }
                self.snapshot.misuses.push(misuse);
                Place::Misuse(self.snapshot.misuses.len() - 1)
            }
        }
    }

    /// What is said of an error's address.
    fn about(&mut self, error: &events::Error, time: Time<'_>) -> Vec<AuxiliaryStack> {
        let lines = error.auxiliary.iter();
        lines.map(|(label, stack)| AuxiliaryStack { label: label.clone(), leaf: self.leaf(stack, time) }).collect()
    }

    fn check(&mut self, check: &events::Check, time: Time<'_>) {
        let records = check
            .records
            .iter()
            // What is gone altogether is told where somebody asked for changes.
            .filter(|record| record.blocks > 0 || check.asked & events::asked::CHANGED != 0)
            .map(|record| reader::CheckRecord {
                site: self.site(record.function, &record.stack, time),
                kind: record.kind,
                heuristic: record.heuristic,
                blocks: record.blocks,
                bytes: record.bytes,
                indirect_blocks: record.indirect_blocks,
                indirect_bytes: record.indirect_bytes,
                addresses: record.addresses,
            })
            .collect();
        self.snapshot.checks.push(reader::Check {
            number: check.number,
            state: CheckState::Complete,
            trigger: check.trigger,
            monotonic_ns: check.monotonic_ns,
            blocks: check.blocks,
            bytes: check.bytes,
            root_bytes: check.root_bytes,
            unreadable_bytes: check.unreadable_bytes,
            threads_seen: check.threads,
            threads_unseen: 0,
            pause_ns: check.check_ns,
            check_ns: check.check_ns,
            lost_records: 0,
            status: check.status,
            freeres: check.freeres,
            failure: Vec::new(),
            records: Some(records),
        });
    }

    fn build(
        mut self,
        collector: &Collector,
        options: &BuildOptions<'_>,
        resolve: &mut Resolve<'_>,
    ) -> ProcessRecording {
        self.snapshot.process = collector.process.clone();
        self.snapshot.modules.clone_from(&collector.modules);
        // One site has what no site is known of: the totals of the heap.
        let heap = collector.heap;
        self.snapshot.totals[0] = SiteTotals {
            allocated_blocks: heap.allocations,
            allocated_bytes: heap.allocated_bytes,
            freed_blocks: heap.frees,
            freed_bytes: heap.allocated_bytes.saturating_sub(heap.live_bytes),
            ..SiteTotals::default()
        };
        let mut recorded = build(&self.snapshot, options, resolve);
        // Frees that freed nothing are counted with the wrong calls.
        recorded.sites[0].totals.live_blocks = heap.live_blocks;
        recorded.sites[0].totals.live_bytes = heap.live_bytes;
        recorded.memory_errors = self.errors;
        recorded.misuse_notes = self.misuse_notes;
        recorded.functions.clone_from(&collector.functions);
        recorded
    }
}

impl Collector {
    fn time(&self) -> Time<'_> {
        Time { modules: &self.modules, now: self.epoch }
    }

    /// Takes an event in.
    pub fn add(&mut self, event: &Event) {
        match event {
            Event::Process(process) => {
                self.process = reader::Process {
                    pid: process.pid,
                    parent_pid: process.parent_pid,
                    origin: match process.origin {
                        1 => reader::Origin::Fork,
                        2 => reader::Origin::Exec,
                        _ => reader::Origin::Start,
                    },
                    state: reader::State::Running,
                    executable: process.executable.clone(),
                    command_line: process.command_line.clone(),
                    start_realtime_ns: process.realtime_ns,
                    start_monotonic_ns: process.monotonic_ns,
                    ..reader::Process::default()
                };
            }
            Event::Module(module) => {
                self.epoch += 1;
                self.modules.push(Module {
                    start: module.start,
                    end: module.end,
                    load_bias: module.load_bias,
                    path: module.path.clone(),
                    build_id: module.build_id.clone(),
                    loaded_epoch: self.epoch,
                    unloaded_epoch: u32::MAX,
                });
            }
            Event::ModuleGone { number } => {
                self.epoch += 1;
                if let Some(module) = self.modules.get_mut(*number as usize) {
                    module.unloaded_epoch = self.epoch;
                }
            }
            Event::Error(error) => {
                let place = self.everything.error(error, Time { modules: &self.modules, now: self.epoch });
                self.places.insert(error.number, place);
            }
            Event::Counts(counts) => {
                for (number, count) in counts {
                    match self.places.get(number) {
                        Some(&Place::Misuse(at)) => {
                            self.everything.snapshot.misuses[at].count = (*count).min(u32::MAX.into()) as u32;
                        }
                        Some(&Place::Memory(at)) => self.everything.errors[at].count = *count,
                        None => {}
                    }
                }
            }
            Event::Heap(heap) => self.heap = *heap,
            Event::Check(check) => {
                self.process.end_monotonic_ns = check.monotonic_ns;
                self.everything.check(check, Time { modules: &self.modules, now: self.epoch });
            }
            Event::Ended { monotonic_ns, .. } => {
                self.process.end_monotonic_ns = *monotonic_ns;
                self.process.state = reader::State::Ended;
            }
            Event::Failed(text) => {
                self.process.state = reader::State::Failed;
                self.process.failure = text.clone().into_bytes();
            }
            Event::Functions(list) => {
                let time = self.time();
                let place = |&(function, address)| FunctionPlace { function, address, module: time.module(address) };
                let new: Vec<FunctionPlace> = list.iter().map(place).collect();
                self.functions.extend(new);
            }
            Event::FatalSignal { .. }
            | Event::Message { .. }
            | Event::Forked
            | Event::Exec
            | Event::ExecFailed
            | Event::Question(_)
            | Event::StringFunctions(_)
            | Event::Descriptors(_) => {}
        }
    }

    /// A recording of one error or leak check alone; `None` for other events. The event must have been added, too.
    pub fn of_event(
        &self,
        event: &Event,
        options: &BuildOptions<'_>,
        resolve: &mut Resolve<'_>,
    ) -> Option<ProcessRecording> {
        let mut part = Part::default();
        match event {
            Event::Error(error) => {
                part.error(error, self.time());
            }
            Event::Check(check) => part.check(check, self.time()),
            _ => return None,
        }
        Some(part.build(self, options, resolve))
    }

    /// The frames of one stack, named: as the stack of an error without more to say.
    pub fn of_stack(&self, stack: &[u64], options: &BuildOptions<'_>, resolve: &mut Resolve<'_>) -> ProcessRecording {
        let mut part = Part::default();
        let leaf = part.leaf(stack, self.time());
        part.errors.push(MemoryError {
            kind: leakscope_model::ErrorKind::FatalSignal,
            access: Access::None,
            access_bytes: 0,
            address: 0,
            message: String::new(),
            leaf,
            auxiliary: Vec::new(),
            count: 1,
            thread: 1,
        });
        part.build(self, options, resolve)
    }

    /// A recording of everything until now.
    pub fn all(&self, options: &BuildOptions<'_>, resolve: &mut Resolve<'_>) -> ProcessRecording {
        self.everything.clone().build(self, options, resolve)
    }

    /// The module around an address of run time, as it is mapped now.
    pub fn module_at(&self, address: u64) -> Option<&Module> {
        let holds =
            |module: &&Module| module.unloaded_epoch == u32::MAX && module.start <= address && address < module.end;
        self.modules.iter().rev().find(holds)
    }

    /// Who is recorded; process id 0 before the first event.
    pub fn process(&self) -> &reader::Process {
        &self.process
    }
}

#[cfg(test)]
mod tests {
    use leakscope_ledger::events::{Block, Check, Error, Record};
    use leakscope_model::{CheckTrigger, ErrorKind, LeakKind};

    use super::*;
    use crate::analysis::{LeakCheck, Options, analyse};
    use crate::recording::ResolvedFrame;
    use crate::suppressions::Suppressions;

    fn events() -> Vec<Event> {
        let error = |number, what| {
            let auxiliary = vec![("Address 0x1 is 0 bytes after".into(), vec![0x1101, 0x1201])];
            Event::Error(Error {
                number,
                thread: 1,
                tid: 7,
                thread_name: String::new(),
                stack: vec![0x1011, 0x1021],
                what,
                auxiliary,
                subject: None,
            })
        };
        let block = Block {
            start: 0x9000,
            bytes: 10,
            function: AllocFn::Malloc,
            allocated: vec![0x1101, 0x1201],
            freed: vec![0x1301, 0x1401],
            freed_by: AllocFn::Delete,
        };
        vec![
            Event::Process(events::Process { pid: 5, ..events::Process::default() }),
            Event::Module(events::Module {
                start: 0x1000,
                end: 0x2000,
                path: b"/bin/x".to_vec(),
                ..Default::default()
            }),
            Event::Functions(vec![(AllocFn::Malloc, 0x1100)]),
            error(
                0,
                What::Memory {
                    kind: ErrorKind::InvalidRead,
                    access: 1,
                    bytes: 4,
                    address: 1,
                    message: "Invalid read of size 4".into(),
                },
            ),
            error(
                1,
                What::Misuse {
                    kind: MisuseKind::DoubleFree,
                    function: AllocFn::Free,
                    address: 0x9000,
                    block: Some(block),
                },
            ),
            Event::Counts(vec![(0, 5)]),
            Event::Heap(events::Heap { live_bytes: 10, live_blocks: 1, allocations: 3, frees: 2, allocated_bytes: 40 }),
            Event::Check(Check {
                number: 0,
                trigger: CheckTrigger::Exit,
                status: 0,
                asked: 0,
                monotonic_ns: 1,
                check_ns: 1,
                blocks: 1,
                bytes: 10,
                root_bytes: 0,
                unreadable_bytes: 0,
                threads: 1,
                freeres: true,
                records: vec![Record {
                    kind: LeakKind::DefinitelyLost,
                    heuristic: None,
                    blocks: 1,
                    bytes: 10,
                    indirect_blocks: 0,
                    indirect_bytes: 0,
                    old_blocks: 0,
                    old_bytes: 0,
                    old_indirect_bytes: 0,
                    addresses: [0x9000, 0, 0],
                    function: AllocFn::Malloc,
                    stack: vec![0x1101, 0x1201],
                }],
            }),
            Event::Ended { status: 0, monotonic_ns: 2 },
        ]
    }

    fn name(_: leakscope_model::ModuleId, _: &Module, addresses: &[leakscope_model::Svma]) -> Vec<Vec<ResolvedFrame>> {
        let frame = |at: u64| ResolvedFrame { function: Some(format!("f{at:x}")), ..ResolvedFrame::default() };
        addresses.iter().map(|address| vec![frame(address.0)]).collect()
    }

    #[test]
    fn events_become_an_analysis() {
        let mut collector = Collector::default();
        let options = Options { leak_check: LeakCheck::Full, ..Options::default() };
        let rules = Suppressions::new();
        let mut parts = Vec::new();
        for event in events() {
            collector.add(&event);
            if let Some(part) = collector.of_event(&event, &BuildOptions::default(), &mut name) {
                parts.push(analyse("0", &part, &options, &rules));
            }
        }
        let names = |stack: &crate::analysis::Stack| -> Vec<String> {
            stack.frames().iter().map(|frame| frame.function.as_deref().unwrap_or("?").to_owned()).collect()
        };
        // Of a stack with the very instruction in front, and of one that begins with the function.
        assert_eq!(names(&parts[0].memory_errors[0].stack), ["f1010", "f1020"]);
        let (_, allocated) = &parts[0].memory_errors[0].auxiliary[0];
        // The function that the engine stood in for is where the program has it, without a line.
        let allocated = allocated.as_ref().unwrap();
        assert_eq!(names(allocated), ["malloc", "f1200"]);
        let shown = |stack: &crate::analysis::Stack| {
            let frame = &stack.frames()[0];
            (frame.ip, frame.object.to_string(), frame.file.is_none(), frame.hook)
        };
        assert_eq!(shown(allocated), (0x1100, "/bin/x".to_owned(), true, true));
        assert_eq!(shown(&parts[2].records[0].stack), (0x1100, "/bin/x".to_owned(), true, true));
        assert_eq!(names(&parts[1].misuses[0].stack), ["free", "f1020"]);
        assert_eq!(
            names(parts[1].misuses[0].block.as_ref().unwrap().free.as_ref().unwrap()),
            ["operator delete(void*)", "f1400"]
        );
        assert_eq!(names(&parts[2].records[0].stack), ["malloc", "f1200"]);

        let all = collector.all(&BuildOptions::default(), &mut name);
        let analysis = analyse("0", &all, &options, &rules);
        assert_eq!((analysis.memory_errors[0].count, analysis.errors.errors, analysis.errors.contexts), (5, 7, 3));
        assert_eq!((analysis.heap.in_use_bytes, analysis.heap.allocs, analysis.heap.allocated_bytes), (10, 3, 40));
        assert_eq!(analysis.records[0].fingerprint, parts[2].records[0].fingerprint);
        assert_eq!(analysis.process.pid, 5);
    }
}
