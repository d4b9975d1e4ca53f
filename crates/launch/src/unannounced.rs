//! Processes that are about to ask for a ledger: forked or started by a traced process, not heard of yet.
//!
//! A program that makes itself a daemon forks and ends at once; the child's Hello may come later than the
//! parent's end. Such a child can be told from others: a forked one still maps its parent's ledger, a started
//! one has our socket's name in its environment. Only processes younger than the first one can be it, and the
//! kernel counts process ids upwards, so in most cases there is none to look at.

use std::fs;

use leakscope_process::maps::read_maps;

/// What our processes are known by.
#[derive(Debug)]
pub(crate) struct Marks {
    /// Inodes of the ledgers that we made.
    pub(crate) inodes: Vec<u64>,
    /// `LEAKSCOPE_CTL=...`, the variable that the injected code looks for.
    pub(crate) variable: Vec<u8>,
}

/// Whether there is such a process, younger than `first`.
pub(crate) fn exist(first: u32, marks: &Marks) -> bool {
    let Some(last) = last_pid() else { return false };
    if last == first {
        return false;
    }
    // Process ids wrap around at their maximum.
    let young = |pid: u32| if last > first { (first + 1..=last).contains(&pid) } else { pid > first || pid <= last };
    let Ok(entries) = fs::read_dir("/proc") else { return false };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .any(|pid| young(pid) && pid != std::process::id() && is_marked(pid, marks))
}

/// The process id that was given away last, in our namespace. Source: proc_loadavg(5).
fn last_pid() -> Option<u32> {
    fs::read_to_string("/proc/loadavg").ok()?.split_ascii_whitespace().nth(4)?.parse().ok()
}

fn is_marked(pid: u32, marks: &Marks) -> bool {
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    // What a forked process shows here is its parent's environment at the start, whatever became of it since.
    let named = environment.split(|&byte| byte == 0).any(|variable| variable == marks.variable);
    if !named {
        return false;
    }
    let maps = read_maps(pid).unwrap_or_default();
    let mut ledgers =
        maps.iter().filter(|mapping| mapping.name.as_encoded_bytes().starts_with(b"/memfd:leakscope-ledger"));
    ledgers.clone().next().is_none() || ledgers.any(|mapping| marks.inodes.contains(&mapping.inode))
}

/// Whether a running process surely does not map the file with this inode; `false` when its maps cannot be read.
pub(crate) fn maps_no(pid: u32, inode: u64) -> bool {
    // The maps of a process that ends are empty, and may become so between two reads of the file: what was seen then is
    // only a part, but a second look finds nothing.
    let surely =
        || read_maps(pid).is_ok_and(|maps| !maps.is_empty() && maps.iter().all(|mapping| mapping.inode != inode));
    surely() && surely()
}
