//! The state folder: history, queue, what has been said, captures; and the lock that keeps a second daemon out.

use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use leakscope_alerts::outbox::write_whole;
use leakscope_alerts::{Book, Finding, Outbox};
use leakscope_history::History;
use rustix::fs::{FlockOperation, flock};

use crate::error::MonitorError;

/// Captures that are kept.
const CAPTURES: usize = 20;
/// Cores that are kept.
const CORES: usize = 3;

/// The state folder, ours while this lives.
#[derive(Debug)]
pub struct State {
    folder: PathBuf,
    _lock: File,
}

impl State {
    /// Takes the folder; makes it, for its owner alone, if it is not there.
    ///
    /// # Errors
    /// When it cannot be written, or another daemon has it.
    pub fn take(folder: &Path) -> Result<Self, MonitorError> {
        let failed = |what| move |source| MonitorError::File { path: folder.to_owned(), what, source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed("make the state folder"))?;
        let lock = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(folder.join("lock"))
            .map_err(failed("write in the state folder"))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| MonitorError::Locked { folder: folder.to_owned() })?;
        Ok(Self { folder: folder.to_owned(), _lock: lock })
    }

    /// Where the history is.
    pub fn history_path(folder: &Path) -> PathBuf {
        folder.join("history.sqlite")
    }

    /// The open alarms that a daemon has said, for those who only look.
    pub fn read_open(folder: &Path) -> Vec<Finding> {
        let text = fs::read(folder.join("book.json")).unwrap_or_default();
        let book: Book = serde_json::from_slice(&text).unwrap_or_default();
        book.open().cloned().collect()
    }

    /// The history, for writing; the second value is where a damaged one was put.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn history(&self) -> Result<(History, Option<PathBuf>), MonitorError> {
        Ok(History::open(&Self::history_path(&self.folder))?)
    }

    /// The queue of notices.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn outbox(&self) -> Result<Outbox, MonitorError> {
        Ok(Outbox::open(self.folder.join("queue"))?)
    }

    /// What has been said; a book that cannot be read is begun anew.
    pub fn book(&self) -> Book {
        let text = fs::read(self.folder.join("book.json")).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Keeps what has been said.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep_book(&self, book: &Book) -> Result<(), MonitorError> {
        let path = self.folder.join("book.json");
        let text = serde_json::to_vec(book).unwrap_or_default();
        write_whole(&path, &text).map_err(|source| MonitorError::File { path, what: "keep what has been said", source })
    }

    /// Where a core may be written; the oldest cores make room.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn core_path(&self, at: u64, pid: u32) -> Result<PathBuf, MonitorError> {
        let folder = self.folder.join("cores");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(|source| MonitorError::File {
            path: folder.clone(),
            what: "make the folder for cores",
            source,
        })?;
        forget_oldest(&folder, CORES - 1);
        Ok(folder.join(format!("{at:012}-{pid}.core")))
    }

    /// Keeps a capture, and forgets the oldest.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep_capture(&self, at: u64, text: &str) -> Result<PathBuf, MonitorError> {
        let folder = self.folder.join("captures");
        let path = folder.join(format!("{at:012}.txt"));
        let written = fs::create_dir_all(&folder).and_then(|()| write_whole(&path, text.as_bytes()));
        written.map_err(|source| MonitorError::File { path: path.clone(), what: "write a capture", source })?;
        forget_oldest(&folder, CAPTURES);
        Ok(path)
    }
}

/// Removes files until so many are left; their names begin with their time.
fn forget_oldest(folder: &Path, left: usize) {
    let mut kept: Vec<PathBuf> = fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect();
    kept.sort();
    // What cannot be removed now is removed the next time.
    kept.iter().take(kept.len().saturating_sub(left)).for_each(|path| _ = fs::remove_file(path));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_daemon_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let first = State::take(&folder.path().join("s")).unwrap();
        assert!(matches!(State::take(&folder.path().join("s")), Err(MonitorError::Locked { .. })));
        drop(first);
        assert!(State::take(&folder.path().join("s")).is_ok());
    }

    #[test]
    fn a_folder_that_cannot_be_written() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("file"), "").unwrap();
        let error = State::take(&folder.path().join("file")).unwrap_err().to_string();
        assert!(error.contains("state folder"), "{error}");
    }

    #[test]
    fn a_torn_book_is_begun_anew_and_captures_are_few() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::take(folder.path()).unwrap();
        std::fs::write(folder.path().join("book.json"), "{\"open\":").unwrap();
        assert_eq!(state.book(), Book::default());
        for at in 0..30 {
            state.keep_capture(at, "x").unwrap();
        }
        assert_eq!(std::fs::read_dir(folder.path().join("captures")).unwrap().count(), CAPTURES);
        for at in 0..5 {
            std::fs::write(state.core_path(at, 7).unwrap(), "x").unwrap();
        }
        assert_eq!(std::fs::read_dir(folder.path().join("cores")).unwrap().count(), CORES);
    }
}
