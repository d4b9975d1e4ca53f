//! The slow and obvious leak check, straight from the manual's definitions.

use std::collections::{BTreeMap, BTreeSet};

use leakscope_model::{Heuristic, HeuristicSet, LeakKind};

use super::Process;

/// A pointer: where it leads and how.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Edge {
    pub to: usize,
    pub offset_bytes: u64,
}

pub struct Oracle<'p> {
    process: &'p Process,
    set: HeuristicSet,
    /// The pointers of the root set, in order.
    roots: Vec<Edge>,
    /// The pointers of each block, in order.
    edges: Vec<Vec<Edge>>,
}

impl<'p> Oracle<'p> {
    pub fn new(process: &'p Process, set: HeuristicSet) -> Self {
        let mut oracle = Self { process, set, roots: vec![], edges: vec![] };
        // Of a block of size 0 no byte is in the block.
        let in_block = |at: u64| {
            let mut blocks = process.blocks.iter().filter(|b| b.size_bytes > 0);
            blocks.any(|b| at < b.start.0 + b.size_bytes && at + 8 > b.start.0)
        };
        for range in &process.root_ranges {
            let words = oracle.words(range.start.0, range.end.0).filter(|(at, _)| !in_block(*at));
            oracle.roots.extend(words.filter_map(|(_, w)| oracle.edge(w)).collect::<Vec<_>>());
        }
        oracle.roots.extend(process.registers.iter().filter_map(|w| oracle.edge(*w)).collect::<Vec<_>>());
        for b in &process.blocks {
            let words = oracle.words(b.start.0, b.start.0 + b.size_bytes);
            oracle.edges.push(words.filter_map(|(_, w)| oracle.edge(w)).collect());
        }
        oracle
    }

    /// Readable aligned words that lie wholly in the range.
    fn words(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, u64)> + use<'p> {
        let process = self.process;
        (start..end).filter(move |at| at % 8 == 0 && end - at >= 8).filter_map(|at| Some((at, process.read(at)?)))
    }

    fn edge(&self, word: u64) -> Option<Edge> {
        let inside = |b: &leakscope_reach::Block| word >= b.start.0 && word - b.start.0 < b.size_bytes.max(1);
        let to = self.process.blocks.iter().position(inside)?;
        Some(Edge { to, offset_bytes: word - self.process.blocks[to].start.0 })
    }

    /// Unreachable blocks' kinds by the fixpoint of the definitions; leaders by gathering in order of address.
    pub fn kinds(&self) -> (Vec<LeakKind>, Vec<Option<usize>>) {
        let n = self.edges.len();
        let counts_as_start = |e: &Edge| e.offset_bytes == 0 || self.heuristic(*e).is_some();
        let closure = |seed: BTreeSet<usize>, follow: &dyn Fn(&Edge) -> bool| {
            let mut set = seed;
            loop {
                let more: BTreeSet<usize> =
                    set.iter().flat_map(|b| &self.edges[*b]).filter(|e| follow(e)).map(|e| e.to).collect();
                if more.is_subset(&set) {
                    return set;
                }
                set.extend(more);
            }
        };
        let sure = self.roots.iter().filter(|e| counts_as_start(e)).map(|e| e.to).collect();
        let reachable = closure(sure, &counts_as_start);
        let touched = self.roots.iter().map(|e| e.to).collect();
        let possible = closure(touched, &|_| true);

        let mut gathered_by: BTreeMap<usize, usize> = BTreeMap::new();
        for leader in (0..n).filter(|b| !possible.contains(b)) {
            if gathered_by.contains_key(&leader) {
                continue;
            }
            let taken: BTreeSet<usize> = gathered_by.keys().copied().collect();
            let free = |e: &Edge| !possible.contains(&e.to) && !taken.contains(&e.to);
            for b in closure(BTreeSet::from([leader]), &free) {
                if b != leader {
                    gathered_by.insert(b, leader);
                }
            }
        }
        let mut kinds = vec![];
        let mut leaders = vec![];
        for b in 0..n {
            let mut leader = gathered_by.get(&b).copied();
            while let Some(next) = leader.and_then(|l| gathered_by.get(&l)) {
                leader = Some(*next);
            }
            leaders.push(leader);
            kinds.push(match () {
                () if reachable.contains(&b) => LeakKind::StillReachable,
                () if possible.contains(&b) => LeakKind::PossiblyLost,
                () if leader.is_some() => LeakKind::IndirectlyLost,
                () => LeakKind::DefinitelyLost,
            });
        }
        (kinds, leaders)
    }

    /// Bounds for the definitely lost blocks that no order of gathering can leave. Of each cycle (a block alone is
    /// one) only the lowest can lead: at least where no other lost block leads to the cycle, at most in all.
    pub fn leaders_by_cycles(&self, kinds: &[LeakKind]) -> (BTreeSet<usize>, BTreeSet<usize>) {
        let lost = |b: usize| matches!(kinds[b], LeakKind::IndirectlyLost | LeakKind::DefinitelyLost);
        let reach: Vec<BTreeSet<usize>> = (0..kinds.len())
            .map(|from| {
                let (mut seen, mut todo) = (BTreeSet::from([from]), vec![from]);
                while let Some(b) = todo.pop() {
                    todo.extend(self.edges[b].iter().map(|e| e.to).filter(|to| lost(*to) && seen.insert(*to)));
                }
                seen
            })
            .collect();
        let is_source =
            |b: usize| (0..kinds.len()).all(|o| !lost(o) || !reach[o].contains(&b) || reach[b].contains(&o));
        let is_lowest = |b: usize| (0..b).all(|o| !(lost(o) && reach[o].contains(&b) && reach[b].contains(&o)));
        let lowest: BTreeSet<usize> = (0..kinds.len()).filter(|b| lost(*b) && is_lowest(*b)).collect();
        (lowest.iter().copied().filter(|b| is_source(*b)).collect(), lowest)
    }

    /// For each block, the first heuristic by which something that is reached leads to it, unless a start-pointer
    /// from the roots or from a reachable block does.
    pub fn heuristics(&self, kinds: &[LeakKind]) -> Vec<Option<Heuristic>> {
        let of_kind = |kind: LeakKind| (0..kinds.len()).filter(move |b| kinds[*b] == kind);
        let sure = of_kind(LeakKind::StillReachable).flat_map(|b| &self.edges[b]).chain(&self.roots);
        let unsure = of_kind(LeakKind::PossiblyLost).flat_map(|b| &self.edges[b]);
        let name = |block: usize| {
            if sure.clone().any(|e| e.to == block && e.offset_bytes == 0) {
                return None;
            }
            let leading = sure.clone().chain(unsure.clone()).filter(|e| e.to == block);
            leading.filter_map(|e| self.heuristic(*e)).min_by_key(|h| *h as u8)
        };
        (0..kinds.len()).map(name).collect()
    }

    fn heuristic(&self, edge: Edge) -> Option<Heuristic> {
        let block = self.process.blocks[edge.to];
        let (start, size) = (block.start.0, block.size_bytes);
        let word = |at: u64| {
            if at.is_multiple_of(8) { self.process.read(at) } else { None }
        };
        if edge.offset_bytes == 0 {
            return None;
        }
        Heuristic::ALL.into_iter().filter(|h| self.set.contains(*h)).find(|h| match h {
            Heuristic::StdString => {
                edge.offset_bytes == 24
                    && word(start + 8)
                        .is_some_and(|c| c == size.wrapping_sub(25) && word(start).is_some_and(|l| l <= c))
            }
            Heuristic::Length64 => {
                edge.offset_bytes == 8 && word(start).is_some_and(|l| l > 0 && l.checked_add(8) == Some(size))
            }
            Heuristic::NewArray => edge.offset_bytes == 8 && word(start).is_some_and(|c| c > 0 && (size - 8) % c == 0),
            Heuristic::MultipleInheritance => {
                let table = |at: u64| word(at).is_some_and(|t| self.is_vtable(t));
                table(start + edge.offset_bytes) && table(start)
            }
        })
    }

    fn is_vtable(&self, at: u64) -> bool {
        let file = |a: u64| self.process.files.iter().find(|f| f.0.contains(&a));
        let Some((range, true, _)) = file(at) else {
            return false;
        };
        if !at.is_multiple_of(8) || at < 4096 {
            return false;
        }
        let mut functions = 0;
        // 21 words, of which none is the file's last.
        for address in (0..=20).map(|i| at + 8 * i).filter(|a| a + 8 < range.end) {
            match self.process.read(address) {
                Some(0) => {}
                Some(f) if file(f).is_some_and(|f| f.2) => functions += 1,
                _ => return false,
            }
            if functions == 2 {
                return true;
            }
        }
        false
    }
}
