//! What tracing costs: runs a command under the tracer and prints the programs' run time.
//!
//! `cost SAMPLE_BYTES KINDS COMMAND...`
use leakscope_ebpf::kmem::{CHECK_EVERY, Config, Tracer};
use leakscope_ebpf::{Filter, Kind, Limits, Watch};

fn main() {
    let mut words = std::env::args().skip(1);
    let sample_bytes = words.next().expect("rate").parse().expect("a number");
    let kinds = words.next().expect("kinds");
    let kinds =
        Kind::KERNEL.into_iter().filter(|kind| kinds == "all" || kinds.split(',').any(|k| k == kind.name())).collect();
    let command: Vec<String> = words.collect();
    let blocks = if sample_bytes == 0 { 1 << 20 } else { 1 << 18 };
    let config = Config {
        kinds,
        filter: Filter::default(),
        limits: Limits { sample_bytes, blocks, sites: 16384, events_per_second: 0 },
        outermost_text: outermost_text(),
        check_every: CHECK_EVERY,
    };
    let started = std::time::Instant::now();
    let mut tracer = match Tracer::start(&config) {
        Ok(t) => t,
        Err(e) => {
            eprintln!("{e}");
            std::process::exit(2)
        }
    };
    eprintln!("start {:?} notes {:?}", started.elapsed(), tracer.notes());
    let stats = std::env::var_os("STATS").map(|_| tracer.measure().unwrap());
    let started = std::time::Instant::now();
    std::process::Command::new(&command[0]).args(&command[1..]).stdout(std::process::Stdio::null()).status().unwrap();
    let took = started.elapsed();
    let counters = tracer.counters().unwrap();
    drop(stats);
    let at = std::time::Instant::now();
    let snapshot = tracer.snapshot(0).unwrap();
    eprintln!("snapshot {:?}", at.elapsed());
    for program in &counters.programs {
        eprintln!(
            "{:14} events {:9} bytes {:12} unknown {:8} missed {} recalled {} unwound {} runs {:9} ns/run {:6.0}",
            program.name,
            program.events,
            program.bytes,
            program.unknown,
            program.missed,
            program.recalled,
            program.unwound,
            program.runs,
            program.run_time_ns as f64 / program.runs.max(1) as f64
        );
    }
    eprintln!("{:?}", counters.lost);
    eprintln!(
        "took {took:?}, run time {:.3} s; {} sites {} blocks",
        counters.run_time_ns() as f64 / 1e9,
        snapshot.sites.len(),
        snapshot.tracked
    );
    for (kind, owner) in &snapshot.all {
        eprintln!(
            "{} {:.0} blocks {:.0} +- {:.0} bytes",
            kind.name(),
            owner.blocks.value,
            owner.usable.value,
            owner.usable.margin()
        );
    }
    if std::env::var_os("SITES").is_some() {
        for site in snapshot.sites.iter().take(5) {
            eprintln!("{:?}", site);
        }
    }
}

/// Where `do_syscall_64` lies.
fn outermost_text() -> Option<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/kallsyms").ok()?;
    let symbol = |line: &str| Some((u64::from_str_radix(line.get(..16)?, 16).ok()?, line.get(19..)?.to_owned()));
    let symbols: Vec<(u64, String)> = text.lines().filter_map(symbol).collect();
    let begin = symbols.iter().find(|(_, name)| name == "do_syscall_64")?.0;
    let end = symbols.iter().map(|&(address, _)| address).filter(|&address| address > begin).min()?;
    Some((begin, end))
}
