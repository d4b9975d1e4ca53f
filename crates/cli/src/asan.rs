//! `asan`: compilers with their own instrumentation and our run-time library, and programs that were built so.
//!
//! The library stands in for `libclang_rt.asan-x86_64.so` and `libasan.so.8`: a folder with links of these names goes
//! into the program's run path (`cc`, `c++`) or in front of `LD_LIBRARY_PATH` (`run`).

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::flags::asan::{AsanArgs, AsanCommand};

/// Names that programs ask for: clang's and gcc's.
const SONAMES: [&str; 2] = ["libclang_rt.asan-x86_64.so", "libasan.so.8"];
/// A library to use instead, for work on it.
const OVERRIDE: &str = "LEAKSCOPE_ASAN_SO";
/// The library's file as cargo makes it.
const BUILT: &str = "libleakscope_asan.so";

/// Runs a subcommand.
///
/// # Errors
/// The library is not there, or the compiler or program cannot be started.
pub fn main(args: &AsanArgs) -> Result<ExitCode> {
    match &args.command {
        AsanCommand::Cc(words) => compile(&words.words, "CC", &["clang-19", "clang", "gcc", "cc"]),
        AsanCommand::Cxx(words) => compile(&words.words, "CXX", &["clang++-19", "clang++", "g++", "c++"]),
        AsanCommand::Run(words) => run(&words.words),
    }
}

/// Where the library may be: named, beside the program as packages lay it out, or as cargo builds it.
fn library() -> Result<PathBuf> {
    if let Some(path) = env::var_os(OVERRIDE).map(PathBuf::from) {
        return path.canonicalize().with_context(|| format!("{OVERRIDE} names {}", path.display()));
    }
    let own = env::current_exe()?.canonicalize()?;
    let folder = own.parent().unwrap_or(Path::new("/"));
    let candidates =
        [folder.join("../lib/leakscope").join(BUILT), folder.join("../injected").join(BUILT), folder.join(BUILT)];
    match candidates.iter().find_map(|path| path.canonicalize().ok()) {
        Some(path) => Ok(path),
        None => bail!(
            "the run-time library {BUILT} is not there; looked for {}; next: cargo build --profile injected -p \
             leakscope-asan, or name it by {OVERRIDE}",
            candidates.map(|path| path.display().to_string()).join(", ")
        ),
    }
}

/// A folder in which the library has the names that programs ask for.
fn folder_of_names() -> Result<PathBuf> {
    let library = library()?;
    let folder = library.parent().unwrap_or(Path::new("/")).join("leakscope-asan");
    std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    for name in SONAMES {
        let link = folder.join(name);
        if std::fs::read_link(&link).is_ok_and(|target| target == library) {
            continue;
        }
        // Another version's link; two of us may race to the same one.
        let fresh = folder.join(format!("{name}.{}", std::process::id()));
        symlink(&library, &fresh).with_context(|| format!("make {}", fresh.display()))?;
        std::fs::rename(&fresh, &link).with_context(|| format!("make {}", link.display()))?;
    }
    Ok(folder)
}

/// The compiler: the variable's, or the first of the names that is installed.
fn compiler(variable: &str, names: &[&str]) -> Result<OsString> {
    if let Some(named) = env::var_os(variable).filter(|named| !named.is_empty()) {
        return Ok(named);
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let is_there = |name: &&&str| env::split_paths(&path).any(|folder| folder.join(name).is_file());
    match names.iter().find(is_there) {
        Some(name) => Ok(OsString::from(name)),
        None => bail!("none of {} is installed; next: install one, or name it by {variable}", names.join(", ")),
    }
}

fn is_clang(compiler: &OsStr) -> bool {
    Command::new(compiler)
        .arg("--version")
        .output()
        .is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("clang"))
}

fn compile(words: &[OsString], variable: &str, names: &[&str]) -> Result<ExitCode> {
    let folder = folder_of_names()?;
    let compiler = compiler(variable, names)?;
    let mut command = Command::new(&compiler);
    command.args(["-g", "-fno-omit-frame-pointer", "-fsanitize=address"]);
    if is_clang(&compiler) {
        command.arg("-shared-libasan");
    }
    let only_compiles = words.iter().any(|word| ["-c", "-S", "-E", "-M", "-MM"].iter().any(|option| word == option));
    if !only_compiles {
        let mut run_path = OsString::from("-Wl,-rpath,");
        run_path.push(&folder);
        command.arg(run_path);
    }
    Err(command.args(words).exec()).with_context(|| format!("start {}", compiler.display()))
}

fn run(words: &[OsString]) -> Result<ExitCode> {
    let Some((program, arguments)) = words.split_first() else {
        bail!("asan run: no program named; next: leakscope asan run ./program");
    };
    let folder = folder_of_names()?;
    let path = find_program(program);
    if let Some(false) = asks_for_library(&path) {
        bail!(
            "{}: does not ask for a shared run-time ({}); next: build it with -fsanitize=address, and with clang \
             -shared-libasan, or by `leakscope asan cc`",
            path.display(),
            SONAMES.join(", ")
        );
    }
    let mut paths = folder.into_os_string();
    if let Some(before) = env::var_os("LD_LIBRARY_PATH").filter(|before| !before.is_empty()) {
        paths.push(":");
        paths.push(before);
    }
    let error = Command::new(program).args(arguments).env("LD_LIBRARY_PATH", paths).exec();
    Err(error).with_context(|| format!("start {}", path.display()))
}

/// The file that execvp would start.
fn find_program(program: &OsStr) -> PathBuf {
    let plain = PathBuf::from(program);
    if plain.components().count() > 1 {
        return plain;
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).map(|folder| folder.join(program)).find(|path| path.is_file()).unwrap_or(plain)
}

/// Whether an ELF file names one of the libraries; `None` for what is none (a script).
fn asks_for_library(path: &Path) -> Option<bool> {
    let bytes = std::fs::read(path).ok().filter(|bytes| bytes.starts_with(b"\x7fELF"))?;
    let holds =
        |name: &str| bytes.windows(name.len() + 1).any(|window| window.strip_suffix(b"\0") == Some(name.as_bytes()));
    Some(SONAMES.iter().any(|name| holds(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_program_asks_for_no_sanitizer() {
        // The names stand in this file as text, without an end of their own, so only a dynamic section could match.
        let own = env::current_exe().expect("this program");
        assert!(asks_for_library(&own).is_some());
        assert_eq!(asks_for_library(Path::new("/etc/passwd")), None);
    }

    #[test]
    fn a_compiler_that_is_named_is_taken() {
        assert!(compiler("LEAKSCOPE_TEST_NO_SUCH_VARIABLE", &["leakscope-no-such-compiler"]).is_err());
        assert_eq!(compiler("LEAKSCOPE_TEST_NO_SUCH_VARIABLE", &["sh"]).ok(), Some(OsString::from("sh")));
    }
}
