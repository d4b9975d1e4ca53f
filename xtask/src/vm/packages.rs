//! What building and booting kernels needs from apt.

use anyhow::{Result, bail};

use crate::setup;
use crate::step::step_with;

/// Debian's names.
const PACKAGES: &[&str] = &[
    "bc",
    "binutils",
    "bison",
    "build-essential",
    "busybox-static",
    "cpio",
    "dwarves",
    "flex",
    "kmod",
    "libelf-dev",
    "libssl-dev",
    "linux-headers-cloud-amd64",
    "qemu-system-x86",
    "xz-utils",
    "zstd",
];

/// Sources in the order in which they are preferred: the newest that a release has.
pub(super) const SOURCES: &[&str] = &["linux-source-6.12", "linux-source"];

/// Installs what is missing.
///
/// # Errors
/// A package is missing and cannot be installed; the message is the command that installs it.
pub(super) fn install() -> Result<()> {
    let mut missing: Vec<&str> = PACKAGES.iter().copied().filter(|package| !setup::is_installed(package)).collect();
    let has_sources = SOURCES.iter().any(|package| setup::is_installed(package));
    if missing.is_empty() && has_sources {
        return Ok(());
    }
    let install = ["apt-get", "install", "--yes", "--quiet", "--no-install-recommends"];
    if !rustix::process::geteuid().is_root() {
        let sources = if has_sources { "" } else { SOURCES[0] };
        bail!("not installed: {0} {sources}\nnext: sudo {1} {0} {sources}", missing.join(" "), install.join(" "));
    }
    let env = [("DEBIAN_FRONTEND", "noninteractive")];
    step_with(&["apt-get", "update", "--quiet"], &env)?;
    if !missing.is_empty() {
        missing.splice(0..0, install);
        step_with(&missing, &env)?;
    }
    let found =
        has_sources || SOURCES.iter().any(|source| step_with(&[&install[..], &[source]].concat(), &env).is_ok());
    if found { Ok(()) } else { bail!("none of {} can be installed", SOURCES.join(", ")) }
}
