//! Reports that are one document for all processes of a run: they are written at its end.

use std::io;

use anyhow::{Context, Result, bail};
use leakscope_findings::{Analysis, Recording, analyse};
use leakscope_report::{
    Metric, Process, Sources, folded, github, gitlab, html, junit, markdown, pprof, sarif, speedscope,
};

use crate::flags::{Format, Syntax};
use crate::output::{self, Outputs};
use crate::plan::View;
use crate::suppressions;

/// Where paths are made relative to: the current directory.
pub fn sources() -> Sources {
    let root = std::env::current_dir().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
    Sources { root }
}

/// Writes the documents that the view asks for.
///
/// # Errors
/// When one cannot be written, or would be binary on a terminal.
pub fn write(recording: &Recording, view: &View, metric: Metric, outputs: &mut Outputs) -> Result<()> {
    if let Some(syntax) = view.rules {
        let rules = suppressions::rules_for(recording, view, syntax)?;
        // Valgrind's stand in the report, each behind its finding.
        for target in view.targets.iter().filter(|target| syntax == Syntax::Lsan && target.format == Format::Text) {
            outputs.write(target, 0, rules.as_bytes())?;
        }
    }
    let targets: Vec<_> = view.targets.iter().filter(|target| target.format.is_document()).collect();
    if targets.is_empty() {
        return Ok(());
    }
    let analyses: Vec<Analysis> = recording
        .processes
        .iter()
        .map(|process| analyse(&recording.tool_version, process, &view.options, &view.suppressions))
        .collect();
    let processes: Vec<Process<'_>> =
        recording.processes.iter().zip(&analyses).map(|(recorded, analysis)| Process { recorded, analysis }).collect();
    let pid = recording.processes.first().map_or(0, |process| process.process.pid);
    for target in targets {
        if target.format == Format::Pprof && output::is_terminal(&target.destination) {
            bail!("--format pprof: the profile is binary; write it to a file with -o FILE.pb.gz, or into a pipe");
        }
        let mut bytes = Vec::new();
        render(&mut bytes, target.format, &processes, metric).context("rendering in memory")?;
        outputs.write(target, pid, &bytes)?;
    }
    Ok(())
}

/// Renders a document on all processes.
///
/// # Errors
/// Those of memory.
pub fn render(out: &mut Vec<u8>, format: Format, processes: &[Process<'_>], metric: Metric) -> io::Result<()> {
    match format {
        Format::Sarif => sarif::write(out, processes, &sources()),
        Format::Junit => junit::write(out, processes),
        Format::Github => github::write(out, processes, &sources()),
        Format::Gitlab => gitlab::write(out, processes, &sources()),
        Format::Pprof => pprof::write(out, processes),
        Format::Folded => folded::write(out, processes, metric),
        Format::Speedscope => speedscope::write(out, processes),
        Format::Markdown => markdown::write(out, processes, &sources()),
        Format::Html => html::write(out, processes, &sources(), &mut read_source),
        Format::Text | Format::Json | Format::ValgrindXml => Ok(()),
    }
}

/// Largest source file that is looked at.
const LARGEST_SOURCE: u64 = 8 << 20;

/// The text of a source file, when it is at hand. Names come out of recordings: only regular files are opened.
pub fn read_source(path: &str) -> Option<String> {
    let metadata = std::fs::metadata(path).ok()?;
    if !metadata.is_file() || metadata.len() > LARGEST_SOURCE {
        return None;
    }
    Some(String::from_utf8_lossy(&std::fs::read(path).ok()?).into_owned())
}
