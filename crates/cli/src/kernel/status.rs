//! `leakscope kernel status`: what this kernel offers, as a table.

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};
use leakscope_kernel::Places;
use leakscope_kernel::status::{Row, Status, read_status};
use serde_json::json;

use crate::flags::kernel::StatusArgs;

/// Runs the subcommand.
///
/// # Errors
/// Standard output cannot be written.
pub fn main(args: &StatusArgs) -> Result<ExitCode> {
    let status = read_status(&Places::default());
    let text = if args.json { as_json(&status) } else { table(&status) };
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        // A reader that has seen enough is no error.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("standard output: cannot write to it")
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn table(status: &Status) -> String {
    let source = if status.config_source.is_empty() { "found nowhere" } else { &status.config_source };
    let mut text = format!("Linux {}, configuration: {source}\n\n", status.release);
    let name = status.rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
    for Row { name: row, state, reason, next } in &status.rows {
        text += &format!("{row:<name$}  {:<3}  {reason}\n", state.word());
        if !next.is_empty() {
            text += &format!("{:name$}       next: {next}\n", "");
        }
    }
    text
}

fn as_json(status: &Status) -> String {
    let rows: Vec<_> = status
        .rows
        .iter()
        .map(|row| json!({"name": row.name, "state": row.state.word(), "reason": row.reason, "next": row.next}))
        .collect();
    let all = json!({"release": status.release, "configuration": status.config_source, "rows": rows});
    format!("{all:#}\n")
}

#[cfg(test)]
mod tests {
    use leakscope_kernel::status::State;

    use super::*;

    #[test]
    fn rows_are_aligned_and_their_next_step_stands_below() {
        let row = |name, state, next: &str| Row { name, state, reason: "r".into(), next: next.into() };
        let rows = vec![row("a", State::Ready, ""), row("long", State::Off, "do x")];
        let status = Status { release: "6.1".into(), config_source: String::new(), rows };
        let text = "Linux 6.1, configuration: found nowhere\n\na     yes  r\nlong  off  r\n           next: do x\n";
        assert_eq!(table(&status), text);
        assert!(as_json(&status).contains("\"next\": \"do x\""));
    }
}
