//! The root set of a leak check: what of the process's memory may hold the program's pointers.
//!
//! Roots are all readable and writable mappings, less: our own memory, the allocator's memory (its blocks are the
//! graph's nodes; what lies between them is stale), and the dead part of every thread's stack below its stack
//! pointer. Stale stack slots must not hide leaks, and the allocator's own data must not make lost blocks look
//! reachable: glibc's bins hold the addresses of free chunks' headers, which lie in the last bytes of the block
//! before. So the allocator's data segments count only where a word is exactly the start of a block.

use crate::memory::{map_slice, own_mappings};
use crate::modules::ModulesGuard;
use crate::proc_maps::{self, MapLine};
use crate::thread::for_each_state;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use leakscope_model::Avma;
use leakscope_reach::{FileMapping, Memory};

/// Most ranges of any sort.
const MOST: usize = 1 << 17;
/// glibc's heaps other than the first are aligned to this (HEAP_MAX_SIZE on 64-bit).
const ARENA_BYTES: u64 = 64 << 20;

/// A list of ranges in memory of our own.
pub struct Ranges {
    list: &'static mut [Range<Avma>],
    len: usize,
}

impl Ranges {
    /// An empty list. `None` when there is no memory.
    pub fn new() -> Option<Self> {
        // SAFETY: two integers.
        Some(Self { list: unsafe { map_slice(MOST, false) }?, len: 0 })
    }

    /// Adds a range; empty ones are dropped. Ranges past the end of the list are lost.
    pub fn push(&mut self, start: u64, end: u64) {
        if start < end
            && let Some(slot) = self.list.get_mut(self.len)
        {
            *slot = Avma(start)..Avma(end);
            self.len += 1;
        }
    }

    /// Adds a range of a rising sequence; joins it with the last one if they touch.
    pub fn push_joining(&mut self, start: u64, end: u64) {
        if let Some(last) = self.len.checked_sub(1).and_then(|at| self.list.get_mut(at))
            && last.start.0 <= start
            && start <= last.end.0
        {
            last.end.0 = last.end.0.max(end);
            return;
        }
        self.push(start, end);
    }

    /// The ranges.
    pub fn all(&self) -> &[Range<Avma>] {
        self.list.get(..self.len).unwrap_or(&[])
    }

    /// Sorts by start and joins what overlaps.
    pub fn sort(&mut self) {
        let Some(used) = self.list.get_mut(..self.len) else { return };
        used.sort_unstable_by_key(|range| range.start);
        let mut kept = 0;
        for at in 1..used.len() {
            let next = used[at].clone();
            if next.start <= used[kept].end {
                used[kept].end = used[kept].end.max(next.end);
            } else {
                kept += 1;
                used[kept] = next;
            }
        }
        self.len = used.len().min(kept + 1);
    }
}

/// Adds the allocator's memory around a block to `excluded`. Call it for blocks by rising address.
pub struct HeapFinder {
    glibc: bool,
    /// The [`ARENA_BYTES`] of address space that were decided last.
    last_arena: u64,
}

/// Freed blocks up to this size mark their pages as the allocator's; larger ones may have been given back.
const FREED_MARKS_UP_TO: u64 = 64 << 10;

impl HeapFinder {
    /// `glibc`: blocks have glibc's chunk headers.
    pub fn new(glibc: bool) -> Self {
        Self { glibc, last_arena: u64::MAX }
    }

    /// A block, live or freed.
    pub fn block(&mut self, start: u64, bytes: u64, freed: bool, excluded: &mut Ranges) {
        if self.glibc {
            let arena = start & !(ARENA_BYTES - 1);
            if freed || arena == self.last_arena {
                return;
            }
            // An arena's heap fills its aligned stretch of address space, so one block decides for all in it. To read
            // in front of every block would cost a cache miss for each.
            self.last_arena = arena;
            // SAFETY: a live glibc block has its chunk's size word in front of it.
            let size = unsafe { *((start - 8) as *const u64) };
            // Bit 1: a mapping of its own. Bit 2: of an arena that is not the main one.
            if size & 2 == 0 && size & 4 != 0 {
                excluded.push_joining(arena, arena + ARENA_BYTES);
            }
        } else if !freed || bytes <= FREED_MARKS_UP_TO {
            excluded.push_joining(start & !4095, (start + bytes.max(1)).next_multiple_of(4096));
        }
    }
}

/// Memory that an allocator other than glibc's has taken from the system, and the module that its code is in.
struct Taken {
    start: AtomicU64,
    end: AtomicU64,
    caller: AtomicU64,
}

const MOST_TAKEN: usize = 1 << 13;
static TAKEN: [Taken; MOST_TAKEN] =
    [const { Taken { start: AtomicU64::new(0), end: AtomicU64::new(0), caller: AtomicU64::new(0) } }; MOST_TAKEN];
static TAKEN_COUNT: AtomicUsize = AtomicUsize::new(0);
/// Code of the allocator; the whole address space until it is known.
static ALLOCATOR: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(u64::MAX)];

/// Tells where the code of the allocator is, once it is known. An empty range says that it takes nothing by `mmap`.
pub fn allocator_is(code: (u64, u64)) {
    ALLOCATOR[0].store(code.0, Ordering::Relaxed);
    ALLOCATOR[1].store(code.1, Ordering::Release);
}

/// Whether code at `pc` is that of an allocator other than glibc's.
pub fn is_allocator_code(pc: u64) -> bool {
    let (low, high) = (ALLOCATOR[0].load(Ordering::Relaxed), ALLOCATOR[1].load(Ordering::Acquire));
    high != u64::MAX && (low..high).contains(&pc)
}

/// Notes a mapping that code at `caller` made, if that may be the allocator.
pub fn mapped_by(start: u64, bytes: u64, caller: u64) {
    let (low, high) = (ALLOCATOR[0].load(Ordering::Relaxed), ALLOCATOR[1].load(Ordering::Acquire));
    // Before the allocator is known everything is noted, and sorted out at the check.
    if !(low..high).contains(&caller) {
        forget_taken(start, start + bytes);
        return;
    }
    let index = TAKEN_COUNT.fetch_add(1, Ordering::AcqRel);
    if let Some(slot) = TAKEN.get(index) {
        slot.caller.store(caller, Ordering::Relaxed);
        slot.end.store(start + bytes, Ordering::Relaxed);
        slot.start.store(start, Ordering::Release);
    } else {
        TAKEN_COUNT.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Somebody else has mapped what an allocator had once: it is a root again.
fn forget_taken(start: u64, end: u64) {
    for slot in TAKEN.iter().take(TAKEN_COUNT.load(Ordering::Acquire).min(MOST_TAKEN)) {
        if slot.start.load(Ordering::Relaxed) < end && start < slot.end.load(Ordering::Relaxed) {
            slot.end.store(0, Ordering::Relaxed);
        }
    }
}

/// Adds what the allocator has taken to `excluded`.
fn exclude_taken(excluded: &mut Ranges) {
    let (low, high) = (ALLOCATOR[0].load(Ordering::Relaxed), ALLOCATOR[1].load(Ordering::Acquire));
    for slot in TAKEN.iter().take(TAKEN_COUNT.load(Ordering::Acquire).min(MOST_TAKEN)) {
        if high != u64::MAX && (low..high).contains(&slot.caller.load(Ordering::Relaxed)) {
            excluded.push(slot.start.load(Ordering::Acquire), slot.end.load(Ordering::Relaxed));
        }
    }
}

/// What a walk over the mappings finds out.
pub struct Survey {
    /// The root set, by rising address.
    pub roots: Ranges,
    /// Parts of it that count only for exact starts of blocks.
    pub exact: Ranges,
    /// All readable memory that may be read directly.
    pub readable: Ranges,
    /// Shared mappings: read by system call, since a truncated file gives SIGBUS.
    pub shared: Ranges,
    /// Mappings of files, for the vtable heuristic.
    files: &'static mut [FileRange],
    files_len: usize,
}

#[derive(Clone, Copy)]
struct FileRange {
    start: u64,
    end: u64,
    readable: bool,
    executable: bool,
}

/// Finds the roots. `excluded` holds the allocator's memory; `stack_pointers` is called for the stack pointer of
/// every thread; `allocator_code` are addresses inside modules whose data counts only exactly.
pub fn survey(
    excluded: &mut Ranges,
    modules: &ModulesGuard<'_>,
    allocator_code: &[u64],
    own_code: u64,
    stack_pointers: &[u64],
    use_stacks: bool,
) -> Option<Survey> {
    own_mappings(|start, bytes| excluded.push(start, start + bytes));
    exclude_taken(excluded);
    if let Some(own) = modules.find(own_code) {
        excluded.push(own.start, own.end);
    }
    let mut survey = Survey {
        roots: Ranges::new()?,
        exact: Ranges::new()?,
        readable: Ranges::new()?,
        shared: Ranges::new()?,
        // SAFETY: integers and booleans; zero bytes are valid.
        files: unsafe { map_slice(1 << 14, false) }?,
        files_len: 0,
    };
    let mut writable = Ranges::new()?;
    let mut guard_end = 0;
    let whole = proc_maps::for_each(|mapping| {
        survey.note(mapping);
        if mapping.name == b"[heap]" {
            excluded.push(mapping.start, mapping.end);
        }
        if mapping.readable && mapping.writable && !is_device(mapping.name) {
            writable.push(mapping.start, mapping.end);
            let is_stack = mapping.name == b"[stack]" || guard_end == mapping.start;
            exclude_dead_stack(mapping, is_stack, stack_pointers, use_stacks, excluded);
        }
        guard_end = if mapping.readable || mapping.writable { 0 } else { mapping.end };
    });
    excluded.sort();
    for range in writable.all() {
        subtract(range, excluded.all(), |start, end| {
            let allocators = allocator_code
                .iter()
                .filter_map(|&code| modules.find(code))
                .find(|module| module.start < end && start < module.end);
            match allocators {
                Some(module) => {
                    survey.exact.push(start.max(module.start), end.min(module.end));
                    survey.roots.push(start, module.start);
                    survey.roots.push(module.end, end);
                }
                None => survey.roots.push(start, end),
            }
        });
    }
    whole.then_some(survey)
}

/// Memory of devices: reading it may do something.
fn is_device(name: &[u8]) -> bool {
    name.starts_with(b"/dev/") && !name.starts_with(b"/dev/shm/") && !name.starts_with(b"/dev/zero")
}

fn exclude_dead_stack(
    mapping: &MapLine<'_>,
    is_stack: bool,
    stack_pointers: &[u64],
    use_stacks: bool,
    excluded: &mut Ranges,
) {
    let inside = |address: u64| (mapping.start..mapping.end).contains(&address);
    let lowest = stack_pointers.iter().copied().filter(|&rsp| inside(rsp)).min();
    match lowest {
        Some(_) if !use_stacks => excluded.push(mapping.start, mapping.end),
        Some(rsp) if is_stack => excluded.push(mapping.start, rsp),
        Some(_) => {}
        // No thread runs here: a stack that glibc keeps for the next thread is stale from end to end.
        None => for_each_state(|state| {
            let high = state.stack_high.load(core::sync::atomic::Ordering::Relaxed);
            if is_stack && high == mapping.end && mapping.name.is_empty() {
                excluded.push(mapping.start, mapping.end);
            }
        }),
    }
}

/// Calls `each` with the parts of `range` outside of `holes`, which are sorted and do not overlap.
fn subtract(range: &Range<Avma>, holes: &[Range<Avma>], mut each: impl FnMut(u64, u64)) {
    let mut at = range.start.0;
    let first = holes.partition_point(|hole| hole.end <= range.start);
    for hole in holes.get(first..).unwrap_or(&[]) {
        if hole.start >= range.end {
            break;
        }
        if at < hole.start.0 {
            each(at, hole.start.0);
        }
        at = at.max(hole.end.0);
    }
    if at < range.end.0 {
        each(at, range.end.0);
    }
}

impl Survey {
    fn note(&mut self, mapping: &MapLine<'_>) {
        if mapping.inode != 0
            && let Some(slot) = self.files.get_mut(self.files_len)
        {
            let MapLine { start, end, readable, executable, .. } = *mapping;
            *slot = FileRange { start, end, readable, executable };
            self.files_len += 1;
        }
        if !mapping.readable || is_device(mapping.name) || mapping.name == b"[vvar]" {
            return;
        }
        if mapping.shared && mapping.inode != 0 {
            self.shared.push(mapping.start, mapping.end);
        } else {
            self.readable.push_joining(mapping.start, mapping.end);
        }
    }
}

/// This process's own memory as the mark phase reads it.
pub struct OwnMemory<'a> {
    survey: &'a Survey,
    /// The readable range that was used last.
    recent: Range<u64>,
    bounce: &'static mut [u64],
}

impl<'a> OwnMemory<'a> {
    /// Reads what `survey` found readable. `None` when there is no memory.
    pub fn new(survey: &'a Survey) -> Option<Self> {
        // SAFETY: integers.
        Some(Self { survey, recent: 0..0, bounce: unsafe { map_slice(512, false) }? })
    }
}

fn holding(ranges: &[Range<Avma>], address: u64) -> Option<&Range<Avma>> {
    let after = ranges.partition_point(|range| range.start.0 <= address);
    ranges.get(after.checked_sub(1)?).filter(|range| address < range.end.0)
}

impl Memory for OwnMemory<'_> {
    #[inline]
    fn words(&mut self, start: Avma, count: usize) -> Option<&[u64]> {
        if !self.recent.contains(&start.0) {
            match holding(self.survey.readable.all(), start.0) {
                Some(range) => self.recent = range.start.0..range.end.0,
                None => return self.bounced(start.0, count),
            }
        }
        let available = ((self.recent.end - start.0) / 8) as usize;
        // SAFETY: the range is readable private memory of this process, and no other thread runs that could change or
        // unmap it; `start` is a multiple of 8 by the trait's contract.
        Some(unsafe { core::slice::from_raw_parts(start.0 as *const u64, count.min(available)) })
            .filter(|words| !words.is_empty())
    }

    #[inline]
    fn touch(&mut self, start: Avma, bytes: u64) {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let mut line = start.0 & !63;
        while line < start.0 + bytes {
            // SAFETY: a prefetch never faults.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line as *const i8) };
            line += 64;
        }
    }

    fn file_mapping(&mut self, at: Avma) -> Option<FileMapping> {
        let files = self.survey.files.get(..self.survey.files_len)?;
        let after = files.partition_point(|file| file.start <= at.0);
        let file = files.get(after.checked_sub(1)?).filter(|file| at.0 < file.end)?;
        Some(FileMapping { end: Avma(file.end), readable: file.readable, executable: file.executable })
    }
}

impl OwnMemory<'_> {
    #[cold]
    fn bounced(&mut self, start: u64, count: usize) -> Option<&[u64]> {
        use crate::raw::{call, getpid, nr};
        let range = holding(self.survey.shared.all(), start)?;
        let in_page = ((4096 - (start & 4095)) / 8) as usize;
        let wanted = count.min(self.bounce.len()).min(((range.end.0 - start) / 8) as usize).min(in_page);
        let local = [self.bounce.as_mut_ptr() as usize, wanted * 8];
        let remote = [start as usize, wanted * 8];
        // SAFETY: the kernel writes at most `wanted` words to the buffer; an unreadable source is an error.
        let got = unsafe { call!(nr::PROCESS_VM_READV, getpid(), local.as_ptr(), 1, remote.as_ptr(), 1, 0) }.ok()?;
        self.bounce.get(..got / 8).filter(|words| !words.is_empty())
    }
}
