//! Prints the table of docs/monitor.md: `cargo run --release --example trial -- SEEDS [PART OF A NAME]`.

use leakscope_trend::trial::table;

fn main() {
    let mut words = std::env::args().skip(1);
    let seeds = words.next().and_then(|word| word.parse().ok()).unwrap_or(5);
    print!("{}", table(seeds, &words.next().unwrap_or_default()));
}
