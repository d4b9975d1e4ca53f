//! The checks in front of an instruction: its own operands with a GS prefix, compared with zero.
//!
//! Where the target's flags are dead: `cmp SIZE gs:[operand], 0; jne cold`. Where they are alive, rcx is borrowed:
//! `mov rcx, gs:[operand]; jrcxz`. Both leave the guest where it was, so that an instruction may begin anew. What was
//! checked once in a block needs no second check while the registers of its address stay the same: blocks contain no
//! calls, a failed check leaves the block for good or begins its instruction anew, and an interrupted block is never gone on
//! with.

use crate::access::{Access, Look, Scan, Segment};
use crate::cache::leave;
use crate::decode::Step;
use crate::emit::{Code, Landing, Mem, RCX, displacement};
use crate::exits::{Exit, Exits};
use crate::recovery::{Mark, Recovery, Rule};
use crate::state::slot;

/// Thread control block: `fs:` with a constant below this is the C library's own, there from the thread's first moment
/// to its last (canary, self pointer), and is not checked.
const THREAD_CONTROL_BYTES: i32 = 0x80;
/// How many checked operands are remembered.
const REMEMBERED: usize = 8;
/// `jne`.
const NOT_EQUAL: u8 = 5;

/// Operands that were checked and whose address registers did not change since.
#[derive(Debug, Default)]
pub(crate) struct Checked {
    list: Vec<Access>,
}

impl Checked {
    fn covers(&self, access: &Access) -> bool {
        self.list.iter().any(|known| {
            let same = Mem { displacement: 0, ..known.mem } == Mem { displacement: 0, ..access.mem };
            let first = i64::from(access.mem.displacement) - i64::from(known.mem.displacement);
            same && known.segment == access.segment
                && first >= 0
                && first + i64::from(access.bytes) <= i64::from(known.bytes)
        })
    }

    fn add(&mut self, access: Access) {
        if self.list.len() == REMEMBERED {
            self.list.remove(0);
        }
        self.list.push(access);
    }

    /// Forgets operands whose address an instruction changes that writes these registers, as bits.
    pub fn after(&mut self, written: u16) {
        self.list.retain(|known| {
            let uses = |register: Option<u8>| register.is_some_and(|number| written >> number & 1 != 0);
            !uses(known.mem.base) && !uses(known.mem.index)
        });
    }

    pub fn clear(&mut self) {
        self.list.clear();
    }
}

/// What checks are written to.
pub(crate) struct Output<'a> {
    pub hot: &'a mut Code,
    pub cold: &'a mut Code,
    pub marks: &'a mut Vec<Mark>,
    pub recovery: &'a mut Recovery,
    pub exits: &'a mut Exits,
    /// A check may fail because the newest frames are not marked yet.
    pub settles: bool,
}

/// Jumps to the cold part of one instruction's checks: addresses of their last four bytes.
#[derive(Default)]
struct Failures {
    exact: Vec<u64>,
    rcx_borrowed: Vec<u64>,
}

/// Writes the checks of an instruction. Says whether they are in line; otherwise the block ends here, and Rust looks.
pub(crate) fn write_checks(
    output: &mut Output<'_>,
    checked: &mut Checked,
    step: &Step,
    look: Look,
    flags_live: bool,
) -> bool {
    let start = output.hot.here();
    let accesses = match look {
        Look::Inline(accesses) => accesses,
        Look::Scan(scan) => {
            by_routine(output, step.pc(), scan);
            return true;
        }
        Look::Examine => return false,
    };
    if accesses.iter().any(|access| needs_rust(access, flags_live)) {
        return false;
    }
    let mut failures = Failures::default();
    for access in accesses {
        let is_control = access.segment == Segment::Fs
            && access.mem.base.is_none()
            && access.mem.index.is_none()
            && (0..THREAD_CONTROL_BYTES).contains(&access.mem.displacement);
        if is_control || checked.covers(&access) {
            continue;
        }
        if flags_live || access.segment != Segment::None && access.bytes > 8 {
            with_rcx(output, &mut failures, step.pc(), &access);
        } else {
            with_compare(output, &mut failures, step.pc(), &access);
        }
        checked.add(access);
    }
    if !failures.exact.is_empty() || !failures.rcx_borrowed.is_empty() {
        cold_part(output, &failures, step.pc(), start);
    }
    true
}

/// A repeated string instruction's whole range.
fn by_routine(output: &mut Output<'_>, pc: u64, scan: Scan) {
    let bad = output.cold.here();
    let start = output.hot.here();
    cold_part(output, &Failures::default(), pc, start);
    output.hot.store_u64_at(slot!(guest.rip), pc);
    output.hot.store_u64_at(slot!(scan_bad), bad);
    output.hot.store_u64_at(slot!(scan), u64::from(scan.encoded()));
    output.hot.call_routine(slot!(scan_code));
}

/// Operands for which no register is left to compute the address in.
fn needs_rust(access: &Access, flags_live: bool) -> bool {
    let uses_rcx = access.mem.uses(RCX);
    let by_rcx = flags_live || access.segment != Segment::None && access.bytes > 8;
    let is_segment = matches!(access.segment, Segment::Fs | Segment::Gs);
    is_segment && (by_rcx && uses_rcx || access.mem.address32)
}

/// 8 bytes and 8 bytes, and what is left: offset and size of each compare.
fn parts(bytes: u32) -> impl Iterator<Item = (u32, u32)> {
    let mut offset = 0;
    std::iter::from_fn(move || {
        let left = bytes - offset;
        let size = match left {
            0 => return None,
            8.. => 8,
            4..8 => 4,
            2..4 => 2,
            _ => 1,
        };
        offset += size;
        Some((offset - size, size))
    })
}

fn with_compare(output: &mut Output<'_>, failures: &mut Failures, pc: u64, access: &Access) {
    if access.segment == Segment::None {
        for (offset, size) in parts(access.bytes) {
            let Some(mem) = access.mem.plus(offset) else { continue };
            output.hot.compare_zero(&mem.shadow(), size);
            let end = output.hot.jump_if(NOT_EQUAL, 0);
            failures.exact.push(end);
        }
        return;
    }
    let scratch = [RCX, 0, 2].into_iter().find(|&register| !access.mem.uses(register)).unwrap_or(6);
    output.hot.store(&Mem::at(slot!(saved_scratch)), scratch);
    output.mark(pc, Rule::scratch(scratch));
    let mem = in_register(output.hot, access, scratch);
    output.hot.compare_zero(&mem.shadow(), access.bytes);
    output.hot.load(scratch, &Mem::at(slot!(saved_scratch)));
    output.mark(pc, Rule::EXACT);
    failures.exact.push(output.hot.jump_if(NOT_EQUAL, 0));
}

fn with_rcx(output: &mut Output<'_>, failures: &mut Failures, pc: u64, access: &Access) {
    output.hot.store(&Mem::at(slot!(saved_scratch)), RCX);
    output.mark(pc, Rule::scratch(RCX));
    for (offset, size) in parts(access.bytes) {
        if offset != 0 && access.mem.uses(RCX) {
            output.hot.load(RCX, &Mem::at(slot!(saved_scratch)));
        }
        let mem = match access.segment {
            Segment::None => access.mem,
            _ => in_register(output.hot, access, RCX),
        };
        let Some(mem) = mem.plus(offset) else { continue };
        output.hot.load_zero_extended(RCX, &mem.shadow(), size);
        let good: Landing = output.hot.jump_if_rcx_zero();
        failures.rcx_borrowed.push(output.hot.jump(0));
        output.hot.land(good);
    }
    output.hot.load(RCX, &Mem::at(slot!(saved_scratch)));
    output.mark(pc, Rule::EXACT);
}

/// Brings a segment's base into a register and gives the operand with it.
fn in_register(code: &mut Code, access: &Access, scratch: u8) -> Mem {
    match access.segment {
        Segment::Far(address) => {
            code.set(scratch, address);
            return Mem::base(scratch, 0);
        }
        Segment::Fs => code.load(scratch, &Mem::at(slot!(guest.fs_base))),
        Segment::Gs | Segment::None => code.load(scratch, &Mem::at(slot!(guest.gs_base))),
    }
    match (access.mem.base, access.mem.index) {
        (Some(base), Some(_)) => {
            // No second register is left for three parts: add the base first. rsp may be a base, never an index.
            code.lea(scratch, &Mem { index: Some(scratch), ..Mem::base(base, 0) });
            Mem { base: Some(scratch), ..access.mem }
        }
        (Some(base), None) => Mem { base: Some(base), index: Some(scratch), scale: 0, ..access.mem },
        (None, _) => Mem { base: Some(scratch), ..access.mem },
    }
}

/// What happens on a failed check: rcx is put back if it was borrowed, then Rust looks at the instruction. Where it may be
/// the stack's shadow that lags behind, a routine goes back to `start` first.
fn cold_part(output: &mut Output<'_>, failures: &Failures, pc: u64, start: u64) {
    let borrowed_entry = output.cold.here();
    if !failures.rcx_borrowed.is_empty() {
        let mark = Mark { host: borrowed_entry as u32, pc, rule: Rule::scratch(RCX) };
        output.recovery.add_cold(mark);
        output.cold.load(RCX, &Mem::at(slot!(saved_scratch)));
    }
    let exact_entry = output.cold.here();
    output.recovery.add_cold(Mark { host: exact_entry as u32, pc, rule: Rule::EXACT });
    let record = output.exits.add(Exit::Examine { pc });
    if output.settles {
        output.cold.store_i32(&Mem::at(slot!(mark_return)), start as i32);
        output.cold.store_u32(&Mem::at(slot!(exit_record)), record);
        output.cold.jump_through(&Mem::at(slot!(settle_code)));
    } else {
        leave(output.cold, record);
    }
    let both = [(&failures.exact, exact_entry), (&failures.rcx_borrowed, borrowed_entry)];
    for (sites, entry) in both {
        for &site in sites {
            let at = (site - output.hot.start) as usize;
            output.hot.bytes[at..at + 4].copy_from_slice(&displacement(site, entry).to_le_bytes());
        }
    }
}

impl Output<'_> {
    /// From the next byte on, this holds.
    pub fn mark(&mut self, pc: u64, rule: Rule) {
        self.marks.push(Mark { host: self.hot.here() as u32, pc, rule });
    }
}

#[cfg(test)]
mod tests {
    use super::parts;

    #[test]
    fn parts_cover_every_size() {
        for bytes in 1..=64 {
            let mut next = 0;
            for (offset, size) in parts(bytes) {
                assert_eq!(offset, next);
                next += size;
            }
            assert_eq!(next, bytes);
        }
        assert_eq!(parts(10).collect::<Vec<_>>(), [(0, 8), (8, 2)]);
    }
}
