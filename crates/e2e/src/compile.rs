//! Builds a fixture: one program for each set of flags, and the shared libraries that it loads.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::fixture::Fixture;
use crate::paths::{fixtures_dir, target_dir};
use crate::run::{Ending, Run};

/// A built fixture.
#[derive(Debug, Clone)]
pub struct Program {
    /// The executable.
    pub path: PathBuf,
    /// The flags that it was built with, for messages.
    pub flags: String,
}

/// Frames that tail calls would remove are what the tables name, so they stay.
const ALWAYS: &[&str] = &["-fno-optimize-sibling-calls", "-pthread", "-w"];

/// Builds every variant of a fixture under `target/fixtures`.
///
/// # Errors
/// The compiler is missing or refuses the source; the message carries its words.
pub fn compile(fixture: &Fixture) -> Result<Vec<Program>> {
    fixture.builds.iter().enumerate().map(|(index, flags)| build_one(fixture, index, flags)).collect()
}

fn build_one(fixture: &Fixture, index: usize, flags: &[String]) -> Result<Program> {
    let dir = target_dir().join("fixtures").join(format!("{}-{index}", fixture.name()));
    std::fs::create_dir_all(&dir)?;
    for plugin in &fixture.plugins {
        let source = fixtures_dir().join("plugin").join(plugin);
        let stem = source.file_stem().context("a plugin has a file name")?.to_owned();
        let library = dir.join(stem).with_extension("so");
        let run = Run::new(compiler(plugin)).args(flags).args(ALWAYS).args(["-shared", "-fPIC", "-o"]);
        compile_with(run.arg(library).arg(source))?;
    }
    let path = dir.join(fixture.name());
    let source = fixture.source.to_string_lossy().into_owned();
    let run = Run::new(compiler(&source)).args(flags).args(ALWAYS).arg("-Wl,-rpath,$ORIGIN");
    compile_with(run.arg("-o").arg(&path).arg(source).args(&fixture.libs))?;
    Ok(Program { path, flags: flags.join(" ") })
}

fn compiler(source: &str) -> &'static str {
    if source.ends_with(".c") { "gcc" } else { "g++" }
}

fn compile_with(run: Run) -> Result<()> {
    let run = run.limit(Duration::from_secs(120));
    let finished = run.finish()?;
    if finished.ending != Ending::Exit(0) {
        bail!("{}\n{}", run.shown(), finished.stderr);
    }
    Ok(())
}
