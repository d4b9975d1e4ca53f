//! Passwords and tokens: from a file or the environment, never shown.

use std::fmt;
use std::path::PathBuf;

use crate::AlertError;

/// Where a password or token stands.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// The first line of a file.
    File(PathBuf),
    /// A variable of the environment.
    Variable(String),
}

impl Secret {
    /// The text, read anew each time, so that it can be renewed while we run.
    ///
    /// # Errors
    /// When it cannot be read, or is empty.
    pub fn read(&self) -> Result<String, AlertError> {
        let (text, place) = match self {
            Self::File(path) => {
                (std::fs::read_to_string(path).map_err(|error| error.to_string()), format!("file {}", path.display()))
            }
            Self::Variable(name) => {
                (std::env::var(name).map_err(|error| error.to_string()), format!("environment variable {name}"))
            }
        };
        let text = text.map_err(|reason| AlertError::Secret { place: place.clone(), reason })?;
        let line = text.lines().next().unwrap_or_default().trim();
        if line.is_empty() {
            return Err(AlertError::Secret { place, reason: "it is empty".to_owned() });
        }
        Ok(line.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "the first line of {}", path.display()),
            Self::Variable(name) => write!(f, "${name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_line_of_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p");
        std::fs::write(&path, " s3cret \nmore\n").unwrap();
        let secret = Secret::File(path.clone());
        assert_eq!(secret.read().unwrap(), "s3cret");
        assert!(!format!("{secret:?}").contains("s3cret"));
        std::fs::write(&path, "\n").unwrap();
        assert!(secret.read().unwrap_err().to_string().contains("empty"));
        assert!(Secret::Variable("LEAKSCOPE_NO_SUCH".into()).read().is_err());
    }
}
