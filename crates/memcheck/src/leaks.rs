//! The leak check: the target's exact heap, its roots, and the mark phase of crate `reach`.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};

use leakscope_guest::{Backing, Mapping};
use leakscope_ledger::events::{Check, Event, Record, asked};
use leakscope_model::{AllocFn, Avma, CheckTrigger, Heuristic, HeuristicSet, LeakKind};
use leakscope_reach::{
    Block, Blocks, FileMapping, Granule, Marked, Memory, Region, Roots, Stats, Work, WorkSizes, mark,
};
use leakscope_translate::{Engine, Gpr};

use crate::engine::{Memcheck, monotonic_ns, shadow};
use crate::pools::Custom;
use crate::probe;
use crate::stacks::StackId;

/// What earlier checks found.
#[derive(Clone, Debug, Default)]
pub struct LeakState {
    checks: u32,
    /// What the last check found, by kind and allocation stack.
    last: HashMap<(LeakKind, StackId), Before>,
    /// Bytes and blocks of the last check by kind, and suppressed ones, for `VALGRIND_COUNT_LEAKS`.
    pub bytes: [u64; 4],
    /// See `bytes`.
    pub blocks: [u64; 4],
}

/// What a record was at an earlier check.
#[derive(Clone, Copy, Debug, Default)]
struct Before {
    blocks: u64,
    bytes: u64,
    indirect_bytes: u64,
}

/// A block of the check, with where it came from.
#[derive(Clone, Copy)]
struct Known {
    block: Block,
    stack: StackId,
    function: AllocFn,
}

/// Blocks in ascending order, for the mark phase.
#[derive(Clone, Copy)]
struct List<'a>(&'a [Known]);

impl Blocks for List<'_> {
    #[inline]
    fn len(self) -> usize {
        self.0.len()
    }

    #[inline]
    fn get(self, number: usize) -> Option<Block> {
        self.0.get(number).map(|known| known.block)
    }
}

/// Words that the mark phase gets at once where some of them are not addressable.
const BUFFER: usize = 512;
const PAGE: u64 = 4096;

/// The target's memory. Words of which a byte is not addressable read as 0: Memcheck takes no pointer from them.
struct View<'a> {
    mappings: &'a [Mapping],
    buffer: Box<[u64; BUFFER]>,
}

impl Memory for View<'_> {
    fn words(&mut self, start: Avma, count: usize) -> Option<&[u64]> {
        if !probe::can_read(start.0) {
            return None;
        }
        let room = (PAGE - start.0 % PAGE) / 8;
        let count = (count as u64).min(room) as usize;
        // SAFETY: words of a page that can be read.
        let words = unsafe { std::slice::from_raw_parts(start.0 as *const u64, count) };
        if shadow().is_allowed(start.0, 8 * count as u64) {
            return Some(words);
        }
        let count = count.min(BUFFER);
        for (number, (to, &from)) in self.buffer.iter_mut().zip(&words[..count]).enumerate() {
            *to = if shadow().is_allowed(start.0 + 8 * number as u64, 8) { from } else { 0 };
        }
        self.buffer.get(..count)
    }

    fn file_mapping(&mut self, at: Avma) -> Option<FileMapping> {
        let number = self.mappings.partition_point(|mapping| mapping.start <= at.0).checked_sub(1)?;
        let mapping = self.mappings.get(number).filter(|mapping| at.0 < mapping.end)?;
        matches!(mapping.backing, Backing::File { .. }).then_some(FileMapping {
            end: Avma(mapping.end),
            readable: mapping.protection & libc::PROT_READ != 0,
            executable: mapping.protection & libc::PROT_EXEC != 0,
        })
    }
}

/// Sums of one kind and stack.
#[derive(Clone, Copy, Default)]
struct Sum {
    blocks: u64,
    bytes: u64,
    indirect_blocks: u64,
    indirect_bytes: u64,
    addresses: [u64; 3],
    seen: usize,
}

impl Memcheck {
    /// Checks, and tells what was found.
    pub fn check_leaks(&mut self, engine: &Engine, trigger: CheckTrigger, status: u32, asked: u8) {
        let begin = monotonic_ns();
        let (known, pools) = self.known_blocks();
        let Some(view) = self.view else { return };
        let is_there = |mapping: &&Mapping| {
            !self.unmapped_at_end.iter().any(|gone| gone.start <= mapping.start && mapping.end <= gone.end)
        };
        let mappings: Vec<Mapping> = view.space().iter().filter(is_there).cloned().collect();
        let (mut registers, mut pointers) = (Vec::new(), Vec::new());
        for thread in view.threads(engine) {
            // As Memcheck: no pointers are looked for in vector registers, where copies leave much behind.
            registers.extend(thread.guest.gpr);
            pointers.push(thread.guest.gpr(Gpr::Rsp));
        }
        let threads = pointers.len() as u32;
        let roots = roots(&pointers, &mappings);
        let heuristics = self.options.heuristics;
        let search = Search { roots: &roots, registers: &registers, mappings: &mappings, heuristics };
        let found = search.run(&known).and_then(|(sums, stats)| {
            let of_pools = if pools.is_empty() { HashMap::new() } else { search.pools(&known, &pools)? };
            Some((sums, of_pools, stats))
        });
        let Some((mut sums, of_pools, stats)) = found else {
            self.say("the leak check was given up: the list of blocks is wrong".to_owned());
            return;
        };
        sums.extend(of_pools);
        let number = self.leaks.checks;
        self.leaks.checks += 1;
        let records = self.records(&sums, asked);
        self.tell_counts();
        self.output.tell(&Event::Check(Check {
            number,
            trigger,
            status,
            asked,
            monotonic_ns: monotonic_ns(),
            check_ns: monotonic_ns() - begin,
            blocks: known.len() as u64,
            bytes: known.iter().map(|known| known.block.size_bytes).sum(),
            root_bytes: stats.root_bytes,
            unreadable_bytes: stats.unreadable_root_bytes + stats.unreadable_block_bytes,
            threads,
            freeres: self.has_freed_libraries,
            records,
        }));
        self.output.wait();
    }

    /// Live blocks in ascending order: the heap's and those that were announced; and pieces of metapools that others
    /// were announced in. Any other block with announced ones in it is an allocator's own, and is left out.
    fn known_blocks(&self) -> (Vec<Known>, Vec<Known>) {
        let known = |block: &Custom| Known {
            block: Block { start: Avma(block.start), size_bytes: block.bytes },
            stack: block.stack,
            function: AllocFn::Malloc,
        };
        let meta: Vec<u64> = self.pools.meta_pieces().map(|piece| piece.start).collect();
        let mut announced: Vec<Known> =
            self.pools.blocks().filter(|block| !meta.contains(&block.start)).map(known).collect();
        announced.sort_by_key(|known| known.block.start);
        announced.dedup_by_key(|known| known.block.start);
        let pools = self.pools.meta_pieces().map(known).collect();
        let mut list: Vec<Known> = Vec::with_capacity(self.heap.totals().live_blocks as usize + announced.len());
        for id in self.heap.live() {
            let block = self.heap.block(id);
            let (start, end) = (block.start, block.start + block.size_bytes);
            let next = announced.partition_point(|known| known.block.start.0 < start);
            if announced.get(next).is_some_and(|known| known.block.start.0 < end) {
                continue;
            }
            list.push(Known {
                block: Block { start: Avma(start), size_bytes: block.size_bytes },
                stack: block.allocated_at,
                function: block.function,
            });
        }
        list.append(&mut announced);
        list.sort_by_key(|known| known.block.start);
        // Announced blocks in announced blocks: the outer one goes.
        let mut kept = 0;
        for nth in 0..list.len() {
            let start = list[nth].block.start;
            let reaches = |known: &Known| known.block.start.0 + known.block.size_bytes.max(1) > start.0;
            while kept > 0 && reaches(&list[kept - 1]) {
                kept -= 1;
            }
            list.swap(kept, nth);
            kept += 1;
        }
        list.truncate(kept);
        (list, pools)
    }

    /// Records out of sums, and what the next check compares with.
    fn records(&mut self, sums: &HashMap<Place, Sum>, asked: u8) -> Vec<Record> {
        let mut now: HashMap<(LeakKind, StackId), Before> = HashMap::new();
        self.leaks.bytes = [0; 4];
        self.leaks.blocks = [0; 4];
        for (place, sum) in sums {
            let entry = now.entry((place.kind, place.stack)).or_default();
            entry.blocks += sum.blocks;
            entry.bytes += sum.bytes;
            entry.indirect_bytes += sum.indirect_bytes;
            self.leaks.bytes[place.kind as usize] += sum.bytes;
            self.leaks.blocks[place.kind as usize] += sum.blocks;
        }
        let last = std::mem::replace(&mut self.leaks.last, now);
        let is_delta = asked & (asked::CHANGED | asked::ADDED) != 0;
        let mut records: Vec<Record> = sums
            .iter()
            .map(|(place, sum)| {
                let old = last.get(&(place.kind, place.stack)).copied().unwrap_or_default();
                Record {
                    kind: place.kind,
                    heuristic: place.heuristic,
                    blocks: sum.blocks,
                    bytes: sum.bytes,
                    indirect_blocks: sum.indirect_blocks,
                    indirect_bytes: sum.indirect_bytes,
                    old_blocks: old.blocks,
                    old_bytes: old.bytes,
                    old_indirect_bytes: old.indirect_bytes,
                    addresses: sum.addresses,
                    function: place.function,
                    stack: self.stacks.get(place.stack).to_vec(),
                }
            })
            .collect();
        if is_delta {
            // What was there and is gone is a change, too.
            let gone = last.iter().filter(|(key, _)| !self.leaks.last.contains_key(key));
            records.extend(gone.map(|(&(kind, stack), old)| Record {
                kind,
                heuristic: None,
                blocks: 0,
                bytes: 0,
                indirect_blocks: 0,
                indirect_bytes: 0,
                old_blocks: old.blocks,
                old_bytes: old.bytes,
                old_indirect_bytes: old.indirect_bytes,
                addresses: [0; 3],
                function: AllocFn::Malloc,
                stack: self.stacks.get(stack).to_vec(),
            }));
        }
        records.sort_by_key(|record| (record.addresses, record.kind));
        records
    }
}

/// Writable memory that is not the heap's, and of stacks what is in use.
fn roots(stack_pointers: &[u64], mappings: &[Mapping]) -> Vec<Range<Avma>> {
    const NEEDED: i32 = libc::PROT_READ | libc::PROT_WRITE;
    mappings
        .iter()
        .filter(|mapping| mapping.protection & NEEDED == NEEDED)
        .map(|mapping| {
            let lowest = stack_pointers.iter().filter(|&rsp| (mapping.start..mapping.end).contains(rsp)).min();
            let in_use = lowest.filter(|_| mapping.backing == Backing::Stack);
            let start = in_use.map_or(mapping.start, |rsp| rsp.saturating_sub(128).max(mapping.start) & !7);
            Avma(start)..Avma(mapping.end)
        })
        .collect()
}

/// Where pointers are looked for.
#[derive(Clone, Copy)]
struct Search<'a> {
    roots: &'a [Range<Avma>],
    registers: &'a [u64],
    mappings: &'a [Mapping],
    heuristics: HeuristicSet,
}

impl Search<'_> {
    /// What becomes of blocks, which are in ascending order and disjoint; `None` when they are not.
    fn run(&self, known: &[Known]) -> Option<(HashMap<Place, Sum>, Stats)> {
        let blocks = List(known);
        let sizes = WorkSizes::for_blocks(blocks).ok()?;
        let (marks, leaders) = (atomics::<AtomicU8>(sizes.marks), atomics::<AtomicU32>(sizes.leaders));
        let (stack, settled) = (atomics::<AtomicU32>(sizes.stack.max(1)), atomics::<AtomicU64>(sizes.settled));
        let mut regions = vec![Region::default(); sizes.regions];
        let mut granules = vec![Granule::default(); sizes.granules];
        let work = Work {
            sizes,
            marks: &marks,
            leaders: &leaders,
            stack: &stack,
            regions: &mut regions,
            granules: &mut granules,
            settled: &settled,
        };
        let mut view = View { mappings: self.mappings, buffer: Box::new([0; BUFFER]) };
        let roots = Roots { ranges: self.roots, registers: self.registers };
        let marked = mark(blocks, roots, self.heuristics, &mut view, work).ok()?;
        Some((sum(known, &marked), marked.stats()))
    }

    /// What becomes of the pieces of metapools. They overlap the blocks that were cut out of them, which therefore are
    /// not there this time.
    fn pools(&self, known: &[Known], pools: &[Known]) -> Option<HashMap<Place, Sum>> {
        let end = |known: &Known| known.block.start.0 + known.block.size_bytes;
        let is_outside = |known: &&Known| {
            pools.iter().all(|pool| end(known) <= pool.block.start.0 || end(pool) <= known.block.start.0)
        };
        let mut list: Vec<Known> = known.iter().filter(is_outside).chain(pools).copied().collect();
        list.sort_by_key(|known| known.block.start);
        list.dedup_by_key(|known| known.block.start);
        let (mut sums, _) = self.run(&list)?;
        sums.retain(|place, _| pools.iter().any(|pool| pool.stack == place.stack));
        Some(sums)
    }
}

/// What blocks of one record have in common.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Place {
    kind: LeakKind,
    heuristic: Option<Heuristic>,
    stack: StackId,
    function: AllocFn,
}

fn sum(known: &[Known], marked: &Marked<'_, List<'_>>) -> HashMap<Place, Sum> {
    let mut sums: HashMap<Place, Sum> = HashMap::new();
    let place = |number: usize| {
        let known = known.get(number)?;
        let (stack, function) = (known.stack, known.function);
        Some(Place { kind: marked.kind(number)?, heuristic: marked.heuristic(number), stack, function })
    };
    for (number, known) in known.iter().enumerate() {
        let Some(at) = place(number) else { continue };
        let sum = sums.entry(at).or_default();
        sum.blocks += 1;
        sum.bytes += known.block.size_bytes;
        if sum.seen < sum.addresses.len() {
            sum.addresses[sum.seen] = known.block.start.0;
            sum.seen += 1;
        }
        if let Some(at) = marked.leader(number).and_then(place) {
            let sum = sums.entry(at).or_default();
            sum.indirect_blocks += 1;
            sum.indirect_bytes += known.block.size_bytes;
        }
    }
    sums
}

fn atomics<T: Default>(count: usize) -> Vec<T> {
    std::iter::repeat_with(T::default).take(count).collect()
}
