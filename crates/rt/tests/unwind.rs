//! Unwinding in real processes: the probe (`examples/unwind_probe.rs`) is preloaded into fixtures and into programs of
//! the distribution, and compares every record with a walk from nothing, and with glibc's `backtrace`.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

fn manifest() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn scratch() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

/// The probe, built as injected code is.
fn probe() -> &'static Path {
    static PROBE: OnceLock<PathBuf> = OnceLock::new();
    PROBE.get_or_init(|| {
        let target = scratch().parent().expect("a target directory");
        let status = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--example", "unwind_probe", "--profile", "injected"])
            .current_dir(manifest())
            .env("CARGO_TARGET_DIR", target)
            .status()
            .expect("cargo runs");
        assert!(status.success(), "the probe does not build");
        target.join("injected/examples/libunwind_probe.so")
    })
}

fn compile(compiler: &str, flags: &[&str], sources: &[&str], name: &str) -> PathBuf {
    let output = scratch().join(name);
    let fixtures = manifest().join("tests/fixtures");
    let status = Command::new(compiler)
        .args(["-g", "-w", "-o"])
        .arg(&output)
        .args(flags)
        .args(sources.iter().map(|s| fixtures.join(s)))
        .args(["-lpthread", "-ldl"])
        .status()
        .unwrap_or_else(|e| panic!("{compiler}: {e}"));
    assert!(status.success(), "{compiler} {flags:?} {sources:?}");
    output
}

/// The counts of all processes of one run.
struct Outcome {
    counts: HashMap<String, u64>,
    text: String,
}

impl Outcome {
    fn get(&self, name: &str) -> u64 {
        *self.counts.get(name).unwrap_or_else(|| panic!("no count {name} in\n{}", self.text))
    }

    /// Nothing wrong; what `backtrace` says; nothing cut short but for depth.
    fn assert_complete(&self) {
        assert!(self.get("records") > 0 && self.get("sampled") > 0, "{}", self.text);
        assert_eq!(self.get("wrong"), 0, "{}", self.text);
        assert_eq!(self.get("equal"), self.get("sampled"), "{}", self.text);
        assert_eq!((self.get("no_rule"), self.get("bad_stack")), (0, 0), "{}", self.text);
    }
}

fn run<S: AsRef<OsStr>>(tag: &str, environment: &[(&str, &str)], program: &Path, arguments: &[S]) -> Outcome {
    let out = scratch().join(format!("{tag}.counts"));
    let _ = fs::remove_file(&out);
    let result = Command::new(program)
        .args(arguments)
        .env("LD_PRELOAD", probe())
        .env("PROBE_MODE", "check")
        .env("PROBE_OUT", &out)
        .envs(environment.iter().copied())
        .current_dir(scratch())
        .output()
        .unwrap_or_else(|e| panic!("{}: {e}", program.display()));
    let text = fs::read_to_string(&out).unwrap_or_default();
    let stderr = String::from_utf8_lossy(&result.stderr);
    assert!(result.status.success(), "{tag}: {:?}\n{stderr}\n{text}", result.status);
    let mut counts = HashMap::new();
    for (name, value) in text.lines().filter(|l| l.starts_with("records=")).flat_map(pairs) {
        *counts.entry(name).or_insert(0) += value;
    }
    Outcome { counts, text }
}

fn pairs(line: &str) -> impl Iterator<Item = (String, u64)> {
    line.split_whitespace().filter_map(|word| {
        let (name, value) = word.split_once('=')?;
        Some((name.to_owned(), value.parse().ok()?))
    })
}

const EVERY: &[(&str, &str)] = &[("PROBE_ALL", "1")];
const NONE: &[&str] = &[];

/// How distributions build, and what breaks other unwinders.
const BUILDS: &[(&str, &str, &[&str])] = &[
    ("gcc-o2", "gcc", &["-O2", "-fomit-frame-pointer"]),
    ("gcc-o0", "gcc", &["-O0"]),
    ("gcc-fp", "gcc", &["-O2", "-fno-omit-frame-pointer", "-mavx2"]),
    ("clang-o2", "clang-19", &["-O2", "-fomit-frame-pointer"]),
    ("clang-o0", "clang-19", &["-O0"]),
    ("gcc-lazy", "gcc", &["-O1", "-Wl,-z,lazy", "-fcf-protection=full"]),
    // Fixed addresses, and unmapped gaps between the segments: the loader names only the part around the pc.
    ("gcc-gaps", "gcc", &["-O2", "-no-pie", "-Wl,-z,separate-code,-z,max-page-size=0x200000"]),
];

fn in_every_build(source: &str, arguments: &[&str], check: impl Fn(&str, &Outcome)) {
    for (build, compiler, flags) in BUILDS {
        let tag = format!("{}-{build}", source.replace('.', "-"));
        let compiler = match (*compiler, source.ends_with(".cpp")) {
            ("gcc", true) => "g++",
            (_, true) => "clang++-19",
            (c, false) => c,
        };
        let program = compile(compiler, flags, &[source], &tag);
        check(build, &run(&tag, EVERY, &program, arguments));
    }
}

#[test]
fn odd_frames() {
    in_every_build("frames.c", NONE, |_, outcome| {
        outcome.assert_complete();
        assert_eq!(outcome.get("too_deep"), 0, "{}", outcome.text);
    });
}

#[test]
fn recursion_past_the_limit_keeps_the_leaf_and_is_counted() {
    in_every_build("frames.c", &["deep"], |_, outcome| {
        outcome.assert_complete();
        // rec(124..300) alone has more than 128 frames.
        assert!((170..200).contains(&outcome.get("too_deep")), "{}", outcome.text);
    });
}

#[test]
fn signal_handlers() {
    in_every_build("signals.c", NONE, |_, outcome| {
        outcome.assert_complete();
        assert!(outcome.get("unremembered") > 3000, "{}", outcome.text);
    });
}

/// A handler on a stack that has 4 KiB beside what the kernel itself puts there, while the hook works as it does in
/// production. Programs commonly have 8 KiB, of which the kernel takes 3 or more.
#[test]
fn small_signal_stacks() {
    // SAFETY: a plain call.
    let of_kernel = unsafe { libc::getauxval(libc::AT_MINSIGSTKSZ) };
    let bytes = (of_kernel.max(2048) + 4096).to_string();
    let program = compile("gcc", &["-O2"], &["signals.c"], "signals-small");
    let outcome = run("signals-small", &[("PROBE_MODE", "record")], &program, &[bytes]);
    assert!(outcome.get("walks") > 3000, "{}", outcome.text);
}

#[test]
fn exceptions() {
    in_every_build("exceptions.cpp", NONE, |_, outcome| outcome.assert_complete());
}

#[test]
fn foreign_stacks() {
    in_every_build("contexts.c", NONE, |_, outcome| outcome.assert_complete());
}

#[test]
fn threads() {
    in_every_build("threads.c", NONE, |build, outcome| {
        outcome.assert_complete();
        assert!(outcome.get("records") > 12 * 8 * 300, "{build}: {}", outcome.text);
    });
}

#[test]
fn cfa_from_other_registers() {
    let program = compile("gcc", &["-O2"], &["registers.c", "registers.S"], "registers");
    let outcome = run("registers", EVERY, &program, NONE);
    outcome.assert_complete();
    assert!(outcome.get("hits") > outcome.get("records") / 2, "{}", outcome.text);
}

#[test]
fn libraries_that_take_each_others_address() {
    let frames = ["512", "1024", "2048"];
    let libraries: Vec<PathBuf> = frames
        .iter()
        .map(|size| {
            let define = format!("-DFRAME={size}");
            let flags = ["-shared", "-fPIC", "-O1", "-fno-stack-protector", &define];
            compile("gcc", &flags, &["reload_lib.c"], &format!("reload{size}.so"))
        })
        .collect();
    let program = compile("gcc", &["-O2"], &["reload.c"], "reload");
    let outcome = run("reload", EVERY, &program, &libraries);
    outcome.assert_complete();
    let output = Command::new(&program).args(&libraries).output().expect("runs").stdout;
    assert_eq!(String::from_utf8_lossy(&output).trim(), "ok 1", "the libraries did not share an address");
}

#[test]
fn objects_found_as_before_glibc_2_35() {
    let program = compile("gcc", &["-O2"], &["frames.c"], "frames-old");
    run("frames-old", &[("PROBE_OLD_GLIBC", "1"), ("PROBE_ALL", "1")], &program, NONE).assert_complete();
    let program = compile("gcc", &["-O2"], &["threads.c"], "threads-old");
    run("threads-old", &[("PROBE_OLD_GLIBC", "1"), ("PROBE_ALL", "1")], &program, NONE).assert_complete();
}

fn find(program: &str) -> Option<PathBuf> {
    ["/usr/bin", "/bin"].iter().map(|d| Path::new(d).join(program)).find(|p| p.exists())
}

/// Programs of the distribution; those that are not installed are left out, but some must be.
#[test]
fn real_programs() {
    let sql = "create table t(a integer primary key, b text); \
        with recursive n(i) as (select 1 union all select i + 1 from n where i < 20000) \
        insert into t select i, hex(randomblob(20)) from n; create index x on t(b); \
        select count(*), max(b), group_concat(substr(b, 1, 2)) from t where b like '%A1%' group by a % 10;";
    let perl = "my %h; for my $i (1..20000) { $h{\"k$i\"} = [1..5]; } my @a = sort keys %h; \
        sub f { my $n = shift; return $n ? f($n - 1) . 'x' : 'y' } f(300); \
        print join(',', map { $h{$_}[0] } grep { /k.*7$/ } @a);";
    let python = "import json, re, ast\n\
        d = {str(i): [i, {'x': i}] for i in range(3000)}\n\
        s = json.dumps(d); d = json.loads(s)\n\
        def f(n): return [n] + f(n - 1) if n else []\n\
        f(300); re.sub('(a|b)+c', 'x', 'abac' * 5000); ast.parse('x = 1 + 2 * (3 - f(4))\\n' * 2000)\n";
    let bash = "for i in $(seq 1 800); do a[$i]=\"x$i\"; f() { local b=${a[$1]}; echo ${b/x/y}; }; f $i; done";
    let programs: &[(&str, &[&str])] = &[
        ("sqlite3", &[":memory:", sql]),
        ("perl", &["-e", perl]),
        ("python3", &["-c", python]),
        ("bash", &["-c", bash]),
        ("git", &["--version"]),
        ("xz", &["--version"]),
    ];
    let mut ran = 0;
    for (name, arguments) in programs {
        let Some(program) = find(name) else { continue };
        let outcome = run(name, &[], &program, arguments);
        outcome.assert_complete();
        ran += 1;
    }
    assert!(ran >= 2, "hardly any program is installed");
}

/// The compiler proper: 100,000 different stacks, deep recursion, functions that realign.
#[test]
fn the_cpp_compiler() {
    let query = Command::new("g++").arg("-print-prog-name=cc1plus").output().expect("g++ runs");
    let compiler = PathBuf::from(String::from_utf8_lossy(&query.stdout).trim());
    let source = manifest().join("tests/fixtures/exceptions.cpp");
    let preprocessed = scratch().join("exceptions.ii");
    let status = Command::new("g++").arg("-E").arg(&source).arg("-o").arg(&preprocessed).status().expect("g++ runs");
    assert!(status.success());
    let arguments =
        ["-fpreprocessed".as_ref(), preprocessed.as_os_str(), "-quiet".as_ref(), "-O1".as_ref(), "-o".as_ref()];
    let arguments: Vec<&OsStr> = arguments.into_iter().chain([OsStr::new("/dev/null")]).collect();
    let outcome = run("cc1plus", &[], &compiler, &arguments);
    outcome.assert_complete();
    assert!(outcome.get("too_deep") * 100 < outcome.get("records"), "{}", outcome.text);
}
