//! The file: what is written each interval and each hour, and what can be asked.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

use crate::codec::{Row, Values, decode, decode_tick, encode, encode_tick};
use crate::error::HistoryError;
use crate::replica::STREAM;
use crate::rollup::rollup;
use crate::{found, profile};

/// Version of the tables, in `user_version`.
const VERSION: i64 = 3;
const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;
/// Events are kept as long as the coarsest samples.
const EVENTS_SECONDS: u64 = 400 * DAY;

const TABLES: &str = "
CREATE TABLE IF NOT EXISTS targets (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS ticks (at INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS chunks (
    target INTEGER NOT NULL, scale INTEGER NOT NULL, start INTEGER NOT NULL, data BLOB NOT NULL,
    PRIMARY KEY (target, scale, start)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS events (at INTEGER NOT NULL, target TEXT NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS events_by_target ON events (target, at);
CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
";

/// How fine the rows of a series are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scale {
    /// As they were taken.
    Raw,
    /// Means over five minutes.
    FiveMinutes,
    /// Means over an hour.
    Hour,
}

impl Scale {
    /// Finest first.
    pub const ALL: [Self; 3] = [Self::Raw, Self::FiveMinutes, Self::Hour];

    pub(crate) fn number(self) -> i64 {
        self as i64
    }

    /// What a chunk spans, seconds.
    fn chunk_seconds(self) -> u64 {
        match self {
            Self::Raw => HOUR,
            Self::FiveMinutes => DAY,
            Self::Hour => 30 * DAY,
        }
    }

    /// How long rows are kept, seconds.
    pub fn kept_seconds(self) -> u64 {
        match self {
            Self::Raw => 2 * DAY,
            Self::FiveMinutes => 30 * DAY,
            Self::Hour => 400 * DAY,
        }
    }
}

/// What is known of a target at the moment of a tick.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetSample {
    /// The target's name.
    pub target: String,
    /// How often it has been restarted.
    pub life: u16,
    /// Its values.
    pub values: Values,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Seconds since the epoch.
    pub at: u64,
    /// The target's name.
    pub target: String,
    /// One word: `restart`, `alarm`, `resolved`, `pressure`.
    pub kind: String,
    /// A sentence.
    pub text: String,
}

/// The history file.
#[derive(Debug)]
pub struct History {
    path: PathBuf,
    pub(crate) connection: Connection,
    pub(crate) ids: HashMap<String, u64>,
    /// The hour of the last tick, to see when one ends.
    pub(crate) hour: Option<u64>,
}

impl History {
    /// Opens the file for writing, or makes it. A damaged file is put aside as `NAME.damaged`, and a new one begun; the
    /// second value is where it was put.
    ///
    /// # Errors
    /// When the file cannot be written, or is of a newer version.
    pub fn open(path: &Path) -> Result<(Self, Option<PathBuf>), HistoryError> {
        match Self::open_sound(path) {
            Err(error) if error.is_damage() => {
                let aside = path.with_extension("damaged");
                let moved = std::fs::rename(path, &aside).is_ok();
                // What is left of the journal belongs to the damaged file.
                for ending in ["-wal", "-shm"] {
                    let mut name = path.as_os_str().to_owned();
                    name.push(ending);
                    let _ = std::fs::remove_file(name);
                }
                if moved { Ok((Self::open_sound(path)?, Some(aside))) } else { Err(error) }
            }
            other => Ok((other?, None)),
        }
    }

    fn open_sound(path: &Path) -> Result<Self, HistoryError> {
        let attempt = |what| move |source| HistoryError::Sqlite { path: path.to_owned(), what, source };
        let connection = Connection::open(path).map_err(attempt("open it"))?;
        let set = || {
            connection.busy_timeout(std::time::Duration::from_secs(5))?;
            connection.pragma_update(None, "journal_mode", "wal")?;
            connection.pragma_update(None, "synchronous", "full")?;
            connection.pragma_update(None, "cache_size", -2000)?;
            connection.query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0))
        };
        let version = set().map_err(attempt("read it"))?;
        if version > VERSION {
            return Err(HistoryError::Newer { path: path.to_owned(), found: version, known: VERSION });
        }
        // Each version only ever added tables: what an older one wrote is complete with these. All of it or nothing:
        // whoever is killed meanwhile leaves an empty file.
        let transaction = connection.unchecked_transaction().map_err(attempt("make its tables"))?;
        let tables = [TABLES, found::TABLE, profile::TABLE];
        let made = tables.iter().try_for_each(|tables| transaction.execute_batch(tables));
        made.map_err(attempt("make its tables"))?;
        transaction
            .execute("INSERT OR IGNORE INTO facts (key, value) VALUES (?1, lower(hex(randomblob(16))))", [STREAM])
            .map_err(attempt("give it a name of its own"))?;
        transaction.pragma_update(None, "user_version", VERSION).map_err(attempt("write its version"))?;
        transaction.commit().map_err(attempt("make its tables"))?;
        Self::with(path, connection)
    }

    /// Opens the file for reading, beside a writer.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn open_read_only(path: &Path) -> Result<Self, HistoryError> {
        let attempt = |what| move |source| HistoryError::Sqlite { path: path.to_owned(), what, source };
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(attempt("open it"))?;
        connection.busy_timeout(std::time::Duration::from_secs(5)).map_err(attempt("open it"))?;
        let version = connection.query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0));
        if version.map_err(attempt("read it"))? == 0 {
            return Err(HistoryError::Unbegun { path: path.to_owned() });
        }
        Self::with(path, connection)
    }

    fn with(path: &Path, connection: Connection) -> Result<Self, HistoryError> {
        let attempt = |source| HistoryError::Sqlite { path: path.to_owned(), what: "read its targets", source };
        let ids = connection
            .prepare("SELECT name, id FROM targets")
            .and_then(|mut query| query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect())
            .map_err(attempt)?;
        let newest: Option<u64> =
            connection.query_row("SELECT max(at) FROM ticks", [], |row| row.get(0)).map_err(attempt)?;
        Ok(Self { path: path.to_owned(), connection, ids, hour: newest.map(|at| at / HOUR) })
    }

    pub(crate) fn attempt(&self, what: &'static str) -> impl Fn(rusqlite::Error) -> HistoryError + use<> {
        let path = self.path.clone();
        move |source| HistoryError::Sqlite { path: path.clone(), what, source }
    }

    /// The names of all targets, in order.
    pub fn targets(&self) -> Vec<String> {
        let mut names: Vec<String> = self.ids.keys().cloned().collect();
        names.sort();
        names
    }

    /// Time of the newest tick, seconds since the epoch.
    pub fn newest(&self) -> Option<u64> {
        let query = "SELECT max(at) FROM ticks";
        let newest = self.connection.query_row(query, [], |row| row.get(0)).ok().flatten();
        // Right after an hour's step there is none; the chunk knows the hour.
        newest.or(self.hour.map(|hour| hour * HOUR))
    }

    /// Writes what was seen at one moment, and what happened; with the first tick of an hour, the hours before it become
    /// chunks. All of it or nothing.
    ///
    /// # Errors
    /// When SQLite refuses; then nothing was written, and the next tick may succeed.
    pub fn write_tick(&mut self, at: u64, samples: &[TargetSample], events: &[Event]) -> Result<(), HistoryError> {
        let attempt = self.attempt("write a tick");
        let mut fresh = Vec::new();
        {
            let transaction = self.connection.transaction().map_err(&attempt)?;
            append_tick(&transaction, &self.ids, &mut fresh, at, samples).map_err(&attempt)?;
            for event in events {
                note_event(&transaction, event).map_err(&attempt)?;
            }
            transaction.commit().map_err(&attempt)?;
        }
        self.ids.extend(fresh);
        if self.hour.is_some_and(|hour| hour < at / HOUR) {
            self.compact(at)?;
        }
        self.hour = Some(at / HOUR);
        Ok(())
    }

    /// Turns the ticks of hours before that of `now` into chunks, and forgets what is too old.
    ///
    /// # Errors
    /// When SQLite refuses; then nothing has changed.
    pub fn compact(&mut self, now: u64) -> Result<(), HistoryError> {
        let attempt = self.attempt("turn an hour into chunks");
        let end = now / HOUR * HOUR;
        let transaction = self.connection.transaction().map_err(&attempt)?;
        let mut rows: BTreeMap<u64, Vec<Row>> = BTreeMap::new();
        {
            let mut query =
                transaction.prepare_cached("SELECT at, data FROM ticks WHERE at < ?1 ORDER BY at").map_err(&attempt)?;
            let mut found = query.query([end]).map_err(&attempt)?;
            while let Some(tick) = found.next().map_err(&attempt)? {
                let at: u64 = tick.get(0).map_err(&attempt)?;
                let data: Vec<u8> = tick.get(1).map_err(&attempt)?;
                for (target, life, values) in decode_tick(&data) {
                    rows.entry(target).or_default().push(Row { at, life, values, extremes: None });
                }
            }
        }
        for (target, rows) in rows {
            append(&transaction, target, Scale::Raw, &rows).map_err(&attempt)?;
            append(&transaction, target, Scale::FiveMinutes, &rollup(&rows, 300)).map_err(&attempt)?;
            append(&transaction, target, Scale::Hour, &rollup(&rows, HOUR)).map_err(&attempt)?;
        }
        transaction.execute("DELETE FROM ticks WHERE at < ?1", [end]).map_err(&attempt)?;
        for scale in Scale::ALL {
            let oldest = now.saturating_sub(scale.kept_seconds() + scale.chunk_seconds());
            transaction
                .execute("DELETE FROM chunks WHERE scale = ?1 AND start < ?2", params![scale.number(), oldest])
                .map_err(&attempt)?;
        }
        transaction
            .execute("DELETE FROM events WHERE at < ?1", [now.saturating_sub(EVENTS_SECONDS)])
            .map_err(&attempt)?;
        found::forget(&transaction, now).map_err(&attempt)?;
        profile::thin(&transaction, now).map_err(&attempt)?;
        let gone = forget_targets(&transaction).map_err(&attempt)?;
        transaction.commit().map_err(&attempt)?;
        self.ids.retain(|name, _| !gone.contains(name));
        Ok(())
    }

    /// Adds rows of one target at one scale in one transaction.
    pub(crate) fn append_rows(&mut self, target: &str, scale: Scale, rows: &[Row]) -> Result<(), HistoryError> {
        let attempt = self.attempt("add rows");
        let transaction = self.connection.transaction().map_err(&attempt)?;
        transaction.execute("INSERT OR IGNORE INTO targets (name) VALUES (?1)", [target]).map_err(&attempt)?;
        let query = "SELECT id FROM targets WHERE name = ?1";
        let id: u64 = transaction.query_row(query, [target], |row| row.get(0)).map_err(&attempt)?;
        append(&transaction, id, scale, rows).map_err(&attempt)?;
        transaction.commit().map_err(&attempt)?;
        self.ids.insert(target.to_owned(), id);
        Ok(())
    }

    /// Moves what stands in the journal into the file.
    pub(crate) fn checkpoint(&self) -> Result<(), HistoryError> {
        let query = "PRAGMA wal_checkpoint(TRUNCATE)";
        self.connection.query_row(query, [], |_| Ok(())).map_err(self.attempt("write the journal into it"))
    }

    /// The rows of a target at one scale, in order of time.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn rows(&self, target: &str, scale: Scale, from: u64, to: u64) -> Result<Vec<Row>, HistoryError> {
        let attempt = self.attempt("read a series");
        let Some(&id) = self.ids.get(target) else { return Ok(Vec::new()) };
        let mut rows = Vec::new();
        let first = from.saturating_sub(scale.chunk_seconds());
        let mut query = self
            .connection
            .prepare_cached("SELECT start, data FROM chunks WHERE target = ?1 AND scale = ?2 AND start BETWEEN ?3 AND ?4 ORDER BY start")
            .map_err(&attempt)?;
        let mut found = query.query(params![id, scale.number(), first, to]).map_err(&attempt)?;
        while let Some(chunk) = found.next().map_err(&attempt)? {
            let (start, data): (u64, Vec<u8>) = (chunk.get(0).map_err(&attempt)?, chunk.get(1).map_err(&attempt)?);
            rows.extend(decode(start, &data));
        }
        // The hour that is not over.
        let mut query = self
            .connection
            .prepare_cached("SELECT at, data FROM ticks WHERE at <= ?1 ORDER BY at")
            .map_err(&attempt)?;
        let mut found = query.query([to]).map_err(&attempt)?;
        let mut recent = Vec::new();
        while let Some(tick) = found.next().map_err(&attempt)? {
            let (at, data): (u64, Vec<u8>) = (tick.get(0).map_err(&attempt)?, tick.get(1).map_err(&attempt)?);
            let of_target = decode_tick(&data).into_iter().find(|(target, ..)| *target == id);
            recent.extend(of_target.map(|(_, life, values)| Row { at, life, values, extremes: None }));
        }
        rows.extend(match scale {
            Scale::Raw => recent,
            Scale::FiveMinutes => rollup(&recent, 300),
            Scale::Hour => rollup(&recent, HOUR),
        });
        rows.retain(|row| row.at >= from && row.at <= to);
        Ok(rows)
    }

    /// The finest rows that are kept, from coarse for what is long ago to fine for what is recent, each time once.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn all_rows(&self, target: &str, now: u64) -> Result<Vec<Row>, HistoryError> {
        let mut all = Vec::new();
        self.all_pieces(target, now, &mut |rows| all.extend_from_slice(rows))?;
        Ok(all)
    }

    /// The same in pieces of about a thousand rows, in order of time: for who must not take memory for all of them.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn all_pieces(&self, target: &str, now: u64, take: &mut dyn FnMut(&[Row])) -> Result<(), HistoryError> {
        let hours_to = now.saturating_sub(Scale::FiveMinutes.kept_seconds());
        let minutes_to = now.saturating_sub(Scale::Raw.kept_seconds());
        let oldest = hours_to.saturating_sub(Scale::Hour.kept_seconds());
        // Whatever is older than it should be, at first; what lies in the future, at last.
        let steps = [
            (Scale::Hour, 0, oldest, hours_to.max(1)),
            (Scale::Hour, oldest + 1, hours_to, 40 * DAY),
            (Scale::FiveMinutes, hours_to + 1, minutes_to, 4 * DAY),
            (Scale::Raw, minutes_to + 1, now, 3 * HOUR),
            (Scale::Raw, now.max(minutes_to) + 1, u64::MAX >> 1, u64::MAX >> 1),
        ];
        for (scale, from, to, span) in steps {
            let mut start = from;
            while start <= to {
                let end = to.min(start.saturating_add(span - 1));
                let rows = self.rows(target, scale, start, end)?;
                if !rows.is_empty() {
                    take(&rows);
                }
                start = end + 1;
            }
        }
        Ok(())
    }

    /// What happened to a target (to all of them without a name), newest first.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn events(&self, target: Option<&str>, most: u32) -> Result<Vec<Event>, HistoryError> {
        let attempt = self.attempt("read events");
        let mut query = self
            .connection
            .prepare_cached("SELECT at, target, kind, text FROM events WHERE ?1 IS NULL OR target = ?1 ORDER BY at DESC, rowid DESC LIMIT ?2")
            .map_err(&attempt)?;
        let found = query.query_map(params![target, most], |row| {
            Ok(Event { at: row.get(0)?, target: row.get(1)?, kind: row.get(2)?, text: row.get(3)? })
        });
        found.and_then(Iterator::collect).map_err(&attempt)
    }

    /// Keeps texts under keys, all or none.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn set_facts(&mut self, facts: &[(String, &str)]) -> Result<(), HistoryError> {
        let attempt = self.attempt("write facts");
        let transaction = self.connection.transaction().map_err(&attempt)?;
        for (key, value) in facts {
            transaction
                .prepare_cached("INSERT OR REPLACE INTO facts (key, value) VALUES (?1, ?2)")
                .and_then(|mut insert| insert.execute([key.as_str(), value]))
                .map_err(&attempt)?;
        }
        transaction.commit().map_err(&attempt)
    }

    /// The text under a key.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn fact(&self, key: &str) -> Result<Option<String>, HistoryError> {
        self.connection
            .prepare_cached("SELECT value FROM facts WHERE key = ?1")
            .and_then(|mut query| query.query_row([key], |row| row.get(0)).optional())
            .map_err(self.attempt("read a fact"))
    }
}

/// Writes one moment; names that are not among `ids` are added, and given to `fresh` with their numbers.
pub(crate) fn append_tick(
    connection: &Connection,
    ids: &HashMap<String, u64>,
    fresh: &mut Vec<(String, u64)>,
    at: u64,
    samples: &[TargetSample],
) -> rusqlite::Result<()> {
    let mut encoded = Vec::with_capacity(samples.len());
    for sample in samples {
        let added = || fresh.iter().find(|(name, _)| *name == sample.target).map(|(_, id)| *id);
        let id = match ids.get(&sample.target).copied().or_else(added) {
            Some(id) => id,
            None => {
                connection.execute("INSERT INTO targets (name) VALUES (?1)", [&sample.target])?;
                let id = connection.last_insert_rowid() as u64;
                fresh.push((sample.target.clone(), id));
                id
            }
        };
        encoded.push((id, sample.life, sample.values));
    }
    connection
        .prepare_cached("INSERT OR REPLACE INTO ticks (at, data) VALUES (?1, ?2)")?
        .execute(params![at, encode_tick(&encoded)])?;
    Ok(())
}

/// Writes what happened.
pub(crate) fn note_event(connection: &Connection, event: &Event) -> rusqlite::Result<()> {
    connection
        .prepare_cached("INSERT INTO events (at, target, kind, text) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![event.at, event.target, event.kind, event.text])?;
    Ok(())
}

/// Forgets the targets of which no row is left, and what was kept of their lives; gives their names.
fn forget_targets(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut recent = Vec::new();
    let mut query = connection.prepare_cached("SELECT data FROM ticks")?;
    let mut found = query.query([])?;
    while let Some(tick) = found.next()? {
        let data: Vec<u8> = tick.get(0)?;
        recent.extend(decode_tick(&data).into_iter().map(|(target, ..)| target));
    }
    let gone: Vec<(u64, String)> = connection
        .prepare_cached("SELECT id, name FROM targets WHERE id NOT IN (SELECT target FROM chunks)")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    let gone = gone.into_iter().filter(|(id, _)| !recent.contains(id));
    let mut names = Vec::new();
    for (id, name) in gone {
        connection.prepare_cached("DELETE FROM targets WHERE id = ?1")?.execute([id])?;
        connection.prepare_cached("DELETE FROM facts WHERE key = ?1")?.execute([format!("life {name}")])?;
        names.push(name);
    }
    Ok(names)
}

/// Adds rows to the chunks that they belong to.
fn append(connection: &Connection, target: u64, scale: Scale, rows: &[Row]) -> rusqlite::Result<()> {
    for rows in rows.chunk_by(|a, b| a.at / scale.chunk_seconds() == b.at / scale.chunk_seconds()) {
        let start = rows[0].at / scale.chunk_seconds() * scale.chunk_seconds();
        let known: Option<Vec<u8>> = connection
            .prepare_cached("SELECT data FROM chunks WHERE target = ?1 AND scale = ?2 AND start = ?3")?
            .query_row(params![target, scale.number(), start], |row| row.get(0))
            .optional()?;
        let mut all = known.map(|data| decode(start, &data)).unwrap_or_default();
        all.extend_from_slice(rows);
        connection
            .prepare_cached("INSERT OR REPLACE INTO chunks (target, scale, start, data) VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![target, scale.number(), start, encode(start, &all)])?;
    }
    Ok(())
}
