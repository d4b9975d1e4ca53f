//! A pretended process for the tests: memory in a map, blocks in a list, and the work memory for `mark`.
#![allow(dead_code, reason = "each test binary uses its part")]

pub mod oracle;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};

use leakscope_model::{Avma, Heuristic, HeuristicSet, LeakKind};
use leakscope_reach::{
    Block, Crew, FileMapping, Granule, InputError, Marked, Memory, Region, Roots, Stats, Work, WorkSizes, mark,
    mark_together,
};

/// Page number of every address that cannot be read.
pub type Pages = BTreeSet<u64>;

#[derive(Clone, Default, Debug)]
pub struct Process {
    pub words: BTreeMap<u64, u64>,
    pub unreadable_pages: Pages,
    pub blocks: Vec<Block>,
    pub root_ranges: Vec<Range<Avma>>,
    pub registers: Vec<u64>,
    pub files: Vec<(Range<u64>, bool, bool)>,
    /// How many words one call to `words` gives at most.
    pub chunk_words: usize,
    pub buffer: Vec<u64>,
}

impl Process {
    pub fn new() -> Self {
        Self { chunk_words: 7, ..Self::default() }
    }

    pub fn is_readable(&self, at: u64) -> bool {
        !self.unreadable_pages.contains(&(at / 4096))
    }

    pub fn read(&self, at: u64) -> Option<u64> {
        assert_eq!(at % 8, 0, "only aligned words are asked for");
        self.is_readable(at).then(|| self.words.get(&at).copied().unwrap_or(0))
    }

    /// Appends a block with these words at its start.
    pub fn block(&mut self, start: u64, size_bytes: u64, words: &[u64]) -> usize {
        self.blocks.push(Block { start: Avma(start), size_bytes });
        self.put(start, words);
        self.blocks.len() - 1
    }

    pub fn put(&mut self, start: u64, words: &[u64]) {
        for (i, word) in words.iter().enumerate() {
            self.words.insert(start + 8 * i as u64, *word);
        }
    }

    /// Words of the root set, in a range of their own.
    pub fn root(&mut self, start: u64, words: &[u64]) {
        self.put(start, words);
        self.root_ranges.push(Avma(start)..Avma(start + 8 * words.len() as u64));
    }

    pub fn mark(&self, heuristics: HeuristicSet, stack_len: Option<usize>) -> Result<Outcome, InputError> {
        self.mark_with(heuristics, stack_len, |m| Outcome::of(&m))
    }

    pub fn mark_with<T>(
        &self,
        heuristics: HeuristicSet,
        stack_len: Option<usize>,
        look: impl FnOnce(Marked<'_, &[Block]>) -> T,
    ) -> Result<T, InputError> {
        self.mark_by(1, heuristics, stack_len, look)
    }

    pub fn mark_by<T>(
        &self,
        workers: usize,
        heuristics: HeuristicSet,
        stack_len: Option<usize>,
        look: impl FnOnce(Marked<'_, &[Block]>) -> T,
    ) -> Result<T, InputError> {
        let blocks = self.blocks.as_slice();
        let sizes = WorkSizes::for_blocks(blocks)?;
        // Any contents will do.
        let word = |_| AtomicU32::new(0xA5A5_A5A5);
        let marks: Vec<AtomicU8> = (0..sizes.marks).map(|_| AtomicU8::new(0xA5)).collect();
        let leaders: Vec<AtomicU32> = (0..sizes.leaders).map(word).collect();
        let stack: Vec<AtomicU32> = (0..stack_len.unwrap_or(sizes.stack)).map(word).collect();
        let mut regions = vec![Region::default(); sizes.regions];
        let mut granules = vec![Granule::default(); sizes.granules];
        let settled: Vec<AtomicU64> = (0..sizes.settled).map(|_| AtomicU64::new(0xA5A5)).collect();
        let work = Work {
            sizes,
            marks: &marks,
            leaders: &leaders,
            stack: &stack,
            regions: &mut regions,
            granules: &mut granules,
            settled: &settled,
        };
        let roots = Roots { ranges: &self.root_ranges, registers: &self.registers };
        match workers {
            1 => mark(blocks, roots, heuristics, &mut self.clone(), work).map(look),
            _ => mark_together(blocks, roots, heuristics, &Threads(self, workers), work).map(look),
        }
    }
}

/// Threads that mark together, each with a copy of the process.
struct Threads<'p>(&'p Process, usize);

impl Crew for Threads<'_> {
    type Memory = Process;

    fn workers(&self) -> usize {
        self.1
    }

    fn run(&self, task: &(dyn Fn(usize, &mut Process) + Sync)) {
        std::thread::scope(|scope| {
            for number in 1..self.1 {
                scope.spawn(move || task(number, &mut self.0.clone()));
            }
            task(0, &mut self.0.clone());
        });
    }

    fn rest() {
        std::thread::yield_now();
    }
}

impl Memory for Process {
    fn words(&mut self, start: Avma, count: usize) -> Option<&[u64]> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        for i in 0..count.min(self.chunk_words) as u64 {
            match self.read(start.0 + 8 * i) {
                Some(word) => buffer.push(word),
                None => break,
            }
        }
        self.buffer = buffer;
        // An empty answer means the same as none.
        (start.0.is_multiple_of(3) || !self.buffer.is_empty()).then_some(self.buffer.as_slice())
    }

    fn file_mapping(&mut self, at: Avma) -> Option<FileMapping> {
        let (range, readable, executable) = self.files.iter().find(|f| f.0.contains(&at.0))?;
        Some(FileMapping { end: Avma(range.end), readable: *readable, executable: *executable })
    }
}

/// What was found for each block.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    pub kinds: Vec<LeakKind>,
    pub heuristics: Vec<Option<Heuristic>>,
    pub leaders: Vec<Option<usize>>,
    pub stats: Stats,
}

impl Outcome {
    pub fn of(marked: &Marked<'_, &[Block]>) -> Self {
        let all = 0..marked.blocks().len();
        Self {
            kinds: all.clone().map(|b| marked.kind(b).expect("a block")).collect(),
            heuristics: all.clone().map(|b| marked.heuristic(b)).collect(),
            leaders: all.map(|b| marked.leader(b)).collect(),
            stats: marked.stats(),
        }
    }
}
