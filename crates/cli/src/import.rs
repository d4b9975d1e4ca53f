//! `leakscope import`: what other tools wrote, as a recording and a report of ours.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::ArgMatches;
use indicatif::{ProgressBar, ProgressStyle};
use leakscope_findings::witness::{Class, Combined, combine};
use leakscope_findings::{Recording, analyse};

use crate::file_names::FileNames;
use crate::flags::{Format, ImportArgs};
use crate::output::{Destination, Outputs, Replacement};
use crate::plan::View;
use crate::{documents, record, report};

/// Bytes that are read at once.
const CHUNK: usize = 1 << 20;
/// Files from here on get a progress bar.
const LARGE: u64 = 32 << 20;
/// Findings of the summary that are named; a report has all.
const MOST_NAMED: usize = 20;

/// Runs the subcommand.
///
/// # Errors
/// When a file cannot be read or is of no known format, or a report cannot be written.
pub fn main(args: &ImportArgs, matches: &ArgMatches) -> Result<ExitCode> {
    let view = View::new(&args.view, matches, Destination::Stdout)?;
    let mut outputs = Outputs::default();
    outputs.prepare(&view.targets)?;
    let files = view.recordings.iter().map(|path| Replacement::create(path)).collect::<Result<Vec<_>>>()?;
    let mut names = FileNames::new(view.symbols.clone(), None);
    let mut recording = record::empty_recording();
    for path in &args.files {
        recording.processes.extend(read(path, &mut names, &view)?.processes);
    }
    let mut errors = false;
    for process in &recording.processes {
        errors |= record::report(process, &recording.tool_version, &view, &mut outputs)?.has_errors();
    }
    documents::write(&recording, &view, leakscope_report::Metric::Leaked, &mut outputs)?;
    if !view.quiet {
        summary(&recording, &view, &mut outputs)?;
    }
    record::save(&recording, files)?;
    outputs.finish()?;
    Ok(if errors { ExitCode::from(view.error_exitcode) } else { ExitCode::SUCCESS })
}

/// The processes that a file holds; says on standard error what it is and what of it cannot be read.
///
/// # Errors
/// When the file cannot be read or is of no known format.
pub fn read(path: &Path, names: &mut FileNames, view: &View) -> Result<Recording> {
    let name = path.display();
    let mut input = open(path, view)?;
    let first = input.fill_buf().with_context(|| format!("{name}: cannot read it"))?;
    if first.starts_with(&leakscope_findings::container::MAGIC) {
        drop(input);
        return report::read(path);
    }
    let (format, imported) = leakscope_import::import(input, names).with_context(|| name.to_string())?;
    if !view.quiet {
        eprintln!("leakscope: {name}: {}, {}", format.name(), counted(imported.processes.len(), "process"));
    }
    if let Some((line, text)) = imported.unread.first {
        let lines = imported.unread.lines;
        eprintln!(
            "leakscope: {name}: {} could not be read; the first is {line}: {text}",
            counted(lines as usize, "line")
        );
    }
    Ok(Recording { processes: imported.processes, ..Recording::default() })
}

fn counted(count: usize, what: &str) -> String {
    let plural = match (count, what) {
        (1, _) => "",
        (_, "process") => "es",
        _ => "s",
    };
    format!("{count} {what}{plural}")
}

/// Opens a file, with a progress bar if it is long and somebody looks on.
pub fn open(path: &Path, view: &View) -> Result<Box<dyn BufRead>> {
    open_with(path, view.shows_progress())
}

/// Opens a file; `-` is standard input.
///
/// # Errors
/// When it is not there.
pub fn open_with(path: &Path, shows_progress: bool) -> Result<Box<dyn BufRead>> {
    if path == Path::new("-") {
        return Ok(Box::new(BufReader::with_capacity(CHUNK, io::stdin())));
    }
    let file = File::open(path).with_context(|| format!("{}: cannot open it; check its path", path.display()))?;
    let length = file.metadata().map_or(0, |metadata| metadata.len());
    if !shows_progress || length < LARGE {
        return Ok(Box::new(BufReader::with_capacity(CHUNK, file)));
    }
    let template = "leakscope: {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(length).with_style(style);
    Ok(Box::new(BufReader::with_capacity(CHUNK, Watched { file, bar })))
}

/// A file that says how far it was read.
struct Watched {
    file: File,
    bar: ProgressBar,
}

impl Read for Watched {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(out)?;
        self.bar.inc(read as u64);
        Ok(read)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // The bar goes away before anything else is written.
        self.bar.finish_and_clear();
    }
}

/// What several tools saw, where text is written and there are several.
fn summary(recording: &Recording, view: &View, outputs: &mut Outputs) -> Result<()> {
    let mut tools: Vec<_> = recording.processes.iter().map(|process| &process.witness).collect();
    tools.sort();
    tools.dedup();
    if tools.len() < 2 {
        return Ok(());
    }
    let analyses: Vec<_> = recording
        .processes
        .iter()
        .map(|process| analyse(&recording.tool_version, process, &view.options, &view.suppressions))
        .collect();
    let combined = combine(&analyses);
    let mut text = Vec::new();
    write_summary(&mut text, &combined).context("rendering in memory")?;
    for target in view.targets.iter().filter(|target| target.format == Format::Text) {
        outputs.write(target, 0, &text)?;
    }
    Ok(())
}

fn write_summary(out: &mut dyn Write, combined: &[Combined]) -> io::Result<()> {
    let shared = combined.iter().filter(|finding| finding.witnesses.len() > 1).count();
    writeln!(out, "{}, {shared} of them seen by several tools:", counted(combined.len(), "finding"))?;
    for finding in combined.iter().take(MOST_NAMED) {
        let what = match finding.class {
            Class::Leak => "leak",
            _ => &finding.error,
        };
        let path = finding.path.join(" < ");
        // Names come from files that anyone may have written: no control character reaches the terminal.
        let path: String = path.chars().map(|c| if c.is_control() { '?' } else { c }).take(160).collect();
        writeln!(out, "  {} {what} {path}", finding.fingerprint)?;
        for (witness, sight) in &finding.witnesses {
            let kind = sight.kind.map_or("live", |kind| kind.words());
            let witness: String = witness.to_string().chars().filter(|c| !c.is_control()).collect();
            match finding.class {
                Class::Leak => {
                    let blocks = counted(usize::try_from(sight.count).unwrap_or(usize::MAX), "block");
                    writeln!(out, "      {witness}: {} bytes in {blocks} {kind}", sight.bytes)?;
                }
                _ => writeln!(out, "      {witness}: {} times", sight.count)?,
            }
        }
    }
    if combined.len() > MOST_NAMED {
        writeln!(out, "  and {} more", combined.len() - MOST_NAMED)?;
    }
    Ok(())
}
