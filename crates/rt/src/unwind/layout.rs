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

const LOG2_SETS: u32 = 9;
const SETS: usize = 1 << LOG2_SETS;
const WAYS: usize = 2;

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
    scratch: UnsafeCell<Scratch>,
    spare: UnsafeCell<Spare>,
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
        let mut i = 0;
        while i < count {
            for k in i..i + GROUP {
                sum = sum.wrapping_add(word(k).wrapping_mul(multiplier(k)));
            }
            i += GROUP;
        }
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

/// See [`super::Unwinder::signature`].
///
/// # Safety
/// As there.
#[inline(always)]
pub(super) unsafe fn signature(cache: &ThreadCache, epoch: u16, regs: Registers) -> Option<NonZeroU64> {
    if cache.busy.load(Ordering::Relaxed) != 0 {
        return None;
    }
    cache.busy.store(regs.rsp, Ordering::Relaxed);
    compiler_fence(Ordering::SeqCst);
    // SAFETY: the hook's return address is there.
    let return_address = unsafe { *(regs.rsp as *const u64) };
    let key = key(return_address, epoch);
    let mut found = None;
    for layout in cache.set(return_address, regs.rsp) {
        if layout.rsp.load(Ordering::Relaxed) == regs.rsp && layout.key.get() == key {
            // SAFETY: remembered for this rsp; the stack is alive by the caller's contract.
            found = Some(unsafe { layout.signature(regs) });
            break;
        }
    }
    compiler_fence(Ordering::SeqCst);
    cache.busy.store(0, Ordering::Relaxed);
    found
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
    fn set(&self, return_address: u64, rsp: u64) -> &[Layout; WAYS] {
        let mixed = (return_address ^ rsp << 20).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let index = (mixed >> (64 - LOG2_SETS)) as usize & (SETS - 1);
        // SAFETY: masked.
        unsafe { self.layouts.get_unchecked(index) }
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
        let layout = self.victim(self.set(return_address, regs.rsp), regs.rsp, key)?;
        layout.rsp.store(0, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        // SAFETY: the claim keeps other users away.
        unsafe { layout.fill(key, regs.rsp, read) }?;
        compiler_fence(Ordering::SeqCst);
        layout.rsp.store(regs.rsp, Ordering::Relaxed);
        // SAFETY: just remembered for this rsp; the stack is alive by the caller's contract.
        Some(unsafe { layout.signature(regs) })
    }

    /// The entry for the same key, or an empty one, or each in turn.
    fn victim<'s>(&self, set: &'s [Layout; WAYS], rsp: u64, key: u64) -> Option<&'s Layout> {
        let same = set.iter().find(|l| l.rsp.load(Ordering::Relaxed) == rsp && l.key.get() == key);
        let empty = || set.iter().find(|l| l.rsp.load(Ordering::Relaxed) == 0);
        same.or_else(empty).or_else(|| {
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
