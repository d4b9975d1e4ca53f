//! Unpacks the injected libraries, which this binary carries, to a place from which targets can load them.
//!
//! The place must be ours alone: whoever can write there runs code in every traced program. A directory is
//! used when it belongs to us with mode 0700, was reached without following a link in its last two parts,
//! and nobody else can rename what lies above it. A shared `/tmp` with something in our way is refused, and
//! the next candidate is taken. The name holds the content's hash, so versions do not disturb each other; the
//! content is compared byte by byte before each use. Whoever uses a file holds a shared lock on it, and its time of
//! modification is that of its last use; other versions that nobody has used for a month are removed.
//!
//! Where nothing can be written (a read-only container without a `/tmp`), a memfd of our own process serves,
//! as `/proc/PID/fd/N`.

use std::borrow::Cow;
use std::ffi::{CStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, FlockOperation, MemfdFlags, Mode, OFlags, SealFlags, Timespec, Timestamps};
use rustix::mm::{MapFlags, ProtFlags};

use crate::Error;

/// The file name of the library that is preloaded, by which it is known among the modules of a target.
pub const FILE_NAME: &str = "libleakscope_preload.so";

/// A library that this binary carries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Carried<'c> {
    /// Its bytes.
    pub(crate) content: &'c [u8],
    /// Their SHA-256, in hex.
    pub(crate) hash: &'c str,
    /// Its name in the folder of its hash.
    pub(crate) file_name: &'c str,
}

/// The library that `leakscope run` preloads.
const PRELOAD: Carried<'static> = Carried {
    content: include_bytes!(concat!(env!("OUT_DIR"), "/preload.so")),
    hash: env!("LEAKSCOPE_PRELOAD_SHA256"),
    file_name: FILE_NAME,
};
/// Versions that were not used for so long are removed.
const UNUSED: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// A file to load instead, for work on the library itself.
const OVERRIDE: &str = "LEAKSCOPE_PRELOAD_SO";

/// The library, at a path that targets can load.
#[derive(Debug)]
pub struct Library {
    /// Its path.
    pub path: PathBuf,
    /// Keeps a memfd open, with which the path dies, or the lock on a file.
    _held: Option<OwnedFd>,
}

/// Puts the library in place.
///
/// # Errors
/// [`Error::NoPlace`] with every candidate's reason.
pub fn unpack() -> Result<Library, Error> {
    if let Some(path) = std::env::var_os(OVERRIDE) {
        return match std::fs::metadata(&path) {
            Ok(_) => Ok(Library { path: path.into(), _held: None }),
            Err(error) => {
                Err(Error::NoPlace(vec![(path.into(), format!("{OVERRIDE} names it, and it cannot be read: {error}"))]))
            }
        };
    }
    place_in_first(&own_places(), PRELOAD).or_else(|refusals| in_memory(PRELOAD, refusals))
}

/// The bytes of the library that [`unpack`] puts in place.
pub(crate) fn content() -> Cow<'static, [u8]> {
    let other = std::env::var_os(OVERRIDE).and_then(|path| std::fs::read(path).ok());
    other.map_or(Cow::Borrowed(PRELOAD.content), Cow::Owned)
}

/// The directories to try, in order; the last part of each is ours to create.
fn candidates(variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let uid = rustix::process::geteuid().as_raw();
    let directory = |name: &str| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let shared = format!("leakscope-{uid}");
    let mut list = Vec::new();
    list.extend(directory("LEAKSCOPE_CACHE_DIR"));
    list.extend(directory("XDG_CACHE_HOME").map(|path| path.join("leakscope")));
    list.extend(directory("HOME").map(|path| path.join(".cache/leakscope")));
    list.extend(directory("XDG_RUNTIME_DIR").map(|path| path.join("leakscope")));
    list.push(Path::new("/dev/shm").join(&shared));
    list.extend(directory("TMPDIR").map(|path| path.join(&shared)));
    list.push(Path::new("/var/tmp").join(&shared));
    list.push(Path::new("/tmp").join(&shared));
    list
}

/// The places that refused, each with its reason.
type Refusals = Vec<(PathBuf, String)>;

/// Puts a library into a place from which a name of it may be handed on: not into memory.
///
/// # Errors
/// [`Error::NoPlace`] with every candidate's reason.
pub(crate) fn unpack_as_file(carried: Carried<'_>) -> Result<Library, Error> {
    place_in_first(&own_places(), carried).map_err(Error::NoPlace)
}

/// The directories that may be ours, in order.
pub(crate) fn own_places() -> Vec<PathBuf> {
    candidates(|name| std::env::var_os(name))
}

fn place_in_first(candidates: &[PathBuf], carried: Carried<'_>) -> Result<Library, Refusals> {
    let mut refusals = Vec::new();
    for candidate in candidates {
        match place_in(candidate, carried) {
            Ok(library) => return Ok(library),
            Err(reason) => refusals.push((candidate.clone(), reason)),
        }
    }
    Err(refusals)
}

/// The last resort: memory of this process.
fn in_memory(carried: Carried<'_>, mut refusals: Refusals) -> Result<Library, Error> {
    match place_in_memfd(carried.content) {
        Ok(library) => Ok(library),
        Err(error) => {
            refusals.push((PathBuf::from("memfd"), error.to_string()));
            Err(Error::NoPlace(refusals))
        }
    }
}

/// Puts the file under `<base>/<hash>/`; gives it, or why it cannot be there.
fn place_in(base: &Path, carried: Carried<'_>) -> Result<Library, String> {
    // LD_PRELOAD is a list separated by spaces and colons, LD_LIBRARY_PATH one by colons and semicolons, and a dollar
    // sign begins a token.
    if base.as_os_str().as_bytes().iter().any(|byte| byte.is_ascii_whitespace() || matches!(byte, b':' | b';' | b'$')) {
        return Err("LD_PRELOAD cannot hold a path with a space, a colon, a semicolon or a dollar sign".into());
    }
    let parent = base.parent().ok_or("it is the root directory")?;
    let name = base.file_name().ok_or("it has no name")?;
    if parent.ends_with(".cache") {
        let _ = rustix::fs::mkdir(parent, Mode::RWXU);
    }
    let parent = parent.canonicalize().map_err(|error| format!("{}: {error}", parent.display()))?;
    check_ancestors(&parent)?;
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::PATH;
    let parent_fd = rustix::fs::open(&parent, flags, Mode::empty()).map_err(|error| error.to_string())?;
    let base_fd = open_own_directory(&parent_fd, Path::new(name))?;
    let directory = open_own_directory(&base_fd, Path::new(carried.hash))?;
    if !is_good_file(&directory, carried)? {
        write_file(&directory, carried).map_err(|error| format!("cannot write there: {error}"))?;
        if !is_good_file(&directory, carried)? {
            return Err("what was written reads back differently".into());
        }
    }
    let held = use_now(&directory, carried.file_name);
    remove_unused(&base_fd, carried);
    Ok(Library { path: parent.join(name).join(carried.hash).join(carried.file_name), _held: held })
}

/// Marks the file as used now, and until the descriptor is closed. Where that cannot be, it only grows old sooner.
fn use_now(directory: &OwnedFd, file_name: &str) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(directory, file_name, flags, Mode::empty()).ok()?;
    let now = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
    let _ = rustix::fs::futimens(&file, &Timestamps { last_access: now, last_modification: now });
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).ok()?;
    Some(file)
}

/// Removes other versions of a library that were not used for [`UNUSED`] and are not in use. What cannot be removed stays.
fn remove_unused(base: &OwnedFd, carried: Carried<'_>) {
    let Ok(entries) = rustix::fs::Dir::read_from(base) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let is_hash = name.to_bytes().len() >= 16 && name.to_bytes().iter().all(u8::is_ascii_hexdigit);
        if is_hash && name.to_bytes() != carried.hash.as_bytes() {
            remove_version(base, name, carried.file_name);
        }
    }
}

fn remove_version(base: &OwnedFd, name: &CStr, file_name: &str) -> Option<()> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
    let directory = rustix::fs::openat(base, name, flags, Mode::empty()).ok()?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(&directory, file_name, flags, Mode::empty()).ok()?);
    let unused_for = file.metadata().ok()?.modified().ok()?.elapsed().ok()?;
    if unused_for < UNUSED {
        return None;
    }
    // A leakscope that uses it holds a shared lock. One that takes it up in this moment writes it again if it is gone.
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
    rustix::fs::unlinkat(&directory, file_name, AtFlags::empty()).ok()?;
    // Stays when something else is in it.
    rustix::fs::unlinkat(base, name, AtFlags::REMOVEDIR).ok()
}

/// Nobody but root and us may rename a part of the path: each directory belongs to one of us, and is not
/// writable for others unless it is sticky.
fn check_ancestors(path: &Path) -> Result<(), String> {
    let own = rustix::process::geteuid().as_raw();
    for directory in path.ancestors() {
        let metadata = std::fs::metadata(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
        if metadata.uid() != own && metadata.uid() != 0 {
            return Err(format!("{} belongs to user {}", directory.display(), metadata.uid()));
        }
        if metadata.mode() & 0o022 != 0 && metadata.mode() & 0o1000 == 0 {
            return Err(format!("{} can be written by others", directory.display()));
        }
    }
    Ok(())
}

/// Opens a directory that is ours alone, made if it is not there. No link is followed.
fn open_own_directory(parent: &OwnedFd, name: &Path) -> Result<OwnedFd, String> {
    match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => {
            if rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).is_err() {
                return Err(format!("cannot make it: {error}"));
            }
        }
    }
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
    let directory = rustix::fs::openat(parent, name, flags, Mode::empty()).map_err(|error| match error {
        rustix::io::Errno::LOOP | rustix::io::Errno::NOTDIR => {
            format!("{} is not a directory but a link or a file", name.display())
        }
        error => format!("cannot open it: {error}"),
    })?;
    let metadata = rustix::fs::fstat(&directory).map_err(|error| error.to_string())?;
    if metadata.st_uid != rustix::process::geteuid().as_raw() {
        return Err(format!("it belongs to user {}", metadata.st_uid));
    }
    if metadata.st_mode & 0o077 != 0 {
        // A directory of ours that an earlier hand or a umask opened to others may hold something of theirs.
        return Err(format!(
            "its mode is {:o}, expected 700; chmod 700 it after a look inside, or remove it",
            metadata.st_mode & 0o7777
        ));
    }
    Ok(directory)
}

/// Whether the file is there with our content and may be mapped for execution. A file that is not as
/// expected counts as absent and is replaced.
fn is_good_file(directory: &OwnedFd, carried: Carried<'_>) -> Result<bool, String> {
    let content = carried.content;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(fd) = rustix::fs::openat(directory, carried.file_name, flags, Mode::empty()) else { return Ok(false) };
    let mut file = File::from(fd);
    let metadata = file.metadata().map_err(|error| error.to_string())?;
    let own =
        metadata.is_file() && metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o022 == 0;
    if !own || metadata.len() != content.len() as u64 {
        return Ok(false);
    }
    let mut found = Vec::with_capacity(content.len());
    (&mut file).take(content.len() as u64 + 1).read_to_end(&mut found).map_err(|error| error.to_string())?;
    if found != content {
        return Ok(false);
    }
    if may_execute(&file) { Ok(true) } else { Err("its file system is mounted noexec".into()) }
}

/// Asks the kernel by mapping a page: mount flags are not the only thing that can forbid it.
fn may_execute(file: &File) -> bool {
    let bytes = rustix::param::page_size();
    // SAFETY: a new private map at an address of the kernel's choice overlaps no Rust object; it is unmapped
    // at once and never accessed.
    unsafe {
        match rustix::mm::mmap(
            std::ptr::null_mut(),
            bytes,
            ProtFlags::READ | ProtFlags::EXEC,
            MapFlags::PRIVATE,
            file,
            0,
        ) {
            Ok(map) => rustix::mm::munmap(map, bytes).is_ok(),
            Err(_) => false,
        }
    }
}

/// Writes under a temporary name, then renames: another leakscope never sees half a file.
fn write_file(directory: &OwnedFd, carried: Carried<'_>) -> io::Result<()> {
    let temporary =
        format!(".{}.{:x}", std::process::id(), rustix::time::clock_gettime(rustix::time::ClockId::Monotonic).tv_nsec);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let result = (|| {
        let fd = rustix::fs::openat(directory, &temporary, flags, Mode::RUSR | Mode::WUSR | Mode::XUSR)?;
        File::from(fd).write_all(carried.content)?;
        if let Err(rustix::io::Errno::ISDIR | rustix::io::Errno::NOTEMPTY) =
            rustix::fs::renameat(directory, &temporary, directory, carried.file_name)
        {
            return Err(io::Error::other(format!("{} is a directory there; remove it", carried.file_name)));
        }
        Ok(())
    })();
    if result.is_err() {
        let _ = rustix::fs::unlinkat(directory, &temporary, AtFlags::empty());
    }
    result
}

/// The library in a sealed memfd of this process, as long as the process lives.
fn place_in_memfd(content: &[u8]) -> io::Result<Library> {
    let fd = rustix::fs::memfd_create("leakscope-preload", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(fd);
    file.write_all(content)?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL)?;
    if !may_execute(&file) {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "memory files may not be executed here"));
    }
    let path = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_fd().as_raw_fd()));
    File::open(&path)?;
    Ok(Library { path, _held: Some(file.into()) })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    const HASH: &str = "0123456789abcdef";

    fn library() -> Vec<u8> {
        std::fs::read("/proc/self/exe").unwrap()[..8192].to_vec()
    }

    fn preload<'c>(content: &'c [u8], hash: &'c str) -> Carried<'c> {
        Carried { content, hash, file_name: FILE_NAME }
    }

    fn place(base: &Path, content: &[u8], hash: &str) -> Result<PathBuf, String> {
        place_in(base, preload(content, hash)).map(|library| library.path)
    }

    /// A directory whose ancestors nobody else can write to; the build directory may be anywhere.
    fn scratch() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        directory
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn a_fresh_place_is_made_private_and_used_again() {
        let scratch = scratch();
        let base = scratch.path().join("leakscope");
        let path = place(&base, &library(), HASH).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), library());
        assert_eq!((mode(&base), mode(path.parent().unwrap())), (0o700, 0o700));
        assert!(mode(&path) & 0o077 == 0);
        let inode = std::fs::metadata(&path).unwrap().ino();
        assert_eq!(place(&base, &library(), HASH).unwrap(), path);
        assert_eq!(std::fs::metadata(&path).unwrap().ino(), inode, "it was not written again");
        let names: Vec<_> = std::fs::read_dir(path.parent().unwrap()).unwrap().collect();
        assert_eq!(names.len(), 1, "no temporary file is left");
    }

    #[test]
    fn a_changed_file_is_replaced() {
        let scratch = scratch();
        let base = scratch.path().join("leakscope");
        let path = place(&base, &library(), HASH).unwrap();
        let mut other = library();
        other[100] ^= 1;
        for content in [other, library()[..100].to_vec(), Vec::new()] {
            std::fs::write(&path, content).unwrap();
            assert_eq!(std::fs::read(place(&base, &library(), HASH).unwrap()).unwrap(), library());
        }
    }

    #[test]
    fn a_file_that_others_may_write_is_replaced() {
        let scratch = scratch();
        let base = scratch.path().join("leakscope");
        let path = place(&base, &library(), HASH).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        let keeper = File::options().write(true).open(&path).unwrap();
        let again = place(&base, &library(), HASH).unwrap();
        assert_ne!(std::fs::metadata(&again).unwrap().ino(), keeper.metadata().unwrap().ino());
    }

    #[test]
    fn links_in_the_way_are_refused_or_replaced() {
        let scratch = scratch();
        let elsewhere = scratch.path().join("elsewhere");
        std::fs::create_dir(&elsewhere).unwrap();
        std::fs::set_permissions(&elsewhere, std::fs::Permissions::from_mode(0o700)).unwrap();
        let base = scratch.path().join("leakscope");
        symlink(&elsewhere, &base).unwrap();
        assert!(place(&base, &library(), HASH).unwrap_err().contains("link"));
        std::fs::remove_file(&base).unwrap();
        // A link in place of the file is not followed but replaced.
        let path = place(&base, &library(), HASH).unwrap();
        let target = scratch.path().join("victim");
        std::fs::write(&target, library()).unwrap();
        std::fs::remove_file(&path).unwrap();
        symlink(&target, &path).unwrap();
        place(&base, &library(), HASH).unwrap();
        assert!(!path.is_symlink());
        assert!(std::fs::read_dir(&elsewhere).unwrap().next().is_none());
    }

    #[test]
    fn hostile_places_are_passed_over_for_the_next() {
        let scratch = scratch();
        let at = |name: &str| scratch.path().join(name);
        // Ours, but open to others.
        std::fs::create_dir(at("open")).unwrap();
        std::fs::set_permissions(at("open"), std::fs::Permissions::from_mode(0o777)).unwrap();
        // A file in the way.
        std::fs::write(at("file"), "x").unwrap();
        // A parent that others may write to without the sticky bit.
        std::fs::create_dir(at("loose")).unwrap();
        std::fs::set_permissions(at("loose"), std::fs::Permissions::from_mode(0o777)).unwrap();
        let mut places = vec![
            at("open"),
            at("file"),
            at("loose/leakscope"),
            at("not/there/leakscope"),
            at("with space"),
            at("with:colon"),
            at("with$dollar"),
        ];
        if rustix::process::geteuid().is_root() {
            std::fs::create_dir(at("theirs")).unwrap();
            std::fs::set_permissions(at("theirs"), std::fs::Permissions::from_mode(0o700)).unwrap();
            std::os::unix::fs::chown(at("theirs"), Some(1234), None).unwrap();
            places.push(at("theirs"));
            std::fs::create_dir(at("theirs2")).unwrap();
            std::os::unix::fs::chown(at("theirs2"), Some(1234), None).unwrap();
            places.push(at("theirs2/leakscope"));
        }
        for hostile in &places {
            assert!(place(hostile, &library(), HASH).is_err(), "{}", hostile.display());
        }
        places.push(at("good"));
        let found = place_in_first(&places, preload(&library(), HASH)).unwrap();
        assert!(found.path.starts_with(at("good")), "{}", found.path.display());
    }

    #[test]
    fn versions_that_nobody_used_for_a_month_are_removed() {
        let scratch = scratch();
        let base = scratch.path().join("leakscope");
        let hash = |digit: &str| digit.repeat(64);
        let age = |path: &Path, days: u64| {
            let time = std::time::SystemTime::now() - Duration::from_secs(days * 24 * 60 * 60);
            File::open(path).unwrap().set_modified(time).unwrap();
        };
        let old = place(&base, &library(), &hash("a")).unwrap();
        let young = place(&base, &library(), &hash("b")).unwrap();
        let in_use = place_in(&base, preload(&library(), &hash("c"))).unwrap();
        let shared = place(&base, &library(), &hash("d")).unwrap();
        std::fs::write(shared.with_file_name("other"), "x").unwrap();
        let foreign = base.join("notes");
        std::fs::create_dir(&foreign).unwrap();
        std::fs::write(foreign.join(FILE_NAME), "x").unwrap();
        for (path, days) in
            [(&old, 31), (&young, 29), (&in_use.path, 31), (&shared, 31), (&foreign.join(FILE_NAME), 99)]
        {
            age(path, days);
        }
        let own = place_in(&base, preload(&library(), &hash("e"))).unwrap();
        assert!(!old.parent().unwrap().exists());
        assert!(young.exists() && in_use.path.exists() && own.path.exists() && foreign.join(FILE_NAME).exists());
        assert!(!shared.exists() && shared.with_file_name("other").exists());
        // To be used makes it young, and it goes once nobody uses it.
        age(&own.path, 31);
        let again = place_in(&base, preload(&library(), &hash("e"))).unwrap();
        drop((own, again, in_use));
        place(&base, &library(), &hash("f")).unwrap();
        assert!(base.join(hash("e")).exists() && !base.join(hash("c")).exists());
    }

    #[test]
    fn a_sticky_shared_parent_is_good_enough() {
        let scratch = scratch();
        let shared = scratch.path().join("tmp");
        std::fs::create_dir(&shared).unwrap();
        std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o1777)).unwrap();
        assert!(place(&shared.join("leakscope-0"), &library(), HASH).is_ok());
    }

    #[test]
    fn without_any_place_a_memfd_serves() {
        let scratch = scratch();
        let file = scratch.path().join("file");
        std::fs::write(&file, "x").unwrap();
        let bytes = library();
        let carried = preload(&bytes, HASH);
        let refusals = place_in_first(&[file.join("leakscope")], carried).unwrap_err();
        assert_eq!(refusals.len(), 1);
        let found = in_memory(carried, refusals).unwrap();
        assert!(found.path.starts_with("/proc"));
        assert_eq!(std::fs::read(&found.path).unwrap(), library());
        assert!(File::options().write(true).open(&found.path).and_then(|mut file| file.write_all(b"x")).is_err());
    }

    #[test]
    fn candidates_come_in_the_documented_order() {
        let uid = rustix::process::geteuid().as_raw();
        let variable = |name: &str| match name {
            "LEAKSCOPE_CACHE_DIR" => Some("/own".into()),
            "XDG_CACHE_HOME" => Some("relative".into()),
            "HOME" => Some("/home/me".into()),
            "TMPDIR" => Some("/scratch".into()),
            _ => None,
        };
        let expected = [
            "/own".to_owned(),
            "/home/me/.cache/leakscope".to_owned(),
            format!("/dev/shm/leakscope-{uid}"),
            format!("/scratch/leakscope-{uid}"),
            format!("/var/tmp/leakscope-{uid}"),
            format!("/tmp/leakscope-{uid}"),
        ];
        assert_eq!(candidates(variable), expected.map(PathBuf::from));
    }
}
