//! The histories of the collector: a folder for each machine, opened when it is written, a few of them open at a time.
//!
//! Blocking; called from threads that may wait for the disk.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use leakscope_history::{History, HistoryError, Stretch, Taken};

use crate::error::CollectError;
use crate::tokens::is_machine_name;

/// Histories that stay open: each has three descriptors and 2 MB of pages.
const OPEN: usize = 64;
/// Most targets of one machine: whoever makes up names does not fill the disk with them.
const MOST_TARGETS: usize = 50_000;

/// One history, to be written by one at a time.
type Held = Arc<Mutex<Option<History>>>;

/// The folder of all machines.
#[derive(Debug)]
pub(crate) struct Shelf {
    state: PathBuf,
    /// Those used last stand at the end.
    open: Mutex<Vec<(String, Held)>>,
}

/// Where a machine's history lies.
pub fn history_of(state: &Path, machine: &str) -> PathBuf {
    state.join("machines").join(machine).join("history.sqlite")
}

/// The machines that a collector has heard of, in order of their names.
pub fn machines(state: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(state.join("machines")).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> =
        names.filter(|name| is_machine_name(name) && history_of(state, name).exists()).collect();
    names.sort();
    names
}

impl Shelf {
    pub(crate) fn new(state: &Path) -> Self {
        Self { state: state.to_owned(), open: Mutex::default() }
    }

    /// The folder of all of them.
    pub(crate) fn state(&self) -> &Path {
        &self.state
    }

    /// How far a machine's stream has been taken.
    pub(crate) fn position(&self, machine: &str, stream: &str) -> Result<u64, CollectError> {
        let path = history_of(&self.state, machine);
        if !path.exists() {
            return Ok(0);
        }
        match History::open_read_only(&path) {
            // Whoever wrote the first stretch was killed before the file had anything in it.
            Err(HistoryError::Unbegun { .. }) => Ok(0),
            history => Ok(history?.position(stream)?),
        }
    }

    /// Takes a stretch; the second value is what is to be said.
    pub(crate) fn take(
        &self,
        machine: &str,
        stream: &str,
        stretch: &Stretch,
    ) -> Result<(Taken, Option<String>), CollectError> {
        let held = self.held(machine);
        let mut history = held.lock().unwrap_or_else(PoisonError::into_inner);
        let mut said = None;
        if history.is_none() {
            let (opened, words) = self.open(machine)?;
            (*history, said) = (Some(opened), words);
        }
        let Some(history) = history.as_mut() else { return Ok((Taken::default(), said)) };
        let position = history.position(stream)?;
        if stretch.after > position {
            return Err(CollectError::Hole { position });
        }
        if history.target_count() > MOST_TARGETS {
            return Err(CollectError::Malformed { reason: format!("this machine has named {MOST_TARGETS} targets") });
        }
        Ok((history.take_stretch(stream, stretch)?, said))
    }

    fn open(&self, machine: &str) -> Result<(History, Option<String>), CollectError> {
        let path = history_of(&self.state, machine);
        let is_new = !path.exists();
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|source| CollectError::File {
                path: folder.to_owned(),
                what: "make a machine's folder",
                reason: source.to_string(),
            })?;
        }
        let (history, damaged) = History::open(&path)?;
        let said = match damaged {
            Some(aside) => Some(format!("{machine}: its history was damaged; it is {} now", aside.display())),
            None => is_new.then(|| format!("{machine}: heard of for the first time")),
        };
        Ok((history, said))
    }

    /// A machine's place; the one that was used longest ago makes room.
    fn held(&self, machine: &str) -> Held {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = open.iter().position(|(name, _)| name == machine) {
            let entry = open.remove(index);
            open.push(entry);
        } else {
            // Who holds one now goes on with it: its machine has no second request under way.
            if open.len() >= OPEN {
                open.remove(0);
            }
            open.push((machine.to_owned(), Held::default()));
        }
        open.last().map(|(_, held)| Arc::clone(held)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_nobody_got_to_write_has_no_position() {
        let state = tempfile::tempdir().unwrap();
        let path = history_of(state.path(), "m");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, []).unwrap();
        assert_eq!(Shelf::new(state.path()).position("m", "stream").unwrap(), 0);
    }
}
