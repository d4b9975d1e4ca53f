//! Containers by what people call them, out of the files that their engines keep: no engine is asked, and none need run.
//!
//! | engine | where | what |
//! |---|---|---|
//! | Docker | `/var/lib/docker/containers/ID/config.v2.json` | name, labels |
//! | Podman, CRI-O | `storage/overlay-containers/containers.json` | names |
//! | CRI-O, Podman | `storage/overlay-containers/ID/userdata/config.json` | annotations |
//! | containerd (Kubernetes, nerdctl) | `/run/containerd/io.containerd.runtime.v2.task/NAMESPACE/ID/config.json` | annotations |
//!
//! Files that cannot be read or decoded are passed over: they are other programs' private state.

use std::path::{Path, PathBuf};

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

/// The id of a container by its name, or by a label or annotation as `key=value`.
pub fn find_id(places: &Places, wanted: &str) -> Option<String> {
    of_docker(places, wanted)
        .or_else(|| STORAGES.iter().find_map(|storage| of_storage(places, storage, wanted)))
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

fn of_storage(places: &Places, storage: &str, wanted: &str) -> Option<String> {
    let folder = places.path(storage).join("overlay-containers");
    let list = read(&folder.join("containers.json")).unwrap_or_default();
    let is_named = |one: &&Value| one["names"].as_array().into_iter().flatten().any(|name| name == wanted);
    let named = list.as_array().into_iter().flatten().find(is_named).and_then(|one| one["id"].as_str());
    named.map(str::to_owned).or_else(|| {
        let mut folders = entries(&folder).into_iter();
        folders.find(|at| is_bundle(&at.join("userdata/config.json"), wanted)).map(|at| last_part(&at))
    })
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
