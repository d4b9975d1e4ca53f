//! Compilers, and tools that call compilers, with the checks and our run-time library.
//!
//! Programs are linked against the compiler's own library, where there is one, and find ours by their run path: where our
//! folder has gone, the compiler's still serves programs of gcc's. Where clang has none, ours is linked.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use leakscope_launch::asan::{SONAMES, unpack};

/// A language's compiler.
pub struct Language {
    /// The variable that names it.
    variable: &'static str,
    /// The same, from a `make` of ours to the compilers that it calls: there the usual one says that we are it.
    own_variable: &'static str,
    /// The variable of its flags.
    flags: &'static str,
    /// Our subcommand for it.
    word: &'static str,
    /// Compilers to look for.
    names: &'static [&'static str],
}

/// C.
pub const C: Language = Language {
    variable: "CC",
    own_variable: "LEAKSCOPE_ASAN_CC",
    flags: "CFLAGS",
    word: "cc",
    names: &["clang-19", "clang", "gcc", "cc"],
};

/// C++.
pub const CXX: Language = Language {
    variable: "CXX",
    own_variable: "LEAKSCOPE_ASAN_CXX",
    flags: "CXXFLAGS",
    word: "c++",
    names: &["clang++-19", "clang++", "g++", "c++"],
};

/// Options of both compilers; what the user says comes behind them.
const CHECKS: [&str; 3] = ["-g", "-fno-omit-frame-pointer", "-fsanitize=address"];
/// Options with which nothing is linked.
const COMPILE_ONLY: [&str; 6] = ["-c", "-S", "-E", "-M", "-MM", "-fsyntax-only"];

/// A compiler, as somebody named it or as it is installed.
struct Compiler {
    /// The program and the options that were named with it.
    words: Vec<OsString>,
    is_clang: bool,
}

impl Compiler {
    fn find(language: &Language) -> Result<Self> {
        let named = [language.own_variable, language.variable].iter().find_map(|variable| words_of(variable));
        let words = match named {
            Some(words) => words,
            None => vec![first_installed(language.names).with_context(|| {
                format!(
                    "none of {} is installed; next: install one, or name it by {}",
                    language.names.join(", "),
                    language.variable
                )
            })?],
        };
        let version = Command::new(&words[0]).args(&words[1..]).arg("--version").output();
        let version = version.with_context(|| {
            format!("{}: cannot start the compiler; next: name another by {}", shown(&words), language.variable)
        })?;
        Ok(Self { is_clang: String::from_utf8_lossy(&version.stdout).contains("clang"), words })
    }

    /// Options for compiling; clang's is for linking, and not minded without.
    fn checks(&self) -> Vec<OsString> {
        let mut options: Vec<OsString> = CHECKS.iter().map(OsString::from).collect();
        if self.is_clang {
            options.push("-shared-libasan".into());
        }
        options
    }

    /// Options for linking, besides: where programs find our library.
    fn run_path(&self, folder: &Path) -> Vec<OsString> {
        let mut options: Vec<OsString> =
            ["-Xlinker".into(), "-rpath".into(), "-Xlinker".into(), folder.as_os_str().to_owned()].into();
        if self.is_clang && !self.has_own_library() {
            options.extend(["-fno-sanitize-link-runtime".into(), folder.join(SONAMES[0]).into_os_string()]);
        }
        options
    }

    fn has_own_library(&self) -> bool {
        SONAMES[..2].iter().any(|name| {
            let mut ask = Command::new(&self.words[0]);
            // It answers with a path when the file is there, and with the name alone otherwise.
            let answer = ask.args(&self.words[1..]).arg(format!("-print-file-name={name}")).output();
            answer.is_ok_and(|answer| answer.stdout.starts_with(b"/"))
        })
    }
}

/// The words of a variable that does not name us.
fn words_of(variable: &str) -> Option<Vec<OsString>> {
    let value = env::var_os(variable)?;
    // Words are separated by spaces, as make and cmake have it; a path with spaces cannot be said so.
    let text = value
        .to_str()
        .map_or_else(|| vec![value.clone()], |text| text.split_whitespace().map(OsString::from).collect());
    let first = Path::new(text.first()?).file_name()?.to_owned();
    (first != "leakscope").then_some(text)
}

fn first_installed(names: &[&str]) -> Option<OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    let is_there = |name: &&&str| env::split_paths(&path).any(|folder| folder.join(name).is_file());
    names.iter().find(is_there).map(OsString::from)
}

fn shown(words: &[OsString]) -> String {
    words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Whether a compiler that gets these words calls the linker: there is a file, and nothing says not to.
fn links(words: &[OsString]) -> bool {
    let is_file = |word: &OsString| !word.to_string_lossy().starts_with('-') || word == "-";
    words.iter().any(is_file) && !words.iter().any(|word| COMPILE_ONLY.iter().any(|option| word == option))
}

/// Calls the compiler in our place.
///
/// # Errors
/// There is none, or it cannot be started.
pub fn compile(language: &Language, words: &[OsString]) -> Result<ExitCode> {
    let folder = unpack()?.folder;
    let compiler = Compiler::find(language)?;
    let mut command = Command::new(&compiler.words[0]);
    command.args(&compiler.words[1..]).args(compiler.checks()).args(words);
    if links(words) {
        command.args(compiler.run_path(&folder));
    }
    Err(command.exec()).with_context(|| format!("start {}", shown(&compiler.words)))
}

/// Calls make with us as the compilers, which also makefiles that set CFLAGS or CC themselves cannot undo.
///
/// # Errors
/// make is not there, or no compiler is.
pub fn make(words: &[OsString]) -> Result<ExitCode> {
    unpack()?;
    let own = env::current_exe().context("find our own path")?;
    if own.to_str().is_none_or(|path| path.contains(char::is_whitespace)) {
        bail!("{}: make cannot call a compiler in a folder with a space in its name; next: move it", own.display());
    }
    let mut command = Command::new("make");
    for language in [&C, &CXX] {
        // A program without C++ needs no compiler of it.
        if let Ok(compiler) = Compiler::find(language) {
            command.env(language.own_variable, shown(&compiler.words));
            command.arg(format!("{}={} asan {}", language.variable, own.display(), language.word));
        }
    }
    Err(command.args(words).exec()).context("start make")
}

/// The variables by which build tools are told of compilers and flags, with ours in front of the user's flags.
fn environment(command: &mut Command) -> Result<()> {
    let folder = unpack()?.folder;
    let join = |front: Vec<OsString>, variable: &str| {
        let given = env::var_os(variable);
        front.into_iter().chain(given).collect::<Vec<_>>().join(OsStr::new(" "))
    };
    let compilers: Vec<_> =
        [&C, &CXX].into_iter().filter_map(|language| Some((language, Compiler::find(language).ok()?))).collect();
    let Some((_, first)) = compilers.first() else { bail!("no compiler is installed; next: name one by CC") };
    for (language, compiler) in &compilers {
        command
            .env(language.variable, shown(&compiler.words))
            .env(language.flags, join(compiler.checks(), language.flags));
    }
    let linker: Vec<OsString> = first.checks().into_iter().chain(first.run_path(&folder)).collect();
    command.env("LDFLAGS", join(linker, "LDFLAGS"));
    Ok(())
}

/// Runs a build tool that takes compilers and flags from the environment.
///
/// # Errors
/// It cannot be started.
pub fn with_environment(words: &[OsString]) -> Result<ExitCode> {
    let Some((tool, arguments)) = words.split_first() else {
        bail!("asan env: no command named; next: leakscope asan env ./configure");
    };
    let mut command = Command::new(tool);
    environment(&mut command)?;
    Err(command.args(arguments).exec()).with_context(|| format!("start {}", tool.to_string_lossy()))
}

/// The same for a tool that runs small programs to find out about the machine: what they leak is nobody's concern.
///
/// # Errors
/// It cannot be started.
pub fn configure(tool: &str, words: &[OsString]) -> Result<ExitCode> {
    let mut command = Command::new(tool);
    environment(&mut command)?;
    let builds = words.iter().any(|word| ["--build", "--install"].iter().any(|option| word == option));
    if !builds {
        let given = env::var("ASAN_OPTIONS").unwrap_or_default();
        command.env("ASAN_OPTIONS", format!("detect_leaks=0:{given}"));
    }
    Err(command.args(words).exec()).with_context(|| format!("start {tool}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compiler_that_is_installed_is_taken() {
        assert_eq!(first_installed(&["leakscope-no-such-compiler"]), None);
        assert_eq!(first_installed(&["leakscope-no-such-compiler", "sh"]), Some(OsString::from("sh")));
    }

    #[test]
    fn what_links_is_told_by_its_words() {
        let table = [
            ("-o test test.c", true),
            ("-c test.c", false),
            ("-E -", false),
            ("--version", false),
            ("-v", false),
            ("-print-prog-name=ld", false),
            ("@words", true),
            ("-shared a.o", true),
        ];
        for (line, expected) in table {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            assert_eq!(links(&words), expected, "{line}");
        }
    }
}
