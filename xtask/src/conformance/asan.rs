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
}

#[derive(Deserialize)]
struct Known {
    /// Suite to test name to the reason why it does not pass.
    #[serde(flatten)]
    suites: BTreeMap<String, BTreeMap<String, String>>,
}

/// Builds the library and runs the tests; `fast`: the subset.
///
/// # Errors
/// The tests cannot be fetched or run, or a verdict is not the expected one.
pub fn run(fast: bool) -> Result<()> {
    let library = build()?;
    let cache = conformance_cache().join("llvm");
    let json = tempfile::NamedTempFile::new()?;
    let (library, json_path) = (library.to_string_lossy(), json.path().to_string_lossy());
    let environment = [("PYTHONDONTWRITEBYTECODE", "1"), ("LEAKSCOPE_ASAN_CACHE", &*cache.to_string_lossy())];
    let baseline = cache.join("baseline/stock-asan-dynamic.json");
    if !baseline.exists() {
        step_with(&["python3", "conformance/asan.py", "stock", "--suites", "asan-dynamic,lsan-asan"], &environment)?;
    }
    let mut words = vec!["python3", "conformance/asan.py", "runtime", &library, "--json", &json_path];
    words.extend(if fast {
        ["--suites", "asan-dynamic", "--filter", FAST].as_slice()
    } else {
        ["--suites", "asan-dynamic,lsan-asan"].as_slice()
    });
    step_with(&words, &environment)?;
    let scores: Scores = serde_json::from_reader(json.reopen()?)?;
    let path = repo_root().join("conformance/asan-known-failures.toml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    judge(&scores, &toml::from_str(&text).with_context(|| format!("read {}", path.display()))?)
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

fn judge(scores: &Scores, known: &Known) -> Result<()> {
    let (mut wrong, mut passed, mut all) = (Vec::new(), 0, 0);
    for run in &scores.runs {
        let known = known.suites.get(&run.suite);
        for (name, test) in &run.tests {
            let reason = known.and_then(|known| known.get(name));
            match (test.code.as_str(), reason) {
                ("PASS" | "XFAIL", None) => passed += 1,
                ("PASS", Some(_)) => wrong.push(format!("{name} passes; take it off the list")),
                ("FAIL" | "TIMEOUT" | "XPASS", Some(reason)) => eprintln!("known failure: {name}: {reason}"),
                ("FAIL" | "TIMEOUT" | "XPASS", None) => wrong.push(format!("{name} failed")),
                _ => continue,
            }
            all += 1;
        }
    }
    eprintln!("conformance: {passed} of {all} tests pass");
    if !wrong.is_empty() {
        bail!("conformance asan: {}", wrong.join("; "));
    }
    if passed == 0 {
        bail!("conformance asan: no test ran");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(verdicts: &[(&str, &str)]) -> Scores {
        let test = |code: &str| Test { code: code.to_owned() };
        let tests = verdicts.iter().map(|(name, code)| ((*name).to_owned(), test(code))).collect();
        Scores { runs: vec![Run { suite: "asan-dynamic".into(), tests }] }
    }

    #[test]
    fn known_failures_must_fail_and_others_must_not() {
        let known: Known = toml::from_str("[asan-dynamic]\n\"b.c\" = \"why\"\n").expect("good");
        assert!(judge(&scores(&[("a.c", "PASS"), ("b.c", "FAIL"), ("c.c", "UNSUPPORTED")]), &known).is_ok());
        assert!(judge(&scores(&[("a.c", "PASS"), ("b.c", "PASS")]), &known).is_err());
        assert!(judge(&scores(&[("a.c", "FAIL")]), &known).is_err());
        assert!(judge(&scores(&[]), &known).is_err());
    }
}
