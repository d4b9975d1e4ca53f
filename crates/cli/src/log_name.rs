//! Names of log files with patterns, as Memcheck's `--log-file` has them: `%p`, `%n`, `%q{VAR}`, `%%`.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// A checked pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogName {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(OsString),
    ProcessId,
    Number,
}

/// What is wrong with a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PatternError {
    /// The pattern is empty.
    Empty,
    /// It begins with `~`, which the shell has not replaced.
    Tilde,
    /// `%` and then something else than `p`, `n`, `q{VAR}` or `%`.
    Unknown(String),
    /// `%q` without `{VAR}` behind it.
    NoBraces,
    /// This variable is not set.
    NotSet(String),
}

impl fmt::Display for PatternError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the file name is empty"),
            Self::Tilde => f.write_str("it begins with ~, which the shell did not replace; write $HOME"),
            Self::Unknown(found) => write!(f, "expected %p, %n, %q{{VAR}} or %%, found `{found}`"),
            Self::NoBraces => f.write_str("expected %q{VAR}: the name of an environment variable in braces"),
            Self::NotSet(name) => write!(f, "%q{{{name}}}: the environment variable {name} is not set"),
        }
    }
}

impl std::error::Error for PatternError {}

impl LogName {
    /// Takes the pattern apart; variables are looked up here, once.
    ///
    /// # Errors
    /// For an unknown pattern or an unset variable.
    pub fn parse(pattern: &str, variable: impl Fn(&OsStr) -> Option<OsString>) -> Result<Self, PatternError> {
        if pattern.is_empty() {
            return Err(PatternError::Empty);
        }
        if pattern.starts_with('~') {
            return Err(PatternError::Tilde);
        }
        let mut parts = Vec::new();
        let mut text = OsString::new();
        let mut rest = pattern;
        while let Some(at) = rest.find('%') {
            text.push(&rest[..at]);
            let after = &rest[at + 1..];
            let used = match after.chars().next() {
                Some('%') => {
                    text.push("%");
                    1
                }
                Some('q') => {
                    let inside = after[1..].strip_prefix('{').ok_or(PatternError::NoBraces)?;
                    let end = inside.find('}').ok_or(PatternError::NoBraces)?;
                    let name = &inside[..end];
                    text.push(variable(OsStr::new(name)).ok_or_else(|| PatternError::NotSet(name.to_owned()))?);
                    name.len() + 3
                }
                Some(letter @ ('p' | 'n')) => {
                    parts.push(Part::Text(std::mem::take(&mut text)));
                    parts.push(if letter == 'p' { Part::ProcessId } else { Part::Number });
                    1
                }
                other => {
                    return Err(PatternError::Unknown(format!("%{}", other.map(String::from).unwrap_or_default())));
                }
            };
            rest = &after[used..];
        }
        text.push(rest);
        parts.push(Part::Text(text));
        Ok(Self { parts })
    }

    /// Whether the name depends on the process.
    pub fn depends_on_process(&self) -> bool {
        self.parts.iter().any(|part| !matches!(part, Part::Text(_)))
    }

    /// The name as the injected code takes it, made absolute: `%p` is left to it, other percent signs are doubled, `%n` is
    /// the first number that makes an unused name.
    ///
    /// # Errors
    /// Those of finding the present folder.
    pub fn for_target(&self) -> std::io::Result<Vec<u8>> {
        let counts = self.parts.contains(&Part::Number);
        let pid = std::process::id();
        let number = if counts { (0..).find(|&n| !self.expand(pid, n).exists()).unwrap_or(0) } else { 0 };
        let mut name = Vec::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => doubled(text.as_bytes(), &mut name),
                Part::ProcessId => name.extend_from_slice(b"%p"),
                Part::Number => name.extend_from_slice(number.to_string().as_bytes()),
            }
        }
        if name.first() == Some(&b'/') {
            return Ok(name);
        }
        let mut absolute = Vec::new();
        doubled(std::env::current_dir()?.as_os_str().as_bytes(), &mut absolute);
        absolute.push(b'/');
        absolute.extend_from_slice(&name);
        Ok(absolute)
    }

    /// The name for one process; `number` counts the files of the process from 0.
    pub fn expand(&self, pid: u32, number: u32) -> PathBuf {
        let mut name = OsString::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => name.push(text),
                Part::ProcessId => name.push(pid.to_string()),
                Part::Number => name.push(number.to_string()),
            }
        }
        name.into()
    }
}

fn doubled(text: &[u8], out: &mut Vec<u8>) {
    for &byte in text {
        out.extend_from_slice(if byte == b'%' { b"%%" } else { std::slice::from_ref(&byte) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expand(pattern: &str) -> Result<String, PatternError> {
        let variable = |name: &OsStr| (name == "HOME").then(|| OsString::from("/h%p"));
        LogName::parse(pattern, variable).map(|name| name.expand(42, 3).into_os_string().into_string().unwrap())
    }

    #[test]
    fn patterns_by_table() {
        for (pattern, expected) in [
            ("log", "log"),
            ("log.%p", "log.42"),
            ("%p%p", "4242"),
            ("%q{HOME}/%n.log", "/h%p/3.log"),
            ("100%%", "100%"),
            ("%%p", "%p"),
            ("ä%p", "ä42"),
        ] {
            assert_eq!(expand(pattern).as_deref(), Ok(expected), "{pattern}");
        }
    }

    #[test]
    fn what_the_injected_code_gets() {
        for (pattern, expected) in [("/a/log.%p", "/a/log.%p"), ("/100%%/l", "/100%%/l"), ("/%q{HOME}", "//h%%p")] {
            let variable = |name: &OsStr| (name == "HOME").then(|| OsString::from("/h%p"));
            let name = LogName::parse(pattern, variable).unwrap().for_target().unwrap();
            assert_eq!(String::from_utf8(name).unwrap(), expected, "{pattern}");
        }
        let here = std::env::current_dir().unwrap().join("log");
        assert_eq!(LogName::parse("log", |_| None).unwrap().for_target().unwrap(), here.as_os_str().as_bytes());
    }

    #[test]
    fn mistakes_by_table() {
        for (pattern, expected) in [
            ("", PatternError::Empty),
            ("~/log", PatternError::Tilde),
            ("a%", PatternError::Unknown("%".into())),
            ("a%x", PatternError::Unknown("%x".into())),
            ("%ä", PatternError::Unknown("%ä".into())),
            ("%q", PatternError::NoBraces),
            ("%qHOME", PatternError::NoBraces),
            ("%q{HOME", PatternError::NoBraces),
            ("%q{NOT}", PatternError::NotSet("NOT".into())),
            ("%q{}", PatternError::NotSet("".into())),
        ] {
            assert_eq!(expand(pattern), Err(expected), "{pattern}");
        }
    }
}
