//! Containers by what people call them, out of the files that their engines keep: no engine is asked, and none need run.
//!
//! | engine | where | what |
//! |---|---|---|
//! | Docker | `/var/lib/docker/containers/ID/config.v2.json` | name, labels |
//! | Podman, CRI-O | `storage/DRIVER-containers/containers.json` | names |
//! | CRI-O, Podman | `storage/DRIVER-containers/ID/userdata/config.json` | annotations |
//! | Podman | `storage/db.sql` (SQLite), before version 4.8 `storage/libpod/bolt_state.db` | names, labels |
//! | containerd (Kubernetes, nerdctl) | `/run/containerd/io.containerd.runtime.v2.task/NAMESPACE/ID/config.json` | annotations |
//!
//! Files that cannot be read or decoded are passed over: they are other programs' private state.

mod bolt;

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use serde_json::Value;

use crate::Places;

/// Where Podman and CRI-O keep containers.
const STORAGES: [&str; 2] = ["/var/lib/containers/storage", "/run/containers/storage"];
const CONTAINERD: &str = "/run/containerd/io.containerd.runtime.v2.task";
/// Annotations that hold the name of a container. Source: containerd `pkg/cri/annotations`, CRI-O `pkg/annotations`,
/// nerdctl `pkg/labels`.
const NAMES: [&str; 4] =
    ["io.kubernetes.cri.container-name", "io.kubernetes.container.name", "io.container.manager.name", "nerdctl/name"];
/// Longest file that is read: an OCI configuration has some hundred kilobytes at most.
const LONGEST: u64 = 4 << 20;
/// Longest database of Podman that is read: thousands of containers.
const LONGEST_DATABASE: u64 = 64 << 20;
/// Where users without root have theirs.
const OF_USERS: &str = ".local/share/containers/storage";

/// The id of a container by its name, or by a label or annotation as `key=value`.
pub fn find_id(places: &Places, wanted: &str) -> Option<String> {
    let homes = entries(&places.path("/home")).into_iter().chain([places.path("/root")]);
    let storages: Vec<PathBuf> = STORAGES.map(|storage| places.path(storage)).into_iter().collect();
    let mut storages = storages.into_iter().chain(homes.map(|home| home.join(OF_USERS)));
    of_docker(places, wanted)
        .or_else(|| storages.find_map(|storage| of_storage(&storage, wanted)))
        .or_else(|| of_containerd(places, wanted))
}

/// Whether a control group's last part is that of a container whose id begins so: `docker-ID.scope`, `libpod-ID.scope`,
/// `cri-containerd-ID.scope`, `crio-ID.scope`, or `ID` alone below `docker` and `kubepods`.
pub fn is_group_of(group: &str, id: &str) -> bool {
    let name = group.strip_suffix(".scope").unwrap_or(group);
    // What looks after a container is not the container.
    if name.contains("conmon") {
        return false;
    }
    let found = name.rsplit_once('-').map_or(name, |(_, id)| id);
    let is_id = found.len() >= 12 && found.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_id && id.len() >= 4 && found.starts_with(id)
}

fn of_docker(places: &Places, wanted: &str) -> Option<String> {
    entries(&places.path("/var/lib/docker/containers")).into_iter().find_map(|folder| {
        let config = read(&folder.join("config.v2.json"))?;
        let is_named = config["Name"].as_str().is_some_and(|name| name.trim_start_matches('/') == wanted);
        (is_named || has(&config["Config"]["Labels"], wanted)).then(|| last_part(&folder))
    })
}

fn of_storage(storage: &Path, wanted: &str) -> Option<String> {
    let is_containers = |path: &PathBuf| last_part(path).ends_with("-containers");
    let folders: Vec<PathBuf> = entries(storage).into_iter().filter(is_containers).collect();
    let is_named = |one: &&Value| one["names"].as_array().into_iter().flatten().any(|name| name == wanted);
    let named = |folder: &PathBuf| {
        let list = read(&folder.join("containers.json"))?;
        let found = list.as_array().into_iter().flatten().find(is_named)?;
        found["id"].as_str().map(str::to_owned)
    };
    let annotated = |folder: &PathBuf| {
        let found = entries(folder).into_iter().find(|at| is_bundle(&at.join("userdata/config.json"), wanted))?;
        Some(last_part(&found))
    };
    folders.iter().find_map(named).or_else(|| of_podman(storage, wanted)).or_else(|| folders.iter().find_map(annotated))
}

/// Out of Podman's own database, where alone it keeps labels.
fn of_podman(storage: &Path, wanted: &str) -> Option<String> {
    let is_it = |config: &Value| config["name"] == wanted || has(&config["labels"], wanted);
    let configs = read_sqlite(&storage.join("db.sql")).unwrap_or_default();
    let found = configs.iter().filter_map(|text| serde_json::from_str(text).ok()).find(is_it);
    let found: Value = found.or_else(|| {
        let path = storage.join("libpod/bolt_state.db");
        let is_short = std::fs::metadata(&path).ok()?.len() <= LONGEST_DATABASE;
        let data = is_short.then(|| std::fs::read(&path).ok()).flatten()?;
        let configs = bolt::Database::open(&data)?.values(b"ctr", b"config");
        configs.iter().filter_map(|(_, text)| serde_json::from_slice(text).ok()).find(is_it)
    })?;
    found["id"].as_str().map(str::to_owned)
}

/// The configurations in the database of Podman from 4.8 on. Source: `libpod/sqlite_state_internal.go`.
fn read_sqlite(path: &Path) -> Option<Vec<String>> {
    // Opened for reading: what is not there is not made.
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).ok()?;
    // Its engine has it for a moment at a time.
    connection.busy_timeout(Duration::from_millis(100)).ok()?;
    let mut query = connection.prepare("SELECT JSON FROM ContainerConfig").ok()?;
    let rows = query.query_map([], |row| row.get(0)).ok()?;
    rows.collect::<Result<_, _>>().ok()
}

fn of_containerd(places: &Places, wanted: &str) -> Option<String> {
    let spaces = entries(&places.path(CONTAINERD));
    let mut folders = spaces.iter().flat_map(|space| entries(space));
    folders.find(|at| is_bundle(&at.join("config.json"), wanted)).map(|at| last_part(&at))
}

/// Whether an OCI configuration is that of the container that is wanted.
fn is_bundle(path: &Path, wanted: &str) -> bool {
    let Some(config) = read(path) else { return false };
    let annotations = &config["annotations"];
    // CRI-O keeps the labels as JSON within an annotation.
    let labels = annotations["io.kubernetes.cri-o.Labels"].as_str().and_then(|text| serde_json::from_str(text).ok());
    // The sandbox of a pod has the pod's annotations, and nothing of the program.
    let is_sandbox = annotations["io.kubernetes.cri.container-type"] == "sandbox"
        || annotations["io.kubernetes.cri-o.ContainerType"] == "sandbox";
    let is_named = NAMES.iter().any(|key| annotations[key] == wanted);
    !is_sandbox && (is_named || has(annotations, wanted) || labels.is_some_and(|labels: Value| has(&labels, wanted)))
}

/// Whether an object has this `key=value`.
fn has(object: &Value, wanted: &str) -> bool {
    // Keys hold no equals sign; values may.
    wanted.split_once('=').is_some_and(|(key, value)| object[key] == value)
}

fn read(path: &Path) -> Option<Value> {
    if std::fs::metadata(path).ok()?.len() > LONGEST {
        return None;
    }
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn last_part(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::tests::write;

    #[test]
    fn each_engine_by_its_files() {
        let folder = tempfile::tempdir().unwrap();
        let places = Places::below(folder.path());
        write(
            &places,
            "/var/lib/docker/containers/d0/config.v2.json",
            r#"{"Name":"/db","Config":{"Labels":{"app":"shop","say":"a=\"b\""}}}"#,
        );
        write(
            &places,
            "/var/lib/containers/storage/overlay-containers/containers.json",
            r#"[{"id":"p0","names":["web","second"]},{"id":"p1"}]"#,
        );
        write(
            &places,
            "/run/containers/storage/overlay-containers/c0/userdata/config.json",
            r#"{"annotations":{"io.kubernetes.container.name":"api","io.kubernetes.cri-o.Labels":"{\"tier\":\"front\"}"}}"#,
        );
        let bundle = |id: &str| format!("{CONTAINERD}/k8s.io/{id}/config.json");
        let named = |kind: &str| {
            format!(
                r#"{{"annotations":{{"io.kubernetes.cri.container-name":"worker","io.kubernetes.cri.container-type":"{kind}","pod":"x"}}}}"#
            )
        };
        write(&places, &bundle("k0"), &named("sandbox"));
        write(&places, &bundle("k1"), &named("container"));
        write(&places, &bundle("broken"), "{");
        let found = |wanted: &str| find_id(&places, wanted);
        for (wanted, id) in [
            ("db", "d0"),
            ("app=shop", "d0"),
            ("say=a=\"b\"", "d0"),
            ("web", "p0"),
            ("second", "p0"),
            ("api", "c0"),
            ("tier=front", "c0"),
            ("worker", "k1"),
            ("pod=x", "k1"),
        ] {
            assert_eq!(found(wanted).as_deref(), Some(id), "{wanted}");
        }
        for wanted in ["d", "app=sho", "app", "", "=", "tier=back", "\"", "pod=y"] {
            assert_eq!(found(wanted), None, "{wanted}");
        }
    }

    /// What Podman 4.3 left after 13 containers were made and one removed; the oracle is what `podman ps` said of them.
    #[test]
    fn podman_by_its_own_files() {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/podman-4.3");
        let places = Places::below(&data);
        let said: Value = serde_json::from_slice(&std::fs::read(data.join("ps.json")).unwrap()).unwrap();
        let said = said.as_array().unwrap();
        assert_eq!(said.len(), 12);
        for one in said {
            let id = one["id"].as_str();
            assert_eq!(find_id(&places, one["names"][0].as_str().unwrap()).as_deref(), id);
            for (key, value) in one["labels"].as_object().unwrap().iter().filter(|(key, _)| *key != "app") {
                assert_eq!(find_id(&places, &format!("{key}={}", value.as_str().unwrap())).as_deref(), id, "{key}");
            }
        }
        let shop = said.iter().find(|one| one["names"][0] == "web").unwrap();
        assert_eq!(find_id(&places, "app=shop").as_deref(), shop["id"].as_str());
        for wanted in ["worker-5", "number=5", "app=none", "worker"] {
            assert_eq!(find_id(&places, wanted), None, "{wanted}");
        }
    }

    /// The table of Podman from 4.8 on, made here: the distribution of this project's machines has none that writes it.
    #[test]
    fn podmans_newer_database() {
        let folder = tempfile::tempdir().unwrap();
        let storage = folder.path().join("home/ada").join(OF_USERS);
        std::fs::create_dir_all(&storage).unwrap();
        let connection = Connection::open(storage.join("db.sql")).unwrap();
        let table = "CREATE TABLE ContainerConfig(ID TEXT PRIMARY KEY NOT NULL, Name TEXT UNIQUE NOT NULL, PodID TEXT, JSON TEXT NOT NULL)";
        connection.execute_batch(table).unwrap();
        let json = r#"{"id":"s0","name":"queue","labels":{"app":"jobs"}}"#;
        connection.execute("INSERT INTO ContainerConfig VALUES ('s0', 'queue', NULL, ?1)", [json]).unwrap();
        let places = Places::below(folder.path());
        let found = ["queue", "app=jobs", "app=x", "s0"].map(|wanted| find_id(&places, wanted));
        assert_eq!(found, [Some("s0".to_owned()), Some("s0".to_owned()), None, None]);
    }

    #[test]
    fn groups_of_containers() {
        let id = "0123456789abcdef0123456789abcdef";
        for group in ["docker-ID.scope", "libpod-ID.scope", "cri-containerd-ID.scope", "crio-ID.scope", "ID"] {
            assert!(is_group_of(&group.replace("ID", id), "01234567"), "{group}");
        }
        for group in ["libpod-conmon-ID.scope", "crio-conmon-ID.scope", "docker-ID.mount", "xID"] {
            assert!(!is_group_of(&group.replace("ID", id), "01234567"), "{group}");
        }
        assert!(!is_group_of(id, "012") && !is_group_of(id, "1234"));
    }
}
