//! `bench`: speed and memory of leakscope beside the other tools, every number taken in the same run as its pair.

mod asan;
mod fingerprints;
mod import;
mod kernel;
mod large;
mod live;
mod memcheck;
mod monitor;
mod page;
mod pairs;
mod peers;
pub mod redis;
mod reports;
mod stacks;
pub mod tools;
mod trace;
pub mod workloads;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use leakscope_e2e::target_dir;

use self::page::Page;
use self::pairs::{Rounds, Share};
use self::tools::Tool;
use crate::step::build_leakscope;

const ROUNDS: Rounds = Rounds { least: 5, short: 11, very_short: 21 };
const QUICK_ROUNDS: Rounds = Rounds { least: 3, short: 5, very_short: 9 };
/// What the whole table may take, builds aside. Slow tools get what the others leave over.
const BUDGET: Duration = Duration::from_secs(40 * 60);
const QUICK_BUDGET: Duration = Duration::from_secs(10 * 60);
/// What is no workload, and has a table of its own; `import` comes first because its programs need little memory.
const TABLES: [&str; 7] = ["import", "fingerprints", "reports", "memcheck", "asan", "kernel", "monitor"];
const REDIS_REQUESTS: u32 = 200_000;

struct Options {
    names: Vec<String>,
    rounds: Rounds,
    budget: Duration,
    write: bool,
    quick: bool,
    peers_only: bool,
}

impl Options {
    fn wants(&self, tool: Tool) -> bool {
        let is_ours = matches!(tool, Tool::Leakscope | Tool::Sampled);
        tool.is_installed() && !(self.peers_only && is_ours) && !(self.quick && tool.is_slow())
    }
}

/// Measures the named workloads, or all of them. What is measured is shown, and written, after each of them: a later
/// one that fails takes nothing away.
///
/// # Errors
/// A workload cannot be prepared, or its native run fails; the others are measured all the same.
pub fn run(words: &[String]) -> Result<()> {
    let options = parse(words)?;
    // The sanitizer's table needs its library only, which it builds.
    if !options.peers_only && options.names.iter().any(|name| name != "asan") {
        build_leakscope()?;
    }
    let tools: Vec<Tool> = Tool::ALL.into_iter().filter(|tool| options.wants(*tool)).collect();
    let mut page = Page::new(&tools, words);
    let mut failed = Vec::new();
    let begin = Instant::now();
    for name in options.names.iter().filter(|name| TABLES.contains(&name.as_str())) {
        eprintln!("\n{name}");
        if let Err(error) = own_table(name, &options) {
            eprintln!("{name}: {error:#}");
            failed.push(name.as_str());
        }
    }
    let workloads: Vec<&str> = options.names.iter().map(String::as_str).filter(|name| !TABLES.contains(name)).collect();
    for (index, name) in workloads.iter().copied().enumerate() {
        eprintln!("\n{name}, {} s after the start", begin.elapsed().as_secs());
        let share = Share::of(begin, options.budget, index, workloads.len());
        if let Err(error) = one(name, &tools, &options, share, &mut page) {
            eprintln!("{name}: {error:#}");
            failed.push(name);
            page.row(name, &format!("not measured: {error:#}"), "-");
        }
        if name != "stacks" {
            println!("\n{}", page.last_row());
        }
        if options.write {
            page::write(&page.markdown(), &page.excerpt())?;
        }
    }
    if !workloads.is_empty() {
        println!("\n{}", page.markdown());
    }
    eprintln!("{} s in all", begin.elapsed().as_secs());
    if !failed.is_empty() {
        bail!("not measured: {}", failed.join(", "));
    }
    Ok(())
}

/// A table that has nothing to do with other tools' speed, with its own place in docs/benchmarks.md. The monitor's has one
/// in docs/monitor.md, where it wrote it.
fn own_table(name: &str, options: &Options) -> Result<()> {
    if options.peers_only {
        return Ok(());
    }
    let table = match name {
        "asan" => asan::table(options.quick)?,
        "fingerprints" => fingerprints::table()?,
        "import" => import::table(options.quick)?,
        "kernel" => kernel::table(options.quick)?,
        "memcheck" => memcheck::table(options.quick)?,
        "monitor" => monitor::table(options.quick, options.write)?,
        _ => reports::table()?,
    };
    println!("\n{table}");
    if options.write && name != "monitor" { page::write_table(name, &table) } else { Ok(()) }
}

fn one(name: &str, tools: &[Tool], options: &Options, share: Share, page: &mut Page) -> Result<()> {
    match name {
        "redis" => {
            let series = redis::measure(tools, options.rounds, share, redis::Manner::Plain, REDIS_REQUESTS / 4)?;
            let what = format!(
                "the server's own CPU time under redis-benchmark as it is, {} requests of 4 kinds",
                REDIS_REQUESTS / 4
            );
            page.ratios("redis", &what, "1.06", &series);
            let series = redis::measure(tools, options.rounds, share, redis::Manner::Pipelined, REDIS_REQUESTS)?;
            let what = format!("the same with `-c 20 -r 10000 -d 64 -P 8`, {REDIS_REQUESTS} requests");
            page.ratios("redis, 8 at a time", &what, "-", &series);
        }
        "exit-check" => exit_check(tools, share, page)?,
        "snapshot" if options.peers_only => {}
        "snapshot" => snapshot(page)?,
        "stacks" if options.peers_only => {}
        "stacks" => page.stacks(stacks::compare_all()?),
        "memory" => memory(tools, share, page)?,
        _ => {
            let workload = workloads::prepare(name)?;
            let series = pairs::measure(tools, options.rounds, share, |tool, scratch| workload.under(tool, scratch))?;
            page.ratios(workload.name, &workload.what, workload.target, &series);
        }
    }
    Ok(())
}

fn parse(words: &[String]) -> Result<Options> {
    let quick = words.iter().any(|word| word == "--quick");
    let mut options = Options {
        names: Vec::new(),
        rounds: if quick { QUICK_ROUNDS } else { ROUNDS },
        budget: if quick { QUICK_BUDGET } else { BUDGET },
        write: false,
        quick,
        peers_only: false,
    };
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        match word.as_str() {
            "--runs" => match rest.next().context("--runs takes a number")?.parse().context("--runs")? {
                0 => bail!("--runs 0: expected at least 1"),
                number => options.rounds = Rounds::exactly(number),
            },
            "--only" => options.names.push(rest.next().context("--only takes the name of a workload")?.clone()),
            "--write" => options.write = true,
            "--peers" => options.peers_only = true,
            "--quick" => {}
            name if name.starts_with('-') => {
                bail!("no option `{name}`; there are --only NAME, --runs N, --quick, --write and --peers")
            }
            name => options.names.push(name.to_owned()),
        }
    }
    if options.names.is_empty() {
        options.names = TABLES.iter().chain(workloads::NAMES).map(|name| name.to_string()).collect();
        options.names.extend(["redis", "exit-check", "snapshot", "memory", "stacks"].map(str::to_owned));
    }
    Ok(options)
}

fn exit_check(tools: &[Tool], share: Share, page: &mut Page) -> Result<()> {
    let program = workloads::build(&target_dir().join("bench"), "live_blocks")?;
    let (blocks, bytes) = (10_000_000, 200);
    for tool in tools.iter().filter(|tool| !matches!(tool, Tool::HeaptrackRaw | Tool::Heaptrack)) {
        let cell = match live::exit_run(*tool, &program, blocks, bytes, share.limit(*tool)) {
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

/// Added resident bytes: for each block, as the slope between one and two million; and what is left without any, which
/// holds the tables that every program with some blocks fills.
fn memory(tools: &[Tool], share: Share, page: &mut Page) -> Result<()> {
    let program = workloads::build(&target_dir().join("bench"), "live_blocks")?;
    let blocks = 1_000_000;
    let sizes = [16, 64, 200];
    let mut native = Vec::new();
    for tool in tools {
        let resident = |blocks, bytes| {
            live::exit_run(*tool, &program, blocks, bytes, share.limit(*tool)).map(|run| run.resident_bytes)
        };
        let measured: Result<Vec<[f64; 2]>> =
            sizes.into_iter().map(|bytes| Ok([resident(blocks, bytes)?, resident(2 * blocks, bytes)?])).collect();
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
        let added: Vec<[f64; 2]> =
            measured.iter().zip(&native).map(|(with, without)| [with[0] - without[0], with[1] - without[1]]).collect();
        let per_block: Vec<String> =
            added.iter().map(|[one, two]| format!("{:.1}", (two - one) / blocks as f64)).collect();
        let fixed = added.iter().map(|[one, two]| 2.0 * one - two).fold(0.0, f64::max);
        let cell = format!("{} B; {:.1} MiB fixed", per_block.join(" / "), fixed / f64::from(1 << 20));
        eprintln!("  {:20} {cell}", tool.title());
        page.set("memory", *tool, cell);
    }
    let what = "added resident memory of the target: for a live block of 16 / 64 / 200 bytes; fixed";
    page.row("memory", what, "32 B; 40 MiB");
    Ok(())
}
