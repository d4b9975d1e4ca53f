//! What can keep the monitor from working.

use std::fmt;
use std::io;
use std::path::PathBuf;

use leakscope_alerts::AlertError;
use leakscope_board::PageError;
use leakscope_collect::CollectError;
use leakscope_history::HistoryError;

use crate::config::Problem;

/// What can keep the monitor from working.
#[derive(Debug)]
pub enum MonitorError {
    /// The configuration has mistakes.
    Config {
        /// The file.
        path: PathBuf,
        /// All of them, in the order of the file.
        problems: Vec<Problem>,
    },
    /// A file or folder cannot be used.
    File {
        /// Which.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// Another daemon has the state folder.
    Locked {
        /// The folder.
        folder: PathBuf,
    },
    /// The history.
    History(HistoryError),
    /// The queue or a channel.
    Alert(AlertError),
    /// The page.
    Page(PageError),
    /// The collector.
    Collect(CollectError),
}

impl fmt::Display for MonitorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config { path, problems } => {
                for (index, problem) in problems.iter().enumerate() {
                    let end = if index + 1 < problems.len() { "\n" } else { "" };
                    write!(f, "{}:{problem}{end}", path.display())?;
                }
                Ok(())
            }
            Self::File { path, what, source } => write!(f, "{}: cannot {what}: {source}", path.display()),
            Self::Locked { folder } => write!(
                f,
                "{}: another `leakscope monitor` works there; stop it, or name another folder with `state`",
                folder.display()
            ),
            Self::History(error) => error.fmt(f),
            Self::Alert(error) => error.fmt(f),
            Self::Page(error) => error.fmt(f),
            Self::Collect(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for MonitorError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::File { source, .. } => Some(source),
            Self::History(error) => error.source(),
            Self::Alert(error) => error.source(),
            Self::Page(error) => error.source(),
            Self::Collect(error) => error.source(),
            Self::Config { .. } | Self::Locked { .. } => None,
        }
    }
}

impl From<HistoryError> for MonitorError {
    fn from(error: HistoryError) -> Self {
        Self::History(error)
    }
}

impl From<AlertError> for MonitorError {
    fn from(error: AlertError) -> Self {
        Self::Alert(error)
    }
}

impl From<PageError> for MonitorError {
    fn from(error: PageError) -> Self {
        Self::Page(error)
    }
}

impl From<CollectError> for MonitorError {
    fn from(error: CollectError) -> Self {
        Self::Collect(error)
    }
}
