//! The test suites of coreutils, perl and python: each test that passes natively has to pass under leakscope, in the same
//! way. Which test is natively too slow for that is measured, in the processor's time.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use leakscope_e2e::{Ending, Finished, Run, conformance_cache, fixtures_dir, leakscope_bin, repo_root};

use super::results::{Outcome, Results};
use crate::step::on_path;

/// Natively: what takes longer is left out.
const NATIVE_SECONDS: f64 = 2.0;
const NATIVE_LIMIT: Duration = Duration::from_secs(30);
const LIMIT: Duration = Duration::from_secs(240);

/// A suite and what became of it.
#[derive(Debug)]
pub struct Suite {
    /// Its name in the table.
    pub name: &'static str,
    version: String,
    tests: usize,
    run: usize,
    passed: usize,
    /// Tests that pass natively and not here.
    pub failed: Vec<String>,
    seconds: [f64; 2],
    days: String,
}

impl Suite {
    /// What is known of a plan's tests.
    fn of(plan: &Plan, results: &Results) -> Suite {
        let passed = results.with(Outcome::Passes, &plan.tests);
        let failed = results.with(Outcome::Fails, &plan.tests);
        let known = passed.iter().chain(&failed).filter_map(|test| results.of(test));
        let seconds = known.fold([0.0; 2], |sum, one| [sum[0] + one.seconds[0], sum[1] + one.seconds[1]]);
        Suite {
            name: plan.name,
            version: plan.version.clone(),
            tests: plan.tests.len(),
            run: plan.tests.iter().filter(|test| results.of(test).is_some()).count(),
            passed: passed.len(),
            failed,
            seconds,
            days: results.days(&plan.tests),
        }
    }

    /// Its row of the table.
    pub fn text(&self) -> String {
        format!(
            "| {} {} | {} | {} | {} | {} | {:.0} | {:.0} | {} |\n",
            self.name,
            self.version,
            self.tests,
            self.run,
            self.passed + self.failed.len(),
            self.passed,
            self.seconds[0],
            self.seconds[1],
            self.days
        )
    }
}

/// How much of the suites to run.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// What passed in an earlier run is not run again.
    pub resume: bool,
    /// No test of a suite is begun later.
    pub limit: Option<Duration>,
}

/// What to run, and how.
struct Plan {
    name: &'static str,
    version: String,
    script: PathBuf,
    /// What comes before the test's name among the script's arguments; a fresh folder stands for [`BUILD`].
    words: Vec<String>,
    tests: Vec<String>,
    /// What the test starts is watched as well.
    children: bool,
    passes: fn(&Finished) -> bool,
}

const BUILD: &str = "(a fresh folder)";

/// All suites, in the order of the table.
pub const NAMES: [&str; 3] = ["coreutils' tests", "perl's tests", "python's tests"];

/// Runs the suites that are wanted and can be had.
///
/// # Errors
/// A source package cannot be fetched, or a test cannot be started.
pub fn run(is_wanted: &dyn Fn(&str) -> bool, effort: Effort) -> Result<Vec<Suite>> {
    let mut done = Vec::new();
    for (name, plan) in [
        ("coreutils' tests", coreutils as fn() -> Result<Option<Plan>>),
        ("perl's tests", perl),
        ("python's tests", python),
    ] {
        if !is_wanted(name) {
            continue;
        }
        match plan()? {
            Some(plan) => done.push(carry_out(&plan, effort)?),
            None => eprintln!("left out: {name}"),
        }
    }
    Ok(done)
}

fn carry_out(plan: &Plan, effort: Effort) -> Result<Suite> {
    let mut results = Results::open(plan.name, &plan.version, effort.resume)?;
    let begin = Instant::now();
    for test in &plan.tests {
        if effort.limit.is_some_and(|limit| begin.elapsed() >= limit) {
            break;
        }
        if results.of(test).is_some_and(|tested| tested.outcome != Outcome::Fails) {
            continue;
        }
        let native = one(plan, test, "", NATIVE_LIMIT)?;
        let natively = native.cpu.as_secs_f64();
        if natively > NATIVE_SECONDS || !(plan.passes)(&native) {
            let is_slow = natively > NATIVE_SECONDS || native.ending == Ending::TimedOut;
            let outcome = if is_slow { Outcome::Slow } else { Outcome::FailsNatively };
            results.add(test, outcome, [natively, 0.0], "")?;
            continue;
        }
        let prefix = format!(
            "{} memcheck -q --leak-check=no --trace-children={} --log-file=/dev/null --",
            leakscope_bin().display(),
            if plan.children { "yes" } else { "no" }
        );
        let ours = one(plan, test, &prefix, LIMIT)?;
        let outcome = if (plan.passes)(&ours) { Outcome::Passes } else { Outcome::Fails };
        // One line each, so that a run that is cut short has told what it found.
        println!("{}: {test}: {}", plan.name, outcome.word());
        let said = format!("{:?}\n{}\n{}", ours.ending, ours.stderr, String::from_utf8_lossy(&ours.stdout));
        results.add(test, outcome, [natively, ours.cpu.as_secs_f64()], &said)?;
    }
    let suite = Suite::of(plan, &results);
    print!("{}", suite.text());
    for test in &suite.failed {
        println!("{}: {test}: see {}", plan.name, results.output_of(test).display());
    }
    Ok(suite)
}

/// Small ones first, so that a run that is cut short has run most of them. Folders are large.
fn small_first(tests: &mut [String], path_of: impl Fn(&str) -> PathBuf) {
    tests.sort_by_cached_key(|test| {
        let known = std::fs::metadata(path_of(test)).ok().filter(|known| known.is_file());
        (known.map_or(u64::MAX, |known| known.len()), test.clone())
    });
}

fn one(plan: &Plan, test: &str, prefix: &str, limit: Duration) -> Result<Finished> {
    let scratch = tempfile::tempdir()?;
    let build = scratch.path().join("build");
    let words = plan.words.iter().map(|word| if word == BUILD { build.display().to_string() } else { word.clone() });
    Run::new("sh")
        .arg(&plan.script)
        .args(words)
        .arg(test)
        .env("M", prefix)
        .env("PYTHONHASHSEED", "0")
        .dir(scratch.path())
        .limit(limit)
        .finish()
}

fn ends_with_0(finished: &Finished) -> bool {
    finished.ending == Ending::Exit(0)
}

/// TAP: perl's tests end with 0 whatever they found.
fn says_all_ok(finished: &Finished) -> bool {
    let text = String::from_utf8_lossy(&finished.stdout);
    let failed = text.lines().any(|line| line.starts_with("not ok") && !line.contains("# TODO"));
    let last = text.lines().filter(|line| line.starts_with("ok") || line.starts_with("not ok")).count();
    let plan = text.lines().find_map(|line| line.strip_prefix("1..")?.split(' ').next()?.parse::<usize>().ok());
    ends_with_0(finished) && !failed && last > 0 && plan == Some(last)
}

fn script(name: &str) -> PathBuf {
    fixtures_dir().join("real").join(name)
}

/// The source of a package, below the cache of the other foreign tests.
fn source(package: &str) -> Result<PathBuf> {
    let cache = conformance_cache().join(package);
    let program = format!(
        "import sys; sys.path.insert(0, 'conformance'); import fetch; print(fetch.source('{}', '{package}'))",
        cache.display()
    );
    let output = Command::new("python3").args(["-B", "-c", &program]).current_dir(repo_root()).output()?;
    let path = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(path.into())
}

fn version_in(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    name.split_once('-').map_or(name.clone(), |(_, version)| version.to_owned())
}

/// All tests of the list, those that need root or much time among them: they skip themselves.
fn coreutils() -> Result<Option<Plan>> {
    let source = source("coreutils")?;
    let list = std::fs::read_to_string(source.join("tests/local.mk")).context("tests/local.mk")?;
    let (_, list) = list.split_once("\nall_tests =").context("tests/local.mk has no all_tests")?;
    let mut tests: Vec<String> = list
        .lines()
        .map(|line| line.trim().trim_end_matches('\\').trim())
        .take_while(|line| !line.starts_with('$') || line.starts_with("$(all_root"))
        .filter(|line| line.starts_with("tests/") && (line.ends_with(".sh") || line.ends_with(".pl")))
        .map(str::to_owned)
        .collect();
    small_first(&mut tests, |test| source.join(test));
    Ok(Some(Plan {
        name: NAMES[0],
        version: version_in(&source),
        script: script("coreutils.sh"),
        words: vec![source.display().to_string(), BUILD.to_owned()],
        tests,
        children: true,
        passes: ends_with_0,
    }))
}

fn perl() -> Result<Option<Plan>> {
    if !on_path("perl") {
        return Ok(None);
    }
    let source = source("perl")?;
    let mut tests = Vec::new();
    for folder in ["base", "cmd", "comp", "io", "re", "uni", "mro", "op"] {
        for entry in std::fs::read_dir(source.join("t").join(folder))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.ends_with(".t") {
                tests.push(format!("t/{folder}/{name}"));
            }
        }
    }
    small_first(&mut tests, |test| source.join(test));
    Ok(Some(Plan {
        name: NAMES[1],
        version: version_in(&source),
        script: script("perl.sh"),
        words: vec![source.display().to_string()],
        tests,
        children: false,
        passes: says_all_ok,
    }))
}

/// The first python that has its tests: the system's, or the one on PATH.
fn python() -> Result<Option<Plan>> {
    const LIST: &str = "import sys, test.test_grammar, test.regrtest\n\
                        from test.libregrtest import runtest\n\
                        print(sys.executable, sys.version.split()[0], test.__path__[0], *runtest.findtests())";
    for python in ["/usr/bin/python3", "python3"] {
        let output = Command::new(python).args(["-c", LIST]).output();
        let Some(output) = output.ok().filter(|output| output.status.success()) else { continue };
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut words = text.split_whitespace().map(str::to_owned);
        let (Some(program), Some(version), Some(folder)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        let mut tests: Vec<String> = words.collect();
        small_first(&mut tests, |test| Path::new(&folder).join(format!("{test}.py")));
        return Ok(Some(Plan {
            name: NAMES[2],
            version,
            script: script("python.sh"),
            words: vec![program, BUILD.to_owned()],
            tests,
            children: false,
            passes: ends_with_0,
        }));
    }
    eprintln!("no python3 has its tests; next: apt-get install libpython3.11-testsuite");
    Ok(None)
}
