//! Cores of running processes, which go on: what a target had in memory when it came near its limit.
//!
//! The process is stopped thread by thread (`PTRACE_SEIZE`, so that neither it nor its parent sees a signal), its memory is
//! copied out of `/proc/PID/mem`, and it goes on. What makes this safe near a limit:
//!
//! * Only pages that are resident are read. What is on swap or was never touched is left out: reading it would take memory
//!   that is not there, of the very group that has none left.
//! * The file's size and the time that the process stands still are bounded; what does not fit is left out, the largest
//!   mappings first, and the file can be read all the same.
//! * There must be room on the disk for it and for a good deal more. What is written reaches the disk piece by piece, so that
//!   it does not pile up in memory.
//! * It is done by a run of this program of its own (`leakscope monitor core`): one that is killed lets the process go on,
//!   because the kernel ends the tracing with the tracer.
//!
//! The file is readable for its owner alone: memory holds secrets. x86-64 alone.

mod elf;

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use leakscope_process::maps::{Mapping, read_maps};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::units::show_bytes;
use elf::{Layout, Segment};

const PAGE: u64 = 4096;
/// How long a process stands still at most.
const STILL: Duration = Duration::from_secs(20);
/// What must be left on the disk: this much, and this share of it, of which this is enough.
const LEAVE_BYTES: u64 = 256 << 20;
const LEAVE_SHARE: u64 = 20;
const LEAVE_ENOUGH: u64 = 4 << 30;
/// Segments of a file: they are counted in 16 bits.
const MOST_SEGMENTS: usize = 65_000;
/// Read at once.
const CHUNK: u64 = 1 << 20;
/// Written before it must have reached the disk.
const FLUSH: u64 = 32 << 20;
/// A run of its own that takes longer is ended.
const PATIENCE: Duration = Duration::from_secs(120);

/// A core that was taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Taken {
    /// Bytes of memory that are in it.
    pub bytes: u64,
    /// Bytes that were resident and did not fit, in size or time.
    pub left_out_bytes: u64,
    /// Bytes that were on swap.
    pub swap_bytes: u64,
    /// Threads.
    pub threads: usize,
    /// How long the process stood still.
    pub still: Duration,
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |bytes: u64| show_bytes(bytes as f64);
        write!(f, "{} of {} threads", show(self.bytes), self.threads)?;
        write!(f, "; the process stood still for {} ms", self.still.as_millis())?;
        for (bytes, words) in [(self.left_out_bytes, "did not fit"), (self.swap_bytes, "on swap were not read")] {
            if bytes > 0 {
                write!(f, "; {} {words}", show(bytes))?;
            }
        }
        Ok(())
    }
}

/// Why no core was taken.
#[derive(Debug)]
pub enum CoreError {
    /// The process cannot be looked into.
    Process {
        /// Which.
        pid: u32,
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The file cannot be written.
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The disk is too full.
    Room {
        /// The folder.
        path: PathBuf,
        /// What the core takes.
        wanted: u64,
        /// What is free.
        free: u64,
    },
}

impl fmt::Display for CoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process { pid, what, source } => write!(f, "core of process {pid}: cannot {what}: {source}"),
            Self::File { path, source } => write!(f, "core {}: cannot write it: {source}", path.display()),
            Self::Room { path, wanted, free } => write!(
                f,
                "core of {} in {}: only {} are free, and some must be left; make room, or write a smaller core_size",
                show_bytes(*wanted as f64),
                path.display(),
                show_bytes(*free as f64)
            ),
        }
    }
}

impl std::error::Error for CoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Process { source, .. } | Self::File { source, .. } => Some(source),
            Self::Room { .. } => None,
        }
    }
}

/// The threads of a process, stopped as long as this lives; and what each had in its registers.
struct Stopped {
    threads: Vec<(Pid, Option<Signal>)>,
}

impl Drop for Stopped {
    fn drop(&mut self) {
        for (thread, signal) in &self.threads {
            // A thread that was killed meanwhile is gone.
            let _ = ptrace::detach(*thread, *signal);
        }
    }
}

impl Stopped {
    fn new(pid: u32) -> io::Result<Self> {
        let mut stopped = Self { threads: Vec::new() };
        // A thread that is not stopped yet may start others.
        loop {
            let mut is_new = false;
            for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
                let Some(thread) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
                let thread = Pid::from_raw(thread);
                if stopped.threads.iter().any(|(known, _)| *known == thread) {
                    continue;
                }
                is_new = true;
                match stop(thread) {
                    Ok(signal) => stopped.threads.push((thread, signal)),
                    // It ended between two looks.
                    Err(nix::Error::ESRCH | nix::Error::ECHILD) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            if !is_new {
                break;
            }
        }
        // The first thread comes first: debuggers begin with it.
        stopped.threads.sort_by_key(|(thread, _)| (thread.as_raw() as u32 != pid, *thread));
        if stopped.threads.is_empty() { Err(io::ErrorKind::NotFound.into()) } else { Ok(stopped) }
    }
}

/// Stops a thread; gives the signal that was on its way to it, which it must get when it goes on.
fn stop(thread: Pid) -> nix::Result<Option<Signal>> {
    ptrace::seize(thread, ptrace::Options::empty())?;
    ptrace::interrupt(thread)?;
    match waitpid(thread, Some(WaitPidFlag::__WALL))? {
        WaitStatus::Stopped(_, signal) => Ok(Some(signal)),
        WaitStatus::Exited(..) | WaitStatus::Signaled(..) => Err(nix::Error::ESRCH),
        _ => Ok(None),
    }
}

/// Writes a core of a process into a new file of at most `most_bytes` of memory. The process goes on.
///
/// # Errors
/// When the process is gone or not ours, the file is there already or cannot be written, or the disk is too full.
pub fn take(pid: u32, path: &Path, most_bytes: u64) -> Result<Taken, CoreError> {
    let failed = |what| move |source| CoreError::Process { pid, what, source };
    let unwritten = |source| CoreError::File { path: path.to_owned(), source };
    let begin = Instant::now();
    let stopped = Stopped::new(pid).map_err(failed("stop it"))?;
    let memory = File::open(format!("/proc/{pid}/mem")).map_err(failed("read its memory"))?;
    let maps = read_maps(pid).map_err(failed("read its mappings"))?;
    let pages = File::open(format!("/proc/{pid}/pagemap")).map_err(failed("read its page tables"))?;
    let (mut segments, mut swap_bytes) = (Vec::new(), 0);
    for mapping in maps.iter().filter(|mapping| wanted(mapping) != Wanted::Nothing) {
        let resident = resident(&pages, mapping).map_err(failed("read its page tables"))?;
        swap_bytes += resident.swap_bytes;
        segments.extend(segments_of(mapping, resident.ranges));
    }
    // A file's header has room for few: those with the highest addresses stay, among them the stack.
    segments.retain(|segment| !segment.ranges.is_empty());
    let too_many = segments.len().saturating_sub(MOST_SEGMENTS);
    let dropped: u64 = segments.drain(..too_many).map(|segment| segment.bytes()).sum();
    let left_out_bytes = dropped + fit(&mut segments, most_bytes);
    check_room(path, segments.iter().map(Segment::bytes).sum())?;
    let threads: Vec<_> = stopped
        .threads
        .iter()
        .filter_map(|(thread, _)| Some((thread.as_raw() as u32, ptrace::getregs(*thread).ok()?)))
        .collect();
    let notes = elf::notes(pid, &threads, &maps);
    let layout = Layout::new(&notes, &segments);
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(unwritten)?;
    file.write_all_at(&layout.head, 0).map_err(unwritten)?;
    let copied = copy(&memory, &file, &segments, &layout, begin + STILL).map_err(unwritten)?;
    drop(stopped);
    let still = begin.elapsed();
    file.set_len(layout.end).and_then(|()| file.sync_all()).map_err(unwritten)?;
    Ok(Taken {
        bytes: copied,
        left_out_bytes: left_out_bytes + segments.iter().map(Segment::bytes).sum::<u64>().saturating_sub(copied),
        swap_bytes,
        threads: threads.len(),
        still,
    })
}

/// Which pages of a mapping are wanted.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Wanted {
    Nothing,
    /// Those that are not as the file has them, relocated ones above all, and the one with the program's headers.
    Changed,
    /// All that are resident.
    All,
}

fn wanted(mapping: &Mapping) -> Wanted {
    const MEMORY: [&[u8]; 4] = [b"/dev/shm/", b"/memfd:", b"/SYSV", b"/dev/zero"];
    let name = mapping.name.as_encoded_bytes();
    let is_memory = MEMORY.iter().any(|beginning| name.starts_with(beginning));
    let is_device = name.starts_with(b"/dev/") && !is_memory;
    let is_kernels = name == b"[vvar]" || name == b"[vsyscall]" || name == b"[vvar_vclock]";
    match mapping {
        _ if !mapping.readable || is_device || is_kernels => Wanted::Nothing,
        _ if mapping.inode == 0 || is_memory => Wanted::All,
        _ => Wanted::Changed,
    }
}

/// The segments of a mapping whose resident pages are known. What is missing in anonymous memory is zero; what is missing
/// of a file must not stand within a segment, where it would be taken for zero.
fn segments_of(mapping: &Mapping, ranges: Vec<(u64, u64)>) -> Vec<Segment> {
    if mapping.inode == 0 {
        return vec![Segment { mapping: mapping.clone(), ranges }];
    }
    let alone =
        |(start, end)| Segment { mapping: Mapping { start, end, ..mapping.clone() }, ranges: vec![(start, end)] };
    ranges.into_iter().map(alone).collect()
}

struct Resident {
    /// First and end of stretches of resident pages.
    ranges: Vec<(u64, u64)>,
    swap_bytes: u64,
}

/// Source: admin-guide/mm/pagemap.rst; bit 63 is "present", bit 62 "on swap", bit 61 "of a file, or shared".
fn resident(pages: &File, mapping: &Mapping) -> io::Result<Resident> {
    let mut found = Resident { ranges: Vec::new(), swap_bytes: 0 };
    let is_whole = wanted(mapping) == Wanted::All;
    let end = mapping.end;
    let mut buffer = vec![0u8; 64 << 10];
    let mut at = mapping.start;
    while at < end {
        let wanted = (((end - at) / PAGE) as usize * 8).min(buffer.len());
        let read = pages.read_at(&mut buffer[..wanted], at / PAGE * 8)?;
        if read < 8 {
            // Above the user's half nothing is said.
            break;
        }
        for entry in buffer[..read / 8 * 8].chunks_exact(8) {
            let entry = u64::from_le_bytes(entry.try_into().unwrap_or_default());
            let is_header = at == mapping.start && mapping.file_offset == 0;
            let is_changed = entry >> 61 & 1 == 0;
            if entry >> 63 != 0 && (is_whole || is_changed || is_header) {
                match found.ranges.last_mut() {
                    Some((_, end)) if *end == at => *end += PAGE,
                    _ => found.ranges.push((at, at + PAGE)),
                }
            } else if entry >> 62 & 0b11 == 1 {
                found.swap_bytes += PAGE;
            }
            at += PAGE;
        }
    }
    Ok(found)
}

/// Takes pages out of the largest mappings until the rest fits; gives the bytes that were taken out.
fn fit(segments: &mut [Segment], most_bytes: u64) -> u64 {
    let mut order: Vec<usize> = (0..segments.len()).collect();
    // Stacks tell most in least room, and so do small mappings.
    order.sort_by_key(|&index| (segments[index].mapping.name != "[stack]", segments[index].bytes()));
    let (mut room, mut left_out) = (most_bytes, 0);
    for index in order {
        for range in &mut segments[index].ranges {
            let bytes = range.1 - range.0;
            let kept = bytes.min(room / PAGE * PAGE);
            range.1 = range.0 + kept;
            room -= kept;
            left_out += bytes - kept;
        }
        segments[index].ranges.retain(|(start, end)| start < end);
    }
    left_out
}

fn check_room(path: &Path, wanted: u64) -> Result<(), CoreError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let disk = rustix::fs::statvfs(folder)
        .map_err(|error| CoreError::File { path: folder.to_owned(), source: error.into() })?;
    let (free, all) = (disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize);
    if free < wanted.saturating_add(left_free(all)) {
        return Err(CoreError::Room { path: folder.to_owned(), wanted, free });
    }
    Ok(())
}

/// What stays free on a disk of this size, bytes.
fn left_free(disk_bytes: u64) -> u64 {
    LEAVE_BYTES + (disk_bytes / LEAVE_SHARE).min(LEAVE_ENOUGH)
}

/// Copies until `until`; gives the bytes that were copied. What cannot be read stays a hole.
fn copy(memory: &File, file: &File, segments: &[Segment], layout: &Layout, until: Instant) -> io::Result<u64> {
    let mut buffer = vec![0u8; CHUNK as usize];
    let (mut copied, mut flushed) = (0, 0);
    for (segment, offset) in segments.iter().zip(&layout.offsets) {
        for &(start, end) in &segment.ranges {
            let mut at = start;
            while at < end {
                if Instant::now() >= until {
                    return Ok(copied);
                }
                let bytes = &mut buffer[..(end - at).min(CHUNK) as usize];
                let place = offset + (at - segment.mapping.start);
                at += bytes.len() as u64;
                if memory.read_exact_at(bytes, at - bytes.len() as u64).is_err() {
                    continue;
                }
                file.write_all_at(bytes, place)?;
                copied += bytes.len() as u64;
                if copied - flushed >= FLUSH {
                    flushed = copied;
                    file.sync_data()?;
                    // Only a hint: where it is not taken, memory fills up to the flush.
                    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
                }
            }
        }
    }
    Ok(copied)
}

/// Takes a core by a run of this program of its own; gives what is to be said of it.
pub fn run(program: &Path, pid: u32, path: &Path, most_bytes: u64) -> String {
    let child = Command::new(program)
        .args(["monitor", "core", &format!("--size={most_bytes}B"), "--output"])
        .arg(path)
        .arg(pid.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => return format!("core of process {pid}: {}: cannot be started: {error}", program.display()),
    };
    // What it says is a line, which a pipe holds.
    let begin = Instant::now();
    while matches!(child.try_wait(), Ok(None)) {
        if begin.elapsed() > PATIENCE {
            let _ = child.kill();
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let Ok(output) = child.wait_with_output() else { return format!("core of process {pid}: its run is gone") };
    let said = if output.status.success() { output.stdout } else { output.stderr };
    let said = String::from_utf8_lossy(&said);
    if !output.status.success() {
        // What is half written is of no use.
        let _ = fs::remove_file(path);
    }
    said.lines().last().map_or_else(
        || format!("core of process {pid}: it was ended"),
        |line| line.trim_start_matches("leakscope: ").to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_disk_is_not_kept_empty() {
        assert_eq!(left_free(0), 256 << 20);
        assert_eq!(left_free(20 << 30), (1 << 30) + (256 << 20));
        assert_eq!(left_free(1 << 40), (4 << 30) + (256 << 20));
        assert_eq!(left_free(u64::MAX), (4 << 30) + (256 << 20));
    }
}
