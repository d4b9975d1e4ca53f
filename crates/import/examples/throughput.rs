//! How fast a file is imported: `cargo run --release -p leakscope-import --example throughput -- FILE`.

use std::fs::File;
use std::io::BufReader;
use std::time::Instant;

use leakscope_import::{NoNames, import, mtrace};

fn main() {
    for path in std::env::args_os().skip(1) {
        let open = || BufReader::with_capacity(1 << 20, File::open(&path).expect("the file is there"));
        let bytes = std::fs::metadata(&path).expect("the file is there").len() as f64;
        let begin = Instant::now();
        let (format, imported) = import(Box::new(open()), &mut NoNames).expect("the format is known");
        let seconds = begin.elapsed().as_secs_f64();
        let findings: usize = imported.processes.iter().map(|process| process.sites.len()).sum();
        println!("{}: {:.3} s, {:.0} MB/s, {findings} sites", format.name(), seconds, bytes / 1e6 / seconds);
        if format == leakscope_import::Format::Mtrace {
            let begin = Instant::now();
            let trace = mtrace::read(&mut open(), &mut |_, _| {}).expect("it is read");
            let seconds = begin.elapsed().as_secs_f64();
            let (events, live) = (trace.counts.allocations + trace.counts.releases, trace.live.len());
            println!(
                "mtrace alone: {seconds:.3} s, {:.1} million events/s, {live} live",
                events as f64 / 1e6 / seconds
            );
        }
    }
}
