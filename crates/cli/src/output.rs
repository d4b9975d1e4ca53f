//! Where reports go: standard streams, descriptors, log files named by a pattern, and `-o` files.
//!
//! An `-o` file is written beside its place and renamed at the end, so that an earlier one survives a failure.
//! A reader that has closed its pipe is not an error.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use rustix::fs::OFlags;

use crate::flags::Format;
use crate::log_name::LogName;

/// Where a report goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Standard error.
    Stderr,
    /// Standard output.
    Stdout,
    /// An inherited descriptor, by number.
    Descriptor(i32),
    /// A file for each expansion of the pattern.
    Log(LogName),
    /// One file, replaced at the end.
    Whole(PathBuf),
}

/// A report to write: in which format, and where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The format.
    pub format: Format,
    /// The place.
    pub destination: Destination,
}

/// Open places, by destination.
#[derive(Default)]
pub struct Outputs {
    logs: HashMap<PathBuf, File>,
    descriptors: HashMap<i32, File>,
    whole: HashMap<PathBuf, Replacement>,
    /// Where pieces of a process's report go: whether it is XML, and the process.
    pieces: HashMap<(bool, u32), PathBuf>,
}

/// Why text could not be written.
fn failed(path: &Path) -> String {
    format!("{}: cannot write the report; choose another place with -o or --log-file, or make room", path.display())
}

impl Outputs {
    /// Opens what does not depend on a process, so that a wrong name is known before the program starts.
    ///
    /// # Errors
    /// When a place cannot be written to.
    pub fn prepare(&mut self, targets: &[Target]) -> Result<()> {
        for target in targets {
            match &target.destination {
                Destination::Log(name) if !name.depends_on_process() => {
                    self.log(&name.expand(0, 0))?;
                }
                Destination::Whole(path) => {
                    self.whole(path)?;
                }
                Destination::Descriptor(number) => {
                    self.descriptor(*number)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Appends the report on process `pid` to a target.
    ///
    /// # Errors
    /// When it cannot be written, except to a pipe that nobody reads.
    pub fn write(&mut self, target: &Target, pid: u32, report: &[u8]) -> Result<()> {
        match &target.destination {
            Destination::Stderr => {
                tolerant(io::stderr().lock().write_all(report)).context("standard error: cannot write the report")
            }
            Destination::Stdout => {
                let mut out = io::stdout().lock();
                tolerant(out.write_all(report).and_then(|()| out.flush()))
                    .context("standard output: cannot write the report")
            }
            Destination::Descriptor(number) => tolerant(self.descriptor(*number)?.write_all(report))
                .with_context(|| format!("file descriptor {number}: cannot write the report")),
            Destination::Log(name) => {
                let mut path = name.expand(pid, 0);
                if target.format == Format::ValgrindXml {
                    path = self.unused_xml_name(path, pid);
                }
                let written = self.log(&path)?.write_all(report);
                written.with_context(|| failed(&path))
            }
            Destination::Whole(path) => self.whole(path)?.file.write_all(report).with_context(|| failed(path)),
        }
    }

    /// Appends a piece of a report that is written while the process runs; `begins` says that it is the first one.
    ///
    /// # Errors
    /// As of [`Outputs::write`].
    pub fn append(&mut self, target: &Target, pid: u32, begins: bool, piece: &[u8]) -> Result<()> {
        let Destination::Log(name) = &target.destination else { return self.write(target, pid, piece) };
        let key = (target.format == Format::ValgrindXml, pid);
        if begins {
            let path = name.expand(pid, 0);
            let path = if target.format == Format::ValgrindXml { self.unused_xml_name(path, pid) } else { path };
            self.pieces.insert(key, path);
        }
        let path = self.pieces.get(&key).cloned().unwrap_or_else(|| name.expand(pid, 0));
        let written = self.log(&path)?.write_all(piece);
        written.with_context(|| failed(&path))
    }

    /// An XML file holds one document: the second process gets its id behind the name.
    fn unused_xml_name(&self, path: PathBuf, pid: u32) -> PathBuf {
        let is_used = self.logs.get(&path).is_some_and(|file| file.metadata().is_ok_and(|metadata| metadata.len() > 0));
        if !is_used {
            return path;
        }
        let mut name = path.into_os_string();
        name.push(format!(".{pid}"));
        name.into()
    }

    fn descriptor(&mut self, number: i32) -> Result<&mut File> {
        match self.descriptors.entry(number) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => {
                let file = descriptor(number).with_context(|| {
                    format!("file descriptor {number}: it is not open for writing; open it (as in {number}>FILE) or choose another")
                })?;
                Ok(entry.insert(file))
            }
        }
    }

    fn log(&mut self, path: &Path) -> Result<&mut File> {
        if !self.logs.contains_key(path) {
            let file = File::create(path)
                .with_context(|| format!("{}: cannot create the log file; choose another name", path.display()))?;
            self.logs.insert(path.to_owned(), file);
        }
        self.logs.get_mut(path).context("the log file was just opened")
    }

    fn whole(&mut self, path: &Path) -> Result<&mut Replacement> {
        if !self.whole.contains_key(path) {
            self.whole.insert(path.to_owned(), Replacement::create(path)?);
        }
        self.whole.get_mut(path).context("the output file was just opened")
    }

    /// Puts `-o` files in their place.
    ///
    /// # Errors
    /// When a file cannot be completed.
    pub fn finish(self) -> Result<()> {
        self.whole.into_values().try_for_each(Replacement::commit)
    }
}

/// Whether text on this destination may have colours by default.
pub fn is_terminal(destination: &Destination) -> bool {
    match destination {
        Destination::Stderr => io::stderr().is_terminal(),
        Destination::Stdout => io::stdout().is_terminal(),
        Destination::Descriptor(number) => descriptor(*number).is_ok_and(|file| file.is_terminal()),
        Destination::Log(_) | Destination::Whole(_) => false,
    }
}

/// A duplicate of an inherited descriptor; it must be open for writing.
fn descriptor(number: i32) -> io::Result<File> {
    if number < 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the number is borrowed for two system calls only; one that is not open makes them fail.
    let inherited = unsafe { BorrowedFd::borrow_raw(number) };
    let flags = rustix::fs::fcntl_getfl(inherited)?;
    if !flags.intersects(OFlags::WRONLY | OFlags::RDWR) {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok(File::from(rustix::io::fcntl_dupfd_cloexec(inherited, 3)?))
}

/// Writes text to standard output.
///
/// # Errors
/// When it cannot be written, except to a pipe that nobody reads.
pub fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    tolerant(out.write_all(text.as_bytes()).and_then(|()| out.flush())).context("standard output: cannot write to it")
}

/// A broken pipe is no error: the reader has seen enough.
fn tolerant(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// A file that takes the place of another when it is complete.
pub struct Replacement {
    file: File,
    path: PathBuf,
    /// `None` for what cannot be replaced, such as `/dev/stdout`: it is written directly.
    temporary: Option<PathBuf>,
}

impl Replacement {
    /// Begins a file for `path`.
    ///
    /// # Errors
    /// When none can be made there.
    pub fn create(path: &Path) -> Result<Self> {
        let cannot = || format!("{}: cannot write there; choose another file for -o", path.display());
        if let Ok(metadata) = std::fs::metadata(path) {
            let kind = metadata.file_type();
            if kind.is_char_device() || kind.is_fifo() || kind.is_socket() {
                let file = OpenOptions::new().write(true).open(path).with_context(cannot)?;
                return Ok(Self { file, path: path.to_owned(), temporary: None });
            }
            if kind.is_dir() {
                return Err(io::Error::from(io::ErrorKind::IsADirectory)).with_context(cannot);
            }
        }
        // A link stays a link.
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let mut temporary = path.clone().into_os_string();
        temporary.push(format!(".{}.tmp", std::process::id()));
        let temporary = PathBuf::from(temporary);
        let file = OpenOptions::new().write(true).create_new(true).open(&temporary).with_context(cannot)?;
        Ok(Self { file, path, temporary: Some(temporary) })
    }

    /// Adds bytes.
    ///
    /// # Errors
    /// Such as a full disk.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).with_context(|| failed(&self.path))
    }

    /// Puts the file in its place.
    ///
    /// # Errors
    /// When its last bytes do not fit, or the directory may not be changed.
    pub fn commit(mut self) -> Result<()> {
        let Some(temporary) = self.temporary.take() else { return Ok(()) };
        // Some file systems tell of a full disk only now.
        let result = self.file.sync_data().and_then(|()| std::fs::rename(&temporary, &self.path));
        if result.is_err() {
            let _ = std::fs::remove_file(&temporary);
        }
        result.with_context(|| failed(&self.path))
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = std::fs::remove_file(temporary);
        }
    }
}
