//! Which memory an instruction touches, in the form that checks need.

use iced_x86::{Code, Instruction, InstructionInfo, Mnemonic, OpAccess, OpKind, Register, UsedMemory};

use crate::emit::Mem;

/// Largest operand that is checked inline.
const INLINE_BYTES: u32 = 64;

/// How an instruction's operands are checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Look {
    /// Compare these operands' shadow in line.
    Inline(Vec<Access>),
    /// The whole range of a repeated string instruction, by a routine.
    Scan(Scan),
    /// In Rust, every time: the range depends on more than an operand's address.
    Examine,
}

/// What `rep movs`, `rep stos` or `rep lods` touch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Scan {
    /// An element has `1 << shift` bytes.
    pub shift: u8,
    pub reads_rsi: bool,
    pub writes_rdi: bool,
}

impl Scan {
    /// As [`crate::entry`] reads it.
    pub fn encoded(self) -> u32 {
        u32::from(self.shift) | u32::from(self.reads_rsi) << 2 | u32::from(self.writes_rdi) << 3
    }
}

/// `rep movs` and its like with plain 64-bit addresses.
fn scan(instruction: &Instruction) -> Option<Scan> {
    if !instruction.has_rep_prefix() && !instruction.has_repne_prefix() {
        return None;
    }
    let shift = instruction.memory_size().size().trailing_zeros() as u8;
    let (reads_rsi, writes_rdi) = match instruction.mnemonic() {
        Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq => (true, true),
        Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => (false, true),
        Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => (true, false),
        _ => return None,
    };
    let is_wide = (0..instruction.op_count()).all(|index| {
        !matches!(
            instruction.op_kind(index),
            OpKind::MemorySegESI | OpKind::MemoryESEDI | OpKind::MemorySegSI | OpKind::MemoryESDI
        )
    });
    let is_plain = is_wide && !matches!(instruction.segment_prefix(), Register::FS | Register::GS);
    (instruction.is_string_instruction() && is_plain).then_some(Scan { shift, reads_rsi, writes_rdi })
}

/// One memory operand, explicit or implied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Access {
    pub mem: Mem,
    /// What is added to the operand's address.
    pub segment: Segment,
    pub bytes: u32,
}

/// The base of an operand's segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Segment {
    /// 0.
    None,
    /// The state's `fs_base`.
    Fs,
    /// The state's `gs_base`.
    Gs,
    /// An address above 2 GB that the code holds.
    Far(u64),
}

/// What the instruction's memory operands need.
///
/// Operands at constant distances of at least -128 from the stack pointer, `pop` and `ret` included, are taken for good:
/// they are on the live stack by what addressable means there, and they are a third of all accesses.
pub(crate) fn look(instruction: &Instruction, info: &InstructionInfo) -> Look {
    if let Some(scan) = scan(instruction) {
        return Look::Scan(scan);
    }
    if is_examined(instruction) {
        return Look::Examine;
    }
    let mut accesses = Vec::new();
    for memory in info.used_memory() {
        if !is_checked(instruction, memory) {
            continue;
        }
        let bytes = memory.memory_size().size() as u32;
        if bytes == 0 || bytes > INLINE_BYTES || memory.vsib_size() != 0 {
            return Look::Examine;
        }
        if is_live_stack(memory) {
            continue;
        }
        let Some(access) = access(memory, bytes) else { return Look::Examine };
        accesses.push(access);
    }
    Look::Inline(accesses)
}

fn is_live_stack(memory: &UsedMemory) -> bool {
    const RED_ZONE: i64 = 128;
    let by_constant = memory.base() == Register::RSP && memory.index() == Register::None;
    by_constant && memory.segment() != Register::FS && memory.displacement() as i64 >= -RED_ZONE
}

/// Whether this operand is looked at. What `push` and `call` write is new stack, which their move of the stack pointer
/// makes addressable in the same moment.
pub(crate) fn is_checked(instruction: &Instruction, memory: &UsedMemory) -> bool {
    let touches = !matches!(memory.access(), OpAccess::None | OpAccess::NoMemAccess);
    let is_write = matches!(memory.access(), OpAccess::Write | OpAccess::CondWrite);
    let is_stack_write = instruction.is_stack_instruction() && memory.base() == Register::RSP && is_write;
    let is_pop_target = instruction.mnemonic() == Mnemonic::Pop && instruction.op0_kind() == OpKind::Memory;
    touches && (!is_stack_write || is_pop_target)
}

/// Instructions whose range iced's operand does not describe.
fn is_examined(instruction: &Instruction) -> bool {
    let repeated =
        instruction.is_string_instruction() && (instruction.has_rep_prefix() || instruction.has_repne_prefix());
    let bit_string = matches!(
        instruction.code(),
        Code::Bt_rm16_r16
            | Code::Bt_rm32_r32
            | Code::Bt_rm64_r64
            | Code::Bts_rm16_r16
            | Code::Bts_rm32_r32
            | Code::Bts_rm64_r64
            | Code::Btr_rm16_r16
            | Code::Btr_rm32_r32
            | Code::Btr_rm64_r64
            | Code::Btc_rm16_r16
            | Code::Btc_rm32_r32
            | Code::Btc_rm64_r64
    ) && instruction.op0_kind() == OpKind::Memory;
    let implied = matches!(
        instruction.mnemonic(),
        Mnemonic::Xlatb | Mnemonic::Maskmovq | Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu | Mnemonic::Clzero
    );
    // `pop` to memory computes the address with the stack pointer after the pop.
    let pop_to_memory = instruction.mnemonic() == Mnemonic::Pop && instruction.op0_kind() == OpKind::Memory;
    repeated || bit_string || implied || pop_to_memory || is_state_area(instruction)
}

/// `xsave` and its like, whose size the processor and eax:edx decide.
pub(crate) fn is_state_area(instruction: &Instruction) -> bool {
    matches!(
        instruction.mnemonic(),
        Mnemonic::Xsave
            | Mnemonic::Xsave64
            | Mnemonic::Xsavec
            | Mnemonic::Xsavec64
            | Mnemonic::Xsaveopt
            | Mnemonic::Xsaveopt64
            | Mnemonic::Xrstor
            | Mnemonic::Xrstor64
    )
}

fn access(memory: &UsedMemory, bytes: u32) -> Option<Access> {
    let segment = match memory.segment() {
        Register::FS => Segment::Fs,
        Register::GS => Segment::Gs,
        _ => Segment::None,
    };
    let (base, index) = (number(memory.base())?, number(memory.index())?);
    let is_32 = |register: Register| register != Register::None && register.size() == 4;
    let address32 = is_32(memory.base()) || is_32(memory.index());
    let scale = memory.scale().trailing_zeros() as u8;
    let mem = Mem { gs: false, address32, base, index, scale, displacement: 0 };
    let displacement = memory.displacement();
    if let Ok(short) = i32::try_from(displacement as i64) {
        return Some(Access { mem: Mem { displacement: short, ..mem }, segment, bytes });
    }
    if address32 {
        return Some(Access { mem: Mem { displacement: displacement as i32, ..mem }, segment, bytes });
    }
    let is_absolute = base.is_none() && index.is_none() && segment == Segment::None;
    is_absolute.then_some(Access { mem: Mem { base: None, ..mem }, segment: Segment::Far(displacement), bytes })
}

/// The number of an address register: `Some(None)` for no register, `None` for one that no operand of ours can hold.
fn number(register: Register) -> Option<Option<u8>> {
    if register == Register::None {
        return Some(None);
    }
    let is_address = register.is_gpr64() || register.is_gpr32();
    is_address.then(|| Some(register.number() as u8))
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions, InstructionInfoFactory};

    fn looked_at(bytes: &[u8]) -> Look {
        let mut decoder = Decoder::with_ip(64, bytes, 0x40_0000, DecoderOptions::NONE);
        let instruction = decoder.decode();
        look(&instruction, InstructionInfoFactory::new().info(&instruction))
    }

    fn one(bytes: &[u8]) -> Access {
        match looked_at(bytes) {
            Look::Inline(list) if list.len() == 1 => list[0],
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn operands_are_taken_as_they_stand() {
        // mov eax, [rbx+rcx*4+8]
        let access = one(&[0x8b, 0x44, 0x8b, 0x08]);
        assert_eq!((access.mem.base, access.mem.index, access.mem.scale), (Some(3), Some(1), 2));
        assert_eq!((access.mem.displacement, access.bytes, access.segment), (8, 4, Segment::None));
        // mov rax, fs:[0x28]
        let access = one(&[0x64, 0x48, 0x8b, 0x04, 0x25, 0x28, 0, 0, 0]);
        assert_eq!((access.segment, access.mem.displacement, access.bytes), (Segment::Fs, 0x28, 8));
        // mov eax, [rip+0x10]
        let access = one(&[0x8b, 0x05, 0x10, 0, 0, 0]);
        assert_eq!((access.mem.base, access.mem.displacement, access.segment), (None, 0x40_0016, Segment::None));
        // vmovups zmm0, [rax+0x40]
        assert_eq!(one(&[0x62, 0xf1, 0x7c, 0x48, 0x10, 0x40, 0x01]).mem.displacement, 0x40);
    }

    #[test]
    fn what_touches_nothing_has_no_access() {
        for bytes in [&[0x8d, 0x00][..], &[0x0f, 0x18, 0x08], &[0x0f, 0x1f, 0x00], &[0x50]] {
            assert_eq!(looked_at(bytes), Look::Inline(Vec::new()), "{bytes:02x?}");
        }
        // mov eax, [rsp+8] and pop rax are on the live stack, mov eax, [rsp-0x90] is not
        assert_eq!(looked_at(&[0x8b, 0x44, 0x24, 0x08]), Look::Inline(Vec::new()));
        assert_eq!(looked_at(&[0x58]), Look::Inline(Vec::new()));
        assert_eq!(one(&[0x8b, 0x84, 0x24, 0x70, 0xff, 0xff, 0xff]).mem.base, Some(4));
        // leave, lodsb read
        assert_eq!(one(&[0xc9]).mem.base, Some(5));
        assert_eq!(one(&[0xac]).mem.base, Some(6));
    }

    #[test]
    fn ranges_of_unknown_length_go_to_rust() {
        // rep movsq, and with 32-bit addresses
        let all = Scan { shift: 3, reads_rsi: true, writes_rdi: true };
        assert_eq!(looked_at(&[0xf3, 0x48, 0xa5]), Look::Scan(all));
        assert_eq!(looked_at(&[0x67, 0xf3, 0x48, 0xa5]), Look::Examine);
        // repne scasb; bt [rax], ecx; xlatb; xsave [rax]; vpgatherdd xmm0, [rax+xmm1*4], xmm2
        for bytes in [
            &[0xf2, 0xae][..],
            &[0x0f, 0xa3, 0x08],
            &[0xd7],
            &[0x0f, 0xae, 0x20],
            &[0xc4, 0xe2, 0x69, 0x90, 0x04, 0x88],
        ] {
            assert_eq!(looked_at(bytes), Look::Examine, "{bytes:02x?}");
        }
    }
}
