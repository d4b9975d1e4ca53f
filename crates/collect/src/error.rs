//! What can go wrong between an agent and a collector.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use leakscope_alerts::AlertError;
use leakscope_board::{PageError, Refused};
use leakscope_history::HistoryError;

/// What can go wrong between an agent and a collector.
#[derive(Debug)]
pub enum CollectError {
    /// Listening there is not safe.
    Refused {
        /// Where.
        listen: SocketAddr,
        /// Why not.
        reason: Refused,
    },
    /// The address cannot be had.
    Listen {
        /// Where.
        listen: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// A file or folder cannot be used.
    File {
        /// Which.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why not.
        reason: String,
    },
    /// What was sent makes no sense.
    Malformed {
        /// What, and what was expected.
        reason: String,
    },
    /// A stretch begins behind the position that is there.
    Hole {
        /// The position that is there.
        position: u64,
    },
    /// A history.
    History(HistoryError),
    /// The token.
    Token(AlertError),
    /// The collector does not take it now.
    Answer {
        /// The collector's address, without what may be secret.
        url: String,
        /// What it said.
        status: u16,
        /// In its words.
        words: String,
        /// When to come back, if it said so, seconds.
        after_seconds: Option<u64>,
    },
    /// The collector cannot be reached.
    Unreachable {
        /// The collector's address, without what may be secret.
        url: String,
        /// Why not.
        reason: String,
    },
}

impl CollectError {
    /// Of a certificate or its key.
    pub(crate) fn certificate(error: PageError) -> Self {
        let (path, reason) = match error {
            PageError::Certificate { path, reason } => (path, reason),
            other => (PathBuf::new(), other.to_string()),
        };
        Self::File { path, what: "use it as PEM file of a certificate or its key", reason }
    }
}

impl fmt::Display for CollectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { listen, reason } => write!(f, "collector {listen}: {}", reason.words()),
            Self::Listen { listen, source } => {
                write!(f, "collector {listen}: cannot listen there: {source}; name another port with `listen`")
            }
            Self::File { path, what, reason } => write!(f, "{}: cannot {what}: {reason}", path.display()),
            Self::Malformed { reason } => write!(f, "what was sent makes no sense: {reason}"),
            Self::Hole { position } => {
                write!(f, "what was sent begins behind position {position}, where this stream has got to")
            }
            Self::History(error) => error.fmt(f),
            Self::Token(error) => error.fmt(f),
            Self::Answer { url, status, words, .. } => write!(f, "collector {url}: it answered {status}: {words}"),
            Self::Unreachable { url, reason } => {
                write!(f, "collector {url}: {reason}; what is new waits in the history and is sent later")
            }
        }
    }
}

impl std::error::Error for CollectError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Listen { source, .. } => Some(source),
            Self::History(error) => error.source(),
            Self::Token(error) => error.source(),
            _ => None,
        }
    }
}

impl From<HistoryError> for CollectError {
    fn from(error: HistoryError) -> Self {
        Self::History(error)
    }
}

impl From<AlertError> for CollectError {
    fn from(error: AlertError) -> Self {
        Self::Token(error)
    }
}
