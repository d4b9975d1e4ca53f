//! `cargo xtask TASK`: what a developer of leakscope runs. One file for each task.
#![forbid(unsafe_code)]

mod accuracy;
mod bench;
mod bless;
mod check;
mod conformance;
mod demo;
mod fuzz;
mod generated;
mod setup;
mod step;
mod test;
mod vm;

use std::process::ExitCode;

use anyhow::{Result, bail};

const USAGE: &str = "\
usage: cargo xtask TASK

  setup                          install what demo, test and bench need (apt; npm for the page's tests)
  demo                           build, and show a real program's leaks with file and line
  test [--fast]                  everything that CI runs; --fast leaves the long stress tests out
  test --kills                   only the programs that are killed 200 times at random moments, some minutes
  test --stress                  only the 64 threads that allocate, fork and load libraries for 10 minutes, and for
                                 10 minutes more everything at once under memcheck
  fuzz [--seconds N] [NAME..]    every reader of foreign bytes under libFuzzer, a few seconds each
  check                          layers, file lengths, words, unsafe code, and that the page is built from its sources
  bless                          rewrite the golden files
  bench monitor [--write]        the verdicts of `monitor` on series whose truth is known, some minutes; --write renews
                                 docs/monitor.md
  bench fingerprints | reports   only the fingerprints of other builds, or the reports of large recordings
  bench [--only NAME] [--runs N] [--quick] [--peers] [--write]
                                 speed, memory and stacks beside the other tools, about 40 minutes; --only NAME
                                 (or NAME alone, several times): this workload; --runs N: so many rounds instead of
                                 5, or more of what takes less than a second; --quick: about 10 minutes, without the
                                 slow tools; --peers leaves leakscope out; --write renews docs/benchmarks.md and the
                                 README's table
  conformance memcheck|preload|asan [--fast]
                                 Memcheck's own tests; preload: those that an interposer can serve; asan: LLVM's tests
                                 of AddressSanitizer against our run-time library
  vm build | test [NAME..] | run own|stock FILE.sh
                                 kernels of our own choice under software emulation, and the kernel's leak finders in them
  accuracy [NAME..] [--write]    real programs, natively, under leakscope and under Memcheck; --write renews
                                 docs/accuracy.md
  accuracy memcheck [NAME..] [--quick] [--write]
                                 the same with the simulated CPU, and coreutils', perl's and python's own tests
";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[String]) -> Result<()> {
    let Some((task, rest)) = words.split_first() else {
        print!("{USAGE}");
        return Ok(());
    };
    match task.as_str() {
        "setup" => setup::run(),
        "demo" => demo::run(),
        "test" => test::run(rest),
        "fuzz" => fuzz::run(rest),
        "check" => check::run(),
        "bless" => bless::run(),
        "bench" => bench::run(rest),
        "conformance" => conformance::run(rest),
        "accuracy" => accuracy::run(rest),
        "vm" => vm::run(rest),
        "help" | "-h" | "--help" => {
            print!("{USAGE}");
            Ok(())
        }
        other => bail!("no task `{other}`\n{USAGE}"),
    }
}
