//! Keeps the shadow of the stack while the stack pointer moves: below `rsp - 128`, the red zone, nothing may be touched.
//!
//! Most frames are never touched but by `push`, `call` and operands at constant distances from the stack pointer, which
//! are not checked. So stack that is taken is not marked: its shadow stays bad until a check in it fails for the first
//! time. Then everything down to `rsp - 128` becomes good at once, and `settled` keeps this stack pointer: above it the shadow
//! is right, below it nothing is good. Where the stack pointer was raised, one compare with `settled` tells whether there is
//! anything to make bad: before the next look at memory, and at the end of a block at the latest. When the cache is
//! left, [`settle`] brings everything up to date, so that Rust never sees the difference.
//!
//! Moves of more than 2 MB go to another stack and mark nothing, as in Memcheck, unless the thread's own stack is known to
//! reach so far ([`crate::Guest::stack`]); so do instructions that compute the
//! stack pointer in ways that no compiler does (`xchg`, `cmov`, `pop rsp`).

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::access::Look;
use crate::decode::{Kind, Step};
use crate::emit::{Mem, RCX};
use crate::recovery::{Mark, Rule};
use crate::state::{slot, state};
use crate::translate::Translator;
use crate::{GUEST_END, Gpr, SHADOW_OFFSET, memory};

const RSP: u8 = 4;
const RBP: u8 = 5;
const RED_ZONE: u64 = 128;
/// A stack pointer that moves further goes to another stack. Source: Memcheck's `--max-stackframe`.
pub(crate) const SWITCH_BYTES: u64 = 2_000_000;
/// No stack is brought up to date over more than this: it was left unseen.
pub(crate) const DEEP_BYTES: u64 = 64 << 20;
/// `and rsp, -n` moves the stack pointer by less than n: up to this no stack is left.
const MASKED_BYTES: i64 = 1 << 16;
/// `ja` and `jae`.
const ABOVE: u8 = 7;
const NOT_BELOW: u8 = 3;

/// Brings the stack's shadow up to date for this stack pointer. The guest is outside of the cache.
pub(crate) fn settle(rsp: u64) {
    // SAFETY: the state page is mapped as long as an engine lives.
    let old = unsafe { (*state()).settled };
    if old == 0 || old == rsp {
        return;
    }
    // SAFETY: as above.
    unsafe { (*state()).settled = rsp };
    let (low, high) = (old.min(rsp), old.max(rsp));
    let most = if rsp < old { DEEP_BYTES } else { SWITCH_BYTES };
    if low > RED_ZONE && high < GUEST_END && high - low <= most {
        memory::fill_shadow(low - RED_ZONE + SHADOW_OFFSET, high - low, if rsp < old { 0 } else { 0xff });
    }
}

/// Brings the stack's shadow up to date in a light hook, before the tool looks at memory that may be on the stack.
pub fn settle_in_hook() {
    // SAFETY: the state page is mapped, and hooks are called with the guest's registers in it.
    let rsp = unsafe { (*state()).guest.gpr(Gpr::Rsp) };
    // The return address is popped when the hook returns.
    settle(rsp.wrapping_add(8));
}

/// Where an instruction moves the stack pointer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Move {
    /// By a constant.
    By(i64),
    /// To the address of this operand.
    To(Mem),
    /// Down by a register.
    Down(u8),
    /// Down by what this operand holds.
    DownBy(Mem),
    /// To what this operand holds.
    Saved(Mem),
    /// To itself masked.
    Masked(i64),
}

/// What has to follow an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum After {
    /// Nothing.
    Nothing,
    /// The stack pointer may have been raised: see [`Translator::release`].
    Raised,
    /// It may be on another stack, which is right as it is: see [`Translator::adopt`].
    Adopted,
}

fn stack_move(step: &Step) -> Option<Move> {
    match step.kind {
        Kind::Call(_) | Kind::CallIndirect => return Some(Move::By(-8)),
        Kind::Return(pops) => return Some(Move::By(8 + i64::from(pops))),
        Kind::Plain => {}
        _ => return None,
    }
    let instruction = &step.instruction;
    match instruction.mnemonic() {
        Mnemonic::Leave => return Some(Move::To(Mem::base(5, 8))),
        Mnemonic::Pop if instruction.op0_register() == Register::RSP => return None,
        _ => {}
    }
    if instruction.is_stack_instruction() {
        return Some(Move::By(i64::from(instruction.stack_pointer_increment()))).filter(|&found| found != Move::By(0));
    }
    if instruction.op_count() != 2 || instruction.op0_register() != Register::RSP {
        return None;
    }
    let immediate = instruction.op1_kind() != OpKind::Register && instruction.op1_kind() != OpKind::Memory;
    let register = instruction.op1_register().is_gpr64().then(|| instruction.op1_register().number() as u8);
    match (instruction.mnemonic(), register) {
        (Mnemonic::Sub, None) if immediate => Some(Move::By((instruction.immediate(1) as i64).wrapping_neg())),
        (Mnemonic::Add, None) if immediate => Some(Move::By(instruction.immediate(1) as i64)),
        (Mnemonic::And, None) if immediate => Some(Move::Masked(instruction.immediate(1) as i64)),
        (Mnemonic::Sub, Some(register)) => Some(Move::Down(register)),
        (Mnemonic::Sub, None) => operand(instruction).map(Move::DownBy),
        (Mnemonic::Add, Some(register)) if register != RSP => {
            Some(Move::To(Mem { index: Some(register), ..Mem::base(RSP, 0) }))
        }
        (Mnemonic::Mov, Some(register)) => Some(Move::To(Mem::base(register, 0))),
        // A compiler's own spill, in the frame; from elsewhere comes another stack (coroutines, Go's scheduler).
        (Mnemonic::Mov, None) => {
            operand(instruction).filter(|mem| matches!(mem.base, Some(RSP | RBP))).map(Move::Saved)
        }
        (Mnemonic::Lea, _) => operand(instruction).map(|mem| match (mem.base, mem.index) {
            (Some(RSP), None) => Move::By(i64::from(mem.displacement)),
            _ => Move::To(mem),
        }),
        _ => None,
    }
}

/// The memory operand, if our own encoder can write it.
fn operand(instruction: &Instruction) -> Option<Mem> {
    if matches!(instruction.segment_prefix(), Register::FS | Register::GS) {
        return None;
    }
    if instruction.is_ip_rel_memory_operand() {
        return i32::try_from(instruction.ip_rel_memory_address()).ok().map(|address| Mem::at(address as usize));
    }
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    let displacement = i32::try_from(instruction.memory_displacement64() as i64).ok()?;
    let number = |register: Register| register.is_gpr64().then(|| register.number() as u8);
    let scale = instruction.memory_index_scale().trailing_zeros() as u8;
    let mem = Mem { index: number(index), scale, ..Mem::base(number(base)?, displacement) };
    (index == Register::None || mem.index.is_some()).then_some(mem)
}

/// Whether the instruction raises the stack pointer by little and touches nothing that is checked: a release may wait.
fn is_quiet_raise(step: &Step, look: &Look) -> bool {
    let raises = match stack_move(step) {
        Some(Move::By(bytes)) => bytes > 0 && bytes <= SWITCH_BYTES as i64,
        Some(Move::To(mem)) => is_frame(&mem),
        Some(Move::Saved(_)) => true,
        _ => false,
    };
    let checks_nothing = matches!(look, Look::Inline(list) if list.iter().all(|access| access.mem.base == Some(RBP)));
    raises && checks_nothing && matches!(step.kind, Kind::Plain | Kind::Return(0))
}

/// `[rbp + n]`: nobody leaves a stack by his frame pointer.
fn is_frame(mem: &Mem) -> bool {
    mem.base == Some(RBP) && mem.index.is_none()
}

impl Translator {
    /// Writes what comes before an instruction that moves the stack pointer, and says what comes after it. `live`: flags are;
    /// `writes_rsp`: it does, in whatever way.
    pub(crate) fn before_move(&mut self, step: &Step, live: bool, writes_rsp: bool) -> After {
        match stack_move(step) {
            Some(Move::By(bytes)) if bytes.unsigned_abs() > SWITCH_BYTES => self.mark_by_routine(step, Move::By(bytes)),
            Some(Move::By(bytes)) => match step.kind {
                Kind::Return(0) => self.release_by_return(step.pc(), live),
                Kind::Return(_) => self.mark_by_routine(step, Move::By(bytes)),
                _ if bytes > 0 => return After::Raised,
                _ => {}
            },
            Some(Move::To(mem)) if is_frame(&mem) => return After::Raised,
            Some(Move::Saved(_)) => return After::Raised,
            Some(Move::Masked(bits)) if (-MASKED_BYTES..0).contains(&bits) => {}
            Some(other) => self.mark_by_routine(step, other),
            None if writes_rsp && step.kind == Kind::Plain => {
                // To nowhere: what is left is brought up to date.
                self.hot.store_u64_at(slot!(new_rsp), 0);
                self.hot.store_u64_at(slot!(new_rsp_mask), 0);
                self.hot.store_u64_at(slot!(guest.rip), step.pc());
                self.hot.call_routine(slot!(mark_code));
                return After::Adopted;
            }
            None => {}
        }
        After::Nothing
    }

    /// Whether a release that is due can wait until after this step.
    pub(crate) fn release_can_wait(step: &Step, look: &Look, live: bool) -> bool {
        is_quiet_raise(step, look) || live && step.kind == Kind::Plain && *look == Look::Inline(Vec::new())
    }

    /// The stack pointer's new place is right as it is.
    pub(crate) fn adopt(&mut self) {
        self.hot.store(&Mem::at(slot!(settled)), RSP);
    }

    /// Makes bad what was given back since the last release. The guest is at `pc`.
    pub(crate) fn release(&mut self, pc: u64, live: bool) {
        self.release_if(pc, live, ABOVE, slot!(release_code));
    }

    /// The same before a `ret`, for its own eight bytes too.
    fn release_by_return(&mut self, pc: u64, live: bool) {
        self.release_if(pc, live, NOT_BELOW, slot!(release_return_code));
    }

    fn release_if(&mut self, pc: u64, live: bool, condition: u8, routine: usize) {
        if live {
            self.hot.store_u64_at(slot!(guest.rip), pc);
            self.hot.call_routine(routine);
            return;
        }
        self.hot.compare(RSP, &Mem::at(slot!(settled)));
        let cold = self.cold.here();
        self.hot.jump_if(condition, cold);
        self.cache.recovery.add_cold(Mark { host: cold as u32, pc, rule: Rule::EXACT });
        let back = self.hot.here();
        self.cold.store_u64_at(slot!(guest.rip), pc);
        self.cold.store_i32(&Mem::at(slot!(mark_return)), back as i32);
        self.cold.jump_through(&Mem::at(routine));
    }

    fn mark_by_routine(&mut self, step: &Step, found: Move) {
        let mut mask = -1;
        let to = match found {
            Move::By(bytes) => match i32::try_from(bytes) {
                Ok(bytes) => Mem::base(RSP, bytes),
                Err(_) => return,
            },
            Move::To(mem) => mem,
            Move::Masked(bits) => {
                mask = bits;
                Mem::base(RSP, 0)
            }
            Move::Saved(_) => return,
            Move::Down(_) | Move::DownBy(_) => Mem { index: Some(RCX), ..Mem::base(RSP, 1) },
        };
        self.hot.store(&Mem::at(slot!(saved_scratch)), RCX);
        self.mark(step.pc(), Rule::scratch(RCX));
        match found {
            Move::Down(register) => self.hot.copy(RCX, register),
            Move::DownBy(mem) => self.hot.load(RCX, &mem),
            _ => {}
        }
        if matches!(found, Move::Down(_) | Move::DownBy(_)) {
            // rsp - r = rsp + !r + 1, and `not` leaves the flags alone.
            self.hot.raw(&[0x48, 0xf7, 0xd1]);
        }
        self.hot.lea(RCX, &to);
        self.hot.store(&Mem::at(slot!(new_rsp)), RCX);
        self.hot.load(RCX, &Mem::at(slot!(saved_scratch)));
        self.mark(step.pc(), Rule::EXACT);
        self.hot.store_u64_at(slot!(new_rsp_mask), mask as u64);
        self.hot.store_u64_at(slot!(guest.rip), step.pc());
        self.hot.call_routine(slot!(mark_code));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::decode_block;

    fn moves(bytes: &[u8]) -> Option<Move> {
        stack_move(&decode_block(bytes, 0x1000, 3, |_| false)[0])
    }

    #[test]
    fn compilers_move_the_stack_pointer_like_this() {
        assert_eq!(moves(&[0x50]), Some(Move::By(-8)), "push rax");
        assert_eq!(moves(&[0x5b]), Some(Move::By(8)), "pop rbx");
        assert_eq!(moves(&[0xe8, 0, 0, 0, 0]), Some(Move::By(-8)), "call");
        assert_eq!(moves(&[0xc2, 16, 0]), Some(Move::By(24)), "ret 16");
        assert_eq!(moves(&[0x48, 0x83, 0xec, 0x18]), Some(Move::By(-0x18)), "sub rsp, 0x18");
        assert_eq!(moves(&[0x48, 0x81, 0xc4, 0, 1, 0, 0]), Some(Move::By(0x100)), "add rsp, 0x100");
        assert_eq!(moves(&[0x48, 0x8d, 0x64, 0x24, 0xf8]), Some(Move::By(-8)), "lea rsp, [rsp-8]");
        assert_eq!(moves(&[0x48, 0x83, 0xe4, 0xe0]), Some(Move::Masked(-32)), "and rsp, -32");
        assert_eq!(moves(&[0xc9]), Some(Move::To(Mem::base(5, 8))), "leave");
        assert_eq!(moves(&[0x48, 0x89, 0xec]), Some(Move::To(Mem::base(5, 0))), "mov rsp, rbp");
        assert_eq!(moves(&[0x48, 0x29, 0xc4]), Some(Move::Down(0)), "sub rsp, rax");
        assert_eq!(moves(&[0x48, 0x8d, 0x65, 0xd8]), Some(Move::To(Mem::base(5, -0x28))), "lea rsp, [rbp-0x28]");
        let saved = Move::Saved(Mem::base(5, -0x150));
        assert_eq!(moves(&[0x48, 0x8b, 0xa5, 0xb0, 0xfe, 0xff, 0xff]), Some(saved), "mov rsp, [rbp-0x150]");
        assert_eq!(moves(&[0x48, 0x8b, 0x63, 0x38]), None, "mov rsp, [rbx+0x38]");
        assert_eq!(moves(&[0x48, 0x01, 0xd8]), None, "add rax, rbx");
        assert_eq!(moves(&[0x48, 0x39, 0xe0]), None, "cmp rax, rsp");
    }
}
