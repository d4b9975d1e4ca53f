//! `test`: everything that CI runs, in the order in which it fails soonest.

use anyhow::{Result, bail};

use crate::step::{build_leakscope, step, step_with};
use crate::{check, conformance};

const INJECTED: &str = "leakscope-preload";

/// Runs all checks and tests; `--fast` keeps the long stress tests short and takes a part of the foreign suite.
///
/// # Errors
/// Anything fails.
pub fn run(words: &[String]) -> Result<()> {
    let fast = match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => false,
        ["--fast"] => true,
        _ => bail!("usage: cargo xtask test [--fast]"),
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
    // Last, so that what a reader sees at the end is the test runner's own summary.
    let env: &[(&str, &str)] = if fast { &[] } else { &[("LEAKSCOPE_E2E_FULL", "1")] };
    step_with(&[&["cargo", "test"], &others[..]].concat(), env)
}
