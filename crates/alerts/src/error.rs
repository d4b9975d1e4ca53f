//! What can go wrong on the way of a message.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// What can go wrong on the way of a message.
#[derive(Debug)]
pub enum AlertError {
    /// A password or token is not there.
    Secret {
        /// Where it should be.
        place: String,
        /// Why it is not.
        reason: String,
    },
    /// An address or a web address is wrong.
    Address {
        /// What stands there.
        found: String,
        /// What was expected.
        expected: &'static str,
    },
    /// A server refuses, or does not answer.
    Refused {
        /// Which channel.
        channel: String,
        /// Why; never with a secret in it.
        reason: String,
        /// Whether it is of use to try again.
        temporary: bool,
    },
    /// The queue cannot be written or read.
    Queue {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

impl fmt::Display for AlertError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Secret { place, reason } => write!(f, "secret in {place}: {reason}; put it there"),
            Self::Address { found, expected } => write!(f, "`{found}`: expected {expected}"),
            Self::Refused { channel, reason, temporary } => {
                let next = if *temporary { "it will be tried again" } else { "correct the configuration" };
                write!(f, "{channel}: {reason}; {next}")
            }
            Self::Queue { path, source } => {
                write!(f, "queue {}: {source}; make room, or let this user write there", path.display())
            }
        }
    }
}

impl std::error::Error for AlertError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Queue { source, .. } => Some(source),
            _ => None,
        }
    }
}
