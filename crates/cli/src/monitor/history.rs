//! `leakscope monitor history TARGET`: how it went.

use anyhow::Result;
use leakscope_history::{NAMES, Scale};
use leakscope_monitor::evidence;
use leakscope_monitor::targets::Known;
use leakscope_monitor::units::show_bytes;

use super::status::sparkline;
use super::{find_target, moment, now, open_history, place};
use crate::flags::monitor::HistoryArgs;

/// Lines that a terminal shows without scrolling.
const LINES: usize = 24;

/// Runs the subcommand.
///
/// # Errors
/// When there is no history, or no such target.
pub fn main(args: &HistoryArgs) -> Result<()> {
    let config = place(&args.place)?;
    let history = open_history(&config)?;
    let target = find_target(&history, &args.target)?;
    let at = now();
    let back = args.last.as_secs();
    let kept = |scale: Scale| back <= scale.kept_seconds();
    let is_short = back <= 2 * 3600;
    let scale = match back {
        _ if is_short && kept(Scale::Raw) => Scale::Raw,
        _ if back <= 14 * 86_400 => Scale::FiveMinutes,
        _ => Scale::Hour,
    };
    let rows = history.rows(&target, scale, at.saturating_sub(back), u64::MAX >> 1)?;
    if args.csv {
        say!("time,life,{},lowest_resident,highest_resident", NAMES.join(","));
        for row in &rows {
            let values: Vec<String> =
                row.values.iter().map(|value| value.map_or(String::new(), |value| value.to_string())).collect();
            let extremes = row.extremes.map_or(",".to_owned(), |(low, high)| format!("{low},{high}"));
            say!("{},{},{},{extremes}", row.at, row.life, values.join(","));
        }
        return Ok(());
    }
    let resident: Vec<f64> = rows.iter().filter_map(|row| row.values[0].map(|value| value as f64)).collect();
    say!("{target}: {} rows since {}\n{}\n", rows.len(), moment(at.saturating_sub(back)), sparkline(&resident));
    say!("{:16}  {:>4}  {:>9}  {:>9}  {:>7}  {:>6}", "time", "life", "resident", "anonymous", "threads", "fds");
    let every = rows.len().div_ceil(LINES).max(1);
    for row in rows.iter().step_by(every) {
        let bytes = |index: usize| row.values[index].map_or("-".to_owned(), |value| show_bytes(value as f64));
        let count = |index: usize| row.values[index].map_or("-".to_owned(), |value| value.to_string());
        say!(
            "{:16}  {:>4}  {:>9}  {:>9}  {:>7}  {:>6}",
            moment(row.at),
            row.life,
            bytes(0),
            bytes(1),
            count(5),
            count(6)
        );
    }
    let mut known = Known::new(config.manner(0));
    known.resume(&rows);
    if let Some(line) = evidence::parts_line(&known, 0.0) {
        say!("\n{line}");
    }
    let events = history.events(Some(&target), 10)?;
    if !events.is_empty() {
        say!("\nevents, newest first:");
    }
    for event in events {
        say!("{:16}  {:8}  {}", moment(event.at), event.kind, event.text);
    }
    Ok(())
}
