//! `bench`: speed and memory of leakscope beside the other tools, every number taken in the same run as its pair.

mod live;
mod page;
mod pairs;
pub mod redis;
pub mod tools;
pub mod workloads;

use std::time::Duration;

use anyhow::{Context, Result, bail};
use leakscope_e2e::target_dir;

use self::page::Page;
use self::tools::Tool;
use crate::step::build_leakscope;

/// A run that takes longer is stopped and reported as such.
const LIMIT: Duration = Duration::from_secs(240);
const DEFAULT_ROUNDS: usize = 5;
const REDIS_REQUESTS: u32 = 200_000;

struct Options {
    names: Vec<String>,
    rounds: usize,
    write: bool,
    peers_only: bool,
}

/// Measures the named workloads, or all of them.
///
/// # Errors
/// A workload cannot be prepared, or its native run fails.
pub fn run(words: &[String]) -> Result<()> {
    let options = parse(words)?;
    if !options.peers_only {
        build_leakscope()?;
    }
    let is_ours = |tool: &Tool| matches!(tool, Tool::Leakscope | Tool::Sampled);
    let wanted = |tool: &Tool| tool.is_installed() && !(options.peers_only && is_ours(tool));
    let tools: Vec<Tool> = Tool::ALL.into_iter().filter(wanted).collect();
    let mut page = Page::new(&tools, words);
    for name in &options.names {
        eprintln!("\n{name}");
        match name.as_str() {
            "redis" => {
                let series = redis::measure(&tools, options.rounds, REDIS_REQUESTS)?;
                let what =
                    format!("the server's own CPU time under redis-benchmark, {REDIS_REQUESTS} requests of 4 kinds");
                page.ratios("redis", &what, "1.06", &series);
            }
            "exit-check" => exit_check(&tools, &mut page)?,
            "snapshot" if options.peers_only => continue,
            "snapshot" => snapshot(&mut page)?,
            "memory" => memory(&tools, &mut page)?,
            _ => {
                let workload = workloads::prepare(name)?;
                let series =
                    pairs::measure(&tools, options.rounds, LIMIT, |tool, scratch| workload.under(tool, scratch))?;
                page.ratios(workload.name, &workload.what, workload.target, &series);
            }
        }
        // What is measured so far is worth having even when a later workload fails.
        println!("\n{}", page.last_row());
    }
    let text = page.markdown();
    println!("\n{text}");
    if options.write {
        page::write(&text, &page.excerpt())?;
    }
    Ok(())
}

fn parse(words: &[String]) -> Result<Options> {
    let mut options = Options { names: Vec::new(), rounds: DEFAULT_ROUNDS, write: false, peers_only: false };
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        match word.as_str() {
            "--runs" => options.rounds = rest.next().context("--runs takes a number")?.parse().context("--runs")?,
            "--write" => options.write = true,
            "--peers" => options.peers_only = true,
            name if name.starts_with('-') => bail!("no option `{name}`; there are --runs N, --write and --peers"),
            name => options.names.push(name.to_owned()),
        }
    }
    if options.rounds == 0 {
        bail!("--runs 0: expected at least 1");
    }
    if options.names.is_empty() {
        options.names = workloads::NAMES.iter().map(|name| name.to_string()).collect();
        options.names.extend(["redis", "exit-check", "snapshot", "memory"].map(str::to_owned));
    }
    Ok(options)
}

fn exit_check(tools: &[Tool], page: &mut Page) -> Result<()> {
    let program = workloads::build(&target_dir().join("bench"), "live_blocks")?;
    let (blocks, bytes) = (10_000_000, 200);
    for tool in tools.iter().filter(|tool| !matches!(tool, Tool::HeaptrackRaw | Tool::Heaptrack)) {
        let cell = match live::exit_run(*tool, &program, blocks, bytes, LIMIT) {
            Ok(run) => format!("{:.2} s (whole run {:.1} s)", run.after_seconds, run.wall_seconds),
            Err(error) => format!("{error:#}"),
        };
        eprintln!("  {:20} {cell}", tool.title());
        page.set("exit-check", *tool, cell);
    }
    let what = "from the program's last statement to the end of the command, 10,000,000 live blocks of 200 bytes";
    page.row("exit-check", what, "1.0 s");
    Ok(())
}

fn snapshot(page: &mut Page) -> Result<()> {
    let program = workloads::build(&target_dir().join("bench"), "live_blocks")?;
    let cell = match (
        live::snapshot_pause(&program, 10_000_000, 200, true),
        live::snapshot_pause(&program, 10_000_000, 200, false),
    ) {
        (Ok(idle), Ok(pause)) => format!(
            "{:.1} ms (command {:.2} s; without a snapshot {:.1} ms)",
            pause.longest_gap_ms, pause.command_seconds, idle.longest_gap_ms
        ),
        (Err(error), _) | (_, Err(error)) => format!("{error:#}"),
    };
    eprintln!("  {cell}");
    page.set("snapshot", Tool::Leakscope, cell);
    let what = "longest gap that a ticking thread of the target sees during `leakscope snapshot`, the same blocks";
    page.row("snapshot", what, "200 ms");
    Ok(())
}

/// Added resident bytes: for each block, as the slope between no blocks and a million; and with no blocks.
fn memory(tools: &[Tool], page: &mut Page) -> Result<()> {
    let program = workloads::build(&target_dir().join("bench"), "live_blocks")?;
    let blocks = 1_000_000;
    let mut native = Vec::new();
    for tool in tools {
        let resident =
            |blocks, bytes| live::exit_run(*tool, &program, blocks, bytes, LIMIT).map(|run| run.resident_bytes);
        let measured: Result<Vec<f64>> = [(0, 16), (blocks, 16), (blocks, 64), (blocks, 200)]
            .into_iter()
            .map(|(n, bytes)| resident(n, bytes))
            .collect();
        let measured = match measured {
            Ok(measured) => measured,
            Err(error) if *tool == Tool::Native => return Err(error),
            Err(error) => {
                page.set("memory", *tool, format!("{error:#}"));
                continue;
            }
        };
        if *tool == Tool::Native {
            native = measured;
            page.set("memory", *tool, "0".to_owned());
            continue;
        }
        let fixed = measured[0] - native[0];
        let per_block: Vec<String> =
            (1..4).map(|i| format!("{:.1}", ((measured[i] - native[i]) - fixed) / blocks as f64)).collect();
        let cell = format!("{} B; {:.1} MiB fixed", per_block.join(" / "), fixed / f64::from(1 << 20));
        eprintln!("  {:20} {cell}", tool.title());
        page.set("memory", *tool, cell);
    }
    let what = "added resident memory of the target: for a live block of 16 / 64 / 200 bytes; fixed";
    page.row("memory", what, "32 B; 40 MiB");
    Ok(())
}
