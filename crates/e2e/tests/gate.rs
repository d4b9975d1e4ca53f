//! The gate on real programs: against Valgrind and LeakSanitizer, who read the same files and see the same leaks.

use std::path::{Path, PathBuf};
use std::time::Duration;

use leakscope_e2e::{Ending, Finished, Run, Tool, fixtures_dir, leakscope_bin};

/// Whether leakscope is what is tested; else there is nothing to do here.
fn is_leakscope() -> bool {
    Tool::from_env().expect("a tool to test") == Tool::Leakscope
}

fn leakscope(dir: &Path, words: &[&str]) -> Run {
    Run::new(leakscope_bin()).args(words).dir(dir).limit(Duration::from_secs(120))
}

fn finish(run: Run, code: i32) -> Finished {
    let finished = run.finish().unwrap();
    let words = String::from_utf8_lossy(&finished.stdout);
    assert_eq!(finished.ending, Ending::Exit(code), "{}\n{words}\n{}", run.shown(), finished.stderr);
    finished
}

fn said(run: Run, code: i32) -> String {
    String::from_utf8(finish(run, code).stdout).unwrap()
}

/// A folder with the demo program, built from a copy of its source.
fn demo(flags: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(fixtures_dir().join("demo/orders.cpp"), dir.path().join("orders.cpp")).unwrap();
    finish(Run::new("g++").args(["-g", "-O1", "-o", "orders", "orders.cpp"]).args(flags).dir(dir.path()), 0);
    dir
}

fn record(dir: &Path, program: &str, file: &str) {
    finish(leakscope(dir, &["run", "--quiet", "--log-file=/dev/null", "-o", file, "--", program]), 0);
}

/// Builds a C program that leaks `bytes` in `function` and, below it, what `more` says.
fn leaking(dir: &Path, name: &str, functions: &[(&str, u32)], flags: &[&str]) -> PathBuf {
    let mut source = "#include <stdlib.h>\nvolatile char *p;\n".to_owned();
    for (function, bytes) in functions {
        source +=
            &format!("__attribute__((noinline)) void {function}(void) {{ p = malloc({bytes}); p[0] = 1; p = 0; }}\n");
    }
    source += "__attribute__((noinline)) void wipe(void) { volatile char a[4096]; for (int i = 0; i < 4096; i++) a[i] = 0; }\n";
    source += "int main(void) { ";
    for (function, _) in functions {
        source += &format!("{function}(); ");
    }
    source += "wipe(); return 0; }\n";
    std::fs::write(dir.join(format!("{name}.c")), source).unwrap();
    finish(Run::new("gcc").args(["-g", "-O1", "-o", name]).arg(format!("{name}.c")).args(flags).dir(dir), 0);
    dir.join(name)
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn only_what_is_new_or_grown_fails() {
    if !is_leakscope() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    leaking(dir, "old", &[("parse", 100), ("render", 50)], &[]);
    leaking(dir, "new", &[("parse", 120), ("render", 50), ("serve", 7)], &[]);
    record(dir, "./old", "old.leak");
    record(dir, "./new", "new.leak");
    let text = said(leakscope(dir, &["gate", "old.leak"]), 1);
    assert!(text.starts_with("leakscope gate: FAILED: 2 new findings\n"), "{text}");
    assert!(text.contains("parse (old.c:3)") && text.contains("leakscope baseline update"), "{text}");
    let update = said(leakscope(dir, &["baseline", "update", "--reason", "known", "old.leak"]), 0);
    assert!(update.contains("`leaks.baseline merge=union` in .gitattributes"), "{update}");
    let with_baseline = |words: &[&str]| leakscope(dir, &[&["gate", "--baseline", "leaks.baseline"], words].concat());
    assert!(said(with_baseline(&["old.leak"]), 0).contains("passed: nothing new; 2 findings set aside"));
    let verdict = json(&said(with_baseline(&["--format", "json", "new.leak"]), 1));
    let failures: Vec<(&str, u64, &str)> = verdict["failures"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| (it["reason"].as_str().unwrap(), it["bytes"].as_u64().unwrap(), it["place"].as_str().unwrap()))
        .collect();
    assert_eq!(failures, [("grown", 120, "parse (new.c:3)"), ("new", 7, "serve (new.c:5)")]);
    assert_eq!(json(&said(with_baseline(&["--new-only", "--format", "json", "new.leak"]), 1))["accepted"], 2);
    // The recordings of a suite that ran in parts are one.
    assert!(said(with_baseline(&["old.leak", "new.leak"]), 1).contains("2 grown"), "the parts add up");
    for (most, code) in [("150", 0), ("149", 1)] {
        said(leakscope(dir, &["gate", "--max-leaked", most, "old.leak"]), code);
    }
    said(leakscope(dir, &["gate", "--fail-on", "errors", "new.leak"]), 0);
    let update = said(leakscope(dir, &["baseline", "update", "new.leak"]), 0);
    assert!(update.contains("1 added, 1 raised, 0 lowered, 0 gone"), "{update}");
    let update = said(leakscope(dir, &["baseline", "update", "old.leak"]), 0);
    assert!(update.contains("0 added, 0 raised, 1 lowered, 1 gone"), "{update}");
    assert!(std::fs::read_to_string(dir.join("leaks.baseline")).unwrap().contains(" # known\n"), "reasons stay");
}

#[test]
fn usage_and_empty_recordings_are_no_verdict() {
    if !is_leakscope() {
        return;
    }
    let dir = demo(&[]);
    let dir = dir.path();
    record(dir, "./orders", "a.leak");
    let refusal = |words: &[&str]| finish(leakscope(dir, words), 2).stderr;
    assert!(refusal(&["gate", "--baseline", "none", "a.leak"]).contains("leakscope baseline update --baseline none"));
    assert!(refusal(&["gate", "--fail-on", "leaks", "a.leak"]).contains("definite,indirect"));
    assert!(refusal(&["gate", "--format", "pprof", "a.leak"]).contains("leakscope report"));
    assert!(refusal(&["gate", "b.leak"]).contains("b.leak"));
    std::fs::write(dir.join("bad"), "# leakscope baseline 1\nnonsense\n").unwrap();
    assert!(refusal(&["gate", "--baseline", "bad", "a.leak"]).contains("bad:2: expected a fingerprint"));
    // Killed before a leak check: nobody knows what it leaked, and that must not pass.
    let kill = leakscope(dir, &["run", "-q", "--log-file=/dev/null", "-o", "k.leak", "--", "sh", "-c", "kill -9 $$"]);
    assert_eq!(kill.finish().unwrap().ending, Ending::Signal(9));
    assert!(refusal(&["gate", "k.leak"]).contains("killed by SIGKILL"));
}

#[test]
fn documents_show_what_fails_and_nothing_else() {
    if !is_leakscope() {
        return;
    }
    let dir = demo(&[]);
    let dir = dir.path();
    record(dir, "./orders", "a.leak");
    said(leakscope(dir, &["baseline", "update", "a.leak"]), 0);
    // Somebody takes one of the three out.
    let text = std::fs::read_to_string(dir.join("leaks.baseline")).unwrap();
    let kept: String =
        text.lines().filter(|line| !line.contains(" charge < ")).map(|line| format!("{line}\n")).collect();
    std::fs::write(dir.join("leaks.baseline"), kept).unwrap();
    let document = |format: &str, more: &[&str]| {
        let words = [&["gate", "--baseline", "leaks.baseline", "--format", format], more, &["a.leak"]].concat();
        said(leakscope(dir, &words), 1)
    };
    let github = document("github", &["--max-leaked", "5"]);
    assert_eq!(github.lines().filter(|line| line.starts_with("::error ")).count(), 2, "{github}");
    assert!(
        github.contains("file=orders.cpp,line=33") && github.contains("title=leakscope gate::budget: "),
        "{github}"
    );
    let junit = document("junit", &["--max-leaked", "5"]);
    let tree = roxmltree::Document::parse(&junit).unwrap();
    let failures = tree.descendants().filter(|node| node.has_tag_name("failure")).count();
    assert_eq!(failures, 2, "{junit}");
    let counted: usize = tree
        .descendants()
        .filter(|node| node.has_tag_name("testsuite"))
        .map(|suite| suite.attribute("failures").unwrap().parse::<usize>().unwrap())
        .sum();
    assert_eq!(counted, failures);
    let sarif = json(&document("sarif", &[]));
    assert_eq!(sarif["runs"][0]["results"].as_array().unwrap().len(), 1);
    let markdown = document("markdown", &["--max-leaked", "5"]);
    assert!(markdown.contains("charge") && !markdown.contains("print_total"), "{markdown}");
    assert!(markdown.lines().count() <= 60);
}

/// A baseline that was written from our own recording holds for what Valgrind saw.
#[test]
fn valgrinds_findings_are_judged_by_the_same_baseline() {
    if !is_leakscope() {
        return;
    }
    let dir = demo(&[]);
    let dir = dir.path();
    record(dir, "./orders", "a.leak");
    finish(
        Run::new("valgrind").args(["-q", "--leak-check=full", "--xml=yes", "--xml-file=v.xml", "./orders"]).dir(dir),
        0,
    );
    said(leakscope(dir, &["baseline", "update", "-q", "a.leak"]), 0);
    let text = said(leakscope(dir, &["gate", "--baseline", "leaks.baseline", "v.xml"]), 0);
    assert!(text.contains("3 findings set aside"), "{text}");
    let text = said(leakscope(dir, &["gate", "v.xml"]), 1);
    assert!(text.contains("3 new findings"), "{text}");
}

/// Bytes and blocks after `suppressed: ` in Memcheck's summary.
fn suppressed(log: &str) -> (u64, u64) {
    let line = log.lines().find(|line| line.contains("suppressed: ") && line.contains("bytes in")).expect(log);
    let numbers: Vec<u64> = line
        .split_once("suppressed: ")
        .unwrap()
        .1
        .split(' ')
        .filter_map(|word| word.replace(',', "").parse().ok())
        .collect();
    (numbers[0], numbers[1])
}

/// Our comments do not disturb Valgrind, and both hide the same bytes.
#[test]
fn valgrind_reads_the_same_suppressions() {
    if !is_leakscope() {
        return;
    }
    let dir = demo(&[]);
    let dir = dir.path();
    record(dir, "./orders", "a.leak");
    for (name, stack, problem) in [
        ("one", "   fun:_Znwm\n   fun:charge*\n", None),
        ("unused", "   fun:_Znwm\n   fun:chrage*\n", Some("matched nothing")),
        ("main", "   ...\n   fun:main\n", Some("over-broad")),
        ("new", "   fun:_Zn*\n", Some("allocation functions and wildcards")),
    ] {
        let rule = format!(
            "# leakscope: max-blocks=100\n{{\n   {name}\n   # leakscope: max-bytes=100000 until=2999-12-31\n   Memcheck:Leak\n   match-leak-kinds: definite\n{stack}   # the end\n}}\n"
        );
        std::fs::write(dir.join(name), rule).unwrap();
        let options = ["--leak-check=full", &format!("--suppressions={name}"), "./orders"];
        let theirs = suppressed(&finish(Run::new("valgrind").args(options).dir(dir), 0).stderr);
        let table = said(leakscope(dir, &["suppressions", "check", name, "--", "a.leak"]), 0);
        let row = table.lines().find(|line| line.ends_with(&format!("{name}:3: {name}"))).expect(&table);
        let numbers: Vec<u64> =
            row.split_whitespace().take(2).map(|word| word.replace(',', "").parse().unwrap()).collect();
        assert_eq!((numbers[0], numbers[1]), theirs, "{name}\n{table}");
        match problem {
            Some(problem) => assert!(table.contains(problem), "{table}"),
            None => assert!(!table.contains("over-broad") && !table.contains("nothing"), "{table}"),
        }
    }
}

#[test]
fn rules_that_break_their_word_fail_the_gate() {
    if !is_leakscope() {
        return;
    }
    let dir = demo(&[]);
    let dir = dir.path();
    record(dir, "./orders", "a.leak");
    let gate = |words: &str, code: i32| {
        std::fs::write(
            dir.join("s"),
            format!("# leakscope: {words}\nleak:read_orders\nleak:print_total\nleak:charge\n"),
        )
        .unwrap();
        said(leakscope(dir, &["gate", "--suppressions=s", "--suppression-health", "a.leak"]), code)
    };
    gate("max-bytes=5000", 0);
    let text = gate("max-bytes=10", 1);
    assert!(
        text.contains("suppression s:2: leak:read_orders: hides 2700 bytes in 60 blocks, and may hide 10 bytes"),
        "{text}"
    );
    let report = said(leakscope(dir, &["report", "-q", "--suppressions=s", "--suppression-health", "a.leak"]), 0);
    assert!(report.contains("s:2: leak:read_orders") && report.contains("may hide 10 bytes"), "{report}");
    let text = gate("until=2001-01-01", 1);
    assert!(text.contains("1 new finding") && text.contains("its last day was 2001-01-01"), "{text}");
    assert!(text.contains("read_orders (orders.cpp:17)"), "what it hid is reported again: {text}");
}

/// LeakSanitizer itself, with the same file: bytes by its own count, and nothing left with the file that we write.
#[test]
fn leak_sanitizer_reads_what_we_read_and_write() {
    if !is_leakscope() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let functions = [("parse_header", 100), ("parse_body", 50), ("render", 7)];
    leaking(dir, "plain", &functions, &[]);
    leaking(dir, "lsan", &functions, &["-fsanitize=leak"]);
    record(dir, "./plain", "a.leak");
    let lsan = |file: &str, code: i32| {
        let options = format!("suppressions={file}:print_suppressions=1:exitcode=23");
        finish(Run::new("./lsan").env("LSAN_OPTIONS", options).dir(dir), code).stderr
    };
    for (pattern, bytes) in [("parse_header", 100), ("parse", 150), ("^parse_b*y$", 50), ("plain.c", 157), ("^body", 0)]
    {
        // The module and the source have the program's name.
        let theirs = pattern.replace("plain", "lsan");
        std::fs::write(dir.join("ours"), format!("leak:{pattern}\n")).unwrap();
        std::fs::write(dir.join("theirs"), format!("leak:{theirs}\n")).unwrap();
        let log = lsan("theirs", if bytes == 157 { 0 } else { 23 });
        let used = log.lines().find(|line| line.ends_with(&format!(" {theirs}")));
        let used: u64 = used.map_or(0, |line| line.split_whitespace().nth(1).unwrap().parse().unwrap());
        assert_eq!(used, bytes, "{log}");
        let table = said(leakscope(dir, &["suppressions", "check", "ours", "--", "a.leak"]), 0);
        let row = table.lines().find(|line| line.ends_with(&format!("leak:{pattern}"))).expect(&table);
        assert_eq!(row.split_whitespace().next().unwrap().parse(), Ok(bytes), "{table}");
    }
    let written = said(leakscope(dir, &["suppressions", "generate", "--syntax", "lsan", "a.leak"]), 0);
    std::fs::write(dir.join("written"), &written).unwrap();
    lsan("written", 0);
    said(leakscope(dir, &["gate", "--suppressions=written", "a.leak"]), 0);
    let report = said(leakscope(dir, &["report", "-q", "--gen-suppressions=lsan", "a.leak"]), 0);
    assert!(report.ends_with(&written), "{report}");
    let ran = finish(leakscope(dir, &["run", "--gen-suppressions=lsan", "--", "./plain"]), 0).stderr;
    assert!(ran.ends_with(&written), "{ran}");
    let written = said(leakscope(dir, &["suppressions", "generate", "a.leak"]), 0);
    std::fs::write(dir.join("written.supp"), &written).unwrap();
    said(leakscope(dir, &["gate", "--suppressions=written.supp", "a.leak"]), 0);
    assert!(!written.contains("over-broad"), "{written}");
}

/// Two leaks of one function that differ further out: a rule that is cut off in front of that hides both.
#[test]
fn rules_that_hide_more_than_their_finding_are_marked() {
    if !is_leakscope() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::write(
        dir.join("a.c"),
        "#include <stdlib.h>\n__attribute__((noinline)) char *get(int n) { if (n > 15) return malloc(n); return calloc(n, 2); }\n\
         volatile char *p;\n__attribute__((noinline)) void one(void) { p = get(10); p = 0; }\n\
         __attribute__((noinline)) void two(void) { p = get(20); p = 0; }\n\
         int main(void) { one(); two(); return 0; }\n",
    )
    .unwrap();
    let build = ["-g", "-O1", "-fno-optimize-sibling-calls", "-o", "a", "a.c"];
    finish(Run::new("gcc").args(build).dir(dir), 0);
    record(dir, "./a", "a.leak");
    let warnings = |words: &[&str]| {
        finish(leakscope(dir, &[&["suppressions", "generate"], words, &["a.leak"]].concat()), 0).stderr
    };
    assert_eq!(warnings(&[]), "");
    assert_eq!(warnings(&["--syntax=lsan"]), "");
    let short = warnings(&["--num-callers=2", "--syntax=lsan"]);
    assert_eq!(short.matches("hides 1 other finding too").count(), 2, "{short}");
}
