//! What Debian's own kernel must show: it has no kmemleak, and that is said in one sentence.

use anyhow::{Result, ensure};

use super::{Kernel, Sections};

/// Judges `scripts/stock.sh`.
pub(super) fn judge(kernel: &Kernel, sections: &Sections) -> Result<()> {
    let status = sections.text("status", 0)?;
    ensure!(status.starts_with(&format!("Linux {}, configuration: /boot/config-", kernel.release)), "{status}");
    let row = |name: &str| status.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    for (name, word) in [("kmemleak", " no "), ("BPF", " yes "), ("BTF", " yes "), ("debugfs", " off ")] {
        ensure!(row(name).contains(word), "{name}: `{}` instead of{word}\n{status}", row(name));
    }
    let refusal = sections.text("scan", 2)?;
    ensure!(
        refusal.contains("built without CONFIG_DEBUG_KMEMLEAK") && refusal.trim().lines().count() == 1,
        "{refusal}"
    );
    Ok(())
}
