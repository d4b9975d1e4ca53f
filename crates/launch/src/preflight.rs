//! What is looked at before a program is started, so that a wrong one gets a clear sentence.
//!
//! `PATH` is searched as `execvp` does. Sources: execvp(3), execve(2), ld.so(8).

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use leakscope_process::elf::{CLibrary, Class, ElfError, ElfFacts, Linkage, ProgramKind, read_program_kind};
use leakscope_process::privileges::{Raise, read_raise};
use leakscope_process::versions::{decode_needed_versions, find_library, read_defined_versions};
use rustix::fs::{Access, AtFlags, StatVfsMountFlags};

use crate::Error;

/// Scripts whose interpreter is a script are followed so far, as the kernel does.
const SCRIPT_DEPTH: usize = 4;
/// What `execvp` searches without `PATH` (glibc's `_PATH_DEFPATH`).
const DEFAULT_PATH: &str = "/bin:/usr/bin";
/// ELF machine number of the programs that this build can trace.
const OWN_MACHINE: u16 = object_machine();

const fn object_machine() -> u16 {
    if cfg!(target_arch = "aarch64") { 183 } else { 62 }
}

/// A program that can be traced.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Checked {
    /// The file to start.
    pub program: PathBuf,
    /// The ELF program that will run: the same, or the interpreter of a script.
    pub image: PathBuf,
}

/// What a program is to run with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wanted {
    /// The injected library.
    Library,
    /// The engine of `leakscope memcheck`.
    Engine,
}

/// Finds `program` as a shell would, and makes sure that it can be traced.
///
/// # Errors
/// [`Error::Refused`] with one sentence that says why not, and what to do.
pub fn check(program: &OsStr) -> Result<Checked, Error> {
    check_for(program, Wanted::Library)
}

/// The same for either purpose.
pub(crate) fn check_for(program: &OsStr, wanted: Wanted) -> Result<Checked, Error> {
    let found = find(program, std::env::var_os("PATH").as_deref())?;
    let mut image = found.clone();
    for depth in 0..=SCRIPT_DEPTH {
        let is_interpreter = (depth > 0).then_some(found.as_path());
        check_executable(&image, is_interpreter)?;
        let kind = read_program_kind(&image).map_err(|error| unreadable(&image, error))?;
        match kind {
            ProgramKind::Script { interpreter, .. } => image = interpreter,
            ProgramKind::ShellText if depth == 0 => image = PathBuf::from("/bin/sh"),
            ProgramKind::ShellText | ProgramKind::Unknown => {
                return refused(
                    &image,
                    "it is neither an ELF program nor a script; give the program that runs it first, such as `leakscope run -- java -jar FILE`",
                );
            }
            ProgramKind::Elf(facts) => {
                check_machine(&image, &facts)?;
                match wanted {
                    Wanted::Library => {
                        check_elf(&image, &facts)?;
                        check_privileges(&image)?;
                        check_versions(&image, &facts)?;
                    }
                    Wanted::Engine => crate::memcheck::check_image(&image, &facts.linkage)?,
                }
                return Ok(Checked { program: found, image });
            }
        }
    }
    refused(&found, "its #! line leads from script to script too often; the kernel gives up after 4")
}

fn refused<T>(path: &Path, why: &str) -> Result<T, Error> {
    Err(Error::Refused(format!("{}: {why}", path.display())))
}

/// The file that `execvp` would start.
///
/// # Errors
/// [`Error::Refused`] when there is none.
pub fn find(program: &OsStr, path_variable: Option<&OsStr>) -> Result<PathBuf, Error> {
    if program.is_empty() {
        return Err(Error::Refused(
            "the program's name is empty; usage: leakscope run [OPTIONS] -- PROGRAM ARGUMENTS".into(),
        ));
    }
    let direct = PathBuf::from(program);
    if program.as_bytes().contains(&b'/') {
        return match fs::metadata(&direct) {
            Ok(_) => Ok(direct),
            Err(error) => missing(&direct, &error),
        };
    }
    let path = path_variable.unwrap_or(OsStr::new(DEFAULT_PATH));
    let mut not_executable = None;
    for directory in path.as_bytes().split(|&byte| byte == b':') {
        // An empty entry is the current directory. "./x" and not "x": execvp would search for "x" again.
        let directory = if directory.is_empty() { Path::new(".") } else { Path::new(OsStr::from_bytes(directory)) };
        let candidate = directory.join(program);
        if fs::metadata(&candidate).is_ok_and(|metadata| metadata.is_file()) {
            if rustix::fs::accessat(rustix::fs::CWD, &candidate, Access::EXEC_OK, AtFlags::EACCESS).is_ok() {
                return Ok(candidate);
            }
            not_executable.get_or_insert(candidate);
        }
    }
    if let Some(candidate) = not_executable {
        return Ok(candidate);
    }
    let hint = if direct.exists() {
        "; for the one in this directory write ./ in front"
    } else {
        "; check its spelling, or give its path"
    };
    Err(Error::Refused(format!("{}: no such program in PATH{hint}", direct.display())))
}

fn missing<T>(path: &Path, error: &io::Error) -> Result<T, Error> {
    let why = match error.kind() {
        io::ErrorKind::NotFound if path.is_symlink() => "the link points nowhere; repair it".to_owned(),
        io::ErrorKind::NotFound => "no such program; check the path".to_owned(),
        io::ErrorKind::PermissionDenied => {
            "a directory of its path may not be entered; check its permissions".to_owned()
        }
        _ => format!("cannot look at it: {error}; check the path"),
    };
    refused(path, &why)
}

fn unreadable(path: &Path, error: ElfError) -> Error {
    let text = match error {
        ElfError::Io(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            // Without read permission a program is not dumpable: nothing could look at its memory either.
            "it may be executed but not read, so it cannot be traced; chmod +r it, or run as its owner".to_owned()
        }
        ElfError::Io(error) => format!("cannot read it: {error}"),
        ElfError::Corrupt(_) => format!("{error}; build or install it again"),
    };
    Error::Refused(format!("{}: {text}", path.display()))
}

/// Whether `execve` will take the file. `script` is the script whose interpreter it is.
fn check_executable(path: &Path, script: Option<&Path>) -> Result<(), Error> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) => {
            let Some(script) = script else { return missing(path, &error) };
            return refused(
                script,
                &format!(
                    "the interpreter in its #! line, {}, does not exist; install it or change the line",
                    path.display()
                ),
            );
        }
    };
    if metadata.is_dir() {
        return refused(path, "it is a directory; give a program");
    }
    if !metadata.is_file() {
        return refused(path, "it is not a regular file; give a program");
    }
    if rustix::fs::accessat(rustix::fs::CWD, path, Access::EXEC_OK, AtFlags::EACCESS).is_err() {
        return refused(path, "it is not executable; chmod +x it, or give the program that runs it first");
    }
    if rustix::fs::statvfs(path)
        .is_ok_and(|fs| fs.f_flag.contains(StatVfsMountFlags::from_bits_retain(libc::ST_NOEXEC)))
    {
        return refused(path, "its file system is mounted noexec; copy it elsewhere");
    }
    Ok(())
}

fn check_machine(path: &Path, facts: &ElfFacts) -> Result<(), Error> {
    let machine = facts.machine_name();
    if facts.class == Class::Bits32 {
        return refused(
            path,
            &format!("it is a 32-bit program ({machine}), and leakscope takes 64-bit ones; build it for 64 bits"),
        );
    }
    if facts.machine != OWN_MACHINE || !facts.little_endian {
        return refused(
            path,
            &format!(
                "it is a program for {machine}, and this leakscope is for {}; use leakscope on such a machine",
                std::env::consts::ARCH
            ),
        );
    }
    Ok(())
}

fn check_elf(path: &Path, facts: &ElfFacts) -> Result<(), Error> {
    match &facts.linkage {
        Linkage::Static => refused(
            path,
            "it is statically linked, so nothing can be loaded into it; link it dynamically, or use `valgrind --soname-synonyms=somalloc=NONE`, which takes static programs",
        ),
        Linkage::StaticPie => refused(
            path,
            "it is statically linked (static-pie), so nothing can be loaded into it; link it dynamically, or use `valgrind --soname-synonyms=somalloc=NONE`, which takes static programs",
        ),
        Linkage::SharedLibrary => refused(path, "it is a shared library, not a program; give a program that uses it"),
        Linkage::NotAProgram => refused(path, "it is an object or core file, not a program; link it first"),
        Linkage::Loader => Ok(()),
        Linkage::Dynamic { interpreter } => {
            if !interpreter.exists() {
                return refused(
                    path,
                    &format!(
                        "its dynamic loader {} does not exist here; install the C library that it was built for",
                        interpreter.display()
                    ),
                );
            }
            match facts.c_library() {
                Some(CLibrary::Musl) => refused(
                    path,
                    "it runs with musl, and `leakscope run` needs the GNU C library; build it with glibc, or use `valgrind --soname-synonyms=somalloc=*musl*`",
                ),
                Some(CLibrary::Other) => refused(
                    path,
                    &format!("its dynamic loader {} is not glibc's; build it with glibc", interpreter.display()),
                ),
                _ => Ok(()),
            }
        }
    }
}

/// Whether the C library that the program will load has the symbol versions that the injected library needs: without
/// them the dynamic loader would end the program before `main`.
fn check_versions(path: &Path, facts: &ElfFacts) -> Result<(), Error> {
    const C_LIBRARY: &str = "libc.so.6";
    let interpreter = match &facts.linkage {
        Linkage::Dynamic { interpreter } => interpreter.as_path(),
        Linkage::Loader => path,
        _ => return Ok(()),
    };
    // What cannot be found out here is left to the loader.
    let library_path = std::env::var_os("LD_LIBRARY_PATH");
    let found = find_library(path, interpreter, C_LIBRARY, library_path.as_deref());
    let Ok(Some(library)) = found else { return Ok(()) };
    let (Ok(needed), Ok(defined)) =
        (decode_needed_versions(&crate::cache::content(), C_LIBRARY), read_defined_versions(&library))
    else {
        return Ok(());
    };
    let newest = |versions: &[String]| versions.iter().filter_map(|version| glibc_version(version)).max();
    let missing: Vec<String> = needed.into_iter().filter(|version| !defined.contains(version)).collect();
    let Some((major, minor)) = newest(&missing) else { return Ok(()) };
    let has =
        newest(&defined).map_or("no version of glibc".to_owned(), |(major, minor)| format!("glibc {major}.{minor}"));
    refused(
        path,
        &format!(
            "its C library {} is {has}, and leakscope's injected library needs glibc {major}.{minor} or later; build leakscope on a system with that C library, or use `valgrind`",
            library.display()
        ),
    )
}

/// `(2, 34)` of `GLIBC_2.34`; `GLIBC_2.2.5` counts as `(2, 2)`.
fn glibc_version(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.strip_prefix("GLIBC_")?.split('.').map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

fn check_privileges(path: &Path) -> Result<(), Error> {
    let raise = read_raise(path).map_err(|error| unreadable(path, ElfError::Io(error)))?;
    let copy = "the dynamic loader then ignores LD_PRELOAD; trace a copy without them (cp it: a copy loses them)";
    match raise {
        None => Ok(()),
        Some(Raise::SetUid(uid)) => {
            refused(path, &format!("it is set-user-ID (to user {uid}), and {copy}, or run leakscope as that user"))
        }
        Some(Raise::SetGid(gid)) => refused(path, &format!("it is set-group-ID (to group {gid}), and {copy}")),
        Some(Raise::Capabilities) => {
            refused(path, &format!("it has file capabilities, and {copy}, or run leakscope as root"))
        }
    }
}
