//! `conformance`: Memcheck's own regression tests, scored by conformance/memcheck.py and held against the list of
//! known failures. A known failure that passes is an error too, so that the list cannot grow stale.

pub mod asan;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use leakscope_e2e::{conformance_cache, leakscope_bin, repo_root};
use serde::Deserialize;

use crate::step::{build_leakscope, step_with};

/// In the fast subset: one test or two of every kind, together some seconds.
const FAST: &str = "^(leak-cases-full|leak-tree|leak-cycle|lks|doublefree|badfree|mismatches|new_nothrow|trivialleak\
                    |realloc1|sbfragment|suppfree|nanoleak_supp|memalign2)$";

/// The same for the simulated CPU: leaks, wrong calls, invalid accesses, signals, system calls, client requests.
const FAST_MEMCHECK: &str = "^(leak-cases-full|leak-tree|doublefree|mismatches|badrw|badjump|badaddrvalue|errs1|malloc1\
                             |realloc3|signal2|threadname|writev1|execve1|sigaltstack|mempool|custom_alloc|suppfree)$";

#[derive(Deserialize)]
struct Outcome {
    results: Vec<TestResult>,
}

#[derive(Deserialize)]
struct TestResult {
    name: String,
    category: String,
    needs: String,
    own: String,
    passed: Option<bool>,
}

#[derive(Deserialize)]
struct Known {
    /// For `leakscope run`: test name to the reason why it cannot pass.
    preload: BTreeMap<String, String>,
    /// The same for `leakscope memcheck`.
    #[serde(default)]
    memcheck: BTreeMap<String, String>,
}

/// What a test needs that the simulated CPU does not do: it reports no use of undefined values.
const DEFINEDNESS: &str = "definedness";

/// Runs `memcheck` (every test, with the simulated CPU) or `preload` (those that an interposer can serve, with `run`).
///
/// # Errors
/// The suite cannot be fetched or built, or a test's verdict is not the expected one.
pub fn run(words: &[String]) -> Result<()> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["asan"] => return asan::run(false),
        ["asan", "--fast"] => return asan::run(true),
        _ => build_leakscope()?,
    }
    match words[..] {
        ["preload"] => preload(false),
        ["preload", "--fast"] => preload(true),
        ["memcheck"] => memcheck(false),
        ["memcheck", "--fast"] => memcheck(true),
        _ => bail!("usage: cargo xtask conformance memcheck|preload|asan [--fast]"),
    }
}

/// The tests that need no more than an interposer, held against the list of known failures.
///
/// # Errors
/// The suite cannot be fetched or built, or a test's verdict is not the expected one.
pub fn preload(fast: bool) -> Result<()> {
    let selection: &[&str] = if fast { &["--needs", "preload", "--only", FAST] } else { &["--needs", "preload"] };
    judge(&score("run", selection)?, &known()?.preload)
}

/// Every test; those of definedness are counted, and not held against the list.
///
/// # Errors
/// The suite cannot be fetched or built, or a test's verdict is not the expected one.
pub fn memcheck(fast: bool) -> Result<()> {
    let selection: &[&str] = if fast { &["--only", FAST_MEMCHECK] } else { &[] };
    let mut outcome = score("memcheck", selection)?;
    let mut families: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for result in outcome.results.iter().filter(|result| result.own.is_empty()) {
        let family = if result.needs == DEFINEDNESS { DEFINEDNESS } else { &result.category };
        let (passed, all) = families.entry(family.to_owned()).or_default();
        *passed += usize::from(result.passed == Some(true));
        *all += usize::from(result.passed.is_some());
    }
    for (family, (passed, all)) in families {
        eprintln!("{family:24} {passed:3} of {all:3}");
    }
    outcome.results.retain(|result| result.needs != DEFINEDNESS);
    judge(&outcome, &known()?.memcheck)
}

fn known() -> Result<Known> {
    let path = repo_root().join("conformance/known-failures.toml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("read {}", path.display()))
}

fn score(command: &str, selection: &[&str]) -> Result<Outcome> {
    let cache = conformance_cache().join("valgrind");
    let json = tempfile::NamedTempFile::new()?;
    let tool = format!("{} {command}", leakscope_bin().display());
    let (cache, json_path) = (cache.to_string_lossy(), json.path().to_string_lossy());
    let fixed = ["python3", "conformance/memcheck.py", "run", "--tool", &tool, "--cache", &cache, "--json", &json_path];
    let words: Vec<&str> = fixed.iter().copied().chain(["-v"]).chain(selection.iter().copied()).collect();
    step_with(&words, &[("PYTHONDONTWRITEBYTECODE", "1")])?;
    Ok(serde_json::from_reader(json.reopen()?)?)
}

fn judge(outcome: &Outcome, known: &BTreeMap<String, String>) -> Result<()> {
    let counted = outcome.results.iter().filter(|result| result.own.is_empty());
    let failed: BTreeSet<&str> =
        counted.clone().filter(|result| result.passed == Some(false)).map(|result| result.name.as_str()).collect();
    let passed: BTreeSet<&str> =
        counted.filter(|result| result.passed == Some(true)).map(|result| result.name.as_str()).collect();
    let mut wrong = Vec::new();
    for name in &failed {
        match known.get(*name) {
            Some(reason) => eprintln!("known failure: {name}: {reason}"),
            None => wrong.push(format!("{name} failed")),
        }
    }
    for name in passed.iter().filter(|name| known.contains_key(**name)) {
        wrong.push(format!("{name} passes; take it off conformance/known-failures.toml"));
    }
    eprintln!("conformance: {} of {} tests pass", passed.len(), passed.len() + failed.len());
    if !wrong.is_empty() {
        bail!("conformance: {}", wrong.join("; "));
    }
    if passed.is_empty() {
        bail!("conformance: no test ran");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(verdicts: &[(&str, bool)]) -> Outcome {
        let results = verdicts
            .iter()
            .map(|(name, passed)| TestResult {
                name: name.to_string(),
                category: "leak".to_owned(),
                needs: "preload".to_owned(),
                own: String::new(),
                passed: Some(*passed),
            })
            .collect();
        Outcome { results }
    }

    #[test]
    fn a_known_failure_that_passes_is_an_error() {
        let known = BTreeMap::from([("overlap".to_owned(), "reads".to_owned())]);
        assert!(judge(&outcome(&[("lks", true), ("overlap", false)]), &known).is_ok());
        let stale = judge(&outcome(&[("lks", true), ("overlap", true)]), &known);
        assert!(stale.unwrap_err().to_string().contains("take it off"));
        let broken = judge(&outcome(&[("lks", false), ("overlap", false)]), &known);
        assert!(broken.unwrap_err().to_string().contains("lks failed"));
    }
}
