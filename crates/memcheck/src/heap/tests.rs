//! The heap against an obvious model, on random calls with all sorts of options.

use std::collections::{BTreeMap, VecDeque};

use super::*;

/// Memory of this process, with the shadow in a second array of the same length.
struct Arena {
    base: u64,
    shadow: u64,
    bytes: u64,
    /// Ranges that are mapped, by 64 KiB units.
    mapped: Vec<bool>,
}

impl Arena {
    fn new(bytes: u64) -> Self {
        let map = |bytes: u64| {
            // SAFETY: a new private map at an address of the kernel's choice.
            let at = unsafe {
                libc::mmap(
                    core::ptr::null_mut(),
                    bytes as usize,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                    -1,
                    0,
                )
            };
            assert_ne!(at, libc::MAP_FAILED);
            at as u64
        };
        // A multiple of a unit, as the engine's own base is.
        let base = map(bytes + UNIT_BYTES).next_multiple_of(UNIT_BYTES);
        Self { base, shadow: map(bytes), bytes, mapped: vec![false; (bytes / UNIT_BYTES) as usize] }
    }

    fn shadow(&self) -> Shadow {
        // SAFETY: both arrays live as long as the test's process, and have the same length.
        unsafe { Shadow::new(self.shadow.wrapping_sub(self.base)) }
    }

    fn set_mapped(&mut self, address: u64, bytes: u64, is: bool) {
        let range =
            ((address - self.base) / UNIT_BYTES) as usize..((address - self.base + bytes) / UNIT_BYTES) as usize;
        assert!(self.mapped[range.clone()].iter().all(|&was| was != is), "mapped or revoked twice");
        self.mapped[range].fill(is);
        // SAFETY: within the arena; whoever maps it gets zeroed memory.
        unsafe { libc::madvise(address as *mut _, bytes as usize, libc::MADV_DONTNEED) };
    }
}

impl Pages for Arena {
    fn map(&mut self, address: u64, bytes: u64) -> bool {
        if address + bytes > self.base + self.bytes {
            return false;
        }
        self.set_mapped(address, bytes, true);
        true
    }

    fn revoke(&mut self, address: u64, bytes: u64) {
        self.set_mapped(address, bytes, false);
        self.shadow().allow(address, bytes);
    }
}

/// A generator of numbers that is the same in every run: xorshift64*.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % limit
    }

    fn size(&mut self) -> u64 {
        let bits = self.below(19);
        self.below(1 << bits)
    }
}

/// What must be true of the heap, kept in the simplest way.
#[derive(Default)]
struct Model {
    live: BTreeMap<u64, (u64, u8)>,
    /// Freed blocks that must not be used again: the newest, up to the quarantine's size.
    waiting: VecDeque<(u64, u64)>,
    waiting_bytes: u64,
    totals: Totals,
}

fn byte_of(start: u64) -> u8 {
    (start >> 4) as u8 | 1
}

fn run(options: HeapOptions, seed: u64, steps: u32) {
    const BYTES: u64 = 1 << 30;
    let arena = Arena::new(BYTES);
    let (base, shadow) = (arena.base, arena.shadow());
    let quarantine = options.quarantine_bytes;
    let redzone = options.redzone_bytes.next_multiple_of(16).max(16);
    // SAFETY: the arena's shadow describes it, and nobody else uses it.
    let mut heap = unsafe { Heap::new(arena, shadow, base, base + BYTES, options.clone()) };
    let (mut model, mut numbers) = (Model::default(), Numbers(seed));
    for step in 0..steps {
        let frees = model.live.len() > 300 || numbers.below(5) < 2;
        if frees && !model.live.is_empty() {
            let nth = numbers.below(model.live.len() as u64) as usize;
            let (&start, &(size, byte)) = model.live.iter().nth(nth).unwrap();
            check_contents(start, size, byte);
            model.live.remove(&start);
            heap.release(heap.find_live(start).unwrap(), StackId::NONE);
            assert!(heap.find_live(start).is_none());
            assert!(size == 0 || size > quarantine || size >= options.big_block_bytes || !shadow.is_allowed(start, 1));
            if let Some(fill) = options.free_fill.filter(|_| size <= quarantine && size < options.big_block_bytes) {
                check_contents(start, size, fill);
            }
            model.totals.frees += 1;
            model.waiting.push_back((start, size));
            model.waiting_bytes += size;
            while model.waiting_bytes > quarantine {
                model.waiting_bytes -= model.waiting.pop_front().unwrap().1;
            }
        } else {
            let size = numbers.size();
            let alignment = if numbers.below(4) == 0 { 1 << numbers.below(14) } else { 0 };
            let zeroed = numbers.below(2) == 0;
            let request =
                Request { size_bytes: size, alignment, function: AllocFn::Malloc, stack: StackId::NONE, zeroed };
            let start = heap.allocate(request).unwrap();
            assert!(start.is_multiple_of(alignment.max(options.alignment)));
            if zeroed {
                check_contents(start, size, 0);
            } else if let Some(fill) = options.malloc_fill {
                check_contents(start, size, fill);
            }
            // Nobody else's, redzones included, and none that still has to wait.
            let (low, high) = (start - redzone, start + size + redzone);
            if let Some((&other, &(bytes, _))) = model.live.range(..high).next_back() {
                assert!(other + bytes <= low, "step {step}: {start:x} overlaps {other:x}");
            }
            if options.big_block_bytes > 1 << 20 {
                let reused = model.waiting.iter().find(|&&(other, bytes)| other < high && other + bytes > low);
                assert_eq!(reused, None, "step {step}: out of the quarantine too early");
            }
            let byte = byte_of(start);
            // SAFETY: the block was just allocated for us.
            unsafe { core::ptr::write_bytes(start as *mut u8, byte, size as usize) };
            model.live.insert(start, (size, byte));
            model.totals.allocations += 1;
            model.totals.allocated_bytes += size;
        }
        check_shadow(&heap, shadow, redzone, &model, &mut numbers);
    }
    model.totals.live_blocks = model.live.len() as u64;
    model.totals.live_bytes = model.live.values().map(|&(size, _)| size).sum();
    assert_eq!(heap.totals(), model.totals);
    let listed: Vec<(u64, u64)> = heap.live().map(|id| (heap.block(id).start, heap.block(id).size_bytes)).collect();
    let expected: Vec<(u64, u64)> = model.live.iter().map(|(&start, &(size, _))| (start, size)).collect();
    assert_eq!(listed, expected);
}

/// The block is all of one byte: nobody wrote into it.
fn check_contents(start: u64, size: u64, byte: u8) {
    // SAFETY: the caller's block, live or in the quarantine.
    let bytes = unsafe { core::slice::from_raw_parts(start as *const u8, size as usize) };
    assert!(bytes.iter().all(|&is| is == byte), "{start:x}");
}

/// Around one block: addressable inside, not in the redzones; every address leads to it.
fn check_shadow(heap: &Heap<Arena>, shadow: Shadow, redzone: u64, model: &Model, numbers: &mut Numbers) {
    if model.live.is_empty() {
        return;
    }
    let nth = numbers.below(model.live.len() as u64) as usize;
    let (&start, &(size, _)) = model.live.iter().nth(nth).unwrap();
    assert!(shadow.is_allowed(start, size));
    assert_eq!(shadow.first_allowed(start - redzone, redzone), None);
    assert_eq!(shadow.first_allowed(start + size, redzone), None);
    let id = heap.find_live(start).unwrap();
    for address in [start - redzone, start + size / 2, start + size + redzone - 1] {
        assert_eq!(heap.find(address), Some(id));
    }
    assert!(heap.find_live(start + 1).is_none());
}

#[test]
fn random_calls_agree_with_the_model() {
    run(HeapOptions::default(), 0x9E37_79B9, 3000);
    run(HeapOptions { quarantine_bytes: 100_000, ..HeapOptions::default() }, 77, 6000);
    run(HeapOptions { quarantine_bytes: 0, ..HeapOptions::default() }, 5, 6000);
    let fills = HeapOptions {
        malloc_fill: Some(0xAB),
        free_fill: Some(0xCD),
        redzone_bytes: 100,
        alignment: 64,
        quarantine_bytes: 300_000,
        big_block_bytes: 20_000,
    };
    run(fills, 99, 3000);
}

#[test]
fn big_blocks_leave_the_quarantine_first() {
    let arena = Arena::new(1 << 24);
    let (base, shadow) = (arena.base, arena.shadow());
    let options = HeapOptions { quarantine_bytes: 1000, big_block_bytes: 500, ..HeapOptions::default() };
    // SAFETY: as above.
    let mut heap = unsafe { Heap::new(arena, shadow, base, base + (1 << 24), options) };
    let allocate = |heap: &mut Heap<Arena>, size_bytes| {
        let function = AllocFn::Malloc;
        heap.allocate(Request { size_bytes, alignment: 0, function, stack: StackId::NONE, zeroed: false }).unwrap()
    };
    let (small, big, last) = (allocate(&mut heap, 400), allocate(&mut heap, 500), allocate(&mut heap, 300));
    for start in [small, big, last] {
        heap.release(heap.find_live(start).unwrap(), StackId::NONE);
    }
    let state = |heap: &Heap<Arena>, at| heap.block(heap.find(at).unwrap()).state;
    assert_eq!(state(&heap, small), State::Quarantined);
    assert_eq!(state(&heap, big), State::Free);
    assert_eq!(state(&heap, last), State::Quarantined);
    assert_eq!(allocate(&mut heap, 500), big, "the slot is used again");
}

#[test]
fn there_is_an_end_of_memory() {
    let arena = Arena::new(1 << 20);
    let (base, shadow) = (arena.base, arena.shadow());
    // SAFETY: as above.
    let mut heap = unsafe { Heap::new(arena, shadow, base, base + (1 << 20), HeapOptions::default()) };
    let request = |size_bytes, alignment| Request {
        size_bytes,
        alignment,
        function: AllocFn::Malloc,
        stack: StackId::NONE,
        zeroed: false,
    };
    assert_eq!(heap.allocate(request(1 << 20, 0)), None);
    assert_eq!(heap.allocate(request(u64::MAX, 0)), None);
    assert_eq!(heap.allocate(request(1, 1 << 60)), None);
    assert!(heap.allocate(request(100_000, 0)).is_some());
}

/// Alignments and sizes around all limits of what a record's word holds: a block is found with what it was made with.
#[test]
fn records_hold_any_place_in_a_slot() {
    let arena = Arena::new(1 << 30);
    let (base, shadow) = (arena.base, arena.shadow());
    // SAFETY: as above.
    let mut heap = unsafe { Heap::new(arena, shadow, base, base + (1 << 30), HeapOptions::default()) };
    let mut made = Vec::new();
    for alignment in (4..=20).map(|power| 1u64 << power) {
        for size_bytes in [0, 1, 15, 16, 17, 1000, 4095, 8193, 40_000, 65_500, 65_536, 70_000, 300_000] {
            let function = if size_bytes % 2 == 0 { AllocFn::NewArrayAlignedNothrow } else { AllocFn::Calloc };
            let stack = StackId(made.len() as u32 + 1);
            let request = Request { size_bytes, alignment, function, stack, zeroed: false };
            made.push((heap.allocate(request).unwrap(), request));
        }
    }
    for (nth, &(start, request)) in made.iter().enumerate() {
        let id = heap.find_live(start).unwrap();
        let block = heap.block(id);
        assert_eq!((block.start, block.size_bytes), (start, request.size_bytes), "{request:?}");
        assert_eq!((block.function, block.state), (request.function, State::Live));
        assert_eq!((block.allocated_at, block.freed_at), (request.stack, StackId::NONE));
        heap.release(id, StackId(nth as u32 + 9000));
        let freed = heap.block(id);
        assert_eq!((freed.start, freed.size_bytes, freed.allocated_at), (start, request.size_bytes, request.stack));
        assert_eq!(freed.freed_at, StackId(nth as u32 + 9000));
        assert_ne!(freed.state, State::Live);
    }
}
