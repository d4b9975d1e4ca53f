//! What live tracing saw outstanding, as loss records: of the kernel, and of running programs.
//!
//! A block that is outstanding for a while may still be wanted: nothing here knows whether something points to it. So it
//! counts as possibly lost.

use leakscope_findings::recording::{ProcessRecording, Sample, SiteNote};
use leakscope_kernel::dump::Frame;
use leakscope_model::{AllocFn, LeakKind, Tool};

use crate::finish::{NoNames, Resolver, finish};
use crate::kmemleak::{KernelNames, StackMaker, own_frames};
use crate::sink::{FrameText, Front, Mapping, Process, Sink};

/// Blocks of one site that are outstanding. Numbers are estimates when tracing sampled.
#[derive(Clone, Debug, Default)]
pub struct TracedSite<F> {
    /// Where they were allocated, innermost first.
    pub frames: Vec<F>,
    /// By which function, where no frame tells.
    pub function: Option<AllocFn>,
    /// Outstanding bytes, as requested.
    pub live_bytes: u64,
    /// Outstanding blocks.
    pub live_blocks: u64,
    /// Bytes that were allocated while tracing.
    pub allocated_bytes: u64,
    /// Blocks that were allocated while tracing.
    pub allocated_blocks: u64,
    /// Who, since when, how sure: a sentence without a point.
    pub note: String,
}

/// What is known of a traced process, or of the traced kernel.
#[derive(Clone, Debug, Default)]
pub struct TraceFacts {
    /// The process, 0 for the kernel.
    pub pid: u32,
    /// Its executable; of the kernel a word for it.
    pub executable: String,
    /// Its arguments.
    pub command_line: Vec<String>,
    /// CLOCK_REALTIME when tracing began, nanoseconds.
    pub start_realtime_ns: u64,
    /// CLOCK_MONOTONIC when tracing began, nanoseconds.
    pub start_monotonic_ns: u64,
    /// The same at its end.
    pub end_monotonic_ns: u64,
    /// Mean bytes between samples, 0 when everything was tracked.
    pub sample_bytes: u64,
    /// Outstanding memory over time.
    pub series: Vec<Sample>,
    /// What was lost or could not be seen, one sentence each.
    pub problems: Vec<String>,
    /// Files that are mapped into the process: begin, end, path.
    pub mappings: Vec<(u64, u64, String)>,
}

/// What was outstanding in the kernel, as a recording.
pub fn kernel_trace(sites: &[TracedSite<Frame>], facts: &TraceFacts, names: &mut dyn KernelNames) -> ProcessRecording {
    let mut sink = Sink::default();
    let number = sink.process(facts.pid, Tool::Leakscope);
    let process = &mut sink[number];
    begin(process, facts);
    let own: Vec<(&[Frame], Front)> = sites
        .iter()
        .map(|site| {
            let (frames, front) = own_frames(&site.frames);
            (frames, site.function.map_or(front, Front::Absent))
        })
        .collect();
    let mut stacks = StackMaker::new(own.iter().flat_map(|(frames, _)| frames.iter()), names);
    for (site, &(frames, front)) in sites.iter().zip(&own) {
        let leaf = stacks.stack(process, frames);
        let number = process.site(leaf, front);
        add(process, number, site);
    }
    finish(sink, &mut NoNames).processes.pop().unwrap_or_default()
}

/// What was outstanding in a program, as a recording. Frames are return addresses.
pub fn user_trace(sites: &[TracedSite<u64>], facts: &TraceFacts, resolver: &mut dyn Resolver) -> ProcessRecording {
    let mut sink = Sink::default();
    let number = sink.process(facts.pid, Tool::Leakscope);
    let process = &mut sink[number];
    begin(process, facts);
    for (start, end, path) in &facts.mappings {
        process.mappings.push(Mapping { start: *start, end: *end, path: path.as_str().into() });
    }
    for site in sites {
        // The byte before a return address is in the call.
        let frames: Vec<u32> = site
            .frames
            .iter()
            .map(|&address| process.frame(&FrameText { pc: address.saturating_sub(1), ..FrameText::default() }))
            .collect();
        let leaf = process.stack(&frames);
        let number = process.site(leaf, Front::Absent(site.function.unwrap_or(AllocFn::Malloc)));
        add(process, number, site);
    }
    finish(sink, resolver).processes.pop().unwrap_or_default()
}

fn begin(process: &mut Process, facts: &TraceFacts) {
    process.begin_check();
    let out = &mut process.out;
    out.process.executable.clone_from(&facts.executable);
    out.process.command_line.clone_from(&facts.command_line);
    out.process.start_realtime_ns = facts.start_realtime_ns;
    out.process.start_monotonic_ns = facts.start_monotonic_ns;
    out.process.end_monotonic_ns = facts.end_monotonic_ns;
    out.process.sample_bytes = facts.sample_bytes;
    out.series.clone_from(&facts.series);
    out.problems.clone_from(&facts.problems);
}

fn add<F>(process: &mut Process, number: u32, site: &TracedSite<F>) {
    process.leak(number, LeakKind::PossiblyLost, (site.live_bytes, site.live_blocks), (0, 0));
    let totals = process.totals(number);
    // What is live was allocated; `leak` has entered it.
    totals.allocated_bytes =
        totals.allocated_bytes.saturating_add(site.allocated_bytes.saturating_sub(site.live_bytes));
    totals.allocated_blocks =
        totals.allocated_blocks.saturating_add(site.allocated_blocks.saturating_sub(site.live_blocks));
    totals.freed_bytes = totals.allocated_bytes.saturating_sub(totals.live_bytes);
    totals.freed_blocks = totals.allocated_blocks.saturating_sub(totals.live_blocks);
    if !site.note.is_empty() {
        process.out.site_notes.push(SiteNote { site: number, kind: None, text: site.note.clone() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(function: &str, module: &str) -> Frame {
        Frame { function: function.to_owned(), offset: 3, size: 64, module: module.to_owned() }
    }

    #[test]
    fn a_traced_site_has_the_stack_of_kmemleaks() {
        let site = TracedSite {
            frames: vec![
                frame("kmem_cache_alloc_noprof", ""),
                frame("make", "leaky"),
                frame("do_init_module", ""),
                frame("do_syscall_64", ""),
            ],
            live_bytes: 640,
            live_blocks: 10,
            allocated_bytes: 1280,
            allocated_blocks: 20,
            note: "12 s old".to_owned(),
            ..TracedSite::default()
        };
        let recorded = kernel_trace(&[site], &TraceFacts::default(), &mut NoNames);
        let record = recorded.checks[0].records.as_ref().unwrap()[0];
        assert_eq!((record.kind, record.bytes, record.blocks), (LeakKind::PossiblyLost, 640, 10));
        let site = &recorded.sites[record.site as usize];
        assert_eq!(site.function, AllocFn::KmemCacheAlloc);
        assert_eq!((site.totals.freed_bytes, site.totals.freed_blocks), (640, 10));
        let names: Vec<String> = recorded
            .stack(record.site)
            .flat_map(|number| recorded.frames_of(&recorded.locations[number as usize]))
            .map(|frame| recorded.string(frame.function).to_string())
            .collect();
        assert_eq!(names, ["make", "do_init_module"]);
    }
}
