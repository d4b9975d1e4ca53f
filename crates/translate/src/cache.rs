//! Where translated code lies, which block is where, and how blocks are forgotten.
//!
//! Space is given out in order and never taken back piece by piece: a forgotten block's first five bytes become a jump
//! that leads to its successor, so that whoever was linked to it needs no visit. When the space is used up everything is
//! thrown away at once; no thread is inside of the cache then, as threads are stopped at instruction boundaries.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

use crate::emit::{Code, Mem};
use crate::exits::{Exit, Exits};
use crate::indirect::Table;
use crate::recovery::{Mark, Recovery, Rule};
use crate::state::slot;
use crate::{Config, Version, layout, memory};

/// Bytes that one block may take at most, in either half.
const ROOM: u64 = 0x1_0000;

/// Which translation of which address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct BlockKey(u64);

impl BlockKey {
    pub fn new(pc: u64, version: Version) -> Self {
        Self(pc | (version as u64) << 62)
    }

    /// One instruction alone, unchecked: how a bad access is carried out after it was reported.
    pub fn solo(pc: u64) -> Self {
        Self(pc | 2 << 62)
    }

    pub fn pc(self) -> u64 {
        self.0 & !(3 << 62)
    }
}

/// Fibonacci hashing: addresses are spread well enough, and a lookup stands behind every miss.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26);
    }
}

/// A map whose keys are addresses.
pub(crate) type AddressMap<K, V> = HashMap<K, V, BuildHasherDefault<AddressHasher>>;

/// All translated code.
#[derive(Debug)]
pub(crate) struct Cache {
    pub hot_next: u64,
    pub cold_next: u64,
    hot_end: u64,
    cold_end: u64,
    blocks: AddressMap<BlockKey, u64>,
    pages: BTreeMap<u64, Vec<BlockKey>>,
    /// Where the stubs of an indirect branch's target jump to the target's block, for each table.
    stubs: [AddressMap<u64, u64>; 2],
    pub exits: Exits,
    pub recovery: Recovery,
    pub flushes: u64,
    /// The first large page of hot code is one.
    is_large: bool,
}

impl Cache {
    pub fn new(config: &Config) -> Self {
        let half = ((config.cache_bytes / 2) as u64).clamp(16 * ROOM, (layout::COLD - layout::HOT) - ROOM);
        Self {
            hot_next: layout::HOT,
            cold_next: layout::COLD,
            hot_end: layout::HOT + half,
            cold_end: layout::COLD + half,
            blocks: AddressMap::default(),
            pages: BTreeMap::new(),
            stubs: Default::default(),
            exits: Exits::new(),
            recovery: Recovery::default(),
            flushes: 0,
            is_large: false,
        }
    }

    pub fn find(&self, key: BlockKey) -> Option<u64> {
        self.blocks.get(&key).copied()
    }

    /// Whether one more block fits.
    pub fn has_room(&self) -> bool {
        self.hot_next + ROOM <= self.hot_end && self.cold_next + ROOM <= self.cold_end
    }

    /// Whether there is no room for the ways out of forgotten blocks any more, so that old code would go on running.
    pub fn is_full(&self) -> bool {
        self.cold_next + 64 > self.cold_end + ROOM / 2
    }

    pub fn code_bytes(&self) -> u64 {
        self.hot_next - layout::HOT + self.cold_next - layout::COLD
    }

    /// Forgets everything. The tables of indirect branches are the caller's to reset.
    pub fn clear(&mut self) {
        self.flushes += 1;
        self.hot_next = layout::HOT;
        self.cold_next = layout::COLD;
        self.blocks.clear();
        self.pages.clear();
        self.stubs.iter_mut().for_each(AddressMap::clear);
        self.exits.clear();
        self.recovery.clear();
    }

    /// Makes the key known while its block is being written, so that loops find their start.
    pub fn announce(&mut self, key: BlockKey, host: u64) {
        self.blocks.insert(key, host);
        if key != BlockKey::new(key.pc(), Version::Fast) {
            return;
        }
        for stubs in &self.stubs {
            // Otherwise code that is rewritten again and again would lead through all its former blocks.
            if let Some(&site) = stubs.get(&key.pc())
                && site + 4 != host
            {
                self.link_stub(site, host);
            }
        }
    }

    /// Puts a block's two parts in place. `guest` are the addresses that it was made from.
    pub fn commit(&mut self, key: BlockKey, guest: std::ops::Range<u64>, hot: &Code, cold: &Code, marks: &[Mark]) {
        for page in guest.start >> 12..=(guest.end - 1).max(guest.start) >> 12 {
            self.pages.entry(page).or_default().push(key);
        }
        self.put_hot(hot, marks);
        self.put_cold(cold);
    }

    /// Puts hot code in place, aligned for the next one.
    pub fn put_hot(&mut self, hot: &Code, marks: &[Mark]) {
        debug_assert_eq!(hot.start, self.hot_next);
        // SAFETY: `has_room` was asked before, and the run loop is outside of the cache.
        unsafe { memory::put(hot.start, &hot.bytes) };
        self.recovery.add(hot.start, hot.here(), marks);
        self.hot_next = hot.here().max(hot.start + 5).next_multiple_of(16);
        if !self.is_large && self.hot_next > layout::HOT + memory::LARGE_PAGE / 2 {
            self.is_large = true;
            memory::make_large_page(layout::HOT);
        }
    }

    pub fn put_cold(&mut self, cold: &Code) {
        // SAFETY: as above.
        unsafe { memory::put(cold.start, &cold.bytes) };
        self.cold_next = cold.here();
    }

    /// Whether indirect branches by this table to `pc` have a stub.
    pub fn has_stub(&self, table: Table, pc: u64) -> bool {
        self.stubs[table as usize].contains_key(&pc)
    }

    /// Keeps where the stub for `pc` jumps to the block, so that it follows when the block is made anew.
    pub fn keep_stub(&mut self, table: Table, pc: u64, site: u64) {
        self.stubs[table as usize].insert(pc, site);
    }

    /// Whether anything was translated from these addresses.
    pub fn covers(&self, start: u64, end: u64) -> bool {
        start < end && self.pages.range(start >> 12..=(end - 1) >> 12).next().is_some()
    }

    /// Forgets the blocks that were made from these pages. Afterwards: [`Cache::is_full`].
    pub fn forget(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let pages: Vec<u64> = self.pages.range(start >> 12..=(end - 1) >> 12).map(|(&page, _)| page).collect();
        for page in pages {
            for key in self.pages.remove(&page).unwrap_or_default() {
                if let Some(host) = self.blocks.remove(&key) {
                    self.redirect(key.pc(), host);
                }
            }
        }
    }

    /// Forgets one block. Afterwards: [`Cache::is_full`].
    pub fn forget_block(&mut self, key: BlockKey) {
        if let Some(host) = self.blocks.remove(&key) {
            self.redirect(key.pc(), host);
        }
    }

    /// Makes a forgotten block's start lead to its successor, which is found when the jump is first taken.
    fn redirect(&mut self, pc: u64, host: u64) {
        if self.is_full() {
            // The caller throws everything away before any block runs again.
            return;
        }
        let mut cold = Code::default();
        cold.begin(self.cold_next);
        let record = self.exits.add(Exit::Link { pc, site: host + 1 });
        self.recovery.add_cold(Mark { host: cold.start as u32, pc, rule: Rule::EXACT });
        leave(&mut cold, record);
        let mut jump = Code::default();
        jump.begin(host);
        jump.jump(cold.start);
        // SAFETY: the block is at least five bytes long (`put_hot`), and no thread is inside of it.
        unsafe { memory::put(host, &jump.bytes) };
        self.put_cold(&cold);
    }

    /// Leads the jump whose last four bytes are at `site` to `host`.
    pub fn link(&mut self, site: u64, host: u64) {
        // SAFETY: `site` is in the cache: it came from an exit that was made since the last `clear`.
        unsafe { memory::put(site, &crate::emit::displacement(site, host).to_le_bytes()) };
    }

    /// The same for a stub's jump, which may have been left out ([`crate::emit::NOTHING`]).
    fn link_stub(&self, site: u64, host: u64) {
        let mut jump = Code::default();
        jump.begin(site - 1);
        jump.jump(host);
        // SAFETY: the last five bytes of a stub that was made since the last `clear`.
        unsafe { memory::put(site - 1, &jump.bytes) };
    }
}

/// Writes the way out of the cache by this record.
pub(crate) fn leave(code: &mut Code, record: u32) {
    code.store_u32(&Mem::at(slot!(exit_record)), record);
    code.jump_through(&Mem::at(slot!(exit_code)));
}
