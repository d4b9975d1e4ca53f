//! What a user sees besides the leaks: exit codes, files, recordings, other views, and an undisturbed program.

use std::path::{Path, PathBuf};
use std::time::Duration;

use leakscope_e2e::{Ending, Finished, Fixture, Run, Tool, compile, fixtures_dir, leakscope_bin, parse_report};
use serde_json::Value;

fn is_leakscope() -> bool {
    Tool::from_env().unwrap() == Tool::Leakscope
}

fn built(file: &str) -> PathBuf {
    compile(&Fixture::read(&fixtures_dir().join(file)).unwrap()).unwrap().remove(0).path
}

fn leakscope(words: &[&str]) -> Finished {
    Run::new(leakscope_bin()).args(words).limit(Duration::from_secs(60)).finish().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn the_exit_code_is_the_programs_own_unless_the_user_wants_another_on_findings() {
    if !is_leakscope() {
        return;
    }
    let program = built("c/fork_child.c");
    assert_eq!(leakscope(&["run", text(&program)]).ending, Ending::Exit(3));
    assert_eq!(leakscope(&["run", "--error-exitcode=99", text(&program)]).ending, Ending::Exit(99));
    let clean = built("c/usable_size.c");
    let only_reachable = ["run", "--errors-for-leak-kinds=reachable", "--error-exitcode=99", text(&clean)];
    assert_eq!(leakscope(&only_reachable).ending, Ending::Exit(0));
}

#[test]
fn the_report_names_file_and_line() {
    if !is_leakscope() {
        return;
    }
    let program = built("c/alloc_functions.c");
    let finished = leakscope(&["run", text(&program)]);
    let source = std::fs::read_to_string(fixtures_dir().join("c/alloc_functions.c")).unwrap();
    let line = 1 + source.lines().position(|line| line.contains("void case_calloc(")).unwrap();
    assert_eq!(finished.stdout, b"done\n");
    assert!(finished.stderr.contains(&format!("alloc_functions.c:{line}")), "{}", finished.stderr);
    assert!(finished.stderr.contains("case_calloc"), "{}", finished.stderr);
    assert!(finished.stderr.contains("definitely lost"), "{}", finished.stderr);
}

/// The C++ library allocates while the dynamic linker runs constructors, whose own caller has no unwind information.
#[test]
fn stacks_from_constructors_end_where_the_program_begins() {
    if !is_leakscope() {
        return;
    }
    let done = leakscope(&["run", "--", text(&built("cpp/containers.cpp"))]);
    assert!(!done.stderr.contains("are cut") && !done.stderr.contains("is cut"), "{}", done.stderr);
}

#[test]
fn a_recording_gives_the_same_report_again() {
    if !is_leakscope() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let program = built("c/leak_kinds.c");
    let (recording, xml) = (dir.path().join("run.leak"), dir.path().join("run.xml"));
    let xml_file = format!("--xml-file={}", xml.display());
    let first =
        leakscope(&["run", "--show-leak-kinds=all", "--xml=yes", &xml_file, "-o", text(&recording), text(&program)]);
    assert_eq!(first.ending, Ending::Exit(0), "{}", first.stderr);
    let again = leakscope(&["report", "--show-leak-kinds=all", "--format", "valgrind-xml", text(&recording)]);
    assert_eq!(again.ending, Ending::Exit(0), "{}", again.stderr);
    let now = parse_report(&std::fs::read_to_string(&xml).unwrap()).unwrap();
    let later = parse_report(&String::from_utf8(again.stdout).unwrap()).unwrap();
    assert!(now.finished, "<state>FINISHED stands before the leak check");
    assert!(!now.leaks.is_empty());
    assert_eq!(now.leaks, later.leaks);
}

#[test]
fn json_carries_the_same_totals_as_xml() {
    if !is_leakscope() {
        return;
    }
    let program = built("c/leak_kinds.c");
    let dir = tempfile::tempdir().unwrap();
    let (json, xml) = (dir.path().join("run.json"), dir.path().join("run.xml"));
    let xml_file = format!("--xml-file={}", xml.display());
    leakscope(&["run", "--show-leak-kinds=all", "--format", "json", "-o", text(&json), text(&program)]);
    leakscope(&["run", "--show-leak-kinds=all", "--xml=yes", &xml_file, text(&program)]);
    let document: Value = serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    let report = parse_report(&std::fs::read_to_string(&xml).unwrap()).unwrap();
    let (bytes, _) = report.total("definite");
    assert!(bytes > 0);
    assert!(numbers(&document).contains(&bytes), "no {bytes} definitely lost bytes in {document}");
    assert!(document.to_string().contains("fingerprint"), "{document}");
}

/// Every number in a document.
fn numbers(value: &Value) -> Vec<u64> {
    match value {
        Value::Number(number) => number.as_u64().into_iter().collect(),
        Value::Array(items) => items.iter().flat_map(numbers).collect(),
        Value::Object(map) => map.values().flat_map(numbers).collect(),
        _ => Vec::new(),
    }
}

#[test]
fn fingerprints_stay_the_same_from_run_to_run_and_when_lines_shift() {
    if !is_leakscope() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let source = std::fs::read_to_string(fixtures_dir().join("demo/orders.cpp")).unwrap();
    let mut seen = Vec::new();
    for (name, text_before) in [("first", ""), ("shifted", "\n\n\n// some lines more\n\n")] {
        let (file, program) = (dir.path().join(format!("{name}.cpp")), dir.path().join(name));
        std::fs::write(&file, format!("{text_before}{source}")).unwrap();
        let build = Run::new("g++").args(["-g", "-O0", "-o"]).arg(&program).arg(&file).finish().unwrap();
        assert_eq!(build.ending, Ending::Exit(0), "{}", build.stderr);
        for _ in 0..2 {
            let json = dir.path().join("out.json");
            leakscope(&["run", "--show-leak-kinds=all", "--format", "json", "-o", text(&json), text(&program)]);
            let document: Value = serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
            let mut prints = Vec::new();
            fingerprints(&document, &mut prints);
            prints.sort();
            seen.push(prints);
        }
    }
    assert!(!seen[0].is_empty(), "no fingerprint");
    assert!(seen.windows(2).all(|pair| pair[0] == pair[1]), "{seen:?}");
}

fn fingerprints(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| fingerprints(item, found)),
        Value::Object(map) => {
            for (key, inner) in map {
                match (key.as_str(), inner) {
                    ("fingerprint", Value::String(text)) => found.push(text.clone()),
                    _ => fingerprints(inner, found),
                }
            }
        }
        _ => {}
    }
}

#[test]
fn log_file_patterns_are_those_of_memcheck() {
    if !is_leakscope() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let program = built("c/fork_child.c");
    let pattern = format!("--log-file={}/%q{{LEAKSCOPE_TEST_WORD}}.%p.log", dir.path().display());
    let run = Run::new(leakscope_bin()).args(["run", "--trace-children=yes", &pattern]).arg(&program);
    let finished = run.env("LEAKSCOPE_TEST_WORD", "word").finish().unwrap();
    assert_eq!(finished.ending, Ending::Exit(3));
    assert!(!finished.stderr.contains("lost"), "the report belongs into the file: {}", finished.stderr);
    let names: Vec<String> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(names.iter().all(|name| name.starts_with("word.") && name.ends_with(".log")), "{names:?}");
}

#[test]
fn suppressions_hide_and_are_counted_and_generated_ones_fit() {
    if !is_leakscope() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let program = built("c/alloc_functions.c");
    let generated = leakscope(&["run", "--gen-suppressions=all", text(&program)]);
    let mut rules = String::new();
    let mut inside = false;
    for line in generated.stderr.lines() {
        // Memcheck puts its prefix before every line but those of a rule.
        let line = line.trim_end();
        inside |= line == "{";
        if inside {
            rules += line;
            rules.push('\n');
        }
        inside &= line != "}";
    }
    assert!(rules.contains("match-leak-kinds"), "no rule in {}", generated.stderr);
    let file = dir.path().join("all.supp");
    std::fs::write(&file, rules).unwrap();
    let option = format!("--suppressions={}", file.display());
    let hidden = leakscope(&["run", &option, "--error-exitcode=99", text(&program)]);
    assert_eq!(hidden.ending, Ending::Exit(0), "{}", hidden.stderr);
    assert!(hidden.stderr.contains("suppressed"), "{}", hidden.stderr);
}

#[test]
fn glibcs_own_checks_do_not_disturb() {
    let tool = Tool::from_env().unwrap();
    if tool != Tool::Leakscope {
        return;
    }
    let program = built("c/alloc_functions.c");
    let check = |env: &[(&str, &str)]| {
        let (finished, reports) = tool.check(&program, &[], &[], env, Duration::from_secs(60)).unwrap();
        assert_eq!(finished.ending, Ending::Exit(0), "{env:?}: {}", finished.stderr);
        reports[0].total("definite")
    };
    let plain = check(&[]);
    assert!(plain.1 > 10_000);
    assert_eq!(check(&[("MALLOC_PERTURB_", "165")]), plain);
    assert_eq!(check(&[("MALLOC_CHECK_", "3"), ("LD_PRELOAD", "libc_malloc_debug.so.0")]), plain);
}

#[test]
fn the_target_runs_while_another_tracer_holds_it() {
    if !is_leakscope() {
        return;
    }
    // strace holds every process and thread, so nobody else can use ptrace on them, as in a locked-down container.
    let program = built("c/leak_kinds.c");
    let words = ["-f", "-o", "/dev/null"];
    let run = Run::new("strace").args(words).arg(leakscope_bin()).arg("run").arg(&program);
    let finished = run.finish().expect("strace is not installed; next: cargo xtask setup");
    assert_eq!(finished.ending, Ending::Exit(0), "{}", finished.stderr);
    assert!(finished.stderr.contains("definitely lost"), "{}", finished.stderr);
}

#[test]
fn the_target_sees_its_own_environment_and_arguments() {
    if !is_leakscope() {
        return;
    }
    let ours = leakscope_bin();
    let (ours, none): (&str, &[&str]) = (text(&ours), &[]);
    for (before, program) in [
        (none, &["env"][..]),
        // The order of the variables is the program's to see too; std::process::Command would sort them.
        (&["env", "-i", "Z=1", "HOME=/nonexistent", "A=2", "PATH=/usr/bin:/bin"][..], &["env"][..]),
        (none, &["sh", "-c", "echo \"$0\" \"$@\"", "a b", "", "*"][..]),
    ] {
        let native: Vec<&str> = before.iter().chain(program).copied().collect();
        let wrapped: Vec<&str> = before.iter().chain(&[ours, "run", "-q", "--"]).chain(program).copied().collect();
        let output = |words: &[&str]| {
            let finished = Run::new(words[0]).args(&words[1..]).finish().unwrap();
            String::from_utf8_lossy(&finished.stdout).into_owned()
        };
        assert_eq!(output(&wrapped), output(&native), "{program:?} after {before:?}");
    }
}

#[test]
fn a_sample_estimates_what_the_whole_recording_counts() {
    if !is_leakscope() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let program = built("cpp/sampled.cpp");
    let heap = |name: &str, options: &[&str]| {
        let file = dir.path().join(name);
        let words = [&["run", "--leak-check=no"], options, &["--format", "json", "-o", text(&file), text(&program)]];
        let finished = leakscope(&words.concat());
        assert_eq!((finished.ending, finished.stdout), (Ending::Exit(0), b"done\n".to_vec()), "{}", finished.stderr);
        let report: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        let heap = &report["heap"];
        ["allocated_bytes", "allocs", "frees", "in_use_bytes"].map(|name| heap[name].as_f64().unwrap())
    };
    let whole = heap("whole.json", &[]);
    // 90 MB in samples 8 KiB apart on average: 11,000 of them, so the standard error is about 1 %.
    for (estimate, exact) in heap("sample.json", &["--sample", "8192"]).into_iter().zip(whole) {
        assert!((estimate / exact - 1.0).abs() < 0.06, "estimated {estimate}, exactly {exact}");
    }
}
