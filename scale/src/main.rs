//! `leakscope-lake`: many machines' histories as Parquet, partitioned by day and service, and questions to them.
//!
//! ```text
//!  export  STATE (a monitor's or a collector's) -> URL/samples/day=2026-11-23/service=nginx/SOURCE-000017-000.parquet
//!                                                  URL/events/day=2026-11-23/SOURCE-000017-000.parquet
//!                                                  URL/_leakscope/SOURCE.json      what has been exported
//!  query   URL -> DataFusion -> a table or CSV
//! ```
//!
//! A program and a workspace of its own, because DataFusion is a large build. docs/scale.md has the layout.

mod export;
mod place;
mod query;
mod rows;

use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};

/// Histories of many machines as Parquet, and questions to them.
#[derive(Debug, Parser)]
#[command(name = "leakscope-lake", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Export what is new in a state folder, each sample once
    Export(ExportArgs),
    /// Ask: status, top-growth, history, events; or in SQL
    Query(query::QueryArgs),
}

#[derive(Debug, Args)]
struct ExportArgs {
    /// The state folder of a monitor or a collector
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// Where to: a folder, or s3://BUCKET/PREFIX with the usual AWS_* variables
    #[arg(long, value_name = "URL")]
    to: String,
    /// The name of the state folder in the names of files; letters, digits and `-`. The machine's name, and eight digits of
    /// the history's own, when it is not given
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("leakscope-lake: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<()> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start threads")?;
    match arguments.command {
        Command::Export(args) => {
            let place = place::Place::open(&args.to)?;
            let written = runtime.block_on(export::run(&args.state, &place, args.source.as_deref()))?;
            print(&format!("{written}\n"))
        }
        Command::Query(args) => {
            let text = runtime.block_on(query::run(&args))?;
            print(&text)
        }
    }
}

/// A reader that has gone away is no error.
fn print(text: &str) -> Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other.context("write to standard output"),
    }
}
