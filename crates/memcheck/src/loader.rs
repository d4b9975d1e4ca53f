//! Puts a program and its interpreter into memory and makes the stack that the kernel would make.
//!
//! Source: elf(5), the System V ABI for AMD64 ("Process Initialization"), and Linux' `fs/binfmt_elf.c`.

mod headers;
mod map;
mod script;
mod stack;

use std::ffi::CString;
use std::fmt;

pub use headers::{Headers, Kind, Segment};
pub(crate) use map::head;
pub use map::{Loaded, load};
pub use script::{Resolved, resolve, resolve_command};
pub use stack::{AT_EXECFN, AT_PLATFORM, AT_RANDOM, Stack, StackContents};

/// Why a program cannot be run. Each message is one sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoadError {
    /// A file cannot be opened or read.
    File {
        /// Which.
        path: CString,
        /// The kernel's error number.
        errno: i32,
    },
    /// The file is not a program that can run here.
    NotRunnable {
        /// Which.
        path: CString,
        /// What is wrong with it, and what to do.
        why: &'static str,
    },
    /// The program's interpreter is missing.
    NoInterpreter {
        /// The program.
        path: CString,
        /// What its header names.
        interpreter: CString,
    },
    /// The kernel did not map a segment.
    Map {
        /// Which file's.
        path: CString,
        /// Where.
        address: u64,
        /// The kernel's error number.
        errno: i32,
    },
}

impl LoadError {
    /// What `execve` answers in this case.
    pub fn errno(&self) -> i32 {
        match self {
            Self::File { errno, .. } | Self::Map { errno, .. } => *errno,
            Self::NotRunnable { .. } => libc::ENOEXEC,
            Self::NoInterpreter { .. } => libc::ENOENT,
        }
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = |errno: &i32| std::io::Error::from_raw_os_error(*errno);
        match self {
            Self::File { path, errno } => write!(f, "{}: cannot read it: {}", path.to_string_lossy(), words(errno)),
            Self::NotRunnable { path, why } => write!(f, "{}: {why}", path.to_string_lossy()),
            Self::NoInterpreter { path, interpreter } => write!(
                f,
                "{}: its dynamic loader {} does not exist here; install the C library that it was built for",
                path.to_string_lossy(),
                interpreter.to_string_lossy()
            ),
            Self::Map { path, address, errno } => write!(
                f,
                "{}: cannot map a segment at {address:#x}: {}; something else is there, or memory is used up",
                path.to_string_lossy(),
                words(errno)
            ),
        }
    }
}

impl std::error::Error for LoadError {}
