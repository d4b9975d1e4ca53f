//! `leakscope monitor collect`: takes in what other machines' monitors push.

use std::sync::mpsc;

use anyhow::Result;
use leakscope_collect::serve;
use leakscope_monitor::config::collector::{self, Collecting};
use leakscope_monitor::daemon::until_told;
use leakscope_monitor::outlets;
use leakscope_monitor::state::State;

use crate::flags::monitor::CollectArgs;

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// When the configuration has mistakes, the state folder is another's, or it cannot listen.
pub fn main(args: &CollectArgs) -> Result<()> {
    let Collecting { options, page } = collector::read(&args.config)?;
    let _ours = State::take(&options.state)?;
    let (tell, told) = mpsc::channel();
    let collector = serve(&options, tell)?;
    let mut say = |line: &str| eprintln!("leakscope: {line}");
    collector.complaints.iter().for_each(|line| say(line));
    let scheme = if collector.is_tls { "https" } else { "http" };
    let (address, machines, state) = (collector.address, collector.machines, options.state.display());
    say(&format!("collecting at {scheme}://{address} from {machines} machines; state in {state}"));
    if let Some(page) = page {
        say(&outlets::start_many(&page, &options.state)?);
    }
    Ok(until_told(&told, &mut say)?)
}
