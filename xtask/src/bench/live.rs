//! Measurements on many live blocks: the leak check at exit, the pause of a snapshot, memory for each block.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use leakscope_e2e::{Ending, Run, leakscope_bin};
use rustix::time::{ClockId, clock_gettime};

use super::tools::Tool;

/// What `live_blocks BLOCKS BYTES exit` says of one run.
pub struct ExitRun {
    /// Resident bytes of the target with all blocks live.
    pub resident_bytes: f64,
    /// Seconds from the last statement of the program until everything has ended: leak check and report.
    pub after_seconds: f64,
    /// Native wall seconds in all.
    pub wall_seconds: f64,
}

/// Runs it under a tool.
///
/// # Errors
/// It fails or takes longer than the limit.
pub fn exit_run(tool: Tool, program: &Path, blocks: u64, bytes: u64, limit: Duration) -> Result<ExitRun> {
    let scratch = tempfile::tempdir()?;
    let run = tool.start(program, scratch.path()).args([&blocks.to_string(), &bytes.to_string(), "exit"]);
    let finished = run.limit(limit).finish()?;
    let end = clock_gettime(ClockId::Monotonic);
    if finished.ending != Ending::Exit(0) {
        bail!("{:?}: {}", finished.ending, finished.stderr.lines().last().unwrap_or_default());
    }
    let said = String::from_utf8_lossy(&finished.stdout).into_owned();
    let number = |key: &str| -> Result<f64> {
        let line = said.lines().find_map(|line| line.strip_prefix(key)).with_context(|| format!("no `{key}`"))?;
        Ok(line.trim().parse()?)
    };
    let end_seconds = end.tv_sec as f64 + end.tv_nsec as f64 / 1e9;
    Ok(ExitRun {
        resident_bytes: number("resident")?,
        after_seconds: end_seconds - number("leaving")?,
        wall_seconds: finished.wall.as_secs_f64(),
    })
}

/// What a snapshot cost.
pub struct Pause {
    /// Longest time between two ticks of the target's own thread, in ms, with a snapshot and without.
    pub longest_gap_ms: f64,
    /// How long `leakscope snapshot` took in all, in seconds.
    pub command_seconds: f64,
}

/// Runs `live_blocks` under leakscope, asks for a snapshot (unless `idle`) and reads the target's longest gap.
///
/// # Errors
/// The program or the snapshot fails.
pub fn snapshot_pause(program: &Path, blocks: u64, bytes: u64, idle: bool) -> Result<Pause> {
    let scratch = tempfile::tempdir()?;
    let run: Run = Tool::Leakscope.start(program, scratch.path());
    let mut command = run.args([&blocks.to_string(), &bytes.to_string(), "wait"]).dir(scratch.path()).command()?;
    let log = std::fs::File::create(scratch.path().join("stderr"))?;
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).process_group(0).spawn()?;
    let mut output = BufReader::new(child.stdout.take().context("stdout is piped")?);
    let mut ready = String::new();
    output.read_line(&mut ready)?;
    let pid = ready.strip_prefix("ready ").with_context(|| format!("expected `ready PID`, found `{ready}`"))?.trim();
    let begin = Instant::now();
    if idle {
        std::thread::sleep(Duration::from_secs(2));
    } else {
        let done = Command::new(leakscope_bin()).args(["snapshot", pid]).stdout(Stdio::null()).output()?;
        if !done.status.success() {
            bail!("leakscope snapshot: {}: {}", done.status, String::from_utf8_lossy(&done.stderr));
        }
    }
    let command_seconds = begin.elapsed().as_secs_f64();
    drop(child.stdin.take());
    let mut rest = String::new();
    output.read_to_string(&mut rest)?;
    child.wait()?;
    let gap = rest.lines().find_map(|line| line.strip_prefix("gap ")).with_context(|| format!("no gap in `{rest}`"))?;
    Ok(Pause { longest_gap_ms: gap.trim().parse()?, command_seconds })
}
