//! What each site of a target had at certain moments: profiles, so that two times can be compared.
//!
//! A profile is a list of fingerprints with bytes and blocks; the stack of each is kept once. The older profiles are, the
//! further they lie apart.
//!
//! ```text
//!  profile := site*       site := length of the fingerprint, its bytes, bytes, blocks (variable-length numbers)
//! ```

use rusqlite::{Connection, OptionalExtension, params};

use crate::codec::{put, take};
use crate::error::HistoryError;
use crate::store::History;

const DAY: u64 = 86_400;
/// How long all are kept, then one an hour, then one a day; seconds.
const ALL_SECONDS: u64 = DAY;
const HOURLY_SECONDS: u64 = 8 * DAY;
const DAILY_SECONDS: u64 = 400 * DAY;
/// Most stacks that are kept; those seen longest ago give way.
const MOST_STACKS: u32 = 50_000;
/// Longest fingerprint that is read, bytes.
const LONGEST: u64 = 256;

pub(crate) const TABLE: &str = "
CREATE TABLE IF NOT EXISTS profiles (
    target TEXT NOT NULL, source TEXT NOT NULL, at INTEGER NOT NULL, data BLOB NOT NULL,
    PRIMARY KEY (target, source, at)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS stacks (
    target TEXT NOT NULL, fingerprint TEXT NOT NULL, stack TEXT NOT NULL, last_at INTEGER NOT NULL,
    PRIMARY KEY (target, fingerprint)) WITHOUT ROWID;
";

/// What a site had at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// The identity of its finding.
    pub fingerprint: String,
    /// Its frames, innermost first; empty when it is not known, or known from before.
    pub stack: Vec<String>,
    /// Bytes.
    pub bytes: u64,
    /// Blocks.
    pub blocks: u64,
}

/// When there is a profile of a target, and by what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moment {
    /// What took it: as of findings.
    pub source: String,
    /// Seconds since the epoch.
    pub at: u64,
}

impl History {
    /// Keeps a profile of a target, and the stacks of its sites, all or nothing.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn note_profile(&mut self, target: &str, source: &str, at: u64, sites: &[Site]) -> Result<(), HistoryError> {
        let attempt = self.attempt("write a profile");
        let transaction = self.connection.transaction().map_err(&attempt)?;
        transaction
            .prepare_cached("INSERT OR REPLACE INTO profiles (target, source, at, data) VALUES (?1, ?2, ?3, ?4)")
            .and_then(|mut insert| insert.execute(params![target, source, at, encode(sites)]))
            .map_err(&attempt)?;
        for site in sites.iter().filter(|site| !site.stack.is_empty()) {
            transaction
                .prepare_cached(
                    "INSERT OR REPLACE INTO stacks (target, fingerprint, stack, last_at) VALUES (?1, ?2, ?3, ?4)",
                )
                .and_then(|mut insert| insert.execute(params![target, site.fingerprint, site.stack.join("\n"), at]))
                .map_err(&attempt)?;
        }
        transaction.commit().map_err(&attempt)
    }

    /// The moments of which there are profiles of a target, oldest first.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn profiles(&self, target: &str) -> Result<Vec<Moment>, HistoryError> {
        let attempt = self.attempt("read its profiles");
        let mut query = self
            .connection
            .prepare_cached("SELECT source, at FROM profiles WHERE target = ?1 ORDER BY at, source")
            .map_err(&attempt)?;
        let rows = query.query_map([target], |row| Ok(Moment { source: row.get(0)?, at: row.get(1)? }));
        rows.and_then(Iterator::collect).map_err(&attempt)
    }

    /// A profile; the newest one that is not younger than `at`, or the oldest one. `None` when there is none at all.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn profile(&self, target: &str, source: &str, at: u64) -> Result<Option<(u64, Vec<Site>)>, HistoryError> {
        let attempt = self.attempt("read a profile");
        let mut query = self
            .connection
            .prepare_cached(
                "SELECT at, data FROM profiles WHERE target = ?1 AND source = ?2
                 ORDER BY at > ?3, abs(at - ?3) LIMIT 1",
            )
            .map_err(&attempt)?;
        let mut found = query.query(params![target, source, at.min(i64::MAX as u64)]).map_err(&attempt)?;
        let Some(row) = found.next().map_err(&attempt)? else { return Ok(None) };
        let (at, data): (u64, Vec<u8>) = (row.get(0).map_err(&attempt)?, row.get(1).map_err(&attempt)?);
        let mut sites = decode(&data);
        let mut stacks = self
            .connection
            .prepare_cached("SELECT stack FROM stacks WHERE target = ?1 AND fingerprint = ?2")
            .map_err(&attempt)?;
        for site in &mut sites {
            let stack: Option<String> =
                stacks.query_row([target, &site.fingerprint], |row| row.get(0)).optional().map_err(&attempt)?;
            site.stack = stack.unwrap_or_default().lines().map(str::to_owned).collect();
        }
        Ok(Some((at, sites)))
    }
}

/// Drops what lies too close together for its age, and what is too old.
pub(crate) fn thin(connection: &Connection, now: u64) -> rusqlite::Result<()> {
    let oldest = now.saturating_sub(DAILY_SECONDS);
    connection.execute("DELETE FROM profiles WHERE at < ?1", [oldest])?;
    connection.execute("DELETE FROM stacks WHERE last_at < ?1", [oldest])?;
    connection.execute(
        "DELETE FROM stacks WHERE (target, fingerprint) IN
         (SELECT target, fingerprint FROM stacks ORDER BY last_at DESC LIMIT -1 OFFSET ?1)",
        [MOST_STACKS],
    )?;
    for (age, span) in [(ALL_SECONDS, 3600), (HOURLY_SECONDS, DAY)] {
        // Of each span the first stays.
        connection.execute(
            "DELETE FROM profiles WHERE at < ?1 AND EXISTS (SELECT 1 FROM profiles AS other
             WHERE other.target = profiles.target AND other.source = profiles.source
             AND other.at < profiles.at AND other.at >= profiles.at / ?2 * ?2)",
            params![now.saturating_sub(age), span],
        )?;
    }
    Ok(())
}

fn encode(sites: &[Site]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(sites.len() * 24);
    for site in sites {
        put(&mut bytes, site.fingerprint.len() as u64);
        bytes.extend_from_slice(site.fingerprint.as_bytes());
        put(&mut bytes, site.bytes);
        put(&mut bytes, site.blocks);
    }
    bytes
}

/// The sites of a profile; bytes that make no sense end it there.
fn decode(mut bytes: &[u8]) -> Vec<Site> {
    let mut sites = Vec::new();
    while let Some(site) = decode_site(&mut bytes) {
        sites.push(site);
    }
    sites
}

fn decode_site(bytes: &mut &[u8]) -> Option<Site> {
    let length = take(bytes).filter(|&length| length <= LONGEST)? as usize;
    let (fingerprint, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    let fingerprint = std::str::from_utf8(fingerprint).ok()?.to_owned();
    Some(Site { fingerprint, stack: Vec::new(), bytes: take(bytes)?, blocks: take(bytes)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(number: u64) -> Site {
        let fingerprint = format!("{number:016x}");
        Site { fingerprint, stack: Vec::new(), bytes: number << (number % 40), blocks: number }
    }

    #[test]
    fn profiles_come_back_and_nonsense_ends_one() {
        let sites: Vec<Site> = (0..200).map(site).collect();
        let bytes = encode(&sites);
        assert_eq!(decode(&bytes), sites);
        for length in 0..bytes.len() {
            let found = decode(&bytes[..length]);
            assert!(sites.starts_with(&found), "{length}");
        }
        assert_eq!(decode(&[0xff; 40]), []);
        assert_eq!(decode(&[2, 0xff, 0xfe, 1, 1]), []);
    }

    #[test]
    fn stacks_are_kept_once_and_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let (mut history, _) = History::open(&folder.path().join("h")).unwrap();
        let named = |bytes| Site { stack: vec!["malloc".into(), "f (x.c:3)".into()], bytes, ..site(7) };
        history.note_profile("t", "ledger", 100, &[named(5)]).unwrap();
        // A later profile that does not know the stack leaves it.
        history.note_profile("t", "ledger", 200, &[Site { bytes: 9, ..site(7) }, site(8)]).unwrap();
        assert_eq!(history.profile("t", "ledger", 200).unwrap(), Some((200, vec![named(9), site(8)])));
        assert_eq!(history.profile("t", "ledger", 199).unwrap(), Some((100, vec![named(5)])));
        assert_eq!(history.profile("u", "ledger", 199).unwrap(), None);
    }

    /// Against what the words say: all of a day, one an hour of a week more, one a day before that.
    #[test]
    fn older_profiles_lie_further_apart() {
        let folder = tempfile::tempdir().unwrap();
        let (mut history, _) = History::open(&folder.path().join("h")).unwrap();
        let start = 1_700_000_000 / DAY * DAY;
        let now = start + 20 * DAY;
        let mut expected = Vec::new();
        for at in (start..now).step_by(900) {
            history.note_profile("t", "ledger", at, &[site(at)]).unwrap();
            let is_kept = match now - at {
                age if age <= ALL_SECONDS => true,
                age if age <= HOURLY_SECONDS => at.is_multiple_of(3600),
                _ => at.is_multiple_of(DAY),
            };
            expected.extend(is_kept.then_some(at));
        }
        // Another source and another target are none of its business.
        history.note_profile("t", "leak check", start + 900, &[]).unwrap();
        history.note_profile("u", "ledger", start + 900, &[]).unwrap();
        thin(&history.connection, now).unwrap();
        thin(&history.connection, now).unwrap();
        let moments = history.profiles("t").unwrap();
        let kept: Vec<u64> = moments.iter().filter(|one| one.source == "ledger").map(|one| one.at).collect();
        assert_eq!(kept, expected);
        assert_eq!((moments.len() - kept.len(), history.profiles("u").unwrap().len()), (1, 1));
        let found = |at: u64| history.profile("t", "ledger", at).unwrap().unwrap();
        assert_eq!(found(start + DAY + 77), (start + DAY, vec![site(start + DAY)]));
        assert_eq!(found(5).0, start, "before the first: the first");
        assert_eq!(found(u64::MAX).0, now - 900);
        assert_eq!(history.profile("t", "kmemleak", now).unwrap(), None);
        thin(&history.connection, now + DAILY_SECONDS).unwrap();
        assert_eq!(history.profiles("t").unwrap(), []);
    }
}
