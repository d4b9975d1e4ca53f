//! Where the program may hold pointers to its blocks.

use crate::options::options;
use crate::thread::{self, Thread};
use crate::{fake_stack, heap, modules, shadow_map};
use alloc::vec::Vec;
use core::cell::UnsafeCell;
use core::ops::Range;
use core::sync::atomic::Ordering::{Acquire, Relaxed};
use leakscope_model::Avma;
use leakscope_reach::Memory;
use leakscope_rt::memory::{Lock, own_mappings};
use leakscope_rt::proc_maps;
use leakscope_rt::registers::{Preserved, RegisterFile, preserved_registers};

/// What was found.
pub struct Found {
    /// Readable memory, not sorted.
    pub ranges: Vec<Range<Avma>>,
    /// Values of registers.
    pub registers: Vec<u64>,
    /// What can be read at all, by rising address.
    pub mappings: Vec<(usize, usize)>,
    /// An address of globals that cannot be read, if there is one.
    pub unreadable: Option<usize>,
}

struct Regions {
    lock: Lock,
    list: UnsafeCell<Vec<(usize, usize)>>,
}
// SAFETY: only touched with the lock held.
unsafe impl Sync for Regions {}

static REGIONS: Regions = Regions { lock: Lock::new(), list: UnsafeCell::new(Vec::new()) };

/// `__lsan_register_root_region`.
pub fn register_region(start: usize, bytes: usize) {
    let _held = REGIONS.lock.lock();
    // SAFETY: the lock is held.
    unsafe { (*REGIONS.list.get()).push((start, bytes)) };
}

/// `__lsan_unregister_root_region`; false when it was never registered.
pub fn unregister_region(start: usize, bytes: usize) -> bool {
    let _held = REGIONS.lock.lock();
    // SAFETY: the lock is held.
    let list = unsafe { &mut *REGIONS.list.get() };
    let place = list.iter().position(|&region| region == (start, bytes));
    place.map(|place| list.swap_remove(place)).is_some()
}

fn page_aligned(line: &proc_maps::MapLine<'_>) -> (usize, usize) {
    (line.start as usize, line.end as usize)
}

/// Readable mappings by rising address, and whether they are writable.
fn mappings() -> Vec<(usize, usize, bool)> {
    let mut all = Vec::new();
    proc_maps::for_each(|line| {
        if line.readable {
            let (start, end) = page_aligned(line);
            all.push((start, end, line.writable));
        }
    });
    all
}

struct Collector {
    found: Found,
    mappings: Vec<(usize, usize, bool)>,
    own: Vec<(usize, usize)>,
}

impl Collector {
    /// The first address of a range that cannot be read.
    fn first_unreadable(&self, start: usize, end: usize) -> Option<usize> {
        let mut at = start;
        for &(low, high, _) in &self.mappings {
            if low <= at && at < high {
                at = high;
            }
        }
        (at < end).then_some(at)
    }

    /// Adds the readable parts of a range.
    fn add(&mut self, start: usize, end: usize) {
        for &(low, high, _) in &self.mappings {
            let (from, to) = (start.max(low), end.min(high));
            if from < to {
                self.found.ranges.push(Avma(from as u64)..Avma(to as u64));
            }
        }
    }

    fn mapping_of(&self, address: usize) -> Option<(usize, usize)> {
        self.mappings.iter().find(|&&(start, end, _)| (start..end).contains(&address)).map(|&(s, e, _)| (s, e))
    }

    fn globals(&mut self) {
        for module in modules::all() {
            let is_ours = module.contains(modules::is_own_code as *const () as usize);
            // Of our own library only what the program cannot see is left out: all of it.
            if is_ours {
                continue;
            }
            for &(start, end, _, writable) in &module.segments {
                if writable {
                    self.found.unreadable = self.found.unreadable.or_else(|| self.first_unreadable(start, end));
                    self.add(start, end);
                }
            }
        }
    }

    /// A thread's stack from its stack pointer up, and the frames of its fake stack.
    fn stack(&mut self, record: &Thread, sp: usize) {
        let (low, high) = (record.stack_low.load(Relaxed), record.stack_high.load(Relaxed));
        if (low..high).contains(&sp) {
            self.add(sp & !7, high);
        } else if let Some((_, end)) = self.mapping_of(sp) {
            // On another stack (a coroutine's, a signal's): that one, and all of its own.
            self.add(sp & !7, end);
            self.add(low, high);
        }
        let fake = record.fake_stack.load(Acquire);
        if fake as usize > 1 {
            // SAFETY: the thread stands still, or is the caller.
            unsafe { (*fake).for_each_used(|start, end| self.found.ranges.push(Avma(start as u64)..Avma(end as u64))) };
        }
    }
}

/// The stack pointer from which on the calling thread's stack is the program's.
fn live_stack_pointer(is_exit: bool, sp: usize, high: usize) -> usize {
    if !is_exit {
        return sp;
    }
    let all = modules::all();
    let libc_code = libc::dl_iterate_phdr as *const () as usize;
    let libc = all.iter().find(|module| module.contains(libc_code));
    let linker = all.iter().find(|module| module.path.contains("/ld-linux"));
    let is_foreign =
        |pc: usize| [libc, linker].into_iter().flatten().any(|module| module.contains(pc)) || modules::is_own_code(pc);
    let frames = crate::unwind::Caller::of_hook(0).frames(128);
    // The last frames are `_start` and libc's call of main: only those of the program in front of them count.
    let program_frames = frames.iter().rev().skip(1).filter(|&&pc| !is_foreign(pc as usize - 1)).count();
    let Some(&outermost) = frames.iter().rev().find(|&&pc| is_foreign(pc as usize - 1)) else { return sp };
    if program_frames > 0 {
        return sp;
    }
    // Main has returned: below libc's outermost frame is nothing of the program's.
    let mut at = sp & !7;
    let mut last = sp;
    while at < high {
        // SAFETY: between the stack pointer and the top of the calling thread's stack.
        if unsafe { *(at as *const u64) } == outermost {
            last = at;
        }
        at += 8;
    }
    last
}

/// Finds the roots. Other threads stand still.
pub fn find(is_exit: bool) -> Found {
    let mut preserved = Preserved::default();
    // SAFETY: `preserved` is ours.
    unsafe { preserved_registers(&raw mut preserved) };
    let mut own = Vec::new();
    own_mappings(|start, bytes| own.push((start as usize, (start + bytes) as usize)));
    let mut collector = Collector {
        found: Found { ranges: Vec::new(), registers: Vec::new(), mappings: Vec::new(), unreadable: None },
        mappings: mappings(),
        own,
    };
    if options().use_globals {
        collector.globals();
    }
    let mut stopped: Vec<RegisterFile> = Vec::new();
    leakscope_rt::stop::for_each_stopped(|registers| stopped.push(*registers));
    let here = RegisterFile::from(preserved);
    for context in thread::all() {
        // SAFETY: threads stand still, so their records stay.
        let Some(record) = (unsafe { context.thread.load(Acquire).as_ref() }) else {
            // Being created: what it will be given.
            collector.found.registers.extend(context.pending.iter().map(|word| word.load(Relaxed) as u64));
            continue;
        };
        collector.found.registers.extend(context.pending.iter().map(|word| word.load(Relaxed) as u64));
        let (low, high) = (record.stack_low.load(Relaxed) as u64, record.stack_high.load(Relaxed) as u64);
        let is_me = core::ptr::eq(record, thread::current());
        let registers = if is_me { Some(&here) } else { stopped.iter().find(|r| (low..high).contains(&r.rsp)) };
        if options().use_stacks {
            let sp = match registers {
                Some(registers) if is_me => live_stack_pointer(is_exit, registers.rsp as usize, high as usize),
                Some(registers) => registers.rsp as usize,
                None => low as usize,
            };
            collector.stack(record, sp);
        }
        if options().use_registers && !(is_me && is_exit) {
            collector.found.registers.extend(registers.map(|r| r.words).unwrap_or_default());
            collector.found.registers.extend(registers.into_iter().flat_map(vector_registers));
        }
        if options().use_tls {
            thread_storage(&mut collector, record, is_me);
        }
    }
    if options().use_root_regions {
        let _held = REGIONS.lock.lock();
        // SAFETY: the lock is held.
        for &(start, bytes) in unsafe { &*REGIONS.list.get() } {
            collector.add(start & !7, start + bytes);
        }
    }
    drop_own(&mut collector);
    for &(start, end, _) in &collector.mappings {
        match collector.found.mappings.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ => collector.found.mappings.push((start, end)),
        }
    }
    collector.found
}

/// The halves of a stopped thread's vector registers: compilers move pairs of pointers in them.
fn vector_registers(registers: &RegisterFile) -> [u64; 32] {
    /// Of xmm0 in what FXSAVE writes.
    const FIRST_BYTE: usize = 160;
    match registers.vectors as usize {
        0 => [0; 32],
        // SAFETY: the thread stands in the signal handler that this is the frame of.
        at => unsafe { ((at + FIRST_BYTE) as *const [u64; 32]).read_unaligned() },
    }
}

/// Thread-local storage: static storage lies below the thread pointer, the thread's own data above.
fn thread_storage(collector: &mut Collector, record: &Thread, is_me: bool) {
    let high = record.stack_high.load(Relaxed);
    if is_me {
        let pointer: usize;
        // SAFETY: the thread pointer's first word is its own address.
        unsafe { core::arch::asm!("mov {}, qword ptr fs:[0]", out(reg) pointer, options(pure, readonly, nostack)) };
        if let Some((start, end)) = collector.mapping_of(pointer) {
            let is_on_stack = (record.stack_low.load(Relaxed)..high).contains(&pointer);
            // A thread of pthread_create has it in the mapping of its stack, which is handled with that; the main
            // thread's is a mapping of the linker's.
            let entry = record.entry_sp.load(Relaxed);
            let from = match (is_on_stack, entry) {
                (true, 0) => pointer.saturating_sub(STATIC_STORAGE).max(start),
                (true, entry) => entry & !7,
                (false, _) => start,
            };
            collector.add(from, end);
        }
    } else {
        // Above the frame that the thread began with lies what pthread_create put there.
        let entry = record.entry_sp.load(Relaxed);
        if entry != 0 {
            collector.add(entry & !7, high);
        }
    }
}

/// Most bytes of static thread-local storage that are looked at.
const STATIC_STORAGE: usize = 16 << 10;

/// Takes our own memory and the heap out of the ranges.
fn drop_own(collector: &mut Collector) {
    let mut out: Vec<Range<Avma>> = Vec::new();
    let mut excluded = core::mem::take(&mut collector.own);
    excluded.sort_unstable();
    for range in &collector.found.ranges {
        let is_fake_frame = |start: usize| excluded.iter().any(|&(low, high)| (low..high).contains(&start));
        let (mut start, end) = (range.start.0 as usize, range.end.0 as usize);
        // A range that lies wholly in a mapping of ours was put there on purpose: a fake frame.
        if is_fake_frame(start) && end - start <= 1 << 20 {
            out.push(range.clone());
            continue;
        }
        for &(low, high) in &excluded {
            if high <= start || low >= end {
                continue;
            }
            if low > start {
                out.push(Avma(start as u64)..Avma(low as u64));
            }
            start = high.min(end);
        }
        if start < end && !heap::is_heap_space(start) {
            out.push(Avma(start as u64)..Avma(end as u64));
        }
    }
    out.sort_unstable_by_key(|range| range.start);
    // Overlaps (a stack that is also a root region) are read once.
    let mut joined: Vec<Range<Avma>> = Vec::new();
    for range in out {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    collector.found.ranges = joined;
    let _ = fake_stack::CLASSES;
}

const BUFFER_WORDS: usize = 512;

/// The process's own memory, less what is poisoned: no program keeps a pointer where it may not look.
pub struct OwnMemory<'m> {
    mappings: &'m [(usize, usize)],
    /// Whether mappings may go away: a thread that slept in a system call that must not be interrupted may wake up.
    may_change: bool,
    /// The mapping that was read last.
    last: (usize, usize),
    buffer: [u64; BUFFER_WORDS],
}

impl<'m> OwnMemory<'m> {
    /// A reader of these mappings, which rise.
    pub const fn new(mappings: &'m [(usize, usize)], may_change: bool) -> Self {
        Self { mappings, may_change, last: (0, 0), buffer: [0; BUFFER_WORDS] }
    }

    /// How many bytes can be read from `start` on.
    fn readable_from(&mut self, start: usize) -> usize {
        if !(self.last.0..self.last.1).contains(&start) {
            let after = self.mappings.partition_point(|&(low, _)| low <= start);
            let found = after.checked_sub(1).and_then(|at| self.mappings.get(at));
            match found.filter(|&&(_, end)| start < end) {
                Some(&mapping) => self.last = mapping,
                None => return 0,
            }
        }
        self.last.1 - start
    }
}

impl OwnMemory<'_> {
    /// Calls `each` with the words of a range that begin at no multiple of 8.
    pub fn for_each_unaligned(&mut self, start: usize, end: usize, each: &mut impl FnMut(usize)) {
        let mut at = start.next_multiple_of(8);
        while at + 16 <= end {
            let most = ((end - at) / 8).min(BUFFER_WORDS);
            let Some(words) = self.words(Avma(at as u64), most) else {
                at = (at + 1).next_multiple_of(4096);
                continue;
            };
            for pair in words.windows(2) {
                let both = u128::from(pair[0]) | u128::from(pair[1]) << 64;
                (1..8).for_each(|bytes| each((both >> (8 * bytes)) as u64 as usize));
            }
            // The last word begins pairs with what follows it.
            at += (words.len() - 1).max(1) * 8;
        }
    }
}

impl Memory for OwnMemory<'_> {
    fn words(&mut self, start: Avma, count: usize) -> Option<&[u64]> {
        let start = start.0 as usize;
        let count = count.min(BUFFER_WORDS).min(self.readable_from(start) / 8);
        if count == 0 {
            return None;
        }
        let is_clean = options().use_poisoned || shadow_map::first_poisoned(start, count * 8).is_none();
        if is_clean && !self.may_change {
            // SAFETY: inside a readable mapping; other threads stand still.
            return Some(unsafe { core::slice::from_raw_parts(start as *const u64, count) });
        }
        if self.may_change {
            let bytes = count * 8;
            // SAFETY: the buffer's own bytes.
            let out = unsafe { core::slice::from_raw_parts_mut(self.buffer.as_mut_ptr().cast::<u8>(), bytes) };
            if !crate::sys::peek(start, out) {
                return None;
            }
        } else {
            // SAFETY: inside a readable mapping; other threads stand still; the buffer has room for so many words.
            unsafe { core::ptr::copy_nonoverlapping(start as *const u64, self.buffer.as_mut_ptr(), count) };
        }
        if !is_clean {
            for (number, word) in self.buffer.iter_mut().enumerate().take(count) {
                if shadow_map::shadow_byte(start + number * 8) != 0 {
                    *word = 0;
                }
            }
        }
        self.buffer.get(..count)
    }
}
