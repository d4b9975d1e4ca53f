//! How long marking takes: `cargo run --release -p leakscope-reach --example bench_mark [million blocks] [shape]`.
//!
//! The heap is one `Vec<u64>` with blocks of about 200 bytes back to back, each behind a header of 16 bytes.
//! Shapes: `random` (half of the words point to the starts of random blocks), `sparse` (two words do), `tree` (two
//! children each, at random places), `list` (one chain at random places), `lost` (as `tree`, but without a root),
//! `mixed` (as `random`, one pointer in eight is an interior-pointer).

use std::hint::black_box;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};

use leakscope_model::{Avma, HeuristicSet, LeakKind, SiteId};
use leakscope_reach::{Block, Granule, LossRecord, Memory, Region, Roots, Work, WorkSizes, mark};

/// This process's own memory, as the forked copy of a target sees it: slices, no copies.
struct Own<'h> {
    base: u64,
    heap: &'h [u64],
}

impl Memory for Own<'_> {
    #[inline]
    fn words(&mut self, start: Avma, count: usize) -> Option<&[u64]> {
        let from = (start.0.wrapping_sub(self.base) / 8) as usize;
        self.heap.get(from..from.checked_add(count)?)
    }

    #[inline]
    fn touch(&mut self, start: Avma, bytes: u64) {
        let from = (start.0.wrapping_sub(self.base) / 8) as usize;
        for line in (0..bytes as usize / 8).step_by(8) {
            black_box(self.heap.get(from + line).copied());
        }
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 32) * limit) >> 32
    }
}

fn lay_out(n: u64, r: &mut Random) -> (Vec<Block>, u64) {
    let base = 0x5555_5000_0000;
    let mut blocks = Vec::with_capacity(n as usize);
    let mut at = base + 16;
    for _ in 0..n {
        let size_bytes = 100 + r.below(190);
        blocks.push(Block { start: Avma(at), size_bytes });
        at = (at + size_bytes + 8).next_multiple_of(16);
    }
    (blocks, at)
}

fn fill(shape: &str, blocks: &[Block], base: u64, heap: &mut [u64], r: &mut Random) -> Vec<u64> {
    let n = blocks.len() as u64;
    let mut order: Vec<u32> = (0..n as u32).collect();
    for i in (1..order.len()).rev() {
        order.swap(i, r.below(i as u64 + 1) as usize);
    }
    let start = |i: usize| order.get(i).map_or(0, |b| blocks[*b as usize].start.0);
    for i in 0..order.len() {
        let block = blocks[order[i] as usize];
        let from = ((block.start.0 - base) / 8) as usize;
        let words = &mut heap[from..from + (block.size_bytes / 8) as usize];
        // What is no pointer: small numbers, text, hashes.
        words.iter_mut().for_each(|w| *w = [r.below(1000), 0x2065_6874_2073_6920, r.0][r.below(3) as usize]);
        match shape {
            "random" | "mixed" => {
                for word in words {
                    if r.below(2) == 0 {
                        *word = blocks[r.below(n) as usize].start.0;
                        *word += if shape == "mixed" && r.below(8) == 0 { 8 * r.below(12) } else { 0 };
                    }
                }
            }
            "sparse" => (1..3).for_each(|w| words[w] = blocks[r.below(n) as usize].start.0),
            "list" => words[1] = start(i + 1),
            "tree" | "lost" => (words[1], words[3]) = (start(2 * i + 1), start(2 * i + 2)),
            _ => panic!("unknown shape {shape}"),
        }
    }
    if shape == "lost" {
        vec![]
    } else {
        (0..8).map(|_| blocks[r.below(n) as usize].start.0).chain([start(0)]).collect()
    }
}

/// Zeroed memory that nobody has touched yet, in huge pages where the kernel has them.
fn fresh<T: Default>(len: usize) -> Vec<T> {
    const HUGE: usize = 1 << 21;
    let mut space: Vec<T> = Vec::with_capacity(len.max(1) + 2 * HUGE / size_of::<T>());
    let start = (space.as_mut_ptr() as usize).next_multiple_of(HUGE);
    let bytes = (len * size_of::<T>()).next_multiple_of(HUGE);
    if std::env::var_os("BENCH_SMALL_PAGES").is_none() {
        // SAFETY: advice on the pages of an allocation that is ours and at least so long; it changes no contents.
        unsafe { libc::madvise(start as *mut libc::c_void, bytes, libc::MADV_HUGEPAGE) };
    }
    space.resize_with(len, T::default);
    space
}

/// A moment of this thread's processor time, so that other load on the machine counts less.
fn cpu_ms() -> f64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is ours and of the type that the call fills.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut now) };
    now.tv_sec as f64 * 1e3 + now.tv_nsec as f64 / 1e6
}

fn main() {
    let mut args = std::env::args().skip(1);
    let millions: f64 = args.next().map_or(10.0, |a| a.parse().expect("a number"));
    let shapes: Vec<String> = args.collect();
    let shapes = if shapes.is_empty() { vec!["random".to_owned()] } else { shapes };
    for shape in shapes {
        let mut r = Random(0x9E37_79B9_7F4A_7C15);
        let (blocks, end) = lay_out((millions * 1e6) as u64, &mut r);
        let base = blocks[0].start.0 - 16;
        let mut heap = vec![0u64; ((end - base) / 8) as usize];
        let roots = fill(&shape, &blocks, base, &mut heap, &mut r);
        for heuristics in [HeuristicSet::ALL, HeuristicSet::NONE] {
            let started = cpu_ms();
            let sizes = WorkSizes::for_blocks(blocks.as_slice()).expect("sorted");
            let sized = cpu_ms() - started;
            let marks: Vec<AtomicU8> = fresh(sizes.marks);
            let leaders: Vec<AtomicU32> = fresh(sizes.leaders);
            let stack: Vec<AtomicU32> = fresh(sizes.stack);
            let mut regions = fresh::<Region>(sizes.regions);
            let mut granules = fresh::<Granule>(sizes.granules);
            let settled: Vec<AtomicU64> = fresh(sizes.settled);
            let work = Work {
                sizes,
                marks: &marks,
                leaders: &leaders,
                stack: &stack,
                regions: &mut regions,
                granules: &mut granules,
                settled: &settled,
            };
            let started = cpu_ms();
            let roots = Roots { ranges: &[], registers: &roots };
            let mut memory = Own { base, heap: &heap };
            let marked = mark(blocks.as_slice(), roots, heuristics, &mut memory, work).expect("valid");
            let took = cpu_ms() - started;
            let started = cpu_ms();
            let mut records = vec![LossRecord::default(); 4096];
            let all = marked.aggregate(|b| SiteId(b as u32 % 1000), &mut records);
            let merged = cpu_ms() - started;
            println!(
                "{shape:8} {} blocks {:.2} GB heuristics {:4}: sizes {:4.0} ms, mark {:5.0} ms, records {:4.0} ms; {} still reachable, {} definitely lost",
                blocks.len(),
                (end - base) as f64 / 1e9,
                heuristics.bits(),
                sized,
                took,
                merged,
                all.by_kind[LeakKind::StillReachable as usize].blocks,
                all.by_kind[LeakKind::DefinitelyLost as usize].blocks,
            );
        }
    }
}
