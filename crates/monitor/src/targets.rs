//! What is known of each target between passes: its judges, its limits, and how they continue from a history.

use std::collections::BTreeMap;

use leakscope_history::{Row, Values};
use leakscope_sampling::{Counters, Parts};
use leakscope_trend::pyramid::{LEVELS, window_seconds};
use leakscope_trend::{Growth, Judge, Profile, Sample, Verdict, Window};

use crate::moments::{Moment, Moments};

/// What is judged of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Metric {
    /// Memory that is not backed by files, resident or on swap; of what is only glanced at, resident memory.
    Memory,
    /// Live bytes of the ledger.
    Live,
    /// Threads.
    Threads,
    /// Open descriptors.
    Descriptors,
}

impl Metric {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Memory, Self::Live, Self::Threads, Self::Descriptors];

    /// For keys and people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Live => "live heap",
            Self::Threads => "threads",
            Self::Descriptors => "descriptors",
        }
    }

    /// Whether it is measured in bytes.
    pub fn is_bytes(self) -> bool {
        matches!(self, Self::Memory | Self::Live)
    }

    /// Its value among those of a history.
    pub fn of(self, values: &Values) -> Option<f64> {
        let value = match self {
            Self::Memory => values[1].map(|anonymous| anonymous + values[2].unwrap_or(0)).or(values[0]),
            Self::Live => values[7],
            Self::Threads => values[5],
            Self::Descriptors => values[6],
        };
        value.map(|value| value as f64)
    }
}

/// Where the parts of memory begin among the values of a history.
const PARTS_AT: usize = 8;
/// What the parts are called, but for the last one, which is the number of arenas.
pub const PART_WORDS: [&str; 5] = ["heap", "thread arenas", "other anonymous memory", "mapped files", "shared memory"];

/// Counters in the order of a history's values; the parts where they were read.
pub fn values(counters: &Counters, parts: Option<Parts>) -> Values {
    let part = |number: usize| parts.map(|parts| parts.to_array()[number]);
    [
        Some(counters.resident_bytes),
        counters.anonymous_bytes,
        counters.swap_bytes,
        counters.proportional_bytes,
        counters.private_dirty_bytes,
        Some(counters.threads).filter(|&threads| threads > 0),
        counters.descriptors,
        counters.live_bytes,
        part(0),
        part(1),
        part(2),
        part(3),
        part(4),
        part(5),
    ]
}

/// How the parts of memory have changed.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Between which moments, seconds since the epoch.
    pub from: f64,
    /// The later one.
    pub to: f64,
    /// Bytes then, in the order of [`PART_WORDS`].
    pub before: [u64; 5],
    /// Bytes now.
    pub now: [u64; 5],
    /// Regions of glibc's arenas now.
    pub arenas: u64,
}

/// How a target is judged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Manner {
    /// The first seconds of each life are not looked at.
    pub warm_up_seconds: u64,
    /// The shortest window that is judged. All windows are shorter in proportion: judges are told of a faster time.
    pub window_seconds: f64,
}

impl Default for Manner {
    fn default() -> Self {
        Self { warm_up_seconds: 120, window_seconds: window_seconds(0) }
    }
}

impl Manner {
    /// How much faster time is for judges than it is.
    fn pace(self) -> f64 {
        window_seconds(0) / self.window_seconds
    }
}

/// What is known of a target.
#[derive(Clone, Debug)]
pub struct Known {
    /// The judges that have seen something; boxed, because a map has room for eleven at once.
    pub judges: BTreeMap<Metric, Box<Judge>>,
    /// The newest values.
    pub values: Values,
    /// Memory must not reach this: the lowest of all limits, and what it is.
    pub limit: Option<(u64, &'static str)>,
    /// Of these, the one that does not change with what there is: the configured one, or its control group's.
    pub fixed_limit: Option<(u64, &'static str)>,
    /// Descriptors must not reach this.
    pub descriptor_limit: Option<u64>,
    /// When limits were read last.
    pub limits_at: f64,
    /// When it was seen last.
    pub seen: f64,
    parts: Moments,
    life: u16,
    manner: Manner,
}

impl Known {
    /// Nothing yet.
    pub fn new(manner: Manner) -> Self {
        Self {
            judges: BTreeMap::new(),
            values: Values::default(),
            limit: None,
            fixed_limit: None,
            descriptor_limit: None,
            limits_at: f64::MIN,
            seen: f64::MIN,
            parts: Moments::default(),
            life: 0,
            manner,
        }
    }

    /// Takes values into account, of a life that has lasted `age_seconds`.
    pub fn observe(&mut self, seconds: f64, values: &Values, life: u16, age_seconds: f64) {
        self.values = *values;
        self.seen = seconds;
        if self.life != life {
            self.life = life;
            self.parts.clear();
        }
        let parts: Option<Vec<u64>> = values[PARTS_AT..].iter().copied().collect();
        if let Some(parts) = parts {
            self.parts.push(seconds, parts);
        }
        for metric in Metric::ALL {
            let Some(value) = metric.of(values) else { continue };
            let limit = match metric {
                Metric::Memory => self.limit.map(|(limit, _)| limit as f64),
                Metric::Descriptors => self.descriptor_limit.map(|limit| limit as f64),
                Metric::Live | Metric::Threads => None,
            };
            let profile = if metric.is_bytes() { Profile::BYTES } else { Profile::COUNT };
            let profile = Profile { warm_up_seconds: self.manner.warm_up_seconds as f64, ..profile };
            let judge = self.judges.entry(metric).or_insert_with(|| Box::new(Judge::new(profile)));
            judge.observe(&Sample { seconds: seconds * self.manner.pace(), value, life, age_seconds, limit });
        }
    }

    /// Continues from the rows of a history, in order of time.
    pub fn resume(&mut self, rows: &[Row]) {
        Resuming::default().add(self, rows);
    }

    /// The verdict on a metric.
    pub fn verdict(&self, metric: Metric) -> Verdict {
        let pace = self.manner.pace();
        match self.judges.get(&metric).map_or(Verdict::Learning, |judge| judge.verdict()) {
            Verdict::Growing(growth) => Verdict::Growing(Growth {
                per_hour: growth.per_hour * pace,
                low_per_hour: growth.low_per_hour * pace,
                high_per_hour: growth.high_per_hour * pace,
                since_seconds: growth.since_seconds / pace,
                window_seconds: growth.window_seconds / pace,
                ..growth
            }),
            other => other,
        }
    }

    /// The parts of memory, in the order of [`PART_WORDS`], and regions of arenas; when they were read, in this life.
    pub fn parts(&self) -> Option<(f64, [u64; 6])> {
        let last = self.parts.last()?;
        Some((last.seconds, last.numbers.as_slice().try_into().ok()?))
    }

    /// How the parts of memory have changed since a moment, as far as they were read in this life; `None` when they never were.
    pub fn parts_since(&self, seconds: f64) -> Option<Change> {
        let (before, last) = (self.parts.before(seconds)?, self.parts.last()?);
        let bytes = |moment: &Moment| std::array::from_fn(|part| moment.numbers[part]);
        let arenas = last.numbers[PART_WORDS.len()];
        Some(Change { from: before.seconds, to: last.seconds, before: bytes(before), now: bytes(last), arenas })
    }

    /// What each window of a metric shows, shortest first.
    pub fn windows(&self, metric: Metric) -> Vec<Window> {
        let pace = self.manner.pace();
        let mut windows = self.judges.get(&metric).map(|judge| judge.windows()).unwrap_or_default();
        for window in &mut windows {
            window.seconds /= pace;
            for rate in [&mut window.slope.per_hour, &mut window.slope.low, &mut window.slope.high] {
                *rate *= pace;
            }
        }
        windows
    }

    /// The longest window that is at least a third full, for a chart: seconds since the epoch and value.
    pub fn series(&self, metric: Metric) -> Vec<(u64, f64)> {
        let Some(judge) = self.judges.get(&metric) else { return Vec::new() };
        let level = (0..LEVELS).rev().find(|&level| judge.pyramid().count(level) >= 24).unwrap_or(0);
        let bins = judge.pyramid().bins(level);
        bins.map(|bin| ((bin.time(level) / self.manner.pace()) as u64, f64::from(bin.mean))).collect()
    }

    /// The means of the last hours, evenly spaced: of the longest window up to a day that is a quarter full.
    pub fn recent(&self, metric: Metric) -> Vec<f64> {
        const A_DAY: usize = 7;
        let Some(judge) = self.judges.get(&metric) else { return Vec::new() };
        let level = (0..=A_DAY).rev().find(|&level| judge.pyramid().count(level) >= 16).unwrap_or(0);
        judge.pyramid().bins(level).map(|bin| f64::from(bin.mean)).collect()
    }
}

/// The rows of a history, in order of time, some at a time: a year of them at once would take memory that a daemon then
/// keeps.
#[derive(Clone, Copy, Debug, Default)]
pub struct Resuming {
    first_at: Option<u64>,
    /// The life of the newest row, and its first row's time.
    life: Option<(u16, u64)>,
}

impl Resuming {
    /// Adds rows, later than all others.
    pub fn add(&mut self, known: &mut Known, rows: &[Row]) {
        for row in rows {
            let first_at = *self.first_at.get_or_insert(row.at);
            let began = match self.life {
                Some((life, began)) if life == row.life => began,
                _ => row.at,
            };
            self.life = Some((row.life, began));
            // Of the first life nobody knows how old it was.
            let known_age = if began == first_at { known.manner.warm_up_seconds as f64 } else { 0.0 };
            known.observe(row.at as f64, &row.values, row.life, (row.at - began) as f64 + known_age);
        }
    }

    /// The life of the newest row.
    pub fn life(&self) -> u16 {
        self.life.map_or(0, |(life, _)| life)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_what_no_file_stands_behind() {
        let counters = Counters {
            resident_bytes: 100,
            anonymous_bytes: Some(60),
            swap_bytes: Some(5),
            threads: 3,
            ..Counters::default()
        };
        let values = values(&counters, None);
        let found = Metric::ALL.map(|metric| metric.of(&values));
        assert_eq!(found, [Some(65.0), None, Some(3.0), None]);
        let glance = super::values(&Counters { resident_bytes: 100, ..Counters::default() }, None);
        assert_eq!(Metric::Memory.of(&glance), Some(100.0));
    }

    #[test]
    fn parts_are_those_of_one_life() {
        let mut known = Known::new(Manner::default());
        assert_eq!(known.parts_since(0.0), None);
        let mut note = |at: f64, life: u16, heap_bytes: u64| {
            let parts = Parts { heap_bytes, arenas: 3, ..Parts::default() };
            known.observe(at, &values(&Counters::default(), Some(parts)), life, 0.0);
            known.observe(at + 10.0, &values(&Counters::default(), None), life, 0.0);
            known.parts_since(1100.0).unwrap()
        };
        note(1000.0, 0, 10);
        note(1060.0, 0, 20);
        let change = note(1200.0, 0, 50);
        assert_eq!(
            (change.from, change.to, change.before[0], change.now[0], change.arenas),
            (1060.0, 1200.0, 20, 50, 3)
        );
        assert_eq!(note(1300.0, 1, 5).before[0], 5, "another life begins anew");
    }

    #[test]
    fn judges_continue_where_they_were() {
        let rows: Vec<Row> = (0..3000u64)
            .map(|step| {
                let mut values = Values::default();
                values[0] = Some(50_000_000 + step * 200_000);
                Row { at: 1_700_000_000 + step * 10, life: u16::from(step > 1500), values, extremes: None }
            })
            .collect();
        let mut whole = Known::new(Manner::default());
        whole.resume(&rows);
        assert!(matches!(whole.verdict(Metric::Memory), Verdict::Growing(_)), "{:?}", whole.verdict(Metric::Memory));
        let mut seen = Known::new(Manner::default());
        for row in &rows {
            let age = if row.life == 0 { 120.0 } else { (row.at - rows[1501].at) as f64 };
            seen.observe(row.at as f64, &row.values, row.life, age + 0.0);
        }
        let rate = |known: &Known| match known.verdict(Metric::Memory) {
            Verdict::Growing(growth) => growth.per_hour,
            other => panic!("{other:?}"),
        };
        // In pieces, cut within a life and between two.
        let (mut cut, mut resuming) = (Known::new(Manner::default()), Resuming::default());
        for piece in [&rows[..700], &rows[700..1501], &rows[1501..1501], &rows[1501..]] {
            resuming.add(&mut cut, piece);
        }
        assert_eq!((cut.verdict(Metric::Memory), resuming.life()), (whole.verdict(Metric::Memory), 1));
        assert!((rate(&whole) / rate(&seen) - 1.0).abs() < 0.02);
        assert_eq!(whole.verdict(Metric::Live), Verdict::Learning);
    }

    #[test]
    fn a_shorter_window_finds_the_same_rate_sooner() {
        let manner = Manner { warm_up_seconds: 0, window_seconds: 67.2 };
        let mut known = Known::new(manner);
        let mut found_after = None;
        for second in 0..300u64 {
            let mut values = Values::default();
            values[0] = Some(50_000_000 + second * 200_000);
            known.observe(1.7e9 + second as f64, &values, 0, 1e6);
            if let Verdict::Growing(growth) = known.verdict(Metric::Memory) {
                found_after.get_or_insert((second, growth));
            }
        }
        let (second, growth) = found_after.unwrap();
        assert!(second < 90, "{second}");
        assert!((growth.per_hour / 720e6 - 1.0).abs() < 0.05, "{growth:?}");
        assert!((growth.since_seconds - 1.7e9).abs() < 15.0 && growth.window_seconds < 70.0, "{growth:?}");
        let series = known.series(Metric::Memory);
        assert!(series.len() >= 24 && series.last().unwrap().0.abs_diff(1_700_000_300) < 30, "{series:?}");
        let longest = known.windows(Metric::Memory).pop().unwrap();
        assert!((longest.slope.per_hour / 720e6 - 1.0).abs() < 0.05 && longest.seconds < 300.0, "{longest:?}");
    }
}
