//! `setup`: installs the packages that demo, test and bench need, or names them.

use std::process::Command;

use anyhow::{Result, bail};

use crate::step::{step, step_with};

/// Debian's and Ubuntu's package names.
const PACKAGES: &[&str] = &[
    "binutils",
    "build-essential",
    "bzip2",
    "clang-19",
    "curl",
    "dpkg-dev",
    "dwz",
    "elfutils",
    "file",
    "gdb",
    "git",
    "heaptrack",
    "libjemalloc2",
    "libmimalloc2.0",
    "libtcmalloc-minimal4",
    "llvm-19",
    "musl-tools",
    "nginx-light",
    "openssl",
    "perl",
    "python3",
    "redis-server",
    "redis-tools",
    "sqlite3",
    "strace",
    "valgrind",
    "xz-utils",
];

/// What goes without them says so when it runs.
const OPTIONAL: &[&str] = &["clang-19", "llvm-19", "nginx-light"];

/// Installs what is missing.
///
/// # Errors
/// A package is missing and cannot be installed; the message is the command that installs it.
pub fn run() -> Result<()> {
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

fn is_installed(package: &str) -> bool {
    let query = ["--show", "--showformat=${db:Status-Status}", package];
    // nginx-light is one of several packages that bring the server.
    let stands_in = package == "nginx-light" && crate::step::on_path("nginx");
    stands_in
        || Command::new("dpkg-query")
            .args(query)
            .output()
            .is_ok_and(|output| output.status.success() && output.stdout == b"installed")
}
