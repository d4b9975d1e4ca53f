//! Real outputs of the real tools, as this crate and the analysis read them.
//!
//! `data/` holds what the tools wrote on one machine (see docs/import.md); kmemleak of 6.1 and 6.18, KASAN,
//! `memleak-bcc.txt`, `memleak-libbpf.txt` and Dr. Memory are samples in the form of their documentation, as these need a
//! kernel or a binary that is not there. What is expected of each is written down here from reading the file.

use std::collections::BTreeSet;
use std::fs;
use std::io::Cursor;
use std::path::PathBuf;

use leakscope_findings::analysis::{LeakCheck, Options, Outcome};
use leakscope_findings::fingerprint::call_path;
use leakscope_findings::{Suppressions, analyse};
use leakscope_import::{Format, Imported, NoNames, import};
use leakscope_model::LeakKindSet;

fn data(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn read(name: &str) -> (Format, Imported) {
    import(Box::new(Cursor::new(data(name))), &mut NoNames).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn options() -> Options {
    Options { leak_check: LeakCheck::Full, show_leak_kinds: LeakKindSet::ALL, num_callers: 500, ..Options::default() }
}

/// Everything that was found, one line each: for people who compare with the file.
fn lines(imported: &Imported) -> Vec<String> {
    let mut out = Vec::new();
    for process in &imported.processes {
        let analysis = analyse("0", process, &options(), &Suppressions::new());
        let path = |stack: &leakscope_findings::analysis::Stack, skip: usize| {
            let frames: Vec<_> = stack.all_frames().iter().map(|frame| (**frame).clone()).collect();
            if skip == 1 {
                call_path(&frames).join(" < ")
            } else {
                call_path(&[&frames[..1], &frames].concat()).join(" < ")
            }
        };
        out.push(format!("{} {}", analysis.witness, process.process.pid));
        if let Outcome::NotClassified(_) = analysis.outcome {
            out.push("not classified".to_owned());
        }
        for record in &analysis.records {
            let kind = record.kind.map_or("live", |kind| kind.option_word());
            let function = record.function.symbol();
            let (bytes, indirect, blocks) = (record.bytes, record.indirect_bytes, record.blocks);
            out.push(format!("{kind} {bytes}+{indirect}/{blocks} {function} {}", path(&record.stack, 1)));
        }
        for error in &analysis.misuses {
            out.push(format!(
                "{:?} x{} {} {}",
                error.kind,
                error.count,
                error.function.symbol(),
                path(&error.stack, 1)
            ));
        }
        for error in &analysis.memory_errors {
            let (kind, size) = (error.kind.name(), error.access_bytes);
            out.push(format!("{kind} {size} x{} +{} {}", error.count, error.auxiliary.len(), path(&error.stack, 0)));
        }
        out.extend(process.problems.iter().map(|problem| format!("problem: {problem}")));
    }
    if imported.unread.lines > 0 {
        out.push(format!("unread {}: {:?}", imported.unread.lines, imported.unread.first));
    }
    out
}

/// All files of `data/`, sorted.
fn names() -> Vec<String> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| !name.ends_with(".expected"));
    names.sort();
    names
}

#[test]
fn every_file_is_read_as_it_was_by_hand() {
    let mut text = String::new();
    for name in names() {
        let (format, imported) = read(&name);
        text.push_str(&format!("----- {name}: {}\n", format.name()));
        for line in lines(&imported) {
            text.push_str(&line);
            text.push('\n');
        }
    }
    let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/read.expected");
    if std::env::var_os("BLESS").is_some() {
        fs::write(&golden, &text).unwrap();
    }
    let expected = fs::read_to_string(golden).unwrap();
    for (number, (found, expected)) in text.lines().zip(expected.lines()).enumerate() {
        assert_eq!(found, expected, "line {} (BLESS=1 writes it anew)", number + 1);
    }
    assert_eq!(text.lines().count(), expected.lines().count());
}

/// The lines without what differs from run to run.
fn findings(name: &str) -> Vec<String> {
    lines(&read(name).1).into_iter().filter(|line| !line.starts_with("Valgrind")).collect()
}

#[test]
fn valgrinds_text_and_xml_say_the_same() {
    assert_eq!(findings("valgrind-leaks.txt"), findings("valgrind-leaks.xml"));
    assert_eq!(findings("valgrind-errors.txt"), findings("valgrind-errors.xml"));
}

/// Bytes and blocks of all leak records but the reachable ones.
fn lost(imported: &Imported) -> (u64, u64) {
    let records = imported.processes.iter().flat_map(|process| {
        process.checks.iter().flat_map(|check| check.records.clone().unwrap_or_default()).collect::<Vec<_>>()
    });
    records
        .filter(|record| record.kind != leakscope_model::LeakKind::StillReachable)
        .fold((0, 0), |(bytes, blocks), record| (bytes + record.bytes, blocks + record.blocks))
}

/// The number in front of `mark` in a tool's own words.
fn number_before(text: &str, mark: &str) -> u64 {
    let front = &text[..text.find(mark).unwrap_or_else(|| panic!("no `{mark}`"))];
    front.rsplit(|c: char| !c.is_ascii_digit() && c != ',').next().unwrap().replace(',', "").parse().unwrap()
}

#[test]
fn sums_are_the_tools_own() {
    for name in ["asan-gcc-leaks.txt", "asan-clang-leaks.txt", "asan-gcc-unsymbolised.txt", "lsan-gcc-leaks.txt"] {
        let text = String::from_utf8(data(name)).unwrap();
        let own = (number_before(&text, " byte(s) leaked in"), number_before(&text, " allocation(s).\n"));
        assert_eq!(lost(&read(name).1), own, "{name}");
    }
    let text = String::from_utf8(data("valgrind-leaks.txt")).unwrap();
    let (_, imported) = read("valgrind-leaks.txt");
    let analysis = analyse("0", &imported.processes[0], &options(), &Suppressions::new());
    let heap = analysis.heap;
    assert_eq!(heap.allocs, number_before(&text, " allocs, "));
    assert_eq!(heap.frees, number_before(&text, " frees, "));
    assert_eq!(heap.allocated_bytes, number_before(&text, " bytes allocated\n"));
    assert_eq!((heap.in_use_bytes, heap.in_use_blocks), (283, 7));
    let massif = read("massif.out").1;
    let live: u64 = massif.processes[0].sites.iter().map(|site| site.totals.live_bytes).sum();
    let text = String::from_utf8(data("massif.out")).unwrap();
    assert!(text.contains(&format!("mem_heap_B={live}\n")), "{live}");
    assert_eq!(massif.processes[0].series.len(), text.matches("snapshot=").count());
    // With `-a` memleak lists every block in front of the stacks.
    let text = String::from_utf8(data("memleak-bcc-cpp.txt")).unwrap();
    let sizes: Vec<u64> = text.lines().filter_map(|line| line.rsplit_once("size = ")?.1.parse().ok()).collect();
    let memleak = read("memleak-bcc-cpp.txt").1;
    let totals = memleak.processes[0].sites.iter().map(|site| &site.totals);
    let live = totals.fold((0, 0), |sum, totals| (sum.0 + totals.live_bytes, sum.1 + totals.live_blocks));
    assert_eq!(live, (sizes.iter().sum(), sizes.len() as u64));
}

#[test]
fn leaks_of_one_program_have_one_fingerprint() {
    let fingerprints = |name: &str| {
        let imported = read(name).1;
        let analysis = analyse("0", &imported.processes[0], &options(), &Suppressions::new());
        let lost = analysis
            .records
            .iter()
            .filter(|record| record.kind.is_none_or(|kind| kind != leakscope_model::LeakKind::StillReachable));
        let mut all: Vec<_> = lost.map(|record| record.fingerprint).collect();
        all.sort();
        all.dedup();
        all
    };
    let valgrind = fingerprints("valgrind-leaks.xml");
    assert_eq!(valgrind.len(), 4);
    assert_eq!(fingerprints("asan-gcc-leaks.txt"), valgrind);
    // heaptrack shows what is reachable as well: the list that is kept, and a thread's stack.
    let heaptrack = fingerprints("heaptrack.zst");
    assert!(valgrind.iter().all(|fingerprint| heaptrack.contains(fingerprint)), "{valgrind:?} {heaptrack:?}");
}

/// The module that made the reports begins with a table of what each checker must find, in columns.
#[test]
fn the_kernels_checkers_found_each_bug_of_the_table() {
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/kernel/modules/buggy.c");
    let text = fs::read_to_string(source).unwrap();
    let rows: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.trim_start_matches(" *").split_whitespace().collect::<Vec<_>>())
        .filter(|words| words.len() == 6 && words[1].starts_with("bug_"))
        .collect();
    let camel = |word: &str| -> String {
        let part = |part: &str| part[..1].to_uppercase() + &part[1..];
        word.split('_').map(part).collect()
    };
    for (name, checker, column, count) in [
        ("kasan-6.12.txt", "KASAN", 3, 9),
        ("kernel-checkers-6.12.txt", "KFENCE", 4, 6),
        ("kernel-checkers-6.12.txt", "SLUB debug", 5, 4),
    ] {
        let of_column = rows.iter().filter(|row| row[column] != "-");
        let expected: BTreeSet<(String, String)> =
            of_column.map(|row| (camel(row[column]), row[1].to_owned())).collect();
        let mut found = BTreeSet::new();
        for process in &read(name).1.processes {
            let analysis = analyse("0", process, &options(), &Suppressions::new());
            if analysis.witness.to_string() != checker {
                continue;
            }
            let function = |stack: &leakscope_findings::analysis::Stack| {
                let frames = stack.all_frames();
                let mut names = frames.iter().filter_map(|frame| frame.function.as_deref());
                names.find(|name| name.starts_with("bug_")).unwrap_or_default().to_owned()
            };
            let calls = analysis.misuses.iter().map(|error| (format!("{:?}", error.kind), function(&error.stack)));
            let accesses =
                analysis.memory_errors.iter().map(|error| (error.kind.name().to_owned(), function(&error.stack)));
            found.extend(calls.chain(accesses));
        }
        assert_eq!((found.len(), &found), (count, &expected), "{name}: {checker}");
    }
}

#[test]
fn recordings_survive_their_container() {
    for name in names() {
        let recording = leakscope_findings::Recording { processes: read(&name).1.processes, ..Default::default() };
        let (again, problems) = leakscope_findings::decode(&leakscope_findings::encode(&recording)).unwrap();
        assert_eq!(again, recording, "{name}");
        assert!(problems.is_empty(), "{name}: {problems:?}");
    }
}

#[test]
fn processes_that_write_into_one_log_are_kept_apart() {
    let a = String::from_utf8(data("valgrind-leaks.txt")).unwrap();
    let b = String::from_utf8(data("valgrind-errors.txt")).unwrap();
    let mut mixed = String::new();
    let (mut a_lines, mut b_lines) = (a.lines(), b.lines());
    loop {
        let (first, second) = (a_lines.next(), b_lines.next());
        if first.is_none() && second.is_none() {
            break;
        }
        for line in first.into_iter().chain(second) {
            mixed.push_str(line);
            mixed.push_str("\nsome output of the program\n");
        }
    }
    let (_, imported) = import(Box::new(Cursor::new(mixed.into_bytes())), &mut NoNames).unwrap();
    let expected = [lines(&read("valgrind-leaks.txt").1), lines(&read("valgrind-errors.txt").1)].concat();
    assert_eq!(lines(&imported), expected);
}

#[test]
fn several_documents_in_one_file() {
    let both = [data("valgrind-leaks.xml"), data("valgrind-errors.xml")].concat();
    let (_, imported) = import(Box::new(Cursor::new(both)), &mut NoNames).unwrap();
    let expected = [lines(&read("valgrind-leaks.xml").1), lines(&read("valgrind-errors.xml").1)].concat();
    assert_eq!(lines(&imported), expected);
}

#[test]
fn a_document_that_breaks_off_keeps_what_came_before() {
    let mut bytes = data("valgrind-leaks.xml");
    let text = String::from_utf8(bytes.clone()).unwrap();
    let third = text.match_indices("<error>").nth(2).unwrap().0;
    bytes.truncate(third + 200);
    let (_, imported) = import(Box::new(Cursor::new(bytes)), &mut NoNames).unwrap();
    let found = lines(&imported);
    assert_eq!(found.iter().filter(|line| line.starts_with("reachable") || line.starts_with("indirect")).count(), 2);
    assert!(found.iter().any(|line| line == "problem: the XML document is cut off within a finding"), "{found:?}");
}

#[test]
fn unreadable_lines_are_counted_and_the_first_is_shown() {
    let text = "==1== Memcheck, a memory error detector\n==1== Command: ./x\n==1== 10 bytes in many blocks are lost\n\
                ==1== 10 bytes in 1 blocks are definitely lost in loss record 1 of 1\n==1==    at nowhere\n\
                ==1==    by 0x2: main (x.c:1)\n==1== \n";
    let (_, imported) = import(Box::new(Cursor::new(text)), &mut NoNames).unwrap();
    assert_eq!(imported.unread.lines, 2);
    assert_eq!(imported.unread.first.as_ref().unwrap().0, 3);
    assert_eq!(lines(&imported)[1], "definite 10+0/1 malloc main");
}

#[test]
fn what_is_no_format_is_refused() {
    for bytes in [&b"hello\nworld\n"[..], b"", b"\x7fELF\x02\x01\x01\0\0", b"{\"a\": 1}", b"[1, 2]"] {
        assert!(import(Box::new(Cursor::new(bytes)), &mut NoNames).is_err(), "{bytes:?}");
    }
}
