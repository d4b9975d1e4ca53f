//! `leakscope report`: from recordings, the same report again or another view of it.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::ArgMatches;
use leakscope_findings::Recording;

use crate::flags::{Format, ReportArgs};
use crate::output::{Destination, Outputs, Replacement};
use crate::plan::View;
use crate::{documents, record, suppressions, tui};

/// Runs the subcommand.
///
/// # Errors
/// When a file is not a recording that this build reads, or the report cannot be written.
pub fn main(args: &ReportArgs, matches: &ArgMatches) -> Result<ExitCode> {
    let view = View::new(&args.view, matches, Destination::Stdout)?;
    let mut recordings = args.files.iter().map(|path| read(path));
    let mut recording = recordings.next().transpose()?.unwrap_or_default();
    for other in recordings {
        recording.merge(other?);
    }
    if args.tui {
        tui::show(&recording, &view, args.metric.into())?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut outputs = Outputs::default();
    outputs.prepare(&view.targets)?;
    let files = view.recordings.iter().map(|path| Replacement::create(path)).collect::<Result<Vec<_>>>()?;
    let mut errors = false;
    for process in &recording.processes {
        errors |= record::report(process, &recording.tool_version, &view, &mut outputs)?.has_errors();
    }
    documents::write(&recording, &view, args.metric.into(), &mut outputs)?;
    if args.suppression_health {
        let table = suppressions::health_of(&recording, &view);
        for target in view.targets.iter().filter(|target| target.format == Format::Text) {
            outputs.write(target, 0, table.as_bytes())?;
        }
    }
    record::save(&recording, files)?;
    outputs.finish()?;
    Ok(if errors { ExitCode::from(view.error_exitcode) } else { ExitCode::SUCCESS })
}

/// Reads a recording and says what of it cannot be read.
///
/// # Errors
/// When the file is not a recording that this build reads.
pub fn read(path: &Path) -> Result<Recording> {
    let name = path.display();
    let bytes = std::fs::read(path).with_context(|| format!("{name}: cannot read the recording; check its path"))?;
    let (recording, problems) = leakscope_findings::decode(&bytes)
        .with_context(|| format!("{name}: make a recording with `leakscope run -o FILE.leak -- PROGRAM`"))?;
    for problem in &problems {
        eprintln!("leakscope: {name}: {}", problem.0);
    }
    Ok(recording)
}
