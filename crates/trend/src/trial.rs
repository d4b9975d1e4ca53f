//! What the verdicts are worth: recall, delay and false alarms on series whose truth is known.

use crate::judge::{Judge, Profile, Sample, Verdict};
use crate::synthetic::{EPOCH_SECONDS, Part, Series};
use crate::{DAY, HOUR};

/// The machine's memory in the trials.
pub const LIMIT_BYTES: f64 = 32e9;
const MB: f64 = 1e6;
/// Between two samples.
const STEP_SECONDS: f64 = 10.0;

/// A kind of series.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// For the table.
    pub name: &'static str,
    /// Without growth.
    pub base_bytes: f64,
    /// What it is made of.
    pub parts: Vec<Part>,
    /// How long it is watched.
    pub days: f64,
    /// Within how many hours a leak must be found, where that is promised.
    pub promised_hours: Option<f64>,
}

impl Scenario {
    /// The leak's rate, bytes an hour.
    pub fn leak_per_hour(&self) -> Option<f64> {
        self.parts.iter().find_map(|part| if let Part::Leak { per_hour, .. } = part { Some(*per_hour) } else { None })
    }

    /// When the leak begins, in hours; `None` for what is steady.
    pub fn leak_from_hour(&self) -> Option<f64> {
        self.parts.iter().find_map(|part| if let Part::Leak { from_hour, .. } = part { Some(*from_hour) } else { None })
    }
}

/// What came of one series.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Alarms while nothing leaked.
    pub false_alarms: u32,
    /// Days in which nothing leaked.
    pub steady_days: f64,
    /// From the leak's beginning to its alarm, hours.
    pub delay_hours: Option<f64>,
    /// The rate that the alarm gave, bytes an hour.
    pub rate: Option<f64>,
}

/// Runs one series of a scenario through a judge.
pub fn run(scenario: &Scenario, seed: u64) -> Outcome {
    let mut series = Series::new(scenario.base_bytes, &scenario.parts, STEP_SECONDS, seed);
    let mut judge = Judge::new(Profile::BYTES);
    let mut outcome = Outcome::default();
    let leak_from = scenario.leak_from_hour().map_or(f64::INFINITY, |hour| hour * HOUR);
    outcome.steady_days = leak_from.min(scenario.days * DAY) / DAY;
    let mut was_open = false;
    for _ in 0..(scenario.days * DAY / STEP_SECONDS) as u64 {
        let (at, value, life, age_seconds) = series.sample();
        let sample = Sample { seconds: EPOCH_SECONDS + at, value, life, age_seconds, limit: Some(LIMIT_BYTES) };
        let Some(verdict) = judge.observe(&sample) else { continue };
        let is_open = matches!(verdict, Verdict::Growing(_));
        if is_open && !was_open && at < leak_from {
            outcome.false_alarms += 1;
        }
        if let Verdict::Growing(growth) = verdict
            && at >= leak_from
            && outcome.delay_hours.is_none()
        {
            outcome.delay_hours = Some((at - leak_from) / HOUR);
            outcome.rate = Some(growth.per_hour);
            // What comes after the alarm is the state machine's.
            break;
        }
        was_open = is_open;
    }
    outcome
}

/// The scenarios of the table in docs/monitor.md.
pub fn scenarios() -> Vec<Scenario> {
    let leak = |per_hour: f64, from_hour: f64| Part::Leak { per_hour: per_hour * MB, from_hour };
    let noise = |bytes: f64| Part::Noise { bytes: bytes * MB };
    let scenario = |name, base: f64, days, promised_hours, parts: &[Part]| Scenario {
        name,
        base_bytes: base * MB,
        parts: parts.to_vec(),
        days,
        promised_hours,
    };
    let cache = |bytes: f64, hours| Part::Cache { bytes: bytes * MB, hours };
    let daily = |bytes: f64| Part::Daily { bytes: bytes * MB };
    let saw = |bytes: f64, hours| Part::Sawtooth { bytes: bytes * MB, hours };
    let wander = |bytes: f64, hours| Part::Wander { bytes: bytes * MB, hours };
    let restarts = |hours| Part::Restarts { hours };
    vec![
        scenario("leak 60 MB/h from the start, noise 1 MB", 20.0, 1.0, Some(0.25), &[leak(60.0, 0.0), noise(1.0)]),
        scenario("leak 60 MB/h after 2 days, noise 2 MB", 100.0, 3.0, Some(0.25), &[leak(60.0, 48.0), noise(2.0)]),
        scenario("leak 1 MB/h, noise 50 MB", 300.0, 4.0, Some(24.0), &[leak(1.0, 0.0), noise(50.0)]),
        scenario("leak 1 MB/h after 3 days, noise 50 MB", 300.0, 7.0, Some(24.0), &[leak(1.0, 72.0), noise(50.0)]),
        scenario(
            "leak 1 MB/h, noise 50 MB correlated over 1 min",
            300.0,
            7.0,
            None,
            &[leak(1.0, 0.0), wander(50.0, 1.0 / 60.0)],
        ),
        scenario(
            "leak 2 MB/h under a daily cycle of 200 MB",
            500.0,
            20.0,
            None,
            &[leak(2.0, 0.0), daily(200.0), noise(10.0)],
        ),
        scenario(
            "leak 5 MB/h under a sawtooth of 100 MB in 30 min",
            300.0,
            7.0,
            None,
            &[leak(5.0, 0.0), saw(100.0, 0.5), noise(5.0)],
        ),
        scenario("leak 20 MB/h, restarted every 6 h", 100.0, 7.0, None, &[leak(20.0, 0.0), restarts(6.0), noise(3.0)]),
        scenario(
            "leak 60 MB/h after a cache has filled",
            100.0,
            1.0,
            None,
            &[leak(60.0, 6.0), cache(300.0, 0.5), noise(2.0)],
        ),
        scenario("leak 0.2 MB/h, noise 5 MB", 200.0, 20.0, None, &[leak(0.2, 0.0), noise(5.0)]),
        scenario("steady, noise 1 MB", 20.0, 30.0, None, &[noise(1.0)]),
        scenario("steady, noise 50 MB", 300.0, 30.0, None, &[noise(50.0)]),
        scenario("steady, noise 50 MB correlated over 10 min", 300.0, 30.0, None, &[wander(50.0, 1.0 / 6.0)]),
        scenario("steady, noise 50 MB correlated over 2 h", 300.0, 30.0, None, &[wander(50.0, 2.0)]),
        scenario("cache of 1 GB, 63 % in 20 min", 100.0, 30.0, None, &[cache(1000.0, 1.0 / 3.0), noise(5.0)]),
        scenario("cache of 1 GB, 63 % in 6 h", 100.0, 30.0, None, &[cache(1000.0, 6.0), noise(5.0)]),
        scenario(
            "pool of 500 MB, filled evenly in 2 h",
            100.0,
            30.0,
            None,
            &[Part::Pool { bytes: 500.0 * MB, hours: 2.0 }, noise(5.0)],
        ),
        scenario("sawtooth of 100 MB in 10 min", 200.0, 30.0, None, &[saw(100.0, 1.0 / 6.0), noise(5.0)]),
        scenario("sawtooth of 200 MB in 1 h", 200.0, 30.0, None, &[saw(200.0, 1.0), noise(5.0)]),
        scenario("sawtooth of 200 MB in 24 h", 200.0, 30.0, None, &[saw(200.0, 24.0), noise(5.0)]),
        scenario("step of 500 MB", 200.0, 30.0, None, &[Part::Step { bytes: 500.0 * MB, at_hour: 100.0 }, noise(10.0)]),
        scenario("daily cycle of 200 MB", 500.0, 30.0, None, &[daily(200.0), noise(10.0)]),
        scenario("daily cycle of 2 GB", 3000.0, 30.0, None, &[daily(2000.0), noise(50.0)]),
        scenario("weekday cycle of 400 MB", 800.0, 30.0, None, &[Part::Weekly { bytes: 400.0 * MB }, noise(20.0)]),
        scenario(
            "restarted daily, cache of 300 MB",
            100.0,
            30.0,
            None,
            &[cache(300.0, 0.25), restarts(24.0), noise(5.0)],
        ),
        scenario(
            "spikes of 500 MB, 6 an hour",
            200.0,
            30.0,
            None,
            &[Part::Spikes { bytes: 500.0 * MB, per_hour: 6.0 }, noise(5.0)],
        ),
        scenario(
            "daily, sawtooth, wander together",
            800.0,
            30.0,
            None,
            &[daily(200.0), saw(60.0, 0.25), wander(20.0, 1.0)],
        ),
    ]
}

/// Runs every scenario whose name holds `only`, `seeds` times each; gives a table in Markdown.
pub fn table(seeds: u64, only: &str) -> String {
    let mut text = String::from(
        "| series | found | delay, median and longest | rate that was said, over the true one | false alarms a month |\n|---|---|---|---|---|\n",
    );
    for scenario in scenarios().iter().filter(|scenario| scenario.name.contains(only)) {
        let outcomes: Vec<Outcome> = (1..=seeds).map(|seed| run(scenario, seed)).collect();
        text.push_str(&line(scenario, &outcomes));
    }
    text
}

fn line(scenario: &Scenario, outcomes: &[Outcome]) -> String {
    let sorted = |values: &mut dyn Iterator<Item = f64>| {
        let mut values: Vec<f64> = values.collect();
        values.sort_unstable_by(f64::total_cmp);
        values
    };
    let delays = sorted(&mut outcomes.iter().filter_map(|outcome| outcome.delay_hours));
    let shares =
        scenario.leak_per_hour().map(|truth| sorted(&mut outcomes.iter().filter_map(|o| Some(o.rate? / truth))));
    let days: f64 = outcomes.iter().map(|outcome| outcome.steady_days).sum();
    let alarms: u32 = outcomes.iter().map(|outcome| outcome.false_alarms).sum();
    let is_leak = scenario.leak_from_hour().is_some();
    let show = |hours: f64| if hours < 1.5 { format!("{:.0} min", hours * 60.0) } else { format!("{hours:.1} h") };
    let delay = match (delays.get(delays.len() / 2), delays.last()) {
        (Some(median), Some(longest)) => format!("{}, {}", show(*median), show(*longest)),
        _ => String::new(),
    };
    let rate =
        shares.and_then(|shares| shares.get(shares.len() / 2).map(|share| format!("{share:.2}"))).unwrap_or_default();
    let found = if is_leak { format!("{} of {}", delays.len(), outcomes.len()) } else { String::new() };
    let false_alarms = if days > 0.0 {
        format!("{:.2} ({alarms} in {days:.0} days)", f64::from(alarms) * 30.0 / days)
    } else {
        String::new()
    };
    format!("| {} | {found} | {delay} | {rate} | {false_alarms} |\n", scenario.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promises_are_kept() {
        for scenario in scenarios().iter().filter(|scenario| scenario.promised_hours.is_some()) {
            for seed in 1..=4 {
                let outcome = run(scenario, seed);
                let delay = outcome.delay_hours.unwrap_or(f64::INFINITY);
                assert!(delay <= scenario.promised_hours.unwrap(), "{}, seed {seed}: {outcome:?}", scenario.name);
                assert_eq!(outcome.false_alarms, 0, "{}, seed {seed}", scenario.name);
            }
        }
    }

    #[test]
    fn the_steady_are_not_alarmed() {
        let names = ["steady, noise 1 MB", "steady, noise 50 MB", "step of 500 MB", "sawtooth of 100 MB in 10 min"];
        for scenario in scenarios().iter().filter(|scenario| names.contains(&scenario.name)) {
            assert_eq!(run(scenario, 1).false_alarms, 0, "{}", scenario.name);
        }
    }
}
