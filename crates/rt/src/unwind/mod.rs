//! Complete call stacks of the running thread, without frame pointers, from inside the target.
//!
//! Everything here may run in any thread, inside hooks of malloc and in signal handlers: no allocation, no locks, no
//! panics, bounded loops, and no load from an address that is not known to be readable. errno is left alone.
//!
//! # How a stack becomes cheap
//!
//! The rule that leads from one return address to the next is a function of the return address alone (`.eh_frame`).
//! A full walk therefore reads a *layout*: the stack slots of the return addresses, and the slots of those saved
//! registers that some frame computes its CFA from. If a later call finds the same return addresses in the same slots,
//! and the same register values relative to rsp, a full walk would take the same steps (induction from the leaf), so
//! it need not be taken. [`Unwinder::recall`] loads all slots of a layout that this thread saw before for
//! (return address, rsp) in parallel and mixes them with the layout itself into one 64-bit number, the signature. The
//! caller maps signatures to stacks, and enters a signature only with the frames that [`Unwinder::walk`] returned
//! beside it: a hit is then right up to a collision of 64 bits. A few layouts are kept for each key (recursive programs
//! reach the same place over different paths); `recall` offers their signatures until the caller knows one.
//!
//! ```text
//!   hook: rsp, rbp ── recall() ── caller's table knows a signature ──> stack id        (the hot path)
//!                        │ no
//!                        └──> walk() ──> frames, signature ──> intern frames, enter signature
//! ```
//!
//! # Use in a hook
//!
//! ```ignore
//! static UNWINDER: Unwinder = Unwinder::new();
//! // once, at start: dlsym(RTLD_DEFAULT, ..) of both; either may be null
//! UNWINDER.install(ObjectFinder::new(dl_find_object, dl_iterate_phdr));
//! // once per thread: zeroed pages
//! let cache: *const ThreadCache = mmap(ThreadCache::SIZE_BYTES) as *const ThreadCache;
//! (*cache).set_stack(stack_of(rsp));   // or a range that the caller knows; without it, walks are right but slow
//! // at every event; rsp as at the entry of the hook (it points at the return address)
//! let regs = Registers { rsp, rbp };
//! let site = match UNWINDER.recall(cache, regs, |signature| sites.get(signature)) {
//!     Some(site) => site,
//!     None => UNWINDER.walk(cache, regs, |walked| {
//!         let site = sites.intern(walked.frames, walked.stack_hash);
//!         if let Some(s) = walked.signature { sites.enter(s, site); }
//!         site
//!     }),
//! };
//! ```
//!
//! Between entering the hook and the last call for this event nothing below `rsp` matters, but the hook's caller must
//! still be suspended in the hook (its stack untouched).
//!
//! Frames are return addresses: subtract one to look up the calling instruction. The frame that a signal interrupted
//! is stored as its pc plus one, so that this holds for every entry.
//!
//! Source: System V ABI for AMD64 (DWARF register numbers, `.eh_frame`), Linux `struct rt_sigframe`, glibc `dlfo.h`.

mod cfi;
mod layout;
mod maps;
mod objects;
mod rules;
mod stack;
mod walk;

pub use layout::{Layout, ThreadCache};
pub use maps::stack_of;
pub use objects::{ObjectFinder, ObjectInfo};
pub use stack::StackRange;

use core::num::NonZeroU64;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The most frames that a walk returns; deeper stacks keep this many from the leaf and are [`WalkEnd::TooDeep`].
pub const MAX_FRAMES: usize = 128;

/// What a hook knows of its caller at entry: all that the calling convention leaves in known places.
#[derive(Clone, Copy, Debug)]
pub struct Registers {
    /// The stack pointer, pointing at the hook's return address.
    pub rsp: u64,
    /// The frame pointer register, whatever the caller uses it for.
    pub rbp: u64,
}

/// Why a walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkEnd {
    /// The outermost frame was reached.
    Complete,
    /// More than [`MAX_FRAMES`] frames: the leaf-most are kept.
    TooDeep,
    /// No unwind information (code made at run time, objects without `.eh_frame_hdr`), or none that we understand.
    NoRule,
    /// The rules led to memory that is not this stack.
    BadStack,
}

/// What [`Unwinder::walk`] found.
#[derive(Clone, Copy, Debug)]
pub struct Walked<'a> {
    /// The return addresses, leaf first; at least 1, at most [`MAX_FRAMES`].
    pub frames: &'a [u64],
    /// What [`Unwinder::recall`] offers for this stack until the layout is replaced; `None` if it cannot.
    pub signature: Option<NonZeroU64>,
    /// A hash of the frames alone: the same in every thread, and for every layout.
    pub stack_hash: u64,
    /// Whether the stack is whole.
    pub end: WalkEnd,
}

impl<'a> Walked<'a> {
    fn of(frames: &'a [u64], end: WalkEnd) -> Self {
        Self { frames, signature: None, stack_hash: layout::stack_hash(frames), end }
    }
}

/// Losses and work since the start; each may lag by what other threads do now.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Full walks taken.
    pub walks: u64,
    /// Walks that ended as [`WalkEnd::TooDeep`].
    pub too_deep: u64,
    /// Walks that ended as [`WalkEnd::NoRule`].
    pub no_rule: u64,
    /// Walks that ended as [`WalkEnd::BadStack`].
    pub bad_stack: u64,
    /// Walks whose layout could not be remembered (signal frames, foreign stacks, interrupted hooks).
    pub unremembered: u64,
    /// Frames that a walk took over from the walk before it, verified, without a rule.
    pub reused_frames: u64,
    /// Unwind rules computed from `.eh_frame`.
    pub rules_computed: u64,
    /// Unwind rules dropped for others: the table was too small.
    pub rules_evicted: u64,
}

/// The part that all threads share: the rule table, where to find objects, the epoch, and counters.
///
/// About 1 MiB of zeroes when unused; meant to be a `static`.
pub struct Unwinder {
    pub(crate) rules: rules::RuleTable,
    finder: objects::FinderCell,
    epoch: AtomicU32,
    counts: Counts,
}

struct Counts {
    walks: AtomicU64,
    too_deep: AtomicU64,
    no_rule: AtomicU64,
    bad_stack: AtomicU64,
    unremembered: AtomicU64,
    reused_frames: AtomicU64,
}

impl Unwinder {
    /// An unwinder that finds nothing until [`Unwinder::install`].
    #[must_use]
    pub const fn new() -> Self {
        Self {
            rules: rules::RuleTable::new(),
            finder: objects::FinderCell::new(),
            epoch: AtomicU32::new(0),
            counts: Counts::new(),
        }
    }

    /// Says how to find the object that holds a pc; call it once before the first walk.
    pub fn install(&self, finder: ObjectFinder) {
        self.finder.set(finder);
    }

    /// Forgets every rule, layout and signature: call it when code has been unloaded (after `dlclose`), with a number
    /// that was not used before (it may wrap after 65,536).
    pub fn set_epoch(&self, epoch: u16) {
        self.epoch.store(u32::from(epoch), Ordering::Release);
    }

    /// The current epoch.
    #[inline(always)]
    #[must_use]
    pub fn epoch(&self) -> u16 {
        self.epoch.load(Ordering::Relaxed) as u16
    }

    /// Offers `lookup` each number that may stand for the current stack (mostly one), until it knows one and answers
    /// `Some`; `None` asks for a walk.
    ///
    /// # Safety
    /// `cache` is this thread's (zeroed at first, see [`ThreadCache`]), `regs` are those at the entry of a hook whose
    /// caller is still suspended in it. `lookup` does not call the unwinder.
    #[inline(always)]
    #[must_use]
    pub unsafe fn recall<T>(
        &self,
        cache: *const ThreadCache,
        regs: Registers,
        lookup: impl FnMut(NonZeroU64) -> Option<T>,
    ) -> Option<T> {
        // SAFETY: passed on.
        unsafe { layout::recall(&*cache, self.epoch(), regs, lookup) }
    }

    /// The first number that [`Unwinder::recall`] would offer.
    ///
    /// # Safety
    /// As for [`Unwinder::recall`].
    #[inline(always)]
    #[must_use]
    pub unsafe fn signature(&self, cache: *const ThreadCache, regs: Registers) -> Option<NonZeroU64> {
        // SAFETY: passed on.
        unsafe { self.recall(cache, regs, Some) }
    }

    /// Walks the whole stack by the unwind rules, remembers the layout, and gives what it found to `then`. The frames lie
    /// in the thread's cache: a hook may run on a signal stack of a few KiB.
    ///
    /// # Safety
    /// As for [`Unwinder::recall`].
    #[cold]
    #[inline(never)]
    pub unsafe fn walk<R>(&self, cache: *const ThreadCache, regs: Registers, then: impl FnOnce(Walked<'_>) -> R) -> R {
        let count = |walked: Walked<'_>| {
            self.counts.count(&walked);
            then(walked)
        };
        // SAFETY: passed on.
        unsafe { walk::walk_and_remember(self, &*cache, regs, count) }
    }

    /// The same where a hook of this thread was interrupted: uses the part of the cache that is for this, and remembers
    /// nothing.
    ///
    /// # Safety
    /// As for [`Unwinder::recall`].
    #[cold]
    #[inline(never)]
    pub unsafe fn walk_interrupting<R>(
        &self,
        cache: *const ThreadCache,
        regs: Registers,
        then: impl FnOnce(Walked<'_>) -> R,
    ) -> R {
        // SAFETY: passed on.
        unsafe { walk::walk_interrupting(self, &*cache, regs, then) }
    }

    /// Walks the whole stack from nothing and remembers nothing: the oracle for [`Unwinder::recall`]. Takes 10 KiB of
    /// stack.
    ///
    /// # Safety
    /// As for [`Unwinder::recall`].
    #[inline(never)]
    pub unsafe fn walk_afresh<R>(
        &self,
        cache: *const ThreadCache,
        regs: Registers,
        then: impl FnOnce(Walked<'_>) -> R,
    ) -> R {
        // SAFETY: passed on.
        unsafe { walk::walk_afresh(self, &*cache, regs, then) }
    }

    /// What was done and lost so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let get = |a: &AtomicU64| a.load(Ordering::Relaxed);
        Counters {
            walks: get(&self.counts.walks),
            too_deep: get(&self.counts.too_deep),
            no_rule: get(&self.counts.no_rule),
            bad_stack: get(&self.counts.bad_stack),
            unremembered: get(&self.counts.unremembered),
            reused_frames: get(&self.counts.reused_frames),
            rules_computed: self.rules.computed(),
            rules_evicted: self.rules.evicted(),
        }
    }
}

impl Default for Unwinder {
    fn default() -> Self {
        Self::new()
    }
}

impl Counts {
    const fn new() -> Self {
        Self {
            walks: AtomicU64::new(0),
            too_deep: AtomicU64::new(0),
            no_rule: AtomicU64::new(0),
            bad_stack: AtomicU64::new(0),
            unremembered: AtomicU64::new(0),
            reused_frames: AtomicU64::new(0),
        }
    }

    fn count(&self, walked: &Walked<'_>) {
        self.walks.fetch_add(1, Ordering::Relaxed);
        match walked.end {
            WalkEnd::Complete => {}
            WalkEnd::TooDeep => _ = self.too_deep.fetch_add(1, Ordering::Relaxed),
            WalkEnd::NoRule => _ = self.no_rule.fetch_add(1, Ordering::Relaxed),
            WalkEnd::BadStack => _ = self.bad_stack.fetch_add(1, Ordering::Relaxed),
        }
        if walked.signature.is_none() {
            self.unremembered.fetch_add(1, Ordering::Relaxed);
        }
    }
}
