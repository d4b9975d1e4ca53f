//! `leakscope trace`: allocations of a running program that outlive a window, by stack. The program is not touched.

use std::collections::HashMap;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::ArgMatches;
use leakscope_ebpf::interrupts::Interrupts;
use leakscope_ebpf::user::{self, Config, Tracer};
use leakscope_findings::ProcessRecording;
use leakscope_import::{TraceFacts, TracedSite, user_trace};

use crate::file_names::FileNames;
use crate::flags::trace::TraceArgs;
use crate::kernel::trace::limits;
use crate::tracing::{self, Group, Reports, Session, Target};

/// Mean bytes between samples unless the user says otherwise. A probe costs more than a sample here.
const USUAL_SAMPLE_BYTES: u64 = 64 << 10;

/// Runs the subcommand.
///
/// # Errors
/// The program cannot be traced, and what to do; or a report cannot be written.
pub fn main(args: &TraceArgs, matches: &ArgMatches) -> Result<ExitCode> {
    let mut reports = Reports::open(&args.view, matches)?;
    let pids = match (args.pid, &args.comm) {
        (Some(pid), _) => vec![pid],
        (None, Some(comm)) => find(comm)?,
        (None, None) => bail!("which program? give a PID or --comm NAME"),
    };
    let sample_bytes = args.watch.sample.unwrap_or(USUAL_SAMPLE_BYTES);
    let config = Config {
        pids: pids.clone(),
        limits: limits(&args.watch, sample_bytes),
        by_frame_pointers: args.frame_pointers,
    };
    let interrupts = Interrupts::block().context("cannot wait for signals")?;
    let mut tracer = Tracer::start(&config)?;
    if !reports.is_quiet() {
        let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
        eprintln!("leakscope: tracing process {}; Ctrl-C ends it and reports", pids.join(", "));
    }
    let mut session = Session::new(&args.watch, sample_bytes);
    session.notes.extend(tracer.functions().iter().map(|functions| format!("watched in {functions}")));
    let mut target = Target::User;
    if args.watch.print_events {
        let mut events = tracer.take_events()?;
        return tracing::print_events(&mut tracer, &mut events, &args.watch, &interrupts, &target);
    }
    let facts: Vec<TraceFacts> = pids.iter().map(|&pid| read_facts(pid)).collect();
    let mut last = session.watch(&mut tracer, &mut target, &interrupts, !reports.is_quiet())?;
    let mut names = FileNames::new(reports.view.symbols.clone(), None);
    let common = session.facts(&last);
    let mut recorded = Vec::new();
    for own in facts {
        let TraceFacts { pid, executable, command_line, mappings, .. } = own;
        let facts = TraceFacts { pid, executable, command_line, mappings, ..common.clone() };
        let traced: Vec<TracedSite<u64>> = last.groups.iter().filter(|group| group.tgid == pid).map(traced).collect();
        let process = user_trace(&traced, &facts, &mut names);
        name_groups(&mut last.groups, pid, &process);
        recorded.push(process);
    }
    last.groups = merge_named(std::mem::take(&mut last.groups));
    let has_errors = reports.write(recorded)?;
    tracing::print_last(&args.watch, &reports, &last, &session)?;
    Ok(reports.exit_code(has_errors))
}

fn traced(group: &Group) -> TracedSite<u64> {
    TracedSite {
        frames: group.addresses.clone(),
        function: None,
        live_bytes: group.live.bytes.value.round() as u64,
        live_blocks: group.live.blocks.value.round() as u64,
        allocated_bytes: group.allocated_bytes as u64,
        allocated_blocks: group.allocated_blocks as u64,
        note: group.note(),
    }
}

/// Processes of this name.
fn find(comm: &str) -> Result<Vec<u32>> {
    let own = std::process::id();
    let mut pids = Vec::new();
    for entry in std::fs::read_dir("/proc").context("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if name.trim_end() == comm && pid != own {
            pids.push(pid);
        }
    }
    pids.sort_unstable();
    if pids.is_empty() {
        bail!("no process has the name {comm}; names are as in /proc/PID/comm, 15 bytes at most");
    }
    Ok(pids)
}

/// Read before tracing, since a process may end meanwhile.
fn read_facts(pid: u32) -> TraceFacts {
    let text = |name: &str| std::fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let words = text("cmdline");
    let command_line = words
        .split(|&byte| byte == 0)
        .filter(|word| !word.is_empty())
        .map(|word| String::from_utf8_lossy(word).into_owned());
    let executable = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    let mappings = user::mappings(pid).unwrap_or_default();
    let mut paths: HashMap<String, String> = HashMap::new();
    let mappings = mappings.iter().map(|mapping| {
        let path = paths.entry(mapping.path.clone()).or_insert_with(|| mapping.path_for(pid));
        (mapping.start, mapping.end, path.clone())
    });
    TraceFacts {
        pid,
        executable: executable.display().to_string(),
        command_line: command_line.collect(),
        mappings: mappings.collect(),
        ..TraceFacts::default()
    }
}

/// Merges groups whose stacks have the same names: a loop that the compiler unrolled is one place.
fn merge_named(groups: Vec<Group>) -> Vec<Group> {
    let mut merged: Vec<Group> = Vec::new();
    let mut known: HashMap<(u32, Vec<String>), usize> = HashMap::new();
    for group in groups {
        match known.get(&(group.tgid, group.names.clone())) {
            Some(&at) => merged[at].merge(&group),
            None => {
                known.insert((group.tgid, group.names.clone()), merged.len());
                merged.push(group);
            }
        }
    }
    merged.sort_by(|a, b| b.live.bytes.value.total_cmp(&a.live.bytes.value));
    merged
}

/// Gives groups the names that the recording has.
fn name_groups(groups: &mut [Group], pid: u32, recorded: &ProcessRecording) {
    let names: HashMap<u64, Vec<String>> = recorded
        .locations
        .iter()
        .map(|location| {
            let names = recorded.frames_of(location).iter().map(|frame| recorded.string(frame.function).to_string());
            (location.pc, names.collect())
        })
        .collect();
    for group in groups.iter_mut().filter(|group| group.tgid == pid) {
        let named = group.addresses.iter().flat_map(|address| match names.get(&address.saturating_sub(1)) {
            Some(names) if !names.is_empty() => names.clone(),
            _ => vec![format!("{address:#x}")],
        });
        group.names = named.collect();
        "malloc".clone_into(&mut group.function);
    }
}
