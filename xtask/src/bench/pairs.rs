//! Paired measurement: in every round each tool runs once, native among them, and a tool's ratio is taken within its
//! round. So a machine that is slower for a minute is slower for both halves of the pair.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use leakscope_e2e::{Ending, Finished, Run};

use super::tools::Tool;

/// What one run cost.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// Wall-clock seconds.
    pub wall: f64,
    /// User and system seconds of all processes.
    pub cpu: f64,
}

/// How a tool did over all rounds.
#[derive(Debug, Clone, Default)]
pub struct Series {
    /// Wall ratios to native, one for each round.
    pub wall: Vec<f64>,
    /// CPU ratios to native.
    pub cpu: Vec<f64>,
    /// Costs themselves.
    pub costs: Vec<Cost>,
    /// Why there is no number.
    pub failed: Option<String>,
}

/// Median, least and greatest of the values; none of no values.
pub fn spread(values: &[f64]) -> Option<(f64, f64, f64)> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (least, greatest) = (*sorted.first()?, *sorted.last()?);
    let middle = sorted.len() / 2;
    let median = if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
    Some((median, least, greatest))
}

/// Runs `rounds` rounds. `start` gives a tool's command for a scratch folder. Slow tools run in the first round only.
///
/// # Errors
/// The native run fails: without it there is no pair.
pub fn measure(
    tools: &[Tool],
    rounds: usize,
    limit: Duration,
    start: impl Fn(Tool, &Path) -> Run,
) -> Result<BTreeMap<Tool, Series>> {
    let mut all: BTreeMap<Tool, Series> = tools.iter().map(|tool| (*tool, Series::default())).collect();
    for round in 0..rounds {
        let mut native = None;
        for tool in tools {
            let series = all.get_mut(tool).expect("every tool has a series");
            if series.failed.is_some() || tool.is_slow() && round > 0 {
                continue;
            }
            let scratch = tempfile::tempdir()?;
            let finished = start(*tool, scratch.path()).limit(limit).finish()?;
            let cost = match cost_of(&finished) {
                Ok(cost) => cost,
                Err(reason) if *tool == Tool::Native => bail!("the native run {reason}: {}", finished.stderr),
                Err(reason) => {
                    eprintln!("  {}: {reason}: {}", tool.title(), finished.stderr.lines().last().unwrap_or_default());
                    series.failed = Some(reason);
                    continue;
                }
            };
            eprintln!("  {:20} wall {:7.3} s  cpu {:7.3} s", tool.title(), cost.wall, cost.cpu);
            let pair = *native.get_or_insert(cost);
            series.wall.push(cost.wall / pair.wall);
            series.cpu.push(cost.cpu / pair.cpu);
            series.costs.push(cost);
        }
    }
    Ok(all)
}

fn cost_of(finished: &Finished) -> Result<Cost, String> {
    match finished.ending {
        Ending::Exit(0) => Ok(Cost { wall: finished.wall.as_secs_f64(), cpu: finished.cpu.as_secs_f64() }),
        Ending::Exit(code) => Err(format!("exit {code}")),
        Ending::Signal(number) => Err(format!("died of signal {number}")),
        Ending::TimedOut => Err(format!("over {} s", finished.wall.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use super::spread;

    #[test]
    fn the_median_of_an_even_number_is_between() {
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Some((2.0, 1.0, 3.0)));
        assert_eq!(spread(&[4.0, 1.0, 2.0, 3.0]), Some((2.5, 1.0, 4.0)));
        assert_eq!(spread(&[]), None);
    }
}
