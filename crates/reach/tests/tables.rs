//! Memcheck's own regression programs as tables, the records they lead to, and what is refused.

use leakscope_model::{Avma, Heuristic, HeuristicSet, LeakKind, SiteId};
use leakscope_reach::{Block, InputError, LossRecord};

mod support;
use support::Process;

const DEFINITE: LeakKind = LeakKind::DefinitelyLost;
const INDIRECT: LeakKind = LeakKind::IndirectlyLost;
const POSSIBLE: LeakKind = LeakKind::PossiblyLost;
const REACHABLE: LeakKind = LeakKind::StillReachable;

const ROOTS: u64 = 0x1000;
const HEAP: u64 = 0x55_5555_0010;

/// Blocks of one size, 48 bytes apart, as a small allocator would place them.
fn at(block: u64) -> u64 {
    HEAP + 48 * block
}

/// A loss record: site, kind, direct blocks and bytes, indirect blocks and bytes.
type Row = (u32, LeakKind, [u64; 2], [u64; 2]);

fn rows(p: &Process, room: usize, site_of: impl Fn(usize) -> u32) -> Vec<Row> {
    p.mark_with(HeuristicSet::ALL, None, |marked| {
        let mut records = vec![LossRecord::default(); room];
        let all = marked.aggregate(|b| SiteId(site_of(b)), &mut records);
        assert!(!all.is_full());
        let row = |r: &LossRecord| {
            (r.site().0, r.kind(), [r.direct.blocks, r.direct.bytes], [r.indirect.blocks, r.indirect.bytes])
        };
        records[..all.records].iter().map(row).collect()
    })
    .expect("valid blocks")
}

/// memcheck/tests/leak-cases.c: nine chains of 16-byte blocks; `false` is an interior-pointer.
#[test]
fn leak_cases() {
    // Case, pointer from the root to AAA if any, pointer from AAA to BBB if there is one; kinds of AAA and BBB.
    type Case = (u32, Option<bool>, Option<bool>, LeakKind, Option<LeakKind>);
    let cases: [Case; 9] = [
        (1, Some(true), None, REACHABLE, None),
        (2, Some(true), Some(true), REACHABLE, Some(REACHABLE)),
        (3, None, None, DEFINITE, None),
        (4, None, Some(true), DEFINITE, Some(INDIRECT)),
        (5, Some(false), None, POSSIBLE, None),
        (6, Some(true), Some(false), REACHABLE, Some(POSSIBLE)),
        (7, Some(false), Some(true), POSSIBLE, Some(POSSIBLE)),
        (8, Some(false), Some(false), POSSIBLE, Some(POSSIBLE)),
        (9, None, Some(false), DEFINITE, Some(INDIRECT)),
    ];
    let mut p = Process::new();
    let (mut expected, mut roots, mut sites) = (vec![], vec![], vec![]);
    let pointer = |block: usize, is_start: bool| at(block as u64) + if is_start { 0 } else { 8 };
    for (case, to_a, to_b, kind_a, kind_b) in cases {
        // mk(mk(NULL)) makes BBB first. A pointer one node further is an interior-pointer.
        let b = p.blocks.len();
        let a = b + usize::from(to_b.is_some());
        if let (Some(is_start), Some(kind_b)) = (to_b, kind_b) {
            p.block(at(b as u64), 16, &[0]);
            p.block(at(a as u64), 16, &[pointer(b, is_start)]);
            expected.extend([kind_b, kind_a]);
            sites.extend([10 * case + 1, 10 * case]);
        } else {
            p.block(at(a as u64), 16, &[0]);
            expected.push(kind_a);
            sites.push(10 * case);
        }
        roots.push(to_a.map_or(0, |is_start| pointer(a, is_start)));
    }
    p.root(ROOTS, &roots);
    assert_eq!(p.mark(HeuristicSet::ALL, None).expect("valid").kinds, expected);

    // The summary of leak-cases-summary.stderr.exp, and the records of leak-cases-full.stderr.exp.
    let records = rows(&p, 64, |b| sites[b]);
    let sum = |kind| records.iter().filter(|r| r.1 == kind).fold((0, 0), |s, r| (s.0 + r.2[1], s.1 + r.2[0]));
    assert_eq!((sum(DEFINITE), sum(INDIRECT)), ((48, 3), (32, 2)), "leaked: 80 bytes in 5 blocks");
    assert_eq!((sum(POSSIBLE), sum(REACHABLE)), ((96, 6), (64, 4)));
    let definite: Vec<&Row> = records.iter().filter(|r| r.1 == DEFINITE).collect();
    let expected =
        [(30, DEFINITE, [1, 16], [0, 0]), (40, DEFINITE, [1, 16], [1, 16]), (90, DEFINITE, [1, 16], [1, 16])];
    assert_eq!(definite, expected.iter().collect::<Vec<_>>());
}

/// memcheck/tests/leak-cycle.c: six rings a <- b <- c <- a of 32-byte blocks (16 on 32-bit), some linked.
#[test]
fn leak_cycle() {
    let mut p = Process::new();
    let mut ring = |right: u64| {
        let first = p.blocks.len() as u64;
        let (a, b, c) = (at(first), at(first + 1), at(first + 2));
        p.block(a, 16, &[c, right]);
        p.block(b, 16, &[a, 0]);
        p.block(c, 16, &[b, 0]);
        a
    };
    // Two simple rings; one linked to another, the later to the earlier; two linked both ways.
    ring(0);
    ring(0);
    let third = ring(0);
    ring(third);
    ring(at(15));
    ring(at(12));
    let found = p.mark(HeuristicSet::ALL, None).expect("valid");
    let led: Vec<usize> = found.leaders.iter().enumerate().map(|(b, l)| l.unwrap_or(b)).collect();
    assert_eq!(led, [0, 0, 0, 3, 3, 3, 9, 9, 9, 9, 9, 9, 12, 12, 12, 12, 12, 12]);
    // The records of leak-cycle.stderr.exp: 48 (16 direct, 32 indirect) twice, 96 (16 direct, 80 indirect) twice.
    let records: Vec<Row> = rows(&p, 64, |b| b as u32).into_iter().filter(|r| r.1 == DEFINITE).collect();
    let row = |site, blocks| (site, DEFINITE, [1, 16], [blocks, 16 * blocks]);
    assert_eq!(records, [row(0, 2), row(3, 2), row(9, 5), row(12, 5)]);
}

/// A ring that was gathered is not scanned again: only a pointer to its leader itself makes the ring indirectly lost.
#[test]
fn a_pointer_to_another_block_of_a_ring_leaves_its_leader() {
    for (target, leader_kind) in [(0, INDIRECT), (1, DEFINITE), (2, DEFINITE)] {
        let mut p = Process::new();
        (0..3).for_each(|b| _ = p.block(at(b), 16, &[at((b + 1) % 3)]));
        p.block(at(3), 16, &[at(target)]);
        let found = p.mark(HeuristicSet::ALL, None).expect("valid");
        assert_eq!(found.kinds, [leader_kind, INDIRECT, INDIRECT, DEFINITE], "to {target}");
    }
}

/// memcheck/tests/leak-tree.c: A(B(D, E), C(F, G)), then D and C are cut off.
#[test]
fn leak_tree() {
    let mut p = Process::new();
    let [b, e, f, g] = [1, 4, 5, 6].map(at);
    for words in [[b, 0], [0, e], [f, g], [0, 0], [0, 0], [0, 0], [0, 0]] {
        p.block(at(p.blocks.len() as u64), 16, &words);
    }
    p.root(ROOTS, &[at(0)]);
    let found = p.mark(HeuristicSet::ALL, None).expect("valid");
    assert_eq!(found.kinds, [REACHABLE, REACHABLE, DEFINITE, DEFINITE, REACHABLE, INDIRECT, INDIRECT]);
    let expected = [
        (4, INDIRECT, [1, 16], [0, 0]),
        (5, INDIRECT, [1, 16], [0, 0]),
        (3, DEFINITE, [1, 16], [0, 0]),
        (0, REACHABLE, [3, 48], [0, 0]),
        (2, DEFINITE, [1, 16], [2, 32]),
    ];
    let site = [0, 0, 2, 3, 0, 4, 5];
    assert_eq!(rows(&p, 5, |b| site[b]), expected);
}

/// memcheck/tests/leak_cpp_interior.cpp, with the layouts that g++ makes on x86-64.
#[test]
fn heuristics() {
    const CODE: u64 = 0x40_0000;
    const TABLES: u64 = 0x50_0000;
    let mut p = Process::new();
    p.files = vec![(CODE..CODE + 0x1000, true, true), (TABLES..TABLES + 0x1000, true, false)];
    p.put(TABLES, &[CODE, CODE + 8, 0, CODE + 16, CODE + 24]);
    // A string (8 of 8 bytes), new MyClass[3] of 8 bytes each, a length-prefixed block, two objects with two bases.
    let string = p.block(at(0), 24 + 8 + 1, &[8, 8, 0]);
    let array = p.block(at(1), 8 + 24, &[3]);
    let length = p.block(at(2), 8 + 23, &[23]);
    let objects = [p.block(at(3), 16, &[TABLES, TABLES + 24]), p.block(at(4), 40, &[TABLES, 0, TABLES + 24])];
    // new MyClass[0]: the pointer is one past the end.
    p.block(at(5), 8, &[0]);
    p.root(ROOTS, &[at(0) + 24, at(1) + 8, at(2) + 8, at(3) + 8, at(4) + 16, at(5) + 8]);
    let found = p.mark(HeuristicSet::ALL, None).expect("valid");
    assert_eq!(found.kinds, [[REACHABLE; 5].as_slice(), &[DEFINITE]].concat());
    assert_eq!(found.heuristics[string], Some(Heuristic::StdString));
    assert_eq!(found.heuristics[array], Some(Heuristic::NewArray));
    assert_eq!(found.heuristics[length], Some(Heuristic::Length64));
    for object in objects {
        assert_eq!(found.heuristics[object], Some(Heuristic::MultipleInheritance));
    }
    for (heuristic, reachable) in Heuristic::ALL.into_iter().zip([vec![0], vec![2], vec![1, 2], vec![3, 4]]) {
        let found = p.mark(HeuristicSet::NONE.with(heuristic), None).expect("valid");
        let kinds = (0..5).map(|b| if reachable.contains(&b) { REACHABLE } else { POSSIBLE });
        assert_eq!(found.kinds[..5], kinds.collect::<Vec<_>>(), "{heuristic:?}");
    }
}

#[test]
fn records_that_find_no_room_are_counted() {
    let mut p = Process::new();
    (0..100).for_each(|b| _ = p.block(HEAP + 112 * b, 10 + b, &[]));
    p.root(ROOTS, &[HEAP + 112 * 7]);
    p.mark_with(HeuristicSet::ALL, None, |marked| {
        for room in 0..=110 {
            let mut records = vec![LossRecord::default(); room];
            let all = marked.aggregate(|b| SiteId(b as u32 * 77), &mut records);
            assert_eq!(all.records, room.min(100));
            assert_eq!(all.is_full(), room < 100, "{room}");
            let without = all.without_record.iter().fold([0, 0], |s, t| [s[0] + t.blocks, s[1] + t.bytes]);
            let written = &records[..all.records];
            let with = written.iter().fold([0, 0], |s, r| [s[0] + r.direct.blocks, s[1] + r.direct.bytes]);
            let total = [with[0] + without[0], with[1] + without[1]];
            assert_eq!(total, [100, (10..110).sum()], "{room}");
            assert!(written.is_sorted_by_key(LossRecord::total_bytes));
            assert_eq!(all.by_kind[DEFINITE as usize].blocks, 99);
        }
    })
    .expect("valid");
}

#[test]
fn lists_of_blocks_that_are_refused() {
    let block = |start, size_bytes| Block { start: Avma(start), size_bytes };
    let check = |blocks: &[Block]| {
        let p = Process { blocks: blocks.to_vec(), ..Process::new() };
        p.mark(HeuristicSet::ALL, None).map(|o| o.kinds.len())
    };
    assert_eq!(check(&[]), Ok(0));
    assert_eq!(check(&[block(16, 16), block(32, 0), block(33, 1)]), Ok(3), "adjacent");
    assert_eq!(check(&[block(u64::MAX - 8, 8)]), Ok(1), "the last block that has an end");
    assert_eq!(check(&[block(32, 8), block(16, 8)]), Err(InputError::Unsorted { at: 1 }));
    assert_eq!(check(&[block(16, 17), block(32, 8)]), Err(InputError::Overlap { at: 1 }));
    assert_eq!(check(&[block(16, 0), block(16, 8)]), Err(InputError::Overlap { at: 1 }), "size 0 counts as 1");
    assert_eq!(check(&[block(16, 8), block(u64::MAX, 0)]), Err(InputError::Wraps { at: 1 }));
    assert_eq!(check(&[block(8, u64::MAX - 8), block(u64::MAX - 1, 1)]), Err(InputError::Overlap { at: 1 }));
    let one = Process { blocks: vec![block(16, 8)], ..Process::new() };
    let refused = one.mark(HeuristicSet::ALL, Some(0));
    assert_eq!(refused, Err(InputError::WorkTooSmall { field: "stack", needed: 1, given: 0 }));
}

/// More blocks than the stack holds at once, in every shape: a chain, and a root block that leads to all.
#[test]
fn many_blocks() {
    const BLOCKS: u64 = 20_000;
    let start = |b: u64| HEAP + 64 * (b * 7919 % BLOCKS);
    for stack_len in [None, Some(1), Some(100)] {
        let mut p = Process { chunk_words: 1 << 20, ..Process::new() };
        p.blocks = (0..BLOCKS).map(|b| Block { start: Avma(HEAP + 64 * b), size_bytes: 40 }).collect();
        p.blocks.push(Block { start: Avma(HEAP + 64 * BLOCKS), size_bytes: 8 * BLOCKS });
        // The large block leads to the first half, all blocks of which lead to one of the second.
        for b in 0..BLOCKS / 2 {
            p.put(HEAP + 64 * BLOCKS + 8 * b, &[start(b)]);
            p.put(start(b) + 8, &[start(b + BLOCKS / 2)]);
        }
        let led = p.mark(HeuristicSet::ALL, stack_len).expect("valid");
        let (last, rest) = led.kinds.split_last().expect("blocks");
        assert!(*last == DEFINITE && rest.iter().all(|k| *k == INDIRECT), "{stack_len:?}");
        p.root(ROOTS, &[HEAP + 64 * BLOCKS]);
        let reached = p.mark(HeuristicSet::ALL, stack_len).expect("valid");
        assert!(reached.kinds.iter().all(|k| *k == REACHABLE), "{stack_len:?}");
    }
}
