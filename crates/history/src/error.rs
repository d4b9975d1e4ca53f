//! What can go wrong with the history.

use std::fmt;
use std::path::PathBuf;

/// What can go wrong with the history.
#[derive(Debug)]
pub enum HistoryError {
    /// SQLite refuses something.
    Sqlite {
        /// The file.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// SQLite's reason.
        source: rusqlite::Error,
    },
    /// A newer leakscope wrote the file.
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The one that this build reads.
        known: i64,
    },
    /// Nobody has written to the file yet; or who made it was killed at that moment, and makes it when it comes back.
    Unbegun {
        /// The file.
        path: PathBuf,
    },
}

impl HistoryError {
    /// Whether the disk is full or cannot be written: the next try may succeed, and nothing is damaged.
    pub fn is_full_disk(&self) -> bool {
        use rusqlite::ErrorCode::{DiskFull, ReadOnly, SystemIoFailure};
        matches!(self, Self::Sqlite { source: rusqlite::Error::SqliteFailure(failure, _), .. }
            if matches!(failure.code, DiskFull | ReadOnly | SystemIoFailure))
    }

    /// Whether the file is damaged or is no database.
    pub(crate) fn is_damage(&self) -> bool {
        use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
        matches!(self, Self::Sqlite { source: rusqlite::Error::SqliteFailure(failure, _), .. }
            if matches!(failure.code, DatabaseCorrupt | NotADatabase))
    }
}

impl fmt::Display for HistoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite { path, what, source } => {
                write!(f, "history {}: cannot {what}: {source}", path.display())?;
                if self.is_full_disk() {
                    write!(f, "; make room, or let this user write to its folder")?;
                }
                Ok(())
            }
            Self::Newer { path, found, known } => write!(
                f,
                "history {}: version {found}; this build reads up to {known}; upgrade leakscope, or name another state folder",
                path.display()
            ),
            Self::Unbegun { path } => {
                write!(f, "history {}: nothing has been written yet; start leakscope monitor", path.display())
            }
        }
    }
}

impl std::error::Error for HistoryError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Sqlite { source, .. } => Some(source),
            Self::Newer { .. } | Self::Unbegun { .. } => None,
        }
    }
}
