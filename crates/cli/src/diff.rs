//! `leakscope diff`: what changed from one recording to another.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::ArgMatches;
use leakscope_findings::diff::diff;
use leakscope_findings::{Analysis, Recording, analyse};
use leakscope_report::diff as words;

use crate::documents::sources;
use crate::flags::{DiffArgs, Format};
use crate::output::{Destination, Outputs};
use crate::plan::View;
use crate::report::read;

/// Runs the subcommand. The exit code is 0, or that of `--error-exitcode` when something is new or has grown.
///
/// # Errors
/// When a file is not a recording that this build reads, or the report cannot be written.
pub fn main(args: &DiffArgs, matches: &ArgMatches) -> Result<ExitCode> {
    let view = View::new(&args.view, matches, Destination::Stdout)?;
    compare(args, &view, &read(&args.before)?, &read(&args.after)?)
}

/// Says what changed, under the names of the files.
///
/// # Errors
/// When the report cannot be written, or not in the format that is asked for.
pub fn compare(args: &DiffArgs, view: &View, before: &Recording, after: &Recording) -> Result<ExitCode> {
    let has_words = |format| matches!(format, Format::Text | Format::Json | Format::Markdown | Format::Html);
    if let Some(target) = view.targets.iter().find(|target| !has_words(target.format)) {
        bail!("--format {:?}: a difference is text, json, markdown or html; choose one of them", target.format);
    }
    if let Some(path) = view.recordings.first() {
        bail!("-o {}: a difference is no recording; choose a name that does not end in .leak", path.display());
    }
    let mut outputs = Outputs::default();
    outputs.prepare(&view.targets)?;
    let (before, after) = (analyses(before, view), analyses(after, view));
    let diff = diff(&before, &after);
    let name = |path: &Path| path.display().to_string();
    let names = words::Names { before: name(&args.before), after: name(&args.after) };
    for target in &view.targets {
        let mut bytes = Vec::new();
        match target.format {
            Format::Json => words::json(&mut bytes, &diff, &names),
            Format::Markdown => words::markdown(&mut bytes, &diff, &names, &sources()),
            Format::Html => words::html(&mut bytes, &diff, &names),
            _ => words::text(&mut bytes, &diff, &names),
        }
        .context("rendering in memory")?;
        outputs.write(target, 0, &bytes)?;
    }
    outputs.finish()?;
    Ok(if diff.is_worse() { ExitCode::from(view.error_exitcode) } else { ExitCode::SUCCESS })
}

fn analyses(recording: &Recording, view: &View) -> Vec<Analysis> {
    let processes = recording.processes.iter();
    processes.map(|process| analyse(&recording.tool_version, process, &view.options, &view.suppressions)).collect()
}
