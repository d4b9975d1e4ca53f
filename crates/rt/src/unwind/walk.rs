//! The full walk: from the hook's return address to the outermost frame, rule by rule.
//!
//! Cold, but it runs at every event whose stack is new, so rules come from the shared table, and rbp is followed by
//! address and loaded only where a frame's CFA needs it. Other registers are searched for only when a CFA needs one:
//! from the frame back towards the leaf, the first callee that saved it. What no frame saved is in the live register,
//! which a hook cannot know: then the walk ends, and says so.
//!
//! A walk that arrives at a slot, a return address and a place of rbp where the thread's last walk also was takes the
//! rest from it: as long as the return addresses further up are still in their slots, and the registers that CFAs were
//! computed from still have their values, the rules would lead to the same slots. Those loads do not wait for each
//! other. Where something differs, the rules go on.

use super::cfi::{self, Kind, Rule, Saved, Workspace};
use super::layout::{Read, ThreadCache};
use super::objects::ObjectFinder;
use super::stack::View;
use super::{MAX_FRAMES, Registers, Unwinder, WalkEnd, Walked};

/// One walk's way through the stack. All zero is a valid, empty one.
pub(super) struct Path {
    /// How many frames; 0: nothing that may be used again.
    len: usize,
    epoch: u16,
    return_addresses: [u64; MAX_FRAMES],
    /// Where each return address was found. After a signal frame: the interrupted rsp minus 8, where none is.
    slots: [u64; MAX_FRAMES],
    /// Where each frame's rbp is: an address, or `LIVE`, or `LOST`.
    rbp_at: [u64; MAX_FRAMES],
    /// How many saved registers CFAs were computed from, in the order of the frames.
    used_len: usize,
    used_overflow: bool,
    /// Their addresses, or `LIVE`.
    used_at: [u64; MAX_FRAMES],
    used_value: [u64; MAX_FRAMES],
    /// The frames whose CFAs they gave.
    used_by: [u8; MAX_FRAMES],
}

const _: () = assert!(MAX_FRAMES <= u8::MAX as usize);

/// rbp is still what the hook saw.
const LIVE: u64 = 0;
/// rbp is not known (no address of a word is odd).
const LOST: u64 = 1;

impl Path {
    const fn new() -> Self {
        Self {
            len: 0,
            epoch: 0,
            return_addresses: [0; MAX_FRAMES],
            slots: [0; MAX_FRAMES],
            rbp_at: [0; MAX_FRAMES],
            used_len: 0,
            used_overflow: false,
            used_at: [0; MAX_FRAMES],
            used_value: [0; MAX_FRAMES],
            used_by: [0; MAX_FRAMES],
        }
    }

    fn clear(&mut self) {
        (self.len, self.used_len, self.used_overflow) = (0, 0, false);
    }

    #[inline(always)]
    fn push(&mut self, pc: u64, slot: u64, rbp_at: u64) -> bool {
        let (Some(p), Some(s), Some(r)) =
            (self.return_addresses.get_mut(self.len), self.slots.get_mut(self.len), self.rbp_at.get_mut(self.len))
        else {
            return false;
        };
        (*p, *s, *r) = (pc, slot, rbp_at);
        self.len += 1;
        true
    }

    /// The last frame's CFA hangs on the register that is kept at `at`.
    fn push_used(&mut self, at: u64, value: u64, by: usize) {
        let (Some(a), Some(v), Some(b)) = (
            self.used_at.get_mut(self.used_len),
            self.used_value.get_mut(self.used_len),
            self.used_by.get_mut(self.used_len),
        ) else {
            self.used_overflow = true;
            return;
        };
        (*a, *v, *b) = (at, value, by as u8);
        self.used_len += 1;
    }

    #[inline(always)]
    fn frame(&self, i: usize) -> Option<(u64, u64, u64)> {
        if i >= self.len {
            return None;
        }
        Some((*self.return_addresses.get(i)?, *self.slots.get(i)?, *self.rbp_at.get(i)?))
    }

    fn used(&self) -> impl Iterator<Item = (u64, u64, usize)> {
        let all = self.used_at.iter().zip(&self.used_value).zip(&self.used_by);
        all.take(self.used_len).map(|((at, value), by)| (*at, *value, usize::from(*by)))
    }

    /// What the caller gets of it.
    fn walked(&self, end: WalkEnd) -> Walked<'_> {
        Walked::of(self.return_addresses.get(..self.len).unwrap_or_default(), end)
    }

    /// Appends the frames `from` to `to` (excluded) of another path.
    fn append(&mut self, other: &Self, from: usize, to: usize) {
        let count = to.saturating_sub(from);
        for (mine, theirs) in [
            (&mut self.return_addresses, &other.return_addresses),
            (&mut self.slots, &other.slots),
            (&mut self.rbp_at, &other.rbp_at),
        ] {
            let (Some(mine), Some(theirs)) = (mine.get_mut(self.len..self.len + count), theirs.get(from..to)) else {
                return;
            };
            mine.copy_from_slice(theirs);
        }
        self.len += count;
    }
}

/// What walks of one thread work with, kept in its cache: handlers may run on signal stacks of a few KiB. All zero is
/// a valid start.
pub(super) struct Scratch {
    /// This walk's path and the last one's, by turns.
    paths: [Path; 2],
    turn: usize,
    workspace: Workspace,
}

/// The same for a walk that finds the scratch in use: a handler that interrupted a walk.
pub(super) struct Spare {
    path: Path,
    workspace: Workspace,
}

/// See [`Unwinder::walk`].
///
/// # Safety
/// As there.
#[inline(always)]
pub(super) unsafe fn walk_and_remember<R>(
    unwinder: &Unwinder,
    cache: &ThreadCache,
    regs: Registers,
    then: impl FnOnce(Walked<'_>) -> R,
) -> R {
    // SAFETY: `cache` is this thread's; the claim ends with this function.
    match unsafe { cache.claim(regs.rsp) } {
        // SAFETY: passed on.
        Some(mut claim) => then(unsafe { walk_claimed(unwinder, cache, regs, claim.scratch()) }),
        // SAFETY: passed on.
        None => unsafe { walk_interrupting(unwinder, cache, regs, then) },
    }
}

/// A walk with the thread's scratch, which the caller has claimed.
///
/// # Safety
/// As [`Unwinder::walk`].
#[inline(never)]
unsafe fn walk_claimed<'a>(
    unwinder: &Unwinder,
    cache: &ThreadCache,
    regs: Registers,
    scratch: &'a mut Scratch,
) -> Walked<'a> {
    let epoch = unwinder.epoch();
    let [first, second] = &mut scratch.paths;
    let (path, last) = if scratch.turn & 1 == 0 { (first, &*second) } else { (second, &*first) };
    path.clear();
    path.epoch = epoch;
    let last = (last.len > 0 && last.epoch == epoch).then_some(last);
    let mut walker = Walker::new(unwinder, cache, regs, path, last, &mut scratch.workspace);
    let end = walker.run();
    let replayable = walker.view.only_own && !walker.signal_frame && !walker.path.used_overflow;
    let searched = walker.searched;
    let signature = replayable.then(|| {
        let read = Read {
            return_address_slots: path.slots.get(..path.len).unwrap_or_default(),
            used_at: path.used_at.get(..path.used_len).unwrap_or_default(),
        };
        // SAFETY: a replayable walk read only live frames of the own stack; the claim is held.
        unsafe { cache.remember(epoch, regs, &read) }
    });
    let len = path.len;
    if replayable && !searched {
        scratch.turn ^= 1;
    } else {
        // No walk takes it over, but its return addresses stay for the caller.
        path.clear();
    }
    Walked { signature: signature.flatten(), ..Walked::of(path.return_addresses.get(..len).unwrap_or_default(), end) }
}

/// See [`Unwinder::walk_interrupting`].
///
/// # Safety
/// As there.
#[inline(always)]
pub(super) unsafe fn walk_interrupting<R>(
    unwinder: &Unwinder,
    cache: &ThreadCache,
    regs: Registers,
    then: impl FnOnce(Walked<'_>) -> R,
) -> R {
    // SAFETY: `cache` is this thread's; the claim ends with this function.
    match unsafe { cache.claim_spare(regs.rsp) } {
        // SAFETY: passed on.
        Some(mut claim) => then(unsafe { walk_spare(unwinder, cache, regs, claim.spare()) }),
        // A handler that interrupted a handler that interrupted a hook: the caller's name is all we give.
        None => {
            // SAFETY: the hook's return address is there.
            let caller = [unsafe { *(regs.rsp as *const u64) }];
            then(Walked::of(&caller, WalkEnd::NoRule))
        }
    }
}

/// A walk with the thread's spare, which the caller has claimed.
///
/// # Safety
/// As [`Unwinder::walk`].
#[cold]
#[inline(never)]
unsafe fn walk_spare<'a>(
    unwinder: &Unwinder,
    cache: &ThreadCache,
    regs: Registers,
    spare: &'a mut Spare,
) -> Walked<'a> {
    spare.path.clear();
    let end = Walker::new(unwinder, cache, regs, &mut spare.path, None, &mut spare.workspace).run();
    spare.path.walked(end)
}

/// See [`Unwinder::walk_afresh`].
///
/// # Safety
/// As there.
#[inline(never)]
pub(super) unsafe fn walk_afresh<R>(
    unwinder: &Unwinder,
    cache: &ThreadCache,
    regs: Registers,
    then: impl FnOnce(Walked<'_>) -> R,
) -> R {
    let (mut path, mut workspace) = (Path::new(), Workspace::new());
    let end = Walker::new(unwinder, cache, regs, &mut path, None, &mut workspace).run();
    then(path.walked(end))
}

/// Offsets in `ucontext_t` by DWARF register number. Source: glibc `sys/ucontext.h`, Linux `struct sigcontext`.
const UCONTEXT: [u64; 17] = [144, 136, 152, 128, 112, 104, 120, 160, 40, 48, 56, 64, 72, 80, 88, 96, 168];
const UCONTEXT_RBP: u64 = UCONTEXT[6];
const UCONTEXT_RSP: u64 = UCONTEXT[7];
const UCONTEXT_RIP: u64 = UCONTEXT[16];

struct Walker<'a> {
    unwinder: &'a Unwinder,
    finder: ObjectFinder,
    epoch: u16,
    regs: Registers,
    view: View,
    path: &'a mut Path,
    last: Option<&'a Path>,
    workspace: &'a mut Workspace,
    signal_frame: bool,
    /// A register came from a frame further to the leaf than the one that used it.
    searched: bool,
}

impl<'a> Walker<'a> {
    fn new(
        unwinder: &'a Unwinder,
        cache: &ThreadCache,
        regs: Registers,
        path: &'a mut Path,
        last: Option<&'a Path>,
        workspace: &'a mut Workspace,
    ) -> Self {
        Self {
            unwinder,
            finder: unwinder.finder.get(),
            epoch: unwinder.epoch(),
            regs,
            view: View::at(cache.own(), regs.rsp),
            path,
            last,
            workspace,
            signal_frame: false,
            searched: false,
        }
    }

    fn run(&mut self) -> WalkEnd {
        let mut slot = self.regs.rsp;
        let mut rbp_at = LIVE;
        let mut cursor = 0;
        let Some(mut pc) = self.view.load(slot) else {
            return WalkEnd::BadStack;
        };
        loop {
            if !self.path.push(pc, slot, rbp_at) {
                return WalkEnd::TooDeep;
            }
            if let Some(last) = self.last {
                while last.frame(cursor).is_some_and(|(_, s, _)| s < slot) {
                    cursor += 1;
                }
                if last.frame(cursor) == Some((pc, slot, rbp_at)) {
                    cursor = self.take_over(last, cursor);
                    (pc, slot, rbp_at) = last.frame(cursor).unwrap_or((pc, slot, rbp_at));
                }
            }
            let rule = self.rule(pc);
            let next = match rule.kind() {
                Kind::Rsp => slot.wrapping_add(rule.cfa_offset()),
                Kind::End => return WalkEnd::Complete,
                // Hand-made stacks (coroutines) end in a zero, which is no frame, but the layout hangs on it.
                Kind::Fail if pc == 0 && self.path.len > 1 => {
                    self.path.len -= 1;
                    self.path.push_used(slot, 0, self.path.len - 1);
                    return WalkEnd::Complete;
                }
                Kind::Fail => return WalkEnd::NoRule,
                Kind::Signal => match self.interrupted(slot) {
                    Some((rip, rsp)) => {
                        rbp_at = slot.wrapping_add(8 + UCONTEXT_RBP);
                        slot = rsp.wrapping_sub(8);
                        pc = rip.wrapping_add(1);
                        continue;
                    }
                    None => return WalkEnd::BadStack,
                },
                Kind::Rbp | Kind::Drap | Kind::Other => match self.slot_by_register(rule, slot, rbp_at) {
                    Ok(next) => next,
                    Err(end) => return end,
                },
            };
            rbp_at = match rule.rbp() {
                Saved::Same => rbp_at,
                Saved::AtCfa(offset) => next.wrapping_add(8).wrapping_add(offset as u64),
                Saved::AtRbp(offset) => self.rbp(rbp_at).map_or(LOST, |rbp| rbp.wrapping_add(offset as u64)),
                Saved::Lost => LOST,
            };
            slot = next;
            pc = match self.view.load(slot) {
                Some(pc) => pc,
                None => return WalkEnd::BadStack,
            };
        }
    }

    /// This walk is where the last one was at frame `from`: appends the frames above it that are still there, and
    /// returns the index of the last of them.
    fn take_over(&mut self, last: &Path, from: usize) -> usize {
        let here = self.path.len - 1;
        let mut limit = (last.len - 1).min(from + (MAX_FRAMES - self.path.len));
        for (at, value, by) in last.used() {
            if by < from {
                continue;
            }
            if by >= limit {
                break;
            }
            let now = if at == LIVE { Some(self.regs.rbp) } else { self.view.load(at) };
            if now != Some(value) {
                limit = by;
                break;
            }
        }
        let mut end = from;
        while end < limit
            && let Some((pc, slot, _)) = last.frame(end + 1)
            && self.view.load(slot) == Some(pc)
        {
            end += 1;
        }
        self.path.append(last, from + 1, end + 1);
        for (at, value, by) in last.used() {
            if (from..end).contains(&by) {
                self.path.push_used(at, value, by - from + here);
            }
        }
        let taken = (end - from) as u64;
        self.unwinder.counts.reused_frames.fetch_add(taken, core::sync::atomic::Ordering::Relaxed);
        end
    }

    #[inline(always)]
    fn rule(&mut self, pc: u64) -> Rule {
        match self.unwinder.rules.get(pc, self.epoch) {
            Some(rule) => rule,
            None => self.compute_rule(pc),
        }
    }

    #[cold]
    #[inline(never)]
    fn compute_rule(&mut self, pc: u64) -> Rule {
        let Some(rule) = cfi::rule_of(self.finder, pc, self.workspace) else {
            return Rule::FAIL;
        };
        self.unwinder.rules.insert(pc, self.epoch, rule);
        rule
    }

    /// The value of rbp that is kept at `rbp_at`, for use: where the next frame lies hangs on it.
    fn rbp(&mut self, rbp_at: u64) -> Option<u64> {
        match rbp_at {
            LIVE => {
                self.path.push_used(LIVE, self.regs.rbp, self.path.len - 1);
                Some(self.regs.rbp)
            }
            LOST => None,
            address => self.load_used(address),
        }
    }

    fn load_used(&mut self, address: u64) -> Option<u64> {
        let value = self.view.load(address)?;
        self.path.push_used(address, value, self.path.len - 1);
        Some(value)
    }

    /// The slot of the next return address, where the CFA is not computed from rsp.
    fn slot_by_register(&mut self, rule: Rule, slot: u64, rbp_at: u64) -> Result<u64, WalkEnd> {
        let base = match rule.kind() {
            Kind::Other => self.search_register(rule.register()).ok_or(WalkEnd::NoRule)?,
            _ => self.rbp(rbp_at).ok_or(WalkEnd::NoRule)?,
        };
        let mut cfa = base.wrapping_add(rule.cfa_offset());
        if rule.kind() == Kind::Drap {
            cfa = self.load_used(cfa).ok_or(WalkEnd::BadStack)?;
        }
        let next = cfa.wrapping_sub(8);
        if self.view.continues_at(slot, next) || self.view.switch_to(next) { Ok(next) } else { Err(WalkEnd::BadStack) }
    }

    /// What a signal interrupted: rip and rsp. `slot` holds the trampoline's address.
    fn interrupted(&mut self, slot: u64) -> Option<(u64, u64)> {
        self.signal_frame = true;
        // What the last walk did above this frame need not follow from what this walk sees.
        self.last = None;
        let context = slot.wrapping_add(8);
        let rip = self.view.load(context.wrapping_add(UCONTEXT_RIP))?;
        let rsp = self.view.load(context.wrapping_add(UCONTEXT_RSP))?;
        (self.view.continues_at(slot, rsp) || self.view.switch_to(rsp & !7)).then_some((rip, rsp))
    }

    /// The value of a register other than rsp and rbp in the last frame.
    #[cold]
    fn search_register(&mut self, register: u8) -> Option<u64> {
        self.searched = true;
        let callee_saved = matches!(register, 3 | 12..=15);
        for callee in (0..self.path.len - 1).rev() {
            let (pc, slot, rbp_at) = self.path.frame(callee)?;
            if self.rule(pc).kind() == Kind::Signal {
                let offset = *UCONTEXT.get(usize::from(register))?;
                return self.load_used(slot.wrapping_add(8).wrapping_add(offset));
            }
            if !callee_saved {
                return None;
            }
            match cfi::saved_register(self.finder, pc, register, self.workspace)? {
                Saved::Same => {}
                Saved::AtCfa(offset) => {
                    let (_, next, _) = self.path.frame(callee + 1)?;
                    return self.load_used(next.wrapping_add(8).wrapping_add(offset as u64));
                }
                Saved::AtRbp(offset) => {
                    let rbp = self.rbp(rbp_at)?;
                    return self.load_used(rbp.wrapping_add(offset as u64));
                }
                Saved::Lost => return None,
            }
        }
        None
    }
}
