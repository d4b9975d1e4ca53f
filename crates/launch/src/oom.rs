//! Whether the kernel's OOM killer has struck in our control group. Source: cgroup-v2.rst, `memory.events`.

use std::fs;
use std::path::PathBuf;

/// The count of OOM kills at one moment, to compare with a later one.
#[derive(Debug, Clone)]
pub(crate) struct OomWatch {
    /// The file that counts, and the line's key in it.
    file: Option<(PathBuf, &'static str)>,
    before: u64,
}

impl OomWatch {
    /// Reads the count now. The target starts in our control group.
    pub(crate) fn start() -> Self {
        let file = candidates().into_iter().find(|(path, key)| read_count(path, key).is_some());
        let before = file.as_ref().and_then(|(path, key)| read_count(path, key)).unwrap_or(0);
        Self { file, before }
    }

    /// Whether the count has risen since `start`; `false` when it is not known.
    pub(crate) fn struck(&self) -> bool {
        self.file.as_ref().and_then(|(path, key)| read_count(path, key)).is_some_and(|now| now > self.before)
    }
}

/// Version 2's file, version 1's, and for the root group the count of the whole machine.
fn candidates() -> Vec<(PathBuf, &'static str)> {
    let text = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut files = Vec::new();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (fields.next(), fields.next()) else { continue };
        if controllers.is_empty() {
            files.push((PathBuf::from(format!("/sys/fs/cgroup{group}/memory.events")), "oom_kill"));
        } else if controllers.split(',').any(|controller| controller == "memory") {
            files.push((PathBuf::from(format!("/sys/fs/cgroup/memory{group}/memory.oom_control")), "oom_kill"));
        }
    }
    files.push((PathBuf::from("/proc/vmstat"), "oom_kill"));
    files
}

fn read_count(path: &PathBuf, key: &str) -> Option<u64> {
    decode_count(&fs::read_to_string(path).ok()?, key)
}

fn decode_count(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        if name == key { value.trim().parse().ok() } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_found_by_their_whole_name() {
        let text = "low 0\noom 4\noom_kill 3\noom_group_kill 9\n";
        assert_eq!(decode_count(text, "oom_kill"), Some(3));
        assert_eq!(decode_count("oom_kill_disable 0\nunder_oom 0\n", "oom_kill"), None);
        assert_eq!(decode_count("oom_kill many\n", "oom_kill"), None);
    }

    #[test]
    fn nothing_strikes_in_no_time() {
        assert!(!OomWatch::start().struck());
    }
}
