//! A random walk over the heap's interface, each step held against a slow model: a map of live blocks and a list of
//! released ones. A walk is a process of its own, because options are read from the environment that it starts with.

use std::collections::{BTreeMap, VecDeque};
use std::process::Command;

use leakscope_asan_rt::heap::{self, AllocKind, Deletion, Request, quarantine, regions};
use leakscope_asan_rt::shadow_map::{first_poisoned, is_poisoned};
use leakscope_asan_rt::unwind::Caller;

/// Set in the processes that walk: the seed.
const SEED: &str = "LEAKSCOPE_HEAP_WALK";
const STEPS: usize = 60_000;
const MOST_LIVE: usize = 600;

#[test]
fn the_heap_is_as_its_model() {
    if let Ok(seed) = std::env::var(SEED) {
        Walk::new(seed.parse().unwrap()).run();
        return;
    }
    let all = [
        "quarantine_size_mb=1:thread_local_quarantine_size_kb=64",
        "quarantine_size_mb=8:thread_local_quarantine_size_kb=64:redzone=128:max_redzone=512",
        "quarantine_size_mb=0:thread_local_quarantine_size_kb=0:max_redzone=64",
        "quarantine_size_mb=1:thread_local_quarantine_size_kb=64:max_free_fill_size=4096:max_malloc_fill_size=16",
    ];
    for (seed, options) in all.iter().enumerate() {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_heap_is_as_its_model", "--nocapture"])
            .env(SEED, seed.to_string())
            .env("ASAN_OPTIONS", options)
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        assert!(output.status.success(), "{options}: {}\n{}", output.status, said.join("\n"));
    }
}

#[derive(Clone, Copy)]
struct Block {
    bytes: usize,
    fill: u8,
}

struct Released {
    user: usize,
    bytes: usize,
    /// How many bytes had been released before it.
    before: usize,
}

struct Walk {
    state: u64,
    live: BTreeMap<usize, Block>,
    released: VecDeque<Released>,
    released_bytes: usize,
    mallocs: usize,
    frees: usize,
}

impl Walk {
    fn new(seed: u64) -> Self {
        leakscope_asan_rt::init::ensure();
        Self {
            state: 0x2545_f491_4f6c_dd1d ^ (seed << 32),
            live: BTreeMap::new(),
            released: VecDeque::new(),
            released_bytes: 0,
            mallocs: 0,
            frees: 0,
        }
    }

    fn random(&mut self, below: usize) -> usize {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 33) as usize % below
    }

    /// Mostly small, sometimes at the border of a class, seldom large.
    fn size(&mut self) -> usize {
        match self.random(40) {
            0 => 1 + self.random(1 << 19),
            1..4 => 1 + self.random(20_000),
            4..10 => (16usize << self.random(9)) + self.random(3) - 1,
            10 => 0,
            _ => 1 + self.random(300),
        }
    }

    fn run(&mut self) {
        let [mallocs, _, frees, _] = heap::totals();
        for _ in 0..STEPS {
            match self.random(10) {
                0..4 if self.live.len() < MOST_LIVE => self.allocate(),
                0..7 => self.release(),
                7 => self.reallocate(),
                _ => self.look(),
            }
        }
        while !self.live.is_empty() {
            self.release();
        }
        let [mallocs_now, _, frees_now, _] = heap::totals();
        assert_eq!((mallocs_now - mallocs, frees_now - frees), (self.mallocs, self.frees));
    }

    fn allocate(&mut self) {
        let alignment = match self.random(8) {
            0 => 1 << (4 + self.random(10)),
            _ => 0,
        };
        let zeroed = alignment == 0 && self.random(4) == 0;
        let bytes = self.size();
        let request = Request { bytes, alignment, kind: AllocKind::Malloc, zeroed, may_fail: true };
        let user = heap::allocate(&Caller::of_hook(0), request) as usize;
        self.mallocs += 1;
        assert!(user != 0 && user.is_multiple_of(alignment.max(16)), "{user:#x} for {bytes} at {alignment}");
        let content = bytes_of(user, bytes);
        if zeroed {
            assert!(content.iter().all(|&byte| byte == 0), "calloc({bytes}) is zero");
        } else if !std::env::var("ASAN_OPTIONS").unwrap().contains("max_malloc_fill_size") {
            assert!(content.iter().take(4096).all(|&byte| byte == 0xbe), "malloc({bytes}) is filled");
        }
        self.enter(user, bytes);
    }

    /// Holds a fresh block against all that is live or waits, and takes it into the model.
    fn enter(&mut self, user: usize, bytes: usize) {
        // malloc(0) gives a byte.
        let bytes = bytes.max(1);
        if let Some((before, block)) = self.live.range(..=user).next_back() {
            assert!(before + block.bytes + 16 <= user, "{user:#x} is too near to {before:#x} of {}", block.bytes);
        }
        if let Some((after, _)) = self.live.range(user..).next() {
            assert!(user + bytes + 16 <= *after, "{user:#x} of {bytes} is too near to {after:#x}");
        }
        let least = self.waits_at_least();
        for old in &self.released {
            let overlaps = old.user < user + bytes && user < old.user + old.bytes;
            let since = self.released_bytes - old.before;
            assert!(!overlaps || since >= least, "{user:#x} was released {since} bytes ago, {least} are the least");
        }
        self.released.retain(|old| old.user + old.bytes <= user || user + bytes <= old.user);
        let fill = self.random(255) as u8;
        bytes_of(user, bytes).fill(fill);
        self.live.insert(user, Block { bytes, fill });
        self.check(user);
    }

    /// So many bytes are released after a block before it is used again: what the quarantine holds, less the tenth that
    /// it empties at once and the batch that a block goes with.
    fn waits_at_least(&self) -> usize {
        const LARGEST_BLOCK: usize = 600 << 10;
        (heap::quarantine_limit() / 10 * 9).saturating_sub(heap::local_quarantine_limit() + LARGEST_BLOCK)
    }

    fn any(&mut self) -> Option<usize> {
        if self.live.is_empty() {
            return None;
        }
        let number = self.random(self.live.len());
        self.live.keys().nth(number).copied()
    }

    fn release(&mut self) {
        let Some(user) = self.any() else { return };
        self.check(user);
        heap::release(&Caller::of_hook(0), user, AllocKind::Malloc, Deletion::default());
        self.forget(user);
    }

    fn forget(&mut self, user: usize) {
        self.frees += 1;
        let block = self.live.remove(&user).unwrap();
        self.released.push_back(Released { user, bytes: block.bytes, before: self.released_bytes });
        // The quarantine counts what blocks take of the heap.
        self.released_bytes += regions::block_at(user).map_or(block.bytes, |(_, bytes)| bytes);
        if self.released.len() > 2000 {
            self.released.pop_front();
        }
        assert_eq!(heap::live_bytes(user), None);
        let slack = heap::local_quarantine_limit() + (600 << 10);
        assert!(quarantine::global_bytes() <= heap::quarantine_limit() + slack, "the quarantine is bounded");
    }

    fn reallocate(&mut self) {
        let Some(user) = self.any() else { return };
        let (block, bytes) = (self.live[&user], self.size().max(1));
        self.check(user);
        let fresh = heap::reallocate(&Caller::of_hook(0), user, bytes) as usize;
        self.mallocs += 1;
        assert!(fresh != 0 && fresh != user);
        let kept = bytes_of(fresh, bytes.min(block.bytes));
        assert!(kept.iter().all(|&byte| byte == block.fill), "realloc keeps {} bytes", kept.len());
        self.forget(user);
        self.enter(fresh, bytes);
    }

    fn check(&self, user: usize) {
        let block = self.live[&user];
        assert_eq!(heap::live_bytes(user), Some(block.bytes));
        assert!(bytes_of(user, block.bytes).iter().all(|&byte| byte == block.fill), "{user:#x} was written to");
        assert!((user - 16..user).all(is_poisoned), "a redzone in front of {user:#x}");
        assert!(is_poisoned(user + block.bytes), "a redzone behind {user:#x} of {}", block.bytes);
        assert_eq!(first_poisoned(user, block.bytes), None);
    }

    /// Asks for ranges that begin and end anywhere around a block, live or released.
    fn look(&mut self) {
        let Some(user) = self.any() else { return };
        let block = self.live[&user];
        let inside = user + self.random(block.bytes);
        assert_eq!(heap::find(inside).map(|found| found.user), Some(user));
        assert_eq!(heap::live_bytes(inside), if inside == user { Some(block.bytes) } else { None });
        let start = user - 16 + self.random(block.bytes + 32);
        let most = if self.random(2) == 0 { 80 } else { 3000 };
        let bytes = 1 + self.random(most);
        let is_good = |address: usize| {
            self.live.range(..=address).next_back().is_some_and(|(user, block)| address < user + block.bytes)
        };
        // Behind the last block of a class the address space is not used, and has no marks: a page is looked at.
        let end = (start + bytes).min(user + block.bytes + 16);
        let expected = (start..end).find(|address| !is_good(*address));
        assert_eq!(first_poisoned(start, end - start), expected, "{start:#x} to {end:#x}, block {user:#x}");
        let number = self.random(self.released.len().max(1));
        if let Some(old) = self.released.get(number)
            && self.released_bytes - old.before < self.waits_at_least()
        {
            assert!((old.user..old.user + old.bytes).step_by(8).all(is_poisoned), "{:#x} waits poisoned", old.user);
        }
    }
}

/// A block's bytes, which are the walk's own.
fn bytes_of(user: usize, bytes: usize) -> &'static mut [u8] {
    // SAFETY: the heap handed them out just now or before, and nobody else has them.
    unsafe { std::slice::from_raw_parts_mut(user as *mut u8, bytes) }
}
