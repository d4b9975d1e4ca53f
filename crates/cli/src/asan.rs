//! `asan`: compilers with their own instrumentation and our run-time library, and programs that were built so.
//!
//! The library stands in for `libclang_rt.asan-x86_64.so` and `libasan.so.8`: a folder with links of these names goes
//! into the program's run path (`build`) or in front of `LD_LIBRARY_PATH` (`run`).

mod build;
mod run;

use std::process::ExitCode;

use anyhow::Result;
use clap::ArgMatches;
use leakscope_launch::asan::unpack;

use crate::flags::asan::{AsanArgs, AsanCommand};

/// Runs a subcommand.
///
/// # Errors
/// The library cannot be put in place, or the compiler or program cannot be started.
pub fn main(args: &AsanArgs, matches: &ArgMatches) -> Result<ExitCode> {
    let matches = matches.subcommand().map_or(matches, |(_, matches)| matches);
    match &args.command {
        AsanCommand::Cc(words) => build::compile(&build::C, &words.words),
        AsanCommand::Cxx(words) => build::compile(&build::CXX, &words.words),
        AsanCommand::Make(words) => build::make(&words.words),
        AsanCommand::Cmake(words) => build::configure("cmake", &words.words),
        AsanCommand::Env(words) => build::with_environment(&words.words),
        AsanCommand::Run(args) => run::main(args, matches),
        AsanCommand::Dir => {
            println!("{}", unpack()?.folder.display());
            Ok(ExitCode::SUCCESS)
        }
    }
}
