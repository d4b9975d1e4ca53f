//! Keeps the shadow of the stack while the stack pointer moves: below `rsp - 128`, the red zone, nothing may be touched.
//!
//! What an instruction takes becomes 0 and what it gives back 0xFF, before the instruction itself, so that both may begin
//! anew. Small constant moves (`push`, `call`, `pop`, `ret`, frames of up to 64 bytes) are stores in line; everything else
//! goes through a routine in [`crate::entry`]. Moves of more than 2 MB go to another stack and mark nothing, as in
//! Memcheck; so do instructions that compute the stack pointer in ways that no compiler does (`xchg`, `cmov`, `pop rsp`).

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::decode::{Kind, Step};
use crate::emit::{Mem, RCX};
use crate::recovery::Rule;
use crate::state::slot;
use crate::translate::Translator;

const RSP: u8 = 4;
const RED_ZONE: i32 = 128;
/// Moves up to this are marked in line.
const INLINE_BYTES: i64 = 64;

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
    /// To itself masked.
    Masked(i64),
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
        (Mnemonic::Lea, _) => operand(instruction).map(|mem| match (mem.base, mem.index) {
            (Some(RSP), None) => Move::By(i64::from(mem.displacement)),
            _ => Move::To(mem),
        }),
        _ => None,
    }
}

/// The memory operand, if our own encoder can write it.
fn operand(instruction: &Instruction) -> Option<Mem> {
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

impl Translator {
    /// Writes what marks the stack that the instruction takes or gives back. Says whether the instruction moves the stack
    /// pointer: what was checked may be bad afterwards.
    pub(crate) fn write_stack_marking(&mut self, step: &Step) -> bool {
        let Some(found) = stack_move(step) else { return false };
        match found {
            Move::By(0) => return false,
            Move::By(bytes) if bytes.abs() <= INLINE_BYTES && bytes % 8 == 0 => {
                let first = if bytes < 0 { bytes as i32 - RED_ZONE } else { -RED_ZONE };
                let value = if bytes < 0 { 0 } else { -1 };
                for offset in (0..bytes.abs() as i32).step_by(8) {
                    self.hot.store_i32(&Mem::base(RSP, first + offset).shadow(), value);
                }
            }
            other => self.mark_by_routine(step, other),
        }
        true
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
        assert_eq!(moves(&[0x48, 0x01, 0xd8]), None, "add rax, rbx");
        assert_eq!(moves(&[0x48, 0x39, 0xe0]), None, "cmp rax, rsp");
    }
}
