//! The leak checker under test: `leakscope run`, or Valgrind as the check of the tables themselves.
//!
//! Both take the same options and write the same XML, so a test is written once.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::paths::leakscope_bin;
use crate::run::{Finished, Run};
use crate::xml::{Report, parse_report};

/// A leak checker that can run a program and write Valgrind's XML.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tool {
    /// The binary of `LEAKSCOPE_BIN`, else the release build.
    Leakscope,
    /// `valgrind --tool=memcheck` of the system.
    Valgrind,
}

impl Tool {
    /// The tool that `LEAKSCOPE_E2E_TOOL` names; leakscope where it is not set.
    ///
    /// # Errors
    /// The variable names another tool, or the release build does not exist yet.
    pub fn from_env() -> Result<Tool> {
        match std::env::var("LEAKSCOPE_E2E_TOOL").as_deref() {
            Ok("valgrind") => Ok(Tool::Valgrind),
            Ok("leakscope") | Err(_) => {
                let path = leakscope_bin();
                if !path.exists() {
                    bail!("{} does not exist; next: cargo build --release -p leakscope", path.display());
                }
                Ok(Tool::Leakscope)
            }
            Ok(other) => bail!("LEAKSCOPE_E2E_TOOL={other}: expected leakscope or valgrind"),
        }
    }

    /// The start of a command line that runs a program under this tool; options and the program follow.
    pub fn start(self) -> Run {
        match self {
            Tool::Leakscope => Run::new(leakscope_bin()).arg("run"),
            Tool::Valgrind => Run::new("valgrind").arg("--command-line-only=yes").arg("-q"),
        }
    }

    /// Runs `program` with a full leak check and returns its ending and the reports of all its processes.
    ///
    /// # Errors
    /// The tool cannot be started, or a report of it cannot be read.
    pub fn check(
        self,
        program: &Path,
        args: &[String],
        options: &[String],
        env: &[(&str, &str)],
        limit: Duration,
    ) -> Result<(Finished, Vec<Report>)> {
        let scratch = tempfile::tempdir()?;
        let pattern = format!("--xml-file={}/report.%p", scratch.path().display());
        let mut run = self
            .start()
            .args(["--xml=yes", &pattern, "--leak-check=full", "--show-leak-kinds=all", "--num-callers=60"])
            .args(options)
            .arg(program)
            .args(args)
            .limit(limit);
        for (name, value) in env {
            run = run.env(name, value);
        }
        let finished = run.finish()?;
        let mut reports = Vec::new();
        for entry in std::fs::read_dir(scratch.path())? {
            let path = entry?.path();
            let text = std::fs::read_to_string(&path)?;
            // A process that a signal killed before its report, or that ended by exec, leaves an empty file in Valgrind.
            if self == Tool::Valgrind && !text.contains("</valgrindoutput>") {
                continue;
            }
            reports.push(parse_report(&text).with_context(|| format!("the report of {}: {text}", program.display()))?);
        }
        reports.sort_by_key(|report| report.pid);
        Ok((finished, reports))
    }
}
