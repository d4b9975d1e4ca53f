//! `fuzz`: builds the targets of `fuzz/` for libFuzzer and runs each for some seconds.
//!
//! The programs are cargo-fuzz's and can be run by it; here they are built by cargo itself, with the same flags, so that
//! nothing has to be installed and the stable compiler is enough: `RUSTC_BOOTSTRAP` allows it `-Zsanitizer`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use leakscope_e2e::{repo_root, target_dir};

use crate::step::step_with;

/// Seconds for each target when nothing else is asked for; two processors are done in little more than a minute.
pub const SHORT_SECONDS: u32 = 8;
/// Where a run that judges a change begins.
const SEED: &str = "-seed=20251";
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// cargo-fuzz's. Source: `cargo-fuzz` 0.13, `src/project.rs`.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
                     -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing -Zsanitizer=address \
                     -Ccodegen-units=1 -Cdebug-assertions";
/// A reader takes no memory in proportion to a number that a file claims; AddressSanitizer's own is in it.
const LIMITS: &[&str] = &["-rss_limit_mb=1024", "-malloc_limit_mb=256", "-timeout=10", "-max_len=65536"];

/// `fuzz [--seconds N] [NAME..]`.
///
/// # Errors
/// The build fails, or a target finds an input that it cannot bear; the message names the file.
pub fn run(words: &[String]) -> Result<()> {
    let mut seconds = SHORT_SECONDS;
    let mut names = Vec::new();
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        match word.as_str() {
            "--seconds" => {
                seconds = rest.next().context("--seconds takes a number")?.parse().context("--seconds")?;
            }
            option if option.starts_with('-') => bail!("usage: cargo xtask fuzz [--seconds N] [NAME..]"),
            name => names.push(name.to_owned()),
        }
    }
    let all = targets()?;
    if let Some(unknown) = names.iter().find(|name| !all.contains(name)) {
        bail!("no fuzz target `{unknown}`; there are {}", all.join(", "));
    }
    short(seconds, if names.is_empty() { &all } else { &names }, false)
}

/// Every target, for the usual time. With `again` each begins with the same inputs and the same random numbers, so that the
/// run judges a change; otherwise it goes on from what earlier runs have found.
///
/// # Errors
/// As [`run`].
pub fn all(again: bool) -> Result<()> {
    short(SHORT_SECONDS, &targets()?, again)
}

fn short(seconds: u32, names: &[String], again: bool) -> Result<()> {
    let dir = target_dir().join("fuzz");
    let dir_text = dir.to_str().context("the target folder's path is UTF-8")?;
    let build = ["cargo", "build", "--release", "--locked", "--bins", "--manifest-path", "fuzz/Cargo.toml"];
    let place = ["--target", TARGET, "--target-dir", dir_text];
    step_with(&[&build[..], &place].concat(), &[("RUSTC_BOOTSTRAP", "1"), ("RUSTFLAGS", FLAGS)])?;
    let begin = Instant::now();
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let one_after_another = || {
        while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(error) = fuzz(&dir, name, seconds, again) {
                failed.lock().expect("no thread panics with it").push(format!("{name}: {error:#}"));
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(one_after_another);
        }
    });
    eprintln!("fuzz: {} targets, {seconds} s each, {} s in all", names.len(), begin.elapsed().as_secs());
    let failed = failed.into_inner().expect("no thread panicked with it");
    if !failed.is_empty() {
        bail!("fuzz: {}", failed.join("\n"));
    }
    Ok(())
}

/// The programs that fuzz/Cargo.toml names.
fn targets() -> Result<Vec<String>> {
    #[derive(serde::Deserialize)]
    struct Manifest {
        bin: Vec<Bin>,
    }
    #[derive(serde::Deserialize)]
    struct Bin {
        name: String,
    }
    let path = repo_root().join("fuzz/Cargo.toml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let manifest: Manifest = toml::from_str(&text).with_context(|| format!("read {}", path.display()))?;
    Ok(manifest.bin.into_iter().map(|bin| bin.name).collect())
}

fn fuzz(dir: &Path, name: &str, seconds: u32, again: bool) -> Result<()> {
    let corpora = dir.join(if again { "corpus-again" } else { "corpus" });
    let (corpus, found) = (corpora.join(name), dir.join("artifacts").join(name));
    if again && corpus.exists() {
        std::fs::remove_dir_all(&corpus).with_context(|| format!("empty {}", corpus.display()))?;
    }
    std::fs::create_dir_all(&corpus)?;
    std::fs::create_dir_all(&found)?;
    let log_path = dir.join(format!("{name}.log"));
    let log = std::fs::File::create(&log_path).with_context(|| format!("create {}", log_path.display()))?;
    let status = Command::new(dir.join(TARGET).join("release").join(name))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/", found.display()))
        .arg("-print_final_stats=1")
        .args(LIMITS)
        .args(again.then_some(SEED))
        .arg(&corpus)
        .args(seeds(name))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .status()
        .with_context(|| format!("start {name}"))?;
    let said = String::from_utf8_lossy(&std::fs::read(&log_path)?).into_owned();
    if !status.success() {
        let reason = said.lines().find(|line| line.contains("ERROR:") || line.contains("panicked at"));
        bail!("{}; see {}", reason.unwrap_or("it ended with an error"), log_path.display());
    }
    let runs = said.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    let runs: u64 = runs.context("libFuzzer says how often it ran")?.trim().parse()?;
    // The seeds alone are some twenty; a target that does no more was not fuzzed.
    if runs < 50 {
        bail!("only {runs} runs in {seconds} s; see {}", log_path.display());
    }
    eprintln!("  {name}: {runs} runs");
    Ok(())
}

/// Folders with files to begin with.
fn seeds(name: &str) -> Option<PathBuf> {
    let top = repo_root();
    let is_import = name.starts_with("import_");
    let folder = if is_import { top.join("crates/import/tests/data") } else { top.join("fuzz/seeds").join(name) };
    folder.is_dir().then_some(folder)
}
