//! `.leak` files: round trips, cuts, damage, and random bytes.

mod support;

use leakscope_findings::recording::{EventLog, Host, Interval, IntervalEnd, IntervalSite, Recording};
use leakscope_findings::{DecodeError, decode, encode};
use proptest::prelude::*;
use support::sample;

fn recording() -> Recording {
    let host = Host { name: "build-7".into(), kernel: "Linux 6.1.0".into(), architecture: "x86_64".into() };
    let mut second = sample();
    second.process.pid = 4243;
    let site = IntervalSite { site: 2, allocated_blocks: 5, allocated_bytes: 50, live_blocks: 1, live_bytes: 10 };
    second.intervals.push(Interval { number: 3, end: IntervalEnd::Program, sites: vec![site], ..Interval::default() });
    second.event_log = EventLog { file: "/tmp/log".into(), lines: 7, ..EventLog::default() };
    second.lost.intervals = 4;
    Recording { tool_version: "0.1.0".into(), host, processes: vec![sample(), second] }
}

#[test]
fn a_recording_survives_the_round_trip() {
    let recording = recording();
    assert_eq!(decode(&encode(&recording)).unwrap(), (recording, Vec::new()));
    let empty = Recording::default();
    assert_eq!(decode(&encode(&empty)).unwrap(), (empty, Vec::new()));
}

#[test]
fn merging_orders_processes_by_their_start() {
    let (mut late, mut early) = (recording(), recording());
    for process in &mut early.processes {
        process.process.start_realtime_ns -= 1;
        process.process.pid += 100;
    }
    late.merge(early);
    let pids: Vec<u32> = late.processes.iter().map(|process| process.process.pid).collect();
    assert_eq!(pids, [4342, 4343, 4242, 4243]);
}

#[test]
fn what_is_no_recording_is_refused_in_one_sentence() {
    assert_eq!(decode(b""), Err(DecodeError::NotARecording));
    assert_eq!(decode(&[0; 100]), Err(DecodeError::NotARecording));
    let mut newer = encode(&recording());
    newer[8] = 5;
    let words = decode(&newer).unwrap_err().to_string();
    assert_eq!(words, "format version 5; this build reads 1-1. help: upgrade leakscope, or record again");
}

#[test]
fn every_cut_keeps_complete_sections() {
    let whole = encode(&recording());
    let mut most = 0;
    for end in 0..whole.len() {
        let Ok((cut, problems)) = decode(&whole[..end]) else {
            assert!(end < whole.len() / 2, "a cut at {end} of {} leaves nothing", whole.len());
            continue;
        };
        assert!(!problems.is_empty(), "a cut at {end} is not told");
        let whole_sites = cut.processes.iter().filter(|process| process.sites == sample().sites).count();
        assert!(whole_sites >= most, "a longer file holds less");
        most = whole_sites;
    }
    assert_eq!(most, 2);
    let (_, problems) = decode(&whole[..whole.len() - 1]).unwrap();
    assert_eq!(problems[0].to_string(), "the file is cut off within the end mark");
}

#[test]
fn a_damaged_section_costs_only_itself() {
    let recording = recording();
    let whole = encode(&recording);
    // The second section of its kind: sites of the first process.
    let at = whole.windows(4).position(|tag| tag == b"SITE").unwrap();
    let mut damaged = whole.clone();
    damaged[at + 24 + 3] ^= 0x55;
    let (read, problems) = decode(&damaged).unwrap();
    assert_eq!(problems[0].to_string(), "the allocation sites cannot be read: the checksum is wrong");
    assert!(read.processes[0].sites.is_empty());
    assert_eq!(read.processes[0].misuses, recording.processes[0].misuses);
    assert_eq!(read.processes[1], recording.processes[1]);
}

#[test]
fn a_claimed_length_is_not_believed() {
    let mut bytes = encode(&recording());
    for (offset, words) in [(8, "cut off within"), (16, "larger than any recording")] {
        let mut lie = bytes.clone();
        let at = 16 + offset;
        lie[at..at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
        match decode(&lie) {
            Err(error) => assert_eq!(error, DecodeError::Empty, "{words}"),
            Ok((_, problems)) => assert!(problems[0].to_string().contains(words), "{problems:?}"),
        }
    }
    // An unknown section is skipped.
    let at = bytes.windows(4).position(|tag| tag == b"TREE").unwrap();
    bytes[at..at + 4].copy_from_slice(b"NEWS");
    let (read, problems) = decode(&bytes).unwrap();
    assert!(problems.is_empty() && read.processes[0].nodes.is_empty());
}

#[test]
fn a_bomb_stops_at_its_claimed_length() {
    use std::io::Write;
    let mut bytes = encode(&Recording::default())[..16].to_vec();
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(&vec![0; 64 << 20]).unwrap();
    let stored = encoder.finish().unwrap();
    bytes.extend_from_slice(b"PROC");
    bytes.extend_from_slice(&crc32fast::hash(&stored).to_le_bytes());
    bytes.extend_from_slice(&(stored.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&1000_u64.to_le_bytes());
    bytes.extend_from_slice(&stored);
    let (_, problems) = decode(&bytes).unwrap();
    assert_eq!(problems[0].to_string(), "the facts about the process cannot be read: it does not unpack to its length");
}

/// A payload that is valid deflate with a right checksum reaches the innermost decoder.
fn with_payload(tag: &[u8; 4], raw: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut bytes = encode(&Recording::default())[..16].to_vec();
    for (tag, raw) in [(b"PROC", &b""[..]), (tag, raw)] {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(raw).unwrap();
        let stored = encoder.finish().unwrap();
        bytes.extend_from_slice(tag);
        bytes.extend_from_slice(&crc32fast::hash(&stored).to_le_bytes());
        bytes.extend_from_slice(&(stored.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&(raw.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&stored);
    }
    bytes
}

/// Whatever was decoded can be analysed: walks end, numbers out of range are unknown.
fn analyse_all(recording: &Recording) {
    use leakscope_findings::analysis::{LeakCheck, analyse};
    let options = leakscope_findings::Options {
        leak_check: LeakCheck::Full,
        num_callers: 500,
        ..leakscope_findings::Options::default()
    };
    for process in &recording.processes {
        let analysis = analyse("0", process, &options, &leakscope_findings::Suppressions::new());
        assert!(analysis.records.iter().all(|record| !record.stack.frames().is_empty()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut file = encode(&Recording::default())[..16].to_vec();
        file.extend_from_slice(&bytes);
        let _ = decode(&file);
        let _ = decode(&bytes);
    }

    #[test]
    fn random_payloads_never_panic(
        tag in prop::sample::select(vec![*b"HEAD", *b"PROC", *b"SYMS", *b"TREE", *b"SITE"]),
        raw in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        if let Ok((recording, _)) = decode(&with_payload(&tag, &raw)) {
            analyse_all(&recording);
        }
    }

    #[test]
    fn mutated_recordings_can_be_analysed(edits in proptest::collection::vec((any::<u32>(), any::<u32>(), 0_u8..6), 1..20)) {
        let mut process = sample();
        for (at, value, what) in edits {
            let at = at as usize;
            let pick = |len: usize| at % len;
            match what {
                0 => { let i = pick(process.nodes.len()); process.nodes[i].parent = value }
                1 => { let i = pick(process.nodes.len()); process.nodes[i].location = value }
                2 => { let i = pick(process.locations.len()); process.locations[i].first_frame = value }
                3 => { let i = pick(process.sites.len()); process.sites[i].leaf = value }
                4 => { let i = pick(process.misuses.len()); process.misuses[i].allocation_site = value }
                _ => { let i = pick(process.frames.len()); process.frames[i].function = value }
            }
        }
        let recording = Recording { processes: vec![process], ..Recording::default() };
        let (read, _) = decode(&encode(&recording)).unwrap();
        analyse_all(&read);
    }
}
