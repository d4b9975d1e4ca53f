//! `bench reports`: reports of large recordings.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use leakscope_e2e::{Ending, Finished, Run, leakscope_bin, target_dir};

use super::large;

const SITES: u32 = 20_000;
const SITES_OF_A_MAIL: u32 = 5_000;
const ROUNDS: usize = 3;
const LIMIT: Duration = Duration::from_secs(300);

/// Measures everything; gives the table.
///
/// # Errors
/// A file cannot be written, or a command fails.
pub fn table() -> Result<String> {
    std::fs::create_dir_all(target_dir().join("bench"))?;
    let scratch = tempfile::tempdir_in(target_dir().join("bench"))?;
    let mut text = String::from("| what | to reach | measured |\n|---|---|---|\n");
    text += &html(scratch.path())?;
    text += &format!(
        "\nMedian of {ROUNDS} runs of the whole command (reading, analysis, names, writing), the greatest memory of them. The \
         recordings have stacks of 8 to 24 functions, {} samples of the heap over a week, and {} leak checks. \
         `xtask/src/bench/large.rs` makes them.\n",
        large::SAMPLES,
        large::CHECKS,
    );
    Ok(text)
}

fn html(scratch: &Path) -> Result<String> {
    let mut cells = Vec::new();
    for sites in [SITES, SITES_OF_A_MAIL] {
        let (recording, page) = (scratch.join("large.leak"), scratch.join("large.html"));
        let bytes = leakscope_findings::encode(&large::recording(sites));
        std::fs::write(&recording, bytes).with_context(|| format!("write {}", recording.display()))?;
        let run = Run::new(leakscope_bin()).args(["report", "--format=html", "-o"]).arg(&page).arg(&recording);
        let cost = median(&run, &[0])?;
        cells.push((cost, std::fs::metadata(&page)?.len()));
    }
    let [(large, large_page), (mail, mail_page)] = &cells[..] else { bail!("two pages") };
    let row = |what: String, goal: &str, cost: &Cost, page: u64| {
        let (seconds, cpu, peak) = (cost.seconds, cost.cpu_seconds, cost.peak_megabytes);
        let page = page as f64 / 1e6;
        format!("| {what} | {goal} | {seconds:.2} s (CPU {cpu:.2} s), {peak:.0} MB, page of {page:.2} MB |\n")
    };
    let first = row(format!("HTML of {SITES} sites"), "3 s, 500 MB", large, *large_page);
    Ok(first + &row(format!("HTML of {SITES_OF_A_MAIL} sites"), "page of 2 MB", mail, *mail_page))
}

/// What one run of a command cost.
pub(super) struct Cost {
    pub(super) seconds: f64,
    /// User and system time: on a machine that does other work too, the steadier number.
    pub(super) cpu_seconds: f64,
    pub(super) peak_megabytes: f64,
}

impl Cost {
    pub(super) fn of(finished: &Finished) -> Cost {
        Cost {
            seconds: finished.wall.as_secs_f64(),
            cpu_seconds: finished.cpu.as_secs_f64(),
            peak_megabytes: finished.max_rss_bytes as f64 / 1e6,
        }
    }
}

fn median(run: &Run, codes: &[i32]) -> Result<Cost> {
    let mut costs = Vec::new();
    for _ in 0..ROUNDS {
        costs.push(Cost::of(&once(run, codes)?));
    }
    costs.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    let peak_megabytes = costs.iter().map(|cost| cost.peak_megabytes).fold(0.0, f64::max);
    let middle = &costs[ROUNDS / 2];
    let cost = Cost { seconds: middle.seconds, cpu_seconds: middle.cpu_seconds, peak_megabytes };
    let (seconds, cpu) = (cost.seconds, cost.cpu_seconds);
    eprintln!("  {seconds:.2} s, CPU {cpu:.2} s, {peak_megabytes:.0} MB: {}", run.shown());
    Ok(cost)
}

/// One run that must end with one of these codes.
pub(super) fn once(run: &Run, codes: &[i32]) -> Result<Finished> {
    let run = run.clone().limit(LIMIT);
    let finished = run.finish()?;
    match finished.ending {
        Ending::Exit(code) if codes.contains(&code) => Ok(finished),
        ending => bail!("{}: {ending:?}: {}", run.shown(), finished.stderr),
    }
}

/// Writes a file; gives its length in bytes.
pub(super) fn written(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>) -> Result<u64> {
    let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    write(&mut out).and_then(|()| out.flush()).with_context(|| format!("write {}", path.display()))?;
    Ok(std::fs::metadata(path)?.len())
}
