//! Stacks become allocation sites: the stack tree, the site table, and the maps from unwind signatures and stack
//! hashes to sites.
//!
//! Nodes and sites are records of the ledger; what is needed only to find them again (hash tables) is private.
//! Looking up a signature or a hash takes no lock. Everything else happens once per new stack, under one lock that the
//! thread takes with its busy mark set (see `memory::Lock`).
//!
//! A site is known by 64-bit signatures alone, without comparing frames: two of 10^6 stacks collide with a
//! probability below 10^-7, and the compare would cost a cache miss at each allocation of a program with 100,000
//! stacks.
//!
//! Site numbers carry the family of the function (new, new[], malloc): every chunk of 32 belongs to one family, so
//! `free` sees a mismatch from the counter chunk that it needs anyway. Sites below 32 are made at start: one for each
//! allocation function, without a stack, for events whose stack cannot be taken.

use crate::memory::{self, Lock, LockGuard, map_slice, unmap_slice};
use core::cell::UnsafeCell;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, AtomicU64};
use leakscope_ledger::layout::{AreaId, COUNTERS_PER_CHUNK};
use leakscope_ledger::writer::Ledger;
use leakscope_model::{AllocFamily, AllocFn};

const MULTIPLIER: u64 = 0x9E37_79B9_7F4A_7C15;
const SITE_CHUNKS: usize = (crate::blocks::MAX_SITE as usize + 1) / COUNTERS_PER_CHUNK;
const FIRST_SIGNATURES: usize = 1 << 13;
const MAX_PROBES: usize = 64;

/// Family tags of site chunks, as they stand in [`SiteTable::family`].
pub mod family {
    /// `malloc` and its relatives.
    pub const MALLOC: u8 = 0;
    /// `operator new`.
    pub const NEW: u8 = 1;
    /// `operator new[]`.
    pub const NEW_ARRAY: u8 = 2;
    /// The first chunk: look at the site.
    pub const MIXED: u8 = 3;

    /// The tag of a model family.
    pub const fn of(family: leakscope_model::AllocFamily) -> u8 {
        match family {
            leakscope_model::AllocFamily::Malloc => MALLOC,
            leakscope_model::AllocFamily::New => NEW,
            leakscope_model::AllocFamily::NewArray => NEW_ARRAY,
        }
    }
}

struct SignatureEntry {
    signature: AtomicU64,
    site: AtomicU32,
}

struct SignatureTable {
    entries: &'static [SignatureEntry],
}

/// What only the holder of the lock touches.
struct Index {
    nodes: Grown,
    sites: Grown,
    signatures_used: usize,
    /// The unwinder's epoch when the signature table was last empty.
    signatures_epoch: u16,
    open_chunk: [(u32, u32); 3],
    /// The stack that was interned last, outermost frame first.
    last: [Step; LAST],
    last_len: usize,
}

/// A frame of the stack that was interned last.
#[derive(Clone, Copy)]
struct Step {
    pc: u64,
    /// Of the chain from the outermost frame to this one.
    hash: u64,
    epoch: u32,
    node: u32,
}

const LAST: usize = 160;

/// Unwind signatures seen lately: the upper 42 bits of the signature and the site in one word, so that a reader
/// never sees a pair that does not belong together. A cache, because a stack with `alloca` in it has no end of
/// signatures. The low bits choose the set: in all, 58 bits of the signature are compared.
static SIGNATURE_CACHE: AtomicPtr<AtomicU64> = AtomicPtr::new(core::ptr::null_mut());
const CACHE_ENTRIES: usize = 1 << 18;
const CACHE_WAYS: usize = 4;
const CACHE_SITE: u64 = crate::blocks::MAX_SITE as u64;
/// Signatures remembered after which the cache moves to a huge page.
const HUGE_AFTER: u32 = 4096;
static REMEMBERED: AtomicU32 = AtomicU32::new(0);

/// The signatures of the moment, in eight pages: most programs never need more.
static RECENT: [[AtomicU64; CACHE_WAYS]; 1 << 10] = [const { [const { AtomicU64::new(0) }; CACHE_WAYS] }; 1 << 10];

/// The entries in which a signature can be; all zero when there is no table.
#[inline(always)]
fn cache_set(signature: u64) -> &'static [AtomicU64; CACHE_WAYS] {
    static NOTHING: [AtomicU64; CACHE_WAYS] = [const { AtomicU64::new(0) }; CACHE_WAYS];
    let entries = SIGNATURE_CACHE.load(Relaxed);
    if entries.is_null() {
        return &NOTHING;
    }
    let set = (signature as usize & (CACHE_ENTRIES / CACHE_WAYS - 1)) * CACHE_WAYS;
    // SAFETY: `SiteTable::start` mapped CACHE_ENTRIES entries, and the set lies within them.
    unsafe { &*entries.add(set).cast() }
}

/// The entry of a set that holds a signature, 0 if none does.
#[inline(always)]
fn find_in(set: &[AtomicU64; CACHE_WAYS], signature: u64) -> u64 {
    let tag = signature & !CACHE_SITE;
    set.iter().map(|entry| entry.load(Relaxed)).find(|entry| entry & !CACHE_SITE == tag).unwrap_or(0)
}

/// Puts an entry into a set: at a free place, or in the place of any.
fn put_into(set: &[AtomicU64; CACHE_WAYS], entry: u64) {
    let free = set.iter().find(|place| place.load(Relaxed) == 0);
    free.unwrap_or(&set[crate::raw::tsc() as usize / 16 % CACHE_WAYS]).store(entry, Relaxed);
}

/// An open-addressing table of record numbers, each with the upper half of its hash: most records that are not looked
/// for are told apart without reading them. 0 is an empty slot.
struct Grown {
    slots: &'static mut [u64],
    used: usize,
}

/// The one table of a process.
pub struct SiteTable {
    lock: Lock,
    index: UnsafeCell<Index>,
    signatures: AtomicPtr<SignatureTable>,
    tables: UnsafeCell<[SignatureTable; 24]>,
    tables_used: AtomicU32,
    families: [AtomicU8; SITE_CHUNKS],
}

// SAFETY: `index` and `tables` are touched only under `lock`; the rest is atomic.
unsafe impl Sync for SiteTable {}

impl Grown {
    const fn empty() -> Self {
        Self { slots: &mut [], used: 0 }
    }

    /// Whether there is no room for so many more.
    fn is_full_for(&self, more: usize) -> bool {
        (self.used + more) * 2 > self.slots.len()
    }

    /// Starts to load the slot where a hash is looked for first.
    fn prefetch(&self, hash: u64) {
        if let Some(slot) = self.slots.get(hash as usize & self.slots.len().wrapping_sub(1)) {
            memory::prefetch(slot);
        }
    }

    /// The record that probably has this hash.
    fn likely(&self, hash: u64) -> Option<u32> {
        let slot = *self.slots.get(hash as usize & self.slots.len().wrapping_sub(1))?;
        (slot >> 32 == hash >> 32).then_some(slot as u32)
    }

    /// Finds the record for which `same` holds, or makes one with `make`. There must be room.
    fn find_or_make(
        &mut self,
        hash: u64,
        same: impl Fn(u32) -> bool,
        make: impl FnOnce() -> Option<u32>,
    ) -> Option<u32> {
        let tag = hash >> 32;
        let mask = self.slots.len().wrapping_sub(1);
        let mut at = hash as usize & mask;
        loop {
            let slot = self.slots.get_mut(at)?;
            if *slot == 0 {
                let made = make()?;
                *slot = tag << 32 | u64::from(made);
                self.used += 1;
                return Some(made);
            }
            if *slot >> 32 == tag && same(*slot as u32) {
                return Some(*slot as u32);
            }
            at = (at + 1) & mask;
        }
    }

    fn grow(&mut self, hash_of: impl Fn(u32) -> u64) -> Option<()> {
        let len = (self.slots.len() * 4).max(1 << 12);
        // SAFETY: u64 is valid for zero bytes.
        let fresh = unsafe { map_slice::<u64>(len, len >= 1 << 16) }?;
        for &slot in self.slots.iter().filter(|&&slot| slot != 0) {
            let mut at = hash_of(slot as u32) as usize & (len - 1);
            while let Some(free) = fresh.get_mut(at) {
                if *free == 0 {
                    *free = slot;
                    break;
                }
                at = (at + 1) & (len - 1);
            }
        }
        // SAFETY: nothing else refers to the old slots.
        unsafe { unmap_slice(core::mem::replace(&mut self.slots, fresh)) };
        Some(())
    }
}

fn mix(a: u64, b: u64) -> u64 {
    let x = (a ^ b.rotate_left(32)).wrapping_mul(MULTIPLIER);
    (x ^ x >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9) ^ x >> 32
}

impl SiteTable {
    /// An empty table; [`SiteTable::start`] before use.
    pub const fn new() -> Self {
        const NO_TABLE: SignatureTable = SignatureTable { entries: &[] };
        Self {
            lock: Lock::new(),
            index: UnsafeCell::new(Index {
                nodes: Grown::empty(),
                sites: Grown::empty(),
                signatures_used: 0,
                signatures_epoch: 0,
                open_chunk: [(0, 0); 3],
                last: [Step { pc: 0, hash: 0, epoch: 0, node: 0 }; LAST],
                last_len: 0,
            }),
            signatures: AtomicPtr::new(core::ptr::null_mut()),
            tables: UnsafeCell::new([NO_TABLE; 24]),
            tables_used: AtomicU32::new(0),
            families: [const { AtomicU8::new(0) }; SITE_CHUNKS],
        }
    }

    /// Makes the sites without a stack and the first signature table. False when there is no memory.
    pub fn start(&self, ledger: &Ledger) -> bool {
        let _guard = self.lock.lock();
        let Ok(entries) = memory::map_aligned(CACHE_ENTRIES * size_of::<AtomicU64>(), memory::HUGE_PAGE) else {
            return false;
        };
        SIGNATURE_CACHE.store(entries.cast(), Release);
        self.families[0].store(family::MIXED, Relaxed);
        ledger.publish(AreaId::Sites, COUNTERS_PER_CHUNK as u32);
        for function in AllocFn::ALL.iter().filter(|function| Self::bare_site(**function) != crate::runtime::OUR_SITE) {
            if let Some(site) = ledger.site(Self::bare_site(*function)) {
                site.function.store(*function as u32, Relaxed);
            }
        }
        self.replace_signatures(FIRST_SIGNATURES)
    }

    /// The site of a function without a stack. Those that allocate, and `free` itself, have one of their own.
    #[inline]
    pub fn bare_site(function: AllocFn) -> u32 {
        (function as u32 + 1).min(COUNTERS_PER_CHUNK as u32 - 2)
    }

    /// The family tag of a site.
    pub fn family(&self, site: u32) -> u8 {
        self.families.get(site as usize / COUNTERS_PER_CHUNK).map_or(family::MALLOC, |family| family.load(Relaxed))
    }

    /// The site that was remembered for an unwind signature.
    #[inline(always)]
    pub fn recall(&self, signature: u64) -> Option<u32> {
        let recent = &RECENT[signature as usize & (RECENT.len() - 1)];
        let mut entry = find_in(recent, signature);
        if entry == 0 {
            entry = find_in(cache_set(signature), signature);
            if entry == 0 {
                return None;
            }
            put_into(recent, entry);
        }
        Some((entry & CACHE_SITE) as u32)
    }

    /// Remembers the site of an unwind signature; what was remembered in its place is forgotten.
    pub fn remember(&self, signature: u64, site: u32) {
        put_into(cache_set(signature), signature & !CACHE_SITE | u64::from(site));
        let entries = SIGNATURE_CACHE.load(Relaxed);
        if !entries.is_null() && REMEMBERED.fetch_add(1, Relaxed) == HUGE_AFTER {
            memory::collapse(entries as usize);
        }
    }

    /// The site that was entered for a stack hash.
    #[inline(always)]
    pub fn find(&self, signature: u64) -> Option<u32> {
        let table = self.signatures.load(Acquire);
        if table.is_null() {
            return None;
        }
        // SAFETY: tables are never freed or moved.
        let entries = unsafe { (*table).entries };
        let mask = entries.len().wrapping_sub(1);
        let mut at = signature as usize & mask;
        for _ in 0..MAX_PROBES {
            let entry = entries.get(at)?;
            let seen = entry.signature.load(Acquire);
            if seen == signature {
                let site = entry.site.load(Acquire);
                // The table may be emptied, and the place filled again, at this moment.
                return (entry.signature.load(Relaxed) == signature).then_some(site);
            }
            if seen == 0 {
                return None;
            }
            at = (at + 1) & mask;
        }
        None
    }

    /// Enters the site of a stack hash, which holds the unwinder's `epoch`.
    pub fn enter(&self, signature: u64, site: u32, epoch: u16) {
        let _guard = self.lock.lock();
        // SAFETY: under the lock.
        let index = unsafe { &mut *self.index.get() };
        let table = self.signatures.load(Acquire);
        if table.is_null() {
            return;
        }
        // SAFETY: tables are never freed or moved.
        let mut entries = unsafe { (*table).entries };
        if index.signatures_used * 2 > entries.len() && index.signatures_epoch != epoch {
            // Nothing is found any more of what was entered before a module went: the hashes hold the epoch.
            entries.iter().for_each(|entry| entry.signature.store(0, Release));
            (index.signatures_used, index.signatures_epoch) = (0, epoch);
        } else if index.signatures_used * 2 > entries.len() && entries.len() < 1 << 24 {
            if !self.replace_signatures(entries.len() * 4) {
                return;
            }
            // SAFETY: as above.
            entries = unsafe { (*self.signatures.load(Acquire)).entries };
        }
        if insert_signature(entries, signature, site) {
            index.signatures_used += 1;
        }
    }

    /// Makes a larger signature table, with the contents of the present one. Called under the lock.
    fn replace_signatures(&self, len: usize) -> bool {
        let number = self.tables_used.load(Relaxed) as usize;
        // SAFETY: called under the lock (or before any other thread exists).
        let tables = unsafe { &mut *self.tables.get() };
        // SAFETY: the entries are atomics of integers, valid for zero bytes.
        let (Some(slot), Some(entries)) = (tables.get_mut(number), unsafe { map_slice::<SignatureEntry>(len, false) })
        else {
            return false;
        };
        let entries: &'static [SignatureEntry] = entries;
        let present = self.signatures.load(Acquire);
        if !present.is_null() {
            // SAFETY: tables are never freed or moved.
            for entry in unsafe { (*present).entries } {
                let signature = entry.signature.load(Relaxed);
                if signature != 0 {
                    insert_signature(entries, signature, entry.site.load(Relaxed));
                }
            }
        }
        slot.entries = entries;
        self.tables_used.store(number as u32 + 1, Relaxed);
        self.signatures.store(slot, Release);
        true
    }

    /// The site for a stack, leaf first, and a function; makes it when it is new. `epoch_of` tells the module epoch
    /// of a return address. A site without a stack when the ledger is full; the loss is counted.
    pub fn intern(
        &self,
        ledger: &Ledger,
        frames: &[u64],
        function: AllocFn,
        flags: u32,
        epoch_of: impl Fn(u64) -> u32,
    ) -> u32 {
        self.intern_locked(ledger, frames, function, flags, epoch_of, self.lock.lock())
    }

    /// As [`SiteTable::intern`]; `None` when the table is locked, perhaps by the code that a signal handler interrupted.
    pub fn try_intern(
        &self,
        ledger: &Ledger,
        frames: &[u64],
        function: AllocFn,
        flags: u32,
        epoch_of: impl Fn(u64) -> u32,
    ) -> Option<u32> {
        let guard = self.lock.try_lock()?;
        Some(self.intern_locked(ledger, frames, function, flags, epoch_of, guard))
    }

    fn intern_locked(
        &self,
        ledger: &Ledger,
        frames: &[u64],
        function: AllocFn,
        flags: u32,
        epoch_of: impl Fn(u64) -> u32,
        _guard: LockGuard<'_>,
    ) -> u32 {
        // SAFETY: under the lock.
        let index = unsafe { &mut *self.index.get() };
        let leaf = intern_nodes(index, ledger, frames, epoch_of);
        if leaf == 0 && !frames.is_empty() {
            ledger.header().lost.nodes.fetch_add(1, Relaxed);
            return Self::bare_site(function);
        }
        let Index { sites, open_chunk, .. } = index;
        let hash_of = |number| {
            ledger.site(number).map_or(0, |site| {
                let tail = u64::from(site.function.load(Relaxed)) | u64::from(site.flags.load(Relaxed)) << 8;
                mix(u64::from(site.leaf.load(Relaxed)), tail)
            })
        };
        if sites.is_full_for(1) && sites.grow(hash_of).is_none() {
            ledger.header().lost.sites.fetch_add(1, Relaxed);
            return Self::bare_site(function);
        }
        let made = sites.find_or_make(
            mix(u64::from(leaf), function as u64 | u64::from(flags) << 8),
            |number| {
                ledger.site(number).is_some_and(|site| {
                    site.leaf.load(Relaxed) == leaf
                        && site.function.load(Relaxed) == function as u32
                        && site.flags.load(Relaxed) == flags
                })
            },
            || {
                let number = self.next_site(ledger, open_chunk, function.family())?;
                let site = ledger.site(number)?;
                site.frames.store(frames.len() as u32, Relaxed);
                site.function.store(function as u32, Relaxed);
                site.flags.store(flags, Relaxed);
                site.leaf.store(leaf, Release);
                Some(number)
            },
        );
        made.unwrap_or_else(|| {
            ledger.header().lost.sites.fetch_add(1, Relaxed);
            Self::bare_site(function)
        })
    }

    /// The next unused site number of a family.
    fn next_site(&self, ledger: &Ledger, open: &mut [(u32, u32); 3], alloc_family: AllocFamily) -> Option<u32> {
        let tag = family::of(alloc_family);
        let (next, end) = open.get_mut(tag as usize)?;
        if *next == *end {
            let first = ledger.claim(AreaId::Sites, COUNTERS_PER_CHUNK as u32)?;
            if first > crate::blocks::MAX_SITE - COUNTERS_PER_CHUNK as u32 {
                return None;
            }
            self.families.get(first as usize / COUNTERS_PER_CHUNK)?.store(tag, Relaxed);
            (*next, *end) = (first, first + COUNTERS_PER_CHUNK as u32);
        }
        *next += 1;
        Some(*next - 1)
    }

    /// Whether nobody has the table locked.
    pub fn is_open(&self) -> bool {
        self.lock.is_open()
    }

    /// Takes the lock for the time of a `fork`, so that the child's tables are whole.
    pub fn before_fork(&self) {
        self.lock.acquire();
    }

    /// Opens the lock that [`SiteTable::before_fork`] took; in the parent and in the child.
    pub fn after_fork(&self) {
        self.lock.release();
    }
}

impl Default for SiteTable {
    fn default() -> Self {
        Self::new()
    }
}

/// False when there is no room close by (the stack is then walked again each time) or it was there already.
fn insert_signature(entries: &[SignatureEntry], signature: u64, site: u32) -> bool {
    let mask = entries.len().wrapping_sub(1);
    let mut at = signature as usize & mask;
    for _ in 0..MAX_PROBES {
        let Some(entry) = entries.get(at) else { return false };
        let seen = entry.signature.load(Relaxed);
        if seen == signature {
            return false;
        }
        if seen == 0 {
            entry.site.store(site, Relaxed);
            let _ = entry.signature.compare_exchange(0, signature, AcqRel, Relaxed);
            return true;
        }
        at = (at + 1) & mask;
    }
    false
}

/// The hash of a stack from its outermost frame down to `pc`, from that of its caller.
#[inline]
fn chain(caller: u64, pc: u64, epoch: u32) -> u64 {
    mix(caller ^ u64::from(epoch) << 48, pc)
}

/// The node of the leaf of `frames`; 0 when the node area is full.
///
/// A node is found by the hash of the whole chain from the root, so the hashes of all frames are known before the first
/// is looked up, and the table's slots and the nodes that they name can be fetched side by side: a program with many
/// stacks has none of them in its cache.
fn intern_nodes(index: &mut Index, ledger: &Ledger, frames: &[u64], epoch_of: impl Fn(u64) -> u32) -> u32 {
    let Index { nodes, last, last_len, .. } = index;
    let Some(stack) = last.get_mut(..frames.len()) else { return 0 };
    // The outer frames are mostly those of the stack before: no need to look for them.
    let pairs = stack.iter().zip(frames.iter().rev()).take(*last_len);
    let common = pairs.take_while(|(step, pc)| step.pc == **pc).count();
    let (mut caller, mut parent) = match common.checked_sub(1).and_then(|depth| stack.get(depth)) {
        Some(step) => (step.hash, step.node),
        None => (0, 0),
    };
    *last_len = 0;
    if nodes.is_full_for(frames.len()) && nodes_grow(nodes, ledger).is_none() {
        return 0;
    }
    let fresh = stack.get_mut(common..).unwrap_or(&mut []);
    for (step, &pc) in fresh.iter_mut().zip(frames.iter().rev().skip(common)) {
        let epoch = epoch_of(pc);
        caller = chain(caller, pc, epoch);
        *step = Step { pc, hash: caller, epoch, node: 0 };
        nodes.prefetch(caller);
    }
    for step in &*fresh {
        if let Some(node) = nodes.likely(step.hash).and_then(|number| ledger.node(number)) {
            memory::prefetch(node);
        }
    }
    for step in fresh {
        let Step { pc, epoch, hash, .. } = *step;
        let found = nodes.find_or_make(
            hash,
            |number| {
                ledger.node(number).is_some_and(|node| {
                    node.pc.load(Relaxed) == pc
                        && node.parent.load(Relaxed) == parent
                        && node.epoch.load(Relaxed) == epoch
                })
            },
            || {
                // Only the lock's holder claims nodes, so the record is filled before anybody can see it by number.
                let number = ledger.claim(AreaId::Nodes, 1)?;
                let node = ledger.node(number)?;
                node.parent.store(parent, Relaxed);
                node.epoch.store(epoch, Relaxed);
                node.pc.store(pc, Release);
                Some(number)
            },
        );
        let Some(node) = found else { return 0 };
        step.node = node;
        parent = node;
    }
    *last_len = frames.len();
    parent
}

/// Makes room for more nodes. A node's hash is made again from its caller's, which has a smaller number.
#[cold]
#[inline(never)]
fn nodes_grow(nodes: &mut Grown, ledger: &Ledger) -> Option<()> {
    let used = ledger.used(AreaId::Nodes) as usize;
    // SAFETY: u64 is valid for zero bytes.
    let hashes = unsafe { map_slice::<u64>(used.max(1), false) }?;
    for number in 1..used {
        let Some(node) = ledger.node(number as u32) else { break };
        let caller = hashes.get(node.parent.load(Relaxed) as usize).copied().unwrap_or(0);
        if let Some(hash) = hashes.get_mut(number) {
            *hash = chain(caller, node.pc.load(Relaxed), node.epoch.load(Relaxed));
        }
    }
    let grown = nodes.grow(|number| hashes.get(number as usize).copied().unwrap_or(0));
    // SAFETY: nothing else refers to it.
    unsafe { unmap_slice(hashes) };
    grown
}

impl SiteTable {
    /// Forgets the stack that [`SiteTable::intern`] compares with: module epochs have changed.
    pub fn forget_last(&self) {
        let _guard = self.lock.lock();
        // SAFETY: under the lock.
        unsafe { (*self.index.get()).last_len = 0 };
    }
}
