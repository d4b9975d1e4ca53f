//! Options that come before the command line: from `~/.leakscoperc`, then from `LEAKSCOPE_OPTS`.
//!
//! Valgrind's own `VALGRIND_OPTS` and `.valgrindrc` are left alone: what they hold is for another tool, and a
//! file in the current directory is somebody else's choice.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

/// The variable with default options.
pub const VARIABLE: &str = "LEAKSCOPE_OPTS";
/// The file with default options, in the home directory.
const FILE: &str = ".leakscoperc";

/// Options from one place.
pub struct Defaults {
    /// The place, for messages.
    pub place: String,
    /// The options.
    pub words: Vec<OsString>,
}

/// Reads both places, in the order in which they apply.
pub fn read() -> Result<Vec<Defaults>> {
    let mut all = Vec::new();
    if let Some(path) = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(FILE)) {
        match std::fs::read_to_string(&path) {
            Ok(text) => all.push(Defaults { place: path.display().to_string(), words: words_of_file(&text) }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("{}: cannot read it; make it readable or remove it", path.display()));
            }
        }
    }
    if let Some(value) = std::env::var_os(VARIABLE) {
        let Some(text) = value.to_str() else {
            bail!("{VARIABLE}: it is not UTF-8; write options separated by spaces")
        };
        all.push(Defaults {
            place: VARIABLE.to_owned(),
            words: text.split_ascii_whitespace().map(OsString::from).collect(),
        });
    }
    all.retain(|defaults| !defaults.words.is_empty());
    Ok(all)
}

/// One option per line, so that file names may hold spaces; `#` begins a comment line.
fn words_of_file(text: &str) -> Vec<OsString> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).map(OsString::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_hold_one_option_per_line() {
        let text = "# mine\n\n  --num-callers=30  \n--suppressions=/a b/c.supp\n#--quiet\n";
        assert_eq!(words_of_file(text), ["--num-callers=30", "--suppressions=/a b/c.supp"]);
    }
}
