//! Series whose truth is known: what a program's memory does, made of parts that can be mixed.
//!
//! Everything comes from one seed, so that a series can be made again.

use crate::{DAY, HOUR};

/// Numbers that look random: xorshift64* of Vigna, and from it the normal distribution by Box and Muller.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A sequence of its own for each seed.
    pub fn new(seed: u64) -> Self {
        let mut random = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        (0..8).for_each(|_| _ = random.next());
        random
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Evenly distributed from 0 to 1, without 1.
    pub fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Normally distributed around 0 with deviation 1.
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

/// One thing that a program's memory does. Bytes and hours.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Part {
    /// Grows for ever, from an hour on. Starts anew with each life.
    Leak {
        /// Bytes an hour.
        per_hour: f64,
        /// Since when.
        from_hour: f64,
    },
    /// Fills more and more slowly; with each life anew.
    Cache {
        /// In the end.
        bytes: f64,
        /// Until 63 % of it.
        hours: f64,
    },
    /// Fills evenly and stops; with each life anew.
    Pool {
        /// In the end.
        bytes: f64,
        /// Until all of it.
        hours: f64,
    },
    /// Rises evenly and is cleaned.
    Sawtooth {
        /// Before the cleaning.
        bytes: f64,
        /// Between two of them.
        hours: f64,
    },
    /// Is suddenly more, once.
    Step {
        /// How much.
        bytes: f64,
        /// When.
        at_hour: f64,
    },
    /// More in the day than in the night.
    Daily {
        /// Between night and day.
        bytes: f64,
    },
    /// A daily cycle on five days of seven.
    Weekly {
        /// Between night and day.
        bytes: f64,
    },
    /// Independent from sample to sample.
    Noise {
        /// Standard deviation.
        bytes: f64,
    },
    /// Noise with a memory (an AR(1) process).
    Wander {
        /// Standard deviation.
        bytes: f64,
        /// Time until correlation is 37 %.
        hours: f64,
    },
    /// The program is restarted so often; says nothing of its memory.
    Restarts {
        /// Hours between two.
        hours: f64,
    },
    /// Short and high, some times an hour at random.
    Spikes {
        /// How high.
        bytes: f64,
        /// How often, per hour.
        per_hour: f64,
    },
}

/// A series that goes on for ever.
#[derive(Clone, Debug)]
pub struct Series {
    base: f64,
    parts: Vec<Part>,
    random: Random,
    start_hour_of_day: f64,
    wander: Vec<f64>,
    step_seconds: f64,
    at_seconds: f64,
}

impl Series {
    /// A series of `parts` above `base` bytes, one sample each `step_seconds`; the seed chooses noise and the time of day at
    /// which it begins.
    pub fn new(base: f64, parts: &[Part], step_seconds: f64, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let start_hour_of_day = random.uniform() * 24.0;
        let wander = parts.iter().map(|_| random.normal()).collect();
        Self { base, parts: parts.to_vec(), random, start_hour_of_day, wander, step_seconds, at_seconds: 0.0 }
    }

    /// The next sample: seconds since the start, bytes, life, and seconds since the last restart.
    pub fn sample(&mut self) -> (f64, f64, u16, f64) {
        let at = self.at_seconds;
        self.at_seconds += self.step_seconds;
        let hours = at / HOUR;
        let every =
            self.parts.iter().find_map(|part| if let Part::Restarts { hours } = part { Some(*hours) } else { None });
        let (life, lived) = every.map_or((0, hours), |every| ((hours / every) as u16, hours % every));
        let clock = hours + self.start_hour_of_day;
        let mut value = self.base;
        for index in 0..self.parts.len() {
            let part = self.parts[index];
            value += self.part(index, part, hours, lived, clock);
        }
        (at, value.max(0.0), life, lived * HOUR)
    }

    fn part(&mut self, index: usize, part: Part, hours: f64, lived: f64, clock: f64) -> f64 {
        let of_day = |bytes: f64| bytes * (0.5 - 0.5 * (clock / 24.0 * std::f64::consts::TAU).cos());
        match part {
            Part::Leak { per_hour, from_hour } => per_hour * (hours - from_hour).max(0.0).min(lived),
            Part::Cache { bytes, hours } => bytes * (1.0 - (-lived / hours).exp()),
            Part::Pool { bytes, hours } => bytes * (lived / hours).min(1.0),
            Part::Sawtooth { bytes, hours } => bytes * (lived / hours).fract(),
            Part::Step { bytes, at_hour } => {
                if hours >= at_hour {
                    bytes
                } else {
                    0.0
                }
            }
            Part::Daily { bytes } => of_day(bytes),
            Part::Weekly { bytes } if (clock / 24.0) as u64 % 7 < 5 => of_day(bytes),
            Part::Weekly { .. } | Part::Restarts { .. } => 0.0,
            Part::Noise { bytes } => bytes * self.random.normal(),
            Part::Wander { bytes, hours } => {
                let kept = (-self.step_seconds / HOUR / hours).exp();
                let fresh = (1.0 - kept * kept).sqrt() * self.random.normal();
                self.wander[index] = kept * self.wander[index] + fresh;
                bytes * self.wander[index]
            }
            Part::Spikes { bytes, per_hour } => {
                let is_one = self.random.uniform() < per_hour * self.step_seconds / HOUR;
                if is_one { bytes * self.random.uniform() } else { 0.0 }
            }
        }
    }
}

/// Seconds since the epoch at which generated series begin: a midnight.
pub const EPOCH_SECONDS: f64 = 20_000.0 * DAY;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_numbers_have_the_moments_they_should() {
        let mut random = Random::new(1);
        let values: Vec<f64> = (0..100_000).map(|_| random.normal()).collect();
        let mean = values.iter().sum::<f64>() / 1e5;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / 1e5;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
    }

    #[test]
    fn parts_by_hand() {
        let value = |parts: &[Part], hour: usize| {
            let mut series = Series::new(100.0, parts, HOUR, 3);
            (0..hour).for_each(|_| _ = series.sample());
            series.sample()
        };
        assert_eq!(value(&[Part::Leak { per_hour: 2.0, from_hour: 5.0 }], 9).1, 108.0);
        assert_eq!(value(&[Part::Sawtooth { bytes: 8.0, hours: 4.0 }], 9).1, 102.0);
        assert_eq!(value(&[Part::Step { bytes: 8.0, at_hour: 4.0 }], 3).1, 100.0);
        assert_eq!(value(&[Part::Step { bytes: 8.0, at_hour: 4.0 }], 4).1, 108.0);
        let leak = [Part::Leak { per_hour: 2.0, from_hour: 0.0 }, Part::Restarts { hours: 4.0 }];
        assert_eq!(value(&leak, 9), (9.0 * HOUR, 102.0, 2, HOUR));
        assert_eq!(value(&[Part::Pool { bytes: 8.0, hours: 4.0 }], 9).1, 108.0);
        let daily = [Part::Daily { bytes: 10.0 }];
        assert!((value(&daily, 5).1 - value(&daily, 29).1).abs() < 1e-6);
    }

    #[test]
    fn the_same_seed_gives_the_same_series() {
        let parts = [
            Part::Noise { bytes: 5.0 },
            Part::Wander { bytes: 5.0, hours: 1.0 },
            Part::Spikes { bytes: 9.0, per_hour: 60.0 },
        ];
        let take = |seed| {
            let mut series = Series::new(100.0, &parts, 10.0, seed);
            (0..100).map(|_| series.sample().1).collect::<Vec<_>>()
        };
        assert_eq!(take(4), take(4));
        assert_ne!(take(4), take(5));
    }
}
