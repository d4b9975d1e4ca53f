//! What can go wrong before and while a target runs.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why the tool cannot do its work. Each message is one sentence, with the next step.
#[derive(Debug)]
pub enum Error {
    /// The program cannot be traced; the text says which, why and what to do.
    Refused(String),
    /// The injected library could not be put anywhere; what each place answered.
    NoPlace(Vec<(PathBuf, String)>),
    /// The program passed all checks and could not be started.
    Start {
        /// The program's path.
        program: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel refused something that the launcher needs itself.
    System {
        /// What was tried, such as `create a memfd`.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// No snapshot; the text says why and what to do.
    Snapshot(String),
}

impl Error {
    /// For `map_err`: the kernel refused `what`.
    pub(crate) fn system<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::System { what, source: source.into() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(text) | Self::Snapshot(text) => f.write_str(text),
            Self::NoPlace(places) => {
                f.write_str("no directory can hold the injected library; set LEAKSCOPE_CACHE_DIR to a directory of yours on a file system that is not mounted noexec")?;
                for (place, reason) in places {
                    write!(f, "\n  {}: {reason}", place.display())?;
                }
                Ok(())
            }
            Self::Start { program, source } => write!(f, "{}: cannot start it: {source}", program.display()),
            Self::System { what, source } => write!(f, "cannot {what}: {source}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Start { source, .. } | Self::System { source, .. } => Some(source),
            _ => None,
        }
    }
}
