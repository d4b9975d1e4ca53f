//! A history that is copied elsewhere, stretch by stretch: to a collector, which takes each tick once, or into other files.
//!
//! The history itself is the queue: what a reader has not taken yet stands there as long as samples are kept as they were
//! taken. A position is the time of the last tick that was taken; a history's ticks never go back in time, and each tick is
//! one transaction with its events, so that what lies behind a position never changes.

use std::collections::{BTreeMap, HashMap};

use rusqlite::{Connection, OptionalExtension, params};

use crate::codec::{Values, decode, decode_tick};
use crate::error::HistoryError;
use crate::found::{Found, note};
use crate::store::{Event, History, Scale, TargetSample, append_tick};

const HOUR: u64 = 3600;
/// Findings that one stretch carries; those seen last.
const MOST_FOUND: u32 = 2000;

/// All that was seen at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tick {
    /// Seconds since the epoch.
    pub at: u64,
    /// What was known of each target.
    pub samples: Vec<TargetSample>,
}

/// A part of a history: what became known after one position and up to another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stretch {
    /// The position before it.
    pub after: u64,
    /// The position behind it; the same when nothing is new.
    pub upto: u64,
    /// Oldest first.
    pub ticks: Vec<Tick>,
    /// What happened, oldest first.
    pub events: Vec<Event>,
    /// Findings that were seen, with their newest numbers.
    pub found: Vec<Found>,
}

/// What came of a stretch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// The position that is reached.
    pub position: u64,
    /// Ticks that were new.
    pub ticks: usize,
    /// Ticks that had been taken before.
    pub known: usize,
    /// Ticks that are older than what is there from another stream: a clock that was set back.
    pub late: usize,
}

impl History {
    /// What tells this file from all others, also from one that stood here before: 32 hexadecimal digits.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn stream(&self) -> Result<String, HistoryError> {
        // A file that an older leakscope wrote has none until it is opened for writing.
        Ok(self.fact(STREAM)?.unwrap_or_else(|| "0".repeat(32)))
    }

    /// How many targets it has had.
    pub fn target_count(&self) -> usize {
        self.ids.len()
    }

    /// What became known after a position: ticks until they hold `most` samples, at least one tick.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn stretch(&self, after: u64, most: usize) -> Result<Stretch, HistoryError> {
        let attempt = self.attempt("read what is new");
        // One look: an hour that becomes chunks meanwhile is there once, and not twice or never.
        let look = self.connection.unchecked_transaction().map_err(&attempt)?;
        let names = names(&look).map_err(&attempt)?;
        let mut ticks = Vec::new();
        let mut held = 0;
        let mut hour = Some(after / HOUR * HOUR);
        while let Some(start) = hour.filter(|_| held < most) {
            let next = next_hour(&look, &names, start).map_err(&attempt)?;
            for tick in next.map_or_else(Vec::new, |start| hour_ticks(&look, &names, start)) {
                if tick.at > after {
                    held += tick.samples.len();
                    ticks.push(tick);
                }
            }
            hour = next.map(|start| start + HOUR);
        }
        if held < most {
            ticks.extend(recent_ticks(&look, &names, after, most - held).map_err(&attempt)?);
        }
        cut(&mut ticks, most);
        let upto = ticks.last().map_or(after, |tick| tick.at);
        let events = events(&look, after, upto).map_err(&attempt)?;
        drop(look);
        let found = self.found_between(after, upto, MOST_FOUND)?;
        Ok(Stretch { after, upto, ticks, events, found })
    }

    /// How far a stream has been taken; 0 at its beginning.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn position(&self, stream: &str) -> Result<u64, HistoryError> {
        Ok(self.fact(&position_key(stream))?.and_then(|text| text.parse().ok()).unwrap_or(0))
    }

    /// Takes what is new of a stretch of another history, and remembers the position; all of it or nothing.
    ///
    /// # Errors
    /// When SQLite refuses; then nothing was taken.
    pub fn take_stretch(&mut self, stream: &str, stretch: &Stretch) -> Result<Taken, HistoryError> {
        let position = self.position(stream)?;
        let newest = self.newest().unwrap_or(0);
        let attempt = self.attempt("take what was sent");
        let mut taken = Taken { position: position.max(stretch.upto), ..Taken::default() };
        let mut fresh = Vec::new();
        let mut last = None;
        {
            let transaction = self.connection.transaction().map_err(&attempt)?;
            for tick in &stretch.ticks {
                if tick.at <= position {
                    taken.known += 1;
                } else if tick.at <= newest {
                    taken.late += 1;
                } else {
                    append_tick(&transaction, &self.ids, &mut fresh, tick.at, &tick.samples).map_err(&attempt)?;
                    taken.ticks += 1;
                    last = Some(tick.at);
                }
            }
            for event in stretch.events.iter().filter(|event| event.at > position) {
                crate::store::note_event(&transaction, event).map_err(&attempt)?;
            }
            note(&transaction, &stretch.found).map_err(&attempt)?;
            transaction
                .prepare_cached("INSERT OR REPLACE INTO facts (key, value) VALUES (?1, ?2)")
                .and_then(|mut set| set.execute([position_key(stream), taken.position.to_string()]))
                .map_err(&attempt)?;
            transaction.commit().map_err(&attempt)?;
        }
        self.ids.extend(fresh);
        if let Some(at) = last {
            let is_over = self.hour.is_some_and(|hour| hour < at / HOUR);
            // What was sent is kept already; an hour that cannot become chunks now does so with the next stretch.
            if !is_over || self.compact(at).is_ok() {
                self.hour = Some(at / HOUR);
            }
        }
        Ok(taken)
    }
}

/// The fact that tells this file from others.
pub(crate) const STREAM: &str = "stream";

fn position_key(stream: &str) -> String {
    format!("position {stream}")
}

/// Keeps whole ticks of so many samples, at least one.
fn cut(ticks: &mut Vec<Tick>, most: usize) {
    let mut held = 0;
    let fits = ticks.iter().take_while(|tick| {
        held += tick.samples.len();
        held <= most
    });
    let keep = fits.count().max(1);
    ticks.truncate(keep);
}

fn names(look: &Connection) -> rusqlite::Result<HashMap<u64, String>> {
    look.prepare_cached("SELECT id, name FROM targets")?.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

/// The first hour from `start` on that has chunks.
fn next_hour(look: &Connection, names: &HashMap<u64, String>, start: u64) -> rusqlite::Result<Option<u64>> {
    // By target, because that is the order of the table.
    let mut query =
        look.prepare_cached("SELECT min(start) FROM chunks WHERE target = ?1 AND scale = ?2 AND start >= ?3")?;
    let mut first = None;
    for target in names.keys() {
        let found: Option<u64> =
            query.query_row(params![target, Scale::Raw.number(), start], |row| row.get(0)).optional()?.flatten();
        first = [first, found].into_iter().flatten().min();
    }
    Ok(first)
}

/// The ticks of an hour that has become chunks. A chunk that cannot be read has no rows.
fn hour_ticks(look: &Connection, names: &HashMap<u64, String>, start: u64) -> Vec<Tick> {
    let mut ticks: BTreeMap<u64, Vec<(u64, u16, Values)>> = BTreeMap::new();
    for &target in names.keys() {
        let data: Option<Vec<u8>> = look
            .prepare_cached("SELECT data FROM chunks WHERE target = ?1 AND scale = ?2 AND start = ?3")
            .and_then(|mut query| query.query_row(params![target, Scale::Raw.number(), start], |row| row.get(0)))
            .ok();
        for row in data.map(|data| decode(start, &data)).unwrap_or_default() {
            ticks.entry(row.at).or_default().push((target, row.life, row.values));
        }
    }
    ticks.into_iter().map(|(at, samples)| tick(names, at, samples)).collect()
}

fn recent_ticks(
    look: &Connection,
    names: &HashMap<u64, String>,
    after: u64,
    most: usize,
) -> rusqlite::Result<Vec<Tick>> {
    let mut query = look.prepare_cached("SELECT at, data FROM ticks WHERE at > ?1 ORDER BY at")?;
    let mut rows = query.query([after])?;
    let (mut ticks, mut held) = (Vec::new(), 0);
    while held < most
        && let Some(row) = rows.next()?
    {
        let data: Vec<u8> = row.get(1)?;
        let tick = tick(names, row.get(0)?, decode_tick(&data));
        held += tick.samples.len();
        ticks.push(tick);
    }
    Ok(ticks)
}

fn tick(names: &HashMap<u64, String>, at: u64, mut samples: Vec<(u64, u16, Values)>) -> Tick {
    samples.sort_by_key(|(target, ..)| *target);
    let named = samples
        .into_iter()
        .filter_map(|(target, life, values)| Some(TargetSample { target: names.get(&target)?.clone(), life, values }));
    Tick { at, samples: named.collect() }
}

fn events(look: &Connection, after: u64, upto: u64) -> rusqlite::Result<Vec<Event>> {
    look.prepare_cached("SELECT at, target, kind, text FROM events WHERE at > ?1 AND at <= ?2 ORDER BY at, rowid")?
        .query_map([after, upto], |row| {
            Ok(Event { at: row.get(0)?, target: row.get(1)?, kind: row.get(2)?, text: row.get(3)? })
        })?
        .collect()
}
