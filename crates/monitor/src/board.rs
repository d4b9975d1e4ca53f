//! From what is known of targets to what is shown of them. Pure.

use leakscope_board::{PartView, TargetView, Verdict};
use leakscope_trend::{self as trend, remaining};

use crate::targets::{Known, Metric};
use crate::units::show_bytes;

/// Points of a sparkline.
const POINTS: usize = 48;
/// What the parts of memory are called for machines, in the order of `PART_WORDS`.
const PARTS: [&str; 5] = ["heap", "thread_arenas", "other_anonymous", "mapped_files", "shared_memory"];
/// Parts that were read so long ago are not shown, seconds: large processes are read rarely.
const PARTS_SECONDS: f64 = 2.0 * 3600.0;

/// A target as it is shown; `restarts` and `seen` come from its newest sample.
pub fn view(id: &str, known: &Known, restarts: u16, seen: u64) -> TargetView {
    let memory = Metric::Memory.of(&known.values);
    let growth = match known.verdict(Metric::Memory) {
        trend::Verdict::Growing(growth) => Some(growth),
        _ => None,
    };
    let limit = known.limit.map(|(limit, _)| limit as f64);
    let left = growth.zip(limit).zip(memory).map(|((growth, limit), memory)| remaining(memory, limit, &growth));
    let value = |index: usize| known.values[index].map(|value| value as f64);
    let made = known.parts().filter(|(at, _)| seen as f64 - at <= PARTS_SECONDS).map(|(_, parts)| parts);
    let part = |(part, bytes): (&'static str, u64)| PartView { part, bytes: bytes as f64 };
    TargetView {
        id: id.to_owned(),
        verdict: verdict(known),
        words: words(known),
        memory,
        resident: value(0),
        live_heap: value(7),
        threads: value(5),
        descriptors: value(6),
        per_hour: growth.map(|growth| growth.per_hour),
        parts: made.into_iter().flat_map(|parts| PARTS.into_iter().zip(parts).map(part)).collect(),
        arenas: made.map(|parts| parts[PARTS.len()] as f64),
        limit,
        limit_of: known.limit.map(|(_, whose)| whose.to_owned()),
        hours_left: left.map(|left| left.likely_hours).filter(|hours| hours.is_finite()),
        since: growth.map(|growth| growth.since_seconds.max(0.0) as u64),
        restarts,
        seen,
        spark: spark(known),
    }
}

/// The most urgent of all metrics' verdicts.
pub fn verdict(known: &Known) -> Verdict {
    let mut word = match known.verdict(Metric::Memory) {
        trend::Verdict::Learning => Verdict::Learning,
        _ => Verdict::Stable,
    };
    for metric in Metric::ALL {
        match known.verdict(metric) {
            trend::Verdict::Growing(_) => return Verdict::Growing,
            trend::Verdict::Filling(_) => word = Verdict::Filling,
            trend::Verdict::Learning | trend::Verdict::Stable => {}
        }
    }
    word
}

/// The words for all metrics that are not stable.
pub fn words(known: &Known) -> String {
    let mut words = Vec::new();
    for metric in Metric::ALL {
        let show = |value: f64| if metric.is_bytes() { show_bytes(value) } else { format!("{value:.0}") };
        match known.verdict(metric) {
            trend::Verdict::Growing(growth) => words.push(format!(
                "{} grows by {}/h ({} to {})",
                metric.word(),
                show(growth.per_hour),
                show(growth.low_per_hour),
                show(growth.high_per_hour)
            )),
            trend::Verdict::Filling(rest) => words.push(format!("{} fills up to {}", metric.word(), show(rest))),
            trend::Verdict::Learning | trend::Verdict::Stable => {}
        }
    }
    if words.is_empty() {
        let word = if verdict(known) == Verdict::Learning { "learning" } else { "stable" };
        return word.to_owned();
    }
    words.join("; ")
}

/// Memory over the last hours, in few points.
fn spark(known: &Known) -> Vec<f64> {
    let series = known.recent(Metric::Memory);
    let step = series.len().div_ceil(POINTS).max(1);
    // The newest value stands at the end, whatever the step.
    let mut points: Vec<f64> = series.iter().rev().step_by(step).copied().collect();
    points.reverse();
    points
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::targets::Manner;

    #[test]
    fn a_target_that_grows_and_one_that_is_new() {
        let mut known = Known::new(Manner { warm_up_seconds: 0, ..Manner::default() });
        known.limit = Some((2_000_000_000, "its control group's limit"));
        for step in 0..400u64 {
            let mut values = leakscope_history::Values::default();
            (values[0], values[5]) = (Some(100_000_000 + step * 500_000), Some(7));
            known.observe(1.7e9 + step as f64 * 10.0, &values, 0, 1e6);
        }
        let shown = view("name:x", &known, 3, 1_700_004_000);
        assert_eq!((shown.verdict, shown.restarts, shown.threads), (Verdict::Growing, 3, Some(7.0)));
        assert!((shown.per_hour.unwrap() / 180e6 - 1.0).abs() < 0.01 && (shown.hours_left.unwrap() - 9.4).abs() < 0.2);
        assert_eq!(shown.words, "memory grows by 180 MB/h (179 MB to 181 MB)");
        assert!(shown.spark.len() >= 16 && shown.spark.len() <= POINTS, "{}", shown.spark.len());
        assert!(shown.spark.windows(2).all(|pair| pair[1] > pair[0]), "{:?}", shown.spark);
        assert!(shown.parts.is_empty() && shown.arenas.is_none(), "nobody has read them");
        let fresh = view("name:y", &Known::new(Manner::default()), 0, 5);
        assert_eq!((fresh.verdict, fresh.words.as_str(), fresh.memory), (Verdict::Learning, "learning", None));
        assert_eq!((fresh.spark.len(), fresh.hours_left), (0, None));
    }

    #[test]
    fn parts_by_name_until_they_are_old() {
        let mut known = Known::new(Manner::default());
        let parts = leakscope_sampling::Parts { heap_bytes: 5, file_bytes: 70, arenas: 3, ..Default::default() };
        known.observe(1000.0, &crate::targets::values(&Default::default(), Some(parts)), 0, 1e6);
        let shown = view("name:x", &known, 0, 1000 + 7200);
        let found: Vec<(&str, f64)> = shown.parts.iter().map(|part| (part.part, part.bytes)).collect();
        let expected = [
            ("heap", 5.0),
            ("thread_arenas", 0.0),
            ("other_anonymous", 0.0),
            ("mapped_files", 70.0),
            ("shared_memory", 0.0),
        ];
        assert_eq!((found.as_slice(), shown.arenas), (expected.as_slice(), Some(3.0)));
        assert!(view("name:x", &known, 0, 1000 + 7201).parts.is_empty());
    }
}
