//! Blocks and pools that the target announces by client requests, and ranges that it gives names.
//!
//! Source: `valgrind.h` and `memcheck.h` (BSD-licensed; the comments on each request), Valgrind's manual, section 4.8.

use std::collections::BTreeMap;

use leakscope_ledger::events;
use leakscope_model::AllocFn;

use crate::engine::Memcheck;
use crate::errors::grouped;
use crate::stacks::StackId;

/// A block of an allocator of the target's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Custom {
    /// Its first byte.
    pub start: u64,
    /// Its size.
    pub bytes: u64,
    /// Where it was announced.
    pub stack: StackId,
    /// The redzone that its allocator keeps around it.
    pub redzone_bytes: u64,
    /// It is a piece of a pool, not a block of its own.
    pub is_piece: bool,
}

/// A memory pool.
#[derive(Clone, Debug)]
pub struct Pool {
    /// What identifies it.
    pub anchor: u64,
    /// The redzone around its pieces.
    pub redzone_bytes: u64,
    /// Freed pieces are taken for zeroed ones.
    pub is_zeroed: bool,
    /// It is a block out of which others are cut, and goes with them (`VALGRIND_MEMPOOL_METAPOOL`).
    pub is_meta: bool,
    /// `VALGRIND_MEMPOOL_AUTO_FREE`
    pub auto_free: bool,
    /// Its pieces by address.
    pub pieces: BTreeMap<u64, Custom>,
}

/// A range that the target gave a name (`VALGRIND_CREATE_BLOCK`).
#[derive(Clone, Debug)]
struct NamedRange {
    start: u64,
    bytes: u64,
    name: String,
    stack: StackId,
    is_there: bool,
}

/// How many freed custom blocks are remembered.
const MOST_FREED: usize = 1000;

/// What is known of an address from here.
pub struct Words {
    /// The sentence.
    pub text: String,
    /// The stack that belongs to it.
    pub stack: StackId,
    /// Of a freed block, where it was allocated.
    pub allocated: StackId,
}

/// All that the target announced.
#[derive(Default)]
pub struct Pools {
    custom: BTreeMap<u64, Custom>,
    freed: Vec<(Custom, StackId)>,
    pools: Vec<Pool>,
    named: Vec<NamedRange>,
}

impl Pools {
    /// `VALGRIND_MALLOCLIKE_BLOCK`
    pub fn add_custom(&mut self, block: Custom) {
        self.freed.retain(|(old, _)| old.start != block.start);
        self.custom.insert(block.start, block);
    }

    /// The custom block that starts here, to read.
    pub fn custom(&self, start: u64) -> Option<&Custom> {
        self.custom.get(&start)
    }

    /// The same, to change its size.
    pub fn custom_mut(&mut self, start: u64) -> Option<&mut Custom> {
        self.custom.get_mut(&start)
    }

    /// Takes a custom block away.
    pub fn take_custom(&mut self, start: u64) -> Option<Custom> {
        self.custom.remove(&start)
    }

    /// Whether a custom block starts here.
    pub fn is_inside_custom(&self, start: u64) -> bool {
        self.custom.contains_key(&start)
    }

    /// Whether there are any custom blocks.
    pub fn has_custom(&self) -> bool {
        !self.custom.is_empty()
    }

    /// Keeps what a freed block was.
    pub fn remember_freed(&mut self, block: Custom, stack: StackId) {
        if self.freed.len() >= MOST_FREED {
            self.freed.remove(0);
        }
        self.freed.push((block, stack));
    }

    /// Adds a pool; `false` when there is one with this anchor.
    pub fn create(&mut self, pool: Pool) -> bool {
        let is_new = self.pool(pool.anchor).is_none();
        if is_new {
            self.pools.push(pool);
        }
        is_new
    }

    /// The pool with an anchor.
    pub fn pool(&mut self, anchor: u64) -> Option<&mut Pool> {
        self.pools.iter_mut().find(|pool| pool.anchor == anchor)
    }

    /// Takes a pool away.
    pub fn destroy(&mut self, anchor: u64) -> Option<Pool> {
        let at = self.pools.iter().position(|pool| pool.anchor == anchor)?;
        Some(self.pools.remove(at))
    }

    /// Gives a range a name; its number.
    pub fn name(&mut self, start: u64, bytes: u64, name: String, stack: StackId) -> u64 {
        self.named.push(NamedRange { start, bytes, name, stack, is_there: true });
        self.named.len() as u64 - 1
    }

    /// Takes a name away; `false` when there is none of this number.
    pub fn forget_name(&mut self, number: u64) -> bool {
        match self.named.get_mut(number as usize) {
            Some(range) => std::mem::replace(&mut range.is_there, false),
            None => false,
        }
    }

    /// Every block that the target announced: customs and pieces of pools, in no order.
    pub fn blocks(&self) -> impl Iterator<Item = &Custom> {
        self.custom.values().chain(self.pools.iter().flat_map(|pool| pool.pieces.values()))
    }

    /// Pools out of whose pieces custom blocks are cut, and that free those with themselves.
    pub fn meta_pieces(&self) -> impl Iterator<Item = &Custom> {
        self.pools.iter().filter(|pool| pool.is_meta).flat_map(|pool| pool.pieces.values())
    }

    /// Takes away the custom blocks within a range.
    pub fn take_within(&mut self, start: u64, end: u64) -> Vec<Custom> {
        let mut within = self.custom.split_off(&start);
        self.custom.append(&mut within.split_off(&end));
        within.into_values().collect()
    }

    /// What an address is, if it is about something that was announced.
    pub fn describe(&self, address: u64) -> Option<Words> {
        for range in self.named.iter().filter(|range| range.is_there) {
            if address >= range.start && address - range.start < range.bytes.max(1) {
                let (distance, bytes) = (grouped(address - range.start), grouped(range.bytes));
                let text = format!(
                    "Address {address:#x} is {distance} bytes inside a {} of size {bytes} client-defined",
                    range.name
                );
                return Some(Words { text, stack: range.stack, allocated: StackId::NONE });
            }
        }
        let near = |block: &&Custom| {
            let zone = block.redzone_bytes.max(16);
            address >= block.start.saturating_sub(zone) && address < block.start + block.bytes + zone
        };
        let exact = |block: &&Custom| address >= block.start && address < block.start + block.bytes;
        if let Some((block, stack)) = self.freed.iter().rev().find(|(block, _)| exact(&block)) {
            let text = words(address, block, "free'd");
            return Some(Words { text, stack: *stack, allocated: block.stack });
        }
        let block = self.blocks().find(exact).or_else(|| self.blocks().find(near))?;
        let state = if block.is_piece { "client-defined" } else { "alloc'd" };
        Some(Words { text: words(address, block, state), stack: block.stack, allocated: StackId::NONE })
    }
}

fn words(address: u64, block: &Custom, state: &str) -> String {
    let end = block.start + block.bytes;
    let (distance, place) = if address < block.start {
        (block.start - address, "before")
    } else if address >= end {
        (address - end, "after")
    } else {
        (address - block.start, "inside")
    };
    let (distance, bytes) = (grouped(distance), grouped(block.bytes));
    format!("Address {address:#x} is {distance} bytes {place} a block of size {bytes} {state}")
}

impl Memcheck {
    /// A custom block as events have it.
    pub fn event_of_custom(&self, block: &Custom) -> events::Block {
        events::Block {
            start: block.start,
            bytes: block.bytes,
            function: AllocFn::Malloc,
            allocated: self.stacks.get(block.stack).to_vec(),
            freed: Vec::new(),
            freed_by: AllocFn::Free,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(start: u64, bytes: u64) -> Custom {
        Custom { start, bytes, stack: StackId(1), redzone_bytes: 16, is_piece: false }
    }

    #[test]
    fn addresses_by_table() {
        let mut pools = Pools::default();
        pools.add_custom(block(1000, 100));
        pools.remember_freed(block(2000, 10), StackId(2));
        let number = pools.name(3000, 50, "node".into(), StackId(3));
        let text = |pools: &Pools, at: u64| pools.describe(at).map(|words| words.text);
        let ends = |pools: &Pools, at: u64, end: &str| assert!(text(pools, at).unwrap().ends_with(end), "{at}");
        ends(&pools, 1000, "0 bytes inside a block of size 100 alloc'd");
        ends(&pools, 996, "4 bytes before a block of size 100 alloc'd");
        ends(&pools, 1100, "0 bytes after a block of size 100 alloc'd");
        ends(&pools, 2003, "3 bytes inside a block of size 10 free'd");
        ends(&pools, 3049, "49 bytes inside a node of size 50 client-defined");
        assert_eq!((text(&pools, 3050), text(&pools, 1200)), (None, None));
        assert!(pools.forget_name(number) && !pools.forget_name(number));
        assert_eq!(text(&pools, 3049), None);
        assert_eq!(pools.take_within(0, 1001), [block(1000, 100)]);
        assert_eq!(text(&pools, 1000), None);
    }
}
