//! Thousands of small random heaps, each compared with the slow oracle block by block.

use std::collections::{BTreeMap, BTreeSet};

use leakscope_model::{Avma, Heuristic, HeuristicSet, LeakKind};
use leakscope_reach::Block;

mod support;
use support::Process;
use support::oracle::Oracle;

/// xorshift64*: repeatable, and the seed of a failing case is in its message.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 33) % limit.max(1)
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

const CODE: u64 = 0x40_0000;
const TABLES: u64 = 0x50_0000;

fn random_process(r: &mut Random) -> Process {
    let mut p = Process::new();
    p.chunk_words = r.pick(&[1, 3, 7, 1 << 20]);
    p.files = vec![(CODE..CODE + 0x1000, true, true), (TABLES..TABLES + 0x80, r.chance(90), false)];
    for i in 0..16 {
        let word = if r.chance(75) { CODE + r.below(0x1000) } else { r.pick(&[0, 0, 7, TABLES]) };
        p.put(TABLES + 8 * i, &[word]);
    }
    let alignment = r.pick(&[16, 16, 16, 8, 4, 1]);
    let max_bytes = r.pick(&[40, 120, 600]);
    let mut at = r.pick(&[0x1_0000, 0x5555_5555_0000, 0x6000_0010]);
    for _ in 0..r.below(40) {
        at += r.pick(&[0, 0, 8, 16, 1, 5000, r.0 % 4096]);
        if r.chance(2) {
            at += r.pick(&[1 << 21, 1 << 30, 1 << 44]);
        }
        at = at.next_multiple_of(if r.chance(95) { alignment } else { 1 });
        let size_bytes = if r.chance(8) { 0 } else { r.below(max_bytes) };
        p.blocks.push(Block { start: Avma(at), size_bytes });
        at += size_bytes.max(1);
    }
    if r.chance(5) && at > 0x2_0000 {
        // One that is larger than any batch.
        p.blocks.push(Block { start: Avma(at.next_multiple_of(16)), size_bytes: 9000 + r.below(9000) });
    }
    let density = r.pick(&[3, 10, 30, 60]);
    for b in p.blocks.clone() {
        let end = b.start.0 + b.size_bytes;
        for word in (b.start.0.next_multiple_of(8)..end).step_by(8).filter(|w| w + 8 <= end) {
            let value = random_word(r, &p, density);
            p.put(word, &[value]);
        }
        plant_heuristic(r, &mut p, b);
    }
    let roots = 0x2000 + r.below(8);
    let words: Vec<u64> = (0..r.below(6)).map(|_| random_word(r, &p, 60)).collect();
    p.put(0x2000, &words);
    p.root_ranges.push(Avma(roots)..Avma(0x2000 + 8 * words.len() as u64 + r.below(8)));
    if r.chance(20) && !p.blocks.is_empty() {
        // A range that has heap blocks in it: the words between them are roots, theirs are not.
        let b = r.pick(&p.blocks);
        let start = b.start.0 - r.below(100);
        let end = b.start.0 + r.below(600);
        for at in (start.next_multiple_of(8)..end).step_by(8) {
            if !p.words.contains_key(&at) && r.chance(20) {
                let value = random_word(r, &p, 60);
                p.put(at, &[value]);
            }
        }
        p.root_ranges.push(Avma(start)..Avma(end));
    }
    p.registers = (0..r.below(4)).map(|_| random_word(r, &p, 50)).collect();
    while r.chance(20) && !p.blocks.is_empty() {
        let b = r.pick(&p.blocks);
        p.unreadable_pages.insert((b.start.0 + r.below(5000)) / 4096);
    }
    p
}

fn random_word(r: &mut Random, p: &Process, density: u64) -> u64 {
    if p.blocks.is_empty() || !r.chance(density) {
        return r.pick(&[0, 1, 3, u64::MAX, 0x7fff_ffff_ffff_fff8, TABLES, TABLES + 16, TABLES + 0x40]);
    }
    let b = r.pick(&p.blocks);
    match r.below(10) {
        0..=5 => b.start.0,
        6 => b.start.0.wrapping_add(r.pick(&[8, 8, 24, 24, 16])),
        7 => b.start.0.wrapping_add(r.pick(&[1, 8, 24, 40])),
        8 => b.start.0.wrapping_add(b.size_bytes),
        _ => b.start.0.wrapping_add(r.below(b.size_bytes)).wrapping_sub(r.below(3)),
    }
}

/// Gives some blocks the looks that a heuristic asks for, or nearly.
fn plant_heuristic(r: &mut Random, p: &mut Process, b: Block) {
    if !b.start.0.is_multiple_of(8) || b.size_bytes < 40 || !r.chance(40) {
        return;
    }
    let (start, size) = (b.start.0, b.size_bytes);
    match r.below(4) {
        0 => p.put(start, &[(size - 25).saturating_sub(r.below(3)) + r.below(2), size - 25 - u64::from(r.chance(10))]),
        1 => p.put(start, &[size - 8 - r.below(2)]),
        2 => p.put(start, &[r.pick(&[1, 2, 4, 8])]),
        _ => {
            let tables = [TABLES + 8 * r.below(17), TABLES + 8 * r.below(17)];
            p.put(start, &tables[..1]);
            p.put(start + 8 + 8 * r.below(3), &tables[1..]);
        }
    }
}

fn random_set(r: &mut Random) -> HeuristicSet {
    if r.chance(50) { HeuristicSet::ALL } else { HeuristicSet::from_bits(r.below(16) as u8) }
}

#[test]
fn every_block_is_as_the_oracle_says() {
    let mut seen = BTreeMap::<String, u64>::new();
    for seed in 1..=20_000u64 {
        let mut r = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let p = random_process(&mut r);
        let set = random_set(&mut r);
        let stack_len = r.pick(&[None, None, Some(1), Some(2), Some(5)]);
        let found = p.mark(set, stack_len).unwrap_or_else(|e| panic!("seed {seed}: {e}\n{p:x?}"));
        let oracle = Oracle::new(&p, set);
        let (kinds, leaders) = oracle.kinds();
        assert_eq!(found.kinds, kinds, "kinds, seed {seed}\n{p:x?}");
        assert_eq!(found.leaders, leaders, "leaders, seed {seed}\n{p:x?}");
        let definite: BTreeSet<usize> = (0..kinds.len()).filter(|b| kinds[*b] == LeakKind::DefinitelyLost).collect();
        let (at_least, at_most) = oracle.leaders_by_cycles(&kinds);
        assert!(at_least.is_subset(&definite) && definite.is_subset(&at_most), "definite, seed {seed}\n{p:x?}");
        assert_eq!(found.heuristics, oracle.heuristics(&kinds), "heuristics, seed {seed}\n{p:x?}");
        if seed % 8 == 0 {
            let workers = 2 + r.below(3) as usize;
            let together = p.mark_by(workers, set, stack_len, |m| support::Outcome::of(&m)).expect("valid as before");
            assert_eq!(together, found, "{workers} workers, seed {seed}\n{p:x?}");
        }
        for what in kinds.iter().map(|k| k.words()).chain(found.heuristics.iter().flatten().map(|h| h.option_word())) {
            *seen.entry(what.to_owned()).or_default() += 1;
        }
    }
    // The generator must keep making everything that is compared.
    for what in LeakKind::ALL.map(|k| k.words()).into_iter().chain(Heuristic::ALL.map(|h| h.option_word())) {
        assert!(seen.get(what).is_some_and(|n| *n > 100), "{what}: {seen:?}");
    }
}

#[test]
fn unreadable_bytes_are_counted_once() {
    for seed in 1..=2_000u64 {
        let mut r = Random(seed.wrapping_mul(0xD134_2543_DE82_EF95));
        let p = random_process(&mut r);
        let found = p.mark(HeuristicSet::ALL, None).expect("valid blocks");
        // Every block is scanned in one pass or the other.
        let words = |from: u64, to: u64| (from..to).filter(move |at| at % 8 == 0 && at + 8 <= to);
        let unreadable: u64 = p
            .blocks
            .iter()
            .flat_map(|b| words(b.start.0, b.start.0 + b.size_bytes))
            .filter(|at| !p.is_readable(*at))
            .count() as u64;
        assert_eq!(found.stats.unreadable_block_bytes, 8 * unreadable, "seed {seed}\n{p:x?}");
    }
}

#[test]
fn any_list_of_blocks_gives_a_result_or_an_error() {
    let (mut refused, mut accepted) = (0, 0);
    for seed in 1..=20_000u64 {
        let mut r = Random(seed.wrapping_mul(0x9FB2_1C65_1E98_DF25));
        let mut p = Process::new();
        for _ in 0..r.below(6) {
            let start = match r.below(4) {
                0 => r.next(),
                1 => u64::MAX - r.below(40),
                2 => r.below(200),
                _ => r.next() >> r.below(64),
            };
            let size_bytes = if r.chance(50) { r.below(64) } else { r.next() >> r.below(64) };
            p.blocks.push(Block { start: Avma(start), size_bytes: size_bytes.min(1 << 14) });
            if r.chance(10) {
                p.blocks.last_mut().expect("just pushed").size_bytes = size_bytes;
            }
        }
        if r.chance(70) {
            p.blocks.sort_by_key(|b| b.start);
        }
        p.registers = (0..4).map(|_| if r.chance(50) { r.next() } else { random_word(&mut r, &p, 90) }).collect();
        let end = p.blocks.iter().map(|b| b.start.0.checked_add(b.size_bytes.max(1)));
        let ends: Vec<_> = end.collect();
        let valid = ends.iter().all(|e| e.is_some())
            && p.blocks.windows(2).zip(&ends).all(|(pair, end)| end.is_some_and(|e| e <= pair[1].start.0));
        // Blocks of exabytes are fine to number, but not to read word by word.
        if valid && p.blocks.iter().any(|b| b.size_bytes > 1 << 20) {
            continue;
        }
        match p.mark(HeuristicSet::ALL, Some(1 + r.below(3) as usize)) {
            Ok(found) => {
                assert!(valid, "accepted: {:x?}", p.blocks);
                assert_eq!(found.kinds, Oracle::new(&p, HeuristicSet::ALL).kinds().0, "seed {seed}");
                accepted += 1;
            }
            Err(_) => {
                assert!(!valid, "refused: {:x?}", p.blocks);
                refused += 1;
            }
        }
    }
    assert!(refused > 2_000 && accepted > 2_000, "{refused} refused, {accepted} accepted");
}
