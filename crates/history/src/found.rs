//! Findings by fingerprint: since when each is known, so that a new one is told from an old one.

use rusqlite::{Connection, OptionalExtension, ToSql, params};

use crate::error::HistoryError;
use crate::store::History;

/// How long a finding is remembered after it was seen last, seconds.
const KEPT_SECONDS: u64 = 400 * 86_400;
/// Most findings that are kept; those seen longest ago give way.
const MOST: u32 = 20_000;

pub(crate) const TABLE: &str = "
CREATE TABLE IF NOT EXISTS findings (
    target TEXT NOT NULL, source TEXT NOT NULL, fingerprint TEXT NOT NULL, title TEXT NOT NULL, stack TEXT NOT NULL,
    bytes INTEGER NOT NULL, blocks INTEGER NOT NULL, first_at INTEGER NOT NULL, last_at INTEGER NOT NULL,
    PRIMARY KEY (target, source, fingerprint)) WITHOUT ROWID;
";

/// An allocation site or a leak that was found in a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The target's name.
    pub target: String,
    /// What found it: `ledger`, `leak check`, `kmemleak`, `kernel trace`.
    pub source: String,
    /// Its identity, as in reports.
    pub fingerprint: String,
    /// One line.
    pub title: String,
    /// Its frames, innermost first.
    pub stack: Vec<String>,
    /// Bytes when it was seen last.
    pub bytes: u64,
    /// Blocks when it was seen last.
    pub blocks: u64,
    /// When it was seen first, seconds since the epoch.
    pub first_at: u64,
    /// When it was seen last.
    pub last_at: u64,
}

impl History {
    /// Notes findings, all or none; of those that are known the first time stays.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn note_found(&mut self, found: &[Found]) -> Result<(), HistoryError> {
        let attempt = self.attempt("note findings");
        let transaction = self.connection.transaction().map_err(&attempt)?;
        note(&transaction, found).map_err(&attempt)?;
        transaction.commit().map_err(&attempt)
    }

    /// The findings of a target (of all of them without a name), those seen last first.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn found(&self, target: Option<&str>, most: u32) -> Result<Vec<Found>, HistoryError> {
        self.select_found("?1 IS NULL OR target = ?1", params![target, most])
    }

    /// The findings that were seen last after one time and up to another, those seen last first.
    pub(crate) fn found_between(&self, after: u64, upto: u64, most: u32) -> Result<Vec<Found>, HistoryError> {
        self.select_found("last_at > ?1 AND last_at <= ?3", params![stored(after), most, stored(upto)])
    }

    fn select_found(&self, which: &str, values: &[&dyn ToSql]) -> Result<Vec<Found>, HistoryError> {
        let attempt = self.attempt("read findings");
        let mut query = self
            .connection
            .prepare_cached(&format!(
                "SELECT target, source, fingerprint, title, stack, bytes, blocks, first_at, last_at FROM findings
                 WHERE {which} ORDER BY last_at DESC, bytes DESC LIMIT ?2"
            ))
            .map_err(&attempt)?;
        let rows = query.query_map(values, |row| {
            let stack: String = row.get(4)?;
            Ok(Found {
                target: row.get(0)?,
                source: row.get(1)?,
                fingerprint: row.get(2)?,
                title: row.get(3)?,
                stack: stack.lines().map(str::to_owned).collect(),
                bytes: row.get(5)?,
                blocks: row.get(6)?,
                first_at: row.get(7)?,
                last_at: row.get(8)?,
            })
        });
        rows.and_then(Iterator::collect).map_err(&attempt)
    }

    /// When a fingerprint was seen first in a target, by whatever found it; `None` when it is new.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn first_seen(&self, target: &str, fingerprint: &str) -> Result<Option<u64>, HistoryError> {
        self.connection
            .prepare_cached("SELECT min(first_at) FROM findings WHERE target = ?1 AND fingerprint = ?2")
            .and_then(|mut query| query.query_row([target, fingerprint], |row| row.get(0)).optional())
            .map(Option::flatten)
            .map_err(self.attempt("read a finding"))
    }
}

/// Notes findings; of those that are known the first time stays.
pub(crate) fn note(connection: &Connection, found: &[Found]) -> rusqlite::Result<()> {
    let mut insert = connection.prepare_cached(
        "INSERT INTO findings (target, source, fingerprint, title, stack, bytes, blocks, first_at, last_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
         ON CONFLICT (target, source, fingerprint) DO UPDATE SET title = excluded.title,
         stack = excluded.stack, bytes = excluded.bytes, blocks = excluded.blocks, last_at = excluded.last_at",
    )?;
    for one in found {
        insert.execute(params![
            one.target,
            one.source,
            one.fingerprint,
            one.title,
            one.stack.join("\n"),
            stored(one.bytes),
            stored(one.blocks),
            stored(one.first_at),
            stored(one.last_at)
        ])?;
    }
    Ok(())
}

/// SQLite's integers are signed.
fn stored(value: u64) -> u64 {
    value.min(i64::MAX as u64)
}

/// Forgets what was seen too long ago, and the oldest of too many.
pub(crate) fn forget(connection: &Connection, now: u64) -> rusqlite::Result<()> {
    connection.execute("DELETE FROM findings WHERE last_at < ?1", [now.saturating_sub(KEPT_SECONDS)])?;
    connection.execute(
        "DELETE FROM findings WHERE (target, source, fingerprint) IN
         (SELECT target, source, fingerprint FROM findings ORDER BY last_at DESC LIMIT -1 OFFSET ?1)",
        [MOST],
    )?;
    Ok(())
}
