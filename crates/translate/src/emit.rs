//! Writes machine code: the dozen instruction forms that the translator adds to the target's own.
//!
//! Source: Intel SDM volume 2, chapter 2 (prefixes, ModRM, SIB).

/// rcx, which checks with live flags and indirect branches borrow: `jrcxz` tests nothing else.
pub(crate) const RCX: u8 = 1;
/// As a number of a register: none. As an index in a SIB byte it means that, too.
pub(crate) const NONE: u8 = 4;
const RSP: u8 = 4;

/// A memory operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mem {
    /// With a GS prefix: the shadow of the operand.
    pub gs: bool,
    /// With an address-size prefix: base and index are 32-bit registers.
    pub address32: bool,
    /// The base register, if there is one.
    pub base: Option<u8>,
    /// The index register, if there is one: never rsp.
    pub index: Option<u8>,
    /// 0 to 3: the index is shifted left by this.
    pub scale: u8,
    /// Displacement.
    pub displacement: i32,
}

impl Mem {
    /// Absolute, below 2 GB.
    pub fn at(address: usize) -> Self {
        Self { gs: false, address32: false, base: None, index: None, scale: 0, displacement: address as i32 }
    }

    /// `[base + displacement]`.
    pub fn base(base: u8, displacement: i32) -> Self {
        Self { gs: false, address32: false, base: Some(base), index: None, scale: 0, displacement }
    }

    /// The same, `bytes` further; `None` when the displacement would overflow.
    pub fn plus(self, bytes: u32) -> Option<Self> {
        let displacement = self.displacement.checked_add_unsigned(bytes)?;
        Some(Self { displacement, ..self })
    }

    /// The shadow of the operand.
    pub fn shadow(self) -> Self {
        Self { gs: true, ..self }
    }

    /// Whether the address is computed with this register.
    pub fn uses(&self, register: u8) -> bool {
        self.base == Some(register) || self.index == Some(register)
    }
}

/// An instruction of five bytes that does nothing, in the place of a jump.
pub(crate) const NOTHING: [u8; 5] = [0x0f, 0x1f, 0x44, 0x00, 0x00];

/// Code on its way to a known address.
#[derive(Debug, Default)]
pub(crate) struct Code {
    /// What is written so far.
    pub bytes: Vec<u8>,
    /// Where `bytes[0]` will lie.
    pub start: u64,
}

impl Code {
    /// Begins anew.
    pub fn begin(&mut self, start: u64) {
        self.bytes.clear();
        self.start = start;
    }

    /// The address of the next byte.
    pub fn here(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub fn u32(&mut self, value: u32) {
        self.raw(&value.to_le_bytes());
    }

    /// Prefixes, opcode, ModRM, SIB and displacement of an instruction with a memory operand.
    fn with_mem(&mut self, operand16: bool, wide: bool, opcode: &[u8], register: u8, mem: &Mem) {
        if mem.gs {
            self.raw(&[0x65]);
        }
        if mem.address32 {
            self.raw(&[0x67]);
        }
        if operand16 {
            self.raw(&[0x66]);
        }
        let base = mem.base.unwrap_or(5);
        let index = mem.index.unwrap_or(NONE);
        let rex = u8::from(wide) << 3 | register >> 3 << 2 | index >> 3 << 1 | base >> 3;
        if rex != 0 {
            self.raw(&[0x40 | rex]);
        }
        self.raw(opcode);
        let field = (register & 7) << 3;
        let sib = mem.scale << 6 | (index & 7) << 3 | base & 7;
        if mem.base.is_none() {
            self.raw(&[field | 4, sib]);
            self.u32(mem.displacement as u32);
            return;
        }
        let short = i8::try_from(mem.displacement);
        let mode = match short {
            Ok(0) if base & 7 != 5 => 0,
            Ok(_) => 0x40,
            Err(_) => 0x80,
        };
        if mem.index.is_some() || base & 7 == RSP {
            self.raw(&[mode | field | 4, sib]);
        } else {
            self.raw(&[mode | field | base & 7]);
        }
        match mode {
            0 => {}
            0x40 => self.raw(&[mem.displacement as u8]),
            _ => self.u32(mem.displacement as u32),
        }
    }

    /// `mov register, [mem]`, 8 bytes.
    pub fn load(&mut self, register: u8, mem: &Mem) {
        self.with_mem(false, true, &[0x8b], register, mem);
    }

    /// `mov [mem], register`, 8 bytes.
    pub fn store(&mut self, mem: &Mem, register: u8) {
        self.with_mem(false, true, &[0x89], register, mem);
    }

    /// `mov [mem], register`, 4 bytes.
    pub fn store_u32_from(&mut self, mem: &Mem, register: u8) {
        self.with_mem(false, false, &[0x89], register, mem);
    }

    /// Loads 1, 2, 4 or 8 bytes and clears the rest of the register.
    pub fn load_zero_extended(&mut self, register: u8, mem: &Mem, bytes: u32) {
        match bytes {
            1 => self.with_mem(false, false, &[0x0f, 0xb6], register, mem),
            2 => self.with_mem(false, false, &[0x0f, 0xb7], register, mem),
            4 => self.with_mem(false, false, &[0x8b], register, mem),
            _ => self.load(register, mem),
        }
    }

    /// `lea register, [mem]`.
    pub fn lea(&mut self, register: u8, mem: &Mem) {
        self.with_mem(false, true, &[0x8d], register, mem);
    }

    /// `cmp SIZE [mem], 0` for 1, 2, 4 or 8 bytes.
    pub fn compare_zero(&mut self, mem: &Mem, bytes: u32) {
        let opcode = if bytes == 1 { 0x80 } else { 0x83 };
        self.with_mem(bytes == 2, bytes == 8, &[opcode], 7, mem);
        self.raw(&[0]);
    }

    /// `cmp register, [mem]`, 8 bytes.
    pub fn compare(&mut self, register: u8, mem: &Mem) {
        self.with_mem(false, true, &[0x3b], register, mem);
    }

    /// `cmp qword [mem], value`, sign-extended.
    pub fn compare_i32(&mut self, mem: &Mem, value: i32) {
        self.with_mem(false, true, &[0x81], 7, mem);
        self.u32(value as u32);
    }

    /// `mov dword [mem], value`.
    pub fn store_u32(&mut self, mem: &Mem, value: u32) {
        self.with_mem(false, false, &[0xc7], 0, mem);
        self.u32(value);
    }

    /// `mov qword [mem], value`, sign-extended.
    pub fn store_i32(&mut self, mem: &Mem, value: i32) {
        self.with_mem(false, true, &[0xc7], 0, mem);
        self.u32(value as u32);
    }

    /// Stores 64 bits at an absolute address, in one piece or in two.
    pub fn store_u64_at(&mut self, address: usize, value: u64) {
        if let Ok(value) = i32::try_from(value as i64) {
            self.store_i32(&Mem::at(address), value);
        } else {
            self.store_u32(&Mem::at(address), value as u32);
            self.store_u32(&Mem::at(address + 4), (value >> 32) as u32);
        }
    }

    /// `mov register, value`.
    pub fn set(&mut self, register: u8, value: u64) {
        if let Ok(value) = u32::try_from(value) {
            if register >= 8 {
                self.raw(&[0x41]);
            }
            self.raw(&[0xb8 | register & 7]);
            self.u32(value);
        } else {
            self.raw(&[0x48 | register >> 3, 0xb8 | register & 7]);
            self.raw(&value.to_le_bytes());
        }
    }

    /// `mov to, from`, 8 bytes.
    pub fn copy(&mut self, to: u8, from: u8) {
        self.raw(&[0x48 | from >> 3 << 2 | to >> 3, 0x89, 0xc0 | (from & 7) << 3 | to & 7]);
    }

    /// `jmp [mem]`.
    pub fn jump_through(&mut self, mem: &Mem) {
        self.with_mem(false, false, &[0xff], 4, mem);
    }

    /// Goes to the routine whose address is in this slot of the state; it comes back by `mark_return`.
    pub fn call_routine(&mut self, routine: usize) {
        // The store is 12 bytes long and the jump 7.
        let back = self.here() + 12 + 7;
        self.store_i32(&Mem::at(crate::state::slot!(mark_return)), back as i32);
        self.jump_through(&Mem::at(routine));
        debug_assert_eq!(self.here(), back);
    }

    /// `jmp target`, always five bytes; gives the address of the displacement.
    pub fn jump(&mut self, target: u64) -> u64 {
        self.raw(&[0xe9]);
        self.relative(target)
    }

    /// `jcc target`, always six bytes; `condition` is the low half of its opcode.
    pub fn jump_if(&mut self, condition: u8, target: u64) -> u64 {
        self.raw(&[0x0f, 0x80 | condition]);
        self.relative(target)
    }

    /// The last four bytes of an instruction that lead to `target`; gives their address.
    pub fn relative(&mut self, target: u64) -> u64 {
        let site = self.here();
        self.u32(displacement(site, target));
        site
    }

    /// `jrcxz`, to be led to its target by [`Code::land`].
    pub fn jump_if_rcx_zero(&mut self) -> Landing {
        self.raw(&[0xe3, 0]);
        Landing(self.bytes.len())
    }

    /// Leads a jump that was written before to here.
    pub fn land(&mut self, landing: Landing) {
        let distance = self.bytes.len() - landing.0;
        debug_assert!(distance < 128, "a short jump over {distance} bytes");
        self.bytes[landing.0 - 1] = distance as u8;
    }
}

/// A forward jump whose target is not written yet.
#[derive(Debug)]
pub(crate) struct Landing(usize);

/// What four bytes at `site`, the end of an instruction, must hold to lead to `target`.
pub(crate) fn displacement(site: u64, target: u64) -> u32 {
    target.wrapping_sub(site + 4) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions, Instruction, OpKind, Register};

    fn decoded(code: &Code) -> Instruction {
        let mut decoder = Decoder::with_ip(64, &code.bytes, 0, DecoderOptions::NONE);
        let instruction = decoder.decode();
        assert_eq!(instruction.len(), code.bytes.len(), "one instruction: {:02x?}", code.bytes);
        instruction
    }

    /// Every base, index, scale and displacement that is encoded differently, against iced's decoder.
    #[test]
    fn operands_decode_to_what_was_meant() {
        for base in (0..16).map(Some).chain([None]) {
            for index in (0..16).filter(|&index| index != RSP).map(Some).chain([None]) {
                for displacement in [0, 1, -128, 127, 128, 0x2000_0000, -129] {
                    for (gs, address32) in [(false, false), (true, false), (true, true)] {
                        let scale = if index.is_some() { (displacement & 3) as u8 } else { 0 };
                        let mem = Mem { gs, address32, base, index, scale, displacement };
                        let mut code = Code::default();
                        code.compare_zero(&mem, 4);
                        let found = decoded(&code);
                        let first = if address32 { Register::EAX } else { Register::RAX };
                        let named = |number: Option<u8>| number.map_or(Register::None, |n| first + u32::from(n));
                        assert_eq!(found.memory_base(), named(base));
                        assert_eq!(found.memory_index(), named(index));
                        if index.is_some() {
                            assert_eq!(found.memory_index_scale(), 1 << scale);
                        }
                        let expected = if address32 { i64::from(displacement as u32) } else { i64::from(displacement) };
                        let read = found.memory_displacement64() as i64;
                        assert_eq!(read as u32, expected as u32);
                        assert_eq!(found.segment_prefix() == Register::GS, gs);
                        assert_eq!(found.op0_kind(), OpKind::Memory);
                    }
                }
            }
        }
    }

    #[test]
    fn immediates_keep_their_value() {
        for value in [0, 1, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 0x1_0000_0000, u64::MAX] {
            for register in [0, 7, 8, 15] {
                let mut code = Code::default();
                code.set(register, value);
                let found = decoded(&code);
                assert_eq!(found.immediate(1), value);
                assert_eq!(found.op0_register().full_register(), Register::RAX + u32::from(register));
            }
        }
    }
}
