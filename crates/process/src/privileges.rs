//! Whether starting a file raises privileges. The dynamic loader ignores `LD_PRELOAD` then.
//!
//! Sources: ld.so(8) "secure-execution mode", capabilities(7), Linux `security/commoncap.c`.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// How a file would raise privileges when this process starts it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Raise {
    /// It would run as another user, with this id.
    SetUid(u32),
    /// It would run with another group, with this id.
    SetGid(u32),
    /// It has file capabilities that we lack.
    Capabilities,
}

/// Whether starting `path` raises privileges, and how; `None` when not.
///
/// # Errors
/// When the file cannot be looked at.
pub fn read_raise(path: &Path) -> io::Result<Option<Raise>> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    let no_suid =
        rustix::fs::fstatvfs(&file).is_ok_and(|statvfs| statvfs.f_flag.contains(rustix::fs::StatVfsMountFlags::NOSUID));
    let no_new_privs = crate::status::read_status(std::process::id()).is_ok_and(|status| status.no_new_privs);
    if no_suid || no_new_privs {
        return Ok(None);
    }
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    if metadata.mode() & 0o4000 != 0 && metadata.uid() != uid {
        return Ok(Some(Raise::SetUid(metadata.uid())));
    }
    // Without group-execute the bit asks for mandatory locking and raises nothing.
    if metadata.mode() & 0o2010 == 0o2010 && metadata.gid() != gid {
        return Ok(Some(Raise::SetGid(metadata.gid())));
    }
    let mut value = [0; 64];
    let capabilities = match rustix::fs::fgetxattr(&file, "security.capability", &mut value) {
        Ok(bytes) => decode_capabilities(&value[..bytes]),
        Err(_) => false,
    };
    // For root they add nothing: it has them all.
    Ok((capabilities && uid != 0).then_some(Raise::Capabilities))
}

/// Whether a `security.capability` attribute (`struct vfs_cap_data`: a magic word, then pairs of permitted and
/// inheritable words) permits anything.
fn decode_capabilities(attribute: &[u8]) -> bool {
    let words: Vec<u32> =
        attribute.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect();
    words.get(1).copied().unwrap_or(0) != 0 || words.get(3).copied().unwrap_or(0) != 0
}
