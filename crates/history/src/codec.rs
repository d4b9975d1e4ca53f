//! Rows as bytes: differences to the row before, as variable-length numbers.
//!
//! ```text
//!  row   := seconds since the row before (first: since the chunk's start), life, mask, value*
//!  mask  := bit n for metric n that is known, of metrics from 8 on bit n + 1; bit 8 when the lowest and highest of metric 0 follow
//!  value := zigzag difference to the last known value of the metric; lowest: mean - low, highest: high - mean
//! ```
//!
//! Pure. Decoders are total: bytes that make no sense end the chunk there.

/// Metrics of a sample.
pub const METRICS: usize = 14;
/// Their names, in order. A new one comes at the end: what is written stays readable.
pub const NAMES: [&str; METRICS] = [
    "resident",
    "anonymous",
    "swap",
    "proportional",
    "private_dirty",
    "threads",
    "descriptors",
    "live_heap",
    "heap",
    "arenas",
    "other_anonymous",
    "files",
    "shared",
    "arena_count",
];
/// The first metrics were eight, and the bit behind them is this one.
const EXTREMES: u64 = 1 << 8;

/// The bit of a metric in a mask.
fn bit(metric: usize) -> u64 {
    1 << (metric + usize::from(metric >= 8))
}

/// One value for each metric; `None` is unknown.
pub type Values = [Option<u64>; METRICS];

/// What is known of a target at one moment, or over a stretch of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Seconds since the epoch; the start of a stretch.
    pub at: u64,
    /// How often the target had been restarted.
    pub life: u16,
    /// The values; means over a stretch.
    pub values: Values,
    /// Lowest and highest of metric 0 in a stretch.
    pub extremes: Option<(u64, u64)>,
}

/// The bytes of rows in order of time, of a chunk that begins at `start`.
pub fn encode(start: u64, rows: &[Row]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(rows.len() * 12);
    let (mut at, mut last) = (start, [0u64; METRICS]);
    for row in rows {
        put(&mut bytes, row.at.saturating_sub(at));
        at = row.at.max(at);
        put(&mut bytes, u64::from(row.life));
        let extremes = row.extremes.filter(|_| row.values[0].is_some());
        let known = row.values.iter().enumerate().filter(|(_, value)| value.is_some());
        let mask = known.fold(0, |mask, (index, _)| mask | bit(index));
        put(&mut bytes, mask | if extremes.is_some() { EXTREMES } else { 0 });
        for (index, value) in row.values.iter().enumerate() {
            let Some(value) = *value else { continue };
            put(&mut bytes, zigzag(value.wrapping_sub(last[index]) as i64));
            last[index] = value;
        }
        if let (Some((low, high)), Some(mean)) = (extremes, row.values[0]) {
            put(&mut bytes, mean.saturating_sub(low));
            put(&mut bytes, high.saturating_sub(mean));
        }
    }
    bytes
}

/// The rows of a chunk that begins at `start`.
pub fn decode(start: u64, mut bytes: &[u8]) -> Vec<Row> {
    let mut rows = Vec::new();
    let (mut at, mut last) = (start, [0u64; METRICS]);
    while let Some(row) = decode_row(&mut bytes, &mut at, &mut last) {
        rows.push(row);
    }
    rows
}

fn decode_row(bytes: &mut &[u8], at: &mut u64, last: &mut [u64; METRICS]) -> Option<Row> {
    *at = at.checked_add(take(bytes)?)?;
    let life = u16::try_from(take(bytes)?).ok()?;
    let mask = take(bytes)?;
    let mut values = [None; METRICS];
    for (index, value) in values.iter_mut().enumerate() {
        if mask & bit(index) != 0 {
            last[index] = last[index].wrapping_add(unzigzag(take(bytes)?) as u64);
            *value = Some(last[index]);
        }
    }
    let extremes = match (mask & EXTREMES != 0, values[0]) {
        (true, Some(mean)) => Some((mean.saturating_sub(take(bytes)?), mean.saturating_add(take(bytes)?))),
        _ => None,
    };
    Some(Row { at: *at, life, values, extremes })
}

/// The bytes of one moment: for each target its number, life and values.
pub fn encode_tick(samples: &[(u64, u16, Values)]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(samples.len() * 24);
    for (target, life, values) in samples {
        put(&mut bytes, *target);
        let row = Row { at: 0, life: *life, values: *values, extremes: None };
        bytes.extend(encode(0, &[row]));
    }
    bytes
}

/// The targets of one moment.
pub fn decode_tick(mut bytes: &[u8]) -> Vec<(u64, u16, Values)> {
    let mut samples = Vec::new();
    while let Some(target) = take(&mut bytes) {
        let Some(row) = decode_row(&mut bytes, &mut 0, &mut [0; METRICS]) else { break };
        samples.push((target, row.life, row.values));
    }
    samples
}

/// LEB128.
pub(crate) fn put(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

pub(crate) fn take(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small generator of numbers of all lengths; xorshift.
    fn numbers(seed: u64) -> impl FnMut() -> u64 {
        let mut state = seed;
        move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state >> (state % 60)
        }
    }

    #[test]
    fn rows_come_back() {
        let mut next = numbers(88_172_645_463_325_252);
        for _ in 0..200 {
            let mut at = next() >> 20;
            let start = at;
            let rows: Vec<Row> = (0..next() % 50)
                .map(|_| {
                    at += next() % 4000;
                    let values: Values = std::array::from_fn(|_| (!next().is_multiple_of(3)).then(&mut next));
                    let mean = values[0].unwrap_or(0);
                    let extremes = (values[0].is_some() && next().is_multiple_of(2))
                        .then(|| (mean / 2, mean.saturating_add(next())));
                    Row { at, life: next() as u16, values, extremes }
                })
                .collect();
            assert_eq!(decode(start, &encode(start, &rows)), rows);
            let tick: Vec<_> = rows.iter().map(|row| (row.at, row.life, row.values)).collect();
            assert_eq!(decode_tick(&encode_tick(&tick)), tick);
        }
    }

    #[test]
    fn nonsense_ends_a_chunk() {
        let mut next = numbers(99);
        for length in 0..400 {
            let bytes: Vec<u8> = (0..length).map(|_| next() as u8).collect();
            assert!(decode(u64::MAX - 5, &bytes).len() <= bytes.len());
            assert!(decode_tick(&bytes).len() <= bytes.len());
        }
        assert_eq!(decode(0, &[0xff; 30]), []);
    }

    /// What was written when there were eight metrics: the bytes of that time.
    #[test]
    fn rows_of_eight_metrics_are_read() {
        // 5 s after the start, life 2, metrics 0 and 7 and extremes: 100, 3, and 100 - 10 to 100 + 20.
        let bytes = [5, 2, 0x81, 0x03, 0xc8, 0x01, 6, 10, 20];
        let mut values = [None; METRICS];
        (values[0], values[7]) = (Some(100), Some(3));
        assert_eq!(decode(1000, &bytes), [Row { at: 1005, life: 2, values, extremes: Some((90, 120)) }]);
    }

    #[test]
    fn steady_rows_are_small() {
        let rows: Vec<Row> = (0..360)
            .map(|i| Row { at: 1000 + 10 * i, life: 3, values: [Some(50 << 20); METRICS], extremes: None })
            .collect();
        assert!(encode(1000, &rows).len() < 360 * 20, "{}", encode(1000, &rows).len());
    }
}
