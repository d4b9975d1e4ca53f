//! `leakscope monitor why TARGET`: the verdict, and what each window shows.

use anyhow::Result;
use leakscope_monitor::State;
use leakscope_monitor::targets::{Known, Metric};
use leakscope_monitor::units::{show_bytes, show_hours};
use leakscope_monitor::{board, evidence};
use leakscope_trend::Verdict;

use super::{find_target, moment, now, open_history, place};
use crate::flags::monitor::WhyArgs;

/// Runs the subcommand.
///
/// # Errors
/// When there is no history, or no such target.
pub fn main(args: &WhyArgs) -> Result<()> {
    let config = place(&args.place)?;
    let history = open_history(&config)?;
    let target = find_target(&history, &args.target)?;
    let rows = history.all_rows(&target, now())?;
    let mut known = Known::new(config.manner(0));
    known.resume(&rows);
    say!("{target}: {}", board::words(&known));
    // The daemon knows sites and processes; the history has numbers.
    for finding in State::read_open(&config.state).into_iter().filter(|finding| finding.target == target) {
        say!("\nalarm since {}: {}", moment(finding.since), finding.title);
        for line in &finding.lines() {
            say!("  {line}");
        }
    }
    let since = match known.verdict(Metric::Memory) {
        Verdict::Growing(growth) => growth.since_seconds,
        _ => 0.0,
    };
    if let Some(line) = evidence::parts_line(&known, since) {
        say!("\n{line}");
    }
    for metric in Metric::ALL {
        if !known.judges.contains_key(&metric) {
            continue;
        }
        let show = |value: f64| if metric.is_bytes() { show_bytes(value) } else { format!("{value:.1}") };
        say!("\n{}: each window by its quarters, slope with interval, and what speaks against growth", metric.word());
        for window in known.windows(metric) {
            let quarters: Vec<String> = window.quarters.iter().map(|value| show(*value)).collect();
            let mut against = Vec::new();
            if window.slope.low <= 0.0 {
                against.push("the interval holds zero".to_owned());
            }
            if !window.rises {
                against.push("not every quarter rises".to_owned());
            }
            if let Some(rest) = window.plateau {
                against.push(format!("it slows down, towards {}", show(rest)));
            }
            say!(
                "  {:>9}: {}; {}/h ({} to {}){}{}",
                show_hours(window.seconds / 3600.0),
                quarters.join(" "),
                show(window.slope.per_hour),
                show(window.slope.low),
                show(window.slope.high),
                if against.is_empty() { "" } else { "; " },
                against.join(", ")
            );
        }
        if let Some(finding) = evidence::growth(&target, metric, &known, now())
            && let Some(line) = finding.details.first()
        {
            say!("  {line}");
        }
    }
    Ok(())
}
