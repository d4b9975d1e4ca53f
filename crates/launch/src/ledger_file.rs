//! A ledger from the observer's side: makes the memfd, writes its header, and reads its counters while the
//! target writes. Source of the bytes: `leakscope_ledger::layout`.
//!
//! Any thread. The map stays valid whatever the target does: the memfd is sealed against shrinking, and sizes
//! and offsets come from our own computation, never from the shared bytes.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::ptr::NonNull;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use leakscope_ledger::layout::{
    self, AREAS, Area, AreaId, COUNTERS_PER_CHUNK, Capacity, CheckHeader, Config, HEADER_BYTES, Header, SeriesSample,
    SiteCounters,
};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};
use rustix::process::Resource;

use crate::Error;

/// Address space below which a ledger is made small: the full one is mapped by us and by the target.
const COMFORTABLE_ADDRESS_SPACE: u64 = 16 << 30;

/// A ledger that we made.
#[derive(Debug)]
pub struct LedgerFile {
    file: File,
    map: NonNull<u8>,
    areas: [Area; AREAS],
    file_bytes: u64,
}

// SAFETY: the map is shared memory that lives as long as `self`; every access through it is atomic.
unsafe impl Send for LedgerFile {}
// SAFETY: as above; no method hands out exclusive access.
unsafe impl Sync for LedgerFile {}

/// The capacity that fits this process's limits; the target inherits them.
pub fn fitting_capacity() -> Capacity {
    let full_bytes = layout::areas(Capacity::FULL).1;
    let limit = |resource| rustix::process::getrlimit(resource).current.unwrap_or(u64::MAX);
    let fits = limit(Resource::As) >= COMFORTABLE_ADDRESS_SPACE && limit(Resource::Fsize) >= full_bytes;
    if fits { Capacity::FULL } else { Capacity::SMALL }
}

impl LedgerFile {
    /// Makes an empty ledger for one process.
    ///
    /// # Errors
    /// When the kernel refuses the memfd, its size (RLIMIT_FSIZE) or the map (RLIMIT_AS).
    pub fn create(config: &Config, capacity: Capacity, origin: u32) -> Result<Self, Error> {
        let (areas, file_bytes) = layout::areas(capacity);
        let fd = rustix::fs::memfd_create("leakscope-ledger", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(Error::system("create a memfd for the ledger"))?;
        let file = File::from(fd);
        file.set_len(file_bytes).map_err(Error::system("give the ledger its size"))?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
            .map_err(Error::system("seal the ledger's size"))?;
        // SAFETY: a new shared map at an address of the kernel's choice overlaps no Rust object.
        let map = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                file_bytes as usize,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::NORESERVE,
                &file,
                0,
            )
        }
        .map_err(Error::system("map the ledger"))?;
        let map = NonNull::new(map.cast::<u8>()).ok_or_else(|| Error::System {
            what: "map the ledger",
            source: io::Error::other("the kernel gave address zero"),
        })?;
        // SAFETY: the map is at least HEADER_BYTES long, page-aligned and zeroed, a valid Header; nobody else
        // has the file yet, so the access is exclusive.
        let header = unsafe { map.cast::<Header>().as_mut() };
        header.magic = layout::MAGIC;
        header.version = layout::VERSION;
        header.header_bytes = HEADER_BYTES as u32;
        header.file_bytes = file_bytes;
        header.areas = areas;
        header.config = *config;
        header.origin.store(origin, Relaxed);
        Ok(Self { file, map, areas, file_bytes })
    }

    /// Bytes of the whole file.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// The memfd. The target may still write to it.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The memfd's inode, by which the maps of a process tell that it has the ledger; 0 when unknown.
    pub fn inode(&self) -> u64 {
        self.file.metadata().map_or(0, |metadata| metadata.ino())
    }

    /// The memfd once more, opened for reading only: what a stranger of the same user may get.
    ///
    /// # Errors
    /// When `/proc` is not mounted.
    pub fn reopen_read_only(&self) -> io::Result<File> {
        File::open(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// The header. Only its atomics are meaningful to read: the target can overwrite the rest.
    pub fn header(&self) -> &Header {
        // SAFETY: the map is at least HEADER_BYTES long, aligned, and lives as long as `self`. The target's
        // injected code writes only the atomic fields.
        unsafe { self.map.cast::<Header>().as_ref() }
    }

    /// Whether the injected code has begun to record (or has failed to).
    pub fn started(&self) -> bool {
        self.header().state.load(Acquire) != layout::state::NEW
    }

    /// State of the newest leak check, a value of [`layout::check_state`]; `None` when none has begun.
    pub fn last_check_state(&self) -> Option<u32> {
        let begun = self.header().used[AreaId::Checks as usize].load(Acquire);
        let index = begun.checked_sub(1)? % layout::CHECKS;
        self.record::<CheckHeader>(AreaId::Checks, index as usize).map(|check| check.state.load(Acquire))
    }

    /// Record `index` of an area, as a pointer into the map; `None` past the area's capacity.
    fn record<T>(&self, area: AreaId, index: usize) -> Option<&T> {
        let area = &self.areas[area as usize];
        debug_assert_eq!(area.stride as usize, size_of::<T>());
        if index >= area.capacity as usize {
            return None;
        }
        // SAFETY: `areas` is our own computation and lies within the map; areas are page-aligned and strides
        // multiples of the records' alignment; the records (T is one of layout's) consist of atomics only.
        Some(unsafe { self.map.add(area.offset as usize + index * size_of::<T>()).cast::<T>().as_ref() })
    }

    /// Live bytes and blocks by the counters, and the number of counters that were added up.
    pub fn live(&self) -> Live {
        let chunks = self.header().used[AreaId::Counters as usize].load(Acquire) as usize;
        let mut live = Live::default();
        let (mut bytes, mut blocks) = (0u64, 0u64);
        for index in 0..chunks.saturating_mul(COUNTERS_PER_CHUNK) {
            let Some(counters) = self.record::<SiteCounters>(AreaId::Counters, index) else { break };
            // Freed before allocated: a block that comes and goes in between must not count as minus one.
            let (freed_bytes, freed_blocks) = (counters.freed_bytes.load(Relaxed), counters.freed_blocks.load(Relaxed));
            bytes = bytes.wrapping_add(counters.allocated_bytes.load(Relaxed)).wrapping_sub(freed_bytes);
            blocks = blocks.wrapping_add(counters.allocated_blocks.load(Relaxed)).wrapping_sub(freed_blocks);
            live.counters += 1;
        }
        // Sums taken while threads run may be negative for a moment.
        live.bytes = if (bytes as i64) < 0 { 0 } else { bytes };
        live.blocks = if (blocks as i64) < 0 { 0 } else { blocks };
        live
    }

    /// Appends a sample to the series; when it is full, first drops every second one and gives `true`.
    pub fn push_sample(&self, sample: Sample) -> bool {
        let used = &self.header().used[AreaId::Series as usize];
        let mut count = (used.load(Relaxed) as usize).min(self.areas[AreaId::Series as usize].capacity as usize);
        let mut halved = false;
        if self.record::<SeriesSample>(AreaId::Series, count).is_none() {
            for to in 0..count / 2 {
                let from = self.record::<SeriesSample>(AreaId::Series, 2 * to);
                let (Some(from), Some(slot)) = (from, self.record(AreaId::Series, to)) else { break };
                Sample::load(from).store(slot);
            }
            count /= 2;
            halved = true;
        }
        if let Some(slot) = self.record(AreaId::Series, count) {
            sample.store(slot);
            used.store(count as u32 + 1, Release);
        }
        halved
    }
}

/// What the counters say at one moment.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Live {
    /// Requested bytes.
    pub bytes: u64,
    /// Blocks.
    pub blocks: u64,
    /// Counters that were added up for it.
    pub counters: u64,
}

/// One sample of the time series; the fields are those of [`SeriesSample`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sample {
    /// CLOCK_MONOTONIC, nanoseconds.
    pub monotonic_ns: u64,
    /// Live requested bytes.
    pub live_bytes: u64,
    /// Live blocks.
    pub live_blocks: u64,
    /// Resident set, 0 when unknown.
    pub resident_bytes: u64,
}

impl Sample {
    fn load(record: &SeriesSample) -> Self {
        Self {
            monotonic_ns: record.monotonic_ns.load(Relaxed),
            live_bytes: record.live_bytes.load(Relaxed),
            live_blocks: record.live_blocks.load(Relaxed),
            resident_bytes: record.resident_bytes.load(Relaxed),
        }
    }

    fn store(self, record: &SeriesSample) {
        record.monotonic_ns.store(self.monotonic_ns, Relaxed);
        record.live_bytes.store(self.live_bytes, Relaxed);
        record.live_blocks.store(self.live_blocks, Relaxed);
        record.resident_bytes.store(self.resident_bytes, Relaxed);
    }
}

impl AsFd for LedgerFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for LedgerFile {
    fn drop(&mut self) {
        // SAFETY: the map was made by `create` with this length, and no reference into it outlives `self`.
        let _ = unsafe { rustix::mm::munmap(self.map.as_ptr().cast(), self.file_bytes as usize) };
    }
}
