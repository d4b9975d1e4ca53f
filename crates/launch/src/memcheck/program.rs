//! The engine's executable, which this binary carries: put into a memfd and executed from there.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::fs::{MemfdFlags, SealFlags};

use crate::Error;

/// Its bytes; empty where there is none for this architecture.
static ENGINE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/memcheck"));
/// A file to execute instead, for work on the engine itself.
const OVERRIDE: &str = "LEAKSCOPE_MEMCHECK";

/// An engine that can be executed.
#[derive(Debug)]
pub(super) enum Engine {
    /// In a memfd, which a child has too until it executes it.
    Memory(OwnedFd),
    /// A file.
    File(PathBuf),
}

impl Engine {
    /// Makes it ready.
    pub(super) fn unpack() -> Result<Self, Error> {
        if let Some(path) = std::env::var_os(OVERRIDE) {
            return Ok(Self::File(path.into()));
        }
        if ENGINE.is_empty() {
            return Err(Error::Refused(
                "`leakscope memcheck` needs x86-64; `leakscope run` works on this machine, too".into(),
            ));
        }
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        // Where kernels ask for it, a memfd that may be executed says so; older ones do not know the flag.
        let fd = rustix::fs::memfd_create("leakscope-memcheck", flags | MemfdFlags::EXEC)
            .or_else(|_| rustix::fs::memfd_create("leakscope-memcheck", flags))
            .map_err(Error::system("create a memfd for the engine"))?;
        let mut file = File::from(fd);
        file.write_all(ENGINE).map_err(Error::system("write the engine to memory"))?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL)
            .map_err(Error::system("seal the engine"))?;
        Ok(Self::Memory(file.into()))
    }

    /// What to execute, in this process or a child of it.
    pub(super) fn path(&self) -> PathBuf {
        match self {
            Self::Memory(fd) => super::descriptor_path(fd),
            Self::File(path) => path.clone(),
        }
    }
}
