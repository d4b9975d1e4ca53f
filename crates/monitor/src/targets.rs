//! What is known of each target between passes: its judges, its limits, and how they continue from a history.

use std::collections::BTreeMap;

use leakscope_history::{Row, Values};
use leakscope_sampling::Counters;
use leakscope_trend::{Judge, Profile, Sample, Verdict};

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

/// Counters in the order of a history's values.
pub fn values(counters: &Counters) -> Values {
    [
        Some(counters.resident_bytes),
        counters.anonymous_bytes,
        counters.swap_bytes,
        counters.proportional_bytes,
        counters.private_dirty_bytes,
        Some(counters.threads).filter(|&threads| threads > 0),
        counters.descriptors,
        counters.live_bytes,
    ]
}

/// What is known of a target.
#[derive(Clone, Debug)]
pub struct Known {
    /// The judges that have seen something.
    pub judges: BTreeMap<Metric, Judge>,
    /// The newest values.
    pub values: Values,
    /// Memory must not reach this: the lowest of all limits, and what it is.
    pub limit: Option<(u64, &'static str)>,
    /// Descriptors must not reach this.
    pub descriptor_limit: Option<u64>,
    /// When limits were read last.
    pub limits_at: f64,
    warm_up_seconds: f64,
}

impl Known {
    /// Nothing yet.
    pub fn new(warm_up_seconds: u64) -> Self {
        Self {
            judges: BTreeMap::new(),
            values: Values::default(),
            limit: None,
            descriptor_limit: None,
            limits_at: f64::MIN,
            warm_up_seconds: warm_up_seconds as f64,
        }
    }

    /// Takes values into account, of a life that has lasted `age_seconds`.
    pub fn observe(&mut self, seconds: f64, values: &Values, life: u16, age_seconds: f64) {
        self.values = *values;
        for metric in Metric::ALL {
            let Some(value) = metric.of(values) else { continue };
            let limit = match metric {
                Metric::Memory => self.limit.map(|(limit, _)| limit as f64),
                Metric::Descriptors => self.descriptor_limit.map(|limit| limit as f64),
                Metric::Live | Metric::Threads => None,
            };
            let profile = if metric.is_bytes() { Profile::BYTES } else { Profile::COUNT };
            let profile = Profile { warm_up_seconds: self.warm_up_seconds, ..profile };
            let judge = self.judges.entry(metric).or_insert_with(|| Judge::new(profile));
            judge.observe(&Sample { seconds, value, life, age_seconds, limit });
        }
    }

    /// Continues from the rows of a history, in order of time.
    pub fn resume(&mut self, rows: &[Row]) {
        for life in rows.chunk_by(|a, b| a.life == b.life) {
            // Of the first life nobody knows how old it was.
            let known_age = if life[0].at == rows[0].at { self.warm_up_seconds } else { 0.0 };
            for row in life {
                let age = (row.at - life[0].at) as f64 + known_age;
                self.observe(row.at as f64, &row.values, row.life, age);
            }
        }
    }

    /// The verdict on a metric.
    pub fn verdict(&self, metric: Metric) -> Verdict {
        self.judges.get(&metric).map_or(Verdict::Learning, Judge::verdict)
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
        let values = values(&counters);
        let found = Metric::ALL.map(|metric| metric.of(&values));
        assert_eq!(found, [Some(65.0), None, Some(3.0), None]);
        let glance = super::values(&Counters { resident_bytes: 100, ..Counters::default() });
        assert_eq!(Metric::Memory.of(&glance), Some(100.0));
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
        let mut whole = Known::new(120);
        whole.resume(&rows);
        assert!(matches!(whole.verdict(Metric::Memory), Verdict::Growing(_)), "{:?}", whole.verdict(Metric::Memory));
        let mut seen = Known::new(120);
        for row in &rows {
            let age = if row.life == 0 { 120.0 } else { (row.at - rows[1501].at) as f64 };
            seen.observe(row.at as f64, &row.values, row.life, age + 0.0);
        }
        let rate = |known: &Known| match known.verdict(Metric::Memory) {
            Verdict::Growing(growth) => growth.per_hour,
            other => panic!("{other:?}"),
        };
        assert!((rate(&whole) / rate(&seen) - 1.0).abs() < 0.02);
        assert_eq!(whole.verdict(Metric::Live), Verdict::Learning);
    }
}
