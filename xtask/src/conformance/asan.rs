//! `conformance asan`: compiler-rt's own tests of AddressSanitizer against our run-time library, scored by
//! conformance/asan.py beside clang's own library, and held against a list of known failures.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use leakscope_e2e::{conformance_cache, repo_root};
use serde::Deserialize;

use crate::step::step_with;

/// In the fast subset: some of every family, together about a minute once they are compiled.
const FAST: &str = "use-after-free|double-free|heap-overflow|stack-overflow|global-overflow|strcpy|strncat|memcmp|printf-\
                    |alloca|longjmp|halt_on_error-1|new_delete|odr-violation|initialization-bug|leaks|pthread";
/// The library under the name that tests look for in a process's mappings.
const SONAME: &str = "libclang_rt.asan-x86_64.so";

/// Where the programs are instrumented and linked with the library.
const INSTRUMENTED: [&str; 3] = ["asan-dynamic", "lsan-asan", "common-asan"];
/// LeakSanitizer's tests, plainly compiled, with the library preloaded.
const PRELOADED: &str = "lsan";
/// What clang's tests need, besides what the tests of everything else do.
const NEEDED: [&str; 3] = [
    "/usr/lib/llvm-19/bin/clang",
    "/usr/lib/llvm-19/bin/llvm-symbolizer",
    "/usr/lib/llvm-19/lib/clang/19/lib/linux/libclang_rt.asan-x86_64.so",
];

#[derive(Deserialize)]
struct Scores {
    runs: Vec<Run>,
}

#[derive(Deserialize)]
struct Run {
    suite: String,
    tests: BTreeMap<String, Test>,
}

#[derive(Deserialize)]
struct Test {
    code: String,
    family: String,
}

impl Test {
    fn passes(&self) -> bool {
        matches!(self.code.as_str(), "PASS" | "FLAKYPASS")
    }
}

#[derive(Deserialize)]
struct Known {
    /// Suite to test name to the reason why it does not pass.
    #[serde(flatten)]
    suites: BTreeMap<String, BTreeMap<String, String>>,
}

/// Whether clang 19 with its run-time is installed.
pub fn is_possible() -> bool {
    NEEDED.iter().all(|path| std::path::Path::new(path).exists())
}

/// Builds the library and runs the tests; `fast`: the subset.
///
/// # Errors
/// The tests cannot be fetched or run, or a verdict is not the expected one.
pub fn run(fast: bool) -> Result<()> {
    if !is_possible() {
        bail!(
            "conformance asan: it needs {}; next: apt-get install clang-19 llvm-19 libclang-rt-19-dev",
            NEEDED.join(", ")
        );
    }
    let library = build()?;
    let cache = conformance_cache().join("llvm");
    let cache_path = cache.to_string_lossy();
    let library = library.to_string_lossy();
    let environment = [("PYTHONDONTWRITEBYTECODE", "1"), ("LEAKSCOPE_ASAN_CACHE", &*cache_path)];
    let suites: Vec<&str> =
        if fast { vec![INSTRUMENTED[0]] } else { INSTRUMENTED.into_iter().chain([PRELOADED]).collect() };
    let baseline = |suite: &str| cache.join(format!("baseline/stock-{suite}.json"));
    let score = |words: &[&str]| -> Result<Vec<Run>> {
        let json = tempfile::NamedTempFile::new()?;
        let json_path = json.path().to_string_lossy();
        let front = ["python3", "conformance/asan.py"];
        let filter: &[&str] = if fast { &["--filter", FAST] } else { &[] };
        step_with(&[&front, words, &["--json", &json_path], filter].concat(), &environment)?;
        let scores: Scores = serde_json::from_reader(json.reopen()?)?;
        Ok(scores.runs)
    };
    let (mut runs, mut stock) = (Vec::new(), Vec::new());
    if fast {
        // Both compile the same programs, which are kept: the second time costs the runs alone.
        stock.extend(score(&["stock", "--suites", suites[0]])?);
        runs.extend(score(&["runtime", &library, "--suites", suites[0]])?);
    } else {
        let missing: Vec<&str> = suites.iter().copied().filter(|suite| !baseline(suite).exists()).collect();
        if !missing.is_empty() {
            score(&["stock", "--suites", &missing.join(",")])?;
        }
        for suite in &suites {
            stock.push(read(&baseline(suite))?);
        }
        runs.extend(score(&["runtime", &library, "--suites", &INSTRUMENTED.join(",")])?);
        // It runs twice, the second time for exit codes alone, which the first verdicts imply.
        runs.extend(score(&["preload", &library, "--suites", PRELOADED])?.into_iter().take(1));
    }
    let path = repo_root().join("conformance/asan-known-failures.toml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let known = toml::from_str(&text).with_context(|| format!("read {}", path.display()))?;
    judge(&runs, &stock, &known)
}

fn read(path: &std::path::Path) -> Result<Run> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("read {}", path.display()))
}

/// The optimised library in a folder of its own.
fn build() -> Result<PathBuf> {
    step_with(&["cargo", "build", "--profile", "injected", "-p", "leakscope-asan"], &[])?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repo_root().join("target"), PathBuf::from);
    let folder = target.join("injected/conformance");
    std::fs::create_dir_all(&folder)?;
    let library = folder.join(SONAME);
    std::fs::copy(target.join("injected/libleakscope_asan.so"), &library)?;
    Ok(library)
}

/// Tests that passed here, that clang's library passes, and that ran.
type Counts = (usize, usize, usize);

/// Holds verdicts against the list; only tests that clang's own library passes on this machine are judged.
fn judge(runs: &[Run], stock: &[Run], known: &Known) -> Result<()> {
    let mut wrong = Vec::new();
    let mut families: BTreeMap<(&str, &str), Counts> = BTreeMap::new();
    for run in runs {
        let known = known.suites.get(&run.suite);
        let theirs = stock.iter().find(|theirs| theirs.suite == run.suite);
        for (name, test) in &run.tests {
            if matches!(test.code.as_str(), "UNSUPPORTED" | "EXCLUDED") {
                continue;
            }
            let stock_passes = theirs.and_then(|theirs| theirs.tests.get(name)).is_some_and(Test::passes);
            for family in [test.family.as_str(), "all"] {
                let counts = families.entry((&run.suite, family)).or_default();
                counts.0 += usize::from(test.passes() && stock_passes);
                counts.1 += usize::from(stock_passes);
                counts.2 += 1;
            }
            let reason = known.and_then(|known| known.get(name)).filter(|_| stock_passes);
            match (test.passes(), reason) {
                (true, Some(_)) => wrong.push(format!("{}: {name} passes; take it off the list", run.suite)),
                (false, Some(reason)) => eprintln!("known failure: {}: {name}: {reason}", run.suite),
                (false, None) if stock_passes => wrong.push(format!("{}: {name} failed", run.suite)),
                _ => {}
            }
        }
    }
    eprintln!("{:14} {:34} {:>9} {:>9} {:>5}", "suite", "family", "leakscope", "clang 19", "ran");
    for ((suite, family), (passed, stock, all)) in &families {
        eprintln!("{suite:14} {family:34} {passed:9} {stock:9} {all:5}");
    }
    if !wrong.is_empty() {
        bail!("conformance asan: {}", wrong.join("; "));
    }
    if families.values().all(|counts| counts.0 == 0) {
        bail!("conformance asan: no test ran");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(verdicts: &[(&str, &str)]) -> Vec<Run> {
        let test = |code: &str| Test { code: code.to_owned(), family: "leak".to_owned() };
        let tests = verdicts.iter().map(|(name, code)| ((*name).to_owned(), test(code))).collect();
        vec![Run { suite: "asan-dynamic".into(), tests }]
    }

    #[test]
    fn known_failures_must_fail_and_others_must_not() {
        let known: Known = toml::from_str("[asan-dynamic]\n\"b.c\" = \"why\"\n").expect("good");
        let stock = run(&[("a.c", "PASS"), ("b.c", "FLAKYPASS"), ("d.c", "FAIL")]);
        let held = |verdicts: &[(&str, &str)]| judge(&run(verdicts), &stock, &known);
        assert!(held(&[("a.c", "PASS"), ("b.c", "FAIL"), ("c.c", "UNSUPPORTED"), ("d.c", "FAIL")]).is_ok());
        assert!(held(&[("a.c", "PASS"), ("b.c", "PASS")]).is_err(), "a listed one passes");
        assert!(held(&[("a.c", "TIMEOUT")]).is_err(), "one that is not listed fails");
        assert!(held(&[]).is_err(), "nothing ran");
    }
}
