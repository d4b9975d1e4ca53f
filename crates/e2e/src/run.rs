//! Run one program to its end, bounded in time, and say how it ended and what it used.
//!
//! Output goes through files and not pipes, so a program that writes much cannot block and a grandchild that keeps
//! the descriptor open cannot delay the end. Resource use is `wait4`'s: the program and all its reaped descendants.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process_group};
use wait4::Wait4;

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// By itself, with this exit code.
    Exit(i32),
    /// By this signal number.
    Signal(i32),
    /// It was killed at the time limit.
    TimedOut,
}

/// What a finished program said and used.
#[derive(Debug, Clone)]
pub struct Finished {
    /// How it ended.
    pub ending: Ending,
    /// Everything it wrote to standard output.
    pub stdout: Vec<u8>,
    /// Everything it wrote to standard error, bytes that are no UTF-8 replaced.
    pub stderr: String,
    /// From spawn to reaping.
    pub wall: Duration,
    /// User and system time together, of the program and its reaped descendants.
    pub cpu: Duration,
    /// Largest resident set of any one of those processes, in bytes.
    pub max_rss_bytes: u64,
}

/// A program to run: arguments, environment, folder, input and time limit.
#[derive(Debug, Clone)]
pub struct Run {
    argv: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    dir: Option<PathBuf>,
    stdin: Option<PathBuf>,
    limit: Duration,
}

impl Run {
    /// A run of `program`, limited to 60 seconds, with empty standard input.
    pub fn new(program: impl AsRef<OsStr>) -> Run {
        Run {
            argv: vec![program.as_ref().to_owned()],
            env: Vec::new(),
            dir: None,
            stdin: None,
            limit: Duration::from_secs(60),
        }
    }

    /// Adds one argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Run {
        self.argv.push(arg.as_ref().to_owned());
        self
    }

    /// Adds several arguments.
    pub fn args<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(mut self, args: I) -> Run {
        self.argv.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets one environment variable.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Run {
        self.env.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Sets the working folder.
    pub fn dir(mut self, dir: impl AsRef<Path>) -> Run {
        self.dir = Some(dir.as_ref().to_path_buf());
        self
    }

    /// Feeds this file to standard input.
    pub fn stdin(mut self, path: impl AsRef<Path>) -> Run {
        self.stdin = Some(path.as_ref().to_path_buf());
        self
    }

    /// Sets the time limit.
    pub fn limit(mut self, limit: Duration) -> Run {
        self.limit = limit;
        self
    }

    /// The words of the command, for a message.
    pub fn shown(&self) -> String {
        let words: Vec<_> = self.argv.iter().map(|word| word.to_string_lossy()).collect();
        words.join(" ")
    }

    /// The command with environment and folder applied and standard input set; output still inherited.
    ///
    /// # Errors
    /// The input file cannot be opened.
    pub fn command(&self) -> Result<Command> {
        let mut command = Command::new(&self.argv[0]);
        command.args(&self.argv[1..]);
        for name in ["LD_PRELOAD", "VALGRIND_OPTS", "DEBUGINFOD_URLS", "MALLOC_PERTURB_", "MALLOC_CHECK_"] {
            command.env_remove(name);
        }
        command.env("LC_ALL", "C").env("LANG", "C");
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        match &self.stdin {
            Some(path) => command.stdin(File::open(path).with_context(|| format!("open {}", path.display()))?),
            None => command.stdin(Stdio::null()),
        };
        Ok(command)
    }

    /// Runs it to its end; at the limit its whole process group is killed.
    ///
    /// # Errors
    /// The program cannot be started, or its output cannot be read back.
    pub fn finish(&self) -> Result<Finished> {
        let scratch = tempfile::tempdir()?;
        let (out, err) = (scratch.path().join("out"), scratch.path().join("err"));
        let mut command = self.command()?;
        command.stdout(File::create(&out)?).stderr(File::create(&err)?).process_group(0);
        let begin = Instant::now();
        let mut child = command.spawn().with_context(|| format!("start {}", self.shown()))?;
        let group = Pid::from_raw(i32::try_from(child.id())?).context("a child has a positive pid")?;
        let (ended, watched) = mpsc::channel::<()>();
        let limit = self.limit;
        let watchdog = std::thread::spawn(move || {
            let timed_out = watched.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout);
            if timed_out {
                // Failure means that the group has ended in this very moment.
                let _ = kill_process_group(group, Signal::KILL);
            }
            timed_out
        });
        let used = child.wait4().context("wait4")?;
        let wall = begin.elapsed();
        drop(ended);
        let timed_out = watchdog.join().expect("the watchdog does not panic");
        // What the program left running in its group would disturb the next measurement.
        let _ = kill_process_group(group, Signal::KILL);
        let ending = match (timed_out, used.status.code()) {
            (true, _) => Ending::TimedOut,
            (false, Some(code)) => Ending::Exit(code),
            (false, None) => Ending::Signal(used.status.signal().unwrap_or(0)),
        };
        Ok(Finished {
            ending,
            stdout: std::fs::read(&out)?,
            stderr: String::from_utf8_lossy(&std::fs::read(&err)?).into_owned(),
            wall,
            cpu: used.rusage.utime + used.rusage.stime,
            max_rss_bytes: used.rusage.maxrss,
        })
    }
}
