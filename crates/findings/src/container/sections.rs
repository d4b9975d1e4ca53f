//! Sections out of a recording and back.

use std::io::{Read, Write};

use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{DecodeError, MAGIC, MOST_RAW_BYTES, Problem, VERSION};
use crate::recording::{EventLog, Host, ProcessRecording, Recording, Witness};

const FILE_HEADER_BYTES: usize = 16;
const SECTION_HEADER_BYTES: usize = 24;

/// `HEAD`.
#[derive(Serialize, Deserialize)]
struct Head {
    tool_version: String,
    host: Host,
    processes: u32,
}

pub(super) fn encode(recording: &Recording) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    let head = Head {
        tool_version: recording.tool_version.clone(),
        host: recording.host.clone(),
        processes: u32::try_from(recording.processes.len()).unwrap_or(u32::MAX),
    };
    section(&mut out, *b"HEAD", &head);
    for process in &recording.processes {
        let ProcessRecording {
            process,
            end,
            lost,
            problems,
            modules,
            hook_module,
            strings,
            frames,
            locations,
            nodes,
            sites,
            threads,
            misuses,
            checks,
            series,
            witness,
            memory_errors,
            intervals,
            event_log,
            site_notes,
            functions,
            misuse_notes,
        } = process;
        section(
            &mut out,
            *b"PROC",
            &(process, end, lost, problems, modules, hook_module, threads, misuses, checks, series),
        );
        section(&mut out, *b"SYMS", &(strings, frames, locations));
        section(&mut out, *b"TREE", nodes);
        section(&mut out, *b"SITE", sites);
        // Only imported processes have it: what an earlier build wrote and what it reads stays the same.
        if *witness != Witness::default() || !memory_errors.is_empty() {
            section(&mut out, *b"WITN", &(witness, memory_errors));
        }
        // Likewise only processes that called `mtrace()`, or whose events were logged.
        if !intervals.is_empty() || *event_log != EventLog::default() || lost.intervals > 0 {
            section(&mut out, *b"INTV", &(intervals, event_log, lost.intervals));
        }
        if !site_notes.is_empty() {
            section(&mut out, *b"NOTE", site_notes);
        }
        // And only processes that the simulated CPU ran.
        if !functions.is_empty() || !misuse_notes.is_empty() {
            section(&mut out, *b"FUNC", &(functions, misuse_notes));
        }
    }
    section(&mut out, *b"DONE", &());
    out
}

fn section(out: &mut Vec<u8>, tag: [u8; 4], payload: &impl Serialize) {
    // Neither of the two can fail: postcard knows all our types, and writing to a vector does not fail.
    let Ok(raw) = postcard::to_stdvec(payload) else { return };
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    let Ok(stored) = encoder.write_all(&raw).and_then(|()| encoder.finish()) else { return };
    out.extend_from_slice(&tag);
    out.extend_from_slice(&crc32fast::hash(&stored).to_le_bytes());
    out.extend_from_slice(&(stored.len() as u64).to_le_bytes());
    out.extend_from_slice(&(raw.len() as u64).to_le_bytes());
    out.extend_from_slice(&stored);
}

/// A section as it lies in the file.
struct Section<'a> {
    tag: [u8; 4],
    crc: u32,
    raw_bytes: u64,
    stored: &'a [u8],
}

/// The next section of `rest`; `Err` with the tag, if it got so far, when the file ends within it.
fn next_section<'a>(rest: &mut &'a [u8]) -> Result<Section<'a>, Option<[u8; 4]>> {
    let (header, after) = rest.split_at_checked(SECTION_HEADER_BYTES).ok_or(None)?;
    let tag = [header[0], header[1], header[2], header[3]];
    let crc = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
    let long = |at: usize| header[at..at + 8].iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
    let stored_bytes = usize::try_from(long(8)).map_err(|_| Some(tag))?;
    let (stored, after) = after.split_at_checked(stored_bytes).ok_or(Some(tag))?;
    *rest = after;
    Ok(Section { tag, crc, raw_bytes: long(16), stored })
}

/// What a section holds, in messages.
fn name(tag: [u8; 4]) -> &'static str {
    match &tag {
        b"HEAD" => "the facts about the machine",
        b"PROC" => "the facts about the process",
        b"SYMS" => "the symbols",
        b"TREE" => "the stacks",
        b"SITE" => "the allocation sites",
        b"WITN" => "what the other tool found",
        b"INTV" => "the intervals",
        b"NOTE" => "the notes on sites",
        b"FUNC" => "where functions and addresses are",
        b"DONE" => "the end mark",
        _ => "a section",
    }
}

impl Section<'_> {
    /// The payload; `None` after noting why not.
    fn payload<T: DeserializeOwned>(&self, budget: &mut u64, problems: &mut Vec<Problem>) -> Option<T> {
        let mut fail = |why: &str| {
            problems.push(Problem(format!("{} cannot be read: {why}", name(self.tag))));
            None
        };
        if crc32fast::hash(self.stored) != self.crc {
            return fail("the checksum is wrong");
        }
        if self.raw_bytes > *budget {
            return fail("it is larger than any recording");
        }
        let mut raw = Vec::new();
        let mut decoder = ZlibDecoder::new(self.stored).take(self.raw_bytes.saturating_add(1));
        if decoder.read_to_end(&mut raw).is_err() || raw.len() as u64 != self.raw_bytes {
            return fail("it does not unpack to its length");
        }
        *budget -= self.raw_bytes;
        match postcard::from_bytes(&raw) {
            Ok(payload) => Some(payload),
            Err(_) => fail("its contents are damaged"),
        }
    }
}

pub(super) fn decode(bytes: &[u8]) -> Result<(Recording, Vec<Problem>), DecodeError> {
    let header = bytes.get(..FILE_HEADER_BYTES).ok_or(DecodeError::NotARecording)?;
    if header[..MAGIC.len()] != MAGIC {
        return Err(DecodeError::NotARecording);
    }
    let version = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
    if version != VERSION {
        return Err(DecodeError::Version(version));
    }
    let mut rest = &bytes[FILE_HEADER_BYTES..];
    let mut problems = Vec::new();
    let mut recording = Recording::default();
    let mut budget = MOST_RAW_BYTES;
    let mut expected = None;
    let mut done = false;
    while !done {
        let section = match next_section(&mut rest) {
            Ok(section) => section,
            Err(tag) => {
                let what = tag.map_or("before its end mark", |tag| name(tag));
                problems.push(Problem(match tag {
                    None => format!("the file is cut off {what}"),
                    Some(_) => format!("the file is cut off within {what}"),
                }));
                break;
            }
        };
        match &section.tag {
            b"HEAD" => {
                if let Some(head) = section.payload::<Head>(&mut budget, &mut problems) {
                    recording.tool_version = head.tool_version;
                    recording.host = head.host;
                    expected = Some(head.processes);
                }
            }
            b"DONE" => done = true,
            _ => part(&section, &mut recording.processes, &mut budget, &mut problems),
        }
    }
    let missing = expected.map_or(0, |expected| expected as usize).saturating_sub(recording.processes.len());
    if missing > 0 {
        problems.push(Problem(format!("{missing} processes are missing")));
    }
    if recording.processes.is_empty() && !(done && expected == Some(0)) {
        return Err(DecodeError::Empty);
    }
    for process in &mut recording.processes {
        check(process, &mut problems);
    }
    Ok((recording, problems))
}

/// A section of a process. The section `PROC` begins one, so its other sections never meet the wrong process,
/// even when `PROC` itself is damaged.
fn part(section: &Section<'_>, processes: &mut Vec<ProcessRecording>, budget: &mut u64, problems: &mut Vec<Problem>) {
    if &section.tag == b"PROC" {
        let mut begun = ProcessRecording::default();
        if let Some(facts) = section.payload(budget, problems) {
            (
                begun.process,
                begun.end,
                begun.lost,
                begun.problems,
                begun.modules,
                begun.hook_module,
                begun.threads,
                begun.misuses,
                begun.checks,
                begun.series,
            ) = facts;
        }
        processes.push(begun);
        return;
    }
    let Some(process) = processes.last_mut() else { return };
    match &section.tag {
        b"SYMS" => {
            if let Some(symbols) = section.payload(budget, problems) {
                (process.strings, process.frames, process.locations) = symbols;
            }
        }
        b"TREE" => process.nodes = section.payload(budget, problems).unwrap_or_default(),
        b"SITE" => process.sites = section.payload(budget, problems).unwrap_or_default(),
        b"WITN" => {
            if let Some(seen) = section.payload(budget, problems) {
                (process.witness, process.memory_errors) = seen;
            }
        }
        b"INTV" => {
            if let Some(intervals) = section.payload(budget, problems) {
                (process.intervals, process.event_log, process.lost.intervals) = intervals;
            }
        }
        b"NOTE" => process.site_notes = section.payload(budget, problems).unwrap_or_default(),
        b"FUNC" => {
            if let Some(known) = section.payload(budget, problems) {
                (process.functions, process.misuse_notes) = known;
            }
        }
        _ => {}
    }
}

/// What a report relies on: callers have smaller numbers, so that walks end.
fn check(process: &mut ProcessRecording, problems: &mut Vec<Problem>) {
    let mut bad = 0_u64;
    for (number, node) in process.nodes.iter_mut().enumerate().skip(1) {
        if node.parent as usize >= number {
            node.parent = 0;
            bad += 1;
        }
    }
    if bad > 0 {
        problems.push(Problem(format!("{bad} stack frames have lost their caller")));
    }
}
