//! `leakscope`: one command for memory leaks on Linux.
//!
//! Layers: `flags` (the words) -> `plan` (decisions) -> one file per subcommand. Exit codes: 0 or the
//! target's own, `--error-exitcode` on findings, 2 when the usage is wrong or the tool failed.

mod asan;
mod baseline;
mod cargo_test;
mod defaults;
mod diff;
mod documents;
mod file_names;
mod flags;
mod gate;
mod gate_words;
mod import;
mod kernel;
mod log_name;
mod memcheck;
mod monitor;
mod mtrace;
mod output;
mod plan;
mod record;
mod report;
mod run;
mod snapshot;
mod suppressions;
mod trace;
mod tracing;
mod tui;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use clap::{ArgMatches, CommandFactory, FromArgMatches};

use flags::{Cli, Command};

/// Exit code when the usage is wrong or the tool failed.
const FAILED: u8 = 2;

fn main() -> ExitCode {
    match parse().and_then(|(cli, matches)| dispatch(&cli, &matches)) {
        Ok(code) => code,
        Err(error) => {
            if let Some(usage) = error.downcast_ref::<clap::Error>() {
                // Help and version are "errors" with exit code 0. A closed pipe is nobody's fault.
                let _ = usage.print();
                return ExitCode::from(if usage.use_stderr() { FAILED } else { 0 });
            }
            eprintln!("leakscope: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}

/// The command line, with the defaults of file and environment in front of the options of `run`.
fn parse() -> Result<(Cli, ArgMatches)> {
    let mut words: Vec<OsString> = std::env::args_os().collect();
    name_subcommand(&mut words);
    if words.get(1).is_some_and(|word| word == "run") {
        let mut at = 2;
        for defaults in defaults::read()? {
            check_defaults(&defaults)?;
            let count = defaults.words.len();
            words.splice(at..at, defaults.words);
            at += count;
        }
    }
    let matches = Cli::command().try_get_matches_from(words)?;
    Ok((Cli::from_arg_matches(&matches)?, matches))
}

/// Puts in the subcommand that the command line means without saying so.
///
/// `cargo leakscope test` is `cargo-leakscope leakscope test` here. And options in front of everything are those of
/// `run`: CTest, and whoever else knows Valgrind, writes `MEMORYCHECK_COMMAND --log-file=FILE ... PROGRAM`.
fn name_subcommand(words: &mut Vec<OsString>) {
    let program = words.first().map(std::path::PathBuf::from);
    let is_cargo = program.as_deref().and_then(|path| path.file_name()).is_some_and(|name| name == "cargo-leakscope");
    if is_cargo && words.get(1).is_some_and(|word| word == "leakscope") {
        words[1] = "cargo".into();
        return;
    }
    let first = words.get(1).and_then(|word| word.to_str()).unwrap_or_default();
    if first.len() > 1 && first.starts_with('-') && !matches!(first, "-h" | "--help" | "-V" | "--version") {
        words.insert(1, "run".into());
    }
}

/// Stands for the program where defaults are parsed alone.
const PLACEHOLDER: &str = "<program>";

/// Parses defaults alone, so that a mistake in them is not blamed on the command line.
fn check_defaults(defaults: &defaults::Defaults) -> Result<()> {
    let words = ["leakscope", "run"].map(OsString::from).into_iter().chain(defaults.words.iter().cloned());
    let complain = |what: String| anyhow::anyhow!("{}: {what}; correct it or remove it", defaults.place);
    match Cli::command().try_get_matches_from(words.chain(["--".into(), PLACEHOLDER.into()])) {
        Ok(matches) => {
            let program = matches.subcommand_matches("run").and_then(|run| run.get_many::<OsString>("program"));
            let first = program.into_iter().flatten().next();
            if first.is_some_and(|first| first != PLACEHOLDER) {
                return Err(complain(format!(
                    "only options may stand there, found `{}`",
                    first.map(|word| word.to_string_lossy()).unwrap_or_default()
                )));
            }
            Ok(())
        }
        Err(error) => {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            Err(complain(line.trim_start_matches("error: ").to_owned()))
        }
    }
}

fn dispatch(cli: &Cli, matches: &ArgMatches) -> Result<ExitCode> {
    let matches = matches.subcommand().map_or(matches, |(_, matches)| matches);
    match &cli.command {
        Command::Run(args) => run::main(args, matches),
        Command::Memcheck(args) => memcheck::main(args, matches),
        Command::Asan(args) => asan::main(args, matches),
        Command::Snapshot(args) => snapshot::main(args, matches),
        Command::Trace(args) => trace::main(args, matches),
        Command::Report(args) => report::main(args, matches),
        Command::Import(args) => import::main(args, matches),
        Command::Mtrace(args) => mtrace::main(args),
        Command::Diff(args) => diff::main(args, matches),
        Command::Gate(args) => gate::main(args, matches),
        Command::Baseline(args) => baseline::main(args, matches),
        Command::Suppressions(args) => suppressions::main(args, matches),
        Command::Kernel(args) => kernel::main(args, matches),
        Command::Monitor(args) => monitor::main(args),
        Command::Cargo(args) => cargo_test::main(args, matches),
    }
}
