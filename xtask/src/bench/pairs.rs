//! Paired measurement: in every round each tool runs once, native among them, and a tool's ratio is taken within its
//! round. So a machine that is slower for a minute is slower for both halves of the pair.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

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

/// Longest that a tool which does not count as slow may take for one run.
const LIMIT: Duration = Duration::from_secs(60);
/// Least that a slow tool gets, however little of its share is left.
const LEAST: Duration = Duration::from_secs(15);

/// The time that a workload may take: what its own share leaves over goes to the next one.
#[derive(Debug, Clone, Copy)]
pub struct Share {
    end: Instant,
}

impl Share {
    /// Share number `index` of `count` equal ones of a budget that began at `begin`.
    pub fn of(begin: Instant, budget: Duration, index: usize, count: usize) -> Share {
        Share { end: begin + budget.mul_f64((index + 1) as f64 / count as f64) }
    }

    /// How long one run may take. Slow tools come last and get half of what is left, so that another can follow.
    pub fn limit(self, tool: Tool) -> Duration {
        if !tool.is_slow() {
            return LIMIT;
        }
        let left = self.end.saturating_duration_since(Instant::now());
        if tool == Tool::Memcheck { left.max(LEAST) } else { (left / 2).max(LEAST) }
    }

    /// Whether the share is used up: no further round begins then.
    pub fn is_over(self) -> bool {
        Instant::now() >= self.end
    }
}

/// How many rounds a workload takes. The shorter it is, the more of a single run is chance.
#[derive(Debug, Clone, Copy)]
pub struct Rounds {
    /// Of a workload that takes a second or more natively, and never fewer.
    pub least: usize,
    /// Of one that takes less than a second.
    pub short: usize,
    /// Of one that takes less than a third of a second.
    pub very_short: usize,
}

impl Rounds {
    /// So many for every workload.
    pub fn exactly(number: usize) -> Rounds {
        Rounds { least: number, short: number, very_short: number }
    }

    fn of(self, native: Cost) -> usize {
        match native.wall {
            wall if wall < 1.0 / 3.0 => self.very_short,
            wall if wall < 1.0 => self.short,
            _ => self.least,
        }
    }
}

/// The rounds of a workload: all tools in turn, slow ones in the last round only. `run` gives the cost or the reason
/// why there is none.
///
/// # Errors
/// The native run fails: without it there is no pair.
pub fn rounds(
    tools: &[Tool],
    rounds: Rounds,
    share: Share,
    mut run: impl FnMut(Tool, Duration) -> Result<Cost, String>,
) -> Result<BTreeMap<Tool, Series>> {
    let mut all: BTreeMap<Tool, Series> = tools.iter().map(|tool| (*tool, Series::default())).collect();
    let mut wanted = rounds.least;
    for round in 1.. {
        // When time runs out a round becomes the last one once there are enough, so that slow tools have their turn.
        let is_last = round >= wanted || share.is_over() && round >= rounds.least;
        let mut native = None;
        for tool in tools {
            let series = all.get_mut(tool).expect("every tool has a series");
            if series.failed.is_some() || tool.is_slow() && !is_last {
                continue;
            }
            let cost = match run(*tool, share.limit(*tool)) {
                Ok(cost) => cost,
                Err(reason) if *tool == Tool::Native => bail!("the native run: {reason}"),
                Err(reason) => {
                    eprintln!("  {:20} {reason}", tool.title());
                    series.failed = Some(reason);
                    continue;
                }
            };
            eprintln!("  {:20} wall {:7.3} s  cpu {:7.3} s", tool.title(), cost.wall, cost.cpu);
            let pair = *native.get_or_insert(cost);
            if *tool == Tool::Native && round == 1 {
                wanted = rounds.of(cost);
            }
            series.wall.push(cost.wall / pair.wall);
            series.cpu.push(cost.cpu / pair.cpu);
            series.costs.push(cost);
        }
        if is_last {
            break;
        }
    }
    Ok(all)
}

/// Runs the rounds. `start` gives a tool's command for a scratch folder.
///
/// # Errors
/// The native run fails: without it there is no pair.
pub fn measure(
    tools: &[Tool],
    count: Rounds,
    share: Share,
    start: impl Fn(Tool, &Path) -> Run,
) -> Result<BTreeMap<Tool, Series>> {
    rounds(tools, count, share, |tool, limit| {
        let run = || -> Result<Finished> {
            let scratch = tempfile::tempdir()?;
            start(tool, scratch.path()).limit(limit).finish()
        };
        let finished = run().map_err(|error| format!("{error:#}"))?;
        cost_of(&finished).inspect_err(|_| {
            eprintln!("  {}", finished.stderr.lines().last().unwrap_or_default());
        })
    })
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
    use super::*;

    fn all_at_once(tool: Tool, _: Duration) -> Result<Cost, String> {
        if tool == Tool::Lsan { Err("exit 1".to_owned()) } else { Ok(Cost { wall: 2.0, cpu: 1.0 }) }
    }

    #[test]
    fn slow_tools_run_once_and_a_failure_ends_only_its_own_series() {
        let tools = [Tool::Native, Tool::Leakscope, Tool::Lsan, Tool::Memcheck];
        let share = Share::of(Instant::now(), Duration::from_secs(60), 0, 1);
        let all = rounds(&tools, Rounds::exactly(3), share, all_at_once).unwrap();
        let runs: Vec<usize> = tools.iter().map(|tool| all[tool].costs.len()).collect();
        assert_eq!(runs, [3, 3, 0, 1]);
        assert_eq!(all[&Tool::Lsan].failed.as_deref(), Some("exit 1"));
    }

    #[test]
    fn a_share_that_is_used_up_still_gives_every_tool_the_least_number_of_rounds() {
        let tools = [Tool::Native, Tool::Leakscope, Tool::Memcheck];
        let short = |_: Tool, _: Duration| Ok(Cost { wall: 0.1, cpu: 0.1 });
        let share = Share::of(Instant::now(), Duration::ZERO, 0, 1);
        let all = rounds(&tools, Rounds { least: 2, short: 5, very_short: 9 }, share, short).unwrap();
        assert_eq!(tools.map(|tool| all[&tool].costs.len()), [2, 2, 1]);
    }

    #[test]
    fn short_workloads_take_more_rounds() {
        for (wall, expected) in [(0.1, 9), (0.5, 5), (1.0, 3), (20.0, 3)] {
            let share = Share::of(Instant::now(), Duration::from_secs(60), 0, 1);
            let cost = |_: Tool, _: Duration| Ok(Cost { wall, cpu: wall });
            let all = rounds(&[Tool::Native], Rounds { least: 3, short: 5, very_short: 9 }, share, cost).unwrap();
            assert_eq!(all[&Tool::Native].costs.len(), expected, "{wall} s");
        }
    }

    #[test]
    fn the_median_of_an_even_number_is_between() {
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Some((2.0, 1.0, 3.0)));
        assert_eq!(spread(&[4.0, 1.0, 2.0, 3.0]), Some((2.5, 1.0, 4.0)));
        assert_eq!(spread(&[]), None);
    }
}
