//! One step of a task: a command that is shown, run with the terminal's own output, and must succeed.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use leakscope_e2e::{leakscope_bin, repo_root};

/// Shows and runs a command in the repository's top folder, and says how long it took.
///
/// # Errors
/// It cannot be started, or it ends with another code than 0.
pub fn step(words: &[&str]) -> Result<()> {
    step_with(words, &[])
}

/// The same with additional environment variables.
///
/// # Errors
/// It cannot be started, or it ends with another code than 0.
pub fn step_with(words: &[&str], env: &[(&str, &str)]) -> Result<()> {
    let assignments: String = env.iter().map(|(name, value)| format!("{name}={value} ")).collect();
    eprintln!("\n$ {assignments}{}", words.join(" "));
    let (program, args) = words.split_first().context("a step has a program")?;
    let begin = Instant::now();
    let status = Command::new(program)
        .args(args)
        .envs(env.iter().copied())
        .current_dir(repo_root())
        .status()
        .with_context(|| format!("start {program}"))?;
    if !status.success() {
        bail!("`{}` ended with {status}", words.join(" "));
    }
    eprintln!("[{:.0} s] {}", begin.elapsed().as_secs_f64(), words.join(" "));
    Ok(())
}

/// Builds the release binary unless `LEAKSCOPE_BIN` names another one.
///
/// # Errors
/// The build fails.
pub fn build_leakscope() -> Result<()> {
    if std::env::var_os("LEAKSCOPE_BIN").is_none() {
        step(&["cargo", "build", "--release", "--package", "leakscope"])?;
    }
    if !leakscope_bin().exists() {
        bail!("{} does not exist after the build", leakscope_bin().display());
    }
    Ok(())
}

/// The first line that a command prints, or `not installed`.
pub fn first_line(words: &[&str]) -> String {
    let output = words.split_first().and_then(|(program, args)| Command::new(program).args(args).output().ok());
    let text = output.map(|output| {
        let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
        String::from_utf8_lossy(&text).lines().next().unwrap_or_default().trim().to_owned()
    });
    text.filter(|line| !line.is_empty()).unwrap_or_else(|| "not installed".to_owned())
}

/// Whether the system has this program on PATH.
pub fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).any(|dir| dir.join(program).is_file())
}
