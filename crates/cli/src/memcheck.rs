//! `leakscope memcheck`: runs a program in a simulated CPU, and prints each error when it happens.

mod addresses;
mod options;
mod process;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::ArgMatches;
use leakscope_findings::recording::{self, ProcessFacts};
use leakscope_findings::{ProcessRecording, Recording};
use leakscope_launch::End;
use leakscope_launch::memcheck::{Happening, Launch, Session, Side, Streams, check};

use crate::flags::RunArgs;
use crate::output::{Destination, Outputs, Replacement, Target};
use crate::plan::View;
use crate::record;

use process::Process;

/// Runs the subcommand; gives our exit code, or dies by the signal that ended the program.
///
/// # Errors
/// When the program cannot be traced or a report cannot be written.
pub fn main(args: &RunArgs, matches: &ArgMatches) -> Result<ExitCode> {
    let mut view_args = args.view.clone();
    options::sort(&mut view_args.ignored.given, view_args.quiet)?;
    let mut view = View::new(&view_args, matches, Destination::Stderr)?;
    view.limit_detail();
    let mut outputs = Outputs::default();
    outputs.prepare(&view.targets)?;
    let recordings = view.recordings.iter().map(|path| Replacement::create(path)).collect::<Result<Vec<_>>>()?;
    let (argv0, arguments) = args.program.split_first().context("give a program after the options")?;
    let checked = check(argv0)?;
    if view.verbose > 0 {
        eprintln!("leakscope: starting {} in a simulated CPU", checked.image.display());
    }
    let mut session = Session::start(Launch {
        program: checked.program,
        argv0: argv0.clone(),
        arguments: arguments.to_vec(),
        options: options::lines(args, matches),
    })?;
    let mut run = Run {
        symbolizer: leakscope_symbols::Symbolizer::new(view.symbols.clone()),
        view,
        wishes: options::Wishes::new(matches),
        outputs,
        recording: record::empty_recording(),
        processes: Vec::new(),
        has_errors: false,
        failure: None,
    };
    let mut side = None;
    while let Some(happening) = session.next_happening() {
        if let Happening::Waiting { pids } = &happening {
            side = run.leave(&mut session, pids);
            match side {
                Some(Side::Front) => break,
                Some(Side::Background) => continue,
                None => {}
            }
        }
        run.take(&mut session, happening);
    }
    if side == Some(Side::Background) {
        return Ok(ExitCode::SUCCESS);
    }
    let (end, pid) = (session.end(), session.first_pid());
    drop(session);
    if run.processes.is_empty() {
        run.nothing_started(pid, end, argv0)?;
    }
    record::finish(&run.recording, &run.view, run.outputs, recordings, run.failure, run.has_errors, end)
}

fn listed(pids: &[u32]) -> String {
    pids.iter().take(8).map(u32::to_string).collect::<Vec<_>>().join(", ")
}

struct Run {
    view: View,
    wishes: options::Wishes,
    symbolizer: leakscope_symbols::Symbolizer,
    outputs: Outputs,
    recording: Recording,
    processes: Vec<Process>,
    has_errors: bool,
    /// The first thing that went wrong with a report; the program is followed to its end all the same.
    failure: Option<anyhow::Error>,
}

impl Run {
    /// The first process has ended, others go on: their reports are left to a copy of this process, unless all processes are
    /// to be in one file.
    fn leave(&self, session: &mut Session, pids: &[u32]) -> Option<Side> {
        let view = &self.view;
        let is_whole = |target: &Target| matches!(target.destination, Destination::Whole(_));
        if !view.recordings.is_empty() || view.has_documents() || view.targets.iter().any(is_whole) {
            return None;
        }
        let writes_to = |place: &Destination| view.targets.iter().any(|target| target.destination == *place);
        let streams = Streams { output: writes_to(&Destination::Stdout), error: writes_to(&Destination::Stderr) };
        let side = session.split(streams);
        if side == Some(Side::Front) && !view.quiet && view.verbose > 0 {
            let list = listed(pids);
            eprintln!("leakscope: the program has ended; its children {list} are reported when they end");
        }
        side
    }

    fn take(&mut self, session: &mut Session, happening: Happening) {
        match happening {
            Happening::Event { process, event } => {
                while self.processes.len() <= process {
                    let inherits = session.is_forked(self.processes.len());
                    self.processes.push(Process::new(self.view.targets.len(), inherits, self.wishes.clone()));
                }
                let state = &mut self.processes[process];
                let taken = state.event(&event, &self.view, &mut self.symbolizer, &mut self.outputs);
                let (shown, hidden) = state.errors();
                if let Some(answer) = state.take_answer() {
                    session.answer_question(process, &answer);
                }
                session.taken(process, shown, hidden);
                if let Err(error) = taken {
                    self.failure.get_or_insert(error);
                }
            }
            Happening::Ended { process, end, lost } => {
                while self.processes.len() <= process {
                    let inherits = session.is_forked(self.processes.len());
                    self.processes.push(Process::new(self.view.targets.len(), inherits, self.wishes.clone()));
                }
                if lost > 0 {
                    eprintln!("leakscope: {lost} events did not fit into the file between engine and report");
                }
                let end = match end {
                    End::Exited(code) => recording::End::Exited(code),
                    End::Signaled { signal, .. } => recording::End::Signalled(signal),
                    End::Replaced => recording::End::Exec,
                    End::Unknown => recording::End::Unknown,
                    End::StillRunning => recording::End::Running,
                };
                let state = &mut self.processes[process];
                match state.end(end, &self.view, &mut self.symbolizer, &mut self.outputs) {
                    Ok(Some(recorded)) => {
                        if !self.view.recordings.is_empty() || self.view.has_documents() {
                            self.recording.processes.push(recorded);
                        }
                    }
                    Ok(None) => {}
                    Err(error) => {
                        self.failure.get_or_insert(error);
                    }
                }
                self.has_errors |= state.errors().0 > 0;
            }
            Happening::Waiting { pids } => {
                if !self.view.quiet && self.view.verbose > 0 {
                    let list = listed(&pids);
                    eprintln!(
                        "leakscope: the program has ended; waiting for its children {list} (Ctrl-C to stop waiting)"
                    );
                }
            }
        }
    }

    /// The engine never said a word.
    fn nothing_started(&mut self, pid: u32, end: End, argv0: &std::ffi::OsStr) -> Result<()> {
        eprintln!("leakscope: {}: nothing is known of it: the simulated CPU did not start", argv0.to_string_lossy());
        let process = ProcessFacts { pid, parent_pid: std::process::id(), ..ProcessFacts::default() };
        let end = match end {
            End::Exited(code) => recording::End::Exited(code),
            End::Signaled { signal, .. } => recording::End::Signalled(signal),
            _ => recording::End::Unknown,
        };
        let recorded = ProcessRecording { process, end, ..ProcessRecording::default() };
        record::report(&recorded, &self.recording.tool_version, &self.view, &mut self.outputs).map(|_| ())
    }
}
