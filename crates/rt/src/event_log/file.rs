//! The file of the event log: its name, its descriptor, and writing to it without harm to the program.
//!
//! The descriptor has a high number, where few programs look; one that closes all of them, or puts a file of its own
//! there, is noticed before each write by what the descriptor refers to, and the file is opened again by its name. A write
//! that fails with a signal (SIGXFSZ, SIGPIPE) takes that signal back: the program would die of our log.
//!
//! May run in any thread, in signal handlers, and in a process that is about to end. No allocation.

use crate::raw::{self, Errno, call, nr};

mod more_nr {
    pub const FSTAT: usize = 5;
    pub const LSEEK: usize = 8;
    pub const SENDFILE: usize = 40;
    pub const FTRUNCATE: usize = 77;
    pub const RT_SIGTIMEDWAIT: usize = 128;
    pub const PRLIMIT64: usize = 302;
}

const AT_FDCWD: isize = -100;
const O_WRONLY: usize = 1;
const O_CREAT: usize = 0o100;
const O_EXCL: usize = 0o200;
const O_NOCTTY: usize = 0o400;
const O_TRUNC: usize = 0o1000;
const O_APPEND: usize = 0o2000;
const O_CLOEXEC: usize = 0o2_000_000;
const EFBIG: i32 = 27;
const ENOSPC: i32 = 28;
const EPIPE: i32 = 32;
const EBADF: i32 = 9;
const EEXIST: i32 = 17;
const ENAMETOOLONG: i32 = 36;

/// Longest path, its zero byte included.
pub const PATH_BYTES: usize = 4096;

/// A path, ended by a zero byte.
#[derive(Clone, Copy)]
pub struct Path {
    bytes: [u8; PATH_BYTES],
    length: usize,
}

impl Path {
    /// The empty path.
    pub const fn new() -> Self {
        Self { bytes: [0; PATH_BYTES], length: 0 }
    }

    /// The bytes in front of the zero byte.
    pub fn get(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or(&[])
    }

    /// Makes it empty.
    pub fn clear(&mut self) {
        self.cut(0);
    }

    fn cut(&mut self, length: usize) {
        self.length = length.min(self.length);
        if let Some(end) = self.bytes.get_mut(self.length) {
            *end = 0;
        }
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// ENAMETOOLONG; the path is then cut.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        for &byte in bytes {
            if self.length + 1 >= PATH_BYTES {
                return Err(Errno(ENAMETOOLONG));
            }
            if let Some([place, end]) = self.bytes.get_mut(self.length..self.length + 2) {
                (*place, *end) = (byte, 0);
            }
            self.length += 1;
        }
        Ok(())
    }

    /// Appends a number in decimal digits.
    ///
    /// # Errors
    /// As [`Path::push`].
    pub fn push_number(&mut self, number: u32) -> Result<(), Errno> {
        let mut digits = [0u8; 10];
        let mut first = digits.len();
        let mut rest = number;
        while let Some(digit) = first.checked_sub(1).and_then(|at| digits.get_mut(at)) {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
            first -= 1;
            if rest == 0 {
                break;
            }
        }
        self.push(digits.get(first..).unwrap_or(&[]))
    }

    /// Sets it to what `template` names for this process: `%p` is its id, `%%` a percent sign. `numbered` adds the id
    /// behind a dot where the template has none: the name of a process beside the one that has the plain name.
    ///
    /// # Errors
    /// As [`Path::push`].
    pub fn expand(&mut self, template: &[u8], pid: u32, numbered: bool) -> Result<(), Errno> {
        self.clear();
        let mut has_pid = false;
        let mut rest = template.iter();
        while let Some(&byte) = rest.next() {
            match byte {
                b'%' if rest.as_slice().first() == Some(&b'p') => {
                    rest.next();
                    has_pid = true;
                    self.push_number(pid)?;
                }
                b'%' => {
                    rest.next();
                    self.push(b"%")?;
                }
                other => self.push(&[other])?,
            }
        }
        if numbered && !has_pid {
            self.push(b".")?;
            self.push_number(pid)?;
        }
        Ok(())
    }
}

/// Device and inode.
type Identity = (u64, u64);

/// A file that is written from its begin on.
pub struct File {
    fd: i32,
    identity: Identity,
    /// Where it is; absolute.
    path: Path,
}

impl File {
    /// No file.
    pub const fn none() -> Self {
        Self { fd: -1, identity: (0, 0), path: Path::new() }
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the file at `path`, or empties the one that is there.
    ///
    /// # Errors
    /// The errno of what failed.
    pub fn create(&mut self, path: &Path) -> Result<(), Errno> {
        self.open(path, O_CREAT | O_TRUNC)
    }

    /// Makes a file that is not there: at `path`, or with a number behind it.
    ///
    /// # Errors
    /// The errno of what failed.
    pub fn create_fresh(&mut self, path: &Path) -> Result<(), Errno> {
        let mut numbered = *path;
        for number in 1..100 {
            match self.open(&numbered, O_CREAT | O_EXCL) {
                Err(Errno(EEXIST)) => {}
                other => return other,
            }
            numbered.cut(path.length);
            numbered.push(b".")?;
            numbered.push_number(number)?;
        }
        Err(Errno(EEXIST))
    }

    fn open(&mut self, path: &Path, flags: usize) -> Result<(), Errno> {
        const READ_WRITE_FOR_ALL: usize = 0o666;
        let flags = O_WRONLY | O_CLOEXEC | O_NOCTTY | flags;
        // SAFETY: the path ends with a zero byte.
        let fd = unsafe { call!(nr::OPENAT, AT_FDCWD, path.bytes.as_ptr(), flags, READ_WRITE_FOR_ALL) }? as i32;
        self.fd = move_up(fd);
        self.identity = identity(self.fd).unwrap_or((0, 0));
        self.path = *path;
        if path.get().first() == Some(&b'/') { Ok(()) } else { self.make_absolute() }
    }

    /// A relative name would mean another file once the program has changed its folder.
    #[cold]
    #[inline(never)]
    fn make_absolute(&mut self) -> Result<(), Errno> {
        self.path.clear();
        self.path.push(b"/proc/self/fd/")?;
        self.path.push_number(self.fd as u32)?;
        let mut target = [0u8; PATH_BYTES];
        let link = core::ffi::CStr::from_bytes_until_nul(&self.path.bytes).unwrap_or(c"");
        let length = crate::modules::read_link(link, &mut target);
        self.path.clear();
        self.path.push(target.get(..length).unwrap_or(&[]))
    }

    /// Forgets the file without closing it: it is the parent process's.
    pub fn leave(&mut self) {
        if self.fd >= 0 && identity(self.fd) == Some(self.identity) {
            raw::close(self.fd);
        }
        self.fd = -1;
    }

    /// Closes the file.
    pub fn close(&mut self) {
        self.leave();
    }

    /// The descriptor, for a copy of the process that closes all others.
    pub fn descriptor(&self) -> i32 {
        self.fd
    }

    /// Makes sure that the descriptor is that of our file.
    fn ensure_ours(&mut self) -> Result<(), Errno> {
        if identity(self.fd) == Some(self.identity) {
            return Ok(());
        }
        // SAFETY: the path ends with a zero byte.
        let fd = unsafe {
            call!(nr::OPENAT, AT_FDCWD, self.path.bytes.as_ptr(), O_WRONLY | O_CLOEXEC | O_NOCTTY | O_APPEND, 0)
        }? as i32;
        if identity(fd) != Some(self.identity) {
            raw::close(fd);
            return Err(Errno(EBADF));
        }
        self.fd = move_up(fd);
        Ok(())
    }

    /// Writes all of `bytes`, or nothing: what was written of them is taken away again when it cannot go on.
    ///
    /// # Errors
    /// The errno of what failed.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        self.ensure_ours()?;
        let signals: u64 = 1 << (libc::SIGXFSZ - 1) | 1 << (libc::SIGPIPE - 1);
        let mut before = 0u64;
        // SAFETY: the kernel reads and writes one word each.
        let blocked =
            unsafe { call!(nr::RT_SIGPROCMASK, libc::SIG_BLOCK, &raw const signals, &raw mut before, 8) }.is_ok();
        let mut rest = bytes;
        let result = loop {
            if rest.is_empty() {
                break Ok(());
            }
            // SAFETY: the kernel reads `rest`.
            match unsafe { call!(nr::WRITE, self.fd, rest.as_ptr(), rest.len()) } {
                Ok(0) => break Err(Errno(ENOSPC)),
                Ok(written) => rest = rest.get(written..).unwrap_or(&[]),
                Err(Errno(4)) => {}
                Err(error) => break Err(error),
            }
        };
        if let Err(error) = result {
            self.take_back(bytes.len() - rest.len());
            if blocked && matches!(error.0, EFBIG | EPIPE) {
                let signal: u64 = 1 << (if error.0 == EFBIG { libc::SIGXFSZ } else { libc::SIGPIPE } - 1) & !before;
                let at_once = [0u64; 2];
                // SAFETY: the kernel reads the set and the time; no information is asked for.
                let _ = unsafe { call!(more_nr::RT_SIGTIMEDWAIT, &raw const signal, 0, at_once.as_ptr(), 8) };
            }
        }
        if blocked {
            // SAFETY: the kernel reads one word.
            let _ = unsafe { call!(nr::RT_SIGPROCMASK, libc::SIG_SETMASK, &raw const before, 0, 8) };
        }
        result
    }

    /// Cuts off the last `bytes` bytes: a line that is cut in the middle is none.
    fn take_back(&self, bytes: usize) {
        const SEEK_CUR: usize = 1;
        if bytes == 0 {
            return;
        }
        // SAFETY: no pointers. Pipes have no place, and nothing is cut.
        let Ok(end) = (unsafe { call!(more_nr::LSEEK, self.fd, 0, SEEK_CUR) }) else { return };
        // SAFETY: no pointers.
        let _ = unsafe { call!(more_nr::FTRUNCATE, self.fd, end.saturating_sub(bytes)) };
    }

    /// Appends the first `bytes` bytes of the file at `from`.
    ///
    /// # Errors
    /// The errno of what failed.
    pub fn append_begin_of(&mut self, from: &Path, bytes: u64) -> Result<(), Errno> {
        // SAFETY: the path ends with a zero byte.
        let source = unsafe { call!(nr::OPENAT, AT_FDCWD, from.bytes.as_ptr(), O_CLOEXEC | O_NOCTTY, 0) }? as i32;
        let mut left = bytes as usize;
        let result = loop {
            if left == 0 {
                break Ok(());
            }
            // SAFETY: no pointers: the source's own place moves.
            match unsafe { call!(more_nr::SENDFILE, self.fd, source, 0, left.min(1 << 30)) } {
                Ok(0) => break Err(Errno(ENOSPC)),
                Ok(copied) => left -= copied,
                Err(Errno(4)) => {}
                Err(error) => break Err(error),
            }
        };
        raw::close(source);
        result
    }
}

/// What a descriptor refers to; `None` when it is not open.
fn identity(fd: i32) -> Option<Identity> {
    // SAFETY: integers; the kernel fills it in.
    let mut status: libc::stat = unsafe { core::mem::zeroed() };
    // SAFETY: as above.
    unsafe { call!(more_nr::FSTAT, fd, &raw mut status) }.ok()?;
    Some((status.st_dev, status.st_ino))
}

/// The same file under a high number, which stays free of the program's own; the given one when there is none.
fn move_up(fd: i32) -> i32 {
    const RLIMIT_NOFILE: usize = 7;
    const F_DUPFD_CLOEXEC: usize = 1030;
    // A higher number makes the kernel's table of the process larger.
    const HIGHEST: u64 = 1024;
    const ROOM: u64 = 32;
    let mut limit = [0u64; 2];
    // SAFETY: the kernel writes two words.
    if unsafe { call!(more_nr::PRLIMIT64, 0, RLIMIT_NOFILE, 0, limit.as_mut_ptr()) }.is_err() {
        return fd;
    }
    let Some(lowest) = limit[0].min(HIGHEST).checked_sub(ROOM) else { return fd };
    // SAFETY: no pointers.
    match unsafe { call!(nr::FCNTL, fd, F_DUPFD_CLOEXEC, lowest) } {
        Ok(higher) => {
            raw::close(fd);
            higher as i32
        }
        Err(_) => fd,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;

    fn path(of: &std::path::Path) -> Path {
        let mut path = Path::new();
        path.push(of.as_os_str().as_bytes()).unwrap();
        path
    }

    #[test]
    fn names_by_table() {
        for (template, numbered, expected) in [
            ("/a/log", false, "/a/log"),
            ("/a/log", true, "/a/log.42"),
            ("/a/%p.log", false, "/a/42.log"),
            ("/a/%p.log", true, "/a/42.log"),
            ("/a/100%%", true, "/a/100%.42"),
        ] {
            let mut path = Path::new();
            path.expand(template.as_bytes(), 42, numbered).unwrap();
            assert_eq!(path.get(), expected.as_bytes(), "{template}");
        }
        let mut path = Path::new();
        assert_eq!(path.push(&[b'x'; PATH_BYTES]), Err(Errno(ENAMETOOLONG)));
        assert_eq!(path.get().len(), PATH_BYTES - 1);
        for number in [0, 7, 10, u32::MAX] {
            path.clear();
            path.push_number(number).unwrap();
            assert_eq!(path.get(), number.to_string().as_bytes());
        }
    }

    #[test]
    fn a_descriptor_that_the_program_takes_is_not_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let (name, other) = (dir.path().join("log"), dir.path().join("other"));
        let mut file = File::none();
        file.create(&path(&name)).unwrap();
        file.write(b"one\n").unwrap();
        let victim = std::fs::File::create(&other).unwrap();
        // SAFETY: the number is the log's.
        assert!(unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&victim), file.descriptor()) } >= 0);
        file.write(b"two\n").unwrap();
        assert_eq!(std::fs::read(&other).unwrap(), b"");
        assert_eq!(std::fs::read(&name).unwrap(), b"one\ntwo\n");
        file.close();
        std::fs::remove_file(&name).unwrap();
        assert_eq!(file.write(b"three\n"), Err(Errno(2)));
    }

    #[test]
    fn a_fresh_file_spares_those_that_are_there() {
        let dir = tempfile::tempdir().unwrap();
        let name = dir.path().join("log");
        for (number, expected) in ["log", "log.1", "log.2"].into_iter().enumerate() {
            let mut file = File::none();
            file.create_fresh(&path(&name)).unwrap();
            file.write(&[b'0' + number as u8]).unwrap();
            file.close();
            assert_eq!(file.path().get(), dir.path().join(expected).as_os_str().as_bytes());
            assert_eq!(std::fs::read(dir.path().join(expected)).unwrap(), [b'0' + number as u8]);
        }
    }

    #[test]
    fn a_pipe_that_nobody_reads_ends_the_log_and_not_the_program() {
        let mut ends = [0; 2];
        // SAFETY: the kernel writes two descriptors.
        assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
        // SAFETY: the descriptor is ours. The test harness ignores SIGPIPE: here it shall do what it does in a program.
        unsafe {
            libc::close(ends[0]);
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        }
        let mut file = File { fd: ends[1], identity: identity(ends[1]).unwrap(), path: Path::new() };
        assert_eq!(file.write(b"line\n"), Err(Errno(EPIPE)));
        file.close();
    }

    #[test]
    fn a_begin_is_copied() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("from"), b"0123456789").unwrap();
        let mut file = File::none();
        file.create(&path(&dir.path().join("to"))).unwrap();
        file.append_begin_of(&path(&dir.path().join("from")), 4).unwrap();
        file.write(b"x").unwrap();
        assert_eq!(std::fs::read(dir.path().join("to")).unwrap(), b"0123x");
    }
}
