//! The snippets of `docs/ci`, run as they stand there, and the build tools that start leakscope themselves.

use std::path::{Path, PathBuf};
use std::time::Duration;

use leakscope_e2e::{Ending, Finished, Run, Tool, fixtures_dir, leakscope_bin, repo_root};

fn is_leakscope() -> bool {
    Tool::from_env().expect("a tool to test") == Tool::Leakscope
}

/// A program with leakscope on its PATH.
fn run(dir: &Path, program: &str, words: &[&str]) -> Run {
    let folder = leakscope_bin();
    let path = format!("{}:{}", folder.parent().unwrap().display(), std::env::var("PATH").unwrap());
    Run::new(program).args(words).dir(dir).env("PATH", path).limit(Duration::from_secs(300))
}

fn finish(run: Run, code: i32) -> Finished {
    let finished = run.finish().unwrap_or_else(|error| panic!("{error:#}; next: cargo xtask setup"));
    let words = String::from_utf8_lossy(&finished.stdout);
    assert_eq!(finished.ending, Ending::Exit(code), "{}\n{words}\n{}", run.shown(), finished.stderr);
    finished
}

fn said(run: Run, code: i32) -> String {
    String::from_utf8(finish(run, code).stdout).unwrap()
}

fn snippet(name: &str) -> PathBuf {
    repo_root().join("docs/ci").join(name)
}

/// A project as the snippets expect it: `make tests` builds `./tests`, and `leaks.baseline` has all of its leaks.
fn project() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    std::fs::copy(fixtures_dir().join("demo/orders.cpp"), path.join("orders.cpp")).unwrap();
    std::fs::write(path.join("Makefile"), "tests: orders.cpp\n\tg++ -g -O1 -o $@ orders.cpp\n").unwrap();
    finish(run(path, "make", &["tests"]), 0);
    finish(run(path, "leakscope", &["run", "-q", "--log-file=/dev/null", "-o", "a.leak", "--", "./tests"]), 0);
    finish(run(path, "leakscope", &["baseline", "update", "-q", "a.leak"]), 0);
    std::fs::remove_file(path.join("a.leak")).unwrap();
    dir
}

/// Takes one finding out of the baseline: it is new then.
fn forget_one(dir: &Path) {
    let text = std::fs::read_to_string(dir.join("leaks.baseline")).unwrap();
    let kept: String =
        text.lines().filter(|line| !line.contains(" charge < ")).map(|line| format!("{line}\n")).collect();
    assert_ne!(kept, text);
    std::fs::write(dir.join("leaks.baseline"), kept).unwrap();
}

/// A document that is not ours to parse, by Python's reader.
fn yaml(path: &Path) -> serde_json::Value {
    let program = "import json, sys, yaml\nd = yaml.safe_load(open(sys.argv[1]))\nprint(json.dumps({str(k): v for k, v in d.items()}))";
    let text = said(run(path.parent().unwrap(), "python3", &["-c", program, path.to_str().unwrap()]), 0);
    serde_json::from_str(&text).unwrap()
}

/// Runs the commands as the CI server does, up to the first that fails; gives its number and the words of the last.
fn follow(dir: &Path, commands: &[String]) -> (Option<usize>, String) {
    let mut words = String::new();
    for (number, command) in commands.iter().enumerate() {
        let finished = run(dir, "sh", &["-e", "-c", command]).finish().unwrap();
        words = String::from_utf8_lossy(&finished.stdout).into_owned();
        if finished.ending != Ending::Exit(0) {
            assert_eq!(finished.ending, Ending::Exit(1), "{command}: {words}{}", finished.stderr);
            return (Some(number), words);
        }
    }
    (None, words)
}

fn has_schema(path: &Path, schema: &str) {
    finish(
        run(
            path.parent().unwrap(),
            "python3",
            &["-m", "check_jsonschema", "--builtin-schema", schema, path.to_str().unwrap()],
        ),
        0,
    );
}

/// Runs the commands of a snippet with everything set aside, and again when one leak is new: only the last one fails.
fn holds(commands: &[String], reports: &dyn Fn(&Path, bool, &str)) {
    let dir = project();
    let (failed, words) = follow(dir.path(), commands);
    assert_eq!(failed, None, "{words}");
    reports(dir.path(), false, &words);
    forget_one(dir.path());
    for leak in std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()) {
        if leak.extension().is_some_and(|ending| ending == "leak") {
            std::fs::remove_file(leak).unwrap();
        }
    }
    let (failed, words) = follow(dir.path(), commands);
    assert_eq!(failed, Some(commands.len() - 1), "{words}");
    reports(dir.path(), true, &words);
}

fn json_file(path: PathBuf) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn github_actions() {
    if !is_leakscope() {
        return;
    }
    let path = snippet("github-actions.yml");
    has_schema(&path, "vendor.github-workflows");
    let workflow = yaml(&path);
    let steps = workflow["jobs"]["leaks"]["steps"].as_array().unwrap();
    let commands: Vec<String> = steps.iter().filter_map(|step| Some(step["run"].as_str()?.to_owned())).collect();
    assert_eq!(commands.len(), 4);
    holds(&commands, &|dir, is_new, words| {
        let results = json_file(dir.join("leaks.sarif"))["runs"][0]["results"].as_array().unwrap().len();
        let annotations = words.lines().filter(|line| line.starts_with("::error file=orders.cpp,line=")).count();
        assert_eq!((results, annotations), if is_new { (1, 1) } else { (0, 0) }, "{words}");
    });
}

fn junit_failures(path: PathBuf) -> usize {
    let text = std::fs::read_to_string(path).unwrap();
    let tree = roxmltree::Document::parse(&text).unwrap();
    tree.descendants().filter(|node| node.has_tag_name("failure")).count()
}

#[test]
fn gitlab() {
    if !is_leakscope() {
        return;
    }
    let path = snippet("gitlab-ci.yml");
    has_schema(&path, "vendor.gitlab-ci");
    let script = yaml(&path)["leaks"]["script"].clone();
    let commands: Vec<String> =
        script.as_array().unwrap().iter().map(|line| line.as_str().unwrap().to_owned()).collect();
    holds(&commands, &|dir, is_new, _| {
        let quality = json_file(dir.join("gl-code-quality-report.json")).as_array().unwrap().len();
        let failures = junit_failures(dir.join("leaks.junit.xml"));
        assert_eq!((quality, failures), if is_new { (1, 1) } else { (0, 0) });
    });
}

/// The commands of the `sh` steps. Groovy's own strings hold no dollar signs or backslashes that it would replace.
#[test]
fn jenkins() {
    if !is_leakscope() {
        return;
    }
    let text = std::fs::read_to_string(snippet("Jenkinsfile")).unwrap();
    let mut commands = Vec::new();
    let mut rest = text.as_str();
    while let Some(at) = rest.find("sh '") {
        rest = &rest[at + 3..];
        let quote = if rest.starts_with("'''") { "'''" } else { "'" };
        let end = rest[quote.len()..].find(quote).expect("an end") + quote.len();
        commands.push(rest[quote.len()..end].to_owned());
        rest = &rest[end + quote.len()..];
    }
    assert_eq!(commands.len(), 2);
    for (open, close) in [('{', '}'), ('(', ')')] {
        assert_eq!(text.matches(open).count(), text.matches(close).count());
    }
    holds(&commands, &|dir, is_new, words| {
        assert_eq!(junit_failures(dir.join("leaks.junit.xml")), usize::from(is_new));
        assert!(words.contains(if is_new { "1 new finding" } else { "passed" }), "{words}");
    });
}

/// Defects by test and type, out of what CTest made of the logs.
fn defects(build: &Path) -> Vec<(String, String, u32)> {
    let tag = std::fs::read_to_string(build.join("Testing/TAG")).unwrap();
    let path = build.join("Testing").join(tag.lines().next().unwrap()).join("DynamicAnalysis.xml");
    let text = std::fs::read_to_string(path).unwrap();
    let tree = roxmltree::Document::parse(&text).unwrap();
    let mut found: Vec<(String, String, u32)> = Vec::new();
    for test in tree.descendants().filter(|node| node.has_tag_name("Test") && node.has_attribute("Status")) {
        let name = test.children().find(|node| node.has_tag_name("Name")).unwrap().text().unwrap();
        for defect in test.descendants().filter(|node| node.has_tag_name("Defect") && node.has_attribute("type")) {
            let count = defect.text().unwrap().parse().unwrap();
            found.push((name.to_owned(), defect.attribute("type").unwrap().to_owned(), count));
        }
    }
    found.sort();
    found
}

/// CTest starts leakscope as it starts Valgrind, and finds the same defects in its logs.
#[test]
fn ctest() {
    if !is_leakscope() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::copy(fixtures_dir().join("demo/orders.cpp"), dir.join("orders.cpp")).unwrap();
    std::fs::write(
        dir.join("twice.c"),
        "#include <stdlib.h>\nint main(void) { char *p = malloc(10); free(p); char *volatile q = p; free(q);\n\
         char *r = malloc(7); return r == 0; }\n",
    )
    .unwrap();
    std::fs::write(dir.join("harmless.c"), "int main(void) { return 0; }\n").unwrap();
    let lists = |head: &str| {
        format!(
            "cmake_minimum_required(VERSION 3.13)\nproject(orders C CXX)\n{head}\ninclude(CTest)\n\
             add_compile_options(-g -O1 -w)\nforeach(name orders.cpp twice.c harmless.c)\n\
             get_filename_component(stem ${{name}} NAME_WE)\nadd_executable(${{stem}} ${{name}})\n\
             add_test(NAME ${{stem}} COMMAND ${{stem}})\nendforeach()\n"
        )
    };
    let checked = |build: &str, head: &str| {
        std::fs::write(dir.join("CMakeLists.txt"), lists(head)).unwrap();
        finish(run(dir, "cmake", &["-S", ".", "-B", build]), 0);
        finish(run(dir, "cmake", &["--build", build]), 0);
        finish(run(&dir.join(build), "ctest", &["-T", "memcheck"]), 0);
        defects(&dir.join(build))
    };
    let valgrind = checked(
        "with-valgrind",
        "set(MEMORYCHECK_COMMAND valgrind)\nfind_program(V valgrind)\nset(MEMORYCHECK_COMMAND \"${V}\")",
    );
    assert!(valgrind.iter().any(|(name, ..)| name == "twice") && valgrind.iter().any(|(name, ..)| name == "orders"));
    let plain = "find_program(LEAKSCOPE leakscope REQUIRED)\nset(MEMORYCHECK_COMMAND \"${LEAKSCOPE}\")\nset(MEMORYCHECK_TYPE Valgrind)";
    assert_eq!(checked("with-leakscope", plain), valgrind);
    // The snippet, which also keeps recordings; with it nothing is reachable that Valgrind would have shown.
    let include = format!("include({})", snippet("ctest.cmake").display());
    assert_eq!(checked("with-snippet", &include), valgrind);
    let leaks: Vec<String> = std::fs::read_dir(dir.join("with-snippet/leaks"))
        .unwrap()
        .map(|entry| entry.unwrap().path().to_string_lossy().into_owned())
        .collect();
    assert_eq!(leaks.len(), 3);
    let words: Vec<&str> = ["gate"].into_iter().chain(leaks.iter().map(String::as_str)).collect();
    let text = said(run(dir, "leakscope", &words), 1);
    assert!(text.contains("FAILED: 5 new findings") && text.contains("DoubleFree"), "{text}");
}

#[test]
fn meson() {
    if !is_leakscope() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::copy(fixtures_dir().join("demo/orders.cpp"), dir.join("orders.cpp")).unwrap();
    std::fs::write(dir.join("harmless.c"), "int main(void) { return 0; }\n").unwrap();
    let head = "project('orders', 'c', 'cpp', default_options: ['buildtype=debugoptimized'])\n\
                test('orders', executable('orders', 'orders.cpp'))\ntest('harmless', executable('harmless', 'harmless.c'))\n";
    let text = head.to_owned() + &std::fs::read_to_string(snippet("meson.build")).unwrap();
    std::fs::write(dir.join("meson.build"), text).unwrap();
    finish(run(dir, "meson", &["setup", "build"]), 0);
    finish(run(dir, "meson", &["test", "-C", "build", "--setup", "leaks"]), 0);
    let text = said(run(dir, "sh", &["-c", "leakscope gate build/leaks-*.leak"]), 1);
    assert!(text.contains("3 new findings") && text.contains("read_orders"), "{text}");
    let wrapper = "leakscope run --quiet --error-exitcode=1";
    let text = said(run(dir, "meson", &["test", "-C", "build", "--wrapper", wrapper]), 1);
    assert!(text.contains("Ok:                 1") && text.contains("Fail:               1"), "{text}");
}

#[test]
fn pytest() {
    if !is_leakscope() {
        return;
    }
    let project = project();
    let dir = project.path();
    std::fs::copy(snippet("conftest.py"), dir.join("conftest.py")).unwrap();
    std::fs::write(
        dir.join("test_orders.py"),
        "def test_orders(leak_checked):\n    finished = leak_checked('./tests', capture_output=True)\n    assert finished.returncode == 0\n\n\
         def test_true(leak_checked):\n    assert leak_checked('/bin/true').returncode == 0\n\n\
         def test_nothing(leak_checked):\n    pass\n",
    )
    .unwrap();
    let pytest = ["-m", "pytest", "-p", "no:cacheprovider", "--rootdir=."];
    assert!(said(run(dir, "python3", &pytest), 0).contains("3 passed"));
    forget_one(dir);
    let text = said(run(dir, "python3", &pytest), 1);
    assert!(text.contains("1 new finding") && text.contains("charge") && text.contains("3 passed, 1 error"), "{text}");
}

/// Two packages with their tests; one test of the second leaks, and one takes so long that the harness waits for it, which
/// leaves the handle of its main thread.
fn crates(dir: &Path) {
    std::fs::write(dir.join("Cargo.toml"), "[workspace]\nmembers = [\"one\", \"two\"]\nresolver = \"2\"\n").unwrap();
    let tests = [
        ("one", "#[test]\nfn adds() { assert_eq!(1 + 1, 2); }\n"),
        (
            "two",
            "#[inline(never)]\npub fn lose() { std::mem::forget(std::hint::black_box(vec![1_u8; 777])); }\n#[test]\nfn loses() { lose(); }\n#[test]\nfn keeps() { drop(vec![1_u8; 777]); std::thread::sleep(std::time::Duration::from_millis(200)); }\n",
        ),
    ];
    for (name, text) in tests {
        std::fs::create_dir_all(dir.join(name).join("src")).unwrap();
        let manifest =
            format!("[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[lib]\ndoctest = false\n");
        std::fs::write(dir.join(name).join("Cargo.toml"), manifest).unwrap();
        std::fs::write(dir.join(name).join("src/lib.rs"), text).unwrap();
    }
}

#[test]
fn cargo_and_nextest() {
    if !is_leakscope() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    crates(dir);
    std::os::unix::fs::symlink(leakscope_bin(), dir.join("cargo-leakscope")).unwrap();
    // Cargo finds its subcommands on the PATH. Our own build's variables are not for this one.
    let cargo = |words: &[&str]| {
        let path = format!("{}:{}", dir.display(), std::env::var("PATH").unwrap());
        Run::new("env")
            .args(["-u", "CARGO_TARGET_DIR", "-u", "RUSTFLAGS", "-u", "CARGO", "cargo"])
            .args(words)
            .dir(dir)
            .env("PATH", path)
            .env("RUST_TEST_THREADS", "2")
            .limit(Duration::from_secs(300))
    };
    let judged = |words: &[&str], code: i32| {
        let text = said(cargo(words), code);
        let at = text.find("leakscope gate: ").unwrap_or_else(|| panic!("{text}"));
        text[at..].to_owned()
    };
    let words = ["leakscope", "-o", "all.leak", "--fail-on", "definite,errors", "--baseline"];
    finish(cargo(&["leakscope", "--fail-on=definite", "-o", "all.leak", "test", "--offline"]), 1);
    let text = judged(&["leakscope", "--fail-on=definite", "test", "--offline"], 1);
    assert!(text.contains("1 new finding") && text.contains("777") && text.contains("two/src/lib.rs:2"), "{text}");
    // What the test harness itself leaves is not the user's.
    let text = judged(&["leakscope", "test", "--offline"], 1);
    assert!(text.contains("1 new finding"), "{text}");
    let text = judged(&["leakscope", "--default-suppressions=no", "test", "--offline"], 1);
    assert!(text.contains("possible"), "{text}");
    // The recordings of both packages are one now.
    let all = said(run(dir, "leakscope", &["report", "--format", "junit", "all.leak"]), 0);
    assert_eq!(all.matches("<testsuite ").count(), 2, "{all}");
    finish(run(dir, "leakscope", &["baseline", "update", "--fail-on=definite", "all.leak"]), 0);
    let text = judged(&[&words[..], &["leaks.baseline", "test", "--offline"]].concat(), 0);
    assert!(text.contains("1 finding set aside"), "{text}");
    let text = judged(&["leakscope", "--fail-on=definite", "nextest", "run", "--offline"], 1);
    assert!(text.contains("1 new finding") && text.contains("777"), "{text}");
    // A test that fails is cargo's to tell.
    std::fs::write(dir.join("one/src/lib.rs"), "#[test]\nfn adds() { assert_eq!(1 + 1, 3); }\n").unwrap();
    let finished = finish(cargo(&["leakscope", "test", "--offline"]), 101);
    assert!(finished.stderr.contains("leaks are not judged"), "{}", finished.stderr);
}
