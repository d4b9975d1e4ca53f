//! Random instruction sequences: any form that the encoder knows, operands mostly in the test's memory.
//!
//! rbx, rbp, rsp point into the data, r14 is a small index, r12 points nowhere, zmm14 and zmm15 hold small indices (64
//! and 32 bits): instructions that would change these are not taken. Nor are those that read a flag that an earlier one
//! left undefined.

use iced_x86::{
    Code, Encoder, FlowControl, Instruction, InstructionInfoFactory, MemoryOperand, Mnemonic, OpAccess,
    OpCodeOperandKind as Kind, OpKind, Register, RflagsBits, RoundingControl,
};

use super::machine::{DATA, HIGH_CODE, HIGH_DATA};

/// xorshift64*: reproducible, and good enough to choose instructions.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 16) % end
    }

    pub fn one_in(&mut self, chance: u64) -> bool {
        self.below(chance) == 0
    }

    pub fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len() as u64) as usize]
    }
}

/// Instructions that differ by nature, or leave the test's world.
fn is_excluded(code: Code) -> bool {
    use Mnemonic as M;
    let kind = code.op_code();
    let by_name = matches!(
        code.mnemonic(),
        M::Rdtsc | M::Rdtscp | M::Rdpmc | M::Rdrand | M::Rdseed | M::Rdpid | M::Cpuid | M::Wrpkru | M::Rdpkru | M::Rdpru
            | M::Wrfsbase | M::Wrgsbase | M::Rdfsbase | M::Rdgsbase | M::Mwaitx | M::Mwait | M::Monitorx | M::Umwait
            | M::Tpause | M::Xrstor | M::Xrstor64 | M::Xsave | M::Xsave64 | M::Xsavec | M::Xsavec64 | M::Xsaveopt
            | M::Xsaveopt64 | M::Xgetbv | M::Popf | M::Popfq | M::Lfs | M::Lgs | M::Lss | M::Leave | M::Enter | M::Wait
            | M::Vmcall | M::Vmmcall | M::Vmgexit | M::Sgdt | M::Sidt | M::Sldt | M::Str | M::Smsw | M::Fxrstor
            // These store the last x87 instruction's address, which is the cache's.
            | M::Fnstenv | M::Fstenv | M::Fnsave | M::Fsave | M::Fxsave | M::Fxsave64
            | M::Fxrstor64 | M::Int1 | M::Ldmxcsr | M::Vldmxcsr
    );
    // Addresses in registers that hold anything: `string` gives them pointers.
    let implied = code.is_string_instruction()
        || matches!(
            code.mnemonic(),
            M::Maskmovq | M::Maskmovdqu | M::Vmaskmovdqu | M::Clzero | M::Xlatb | M::Movdir64b
        );
    let segment = (0..kind.op_count())
        .any(|index| matches!(kind.op_kind(index), Kind::seg_reg | Kind::cr_reg | Kind::dr_reg | Kind::tr_reg));
    by_name
        || implied
        || segment
        || !kind.mode64()
        || kind.is_privileged()
        || matches!(
            code,
            Code::INVALID | Code::DeclareByte | Code::DeclareWord | Code::DeclareDword | Code::DeclareQword
        )
        || !matches!(code.flow_control(), FlowControl::Next)
}

/// All forms that may be taken.
pub fn all_forms() -> Vec<Code> {
    Code::values().filter(|&code| !is_excluded(code)).collect()
}

const RESERVED: [Register; 6] =
    [Register::RBX, Register::RBP, Register::RSP, Register::R12, Register::R14, Register::GS];
const SMALL_VECTORS: [Register; 2] = [Register::ZMM14, Register::ZMM15];
const ARITHMETIC: u32 =
    RflagsBits::OF | RflagsBits::SF | RflagsBits::ZF | RflagsBits::AF | RflagsBits::CF | RflagsBits::PF;

/// A sequence under construction.
pub struct Generator<'a> {
    pub random: Random,
    forms: &'a [Code],
    factory: InstructionInfoFactory,
    encoder: Encoder,
    start: u64,
    pub bytes: Vec<u8>,
    /// Flags (iced's bits) that an instruction left undefined.
    pub undefined: u32,
    /// Every instruction, for the message of a failure.
    pub listing: Vec<Instruction>,
}

impl<'a> Generator<'a> {
    pub fn new(seed: u64, forms: &'a [Code], start: u64) -> Self {
        Self {
            random: Random::new(seed),
            forms,
            factory: InstructionInfoFactory::new(),
            encoder: Encoder::new(64),
            start,
            bytes: Vec::new(),
            undefined: 0,
            listing: Vec::new(),
        }
    }

    /// Writes a sequence of about this many instructions.
    pub fn sequence(&mut self, count: usize) {
        for _ in 0..count {
            match self.random.below(24) {
                0 => self.forward_branch(),
                1 => self.call(),
                2 => self.string(),
                3 => self.indirect(),
                _ => self.any(),
            }
        }
    }

    /// One instruction of a random form.
    fn any(&mut self) {
        for _ in 0..50 {
            let code = self.random.pick(self.forms);
            if let Some(instruction) = self.instruction(code)
                && self.take(&instruction)
            {
                return;
            }
        }
    }

    /// Encodes an instruction of this form with random operands.
    pub fn instruction(&mut self, code: Code) -> Option<Instruction> {
        let kind = code.op_code();
        let mut instruction = Instruction::new();
        instruction.set_code(code);
        for index in 0..kind.op_count() {
            self.operand(&mut instruction, index, kind.op_kind(index))?;
        }
        let has_memory = (0..kind.op_count()).any(|index| instruction.op_kind(index) == OpKind::Memory);
        let bit_string = [Mnemonic::Bt, Mnemonic::Bts, Mnemonic::Btr, Mnemonic::Btc].contains(&code.mnemonic());
        if has_memory && bit_string && instruction.op1_kind() == OpKind::Register {
            // Any other register would reach the engine's own memory.
            let small = match instruction.op1_register().size() {
                2 => Register::R14W,
                4 => Register::R14D,
                _ => Register::R14,
            };
            instruction.set_op1_register(small);
        }
        if has_memory && kind.can_use_lock_prefix() && self.random.one_in(4) {
            instruction.set_has_lock_prefix(true);
        }
        if has_memory && kind.can_broadcast() && self.random.one_in(2) {
            instruction.set_is_broadcast(true);
        }
        if kind.can_use_op_mask_register() && (kind.require_op_mask_register() || self.random.one_in(2)) {
            instruction.set_op_mask(Register::K1 + self.random.below(7) as u32);
            if kind.can_use_zeroing_masking() && self.random.one_in(2) {
                instruction.set_zeroing_masking(true);
            }
        }
        if !has_memory && kind.can_use_rounding_control() && self.random.one_in(3) {
            instruction.set_rounding_control(RoundingControl::RoundToNearest);
        } else if !has_memory && kind.can_suppress_all_exceptions() && self.random.one_in(3) {
            instruction.set_suppress_all_exceptions(true);
        }
        Some(instruction)
    }

    /// Whether a register may be changed, and may be named.
    fn is_free(&mut self, instruction: &Instruction) -> bool {
        let info = self.factory.info(instruction);
        info.used_registers().iter().all(|used| {
            let writes = !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::None);
            let register = used.register();
            let full = register.full_register();
            let is_stack = full == Register::RSP && instruction.is_stack_instruction();
            !writes || is_stack || !RESERVED.contains(&full) && !SMALL_VECTORS.contains(&full)
        })
    }

    /// Appends the instruction unless it breaks a rule or cannot be encoded.
    pub fn take(&mut self, instruction: &Instruction) -> bool {
        if instruction.rflags_read() & self.undefined != 0 || !self.is_free(instruction) {
            return false;
        }
        // A shift by zero, and a bit scan of zero, leave more undefined than iced says.
        let at = self.start + self.bytes.len() as u64;
        if self.encoder.encode(instruction, at).is_err() {
            let _ = self.encoder.take_buffer();
            return false;
        }
        let bytes = self.encoder.take_buffer();
        self.bytes.extend_from_slice(&bytes);
        let defined = instruction.rflags_written() | instruction.rflags_cleared() | instruction.rflags_set();
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
        if !by_count {
            self.undefined &= !defined;
        }
        self.undefined |= instruction.rflags_undefined() & ARITHMETIC;
        if by_count {
            self.undefined |= RflagsBits::OF | RflagsBits::AF;
        }
        self.listing.push(*instruction);
        true
    }

    fn operand(&mut self, instruction: &mut Instruction, index: u32, kind: Kind) -> Option<()> {
        if self.immediate(instruction, index, kind) {
            return Some(());
        }
        let name = format!("{kind:?}");
        if name.starts_with("mem_vsib") {
            self.gather(instruction, index, kind);
            return Some(());
        }
        let is_memory = matches!(kind, Kind::mem | Kind::mem_mib | Kind::sibmem);
        if is_memory || name.ends_with("_or_mem") && self.random.one_in(2) {
            self.memory(instruction, index);
            return Some(());
        }
        let register = self.register(kind)?;
        instruction.set_op_kind(index, OpKind::Register);
        instruction.set_op_register(index, register);
        Some(())
    }

    fn register(&mut self, kind: Kind) -> Option<Register> {
        let random = &mut self.random;
        let number = random.pick(&[0, 1, 2, 6, 7, 8, 9, 10, 11, 13, 15, 3, 5, 12, 14]);
        let (eighth, vector, wide_vector) = (random.below(8) as u32, random.below(16) as u32, random.below(32) as u32);
        Some(match kind {
            Kind::r8_reg | Kind::r8_opcode | Kind::r8_or_mem => random.pick(&BYTE_REGISTERS),
            Kind::r16_reg | Kind::r16_reg_mem | Kind::r16_rm | Kind::r16_opcode | Kind::r16_or_mem => {
                Register::AX + number
            }
            Kind::r32_reg | Kind::r32_reg_mem | Kind::r32_rm | Kind::r32_opcode | Kind::r32_vvvv | Kind::r32_or_mem => {
                Register::EAX + number
            }
            Kind::r64_reg | Kind::r64_reg_mem | Kind::r64_rm | Kind::r64_opcode | Kind::r64_vvvv | Kind::r64_or_mem => {
                Register::RAX + number
            }
            Kind::k_reg | Kind::k_rm | Kind::k_vvvv | Kind::k_or_mem => Register::K0 + eighth,
            Kind::kp1_reg => Register::K0 + (eighth & !1),
            Kind::mm_reg | Kind::mm_rm | Kind::mm_or_mem => Register::MM0 + eighth,
            Kind::xmm_reg | Kind::xmm_rm | Kind::xmm_vvvv | Kind::xmm_is4 | Kind::xmm_is5 | Kind::xmm_or_mem => {
                Register::XMM0 + vector
            }
            Kind::ymm_reg | Kind::ymm_rm | Kind::ymm_vvvv | Kind::ymm_is4 | Kind::ymm_is5 | Kind::ymm_or_mem => {
                Register::YMM0 + vector
            }
            Kind::zmm_reg | Kind::zmm_rm | Kind::zmm_vvvv | Kind::zmm_or_mem => Register::ZMM0 + wide_vector,
            Kind::al => Register::AL,
            Kind::cl => Register::CL,
            Kind::ax => Register::AX,
            Kind::dx => Register::DX,
            Kind::eax => Register::EAX,
            Kind::rax => Register::RAX,
            Kind::st0 => Register::ST0,
            Kind::sti_opcode => Register::ST0 + eighth,
            _ => return None,
        })
    }

    /// Sets an immediate operand; says whether it is one.
    fn immediate(&mut self, instruction: &mut Instruction, index: u32, kind: Kind) -> bool {
        let value = self.random.next();
        match kind {
            Kind::imm8 | Kind::imm4_m2z | Kind::imm8_const_1 => {
                instruction.set_op_kind(index, OpKind::Immediate8);
                instruction.set_immediate8(match kind {
                    Kind::imm8_const_1 => 1,
                    Kind::imm4_m2z => value as u8 & 3,
                    _ => value as u8,
                });
            }
            Kind::imm8sex16 | Kind::imm8sex32 | Kind::imm8sex64 => {
                let form = match kind {
                    Kind::imm8sex16 => OpKind::Immediate8to16,
                    Kind::imm8sex32 => OpKind::Immediate8to32,
                    _ => OpKind::Immediate8to64,
                };
                instruction.set_op_kind(index, form);
                instruction.set_immediate_i64(index, i64::from(value as i8));
            }
            Kind::imm16 => {
                instruction.set_op_kind(index, OpKind::Immediate16);
                instruction.set_immediate16(value as u16);
            }
            Kind::imm32 => {
                instruction.set_op_kind(index, OpKind::Immediate32);
                instruction.set_immediate32(value as u32);
            }
            Kind::imm32sex64 => {
                instruction.set_op_kind(index, OpKind::Immediate32to64);
                instruction.set_immediate_i64(index, i64::from(value as i32));
            }
            Kind::imm64 => {
                instruction.set_op_kind(index, OpKind::Immediate64);
                instruction.set_immediate64(value);
            }
            _ => return false,
        }
        true
    }

    /// A memory operand: mostly based on a pointer into the data.
    fn memory(&mut self, instruction: &mut Instruction, index: u32) {
        let random = &mut self.random;
        let displacement = random.below(0x180) as i64 - 0x80;
        let aligned = if random.one_in(3) { displacement } else { displacement & !63 };
        let pointer = random.pick(&[Register::RBX, Register::RBP, Register::RBX, Register::RSP]);
        let index_register = random.pick(&[Register::None, Register::None, Register::R14]);
        let scale = if index_register == Register::None { 1 } else { random.pick(&[1, 2, 4, 8]) };
        let mut operand = MemoryOperand::new(pointer, index_register, scale, aligned, 1, false, Register::None);
        match random.below(40) {
            0 | 1 => operand.base = Register::RIP,
            2 | 3 => (operand.base, operand.displacement) = (Register::None, DATA as i64 + 0x2000 + aligned),
            4 => (operand.base, operand.displ_size) = (Register::EBX, 4),
            5 | 6 => (operand.base, operand.segment_prefix) = (Register::None, Register::FS),
            7 => (operand.base, operand.index, operand.segment_prefix) = (Register::R14, Register::None, Register::FS),
            8 => (operand.base, operand.index, operand.segment_prefix) = (Register::R14, Register::None, Register::GS),
            9 => (operand.base, operand.index, operand.segment_prefix) = (Register::R14, Register::R14, Register::FS),
            10 if random.one_in(8) => operand.base = Register::R12,
            _ => {}
        }
        if operand.base == Register::EBX {
            operand.index = Register::None;
        }
        if operand.base == Register::RIP {
            (operand.index, operand.scale) = (Register::None, 1);
            let near = if self.start == HIGH_CODE { HIGH_DATA as i64 + 0x80 } else { DATA as i64 + 0x2000 };
            operand.displacement = near + (aligned & 0x7f);
        }
        if operand.base == Register::None && operand.index == Register::None && operand.displacement < 0 {
            operand.displacement = operand.displacement.abs();
        }
        if operand.index == Register::None {
            operand.scale = 1;
        }
        set_memory(instruction, index, &operand);
    }

    fn gather(&mut self, instruction: &mut Instruction, index: u32, kind: Kind) {
        let register = match kind {
            Kind::mem_vsib32x => Register::XMM15,
            Kind::mem_vsib32y => Register::YMM15,
            Kind::mem_vsib32z => Register::ZMM15,
            Kind::mem_vsib64x => Register::XMM14,
            Kind::mem_vsib64y => Register::YMM14,
            _ => Register::ZMM14,
        };
        let scale = self.random.pick(&[1, 2, 4, 8]);
        let displacement = self.random.below(0x100) as i64 - 0x80;
        let operand = MemoryOperand::new(Register::RBX, register, scale, displacement, 1, false, Register::None);
        set_memory(instruction, index, &operand);
    }

    fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// `jcc` or `jmp` over one or two instructions.
    fn forward_branch(&mut self) {
        let conditions = [
            RflagsBits::OF,
            RflagsBits::CF,
            RflagsBits::ZF,
            RflagsBits::CF | RflagsBits::ZF,
            RflagsBits::SF,
            RflagsBits::PF,
            RflagsBits::SF | RflagsBits::OF,
            RflagsBits::ZF | RflagsBits::SF | RflagsBits::OF,
        ];
        let condition = self.random.below(16) as u8;
        let is_defined = conditions[usize::from(condition / 2)] & self.undefined == 0;
        let before = self.undefined;
        let opcode: &[u8] = if is_defined { &[0x0f, 0x80 | condition] } else { &[0xe9] };
        self.raw(opcode);
        self.raw(&[0; 4]);
        let start = self.bytes.len();
        self.any();
        if self.random.one_in(2) {
            self.any();
        }
        let distance = (self.bytes.len() - start) as u32;
        self.bytes[start - 4..start].copy_from_slice(&distance.to_le_bytes());
        self.undefined |= before;
    }

    /// A call of one instruction and a `ret`, jumped over. Flags are dead at both by agreement.
    fn call(&mut self) {
        self.raw(&[0xe8, 5, 0, 0, 0, 0xe9]);
        self.raw(&[0; 4]);
        let start = self.bytes.len();
        let undefined = ARITHMETIC;
        self.undefined = undefined;
        self.any_but_stack();
        self.undefined = undefined;
        if self.random.one_in(3) {
            self.raw(&[0x50, 0xc2, 8, 0]);
            let at = self.bytes.len();
            // push rax; ret 8 would return to rax: take the push out again.
            self.bytes.drain(at - 4..);
        }
        self.raw(&[0xc3]);
        let distance = (self.bytes.len() - start) as u32;
        self.bytes[start - 4..start].copy_from_slice(&distance.to_le_bytes());
    }

    fn any_but_stack(&mut self) {
        for _ in 0..50 {
            let code = self.random.pick(self.forms);
            if code.is_stack_instruction() {
                continue;
            }
            if let Some(instruction) = self.instruction(code)
                && !writes_near_stack(&instruction)
                && self.take(&instruction)
            {
                return;
            }
        }
    }

    /// rsi, rdi and rcx as a string instruction wants them, now and then the other way round.
    fn string(&mut self) {
        let (source, target) = (self.random.below(0x80) as u8, self.random.below(0x80) as u8);
        self.raw(&[0x48, 0x8d, 0x73, source & 0x7f, 0x48, 0x8d, 0x7d, target & 0x7f]);
        if self.random.one_in(6) {
            // maskmovdqu xmm1, xmm2; vmaskmovdqu; maskmovq mm1, mm2
            let masked =
                self.random.pick(&[&[0x66u8, 0x0f, 0xf7, 0xca][..], &[0xc5, 0xf9, 0xf7, 0xca], &[0x0f, 0xf7, 0xca]]);
            self.raw(masked);
            return;
        }
        let count = self.random.below(40) as u8;
        self.raw(&[0xb9, count, 0, 0, 0]);
        let backwards = self.random.one_in(4);
        self.raw(if backwards { &[0xfd] } else { &[0xfc] });
        let prefix: &[u8] = self.random.pick(&[&[0xf3u8][..], &[0xf2], &[]]);
        let wide: &[u8] = self.random.pick(&[&[0x48u8][..], &[0x66], &[]]);
        let opcode = self.random.pick(&[0xa4u8, 0xa5, 0xaa, 0xab, 0xac, 0xad, 0xa6, 0xa7, 0xae, 0xaf]);
        let compares = matches!(opcode, 0xa6 | 0xa7 | 0xae | 0xaf);
        let prefix = if prefix == [0xf2] && !compares { &[0xf3] } else { prefix };
        if wide == [0x66] {
            self.raw(wide);
            self.raw(prefix);
        } else {
            self.raw(prefix);
            self.raw(wide);
        }
        self.raw(&[opcode, 0xfc]);
        if compares && prefix.is_empty() {
            self.undefined = 0;
        }
    }

    /// `lea rax, [rip+n]; jmp rax`, or through memory. Flags are dead behind it by agreement.
    fn indirect(&mut self) {
        self.undefined = ARITHMETIC;
        if self.random.one_in(2) {
            // lea r11,[rip+3]; jmp r11
            self.raw(&[0x4c, 0x8d, 0x1d, 3, 0, 0, 0, 0x41, 0xff, 0xe3]);
        } else {
            // lea rcx,[rip+4]; mov [rbx],rcx -> jmp [rbx]
            self.raw(&[0x48, 0x8d, 0x0d, 5, 0, 0, 0, 0x48, 0x89, 0x0b, 0xff, 0x23]);
        }
    }
}

/// Whether the operand may hit the return address.
fn writes_near_stack(instruction: &Instruction) -> bool {
    instruction.memory_base() == Register::RSP
}

fn set_memory(instruction: &mut Instruction, index: u32, operand: &MemoryOperand) {
    instruction.set_op_kind(index, OpKind::Memory);
    instruction.set_memory_base(operand.base);
    instruction.set_memory_index(operand.index);
    instruction.set_memory_index_scale(operand.scale);
    instruction.set_memory_displacement64(operand.displacement as u64);
    let short = operand.base == Register::None && operand.index == Register::None || operand.base == Register::RIP;
    instruction.set_memory_displ_size(if short { 8 } else { operand.displ_size });
    if operand.segment_prefix != Register::None {
        instruction.set_segment_prefix(operand.segment_prefix);
    }
}

const BYTE_REGISTERS: [Register; 14] = [
    Register::AL,
    Register::CL,
    Register::DL,
    Register::AH,
    Register::CH,
    Register::DH,
    Register::SIL,
    Register::DIL,
    Register::R8L,
    Register::R9L,
    Register::R10L,
    Register::R11L,
    Register::R13L,
    Register::R15L,
];
