//! Unpacks the injected library, which this binary carries, to a place from which targets can load it.
//!
//! The place must be ours alone: whoever can write there runs code in every traced program. A directory is
//! used when it belongs to us with mode 0700, was reached without following a link in its last two parts,
//! and nobody else can rename what lies above it. A shared `/tmp` with something in our way is refused, and
//! the next candidate is taken. The name holds the content's hash, so versions do not disturb each other; the
//! content is compared byte by byte before each use.
//!
//! Where nothing can be written (a read-only container without a `/tmp`), a memfd of our own process serves,
//! as `/proc/PID/fd/N`.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, MemfdFlags, Mode, OFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

use crate::Error;

/// The library's bytes.
static PRELOAD: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/preload.so"));
/// Their SHA-256, in hex.
const PRELOAD_SHA256: &str = env!("LEAKSCOPE_PRELOAD_SHA256");
/// The library's file name, by which it is known among the modules of a target.
pub const FILE_NAME: &str = "libleakscope_preload.so";
/// A file to load instead, for work on the library itself.
const OVERRIDE: &str = "LEAKSCOPE_PRELOAD_SO";

/// The library, at a path that targets can load.
#[derive(Debug)]
pub struct Library {
    /// Its path.
    pub path: PathBuf,
    /// Keeps a memfd open; the path dies with it.
    _memfd: Option<OwnedFd>,
}

/// Puts the library in place.
///
/// # Errors
/// [`Error::NoPlace`] with every candidate's reason.
pub fn unpack() -> Result<Library, Error> {
    if let Some(path) = std::env::var_os(OVERRIDE) {
        return match std::fs::metadata(&path) {
            Ok(_) => Ok(Library { path: path.into(), _memfd: None }),
            Err(error) => Err(Error::NoPlace(vec![(path.into(), format!("{OVERRIDE} names it, and it cannot be read: {error}"))])),
        };
    }
    unpack_to(&candidates(|name| std::env::var_os(name)), PRELOAD, PRELOAD_SHA256)
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

fn unpack_to(candidates: &[PathBuf], content: &[u8], hash: &str) -> Result<Library, Error> {
    let mut refusals = Vec::new();
    for candidate in candidates {
        match place_in(candidate, content, hash) {
            Ok(path) => return Ok(Library { path, _memfd: None }),
            Err(reason) => refusals.push((candidate.clone(), reason)),
        }
    }
    match place_in_memfd(content) {
        Ok(library) => Ok(library),
        Err(error) => {
            refusals.push((PathBuf::from("memfd"), error.to_string()));
            Err(Error::NoPlace(refusals))
        }
    }
}

/// Puts the file under `<base>/<hash>/`; gives its path, or why it cannot be there.
fn place_in(base: &Path, content: &[u8], hash: &str) -> Result<PathBuf, String> {
    // LD_PRELOAD is a list separated by spaces and colons, and a dollar sign begins a token.
    if base.as_os_str().as_bytes().iter().any(|byte| byte.is_ascii_whitespace() || matches!(byte, b':' | b'$')) {
        return Err("LD_PRELOAD cannot hold a path with a space, a colon or a dollar sign".into());
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
    let directory = open_own_directory(&base_fd, Path::new(hash))?;
    if !is_good_file(&directory, content)? {
        write_file(&directory, content).map_err(|error| format!("cannot write there: {error}"))?;
        if !is_good_file(&directory, content)? {
            return Err("what was written reads back differently".into());
        }
    }
    Ok(parent.join(name).join(hash).join(FILE_NAME))
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
        rustix::io::Errno::LOOP | rustix::io::Errno::NOTDIR => format!("{} is not a directory but a link or a file", name.display()),
        error => format!("cannot open it: {error}"),
    })?;
    let metadata = rustix::fs::fstat(&directory).map_err(|error| error.to_string())?;
    if metadata.st_uid != rustix::process::geteuid().as_raw() {
        return Err(format!("it belongs to user {}", metadata.st_uid));
    }
    if metadata.st_mode & 0o077 != 0 {
        // A directory of ours that an earlier hand or a umask opened to others may hold something of theirs.
        return Err(format!("its mode is {:o}, expected 700; chmod 700 it after a look inside, or remove it", metadata.st_mode & 0o7777));
    }
    Ok(directory)
}

/// Whether the file is there with our content and may be mapped for execution. A file that is not as
/// expected counts as absent and is replaced.
fn is_good_file(directory: &OwnedFd, content: &[u8]) -> Result<bool, String> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(fd) = rustix::fs::openat(directory, FILE_NAME, flags, Mode::empty()) else { return Ok(false) };
    let mut file = File::from(fd);
    let metadata = file.metadata().map_err(|error| error.to_string())?;
    let own = metadata.is_file() && metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o022 == 0;
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
        match rustix::mm::mmap(std::ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::EXEC, MapFlags::PRIVATE, file, 0) {
            Ok(map) => rustix::mm::munmap(map, bytes).is_ok(),
            Err(_) => false,
        }
    }
}

/// Writes under a temporary name, then renames: another leakscope never sees half a file.
fn write_file(directory: &OwnedFd, content: &[u8]) -> io::Result<()> {
    let temporary = format!(".{}.{:x}", std::process::id(), rustix::time::clock_gettime(rustix::time::ClockId::Monotonic).tv_nsec);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let result = (|| {
        let fd = rustix::fs::openat(directory, &temporary, flags, Mode::RUSR | Mode::WUSR | Mode::XUSR)?;
        File::from(fd).write_all(content)?;
        if let Err(rustix::io::Errno::ISDIR | rustix::io::Errno::NOTEMPTY) = rustix::fs::renameat(directory, &temporary, directory, FILE_NAME) {
            return Err(io::Error::other(format!("{FILE_NAME} is a directory there; remove it")));
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
    Ok(Library { path, _memfd: Some(file.into()) })
}
