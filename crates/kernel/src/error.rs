//! Why the kernel cannot be asked, one sentence each, with what to do.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why nothing could be learned from the kernel.
#[derive(Debug)]
pub enum KernelError {
    /// The user may not open this file; only root may.
    NotRoot(PathBuf),
    /// Debugfs is not mounted.
    NoDebugfs,
    /// This kernel, of this release, has no kmemleak.
    NotBuilt(String),
    /// kmemleak was off from the beginning: by `CONFIG_DEBUG_KMEMLEAK_DEFAULT_OFF`, or by this word of the command line.
    OffAtBoot(Option<&'static str>),
    /// kmemleak has disabled itself, or was switched off; what the kernel's log says of it.
    Disabled(Option<String>),
    /// Lockdown keeps debugfs closed: the mode.
    Lockdown(String),
    /// kmemleak knows no object there.
    NoObject(u64),
    /// Reading or writing a file failed.
    Io(&'static str, PathBuf, io::Error),
}

impl fmt::Display for KernelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRoot(path) => write!(f, "{}: only root may open it; run leakscope with sudo", path.display()),
            Self::NoDebugfs => write!(
                f,
                "debugfs is not mounted, and kmemleak is reached through it; give --mount, or run `mount -t debugfs none \
                 /sys/kernel/debug`"
            ),
            Self::NotBuilt(release) => write!(
                f,
                "this kernel ({release}) was built without CONFIG_DEBUG_KMEMLEAK; boot one that has it, or use \
                 `leakscope kernel trace`, which needs no special kernel"
            ),
            Self::OffAtBoot(None) => write!(
                f,
                "kmemleak is built with CONFIG_DEBUG_KMEMLEAK_DEFAULT_OFF and was not switched on; boot with kmemleak=on"
            ),
            Self::OffAtBoot(Some(word)) => write!(f, "the kernel was booted with {word}; boot with kmemleak=on"),
            Self::Disabled(Some(why)) => write!(
                f,
                "kmemleak is disabled until the next boot (the kernel's log: {why}); reboot, with a larger \
                 CONFIG_DEBUG_KMEMLEAK_MEM_POOL_SIZE if it ran out of memory"
            ),
            Self::Disabled(None) => write!(
                f,
                "kmemleak is disabled until the next boot: it ran out of memory for its own records, or somebody switched it \
                 off (the kernel's log no longer says which); reboot"
            ),
            Self::Lockdown(mode) => {
                write!(f, "lockdown ({mode}) keeps debugfs closed; boot with lockdown off, or without Secure Boot")
            }
            Self::NoObject(address) => write!(
                f,
                "{address:#x}: kmemleak knows no object there; it was freed, or it is of a kind that kmemleak does not \
                 follow (alloc_pages)"
            ),
            Self::Io(what, path, error) => write!(f, "{}: cannot {what} it: {error}", path.display()),
        }
    }
}

impl std::error::Error for KernelError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(_, _, error) => Some(error),
            _ => None,
        }
    }
}
