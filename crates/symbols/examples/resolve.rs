//! Resolves addresses of one module and says how long it took: `resolve MODULE [ADDRESS...]`, or addresses in
//! hexadecimal on standard input. `--quiet` prints the time only.

use std::io::{BufRead, Write};
use std::time::Instant;

use leakscope_symbols::{ModuleFile, Options, Symbolizer, read_build_id};

fn main() {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let quiet = arguments.iter().position(|argument| argument == "--quiet").map(|at| arguments.remove(at)).is_some();
    let path = std::path::PathBuf::from(arguments.first().expect("usage: resolve [--quiet] MODULE [ADDRESS...]"));
    let parse = |text: &str| u64::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok();
    let mut addresses: Vec<u64> = arguments[1..].iter().filter_map(|text| parse(text)).collect();
    if addresses.is_empty() {
        addresses = std::io::stdin().lock().lines().map_while(Result::ok).filter_map(|line| parse(&line)).collect();
    }
    let module = ModuleFile { build_id: read_build_id(&path), path };
    let started = Instant::now();
    let mut symbolizer = Symbolizer::new(Options::default());
    let frames = symbolizer.resolve(&module, &addresses, &mut |_| ());
    let took = started.elapsed();
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for (address, frames) in addresses.iter().zip(&frames).filter(|_| !quiet) {
        let _ = writeln!(out, "{address:#x}");
        for frame in frames {
            let file = frame.file.as_deref().unwrap_or("??");
            let inlined = if frame.inlined { " [inlined]" } else { "" };
            let _ = writeln!(out, "  {} ({file}:{}){inlined}", frame.function, frame.line.unwrap_or(0));
        }
    }
    let named = frames.iter().filter(|frames| !frames.is_empty()).count();
    let again = Instant::now();
    symbolizer.resolve(&module, &addresses, &mut |_| ());
    eprintln!(
        "{}: {:?}, {} addresses, {named} named, {} frames, {:.3} s, again {:.3} s",
        module.path.display(),
        symbolizer.source(&module),
        addresses.len(),
        frames.iter().map(Vec::len).sum::<usize>(),
        took.as_secs_f64(),
        again.elapsed().as_secs_f64(),
    );
}
