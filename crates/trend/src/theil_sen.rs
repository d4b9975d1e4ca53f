//! The Theil-Sen slope, and an interval for it that respects autocorrelation.
//!
//! The slope is the median of the slopes of all pairs; up to 29 % of the points may be arbitrarily wrong. Its interval comes
//! from Kendall's S: with the variance of S, the order statistics of the slopes at distance z bound it (Sen 1968). Samples of
//! memory are autocorrelated, which makes S vary more; Hamed and Rao (1998) correct the variance from the ranks of the
//! residuals. Their estimate is too small where the correlation lasts as long as the window, so the factor of an AR(1)
//! process with the first lag's correlation, corrected for its bias, is taken when it is larger.
//!
//! Only pairs of the same stratum (the same life of a target) are compared.

/// A point of a series.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Hours since some moment.
    pub hours: f64,
    /// The value.
    pub value: f64,
    /// Points are compared with those of the same stratum only.
    pub stratum: u16,
}

/// A slope with its interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slope {
    /// Median of the slopes, per hour.
    pub per_hour: f64,
    /// Lower end of the interval, per hour.
    pub low: f64,
    /// Upper end of the interval, per hour.
    pub high: f64,
    /// How many standard deviations Kendall's S is above zero.
    pub z: f64,
}

/// The slope of points in order of time, with the interval of `z` standard deviations; `None` when fewer than four points
/// can be compared.
pub fn slope(points: &[Point], z: f64) -> Option<Slope> {
    let mut slopes = Vec::with_capacity(points.len() * points.len() / 2);
    let mut balance = 0i64;
    for (index, first) in points.iter().enumerate() {
        for second in &points[index + 1..] {
            let hours = second.hours - first.hours;
            if first.stratum == second.stratum && hours > 0.0 {
                slopes.push((second.value - first.value) / hours);
                balance += i64::from(second.value > first.value) - i64::from(second.value < first.value);
            }
        }
    }
    if slopes.len() < 6 {
        return None;
    }
    slopes.sort_unstable_by(f64::total_cmp);
    let per_hour = sorted_median(&slopes);
    let deviation = (variance_of_s(points) * autocorrelation_factor(points, per_hour)).sqrt();
    let pairs = slopes.len() as f64;
    let rank = |offset: f64| slopes[(((pairs + offset) / 2.0).clamp(0.0, pairs - 1.0)) as usize];
    let strength = (balance.abs() - 1).max(0) as f64 / deviation;
    Some(Slope {
        per_hour,
        low: rank(-z * deviation),
        high: rank(z * deviation),
        z: strength * balance.signum() as f64,
    })
}

/// Variance of Kendall's S of independent points: the sum over strata. Ties would make it smaller; without their
/// correction the interval is the wider one.
fn variance_of_s(points: &[Point]) -> f64 {
    strata(points)
        .map(|stratum| {
            let n = stratum.len() as f64;
            n * (n - 1.0) * (2.0 * n + 5.0) / 18.0
        })
        .sum()
}

/// Runs of points with the same stratum; lives do not come back.
fn strata(points: &[Point]) -> impl Iterator<Item = &[Point]> {
    points.chunk_by(|first, second| first.stratum == second.stratum)
}

/// By how much autocorrelation makes S vary more; at least 1.
fn autocorrelation_factor(points: &[Point], per_hour: f64) -> f64 {
    let residuals = residuals(points, per_hour);
    let n = residuals.len() as f64;
    let ranks = ranks(&residuals);
    let significant = 1.96 / n.sqrt();
    let correlations: Vec<f64> = (1..=residuals.len() / 4).map(|lag| correlation(&ranks, lag)).collect();
    let sum: f64 = correlations
        .iter()
        .enumerate()
        .filter(|(_, rho)| rho.abs() > significant)
        .map(|(index, rho)| {
            let lag = (index + 1) as f64;
            (n - lag) * (n - lag - 1.0) * (n - lag - 2.0) * rho
        })
        .sum();
    let hamed_rao = 1.0 + 2.0 / (n * (n - 1.0) * (n - 2.0)) * sum;
    let first = correlations.first().copied().unwrap_or(0.0);
    let unbiased = (first + (2.0 + 4.0 * first) / n).min(0.97);
    let ar1 = if first > significant { (1.0 + unbiased) / (1.0 - unbiased) } else { 1.0 };
    hamed_rao.max(ar1).max(1.0)
}

/// What a line of this slope leaves, around the median of each stratum.
fn residuals(points: &[Point], per_hour: f64) -> Vec<f64> {
    let mut residuals = Vec::with_capacity(points.len());
    for stratum in strata(points) {
        let detrended: Vec<f64> = stratum.iter().map(|point| point.value - per_hour * point.hours).collect();
        let middle = median(&mut detrended.clone());
        residuals.extend(detrended.iter().map(|value| value - middle));
    }
    residuals
}

/// Ranks around their mean; ties share theirs.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_unstable_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    for tie in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let shared = start as f64 + (tie.len() - 1) as f64 / 2.0 - (values.len() - 1) as f64 / 2.0;
        tie.iter().for_each(|&index| ranks[index] = shared);
        start += tie.len();
    }
    ranks
}

fn correlation(ranks: &[f64], lag: usize) -> f64 {
    let total: f64 = ranks.iter().map(|rank| rank * rank).sum();
    if total == 0.0 {
        return 0.0;
    }
    ranks.iter().zip(&ranks[lag..]).map(|(first, second)| first * second).sum::<f64>() / total
}

/// The median; values are reordered. Zero for none.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    sorted_median(values)
}

fn sorted_median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => 0.0,
        length if length % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic::Random;

    fn points(values: impl IntoIterator<Item = f64>) -> Vec<Point> {
        values.into_iter().enumerate().map(|(i, value)| Point { hours: i as f64, value, stratum: 0 }).collect()
    }

    #[test]
    fn a_line_with_wild_points() {
        let values = (0..40).map(|i| if i % 5 == 0 { 1e6 } else { 3.0 * f64::from(i) });
        let found = slope(&points(values), 3.0).unwrap();
        assert!((found.per_hour - 3.0).abs() < 1e-9, "{found:?}");
    }

    #[test]
    fn strata_are_not_compared() {
        let mut two: Vec<Point> = points((0..20).map(|i| 100.0 + f64::from(i)));
        two.iter_mut().skip(10).for_each(|point| (point.value, point.stratum) = (point.value - 90.0, 1));
        assert!((slope(&two, 2.0).unwrap().per_hour - 1.0).abs() < 1e-9);
        assert_eq!(slope(&points([1.0, 2.0, 3.0]), 2.0), None);
    }

    /// The oracle is the definition: of many series without a trend, the interval of 2 deviations leaves zero out in 5 %.
    #[test]
    fn intervals_hold_what_they_promise() {
        for (correlation, most) in [(0.0, 0.075), (0.5, 0.09), (0.8, 0.13)] {
            let mut random = Random::new(7);
            let rounds = 1000;
            let wrong = (0..rounds)
                .filter(|_| {
                    let mut value = random.normal();
                    let values: Vec<f64> = (0..64)
                        .map(|_| {
                            value = correlation * value + (1.0f64 - correlation * correlation).sqrt() * random.normal();
                            value
                        })
                        .collect();
                    let found = slope(&points(values), 1.96).unwrap();
                    found.low > 0.0 || found.high < 0.0
                })
                .count();
            let share = wrong as f64 / f64::from(rounds);
            assert!(share < most, "correlation {correlation}: {share}");
            assert!(correlation > 0.0 || share > 0.02, "correlation {correlation}: {share}");
        }
    }

    #[test]
    fn constant_values_have_no_slope() {
        let found = slope(&points([5.0; 64]), 4.0).unwrap();
        assert_eq!((found.per_hour, found.low, found.high, found.z), (0.0, 0.0, 0.0, 0.0));
    }
}
