//! The writing side: typed access to a mapped ledger from inside the target.
//!
//! May run in any thread and in a signal handler: no allocation, no locks; every field is an atomic. Fields that
//! one thread alone writes are updated with relaxed loads and stores; records are published by `used`.

use crate::layout::{
    self, AREAS, Area, AreaId, CheckHeader, CheckRecord, ChunkRecord, Config, HEADER_BYTES, Header, IntervalRecord,
    IntervalSiteRecord, MAGIC, MisuseRecord, ModuleRecord, NodeRecord, SiteCounters, SiteRecord, ThreadRecord, VERSION,
};
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU8, AtomicU32};

/// A ledger that is mapped for writing. Copies refer to the same bytes.
#[derive(Clone, Copy, Debug)]
pub struct Ledger {
    base: *mut u8,
    areas: [Area; AREAS],
}

// SAFETY: the mapping is never unmapped while a `Ledger` exists, and all access to it is by atomics.
unsafe impl Send for Ledger {}
// SAFETY: as above.
unsafe impl Sync for Ledger {}

/// Fills in the header of a new, zeroed ledger; the observer's part.
pub fn new_header(capacity: layout::Capacity, config: Config, origin: u32) -> Header {
    let (areas, file_bytes) = layout::areas(capacity);
    // SAFETY: Header is plain integers and atomics of integers; all-zero bytes are a valid value.
    let mut header: Header = unsafe { core::mem::zeroed() };
    header.magic = MAGIC;
    header.version = VERSION;
    header.header_bytes = HEADER_BYTES as u32;
    header.file_bytes = file_bytes;
    header.areas = areas;
    header.config = config;
    header.origin = origin.into();
    for area in [AreaId::Strings, AreaId::Nodes, AreaId::Sites, AreaId::Threads] {
        header.used[area as usize] = AtomicU32::new(1);
    }
    header
}

/// The header's bytes, to be written at the start of the file.
pub fn header_bytes(header: &Header) -> [u8; size_of::<Header>()] {
    // SAFETY: Header is repr(C) without padding that matters; it is read as bytes, and the copy is owned.
    unsafe { core::ptr::read(core::ptr::from_ref(header).cast()) }
}

macro_rules! records {
    ($($(#[$doc:meta])* $name:ident: $area:ident -> $record:ty;)*) => {
        $($(#[$doc])*
        #[inline]
        pub fn $name(&self, index: u32) -> Option<&'static $record> {
            let area = &self.areas[AreaId::$area as usize];
            if index >= area.capacity {
                return None;
            }
            // SAFETY: `attach` checked that the area lies inside the mapping with this record's stride, and the
            // mapping lives as long as the process. All fields are atomics, any bytes are valid.
            Some(unsafe { &*self.base.add(area.offset as usize + index as usize * size_of::<$record>()).cast() })
        })*
    };
}

impl Ledger {
    /// Takes a mapping of `mapped_bytes` bytes for a ledger, if its header is one that this build writes.
    ///
    /// # Safety
    /// `base` is page-aligned and mapped readable and writable for `mapped_bytes` until the process ends.
    pub unsafe fn attach(base: *mut u8, mapped_bytes: u64) -> Option<Self> {
        if mapped_bytes < HEADER_BYTES as u64 {
            return None;
        }
        // SAFETY: the mapping holds at least a header, by the check above; any bytes are a valid Header.
        let header: &Header = unsafe { &*base.cast() };
        if header.magic != MAGIC || header.version != VERSION || header.file_bytes > mapped_bytes {
            return None;
        }
        let areas = header.areas;
        let strides: [usize; AREAS] = layout::areas(layout::Capacity::SMALL).0.map(|area| area.stride as usize);
        for (area, stride) in areas.iter().zip(strides) {
            let bytes = u64::from(area.stride) * u64::from(area.capacity);
            if area.stride as usize != stride
                || area.offset % 4096 != 0
                || area.offset.checked_add(bytes)? > mapped_bytes
            {
                return None;
            }
        }
        Some(Self { base, areas })
    }

    /// First byte of the mapping.
    pub fn base(&self) -> *mut u8 {
        self.base
    }

    /// The header.
    #[inline]
    pub fn header(&self) -> &'static Header {
        // SAFETY: `attach` checked the mapping; any bytes are a valid Header.
        unsafe { &*self.base.cast() }
    }

    /// The observer's wishes.
    #[inline]
    pub fn config(&self) -> &'static Config {
        &self.header().config
    }

    /// Number of published records of an area.
    #[inline]
    pub fn used(&self, area: AreaId) -> u32 {
        self.header().used[area as usize].load(Acquire)
    }

    /// Publishes records up to, not including, `used`.
    pub fn publish(&self, area: AreaId, used: u32) {
        self.header().used[area as usize].fetch_max(used, AcqRel);
    }

    /// Takes the next `count` records of an area at once; `None` when it is full.
    pub fn claim(&self, area: AreaId, count: u32) -> Option<u32> {
        let capacity = self.areas[area as usize].capacity;
        self.header().used[area as usize]
            .fetch_update(AcqRel, Acquire, |used| used.checked_add(count).filter(|&end| end <= capacity))
            .ok()
    }

    records! {
        /// Module record `index`.
        module: Modules -> ModuleRecord;
        /// Node `index` of the stack tree.
        node: Nodes -> NodeRecord;
        /// Site record `index`.
        site: Sites -> SiteRecord;
        /// Descriptor of counter chunk `index`.
        chunk: Chunks -> ChunkRecord;
        /// Counter record `index`; chunk i starts at i * COUNTERS_PER_CHUNK.
        counters: Counters -> SiteCounters;
        /// Thread record `index`.
        thread: Threads -> ThreadRecord;
        /// Misuse record `index`.
        misuse: Misuses -> MisuseRecord;
        /// Check header `index`.
        check: Checks -> CheckHeader;
        /// Check record `index`.
        check_record: CheckRecords -> CheckRecord;
        /// Interval record `index`.
        interval: Intervals -> IntervalRecord;
        /// Interval site record `index`.
        interval_site: IntervalSites -> IntervalSiteRecord;
    }

    /// Room of an area in records.
    pub fn capacity(&self, area: AreaId) -> u32 {
        self.areas[area as usize].capacity
    }

    /// Stores a string and gives its reference; 0, the empty string, when it does not fit (and counts that).
    pub fn store_string(&self, bytes: &[u8]) -> u64 {
        let Some(length) = u32::try_from(bytes.len()).ok().filter(|&length| length > 0) else { return 0 };
        let Some(offset) = self.claim(AreaId::Strings, length) else {
            self.header().lost.modules.fetch_add(1, Relaxed);
            return 0;
        };
        let start = self.areas[AreaId::Strings as usize].offset as usize + offset as usize;
        for (i, &byte) in bytes.iter().enumerate() {
            // SAFETY: `claim` gave this range inside the strings area, of which `attach` checked the bounds.
            unsafe { &*self.base.add(start + i).cast::<AtomicU8>() }.store(byte, Relaxed);
        }
        layout::string_ref(offset, length)
    }

    /// Compares a stored string with `bytes`.
    pub fn string_is(&self, reference: u64, bytes: &[u8]) -> bool {
        let (offset, length) = (reference as u32, (reference >> 32) as u32);
        let area = &self.areas[AreaId::Strings as usize];
        if length as usize != bytes.len() || offset.checked_add(length).is_none_or(|end| end > area.capacity) {
            return false;
        }
        let start = area.offset as usize + offset as usize;
        bytes.iter().enumerate().all(|(i, &byte)| {
            // SAFETY: the range was checked against the strings area just above.
            unsafe { &*self.base.add(start + i).cast::<AtomicU8>() }.load(Relaxed) == byte
        })
    }

    /// Copies a stored string to the begin of `out`, as far as it fits; gives the bytes copied.
    pub fn copy_string(&self, reference: u64, out: &mut [u8]) -> usize {
        let (offset, length) = (reference as u32, (reference >> 32) as u32);
        let area = &self.areas[AreaId::Strings as usize];
        if offset.checked_add(length).is_none_or(|end| end > area.capacity) {
            return 0;
        }
        let start = area.offset as usize + offset as usize;
        let length = out.len().min(length as usize);
        for (i, byte) in out.iter_mut().take(length).enumerate() {
            // SAFETY: the range was checked against the strings area just above.
            *byte = unsafe { &*self.base.add(start + i).cast::<AtomicU8>() }.load(Relaxed);
        }
        length
    }

    /// Copies what `other` holds into this new ledger: the start of a forked child's. Wrong calls of the parent's and facts of the process
    /// itself (pid, state, times, checks) are left for the child to fill in.
    pub fn copy_contents_from(&self, other: &Self) {
        for id in [
            AreaId::Strings,
            AreaId::Modules,
            AreaId::Nodes,
            AreaId::Sites,
            AreaId::Chunks,
            AreaId::Counters,
            AreaId::Threads,
            AreaId::Intervals,
            AreaId::IntervalSites,
        ] {
            let (to, from) = (&self.areas[id as usize], &other.areas[id as usize]);
            let used = other.used(id);
            let records = if id == AreaId::Counters { used * layout::COUNTERS_PER_CHUNK as u32 } else { used };
            let records = records.min(to.capacity).min(from.capacity);
            let bytes = records as usize * to.stride as usize;
            // SAFETY: both areas were checked by `attach` to lie inside their mappings, the mappings are distinct,
            // and only the calling thread exists in the child, so nothing writes meanwhile.
            unsafe {
                core::ptr::copy_nonoverlapping(
                    other.base.add(from.offset as usize),
                    self.base.add(to.offset as usize),
                    bytes,
                );
            }
            self.header().used[id as usize].store(used, Release);
        }
        self.header().epoch.store(other.header().epoch.load(Relaxed), Relaxed);
        let (to, from) = (&self.header().event_log.wanted, &other.header().event_log.wanted);
        to.store(from.load(Relaxed), Relaxed);
    }
}
