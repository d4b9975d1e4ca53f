//! Which arithmetic flags the target may still read: where none, a check may overwrite them.

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register, RflagsBits};

use crate::decode::{Kind, Step};

/// The flags that a compare overwrites.
const ARITHMETIC: u32 =
    RflagsBits::OF | RflagsBits::SF | RflagsBits::ZF | RflagsBits::AF | RflagsBits::CF | RflagsBits::PF;
/// How far to look into the code behind a block, in instructions.
const PEEK_INSTRUCTIONS: usize = 16;
/// How many jumps to follow there.
const PEEK_JUMPS: u32 = 3;

/// Code behind a block, as far as it is known and will not change; and what is known of it.
pub(crate) trait Ahead {
    /// The bytes at an address, if they are in an unchanging region.
    fn bytes(&self, pc: u64) -> Option<&[u8]>;
    /// Whether calls and returns leave no flags alive. Other jumps may: gcc puts a `test` in front of the jump of a `switch`
    /// and reads it in the cases (`initialize_static_primitive_field` of OpenJDK 17's libjvm).
    fn flags_die_at_calls(&self) -> bool;
    /// An earlier answer.
    fn known(&self, pc: u64) -> Option<bool>;
    /// Keeps an answer.
    fn learn(&mut self, pc: u64, live: bool);
}

/// For each instruction, whether any arithmetic flag is alive before it.
pub(crate) fn live_before(steps: &[Step], ahead: &mut impl Ahead) -> Vec<bool> {
    let mut result = vec![false; steps.len()];
    let Some(last) = steps.last() else { return result };
    let mut live = live_behind(last, ahead);
    for (index, step) in steps.iter().enumerate().rev() {
        if let Kind::Branch(_, target) | Kind::CountBranch(target) = step.kind
            && live != ARITHMETIC
            && is_live_at(target, ahead, 0)
        {
            live = ARITHMETIC;
        }
        live &= !overwritten(&step.instruction);
        live |= step.instruction.rflags_read() & ARITHMETIC;
        result[index] = live != 0;
    }
    result
}

/// The flags alive after the block's last instruction (apart from a conditional jump's target).
fn live_behind(last: &Step, ahead: &mut impl Ahead) -> u32 {
    let dead_at_calls = ahead.flags_die_at_calls();
    let live = match last.kind {
        Kind::Call(_) | Kind::CallIndirect | Kind::Return(_) => !dead_at_calls,
        Kind::JumpIndirect if leads_to_function(&last.instruction) => !dead_at_calls,
        Kind::Jump(target) => is_live_at(target, ahead, 0),
        Kind::Plain | Kind::Branch(..) | Kind::CountBranch(_) | Kind::SegmentBase => {
            is_live_at(last.next_pc(), ahead, 0)
        }
        _ => true,
    };
    if live { ARITHMETIC } else { 0 }
}

/// Whether it is a jump through memory at a constant address: a call between libraries, at which lazy binding keeps no flags.
fn leads_to_function(instruction: &Instruction) -> bool {
    instruction.is_jmp_near_indirect() && instruction.is_ip_rel_memory_operand()
}

/// The flags whose old values do not survive the instruction. What it leaves undefined counts: no program can read it.
fn overwritten(instruction: &Instruction) -> u32 {
    // With a count of zero these change nothing.
    let by_count = matches!(
        instruction.mnemonic(),
        Mnemonic::Shl
            | Mnemonic::Shr
            | Mnemonic::Sar
            | Mnemonic::Sal
            | Mnemonic::Rol
            | Mnemonic::Ror
            | Mnemonic::Rcl
            | Mnemonic::Rcr
            | Mnemonic::Shld
            | Mnemonic::Shrd
    );
    if by_count {
        let last = instruction.op_count() - 1;
        let count_is_zero = match instruction.op_kind(last) {
            OpKind::Register => instruction.op_register(last) == Register::CL,
            OpKind::Immediate8 => instruction.immediate(last) & 0x1f == 0,
            _ => true,
        };
        if count_is_zero {
            return 0;
        }
    }
    if instruction.is_string_instruction() && (instruction.has_rep_prefix() || instruction.has_repne_prefix()) {
        return 0;
    }
    instruction.rflags_modified() & ARITHMETIC
}

/// Whether the code at `pc` may read a flag that was set before.
pub(crate) fn is_live_at(pc: u64, ahead: &mut impl Ahead, jumps: u32) -> bool {
    if let Some(known) = ahead.known(pc) {
        return known;
    }
    let dead_at_calls = ahead.flags_die_at_calls();
    let Some(bytes) = ahead.bytes(pc) else { return true };
    let mut decoder = Decoder::with_ip(64, bytes, pc, DecoderOptions::NONE);
    let mut live = ARITHMETIC;
    let mut result = true;
    let mut follow = None;
    for _ in 0..PEEK_INSTRUCTIONS {
        let instruction = decoder.decode();
        if instruction.is_invalid() || instruction.rflags_read() & live != 0 {
            break;
        }
        live &= !overwritten(&instruction);
        if live == 0 {
            result = false;
            break;
        }
        if instruction.is_jmp_short_or_near() && jumps < PEEK_JUMPS {
            follow = Some(instruction.near_branch_target());
            break;
        }
        let is_call = instruction.is_call_near() || instruction.is_call_near_indirect();
        if dead_at_calls && (is_call || instruction.mnemonic() == Mnemonic::Ret || leads_to_function(&instruction)) {
            result = false;
            break;
        }
        if instruction.flow_control() != iced_x86::FlowControl::Next {
            break;
        }
    }
    if let Some(target) = follow {
        result = is_live_at(target, ahead, jumps + 1);
    }
    if jumps == 0 {
        ahead.learn(pc, result);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::decode_block;

    struct Bytes(Vec<u8>);

    impl Ahead for Bytes {
        fn bytes(&self, pc: u64) -> Option<&[u8]> {
            self.0.get(pc as usize..)
        }
        fn flags_die_at_calls(&self) -> bool {
            true
        }
        fn known(&self, _pc: u64) -> Option<bool> {
            None
        }
        fn learn(&mut self, _pc: u64, _live: bool) {}
    }

    fn live(bytes: &[u8]) -> Vec<bool> {
        let steps = decode_block(bytes, 0, 3, |_| false);
        live_before(&steps, &mut Bytes(bytes.to_vec()))
    }

    #[test]
    fn a_reader_keeps_flags_alive() {
        // cmp eax,1; mov ecx,[rax]; je +0; add eax,1; ret
        let bytes = [0x83, 0xf8, 0x01, 0x8b, 0x08, 0x74, 0x00, 0x83, 0xc0, 0x01, 0xc3];
        assert_eq!(live(&bytes), [false, true, true, false, false]);
    }

    #[test]
    fn a_shift_by_a_variable_count_keeps_them() {
        // shl eax,cl; jc +0; add eax,1; ret
        assert_eq!(live(&[0xd3, 0xe0, 0x72, 0x00, 0x83, 0xc0, 0x01, 0xc3]), [true, true, false, false]);
        // shl eax,1 overwrites
        assert_eq!(live(&[0xd1, 0xe0, 0x72, 0x00, 0x83, 0xc0, 0x01, 0xc3]), [false, true, false, false]);
    }

    #[test]
    fn unknown_code_may_read() {
        assert_eq!(live(&[0x90, 0xe9, 0xff, 0xff, 0x00, 0x00]), [true, true], "jmp to nowhere");
        assert_eq!(live(&[0x90, 0xc3]), [false, false], "ret");
        assert_eq!(live(&[0x90, 0xff, 0xe0]), [true, true], "jmp rax");
        assert_eq!(live(&[0x90, 0xff, 0x25, 0, 0, 0, 0]), [false, false], "jmp [rip]");
    }
}
