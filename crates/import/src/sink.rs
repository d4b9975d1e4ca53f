//! Where every parser puts what it reads: the processes of a recording while they grow.
//!
//! Names, frames, locations and stacks are kept once, so memory grows with distinct ones only, never with the
//! length of a log, nor with a number that it claims. What needs the whole log waits for [`crate::finish`]: which
//! module an address lies in, what a module calls its addresses, and which frames in front are the allocator's own.

use std::collections::HashMap;
use std::io::{self, BufRead};
use std::sync::Arc;

use foldhash::fast::RandomState;
use leakscope_findings::recording::{
    Access, AuxiliaryStack, Check, CheckRecord, CheckState, End, FrameRecord, Location, MemoryError, Misuse, Node,
    ProcessRecording, Sample, Site, State, Strings, Thread, Totals,
};
use leakscope_model::{AllocFn, CheckTrigger, ErrorKind, LeakKind, MisuseKind, Tool};

use crate::lines::Lines;

/// A map that is quick and that a hostile file cannot slow down.
pub(crate) type Map<K, V> = HashMap<K, V, RandomState>;

/// Frames of a stack that are kept; the rest of a deeper one is dropped and the stack marked as cut.
pub(crate) const DEEPEST: usize = 1024;
/// Stacks and sentences that are kept beside the stack of an error; no tool has so many.
pub(crate) const MOST_AUXILIARY: usize = 64;
/// Processes of one file; what comes after is counted into the last one.
pub(crate) const MOST_PROCESSES: usize = 65_536;

/// Where the allocation function is in the stacks of a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Front {
    /// Nowhere: the stack begins at its caller.
    Absent(AllocFn),
    /// In front, if at all: frames with the names of allocation functions are taken off.
    Caller,
    /// In front, always: its frame is taken off even when it has no name.
    Callee,
    /// In front, with any number of the allocator's own frames before it.
    Deep,
}

/// A frame as a log names it. Empty strings and zeros stand for what it does not say.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FrameText<'a> {
    /// Address in the running process, inside of the call instruction.
    pub(crate) pc: u64,
    /// The function, mangled or not.
    pub(crate) function: &'a str,
    /// Source file, with or without its directory.
    pub(crate) file: &'a str,
    /// Its directory, if that is given apart.
    pub(crate) directory: &'a str,
    pub(crate) line: u32,
    pub(crate) column: u32,
    /// Number of the module plus one.
    pub(crate) module: u32,
    /// Address in the module.
    pub(crate) offset: Option<u64>,
}

/// A frame that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FrameKey {
    pc: u64,
    module: u32,
    offset: Option<u64>,
    record: FrameRecord,
}

/// How the addresses in a module are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Base {
    /// As the linker wrote them, or unknown.
    LinkTime,
    /// From its first mapped byte.
    FirstByte,
}

/// A module as far as the log tells.
#[derive(Clone, Debug)]
pub(crate) struct ModuleText {
    pub(crate) path: Arc<str>,
    pub(crate) build_id: Vec<u8>,
    pub(crate) base: Base,
    /// Run-time address less address in the module, once both were seen.
    pub(crate) bias: Option<u64>,
}

/// A line of a process's memory map.
#[derive(Clone, Debug)]
pub(crate) struct Mapping {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) path: Arc<str>,
}

/// Which error a count belongs to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ErrorHandle {
    /// In the memory errors.
    Memory(usize),
    /// In the wrong calls.
    Misuse(usize),
}

/// A memory error or a wrong call before it is kept.
#[derive(Clone, Debug, Default)]
pub(crate) struct ErrorText {
    pub(crate) access: Access,
    pub(crate) access_bytes: u64,
    pub(crate) address: u64,
    pub(crate) message: String,
    pub(crate) leaf: u32,
    pub(crate) auxiliary: Vec<AuxiliaryStack>,
    pub(crate) count: u64,
    pub(crate) thread: u32,
    /// Start of the block concerned, 0 when unknown.
    pub(crate) block_start: u64,
    /// Its size.
    pub(crate) block_bytes: u64,
    /// The stack of its allocation.
    pub(crate) allocation: u32,
    /// The stack of its release.
    pub(crate) free: u32,
}

/// A process while it grows.
pub(crate) struct Process {
    pub(crate) out: ProcessRecording,
    pub(crate) modules: Vec<ModuleText>,
    module_numbers: Map<Arc<str>, Vec<u32>>,
    pub(crate) strings: Strings,
    pub(crate) frame_keys: Vec<FrameKey>,
    frame_numbers: Map<FrameKey, u32>,
    /// The location of a frame that stands alone, by frame; 0 when there is none yet.
    alone: Vec<u32>,
    runs: Map<Box<[u32]>, u32>,
    /// Address in the module, by location.
    pub(crate) offsets: Vec<Option<u64>>,
    node_numbers: Map<(u32, u32), u32>,
    site_numbers: Map<(u32, Front), u32>,
    pub(crate) fronts: Vec<Front>,
    leak_numbers: Map<(u32, LeakKind), usize>,
    error_numbers: Map<(ErrorKind, u32, u64), usize>,
    misuse_numbers: Map<(MisuseKind, u32), usize>,
    thread_numbers: Map<u32, u32>,
    pub(crate) mappings: Vec<Mapping>,
    /// Allocations, releases and bytes of the whole run, if the tool counted them.
    pub(crate) heap: Option<(u64, u64, u64)>,
    /// Names of locations that no file names, by location.
    pub(crate) fallback: std::collections::BTreeMap<u32, u32>,
}

/// A function by the name that all tools can agree on. glibc's internal alias `__GI___strdup` is `strdup`, which its
/// dynamic symbols and Valgrind say.
fn plain(function: &str) -> &str {
    match function.strip_prefix("__GI_") {
        Some(rest) => rest.strip_prefix("__").unwrap_or(rest),
        None => function,
    }
}

impl Process {
    fn new(pid: u32, tool: Tool) -> Self {
        let mut out = ProcessRecording {
            locations: vec![Location::default()],
            nodes: vec![Node::default()],
            sites: vec![Site::default()],
            threads: vec![Thread::default()],
            end: End::Unknown,
            ..ProcessRecording::default()
        };
        out.process.pid = pid;
        out.process.state = State::Ended;
        out.witness.tool = tool;
        Self {
            out,
            modules: Vec::new(),
            module_numbers: Map::default(),
            strings: Strings::default(),
            frame_keys: Vec::new(),
            frame_numbers: Map::default(),
            alone: Vec::new(),
            runs: Map::default(),
            offsets: vec![None],
            node_numbers: Map::default(),
            site_numbers: Map::default(),
            fronts: vec![Front::Absent(AllocFn::Malloc)],
            leak_numbers: Map::default(),
            error_numbers: Map::default(),
            misuse_numbers: Map::default(),
            thread_numbers: Map::default(),
            mappings: Vec::new(),
            heap: None,
            fallback: std::collections::BTreeMap::new(),
        }
    }

    /// The number plus one of the module with this path. `pc` and `offset`, where both are known, tell two
    /// loads of one file apart.
    pub(crate) fn module(&mut self, path: &str, base: Base, pc: u64, offset: Option<u64>) -> u32 {
        if path.is_empty() {
            return 0;
        }
        let bias = offset.map(|offset| pc.wrapping_sub(offset));
        if let Some(numbers) = self.module_numbers.get(path) {
            for &number in numbers {
                let module = &mut self.modules[number as usize];
                if module.bias.is_none() {
                    module.bias = bias;
                }
                if bias.is_none() || module.bias == bias {
                    return number + 1;
                }
            }
        }
        let path: Arc<str> = Arc::from(path);
        let number = self.modules.len() as u32;
        self.modules.push(ModuleText { path: path.clone(), build_id: Vec::new(), base, bias });
        self.module_numbers.entry(path).or_default().push(number);
        number + 1
    }

    /// Keeps a frame.
    pub(crate) fn frame(&mut self, text: &FrameText<'_>) -> u32 {
        let name = plain(text.function);
        let (function, linkage_name) = if name.starts_with("_Z") || name.starts_with("_R") {
            let demangled = leakscope_symbols::demangle(name);
            let linkage_name = if demangled == name { 0 } else { self.strings.number(name) };
            (self.strings.number(&demangled), linkage_name)
        } else {
            (self.strings.number(name), 0)
        };
        let (directory, file) = match text.file.rsplit_once('/') {
            Some((directory, file)) if text.directory.is_empty() => (directory, file),
            _ => (text.directory, text.file),
        };
        let record = FrameRecord {
            function,
            linkage_name,
            file: self.strings.number(file),
            directory: self.strings.number(directory),
            line: text.line,
            column: text.column,
            inlined: false,
        };
        let key = FrameKey { pc: text.pc, module: text.module, offset: text.offset, record };
        if let Some(&number) = self.frame_numbers.get(&key) {
            return number;
        }
        let number = self.frame_keys.len() as u32;
        self.frame_keys.push(key);
        self.alone.push(0);
        self.frame_numbers.insert(key, number);
        number
    }

    /// The innermost node of a stack, given innermost frame first. Frames of one address are inlined into the last
    /// of them; the same function again at the same address is a recursive call instead.
    pub(crate) fn stack(&mut self, frames: &[u32]) -> u32 {
        let frames = &frames[..frames.len().min(DEEPEST)];
        let mut node = 0;
        let mut end = frames.len();
        while end > 0 {
            let outer = self.frame_keys[frames[end - 1] as usize];
            let mut start = end - 1;
            while start > 0 && outer.pc != 0 {
                let inner = self.frame_keys[frames[start - 1] as usize];
                let again = frames[start..end]
                    .iter()
                    .any(|&frame| self.frame_keys[frame as usize].record.function == inner.record.function);
                if inner.pc != outer.pc || again {
                    break;
                }
                start -= 1;
            }
            let location = self.location(&frames[start..end]);
            node = self.node(location, node);
            end = start;
        }
        node
    }

    /// Names the innermost frame of a stack where its address gets no name from its file.
    pub(crate) fn fallback_name(&mut self, leaf: u32, function: &str) {
        let location = self.out.nodes[leaf as usize].location;
        let name = self.strings.number(function);
        self.fallback.insert(location, name);
    }

    /// The node of a location below `parent`.
    pub(crate) fn node(&mut self, location: u32, parent: u32) -> u32 {
        if let Some(&number) = self.node_numbers.get(&(location, parent)) {
            return number;
        }
        let number = self.out.nodes.len() as u32;
        self.out.nodes.push(Node { location, parent });
        self.node_numbers.insert((location, parent), number);
        number
    }

    /// The location that these frames, innermost first, make together.
    pub(crate) fn location(&mut self, frames: &[u32]) -> u32 {
        let known = match frames {
            [] => return 0,
            [frame] => self.alone[*frame as usize],
            _ => self.runs.get(frames).copied().unwrap_or(0),
        };
        if known != 0 {
            return known;
        }
        let number = self.out.locations.len() as u32;
        let first_frame = self.out.frames.len() as u32;
        for (at, &frame) in frames.iter().enumerate() {
            let key = &self.frame_keys[frame as usize];
            self.out.frames.push(FrameRecord { inlined: at + 1 < frames.len(), ..key.record });
        }
        let outer = self.frame_keys[frames[frames.len() - 1] as usize];
        // A frame that says nothing but an address is none: it may get a name later.
        let nameless = frames.len() == 1 && outer.record == FrameRecord::default();
        if nameless {
            self.out.frames.pop();
        }
        self.out.locations.push(Location {
            pc: outer.pc,
            module: outer.module,
            first_frame,
            frames: if nameless { 0 } else { frames.len() as u32 },
        });
        self.offsets.push(outer.offset);
        match frames {
            [frame] => self.alone[*frame as usize] = number,
            _ => {
                self.runs.insert(frames.into(), number);
            }
        }
        number
    }

    /// A new location with frames that have names already, innermost first; whoever asks keeps its number.
    pub(crate) fn own_location(&mut self, pc: u64, module: u32, frames: &[FrameRecord]) -> u32 {
        let number = self.out.locations.len() as u32;
        let first_frame = self.out.frames.len() as u32;
        self.out.frames.extend_from_slice(frames);
        self.out.locations.push(Location { pc, module, first_frame, frames: frames.len() as u32 });
        self.offsets.push(None);
        number
    }

    /// The site of a stack.
    pub(crate) fn site(&mut self, leaf: u32, front: Front) -> u32 {
        if let Some(&number) = self.site_numbers.get(&(leaf, front)) {
            return number;
        }
        let number = self.out.sites.len() as u32;
        self.out.sites.push(Site { leaf, ..Site::default() });
        self.fronts.push(front);
        self.site_numbers.insert((leaf, front), number);
        number
    }

    /// The totals of a site.
    pub(crate) fn totals(&mut self, site: u32) -> &mut Totals {
        &mut self.out.sites[site as usize].totals
    }

    /// Forgets what was live: a later snapshot of the log tells it anew.
    pub(crate) fn forget_live(&mut self) {
        for site in &mut self.out.sites {
            site.totals = Totals::default();
        }
    }

    /// Adds to the live blocks of a site.
    pub(crate) fn live(&mut self, site: u32, bytes: u64, blocks: u64) {
        let totals = self.totals(site);
        totals.live_bytes = totals.live_bytes.saturating_add(bytes);
        totals.live_blocks = totals.live_blocks.saturating_add(blocks);
        totals.allocated_bytes = totals.allocated_bytes.saturating_add(bytes);
        totals.allocated_blocks = totals.allocated_blocks.saturating_add(blocks);
    }

    /// Begins a leak check.
    pub(crate) fn begin_check(&mut self) {
        self.forget_live();
        self.leak_numbers.clear();
        // Of many checks in one log the last one counts; the ones before would only fill memory.
        self.out.checks.clear();
        self.out.checks.push(Check {
            number: 0,
            state: CheckState::Complete,
            trigger: CheckTrigger::Exit,
            monotonic_ns: 0,
            blocks: 0,
            bytes: 0,
            root_bytes: 0,
            unreadable_bytes: 0,
            threads_seen: 0,
            threads_unseen: 0,
            pause_ns: 0,
            check_ns: 0,
            lost_records: 0,
            status: 0,
            freeres: false,
            failure: String::new(),
            records: Some(Vec::new()),
        });
    }

    /// Whether a leak check has begun.
    pub(crate) fn has_check(&self) -> bool {
        !self.out.checks.is_empty()
    }

    /// Adds lost (or reachable) blocks to the leak check.
    pub(crate) fn leak(&mut self, site: u32, kind: LeakKind, direct: (u64, u64), indirect: (u64, u64)) {
        if !self.has_check() {
            self.begin_check();
        }
        self.live(site, direct.0, direct.1);
        let Some(records) = self.out.checks.last_mut().and_then(|check| check.records.as_mut()) else { return };
        let next = records.len();
        let at = *self.leak_numbers.entry((site, kind)).or_insert(next);
        if at == next {
            records.push(CheckRecord {
                site,
                kind,
                heuristic: None,
                blocks: 0,
                bytes: 0,
                indirect_blocks: 0,
                indirect_bytes: 0,
                addresses: [0; 3],
            });
        }
        let record = &mut records[at];
        record.bytes = record.bytes.saturating_add(direct.0);
        record.blocks = record.blocks.saturating_add(direct.1);
        record.indirect_bytes = record.indirect_bytes.saturating_add(indirect.0);
        record.indirect_blocks = record.indirect_blocks.saturating_add(indirect.1);
    }

    /// The number of a thread.
    pub(crate) fn thread(&mut self, tid: u32) -> u32 {
        if tid == 0 {
            return 0;
        }
        let next = self.out.threads.len() as u32;
        let number = *self.thread_numbers.entry(tid).or_insert(next);
        if number == next {
            self.out.threads.push(Thread { tid, ..Thread::default() });
        }
        number
    }

    /// Keeps a memory error; equal ones are counted.
    pub(crate) fn error(&mut self, kind: ErrorKind, text: ErrorText) -> ErrorHandle {
        let next = self.out.memory_errors.len();
        let at = *self.error_numbers.entry((kind, text.leaf, text.access_bytes)).or_insert(next);
        let count = text.count.max(1);
        if at < next {
            let known = &mut self.out.memory_errors[at];
            known.count = known.count.saturating_add(count);
        } else {
            let ErrorText { access, access_bytes, address, message, leaf, mut auxiliary, thread, .. } = text;
            auxiliary.shrink_to_fit();
            self.out.memory_errors.push(MemoryError {
                kind,
                access,
                access_bytes,
                address,
                message,
                leaf,
                auxiliary,
                count,
                thread,
            });
        }
        ErrorHandle::Memory(at)
    }

    /// Keeps a wrong call to the allocator; equal ones are counted.
    pub(crate) fn misuse(&mut self, kind: MisuseKind, front: Front, text: &ErrorText) -> ErrorHandle {
        let site = self.site(text.leaf, front);
        let mut other = |leaf: u32, front| if leaf == 0 { 0 } else { self.site(leaf, front) };
        // A block is always allocated and released by a function in front.
        let allocation_site = other(text.allocation, front);
        let free_site = other(text.free, front);
        let next = self.out.misuses.len();
        let at = *self.misuse_numbers.entry((kind, site)).or_insert(next);
        let count = u32::try_from(text.count.max(1)).unwrap_or(u32::MAX);
        if at < next {
            let known = &mut self.out.misuses[at];
            known.count = known.count.saturating_add(count);
        } else {
            self.out.misuses.push(Misuse {
                kind,
                site,
                allocation_site,
                free_site,
                address: text.address,
                block_start: text.block_start,
                block_bytes: text.block_bytes,
                count,
                thread: text.thread,
                overrun_offset: 0,
            });
        }
        ErrorHandle::Misuse(at)
    }

    /// Says how often an error happened.
    pub(crate) fn set_count(&mut self, handle: ErrorHandle, count: u64) {
        match handle {
            ErrorHandle::Memory(at) => self.out.memory_errors[at].count = count.max(1),
            ErrorHandle::Misuse(at) => {
                self.out.misuses[at].count = u32::try_from(count.max(1)).unwrap_or(u32::MAX);
            }
        }
    }

    /// Adds a point of the heap over time. When there are too many, every other one goes.
    pub(crate) fn sample(&mut self, sample: Sample) {
        const MOST_SAMPLES: usize = 8192;
        if self.out.series.len() >= MOST_SAMPLES {
            let mut keep = false;
            self.out.series.retain(|_| {
                keep = !keep;
                keep
            });
        }
        self.out.series.push(sample);
    }
}

/// Lines that a parser could not read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unread {
    /// How many.
    pub lines: u64,
    /// The number of the first, from 1, and its text, cut.
    pub first: Option<(u64, String)>,
}

/// All that a file holds.
#[derive(Default)]
pub(crate) struct Sink {
    pub(crate) processes: Vec<Process>,
    by_pid: Map<(u32, Tool), usize>,
    pub(crate) unread: Unread,
}

impl Sink {
    /// The number of the process with this id, as `tool` saw it.
    pub(crate) fn process(&mut self, pid: u32, tool: Tool) -> usize {
        if let Some(&number) = self.by_pid.get(&(pid, tool)) {
            return number;
        }
        if self.processes.len() >= MOST_PROCESSES {
            return self.processes.len() - 1;
        }
        self.new_process(pid, tool)
    }

    /// A process of its own, even if there was one with this id.
    pub(crate) fn new_process(&mut self, pid: u32, tool: Tool) -> usize {
        if self.processes.len() >= MOST_PROCESSES {
            return self.processes.len() - 1;
        }
        let number = self.processes.len();
        self.processes.push(Process::new(pid, tool));
        self.by_pid.insert((pid, tool), number);
        number
    }

    /// Gives every line of a file to `take`, which gives `None` for what makes no sense to it.
    ///
    /// # Errors
    /// Those of `input`.
    pub(crate) fn read_lines(
        &mut self,
        input: &mut dyn BufRead,
        process: usize,
        mut take: impl FnMut(&mut Process, &str) -> Option<()>,
    ) -> io::Result<()> {
        let mut lines = Lines::new(input);
        let mut number = 0;
        while let Some(line) = lines.next()? {
            number += 1;
            if take(&mut self.processes[process], &line).is_none() {
                self.unread(number, &line);
            }
        }
        Ok(())
    }

    /// Notes a line that makes no sense where it stands.
    pub(crate) fn unread(&mut self, number: u64, line: &str) {
        const SHOWN: usize = 120;
        self.unread.lines += 1;
        if self.unread.first.is_none() {
            let shown: String = line.chars().take(SHOWN).map(|c| if c.is_control() { ' ' } else { c }).collect();
            self.unread.first = Some((number, shown));
        }
    }
}

impl std::ops::Index<usize> for Sink {
    type Output = Process;

    fn index(&self, number: usize) -> &Process {
        &self.processes[number]
    }
}

impl std::ops::IndexMut<usize> for Sink {
    fn index_mut(&mut self, number: usize) -> &mut Process {
        &mut self.processes[number]
    }
}
