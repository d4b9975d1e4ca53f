//! `leakscope report`: from a recording, the same report again or another view of it.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::ArgMatches;

use crate::flags::ReportArgs;
use crate::output::{Destination, Outputs, Replacement};
use crate::plan::View;
use crate::record;

/// Runs the subcommand.
///
/// # Errors
/// When the file is not a recording that this build reads, or the report cannot be written.
pub fn main(args: &ReportArgs, matches: &ArgMatches) -> Result<ExitCode> {
    let view = View::new(&args.view, matches, Destination::Stdout)?;
    let name = args.file.display();
    let bytes =
        std::fs::read(&args.file).with_context(|| format!("{name}: cannot read the recording; check its path"))?;
    let (recording, problems) = leakscope_findings::decode(&bytes)
        .with_context(|| format!("{name}: make a recording with `leakscope run -o FILE.leak -- PROGRAM`"))?;
    drop(bytes);
    for problem in &problems {
        eprintln!("leakscope: {name}: {}", problem.0);
    }
    let mut outputs = Outputs::default();
    outputs.prepare(&view.targets)?;
    let files = view.recordings.iter().map(|path| Replacement::create(path)).collect::<Result<Vec<_>>>()?;
    let mut errors = false;
    for process in &recording.processes {
        errors |= record::report(process, &recording.tool_version, &view, &mut outputs)?.has_errors();
    }
    record::save(&recording, files)?;
    outputs.finish()?;
    Ok(if errors { ExitCode::from(view.error_exitcode) } else { ExitCode::SUCCESS })
}
