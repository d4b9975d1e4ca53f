//! `setup`: installs the packages that demo, test and bench need, or names them; and what the tests of the page need
//! from npm and from Python's index, in folders of the repository and nowhere else.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use leakscope_e2e::{repo_root, target_dir};

use crate::step::{on_path, step, step_with};

/// Debian's and Ubuntu's package names.
const PACKAGES: &[&str] = &[
    "binutils",
    "build-essential",
    "bzip2",
    "chromium",
    "clang-19",
    "cmake",
    "curl",
    "dpkg-dev",
    "dwz",
    "elfutils",
    "file",
    "gdb",
    "git",
    "golang-go",
    "heaptrack",
    "libc-devtools",
    "libclang-rt-19-dev",
    "libjemalloc2",
    "libmimalloc2.0",
    "libsasl2-modules",
    "libtcmalloc-minimal4",
    "llvm-19",
    "meson",
    "musl-tools",
    "nginx-light",
    "ninja-build",
    "nodejs",
    "npm",
    "openssl",
    "perl",
    "postfix",
    "prometheus",
    "prometheus-alertmanager",
    "prometheus-process-exporter",
    "python3",
    "python3-venv",
    "redis-server",
    "redis-tools",
    "sasl2-bin",
    "sqlite3",
    "strace",
    "valgrind",
    "xz-utils",
];

/// What goes without them says so when it runs.
const OPTIONAL: &[&str] = &[
    "clang-19",
    "libclang-rt-19-dev",
    "libsasl2-modules",
    "llvm-19",
    "nginx-light",
    "postfix",
    "prometheus",
    "prometheus-alertmanager",
    "prometheus-process-exporter",
    "sasl2-bin",
];

/// Packages that a program on PATH stands in for, however it came there.
const STAND_INS: &[(&str, &str)] = &[("nginx-light", "nginx"), ("nodejs", "node"), ("npm", "npm"), ("golang-go", "go")];

/// The version that the tests were written with.
const NEXTEST: &str = "0.9.143";

/// Installs what is missing.
///
/// # Errors
/// A package is missing and cannot be installed; the message is the command that installs it.
pub fn run() -> Result<()> {
    system_packages()?;
    page_packages()?;
    python_packages()?;
    nextest()
}

/// Where the tests find what is not the system's: Python's packages, and cargo-nextest.
pub fn own_programs() -> [PathBuf; 2] {
    [target_dir().join("python/bin"), target_dir().join("tools/bin")]
}

/// A test runner that `leakscope cargo nextest run` stands in front of.
fn nextest() -> Result<()> {
    let own = target_dir().join("tools");
    if on_path("cargo-nextest") || own.join("bin/cargo-nextest").exists() {
        return Ok(());
    }
    let root = own.to_str().context("the repository's path is UTF-8")?;
    step(&["cargo", "install", "--quiet", "--locked", "--root", root, "--version", NEXTEST, "cargo-nextest"])
}

fn python_packages() -> Result<()> {
    let (wanted, installed) = (repo_root().join("xtask/python.txt"), target_dir().join("python/installed.txt"));
    let list = std::fs::read_to_string(&wanted).with_context(|| format!("read {}", wanted.display()))?;
    if std::fs::read_to_string(&installed).is_ok_and(|text| text == list) {
        eprintln!("the packages of xtask/python.txt are installed");
        return Ok(());
    }
    let text = |path: &Path| path.to_str().map(str::to_owned).context("the repository's path is UTF-8");
    let (folder, pip) = (text(&target_dir().join("python"))?, text(&target_dir().join("python/bin/pip"))?);
    step(&["python3", "-m", "venv", "--clear", &folder])?;
    step(&[&pip, "install", "--quiet", "--disable-pip-version-check", "--requirement", &text(&wanted)?])?;
    std::fs::write(&installed, list).with_context(|| format!("write {}", installed.display()))
}

/// What `npm ci` installs is in the folder already when it is what the lock file says.
fn page_packages() -> Result<()> {
    let folder = repo_root().join("crates/report/web");
    // npm writes the second one when it is done; it is never older than the lock file that it was made from.
    let written = |name: &str| std::fs::metadata(folder.join(name)).and_then(|file| file.modified());
    let lock = written("package-lock.json").context("crates/report/web/package-lock.json")?;
    if written("node_modules/.package-lock.json").is_ok_and(|installed| installed >= lock) {
        eprintln!("the page's packages are installed");
        return Ok(());
    }
    let prefix = folder.to_str().context("the repository's path is UTF-8")?;
    step(&["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", prefix])
}

fn system_packages() -> Result<()> {
    let missing: Vec<&str> = PACKAGES.iter().copied().filter(|package| !is_installed(package)).collect();
    if missing.is_empty() {
        eprintln!("all {} packages are installed", PACKAGES.len());
        return Ok(());
    }
    if !rustix::process::geteuid().is_root() {
        bail!("not installed: {0}\nnext: sudo apt-get install --no-install-recommends {0}", missing.join(" "));
    }
    eprintln!("not installed: {}", missing.join(" "));
    step(&["apt-get", "update", "--quiet"])?;
    let install = ["apt-get", "install", "--yes", "--quiet", "--no-install-recommends"];
    let env = [("DEBIAN_FRONTEND", "noninteractive")];
    let all: Vec<&str> = install.iter().copied().chain(missing.iter().copied()).collect();
    if step_with(&all, &env).is_ok() {
        return Ok(());
    }
    // One name that this release does not have must not keep the others away.
    let mut failed = Vec::new();
    for package in missing {
        let one: Vec<&str> = install.iter().copied().chain([package]).collect();
        if step_with(&one, &env).is_err() {
            failed.push(package);
        }
    }
    let needed: Vec<&str> = failed.iter().copied().filter(|package| !OPTIONAL.contains(package)).collect();
    if !failed.is_empty() {
        eprintln!("this release has no package {}", failed.join(", "));
    }
    if !needed.is_empty() {
        bail!("not installed: {}", needed.join(" "));
    }
    Ok(())
}

pub(crate) fn is_installed(package: &str) -> bool {
    let query = ["--show", "--showformat=${db:Status-Status}", package];
    let stands_in = STAND_INS.iter().find(|(name, _)| *name == package).is_some_and(|(_, program)| on_path(program));
    stands_in
        || Command::new("dpkg-query")
            .args(query)
            .output()
            .is_ok_and(|output| output.status.success() && output.stdout == b"installed")
}
