//! `asan run`: a program that was built with the checks, with our library in place of the compiler's. Without `-o` the
//! program takes our place; with it we stay beside it, and turn what it reported into a recording and reports.
//!
//! The library writes each report a second time, to a file of the process in a folder of ours, in the words that
//! `leakscope import` reads: so the findings have the identity that they have from every other engine.

use std::env;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::ArgMatches;
use clap::parser::ValueSource;
use leakscope_findings::recording::{self, Check, CheckState, ProcessFacts, State, Witness};
use leakscope_findings::{ProcessRecording, Recording};
use leakscope_launch::asan::{Launch, SONAMES, needs_runtime, unpack};
use leakscope_launch::{End, preflight};
use leakscope_model::{CheckTrigger, Tool};

use crate::file_names::FileNames;
use crate::flags::asan::RunArgs;
use crate::output::{Destination, Outputs, Replacement};
use crate::plan::View;
use crate::{import, record};

/// Tells the library where to write reports a second time: the front of the file's name, before `.PID`.
const COPY: &str = "LEAKSCOPE_ASAN_COPY";

/// Runs the program.
///
/// # Errors
/// It cannot be started, or a report cannot be written.
pub fn main(args: &RunArgs, matches: &ArgMatches) -> Result<ExitCode> {
    let (argv0, arguments) = args.program.split_first().context("asan run: give a program after the options")?;
    let program = preflight::find(argv0, env::var_os("PATH").as_deref())?;
    refuse_without_checks(&program)?;
    let runtime = unpack()?;
    let mut paths = runtime.folder.clone().into_os_string();
    if let Some(before) = env::var_os("LD_LIBRARY_PATH").filter(|before| !before.is_empty()) {
        paths.push(":");
        paths.push(before);
    }
    if !wants_report(matches) {
        let error = Command::new(&program).arg0(argv0).args(arguments).env("LD_LIBRARY_PATH", paths).exec();
        return Err(error).with_context(|| format!("start {}", program.display()));
    }
    let copies = tempfile::Builder::new().prefix("leakscope-asan-").tempdir().context("make a folder for reports")?;
    let launch = Launch {
        program,
        argv0: argv0.clone(),
        arguments: arguments.to_vec(),
        environment: vec![("LD_LIBRARY_PATH", paths), (COPY, copies.path().join("report").into_os_string())],
    };
    recorded(args, matches, &launch, copies.path())
}

/// Whether an option asks for something of us; all of them are about reports.
fn wants_report(matches: &ArgMatches) -> bool {
    // Groups, which have the names of structures, are there as well.
    let is_option = |name: &str| name != "program" && !name.starts_with(char::is_uppercase);
    let is_given = |name: &str| matches.value_source(name) == Some(ValueSource::CommandLine);
    matches.ids().any(|id| is_option(id.as_str()) && is_given(id.as_str()))
}

/// Refuses a program that asks for no shared run-time.
fn refuse_without_checks(program: &Path) -> Result<()> {
    if needs_runtime(program) == Some(false) {
        bail!(
            "{}: does not ask for a shared run-time ({}); next: build it with -fsanitize=address, and with clang \
             -shared-libasan, or by `leakscope asan cc`",
            program.display(),
            SONAMES.join(", ")
        );
    }
    Ok(())
}

/// Runs the program beside us, and writes what it found.
fn recorded(args: &RunArgs, matches: &ArgMatches, launch: &Launch, copies: &Path) -> Result<ExitCode> {
    let mut view = View::new(&args.view, matches, Destination::Stderr)?;
    if !args.view.output.is_empty() {
        // The program itself has told the terminal.
        view.targets.retain(|target| target.destination != Destination::Stderr);
    }
    let mut outputs = Outputs::default();
    outputs.prepare(&view.targets)?;
    let files = view.recordings.iter().map(|path| Replacement::create(path)).collect::<Result<Vec<_>>>()?;
    let (pid, end) = leakscope_launch::asan::run(launch)?;
    let recording = read(copies, launch, pid, end, &view)?;
    let mut has_errors = false;
    for process in &recording.processes {
        has_errors |= record::report(process, &recording.tool_version, &view, &mut outputs)?.has_errors();
    }
    record::finish(&recording, &view, outputs, files, None, has_errors, end)
}

/// The processes that left reports, and the program itself, which may have found nothing.
fn read(copies: &Path, launch: &Launch, pid: u32, end: End, view: &View) -> Result<Recording> {
    let mut names = FileNames::new(view.symbols.clone(), None);
    let mut recording = record::empty_recording();
    let mut reports: Vec<PathBuf> = std::fs::read_dir(copies)
        .and_then(Iterator::collect::<std::io::Result<Vec<_>>>)
        .with_context(|| format!("read {}", copies.display()))?
        .iter()
        .map(std::fs::DirEntry::path)
        .collect();
    reports.sort();
    for path in &reports {
        let input = import::open_with(path, false)?;
        // What is no report (a warning, statistics) is of no known format.
        if let Ok((_, imported)) = leakscope_import::import(input, &mut names) {
            recording.processes.extend(imported.processes);
        }
    }
    if !recording.processes.iter().any(|process| process.process.pid == pid) {
        let process = ProcessFacts { pid, ..ProcessFacts::default() };
        recording.processes.insert(0, ProcessRecording { process, ..ProcessRecording::default() });
    }
    for process in &mut recording.processes {
        process.witness =
            Witness { tool: Tool::AddressSanitizer, version: format!("leakscope {}", recording.tool_version) };
        if process.process.pid == pid {
            process.process.parent_pid = std::process::id();
            process.process.state = State::Ended;
            process.process.executable = launch.program.to_string_lossy().into_owned();
            process.process.command_line = std::iter::once(&launch.argv0)
                .chain(&launch.arguments)
                .map(|word| word.to_string_lossy().into_owned())
                .collect();
            process.end = match end {
                End::Exited(code) => recording::End::Exited(code),
                End::Signaled { signal, .. } => recording::End::Signalled(signal),
                _ => recording::End::Unknown,
            };
            let found_nothing = process.memory_errors.is_empty() && process.misuses.is_empty();
            if let (End::Exited(code), true, true) =
                (end, process.checks.is_empty(), found_nothing && looks_for_leaks())
            {
                process.checks.push(clean_check(code));
            }
        }
    }
    Ok(recording)
}

/// Whether the options leave the leak check at the end on.
fn looks_for_leaks() -> bool {
    let options = ["ASAN_OPTIONS", "LSAN_OPTIONS"].map(|name| env::var(name).unwrap_or_default());
    !options.iter().any(|text| text.contains("detect_leaks=0") || text.contains("leak_check_at_exit=0"))
}

/// A leak check that found nothing says nothing.
fn clean_check(code: i32) -> Check {
    Check {
        number: 0,
        state: CheckState::Complete,
        trigger: CheckTrigger::Exit,
        monotonic_ns: 0,
        blocks: 0,
        bytes: 0,
        root_bytes: 0,
        unreadable_bytes: 0,
        threads_seen: 0,
        threads_unseen: 0,
        pause_ns: 0,
        check_ns: 0,
        lost_records: 0,
        status: code as u32,
        freeres: false,
        failure: String::new(),
        records: Some(Vec::new()),
    }
}
