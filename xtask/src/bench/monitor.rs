//! `bench monitor`: what the verdicts of `leakscope monitor` are worth, on series whose truth is known.

use anyhow::{Context, Result};
use leakscope_e2e::repo_root;
use leakscope_trend::trial;

/// Series of each kind.
const SEEDS: u64 = 5;
const QUICK_SEEDS: u64 = 2;
const BEGIN: &str = "<!-- bench monitor -->\n";
const END: &str = "<!-- end -->\n";

/// Runs all series, and writes the table into docs/monitor.md when `write` is set.
///
/// # Errors
/// The document cannot be written, or has no place for the table.
pub fn table(quick: bool, write: bool) -> Result<String> {
    let table = trial::table(if quick { QUICK_SEEDS } else { SEEDS }, "");
    if write {
        let path = repo_root().join("docs/monitor.md");
        let text = std::fs::read_to_string(&path)?;
        let (before, rest) = text.split_once(BEGIN).context("docs/monitor.md has no place for the table")?;
        let (_, after) = rest.split_once(END).context("docs/monitor.md has no end of the table")?;
        std::fs::write(&path, format!("{before}{BEGIN}{table}{END}{after}"))?;
    }
    Ok(table)
}
