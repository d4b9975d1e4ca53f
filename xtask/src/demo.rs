//! `demo`: the main job on a program of the distribution as it is installed, and on a small one with debug information.

use anyhow::{Context, Result, bail};
use leakscope_e2e::{leakscope_bin, repo_root, target_dir};

use crate::step::{build_leakscope, on_path, step};

/// Builds leakscope and shows two reports.
///
/// # Errors
/// The build fails, or a program that the demo runs is missing.
pub fn run() -> Result<()> {
    for program in ["gcc", "g++", "ld"] {
        if !on_path(program) {
            bail!("{program} is not installed; next: cargo xtask setup");
        }
    }
    build_leakscope()?;
    let binary = leakscope_bin();
    let leakscope = binary.to_str().context("the path of leakscope is UTF-8")?;
    let dir = target_dir().join("demo");
    std::fs::create_dir_all(&dir)?;
    let (object, program) = (dir.join("empty.o"), dir.join("orders"));
    let (object, program) = (object.to_str().context("UTF-8")?, program.to_str().context("UTF-8")?);
    let source = repo_root().join("fixtures/demo");
    let (empty, orders) = (source.join("empty.c"), source.join("orders.cpp"));

    eprintln!(
        "\nA program of the distribution, without debug information: GNU ld loses some blocks whenever it links."
    );
    step(&["gcc", "-c", "-o", object, empty.to_str().context("UTF-8")?])?;
    let linked = dir.join("empty.so");
    step(&[leakscope, "run", "--", "ld", "-shared", "-o", linked.to_str().context("UTF-8")?, object])?;

    eprintln!("\nA program with debug information: file and line.");
    step(&["g++", "-g", "-O1", "-o", program, orders.to_str().context("UTF-8")?])?;
    step(&[leakscope, "run", "--leak-check=full", "--", program])
}
