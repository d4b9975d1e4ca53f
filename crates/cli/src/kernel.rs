//! `leakscope kernel`: leaks of the kernel. One file for each of its subcommands.

mod control;
mod diff;
mod names;
mod scan;
mod status;
pub mod trace;

use std::process::ExitCode;

use anyhow::Result;
use clap::ArgMatches;

use crate::flags::kernel::{KernelArgs, KernelCommand};

/// Runs the subcommand.
///
/// # Errors
/// When the kernel does not offer what is asked for, or it cannot be reported.
pub fn main(args: &KernelArgs, matches: &ArgMatches) -> Result<ExitCode> {
    let matches = matches.subcommand().map_or(matches, |(_, matches)| matches);
    match &args.command {
        KernelCommand::Status(args) => status::main(args),
        KernelCommand::Scan(args) => scan::main(args, matches),
        KernelCommand::Diff(args) => diff::main(args, matches),
        KernelCommand::Dump(args) => control::dump(args),
        KernelCommand::Clear(args) => control::clear(args),
        KernelCommand::Set(args) => control::set(args),
        KernelCommand::Trace(args) => trace::main(args, matches),
    }
}
