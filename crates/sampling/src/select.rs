//! From what a configuration names to the processes that are meant, and when these have become others.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::cgroup::read_members;
use crate::containers::{find_id, is_group_of};
use crate::names::printable;
use crate::{Places, Process};

/// The kernel cuts names of processes to this length.
const NAME_BYTES: usize = 15;
/// How deep units lie below the root of the control groups.
const UNIT_DEPTH: usize = 6;

/// What is to be watched.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Selector {
    /// Processes of this name; a star at the end stands for the rest.
    Name(String),
    /// The process whose id stands in a file, and its descendants.
    PidFile(PathBuf),
    /// The processes of a systemd unit.
    Unit(String),
    /// The processes of a control group and of those below it.
    Cgroup(String),
    /// The processes of a container: the beginning of its id, its name, or a label as `key=value`.
    Container(String),
    /// The names that grow most, so many.
    Top(usize),
}

/// One thing that is watched: all processes that a selector means, taken together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Unique and the same after a restart: `name:nginx`, `unit:ssh.service`.
    pub id: String,
    /// Indices of its processes in the list that it was found in; the oldest first.
    pub processes: Vec<usize>,
    /// Its control group, when it was chosen by one.
    pub group: Option<String>,
}

/// Finds the targets of a selector among `processes`. A target without a process is there all the same.
pub fn find_targets(places: &Places, selector: &Selector, processes: &[Process]) -> Vec<Target> {
    let by_pid = |pids: &[u32]| {
        let mut found: Vec<usize> =
            (0..processes.len()).filter(|&index| pids.binary_search(&processes[index].pid).is_ok()).collect();
        oldest_first(&mut found, processes);
        found
    };
    let target = |kind: &str, name: &str, found: Vec<usize>, group: Option<String>| {
        vec![Target { id: format!("{kind}:{}", printable(name.as_bytes())), processes: found, group }]
    };
    match selector {
        Selector::Name(name) => {
            let mut found: Vec<usize> =
                (0..processes.len()).filter(|&index| is_named(&processes[index].name, name)).collect();
            oldest_first(&mut found, processes);
            target("name", name, found, None)
        }
        Selector::PidFile(path) => {
            let found = read_pid_file(places, path).map(|pid| descendants(pid, processes)).unwrap_or_default();
            target("pidfile", &path.to_string_lossy(), found, None)
        }
        Selector::Unit(unit) => {
            let group = find_group(places, |name| name == unit);
            let members = group.as_deref().map(|group| read_members(places, group)).unwrap_or_default();
            target("unit", unit, by_pid(&members), group)
        }
        Selector::Cgroup(group) => target("cgroup", group, by_pid(&read_members(places, group)), Some(group.clone())),
        Selector::Container(wanted) => {
            let group = find_group(places, |name| is_group_of(name, wanted))
                .or_else(|| find_id(places, wanted).and_then(|id| find_group(places, |name| is_group_of(name, &id))));
            let members = group.as_deref().map(|group| read_members(places, group)).unwrap_or_default();
            target("container", wanted, by_pid(&members), group)
        }
        Selector::Top(_) => by_name(processes),
    }
}

/// One target for each name of a process.
fn by_name(processes: &[Process]) -> Vec<Target> {
    let mut names: HashMap<&[u8], Vec<usize>> = HashMap::new();
    for (index, process) in processes.iter().enumerate().filter(|(_, process)| process.state != b'Z') {
        names.entry(&process.name).or_default().push(index);
    }
    let mut targets: Vec<Target> = names
        .into_iter()
        .map(|(name, mut found)| {
            oldest_first(&mut found, processes);
            Target { id: format!("name:{}", printable(name)), processes: found, group: None }
        })
        .collect();
    targets.sort_by(|a, b| a.id.cmp(&b.id));
    // Two names may look the same once they are made printable.
    targets.dedup_by(|later, kept| {
        let same = later.id == kept.id;
        if same {
            kept.processes.append(&mut later.processes);
        }
        same
    });
    targets
}

fn oldest_first(found: &mut [usize], processes: &[Process]) {
    found.sort_by_key(|&index| (processes[index].start_ticks, processes[index].pid));
}

fn is_named(name: &[u8], wanted: &str) -> bool {
    match wanted.strip_suffix('*') {
        Some(beginning) => name.starts_with(&beginning.as_bytes()[..beginning.len().min(NAME_BYTES)]),
        None => name == &wanted.as_bytes()[..wanted.len().min(NAME_BYTES)],
    }
}

fn read_pid_file(places: &Places, path: &Path) -> Option<u32> {
    let text = std::fs::read_to_string(places.path(path)).ok()?;
    text.split_ascii_whitespace().next()?.parse().ok()
}

/// A process and all that descend from it, the process first.
fn descendants(root: u32, processes: &[Process]) -> Vec<usize> {
    let Some(first) = processes.iter().position(|process| process.pid == root) else { return Vec::new() };
    let mut found = vec![first];
    let mut at = 0;
    while let Some(&parent) = found.get(at) {
        let pid = processes[parent].pid;
        let children = (0..processes.len()).filter(|&index| processes[index].parent_pid == pid);
        let fresh: Vec<usize> = children.filter(|index| !found.contains(index)).collect();
        found.extend(fresh);
        at += 1;
    }
    found
}

/// The first control group whose last part is wanted, as an absolute path within the hierarchy.
fn find_group(places: &Places, wanted: impl Fn(&str) -> bool) -> Option<String> {
    let root = places.path(crate::cgroup::root(places));
    let mut level = vec![root.clone()];
    for _ in 0..UNIT_DEPTH {
        let mut next = Vec::new();
        for folder in level {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    continue;
                }
                let path = entry.path();
                if entry.file_name().to_str().is_some_and(&wanted) {
                    return Some(format!("/{}", path.strip_prefix(&root).ok()?.to_str()?));
                }
                next.push(path);
            }
        }
        level = next;
    }
    None
}

/// Numbers the lives of targets: another oldest process, or another program in it, is another life.
#[derive(Clone, Debug, Default)]
pub struct Lives {
    known: HashMap<String, Life>,
}

#[derive(Clone, Debug)]
struct Life {
    number: u16,
    main: (u32, u64),
    name: Vec<u8>,
}

/// What has become of a target since it was looked at last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    Same,
    /// It was not known.
    New,
    /// Its oldest process is another one.
    Restarted,
    /// Its oldest process runs another program.
    Replaced,
}

impl Lives {
    /// Forgets the targets that are not wanted any more.
    pub fn retain(&mut self, mut is_wanted: impl FnMut(&str) -> bool) {
        self.known.retain(|id, _| is_wanted(id));
    }

    /// The number of a target's life, and what has changed; `None` when it has no process.
    pub fn note(&mut self, target: &Target, processes: &[Process]) -> Option<(u16, Change)> {
        let main = &processes[*target.processes.first()?];
        let (key, name) = ((main.pid, main.start_ticks), &main.name);
        let Some(life) = self.known.get_mut(&target.id) else {
            self.known.insert(target.id.clone(), Life { number: 0, main: key, name: name.clone() });
            return Some((0, Change::New));
        };
        let change = match (life.main == key, life.name == *name) {
            (true, true) => Change::Same,
            (true, false) => Change::Replaced,
            (false, _) => Change::Restarted,
        };
        if change != Change::Same {
            *life = Life { number: life.number.wrapping_add(1), main: key, name: name.clone() };
        }
        Some((life.number, change))
    }

    /// Continues with the numbers that a history knows.
    pub fn resume(&mut self, id: &str, number: u16, main: (u32, u64), name: Vec<u8>) {
        self.known.insert(id.to_owned(), Life { number, main, name });
    }

    /// The life's number and its oldest process (id, start), for a history.
    pub fn known(&self, id: &str) -> Option<(u16, (u32, u64), &[u8])> {
        self.known.get(id).map(|life| (life.number, life.main, life.name.as_slice()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32, parent_pid: u32, name: &str, start_ticks: u64) -> Process {
        Process { pid, name: name.into(), parent_pid, start_ticks, threads: 1, resident_bytes: 0, state: b'S' }
    }

    fn machine() -> Vec<Process> {
        vec![
            process(30, 20, "nginx", 900),
            process(20, 1, "nginx", 100),
            process(40, 30, "sh", 950),
            process(50, 1, "a-very-long-nam", 5),
        ]
    }

    #[test]
    fn by_name_and_by_family() {
        let places = Places::below("/nonexistent");
        let processes = machine();
        let names = |name: &str| find_targets(&places, &Selector::Name(name.into()), &processes)[0].processes.clone();
        assert_eq!(names("nginx"), [1, 0]);
        assert_eq!(names("ng*"), [1, 0]);
        assert_eq!(names("a-very-long-name-indeed"), [3]);
        assert_eq!(names("ngin"), [0; 0]);
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("x.pid"), "20\n").unwrap();
        let places = Places::below(folder.path());
        let found = find_targets(&places, &Selector::PidFile("/x.pid".into()), &processes);
        assert_eq!((found[0].id.as_str(), &found[0].processes[..]), ("pidfile:/x.pid", &[1, 0, 2][..]));
        let top = find_targets(&places, &Selector::Top(3), &processes);
        let ids: Vec<&str> = top.iter().map(|target| target.id.as_str()).collect();
        assert_eq!(ids, ["name:a-very-long-nam", "name:nginx", "name:sh"]);
    }

    #[test]
    fn units_and_containers_by_their_groups() {
        let folder = tempfile::tempdir().unwrap();
        let places = Places::below(folder.path());
        let id = "0123456789abcdef0123456789abcdef";
        for (group, pids) in
            [("system.slice/web.service", "20\n30\n"), (&format!("system.slice/docker-{id}.scope"), "40\n")]
        {
            let path = places.path(format!("/sys/fs/cgroup/{group}"));
            std::fs::create_dir_all(&path).unwrap();
            std::fs::write(path.join("cgroup.procs"), pids).unwrap();
        }
        let config = places.path(format!("/var/lib/docker/containers/{id}"));
        std::fs::create_dir_all(&config).unwrap();
        std::fs::write(config.join("config.v2.json"), r#"{"Name":"/db","Config":{"Labels":{"app":"shop"}}}"#).unwrap();
        let processes = machine();
        let find = |selector: Selector| find_targets(&places, &selector, &processes).remove(0);
        let unit = find(Selector::Unit("web.service".into()));
        assert_eq!((unit.processes, unit.group.as_deref()), (vec![1, 0], Some("/system.slice/web.service")));
        for wanted in ["0123456789", "db", "app=shop"] {
            assert_eq!(find(Selector::Container(wanted.into())).processes, [2], "{wanted}");
        }
        for wanted in ["1234", "web", "app=\"", "app=sho"] {
            assert_eq!(find(Selector::Container(wanted.into())).processes, [0; 0], "{wanted}");
        }
    }

    #[test]
    fn lives_are_counted() {
        let mut lives = Lives::default();
        let target = |index| Target { id: "name:x".into(), processes: vec![index], group: None };
        let processes =
            [process(5, 1, "x", 10), process(5, 1, "y", 10), process(5, 1, "y", 99), process(6, 1, "y", 99)];
        let numbers: Vec<_> = [0, 0, 1, 2, 3].map(|index| lives.note(&target(index), &processes)).to_vec();
        use Change::{New, Replaced, Restarted, Same};
        let expected = [(0, New), (0, Same), (1, Replaced), (2, Restarted), (3, Restarted)];
        assert_eq!(numbers, expected.map(Some));
        assert_eq!(lives.note(&Target { processes: vec![], ..target(0) }, &processes), None);
    }
}
