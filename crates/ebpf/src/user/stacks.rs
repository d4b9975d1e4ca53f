//! Stacks of programs from copies: unwound here, by the DWARF tables of their files.
//!
//! A thread takes copies out of the ring as they come. A block is known by its key and the time of its birth, so the
//! stack finds its block in the table later, and is forgotten when the block is.

use std::collections::{HashMap, HashSet};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use aya::maps::{MapData, RingBuf};
use framehop::x86_64::{CacheX86_64, UnwindRegsX86_64, UnwinderX86_64};
use framehop::{ExplicitModuleSectionInfo, Module, Unwinder};
use object::{Object, ObjectSection, ObjectSegment};

use super::allocator::{Mapping, reachable, read_mappings};
use crate::layout::{Block, WEIGHT_ONE};
use crate::load::{Maps, RESERVED_SITES};
use crate::snapshot::{SiteSums, Sites};
use crate::{Error, Kind, MOST_FRAMES, Site, sys};

/// Maps of a program are read again when an address is in none, but not more often.
const READ_AGAIN: Duration = Duration::from_millis(500);

/// The head of `struct stack_copy`: twelve words, two halves.
const HEAD_BYTES: usize = 12 * 8 + 8;

/// What is known of stacks so far.
#[derive(Default)]
struct Known {
    /// By key and birth of the block.
    blocks: HashMap<(u64, u64), u32>,
    numbers: HashMap<(u32, Vec<u64>), u32>,
    sites: Vec<(Arc<Site>, SiteSums)>,
    cut: u64,
}

/// Sites of a program, by unwinding.
pub(crate) struct Stacks {
    known: Arc<Mutex<Known>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Stacks {
    /// Begins to take copies.
    pub(crate) fn start(ring: RingBuf<MapData>) -> Self {
        let known = Arc::new(Mutex::new(Known::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let (their_known, their_stop) = (known.clone(), stop.clone());
        let thread = std::thread::spawn(move || take(ring, &their_known, &their_stop));
        Self { known, stop, thread: Some(thread) }
    }

    /// Stacks whose copy ended before the outermost frame.
    pub(crate) fn cut(&self) -> u64 {
        self.lock().cut
    }

    /// Forgets the stacks of blocks that are in the table no more.
    pub(crate) fn retain(&self, blocks: &HashSet<(u64, u64)>) {
        self.lock().blocks.retain(|block, _| blocks.contains(block));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Stacks {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Sites for Stacks {
    fn number(&mut self, key: u64, block: &Block) -> u32 {
        self.lock().blocks.get(&(key, block.born_ns)).copied().unwrap_or(block.site)
    }

    fn site(&mut self, _maps: &Maps, number: u32) -> Result<(Kind, Arc<Site>, SiteSums), Error> {
        let known = self.lock();
        let found = number.checked_sub(RESERVED_SITES).and_then(|number| known.sites.get(number as usize));
        let (site, sums) = found.cloned().unwrap_or_default();
        Ok((Kind::User, site, sums))
    }
}

/// The thread: takes copies until it is told to stop, and what is there then.
fn take(mut ring: RingBuf<MapData>, known: &Mutex<Known>, stop: &AtomicBool) {
    const WAIT_MILLISECONDS: i32 = 50;
    let mut programs: HashMap<u32, Program> = HashMap::new();
    loop {
        let is_last = stop.load(Ordering::Relaxed);
        while let Some(record) = ring.next() {
            let Some(copy) = Copy::decode(&record) else { continue };
            let program = programs.entry(copy.tgid).or_insert_with(|| Program::new(copy.tgid));
            let (addresses, is_cut) = program.unwind(&copy);
            let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
            known.enter(&copy, addresses, is_cut);
        }
        if is_last {
            return;
        }
        sys::wait_readable(ring.as_raw_fd(), WAIT_MILLISECONDS);
    }
}

impl Known {
    fn enter(&mut self, copy: &Copy<'_>, addresses: Vec<u64>, is_cut: bool) {
        self.cut += u64::from(is_cut);
        let next = self.sites.len() as u32;
        let key = (copy.tgid, addresses);
        let number = match self.numbers.get(&key) {
            Some(&number) => number,
            None => {
                let site = Site { cache: String::new(), addresses: key.1.clone(), tgid: copy.tgid };
                self.numbers.insert(key, next);
                self.sites.push((Arc::new(site), SiteSums::default()));
                next
            }
        };
        let weight = copy.weight as f64 / WEIGHT_ONE;
        let sums = &mut self.sites[number as usize].1;
        sums.blocks += weight;
        sums.bytes += weight * copy.requested as f64;
        sums.usable = sums.bytes;
        self.blocks.insert((copy.key, copy.born_ns), number + RESERVED_SITES);
    }
}

/// `struct stack_copy`.
struct Copy<'a> {
    key: u64,
    born_ns: u64,
    weight: u64,
    requested: u64,
    ip: u64,
    sp: u64,
    bp: u64,
    tgid: u32,
    data: &'a [u8],
}

impl<'a> Copy<'a> {
    fn decode(record: &'a [u8]) -> Option<Self> {
        let word = |number: usize| Some(u64::from_ne_bytes(record.get(number * 8..number * 8 + 8)?.try_into().ok()?));
        let half = |at: usize| Some(u32::from_ne_bytes(record.get(at..at + 4)?.try_into().ok()?));
        let bytes = half(HEAD_BYTES - 4)? as usize;
        Some(Self {
            key: word(0)?,
            born_ns: word(1)?,
            weight: word(2)?,
            requested: word(3)?,
            ip: word(4)?,
            sp: word(5)?,
            bp: word(6)?,
            tgid: half(HEAD_BYTES - 8)?,
            data: record.get(HEAD_BYTES..)?.get(..bytes)?,
        })
    }

    fn read(&self, address: u64) -> Option<u64> {
        let at = usize::try_from(address.checked_sub(self.sp)?).ok()?;
        Some(u64::from_ne_bytes(self.data.get(at..at.checked_add(8)?)?.try_into().ok()?))
    }
}

/// A program, with the unwind tables of its files.
struct Program {
    pid: u32,
    unwinder: UnwinderX86_64<Vec<u8>>,
    cache: CacheX86_64,
    ranges: Vec<(u64, u64)>,
    known: HashSet<(u64, String)>,
    read: Option<Instant>,
}

impl Program {
    fn new(pid: u32) -> Self {
        Self {
            pid,
            unwinder: UnwinderX86_64::new(),
            cache: CacheX86_64::new(),
            ranges: Vec::new(),
            known: HashSet::new(),
            read: None,
        }
    }

    /// Return addresses, innermost first, and whether the copy ended before the stack did.
    fn unwind(&mut self, copy: &Copy<'_>) -> (Vec<u64>, bool) {
        if !self.covers(copy.ip) {
            self.read_maps();
        }
        let mut is_cut = false;
        let mut addresses = Vec::new();
        let mut read = |address: u64| {
            let word = copy.read(address);
            is_cut |= word.is_none() && address >= copy.sp;
            word.ok_or(())
        };
        let registers = UnwindRegsX86_64::new(copy.ip, copy.sp, copy.bp);
        let mut frames = self.unwinder.iter_frames(copy.ip, registers, &mut self.cache, &mut read);
        while let Ok(Some(frame)) = frames.next() {
            addresses.push(frame.address());
            if addresses.len() >= MOST_FRAMES {
                return (addresses, true);
            }
        }
        (addresses, is_cut)
    }

    fn covers(&self, address: u64) -> bool {
        self.ranges.iter().any(|&(start, end)| (start..end).contains(&address))
    }

    fn read_maps(&mut self) {
        if self.read.is_some_and(|read| read.elapsed() < READ_AGAIN) {
            return;
        }
        self.read = Some(Instant::now());
        let Ok(mappings) = read_mappings(self.pid) else { return };
        for mapping in mappings.iter().filter(|mapping| mapping.is_executable) {
            if self.known.insert((mapping.start, mapping.path.clone()))
                && let Some((module, range)) = module(self.pid, mapping)
            {
                self.ranges.push(range);
                self.unwinder.add_module(module);
            }
        }
    }
}

/// Unwind tables, and the addresses that they are for.
type Placed = (Module<Vec<u8>>, (u64, u64));

/// The unwind tables of a mapped file, and where it lies.
fn module(pid: u32, mapping: &Mapping) -> Option<Placed> {
    let bytes = std::fs::read(reachable(pid, mapping)).ok()?;
    let file = object::File::parse(&*bytes).ok()?;
    // The segment that this mapping shows tells how far the file was moved.
    let segment = file.segments().find(|segment| {
        let (offset, length) = segment.file_range();
        offset & !0xfff <= mapping.offset && mapping.offset < offset + length && segment.address() != 0
            || offset == mapping.offset
    })?;
    let bias =
        mapping.start.wrapping_sub(mapping.offset).wrapping_sub(segment.address().wrapping_sub(segment.file_range().0));
    let range = |name: &str| {
        let section = file.section_by_name(name)?;
        Some(section.address()..section.address() + section.size())
    };
    let data = |name: &str| Some(file.section_by_name(name)?.data().ok()?.to_vec());
    let info = ExplicitModuleSectionInfo {
        base_svma: 0,
        text_svma: range(".text"),
        text: data(".text"),
        got_svma: range(".got"),
        eh_frame_svma: range(".eh_frame"),
        eh_frame: data(".eh_frame"),
        eh_frame_hdr_svma: range(".eh_frame_hdr"),
        eh_frame_hdr: data(".eh_frame_hdr"),
        debug_frame: data(".debug_frame"),
        ..ExplicitModuleSectionInfo::default()
    };
    let module = Module::new(mapping.path.clone(), mapping.start..mapping.end, bias, info);
    Some((module, (mapping.start, mapping.end)))
}
