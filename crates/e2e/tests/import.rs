//! `leakscope import` and `leakscope mtrace` on what the other tools write here and now.

use std::path::{Path, PathBuf};
use std::time::Duration;

use leakscope_e2e::{Ending, Finished, Run, Tool, leakscope_bin};

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/import").join(name)
}

fn build(compiler: &str, flags: &[&str], from: &str, to: &Path) {
    let run = Run::new(compiler).args(flags).arg("-o").arg(to).arg(source(from)).limit(Duration::from_secs(120));
    let finished = run.finish().unwrap();
    assert_eq!(finished.ending, Ending::Exit(0), "{}\n{}", run.shown(), finished.stderr);
}

/// Whether the tests of `leakscope` itself are wanted.
fn is_asked() -> bool {
    Tool::from_env().unwrap() == Tool::Leakscope
}

fn leakscope(words: &[&str]) -> Finished {
    Run::new(leakscope_bin()).args(words).finish().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn stdout(finished: &Finished) -> String {
    String::from_utf8_lossy(&finished.stdout).into_owned()
}

/// The summary of `import`: each finding with its witnesses' lines.
fn findings(report: &str) -> Vec<(String, Vec<String>)> {
    let mut found: Vec<(String, Vec<String>)> = Vec::new();
    let after = report.lines().skip_while(|line| !line.contains("seen by several tools:")).skip(1);
    for line in after {
        if let Some(witness) = line.strip_prefix("      ") {
            found.last_mut().unwrap().1.push(witness.to_owned());
        } else {
            let (_, path) = line.trim().split_once(" leak ").unwrap_or_else(|| panic!("{line}"));
            found.push((path.to_owned(), Vec::new()));
        }
    }
    found
}

#[test]
fn a_leak_that_three_tools_see_is_one_finding() {
    if !is_asked() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let flags = ["-g", "-O1", "-pthread", "-fno-optimize-sibling-calls"];
    build("g++", &flags, "leaks.cpp", &at("leaks"));
    build("g++", &[&flags[..], &["-fsanitize=address"]].concat(), "leaks.cpp", &at("leaks-asan"));

    let xml = format!("--xml-file={}", text(&at("memcheck.xml")));
    let options = ["--leak-check=full", "--show-leak-kinds=all", "--num-callers=40", "--xml=yes", &xml];
    let run = Run::new("valgrind").args(options).arg(at("leaks")).finish().unwrap();
    assert_eq!(run.ending, Ending::Exit(0), "{}", run.stderr);

    let options = "fast_unwind_on_malloc=0:malloc_context_size=40";
    let run = Run::new(at("leaks-asan")).env("ASAN_OPTIONS", options).finish().unwrap();
    assert!(run.stderr.contains("detected memory leaks"), "{}", run.stderr);
    std::fs::write(at("asan.txt"), &run.stderr).unwrap();

    let run = leakscope(&["run", "-o", text(&at("own.leak")), text(&at("leaks"))]);
    assert_eq!(run.ending, Ending::Exit(0), "{}", run.stderr);

    let inputs = [at("memcheck.xml"), at("asan.txt"), at("own.leak")];
    let all = at("all.leak");
    let words: Vec<&str> =
        ["import", "-o", text(&all)].into_iter().chain(inputs.iter().map(|path| text(path))).collect();
    let report = leakscope(&words);
    assert_eq!(report.ending, Ending::Exit(0), "{}", report.stderr);
    let found = findings(&stdout(&report));
    let paths: Vec<&str> = found.iter().map(|(path, _)| path.as_str()).collect();
    for path in [
        "lose_array",
        "void lose_realloc<long> < main",
        "make_node < lose_list < main",
        "strdup < copy_text < lose_text < main",
    ] {
        assert!(paths.contains(&path), "{path}: {paths:?}");
    }
    assert_eq!(found.len(), 4, "{found:#?}");
    for (path, witnesses) in &found {
        assert_eq!(witnesses.len(), 3, "{path}: {witnesses:?}");
        for tool in ["leakscope: ", "Valgrind Memcheck ", "AddressSanitizer: "] {
            assert!(witnesses.iter().any(|witness| witness.starts_with(tool)), "{path}: {witnesses:?}");
        }
        // All three count the same bytes and blocks.
        let amounts: Vec<&str> = witnesses.iter().map(|witness| witness.rsplit_once(": ").unwrap().1).collect();
        assert!(amounts.iter().all(|amount| *amount == amounts[0]), "{path}: {witnesses:?}");
    }
    // The recording holds all of it, without the files that it came from.
    for path in &inputs {
        std::fs::remove_file(path).unwrap();
    }
    let again = leakscope(&["report", text(&all)]);
    assert_eq!(stdout(&again).matches("are definitely lost in loss record").count(), 12, "{}", stdout(&again));
}

/// A log that the program writes by glibc's own library.
fn traced(dir: &Path, flags: &[&str]) -> (PathBuf, PathBuf) {
    let (program, log) = (dir.join("traced"), dir.join("log"));
    build("gcc", flags, "traced.c", &program);
    let run = Run::new(&program).env("LD_PRELOAD", "libc_malloc_debug.so.0").env("MALLOC_TRACE", text(&log));
    assert_eq!(run.finish().unwrap().ending, Ending::Exit(0));
    assert!(std::fs::read_to_string(&log).unwrap().starts_with("= Start"), "the preloaded library writes the log");
    (program, log)
}

#[test]
fn mtrace_says_what_the_script_says() {
    if !is_asked() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (_, log) = traced(dir.path(), &["-g"]);
    let script = Run::new("/usr/bin/mtrace").arg(&log).finish().unwrap();
    let own = leakscope(&["mtrace", "--no-names", text(&log)]);
    assert_eq!(stdout(&own), stdout(&script));
    assert_eq!((own.ending, script.ending), (Ending::Exit(1), Ending::Exit(1)));
}

#[test]
fn mtrace_says_what_the_script_says_of_odd_logs() {
    if !is_asked() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let odd = "= Start\n\
               @ ./x:[0x10] + 0x1000 0x20\n\
               @ ./x:[0x11] + 0x1000 0x30\n\
               @ ./x:[0x12] - 0x2000\n\
               @ ./x:[0x13] < 0x3000\n\
               @ ./x:[0x13] > 0x4000 0x40\n\
               @ ./x:[0x14] + 0x5000 0\n\
               @ ./x:[0x15] > 0x5000 0x50\n\
               @ ./x:[0x16] ! 0x4000 0x60\n\
               @ /lib/y.so:[0x17] + 0x7f0000001000 0x1\n\
               @ /lib/y.so:[0x17] + 0x7f0000001010 0x123456789\n\
               @ /lib/y.so:[0x18] - 0x7f0000001000\n\
               @ ./x:[0x19] + 0x22 0x2\n\
               = End\n";
    std::fs::write(&log, odd).unwrap();
    let script = Run::new("/usr/bin/mtrace").arg(&log).finish().unwrap();
    let own = leakscope(&["mtrace", text(&log)]);
    assert_eq!(stdout(&own), stdout(&script));
    // Nothing is left.
    std::fs::write(&log, "= Start\n@ ./x:[0x10] + 0x1000 0x20\n@ ./x:[0x10] - 0x1000\n= End\n").unwrap();
    let script = Run::new("/usr/bin/mtrace").arg(&log).finish().unwrap();
    let own = leakscope(&["mtrace", text(&log)]);
    assert_eq!((stdout(&own), own.ending), (stdout(&script), script.ending));
}

#[test]
fn mtrace_names_callers_in_every_kind_of_program() {
    if !is_asked() {
        return;
    }
    for flags in [&["-g", "-pie"][..], &["-g", "-no-pie"]] {
        let dir = tempfile::tempdir().unwrap();
        let (program, log) = traced(dir.path(), flags);
        for words in [vec!["mtrace", text(&log), text(&program)], vec!["mtrace", text(&program), text(&log)]] {
            let own = leakscope(&words);
            let said = stdout(&own);
            let leaks: Vec<&str> = said.lines().skip_while(|line| !line.contains("Caller")).skip(1).collect();
            assert_eq!(leaks.len(), 4, "{flags:?}: {said}");
            // strdup's is in the C library; its name is there with or without debug information.
            assert_eq!(leaks.iter().filter(|line| line.contains("strdup")).count(), 1, "{said}");
            let in_main = leaks.iter().filter(|line| line.contains("traced.c:") && line.ends_with(" (main)"));
            assert_eq!(in_main.count(), 3, "{said}");
        }
    }
}

#[test]
fn what_cannot_be_imported_is_refused_in_a_sentence() {
    if !is_asked() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notes.txt");
    std::fs::write(&path, "nothing of any tool\n").unwrap();
    for (words, expected) in [
        (["import", text(&path)], "no format that is known"),
        (["import", "/nowhere"], "cannot open it"),
        (["mtrace", text(&path)], "LD_PRELOAD=libc_malloc_debug.so.0"),
        (["mtrace", "/nowhere"], "cannot open it"),
    ] {
        let finished = leakscope(&words);
        assert_eq!(finished.ending, Ending::Exit(2), "{words:?}");
        assert!(finished.stderr.contains(expected), "{words:?}: {}", finished.stderr);
        assert!(!finished.stderr.contains("panicked"), "{}", finished.stderr);
    }
}

#[test]
fn what_was_imported_survives_our_own_xml() {
    if !is_asked() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../import/tests/data/valgrind-errors.xml");
    let (leak, xml) = (dir.path().join("a.leak"), dir.path().join("a.xml"));
    let first = leakscope(&["import", "-q", text(&data), "-o", text(&leak)]);
    let written = leakscope(&["report", "--format", "valgrind-xml", "-o", text(&xml), text(&leak)]);
    assert_eq!((first.ending, written.ending), (Ending::Exit(0), Ending::Exit(0)), "{}", written.stderr);
    let again = leakscope(&["import", "-q", text(&xml)]);
    assert!(stdout(&first).contains("Invalid read of size 1"), "{}", stdout(&first));
    assert_eq!(stdout(&again), stdout(&first));
}
