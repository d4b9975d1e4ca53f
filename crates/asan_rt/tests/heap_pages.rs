//! What the heap gives back: pages of free blocks to the kernel, addresses of free spans to the program. Judged by the
//! kernel's word on which pages are resident.

use leakscope_asan_rt::heap::{self, AllocKind, Deletion, Request, large, regions};
use leakscope_asan_rt::unwind::Caller;

const PAGE: usize = 4096;
const CALLER: Caller = Caller::of_hook(0);

fn allocate(bytes: usize) -> usize {
    let request = Request { bytes, alignment: 8, kind: AllocKind::Malloc, zeroed: false, may_fail: true };
    let block = heap::allocate(&CALLER, request);
    assert!(!block.is_null());
    // SAFETY: a fresh block.
    unsafe { block.write_bytes(7, bytes) };
    block as usize
}

fn release(block: usize) {
    heap::release(&CALLER, block, AllocKind::Malloc, Deletion::default());
}

/// How many pages of a range are in memory.
fn resident(start: usize, bytes: usize) -> usize {
    let mut pages = vec![0u8; bytes / PAGE];
    // SAFETY: the kernel writes a byte for each page.
    let result = unsafe { libc::mincore(start as *mut libc::c_void, bytes, pages.as_mut_ptr()) };
    assert_eq!(result, 0);
    pages.iter().filter(|&&page| page & 1 != 0).count()
}

/// Whole pages of a block: those of the user's part but the one where it begins.
fn whole_pages(block: usize, bytes: usize) -> (usize, usize) {
    let first = (block + 16).next_multiple_of(PAGE);
    (first, ((block + bytes) & !(PAGE - 1)) - first)
}

/// What rests needs its pages no more, as long as giving them up is not half of what the program does.
fn resting_blocks_lose_their_pages() {
    let blocks: Vec<usize> = (0..100).map(|_| allocate(30_000)).collect();
    for &block in &blocks {
        let (start, bytes) = whole_pages(block, 30_000);
        assert_eq!(resident(start, bytes), bytes / PAGE);
        release(block);
        assert_eq!(resident(start, bytes), 0);
        // Who released it, and what it was, is told as before.
        let found = heap::find(block + 20_000).expect("a resting block");
        assert_eq!((found.user, found.facts.requested_bytes), (block, 30_000));
        assert_eq!(found.facts.state, heap::State::Quarantined);
    }
    let mut kept = 0;
    for _ in 0..1000 {
        let block = allocate(60_000);
        let (start, bytes) = whole_pages(block, 60_000);
        release(block);
        kept += usize::from(resident(start, bytes) > 0);
    }
    assert!(kept > 500, "{kept} of 1000 large blocks in a row kept their pages");
}

/// One test, as it purges the heap that others would use at the same time.
#[test]
fn what_is_free_is_given_back() {
    leakscope_asan_rt::init::ensure();
    resting_blocks_lose_their_pages();
    let blocks: Vec<usize> = (0..4000).map(|_| allocate(1000)).collect();
    let low = *blocks.iter().min().unwrap() & !(PAGE - 1);
    let high = *blocks.iter().max().unwrap() & !(PAGE - 1);
    let all = resident(low, high - low);
    assert!(all >= 900, "{all} pages for 4000 blocks of 1000 bytes");
    // Every hundredth block stays, and its bytes with it.
    let (kept, dropped): (Vec<_>, Vec<_>) = blocks.iter().enumerate().partition(|(number, _)| number % 100 == 0);
    dropped.iter().for_each(|&(_, &block)| release(block));
    assert_eq!(resident(low, high - low), all, "what rests in the quarantine keeps its pages");
    heap::purge();
    let left = resident(low, high - low);
    assert!((kept.len()..all / 5).contains(&left), "{left} of {all} pages are left for {} blocks", kept.len());
    for &(_, &block) in &kept {
        // SAFETY: a live block of 1000 bytes.
        assert!(unsafe { core::slice::from_raw_parts(block as *const u8, 1000) }.iter().all(|&byte| byte == 7));
    }
    let mut looks = 0;
    regions::for_each_class(|facts| looks += facts.releases);
    assert!(looks > 0);
    // Blocks come out of those pages again.
    for block in (0..4000).map(|_| allocate(1000)) {
        assert_eq!(heap::live_bytes(block), Some(1000));
    }
    kept.iter().for_each(|&(_, &block)| release(block));

    let (first, second) = (allocate(1 << 20), allocate(1 << 20));
    let page = first.next_multiple_of(PAGE);
    assert!(!large::cede(page, PAGE), "a live block's");
    release(first);
    assert!(!large::cede(page, PAGE), "one that rests");
    heap::purge();
    assert!(!large::cede(page, 1 << 30), "more than a span");
    assert!(!large::cede(second.next_multiple_of(PAGE), PAGE), "the neighbour's");
    assert!(large::cede(page, PAGE));
    for _ in 0..20 {
        let block = allocate(1 << 20);
        assert!(!(block..block + (1 << 20)).contains(&page), "no block comes where the program has memory");
    }
}
