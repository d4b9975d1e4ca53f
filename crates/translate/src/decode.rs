//! Splits the target's bytes into blocks: runs of instructions that end where control goes elsewhere for sure.

use iced_x86::{Code, Decoder, DecoderError, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};

use crate::x87;

/// Longest block, in instructions.
const BLOCK_INSTRUCTIONS: usize = 64;

/// `rol rdi,3; rol rdi,13; rol rdi,61; rol rdi,51; xchg rbx,rbx`. Source: `valgrind.h`.
const CLIENT_REQUEST: [u8; 19] =
    [0x48, 0xc1, 0xc7, 0x03, 0x48, 0xc1, 0xc7, 0x0d, 0x48, 0xc1, 0xc7, 0x3d, 0x48, 0xc1, 0xc7, 0x33, 0x48, 0x87, 0xdb];
/// The last byte with rcx, rdx and rbx: other things that `valgrind.h` asks for.
const REQUEST_REGISTERS: [u8; 3] = [0xc9, 0xd2, 0xdb];

/// Whether one of the sequences stands here.
fn is_request(bytes: &[u8]) -> bool {
    let (front, last) = (&CLIENT_REQUEST[..18], bytes.get(18));
    bytes.starts_with(front) && last.is_some_and(|last| REQUEST_REGISTERS.contains(last))
}

/// What the translator does with an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Copy it.
    Plain,
    /// Copy it; it ends its block (`ud2`).
    PlainEnd,
    /// Copy it, then put the address of the last x87 instruction right in what it stored ([`crate::x87`]).
    StoresX87,
    /// `jmp` to this address.
    Jump(u64),
    /// A conditional jump: the low half of its opcode.
    Branch(u8, u64),
    /// `loop`, `jrcxz`: has a short displacement only.
    CountBranch(u64),
    /// `call` to this address.
    Call(u64),
    JumpIndirect,
    CallIndirect,
    /// `ret`, and how many bytes of arguments it pops.
    Return(u16),
    Syscall,
    Cpuid,
    ClientRequest,
    /// `xbegin`: always aborts, to this address.
    Transaction(u64),
    /// `rdfsbase`, `rdgsbase`, `wrgsbase`.
    SegmentBase,
    /// `wrfsbase`.
    SetFsBase,
    /// A signal: its number, `si_code`, trap number, and whether the frame shows the next instruction.
    Trap {
        signal: i32,
        code: i32,
        trap: u64,
        after: bool,
    },
    /// The region ends inside of the instruction.
    Truncated,
}

impl Kind {
    pub fn ends_block(self) -> bool {
        !matches!(self, Self::Plain | Self::Branch(..) | Self::SegmentBase)
    }
}

/// One instruction of a block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    pub instruction: Instruction,
    pub kind: Kind,
    /// Where its bytes begin in the slice that was decoded.
    pub offset: usize,
    /// Its length in bytes; for a client request, that of the sequence.
    pub length: usize,
    /// Where in the instruction its displacement is.
    pub displacement_offset: usize,
}

impl Step {
    pub fn pc(&self) -> u64 {
        self.instruction.ip()
    }

    pub fn next_pc(&self) -> u64 {
        self.pc() + self.length as u64
    }
}

/// Decodes the block at `pc`, whose bytes begin `bytes`. It ends before an address that `stop` names, behind a jump, and
/// behind the `branches + 1`th conditional jump.
pub(crate) fn decode_block(bytes: &[u8], pc: u64, branches: u8, mut stop: impl FnMut(u64) -> bool) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::with_capacity(16);
    let mut decoder = Decoder::with_ip(64, bytes, pc, DecoderOptions::NONE);
    let mut passed = 0;
    while steps.len() < BLOCK_INSTRUCTIONS {
        let offset = decoder.position();
        let at = pc + offset as u64;
        let is_region_end = offset == bytes.len();
        if !steps.is_empty() && (is_region_end || stop(at)) {
            break;
        }
        let step = decode_step(&mut decoder, bytes, offset);
        steps.push(step);
        if step.kind.ends_block() {
            break;
        }
        if let Kind::Branch(..) = step.kind {
            if passed == branches {
                break;
            }
            passed += 1;
        }
    }
    steps
}

fn decode_step(decoder: &mut Decoder<'_>, bytes: &[u8], offset: usize) -> Step {
    let instruction = decoder.decode();
    let truncated = instruction.is_invalid() && decoder.last_error() == DecoderError::NoMoreBytes;
    let kind = if truncated { Kind::Truncated } else { kind(&instruction) };
    let constants = decoder.get_constant_offsets(&instruction);
    let mut step = Step {
        instruction,
        kind,
        offset,
        length: instruction.len(),
        displacement_offset: constants.displacement_offset(),
    };
    if instruction.mnemonic() == Mnemonic::Rol && is_request(&bytes[offset..]) {
        step.kind = Kind::ClientRequest;
        step.length = CLIENT_REQUEST.len();
    }
    step
}

const ILL_ILLOPN: i32 = 2;
const SI_KERNEL: i32 = 128;
const TRAP_BREAKPOINT: u64 = 3;
const TRAP_INVALID_OPCODE: u64 = 6;
const TRAP_GENERAL_PROTECTION: u64 = 13;

const ILLEGAL: Kind = Kind::Trap { signal: libc::SIGILL, code: ILL_ILLOPN, trap: TRAP_INVALID_OPCODE, after: false };

fn kind(instruction: &Instruction) -> Kind {
    if instruction.is_invalid() {
        return ILLEGAL;
    }
    match instruction.mnemonic() {
        Mnemonic::Syscall => return Kind::Syscall,
        Mnemonic::Cpuid => return Kind::Cpuid,
        Mnemonic::Rdfsbase | Mnemonic::Rdgsbase | Mnemonic::Wrgsbase => return Kind::SegmentBase,
        Mnemonic::Wrfsbase => return Kind::SetFsBase,
        Mnemonic::Xbegin => return Kind::Transaction(instruction.near_branch_target()),
        // 32-bit system calls would go past the tool; without IA32 emulation the kernel answers like this.
        Mnemonic::Int if instruction.immediate8() == 0x80 => {
            return Kind::Trap { signal: libc::SIGSEGV, code: SI_KERNEL, trap: TRAP_GENERAL_PROTECTION, after: false };
        }
        Mnemonic::Int3 => {
            return Kind::Trap { signal: libc::SIGTRAP, code: SI_KERNEL, trap: TRAP_BREAKPOINT, after: true };
        }
        Mnemonic::Int1 => return Kind::Trap { signal: libc::SIGTRAP, code: libc::TRAP_BRKPT, trap: 1, after: true },
        Mnemonic::Sysenter | Mnemonic::Sysexit | Mnemonic::Sysret => return ILLEGAL,
        _ if x87::is_store(instruction) => return Kind::StoresX87,
        _ => {}
    }
    if loads_segment(instruction) || instruction.is_string_instruction() && instruction.segment_prefix() == Register::GS
    {
        return ILLEGAL;
    }
    match instruction.flow_control() {
        FlowControl::Next | FlowControl::Interrupt | FlowControl::XbeginXabortXend => Kind::Plain,
        FlowControl::UnconditionalBranch if instruction.is_jmp_short_or_near() => {
            Kind::Jump(instruction.near_branch_target())
        }
        FlowControl::ConditionalBranch if instruction.is_jcc_short_or_near() => {
            Kind::Branch(instruction.condition_code() as u8 - 1, instruction.near_branch_target())
        }
        FlowControl::ConditionalBranch => Kind::CountBranch(instruction.near_branch_target()),
        FlowControl::Call if instruction.is_call_near() => Kind::Call(instruction.near_branch_target()),
        FlowControl::IndirectBranch if instruction.is_jmp_near_indirect() => Kind::JumpIndirect,
        FlowControl::IndirectCall if instruction.is_call_near_indirect() => Kind::CallIndirect,
        FlowControl::Return if matches!(instruction.code(), Code::Retnq | Code::Retnq_imm16) => {
            Kind::Return(if instruction.op_count() == 1 { instruction.immediate16() } else { 0 })
        }
        FlowControl::Exception => Kind::PlainEnd,
        // Far branches and what else leaves 64-bit code.
        _ => ILLEGAL,
    }
}

/// `mov fs, ax` and its like: the base would change without our knowledge, GS's under our feet.
fn loads_segment(instruction: &Instruction) -> bool {
    let loads = matches!(instruction.mnemonic(), Mnemonic::Mov | Mnemonic::Pop | Mnemonic::Lfs | Mnemonic::Lgs);
    loads
        && instruction.op0_kind() == OpKind::Register
        && (instruction.op0_register().is_segment_register()
            || matches!(instruction.mnemonic(), Mnemonic::Lfs | Mnemonic::Lgs))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(bytes: &[u8]) -> Vec<Kind> {
        decode_block(bytes, 0x1000, 3, |_| false).iter().map(|step| step.kind).collect()
    }

    #[test]
    fn blocks_end_where_control_leaves() {
        assert_eq!(kinds(&[0x90, 0xeb, 0x02, 0x90]), [Kind::Plain, Kind::Jump(0x1005)]);
        assert_eq!(
            kinds(&[0x74, 0x10, 0x75, 0x10, 0xc3]),
            [Kind::Branch(4, 0x1012), Kind::Branch(5, 0x1014), Kind::Return(0)]
        );
        assert_eq!(kinds(&[0xcc])[0], Kind::Trap { signal: libc::SIGTRAP, code: 128, trap: 3, after: true });
        assert_eq!(kinds(&[0x0f, 0x0b, 0x90]), [Kind::PlainEnd]);
        assert_eq!(kinds(&[0x90, 0x48]), [Kind::Plain, Kind::Truncated]);
        assert_eq!(kinds(&[0x90]), [Kind::Plain], "the next region goes on");
        assert_eq!(kinds(&[0x8e, 0xe8]), [ILLEGAL], "mov gs, eax");
        assert_eq!(kinds(&CLIENT_REQUEST), [Kind::ClientRequest]);
        let with = |last: u8| kinds(&[&CLIENT_REQUEST[..18], &[last]].concat());
        assert_eq!((with(0xc9), with(0xd2)), (vec![Kind::ClientRequest], vec![Kind::ClientRequest]));
        assert_eq!(with(0xff), [Kind::Plain; 5]);
    }

    #[test]
    fn superblocks_pass_as_many_branches_as_asked() {
        let branches = [0x74, 0x00].repeat(8);
        for passed in 0..5 {
            assert_eq!(decode_block(&branches, 0, passed, |_| false).len(), usize::from(passed) + 1);
        }
        assert_eq!(decode_block(&[0x90; 100], 0, 3, |at| at == 5).len(), 5);
    }
}
