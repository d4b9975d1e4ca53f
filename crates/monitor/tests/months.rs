//! What judges take when all their windows are full: of many programs, in all metrics, after months.
//!
//! The samples come as a daemon that is restarted reads them: hours for two months, five minutes for two days, and then each
//! interval.

mod random;

use leakscope_history::{METRICS, Row, Values};
use leakscope_monitor::targets::{Known, Manner, Resuming};

const START: u64 = 1_700_000_000;
const INTERVAL: u64 = 10;
const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;

/// Without pages of files, such as the program's own code.
fn anonymous_bytes() -> i64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: Vec<i64> = text.split(' ').map(|word| word.trim().parse().unwrap()).collect();
    (pages[1] - pages[2]) * 4096
}

/// When samples are taken.
fn times() -> Vec<u64> {
    let (hours, minutes, end) = (START + 66 * DAY, START + 68 * DAY, START + 68 * DAY + 3 * HOUR);
    let steps = |from: u64, to: u64, every: u64| (from..to).step_by(every as usize);
    steps(START, hours, HOUR).chain(steps(hours, minutes, 300)).chain(steps(minutes, end, INTERVAL)).collect()
}

/// Memory that changes at every sample, threads and descriptors that do so or stay.
fn values(random: &mut impl FnMut() -> u64, changes: bool) -> Values {
    let mut values = [None; METRICS];
    values[0] = Some(80_000_000 + random() % 9_000_000);
    values[1] = Some(60_000_000 + random() % 9_000_000);
    values[2] = Some(0);
    (values[5], values[6]) = (Some(12), Some(48));
    if changes {
        (values[5], values[6]) = (Some(12 + random() % 50), Some(48 + random() % 500));
        values[7] = Some(40_000_000 + random() % 9_000_000);
    }
    values
}

/// Bytes that so many programs take; whether all their metrics change.
fn taken(targets: usize, changes: bool) -> i64 {
    let mut random = random::xorshift();
    let times = times();
    let before = anonymous_bytes();
    let mut all: Vec<(Known, Resuming)> =
        (0..targets).map(|_| (Known::new(Manner::default()), Resuming::default())).collect();
    for &at in &times {
        for (known, resuming) in &mut all {
            let values = values(&mut random, changes);
            resuming.add(known, &[Row { at, life: 0, values, extremes: None }]);
        }
    }
    assert!(all.iter().all(|(known, _)| known.seen == *times.last().unwrap() as f64));
    anonymous_bytes() - before
}

/// Each in a process of its own: what one has given back the other would take again.
#[test]
fn months_of_many_programs_are_small() {
    let name = "LEAKSCOPE_TEST_PROGRAMS";
    if let Some(count) = std::env::var(name).ok().and_then(|text| text.parse::<i64>().ok()) {
        println!("taken {}", taken(count.unsigned_abs() as usize, count < 0));
        return;
    }
    // Memory changes, threads and descriptors stay; and, of a third as many, each of four metrics changes each time.
    for (count, most_each) in [(150, 42_000), (-50, 85_000)] {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["months_of_many_programs_are_small", "--exact", "--nocapture"])
            .env(name, count.to_string())
            .output()
            .unwrap();
        let words = String::from_utf8_lossy(&output.stdout);
        let taken = words.split("taken ").nth(1).and_then(|rest| rest.lines().next()?.parse::<i64>().ok());
        let taken = taken.unwrap_or_else(|| panic!("{words}"));
        let each = taken / i64::abs(count);
        eprintln!("{count} programs: {:.1} MB; 300 would take {:.1} MB", taken as f64 / 1e6, each as f64 * 300e-6);
        assert!((5_000..most_each).contains(&each), "{count} programs: {each} bytes each");
    }
}
