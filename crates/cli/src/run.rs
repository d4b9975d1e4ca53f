//! `leakscope run`: starts a program, reports each traced process as it ends.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::ArgMatches;
use leakscope_findings::ProcessRecording;
use leakscope_findings::recording::{self, ProcessFacts, State};
use leakscope_launch::{End, Ended, Event, Request, Session, cache, preflight};
use leakscope_model::CheckTrigger;

use crate::flags::RunArgs;
use crate::output::{Destination, Outputs, Replacement};
use crate::plan::{View, config};
use crate::record::{self, Recorder};

/// Runs the subcommand; gives our exit code, or dies by the signal that ended the program.
///
/// # Errors
/// When the program cannot be traced or a report cannot be written.
pub fn main(args: &RunArgs, matches: &ArgMatches) -> Result<ExitCode> {
    let mut view = View::new(&args.view, matches, Destination::Stderr)?;
    view.limit_detail();
    let mut outputs = Outputs::default();
    outputs.prepare(&view.targets)?;
    let recordings = view.recordings.iter().map(|path| Replacement::create(path)).collect::<Result<Vec<_>>>()?;
    let (argv0, arguments) = args.program.split_first().context("give a program after the options")?;
    let checked = preflight::check(argv0)?;
    let library = cache::unpack()?;
    if view.verbose > 0 {
        eprintln!("leakscope: starting {} with {} in it", checked.image.display(), library.path.display());
    }
    let session = Session::start(Request {
        program: checked.program,
        argv0: argv0.clone(),
        arguments: arguments.to_vec(),
        library: library.path.clone(),
        config: config(args)?,
    })?;
    let follows_exec = args.trace_children;
    let mut run = Run {
        follows_exec,
        recorder: Recorder::new(&view),
        view,
        outputs,
        recording: record::empty_recording(),
        errors: false,
        failure: None,
    };
    let program = Program {
        name: argv0.to_string_lossy().into_owned(),
        executable: checked.image.display().to_string(),
        command_line: args.program.iter().map(|word| word.to_string_lossy().into_owned()).collect(),
    };
    let end = run.follow(&session, &program);
    drop(session);
    record::finish(&run.recording, &run.view, run.outputs, recordings, run.failure, run.errors, end)
}

/// What is known of a program before it runs.
struct Program {
    name: String,
    executable: String,
    command_line: Vec<String>,
}

struct Run {
    view: View,
    recorder: Recorder,
    outputs: Outputs,
    recording: leakscope_findings::Recording,
    errors: bool,
    /// `--trace-children=yes`.
    follows_exec: bool,
    /// The first thing that went wrong with a report; the program is followed to its end all the same.
    failure: Option<anyhow::Error>,
}

impl Run {
    /// Takes events until everything has ended; gives the end of the program.
    fn follow(&mut self, session: &Session, program: &Program) -> End {
        let mut first_end = End::Unknown;
        while let Some(event) = session.next_event() {
            let outcome = match event {
                Event::Ended(ended) => self.report(&ended),
                Event::FirstEnded { end, started } => {
                    first_end = end;
                    if started { Ok(()) } else { self.report_unstarted(session.first_pid(), end, program) }
                }
                Event::Waiting { pids } => {
                    self.say_waiting(&pids);
                    Ok(())
                }
                Event::NoLedger { pid, reason } => {
                    self.say(&format!("process {pid} is not recorded: {reason}"));
                    Ok(())
                }
            };
            if let Err(error) = outcome {
                self.failure.get_or_insert(error);
            }
        }
        first_end
    }

    /// The program ended before the injected library began to record: reports and recording say so, in every format.
    fn report_unstarted(&mut self, pid: u32, end: End, program: &Program) -> Result<()> {
        let name = &program.name;
        match end {
            End::Signaled { .. } => self.say(&format!("{name}: nothing is known of it: a signal ended it before the injected library had started in it")),
            _ => self.say(&format!("{name}: nothing is known of it: the injected library did not start in it; its exit code is kept. Look for messages of the dynamic loader (ld.so) above")),
        }
        let process = ProcessFacts {
            pid,
            parent_pid: std::process::id(),
            executable: program.executable.clone(),
            command_line: program.command_line.clone(),
            ..ProcessFacts::default()
        };
        self.keep(ProcessRecording { process, end: recorded_end(end), ..ProcessRecording::default() })
    }

    fn say(&self, text: &str) {
        eprintln!("leakscope: {text}");
    }

    fn say_waiting(&self, pids: &[u32]) {
        if self.view.quiet {
            return;
        }
        let list = pids.iter().take(8).map(u32::to_string).collect::<Vec<_>>().join(", ");
        let more = if pids.len() > 8 { ", ..." } else { "" };
        self.say(&format!("the program has ended; waiting for its children {list}{more} (Ctrl-C to stop waiting and report them as they are)"));
    }

    fn report(&mut self, ended: &Ended) -> Result<()> {
        let mut recorded = self.recorder.record(ended.ledger.file(), recorded_end(ended.end), &self.view)?;
        // A check before exec is the last one unless exec failed and the program went on.
        if !self.follows_exec && recorded.checks.last().is_some_and(|check| check.trigger == CheckTrigger::Exec) {
            recorded.end = recording::End::Exec;
            if !self.view.quiet {
                self.say(&format!("process {}: it turned into another program (exec), which was not followed; --trace-children=yes follows it", ended.pid));
            }
        }
        if recorded.process.state == State::Failed {
            let reason =
                if recorded.process.failure.is_empty() { "no reason was given" } else { &recorded.process.failure };
            self.say(&format!(
                "process {}: the injected library could not start ({reason}); the process ran untraced",
                ended.pid
            ));
        }
        if matches!(ended.end, End::Signaled { out_of_memory: true, .. }) {
            self.say(&format!("process {}: the kernel's OOM killer ended it: its memory was used up", ended.pid));
        }
        self.keep(recorded)
    }

    /// Writes the reports on a process, and keeps it for the recording.
    fn keep(&mut self, recorded: ProcessRecording) -> Result<()> {
        let analysis = record::report(&recorded, &self.recording.tool_version, &self.view, &mut self.outputs)?;
        self.errors |= analysis.has_errors();
        if !self.view.recordings.is_empty() || self.view.has_documents() {
            self.recording.processes.push(recorded);
        }
        Ok(())
    }
}

fn recorded_end(end: End) -> recording::End {
    match end {
        End::Exited(code) => recording::End::Exited(code),
        End::Signaled { signal, .. } => recording::End::Signalled(signal),
        End::Replaced => recording::End::Exec,
        End::Unknown => recording::End::Unknown,
        End::StillRunning => recording::End::Running,
    }
}
