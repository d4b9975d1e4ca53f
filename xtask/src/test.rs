//! `test`: everything that CI runs, in the order in which it fails soonest.

use anyhow::{Result, anyhow, bail};

use crate::step::{build_leakscope, step, step_with};
use crate::{check, conformance, fuzz, setup};

const INJECTED: &str = "leakscope-preload";
/// Asks the end-to-end tests for their full length.
const FULL: &[(&str, &str)] = &[("LEAKSCOPE_E2E_FULL", "1")];

/// Runs all checks and tests; `--fast` keeps the long stress tests short and takes a part of the foreign suite.
///
/// # Errors
/// Anything fails.
pub fn run(words: &[String]) -> Result<()> {
    let fast = match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => false,
        ["--fast"] => true,
        ["--kills"] => return alone("a_killed_program_leaves_a_readable_recording"),
        ["--stress"] => return alone("sixty_four_threads_that_fork_and_load_libraries_keep_their_counts"),
        _ => bail!("usage: cargo xtask test [--fast | --kills | --stress]"),
    };
    step(&["cargo", "fmt", "--all", "--check"])?;
    check::run()?;
    // The injected library has no std and brings its own panic handler: it is built alone, or the other crates' features
    // (gimli with std) would come into it. It has no tests of its own; what it is made of is tested in `rt`.
    let others = ["--workspace", "--exclude", INJECTED];
    step(&[&["cargo", "clippy"], &others[..], &["--all-targets", "--", "--deny", "warnings"]].concat())?;
    step(&["cargo", "clippy", "--package", INJECTED, "--", "--deny", "warnings"])?;
    build_leakscope()?;
    conformance::preload(fast)?;
    conformance::memcheck(fast)?;
    fuzz::all()?;
    // Last, so that what a reader sees at the end is the test runner's own summary.
    let path = path_of_tests()?;
    let full = if fast { &[] } else { FULL };
    step_with(&[&["cargo", "test"], &others[..]].concat(), &[&[("PATH", path.as_str())], full].concat())
}

/// What `setup` installed below `target` comes first, where it is.
fn path_of_tests() -> Result<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let all = setup::own_programs().into_iter().chain(std::env::split_paths(&path));
    std::env::join_paths(all)?.into_string().map_err(|path| anyhow!("PATH is not UTF-8: {}", path.display()))
}

/// One of the long tests, at its full length.
fn alone(name: &str) -> Result<()> {
    build_leakscope()?;
    let words = ["cargo", "test", "--package", "leakscope-e2e", "--test", "robustness", "--", "--exact", name];
    step_with(&words, FULL)
}
