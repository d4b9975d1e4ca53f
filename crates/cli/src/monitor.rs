//! `leakscope monitor`: watches machines in production. What it does is in the crate `monitor`; here are its words.

/// A line on standard output; a reader that has gone away is no error.
macro_rules! say {
    ($($words:tt)*) => {
        crate::output::print(&format!("{}\n", format_args!($($words)*)))?
    };
}

mod collect;
mod history;
mod install;
mod status;
mod why;

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use leakscope_collect::{is_machine_name, machines};
use leakscope_history::History;
use leakscope_monitor::checks::own_program;
use leakscope_monitor::state::State;
use leakscope_monitor::{Config, cores, daemon};

use crate::flags::monitor::{MonitorArgs, MonitorCommand, OnceArgs, PlaceArgs};

/// Runs the subcommand.
///
/// # Errors
/// When the configuration has mistakes, the state folder cannot be used, or a file cannot be written.
pub fn main(args: &MonitorArgs) -> Result<ExitCode> {
    match &args.command {
        MonitorCommand::Run(args) => {
            daemon::run(Config::read(&args.config)?, &own_program(), &mut |line| eprintln!("leakscope: {line}"))?;
        }
        MonitorCommand::Once(args) => return once(args),
        MonitorCommand::TestAlert(args) => return test_alert(&Config::read(&args.config)?),
        MonitorCommand::Collect(args) => collect::main(args)?,
        MonitorCommand::Init(args) => install::init(args)?,
        MonitorCommand::Install(args) => install::install(args)?,
        MonitorCommand::Uninstall(args) => install::uninstall(args)?,
        MonitorCommand::Status(args) => status::main(args)?,
        MonitorCommand::History(args) => history::main(args)?,
        MonitorCommand::Why(args) => why::main(args)?,
        MonitorCommand::Core(args) => {
            let taken = cores::take(args.pid, &args.output, args.size)?;
            say!("core of process {}: {}: {taken}", args.pid, args.output.display());
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn once(args: &OnceArgs) -> Result<ExitCode> {
    let quiet = args.quiet;
    let findings = daemon::once(Config::read(&args.config.config)?, &own_program(), &mut |line| {
        if !quiet {
            eprintln!("leakscope: {line}");
        }
    })?;
    if !quiet {
        for finding in &findings {
            println!("{}", finding.title);
            finding.lines().iter().for_each(|line| println!("  {line}"));
            println!("  next: {}", finding.next);
        }
    }
    Ok(ExitCode::from(u8::from(!findings.is_empty())))
}

fn test_alert(config: &Config) -> Result<ExitCode> {
    if config.channels.is_empty() {
        bail!("no channel is configured; write [mail], [[webhook]], [[slack]], [[alertmanager]] or [[command]]");
    }
    let mut refused = 0;
    for (name, outcome) in daemon::test_alert(config) {
        match outcome {
            Ok(()) => println!("{name}: taken"),
            Err(error) => {
                refused += 1;
                println!("{error}");
            }
        }
    }
    if refused > 0 {
        bail!("{refused} of {} channels did not take the sample", config.channels.len());
    }
    Ok(ExitCode::SUCCESS)
}

/// The configuration that a history is judged by, with the state folder that is meant.
fn place(args: &PlaceArgs) -> Result<Config> {
    let Some(state) = &args.state else { return Ok(Config::read(&args.config.config)?) };
    // Another machine's history needs no configuration of this one; where there is one, its `window` counts.
    let mut config = match args.config.config.exists() {
        true => Config::read(&args.config.config)?,
        false => Config::decode("").unwrap_or_else(|_| unreachable!("the empty configuration is one")),
    };
    config.state = match &args.machine {
        Some(machine) if is_machine_name(machine) => state.join("machines").join(machine),
        Some(machine) => bail!("`{machine}` is no machine's name; known are: {}", machines(state).join(", ")),
        None => state.clone(),
    };
    Ok(config)
}

/// The history that a configuration's daemon writes.
fn open_history(config: &Config) -> Result<History> {
    let path = State::history_path(&config.state);
    let known = machines(&config.state);
    if !known.is_empty() && !path.exists() {
        bail!(
            "{} is a collector's; name one of its machines with --machine: {}",
            config.state.display(),
            known.join(", ")
        );
    }
    History::open_read_only(&path).with_context(|| {
        format!("nothing has been watched yet in {}; start `leakscope monitor run`", config.state.display())
    })
}

/// A target of the history, also by the end of its name.
fn find_target(history: &History, wanted: &str) -> Result<String> {
    let targets = history.targets();
    let is_it = |target: &&String| *target == wanted || target.split_once(':').is_some_and(|(_, name)| name == wanted);
    match targets.iter().find(is_it) {
        Some(target) => Ok(target.clone()),
        None => bail!("no target `{wanted}`; known are: {}", targets.join(", ")),
    }
}

/// Seconds since the epoch.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// A moment for people, in local time.
fn moment(seconds: u64) -> String {
    let time = jiff::Timestamp::from_second(i64::try_from(seconds).unwrap_or(0)).unwrap_or_default();
    time.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M").to_string()
}
