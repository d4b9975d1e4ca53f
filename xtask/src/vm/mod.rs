//! `vm`: kernels of our own choice under software emulation, so that the kernel's leak finders are tested for real: a small
//! one with kmemleak and one with KASAN, built from Debian's sources, and Debian's own for clouds, as it comes, of this
//! release and of the one before. No KVM is used.
//!
//! **How a test runs in a guest.** A script of `scripts/` is the guest's first process's only child. It finds `leakscope`
//! and busybox on its PATH, the modules of `fixtures/kernel/modules` in `/mod`, and these functions:
//!
//! * `section NAME COMMAND...` runs a command and prints its output, standard error included, between markers on the
//!   serial console: `@@BEGIN NAME`, and `@@END NAME CODE` with its exit code.
//! * `keep NAME FILE` prints a file's bytes in base64 as a section.
//!
//! [`guest::boot`] gives the sections by name; a guest that does not come to the end of its script is an error that shows
//! the end of its console. Nothing but `proc`, `sys`, `dev` and `tmp` is mounted. [`CHECKS`] lists the scripts with the
//! kernels that they run on and the function that judges what they printed: a new test is a script, a function and a line.
//!
//! **What is kept.** Sources, builds and kernels are in `/var/cache/leakscope-vm` (or `LEAKSCOPE_VM_CACHE`), builds under a
//! hash of what they were built from.

mod checkers;
mod engines;
pub(crate) mod guest;
mod kernels;
mod kmemleak;
mod monitor;
mod names;
mod packages;
mod stock;
mod trace;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, bail};

use crate::step::build_leakscope;
pub(crate) use guest::Sections;
pub(crate) use kernels::{Kernel, Which};

/// A test in a guest.
struct Check {
    name: &'static str,
    script: &'static str,
    /// What is added to the kernel's command line.
    words: &'static str,
    on: &'static [Which],
    /// Puts further files into the guest's root.
    files: fn(&Kernel, &Path) -> Result<()>,
    judge: fn(&Kernel, &Sections) -> Result<()>,
}

/// For tests that need no files of their own.
fn no_files(_: &Kernel, _: &Path) -> Result<()> {
    Ok(())
}

/// All tests, in the order in which they run.
const CHECKS: &[Check] = &[
    Check {
        name: "kmemleak",
        script: include_str!("scripts/kmemleak.sh"),
        words: "kfence.sample_interval=0 slub_debug=FZPU,kmalloc-64",
        on: &[Which::Own],
        files: no_files,
        judge: kmemleak::judge,
    },
    Check {
        name: "names",
        script: include_str!("scripts/names.sh"),
        words: "",
        on: &[Which::Own],
        files: names::files,
        judge: names::judge,
    },
    Check {
        name: "engines",
        script: include_str!("scripts/engines.sh"),
        words: "",
        on: &[Which::Own],
        files: no_files,
        judge: engines::judge,
    },
    Check {
        name: "kasan",
        script: include_str!("scripts/kasan.sh"),
        // Without no5lvl an interrupt while the processor's features are looked up makes KASAN report the kernel itself:
        // for a moment it takes addresses of 57 bits for wrong ones.
        words: "kasan_multi_shot no5lvl kfence.sample_interval=0 page_owner=on",
        on: &[Which::Kasan],
        files: no_files,
        judge: checkers::judge,
    },
    Check {
        name: "trace",
        script: include_str!("scripts/trace.sh"),
        words: "",
        on: &[Which::Own, Which::Stock, Which::Older],
        files: no_files,
        judge: trace::judge,
    },
    Check {
        name: "monitor",
        script: include_str!("scripts/monitor.sh"),
        words: "",
        on: &[Which::Own],
        files: no_files,
        judge: monitor::judge,
    },
    Check {
        name: "stock",
        script: include_str!("scripts/stock.sh"),
        words: "",
        on: &[Which::Stock, Which::Older],
        files: no_files,
        judge: stock::judge,
    },
];

const USAGE: &str = "\
usage: cargo xtask vm build [own|kasan|stock|older]  kernels and modules, as far as they are not there
       cargo xtask vm test [NAME..]                    all checks, or these
       cargo xtask vm run own|kasan|stock|older FILE.sh  a script of yours in a guest, with its whole console";

/// Where kernels are kept.
pub(crate) fn cache() -> PathBuf {
    std::env::var_os("LEAKSCOPE_VM_CACHE").map_or_else(|| "/var/cache/leakscope-vm".into(), PathBuf::from)
}

/// Runs the task.
///
/// # Errors
/// Something cannot be installed, built or booted, or a guest shows something else than is expected.
pub fn run(words: &[String]) -> Result<()> {
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["build"] => prepare(&Which::ALL.into_iter().filter(|which| which.is_known()).collect::<Vec<_>>()).map(|_| ()),
        ["build", which] => prepare(&[Which::of(which)?]).map(|_| ()),
        ["test", ref names @ ..] => test(names),
        ["run", which, file] => {
            build_leakscope()?;
            let kernels = prepare(&[Which::of(which)?])?;
            let script = std::fs::read_to_string(file)?;
            for kernel in &kernels {
                let sections = guest::boot(kernel, &script, "", no_files)?;
                println!("{}", sections.console);
            }
            Ok(())
        }
        _ => bail!("{USAGE}"),
    }
}

fn prepare(wanted: &[Which]) -> Result<Vec<Kernel>> {
    packages::install()?;
    wanted.iter().map(|&which| kernels::prepare(which)).collect()
}

/// The part of `cargo xtask test`: all checks; with `fast` only if no kernel has to be built for them first.
///
/// # Errors
/// As of [`run`].
pub fn for_tests(fast: bool) -> Result<()> {
    if fast && !kernels::are_built() {
        eprintln!("vm: its kernels are not built, so --fast leaves it out; next: cargo xtask vm build");
        return Ok(());
    }
    test(&[])
}

/// All checks, or those that are named.
///
/// # Errors
/// As of [`run`].
pub fn test(names: &[&str]) -> Result<()> {
    if let Some(unknown) = names.iter().find(|name| CHECKS.iter().all(|check| check.name != **name)) {
        let known: Vec<&str> = CHECKS.iter().map(|check| check.name).collect();
        bail!("no check `{unknown}`; there are {}", known.join(", "));
    }
    build_leakscope()?;
    let checks: Vec<&Check> = CHECKS.iter().filter(|check| names.is_empty() || names.contains(&check.name)).collect();
    let wanted: Vec<Which> = Which::ALL
        .into_iter()
        .filter(|which| checks.iter().any(|check| check.on.contains(which)))
        .filter(|which| which.is_known())
        .collect();
    let kernels = prepare(&wanted)?;
    let mut failed = Vec::new();
    for check in checks {
        for kernel in kernels.iter().filter(|kernel| check.on.contains(&kernel.which)) {
            let begin = Instant::now();
            let name = format!("{} on {}", check.name, kernel.release);
            let result = guest::boot(kernel, check.script, check.words, check.files).and_then(|sections| {
                (check.judge)(kernel, &sections).inspect_err(|_| eprintln!("{}", sections.console))
            });
            let seconds = begin.elapsed().as_secs_f64();
            match result {
                Ok(()) => eprintln!("vm: {name}: ok, {seconds:.0} s"),
                Err(error) => {
                    eprintln!("vm: {name}: {error:#}");
                    failed.push(name);
                }
            }
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("vm: {}", failed.join("; ")) }
}
