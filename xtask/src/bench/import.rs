//! `bench import`: large files of other tools, read by the whole command, beside what reads them otherwise.
//!
//! The kernel counts the peak of the process that starts a program into that of the program. So what needs little memory
//! comes first, and a peak that may be this process's own is shown as a bound.

use std::path::{Path, PathBuf};

use anyhow::Result;
use leakscope_e2e::{Run, leakscope_bin, target_dir};

use super::large;
use super::pairs::spread;
use super::reports::{Cost, once, written};
use crate::step::{first_line, on_path};

const XML_ERRORS: u32 = 80_000;
const EVENTS: u32 = 10_000_000;
/// The same program for a shorter time: what memory that follows live blocks alone does not see.
const FEW_EVENTS: u32 = EVENTS / 8;

/// Measures everything, in so many rounds, those beside glibc's script in fewer; gives the table.
///
/// # Errors
/// A file cannot be written, or a command fails.
pub fn table(quick: bool) -> Result<String> {
    let (rounds, pairs) = if quick { (3, 1) } else { (7, 3) };
    std::fs::create_dir_all(target_dir().join("bench"))?;
    let scratch = tempfile::tempdir_in(target_dir().join("bench"))?;
    let mut text = String::from("| what | to reach | measured |\n|---|---|---|\n");
    text += &mtrace(scratch.path(), rounds, pairs)?;
    text += &valgrind_xml(scratch.path(), rounds)?;
    text += &format!(
        "\nWhole commands: reading, analysis, names, the report as text, and the recording where one is written. Median (least \
         to greatest) of {rounds} rounds, and of {pairs} beside the script: in each of them both read the same file, one after the \
         other. *CPU* is user and system time: on a machine that does other work too, the steadier number. The XML \
         has {XML_ERRORS} loss records of 12 frames, no two stacks alike; the mtrace log has {EVENTS} events, at most {} live \
         blocks and {} callers, and its short form has {FEW_EVENTS} events of the same program. `xtask/src/bench/large.rs` makes them.\n",
        large::LIVE_BLOCKS,
        large::CALLERS
    );
    text += &format!(
        "\n| program | version |\n|---|---|\n| leakscope | {} |\n| mtrace | {} |\n| perl, which runs it | {} |\n",
        first_line(&[&leakscope_bin().to_string_lossy(), "--version"]),
        first_line(&["mtrace", "--version"]),
        first_line(&["perl", "-e", "print $^V"]),
    );
    Ok(text)
}

fn valgrind_xml(scratch: &Path, rounds: usize) -> Result<String> {
    let xml = scratch.join("large.xml");
    let bytes = written(&xml, |out| large::valgrind_xml(out, XML_ERRORS))?;
    let costs = repeat(&import(&xml, scratch), &[0], rounds)?;
    std::fs::remove_file(&xml)?;
    let megabytes = bytes as f64 / 1e6;
    Ok(format!(
        "| import of {megabytes:.0} MB of Valgrind's XML | 100 MB/s | {} |\n",
        rates(&costs, megabytes, "MB/s", 0)
    ))
}

fn mtrace(scratch: &Path, rounds: usize, pairs: usize) -> Result<String> {
    let (log, short) = (scratch.join("mtrace.log"), scratch.join("short.log"));
    let bytes = written(&log, |out| large::mtrace_log(out, EVENTS))?;
    written(&short, |out| large::mtrace_log(out, FEW_EVENTS))?;
    let command = |log: &PathBuf| Run::new(leakscope_bin()).arg("mtrace").arg(log);
    // Both end with 1 where something was not freed.
    let few = repeat(&command(&short), &[1], 1)?;
    let costs = repeat(&command(&log), &[1], rounds)?;
    let imported = repeat(&import(&log, scratch), &[0], rounds)?;
    let (megabytes, million) = (bytes as f64 / 1e6, f64::from(EVENTS) / 1e6);
    let goal = "5 million events/s";
    let mut rows = format!(
        "| `leakscope import` of an mtrace log of {megabytes:.0} MB | {goal} | {} |\n\
         | `leakscope mtrace` of the same | {goal} | {} |\n\
         | the same with an eighth of the events | no less memory | {} |\n",
        rates(&imported, million, "million/s", 1),
        rates(&costs, million, "million/s", 1),
        peak(&few),
    );
    rows += &beside_the_script(&command(&log), &log, pairs)?;
    std::fs::remove_file(&log)?;
    Ok(rows)
}

fn beside_the_script(ours: &Run, log: &Path, pairs: usize) -> Result<String> {
    const WHAT: &str = "| the same beside glibc's script | 20 times as fast |";
    if !on_path("mtrace") {
        return Ok(format!("{WHAT} not measured: mtrace is not installed |\n"));
    }
    let script = Run::new("mtrace").arg(log);
    let (mut wall, mut cpu, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..pairs {
        let our = Cost::of(&once(ours, &[1])?);
        let their = Cost::of(&once(&script, &[1])?);
        eprintln!("  {:.2} s beside {:.2} s of the script", our.seconds, their.seconds);
        wall.push(their.seconds / our.seconds);
        cpu.push(their.cpu_seconds / our.cpu_seconds);
        theirs.push(their);
    }
    let seconds: Vec<f64> = theirs.iter().map(|cost| cost.seconds).collect();
    Ok(format!(
        "{WHAT} {} times, CPU {} times (the script: {} s, {}) |\n",
        shown(&wall, 0),
        shown(&cpu, 0),
        shown(&seconds, 1),
        peak(&theirs)
    ))
}

fn import(file: &Path, scratch: &Path) -> Run {
    Run::new(leakscope_bin()).args(["import", "-q", "-o"]).arg(scratch.join("imported.leak")).arg(file)
}

fn repeat(run: &Run, codes: &[i32], rounds: usize) -> Result<Vec<Cost>> {
    let mut costs = Vec::new();
    for _ in 0..rounds {
        let cost = Cost::of(&once(run, codes)?);
        let (seconds, cpu) = (cost.seconds, cost.cpu_seconds);
        eprintln!("  {seconds:.2} s, CPU {cpu:.2} s, {:.0} MB: {}", cost.peak_megabytes, run.shown());
        costs.push(cost);
    }
    Ok(costs)
}

/// So much work a second, by wall time and by CPU time, and the memory for it.
fn rates(costs: &[Cost], work: f64, unit: &str, digits: usize) -> String {
    let rate = |seconds: fn(&Cost) -> f64| -> Vec<f64> { costs.iter().map(|cost| work / seconds(cost)).collect() };
    let (wall, cpu) = (rate(|cost| cost.seconds), rate(|cost| cost.cpu_seconds));
    format!("{} {unit}, CPU {} {unit}, {}", shown(&wall, digits), shown(&cpu, digits), peak(costs))
}

/// Median, and least to greatest when there are several.
fn shown(values: &[f64], digits: usize) -> String {
    match spread(values) {
        Some((median, least, greatest)) if values.len() > 1 => {
            format!("**{median:.digits$}** ({least:.digits$} to {greatest:.digits$})")
        }
        Some((median, ..)) => format!("**{median:.digits$}**"),
        None => "-".to_owned(),
    }
}

/// The greatest memory of all rounds.
fn peak(costs: &[Cost]) -> String {
    let peak = costs.iter().map(|cost| cost.peak_megabytes).fold(0.0, f64::max);
    let is_bound = own_peak_megabytes().is_none_or(|own| peak <= own);
    format!("{}{peak:.0} MB", if is_bound { "at most " } else { "" })
}

fn own_peak_megabytes() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: f64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kilobytes * 1024.0 / 1e6)
}
