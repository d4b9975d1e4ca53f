//! Allocation sites as a profile: one sample for each site, with its stack and its amounts by metric.
//!
//! The analysis holds sites with live blocks only, merged and cut to `--num-callers`. A profile wants all of them,
//! with whole stacks, so this goes back to the recording.

use std::collections::{HashMap, HashSet};

use leakscope_findings::analysis::{Amount, Analysis, LossRecord, Outcome, Resolution};
use leakscope_findings::recording::{FrameRecord, ProcessRecording, Site};
use leakscope_model::{AllocFn, LeakKind};

use crate::Process;
use crate::finding::file_name;

/// What is added up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Metric {
    /// Blocks that are definitely, indirectly or possibly lost; suppressed ones left out.
    Leaked,
    /// Blocks that were live at the end.
    Live,
    /// The most that was live of each site at any time (an upper bound; sites peak at different moments).
    Peak,
    /// Blocks that were freed with no other allocation in between.
    Temporary,
    /// All allocations.
    Total,
}

impl Metric {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Leaked, Self::Live, Self::Peak, Self::Temporary, Self::Total];

    /// One word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Leaked => "leaked",
            Self::Live => "live",
            Self::Peak => "peak",
            Self::Temporary => "temporary",
            Self::Total => "total",
        }
    }

    /// Whether blocks are counted; else bytes.
    pub fn counts_blocks(self) -> bool {
        // The size of temporary blocks is not recorded.
        self == Self::Temporary
    }
}

/// Deepest stack that is followed; a hostile recording could have millions of frames.
const DEEPEST: usize = 1024;

/// A function at a place.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Code {
    /// Name for people, or module and offset; not escaped.
    pub name: String,
    /// Directory and file, empty when unknown.
    pub file: String,
    /// Line, 0 when unknown.
    pub line: u32,
    /// Column, 0 when unknown.
    pub column: u32,
    /// The module's path, empty when unknown.
    pub module: String,
    /// Linker's name, empty when it is the same.
    pub linkage_name: String,
}

/// A site with its amounts.
pub(crate) struct Sample<'a> {
    /// Number of the site in the recording.
    pub number: u32,
    /// What was recorded there.
    pub record: &'a Site,
    /// Blocks of the reported leak check by kind, those of suppressed records left out.
    pub by_kind: [Amount; 4],
    /// Blocks of the reported leak check in suppressed records.
    pub suppressed: Amount,
    /// Numbers of locations, innermost first, up to `main`.
    pub stack: Vec<u32>,
}

impl Sample<'_> {
    /// Bytes, or blocks where the metric counts those.
    pub fn amount(&self, metric: Metric) -> u64 {
        let totals = &self.record.totals;
        match metric {
            Metric::Leaked => self.leaked().bytes,
            Metric::Live => totals.live_bytes,
            Metric::Peak => totals.peak_bytes,
            Metric::Temporary => totals.temporary_blocks,
            Metric::Total => totals.allocated_bytes,
        }
    }

    /// What is lost for certain or possibly.
    pub fn leaked(&self) -> Amount {
        let lost = [LeakKind::DefinitelyLost, LeakKind::IndirectlyLost, LeakKind::PossiblyLost];
        lost.into_iter().fold(Amount::default(), |sum, kind| {
            let of = self.by_kind[kind as usize];
            Amount { bytes: sum.bytes.saturating_add(of.bytes), blocks: sum.blocks.saturating_add(of.blocks) }
        })
    }
}

/// All sites of a process.
pub(crate) struct Profile<'a> {
    recorded: &'a ProcessRecording,
    analysis: &'a Analysis,
    /// Sites that allocated, in the recording's order.
    pub samples: Vec<Sample<'a>>,
    below_main: Vec<bool>,
    is_main: Vec<bool>,
}

impl<'a> Profile<'a> {
    /// The sites of a process.
    pub fn new(process: Process<'a>) -> Self {
        let Process { recorded, analysis } = process;
        let mut profile = Self { recorded, analysis, samples: Vec::new(), below_main: Vec::new(), is_main: Vec::new() };
        for location in &recorded.locations {
            // The physical function of an address decides, not what was inlined into it.
            let last = recorded.frames_of(location).last();
            let name = last.map_or_else(Default::default, |frame| profile.linker_name(frame));
            profile.is_main.push(name == "main");
            profile.below_main.push(is_below_main(&name));
        }
        let checked = profile.checked();
        for (number, site) in recorded.sites.iter().enumerate() {
            let number = number as u32;
            let (by_kind, suppressed) = checked.get(&number).copied().unwrap_or_default();
            if site.totals.allocated_blocks > 0 || site.totals.live_blocks > 0 || checked.contains_key(&number) {
                let stack = profile.stack(number);
                profile.samples.push(Sample { number, record: site, by_kind, suppressed, stack });
            }
        }
        profile
    }

    /// The recording.
    pub fn recorded(&self) -> &'a ProcessRecording {
        self.recorded
    }

    /// The analysis.
    pub fn analysis(&self) -> &'a Analysis {
        self.analysis
    }

    /// Amounts of the reported leak check by site.
    fn checked(&self) -> HashMap<u32, ([Amount; 4], Amount)> {
        let mut by_site: HashMap<u32, ([Amount; 4], Amount)> = HashMap::new();
        let Outcome::Classified(facts) = &self.analysis.outcome else { return by_site };
        let hidden = self.suppressed_keys();
        let check = self.recorded.checks.iter().find(|check| check.number == facts.number);
        for record in check.and_then(|check| check.records.as_deref()).unwrap_or_default() {
            let is_hidden = !hidden.is_empty() && hidden.contains(&self.key(record.kind, record.site));
            let entry = by_site.entry(record.site).or_default();
            let amount = if is_hidden { &mut entry.1 } else { &mut entry.0[record.kind as usize] };
            amount.bytes = amount.bytes.saturating_add(record.bytes);
            amount.blocks = amount.blocks.saturating_add(record.blocks);
        }
        by_site
    }

    /// How many addresses, the allocation function's included, make sites one loss record.
    fn resolution(&self) -> usize {
        let addresses = match self.analysis.options.leak_resolution {
            Resolution::Low => 2,
            Resolution::Med => 4,
            Resolution::High => usize::MAX,
        };
        addresses.min(self.analysis.options.num_callers).max(1)
    }

    /// What the analysis merged blocks by.
    fn key(&self, kind: LeakKind, site: u32) -> (LeakKind, AllocFn, Vec<u64>) {
        let function = self.recorded.sites.get(site as usize).map_or(AllocFn::Malloc, |site| site.function);
        let pc = |number: u32| self.recorded.locations.get(number as usize).map(|location| location.pc);
        (kind, function, self.recorded.stack(site).take(self.resolution() - 1).filter_map(pc).collect())
    }

    /// What tells the loss record of a site with live blocks, but for its kind.
    pub fn merged_by(&self, sample: &Sample<'_>) -> Vec<u64> {
        let (_, function, addresses) = self.key(LeakKind::StillReachable, sample.number);
        std::iter::once(function as u64).chain(addresses).collect()
    }

    /// The same of a loss record.
    pub fn merged_key(&self, record: &LossRecord) -> Vec<u64> {
        std::iter::once(record.function as u64).chain(self.addresses(record)).collect()
    }

    /// The addresses by which blocks were merged into a record, taken back from its stack.
    fn addresses(&self, record: &LossRecord) -> Vec<u64> {
        // Each address ends with the function that was not inlined.
        let outer = record.stack.all_frames().iter().filter(|frame| !frame.hook && !frame.inlined);
        outer.map(|frame| frame.ip).take(self.resolution() - 1).collect()
    }

    /// The keys of suppressed loss records.
    fn suppressed_keys(&self) -> HashSet<(LeakKind, AllocFn, Vec<u64>)> {
        let suppressed = self.analysis.records.iter().filter(|record| record.suppressed_by.is_some());
        suppressed.filter_map(|record| Some((record.kind?, record.function, self.addresses(record)))).collect()
    }

    /// Locations of a site, innermost first, up to `main` unless the options show more.
    pub fn stack(&self, site: u32) -> Vec<u32> {
        let mut stack: Vec<u32> = self.recorded.stack(site).take(DEEPEST).collect();
        if !self.analysis.options.show_below_main {
            let is = |flags: &[bool], number: u32| flags.get(number as usize).copied().unwrap_or(false);
            if let Some(main) = stack.iter().rposition(|&number| is(&self.is_main, number)) {
                stack.truncate(main + 1);
            } else if let Some(below) = stack.iter().position(|&number| is(&self.below_main, number)) {
                stack.truncate(below + 1);
            }
        }
        stack
    }

    fn linker_name(&self, frame: &FrameRecord) -> String {
        let number = if frame.linkage_name == 0 { frame.function } else { frame.linkage_name };
        let name = self.recorded.string(number);
        name.split_once('@').map_or(&*name, |(front, _)| front).to_owned()
    }

    /// The functions at a location, innermost first.
    pub fn codes(&self, number: u32) -> Vec<Code> {
        let Some(location) = self.recorded.locations.get(number as usize) else { return Vec::new() };
        let module = self.recorded.module_of(location);
        let path = module.map(|module| module.path.to_string()).unwrap_or_default();
        let address = location.pc.wrapping_sub(module.map_or(0, |module| module.load_bias));
        let bare = || {
            if path.is_empty() { format!("{address:#x}") } else { format!("{}+{address:#x}", file_name(&path)) }
        };
        let frames = self.recorded.frames_of(location);
        if frames.is_empty() {
            return vec![Code {
                name: bare(),
                file: String::new(),
                line: 0,
                column: 0,
                module: path,
                linkage_name: String::new(),
            }];
        }
        let string = |number: u32| self.recorded.string(number).to_string();
        let code = |frame: &FrameRecord| Code {
            name: Some(string(frame.function)).filter(|name| !name.is_empty()).unwrap_or_else(&bare),
            file: crate::place::join(&string(frame.directory), &string(frame.file)),
            line: frame.line,
            column: frame.column,
            module: path.clone(),
            linkage_name: string(frame.linkage_name),
        };
        let mut codes: Vec<Code> = frames.iter().map(code).collect();
        let is_below_main = self.below_main.get(number as usize).copied().unwrap_or(false);
        if is_below_main && !self.analysis.options.show_below_main {
            for code in &mut codes {
                (code.name, code.linkage_name) = ("(below main)".to_owned(), String::new());
            }
        }
        codes
    }

    /// The allocation function of a site, as the innermost step of its stack.
    pub fn hook(&self, site: &Site) -> Code {
        let module = self.recorded.hook_module.and_then(|number| self.recorded.modules.get(number as usize));
        Code {
            name: site.function.demangled().to_owned(),
            file: String::new(),
            line: 0,
            column: 0,
            module: module.map(|module| file_name(&module.path).to_owned()).unwrap_or_default(),
            linkage_name: site.function.symbol().to_owned(),
        }
    }
}

/// What starts a program. Source: Valgrind's manual on `--show-below-main`.
fn is_below_main(name: &str) -> bool {
    matches!(
        name,
        "_start" | "__libc_start_call_main" | "__libc_start_main" | "__libc_start_main_impl" | "generic_start_main"
    ) || name.starts_with("__libc_start_main.")
}
