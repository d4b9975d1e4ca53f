//! pprof's profile.proto, compressed with gzip: for `go tool pprof`, Pyroscope, Parca and others.
//!
//! Source: <https://github.com/google/pprof/blob/main/proto/profile.proto>. Sample types are those of Go's heap
//! profile, in its order: `alloc_objects`, `alloc_space`, `inuse_objects`, `inuse_space`. A site whose live blocks were
//! classified is several samples, one for each kind with the label `leak_kind` (`definite`, `indirect`, `possible`,
//! `reachable`, `suppressed`) and one for the rest; together they add up to the site. With several processes each
//! sample has the numeric label `pid`, and when another tool than ours saw one of them, the label `tool`.

use std::collections::HashMap;
use std::io::{self, Write};

use flate2::{Compression, GzBuilder};
use leakscope_findings::analysis::Amount;
use leakscope_model::{LeakKind, Tool};
use prost::Message;

use crate::Process;
use crate::escape::terminal;
use crate::finding;
use crate::profile::{Code, Profile, Sample as SiteSample};

/// Writes the profile of all processes.
///
/// # Errors
/// Those of `out`.
pub fn write(out: &mut dyn Write, processes: &[Process<'_>]) -> io::Result<()> {
    let mut builder = Builder::new();
    let is_ours = |process: &Process<'_>| process.analysis.witness.tool == Tool::Leakscope;
    let labels = Labels { pid: processes.len() > 1, tool: !processes.iter().all(is_ours) };
    for &process in processes {
        builder.process(&Profile::new(process), labels);
    }
    // Without a name and a time in the header, equal profiles are equal files.
    let mut gzip = GzBuilder::new().write(out, Compression::default());
    gzip.write_all(&builder.finish(processes).encode_to_vec())?;
    gzip.finish()?;
    Ok(())
}

#[derive(Message)]
struct Document {
    #[prost(message, repeated, tag = "1")]
    sample_type: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    sample: Vec<Sample>,
    #[prost(message, repeated, tag = "3")]
    mapping: Vec<Mapping>,
    #[prost(message, repeated, tag = "4")]
    location: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    function: Vec<Function>,
    #[prost(string, repeated, tag = "6")]
    string_table: Vec<String>,
    #[prost(int64, tag = "9")]
    time_nanos: i64,
    #[prost(int64, tag = "10")]
    duration_nanos: i64,
    #[prost(message, optional, tag = "11")]
    period_type: Option<ValueType>,
    #[prost(int64, tag = "12")]
    period: i64,
    #[prost(int64, repeated, tag = "13")]
    comment: Vec<i64>,
    #[prost(int64, tag = "14")]
    default_sample_type: i64,
}

#[derive(Clone, Copy, Message)]
struct ValueType {
    #[prost(int64, tag = "1")]
    r#type: i64,
    #[prost(int64, tag = "2")]
    unit: i64,
}

#[derive(Message)]
struct Sample {
    #[prost(uint64, repeated, tag = "1")]
    location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    value: Vec<i64>,
    #[prost(message, repeated, tag = "3")]
    label: Vec<Label>,
}

#[derive(Clone, Copy, Message)]
struct Label {
    #[prost(int64, tag = "1")]
    key: i64,
    #[prost(int64, tag = "2")]
    str: i64,
    #[prost(int64, tag = "3")]
    num: i64,
}

#[derive(Clone, Copy, Message)]
struct Mapping {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "2")]
    memory_start: u64,
    #[prost(uint64, tag = "3")]
    memory_limit: u64,
    #[prost(int64, tag = "5")]
    filename: i64,
    #[prost(int64, tag = "6")]
    build_id: i64,
    #[prost(bool, tag = "7")]
    has_functions: bool,
    #[prost(bool, tag = "8")]
    has_filenames: bool,
    #[prost(bool, tag = "9")]
    has_line_numbers: bool,
    #[prost(bool, tag = "10")]
    has_inline_frames: bool,
}

#[derive(Message)]
struct Location {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "2")]
    mapping_id: u64,
    #[prost(uint64, tag = "3")]
    address: u64,
    #[prost(message, repeated, tag = "4")]
    line: Vec<Line>,
}

#[derive(Clone, Copy, Message)]
struct Line {
    #[prost(uint64, tag = "1")]
    function_id: u64,
    #[prost(int64, tag = "2")]
    line: i64,
    #[prost(int64, tag = "3")]
    column: i64,
}

#[derive(Clone, Copy, Message)]
struct Function {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "2")]
    name: i64,
    #[prost(int64, tag = "3")]
    system_name: i64,
    #[prost(int64, tag = "4")]
    filename: i64,
}

/// What samples are labelled with, beside the kind.
#[derive(Clone, Copy)]
struct Labels {
    pid: bool,
    tool: bool,
}

struct Builder {
    document: Document,
    strings: HashMap<String, i64>,
    functions: HashMap<(i64, i64, i64), u64>,
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

impl Builder {
    fn new() -> Self {
        let mut builder = Self { document: Document::default(), strings: HashMap::new(), functions: HashMap::new() };
        // Entry 0 of the table must be the empty string.
        builder.string("");
        for (name, unit) in
            [("alloc_objects", "count"), ("alloc_space", "bytes"), ("inuse_objects", "count"), ("inuse_space", "bytes")]
        {
            let sample_type = ValueType { r#type: builder.string(name), unit: builder.string(unit) };
            builder.document.sample_type.push(sample_type);
        }
        builder
    }

    fn string(&mut self, text: &str) -> i64 {
        if let Some(&known) = self.strings.get(text) {
            return known;
        }
        let number = self.document.string_table.len() as i64;
        self.document.string_table.push(text.to_owned());
        self.strings.insert(text.to_owned(), number);
        number
    }

    /// A name out of a file.
    fn name(&mut self, text: &str) -> i64 {
        self.string(&terminal(text))
    }

    fn function(&mut self, code: &Code) -> u64 {
        let name = self.name(&code.name);
        let linkage = if code.linkage_name.is_empty() { name } else { self.name(&code.linkage_name) };
        let file = self.name(&code.file);
        let next = self.document.function.len() as u64 + 1;
        let id = *self.functions.entry((name, linkage, file)).or_insert(next);
        if id == next {
            self.document.function.push(Function { id, name, system_name: linkage, filename: file });
        }
        id
    }

    fn location(&mut self, mapping_id: u64, address: u64, codes: &[Code]) -> u64 {
        let line = codes
            .iter()
            .map(|code| Line {
                function_id: self.function(code),
                line: i64::from(code.line),
                column: i64::from(code.column),
            })
            .collect();
        let id = self.document.location.len() as u64 + 1;
        self.document.location.push(Location { id, mapping_id, address, line });
        id
    }

    fn process(&mut self, profile: &Profile<'_>, labels: Labels) {
        let pid = Label { key: self.string("pid"), str: 0, num: i64::from(profile.analysis().process.pid) };
        let tool = profile.analysis().witness.tool.name();
        let tool = Label { key: self.string("tool"), str: self.string(tool), num: 0 };
        let labels: Vec<Label> = labels.pid.then_some(pid).into_iter().chain(labels.tool.then_some(tool)).collect();
        let recorded = profile.recorded();
        let mappings = self.mappings(profile);
        let locations: Vec<u64> = recorded
            .locations
            .iter()
            .enumerate()
            .map(|(i, location)| {
                let mapping = (location.module as usize).checked_sub(1).and_then(|module| mappings.get(module));
                self.location(mapping.copied().unwrap_or(0), location.pc, &profile.codes(i as u32))
            })
            .collect();
        let hook_mapping =
            recorded.hook_module.and_then(|module| mappings.get(module as usize)).copied().unwrap_or_default();
        let mut hooks: HashMap<leakscope_model::AllocFn, u64> = HashMap::new();
        for sample in &profile.samples {
            let hook = *hooks
                .entry(sample.record.function)
                .or_insert_with(|| self.location(hook_mapping, 0, &[profile.hook(sample.record)]));
            let of = |&location: &u32| locations.get(location as usize).copied();
            let stack: Vec<u64> = std::iter::once(hook).chain(sample.stack.iter().filter_map(of)).collect();
            self.samples(sample, stack, &labels);
        }
    }

    fn mappings(&mut self, profile: &Profile<'_>) -> Vec<u64> {
        let modules = profile.recorded().modules.iter();
        modules
            .map(|module| {
                let id = self.document.mapping.len() as u64 + 1;
                let build_id: String = module.build_id.iter().map(|byte| format!("{byte:02x}")).collect();
                let mapping = Mapping {
                    id,
                    memory_start: module.start,
                    memory_limit: module.end,
                    filename: self.name(&module.path),
                    build_id: self.string(&build_id),
                    // Everything that is known stands in the profile: readers need not look for the files.
                    has_functions: true,
                    has_filenames: true,
                    has_line_numbers: true,
                    has_inline_frames: true,
                };
                self.document.mapping.push(mapping);
                id
            })
            .collect()
    }

    /// One sample for each kind of leak of a site, and one for the rest.
    fn samples(&mut self, site: &SiteSample<'_>, stack: Vec<u64>, labels: &[Label]) {
        let kinds = LeakKind::ALL.into_iter().map(|kind| (kind.option_word(), site.by_kind[kind as usize]));
        let mut rest = site.record.totals.clone();
        for (kind, Amount { bytes, blocks }) in kinds.chain([("suppressed", site.suppressed)]) {
            if blocks == 0 && bytes == 0 {
                continue;
            }
            let kind = Label { key: self.string("leak_kind"), str: self.string(kind), num: 0 };
            self.document.sample.push(Sample {
                location_id: stack.clone(),
                value: [blocks, bytes, blocks, bytes].map(signed).to_vec(),
                label: std::iter::once(kind).chain(labels.iter().copied()).collect(),
            });
            rest.allocated_blocks = rest.allocated_blocks.saturating_sub(blocks);
            rest.allocated_bytes = rest.allocated_bytes.saturating_sub(bytes);
            rest.live_blocks = rest.live_blocks.saturating_sub(blocks);
            rest.live_bytes = rest.live_bytes.saturating_sub(bytes);
        }
        let values = [rest.allocated_blocks, rest.allocated_bytes, rest.live_blocks, rest.live_bytes];
        if values != [0; 4] {
            let value = values.map(signed).to_vec();
            self.document.sample.push(Sample { location_id: stack, value, label: labels.to_vec() });
        }
    }

    fn finish(mut self, processes: &[Process<'_>]) -> Document {
        let times = processes.iter().map(|process| &process.recorded.process);
        let start = times.clone().map(|process| process.start_realtime_ns).min().unwrap_or(0);
        let span = times.map(|process| process.end_monotonic_ns.saturating_sub(process.start_monotonic_ns));
        self.document.time_nanos = signed(start);
        self.document.duration_nanos = signed(span.max().unwrap_or(0));
        self.document.default_sample_type = self.string("inuse_space");
        self.document.period_type = self.document.sample_type.last().copied();
        let sampled = processes.iter().map(|process| process.recorded.process.sample_bytes).max();
        self.document.period = signed(sampled.unwrap_or(0).max(1));
        for process in processes {
            let words = process.recorded.process.command_line.join(" ");
            let program = finding::program(process.analysis);
            let comment = self.name(if words.is_empty() { program } else { &words });
            self.document.comment.push(comment);
            for sentence in
                finding::not_classified(process.analysis).into_iter().chain(finding::losses(process.analysis))
            {
                let comment = self.name(&sentence);
                self.document.comment.push(comment);
            }
        }
        self.document
    }
}
