//! From a ledger's snapshot to a recording: names for addresses, each looked up once.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use leakscope_ledger::reader::{self, Snapshot};
use leakscope_model::{ModuleId, Svma};

use super::{
    Check, CheckRecord, CheckState, End, EventLog, Interval, IntervalEnd, IntervalSite, Location, Lost, Misuse, Module,
    Node, Origin, ProcessFacts, ProcessRecording, Sample, Site, State, Strings, Thread, Totals, Witness,
};
use crate::analysis::{Detail, Options, SitesToName, sites_to_name};
use crate::suppressions::Suppressions;

/// A frame as a symboliser gives it, innermost inlined function first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvedFrame {
    /// Name for people (demangled).
    pub function: Option<String>,
    /// Name for the linker (mangled).
    pub linkage_name: Option<String>,
    /// Name of the source file, without its directory.
    pub file: Option<String>,
    /// Directory of the source file.
    pub directory: Option<String>,
    /// Line from 1.
    pub line: Option<u32>,
    /// Column from 1.
    pub column: Option<u32>,
    /// Whether the function was inlined into that of the next frame.
    pub inlined: bool,
}

/// Gives the frames of each address of a module, innermost first, in the order of the addresses.
pub type Resolve<'a> = dyn FnMut(ModuleId, &reader::Module, &[Svma]) -> Vec<Vec<ResolvedFrame>> + 'a;

/// Which addresses get names; the others keep module and offset.
#[derive(Clone, Copy, Debug, Default)]
pub enum Names<'a> {
    /// All of them: for recordings, which may be read where the binaries are not.
    #[default]
    All,
    /// Those that an analysis with these wishes names.
    For(&'a Options, &'a Suppressions),
}

/// What to put into a recording.
#[derive(Clone, Debug, Default)]
pub struct BuildOptions<'a> {
    /// Which addresses are looked up.
    pub names: Names<'a>,
    /// File name of our preloaded library, to find it among the modules.
    pub hook_file_name: String,
    /// How the process ended.
    pub end: End,
}

/// Makes a recording of one process. `resolve` is called at most once per module with sorted, distinct link-time
/// addresses (already inside of the call instruction) and gives the frames of each, in the same order.
pub fn build(snapshot: &Snapshot, options: &BuildOptions<'_>, resolve: &mut Resolve<'_>) -> ProcessRecording {
    let (nodes, locations) = locate(snapshot);
    let hook_module = snapshot
        .modules
        .iter()
        .position(|module| {
            !options.hook_file_name.is_empty()
                && module.path.rsplit(|&byte| byte == b'/').next() == Some(options.hook_file_name.as_bytes())
        })
        .map(|number| number as u32);
    let mut recording = ProcessRecording {
        process: facts(&snapshot.process),
        end: options.end,
        lost: lost(&snapshot.lost),
        problems: snapshot.problems.clone(),
        modules: snapshot.modules.iter().map(module).collect(),
        hook_module,
        strings: Vec::new(),
        frames: Vec::new(),
        locations,
        nodes,
        sites: snapshot.sites.iter().zip(&snapshot.totals).map(|(site, totals)| self::site(site, totals)).collect(),
        threads: snapshot.threads.iter().map(thread).collect(),
        misuses: snapshot.misuses.iter().map(misuse).collect(),
        checks: snapshot.checks.iter().map(check).collect(),
        series: snapshot.series.iter().map(sample).collect(),
        witness: Witness::default(),
        memory_errors: Vec::new(),
        intervals: snapshot.intervals.iter().map(interval).collect(),
        event_log: event_log(&snapshot.event_log),
        functions: Vec::new(),
        misuse_notes: Vec::new(),
        site_notes: Vec::new(),
    };
    let mut symbols = Symbols { snapshot, strings: Strings::default(), resolve };
    match options.names {
        Names::All => symbols.name(&mut recording, |_, _| true),
        Names::For(wishes, rules) => name_for(&mut recording, &mut symbols, wishes, rules),
    }
    recording.strings = symbols.strings.list;
    recording
}

/// Names what an analysis with these wishes names.
fn name_for(recording: &mut ProcessRecording, symbols: &mut Symbols<'_, '_>, wishes: &Options, rules: &Suppressions) {
    let SitesToName { mut shown, mut whole } = sites_to_name(recording, wishes, rules);
    let executable = recording.modules.iter().position(|module| *module.path == *recording.process.executable);
    let executable = executable.map_or(0, |number| number as u32 + 1);
    // What is below `main` is not shown, and to name it may mean to unpack the C library's debug file. So the
    // executable comes first, and then the callers of `main` are left out.
    if executable == 0 || wishes.detail == Detail::All || wishes.show_below_main {
        whole.append(&mut shown);
    }
    let mut needed = whole_stacks(recording, whole.iter().chain(&shown));
    symbols.name(recording, |number, location| location.module == executable && needed[number]);
    if !shown.is_empty() {
        needed = whole_stacks(recording, whole.iter());
        let main = symbols.strings.number("main");
        add_up_to_main(recording, &shown, main, &mut needed);
    }
    symbols.name(recording, |number, location| location.module != executable && needed[number]);
}

/// Which locations are on the stacks of these sites.
fn whole_stacks<'a>(recording: &ProcessRecording, sites: impl Iterator<Item = &'a u32>) -> Vec<bool> {
    let mut needed = vec![false; recording.locations.len()];
    let mut seen = vec![false; recording.nodes.len()];
    for &site in sites {
        for node in recording.stack_nodes(site) {
            // A node that was seen has callers that were seen.
            if std::mem::replace(&mut seen[node as usize], true) {
                break;
            }
            needed[recording.nodes[node as usize].location as usize] = true;
        }
    }
    needed
}

/// Adds the locations of these sites' stacks up to the outermost `main` (the string of this number), or all of a stack
/// without one. A linker's name is kept only where it is another.
fn add_up_to_main(recording: &ProcessRecording, sites: &[u32], main: u32, needed: &mut [bool]) {
    let is_main = |location| {
        let frame = recording.frames_of(location).last();
        frame.is_some_and(|frame| frame.function == main && frame.linkage_name == 0)
    };
    let mains: Vec<bool> = recording.locations.iter().map(is_main).collect();
    let mut stack = Vec::new();
    for &site in sites {
        stack.clear();
        stack.extend(recording.stack(site));
        let end = stack.iter().rposition(|&location| mains[location as usize]).map_or(stack.len(), |at| at + 1);
        stack[..end].iter().for_each(|&location| needed[location as usize] = true);
    }
}

/// The tree with location numbers, and the unique locations; 0 is the location of the root.
fn locate(snapshot: &Snapshot) -> (Vec<Node>, Vec<Location>) {
    let index = snapshot.module_index();
    let mut known: HashMap<(u32, u64), u32, RandomState> = HashMap::default();
    let mut locations = vec![Location::default()];
    let nodes = snapshot
        .nodes
        .iter()
        .enumerate()
        .map(|(number, node)| {
            if number == 0 {
                return Node::default();
            }
            let pc = node.lookup_pc();
            let module = index.find(&snapshot.modules, pc, node.epoch).map_or(0, |module| module.0 + 1);
            let location = *known.entry((module, pc)).or_insert_with(|| {
                locations.push(Location { pc, module, ..Location::default() });
                locations.len() as u32 - 1
            });
            Node { location, parent: node.parent.0 }
        })
        .collect();
    (nodes, locations)
}

/// Where names come from, and those that are there already.
struct Symbols<'a, 'r> {
    snapshot: &'a Snapshot,
    strings: Strings,
    resolve: &'a mut Resolve<'r>,
}

impl Symbols<'_, '_> {
    /// Looks up the locations that are `wanted` by number, module by module.
    fn name(&mut self, recording: &mut ProcessRecording, wanted: impl Fn(usize, &Location) -> bool) {
        let mut by_module: Vec<(u32, u64, u32)> = recording
            .locations
            .iter()
            .enumerate()
            .filter(|&(number, location)| location.module != 0 && wanted(number, location))
            .map(|(number, location)| (location.module, location.pc, number as u32))
            .collect();
        by_module.sort_unstable();
        for run in by_module.chunk_by(|a, b| a.0 == b.0) {
            let id = ModuleId(run[0].0 - 1);
            let module = &self.snapshot.modules[id.0 as usize];
            let addresses: Vec<Svma> = run.iter().map(|&(_, pc, _)| module.svma(pc)).collect();
            let resolved = (self.resolve)(id, module, &addresses);
            for (&(_, _, number), resolved) in run.iter().zip(resolved) {
                let location = &mut recording.locations[number as usize];
                location.first_frame = recording.frames.len() as u32;
                location.frames = resolved.len() as u32;
                recording.frames.extend(resolved.iter().map(|frame| self.strings.frame(frame)));
            }
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn facts(process: &reader::Process) -> ProcessFacts {
    let ended = process.end_monotonic_ns != 0;
    ProcessFacts {
        pid: process.pid,
        parent_pid: process.parent_pid,
        origin: match process.origin {
            reader::Origin::Start => Origin::Start,
            reader::Origin::Fork => Origin::Fork,
            reader::Origin::Exec => Origin::Exec,
        },
        state: match process.state {
            reader::State::New => State::New,
            reader::State::Running => State::Running,
            reader::State::Ending => State::Ending,
            reader::State::Ended => State::Ended,
            reader::State::Failed => State::Failed,
        },
        executable: text(&process.executable),
        command_line: process.command_line.iter().map(|argument| text(argument)).collect(),
        failure: text(&process.failure),
        start_realtime_ns: process.start_realtime_ns,
        start_monotonic_ns: process.start_monotonic_ns,
        end_monotonic_ns: process.end_monotonic_ns,
        cycles: if ended { process.end_tsc.saturating_sub(process.start_tsc) } else { 0 },
        flags: process.config.flags,
        sample_bytes: process.config.sample_bytes,
        max_frames: process.config.max_frames,
    }
}

fn lost(lost: &reader::Lost) -> Lost {
    let reader::Lost {
        sites,
        nodes,
        counters,
        blocks,
        deep_stacks,
        broken_stacks,
        modules,
        misuses,
        threads,
        intervals,
    } = *lost;
    Lost { sites, nodes, counters, blocks, deep_stacks, broken_stacks, modules, misuses, threads, intervals }
}

fn module(module: &reader::Module) -> Module {
    Module {
        start: module.start,
        end: module.end,
        load_bias: module.load_bias,
        path: text(&module.path).into(),
        build_id: module.build_id.clone(),
        unloaded: module.unloaded_epoch != u32::MAX,
    }
}

fn site(site: &reader::Site, totals: &reader::SiteTotals) -> Site {
    let measured = totals.lifetimes.iter().any(|&count| count > 0);
    Site {
        leaf: site.leaf.0,
        function: site.function,
        flags: site.flags,
        totals: Totals {
            allocated_blocks: totals.allocated_blocks,
            allocated_bytes: totals.allocated_bytes,
            freed_blocks: totals.freed_blocks,
            freed_bytes: totals.freed_bytes,
            live_blocks: totals.live_blocks(),
            live_bytes: totals.live_bytes(),
            peak_bytes: totals.peak_bytes,
            peak_blocks: totals.peak_blocks,
            temporary_blocks: totals.temporary_blocks,
            largest_bytes: totals.largest_bytes,
            lifetimes: if measured { totals.lifetimes.to_vec() } else { Vec::new() },
        },
    }
}

fn thread(thread: &reader::Thread) -> Thread {
    let reader::Thread { tid, ended, live_bytes, peak_bytes } = *thread;
    Thread { tid, ended, live_bytes, peak_bytes }
}

fn misuse(misuse: &reader::Misuse) -> Misuse {
    Misuse {
        kind: misuse.kind,
        site: misuse.site.0,
        allocation_site: misuse.allocation_site.0,
        free_site: misuse.free_site.0,
        address: misuse.address,
        block_start: misuse.block_start,
        block_bytes: misuse.block_bytes,
        count: misuse.count,
        thread: misuse.thread.0,
        overrun_offset: misuse.overrun_offset,
    }
}

fn check(check: &reader::Check) -> Check {
    Check {
        number: check.number,
        state: match check.state {
            reader::CheckState::Running => CheckState::Running,
            reader::CheckState::Complete => CheckState::Complete,
            reader::CheckState::Failed => CheckState::Failed,
        },
        trigger: check.trigger,
        monotonic_ns: check.monotonic_ns,
        blocks: check.blocks,
        bytes: check.bytes,
        root_bytes: check.root_bytes,
        unreadable_bytes: check.unreadable_bytes,
        threads_seen: check.threads_seen,
        threads_unseen: check.threads_unseen,
        pause_ns: check.pause_ns,
        check_ns: check.check_ns,
        lost_records: check.lost_records,
        status: check.status,
        freeres: check.freeres,
        failure: text(&check.failure),
        records: check.records.as_ref().map(|records| records.iter().map(check_record).collect()),
    }
}

fn check_record(record: &reader::CheckRecord) -> CheckRecord {
    CheckRecord {
        site: record.site.0,
        kind: record.kind,
        heuristic: record.heuristic,
        blocks: record.blocks,
        bytes: record.bytes,
        indirect_blocks: record.indirect_blocks,
        indirect_bytes: record.indirect_bytes,
        addresses: record.addresses,
    }
}

fn interval(interval: &reader::Interval) -> Interval {
    Interval {
        number: interval.number,
        end: match interval.end {
            reader::IntervalEnd::Muntrace => IntervalEnd::Muntrace,
            reader::IntervalEnd::Program => IntervalEnd::Program,
            reader::IntervalEnd::Open => IntervalEnd::Open,
        },
        begin_site: interval.begin_site.0,
        end_site: interval.end_site.0,
        begin_ns: interval.begin_ns,
        end_ns: interval.end_ns,
        allocated_blocks: interval.allocated_blocks,
        allocated_bytes: interval.allocated_bytes,
        sites: interval.sites.iter().map(interval_site).collect(),
    }
}

fn interval_site(record: &reader::IntervalSite) -> IntervalSite {
    let reader::IntervalSite { site, allocated_blocks, allocated_bytes, live_blocks, live_bytes } = *record;
    IntervalSite { site: site.0, allocated_blocks, allocated_bytes, live_blocks, live_bytes }
}

fn event_log(log: &reader::EventLog) -> EventLog {
    EventLog { file: text(&log.file), lines: log.lines, errno: log.errno, lost: log.lost, wanted: text(&log.wanted) }
}

fn sample(sample: &reader::Sample) -> Sample {
    let reader::Sample { monotonic_ns, live_bytes, live_blocks, resident_bytes } = *sample;
    Sample { monotonic_ns, live_bytes, live_blocks, resident_bytes }
}
