//! Keeping what tracing costs within a budget.
//!
//! The kernel measures its programs' run time (`bpf_enable_stats`), which itself costs something at each run, so it is
//! asked to for a short while now and then. A program has a part that depends on the rate (stack and table, for each
//! sample) and one that does not (deciding not to sample, for each event). Only the first can be made smaller by
//! sampling less.

/// What to do about the rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Decision {
    /// Nothing.
    Keep,
    /// Sample less: this many bytes between samples.
    SampleLess(u64),
    /// Sample more again.
    SampleMore(u64),
    /// Fewer samples would not help: the programs cost too much even when they only look.
    OverBudget,
}

/// Below this share of the cost, fewer samples change next to nothing.
const WORTHWHILE_SHARE: f64 = 0.25;

/// What a sample takes at most, nanoseconds: its stack, and its entry in the table.
pub const SAMPLE_NS: f64 = 5000.0;

/// Decides from measurements.
#[derive(Clone, Debug)]
pub struct Budget {
    /// Most of the machine's processor time that tracing may take, in percent.
    max_percent: f64,
    /// Rate that the user asked for; it is never exceeded.
    wanted: u64,
    over: u32,
}

/// Fewest samples: one in 256 MiB.
const MOST_SAMPLE_BYTES: u64 = 256 << 20;
/// What sampling begins with when it was exact.
const FIRST_SAMPLE_BYTES: u64 = 16 << 10;

impl Budget {
    /// A budget in percent of the time of all processors.
    pub fn new(max_percent: f64, wanted_sample_bytes: u64) -> Self {
        Self { max_percent, wanted: wanted_sample_bytes, over: 0 }
    }

    /// Decides, given what tracing cost in the last measurement, which share of that samples took, and the current rate.
    pub fn decide(&mut self, percent: f64, sampled_share: f64, sample_bytes: u64) -> Decision {
        if percent > self.max_percent {
            if sample_bytes >= MOST_SAMPLE_BYTES || sampled_share < WORTHWHILE_SHARE {
                return Decision::OverBudget;
            }
            // In proportion, and at least twofold.
            let factor = (percent / self.max_percent).clamp(2.0, 64.0);
            let next = (sample_bytes.max(FIRST_SAMPLE_BYTES / 2) as f64 * factor) as u64;
            self.over = self.over.saturating_add(1);
            return Decision::SampleLess(next.min(MOST_SAMPLE_BYTES));
        }
        // Back in steps, well below the budget only, so that it does not swing.
        if percent < self.max_percent / 4.0 && sample_bytes > self.wanted {
            let next = (sample_bytes / 2).max(self.wanted);
            let next = if next < FIRST_SAMPLE_BYTES { self.wanted } else { next };
            return Decision::SampleMore(next);
        }
        Decision::Keep
    }

    /// How often the rate was lowered.
    pub fn times_over(&self) -> u32 {
        self.over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_follows_the_cost_and_comes_back() {
        let mut budget = Budget::new(2.0, 65536);
        assert_eq!(budget.decide(1.9, 1.0, 65536), Decision::Keep);
        assert_eq!(budget.decide(8.0, 0.9, 65536), Decision::SampleLess(262_144));
        assert_eq!(budget.decide(1.0, 1.0, 262_144), Decision::Keep, "between a quarter and all of the budget");
        assert_eq!(budget.decide(0.4, 0.1, 262_144), Decision::SampleMore(131_072));
        assert_eq!(budget.decide(0.4, 0.1, 131_072), Decision::SampleMore(65536));
        assert_eq!(budget.decide(0.4, 0.1, 65536), Decision::Keep, "never more than was asked for");
        assert_eq!(budget.times_over(), 1);
    }

    #[test]
    fn exact_tracing_becomes_sampling_and_exact_again() {
        let mut budget = Budget::new(2.0, 0);
        assert_eq!(budget.decide(4.0, 1.0, 0), Decision::SampleLess(16384));
        assert_eq!(budget.decide(0.1, 1.0, 16384), Decision::SampleMore(0));
    }

    #[test]
    fn samples_that_cost_little_are_not_taken_away() {
        let mut budget = Budget::new(2.0, 65536);
        assert_eq!(budget.decide(3.0, 0.1, 65536), Decision::OverBudget);
    }

    #[test]
    fn the_end_of_the_scale_is_said() {
        let mut budget = Budget::new(0.01, 0);
        let mut rate = 0;
        for _ in 0..32 {
            match budget.decide(100.0, 1.0, rate) {
                Decision::SampleLess(next) => {
                    assert!(next > rate);
                    rate = next;
                }
                Decision::OverBudget => {
                    assert_eq!(rate, 256 << 20);
                    return;
                }
                other => panic!("{other:?}"),
            }
        }
        panic!("never at the end");
    }
}
