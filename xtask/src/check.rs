//! `check`: what the compiler does not hold together: the layers, the length of files, words, and where unsafe may be.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use leakscope_e2e::repo_root;
use serde::Deserialize;

/// Which side of the wall (the ledger) a crate stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    /// Usable on both sides.
    Shared,
    /// In the target's process.
    Inside,
    /// In our own process.
    Outside,
    /// Development only: may name every crate, and none but its like may name it.
    Dev,
}

/// The picture of ARCHITECTURE.md: side and row; a crate depends on lower rows of its own side and of `Shared`.
const LAYERS: &[(&str, Side, u8)] = &[
    ("leakscope-model", Side::Shared, 0),
    ("leakscope-ledger", Side::Shared, 1),
    ("leakscope-reach", Side::Shared, 1),
    ("leakscope-shadow", Side::Shared, 1),
    ("leakscope-rt", Side::Inside, 2),
    ("leakscope-preload", Side::Inside, 3),
    ("leakscope-asan-rt", Side::Inside, 3),
    ("leakscope-asan", Side::Inside, 4),
    ("leakscope-translate", Side::Inside, 2),
    ("leakscope-syscalls", Side::Inside, 2),
    ("leakscope-guest", Side::Inside, 3),
    ("leakscope-memcheck", Side::Inside, 4),
    ("leakscope-process", Side::Outside, 2),
    ("leakscope-kernel", Side::Outside, 2),
    ("leakscope-launch", Side::Outside, 3),
    ("leakscope-ebpf", Side::Outside, 3),
    ("leakscope-symbols", Side::Outside, 4),
    ("leakscope-findings", Side::Outside, 4),
    ("leakscope-import", Side::Outside, 5),
    ("leakscope-report", Side::Outside, 5),
    ("leakscope-sampling", Side::Outside, 3),
    ("leakscope-trend", Side::Outside, 4),
    ("leakscope-history", Side::Outside, 4),
    ("leakscope-alerts", Side::Outside, 5),
    ("leakscope-board", Side::Outside, 6),
    ("leakscope-collect", Side::Outside, 7),
    ("leakscope-monitor", Side::Outside, 8),
    ("leakscope", Side::Outside, 9),
    ("leakscope-e2e", Side::Dev, 10),
    ("xtask", Side::Dev, 11),
];

/// Crates that hold unsafe code in named modules; everywhere else the word is an error.
const MAY_BE_UNSAFE: &[&str] = &[
    "ledger",
    "rt",
    "preload",
    "asan",
    "asan_rt",
    "shadow",
    "translate",
    "guest",
    "memcheck",
    "process",
    "launch",
    "ebpf",
    "cli",
];

const LONGEST_FILE_LINES: usize = 800;
const UNNAMED_MODULES: &[&str] = &["utils.rs", "util.rs", "common.rs", "misc.rs", "helpers.rs"];
const UNFINISHED: &[&str] =
    &[concat!("to", "do!("), concat!("unimple", "mented!("), concat!("dbg", "!("), concat!("FIX", "ME")];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
    path: Option<PathBuf>,
}

/// Runs every check and reports all violations together.
///
/// # Errors
/// There is a violation.
pub fn run() -> Result<()> {
    let mut wrong = check_layers(&metadata()?);
    let mut files = Vec::new();
    for folder in ["crates", "fuzz", "scale/src", "scale/tests", "xtask"] {
        collect_rust(&repo_root().join(folder), &mut files)?;
    }
    for path in &files {
        let text = std::fs::read_to_string(path)?;
        check_file(path.strip_prefix(repo_root())?, &text, &mut wrong);
    }
    check_picture(&mut wrong);
    check_page(&mut wrong)?;
    for line in &wrong {
        eprintln!("check: {line}");
    }
    if !wrong.is_empty() {
        bail!("check: {} violations in {} files", wrong.len(), files.len());
    }
    eprintln!("check: {} crates and {} files keep the rules", LAYERS.len(), files.len());
    Ok(())
}

fn metadata() -> Result<Metadata> {
    let output = Command::new("cargo")
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .current_dir(repo_root())
        .output()
        .context("start cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn check_layers(metadata: &Metadata) -> Vec<String> {
    let layers: BTreeMap<&str, (Side, u8)> = LAYERS.iter().map(|(name, side, row)| (*name, (*side, *row))).collect();
    let mut wrong = Vec::new();
    for package in &metadata.packages {
        let Some(&(side, row)) = layers.get(package.name.as_str()) else {
            wrong.push(format!("{} has no row in the layer table of xtask/src/check.rs", package.name));
            continue;
        };
        // Tests may use what they like; the product may not.
        let own = package.dependencies.iter().filter(|dep| dep.path.is_some() && dep.kind.as_deref() != Some("dev"));
        for dependency in own {
            let Some(&(their_side, their_row)) = layers.get(dependency.name.as_str()) else { continue };
            if !may_depend(side, row, their_side, their_row) {
                wrong.push(format!(
                    "{} ({side:?}, row {row}) depends on {} ({their_side:?}, row {their_row})",
                    package.name, dependency.name
                ));
            }
        }
    }
    wrong
}

fn may_depend(side: Side, row: u8, their_side: Side, their_row: u8) -> bool {
    their_row < row && (their_side == Side::Shared || their_side == side || side == Side::Dev)
}

/// ARCHITECTURE.md must name every crate, so that the picture cannot forget one.
fn check_picture(wrong: &mut Vec<String>) {
    let Ok(text) = std::fs::read_to_string(repo_root().join("ARCHITECTURE.md")) else {
        wrong.push("ARCHITECTURE.md cannot be read".to_owned());
        return;
    };
    for (name, ..) in LAYERS {
        let short = name.strip_prefix("leakscope-").unwrap_or(if *name == "leakscope" { "cli" } else { name });
        if !text.split(|c: char| !c.is_alphanumeric() && c != '-').any(|word| word == short) {
            wrong.push(format!("ARCHITECTURE.md does not name `{short}`"));
        }
    }
}

/// The page of `--format html` is committed as it was built; it must be what its sources build to.
fn check_page(wrong: &mut Vec<String>) -> Result<()> {
    let folder = repo_root().join("crates/report/web");
    for name in ["package-lock.json", ".npmrc"] {
        let text = std::fs::read_to_string(folder.join(name)).unwrap_or_default();
        if text.contains("resolved\":") || text.contains("://") && !name.ends_with(".json") {
            wrong.push(format!("crates/report/web/{name} holds the address of a registry"));
        }
    }
    if !folder.join("node_modules/esbuild").exists() {
        wrong.push("crates/report/web: its packages are not installed; next: cargo xtask setup".to_owned());
        return Ok(());
    }
    // The monitor's page is built with the packages of the report's.
    for folder in [folder, repo_root().join("crates/board/web")] {
        let output =
            Command::new("node").args(["build.mjs", "--check"]).current_dir(&folder).output().context("start node")?;
        if !output.status.success() {
            wrong.extend(String::from_utf8_lossy(&output.stderr).lines().map(str::to_owned));
        }
    }
    Ok(())
}

fn collect_rust(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target" && name != "node_modules") {
                collect_rust(&path, files)?;
            }
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

fn check_file(path: &Path, text: &str, wrong: &mut Vec<String>) {
    let shown = path.display();
    let lines = text.lines().count();
    if lines > LONGEST_FILE_LINES {
        wrong.push(format!("{shown}: {lines} lines, at most {LONGEST_FILE_LINES}"));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if UNNAMED_MODULES.contains(&name.as_ref()) {
        wrong.push(format!("{shown}: the file's name does not say what it holds"));
    }
    let crate_name = path.components().nth(1).map(|part| part.as_os_str().to_string_lossy().into_owned());
    // What only developers build may hold a measured routine against system calls.
    let is_product = !path.iter().any(|part| ["examples", "benches", "tests"].iter().any(|folder| part == *folder));
    let may_be_unsafe = !is_product || crate_name.is_some_and(|name| MAY_BE_UNSAFE.contains(&name.as_str()));
    for (index, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        if !may_be_unsafe && has_unsafe(code) {
            wrong.push(format!("{shown}:{}: unsafe code in a crate that has none", index + 1));
        }
        for word in UNFINISHED.iter().filter(|word| line.contains(**word)) {
            wrong.push(format!("{shown}:{}: `{word}`", index + 1));
        }
    }
}

/// The keyword before a block, function, impl or extern; not the lints that bear its name, not a string.
fn has_unsafe(code: &str) -> bool {
    ["{", "fn", "impl", "extern"].iter().any(|next| code.contains(&format!("{} {next}", concat!("un", "safe"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wall_and_the_rows_hold() {
        assert!(may_depend(Side::Outside, 5, Side::Outside, 4));
        assert!(may_depend(Side::Inside, 2, Side::Shared, 1));
        assert!(!may_depend(Side::Outside, 5, Side::Inside, 2), "through the wall");
        assert!(!may_depend(Side::Outside, 4, Side::Outside, 4), "within a row");
        assert!(!may_depend(Side::Outside, 6, Side::Dev, 7), "the product on a development tool");
    }

    #[test]
    fn a_crate_through_the_wall_is_named() {
        let edge = Dependency { name: "leakscope-rt".into(), kind: None, path: Some("x".into()) };
        let package = Package { name: "leakscope-report".into(), dependencies: vec![edge] };
        let wrong = check_layers(&Metadata { packages: vec![package] });
        assert_eq!(wrong, ["leakscope-report (Outside, row 5) depends on leakscope-rt (Inside, row 2)"]);
    }

    #[test]
    fn unsafe_is_seen_in_code_only() {
        let mut wrong = Vec::new();
        let text = format!("// {0} {{}}\nfn f() {{ {0} {{}} }}\n#![forbid({0}_code)]\n", concat!("un", "safe"));
        check_file(Path::new("crates/model/src/lib.rs"), &text, &mut wrong);
        assert_eq!(wrong, ["crates/model/src/lib.rs:2: unsafe code in a crate that has none"]);
    }
}
