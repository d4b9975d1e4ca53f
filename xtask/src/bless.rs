//! `bless`: lets the tests write what they saw into their golden files. Read the change before you commit it.

use anyhow::Result;

use crate::step::{build_leakscope, step, step_with};

/// Rewrites every golden file.
///
/// # Errors
/// A test fails for another reason than a golden file.
pub fn run() -> Result<()> {
    build_leakscope()?;
    step_with(&["cargo", "test", "--workspace"], &[("BLESS", "1")])?;
    step(&["git", "status", "--short"])
}
