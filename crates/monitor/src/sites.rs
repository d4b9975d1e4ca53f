//! What the ledgers of programs under `leakscope run` say while these run: live bytes by allocation site, and which sites
//! have grown since a growth began, with their identities.
//!
//! Ledgers are read once in some passes, from outside: the program does not notice. A site is named once, when it is first
//! said: reading debug information takes longer than everything else here.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use leakscope_alerts::Evidence;
use leakscope_findings::analysis::Frame;
use leakscope_findings::fingerprint::of_leak;
use leakscope_history::Site;
use leakscope_sampling::ledgers::{FrameAddress, Ledger, LiveSite, find_ledgers};
use leakscope_sampling::names::printable;
use leakscope_sampling::{Places, Process};
use leakscope_symbols::{ModuleFile, Options, Symbolizer};

use crate::moments::Moments;
use crate::units::{show_bytes, show_hours};

/// What found it.
pub const SOURCE: &str = "ledger";
/// Passes between two readings.
const PASSES: f64 = 6.0;
/// Longest time between two readings, seconds.
const LONGEST_SECONDS: f64 = 60.0;
/// Sites that are named in an alarm.
const SITES: usize = 3;
/// Sites of a profile that are named; the others are one.
const PROFILE_SITES: usize = 60;
/// A site must have this share of all live bytes to be named in a profile.
const PROFILE_SHARE: f64 = 0.002;
/// The identity of all sites of a profile that are too small to be named.
pub const OTHERS: &str = "others";
/// A site must have grown by this share of the fastest one to be named beside it.
const LEAST_SHARE: f64 = 0.05;

/// The ledgers of programs under `leakscope run`.
#[derive(Default)]
pub struct Ledgers {
    read_at: Option<f64>,
    known: HashMap<u32, Read>,
    /// What was answered since the last reading: the same question comes with every pass while something grows.
    answered: HashMap<Vec<u32>, Vec<Evidence>>,
}

struct Read {
    ledger: Ledger,
    /// Live bytes of each site.
    moments: Moments,
    names: HashMap<u32, Named>,
}

#[derive(Clone)]
struct Named {
    fingerprint: String,
    stack: Vec<String>,
}

impl Read {
    fn now(&self) -> &[u64] {
        self.moments.last().map_or(&[], |moment| &moment.numbers)
    }
}

impl Ledgers {
    /// Looks for ledgers of `processes` and reads them, when it is time.
    pub fn refresh(&mut self, places: &Places, processes: &[Process], seconds: f64, interval_seconds: f64) {
        let every = (interval_seconds * PASSES).min(LONGEST_SECONDS);
        if self.read_at.is_some_and(|at| seconds - at < every - 0.5) {
            return;
        }
        self.read_at = Some(seconds);
        let mut found = HashMap::new();
        for ledger in find_ledgers(places, processes) {
            let Some(bytes) = ledger.read_bytes_by_site() else { continue };
            let before = self.known.remove(&ledger.pid).filter(|before| before.ledger.identity == ledger.identity);
            let (moments, names) = before.map_or_else(Default::default, |before| (before.moments, before.names));
            let mut read = Read { ledger, moments, names };
            read.moments.push(seconds, bytes);
            found.insert(read.ledger.pid, read);
        }
        self.known = found;
        self.answered.clear();
    }

    /// Live bytes of a process; `None` without a ledger.
    pub fn live_bytes(&self, pid: u32) -> Option<u64> {
        Some(self.known.get(&pid)?.now().iter().fold(0, |sum: u64, bytes| sum.saturating_add(*bytes)))
    }

    /// The sites that have grown most since `since` (seconds since the epoch), most first; the same until the next reading.
    pub fn grown(&mut self, pids: &[u32], since: f64) -> Vec<Evidence> {
        if !pids.iter().any(|pid| self.known.contains_key(pid)) {
            return Vec::new();
        }
        if let Some(known) = self.answered.get(pids) {
            return known.clone();
        }
        let evidence = self.find_grown(pids, since);
        self.answered.insert(pids.to_vec(), evidence.clone());
        evidence
    }

    fn find_grown(&mut self, pids: &[u32], since: f64) -> Vec<Evidence> {
        let mut candidates: Vec<Candidate> = Vec::new();
        for (&pid, read) in self.known.iter().filter(|(pid, _)| pids.contains(pid)) {
            let (Some(before), Some(last)) = (read.moments.before(since), read.moments.last()) else { continue };
            let grown = |site: usize| last.numbers[site].saturating_sub(before.numbers.get(site).copied().unwrap_or(0));
            let sites = (1..last.numbers.len()).filter(|&site| grown(site) > 0);
            let hours = (last.seconds - before.seconds) / 3600.0;
            candidates.extend(sites.map(|site| Candidate { grown: grown(site), pid, site: site as u32, hours }));
        }
        candidates
            .sort_unstable_by_key(|candidate| (std::cmp::Reverse(candidate.grown), candidate.pid, candidate.site));
        let least = candidates.first().map_or(0.0, |first| first.grown as f64 * LEAST_SHARE);
        candidates.retain(|candidate| candidate.grown as f64 >= least);
        candidates.truncate(SITES);
        let mut evidence: Vec<Evidence> = Vec::new();
        let mut symbolizer = None;
        for Candidate { grown, pid, site, hours } in candidates {
            let Some((named, live)) = self.named(pid, site, &mut symbolizer) else { continue };
            let title = format!(
                "{} more in {}, {} live in {} blocks of process {pid}",
                show_bytes(grown as f64),
                show_hours(hours),
                show_bytes(live.bytes as f64),
                live.blocks
            );
            match evidence.iter_mut().find(|known| known.fingerprint == named.fingerprint) {
                // The same path in another worker, or from another line of the same function.
                Some(known) => {
                    known.bytes = known.bytes.saturating_add(live.bytes);
                    known.blocks = known.blocks.saturating_add(live.blocks);
                }
                None => evidence.push(Evidence {
                    source: SOURCE.to_owned(),
                    fingerprint: named.fingerprint,
                    known_since: None,
                    title,
                    stack: named.stack,
                    bytes: live.bytes,
                    blocks: live.blocks,
                }),
            }
        }
        evidence
    }

    fn named(&mut self, pid: u32, site: u32, symbolizer: &mut Option<Symbolizer>) -> Option<(Named, LiveSite)> {
        let read = self.known.get_mut(&pid)?;
        let live = read.ledger.read_sites(&[site]).pop()?;
        let named = read.names.entry(site).or_insert_with(|| name(&live, symbolizer)).clone();
        Some((named, live))
    }

    /// What the sites of some processes have now: the largest by name, and what is left as one.
    pub fn profile(&mut self, pids: &[u32]) -> Vec<Site> {
        let mut sites: Vec<(u64, u32, u32)> = Vec::new();
        for (&pid, read) in self.known.iter().filter(|(pid, _)| pids.contains(pid)) {
            let bytes = read.now().iter().enumerate().filter(|(_, bytes)| **bytes > 0);
            sites.extend(bytes.map(|(site, &bytes)| (bytes, pid, site as u32)));
        }
        let sum = |sites: &[(u64, u32, u32)]| sites.iter().fold(0, |sum: u64, (bytes, ..)| sum.saturating_add(*bytes));
        let all = sum(&sites);
        sites.sort_unstable_by_key(|&(bytes, pid, site)| (std::cmp::Reverse(bytes), pid, site));
        let is_large = |(bytes, ..): &&(u64, u32, u32)| *bytes as f64 >= all as f64 * PROFILE_SHARE;
        let (large, small) = sites.split_at(sites.iter().take(PROFILE_SITES).take_while(is_large).count());
        let mut profile: Vec<Site> = Vec::new();
        let mut symbolizer = None;
        let pids: std::collections::BTreeSet<u32> = large.iter().map(|(_, pid, _)| *pid).collect();
        for pid in pids {
            let Some(read) = self.known.get_mut(&pid) else { continue };
            let ids: Vec<u32> = large.iter().filter(|(_, of, _)| *of == pid).map(|(.., site)| *site).collect();
            for live in read.ledger.read_sites(&ids) {
                let named = read.names.entry(live.id).or_insert_with(|| name(&live, &mut symbolizer)).clone();
                match profile.iter_mut().find(|known| known.fingerprint == named.fingerprint) {
                    // The same path in another worker, or from another line of the same function.
                    Some(known) => {
                        known.bytes = known.bytes.saturating_add(live.bytes);
                        known.blocks = known.blocks.saturating_add(live.blocks);
                    }
                    None => profile.push(Site {
                        fingerprint: named.fingerprint,
                        stack: named.stack,
                        bytes: live.bytes,
                        blocks: live.blocks,
                    }),
                }
            }
        }
        let (rest, stack) = (sum(small), vec!["smaller sites".to_owned()]);
        profile.extend((rest > 0).then(|| Site { fingerprint: OTHERS.to_owned(), stack, bytes: rest, blocks: 0 }));
        profile
    }
}

/// Evidence as a line of a profile.
pub fn site_of(one: &Evidence) -> Site {
    Site { fingerprint: one.fingerprint.clone(), stack: one.stack.clone(), bytes: one.bytes, blocks: one.blocks }
}

/// A site that has grown.
struct Candidate {
    grown: u64,
    pid: u32,
    site: u32,
    hours: f64,
}

/// Names the frames of a site, and gives it the identity that reports give it. The symbolizer serves several sites in turn,
/// and is gone after them: what it has read of debug information is large.
fn name(site: &LiveSite, symbolizer: &mut Option<Symbolizer>) -> Named {
    let symbolizer =
        symbolizer.get_or_insert_with(|| Symbolizer::new(Options { debuginfod: None, ..Options::default() }));
    // The allocation function stands first and is no part of the identity.
    let mut frames = vec![unnamed("", 0)];
    let mut stack = vec![site.function.demangled().to_owned()];
    for frame in &site.stack {
        let named = resolve(symbolizer, frame);
        stack.extend(named.iter().map(shown));
        frames.extend(named);
    }
    let below = stack.iter().position(|frame| frame == "main" || frame.starts_with("main ("));
    stack.truncate(below.map_or(stack.len(), |main| main + 1));
    Named { fingerprint: of_leak(&frames).to_string(), stack }
}

fn resolve(symbolizer: &mut Symbolizer, frame: &FrameAddress) -> Vec<Frame> {
    use std::os::unix::ffi::OsStringExt;
    let object = String::from_utf8_lossy(&frame.module).into_owned();
    let path = PathBuf::from(std::ffi::OsString::from_vec(frame.module.clone()));
    let module = ModuleFile { path, build_id: Some(frame.build_id.clone()).filter(|id| !id.is_empty()) };
    let names = symbolizer.resolve(&module, &[frame.address], &mut |_| ());
    let mut frames: Vec<Frame> = Vec::new();
    for name in names.into_iter().flatten() {
        frames.push(Frame {
            function: Some(name.function).filter(|function| !function.is_empty()).map(Arc::from),
            linkage_name: name.linkage_name.map(Arc::from),
            file: name.file.map(Arc::from),
            directory: name.directory.map(Arc::from),
            line: name.line.unwrap_or(0),
            column: name.column.unwrap_or(0),
            inlined: name.inlined,
            ..unnamed(&object, frame.address)
        });
    }
    if frames.is_empty() {
        frames.push(unnamed(&object, frame.address));
    }
    frames
}

fn unnamed(object: &str, svma: u64) -> Frame {
    Frame {
        ip: svma,
        svma,
        function: None,
        linkage_name: None,
        file: None,
        directory: None,
        line: 0,
        column: 0,
        inlined: false,
        object: object.into(),
        hook: false,
        module: None,
    }
}

/// `load (cache.c:12)`, `load`, or `libx.so+0x12` without a name.
fn shown(frame: &Frame) -> String {
    let Some(function) = &frame.function else {
        let file = frame.object.rsplit('/').next().unwrap_or_default();
        return format!("{}+{:#x}", printable(file.as_bytes()), frame.svma);
    };
    let function = printable(function.as_bytes());
    match &frame.file {
        Some(file) if frame.line > 0 => format!("{function} ({}:{})", printable(file.as_bytes()), frame.line),
        _ => function,
    }
}
