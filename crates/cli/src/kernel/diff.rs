//! `leakscope kernel diff`: two scans, or two kernels: recordings, or what kmemleak wrote.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::ArgMatches;
use leakscope_findings::Recording;

use crate::file_names::FileNames;
use crate::flags::DiffArgs;
use crate::output::Destination;
use crate::plan::View;
use crate::{diff, import};

/// Runs the subcommand.
///
/// # Errors
/// When a file is neither a recording nor something that `leakscope import` reads, or the report cannot be written.
pub fn main(args: &DiffArgs, matches: &ArgMatches) -> Result<ExitCode> {
    let view = View::new(&args.view, matches, Destination::Stdout)?;
    let mut names = FileNames::new(view.symbols.clone(), None);
    let mut read = |path: &Path| -> Result<Recording> { import::read(path, &mut names, &view) };
    let (before, after) = (read(&args.before)?, read(&args.after)?);
    diff::compare(args, &view, &before, &after)
}
