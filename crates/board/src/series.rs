//! A target's series and findings, out of the history, for the page.

use std::path::Path;

use leakscope_history::{History, HistoryError, NAMES, Row, Scale, rollup};
use serde_json::{Value, json};

/// Points of a chart at most: more than a screen has columns.
const POINTS: usize = 2000;
/// Events that are marked.
const EVENTS: u32 = 200;
/// Findings that are shown.
const FINDINGS: u32 = 200;

/// The scale that holds so many seconds back in few enough rows.
fn scale(seconds: u64) -> Scale {
    match seconds {
        0..=7200 => Scale::Raw,
        7201..=604_800 => Scale::FiveMinutes,
        _ => Scale::Hour,
    }
}

/// A target's values over the last `seconds` before `now`, in columns, and what happened to it.
///
/// # Errors
/// When the history cannot be read.
pub(crate) fn series(path: &Path, target: &str, seconds: u64, now: u64) -> Result<Value, HistoryError> {
    let history = History::open_read_only(path)?;
    let from = now.saturating_sub(seconds);
    let rows = thinned(history.rows(target, scale(seconds), from, u64::MAX >> 1)?);
    let mut columns = serde_json::Map::new();
    for (metric, name) in NAMES.iter().enumerate() {
        let values: Vec<Option<u64>> = rows.iter().map(|row| row.values[metric]).collect();
        if values.iter().any(Option::is_some) {
            columns.insert((*name).to_owned(), json!(values));
        }
    }
    let events = history.events(Some(target), EVENTS)?;
    let events = events.iter().filter(|event| event.at >= from);
    let events: Vec<Value> =
        events.map(|event| json!({ "at": event.at, "kind": event.kind, "text": event.text })).collect();
    Ok(json!({
        "target": target, "from": from, "to": now,
        "at": rows.iter().map(|row| row.at).collect::<Vec<_>>(),
        "low": extremes(&rows, |(low, _)| low), "high": extremes(&rows, |(_, high)| high),
        "values": columns, "events": events,
    }))
}

fn extremes(rows: &[Row], end: fn((u64, u64)) -> u64) -> Vec<Option<u64>> {
    rows.iter().map(|row| row.extremes.map(end)).collect()
}

/// Rows so few that a chart can show them, as means over longer stretches.
fn thinned(rows: Vec<Row>) -> Vec<Row> {
    let (Some(first), Some(last)) = (rows.first(), rows.last()) else { return rows };
    if rows.len() <= POINTS {
        return rows;
    }
    rollup(&rows, (last.at - first.at).div_ceil(POINTS as u64).max(1))
}

/// The findings of a target, or of all.
///
/// # Errors
/// When the history cannot be read.
pub(crate) fn found(path: &Path, target: Option<&str>) -> Result<Value, HistoryError> {
    let history = History::open_read_only(path)?;
    let found = history.found(target, FINDINGS)?;
    let one = |one: &leakscope_history::Found| {
        json!({
            "target": one.target, "source": one.source, "fingerprint": one.fingerprint, "title": one.title,
            "stack": one.stack, "bytes": one.bytes, "blocks": one.blocks, "first": one.first_at, "last": one.last_at,
        })
    };
    Ok(json!({ "found": found.iter().map(one).collect::<Vec<_>>() }))
}
