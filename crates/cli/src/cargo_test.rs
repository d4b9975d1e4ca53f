//! `leakscope cargo test`: cargo with leakscope as the runner of what it builds, and one verdict on all programs.
//!
//! Cargo (and cargo-nextest) starts the programs that it builds through the runner that the environment names; its words
//! are separated by spaces, so it is called by a name in a folder of our own. Each program leaves a recording there.

use std::ffi::OsStr;
use std::fs::DirBuilder;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};

use anyhow::{Context, Result, bail};
use clap::ArgMatches;

use crate::flags::CargoArgs;
use crate::gate::{Gate, read};

/// The variable with the runner for the one target that we know.
const RUNNER: &str = "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER";

/// Runs the subcommand.
///
/// # Errors
/// When cargo cannot be started, nothing was recorded, or as for `gate`.
pub fn main(args: &CargoArgs, matches: &ArgMatches) -> Result<ExitCode> {
    let gate = Gate::new(&args.view, &args.policy, matches)?;
    if let Some(runner) = std::env::var_os(RUNNER) {
        bail!("{RUNNER}={}: there is a runner already, and there can be one only; unset it", runner.to_string_lossy());
    }
    let folder = Folder::create()?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(&cargo)
        .args(&args.words)
        .env(RUNNER, folder.runner()?)
        .status()
        .with_context(|| format!("{}: cannot start it; is cargo installed?", cargo.to_string_lossy()))?;
    if !status.success() {
        eprintln!("leakscope: cargo failed ({status}), so leaks are not judged");
        return Ok(code(status));
    }
    let files = folder.recordings()?;
    if files.is_empty() {
        bail!(
            "cargo ran no program of the target x86_64-unknown-linux-gnu, so nothing was recorded; name a command that runs some, such as `test`"
        );
    }
    let recording = read(&files, &gate.view)?;
    let kept = gate.view.recordings.clone();
    gate.finish(&recording, &kept)
}

fn code(status: ExitStatus) -> ExitCode {
    ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(crate::FAILED))
}

/// A folder that goes away.
struct Folder(PathBuf);

impl Folder {
    fn create() -> Result<Self> {
        let place = std::env::temp_dir();
        let free = |number: &u32| !place.join(format!("leakscope-cargo-{}-{number}", std::process::id())).exists();
        let number = (0..).find(free).unwrap_or(0);
        let path = place.join(format!("leakscope-cargo-{}-{number}", std::process::id()));
        // Only we may write there: it holds what cargo will execute.
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("{}: cannot create it; point TMPDIR at a place to write to", path.display()))?;
        let folder = Self(path);
        let program = std::env::current_exe().context("our own path")?;
        symlink(program, folder.0.join("leakscope"))
            .with_context(|| format!("{}: cannot write there", folder.0.display()))?;
        Ok(folder)
    }

    /// The words of the runner.
    fn runner(&self) -> Result<String> {
        let folder = self.0.to_str().filter(|path| !path.contains(char::is_whitespace));
        let folder = folder.with_context(|| {
            format!("{}: cargo's runner cannot have spaces in it; point TMPDIR elsewhere", self.0.display())
        })?;
        let name = folder.replace('%', "%%");
        Ok(format!("{folder}/leakscope run --quiet --log-file=/dev/null -o {name}/%p-%n.leak --"))
    }

    fn recordings(&self) -> Result<Vec<PathBuf>> {
        let is_recording = |path: &Path| path.extension() == Some(OsStr::new("leak"));
        let entries = std::fs::read_dir(&self.0).with_context(|| format!("{}: cannot list it", self.0.display()))?;
        let mut files: Vec<PathBuf> =
            entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| is_recording(path)).collect();
        files.sort();
        Ok(files)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What stays behind lies in the folder for temporary files.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
