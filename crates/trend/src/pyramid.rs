//! A series at every scale in constant memory: 14 windows of 64 bins, each window twice as long as the one before.
//!
//! ```text
//!  level   a bin      the window
//!    0     10.5 s     11 min
//!    1     21 s       22 min
//!   ...
//!    7     22.5 min   24 h
//!   ...
//!   12     12 h       32 d
//!   13     24 h       64 d
//! ```
//!
//! A day is a whole number of bins at every level, so that a bin has the same place in each day. A bin belongs to one life
//! of its target (from start to restart); what a restart cuts in two keeps its younger part.
//!
//! A series that changes all the time takes 13 kB, one that never does 3 kB.

use std::ops::RangeInclusive;

use crate::DAY;
use crate::track::Track;

/// Bins in a window.
pub const BINS: usize = 64;
/// Windows.
pub const LEVELS: usize = 14;
/// A stretch of which only the highest bin is remembered, at least; 8 bins where these are longer.
const PEAK_SECONDS: f64 = DAY / 8.0;
/// Levels whose peaks are kept: those that shorter windows are compared with.
pub(crate) const PEAK_LEVELS: RangeInclusive<usize> = 3..=11;
/// Bins of level 0 in a day.
const FINEST_PER_DAY: u32 = 1 << 13;

/// What a series did in one stretch of time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bin {
    /// Number of the stretch: its start divided by its length.
    pub index: u32,
    /// Mean of the samples.
    pub mean: f32,
    /// Lowest sample.
    pub low: f32,
    /// How often the target had been restarted.
    pub life: u16,
}

impl Bin {
    /// Middle of the stretch, seconds since the epoch.
    pub fn time(&self, level: usize) -> f64 {
        (f64::from(self.index) + 0.5) * bin_seconds(level)
    }
}

/// Length of a bin, seconds.
pub fn bin_seconds(level: usize) -> f64 {
    DAY / f64::from(FINEST_PER_DAY >> level)
}

/// Length of a full window, seconds.
pub fn window_seconds(level: usize) -> f64 {
    bin_seconds(level) * BINS as f64
}

/// Bins in a day.
pub fn bins_per_day(level: usize) -> u32 {
    FINEST_PER_DAY >> level
}

/// Length of the stretches of [`Pyramid::peaks`], seconds.
pub fn peak_seconds(level: usize) -> f64 {
    (8.0 * bin_seconds(level)).max(PEAK_SECONDS)
}

/// A bin that is still being filled.
#[derive(Clone, Copy, Debug)]
struct Open {
    index: u32,
    life: u16,
    samples: u32,
    sum: f64,
    low: f32,
}

/// The highest bin of a stretch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peak {
    /// Number of the stretch.
    pub index: u32,
    /// Mean of its highest bin.
    pub mean: f32,
    /// The life that this was in.
    pub life: u16,
}

#[derive(Clone, Debug, Default)]
struct Level {
    /// Mean and low.
    bins: Track<[f32; 2]>,
    /// But for the one that is not over.
    peaks: Track<f32>,
    open: Option<Open>,
    open_peak: Option<Peak>,
}

/// A series at every scale.
#[derive(Clone, Debug)]
pub struct Pyramid {
    levels: [Level; LEVELS],
    first_seconds: Option<f64>,
    last_seconds: f64,
}

impl Default for Pyramid {
    fn default() -> Self {
        Self { levels: std::array::from_fn(|_| Level::default()), first_seconds: None, last_seconds: 0.0 }
    }
}

impl Pyramid {
    /// Adds a sample: seconds since the epoch, the value, and the number of the target's life.
    ///
    /// Time must not go backwards; a sample from before the last one is left out. Gives the levels at which a bin was
    /// completed, as bits.
    pub fn push(&mut self, seconds: f64, value: f64, life: u16) -> u32 {
        let is_usable = seconds >= self.last_seconds && seconds < DAY * 365.0 * 1000.0 && value.is_finite();
        if !is_usable {
            return 0;
        }
        self.first_seconds.get_or_insert(seconds);
        self.last_seconds = seconds;
        let mut completed = 0;
        for (number, level) in self.levels.iter_mut().enumerate() {
            let index = (seconds / bin_seconds(number)) as u32;
            if level.add(index, value, life) {
                completed |= 1 << number;
                if PEAK_LEVELS.contains(&number) {
                    level.note_peak(number);
                }
            }
        }
        completed
    }

    /// The completed bins of a level, oldest first.
    pub fn bins(&self, level: usize) -> impl Iterator<Item = Bin> {
        self.levels[level].bins.iter().map(bin)
    }

    /// How many bins of a level are completed and kept.
    pub fn count(&self, level: usize) -> usize {
        self.levels[level].bins.len()
    }

    /// The bin of a level that was completed last.
    pub fn newest(&self, level: usize) -> Option<Bin> {
        self.levels[level].bins.newest().map(bin)
    }

    /// The completed bins that end in the window before the last sample, oldest first.
    pub fn window(&self, level: usize) -> impl Iterator<Item = Bin> {
        let newest = (self.last_seconds / bin_seconds(level)) as u32;
        self.bins(level).filter(move |bin| bin.index + BINS as u32 >= newest)
    }

    /// The highest bins of the last 8 days, or of the last 8 windows, oldest first; of some levels alone.
    pub fn peaks(&self, level: usize) -> impl Iterator<Item = Peak> {
        let level = &self.levels[level];
        let done = level.peaks.iter().map(|(index, life, mean)| Peak { index, mean, life });
        done.chain(level.open_peak)
    }

    /// Time of the first sample and of the last; `None` before the first.
    pub fn span_seconds(&self) -> Option<(f64, f64)> {
        self.first_seconds.map(|first| (first, self.last_seconds))
    }
}

fn bin((index, life, [mean, low]): (u32, u16, [f32; 2])) -> Bin {
    Bin { index, mean, low, life }
}

impl Level {
    /// Adds a sample; whether a bin is complete because this one begins another.
    fn add(&mut self, index: u32, value: f64, life: u16) -> bool {
        let value32 = value as f32;
        let fresh = Open { index, life, samples: 1, sum: value, low: value32 };
        match &mut self.open {
            Some(open) if open.index == index && open.life == life => {
                open.samples += 1;
                open.sum += value;
                open.low = open.low.min(value32);
                false
            }
            // The same stretch, after a restart: the younger part stands for it.
            Some(open) if open.index == index => {
                *open = fresh;
                false
            }
            open => {
                let Some(done) = open.replace(fresh) else { return false };
                let mean = (done.sum / f64::from(done.samples)) as f32;
                self.bins.push(done.index, done.life, [mean, done.low], BINS);
                true
            }
        }
    }

    fn note_peak(&mut self, number: usize) {
        let Some((index, life, [mean, _])) = self.bins.newest() else { return };
        let index = (f64::from(index) * bin_seconds(number) / peak_seconds(number)) as u32;
        match &mut self.open_peak {
            Some(peak) if peak.index == index && peak.life == life => peak.mean = peak.mean.max(mean),
            open => {
                if let Some(done) = open.replace(Peak { index, mean, life }) {
                    self.peaks.push(done.index, done.life, done.mean, BINS - 1);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths() {
        assert_eq!(bin_seconds(7), 22.5 * 60.0);
        assert_eq!(window_seconds(7), DAY);
        assert_eq!(window_seconds(12), 32.0 * DAY);
        assert!((0..LEVELS).all(|level| (DAY / bin_seconds(level)).fract() == 0.0));
    }

    #[test]
    fn bins_agree_with_all_samples_kept() {
        let mut pyramid = Pyramid::default();
        let mut kept = Vec::new();
        for step in 0..20_000u32 {
            let (seconds, value) = (1e9 + f64::from(step) * 10.0, f64::from(step * 7919 % 1009));
            pyramid.push(seconds, value, 0);
            kept.push((seconds, value));
        }
        for level in [0, 3, 6] {
            assert_eq!(pyramid.count(level), BINS, "level {level}");
            for bin in pyramid.bins(level) {
                let start = f64::from(bin.index) * bin_seconds(level);
                let inside = |&&(seconds, _): &&(f64, f64)| seconds >= start && seconds < start + bin_seconds(level);
                let values: Vec<f64> = kept.iter().filter(inside).map(|&(_, value)| value).collect();
                let mean = values.iter().sum::<f64>() / values.len() as f64;
                assert!((f64::from(bin.mean) - mean).abs() < 0.01, "level {level}: {} {mean}", bin.mean);
                assert_eq!(f64::from(bin.low), values.iter().copied().fold(f64::MAX, f64::min));
            }
        }
    }

    #[test]
    fn a_restart_in_a_bin_keeps_the_younger_part() {
        let mut pyramid = Pyramid::default();
        let start = 1000.0 * bin_seconds(3);
        for step in 0..12 {
            let life = u16::from(step >= 4);
            pyramid.push(start + 10.0 * f64::from(step), if life == 0 { 500.0 } else { 20.0 }, life);
        }
        let bin = pyramid.bins(3).next().unwrap();
        assert_eq!(pyramid.peaks(3).next().unwrap().mean, 20.0);
        assert_eq!((bin.life, bin.mean, bin.low), (1, 20.0, 20.0));
    }

    #[test]
    fn gaps_and_clocks_that_go_back() {
        let mut pyramid = Pyramid::default();
        for step in 0..200 {
            pyramid.push(1e6 + 10.0 * f64::from(step), 1.0, 0);
        }
        assert_eq!(pyramid.push(5.0, 9e9, 0), 0);
        assert_eq!(pyramid.push(f64::NAN, 1.0, 0), 0);
        assert_eq!(pyramid.push(2e6, f64::INFINITY, 0), 0);
        pyramid.push(3e6, 2.0, 0);
        assert_eq!(pyramid.window(0).count(), 0, "what is older than the window is not in it");
        assert_eq!(pyramid.count(0), BINS);
        assert_eq!(pyramid.span_seconds(), Some((1e6, 3e6)));
    }
}
