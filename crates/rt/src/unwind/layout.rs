//! The layouts that a thread remembers, and the signature computed from one.
//!
//! A layout is entered by a walk that stayed on the thread's own stack and read exactly its slots. It is used only with
//! the same rsp, so its slots lie on the same stack again. What is remembered of another thread must not be used:
//! [`ThreadCache::set_stack`] empties the cache.
//!
//! A signal handler may interrupt anything here and run the same code in the same thread. `busy` holds the rsp of the
//! hook that is at work; the handler sees it and leaves the cache alone. A handler that leaves by `siglongjmp` leaves
//! `busy` behind, but then a later hook finds an rsp that is not below it, and takes over.

use core::cell::{Cell, UnsafeCell};
use core::num::NonZeroU64;
use core::sync::atomic::{AtomicU64, Ordering, compiler_fence};

use super::stack::StackRange;
use super::walk::{Scratch, Spare};
use super::{MAX_FRAMES, Registers};

const LOG2_SETS: u32 = 8;
const SETS: usize = 1 << LOG2_SETS;
const WAYS: usize = 4;

/// How many slots a layout holds: return addresses, in fours, then saved registers.
const SLOTS: usize = 112;

/// Return addresses are loaded in groups of this many; the last group is filled up with slot 0.
const GROUP: usize = 4;

/// One remembered layout: 256 bytes, of which a stack of 16 frames uses the first 64.
#[repr(C, align(64))]
pub struct Layout {
    /// The rsp that it is for; 0: nothing here, or being written.
    rsp: AtomicU64,
    /// First return address and epoch.
    key: Cell<u64>,
    /// Hash of what the slots are, and the epoch.
    seed: Cell<u64>,
    return_addresses: Cell<u8>,
    saved_registers: Cell<u8>,
    /// All ones if some frame's CFA comes from the live rbp.
    rbp_mask: Cell<i8>,
    /// Distances from rsp, in words.
    slots: UnsafeCell<[u16; SLOTS]>,
}

/// What one thread remembers. Zeroed memory is a valid, empty one: map it, and give it back when the thread is gone.
///
/// Touched as it is used: a thread with few stacks uses a few pages.
#[repr(C, align(64))]
pub struct ThreadCache {
    busy: AtomicU64,
    spare_busy: AtomicU64,
    own_low: Cell<u64>,
    own_high: Cell<u64>,
    next_way: Cell<u32>,
    /// For each set, which way to try first.
    first_ways: [Cell<u8>; SETS],
    scratch: UnsafeCell<Scratch>,
    spare: UnsafeCell<Spare>,
    /// The layout of the walk at hand.
    draft: Layout,
    layouts: [[Layout; WAYS]; SETS],
}

const MULTIPLIERS: [u64; MAX_FRAMES + SLOTS] = multipliers();

const fn multipliers() -> [u64; MAX_FRAMES + SLOTS] {
    let mut table = [0; MAX_FRAMES + SLOTS];
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut i = 0;
    while i < table.len() {
        // SplitMix64.
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        table[i] = (z ^ z >> 31) | 1;
        i += 1;
    }
    table
}

#[inline(always)]
fn finish(sum: u64) -> NonZeroU64 {
    let x = (sum ^ sum >> 32).wrapping_mul(0x9FB2_1C65_1E98_DF25);
    NonZeroU64::new(x ^ x >> 29).unwrap_or(NonZeroU64::MIN)
}

/// A hash of the frames alone.
pub(super) fn stack_hash(frames: &[u64]) -> u64 {
    let sum = frames.iter().zip(&MULTIPLIERS).fold(0u64, |h, (f, m)| h.wrapping_add(f.wrapping_mul(*m)));
    finish(sum.wrapping_add(frames.len() as u64)).get()
}

impl Layout {
    /// Loads all slots and mixes them.
    ///
    /// # Safety
    /// `self` was remembered for `regs.rsp` on this thread's stack, whose frames from rsp up are alive.
    #[inline(always)]
    unsafe fn signature(&self, regs: Registers) -> NonZeroU64 {
        let slots = self.slots.get().cast::<u16>();
        let count = usize::from(self.return_addresses.get());
        // SAFETY: `remember` wrote `return_addresses` rounded up, then `saved_registers` slots, at most `SLOTS` in all,
        // each on the stack (this function's contract).
        let word = |i: usize| unsafe { *(regs.rsp as *const u64).add(usize::from(*slots.add(i))) };
        // SAFETY: indices are below `SLOTS` (return addresses), or below MAX_FRAMES + SLOTS (saved registers).
        let multiplier = |i: usize| unsafe { *MULTIPLIERS.get_unchecked(i) };
        let mut sum = self.seed.get();
        // Two sums: the loads and the multiplications of a group do not wait for those of the group before.
        let mut second = 0u64;
        let mut i = 0;
        while i < count {
            for k in i..i + GROUP {
                let product = word(k).wrapping_mul(multiplier(k));
                if k % 2 == 0 { sum = sum.wrapping_add(product) } else { second = second.wrapping_add(product) }
            }
            i += GROUP;
        }
        sum = sum.wrapping_add(second);
        let live = regs.rbp.wrapping_sub(regs.rsp).wrapping_mul(0xC2B2_AE3D_27D4_EB4F);
        sum = sum.wrapping_add(live & i64::from(self.rbp_mask.get()) as u64);
        for k in 0..usize::from(self.saved_registers.get()) {
            let relative = word(i + k).wrapping_sub(regs.rsp);
            sum = sum.wrapping_add(relative.wrapping_mul(multiplier(MAX_FRAMES + k)));
        }
        finish(sum)
    }
}

impl Layout {
    /// Takes over what a walk from `rsp` read; `None` if it does not fit.
    ///
    /// # Safety
    /// Nobody else uses the layout.
    unsafe fn fill(&self, key: u64, rsp: u64, read: &Read<'_>) -> Option<()> {
        // SAFETY: this function's contract.
        let slots = unsafe { &mut *self.slots.get() };
        let count = read.return_address_slots.len();
        let rounded = count.next_multiple_of(GROUP);
        let mut live_rbp = false;
        // All distances at once: a bit above the 16 of a distance in words means that one is too far.
        let mut bits = 0;
        let mut sum = 0u64;
        let (returns, saved) = slots.split_at_mut_checked(rounded)?;
        for ((slot, &address), multiplier) in returns.iter_mut().zip(read.return_address_slots).zip(&MULTIPLIERS) {
            let distance = address.wrapping_sub(rsp);
            bits |= distance;
            *slot = (distance / 8) as u16;
            sum = sum.wrapping_add(distance.wrapping_mul(*multiplier));
        }
        returns.get_mut(count..)?.fill(0);
        let mut saved_count = 0;
        for &address in read.used_at {
            if address == 0 {
                live_rbp = true;
                continue;
            }
            let distance = address.wrapping_sub(rsp);
            bits |= distance;
            *saved.get_mut(saved_count)? = (distance / 8) as u16;
            sum = sum.wrapping_add(distance.wrapping_mul(*MULTIPLIERS.get(MAX_FRAMES + saved_count)?));
            saved_count += 1;
        }
        if bits >> 19 != 0 {
            return None;
        }
        let counts = (count as u64) << 16 | (saved_count as u64) << 8 | u64::from(live_rbp);
        self.key.set(key);
        // The key's upper 16 bits are the epoch; what it holds of the return address does no harm.
        self.seed.set(finish(sum.wrapping_add(finish(key ^ counts.rotate_left(16)).get())).get());
        self.return_addresses.set(count as u8);
        self.saved_registers.set(saved_count as u8);
        self.rbp_mask.set(-i8::from(live_rbp));
        Some(())
    }

    /// Takes over all but the rsp.
    ///
    /// # Safety
    /// Nobody else uses the layouts.
    unsafe fn copy_from(&self, other: &Self) {
        self.key.set(other.key.get());
        self.seed.set(other.seed.get());
        self.return_addresses.set(other.return_addresses.get());
        self.saved_registers.set(other.saved_registers.get());
        self.rbp_mask.set(other.rbp_mask.get());
        let used =
            usize::from(self.return_addresses.get()).next_multiple_of(GROUP) + usize::from(self.saved_registers.get());
        // SAFETY: this function's contract.
        let (to, from) = unsafe { (&mut *self.slots.get(), &*other.slots.get()) };
        if let (Some(to), Some(from)) = (to.get_mut(..used), from.get(..used)) {
            to.copy_from_slice(from);
        }
    }
}

/// What a walk read, in the order that it read it.
pub(super) struct Read<'a> {
    pub(super) return_address_slots: &'a [u64],
    /// Addresses of the saved registers that it used; 0 for the live rbp.
    pub(super) used_at: &'a [u64],
}

#[inline(always)]
fn key(return_address: u64, epoch: u16) -> u64 {
    return_address ^ u64::from(epoch) << 48
}

/// See [`super::Unwinder::recall`].
///
/// # Safety
/// As there.
#[inline(always)]
pub(super) unsafe fn recall<T>(
    cache: &ThreadCache,
    epoch: u16,
    regs: Registers,
    mut lookup: impl FnMut(NonZeroU64) -> Option<T>,
) -> Option<T> {
    if cache.busy.load(Ordering::Relaxed) != 0 {
        return None;
    }
    cache.busy.store(regs.rsp, Ordering::Relaxed);
    compiler_fence(Ordering::SeqCst);
    // SAFETY: the hook's return address is there.
    let return_address = unsafe { *(regs.rsp as *const u64) };
    let key = key(return_address, epoch);
    let (set, first) = cache.set(return_address, regs.rsp);
    // The way that was right last time comes first.
    // SAFETY: masked; remembered for this rsp, and the stack is alive by the caller's contract.
    let found = unsafe { recall_way(set.get_unchecked(usize::from(first.get()) % WAYS), key, regs, &mut lookup) };
    let found = match found {
        // SAFETY: as above.
        None => unsafe { recall_elsewhere(set, first, key, regs, &mut lookup) },
        found => found,
    };
    compiler_fence(Ordering::SeqCst);
    cache.busy.store(0, Ordering::Relaxed);
    found
}

/// The stack's site, if this layout is the stack's.
///
/// # Safety
/// As for [`Layout::signature`], if the layout was remembered for `regs.rsp`.
#[inline(always)]
unsafe fn recall_way<T>(
    layout: &Layout,
    key: u64,
    regs: Registers,
    lookup: &mut impl FnMut(NonZeroU64) -> Option<T>,
) -> Option<T> {
    if layout.rsp.load(Ordering::Relaxed) != regs.rsp || layout.key.get() != key {
        return None;
    }
    // SAFETY: this function's contract.
    lookup(unsafe { layout.signature(regs) })
}

/// As [`recall_way`] for the ways that were not right last time.
///
/// # Safety
/// As there.
#[cold]
#[inline(never)]
unsafe fn recall_elsewhere<T>(
    set: &[Layout; WAYS],
    first: &Cell<u8>,
    key: u64,
    regs: Registers,
    lookup: &mut impl FnMut(NonZeroU64) -> Option<T>,
) -> Option<T> {
    let tried = usize::from(first.get()) % WAYS;
    for (way, layout) in set.iter().enumerate().filter(|&(way, _)| way != tried) {
        // SAFETY: this function's contract.
        if let Some(found) = unsafe { recall_way(layout, key, regs, lookup) } {
            first.set(way as u8);
            return Some(found);
        }
    }
    None
}

impl ThreadCache {
    /// How much to map.
    pub const SIZE_BYTES: usize = size_of::<Self>();

    /// Says which stack the thread runs on. Forgets everything if that is not the one it was.
    pub fn set_stack(&self, range: StackRange) {
        if self.own() == range {
            return;
        }
        for layout in self.layouts.as_flattened() {
            // Reading first keeps untouched pages untouched.
            if layout.rsp.load(Ordering::Relaxed) != 0 {
                layout.rsp.store(0, Ordering::Relaxed);
            }
        }
        self.own_low.set(range.low);
        self.own_high.set(range.high);
        self.busy.store(0, Ordering::Relaxed);
    }

    /// The stack that [`ThreadCache::set_stack`] named last; empty if it never did.
    #[must_use]
    pub fn own(&self) -> StackRange {
        StackRange { low: self.own_low.get(), high: self.own_high.get() }
    }

    #[inline(always)]
    fn set(&self, return_address: u64, rsp: u64) -> (&[Layout; WAYS], &Cell<u8>) {
        let mixed = (return_address ^ rsp << 20).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let index = (mixed >> (64 - LOG2_SETS)) as usize & (SETS - 1);
        // SAFETY: masked.
        unsafe { (self.layouts.get_unchecked(index), self.first_ways.get_unchecked(index)) }
    }

    /// Takes the cache for a walk that starts at `rsp`; `None` if an interrupted hook of this thread has it.
    ///
    /// # Safety
    /// The caller is the thread that the cache belongs to, and drops the claim before it returns to its caller.
    pub(super) unsafe fn claim(&self, rsp: u64) -> Option<Claim<'_>> {
        let claim = Claim::take(self, &self.busy, rsp)?;
        // Nobody was interrupted, so whoever had the spare is gone.
        self.spare_busy.store(0, Ordering::Relaxed);
        Some(claim)
    }

    /// Takes the part that is for handlers which interrupted a hook.
    ///
    /// # Safety
    /// As for [`ThreadCache::claim`].
    pub(super) unsafe fn claim_spare(&self, rsp: u64) -> Option<Claim<'_>> {
        Claim::take(self, &self.spare_busy, rsp)
    }

    /// Remembers what a walk from `regs` read and returns its signature; `None` if it does not fit.
    ///
    /// # Safety
    /// The caller holds the claim. All slots lie on the thread's own stack, not below rsp, and its frames are alive.
    pub(super) unsafe fn remember(&self, epoch: u16, regs: Registers, read: &Read<'_>) -> Option<NonZeroU64> {
        // SAFETY: the hook's return address is there.
        let return_address = unsafe { *(regs.rsp as *const u64) };
        let key = key(return_address, epoch);
        let (set, _) = self.set(return_address, regs.rsp);
        // SAFETY: the claim keeps other users away.
        unsafe { self.draft.fill(key, regs.rsp, read) }?;
        let same = set.iter().find(|l| {
            l.rsp.load(Ordering::Relaxed) == regs.rsp && l.key.get() == key && l.seed.get() == self.draft.seed.get()
        });
        let layout = match same {
            Some(layout) => layout,
            None => {
                let layout = self.victim(set)?;
                layout.rsp.store(0, Ordering::Relaxed);
                compiler_fence(Ordering::SeqCst);
                // SAFETY: as above.
                unsafe { layout.copy_from(&self.draft) };
                compiler_fence(Ordering::SeqCst);
                layout.rsp.store(regs.rsp, Ordering::Relaxed);
                layout
            }
        };
        // SAFETY: remembered for this rsp; the stack is alive by the caller's contract.
        Some(unsafe { layout.signature(regs) })
    }

    /// An empty entry, or each in turn.
    fn victim<'s>(&self, set: &'s [Layout; WAYS]) -> Option<&'s Layout> {
        set.iter().find(|l| l.rsp.load(Ordering::Relaxed) == 0).or_else(|| {
            let turn = self.next_way.get();
            self.next_way.set(turn.wrapping_add(1));
            set.get(turn as usize % WAYS)
        })
    }
}

/// The right to change the part of the cache that `flag` guards.
pub(super) struct Claim<'a> {
    cache: &'a ThreadCache,
    flag: &'a AtomicU64,
}

impl<'a> Claim<'a> {
    fn take(cache: &'a ThreadCache, flag: &'a AtomicU64, rsp: u64) -> Option<Self> {
        let busy = flag.load(Ordering::Relaxed);
        let on_own = cache.own().contains(rsp);
        if busy != 0 && !(on_own && rsp >= busy) {
            return None;
        }
        flag.store(if on_own { rsp } else { 1 }, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        Some(Self { cache, flag })
    }

    pub(super) fn scratch(&mut self) -> &mut Scratch {
        // SAFETY: `busy` keeps every other user away while the claim lives, and the claim is borrowed mutably.
        unsafe { &mut *self.cache.scratch.get() }
    }

    pub(super) fn spare(&mut self) -> &mut Spare {
        // SAFETY: as above, for `spare_busy`.
        unsafe { &mut *self.cache.spare.get() }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        compiler_fence(Ordering::SeqCst);
        self.flag.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty_cache() -> Box<ThreadCache> {
        let layout = std::alloc::Layout::new::<ThreadCache>();
        // SAFETY: all zero is a valid cache, by its contract.
        unsafe { Box::from_raw(std::alloc::alloc_zeroed(layout).cast()) }
    }

    /// A stack of 64 words, with return addresses at words 0, 3, 9, 20 and a saved register at word 5.
    struct Fake {
        words: Box<[u64; 64]>,
        rbp: u64,
    }

    const RETURNS: [usize; 4] = [0, 3, 9, 20];
    const SAVED: usize = 5;

    impl Fake {
        fn new() -> Self {
            let mut words = Box::new([0x1111u64; 64]);
            for (i, at) in RETURNS.into_iter().enumerate() {
                words[at] = 0x5555_0000 + i as u64 * 16;
            }
            let rsp = words.as_ptr() as u64;
            words[SAVED] = rsp + 160;
            Self { words, rbp: rsp + 64 }
        }

        fn regs(&self) -> Registers {
            Registers { rsp: self.words.as_ptr() as u64, rbp: self.rbp }
        }

        fn remember(&self, cache: &ThreadCache, returns: &[usize], live: bool) -> Option<NonZeroU64> {
            let rsp = self.regs().rsp;
            let slots: Vec<u64> = returns.iter().map(|w| rsp + *w as u64 * 8).collect();
            let used = [rsp + SAVED as u64 * 8, 0];
            let read = Read { return_address_slots: &slots, used_at: &used[..1 + usize::from(live)] };
            // SAFETY: the slots lie in `words`; nobody else uses the cache.
            unsafe { cache.remember(0, self.regs(), &read) }
        }

        fn offered(&self, cache: &ThreadCache, epoch: u16) -> Vec<NonZeroU64> {
            let mut all = Vec::new();
            // SAFETY: as above.
            let _: Option<()> = unsafe {
                recall(cache, epoch, self.regs(), |s| {
                    all.push(s);
                    None
                })
            };
            all
        }
    }

    #[test]
    fn a_signature_changes_with_everything_that_a_walk_depends_on() {
        let cache = empty_cache();
        let mut fake = Fake::new();
        let first = fake.remember(&cache, &RETURNS, true).expect("fits");
        assert_eq!(fake.offered(&cache, 0), [first]);
        for word in 1..64 {
            let old = fake.words[word];
            fake.words[word] ^= 1 << 12;
            let matters = RETURNS.contains(&word) || word == SAVED;
            assert_eq!(fake.offered(&cache, 0)[0] != first, matters, "word {word}");
            fake.words[word] = old;
        }
        fake.rbp += 8;
        assert_ne!(fake.offered(&cache, 0), [first], "the live rbp");
        fake.rbp -= 8;
        assert_eq!(fake.offered(&cache, 1), [], "another epoch");
        fake.words[0] ^= 16;
        assert_eq!(fake.offered(&cache, 0), [], "another caller");
    }

    #[test]
    fn layouts_of_one_key_are_offered_beside_each_other() {
        let cache = empty_cache();
        let fake = Fake::new();
        let shorter = fake.remember(&cache, &RETURNS[..3], false).expect("fits");
        let longer = fake.remember(&cache, &RETURNS, false).expect("fits");
        let live = fake.remember(&cache, &RETURNS, true).expect("fits");
        assert_eq!(fake.remember(&cache, &RETURNS, false), Some(longer), "known already");
        assert!(shorter != longer && longer != live && shorter != live);
        let mut offered = fake.offered(&cache, 0);
        offered.sort_unstable();
        let mut expected = [shorter, longer, live];
        expected.sort_unstable();
        assert_eq!(offered, expected);
    }

    #[test]
    fn what_does_not_fit_is_not_remembered() {
        let cache = empty_cache();
        let fake = Fake::new();
        let rsp = fake.regs().rsp;
        let far = [rsp, rsp + (1 << 19)];
        let many = vec![rsp; SLOTS + 1];
        for slots in [&far[..], &many] {
            let read = Read { return_address_slots: slots, used_at: &[] };
            // SAFETY: nothing is read where nothing is remembered.
            assert_eq!(unsafe { cache.remember(0, fake.regs(), &read) }, None);
        }
        assert_eq!(fake.offered(&cache, 0), []);
    }

    #[test]
    fn an_interrupted_hook_keeps_the_cache_until_its_frame_is_gone() {
        let cache = empty_cache();
        cache.set_stack(StackRange { low: 0x1000, high: 0x9000 });
        // SAFETY: this thread's cache; each claim ends before the next step.
        unsafe {
            let outer = cache.claim(0x5000).expect("free");
            assert!(cache.claim(0x4000).is_none(), "a handler below");
            assert!(cache.claim(0x20000).is_none(), "a handler on another stack");
            let spare = cache.claim_spare(0x4000).expect("free");
            assert!(cache.claim_spare(0x3000).is_none(), "a handler in a handler");
            // Both are left by siglongjmp.
            core::mem::forget((outer, spare));
            let later = cache.claim(0x5000).expect("the frame is gone");
            assert!(cache.claim_spare(0x4000).is_some(), "and so is the handler's");
            drop(later);
            assert!(cache.claim(0x2000).is_some(), "free again");
        }
    }

    #[test]
    fn another_stack_empties_the_cache() {
        let cache = empty_cache();
        let fake = Fake::new();
        cache.set_stack(StackRange { low: 0, high: u64::MAX });
        let signature = fake.remember(&cache, &RETURNS, false).expect("fits");
        cache.set_stack(StackRange { low: 0, high: u64::MAX });
        assert_eq!(fake.offered(&cache, 0), [signature]);
        cache.set_stack(StackRange { low: 0, high: 0x7000_0000_0000 });
        assert_eq!(fake.offered(&cache, 0), []);
    }
}
