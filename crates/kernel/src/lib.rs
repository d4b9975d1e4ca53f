//! What this kernel offers to a leak finder, control of its kmemleak, and what kmemleak says.
//!
//! Runs in our own process, on any thread, and allocates. `read_*` and the methods of [`kmemleak::Kmemleak`] do I/O below
//! a [`Places`], `decode_*` and [`dump::Decoder`] are pure and total: what the kernel's files hold may have been written by
//! another kernel, or by anyone.
#![forbid(unsafe_code)]

pub mod alloc;
pub mod clock;
pub mod config;
pub mod dump;
pub mod error;
pub mod image;
pub mod kallsyms;
pub mod kmemleak;
pub mod kmsg;
pub mod mounts;
pub mod sightings;
pub mod status;

use std::path::{Path, PathBuf};

pub use error::KernelError;

/// Where the kernel's files are: `/` but in tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    root: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        Self { root: PathBuf::from("/") }
    }
}

impl Places {
    /// The files below another folder.
    pub fn below(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The place of an absolute path.
    pub fn path(&self, absolute: impl AsRef<Path>) -> PathBuf {
        let absolute = absolute.as_ref();
        self.root.join(absolute.strip_prefix("/").unwrap_or(absolute))
    }

    /// The text of a small file of the kernel; `None` when it is not there or cannot be read.
    pub fn read(&self, absolute: &str) -> Option<String> {
        std::fs::read(self.path(absolute)).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Whether something is there.
    pub fn exists(&self, absolute: &str) -> bool {
        self.path(absolute).exists()
    }
}
