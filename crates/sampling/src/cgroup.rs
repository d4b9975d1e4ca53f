//! Control groups: who is in which, what they may have, and how the kernel presses. Source: cgroup-v2.rst; of version 1's
//! hierarchy for memory, cgroup-v1/memory.rst.

use crate::Places;

const ROOT: &str = "/sys/fs/cgroup";
/// Where version 1 has the hierarchy for memory.
const FIRST_ROOT: &str = "/sys/fs/cgroup/memory";
/// From this share of its limit on it is looked at what a group could give back.
const FULL: f64 = 0.9;
/// Version 1 writes "no limit" as a number that no machine has.
const NO_LIMIT: u64 = 1 << 60;

/// What a group's memory controller says. `None` is unknown or unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GroupMemory {
    /// Bytes now.
    pub current_bytes: Option<u64>,
    /// The lowest `memory.max` of the group and of those above it.
    pub limit_bytes: Option<u64>,
    /// What the group could give back without swapping, such as the cache of files; 0 unless it is near its limit.
    pub reclaimable_bytes: u64,
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

impl GroupMemory {
    /// What it has and cannot give back, as a share of its limit.
    pub fn share(&self) -> Option<f64> {
        let (current, limit) = (self.current_bytes?, self.limit_bytes?);
        Some(current.saturating_sub(self.reclaimable_bytes) as f64 / limit as f64)
    }
}

/// Where the hierarchy with the memory controller is.
pub(crate) fn root(places: &Places) -> &'static str {
    let is_first = !places.exists("/sys/fs/cgroup/cgroup.controllers") && places.exists(FIRST_ROOT);
    if is_first { FIRST_ROOT } else { ROOT }
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
    let mut folders = vec![places.path(format!("{}{}", root(places), absolute(group)))];
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
    let (root, group) = (root(places), absolute(group));
    let is_first = root == FIRST_ROOT;
    let file = |group: &str, name: &str| places.read(&format!("{root}{group}/{name}"));
    let number = |group: &str, name: &str| file(group, name)?.trim().parse::<u64>().ok();
    let mut memory = if is_first { first_version(&group, &file) } else { second_version(&group, &file) };
    let limit_file = if is_first { "memory.limit_in_bytes" } else { "memory.max" };
    let mut at = group.as_str();
    while !at.is_empty() {
        let limit = number(at, limit_file).filter(|&limit| limit < NO_LIMIT);
        memory.limit_bytes = [memory.limit_bytes, limit].into_iter().flatten().min();
        at = at.rfind('/').map_or("", |slash| &at[..slash]);
    }
    if memory.share().is_some_and(|share| share > FULL) {
        memory.reclaimable_bytes = decode_reclaimable(&file(&group, "memory.stat").unwrap_or_default());
    }
    memory
}

/// Bytes that a group has now, and nothing else: cheap enough for every second.
pub fn read_current(places: &Places, group: &str) -> Option<u64> {
    let root = root(places);
    let name = if root == FIRST_ROOT { "memory.usage_in_bytes" } else { "memory.current" };
    places.read(&format!("{root}{}/{name}", absolute(group)))?.trim().parse().ok()
}

fn second_version(group: &str, file: &impl Fn(&str, &str) -> Option<String>) -> GroupMemory {
    let mut memory = GroupMemory {
        current_bytes: file(group, "memory.current").and_then(|text| text.trim().parse().ok()),
        ..GroupMemory::default()
    };
    let events = file(group, "memory.events").unwrap_or_default();
    for (key, value) in pairs(&events) {
        match key {
            "max" => memory.max_events = value,
            "high" => memory.high_events = value,
            "oom_kill" => memory.oom_kills = value,
            _ => {}
        }
    }
    let pressure = decode_pressure(&file(group, "memory.pressure").unwrap_or_default());
    (memory.some_pressure, memory.full_pressure) = pressure;
    memory
}

fn first_version(group: &str, file: &impl Fn(&str, &str) -> Option<String>) -> GroupMemory {
    let number = |name: &str| file(group, name)?.trim().parse::<u64>().ok();
    let oom = file(group, "memory.oom_control").unwrap_or_default();
    GroupMemory {
        current_bytes: number("memory.usage_in_bytes"),
        max_events: number("memory.failcnt").unwrap_or(0),
        oom_kills: pairs(&oom).find(|(key, _)| *key == "oom_kill").map_or(0, |(_, value)| value),
        ..GroupMemory::default()
    }
}

/// Lines of a word and a number.
fn pairs(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| line.split_once(' ')).map(|(key, value)| (key, value.trim().parse().unwrap_or(0)))
}

/// What `memory.stat` has of files and of slabs that can be given back, of the group and of those below it.
fn decode_reclaimable(text: &str) -> u64 {
    // Version 1 has the group alone under the plain names, and the whole under these.
    let is_first = text.lines().any(|line| line.starts_with("total_inactive_file "));
    let keys: &[&str] = if is_first {
        &["total_inactive_file", "total_active_file"]
    } else {
        &["inactive_file", "active_file", "slab_reclaimable"]
    };
    pairs(text).filter(|(key, _)| keys.contains(key)).fold(0, |sum: u64, (_, value)| sum.saturating_add(value))
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
                reclaimable_bytes: 0,
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

    /// A group that is full of what it has read from files is not in need.
    #[test]
    fn a_cache_of_files_is_no_need() {
        let folder = tempfile::tempdir().unwrap();
        let places = Places::below(folder.path());
        write(&places, "/sys/fs/cgroup/a/memory.max", "1000\n");
        write(&places, "/sys/fs/cgroup/a/memory.current", "990\n");
        let stat =
            "anon 100\nfile 600\nactive_file 300\ninactive_file 250\nslab_reclaimable 40\nslab_unreclaimable 9\n";
        write(&places, "/sys/fs/cgroup/a/memory.stat", stat);
        let memory = read_memory(&places, "/a");
        assert_eq!((memory.reclaimable_bytes, memory.share()), (590, Some(0.4)));
        assert_eq!(read_current(&places, "/a"), Some(990));
    }

    #[test]
    fn the_first_version() {
        let folder = tempfile::tempdir().unwrap();
        let places = Places::below(folder.path());
        let file = |name: &str, text: &str| write(&places, &format!("/sys/fs/cgroup/memory/a/b/{name}"), text);
        file("memory.limit_in_bytes", "9223372036854771712\n");
        file("memory.usage_in_bytes", "970\n");
        file("memory.failcnt", "7\n");
        file("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n");
        file("memory.stat", "active_file 1\ninactive_file 1\ntotal_inactive_file 10\ntotal_active_file 20\n");
        file("cgroup.procs", "12\n");
        write(&places, "/sys/fs/cgroup/memory/a/memory.limit_in_bytes", "1000\n");
        let memory = read_memory(&places, "/a/b");
        let expected = GroupMemory {
            current_bytes: Some(970),
            limit_bytes: Some(1000),
            reclaimable_bytes: 30,
            max_events: 7,
            oom_kills: 3,
            ..GroupMemory::default()
        };
        assert_eq!(memory, expected);
        assert_eq!((read_members(&places, "/a"), read_current(&places, "/a/b")), (vec![12], Some(970)));
    }

    #[test]
    fn groups_of_processes() {
        assert_eq!(decode_group("0::/user.slice/x\n").as_deref(), Some("/user.slice/x"));
        assert_eq!(decode_group("4:cpu,memory:/m\n0::/u\n").as_deref(), Some("/m"));
        assert_eq!(decode_group("nonsense"), None);
    }
}
