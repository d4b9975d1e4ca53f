//! What `leakscope monitor` must say of our leaking module when its scan is due: each site of the table that `leaky.c` begins
//! with, as far as kmemleak sees it, and nothing of the module's twin.

use anyhow::{Result, ensure};

use super::kmemleak::table;
use super::{Kernel, Sections};

/// Judges `scripts/monitor.sh`.
pub(super) fn judge(_: &Kernel, sections: &Sections) -> Result<()> {
    let once = sections.text("once", 1)?;
    let rows = table()?;
    let mut unseen = 0;
    for row in &rows {
        let found = objects(once, &row.function);
        let expected = if row.kmemleak.is_some() { row.blocks } else { 0 };
        ensure!(found <= expected, "{row:?}: {found} objects: {once}");
        unseen += expected - found;
    }
    // What a stale pointer still points to, kmemleak does not see.
    ensure!(unseen <= 2, "{unseen} objects are not there: {once}");
    let alarms = once.lines().filter(|line| line.starts_with("the kernel leaks at ")).count();
    let sites = rows.iter().filter(|row| objects(once, &row.function) > 0).count();
    ensure!(alarms == sites, "{alarms} alarms, {sites} of them ours: {once}");
    ensure!(once.contains("growing: the kernel leaks at ") && once.contains("(new): "), "an alarm is said: {once}");
    let again = sections.text("again", 1)?;
    ensure!(!again.contains("growing: the kernel leaks at "), "an alarm is said twice: {again}");
    let status = sections.text("status", 0)?;
    ensure!(status.contains("open alarms:") && status.contains("kernel:slab"), "{status}");
    Ok(())
}

/// How many objects of a function are said to leak.
fn objects(once: &str, function: &str) -> u64 {
    let title = once.lines().find_map(|line| line.strip_prefix(&format!("the kernel leaks at {function}: ")));
    let count = title.and_then(|title| title.split_once(" in ")?.1.split(' ').next()?.parse().ok());
    count.unwrap_or(0)
}
