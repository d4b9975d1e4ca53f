//! What the page shows, compact: texts once, stacks as a tree, sites and records as columns.
//!
//! Every text has gone through [`terminal`]: it holds no control characters and no marks that turn text around.

use std::collections::HashMap;

use leakscope_findings::recording::{ProcessRecording, Sample};
use leakscope_model::LeakKind;
use serde::Serialize;

use super::sources;
use crate::escape::terminal;
use crate::finding::{self, Finding, Level};
use crate::place::Sources;
use crate::profile::{Code, Profile};
use crate::witnesses::Witnesses;
use crate::{Process, rules, witnesses};

/// Moments of a chart: more than pixels are of no use.
const MOST_MOMENTS: usize = 1000;
/// Sites whose growth is drawn by themselves.
const MOST_GROWING: usize = 8;
/// Functions and files that are longer are cut.
const LONGEST_NAME: usize = 600;

/// The document.
#[derive(Serialize)]
pub(super) struct Page {
    version: String,
    /// Numbers of texts below are into these.
    texts: Vec<String>,
    frames: Frames,
    nodes: Nodes,
    sites: Sites,
    kinds: Vec<Kind>,
    records: Vec<Record>,
    processes: Vec<ProcessView>,
    /// Text number of a path, then its lines: number and words.
    sources: Vec<(u32, Vec<(u32, String)>)>,
    #[serde(skip)]
    intern: Intern,
}

/// What is known of all processes.
struct About<'a> {
    places: &'a Sources,
    witnesses: Witnesses<'a>,
}

#[derive(Default)]
struct Intern {
    texts: HashMap<String, u32>,
    frames: HashMap<Code, u32>,
    nodes: HashMap<(u32, u32), u32>,
}

/// Columns: numbers of texts, and lines.
#[derive(Default, Serialize)]
struct Frames {
    name: Vec<u32>,
    file: Vec<u32>,
    line: Vec<u32>,
    module: Vec<u32>,
}

/// The tree of stacks, outermost frame first. Node 0 is the root; `up` is a node's number less its parent's.
#[derive(Default, Serialize)]
struct Nodes {
    up: Vec<u32>,
    frame: Vec<u32>,
}

/// Columns, one entry a site.
#[derive(Default, Serialize)]
struct Sites {
    process: Vec<u32>,
    node: Vec<u32>,
    leaked: Vec<u64>,
    leaked_blocks: Vec<u64>,
    live: Vec<u64>,
    live_blocks: Vec<u64>,
    peak: Vec<u64>,
    temporary: Vec<u64>,
    total: Vec<u64>,
    total_blocks: Vec<u64>,
}

#[derive(Serialize)]
struct Kind {
    id: &'static str,
    words: &'static str,
    what: &'static str,
    help: &'static str,
    /// Whether its records are shown at first.
    shown: bool,
}

#[derive(Serialize)]
struct Record {
    process: u32,
    kind: usize,
    /// 0 to 2: note, warning, error.
    level: u8,
    title: String,
    bytes: u64,
    blocks: u64,
    count: u64,
    fingerprint: String,
    node: u32,
    suppressed: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    more: Vec<(String, u32)>,
    /// Over the whole run: bytes and blocks allocated, blocks freed, peak bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<[u64; 4]>,
}

#[derive(Serialize)]
struct ProcessView {
    name: String,
    pid: u32,
    command: String,
    end: String,
    seconds: f64,
    classified: bool,
    notes: Vec<String>,
    /// Bytes and blocks of each kind, as in `kinds`, and of what is suppressed.
    totals: Vec<[u64; 2]>,
    suppressed: [u64; 2],
    errors: u64,
    /// Bytes allocated, blocks allocated, blocks freed, bytes in use, blocks in use.
    heap: [u64; 5],
    series: Series,
    growth: Growth,
    /// Blocks by the mean size of their site: 0 bytes, then from 2^(i-1) bytes on.
    sizes: Vec<u64>,
    /// Sampled blocks by lifetime; entry i begins at `lifetime_seconds` times 4^i.
    lifetimes: Vec<u64>,
    lifetime_seconds: f64,
}

/// Columns, one entry a moment.
#[derive(Default, Serialize)]
struct Series {
    seconds: Vec<f64>,
    live: Vec<u64>,
    blocks: Vec<u64>,
    resident: Vec<u64>,
}

/// What single sites held at each leak check.
#[derive(Default, Serialize)]
struct Growth {
    seconds: Vec<f64>,
    /// Node of a site, and its bytes at each moment.
    sites: Vec<(u32, Vec<u64>)>,
}

fn kinds() -> Vec<Kind> {
    let of_rule = |rule: &rules::Rule| Kind {
        id: rule.id,
        words: rule.words,
        what: rule.what,
        help: rule.help,
        shown: rule.id != "leak-reachable",
    };
    rules::ALL.iter().map(of_rule).collect()
}

impl Page {
    /// The page on these processes.
    pub(super) fn new(
        processes: &[Process<'_>],
        places: &Sources,
        read: &mut dyn FnMut(&str) -> Option<String>,
    ) -> Self {
        let version = processes.first().map_or("", |process| process.analysis.tool_version.as_str());
        let mut page = Self {
            version: terminal(version),
            texts: Vec::new(),
            frames: Frames::default(),
            nodes: Nodes { up: vec![0], frame: vec![0] },
            sites: Sites::default(),
            kinds: kinds(),
            records: Vec::new(),
            processes: Vec::new(),
            sources: Vec::new(),
            intern: Intern::default(),
        };
        // Text 0 is the empty one.
        page.text("");
        let about = About { places, witnesses: Witnesses::of(processes) };
        let mut wanted = Vec::new();
        for (number, &process) in processes.iter().enumerate() {
            page.process(number as u32, process, &about, &mut wanted);
        }
        wanted.sort_by_key(|&(level, bytes, _, _)| std::cmp::Reverse((level, bytes)));
        let lines = sources::around(wanted.into_iter().map(|(_, _, path, line)| (path, line)), read);
        for (path, lines) in lines {
            let path = page.text(&shown_path(&path, places));
            page.sources.push((path, lines.into_iter().map(|(number, words)| (number, terminal(&words))).collect()));
        }
        page
    }

    fn text(&mut self, text: &str) -> u32 {
        if let Some(&known) = self.intern.texts.get(text) {
            return known;
        }
        let short: String =
            if text.len() > LONGEST_NAME { text.chars().take(LONGEST_NAME).collect() } else { text.into() };
        let number = self.texts.len() as u32;
        self.texts.push(terminal(&short));
        self.intern.texts.insert(text.to_owned(), number);
        number
    }

    fn frame(&mut self, code: &Code, places: &Sources) -> u32 {
        if let Some(&known) = self.intern.frames.get(code) {
            return known;
        }
        let number = self.frames.name.len() as u32;
        let name = self.text(&code.name);
        let file = self.text(&shown_path(&code.file, places));
        let module = self.text(&code.module);
        self.frames.name.push(name);
        self.frames.file.push(file);
        self.frames.line.push(code.line);
        self.frames.module.push(module);
        self.intern.frames.insert(code.clone(), number);
        number
    }

    fn node(&mut self, parent: u32, frame: u32) -> u32 {
        let next = self.nodes.up.len() as u32;
        let number = *self.intern.nodes.entry((parent, frame)).or_insert(next);
        if number == next {
            self.nodes.up.push(next - parent);
            self.nodes.frame.push(frame);
        }
        number
    }

    fn process(
        &mut self,
        number: u32,
        process: Process<'_>,
        about: &About<'_>,
        wanted: &mut Vec<(Level, u64, String, u32)>,
    ) {
        let Process { recorded, analysis } = process;
        let places = about.places;
        let profile = Profile::new(process);
        let locations: Vec<Vec<u32>> = (0..recorded.locations.len())
            .map(|location| profile.codes(location as u32).iter().map(|code| self.frame(code, places)).collect())
            .collect();
        let mut whole: HashMap<Vec<u64>, u32> = HashMap::new();
        for sample in &profile.samples {
            let mut node = 0;
            for &location in sample.stack.iter().rev() {
                for &frame in locations.get(location as usize).into_iter().flatten().rev() {
                    node = self.node(node, frame);
                }
            }
            let hook = self.frame(&profile.hook(sample.record), places);
            node = self.node(node, hook);
            whole.entry(profile.merged_by(sample)).or_insert(node);
            let (totals, leaked) = (&sample.record.totals, sample.leaked());
            let sites = &mut self.sites;
            sites.process.push(number);
            sites.node.push(node);
            sites.leaked.push(leaked.bytes);
            sites.leaked_blocks.push(leaked.blocks);
            sites.live.push(totals.live_bytes);
            sites.live_blocks.push(totals.live_blocks);
            sites.peak.push(totals.peak_bytes);
            sites.temporary.push(totals.temporary_blocks);
            sites.total.push(totals.allocated_bytes);
            sites.total_blocks.push(totals.allocated_blocks);
        }
        self.records(number, process, &profile, &whole, about, wanted);
        let growth = self.growth(&profile, &locations, places);
        let (sizes, (lifetimes, lifetime_seconds)) = (sizes(&profile), lifetimes(&profile));
        let amount = |kind: LeakKind| {
            let of = analysis.totals.of(kind);
            [of.bytes, of.blocks]
        };
        let heap = &analysis.heap;
        self.processes.push(ProcessView {
            name: terminal(finding::program(analysis)),
            pid: recorded.process.pid,
            command: terminal(&recorded.process.command_line.join(" ")),
            end: finding::end(analysis),
            seconds: seconds_between(recorded.process.start_monotonic_ns, recorded.process.end_monotonic_ns),
            classified: finding::not_classified(analysis).is_none(),
            notes: finding::not_classified(analysis)
                .into_iter()
                .chain(finding::losses(analysis))
                .map(|note| terminal(&note))
                .collect(),
            // In the order of the rules.
            totals: LeakKind::ALL.into_iter().rev().map(amount).collect(),
            suppressed: [analysis.totals.suppressed.bytes, analysis.totals.suppressed.blocks],
            errors: finding::errors(analysis).map(|error| error.count).sum(),
            heap: [heap.allocated_bytes, heap.allocs, heap.frees, heap.in_use_bytes, heap.in_use_blocks],
            series: series(recorded),
            growth,
            sizes,
            lifetimes,
            lifetime_seconds,
        });
    }

    fn records(
        &mut self,
        number: u32,
        process: Process<'_>,
        profile: &Profile<'_>,
        whole: &HashMap<Vec<u64>, u32>,
        about: &About<'_>,
        wanted: &mut Vec<(Level, u64, String, u32)>,
    ) {
        let (analysis, places) = (process.analysis, about.places);
        for mut finding in finding::errors(analysis) {
            finding.witnesses = about.witnesses.of_finding(&finding);
            want(&finding, wanted);
            let node = self.stack(finding.stack, places);
            let more = finding.more.iter().map(|(words, stack)| (terminal(words), self.stack(stack, places))).collect();
            self.records.push(Record { process: number, node, more, ..record(&finding) });
        }
        for loss in analysis.records.iter().rev() {
            let mut finding = finding::of_record(loss);
            finding.witnesses = about.witnesses.of_finding(&finding);
            if loss.suppressed_by.is_none() {
                want(&finding, wanted);
            }
            let node = match whole.get(&profile.merged_key(loss)) {
                Some(&node) => node,
                None => self.stack(&loss.stack, places),
            };
            let totals = &loss.totals;
            let run = [totals.allocated_bytes, totals.allocated_blocks, totals.freed_blocks, totals.peak_bytes];
            self.records.push(Record {
                process: number,
                node,
                suppressed: loss.suppressed_by.is_some(),
                run: Some(run),
                ..record(&finding)
            });
        }
    }

    fn stack(&mut self, stack: &leakscope_findings::analysis::Stack, places: &Sources) -> u32 {
        let mut node = 0;
        for frame in stack.frames().iter().rev() {
            let code = Code {
                name: finding::code(frame),
                file: crate::place::path(frame).unwrap_or_default(),
                line: frame.line,
                column: frame.column,
                module: frame.object.to_string(),
                linkage_name: frame.linkage_name.as_deref().unwrap_or_default().to_owned(),
            };
            let frame = self.frame(&code, places);
            node = self.node(node, frame);
        }
        node
    }

    /// The sites that grew most between leak checks, if there were several.
    fn growth(&mut self, profile: &Profile<'_>, locations: &[Vec<u32>], places: &Sources) -> Growth {
        let recorded = profile.recorded();
        let checks: Vec<_> =
            recorded.checks.iter().filter_map(|check| Some((check, check.records.as_ref()?))).collect();
        if checks.len() < 2 {
            return Growth::default();
        }
        let mut by_site: HashMap<u32, Vec<u64>> = HashMap::new();
        for (moment, (_, records)) in checks.iter().enumerate() {
            for record in records.iter() {
                let amounts = by_site.entry(record.site).or_insert_with(|| vec![0; checks.len()]);
                amounts[moment] = amounts[moment].saturating_add(record.bytes);
            }
        }
        let mut growing: Vec<(u32, Vec<u64>)> =
            by_site.into_iter().filter(|(_, amounts)| amounts.last() > amounts.first()).collect();
        growing.sort_by_key(|(site, amounts)| {
            let growth = amounts[amounts.len() - 1] - amounts[0];
            (std::cmp::Reverse(growth), *site)
        });
        growing.truncate(MOST_GROWING);
        let sites = growing.into_iter().filter_map(|(number, amounts)| {
            let site = recorded.sites.get(number as usize)?;
            let mut node = 0;
            for location in profile.stack(number).into_iter().rev() {
                for &frame in locations.get(location as usize).into_iter().flatten().rev() {
                    node = self.node(node, frame);
                }
            }
            let hook = self.frame(&profile.hook(site), places);
            Some((self.node(node, hook), amounts))
        });
        let start = recorded.process.start_monotonic_ns;
        Growth {
            sites: sites.collect(),
            seconds: checks.iter().map(|(check, _)| seconds_between(start, check.monotonic_ns)).collect(),
        }
    }
}

/// A path as the page shows it: relative to the root where it is below it.
fn shown_path(path: &str, places: &Sources) -> String {
    let root = places.root.trim_end_matches('/');
    match path.strip_prefix(root).and_then(|rest| rest.strip_prefix('/')) {
        Some(relative) if !root.is_empty() => relative.to_owned(),
        _ => path.to_owned(),
    }
}

fn seconds_between(from_ns: u64, to_ns: u64) -> f64 {
    let ms = to_ns.saturating_sub(from_ns) / 1_000_000;
    ms as f64 / 1000.0
}

fn kind_number(finding: &Finding<'_>) -> usize {
    rules::ALL.iter().position(|rule| rule == finding.rule).unwrap_or(0)
}

fn record(finding: &Finding<'_>) -> Record {
    let seen_by = witnesses::words(finding).map_or_else(String::new, |words| format!(" ({words})"));
    Record {
        process: 0,
        kind: kind_number(finding),
        level: finding.level as u8,
        title: terminal(&format!("{}{seen_by}", finding.title)),
        bytes: finding.bytes,
        blocks: finding.blocks,
        count: finding.count,
        fingerprint: finding.fingerprint.to_string(),
        node: 0,
        suppressed: false,
        more: Vec::new(),
        run: None,
    }
}

/// Notes the places of a finding's stacks.
fn want(finding: &Finding<'_>, wanted: &mut Vec<(Level, u64, String, u32)>) {
    for stack in std::iter::once(finding.stack).chain(finding.more.iter().map(|(_, stack)| *stack)) {
        for frame in stack.frames() {
            if let Some(path) = crate::place::path(frame).filter(|path| path.starts_with('/')) {
                wanted.push((finding.level, finding.bytes, path, frame.line));
            }
        }
    }
}

/// At most [`MOST_MOMENTS`]: of each stretch the lowest and the highest moment, so that no peak is lost.
fn series(recorded: &ProcessRecording) -> Series {
    let all = &recorded.series;
    let stretch = all.len().div_ceil(MOST_MOMENTS / 2).max(1);
    let mut moments: Vec<&Sample> = Vec::new();
    for samples in all.chunks(stretch) {
        let low = samples.iter().enumerate().min_by_key(|(_, sample)| sample.live_bytes);
        let high = samples.iter().enumerate().rev().max_by_key(|(_, sample)| sample.live_bytes);
        let (Some((low, _)), Some((high, _))) = (low, high) else { continue };
        moments.push(&samples[low.min(high)]);
        if low != high {
            moments.push(&samples[low.max(high)]);
        }
    }
    // The end matters most.
    if let Some(last) = all.last()
        && moments.last().is_none_or(|moment| moment.monotonic_ns != last.monotonic_ns)
    {
        moments.push(last);
    }
    let start = recorded.process.start_monotonic_ns;
    Series {
        seconds: moments.iter().map(|sample| seconds_between(start, sample.monotonic_ns)).collect(),
        live: moments.iter().map(|sample| sample.live_bytes).collect(),
        blocks: moments.iter().map(|sample| sample.live_blocks).collect(),
        resident: moments.iter().map(|sample| sample.resident_bytes).collect(),
    }
}

fn sizes(profile: &Profile<'_>) -> Vec<u64> {
    let mut sizes = Vec::new();
    for totals in profile.samples.iter().map(|sample| &sample.record.totals) {
        let Some(mean) = totals.allocated_bytes.checked_div(totals.allocated_blocks) else { continue };
        let at = (u64::BITS - mean.leading_zeros()) as usize;
        if sizes.len() <= at {
            sizes.resize(at + 1, 0_u64);
        }
        sizes[at] = sizes[at].saturating_add(totals.allocated_blocks);
    }
    sizes
}

/// Blocks by lifetime, and the seconds at which the first entry begins.
fn lifetimes(profile: &Profile<'_>) -> (Vec<u64>, f64) {
    let mut sum: Vec<u64> = Vec::new();
    for lifetimes in profile.samples.iter().map(|sample| &sample.record.totals.lifetimes) {
        if sum.len() < lifetimes.len() {
            sum.resize(lifetimes.len(), 0);
        }
        for (sum, &count) in sum.iter_mut().zip(lifetimes) {
            *sum = sum.saturating_add(count.into());
        }
    }
    let process = &profile.recorded().process;
    let ns = process.end_monotonic_ns.saturating_sub(process.start_monotonic_ns);
    // Two to three thousand million cycles a second is what a machine has whose clock is not known.
    let seconds_a_cycle = if process.cycles > 0 && ns > 0 { ns as f64 / 1e9 / process.cycles as f64 } else { 4e-10 };
    (sum, 256.0 * seconds_a_cycle)
}
