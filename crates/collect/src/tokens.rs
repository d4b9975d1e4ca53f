//! Whose token it is. A folder holds a file for each machine: its name is the machine's, its first line the token.
//!
//! Tokens are kept as digests, and every digest is compared, each in constant time: how long an answer takes tells nothing of
//! a token or of who is known. The folder is read again when it is older than a minute, or at an unknown token at most
//! once in five seconds, so that machines come and go without a restart.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use leakscope_alerts::Secret;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::error::CollectError;

const RENEWED: Duration = Duration::from_secs(60);
const RENEWED_FOR_STRANGERS: Duration = Duration::from_secs(5);
/// A shorter token can be guessed.
const SHORTEST: usize = 16;
/// Longest name of a machine.
const LONGEST_NAME: usize = 64;

type Known = HashMap<String, [u8; 32]>;

/// The tokens of a folder.
#[derive(Debug)]
pub struct Tokens {
    folder: PathBuf,
    known: Mutex<(Instant, Arc<Known>)>,
}

impl Tokens {
    /// Reads a folder; the second value names the files that are no tokens.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn read(folder: &Path) -> Result<(Self, Vec<String>), CollectError> {
        let (known, complaints) = read_all(folder)?;
        let known = Mutex::new((Instant::now(), Arc::new(known)));
        Ok((Self { folder: folder.to_owned(), known }, complaints))
    }

    /// How many machines are known.
    pub fn len(&self) -> usize {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).1.len()
    }

    /// Whether no machine is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The machine of a token.
    pub fn machine(&self, token: &str) -> Option<String> {
        let given: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let found = find(&self.newest(RENEWED), &given);
        found.or_else(|| find(&self.newest(RENEWED_FOR_STRANGERS), &given))
    }

    /// What the folder holds, not older than this.
    fn newest(&self, age: Duration) -> Arc<Known> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.0.elapsed() >= age {
            // A folder that cannot be read for a moment does not shut everybody out.
            if let Ok((read, _)) = read_all(&self.folder) {
                known.1 = Arc::new(read);
            }
            known.0 = Instant::now();
        }
        Arc::clone(&known.1)
    }
}

/// Compares with all of them, whatever is found.
fn find(known: &Known, given: &[u8; 32]) -> Option<String> {
    let mut machine = None;
    for (name, digest) in known {
        if bool::from(digest.ct_eq(given)) {
            machine = Some(name.clone());
        }
    }
    machine
}

fn read_all(folder: &Path) -> Result<(Known, Vec<String>), CollectError> {
    let failed = |source: std::io::Error| CollectError::File {
        path: folder.to_owned(),
        what: "read the folder of tokens",
        reason: source.to_string(),
    };
    let (mut known, mut complaints) = (Known::new(), Vec::new());
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if !path.is_file() {
            continue;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match token(&path, &name) {
            Ok(token) => {
                let digest = Sha256::digest(token.as_bytes()).into();
                match find(&known, &digest) {
                    Some(other) => complaints.push(format!(
                        "{}: the token of `{other}`, too; each machine needs its own; `{name}` is left out",
                        path.display()
                    )),
                    None => _ = known.insert(name, digest),
                }
            }
            Err(reason) => complaints.push(format!("{}: {reason}; it is left out", path.display())),
        }
    }
    Ok((known, complaints))
}

fn token(path: &Path, name: &str) -> Result<String, String> {
    if !is_machine_name(name) {
        return Err(
            "no machine's name: expected letters, digits, `.`, `-` and `_`, at most 64, no point first".to_owned()
        );
    }
    let token = Secret::File(path.to_owned()).read().map_err(|error| error.to_string())?;
    if token.len() < SHORTEST {
        return Err(format!("the token is shorter than {SHORTEST} characters; `openssl rand -hex 32` makes one"));
    }
    Ok(token)
}

/// Whether a text can name a machine, and so its folder.
pub fn is_machine_name(name: &str) -> bool {
    let is_fit = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    (1..=LONGEST_NAME).contains(&name.len()) && name.bytes().all(is_fit) && !name.starts_with('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_of_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("web1", "0123456789abcdef-web1\nmore\n");
        write("web2", "0123456789abcdef-web2");
        write("web3", "0123456789abcdef-web2\n");
        write("short", "abc\n");
        write(".hidden", "0123456789abcdef-hidden");
        write("sp ace", "0123456789abcdef-space");
        let (tokens, complaints) = Tokens::read(folder.path()).unwrap();
        assert_eq!((tokens.len(), complaints.len()), (2, 4), "{complaints:?}");
        assert!(complaints.iter().all(|line| !line.contains("0123456789")), "{complaints:?}");
        assert_eq!(tokens.machine("0123456789abcdef-web1").as_deref(), Some("web1"));
        // One of the two files that hold it.
        assert!(tokens.machine("0123456789abcdef-web2").is_some());
        for stranger in ["", "0123456789abcdef", "abc", "0123456789abcdef-hidden", "0123456789abcdef-web1\n"] {
            assert_eq!(tokens.machine(stranger), None, "{stranger:?}");
        }
        assert!(Tokens::read(&folder.path().join("none")).is_err());
    }

    #[test]
    fn names_that_are_folders_of_their_own() {
        for name in ["a", "web-1.example.org", "A_9"] {
            assert!(is_machine_name(name), "{name}");
        }
        for name in ["", ".", "..", "a/b", "a b", "\u{e4}", "a\0", &"x".repeat(65)] {
            assert!(!is_machine_name(name), "{name}");
        }
    }
}
