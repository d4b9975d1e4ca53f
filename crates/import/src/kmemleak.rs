//! What the kernel's kmemleak reports, as loss records: its dumps, plain or out of the kernel's log, and scans that
//! `leakscope kernel scan` made itself.
//!
//! kmemleak follows interior pointers and reports what nothing that it scans points to; what only a lost object points
//! to is in its list as well, and is not told apart. So every object is definitely lost, unless several scans did not
//! all see it: then it is unconfirmed, which counts as possibly lost. Frames are functions of the kernel and its modules;
//! those of its allocator are taken off, and so are those that every system call begins with, which differ from kernel
//! to kernel.

use std::collections::BTreeMap;

use leakscope_findings::recording::{FrameRecord, ProcessRecording, ResolvedFrame, Sample, SiteNote};
use leakscope_kernel::alloc::{allocator, is_entry, plain_name, split_frames};
use leakscope_kernel::clock::Clock;
use leakscope_kernel::dump::{Decoder, Dump, Frame, Line, Object};
use leakscope_kernel::sightings::{Judged, Verdict, age_ms};
use leakscope_model::{LeakKind, Tool};

use crate::finish::{NoNames, finish};
use crate::sink::{Base, FrameText, Front, Process, Sink};

/// What stands for the module of the kernel's own functions.
pub(crate) const KERNEL: &str = "vmlinux";

/// What is known of a frame of the kernel beside its function and offset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelName {
    /// Its return address in the running kernel, 0 when unknown.
    pub pc: u64,
    /// The functions of that address with their places in the source, innermost first; empty when unknown.
    pub frames: Vec<ResolvedFrame>,
}

/// Gives names to frames of the kernel. Importing reads no file itself.
pub trait KernelNames {
    /// What is known of each frame, in their order.
    fn resolve(&mut self, frames: &[&Frame]) -> Vec<KernelName>;
}

impl KernelNames for NoNames {
    fn resolve(&mut self, _frames: &[&Frame]) -> Vec<KernelName> {
        Vec::new()
    }
}

/// What is known of a dump beside what stands in it.
#[derive(Clone, Debug, Default)]
pub struct Scans<'a> {
    /// How sure each of its objects is; `None` when there was one scan only.
    pub judged: Option<&'a Judged>,
    /// The kernel's clock at the end; `None` on another machine.
    pub clock: Option<Clock>,
    /// Jiffies at the first scan: what was allocated later shows growth.
    pub begin_jiffies: Option<u64>,
    /// What each scan saw.
    pub series: Vec<Sample>,
    /// What could not be done, one sentence each.
    pub problems: Vec<String>,
}

/// The last dump of a number of scans, as a recording.
pub fn kernel_scan(dump: &Dump, scans: &Scans<'_>, names: &mut dyn KernelNames) -> ProcessRecording {
    let mut sink = Sink::default();
    let number = sink.process(0, Tool::Kmemleak);
    fill(&mut sink[number], dump, scans, names);
    sink[number].out.problems.extend(scans.problems.iter().cloned());
    finish(sink, &mut NoNames).processes.pop().unwrap_or_default()
}

/// Reads the lines of dumps in a log.
#[derive(Default)]
pub(crate) struct Kmemleak {
    decoder: Decoder,
}

/// Whether a text has an object of a dump in it.
pub(crate) fn is_dump(text: &str) -> bool {
    text.lines().any(|line| leakscope_kernel::dump::without_prefix(line).starts_with("unreferenced object"))
}

impl Kmemleak {
    /// Whether an object is open: indented lines are its.
    pub(crate) fn is_open(&self) -> bool {
        self.decoder.is_open()
    }

    /// Reads a line if it belongs to a dump.
    pub(crate) fn line(&mut self, sink: &mut Sink, number: u64, line: &str) -> bool {
        match self.decoder.line(number, line) {
            Line::Taken => true,
            Line::Unread => {
                sink.unread(number, line);
                true
            }
            Line::Foreign => false,
        }
    }

    /// The end of the log.
    pub(crate) fn finish(self, sink: &mut Sink) {
        let dump = self.decoder.finish();
        if !dump.objects.is_empty() {
            let number = sink.process(0, Tool::Kmemleak);
            fill(&mut sink[number], &dump, &Scans::default(), &mut NoNames);
        }
    }
}

/// Objects of one site.
#[derive(Default)]
struct Group<'a> {
    module: &'a str,
    /// By verdict: bytes, objects, up to three addresses.
    confirmed: (u64, u64, [u64; 3]),
    unconfirmed: (u64, u64, [u64; 3]),
    facts: Facts,
}

/// Who allocated the objects of a group, and when.
#[derive(Default)]
struct Facts {
    tasks: BTreeMap<(u32, u32), u64>,
    oldest_ms: Option<u64>,
    youngest_ms: Option<u64>,
    since_begin: u64,
    all: u64,
    percpu: u64,
    /// Of the unconfirmed, how many scans saw the one that was seen least.
    least_seen: Option<u32>,
    young: bool,
}

fn fill(process: &mut Process, dump: &Dump, scans: &Scans<'_>, names: &mut dyn KernelNames) {
    let kernel = process.module(KERNEL, Base::LinkTime, 0, None);
    process.out.hook_module = kernel.checked_sub(1);
    process.out.process.executable = "the kernel".to_owned();
    process.out.process.command_line = vec!["the kernel".to_owned()];
    process.out.series.clone_from(&scans.series);
    if dump.cut_objects > 0 {
        process
            .out
            .problems
            .push(format!("of {} objects the dump is cut off before their backtrace", dump.cut_objects));
    }
    let own: Vec<(&[Frame], Front)> = dump.backtraces.iter().map(|backtrace| own_frames(&backtrace.frames)).collect();
    let mut stack_maker = StackMaker::new(own.iter().flat_map(|(frames, _)| frames.iter()), names);
    let sites: Vec<u32> = own
        .iter()
        .map(|&(frames, front)| {
            let leaf = stack_maker.stack(process, frames);
            process.site(leaf, front)
        })
        .collect();
    let mut groups: BTreeMap<u32, Group<'_>> = BTreeMap::new();
    for (number, object) in dump.objects.iter().enumerate() {
        let backtrace = object.backtrace as usize;
        let (Some(&site), Some((frames, _))) = (sites.get(backtrace), own.get(backtrace)) else { continue };
        let verdict =
            scans.judged.and_then(|judged| judged.verdicts.get(number)).copied().unwrap_or(Verdict::Confirmed);
        groups.entry(site).or_insert_with(|| Group::of(frames)).add(object, verdict, scans);
    }
    for (site, group) in groups {
        group.leak(process, site, LeakKind::DefinitelyLost, group.confirmed);
        group.leak(process, site, LeakKind::PossiblyLost, group.unconfirmed);
        let text = group.facts.words(&dump.comms, group.module, scans);
        process.out.site_notes.push(SiteNote { site, kind: None, text });
        if let Some(text) = group.facts.doubt(scans) {
            process.out.site_notes.push(SiteNote { site, kind: Some(LeakKind::PossiblyLost as u8), text });
        }
    }
    if !process.has_check() {
        process.begin_check();
    }
}

/// The frames without those of the allocator and of the kernel's entry, and the function that allocated.
pub(crate) fn own_frames(frames: &[Frame]) -> (&[Frame], Front) {
    let (front, function) = split_frames(frames);
    let entry = frames.iter().position(|frame| is_entry(&frame.function)).unwrap_or(frames.len());
    (&frames[front.min(entry)..entry], Front::Absent(function))
}

/// The module of the innermost function that is in one.
fn outer_module(frames: &[Frame]) -> &str {
    frames.iter().map(|frame| frame.module.as_str()).find(|module| !module.is_empty()).unwrap_or_default()
}

impl<'a> Group<'a> {
    fn of(frames: &'a [Frame]) -> Self {
        Self { module: outer_module(frames), ..Self::default() }
    }

    fn add(&mut self, object: &Object, verdict: Verdict, scans: &Scans<'_>) {
        let amount = if verdict == Verdict::Confirmed { &mut self.confirmed } else { &mut self.unconfirmed };
        amount.0 = amount.0.saturating_add(object.bytes);
        if let Some(place) = usize::try_from(amount.1).ok().and_then(|number| amount.2.get_mut(number)) {
            *place = object.address;
        }
        amount.1 += 1;
        let facts = &mut self.facts;
        *facts.tasks.entry((object.comm, object.pid)).or_default() += 1;
        facts.all += 1;
        facts.percpu += u64::from(object.is_percpu);
        if let Some(age) = age_ms(object, scans.clock) {
            facts.oldest_ms = facts.oldest_ms.max(Some(age));
            facts.youngest_ms = Some(facts.youngest_ms.map_or(age, |youngest| youngest.min(age)));
        }
        facts.since_begin += u64::from(scans.begin_jiffies.is_some_and(|begin| object.jiffies >= begin));
        match verdict {
            Verdict::Confirmed => {}
            Verdict::Young => facts.young = true,
            Verdict::Seen { times } => {
                facts.least_seen = Some(facts.least_seen.map_or(times, |least| least.min(times)))
            }
        }
    }

    fn leak(&self, process: &mut Process, site: u32, kind: LeakKind, (bytes, blocks, addresses): (u64, u64, [u64; 3])) {
        if blocks == 0 {
            return;
        }
        process.leak(site, kind, (bytes, blocks), (0, 0));
        let records = process.out.checks.last_mut().and_then(|check| check.records.as_mut());
        if let Some(record) = records.into_iter().flatten().find(|record| (record.site, record.kind) == (site, kind)) {
            record.addresses = addresses;
        }
    }
}

impl Facts {
    /// `allocated by insmod (pid 71), 12 s ago; in module leaky; growing: 3 of 12 came while scanning`.
    fn words(&self, comms: &[String], module: &str, scans: &Scans<'_>) -> String {
        let mut tasks: Vec<(&(u32, u32), &u64)> = self.tasks.iter().collect();
        tasks.sort_by_key(|&(task, &count)| (std::cmp::Reverse(count), *task));
        let mut text = String::from("allocated by ");
        if let Some(&(&(comm, pid), _)) = tasks.first() {
            let comm = comms.get(comm as usize).map_or("", String::as_str);
            text += &format!("{} (pid {pid})", if comm.is_empty() { "an unknown task" } else { comm });
        }
        match tasks.len() {
            0 | 1 => {}
            2 => text += " and another task",
            tasks => text += &format!(" and {} other tasks", tasks - 1),
        }
        match (self.oldest_ms, self.youngest_ms) {
            (Some(oldest), Some(youngest)) if span(oldest) != span(youngest) => {
                text += &format!(", {} to {} ago", span(oldest), span(youngest));
            }
            (Some(oldest), _) => text += &format!(", {} ago", span(oldest)),
            _ => {}
        }
        if !module.is_empty() {
            text += &format!("; in module {module}");
        }
        if self.percpu > 0 {
            text += "; of these bytes every processor has its own";
        }
        if scans.begin_jiffies.is_some() {
            match self.since_begin {
                0 => text += "; not growing",
                new => text += &format!("; growing: {new} of {} came while scanning", self.all),
            }
        }
        text
    }

    /// Why objects are unconfirmed.
    fn doubt(&self, scans: &Scans<'_>) -> Option<String> {
        let judged = scans.judged?;
        match (self.least_seen, self.young) {
            (Some(times), _) => Some(format!("unconfirmed: {times} of {} scans saw it", judged.dumps)),
            (None, true) => Some("unconfirmed: younger than --min-age".to_owned()),
            (None, false) => None,
        }
    }
}

/// A time for people: two units at most.
fn span(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// Makes stacks of the kernel's frames; each frame is named once.
pub(crate) struct StackMaker<'a> {
    numbers: BTreeMap<(&'a str, &'a str, u64), usize>,
    names: Vec<KernelName>,
    locations: Vec<u32>,
}

impl<'a> StackMaker<'a> {
    pub(crate) fn new(frames: impl Iterator<Item = &'a Frame>, names: &mut dyn KernelNames) -> Self {
        let mut numbers = BTreeMap::new();
        let mut unique = Vec::new();
        for frame in frames {
            numbers.entry(key(frame)).or_insert_with(|| {
                unique.push(frame);
                unique.len() - 1
            });
        }
        let mut names = names.resolve(&unique);
        names.resize_with(unique.len(), KernelName::default);
        Self { numbers, names, locations: vec![0; unique.len()] }
    }

    /// The innermost node of these frames.
    pub(crate) fn stack(&mut self, process: &mut Process, frames: &[Frame]) -> u32 {
        let mut node = 0;
        for frame in frames.iter().rev() {
            let Some(&number) = self.numbers.get(&key(frame)) else { continue };
            if self.locations[number] == 0 {
                self.locations[number] = location(process, frame, &self.names[number]);
            }
            node = process.node(self.locations[number], node);
        }
        node
    }
}

/// The innermost node of a stack of frames, innermost first, that nothing more is known of.
pub(crate) fn plain_stack(process: &mut Process, frames: &[Frame]) -> u32 {
    let mut node = 0;
    for frame in frames.iter().rev() {
        let module = if frame.module.is_empty() { KERNEL } else { &frame.module };
        let module = process.module(module, Base::LinkTime, 0, None);
        let function = plain_name(&frame.function);
        let number = process.frame(&FrameText { pc: frame.offset, function, module, ..FrameText::default() });
        // One by one: frames of equal offsets in different functions are no inlined ones.
        let location = process.location(&[number]);
        node = process.node(location, node);
    }
    node
}

fn key(frame: &Frame) -> (&str, &str, u64) {
    (&frame.module, &frame.function, frame.offset)
}

fn location(process: &mut Process, frame: &Frame, name: &KernelName) -> u32 {
    let module = if frame.module.is_empty() { KERNEL } else { &frame.module };
    let module = process.module(module, Base::LinkTime, 0, None);
    // Where nothing tells the address, the offset tells two calls in a function apart.
    let pc = if name.pc == 0 { frame.offset } else { name.pc };
    let own = ResolvedFrame {
        function: (!frame.function.is_empty()).then(|| plain_name(&frame.function).to_owned()),
        ..ResolvedFrame::default()
    };
    let records: Vec<FrameRecord> = match name.frames.split_last() {
        // The kernel's name of the function, as everywhere; the file's word on where it is.
        Some((outer, inlined)) => {
            let outer = ResolvedFrame { function: own.function, linkage_name: None, inlined: false, ..outer.clone() };
            let plain = |frame: &ResolvedFrame| {
                let function = frame.function.as_deref().map(|name| plain_name(name).to_owned());
                ResolvedFrame { function, linkage_name: None, ..frame.clone() }
            };
            // The allocator's inline functions in front (`kzalloc`) go as its others do.
            let is_allocator =
                |frame: &&ResolvedFrame| frame.function.as_deref().is_some_and(|name| allocator(name).is_some());
            let own_inlined = inlined.iter().skip_while(is_allocator).map(plain);
            own_inlined.chain([outer]).map(|frame| process.strings.frame(&frame)).collect()
        }
        None if frame.function.is_empty() => Vec::new(),
        None => vec![process.strings.frame(&own)],
    };
    process.own_location(pc, module, &records)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_for_people() {
        for (milliseconds, expected) in
            [(0, "0 s"), (59_999, "59 s"), (61_000, "1 min 1 s"), (7_500_000, "2 h 5 min"), (90_000_000, "1 d 1 h")]
        {
            assert_eq!(span(milliseconds), expected);
        }
    }

    const DUMP: &str = "unreferenced object 0xff10 (size 16):\n  comm \"insmod\", pid 7, jiffies 100\n  backtrace:\n    \
                        kmem_cache_alloc_trace+0x1/0x2\n    make+0x3/0x40 [leaky]\n    do_init_module+0x9/0x10\n    \
                        do_syscall_64+0x1/0x2\n    entry_SYSCALL_64_after_hwframe+0x1/0x2\n";

    fn dump(text: &str) -> Dump {
        let mut decoder = Decoder::default();
        decoder.read(&mut text.as_bytes()).unwrap();
        decoder.finish()
    }

    struct OneLine;

    impl KernelNames for OneLine {
        fn resolve(&mut self, frames: &[&Frame]) -> Vec<KernelName> {
            let place = |function: &str, line, inlined| ResolvedFrame {
                inlined,
                function: Some(function.to_owned()),
                file: Some("leaky.c".to_owned()),
                line: Some(line),
                ..ResolvedFrame::default()
            };
            let frames = frames.iter().map(|frame| match frame.function.as_str() {
                "make" => {
                    KernelName { pc: 0xff00_0003, frames: vec![place("inner", 5, true), place("other", 9, false)] }
                }
                _ => KernelName::default(),
            });
            frames.collect()
        }
    }

    #[test]
    fn a_frame_gets_its_lines_and_keeps_its_name() {
        let recorded = kernel_scan(&dump(DUMP), &Scans::default(), &mut OneLine);
        let words: Vec<(String, u32, bool)> = recorded
            .stack(1)
            .flat_map(|number| recorded.frames_of(&recorded.locations[number as usize]))
            .map(|frame| (recorded.string(frame.function).to_string(), frame.line, frame.inlined))
            .collect();
        let frame = |name: &str, line, inlined| (name.to_owned(), line, inlined);
        assert_eq!(words, [frame("inner", 5, true), frame("make", 9, false), frame("do_init_module", 0, false)]);
        let location = recorded.locations[recorded.stack(1).next().unwrap() as usize];
        assert_eq!((location.pc, &*recorded.module_of(&location).unwrap().path), (0xff00_0003, "leaky"));
    }

    #[test]
    fn notes_say_who_and_since_when() {
        let dump = dump(DUMP);
        let judged = Judged { verdicts: vec![Verdict::Seen { times: 1 }], withdrawn: 0, dumps: 2 };
        let clock = Some(Clock { jiffies: 1300, hz: 100 });
        let scans = Scans { judged: Some(&judged), clock, begin_jiffies: Some(100), ..Scans::default() };
        let recorded = kernel_scan(&dump, &scans, &mut NoNames);
        let notes: Vec<&str> = recorded.site_notes.iter().map(|note| note.text.as_str()).collect();
        assert_eq!(
            notes,
            [
                "allocated by insmod (pid 7), 12 s ago; in module leaky; growing: 1 of 1 came while scanning",
                "unconfirmed: 1 of 2 scans saw it"
            ]
        );
        let record = recorded.checks[0].records.as_ref().unwrap()[0];
        assert_eq!((record.kind, record.bytes, record.addresses[0]), (LeakKind::PossiblyLost, 16, 0xff10));
    }
}
