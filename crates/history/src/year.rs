//! A year of made-up targets, written as a daemon's hourly steps would have left it: for measurements of size and speed.

use std::path::Path;

use crate::codec::{Row, Values};
use crate::error::HistoryError;
use crate::store::{History, Scale};

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;
/// How often a target is sampled, seconds.
const INTERVAL: u64 = 10;
/// Samples from one look at what memory is made of to the next.
const PARTS: u64 = 30;

/// Writes a file with so many targets, `name:program0` and so on, from `start` for 365 days at every scale that is kept
/// at the end; gives its bytes.
///
/// The values wander: each metric changes at every row by a random amount, so that differences do not become shorter than
/// those of real programs.
///
/// # Errors
/// When SQLite refuses.
pub fn generate_year(path: &Path, targets: u32, start: u64) -> Result<u64, HistoryError> {
    let (mut history, _) = History::open(path)?;
    let end = start + 365 * DAY;
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for target in 0..targets {
        let steps = [
            (Scale::Raw, end - Scale::Raw.kept_seconds(), INTERVAL),
            (Scale::FiveMinutes, end - Scale::FiveMinutes.kept_seconds(), 300),
            (Scale::Hour, start, HOUR),
        ];
        for (scale, from, every) in steps {
            let rows: Vec<Row> =
                (0..(end - from) / every).map(|step| row(from + step * every, scale, &mut state)).collect();
            history.append_rows(&format!("name:program{target}"), scale, &rows)?;
        }
    }
    history.checkpoint()?;
    Ok(std::fs::metadata(path).map_or(0, |file| file.len()))
}

fn row(at: u64, scale: Scale, state: &mut u64) -> Row {
    let mut random = |bits: u32| {
        // xorshift: the same file each time.
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state >> (64 - bits)
    };
    let resident = (300 << 20) + (random(13) << 12);
    // Parts are sampled rarely; what they are made of is then in most of the rows of five minutes.
    let has_parts = scale != Scale::Raw || (at / INTERVAL).is_multiple_of(PARTS);
    let mut part = |base: u64| has_parts.then(|| (base << 20) + (random(13) << 12));
    let parts = [part(120), part(60), part(20), part(90), part(10)];
    let values: Values = [
        Some(resident),
        Some((200 << 20) + (random(13) << 12)),
        Some(random(4) << 12),
        Some((250 << 20) + (random(13) << 10)),
        Some((180 << 20) + (random(13) << 12)),
        Some(30 + random(2)),
        Some(100 + random(4)),
        None,
        parts[0],
        parts[1],
        parts[2],
        parts[3],
        parts[4],
        has_parts.then(|| 4 + random(1)),
    ];
    let extremes = (scale != Scale::Raw).then(|| (resident - (random(12) << 12), resident + (random(12) << 12)));
    Row { at, life: 3, values, extremes }
}
