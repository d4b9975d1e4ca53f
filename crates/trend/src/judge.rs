//! The verdict on one series, kept up to date sample by sample.
//!
//! Each window of the [`Pyramid`] is judged a few times while it moves on by its own length. A window must pass every test
//! of the picture in the crate's documentation to open a growth; an open growth is closed by a window at least as long
//! as the one that opened it, when its slope has become much flatter or the value is back where it was.
//!
//! Why short windows ask for a fast rate: in the first day nobody can tell the rising half of a daily cycle from a leak. What
//! is slow has time; from 20 hours on, the window holds both halves. What is fast, or will meet its limit within a day, is
//! said at once, at the risk of one false alarm on the first day of a program that breathes deeply.

use crate::limit::remaining;
use crate::pyramid::{BINS, Bin, LEVELS, Peak, Pyramid, bin_seconds, bins_per_day, peak_seconds, window_seconds};
use crate::shape::{plateau, quarters, rises_throughout};
use crate::theil_sen::{Point, Slope, median, slope};
use crate::{DAY, HOUR};

/// The first level whose window holds a whole day.
const WHOLE_DAY: usize = 7;
/// The first level from which the daily cycle is taken out.
const SEASONAL: usize = 9;
/// What will meet its limit so soon is said from short windows, whatever its rate.
const URGENT_HOURS: f64 = 24.0;
/// Growth in short windows must be this share of the value.
const SHARE_OF_VALUE: f64 = 0.05;
/// An open growth ends when the slope is surely below this share of what it was.
const FLATTER: f64 = 0.3;
/// A cache may fill up to this share of the limit.
const SHARE_OF_LIMIT: f64 = 0.9;
/// The lower bound of a fast rate must be this share of it.
const SURE_SHARE: f64 = 0.5;
/// A cache may grow this far beyond the value at which it was expected to stop.
const BEYOND_PLATEAU: f64 = 1.1;
/// A window must end above what was before it, by this share of what it gained.
const BEYOND: f64 = 0.25;
/// The level whose bins are days.
const DAILY: usize = 13;

/// What counts as growth for one kind of value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Profile {
    /// Growth in a window shorter than a day must be at least this.
    pub least_growth: f64,
    /// Growth in longer windows.
    pub least_slow_growth: f64,
    /// Growth per hour that windows shorter than a day ask for, and half of it at the lower bound.
    pub fast_per_hour: f64,
    /// The first seconds of a life are not looked at.
    pub warm_up_seconds: f64,
}

impl Profile {
    /// For bytes: half a megabyte a minute is fast.
    pub const BYTES: Self =
        Self { least_growth: 6e6, least_slow_growth: 4e6, fast_per_hour: 30e6, warm_up_seconds: 120.0 };
    /// For things that are counted: descriptors, threads, mappings.
    pub const COUNT: Self =
        Self { least_growth: 30.0, least_slow_growth: 15.0, fast_per_hour: 60.0, warm_up_seconds: 120.0 };
}

/// One look at a target.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Seconds since the epoch.
    pub seconds: f64,
    /// The value.
    pub value: f64,
    /// How often the target has been restarted.
    pub life: u16,
    /// Seconds since it was started.
    pub age_seconds: f64,
    /// What it must not reach.
    pub limit: Option<f64>,
}

/// A value that grows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Growth {
    /// The rate.
    pub per_hour: f64,
    /// Lower end of its interval.
    pub low_per_hour: f64,
    /// Upper end of its interval.
    pub high_per_hour: f64,
    /// Since when, seconds since the epoch.
    pub since_seconds: f64,
    /// The value then.
    pub start_value: f64,
    /// Length of the window that shows it, seconds.
    pub window_seconds: f64,
    /// Standard deviations between Kendall's S and no trend.
    pub z: f64,
}

impl Growth {
    /// Growth at a rate that is known exactly.
    pub fn of(per_hour: f64, start_value: f64, since_seconds: f64) -> Self {
        Self {
            per_hour,
            low_per_hour: per_hour,
            high_per_hour: per_hour,
            since_seconds,
            start_value,
            window_seconds: 0.0,
            z: f64::INFINITY,
        }
    }
}

/// What one window shows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Window {
    /// Its length, seconds.
    pub seconds: f64,
    /// Medians of its quarters.
    pub quarters: [f64; 4],
    /// The slope and its interval.
    pub slope: Slope,
    /// Whether each quarter is higher than the one before.
    pub rises: bool,
    /// Where growth comes to rest, when it slows down.
    pub plateau: Option<f64>,
}

/// What is to be said of a series.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub enum Verdict {
    /// Too little is known.
    #[default]
    Learning,
    /// It does not grow.
    Stable,
    /// It grows, more and more slowly, and is expected to stop at this value.
    Filling(f64),
    /// It grows.
    Growing(Growth),
}

/// The verdict on one series.
#[derive(Clone, Debug)]
pub struct Judge {
    profile: Profile,
    pyramid: Pyramid,
    verdict: Verdict,
    /// The level whose window opened the growth.
    open_level: usize,
    life: u16,
    /// What the longest window last expected: its level, where growth stops, and until when that is believed.
    filling: Option<(usize, f64, f64)>,
    /// The highest value at which an earlier life was stable.
    stable_high: Option<f64>,
}

impl Judge {
    /// Knows nothing yet.
    pub fn new(profile: Profile) -> Self {
        let pyramid = Pyramid::default();
        Self { profile, pyramid, verdict: Verdict::Learning, open_level: 0, life: 0, filling: None, stable_high: None }
    }

    /// The verdict after the samples so far.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// The series at every scale.
    pub fn pyramid(&self) -> &Pyramid {
        &self.pyramid
    }

    /// What each window shows now, shortest first: for people who ask why.
    pub fn windows(&self) -> Vec<Window> {
        let one = |level: usize| {
            let in_reach = |bin: &Bin| level >= WHOLE_DAY || bin.life == self.life;
            let bins: Vec<Bin> = self.pyramid.window(level).filter(in_reach).collect();
            if bins.len() < least_bins(level) {
                return None;
            }
            let points = points(level, &bins, |bin| bin.mean);
            let quarters = quarters(&points)?;
            let slope = slope(&points, strictness(level))?;
            let seconds = (points[points.len() - 1].hours - points[0].hours) * HOUR;
            Some(Window { seconds, quarters, slope, rises: rises_throughout(&quarters), plateau: plateau(&points) })
        };
        (0..DAILY).filter_map(one).collect()
    }

    /// Takes a sample into account; gives the verdict when it was judged anew.
    pub fn observe(&mut self, sample: &Sample) -> Option<Verdict> {
        if sample.age_seconds < self.profile.warm_up_seconds {
            return None;
        }
        if sample.life != self.life {
            self.remember_stable();
            self.life = sample.life;
            self.filling = None;
        }
        let completed = self.pyramid.push(sample.seconds, sample.value, sample.life);
        let due = (0..DAILY).filter(|&level| completed >> level & 1 != 0 && self.is_due(level));
        let due: Vec<usize> = due.collect();
        if due.is_empty() {
            return None;
        }
        for level in due {
            self.judge(level, sample);
        }
        Some(self.verdict)
    }

    /// A life that was stable for hours shows how much its successors may use.
    fn remember_stable(&mut self) {
        let level = 4;
        let of_life: Vec<f32> =
            self.pyramid.bins(level).filter(|bin| bin.life == self.life).map(|bin| bin.mean).collect();
        if !matches!(self.verdict, Verdict::Growing(_)) && of_life.len() >= BINS / 2 {
            let high = of_life.iter().copied().fold(0.0f32, f32::max);
            self.stable_high = Some(self.stable_high.unwrap_or(0.0).max(f64::from(high)));
        }
    }

    fn is_due(&self, level: usize) -> bool {
        let every = if level < WHOLE_DAY { 4 } else { 2 };
        self.pyramid.newest(level).is_some_and(|bin| bin.index % every == 0)
    }

    fn judge(&mut self, level: usize, sample: &Sample) {
        // Short windows look at one life; long ones join the lives of what is restarted often.
        let in_reach = |bin: &Bin| level >= WHOLE_DAY || bin.life == self.life;
        let bins: Vec<Bin> = self.pyramid.window(level).filter(in_reach).collect();
        if bins.len() < least_bins(level) {
            return;
        }
        let mut found = self.growth(level, &bins, sample);
        match (found, self.filling) {
            (Verdict::Filling(rest), known) if known.is_none_or(|(known, ..)| level >= known) => {
                self.filling = Some((level, rest, sample.seconds + window_seconds(level)));
            }
            (Verdict::Growing(_), Some((known, rest, until)))
                if level < known && sample.seconds < until && sample.value < rest * BEYOND_PLATEAU =>
            {
                found = Verdict::Filling(rest);
            }
            _ => {}
        }
        match (self.verdict, found) {
            (Verdict::Growing(open), Verdict::Growing(found)) => {
                // The longer window knows the rate better; when it began stays.
                let since = if found.since_seconds < open.since_seconds { found } else { open };
                let better = if level >= self.open_level { found } else { open };
                self.open_level = self.open_level.max(level);
                self.verdict = Verdict::Growing(Growth {
                    since_seconds: since.since_seconds,
                    start_value: since.start_value,
                    ..better
                });
            }
            (Verdict::Growing(open), found) => {
                let fills = matches!(found, Verdict::Filling(_)) && level > self.open_level;
                if fills || level >= self.open_level && has_ended(&open, level, &bins) {
                    self.verdict = found;
                }
            }
            (_, Verdict::Growing(found)) => {
                self.open_level = level;
                self.verdict = Verdict::Growing(found);
            }
            // A short window that sees nothing does not overrule a longer one that sees a cache fill.
            (Verdict::Filling(_), Verdict::Stable) if level < 3 => {}
            (_, found) => self.verdict = found,
        }
    }

    /// What one window shows by itself.
    fn growth(&self, level: usize, bins: &[Bin], sample: &Sample) -> Verdict {
        let mut verdict = Verdict::Stable;
        for track in [|bin: &Bin| bin.mean, |bin: &Bin| bin.low] {
            let points = points(level, bins, track);
            let Some(quarters) = quarters(&points) else { continue };
            let gained = quarters[3] - quarters[0];
            let least = if level < WHOLE_DAY { self.profile.least_growth } else { self.profile.least_slow_growth };
            if gained * 4.0 / 3.0 < least || !rises_throughout(&quarters) {
                continue;
            }
            let Some(slope) = slope(&points, strictness(level)) else { continue };
            if slope.low <= 0.0 {
                continue;
            }
            let growth = self.describe(level, &points, &quarters, &slope);
            if !self.is_fast_enough(level, &growth, sample) {
                continue;
            }
            // Lives behind one another have been shifted; how they fill says nothing on where they end.
            let is_one_life = bins.iter().all(|bin| bin.life == bins[0].life);
            if let Some(rest) = plateau(&points).filter(|_| is_one_life)
                && sample.limit.is_none_or(|limit| rest < limit * SHARE_OF_LIMIT)
            {
                verdict = Verdict::Filling(rest);
                continue;
            }
            let newest = if level >= SEASONAL { bins_per_day(level) as usize } else { 8 };
            let now = newest_median(&points, newest);
            let margin = gained * BEYOND;
            if is_one_life && self.earlier_high(level, bins).is_some_and(|high| now <= high + margin) {
                continue;
            }
            return Verdict::Growing(growth);
        }
        verdict
    }

    fn describe(&self, level: usize, points: &[Point], quarters: &[f64; 4], slope: &Slope) -> Growth {
        let (first, last) = (points[0].hours * HOUR, points[points.len() - 1].hours * HOUR);
        let quarter = (last - first) / 4.0;
        let mut growth = Growth {
            per_hour: slope.per_hour,
            low_per_hour: slope.low,
            high_per_hour: slope.high,
            since_seconds: first,
            start_value: quarters[0] - slope.per_hour * quarter / HOUR / 2.0,
            window_seconds: last - first,
            z: slope.z,
        };
        // Before the window it may have been level: then the line began where it leaves that level.
        let mut before: Vec<f64> = self.bins_before(level, first).map(|bin| f64::from(bin.mean)).collect();
        if before.len() >= 4 {
            let level_before = median(&mut before);
            let back = (quarters[3] - level_before).max(0.0) / slope.per_hour * HOUR;
            let earliest = self.pyramid.span_seconds().map_or(first, |(start, _)| start);
            growth.since_seconds = (last - quarter / 2.0 - back).clamp(earliest.min(last), last);
            growth.start_value = level_before;
        }
        growth
    }

    fn is_fast_enough(&self, level: usize, growth: &Growth, sample: &Sample) -> bool {
        if level >= WHOLE_DAY {
            return true;
        }
        let grown = growth.per_hour * growth.window_seconds / HOUR;
        let is_large = grown >= SHARE_OF_VALUE * growth.start_value;
        let is_urgent =
            sample.limit.is_some_and(|limit| remaining(sample.value, limit, growth).likely_hours < URGENT_HOURS);
        let fast = self.profile.fast_per_hour;
        // A rate that is hardly known is no reason to hurry.
        let is_fast = growth.per_hour >= fast && growth.low_per_hour >= (fast / 2.0).max(growth.per_hour * SURE_SHARE);
        is_large && (is_fast || is_urgent)
    }

    /// Bins of the same life, at longer windows, that ended before `seconds`, as far back as two windows of `level`.
    fn bins_before(&self, level: usize, seconds: f64) -> impl Iterator<Item = Bin> {
        let back = 2.0 * window_seconds(level);
        (level + 1..=level + 2).filter(|&higher| higher < LEVELS).flat_map(move |higher| {
            let length = bin_seconds(higher);
            let in_reach = move |bin: &Bin| {
                let end = f64::from(bin.index + 1) * length;
                end <= seconds && end + back >= seconds && bin.life == self.life
            };
            self.pyramid.bins(higher).filter(in_reach)
        })
    }

    /// What the series reached before the window, in means over eight bins (a day, where the daily cycle is taken out); or
    /// what an earlier life was stable at. After two days the second highest counts, so that one outlier does not blind us.
    fn earlier_high(&self, level: usize, bins: &[Bin]) -> Option<f64> {
        let start = f64::from(bins[0].index) * bin_seconds(level);
        let mut highs: Vec<f64> = Vec::new();
        let mut note_bins = |level: usize| {
            let before = |bin: &Bin| f64::from(bin.index + 1) * bin_seconds(level) <= start && bin.life == self.life;
            let means = self.pyramid.bins(level).filter(before).map(|bin| f64::from(bin.mean));
            highs.extend(means.reduce(f64::max));
        };
        if level >= SEASONAL {
            let before = |bin: &Bin| f64::from(bin.index + 1) * DAY <= start && bin.life == self.life;
            highs = self.pyramid.bins(DAILY).filter(before).map(|bin| f64::from(bin.mean)).collect();
        } else {
            // The stretch of peaks in which the window begins is not over: the bins themselves cover it.
            let smooth = level + 3;
            (smooth..=smooth + 2).for_each(&mut note_bins);
            let length = peak_seconds(smooth);
            let before = |peak: &Peak| f64::from(peak.index + 1) * length <= start && peak.life == self.life;
            highs.extend(self.pyramid.peaks(smooth).filter(before).map(|peak| f64::from(peak.mean)));
        }
        highs.sort_unstable_by(f64::total_cmp);
        let outliers = usize::from(highs.len() >= 16);
        let own = highs.len().checked_sub(1 + outliers).map(|index| highs[index]);
        [own, self.stable_high].into_iter().flatten().reduce(f64::max)
    }
}

/// Bins that a window must have before it is judged.
fn least_bins(level: usize) -> usize {
    match level {
        0 => 56,
        1..WHOLE_DAY => 24,
        WHOLE_DAY => 54,
        8 => 48,
        _ => (4 * bins_per_day(level) as usize).clamp(16, BINS),
    }
}

/// How many deviations the interval of a slope has: short windows are judged more often.
fn strictness(level: usize) -> f64 {
    match level {
        0..WHOLE_DAY => 5.0,
        WHOLE_DAY | 8 => 4.0,
        _ => 3.0,
    }
}

/// The middle of the newest points.
fn newest_median(points: &[Point], count: usize) -> f64 {
    let newest = &points[points.len().saturating_sub(count)..];
    median(&mut newest.iter().map(|point| point.value).collect::<Vec<_>>())
}

/// The bins as points: lives joined end to start, the daily cycle taken out of windows that hold several days.
fn points(level: usize, bins: &[Bin], track: fn(&Bin) -> f32) -> Vec<Point> {
    let mut points: Vec<Point> = Vec::with_capacity(bins.len());
    let mut shift = 0.0;
    for bin in bins {
        let value = f64::from(track(bin));
        if let Some(last) = points.last().filter(|last| last.stratum != bin.life) {
            shift = last.value - value;
        }
        points.push(Point { hours: bin.time(level) / HOUR, value: value + shift, stratum: bin.life });
    }
    if level >= SEASONAL {
        take_out_cycle(&mut points, bins, bins_per_day(level));
    }
    points
}

/// Subtracts from each point what its time of day has more than the others: the median, over days, of its difference from
/// the mean of its day.
fn take_out_cycle(points: &mut [Point], bins: &[Bin], per_day: u32) {
    let mut phases: Vec<Vec<f64>> = vec![Vec::new(); per_day as usize];
    let mut start = 0;
    for day in bins.chunk_by(|first, second| first.index / per_day == second.index / per_day) {
        let values = &points[start..start + day.len()];
        // A day that is not complete has no mean to differ from.
        if day.len() == per_day as usize {
            let mean = values.iter().map(|point| point.value).sum::<f64>() / values.len() as f64;
            for (bin, point) in day.iter().zip(values) {
                phases[(bin.index % per_day) as usize].push(point.value - mean);
            }
        }
        start += day.len();
    }
    let phases: Vec<f64> = phases.iter_mut().map(|differences| median(differences)).collect();
    for (bin, point) in bins.iter().zip(points) {
        point.value -= phases[(bin.index % per_day) as usize];
    }
}

/// Whether an open growth is over, by a window at least as long as the one that showed it.
fn has_ended(open: &Growth, level: usize, bins: &[Bin]) -> bool {
    let points = points(level, bins, |bin| bin.mean);
    let is_flat = slope(&points, 2.0).is_some_and(|slope| slope.high < FLATTER * open.per_hour);
    let is_one_life = bins.iter().all(|bin| bin.life == bins[0].life);
    is_flat || (is_one_life && newest_median(&points, 8) < open.start_value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(judge: &mut Judge, hours: std::ops::Range<f64>, value: impl Fn(f64) -> f64) {
        let mut at = hours.start * HOUR;
        while at < hours.end * HOUR {
            let value = value(at / HOUR);
            let sample = Sample { seconds: 1.7e9 + at, value, life: 0, age_seconds: 1e6, limit: Some(24e9) };
            judge.observe(&sample);
            at += 10.0;
        }
    }

    #[test]
    fn a_leak_opens_with_its_rate_and_start_and_closes_when_it_stops() {
        let mut judge = Judge::new(Profile::BYTES);
        feed(&mut judge, 0.0..30.0, |_| 50e6);
        assert_eq!(judge.verdict(), Verdict::Stable);
        feed(&mut judge, 30.0..31.0, |t| 50e6 + 60e6 * (t - 30.0));
        let Verdict::Growing(growth) = judge.verdict() else { panic!("{:?}", judge.verdict()) };
        assert!((growth.per_hour - 60e6).abs() < 1e6 && growth.low_per_hour > 50e6, "{growth:?}");
        assert!((growth.since_seconds - 1.7e9 - 30.0 * HOUR).abs() < 600.0, "{growth:?}");
        assert!((growth.start_value - 50e6).abs() < 5e6, "{growth:?}");
        feed(&mut judge, 31.0..36.0, |_| 110e6);
        assert_eq!(judge.verdict(), Verdict::Stable);
    }

    #[test]
    fn a_cache_says_where_it_comes_to_rest() {
        let mut judge = Judge::new(Profile::BYTES);
        feed(&mut judge, 0.0..1.5, |t| 50e6 + 400e6 * (1.0 - (-t / 0.5).exp()));
        let Verdict::Filling(rest) = judge.verdict() else { panic!("{:?}", judge.verdict()) };
        assert!((rest - 450e6).abs() < 20e6, "{rest}");
    }

    #[test]
    fn warm_up_is_not_looked_at() {
        let mut judge = Judge::new(Profile::BYTES);
        let sample = Sample { seconds: 1e9, value: 1.0, life: 0, age_seconds: 60.0, limit: None };
        judge.observe(&sample);
        assert_eq!(judge.pyramid().span_seconds(), None);
    }
}
