//! What an instruction will touch, exactly: for operands whose check failed, and for those that no check in line covers
//! (repeated strings, gathers, masked lanes, `xsave`, bit strings).

use iced_x86::{Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register, UsedMemory};

use crate::access::{is_checked, is_state_area};
use crate::vectors::Vectors;
use crate::{AccessKind, Gpr, Guest, probe};

/// A range of the target's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Touch {
    pub address: u64,
    pub bytes: u64,
    pub kind: AccessKind,
}

const DIRECTION: u64 = 0x400;

/// Everything that the instruction touches with these registers, apart from what [`is_checked`] leaves out. `is_bad` says
/// whether a range's shadow is set: a scan that would end at such a range ends the list with it.
pub(crate) fn touches(instruction: &Instruction, guest: &Guest, is_bad: impl Fn(u64, u64) -> bool) -> Vec<Touch> {
    let look = Look { instruction, guest, vectors: Vectors::new(guest) };
    let mut list = Vec::new();
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info(instruction);
    for memory in info.used_memory() {
        if !is_checked(instruction, memory) {
            continue;
        }
        if is_state_area(instruction) {
            look.state_area(memory, &mut list);
        } else if memory.vsib_size() != 0 {
            look.gathered(memory, &mut list);
        } else if instruction.is_string_instruction()
            && (instruction.has_rep_prefix() || instruction.has_repne_prefix())
        {
            look.repeated(memory, &is_bad, &mut list);
        } else {
            look.plain(memory, &mut list);
        }
    }
    list
}

/// The address of the instruction's first memory operand.
pub(crate) fn operand_address(instruction: &Instruction, guest: &Guest) -> Option<u64> {
    let look = Look { instruction, guest, vectors: Vectors::new(guest) };
    let mut factory = InstructionInfoFactory::new();
    let memory = *factory.info(instruction).used_memory().first()?;
    look.address(&memory, 0)
}

struct Look<'a> {
    instruction: &'a Instruction,
    guest: &'a Guest,
    vectors: Vectors<'a>,
}

fn kind(access: OpAccess) -> AccessKind {
    match access {
        OpAccess::Read | OpAccess::CondRead => AccessKind::Read,
        _ => AccessKind::Write,
    }
}

impl Look<'_> {
    fn register(&self, register: Register) -> u64 {
        match register {
            Register::FS => self.guest.fs_base,
            Register::GS => self.guest.gs_base,
            register if register.is_gpr() => {
                let full = self.guest.gpr[register.full_register().number()];
                match register.size() {
                    1 if (Register::AH..=Register::BH).contains(&register) => full >> 8 & 0xff,
                    1 => full & 0xff,
                    2 => full & 0xffff,
                    4 => full & 0xffff_ffff,
                    _ => full,
                }
            }
            _ => 0,
        }
    }

    /// The operand's address; for a gather, that of one lane.
    fn address(&self, memory: &UsedMemory, lane: usize) -> Option<u64> {
        memory.virtual_address(lane, |register, element, bytes| {
            if register.is_vector_register() {
                let all = self.vectors.register(register.number());
                let at = element * bytes;
                let mut value = [0; 8];
                value[..bytes].copy_from_slice(all.get(at..at + bytes)?);
                return Some(u64::from_le_bytes(value));
            }
            Some(self.register(register))
        })
    }

    fn plain(&self, memory: &UsedMemory, list: &mut Vec<Touch>) {
        let Some(mut address) = self.address(memory, 0) else { return };
        let mut bytes = memory.memory_size().size() as u64;
        match self.instruction.mnemonic() {
            Mnemonic::Clzero => (address, bytes) = (address & !63, 64),
            Mnemonic::Pop if memory.base() == Register::RSP && memory.access() == OpAccess::Write => address += 8,
            _ => {}
        }
        if let Some(offset) = self.bit_string_offset(bytes) {
            // The processor may read a whole word; what counts is the byte with the bit.
            (address, bytes) = (address.wrapping_add(offset), 1);
        }
        let kind = kind(memory.access());
        let Some(lanes) = self.lanes(memory) else {
            list.push(Touch { address, bytes, kind });
            return;
        };
        for (offset, bytes) in lanes {
            list.push(Touch { address: address.wrapping_add(offset), bytes, kind });
        }
    }

    /// How far from its operand the byte is that `bt [m], r` looks at.
    fn bit_string_offset(&self, bytes: u64) -> Option<u64> {
        let family = [Mnemonic::Bt, Mnemonic::Bts, Mnemonic::Btr, Mnemonic::Btc];
        if !family.contains(&self.instruction.mnemonic()) || self.instruction.op1_kind() != OpKind::Register {
            return None;
        }
        let unused = 64 - 8 * bytes as u32;
        let bit = (self.register(self.instruction.op1_register()) << unused) as i64 >> unused;
        Some((bit >> 3) as u64)
    }

    /// The lanes that a mask lets through, as offset and size; `None` without a mask.
    fn lanes(&self, memory: &UsedMemory) -> Option<Vec<(u64, u64)>> {
        let instruction = self.instruction;
        let size = memory.memory_size();
        let (bytes, element) = (size.size(), size.element_size().max(1));
        let in_memory = bytes / element;
        let by_sign = |register: Register| {
            let mask = self.vectors.register(register.number());
            (0..in_memory).filter(|lane| mask[(lane + 1) * element - 1] & 0x80 != 0).map(|lane| lane as u64).collect()
        };
        let set: Vec<u64> = match instruction.mnemonic() {
            Mnemonic::Vmaskmovps | Mnemonic::Vmaskmovpd | Mnemonic::Vpmaskmovd | Mnemonic::Vpmaskmovq => {
                by_sign(instruction.op1_register())
            }
            Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu => {
                let mask = self.vectors.register(instruction.op2_register().number());
                return Some((0..16).filter(|&lane| mask[lane] & 0x80 != 0).map(|lane| (lane as u64, 1)).collect());
            }
            Mnemonic::Maskmovq => {
                let mask = self.vectors.mmx(instruction.op2_register().number());
                return Some((0..8).filter(|&lane| mask[lane] & 0x80 != 0).map(|lane| (lane as u64, 1)).collect());
            }
            _ => {
                if instruction.op_mask() == Register::None {
                    return None;
                }
                self.by_opmask(in_memory, bytes, element)
            }
        };
        Some(set.into_iter().map(|lane| (lane * element as u64, element as u64)).collect())
    }

    fn by_opmask(&self, in_memory: usize, bytes: usize, element: usize) -> Vec<u64> {
        let instruction = self.instruction;
        let mask = self.vectors.opmask(instruction.op_mask().number());
        let vector_bytes = (0..instruction.op_count())
            .filter(|&index| instruction.op_kind(index) == OpKind::Register)
            .map(|index| instruction.op_register(index))
            .filter(|register| register.is_vector_register())
            .map(|register| register.size())
            .max()
            .unwrap_or(bytes);
        let name = format!("{:?}", instruction.mnemonic());
        let repeats = instruction.is_broadcast() || name.contains("broadcast");
        let packs = name.contains("compress") || name.contains("expand");
        let lanes = if repeats || packs { vector_bytes / element } else { in_memory };
        let set = (0..lanes.min(64)).filter(|&lane| mask >> lane & 1 != 0);
        if packs {
            return (0..set.count() as u64).collect();
        }
        let mut list: Vec<u64> = set.map(|lane| (lane % in_memory.max(1)) as u64).collect();
        list.sort_unstable();
        list.dedup();
        list
    }

    fn gathered(&self, memory: &UsedMemory, list: &mut Vec<Touch>) {
        let instruction = self.instruction;
        let element = memory.memory_size().size();
        let is_scatter = instruction.op0_kind() == OpKind::Memory;
        let data = if is_scatter { instruction.op1_register() } else { instruction.op0_register() };
        let lanes = (data.size() / element).min(memory.index().size() / memory.vsib_size() as usize);
        for lane in 0..lanes {
            let is_set = if instruction.op_mask() != Register::None {
                self.vectors.opmask(instruction.op_mask().number()) >> lane & 1 != 0
            } else {
                let mask = self.vectors.register(instruction.op2_register().number());
                mask[(lane + 1) * element - 1] & 0x80 != 0
            };
            if is_set && let Some(address) = self.address(memory, lane) {
                let kind = if is_scatter { AccessKind::Write } else { AccessKind::Read };
                list.push(Touch { address, bytes: element as u64, kind });
            }
        }
    }

    fn repeated(&self, memory: &UsedMemory, is_bad: &impl Fn(u64, u64) -> bool, list: &mut Vec<Touch>) {
        // iced gives the repeated operand no size of its own.
        let element = self.instruction.memory_size().size() as u64;
        let short = memory.base().size() == 4;
        let count = self.guest.gpr(Gpr::Rcx) & if short { 0xffff_ffff } else { u64::MAX };
        let Some(first) = self.address(memory, 0) else { return };
        let done = match self.instruction.mnemonic() {
            Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq => {
                self.scanned(first, None, count, element, is_bad)
            }
            Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd | Mnemonic::Cmpsq => {
                let (source, other) = (self.guest.gpr(Gpr::Rsi), self.guest.gpr(Gpr::Rdi));
                self.scanned(source, Some(other), count, element, is_bad)
            }
            _ => count,
        };
        if done == 0 {
            return;
        }
        let bytes = done.saturating_mul(element);
        let backwards = self.guest.rflags & DIRECTION != 0;
        let address = if backwards { first.wrapping_sub(bytes - element) } else { first };
        list.push(Touch { address, bytes, kind: kind(memory.access()) });
    }

    /// How many elements `scas` or `cmps` looks at before it stops, or comes to memory that it should not touch.
    fn scanned(
        &self,
        at: u64,
        other: Option<u64>,
        count: u64,
        element: u64,
        is_bad: &impl Fn(u64, u64) -> bool,
    ) -> u64 {
        let step = if self.guest.rflags & DIRECTION != 0 { element.wrapping_neg() } else { element };
        let while_equal = self.instruction.has_rep_prefix();
        for done in 0..count {
            let distance = step.wrapping_mul(done);
            let address = at.wrapping_add(distance);
            let against = other.map(|other| other.wrapping_add(distance));
            if is_bad(address, element) || against.is_some_and(|address| is_bad(address, element)) {
                return done + 1;
            }
            let Some(value) = probe::read(address, element) else { return done + 1 };
            let expected = match against {
                Some(address) => probe::read(address, element),
                None => Some(self.guest.gpr(Gpr::Rax) & (u64::MAX >> (64 - 8 * element))),
            };
            if (Some(value) == expected) != while_equal {
                return done + 1;
            }
        }
        count
    }

    /// `xsave` and `xrstor`: the legacy area, the header, and each component that eax:edx asks for.
    fn state_area(&self, memory: &UsedMemory, list: &mut Vec<Touch>) {
        let Some(address) = self.address(memory, 0) else { return };
        let asked = self.guest.gpr(Gpr::Rdx) << 32 | self.guest.gpr(Gpr::Rax) & 0xffff_ffff;
        let mnemonic = self.instruction.mnemonic();
        let restores = matches!(mnemonic, Mnemonic::Xrstor | Mnemonic::Xrstor64);
        let kind = if restores { AccessKind::Read } else { AccessKind::Write };
        list.push(Touch { address, bytes: 576, kind });
        if restores {
            // Which components are read stands in the header that was just named.
            return;
        }
        let compact = matches!(mnemonic, Mnemonic::Xsavec | Mnemonic::Xsavec64);
        for (offset, bytes) in Vectors::components(asked & Guest::xsave_mask(), compact) {
            list.push(Touch { address: address.wrapping_add(offset), bytes, kind });
        }
    }
}
