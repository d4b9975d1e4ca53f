//! `leakscope monitor status`: every target in a line, from the history alone.

use anyhow::{Result, bail};
use leakscope_board::Board;
use leakscope_board::prometheus::Exported;
use leakscope_collect::machines;
use leakscope_history::{History, Scale};
use leakscope_monitor::targets::{Known, Metric};
use leakscope_monitor::units::show_bytes;
use leakscope_monitor::{Config, State, board};
use leakscope_trend::Verdict;
use serde_json::json;

use super::{moment, now, open_history, place};
use crate::flags::monitor::StatusArgs;

/// A target that was not seen for so long is gone, seconds.
const GONE_SECONDS: u64 = 3600;
const SPARKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
const SPARK_POINTS: usize = 24;

struct Line {
    target: String,
    known: Known,
    life: u16,
    last: u64,
    day: Vec<f64>,
}

/// Runs the subcommand.
///
/// # Errors
/// When there is no history.
pub fn main(args: &StatusArgs) -> Result<()> {
    let config = place(&args.place)?;
    let machines = machines(&config.state);
    if !machines.is_empty() && !State::history_path(&config.state).exists() {
        return of_all(&config, &machines, args);
    }
    let history = open_history(&config)?;
    let lines = lines(&config, &history)?;
    if args.json {
        let targets: Vec<_> = lines.iter().map(json_line).collect();
        say!("{}", json!({ "version": 1, "at": now(), "targets": targets }));
        return Ok(());
    }
    if args.prometheus {
        return prometheus(&config, &lines);
    }
    table(&lines)?;
    let open = State::read_open(&config.state);
    if !open.is_empty() {
        say!("\nopen alarms:");
        for finding in open {
            say!("  {} (since {})\n    next: {}", finding.title, moment(finding.since), finding.next);
        }
    }
    Ok(())
}

fn table(lines: &[Line]) -> Result<()> {
    let width = lines.iter().map(|line| line.target.chars().count()).max().unwrap_or(6).max(6);
    say!("{:width$}  {:>9}  {:24}  verdict", "target", "memory", "last day");
    for line in lines {
        let memory = Metric::Memory.of(&line.known.values).map_or("-".to_owned(), show_bytes);
        let gone = if line.last + GONE_SECONDS < now() {
            format!(" (last seen {})", moment(line.last))
        } else {
            String::new()
        };
        say!("{:width$}  {memory:>9}  {:24}  {}{gone}", line.target, sparkline(&line.day), board::words(&line.known));
    }
    Ok(())
}

/// The machines of a collector, each with its targets.
fn of_all(config: &Config, machines: &[String], args: &StatusArgs) -> Result<()> {
    if args.prometheus {
        bail!("a collector's machines are exported by their own monitors; name one with --machine");
    }
    let mut all = Vec::new();
    for machine in machines {
        let mut config = config.clone();
        config.state = config.state.join("machines").join(machine);
        let lines = lines(&config, &open_history(&config)?)?;
        if args.json {
            all.push(json!({ "machine": machine, "targets": lines.iter().map(json_line).collect::<Vec<_>>() }));
            continue;
        }
        let last = lines.iter().map(|line| line.last).max().map_or("never".to_owned(), moment);
        say!("{machine}: {} targets, last heard of {last}", lines.len());
        table(&lines)?;
        say!("");
    }
    if args.json {
        say!("{}", json!({ "version": 1, "at": now(), "machines": all }));
    }
    Ok(())
}

fn lines(config: &Config, history: &History) -> Result<Vec<Line>> {
    let at = now();
    let mut lines = Vec::new();
    for target in history.targets() {
        let rows = history.all_rows(&target, at)?;
        let Some((last, life)) = rows.last().map(|row| (row.at, row.life)) else { continue };
        let mut known = Known::new(config.manner(0));
        known.resume(&rows);
        let day = history.rows(&target, Scale::FiveMinutes, at.saturating_sub(86_400), u64::MAX >> 1)?;
        let day = day.iter().filter_map(|row| Metric::Memory.of(&row.values)).collect();
        lines.push(Line { target, known, life, last, day });
    }
    Ok(lines)
}

fn json_line(line: &Line) -> serde_json::Value {
    let metrics = Metric::ALL.into_iter().filter_map(|metric| {
        let value = metric.of(&line.known.values)?;
        let (verdict, rate) = match line.known.verdict(metric) {
            Verdict::Learning => ("learning", None),
            Verdict::Stable => ("stable", None),
            Verdict::Filling(_) => ("filling", None),
            Verdict::Growing(growth) => ("growing", Some(growth)),
        };
        Some(json!({
            "metric": metric.word(), "value": value, "verdict": verdict,
            "per_hour": rate.map(|growth| growth.per_hour),
            "per_hour_interval": rate.map(|growth| [growth.low_per_hour, growth.high_per_hour]),
            "since": rate.map(|growth| growth.since_seconds as u64),
        }))
    });
    json!({ "target": line.target, "last_seen": line.last, "metrics": metrics.collect::<Vec<_>>() })
}

/// The same text as the daemon's `/metrics`, for the textfile collector of node_exporter.
fn prometheus(config: &Config, lines: &[Line]) -> Result<()> {
    let seen = lines.iter().filter(|line| line.last + GONE_SECONDS >= now());
    let board = Board {
        at: lines.iter().map(|line| line.last).max().unwrap_or(0),
        machine: config.machine.clone().unwrap_or_default(),
        interval_seconds: config.interval_seconds,
        targets: seen.map(|line| board::view(&line.target, &line.known, line.life, line.last)).collect(),
        alarms: State::read_open(&config.state),
        ..Board::default()
    };
    crate::output::print(&leakscope_board::prometheus::text(&board, &mut Exported::default()))
}

/// Values as a line of eight heights.
pub fn sparkline(values: &[f64]) -> String {
    if values.is_empty() {
        return String::new();
    }
    let (low, high) = values.iter().fold((f64::MAX, f64::MIN), |(low, high), &v| (low.min(v), high.max(v)));
    let points = SPARK_POINTS.min(values.len());
    (0..points)
        .map(|point| {
            let from = point * values.len() / points;
            let to = ((point + 1) * values.len() / points).max(from + 1);
            let mean = values[from..to].iter().sum::<f64>() / (to - from) as f64;
            // What varies by less than a hundredth is flat.
            let height = if high - low < high.abs() / 100.0 { 0.0 } else { (mean - low) / (high - low) };
            SPARKS[(height * 7.0).round() as usize]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_heights() {
        assert_eq!(sparkline(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]), "▁▂▃▄▅▆▇█");
        assert_eq!(sparkline(&[5e8, 5.01e8, 5e8]), "▁▁▁");
        assert_eq!(sparkline(&[]), "");
        assert_eq!(sparkline(&vec![1.0; 1000]).chars().count(), SPARK_POINTS);
    }
}
