//! A program of the user's: JSON on its standard input, success is exit code 0.

use std::io::{Read, Write};
use std::process::{self, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use super::Refusal;
use crate::{Notice, format};

/// How long the program may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How much of what it complains is kept, bytes.
const COMPLAINT: u64 = 300;

/// A program that gets notices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// The program and its arguments; no shell reads them.
    pub words: Vec<String>,
}

impl Command {
    pub(super) fn send(&self, notice: &Notice) -> Result<(), Refusal> {
        let (program, arguments) = self.words.split_first().ok_or(Refusal::Lasting("no program is named".into()))?;
        let mut child = process::Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| Refusal::Temporary(format!("cannot start: {error}")))?;
        let body = format::machine_readable(notice).to_string();
        let (mut input, errors) = (child.stdin.take(), child.stderr.take());
        let (done, finished) = mpsc::channel();
        // A program that reads nothing, or never ends, must not hold us up.
        std::thread::spawn(move || {
            let written = input.as_mut().is_none_or(|input| input.write_all(body.as_bytes()).is_ok());
            drop(input);
            let mut complaint = Vec::new();
            let _ = errors.map(|errors| errors.take(COMPLAINT).read_to_end(&mut complaint));
            let _ = done.send((written, complaint));
        });
        let Ok((_, complaint)) = finished.recv_timeout(PATIENCE) else {
            let _ = child.kill();
            let _ = child.wait();
            return Err(Refusal::Temporary(format!("it took longer than {} s", PATIENCE.as_secs())));
        };
        let status = child.wait().map_err(|error| Refusal::Temporary(error.to_string()))?;
        if status.success() {
            return Ok(());
        }
        let complaint = String::from_utf8_lossy(&complaint).lines().next().unwrap_or_default().to_owned();
        Err(Refusal::Temporary(format!("{status} {complaint}").trim_end().to_owned()))
    }
}
