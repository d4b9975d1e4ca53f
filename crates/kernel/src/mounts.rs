//! Where debugfs and tracefs are mounted; and debugfs mounted for as long as it is needed.
//!
//! Source: proc(5) on `/proc/pid/mounts`.

use std::path::PathBuf;

use crate::{KernelError, Places};

/// Where kernels expect debugfs.
const DEBUGFS: &str = "/sys/kernel/debug";

/// The first mount point of a file system type, from the text of `/proc/self/mounts`.
pub fn decode_mount(mounts: &str, kind: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut words = line.split(' ');
        let (_, place, found) = (words.next()?, words.next()?, words.next()?);
        (found == kind).then(|| PathBuf::from(unescaped(place)))
    })
}

/// Space, tab, newline and backslash are written as three octal digits.
fn unescaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code.filter(u8::is_ascii) {
            Some(code) => {
                out.push(char::from(code));
                rest = &rest[at + 4..];
            }
            None => {
                out.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out.push_str(rest);
    out
}

/// Where a file system of this kind is mounted.
pub fn read_mount(places: &Places, kind: &str) -> Option<PathBuf> {
    decode_mount(&places.read("/proc/self/mounts")?, kind)
}

/// The folder of tracefs: its own mount, or the one that debugfs makes when somebody looks.
pub fn read_tracefs(places: &Places) -> Option<PathBuf> {
    let own = read_mount(places, "tracefs");
    let below = || read_mount(places, "debugfs").map(|debugfs| debugfs.join("tracing"));
    own.or_else(below).filter(|folder| places.path(folder).join("events").is_dir())
}

/// Debugfs, mounted by us; unmounted when dropped.
#[derive(Debug)]
pub struct Mounted(());

impl Mounted {
    /// Mounts debugfs where it belongs; `None` when it is mounted already.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn debugfs(places: &Places) -> Result<Option<Self>, KernelError> {
        use rustix::mount::{MountFlags, mount};
        if read_mount(places, "debugfs").is_some() {
            return Ok(None);
        }
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        match mount("none", DEBUGFS, "debugfs", flags, None::<&std::ffi::CStr>) {
            Ok(()) => Ok(Some(Self(()))),
            Err(rustix::io::Errno::PERM | rustix::io::Errno::ACCESS) => Err(KernelError::NotRoot(DEBUGFS.into())),
            Err(error) => Err(KernelError::Io("mount debugfs on", DEBUGFS.into(), error.into())),
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Busy: somebody else looks at it now, and it stays for them.
        let _ = rustix::mount::unmount(DEBUGFS, rustix::mount::UnmountFlags::empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_by_kind() {
        let text = "sysfs /sys sysfs rw 0 0\nnone /a\\040b debugfs rw 0 0\nx /y tracefs rw 0 0\n";
        assert_eq!(decode_mount(text, "debugfs"), Some(PathBuf::from("/a b")));
        assert_eq!(decode_mount(text, "tracefs"), Some(PathBuf::from("/y")));
        assert_eq!(decode_mount(text, "bpf"), None);
        assert_eq!(decode_mount("a\nb c", "c"), None);
        assert_eq!(unescaped("\\9x\\04"), "\\9x\\04");
    }
}
