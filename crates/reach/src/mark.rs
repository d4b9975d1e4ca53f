//! The two passes over the heap: what the roots lead to, then who leads to what is left.

use core::ops::Range;

use leakscope_model::{Avma, HeuristicSet};

use crate::batch::{BATCH_WORDS, Batch};
use crate::block::{Block, InputError};
use crate::heuristics;
use crate::index::Index;
use crate::marked::{Marked, Stats, mark_byte};
use crate::memory::Memory;
use crate::stack::{Stack, next_pending};
use crate::work::{Work, WorkSizes};

const WORD_BYTES: u64 = 8;
const PAGE_BYTES: u64 = 4096;
const LINE_BYTES: u64 = 64;
/// With more blocks than this on the stack, going through the heap in order of address beats jumping about in it ...
const STACK_BLOCKS: usize = 4096;
/// ... for as long as a sweep finds one block in so many to scan.
const SWEEP_DENSITY: usize = 64;
/// Blocks scanned together, so that their cache misses overlap.
const GROUP_BLOCKS: usize = 16;

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
/// If blocks are out of order, overlap or leave the address space, or if `work` is too small.
pub fn mark<'a, M: Memory>(
    blocks: &'a [Block],
    roots: Roots<'_>,
    heuristics: HeuristicSet,
    memory: &mut M,
    work: Work<'a>,
) -> Result<Marked<'a>, InputError> {
    let sizes = WorkSizes::for_blocks(blocks)?;
    sizes.check(&work)?;
    let index = Index::build(blocks, sizes.shape(), work.regions, work.granules, work.settled);
    let marks = work.marks.get_mut(..blocks.len()).unwrap_or_default();
    let leaders = work.leaders.get_mut(..blocks.len()).unwrap_or_default();
    marks.fill(0);
    let mut marker = Marker {
        blocks,
        index,
        marks,
        leaders,
        stack: Stack { entries: work.stack, top: 0, limit: STACK_BLOCKS, has_spilled: false },
        heuristics,
        memory,
        stats: Stats::default(),
        heuristic_matched: false,
    };
    let mut batch = Batch { pointers: [0; BATCH_WORDS], blocks: [0; BATCH_WORDS], len: 0 };

    marker.scan_roots(roots, &mut batch);
    marker.drain(Pass::Reach, &mut batch);
    if marker.heuristic_matched {
        marker.start_over();
        marker.scan_roots(roots, &mut batch);
        marker.drain_in_order(&mut batch);
        marker.stack.clear(STACK_BLOCKS);
    }
    marker.gather_cliques(&mut batch);
    Ok(Marked::new(blocks, marker.marks, marker.leaders, marker.stats))
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

struct Marker<'a, 'm, M> {
    blocks: &'a [Block],
    index: Index<'a>,
    marks: &'a mut [u8],
    leaders: &'a mut [u32],
    stack: Stack<'a>,
    heuristics: HeuristicSet,
    memory: &'m mut M,
    stats: Stats,
    heuristic_matched: bool,
}

impl<M: Memory> Marker<'_, '_, M> {
    fn start_over(&mut self) {
        self.marks.fill(0);
        self.index.unsettle_all();
        self.stack.clear(usize::MAX);
        self.stats = Stats::default();
    }

    /// Reads the root set and pushes what it points to; scans no block.
    fn scan_roots(&mut self, roots: Roots<'_>, batch: &mut Batch) {
        for range in roots.ranges {
            let (mut at, end) = (range.start.0, range.end.0);
            // Ends are in order as well, since blocks do not overlap.
            let mut next = self.blocks.partition_point(|b| b.start.0 + b.size_bytes <= at);
            while at < end {
                let hole = self.blocks.get(next).filter(|b| b.start.0 < end);
                match hole {
                    Some(block) if block.size_bytes == 0 => next += 1,
                    Some(block) => {
                        self.scan_root(at, block.start.0, batch);
                        at = block.start.0 + block.size_bytes;
                        next += 1;
                    }
                    None => {
                        self.scan_root(at, end, batch);
                        break;
                    }
                }
            }
        }
        for registers in roots.registers.chunks(BATCH_WORDS) {
            batch.len = 0;
            batch.take(registers, self.index.bounds());
            self.visit_all(batch, Pass::Reach, true);
        }
    }

    fn scan_root(&mut self, start: u64, end: u64, batch: &mut Batch) {
        let unreadable_bytes = self.scan(start, end, Pass::Reach, true, batch);
        let words = whole_words(start, end);
        self.stats.root_bytes += words.end.saturating_sub(words.start);
        self.stats.unreadable_root_bytes += unreadable_bytes;
    }

    /// Scans any length of memory; returns how many bytes could not be read.
    fn scan(&mut self, start: u64, end: u64, pass: Pass, is_definite: bool, batch: &mut Batch) -> u64 {
        let words = whole_words(start, end);
        let (mut at, mut unreadable_bytes) = (words.start, 0);
        while at < words.end {
            batch.len = 0;
            (at, unreadable_bytes) = self.collect(at, words.end, unreadable_bytes, batch);
            self.visit_all(batch, pass, is_definite);
        }
        unreadable_bytes
    }

    /// Takes the candidates of the words from `at` on until the batch may be full. Returns where it stopped, and
    /// `unreadable_bytes` with what it had to skip.
    #[inline]
    fn collect(&mut self, mut at: u64, end: u64, mut unreadable_bytes: u64, batch: &mut Batch) -> (u64, u64) {
        while at < end && batch.room() > 0 {
            let want = ((end - at) / WORD_BYTES).min(batch.room() as u64) as usize;
            match self.memory.words(Avma(at), want) {
                Some(words) if !words.is_empty() => {
                    let words = words.get(..want).unwrap_or(words);
                    batch.take(words, self.index.bounds());
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

    fn visit_all(&mut self, batch: &mut Batch, pass: Pass, is_definite: bool) {
        let mut ends = [batch.len];
        batch.locate(&self.index, self.blocks, is_definite || self.heuristics.bits() == 0, &mut ends);
        self.visit_some(batch, 0..batch.len, pass, is_definite);
    }

    #[inline]
    fn visit_some(&mut self, batch: &Batch, found: Range<usize>, pass: Pass, is_definite: bool) {
        for i in found {
            let at = i & (BATCH_WORDS - 1);
            let (pointer, block) = (batch.pointers[at], batch.blocks[at] as usize);
            match pass {
                Pass::Reach => self.reach(pointer, block, is_definite),
                Pass::Gather(leader) => self.gather(block, leader),
            }
        }
    }

    /// Scans pending blocks until none is left, in an order that is kind to the caches; marking stops at the first
    /// match of a heuristic.
    fn drain(&mut self, pass: Pass, batch: &mut Batch) {
        let mut group = Group::default();
        loop {
            while self.stack.top > 0 && !self.stack.has_spilled && !self.must_start_over(pass) {
                group.len = self.stack.top.min(GROUP_BLOCKS);
                for (depth, member) in group.members.iter_mut().enumerate().take(group.len) {
                    member.block = self.stack.peek(depth);
                }
                self.read_group(&mut group, batch);
                self.stack.top -= group.len.max(1);
                self.scan_group(&mut group, pass, batch);
            }
            if !self.stack.has_spilled || self.must_start_over(pass) {
                return;
            }
            // What is on the stack is marked as pending, too.
            let limit = self.stack.limit;
            self.stack.clear(0);
            while self.sweep(&mut group, pass, batch) > self.blocks.len() / SWEEP_DENSITY {}
            self.stack.clear(limit);
            self.stack.refill(self.marks);
        }
    }

    #[inline]
    fn must_start_over(&self, pass: Pass) -> bool {
        self.heuristic_matched && matches!(pass, Pass::Reach)
    }

    /// Scans pending blocks in ascending order, those that it finds ahead of itself included. Returns how many.
    fn sweep(&mut self, group: &mut Group, pass: Pass, batch: &mut Batch) -> usize {
        let (mut from, mut scanned) = (0, 0);
        while !self.must_start_over(pass) {
            group.len = 0;
            let mut next = from;
            while let Some(member) = group.members.get_mut(group.len)
                && let Some(block) = next_pending(self.marks, next)
            {
                member.block = block;
                next = block + 1;
                group.len += 1;
            }
            if group.len == 0 {
                return scanned;
            }
            self.read_group(group, batch);
            // Those that did not fit the batch are still pending.
            from = group.members.get(group.len.max(1) - 1).map_or(from, |m| m.block + 1);
            scanned += group.len.max(1);
            self.scan_group(group, pass, batch);
        }
        // Leaves the loops of `drain`.
        0
    }

    /// Scans a group that was read; one without members stands for its first block, which is larger than a batch.
    fn scan_group(&mut self, group: &mut Group, pass: Pass, batch: &mut Batch) {
        let members = group.members.get(..group.len).unwrap_or_default();
        if members.is_empty() {
            return self.scan_large(group.members[0].block, pass, batch);
        }
        // Possibly lost blocks are scanned with care: a heuristic may accept what they point to.
        let is_possible = |m: &Member| self.marks[m.block] & mark_byte::STATE == mark_byte::POSSIBLE;
        let skip_settled = self.heuristics.bits() == 0 || !members.iter().any(is_possible);
        batch.locate(&self.index, self.blocks, skip_settled, &mut group.ends[..members.len()]);
        for member in members {
            self.marks[member.block] &= !mark_byte::PENDING;
        }
        let mut from = 0;
        for (member, &end) in members.iter().zip(&group.ends) {
            let is_definite = self.begin_scan(member.block, member.unreadable_bytes);
            self.visit_some(batch, from..end, pass, is_definite);
            from = end;
        }
    }

    /// Marks in Memcheck's order: always scans the block that was found last.
    ///
    /// A group from the top of the stack is read at once; as soon as one of its blocks leads to new ones, those
    /// come first, and the rest of the group waits on the stack.
    fn drain_in_order(&mut self, batch: &mut Batch) {
        let mut group = Group::default();
        let mut width = 1;
        loop {
            if self.stack.top == 0 && self.stack.has_spilled {
                self.stack.refill(self.marks);
            }
            if self.stack.top == 0 {
                return;
            }
            group.len = self.stack.top.min(width);
            for (depth, member) in group.members.iter_mut().enumerate().take(group.len) {
                member.block = self.stack.peek(depth);
            }
            self.read_group(&mut group, batch);
            if group.len == 0 {
                self.stack.top -= 1;
                self.scan_large(group.members[0].block, Pass::Reach, batch);
                continue;
            }
            batch.locate(&self.index, self.blocks, true, &mut group.ends[..group.len]);
            let mut from = 0;
            let mut is_interrupted = false;
            for (member, &end) in group.members.iter().zip(&group.ends).take(group.len) {
                self.stack.top -= 1;
                self.marks[member.block] &= !mark_byte::PENDING;
                let rest = self.stack.top;
                let is_definite = self.begin_scan(member.block, member.unreadable_bytes);
                self.visit_some(batch, from..end, Pass::Reach, is_definite);
                from = end;
                if self.stack.top > rest {
                    is_interrupted = true;
                    break;
                }
            }
            width = if is_interrupted { width / 2 } else { width * 2 }.clamp(1, GROUP_BLOCKS);
        }
    }

    /// Fills the batch from the blocks of a group, and shortens the group to those that fit.
    #[inline]
    fn read_group(&mut self, group: &mut Group, batch: &mut Batch) {
        let width = group.len;
        // First one load for each cache line of the whole group, so that they are under way together.
        for member in group.members.iter_mut().take(width) {
            member.range = self.blocks[member.block];
            let bytes = member.range.size_bytes.min(4 * LINE_BYTES);
            self.memory.touch(member.range.start, bytes);
        }
        batch.len = 0;
        for (i, member) in group.members.iter_mut().enumerate().take(width) {
            let Block { start, size_bytes } = member.range;
            let words = whole_words(start.0, start.0 + size_bytes);
            if words.end.saturating_sub(words.start) / WORD_BYTES > batch.room() as u64 {
                group.len = i;
                return;
            }
            (_, member.unreadable_bytes) = self.collect(words.start, words.end, 0, batch);
            group.ends[i] = batch.len;
        }
    }

    /// Scans a block that is larger than a batch.
    #[cold]
    fn scan_large(&mut self, block: usize, pass: Pass, batch: &mut Batch) {
        self.marks[block] &= !mark_byte::PENDING;
        let Block { start, size_bytes } = self.blocks[block];
        let is_first = self.marks[block] & mark_byte::SCANNED == 0;
        let is_definite = self.begin_scan(block, 0);
        let unreadable_bytes = self.scan(start.0, start.0 + size_bytes, pass, is_definite, batch);
        if is_first {
            self.stats.unreadable_block_bytes += unreadable_bytes;
        }
    }

    /// Counts a block's first scan. Returns whether it is reached by start-pointers only.
    #[inline]
    fn begin_scan(&mut self, block: usize, unreadable_bytes: u64) -> bool {
        let mark = &mut self.marks[block];
        if *mark & mark_byte::SCANNED == 0 {
            *mark |= mark_byte::SCANNED;
            self.stats.unreadable_block_bytes += unreadable_bytes;
        }
        *mark & mark_byte::STATE != mark_byte::POSSIBLE
    }

    #[inline]
    fn push(&mut self, block: usize) {
        if self.marks[block] & mark_byte::PENDING == 0 {
            self.marks[block] |= mark_byte::PENDING;
            self.stack.push(block as u32);
        }
    }

    /// A pointer to a block was found, in a root or in a block that is reached.
    #[inline]
    fn reach(&mut self, pointer: u64, block: usize, is_definite: bool) {
        let Block { start, size_bytes: _ } = self.blocks[block];
        let mut mark = self.marks[block];
        let is_start = pointer == start.0;
        if mark & mark_byte::STATE == mark_byte::REACHABLE {
            if !is_definite && !is_start && !self.heuristic_matched {
                // Memcheck may have come here before the block was reachable: what it saw then is in the other order.
                let (at, set) = (self.blocks[block], self.heuristics);
                self.heuristic_matched = heuristics::accepts(pointer, at, set, self.memory).is_some();
            }
            if is_start && mark & mark_byte::HEURISTIC != 0 {
                // A start-pointer makes the heuristic unnecessary.
                self.marks[block] = mark & !mark_byte::HEURISTIC;
                self.index.settle(start.0);
            }
            return;
        }
        let is_start = is_start
            || self.heuristics.bits() != 0 && {
                // Memcheck forgets an earlier heuristic if this pointer matches none.
                let heuristic = heuristics::accepts(pointer, self.blocks[block], self.heuristics, self.memory);
                mark = mark & !mark_byte::HEURISTIC | mark_byte::of_heuristic(heuristic);
                self.heuristic_matched |= heuristic.is_some();
                heuristic.is_some()
            };
        let found = if is_start && is_definite {
            mark = mark & !mark_byte::STATE | mark_byte::REACHABLE;
            if mark & mark_byte::HEURISTIC == 0 {
                self.index.settle(start.0);
            }
            true
        } else if mark & mark_byte::STATE == mark_byte::UNREACHED {
            mark = mark & !mark_byte::STATE | mark_byte::POSSIBLE;
            true
        } else {
            false
        };
        self.marks[block] = mark;
        if found {
            self.push(block);
        }
    }

    /// A pointer to a block was found in the clique of a lost block.
    #[inline]
    fn gather(&mut self, block: usize, leader: u32) {
        let mark = self.marks[block];
        if mark & mark_byte::STATE != mark_byte::UNREACHED || block == leader as usize {
            return;
        }
        self.marks[block] = mark & !mark_byte::STATE | mark_byte::INDIRECT;
        self.leaders[block] = leader;
        self.index.settle(self.blocks[block].start.0);
        // A block before the current leader that is still unreached is an earlier leader: scanned, all gathered.
        if block > leader as usize {
            self.push(block);
        }
    }

    fn gather_cliques(&mut self, batch: &mut Batch) {
        // Every block that is not unreached is settled from here on.
        let mut lost = 0usize;
        for (block, mark) in self.blocks.iter().zip(self.marks.iter()) {
            match mark & mark_byte::STATE {
                mark_byte::UNREACHED => lost += 1,
                mark_byte::REACHABLE if mark & mark_byte::HEURISTIC == 0 => {}
                _ => self.index.settle(block.start.0),
            }
        }
        let mut from = 0;
        for _ in 0..lost {
            let rest = self.marks.get(from..).unwrap_or_default();
            let Some(next) = rest.iter().position(|m| m & mark_byte::STATE == mark_byte::UNREACHED) else {
                break;
            };
            let leader = from + next;
            self.push(leader);
            self.drain(Pass::Gather(leader as u32), batch);
            from = leader + 1;
        }
        self.resolve_leaders();
    }

    /// Makes `leaders` name the last leader, past those that were gathered by another.
    ///
    /// A leader can only be gathered by a later one, which has the higher number; every other block of a clique
    /// has a higher number than its leader. So the first sweep, downwards, meets only resolved leaders.
    fn resolve_leaders(&mut self) {
        let is_gathered = |mark: u8| mark & mark_byte::STATE == mark_byte::INDIRECT;
        for block in (0..self.marks.len()).rev() {
            if is_gathered(self.marks[block]) && self.leaders[block] as usize > block {
                self.resolve(block);
            }
        }
        for block in 0..self.marks.len() {
            if is_gathered(self.marks[block]) && (self.leaders[block] as usize) < block {
                self.resolve(block);
            }
        }
    }

    fn resolve(&mut self, block: usize) {
        let leader = self.leaders[block] as usize;
        if self.marks[leader] & mark_byte::STATE == mark_byte::INDIRECT {
            self.leaders[block] = self.leaders[leader];
        }
    }
}

/// Blocks that are scanned together, and where the candidates of each end in the batch.
#[derive(Default)]
struct Group {
    members: [Member; GROUP_BLOCKS],
    ends: [usize; GROUP_BLOCKS],
    len: usize,
}

/// A block of a group.
#[derive(Clone, Copy, Default)]
struct Member {
    block: usize,
    range: Block,
    unreadable_bytes: u64,
}
