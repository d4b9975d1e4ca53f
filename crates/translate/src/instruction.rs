//! Writes single instructions of the target: most are copied; what names RIP, GS or a far address is written anew.

use iced_x86::{Instruction, InstructionInfoFactory, OpKind, Register};

use crate::Error;
use crate::cache::leave;
use crate::decode::{Kind, Step};
use crate::emit::{Mem, RCX};
use crate::exits::Exit;
use crate::recovery::{Mark, Rule};
use crate::state::slot;
use crate::translate::Translator;

/// A branch through memory that led elsewhere so often is not taken for a constant any more.
const RETARGETS: u32 = 4;
/// `jne`.
const NOT_EQUAL: u8 = 5;

/// How an operand must change to mean the same in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operand {
    /// Not at all.
    Same,
    /// Another displacement from RIP.
    Relative,
    /// A register holds the address.
    Far,
    /// A register holds the target's GS base and the operand's base.
    Gs,
}

impl Translator {
    fn operand(&self, instruction: &Instruction, length: usize) -> Operand {
        let has_memory = (0..instruction.op_count()).any(|index| instruction.op_kind(index) == OpKind::Memory);
        if !has_memory {
            return Operand::Same;
        }
        let touches_gs = instruction.segment_prefix() == Register::GS && instruction.memory_segment() == Register::GS;
        if touches_gs && instruction.mnemonic() != iced_x86::Mnemonic::Lea {
            return Operand::Gs;
        }
        if !instruction.is_ip_rel_memory_operand() {
            return Operand::Same;
        }
        let end = self.hot.here() + length as u64;
        let distance = instruction.ip_rel_memory_address().wrapping_sub(end) as i64;
        if i32::try_from(distance).is_ok() { Operand::Relative } else { Operand::Far }
    }

    /// Writes an instruction that does not branch.
    pub(crate) fn write_plain(&mut self, step: &Step, bytes: &[u8]) -> Result<(), Error> {
        match self.operand(&step.instruction, step.length) {
            Operand::Same => self.hot.raw(bytes),
            Operand::Relative => {
                let end = self.hot.here() + step.length as u64;
                let distance = step.instruction.ip_rel_memory_address().wrapping_sub(end) as i32;
                let at = step.displacement_offset;
                self.hot.raw(&bytes[..at]);
                self.hot.raw(&distance.to_le_bytes());
                self.hot.raw(&bytes[at + 4..]);
            }
            operand => {
                let scratch = free_register(&step.instruction);
                let changed = self.borrow_for(step, operand, scratch);
                self.encode(step.pc(), &changed)?;
                if step.kind != Kind::PlainEnd {
                    self.mark(step.next_pc(), Rule::scratch(scratch));
                }
                self.hot.load(scratch, &Mem::at(slot!(saved_scratch)));
            }
        }
        Ok(())
    }

    /// Saves a register, brings the operand's address into it, and gives the instruction with that operand.
    fn borrow_for(&mut self, step: &Step, operand: Operand, scratch: u8) -> Instruction {
        self.hot.store(&Mem::at(slot!(saved_scratch)), scratch);
        self.mark(step.pc(), Rule::scratch(scratch));
        let mut changed = step.instruction;
        let register = Register::RAX + u32::from(scratch);
        if operand == Operand::Gs {
            self.hot.load(scratch, &Mem::at(slot!(guest.gs_base)));
            if changed.is_ip_rel_memory_operand() {
                // No compiler writes this: GS base and a distance from RIP.
                let target = changed.ip_rel_memory_address();
                self.hot.lea(scratch, &Mem::base(scratch, target as i32));
                changed.set_memory_displacement64(0);
            } else if changed.memory_base() != Register::None {
                let base = changed.memory_base().number() as u8;
                self.hot.lea(scratch, &Mem { index: Some(scratch), ..Mem::base(base, 0) });
            }
            changed.set_segment_prefix(Register::None);
            changed.set_memory_displ_size(8);
        } else {
            self.hot.set(scratch, step.instruction.ip_rel_memory_address());
            changed.set_memory_displacement64(0);
            changed.set_memory_displ_size(0);
        }
        changed.set_memory_base(register);
        changed
    }

    fn encode(&mut self, pc: u64, instruction: &Instruction) -> Result<(), Error> {
        let at = self.hot.here();
        self.encoder
            .encode(instruction, at)
            .map_err(|error| Error::Encode { pc, reason: format!("{:?}: {error}", instruction.code()) })?;
        let mut bytes = self.encoder.take_buffer();
        self.hot.raw(&bytes);
        bytes.clear();
        self.encoder.set_buffer(bytes);
        Ok(())
    }

    /// `jmp` and `call` through a register or memory.
    pub(crate) fn write_indirect(&mut self, step: &Step) -> Result<(), Error> {
        let instruction = &step.instruction;
        self.hot.store(&Mem::at(slot!(saved_rcx)), RCX);
        self.mark(step.pc(), Rule::RCX);
        if instruction.op0_kind() == OpKind::Register {
            self.hot.copy(RCX, instruction.op0_register().number() as u8);
        } else {
            self.load_target(step)?;
        }
        if step.kind == Kind::CallIndirect {
            self.push(step.next_pc());
        }
        self.mark(step.pc(), Rule::TO_RCX);
        self.go_to_rcx(step.pc());
        Ok(())
    }

    /// `jmp` and `call` through memory at a constant address, which is how libraries reach each other: goes directly to
    /// where it leads now, as long as it does. Flags are dead.
    pub(crate) fn write_known_target(&mut self, step: &Step, block: u64) -> bool {
        let instruction = &step.instruction;
        let is_constant = instruction.op0_kind() == OpKind::Memory
            && instruction.is_ip_rel_memory_operand()
            && !matches!(instruction.segment_prefix(), Register::FS | Register::GS);
        let slot = instruction.ip_rel_memory_address();
        if !is_constant || self.retargeted.get(&step.pc()).is_some_and(|&times| times >= RETARGETS) {
            return false;
        }
        let (Ok(place), Some(target)) = (i32::try_from(slot), crate::probe::read(slot, 8)) else { return false };
        let Ok(value) = i32::try_from(target) else { return false };
        self.hot.compare_i32(&Mem::at(place as usize), value);
        let cold = self.cold.here();
        self.hot.jump_if(NOT_EQUAL, cold);
        self.cache.recovery.add_cold(Mark { host: cold as u32, pc: step.pc(), rule: Rule::EXACT });
        let record = self.cache.exits.add(Exit::Retarget { pc: step.pc(), block });
        leave(&mut self.cold, record);
        if step.kind == Kind::CallIndirect {
            self.push(step.next_pc());
        }
        self.mark(target, Rule::EXACT);
        self.jump_to(target);
        true
    }

    /// `mov rcx, [operand of the branch]`.
    fn load_target(&mut self, step: &Step) -> Result<(), Error> {
        let mut load = step.instruction;
        load.set_code(iced_x86::Code::Mov_r64_rm64);
        load.set_op1_kind(OpKind::Memory);
        load.set_op0_kind(OpKind::Register);
        load.set_op0_register(Register::RCX);
        // A branch hint or `notrack` would be another segment's prefix.
        if !matches!(load.segment_prefix(), Register::FS | Register::GS) {
            load.set_segment_prefix(Register::None);
        }
        load.set_has_repne_prefix(false);
        match self.operand(&step.instruction, step.length) {
            Operand::Same | Operand::Relative => self.encode(step.pc(), &load),
            Operand::Far => {
                self.hot.set(RCX, step.instruction.ip_rel_memory_address());
                self.hot.load(RCX, &Mem::base(RCX, 0));
                Ok(())
            }
            Operand::Gs => {
                let mut branch = *step;
                branch.instruction = load;
                let scratch = free_register(&load);
                let changed = self.borrow_for(&branch, Operand::Gs, scratch);
                self.encode(step.pc(), &changed)?;
                self.hot.load(scratch, &Mem::at(slot!(saved_scratch)));
                Ok(())
            }
        }
    }

    /// `rdfsbase` is copied, as FS is the target's in the cache; the target's GS base is in the state only.
    pub(crate) fn write_segment_base(&mut self, step: &Step, bytes: &[u8]) {
        use iced_x86::Mnemonic;
        let register = step.instruction.op0_register();
        let number = register.full_register().number() as u8;
        let wide = register.size() == 8;
        let gs_base = Mem::at(slot!(guest.gs_base));
        let store = |code: &mut crate::emit::Code, slot: usize| {
            if wide {
                code.store(&Mem::at(slot), number);
            } else {
                code.store_u32_from(&Mem::at(slot), number);
                code.store_u32(&Mem::at(slot + 4), 0);
            }
        };
        match step.instruction.mnemonic() {
            Mnemonic::Rdgsbase if wide => self.hot.load(number, &gs_base),
            Mnemonic::Rdgsbase => self.hot.load_zero_extended(number, &gs_base, 4),
            Mnemonic::Wrgsbase => store(&mut self.hot, slot!(guest.gs_base)),
            _ => self.hot.raw(bytes),
        }
    }
}

/// A register that the instruction does not touch in any way.
fn free_register(instruction: &Instruction) -> u8 {
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info(instruction);
    let is_used = |number: u8| {
        let register = Register::RAX + u32::from(number);
        info.used_registers().iter().any(|used| used.register().full_register() == register)
    };
    // With a legacy high-byte register, r8 to r15 cannot be named; no instruction touches all of the first eight.
    [RCX, 0, 2, 6, 7, 3, 5].into_iter().find(|&number| !is_used(number)).unwrap_or(8)
}
