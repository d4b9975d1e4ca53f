//! `test`: everything that CI runs, in the order in which it fails soonest.

use anyhow::{Result, anyhow, bail};
use leakscope_e2e::target_dir;

use crate::step::{build_leakscope, step, step_with};
use crate::{accuracy, check, conformance, fuzz, setup, vm};

/// Injected libraries have no std and bring their own panic handlers: each is built alone, or the other crates' features
/// (gimli with std) would come into it. They have no tests of their own; what they are made of is tested in `rt` and
/// `asan_rt`.
const INJECTED: [&str; 2] = ["leakscope-preload", "leakscope-asan"];
/// Asks the end-to-end tests for their full length.
const FULL: &[(&str, &str)] = &[("LEAKSCOPE_E2E_FULL", "1")];
/// The fast run draws the same random cases each time, and so do its fuzzers: it judges a change. New cases are drawn by the
/// full one.
const FAST: &[(&str, &str)] = &[("PROPTEST_RNG_SEED", "20251")];

/// Runs all checks and tests; `--fast` keeps the long stress tests short and takes a part of the foreign suite.
///
/// # Errors
/// Anything fails.
pub fn run(words: &[String]) -> Result<()> {
    let fast = match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => false,
        ["--fast"] => true,
        ["--kills"] => return alone("robustness", &["a_killed_program_leaves_a_readable_recording"]),
        ["--stress"] => {
            let of_run_and_memcheck = [
                "sixty_four_threads_that_fork_and_load_libraries_keep_their_counts",
                "everything_at_once_on_the_simulated_cpu",
            ];
            alone("robustness", &of_run_and_memcheck)?;
            return alone("asan_cases", &["stress::threads_that_fork_and_load_libraries_are_left_alone"]);
        }
        _ => bail!("usage: cargo xtask test [--fast | --kills | --stress]"),
    };
    step(&["cargo", "fmt", "--all", "--check"])?;
    check::run()?;
    let others = ["--workspace", "--exclude", INJECTED[0], "--exclude", INJECTED[1]];
    step(&[&["cargo", "clippy"], &others[..], &["--all-targets", "--", "--deny", "warnings"]].concat())?;
    for package in INJECTED {
        step(&["cargo", "clippy", "--package", package, "--", "--deny", "warnings"])?;
    }
    build_leakscope()?;
    conformance::preload(fast)?;
    conformance::memcheck(fast)?;
    if conformance::asan::is_possible() {
        conformance::asan::run(fast)?;
    } else {
        eprintln!("conformance asan is left out: it needs clang-19, llvm-19 and libclang-rt-19-dev");
    }
    accuracy::run(&["memcheck".to_owned(), "--quick".to_owned()])?;
    vm::for_tests(fast)?;
    fuzz::all(fast)?;
    lake()?;
    // Last, so that what a reader sees at the end is the test runner's own summary.
    let path = path_of_tests()?;
    let length = if fast { FAST } else { FULL };
    step_with(
        &[&["cargo", "test", "--no-fail-fast"], &others[..]].concat(),
        &[&[("PATH", path.as_str())], length].concat(),
    )
}

/// `leakscope-lake` is a workspace of its own, with a folder of its own below `target`, so that nobody else builds DataFusion.
fn lake() -> Result<()> {
    let (manifest, target) = ("scale/Cargo.toml", target_dir().join("scale"));
    let target = target.to_str().ok_or_else(|| anyhow!("target's path is not UTF-8: {}", target.display()))?;
    step(&["cargo", "fmt", "--manifest-path", manifest, "--check"])?;
    step(&["cargo", "test", "--manifest-path", manifest, "--locked", "--target-dir", target])
}

/// What `setup` installed below `target` comes first, where it is.
fn path_of_tests() -> Result<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let all = setup::own_programs().into_iter().chain(std::env::split_paths(&path));
    std::env::join_paths(all)?.into_string().map_err(|path| anyhow!("PATH is not UTF-8: {}", path.display()))
}

/// Some of a file's long tests, at their full length, one after the other.
fn alone(file: &str, names: &[&str]) -> Result<()> {
    build_leakscope()?;
    let words = ["cargo", "test", "--package", "leakscope-e2e", "--test", file, "--", "--test-threads=1", "--exact"];
    step_with(&[&words, names].concat(), FULL)
}
