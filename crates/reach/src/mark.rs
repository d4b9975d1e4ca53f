//! The two passes over the heap: what the roots lead to, then who leads to what is left.
//!
//! Several workers can share the first pass; the second is one worker's. Marks only rise in the first one, so a worker
//! that sees an old mark does at most work that was done already. A worker takes a block's pending mark away and reads
//! its state in one step, before it acts on what the block holds: a state that rises later sets the mark again.

use core::cell::RefCell;
use core::ops::Range;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};

use leakscope_model::{Avma, HeuristicSet};

use crate::batch::{BATCH_WORDS, Batch};
use crate::block::{Block, Blocks, InputError, iter, partition_point};
use crate::crew::{Alone, Crew};
use crate::heuristics;
use crate::index::Index;
use crate::marked::{Marked, Stats, mark_byte};
use crate::memory::Memory;
use crate::queue::{Manner, Queue, Task};
use crate::stack::{Stack, next_pending};
use crate::work::Work;

const WORD_BYTES: u64 = 8;
const PAGE_BYTES: u64 = 4096;
/// Of a block that is about to be scanned, so much is loaded ahead.
const TOUCH_BYTES: u64 = 512;
/// With more blocks than this on a stack, going through the heap in order of address beats jumping about in it.
const STACK_BLOCKS: usize = 4096;
/// Blocks scanned together, so that their cache misses overlap.
const GROUP_BLOCKS: usize = 64;

/// Where marking starts.
#[derive(Clone, Copy, Debug)]
pub struct Roots<'r> {
    /// Readable and writable memory, in ascending order. Heap blocks in it are left out; what an allocator keeps between
    /// blocks is not, so its mappings do not belong here.
    pub ranges: &'r [Range<Avma>],
    /// The general registers of all threads.
    pub registers: &'r [u64],
}

/// Finds out how each block is reached.
///
/// `blocks` are all live heap blocks in ascending order; their positions are the numbers by which [`Marked`] answers.
///
/// # Errors
///
/// If `work` is too small.
pub fn mark<'a, B: Blocks, M: Memory>(
    blocks: B,
    roots: Roots<'_>,
    heuristics: HeuristicSet,
    memory: &mut M,
    work: Work<'a>,
) -> Result<Marked<'a, B>, InputError> {
    mark_together(blocks, roots, heuristics, &Alone(RefCell::new(memory)), work)
}

/// As [`mark`], with several workers.
///
/// # Errors
///
/// As for [`mark`].
pub fn mark_together<'a, B: Blocks, C: Crew>(
    blocks: B,
    roots: Roots<'_>,
    heuristics: HeuristicSet,
    crew: &C,
    work: Work<'a>,
) -> Result<Marked<'a, B>, InputError> {
    let sizes = work.sizes;
    sizes.check(&work)?;
    let index = Index::build(blocks, sizes.shape(), work.regions, work.granules, work.settled);
    let marks = work.marks.get(..blocks.len()).unwrap_or_default();
    marks.iter().for_each(|mark| mark.store(0, Relaxed));
    let workers = crew.workers().max(1);
    let marker = Marker {
        blocks,
        index,
        marks,
        leaders: work.leaders.get(..blocks.len()).unwrap_or_default(),
        queue: Queue::new(blocks.len()),
        heuristics,
        is_shared: workers > 1,
        root_bytes: AtomicU64::new(0),
        unreadable_root_bytes: AtomicU64::new(0),
        unreadable_block_bytes: AtomicU64::new(0),
    };
    let room = (work.stack.len() / workers).min(STACK_BLOCKS);
    crew.run(&|number, memory| {
        let from = (number * room).min(work.stack.len());
        let entries = work.stack.get(from..from + room).unwrap_or_default();
        let mut worker = Worker::new(&marker, memory, entries);
        if number == 0 {
            worker.scan_roots(roots);
            worker.drain(Pass::Reach, false);
            marker.queue.finish();
        }
        worker.serve(C::rest);
        if number == 0 {
            // No worker changes anything any more, and the whole stack is free.
            worker.stack.entries = work.stack;
            worker.gather_cliques();
        }
    });
    let stats = Stats {
        root_bytes: marker.root_bytes.load(Relaxed),
        unreadable_root_bytes: marker.unreadable_root_bytes.load(Relaxed),
        unreadable_block_bytes: marker.unreadable_block_bytes.load(Relaxed),
    };
    Ok(Marked::new(blocks, marks, marker.leaders, stats))
}

/// What a pointer that is found does.
#[derive(Clone, Copy)]
enum Pass {
    /// Marks its target as reached.
    Reach,
    /// Makes its target indirectly lost, under this leader.
    Gather(u32),
}

/// The whole words of a range of addresses: Memcheck rounds the start up and the end down.
#[inline]
fn whole_words(start: u64, end: u64) -> Range<u64> {
    start.checked_next_multiple_of(WORD_BYTES).unwrap_or(u64::MAX)..end / WORD_BYTES * WORD_BYTES
}

/// What all workers see.
struct Marker<'a, B> {
    blocks: B,
    index: Index<'a, B>,
    marks: &'a [AtomicU8],
    leaders: &'a [AtomicU32],
    queue: Queue,
    heuristics: HeuristicSet,
    /// Whether there may be more than one worker: then marks change by locked instructions.
    is_shared: bool,
    root_bytes: AtomicU64,
    unreadable_root_bytes: AtomicU64,
    unreadable_block_bytes: AtomicU64,
}

impl<B: Blocks> Marker<'_, B> {
    #[inline]
    fn mark(&self, block: usize) -> u8 {
        self.marks.get(block).map_or(mark_byte::REACHABLE, |m| m.load(Relaxed))
    }

    /// Changes a mark and gives the old one. `change` returns the same mark if there is nothing to change.
    #[inline]
    fn update(&self, block: usize, change: impl Fn(u8) -> u8) -> u8 {
        let Some(mark) = self.marks.get(block) else {
            return mark_byte::REACHABLE;
        };
        let mut old = mark.load(Relaxed);
        loop {
            let new = change(old);
            if new == old {
                return old;
            }
            if !self.is_shared {
                mark.store(new, Relaxed);
                return old;
            }
            match mark.compare_exchange_weak(old, new, Relaxed, Relaxed) {
                Ok(_) => return old,
                Err(seen) => old = seen,
            }
        }
    }
}

struct Worker<'s, 'a, 'm, B, M> {
    shared: &'s Marker<'a, B>,
    memory: &'m mut M,
    stack: Stack<'s>,
    batch: Batch,
    group: Group,
    /// Whether a block was left off the stack.
    has_spilled: bool,
}

impl<'s, 'a, 'm, B: Blocks, M: Memory> Worker<'s, 'a, 'm, B, M> {
    fn new(shared: &'s Marker<'a, B>, memory: &'m mut M, entries: &'s [AtomicU32]) -> Self {
        Self {
            shared,
            memory,
            stack: Stack { entries, top: 0, limit: entries.len() },
            batch: Batch { pointers: [0; BATCH_WORDS], blocks: [0; BATCH_WORDS], len: 0 },
            group: Group::new(),
            has_spilled: false,
        }
    }

    /// Does what there is to do until nothing is left.
    fn serve(&mut self, rest: fn()) {
        let queue = &self.shared.queue;
        let mut was_waiting = false;
        loop {
            (self.has_spilled, self.stack.limit) = (false, self.stack.entries.len());
            match queue.next(&mut self.stack, &mut was_waiting) {
                Task::Done => return,
                Task::Wait => {
                    rest();
                    continue;
                }
                Task::Stack => self.drain(Pass::Reach, false),
                Task::Span { start, end, manner } => {
                    self.scan(start, end, manner);
                    self.drain(Pass::Reach, false);
                }
                Task::Sweep { from, until, deep } => {
                    let found = self.sweep(from..until, Pass::Reach, deep);
                    queue.count_found(found);
                }
            }
            queue.finish();
        }
    }

    /// Reads the root set and pushes what it points to; scans no block.
    fn scan_roots(&mut self, roots: Roots<'_>) {
        let blocks = self.shared.blocks;
        for range in roots.ranges {
            let (mut at, end) = (range.start.0, range.end.0);
            // Ends are in order as well, since blocks do not overlap.
            let mut next = partition_point(blocks, 0..blocks.len(), |b| b.start.0 + b.size_bytes <= at);
            while at < end {
                match blocks.get(next).filter(|b| b.start.0 < end) {
                    Some(block) if block.size_bytes == 0 => next += 1,
                    Some(block) => {
                        self.scan_root(at, block.start.0);
                        at = block.start.0 + block.size_bytes;
                        next += 1;
                    }
                    None => {
                        self.scan_root(at, end);
                        break;
                    }
                }
            }
        }
        for registers in roots.registers.chunks(BATCH_WORDS) {
            self.batch.len = 0;
            self.batch.take(registers, self.shared.index.bounds());
            self.visit_all(true);
        }
    }

    fn scan_root(&mut self, start: u64, end: u64) {
        let words = whole_words(start, end);
        self.shared.root_bytes.fetch_add(words.end.saturating_sub(words.start), Relaxed);
        let manner = Manner { is_definite: true, is_root: true, is_again: false };
        self.scan_long(words, manner);
    }

    /// Scans any length of memory, or leaves it to all workers.
    fn scan_long(&mut self, words: Range<u64>, manner: Manner) {
        if !self.shared.is_shared || !self.shared.queue.divide(words.start, words.end, manner) {
            self.scan(words.start, words.end, manner);
        }
    }

    /// Scans whole words and counts how many could not be read.
    fn scan(&mut self, start: u64, end: u64, manner: Manner) {
        let (mut at, mut unreadable_bytes) = (start, 0);
        while at < end {
            self.batch.len = 0;
            (at, unreadable_bytes) = self.collect(at, end, unreadable_bytes);
            self.visit_all(manner.is_definite);
        }
        if unreadable_bytes > 0 && !manner.is_again {
            let counter =
                if manner.is_root { &self.shared.unreadable_root_bytes } else { &self.shared.unreadable_block_bytes };
            counter.fetch_add(unreadable_bytes, Relaxed);
        }
    }

    /// Takes the candidates of the words from `at` on until the batch may be full. Returns where it stopped, and
    /// `unreadable_bytes` with what it had to skip.
    #[inline]
    fn collect(&mut self, mut at: u64, end: u64, mut unreadable_bytes: u64) -> (u64, u64) {
        while at < end && self.batch.room() > 0 {
            let want = ((end - at) / WORD_BYTES).min(self.batch.room() as u64) as usize;
            match self.memory.words(Avma(at), want) {
                Some(words) if !words.is_empty() => {
                    let words = words.get(..want).unwrap_or(words);
                    self.batch.take(words, self.shared.index.bounds());
                    at += words.len() as u64 * WORD_BYTES;
                }
                _ => {
                    let next = (at | (PAGE_BYTES - 1)).saturating_add(1).min(end);
                    unreadable_bytes += next - at;
                    at = next;
                }
            }
        }
        (at, unreadable_bytes)
    }

    /// Acts on the whole batch in the first pass.
    fn visit_all(&mut self, is_definite: bool) {
        let mut ends = [self.batch.len];
        self.batch.locate(&self.shared.index, self.shared.blocks, &mut ends);
        self.visit_some(0..self.batch.len, Pass::Reach, is_definite);
    }

    #[inline]
    fn visit_some(&mut self, found: Range<usize>, pass: Pass, is_definite: bool) {
        for i in found {
            let at = i & (BATCH_WORDS - 1);
            let (pointer, block) = (self.batch.pointers[at], self.batch.blocks[at] as usize);
            match pass {
                Pass::Reach => self.reach(pointer, block, is_definite),
                Pass::Gather(leader) => self.gather(block, leader),
            }
        }
    }

    /// Scans what is on the stack and what that leads to. When the stack ran over, the rest of it is left to a sweep,
    /// unless `deep`.
    fn drain(&mut self, pass: Pass, deep: bool) {
        while self.stack.top > 0 {
            if self.has_spilled && !deep {
                self.stack.top = 0;
                return;
            }
            let width = self.stack.top.min(GROUP_BLOCKS);
            for (depth, member) in self.group.members.iter_mut().enumerate().take(width) {
                member.block = self.stack.peek(depth);
            }
            self.group.len = width;
            self.read_group();
            self.stack.top -= self.group.len.max(1);
            self.scan_group(pass, true);
            if self.shared.is_shared
                && self.stack.top > 2 * GROUP_BLOCKS
                && matches!(pass, Pass::Reach)
                && self.shared.queue.is_hungry()
            {
                self.shared.queue.give(&mut self.stack);
            }
        }
    }

    /// Scans pending blocks in ascending order, those that it finds ahead of itself included; `deep`: and at once what
    /// they lead to. Returns how many.
    fn sweep(&mut self, numbers: Range<usize>, pass: Pass, deep: bool) -> usize {
        let marks = self.shared.marks.get(..numbers.end).unwrap_or_default();
        let (mut from, mut scanned) = (numbers.start, 0);
        loop {
            self.group.len = 0;
            let mut next = from;
            while let Some(member) = self.group.members.get_mut(self.group.len)
                && let Some(block) = next_pending(marks, next)
            {
                member.block = block;
                next = block + 1;
                self.group.len += 1;
            }
            if self.group.len == 0 {
                return scanned;
            }
            self.read_group();
            // Those that did not fit the batch are still pending.
            let last = self.group.members.get(self.group.len.max(1) - 1);
            from = last.map_or(from, |m| m.block + 1);
            scanned += self.group.len.max(1);
            self.scan_group(pass, deep);
            if deep {
                self.drain(pass, true);
            }
        }
    }

    /// Scans a group that was read; one without members stands for its first block, which is larger than a batch.
    /// What it finds goes on the stack, or is only marked as pending.
    fn scan_group(&mut self, pass: Pass, push: bool) {
        self.stack.limit = if push { self.stack.entries.len() } else { 0 };
        let len = self.group.len;
        if len == 0 {
            return self.scan_large(self.group.members[0].block, pass);
        }
        let ends = self.group.ends.get_mut(..len).unwrap_or_default();
        self.batch.locate(&self.shared.index, self.shared.blocks, ends);
        let mut from = 0;
        for i in 0..len {
            let (member, end) = (self.group.members[i], self.group.ends[i]);
            let is_definite = self.begin_scan(member.block);
            if member.unreadable_bytes > 0 && self.is_first_count(member.block) {
                let counter = &self.shared.unreadable_block_bytes;
                counter.fetch_add(member.unreadable_bytes, Relaxed);
            }
            self.visit_some(from..end, pass, is_definite);
            from = end;
        }
    }

    /// Fills the batch from the blocks of a group, and shortens the group to those that fit.
    #[inline]
    fn read_group(&mut self) {
        let width = self.group.len;
        // First the loads of the whole group, so that they are under way together.
        for member in self.group.members.iter_mut().take(width) {
            member.range = self.shared.blocks.get(member.block).unwrap_or_default();
            let bytes = member.range.size_bytes.min(TOUCH_BYTES);
            self.memory.touch(member.range.start, bytes);
        }
        self.batch.len = 0;
        for i in 0..width {
            let Block { start, size_bytes } = self.group.members[i].range;
            let words = whole_words(start.0, start.0 + size_bytes);
            if words.end.saturating_sub(words.start) / WORD_BYTES > self.batch.room() as u64 {
                self.group.len = i;
                return;
            }
            let (_, unreadable_bytes) = self.collect(words.start, words.end, 0);
            self.group.members[i].unreadable_bytes = unreadable_bytes;
            self.group.ends[i] = self.batch.len;
        }
    }

    /// Scans a block that is larger than a batch.
    #[cold]
    fn scan_large(&mut self, block: usize, pass: Pass) {
        let Block { start, size_bytes } = self.shared.blocks.get(block).unwrap_or_default();
        let words = whole_words(start.0, start.0 + size_bytes);
        let is_definite = self.begin_scan(block);
        let is_again = !self.is_first_count(block);
        if let Pass::Reach = pass {
            let manner = Manner { is_definite, is_root: false, is_again };
            return self.scan_long(words, manner);
        }
        let (mut at, mut unreadable_bytes) = (words.start, 0);
        while at < words.end {
            self.batch.len = 0;
            (at, unreadable_bytes) = self.collect(at, words.end, unreadable_bytes);
            let mut ends = [self.batch.len];
            self.batch.locate(&self.shared.index, self.shared.blocks, &mut ends);
            self.visit_some(0..self.batch.len, pass, true);
        }
        if !is_again {
            let counter = &self.shared.unreadable_block_bytes;
            counter.fetch_add(unreadable_bytes, Relaxed);
        }
    }

    /// The block is no longer pending. Returns whether it is reached by start-pointers only.
    #[inline]
    fn begin_scan(&mut self, block: usize) -> bool {
        let old = self.shared.update(block, |mark| mark & !mark_byte::PENDING);
        old & mark_byte::STATE != mark_byte::POSSIBLE
    }

    /// Whether nobody has counted the block's unreadable bytes yet.
    fn is_first_count(&self, block: usize) -> bool {
        self.shared.update(block, |mark| mark | mark_byte::COUNTED) & mark_byte::COUNTED == 0
    }

    /// The block was given its pending mark.
    #[inline]
    fn push(&mut self, block: usize) {
        if !self.stack.push(block as u32) {
            self.has_spilled = true;
            self.shared.queue.spill();
        }
    }

    /// A pointer to a block was found, in a root or in a block that is reached.
    #[inline]
    fn reach(&mut self, pointer: u64, block: usize, is_definite: bool) {
        let shared = self.shared;
        let target = shared.blocks.get(block).unwrap_or_default();
        let is_start = pointer == target.start.0;
        let named = if is_start || shared.heuristics.bits() == 0 {
            0
        } else {
            mark_byte::of_heuristic(heuristics::accepts(pointer, target, shared.heuristics, self.memory))
        };
        let state = if is_definite && (is_start || named != 0) { mark_byte::REACHABLE } else { mark_byte::POSSIBLE };
        let is_direct = is_start && is_definite;
        let raise = |mark: u8| {
            let mut new = mark;
            if mark & mark_byte::STATE < state {
                new = new & !mark_byte::STATE | state | mark_byte::PENDING;
            }
            if is_direct {
                // A start-pointer makes the heuristic unnecessary.
                new = new & !mark_byte::HEURISTIC | mark_byte::DIRECT;
            } else if named != 0 && mark & mark_byte::DIRECT == 0 {
                let before = mark & mark_byte::HEURISTIC;
                if before == 0 || named < before {
                    new = new & !mark_byte::HEURISTIC | named;
                }
            }
            new
        };
        let old = shared.update(block, raise);
        if is_direct && old & mark_byte::DIRECT == 0 {
            shared.index.settle(target.start.0);
        }
        if raise(old) & !old & mark_byte::PENDING != 0 {
            self.push(block);
        }
    }

    /// A pointer to a block was found in the clique of a lost block.
    #[inline]
    fn gather(&mut self, block: usize, leader: u32) {
        let shared = self.shared;
        let mark = shared.mark(block);
        if mark & mark_byte::STATE != mark_byte::UNREACHED || block == leader as usize {
            return;
        }
        // A block before the current leader that is still unreached is an earlier leader: scanned, all gathered.
        let is_new = block > leader as usize;
        let pending = if is_new { mark_byte::PENDING } else { 0 };
        shared.update(block, |mark| mark & !mark_byte::STATE | mark_byte::INDIRECT | pending);
        if let Some(slot) = shared.leaders.get(block) {
            slot.store(leader, Relaxed);
        }
        shared.index.settle(shared.blocks.get(block).unwrap_or_default().start.0);
        if is_new && mark & mark_byte::PENDING == 0 {
            self.push(block);
        }
    }

    fn gather_cliques(&mut self) {
        let shared = self.shared;
        // Every block that is not unreached is settled from here on.
        let all = iter(shared.blocks, 0..shared.blocks.len());
        let mut lost = 0usize;
        for (block, mark) in all.zip(shared.marks) {
            let mark = mark.load(Relaxed);
            match mark & mark_byte::STATE {
                mark_byte::UNREACHED => lost += 1,
                mark_byte::REACHABLE if mark & mark_byte::DIRECT != 0 => {}
                _ => shared.index.settle(block.start.0),
            }
        }
        let mut from = 0;
        for _ in 0..lost {
            let rest = shared.marks.get(from..).unwrap_or_default();
            let is_unreached = |m: &AtomicU8| m.load(Relaxed) & mark_byte::STATE == mark_byte::UNREACHED;
            let Some(next) = rest.iter().position(is_unreached) else {
                break;
            };
            let leader = from + next;
            let pass = Pass::Gather(leader as u32);
            shared.update(leader, |mark| mark | mark_byte::PENDING);
            self.stack.limit = self.stack.entries.len();
            self.push(leader);
            self.drain(pass, true);
            while core::mem::take(&mut self.has_spilled) {
                // What did not fit the stack has a higher number than the leader.
                self.sweep(leader..shared.marks.len(), pass, false);
            }
            from = leader + 1;
        }
        self.resolve_leaders();
    }

    /// Makes `leaders` name the last leader, past those that were gathered by another.
    ///
    /// A leader can only be gathered by a later one, which has the higher number; every other block of a clique
    /// has a higher number than its leader. So the first sweep, downwards, meets only resolved leaders.
    fn resolve_leaders(&mut self) {
        let marks = self.shared.marks;
        let is_gathered = |block: usize| self.shared.mark(block) & mark_byte::STATE == mark_byte::INDIRECT;
        for block in (0..marks.len()).rev() {
            if is_gathered(block) && self.leader(block) > block {
                self.resolve(block);
            }
        }
        for block in 0..marks.len() {
            if is_gathered(block) && self.leader(block) < block {
                self.resolve(block);
            }
        }
    }

    fn leader(&self, block: usize) -> usize {
        self.shared.leaders.get(block).map_or(block, |l| l.load(Relaxed) as usize)
    }

    fn resolve(&self, block: usize) {
        let leader = self.leader(block);
        if self.shared.mark(leader) & mark_byte::STATE == mark_byte::INDIRECT
            && let Some(slot) = self.shared.leaders.get(block)
        {
            slot.store(self.leader(leader) as u32, Relaxed);
        }
    }
}

/// Blocks that are scanned together, and where the candidates of each end in the batch.
struct Group {
    members: [Member; GROUP_BLOCKS],
    ends: [usize; GROUP_BLOCKS],
    len: usize,
}

impl Group {
    fn new() -> Self {
        Self { members: [Member::default(); GROUP_BLOCKS], ends: [0; GROUP_BLOCKS], len: 0 }
    }
}

/// A block of a group.
#[derive(Clone, Copy, Default)]
struct Member {
    block: usize,
    range: Block,
    unreadable_bytes: u64,
}
