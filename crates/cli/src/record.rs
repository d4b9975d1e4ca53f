//! From a ledger to a recording and a report: reads the snapshot, looks up names, analyses, writes.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use leakscope_findings::recording::{BuildOptions, End, Host, Names, ResolvedFrame};
use leakscope_findings::{Analysis, ProcessRecording, Recording, analyse};
use leakscope_launch::die_by_signal;
use leakscope_ledger::reader::{Module, Snapshot};
use leakscope_process::allocator::{OwnAllocator, read_own_allocator};
use leakscope_report::{Metric, json, text, valgrind_xml};
use leakscope_symbols::{ModuleFile, Symbolizer};

use crate::documents;
use crate::flags::Format;
use crate::output::{Outputs, Replacement};
use crate::plan::View;

/// A progress bar appears when names take longer than this.
const PROGRESS_AFTER: Duration = Duration::from_millis(400);

/// An empty recording of this machine.
pub fn empty_recording() -> Recording {
    let uname = rustix::system::uname();
    let words = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    Recording {
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        host: Host {
            name: words(uname.nodename()),
            kernel: format!("{} {}", words(uname.sysname()), words(uname.release())),
            architecture: words(uname.machine()),
        },
        processes: Vec::new(),
    }
}

/// Writes what is written at the very end, and gives the exit code, or dies by the signal that ended the program.
///
/// # Errors
/// `failure`, what went wrong on the way; or something cannot be written.
pub fn finish(
    recording: &Recording,
    view: &View,
    mut outputs: Outputs,
    recordings: Vec<Replacement>,
    failure: Option<anyhow::Error>,
    has_errors: bool,
    end: leakscope_launch::End,
) -> Result<ExitCode> {
    use leakscope_launch::End;
    let saved = documents::write(recording, view, Metric::Leaked, &mut outputs)
        .and_then(|()| save(recording, recordings))
        .and_then(|()| outputs.finish());
    if let Some(error) = failure {
        return Err(error);
    }
    saved?;
    match end {
        End::Signaled { signal, .. } => die_by_signal(signal),
        _ if has_errors && view.error_exitcode != 0 => Ok(ExitCode::from(view.error_exitcode)),
        // The kernel keeps the low eight bits.
        End::Exited(code) => Ok(ExitCode::from(code as u8)),
        End::Unknown | End::Replaced | End::StillRunning => Ok(ExitCode::SUCCESS),
    }
}

/// Turns ledgers into recordings, and keeps the names that it looked up.
pub struct Recorder {
    symbolizer: Symbolizer,
    all_symbols: bool,
    progress: bool,
    /// What the last executable's symbol table says of its allocator: forked children have the same.
    own_allocator: Option<(String, Option<String>)>,
}

impl Recorder {
    /// A recorder for a view.
    pub fn new(view: &View) -> Self {
        Self {
            symbolizer: Symbolizer::new(view.symbols.clone()),
            // A recording may be read on another machine, where the files are not.
            all_symbols: !view.recordings.is_empty() || view.shows_all_sites(),
            progress: view.shows_progress(),
            own_allocator: None,
        }
    }

    /// Reads a ledger whose process ended in the given way; names what a recording or the reports of `view` need.
    ///
    /// # Errors
    /// When it is not a ledger that this build reads.
    pub fn record(&mut self, ledger: &File, end: End, view: &View) -> Result<ProcessRecording> {
        let bytes = ledger.metadata().context("the ledger: cannot look at it")?.len();
        let snapshot = Snapshot::read(ledger, bytes)
            .context("the ledger of the process; record again with the same version of leakscope")?;
        let options = BuildOptions {
            names: if self.all_symbols { Names::All } else { Names::For(&view.options, &view.suppressions) },
            hook_file_name: leakscope_launch::cache::FILE_NAME.to_owned(),
            end,
        };
        let mut progress = Progress::new(self.progress);
        let symbolizer = &mut self.symbolizer;
        let mut recording = leakscope_findings::recording::build(&snapshot, &options, &mut |_, module, addresses| {
            let addresses: Vec<u64> = addresses.iter().map(|address| address.0).collect();
            progress.begin(module, addresses.len());
            let frames = symbolizer.resolve(&module_file(module), &addresses, &mut |done| progress.done(done));
            frames.into_iter().map(|frames| frames.into_iter().map(resolved).collect()).collect()
        });
        // The bar goes away before anything else is written.
        drop(progress);
        recording.problems.extend(self.own_allocator(&recording.process.executable));
        Ok(recording)
    }

    /// A sentence on the allocator that an executable has in itself, if it has one.
    fn own_allocator(&mut self, executable: &str) -> Option<String> {
        let known = self.own_allocator.take().filter(|(path, _)| path == executable);
        let (_, note) = self.own_allocator.insert(known.unwrap_or_else(|| {
            let found = read_own_allocator(Path::new(executable)).ok().flatten();
            (executable.to_owned(), found.map(|found| not_seen(executable, &found)))
        }));
        note.clone()
    }
}

fn not_seen(executable: &str, allocator: &OwnAllocator) -> String {
    let OwnAllocator { name, allocates, releases } = allocator;
    let (what, instead) = match name {
        Some(name) => (format!("{name} ({allocates}, {releases})"), "link it with the C library's malloc to see them"),
        None => (
            format!("an allocator of its own ({allocates}, {releases})"),
            "`valgrind --soname-synonyms=somalloc=NONE` sees them",
        ),
    };
    format!("{executable} has {what} linked into it, and blocks of that are not seen; {instead}")
}

fn module_file(module: &Module) -> ModuleFile {
    use std::os::unix::ffi::OsStringExt;
    ModuleFile {
        path: PathBuf::from(std::ffi::OsString::from_vec(module.path.clone())),
        build_id: (!module.build_id.is_empty()).then(|| module.build_id.clone()),
    }
}

/// A frame of the symbolizer, for recordings.
pub fn resolved(frame: leakscope_symbols::Frame) -> ResolvedFrame {
    let leakscope_symbols::Frame { function, linkage_name, file, directory, line, column, inlined } = frame;
    ResolvedFrame {
        function: (!function.is_empty()).then_some(function),
        linkage_name,
        file,
        directory,
        line,
        column,
        inlined,
    }
}

/// Draws a bar once it has taken long enough to be worth one.
struct Progress {
    allowed: bool,
    since: Instant,
    total: u64,
    before: u64,
    bar: Option<ProgressBar>,
    module: String,
}

impl Progress {
    fn new(allowed: bool) -> Self {
        Self { allowed, since: Instant::now(), total: 0, before: 0, bar: None, module: String::new() }
    }

    fn begin(&mut self, module: &Module, addresses: usize) {
        self.before = self.total;
        self.total += addresses as u64;
        let name =
            String::from_utf8_lossy(module.path.rsplit(|&byte| byte == b'/').next().unwrap_or_default()).into_owned();
        self.module = name.chars().filter(|letter| !letter.is_control()).collect();
        self.done(0);
    }

    fn done(&mut self, addresses: usize) {
        if self.allowed && self.bar.is_none() && self.since.elapsed() >= PROGRESS_AFTER {
            let style = ProgressStyle::with_template("leakscope: names {bar:30} {pos}/{len} {wide_msg}");
            self.bar = Some(ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())));
        }
        if let Some(bar) = &self.bar {
            bar.set_length(self.total);
            bar.set_position(self.before + addresses as u64);
            bar.set_message(self.module.clone());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Analyses a process and writes its reports; gives the analysis.
///
/// # Errors
/// When a report cannot be written.
pub fn report(
    recording: &ProcessRecording,
    tool_version: &str,
    view: &View,
    outputs: &mut Outputs,
) -> Result<Analysis> {
    let analysis = analyse(tool_version, recording, &view.options, &view.suppressions);
    for target in view.targets.iter().filter(|target| !target.format.is_document()) {
        let mut bytes = Vec::new();
        render(&mut bytes, &analysis, target.format, view, &target.destination).context("rendering in memory")?;
        outputs.write(target, analysis.process.pid, &bytes)?;
    }
    Ok(analysis)
}

fn render(
    out: &mut Vec<u8>,
    analysis: &Analysis,
    format: Format,
    view: &View,
    place: &crate::output::Destination,
) -> io::Result<()> {
    match format {
        Format::Text => text::write(out, analysis, &view.text_style(place)),
        Format::Json => json::write(out, analysis),
        Format::ValgrindXml => valgrind_xml::write(out, analysis, view.xml_style()),
        // `documents` writes the others, at the end.
        _ => Ok(()),
    }
}

/// Writes recordings where `-o FILE.leak` wants them.
///
/// # Errors
/// When a file cannot be written.
pub fn save(recording: &Recording, files: Vec<crate::output::Replacement>) -> Result<()> {
    if files.is_empty() {
        return Ok(());
    }
    let bytes = leakscope_findings::encode(recording);
    for mut file in files {
        file.write(&bytes)?;
        file.commit()?;
    }
    Ok(())
}
