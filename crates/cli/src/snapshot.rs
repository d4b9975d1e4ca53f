//! `leakscope snapshot`: a leak check of a running program, now.

use std::process::ExitCode;

use anyhow::Result;
use clap::ArgMatches;
use leakscope_findings::recording::End;
use leakscope_report::Metric;

use crate::documents;
use crate::flags::SnapshotArgs;
use crate::output::{Destination, Outputs, Replacement};
use crate::plan::View;
use crate::record::{self, Recorder};

/// Runs the subcommand.
///
/// # Errors
/// When the launcher of the process gives no snapshot, or the report cannot be written.
pub fn main(args: &SnapshotArgs, matches: &ArgMatches) -> Result<ExitCode> {
    let mut view = View::new(&args.view, matches, Destination::Stdout)?;
    view.limit_detail();
    let mut outputs = Outputs::default();
    outputs.prepare(&view.targets)?;
    let files = view.recordings.iter().map(|path| Replacement::create(path)).collect::<Result<Vec<_>>>()?;
    let ledger = leakscope_launch::snapshot::request(args.pid)?;
    let mut recording = record::empty_recording();
    recording.processes.push(Recorder::new(&view).record(&ledger, End::Running, &view)?);
    let mut errors = false;
    for process in &recording.processes {
        errors |= record::report(process, &recording.tool_version, &view, &mut outputs)?.has_errors();
    }
    documents::write(&recording, &view, Metric::Leaked, &mut outputs)?;
    record::save(&recording, files)?;
    outputs.finish()?;
    Ok(if errors { ExitCode::from(view.error_exitcode) } else { ExitCode::SUCCESS })
}
