//! Control groups by number: version 2, where a group's number is its directory's inode.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use leakscope_ebpf::Cgroup;

/// Directories that are looked at.
const MOST_GROUPS: usize = 100_000;

/// Names of control groups.
#[derive(Default)]
pub struct Cgroups {
    paths: HashMap<u64, String>,
}

impl Cgroups {
    /// Reads the hierarchy, if it is mounted.
    pub fn read() -> Self {
        let mut groups = Self::default();
        let Some(root) = root() else { return groups };
        let mut open = vec![(root.clone(), String::from("/"))];
        while let Some((path, name)) = open.pop() {
            if let Ok(metadata) = std::fs::metadata(&path) {
                groups.paths.insert(metadata.ino(), name.clone());
            }
            if groups.paths.len() + open.len() >= MOST_GROUPS {
                break;
            }
            for entry in std::fs::read_dir(&path).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    let own = entry.file_name().to_string_lossy().into_owned();
                    let own: String = own.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
                    open.push((entry.path(), format!("{}/{own}", name.trim_end_matches('/'))));
                }
            }
        }
        groups
    }

    /// The path of a group below its root.
    pub fn name(&self, id: u64) -> String {
        match self.paths.get(&id) {
            Some(name) => name.clone(),
            None => format!("cgroup {id} (gone, or not visible)"),
        }
    }

    /// The group of a directory, or of a path below the root of the hierarchy.
    pub fn find(path: &Path) -> Result<Cgroup> {
        let root = root().context("--cgroup: no cgroup2 file system is mounted; mount one, or leave this out")?;
        let asked =
            if path.starts_with(&root) { path.to_owned() } else { root.join(path.strip_prefix("/").unwrap_or(path)) };
        let shown = asked.display();
        let full = asked.canonicalize().with_context(|| format!("--cgroup: {shown}"))?;
        let below = full.strip_prefix(root.canonicalize()?);
        ensure!(full.is_dir() && below.is_ok(), "--cgroup: {shown} is no control group below {}", root.display());
        let level = below.map_or(0, |below| below.components().count() as u32);
        Ok(Cgroup { id: std::fs::metadata(&full)?.ino(), level })
    }
}

/// Where version 2 is mounted.
fn root() -> Option<PathBuf> {
    decode_root(&std::fs::read_to_string("/proc/self/mounts").ok()?)
}

fn decode_root(mounts: &str) -> Option<PathBuf> {
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"))?;
    Some(PathBuf::from(line.split(' ').nth(1)?.replace("\\040", " ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found() {
        let mounts = "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\ncgroup2 /sys/fs/cgroup/uni\\040fied cgroup2 rw 0 0\n";
        assert_eq!(decode_root(mounts), Some(PathBuf::from("/sys/fs/cgroup/uni fied")));
        assert_eq!(decode_root("proc /proc proc rw 0 0\n"), None);
    }
}
