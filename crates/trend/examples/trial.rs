//! Prints the table of `trial` for so many seeds: `cargo run --release --example trial -- 5`.

use leakscope_trend::trial::{run, scenarios};

fn main() {
    let seeds: u64 = std::env::args().nth(1).and_then(|word| word.parse().ok()).unwrap_or(5);
    let only = std::env::args().nth(2).unwrap_or_default();
    for scenario in scenarios().iter().filter(|scenario| scenario.name.contains(&only)) {
        let outcomes: Vec<_> = (1..=seeds).map(|seed| run(scenario, seed)).collect();
        let mut delays: Vec<f64> = outcomes.iter().filter_map(|outcome| outcome.delay_hours).collect();
        delays.sort_by(f64::total_cmp);
        let days: f64 = outcomes.iter().map(|outcome| outcome.steady_days).sum();
        let alarms: u32 = outcomes.iter().map(|outcome| outcome.false_alarms).sum();
        println!(
            "{:55} found {}/{seeds} delay {:.2} .. {:.2} h; false {alarms} in {days:.0} d",
            scenario.name,
            delays.len(),
            delays.get(delays.len() / 2).copied().unwrap_or(f64::NAN),
            delays.last().copied().unwrap_or(f64::NAN),
        );
    }
}
