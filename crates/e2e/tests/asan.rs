//! `leakscope asan`: what is built by it reports alone, what was built by the compilers is served, findings go into
//! recordings with the fingerprints of the other engines, and names, options and words are those of the compilers' own
//! libraries, where these are installed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use leakscope_e2e::{Ending, Finished, Run, fixtures_dir, leakscope_bin, repo_root};
use serde_json::Value;

/// C compilers whose instrumentation is tested; the first is always there.
const COMPILERS: [&str; 2] = ["gcc", "clang-19"];

fn scratch() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("leakscope-e2e-asan-").tempdir().unwrap()
}

fn is_installed(program: &str) -> bool {
    Run::new(program).arg("--version").finish().is_ok_and(|finished| finished.ending == Ending::Exit(0))
}

fn compilers() -> Vec<&'static str> {
    COMPILERS.into_iter().filter(|name| is_installed(name)).collect()
}

fn leakscope(words: &[&str]) -> Run {
    Run::new(leakscope_bin()).args(words).limit(Duration::from_secs(120))
}

fn done(run: Run) -> Finished {
    let finished = run.finish().unwrap();
    assert_eq!(finished.ending, Ending::Exit(0), "{}\n{}", run.shown(), finished.stderr);
    finished
}

/// What a command wrote, without the end of its line.
fn text(output: Vec<u8>) -> String {
    String::from_utf8(output).unwrap().trim().to_owned()
}

fn fixture() -> PathBuf {
    fixtures_dir().join("asan/one_each.c")
}

/// Builds the program with the compiler's own library.
fn built_by(compiler: &str, folder: &Path) -> PathBuf {
    let program = folder.join(format!("by-{compiler}"));
    let shared: &[&str] = if compiler.starts_with("clang") { &["-shared-libasan"] } else { &[] };
    let run = Run::new(compiler).args(["-g", "-w", "-pthread", "-fsanitize=address"]).args(shared);
    done(run.arg("-o").arg(&program).arg(fixture()));
    program
}

/// The library that a compiler links programs with; `None` when it has none.
fn own_library(compiler: &str) -> Option<PathBuf> {
    let name = if compiler.starts_with("clang") { "libclang_rt.asan-x86_64.so" } else { "libasan.so" };
    let answer = Run::new(compiler).arg(format!("-print-file-name={name}")).finish().ok()?;
    let path = PathBuf::from(text(answer.stdout));
    if path.is_absolute() { path.canonicalize().ok() } else { None }
}

#[test]
fn what_is_built_by_it_reports_alone() {
    for compiler in compilers() {
        let folder = scratch();
        let program = folder.path().join("test");
        let cache = folder.path().join("cache");
        let build = leakscope(&["asan", "cc", "-w", "-pthread", "-o"]).arg(&program).arg(fixture());
        done(build.env("CC", compiler).env("LEAKSCOPE_CACHE_DIR", &cache));
        let ours = text(done(leakscope(&["asan", "dir"]).env("LEAKSCOPE_CACHE_DIR", &cache)).stdout);
        assert!(Path::new(&ours).starts_with(&cache), "{ours}");
        let clean = done(Run::new(&program));
        assert_eq!(clean.stderr, "", "{compiler}");
        let found = Run::new(&program).arg("a").finish().unwrap();
        assert_eq!(found.ending, Ending::Exit(1), "{compiler}: {}", found.stderr);
        for words in ["heap-buffer-overflow on address", "0 bytes after 10-byte region", "one_each.c:19", &ours] {
            assert!(found.stderr.contains(words), "{compiler}, {words}: {}", found.stderr);
        }
    }
}

#[test]
fn what_compilers_built_is_served() {
    for compiler in compilers() {
        let folder = scratch();
        let program = built_by(compiler, folder.path());
        let found = leakscope(&["asan", "run"]).arg(&program).arg("c").finish().unwrap();
        assert_eq!(found.ending, Ending::Exit(1), "{compiler}: {}", found.stderr);
        let ours = text(done(leakscope(&["asan", "dir"])).stdout);
        assert!(found.stderr.contains("heap-use-after-free") && found.stderr.contains(&ours), "{}", found.stderr);
    }
    let refused = leakscope(&["asan", "run", "/bin/true"]).finish().unwrap();
    assert_eq!(refused.ending, Ending::Exit(2));
    assert!(refused.stderr.contains("does not ask for a shared run-time"), "{}", refused.stderr);
}

#[test]
fn make_and_cmake_build_with_the_checks() {
    let folder = scratch();
    let at = |name: &str| folder.path().join(name);
    std::fs::copy(fixture(), at("main.c")).unwrap();
    // A makefile that sets everything itself, as many do.
    let makefile = "CC = cc\nCFLAGS = -O0 -w\nby-make: main.o\n\t$(CC) -pthread -o $@ $^\n";
    std::fs::write(at("Makefile"), makefile).unwrap();
    done(leakscope(&["asan", "make"]).dir(folder.path()).env("CC", "gcc"));
    let mut programs = vec![at("by-make")];
    if is_installed("cmake") {
        let lists = "cmake_minimum_required(VERSION 3.10)\nproject(p C)\nset(CMAKE_C_FLAGS_DEBUG \"-O0\")\n\
                     find_package(Threads REQUIRED)\nadd_executable(by-cmake main.c)\n\
                     target_link_libraries(by-cmake Threads::Threads)\n";
        std::fs::write(at("CMakeLists.txt"), lists).unwrap();
        done(
            leakscope(&["asan", "cmake", "-B", "build", "-DCMAKE_C_FLAGS_INIT=-w"]).dir(folder.path()).env("CC", "gcc"),
        );
        done(Run::new("cmake").args(["--build", "build"]).dir(folder.path()).limit(Duration::from_secs(120)));
        programs.push(at("build/by-cmake"));
    }
    for program in programs {
        let found = Run::new(&program).arg("f").finish().unwrap();
        assert_eq!(found.ending, Ending::Exit(1), "{}: {}", program.display(), found.stderr);
        assert!(found.stderr.contains("stack-buffer-overflow") && found.stderr.contains("'row'"), "{}", found.stderr);
    }
}

/// Fingerprints of the findings of a recording, with what they are: `leak`, or the kind of an error.
fn fingerprints(recording: &Path) -> BTreeSet<(String, String)> {
    let report =
        done(leakscope(&["report", "-q", "--show-leak-kinds=definite,indirect", "--format=json"]).arg(recording));
    let mut found = BTreeSet::new();
    for line in String::from_utf8(report.stdout).unwrap().lines() {
        let process: Value = serde_json::from_str(line).unwrap();
        // What there is none of, a report leaves out.
        let all = |key: &str| process[key].as_array().cloned().unwrap_or_default();
        let word = |one: &Value, key: &str| one[key].as_str().unwrap().to_owned();
        let is_lost = |one: &&Value| ["definite", "indirect"].contains(&one["kind"].as_str().unwrap_or_default());
        for one in all("records").iter().filter(is_lost) {
            found.insert(("leak".to_owned(), word(one, "fingerprint")));
        }
        for one in [all("errors"), all("memory_errors")].concat() {
            found.insert((word(&one, "kind"), word(&one, "fingerprint")));
        }
    }
    found
}

/// One bug has one fingerprint, whichever engine finds it.
#[test]
fn findings_have_the_fingerprints_of_the_other_engines() {
    let folder = scratch();
    let at = |name: String| folder.path().join(name);
    let plain = at("plain".to_owned());
    done(Run::new("gcc").args(["-g", "-w", "-pthread", "-o"]).arg(&plain).arg(fixture()));
    let checked = built_by("gcc", folder.path());
    let table = [
        ("h", "run", "leak"),
        ("d", "run", "double_free"),
        ("c", "memcheck", "InvalidRead"),
        ("a", "memcheck", "InvalidWrite"),
    ];
    for (bug, engine, class) in table {
        let (theirs, ours) = (at(format!("{engine}-{bug}.leak")), at(format!("asan-{bug}.leak")));
        let other = leakscope(&[engine, "-q", "-o"]).arg(&theirs).arg(&plain).arg(bug).finish().unwrap();
        let asan = leakscope(&["asan", "run", "-o"]).arg(&ours).arg(&checked).arg(bug).finish().unwrap();
        assert_eq!(asan.ending, Ending::Exit(1), "{bug}: {}", asan.stderr);
        let of_class = |all: BTreeSet<(String, String)>| -> BTreeSet<(String, String)> {
            all.into_iter().filter(|(found, _)| found == class).collect()
        };
        let (expected, found) = (of_class(fingerprints(&theirs)), of_class(fingerprints(&ours)));
        assert_eq!(expected.len(), 1, "{bug}: {}", other.stderr);
        assert_eq!(found, expected, "{bug}");
    }
    let clean = at("clean.leak".to_owned());
    done(leakscope(&["asan", "run", "-o"]).arg(&clean).arg(&checked));
    assert_eq!(fingerprints(&clean), BTreeSet::new());
    done(leakscope(&["gate"]).arg(&clean));
    let gated = leakscope(&["gate"]).arg(at("asan-h.leak".to_owned())).finish().unwrap();
    assert_eq!(gated.ending, Ending::Exit(1), "{}", gated.stderr);
    // The file of another leak is that leak gone and this one come.
    let diff = done(leakscope(&["diff"]).arg(&clean).arg(at("asan-h.leak".to_owned())));
    assert!(String::from_utf8_lossy(&diff.stdout).contains("33"), "{}", String::from_utf8_lossy(&diff.stdout));
}

/// The names that a library exports, and whether they are functions.
fn exported(library: &Path) -> BTreeMap<String, bool> {
    let listed = done(Run::new("nm").args(["-D", "--defined-only"]).arg(library));
    let text = String::from_utf8(listed.stdout).unwrap();
    let words = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    words.filter(|words| words.len() == 3).map(|words| (words[2].to_owned(), "TWi".contains(words[1]))).collect()
}

fn our_library() -> PathBuf {
    Path::new(&text(done(leakscope(&["asan", "dir"])).stdout)).join("libasan.so.8").canonicalize().unwrap()
}

/// conformance/asan-exports.txt: a name a line; behind `-` names that we do not have, with the reason above them.
#[test]
fn exported_names_are_those_of_the_table() {
    let path = repo_root().join("conformance/asan-exports.txt");
    let table = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = table.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect();
    let absent: Vec<&str> = lines.iter().filter_map(|line| line.strip_prefix("- ")).collect();
    let listed: BTreeSet<&str> = lines.iter().copied().filter(|line| !line.starts_with("- ")).collect();
    let own = exported(&our_library());
    if std::env::var_os("BLESS").is_some() {
        let kept: String = table.split_inclusive('\n').take_while(|line| line.trim() != "# Exported:").collect();
        let names: String = own.keys().map(|name| format!("{name}\n")).collect();
        std::fs::write(&path, format!("{kept}# Exported:\n{names}")).unwrap();
        return;
    }
    let found: BTreeSet<&str> = own.keys().map(String::as_str).collect();
    let unexpected: Vec<_> = found.difference(&listed).collect();
    let missing: Vec<_> = listed.difference(&found).collect();
    assert!(unexpected.is_empty() && missing.is_empty(), "not in the table: {unexpected:?}; not exported: {missing:?}");
    assert!(own.keys().all(|name| !name.contains('@')), "programs ask for no version");
    for library in COMPILERS.into_iter().filter_map(own_library) {
        let is_absent = |name: &str| {
            absent.iter().any(|rule| rule.strip_suffix('*').map_or(*rule == name, |front| name.starts_with(front)))
        };
        let lacks: Vec<String> =
            exported(&library).into_keys().filter(|name| !own.contains_key(name) && !is_absent(name)).collect();
        assert_eq!(lacks, [""; 0], "what {} has", library.display());
    }
}

/// Options by name, as `help=1` lists them.
fn options(help: &str) -> BTreeSet<String> {
    let lines: Vec<&str> = help.lines().collect();
    let is_option =
        |pair: &&[&str]| pair[0].starts_with('\t') && !pair[0].starts_with("\t\t") && pair[1].starts_with("\t\t");
    lines.windows(2).filter(is_option).map(|pair| pair[0].trim().to_owned()).collect()
}

#[test]
fn every_option_of_the_compilers_libraries_is_known() {
    for compiler in compilers() {
        let Some(library) = own_library(compiler) else { continue };
        let folder = scratch();
        let program = built_by(compiler, folder.path());
        let stock = Run::new(&program).env("LD_LIBRARY_PATH", library.parent().unwrap());
        let expected = options(&done(stock.env("ASAN_OPTIONS", "help=1")).stderr);
        assert!(expected.len() > 100, "{compiler}: {expected:?}");
        let ours = done(leakscope(&["asan", "run"]).arg(&program).env("ASAN_OPTIONS", "help=1"));
        let missing: Vec<String> = expected.difference(&options(&ours.stderr)).cloned().collect();
        // Of gcc 12's options LLVM 19 has dropped these.
        let dropped = ["detect_stack_use_after_return", "dedup_token_length"];
        let missing: Vec<_> = missing.into_iter().filter(|name| !dropped.contains(&name.as_str())).collect();
        assert_eq!(missing, [""; 0], "{compiler}");
        // An unknown one is told as theirs tell it.
        let unknown = done(leakscope(&["asan", "run"]).arg(&program).env("ASAN_OPTIONS", "verbosity=1:nonsense=1"));
        let warned = unknown.stderr.contains("WARNING: found 1 unrecognized flag(s):\n    nonsense\n");
        assert!(warned, "{compiler}: {}", unknown.stderr);
    }
}

/// A report with what differs between two runs taken out: addresses, process ids, shadow, frames below `main`, and the
/// place of the library's own functions.
fn normal(report: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut is_below_main = false;
    for line in report.lines() {
        let is_frame = line.trim_start().starts_with('#');
        if is_frame && is_below_main {
            continue;
        }
        // The first byte of a row may be the one that is marked.
        let is_row = ["  0x", "=>0x"].iter().any(|start| line.starts_with(start))
            && [": ", ":["].iter().any(|end| line.contains(end));
        let mut text = if is_row { line[..2].to_owned() } else { line.to_owned() };
        if let Some((front, function)) = text.split_once(" in __interceptor_") {
            let name = function.split(' ').next().unwrap_or_default();
            let front = front.split(" ../").next().unwrap_or_default().split(" (/").next().unwrap_or_default();
            text = format!("{front} in __interceptor_{name}");
        }
        is_below_main = is_frame && (text.contains(" in main ") || text.contains(" in worker "));
        lines.push(without_numbers(&text));
    }
    lines
}

/// `0x` and what follows it, and `==PID==`, become signs.
fn without_numbers(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("0x") {
        out.push_str(&rest[..at]);
        let digits = rest[at + 2..].find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(rest.len() - at - 2);
        out.push_str(if digits < 9 { &rest[at..at + 2 + digits] } else { "ADDRESS" });
        rest = &rest[at + 2 + digits..];
    }
    out.push_str(rest);
    match out.strip_prefix("==").and_then(|rest| rest.split_once("==")) {
        Some((pid, rest)) if pid.bytes().all(|byte| byte.is_ascii_digit()) => format!("==PID=={rest}"),
        _ => out,
    }
}

/// Source lines are the same wherever the debug information is, and however it is packed.
#[test]
fn debug_information_apart_or_compressed_gives_the_same_lines() {
    let folder = scratch();
    let plain = built_by("gcc", folder.path());
    let objcopy = |arguments: &[&str], from: &Path, to: &str| {
        let to = folder.path().join(to);
        done(Run::new("objcopy").args(arguments).arg(from).arg(&to));
        to
    };
    let report = |program: &Path, bug: &str| {
        let run = leakscope(&["asan", "run"]).arg(program).arg(bug);
        // A program of another name is the same one.
        normal(&run.finish().unwrap().stderr).join("\n").replace(&*program.to_string_lossy(), "PROGRAM")
    };
    let apart = objcopy(&["--only-keep-debug"], &plain, "apart.debug");
    let link = format!("--add-gnu-debuglink={}", apart.display());
    let packed_apart = objcopy(&["--only-keep-debug", "--compress-debug-sections=zlib"], &plain, "packed.debug");
    let packed_link = format!("--add-gnu-debuglink={}", packed_apart.display());
    let variants = [
        objcopy(&["--compress-debug-sections=zlib"], &plain, "zlib"),
        objcopy(&["--compress-debug-sections=zstd"], &plain, "zstd"),
        objcopy(&["--strip-all", &link], &plain, "stripped"),
        objcopy(&["--strip-debug", &packed_link], &plain, "debug-stripped"),
    ];
    let without = objcopy(&["--strip-debug"], &plain, "without");
    for bug in "abcdefghijklmnopq".chars().map(String::from) {
        let expected = report(&plain, &bug);
        for program in &variants {
            assert_eq!(report(program, &bug), expected, "{bug}: {}", program.display());
        }
        // Where a global is defined the compiler has written itself; the lines of frames are the debug information's.
        assert_ne!(report(&without, &bug), expected, "{bug}");
    }
    // A file that was split from another build tells nothing.
    let other = folder.path().join("other");
    let build = Run::new("gcc").args(["-g", "-w", "-O1", "-pthread", "-fsanitize=address", "-o"]);
    done(build.arg(&other).arg(fixture()));
    let stranger = objcopy(&["--only-keep-debug"], &other, "stranger.debug");
    let wrong_link = format!("--add-gnu-debuglink={}", stranger.display());
    let wrong = objcopy(&["--strip-debug", &wrong_link], &plain, "wrong");
    assert_eq!(report(&wrong, "a"), report(&without, "a"));
}

/// `report_wording=gcc12` against gcc 12's library itself.
#[test]
fn gcc_12_has_the_same_words() {
    let is_12 = Run::new("gcc").arg("-dumpversion").finish().is_ok_and(|answer| answer.stdout.starts_with(b"12"));
    if !is_12 || own_library("gcc").is_none() {
        eprintln!("gcc is not 12 here: nothing to compare with");
        return;
    }
    let folder = scratch();
    let program = built_by("gcc", folder.path());
    for bug in "abcdefghijklmnopq".chars().map(String::from) {
        let theirs = Run::new(&program).arg(&bug).finish().unwrap();
        let ours = leakscope(&["asan", "run"]).arg(&program).arg(&bug);
        let ours = ours.env("ASAN_OPTIONS", "report_wording=gcc12").finish().unwrap();
        assert_eq!(ours.ending, theirs.ending, "{bug}: {}", ours.stderr);
        assert_eq!(normal(&ours.stderr), normal(&theirs.stderr), "{bug}:\n{}\n{}", ours.stderr, theirs.stderr);
    }
}
