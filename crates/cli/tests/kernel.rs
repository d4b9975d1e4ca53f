//! `leakscope kernel` on the machine that runs the tests: what needs no kernel of a kind, and refusals. The rest is tested
//! in a kernel of our own by `cargo xtask vm test`.

use std::path::PathBuf;
use std::process::{Command, Output};

fn kernel(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_leakscope")).arg("kernel").args(words).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn dump(name: &str) -> String {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../import/tests/data");
    folder.join(name).into_os_string().into_string().unwrap()
}

#[test]
fn status_has_a_row_for_each_means() {
    let output = kernel(&["status"]);
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(0));
    for name in ["capabilities", "debugfs", "kmemleak", "BPF", "BTF", "kprobes", "page_owner", "KASAN", "KFENCE"] {
        assert!(text.lines().any(|line| line.starts_with(name)), "{name}: {text}");
    }
    let json: serde_json::Value = serde_json::from_slice(&kernel(&["status", "--json"]).stdout).unwrap();
    let rows = json["rows"].as_array().unwrap();
    assert_eq!(rows.len(), text.lines().skip(2).filter(|line| !line.trim_start().starts_with("next: ")).count());
}

/// Where there is a kmemleak the scan is not made here: it would take what other tests do for leaks.
#[test]
fn a_kernel_without_kmemleak_is_refused_in_one_sentence() {
    let json: serde_json::Value = serde_json::from_slice(&kernel(&["status", "--json"]).stdout).unwrap();
    let row = json["rows"].as_array().unwrap().iter().find(|row| row["name"] == "kmemleak").unwrap();
    if row["state"] == "yes" {
        return;
    }
    let output = kernel(&["scan"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), text.lines().count()), (Some(2), 1), "{text}");
    assert!(text.contains(row["reason"].as_str().unwrap()), "{text} does not say {row}");
}

#[test]
fn dumps_of_two_kernels_compare() {
    let (before, after) = (dump("kmemleak-6.1.txt"), dump("kmemleak-6.18.txt"));
    let text = stdout(&kernel(&["diff", "--format=json", &before, &after]));
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    // The same function leaks in both, half as much in the second; the percpu block is new.
    let of = |change: &str| -> Vec<(u64, u64)> {
        let sites = json["sites"].as_array().unwrap().iter().filter(|site| site["change"] == change);
        let number = |value: &serde_json::Value| value.as_u64().unwrap();
        sites.map(|site| (number(&site["before"]["bytes"]), number(&site["after"]["bytes"]))).collect()
    };
    assert_eq!((of("shrunk"), of("new"), of("gone")), (vec![(384, 192)], vec![(0, 8)], vec![]), "{text}");
    let same = kernel(&["diff", "--error-exitcode=7", &before, &before]);
    assert_eq!(same.status.code(), Some(0));
    assert_eq!(kernel(&["diff", "--error-exitcode=7", &before, &after]).status.code(), Some(7));
}

#[test]
fn what_is_no_dump_is_refused() {
    let output = kernel(&["diff", "/etc/passwd", "/etc/passwd"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no format that is known"));
}
