//! From the file that is to be executed to the ELF program that runs: `#!` lines.

use std::ffi::{CStr, CString};

use super::LoadError;

/// The kernel looks at so much of a `#!` line.
const LINE_BYTES: usize = 256;
/// Scripts whose interpreters are scripts are followed so far.
const DEPTH: usize = 5;

/// What to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The ELF program.
    pub path: CString,
    /// Its arguments, name first.
    pub arguments: Vec<CString>,
}

/// Follows `#!` lines. `head` gives the first bytes of a file.
///
/// # Errors
/// When a file cannot be read, or scripts lead to scripts too often.
pub fn resolve(
    path: &CStr,
    arguments: Vec<CString>,
    mut head: impl FnMut(&CStr) -> Result<Vec<u8>, i32>,
) -> Result<Resolved, LoadError> {
    let mut resolved = Resolved { path: path.to_owned(), arguments };
    for _ in 0..DEPTH {
        let bytes = head(&resolved.path).map_err(|errno| LoadError::File { path: resolved.path.clone(), errno })?;
        let Some(line) = bytes.strip_prefix(b"#!") else { return Ok(resolved) };
        let line = &line[..line.len().min(LINE_BYTES - 2)];
        let line = line.split(|&byte| byte == b'\n').next().unwrap_or_default();
        let line = line.trim_ascii();
        let cut = line.iter().position(|byte| matches!(byte, b' ' | b'\t')).unwrap_or(line.len());
        let (interpreter, argument) = (&line[..cut], line[cut..].trim_ascii());
        let bad = |path: &CStr| LoadError::NotRunnable {
            path: path.to_owned(),
            why: "its #! line names no interpreter; correct the line",
        };
        let script = resolved.path.clone();
        let interpreter = CString::new(interpreter).ok().filter(|name| !name.is_empty()).ok_or_else(|| bad(&script))?;
        let mut arguments = vec![interpreter.clone()];
        if !argument.is_empty() {
            arguments.push(CString::new(argument).map_err(|_| bad(&script))?);
        }
        arguments.push(script);
        arguments.extend(resolved.arguments.into_iter().skip(1));
        resolved = Resolved { path: interpreter, arguments };
    }
    Err(LoadError::NotRunnable {
        path: resolved.path,
        why: "its #! line leads from script to script too often; the kernel gives up after 4",
    })
}

/// What runs a file that is neither an ELF program nor begins with `#!`. Source: execvp(3).
const SHELL: &CStr = c"/bin/sh";

/// As [`resolve`], for a program that a shell would start: text without a `#!` line is the shell's.
///
/// # Errors
/// As there.
pub fn resolve_command(
    path: &CStr,
    arguments: Vec<CString>,
    mut head: impl FnMut(&CStr) -> Result<Vec<u8>, i32>,
) -> Result<Resolved, LoadError> {
    let bytes = head(path).map_err(|errno| LoadError::File { path: path.to_owned(), errno })?;
    if bytes.starts_with(b"\x7fELF") || bytes.starts_with(b"#!") {
        return resolve(path, arguments, head);
    }
    let words = [SHELL.to_owned(), path.to_owned()].into_iter().chain(arguments.into_iter().skip(1)).collect();
    resolve(SHELL, words, head)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(files: &[(&str, &str)], words: &[&str]) -> Result<Vec<String>, LoadError> {
        let c = |text: &str| CString::new(text).unwrap();
        let head = |path: &CStr| {
            let found = files.iter().find(|(name, _)| name.as_bytes() == path.to_bytes());
            found.map(|(_, text)| text.as_bytes().to_vec()).ok_or(libc::ENOENT)
        };
        let resolved = resolve(&c(words[0]), words.iter().map(|word| c(word)).collect(), head)?;
        assert_eq!(resolved.arguments.is_empty(), words.is_empty());
        let all = std::iter::once(resolved.path).chain(resolved.arguments);
        Ok(all.map(|word| word.into_string().unwrap()).collect())
    }

    #[test]
    fn lines_by_table() {
        let elf = ("/bin/x", "\x7fELF");
        for (line, words, expected) in [
            ("#!/bin/x\nrest", &["/s", "a"][..], &["/bin/x", "/bin/x", "/s", "a"][..]),
            ("#! /bin/x  -w -T \n", &["/s"], &["/bin/x", "/bin/x", "-w -T", "/s"]),
            ("#!/bin/x\t-e", &["/s", "b", "c"], &["/bin/x", "/bin/x", "-e", "/s", "b", "c"]),
        ] {
            assert_eq!(run(&[elf, ("/s", line)], words).unwrap(), expected);
        }
        assert_eq!(run(&[elf], &["/bin/x", "1"]).unwrap(), ["/bin/x", "/bin/x", "1"]);
        assert_eq!(run(&[elf, ("/s", "#!/t"), ("/t", "#!/bin/x")], &["/s"]).unwrap(), ["/bin/x", "/bin/x", "/t", "/s"]);
        let head = |path: &CStr| Ok(if path == SHELL { b"\x7fELF".to_vec() } else { b"echo\n".to_vec() });
        let text = resolve_command(c"/t", vec![c"t".to_owned(), c"a".to_owned()], head).unwrap();
        assert_eq!(text.arguments, [c"/bin/sh", c"/t", c"a"].map(CStr::to_owned));
        assert_eq!(text.path.as_c_str(), SHELL);
        assert!(run(&[("/s", "#!/s")], &["/s"]).is_err());
        assert!(run(&[("/s", "#!  \n")], &["/s"]).is_err());
        assert_eq!(run(&[("/s", "#!/gone")], &["/s"]).unwrap_err().errno(), libc::ENOENT);
    }
}
