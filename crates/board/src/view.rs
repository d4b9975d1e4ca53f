//! What is shown: one moment of a monitor.

use std::sync::{Arc, PoisonError, RwLock};

use leakscope_alerts::Finding;
use serde::{Deserialize, Serialize};

/// The word for a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Something of it grows.
    Growing,
    /// It grows more and more slowly.
    Filling,
    /// Nothing grows.
    Stable,
    /// Too little is known.
    Learning,
}

/// A part of a target's memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PartView {
    /// One of few words.
    pub part: &'static str,
    /// Bytes.
    pub bytes: f64,
}

/// A target at one moment. Memory is in bytes; `None` is unknown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TargetView {
    /// Its name, fit to be shown.
    pub id: String,
    /// The word for it.
    pub verdict: Verdict,
    /// The same in a sentence: what grows, and how fast.
    pub words: String,
    /// Memory that no file stands behind.
    pub memory: Option<f64>,
    /// Resident memory.
    pub resident: Option<f64>,
    /// Live bytes of the heap, of programs under `leakscope run`.
    pub live_heap: Option<f64>,
    /// Threads.
    pub threads: Option<f64>,
    /// Open descriptors.
    pub descriptors: Option<f64>,
    /// The rate of memory that grows, bytes an hour.
    pub per_hour: Option<f64>,
    /// What memory is made of, where that is known; the page reads it out of the history.
    #[serde(skip)]
    pub parts: Vec<PartView>,
    /// Regions of glibc's arenas of threads.
    #[serde(skip)]
    pub arenas: Option<f64>,
    /// What memory must not reach.
    pub limit: Option<f64>,
    /// Whose limit that is.
    pub limit_of: Option<String>,
    /// Hours until the limit, of memory that grows.
    pub hours_left: Option<f64>,
    /// Since when it grows, seconds since the epoch.
    pub since: Option<u64>,
    /// How often it has been restarted.
    pub restarts: u16,
    /// When it was seen last, seconds since the epoch.
    pub seen: u64,
    /// Memory over the last hours, evenly spaced.
    pub spark: Vec<f64>,
}

/// One moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Board {
    /// When, seconds since the epoch.
    pub at: u64,
    /// The machine.
    pub machine: String,
    /// Seconds between two passes.
    pub interval_seconds: u64,
    /// What this pass took, seconds.
    pub pass_seconds: f64,
    /// Passes since the daemon's start.
    pub passes: u64,
    /// Notices that wait to be delivered.
    pub undelivered: u64,
    /// The targets, in order of their names.
    pub targets: Vec<TargetView>,
    /// The open alarms.
    pub alarms: Vec<Finding>,
}

/// The newest board, for whoever shows it.
#[derive(Clone, Debug, Default)]
pub struct Shared(Arc<RwLock<Arc<Board>>>);

impl Shared {
    /// Replaces the board.
    pub fn publish(&self, board: Board) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(board);
    }

    /// The newest board.
    pub fn newest(&self) -> Arc<Board> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}
