//! Many machines on one page: what a collector knows of each, and where their boards and histories are.

use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;

use crate::view::{Board, Shared, TargetView, Verdict};

/// A machine in the list of all.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MachineView {
    /// Its name, as its token says.
    pub machine: String,
    /// When it was heard of last, seconds since the epoch.
    pub seen: u64,
    /// How often it is to be heard of, seconds; unknown of what has sent no board.
    pub interval_seconds: Option<u64>,
    /// Alarms that are open.
    pub alarms: usize,
    /// Its targets with their verdicts, for search.
    pub targets: Vec<(String, Verdict)>,
    /// The target that is most urgent: what meets its limit first, else what grows, else the largest.
    pub first: Option<TargetView>,
}

impl MachineView {
    /// What is to be told of a board that came at `seen`.
    pub fn of(board: &Board, seen: u64) -> Self {
        let urgency = |target: &TargetView| match target.verdict {
            Verdict::Growing => 2,
            Verdict::Filling => 1,
            Verdict::Stable | Verdict::Learning => 0,
        };
        let left = |target: &TargetView| target.hours_left.unwrap_or(f64::INFINITY);
        let memory = |target: &TargetView| target.memory.unwrap_or(0.0);
        let first = board.targets.iter().min_by(|a, b| {
            let by_verdict = urgency(b).cmp(&urgency(a));
            by_verdict.then(left(a).total_cmp(&left(b))).then(memory(b).total_cmp(&memory(a)))
        });
        Self {
            machine: board.machine.clone(),
            seen,
            interval_seconds: Some(board.interval_seconds),
            alarms: board.alarms.len(),
            targets: board.targets.iter().map(|target| (target.id.clone(), target.verdict)).collect(),
            first: first.cloned(),
        }
    }
}

/// Whoever keeps the boards and histories of many machines. Called from threads that may wait for the disk.
pub trait Machines: Send + Sync {
    /// All of them, in order of their names.
    fn all(&self) -> Vec<MachineView>;
    /// The newest board of a machine that is known.
    fn board(&self, machine: &str) -> Option<Board>;
    /// The history of a machine that is known.
    fn history(&self, machine: &str) -> Option<PathBuf>;
}

/// What a page shows.
#[derive(Clone)]
pub(crate) enum Source {
    /// This machine.
    One { shared: Shared, history: Arc<PathBuf> },
    /// Others.
    Many(Arc<dyn Machines>),
}

impl Source {
    /// The newest board; of many machines, that of the one that is named.
    pub fn board(&self, machine: Option<&str>) -> Option<Arc<Board>> {
        match self {
            Self::One { shared, .. } => Some(shared.newest()),
            Self::Many(machines) => machines.board(machine?).map(Arc::new),
        }
    }

    /// The history likewise.
    pub fn history(&self, machine: Option<&str>) -> Option<PathBuf> {
        match self {
            Self::One { history, .. } => Some(history.as_ref().clone()),
            Self::Many(machines) => machines.history(machine?),
        }
    }
}
