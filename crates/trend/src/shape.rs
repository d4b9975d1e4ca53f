//! What growth looks like, beside its slope: whether every quarter of a window is higher than the one before, and whether
//! growth slows down.

use crate::theil_sen::{Point, median};

/// Each quarter must bring at least this share of the mean growth of a quarter.
const LEAST_SHARE: f64 = 0.2;
/// Time constants of the approaches that are tried, in lengths of the window.
const TIME_CONSTANTS: [f64; 8] = [0.1, 0.15, 0.25, 0.4, 0.6, 1.0, 1.6, 2.5];
/// How many times the mean square that is left the better fit must explain: by chance a line with noise has 15 once in
/// 10,000 times.
const EXPLAINED: f64 = 15.0;

/// The medians of the four quarters of a window, in order of time.
pub fn quarters(points: &[Point]) -> Option<[f64; 4]> {
    let (first, last) = (points.first()?.hours, points.last()?.hours);
    let length = (last - first) / 4.0;
    let mut medians = [0.0; 4];
    for (number, middle) in medians.iter_mut().enumerate() {
        let start = first + length * number as f64;
        let inside = |point: &&Point| point.hours >= start && (number == 3 || point.hours < start + length);
        let mut values: Vec<f64> = points.iter().filter(inside).map(|point| point.value).collect();
        if values.is_empty() {
            return None;
        }
        *middle = median(&mut values);
    }
    Some(medians)
}

/// Whether growth goes through the whole window: a step brings one quarter up, a cycle that ends in the window brings one
/// down.
pub fn rises_throughout(quarters: &[f64; 4]) -> bool {
    let share = (quarters[3] - quarters[0]) / 3.0;
    share > 0.0 && quarters.windows(2).all(|pair| pair[1] - pair[0] >= LEAST_SHARE * share)
}

/// The value at which growth that slows down comes to rest, if it does slow down.
///
/// An exponential approach is fitted beside a line, by least squares, over some time constants. It must explain the points
/// so much better that a line with noise does not do so by chance.
pub fn plateau(points: &[Point]) -> Option<f64> {
    let (first, last) = (points.first()?.hours, points.last()?.hours);
    let length = last - first;
    let line = fit(points, |hours| (hours - first) / length)?;
    let best = TIME_CONSTANTS
        .iter()
        .filter_map(|share| fit(points, |hours| 1.0 - (-(hours - first) / (share * length)).exp()))
        .filter(|fit| fit.gain > 0.0)
        .min_by(|a, b| a.squares.total_cmp(&b.squares))?;
    let freedom = (points.len() as f64 - 4.0).max(1.0);
    // Values are whole pages, and f32 in the pyramid: below that nothing is an explanation.
    let smallest = freedom * (1e-6 * (best.start.abs() + best.gain)).powi(2);
    let explained = (line.squares - best.squares) / ((best.squares + smallest) / freedom);
    (explained > EXPLAINED).then_some(best.start + best.gain)
}

struct Fit {
    start: f64,
    gain: f64,
    /// Sum of the squares of what is left.
    squares: f64,
}

/// Least squares of `start + gain * shape(hours)`.
fn fit(points: &[Point], shape: impl Fn(f64) -> f64) -> Option<Fit> {
    let n = points.len() as f64;
    let shapes: Vec<f64> = points.iter().map(|point| shape(point.hours)).collect();
    let mean_shape = shapes.iter().sum::<f64>() / n;
    let mean_value = points.iter().map(|point| point.value).sum::<f64>() / n;
    let mut spread = 0.0;
    let mut common = 0.0;
    for (shape, point) in shapes.iter().zip(points) {
        spread += (shape - mean_shape).powi(2);
        common += (shape - mean_shape) * (point.value - mean_value);
    }
    let gain = common / spread;
    let start = mean_value - gain * mean_shape;
    let squares = shapes.iter().zip(points).map(|(shape, point)| (point.value - start - gain * shape).powi(2)).sum();
    gain.is_finite().then_some(Fit { start, gain, squares })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(value: impl Fn(f64) -> f64) -> Vec<Point> {
        (0..64).map(|i| Point { hours: f64::from(i), value: value(f64::from(i)), stratum: 0 }).collect()
    }

    fn rises(value: impl Fn(f64) -> f64) -> bool {
        rises_throughout(&quarters(&points(value)).unwrap())
    }

    #[test]
    fn shapes_by_table() {
        assert!(rises(|t| t));
        assert!(rises(|t| t + 10.0 * (t * 2.4).sin()), "a leak under a short cycle");
        assert!(!rises(|t| if t < 30.0 { 0.0 } else { 100.0 }), "a step");
        assert!(!rises(|t| if t < 16.0 { 0.0 } else { 100.0 + t / 1000.0 }), "a step between quarters");
        assert!(!rises(|t| t % 20.0), "a sawtooth");
        for phase in 0..24 {
            assert!(!rises(|t| (t / 64.0 * std::f64::consts::TAU + f64::from(phase)).sin()), "a cycle, phase {phase}");
        }
        assert!(!rises(|_| 5.0));
        assert_eq!(quarters(&[]), None);
    }

    #[test]
    fn a_cache_comes_to_rest_where_it_does() {
        for tau in [8.0, 20.0, 40.0, 100.0] {
            let found = plateau(&points(|t| 1000.0 - 800.0 * (-t / tau).exp())).unwrap();
            assert!((found - 1000.0).abs() < 60.0, "tau {tau}: {found}");
        }
        assert_eq!(plateau(&points(|t| 10.0 * t)), None);
        assert_eq!(plateau(&points(|t| t * t)), None);
        let wobbly = |t: f64| 10.0 * t + 40.0 * (t * 1.7).sin();
        assert_eq!(plateau(&points(wobbly)), None);
    }
}
