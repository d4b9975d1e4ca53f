//! Every parser takes whatever bytes come: nothing panics, and no number in a file becomes memory.

use std::fs;
use std::io::{BufRead, BufReader, Cursor};
use std::path::PathBuf;

use leakscope_findings::analysis::Options;
use leakscope_findings::{Suppressions, analyse};
use leakscope_import::{Format, NoNames, import, import_as, recognise};
use proptest::prelude::*;

/// Real files with the format that they are read as.
fn seeds() -> Vec<(Format, Vec<u8>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
        .into_iter()
        .filter(|path| path.extension().is_none_or(|ending| ending != "expected"))
        .map(|path| {
            let bytes = fs::read(path).unwrap();
            let mut plain = Vec::new();
            let mut reader = leakscope_import::decompressed(Box::new(Cursor::new(bytes))).unwrap();
            std::io::Read::read_to_end(&mut reader, &mut plain).unwrap();
            (recognise(&plain).unwrap(), plain)
        })
        .collect()
}

/// Reads, and analyses what was read, which relies on what it says.
fn read_all(format: Format, bytes: &[u8]) {
    let imported = import_as(format, &mut Cursor::new(bytes), &mut NoNames).unwrap();
    for process in &imported.processes {
        analyse("0", process, &Options::default(), &Suppressions::new());
    }
}

#[derive(Clone, Debug)]
enum Change {
    Flip(u32, u8),
    Cut(u32),
    Drop(u32, u16),
    Repeat(u32, u16),
    Insert(u32, Vec<u8>),
    Digits(u32),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (any::<u32>(), any::<u8>()).prop_map(|(at, to)| Change::Flip(at, to)),
        any::<u32>().prop_map(Change::Cut),
        (any::<u32>(), 1..200_u16).prop_map(|(at, length)| Change::Drop(at, length)),
        (any::<u32>(), 1..400_u16).prop_map(|(at, length)| Change::Repeat(at, length)),
        (any::<u32>(), prop::collection::vec(any::<u8>(), 1..12)).prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        any::<u32>().prop_map(Change::Digits),
    ]
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    if bytes.is_empty() {
        return;
    }
    let place = |at: u32| at as usize % bytes.len();
    match change {
        Change::Flip(at, to) => {
            let at = place(*at);
            bytes[at] = *to;
        }
        Change::Cut(at) => bytes.truncate(place(*at)),
        Change::Drop(at, length) => {
            let at = place(*at);
            let end = (at + usize::from(*length)).min(bytes.len());
            bytes.drain(at..end);
        }
        Change::Repeat(at, length) => {
            let at = place(*at);
            let end = (at + usize::from(*length)).min(bytes.len());
            let part = bytes[at..end].to_vec();
            bytes.splice(at..at, part);
        }
        Change::Insert(at, new) => {
            let at = place(*at);
            bytes.splice(at..at, new.iter().copied());
        }
        // A number that is as large as it can be, in place of one that is there.
        Change::Digits(at) => {
            let from = place(*at);
            if let Some(at) = bytes[from..].iter().position(u8::is_ascii_digit) {
                bytes.splice(from + at..from + at, b"18446744073709551615".iter().copied());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn changed_files_are_read(which in any::<prop::sample::Index>(), changes in prop::collection::vec(change(), 1..6)) {
        let seeds = seeds();
        let (format, mut bytes) = seeds[which.index(seeds.len())].clone();
        for change in &changes {
            apply(&mut bytes, change);
        }
        read_all(format, &bytes);
        let _ = import(Box::new(Cursor::new(bytes)), &mut NoNames);
    }

    /// Frames that are at hand as a whole are looked up instead of read; byte by byte none ever is.
    #[test]
    fn xml_says_the_same_in_pieces(
        which in any::<prop::sample::Index>(), changes in prop::collection::vec(change(), 0..4), repeats in 1..3_usize,
    ) {
        let seeds: Vec<_> = seeds().into_iter().filter(|(format, _)| *format == Format::ValgrindXml).collect();
        let mut bytes = seeds[which.index(seeds.len())].1.repeat(repeats);
        for change in &changes {
            apply(&mut bytes, change);
        }
        let read = |input: &mut dyn BufRead| import_as(Format::ValgrindXml, input, &mut NoNames).unwrap();
        let whole = read(&mut Cursor::new(&bytes));
        let pieces = read(&mut BufReader::with_capacity(1, Cursor::new(&bytes)));
        prop_assert!(whole.processes == pieces.processes);
        prop_assert_eq!(whole.unread, pieces.unread);
    }

    #[test]
    fn any_bytes_are_read_by_every_parser(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        for format in Format::ALL {
            read_all(format, &bytes);
        }
    }
}

#[test]
fn every_file_may_end_anywhere() {
    for (format, bytes) in seeds() {
        for end in (0..bytes.len()).step_by(7) {
            read_all(format, &bytes[..end]);
        }
    }
}

/// The reader keeps a note on every element that is open: a file of nothing but those would fill memory.
#[test]
fn elements_without_end_stop_the_reader() {
    let document = [b"<valgrindoutput><pid>7</pid>".as_slice(), &b"<a>".repeat(1 << 20)].concat();
    let imported = import_as(Format::ValgrindXml, &mut Cursor::new(&document), &mut NoNames).unwrap();
    assert_eq!(imported.processes[0].process.pid, 7);
    assert!(imported.unread.first.unwrap().1.contains("elements are open"));
    // Documents of processes that were killed, one after the other, are all read.
    let document = b"<valgrindoutput><pid>7</pid><args><argv><exe>x</exe>".repeat(5000);
    let imported = import_as(Format::ValgrindXml, &mut Cursor::new(&document), &mut NoNames).unwrap();
    assert_eq!((imported.processes.len(), imported.unread.lines), (5000, 0));
}

/// Counts name findings by numbers that are their own document's, even where the line between two documents is lost.
#[test]
fn a_process_keeps_to_its_own_findings() {
    const ERROR: &str = "<error><unique>0x5</unique><kind>InvalidRead</kind><what>Invalid read of size 4</what>\
        <stack><frame><ip>0x1</ip></frame></stack></error>";
    const COUNTS: &str = "<errorcounts><pair><count>7</count><unique>0x5</unique></pair></errorcounts>";
    let counts = |document: String| -> Vec<Vec<u64>> {
        let imported = import_as(Format::ValgrindXml, &mut Cursor::new(document), &mut NoNames).unwrap();
        imported.processes.iter().map(|one| one.memory_errors.iter().map(|error| error.count).collect()).collect()
    };
    let head = |pid: u32| format!("<valgrindoutput><pid>{pid}</pid>");
    assert_eq!(counts(format!("{}{ERROR}{COUNTS}", head(1))), [vec![7]]);
    assert_eq!(counts(format!("{}{ERROR}<pid>2</pid>{COUNTS}", head(1))), [vec![1], vec![]]);
    assert_eq!(counts(format!("{}{ERROR}</valgrindoutput>{}{COUNTS}", head(1), head(2))), [vec![1], vec![]]);
    // A document without an id is a process of its own.
    assert_eq!(counts(format!("{}</valgrindoutput><valgrindoutput>{ERROR}{COUNTS}", head(1))), [vec![], vec![7]]);
}

#[test]
fn every_parser_reads_every_file() {
    for (_, bytes) in seeds() {
        for format in Format::ALL {
            read_all(format, &bytes);
        }
    }
}

#[test]
fn compressed_files_may_end_anywhere() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    for name in ["go-heap.pb.gz", "heaptrack.zst", "heaptrack-raw.zst", "page-owner-stacks-6.12.txt.xz"] {
        let bytes = fs::read(folder.join(name)).unwrap();
        for end in 0..bytes.len() {
            let _ = import(Box::new(Cursor::new(bytes[..end].to_vec())), &mut NoNames);
        }
    }
}
