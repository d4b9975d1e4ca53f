//! Every function that `fixtures/asan/wrong_pointers.c` calls, with every wrong pointer, one process for each: where
//! clang's own library reports, ours reports the same kind; where it does not, ours reports or ends the same way. Never
//! does the library itself go wrong. `LEAKSCOPE_E2E_FULL=1` takes all of them, otherwise every fifth.

use crate::library::{Library, is_full};
use leakscope_e2e::{Ending, Run, fixtures_dir};

/// What the library says when it is at its wits' end.
const OWN_FAULTS: [&str; 3] = ["internal error", "nested bug", "CHECK failed"];

struct Told {
    ending: Ending,
    kind: Option<String>,
    stderr: String,
}

fn tell(library: &Library, program: &std::path::Path, call: usize, pointer: usize) -> Told {
    let run = Run::new(program).args([call.to_string(), pointer.to_string()]);
    let run = run.env("LD_LIBRARY_PATH", library.folder()).env("ASAN_OPTIONS", "detect_leaks=0:symbolize=0");
    let finished = run.finish().unwrap();
    let summary = finished.stderr.lines().find_map(|line| line.strip_prefix("SUMMARY: AddressSanitizer: "));
    let kind = summary.and_then(|words| words.split_whitespace().next()).map(str::to_owned);
    Told { ending: finished.ending, kind, stderr: finished.stderr }
}

fn judge(ours: &Told, stock: &Told) -> Result<(), String> {
    if let Some(fault) = OWN_FAULTS.iter().find(|fault| ours.stderr.contains(**fault)) {
        return Err((*fault).to_owned());
    }
    match (&stock.kind, &ours.kind) {
        (Some(theirs), Some(ours)) if theirs == ours => Ok(()),
        (None, Some(_)) => Ok(()),
        // Of no heap at all: clang's looks for a header there.
        (Some(theirs), Some(ours)) if theirs == "SEGV" && ours == "bad-free" => Ok(()),
        (None, None) if ours.ending == stock.ending => Ok(()),
        (theirs, told) => Err(format!("{told:?} and {:?}; clang's: {theirs:?} and {:?}", ours.ending, stock.ending)),
    }
}

#[test]
fn wrong_pointers_are_reported_and_followed_by_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("wrong_pointers");
    let run = Run::new("clang-19").args(["-O0", "-g", "-w", "-fno-builtin", "-fsanitize=address", "-shared-libasan"]);
    let built = run.arg("-o").arg(&program).arg(fixtures_dir().join("asan/wrong_pointers.c")).finish().unwrap();
    assert_eq!(built.ending, Ending::Exit(0), "{}", built.stderr);
    let (ours, stock) = (Library::ours(), Library::stock().remove(0));
    let list = Run::new(&program).env("LD_LIBRARY_PATH", ours.folder()).finish().unwrap();
    let list = String::from_utf8(list.stdout).unwrap();
    let (calls, pointers) = list.split_once("\n\n").unwrap();
    let (mut wrong, mut count) = (Vec::new(), 0);
    for (call, name) in calls.lines().enumerate() {
        for (pointer, kind) in pointers.lines().enumerate() {
            if !is_full() && (call + pointer) % 5 != 0 {
                continue;
            }
            count += 1;
            let verdict = judge(&tell(&ours, &program, call, pointer), &tell(&stock, &program, call, pointer));
            wrong.extend(verdict.err().map(|reason| format!("{name}({kind}): {reason}")));
        }
    }
    assert!(count > 100, "{count} calls were made");
    assert!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), wrong.join("\n"));
}

/// A header that was written over, each of its bytes, is noticed at the release and at the resizing, and not followed.
#[test]
fn damaged_headers_are_reported() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("damaged_header");
    let run = Run::new("gcc").args(["-O0", "-g", "-w", "-fsanitize=address", "-o"]).arg(&program);
    let built = run.arg(fixtures_dir().join("asan/damaged_header.c")).finish().unwrap();
    assert_eq!(built.ending, Ending::Exit(0), "{}", built.stderr);
    let ours = Library::ours();
    for byte in 1..=16 {
        for what in 0..4 {
            let told = tell(&ours, &program, byte, what);
            let kind = told.kind.as_deref();
            let is_told = matches!(kind, Some("bad-free" | "double-free" | "bad-malloc_usable_size"));
            assert!(
                told.ending == Ending::Exit(1) && is_told,
                "byte {byte}, {what}: {:?} {}",
                told.ending,
                told.stderr
            );
        }
    }
}
