//! Separate debug files on disk: by build id, by `.gnu_debuglink`, and the dwz file by `.gnu_debugaltlink`.
//!
//! Every candidate is checked before it is believed: by build id where both sides have one, by the checksum of the
//! link otherwise. Source: GDB manual, "Debugging Information in Separate Files".

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::elf::Elf;

/// A build id in lower-case hexadecimal, as paths and servers write it.
pub(crate) fn hex(build_id: &[u8]) -> String {
    build_id.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Opens a file whose build id must be the one given.
pub(crate) fn open_with_id(path: &Path, build_id: &[u8]) -> Option<Elf> {
    Elf::open(path).filter(|elf| elf.build_id().as_deref() == Some(build_id))
}

/// `DIR/.build-id/ab/cdef.debug` of each debug directory.
pub(crate) fn by_build_id(debug_dirs: &[PathBuf], build_id: &[u8]) -> Option<Elf> {
    let name = hex(build_id);
    // Shorter ids are never written by linkers, and would name the folder itself.
    let (folder, file) = name.split_at_checked(2).filter(|(_, file)| !file.is_empty())?;
    debug_dirs
        .iter()
        .map(|dir| dir.join(".build-id").join(folder).join(format!("{file}.debug")))
        .find_map(|path| open_with_id(&path, build_id))
}

/// The file that the module's `.gnu_debuglink` names: beside it, in `.debug` beside it, or in the same folder below a
/// debug directory.
pub(crate) fn by_debug_link(debug_dirs: &[PathBuf], module: &Elf) -> Option<Elf> {
    let (name, crc) = module.debug_link()?;
    // A name, not a path: anything else would lead out of the folders below.
    let name = Path::new(&name).file_name()?;
    let own_path = module.path.canonicalize().ok()?;
    let folder = own_path.parent()?;
    let mut candidates = vec![folder.join(name), folder.join(".debug").join(name)];
    for dir in debug_dirs {
        candidates.push(dir.join(folder.strip_prefix("/").unwrap_or(folder)).join(name));
    }
    let build_id = module.build_id();
    candidates.into_iter().filter(|path| *path != own_path).find_map(|path| {
        let elf = Elf::open(&path)?;
        let matches = match (&build_id, elf.build_id()) {
            (Some(wanted), Some(found)) => *wanted == found,
            _ => checksum(&path) == Some(crc),
        };
        matches.then_some(elf)
    })
}

/// The file that dwz moved shared units to.
pub(crate) fn by_alt_link(debug_dirs: &[PathBuf], debug_file: &Elf) -> Option<Elf> {
    let (link, build_id) = debug_file.alt_link()?;
    // The link is relative to where the debug file really is, not to a link that leads to it.
    let own_path = debug_file.path.canonicalize().ok()?;
    let mut candidates = vec![own_path.parent()?.join(&link)];
    if let Some(name) = link.file_name() {
        candidates.extend(debug_dirs.iter().map(|dir| dir.join(".dwz").join(name)));
    }
    candidates.iter().find_map(|path| open_with_id(path, &build_id)).or_else(|| by_build_id(debug_dirs, &build_id))
}

/// The CRC-32 of a whole file.
fn checksum(path: &Path) -> Option<u32> {
    let mut file = File::open(path).ok()?;
    let mut crc = flate2::Crc::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer).ok()? {
            0 => return Some(crc.sum()),
            count => crc.update(&buffer[..count]),
        }
    }
}
