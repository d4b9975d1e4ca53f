//! What other tools wrote, as recordings: their findings get our reports, our rules and our fingerprints.
//!
//! One file per foreign format. Every parser reads a stream to its end with memory that grows with what is distinct in
//! it (stacks, live blocks), takes truncated and mixed input as it comes, counts the lines that make no sense to it,
//! and never panics. Nothing here opens a file: bytes come from a reader, names for bare addresses from a
//! [`Resolver`].
#![forbid(unsafe_code)]

mod decompress;
mod drmemory;
mod finish;
mod heap_profile;
mod heaptrack;
mod kernel_report;
mod kmemleak;
mod lines;
mod log;
mod massif;
mod memcheck;
mod memleak;
mod memray;
pub mod mtrace;
mod page_owner;
mod pprof;
mod sanitizer;
mod sink;
mod traced;
mod valgrind_text;
mod valgrind_xml;

use std::fmt;
use std::io::{self, BufRead, Cursor, Read};

pub use finish::{Imported, NoNames, Resolver};
pub use kmemleak::{KernelName, KernelNames, Scans, kernel_scan};
pub use sink::Unread;
pub use traced::{TraceFacts, TracedSite, kernel_trace, user_trace};

use sink::Sink;

/// A format that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Format {
    /// Valgrind's text, a sanitizer's report, memleak's listing, or what the kernel's kmemleak, KASAN, KFENCE, SLUB debug and
    /// page_owner write, in a log that may hold more.
    Log,
    /// Valgrind's XML.
    ValgrindXml,
    /// A log of glibc's mtrace.
    Mtrace,
    /// A file of heaptrack.
    Heaptrack,
    /// A text heap profile of jemalloc or gperftools.
    HeapProfile,
    /// A profile in pprof's protobuf.
    Pprof,
    /// A file of Massif.
    Massif,
    /// Results of Dr. Memory.
    DrMemory,
    /// A table of memray.
    Memray,
}

impl Format {
    /// All formats.
    pub const ALL: [Format; 9] = [
        Self::Log,
        Self::ValgrindXml,
        Self::Mtrace,
        Self::Heaptrack,
        Self::HeapProfile,
        Self::Pprof,
        Self::Massif,
        Self::DrMemory,
        Self::Memray,
    ];

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Log => "a log of Valgrind, a sanitizer, memleak or the kernel",
            Self::ValgrindXml => "Valgrind's XML",
            Self::Mtrace => "a log of glibc's mtrace",
            Self::Heaptrack => "a heaptrack file",
            Self::HeapProfile => "a heap profile of jemalloc or gperftools",
            Self::Pprof => "a pprof profile",
            Self::Massif => "a Massif file",
            Self::DrMemory => "results of Dr. Memory",
            Self::Memray => "a table of memray",
        }
    }
}

/// Why nothing was imported. The words follow the name of the file and a colon.
#[derive(Debug)]
pub enum ImportError {
    /// Reading failed.
    Read(io::Error),
    /// The bytes are of no format that is known.
    Unknown,
}

impl fmt::Display for ImportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(error) => write!(f, "cannot read on: {error}"),
            Self::Unknown => write!(
                f,
                "no format that is known; expected output of Valgrind, AddressSanitizer, LeakSanitizer, mtrace, \
                 kmemleak, KASAN, KFENCE, SLUB debug, page_owner, heaptrack, memleak, jemalloc, pprof, Massif, Dr. Memory \
                 or memray. help: give the file as the tool wrote it"
            ),
        }
    }
}

impl std::error::Error for ImportError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Read(error) => Some(error),
            Self::Unknown => None,
        }
    }
}

/// Bytes that are looked at to recognise a format.
const HEAD: usize = 64 << 10;

/// The format that a file of these first bytes has. `None` for what may still be a log: one that begins with other
/// output.
pub fn recognise(head: &[u8]) -> Option<Format> {
    let text = String::from_utf8_lossy(head);
    let text = text.trim_start_matches('\u{feff}');
    let begins = text.trim_start();
    Some(match () {
        () if heap_profile::is_profile(begins) => Format::HeapProfile,
        () if massif::is_massif(begins) => Format::Massif,
        () if heaptrack::is_heaptrack(begins) => Format::Heaptrack,
        () if begins.starts_with("= Start") || is_mtrace(begins) => Format::Mtrace,
        () if text.contains("<valgrindoutput>") => Format::ValgrindXml,
        () if memray::is_table(begins) => Format::Memray,
        () if drmemory::is_results(begins) => Format::DrMemory,
        () if sanitizer::is_report(text)
            || kmemleak::is_dump(text)
            || kernel_report::is_report(text)
            || page_owner::is_list(text)
            || memleak::is_listing(text)
            || text.lines().any(|line| valgrind_text::prefix(&lines::without_colour(line)).is_some()) =>
        {
            Format::Log
        }
        () if pprof::is_profile(head) => Format::Pprof,
        () => return None,
    })
}

/// A line of mtrace's at the beginning of a log whose start is lost.
fn is_mtrace(text: &str) -> bool {
    let line = text.lines().next().unwrap_or_default();
    line.starts_with("@ ") && ["] + 0x", "] - 0x", "] < 0x", "] > 0x", "] ! 0x"].iter().any(|mark| line.contains(mark))
}

/// The contents of `input`, which may be compressed by gzip or zstd.
///
/// # Errors
/// Those of `input`.
pub fn decompressed<'a>(input: Box<dyn BufRead + 'a>) -> io::Result<Box<dyn BufRead + 'a>> {
    decompress::plain(input)
}

/// What `input` holds, compressed or not; its format is found by its first bytes.
///
/// # Errors
/// When reading fails, or when the format is unknown.
pub fn import<'a>(
    input: Box<dyn BufRead + 'a>,
    resolver: &mut dyn Resolver,
) -> Result<(Format, Imported), ImportError> {
    let mut input = decompress::plain(input).map_err(ImportError::Read)?;
    let mut head = Vec::new();
    input.by_ref().take(HEAD as u64).read_to_end(&mut head).map_err(ImportError::Read)?;
    let recognised = recognise(&head);
    // Binary data are no log, however far one reads.
    if recognised.is_none() && head.iter().take(4096).any(|&byte| byte == 0) {
        return Err(ImportError::Unknown);
    }
    let format = recognised.unwrap_or(Format::Log);
    let imported = import_as(format, &mut Cursor::new(head).chain(input), resolver).map_err(ImportError::Read)?;
    if recognised.is_none() && imported.processes.is_empty() {
        return Err(ImportError::Unknown);
    }
    Ok((format, imported))
}

/// What `input` holds, which is known to be of this format and not compressed.
///
/// # Errors
/// Those of `input`.
pub fn import_as(format: Format, input: &mut dyn BufRead, resolver: &mut dyn Resolver) -> io::Result<Imported> {
    let mut sink = Sink::default();
    let read: fn(&mut dyn BufRead, &mut Sink) -> io::Result<()> = match format {
        Format::Log => log::read,
        Format::ValgrindXml => valgrind_xml::read,
        Format::Mtrace => mtrace::import,
        Format::Heaptrack => heaptrack::read,
        Format::HeapProfile => heap_profile::read,
        Format::Pprof => pprof::read,
        Format::Massif => massif::read,
        Format::DrMemory => drmemory::read,
        Format::Memray => memray::read,
    };
    let result = read(input, &mut sink);
    // Compressed data that break off, as they do when a tool is killed, still hold what came before.
    match result {
        Err(error) if is_cut(&error) && !sink.processes.is_empty() => {
            for process in &mut sink.processes {
                process.out.problems.push(format!("the file is cut off or damaged: {error}"));
            }
        }
        other => other?,
    }
    Ok(finish::finish(sink, resolver))
}

fn is_cut(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput)
}
