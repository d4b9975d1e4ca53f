//! Control groups: who is in which, what they may have, and how the kernel presses. Source: cgroup-v2.rst.

use crate::Places;

const ROOT: &str = "/sys/fs/cgroup";

/// What a group's memory controller says. `None` is unknown or unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GroupMemory {
    /// Bytes now.
    pub current_bytes: Option<u64>,
    /// The lowest `memory.max` of the group and of those above it.
    pub limit_bytes: Option<u64>,
    /// How often allocations met `memory.max`.
    pub max_events: u64,
    /// How often `memory.high` was met.
    pub high_events: u64,
    /// Processes that the OOM killer ended.
    pub oom_kills: u64,
    /// Share of the last 10 seconds in which some task waited for memory, per cent.
    pub some_pressure: Option<f64>,
    /// Likewise: in which all of them waited.
    pub full_pressure: Option<f64>,
}

/// The group of a process, in version 2's hierarchy, or in version 1's hierarchy of memory.
pub fn read_group(places: &Places, pid: u32) -> Option<String> {
    decode_group(&places.read(&format!("/proc/{pid}/cgroup"))?)
}

fn decode_group(text: &str) -> Option<String> {
    let mut unified = None;
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (fields.next(), fields.next()) else { continue };
        if controllers.split(',').any(|controller| controller == "memory") {
            return Some(group.to_owned());
        }
        if controllers.is_empty() {
            unified = Some(group.to_owned());
        }
    }
    unified
}

/// The processes of a group and of those below it.
pub fn read_members(places: &Places, group: &str) -> Vec<u32> {
    let mut members = Vec::new();
    let mut folders = vec![places.path(format!("{ROOT}{}", absolute(group)))];
    while let Some(folder) = folders.pop() {
        let text = std::fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        members.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        folders.extend(entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|e| e.path()));
    }
    members.sort_unstable();
    members
}

/// What the memory controller says of a group.
pub fn read_memory(places: &Places, group: &str) -> GroupMemory {
    let group = absolute(group);
    let file = |group: &str, name: &str| places.read(&format!("{ROOT}{group}/{name}"));
    let mut memory = GroupMemory {
        current_bytes: file(&group, "memory.current").and_then(|text| text.trim().parse().ok()),
        ..GroupMemory::default()
    };
    for line in file(&group, "memory.events").unwrap_or_default().lines() {
        let Some((key, value)) = line.split_once(' ') else { continue };
        let value = value.trim().parse().unwrap_or(0);
        match key {
            "max" => memory.max_events = value,
            "high" => memory.high_events = value,
            "oom_kill" => memory.oom_kills = value,
            _ => {}
        }
    }
    let pressure = decode_pressure(&file(&group, "memory.pressure").unwrap_or_default());
    (memory.some_pressure, memory.full_pressure) = pressure;
    let mut at = group.as_str();
    while !at.is_empty() {
        let limit = file(at, "memory.max").and_then(|text| text.trim().parse::<u64>().ok());
        memory.limit_bytes = [memory.limit_bytes, limit].into_iter().flatten().min();
        at = at.rfind('/').map_or("", |slash| &at[..slash]);
    }
    memory
}

/// Shares of the last ten seconds: some, full.
pub fn decode_pressure(text: &str) -> (Option<f64>, Option<f64>) {
    let line = |word: &str| {
        let line = text.lines().find(|line| line.split(' ').next() == Some(word))?;
        let value = line.split(' ').find_map(|field| field.strip_prefix("avg10="))?;
        value.parse().ok().filter(|share: &f64| share.is_finite())
    };
    (line("some"), line("full"))
}

/// Groups are written with and without the slash in front; `..` leads nowhere.
fn absolute(group: &str) -> String {
    let parts = group.split('/').filter(|part| !part.is_empty() && *part != "." && *part != "..");
    parts.fold(String::new(), |path, part| path + "/" + part)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn write(places: &Places, path: &str, text: &str) {
        let path = places.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn a_group_with_limits_above_it() {
        let folder = tempfile::tempdir().unwrap();
        let places = Places::below(folder.path());
        write(&places, "/sys/fs/cgroup/a.slice/memory.max", "1000\n");
        write(&places, "/sys/fs/cgroup/a.slice/b.service/memory.max", "max\n");
        write(&places, "/sys/fs/cgroup/a.slice/b.service/memory.current", "700\n");
        write(&places, "/sys/fs/cgroup/a.slice/b.service/memory.events", "low 0\nhigh 3\nmax 4\noom 1\noom_kill 2\n");
        write(
            &places,
            "/sys/fs/cgroup/a.slice/b.service/memory.pressure",
            "some avg10=1.50 avg60=0.00 avg300=0.00 total=1\nfull avg10=0.25 avg60=0.00 avg300=0.00 total=1\n",
        );
        write(&places, "/sys/fs/cgroup/a.slice/b.service/cgroup.procs", "12\n");
        write(&places, "/sys/fs/cgroup/a.slice/b.service/sub/cgroup.procs", "11\nx\n");
        let memory = read_memory(&places, "a.slice/b.service");
        assert_eq!(
            memory,
            GroupMemory {
                current_bytes: Some(700),
                limit_bytes: Some(1000),
                max_events: 4,
                high_events: 3,
                oom_kills: 2,
                some_pressure: Some(1.5),
                full_pressure: Some(0.25),
            }
        );
        assert_eq!(read_members(&places, "/a.slice/b.service"), [11, 12]);
        assert_eq!(read_memory(&places, "../../etc"), GroupMemory::default());
        assert_eq!(read_members(&places, "/none"), [0; 0]);
    }

    #[test]
    fn groups_of_processes() {
        assert_eq!(decode_group("0::/user.slice/x\n").as_deref(), Some("/user.slice/x"));
        assert_eq!(decode_group("4:cpu,memory:/m\n0::/u\n").as_deref(), Some("/m"));
        assert_eq!(decode_group("nonsense"), None);
    }
}
