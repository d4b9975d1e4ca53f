//! Makes blocks: decode, find out which flags are alive, write checks and instructions, put the result in the cache.

use std::ops::Range;

use iced_x86::{Encoder, InstructionInfo, InstructionInfoFactory, OpAccess, Register};

use crate::access::{Look, look};
use crate::cache::{AddressMap, BlockKey, Cache, leave};
use crate::check::{Checked, Output, write_checks};
use crate::decode::{Kind, Step, decode_block};
use crate::emit::{Code, Mem, RCX};
use crate::exits::Exit;
use crate::flags::{self, Ahead};
use crate::indirect::Table;
use crate::recovery::{Mark, Rule};
use crate::regions::Regions;
use crate::stack::After;
use crate::state::slot;
use crate::{CodeKind, Config, Error, LightHook, Quick, Version, entry, indirect, memory};

/// Where the code of a quick function finds the way to the light hook.
const R11: u8 = 11;

/// A replaced function.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Hook {
    Full { cookie: u64 },
    Light { function: LightHook, quick: Quick, cookie: u64 },
}

/// Where a store was caught in a protected page, blocks are made once without protecting it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Watch {
    /// The code's pages are watched.
    Yes,
    /// The block lives for one execution.
    No,
}

/// How much a block does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// As many instructions as there are, checked.
    Block,
    /// One instruction, unchecked.
    Solo,
    /// One instruction, and nothing that touches the shadow: a check found that there is none.
    Bare,
}

/// Makes and keeps blocks.
pub(crate) struct Translator {
    pub config: Config,
    pub cache: Cache,
    pub regions: Regions,
    pub hooks: AddressMap<u64, Hook>,
    pub(crate) hot: Code,
    pub(crate) cold: Code,
    pub(crate) marks: Vec<Mark>,
    pub(crate) encoder: Encoder,
    factory: InstructionInfoFactory,
    learned: AddressMap<u64, bool>,
    /// Branches through memory that led elsewhere than they did, and how often.
    pub(crate) retargeted: AddressMap<u64, u32>,
    pub blocks_made: u64,
    pub instructions_made: u64,
}

/// What [`flags`] may know of the code behind a block.
struct Peek<'a> {
    regions: &'a Regions,
    hooks: &'a AddressMap<u64, Hook>,
    learned: &'a mut AddressMap<u64, bool>,
    dead_at_calls: bool,
}

impl Ahead for Peek<'_> {
    fn bytes(&self, pc: u64) -> Option<&[u8]> {
        let region = self.regions.find(pc).filter(|region| region.kind == CodeKind::Fixed)?;
        // SAFETY: the tool said that the region is mapped and executable, and reports its end.
        (!self.hooks.contains_key(&pc)).then(|| unsafe { memory::code(pc, region.end) })
    }

    fn flags_die_at_calls(&self) -> bool {
        self.dead_at_calls
    }

    fn known(&self, pc: u64) -> Option<bool> {
        self.learned.get(&pc).copied()
    }

    fn learn(&mut self, pc: u64, live: bool) {
        self.learned.insert(pc, live);
    }
}

/// The integer registers that an instruction writes, as bits.
fn written_registers(info: &InstructionInfo) -> u16 {
    let mut written = 0;
    for used in info.used_registers() {
        let writes = !matches!(used.access(), OpAccess::None | OpAccess::Read | OpAccess::CondRead);
        let register = used.register().full_register();
        if writes && register.is_gpr() {
            written |= 1 << register.number();
        }
    }
    written
}

fn writes(info: &InstructionInfo, register: Register) -> bool {
    written_registers(info) >> register.number() & 1 != 0
}

impl Translator {
    pub fn new(config: Config) -> Self {
        Self {
            config,
            cache: Cache::new(&config),
            regions: Regions::default(),
            hooks: AddressMap::default(),
            hot: Code::default(),
            cold: Code::default(),
            marks: Vec::new(),
            encoder: Encoder::new(64),
            factory: InstructionInfoFactory::new(),
            learned: AddressMap::default(),
            retargeted: AddressMap::default(),
            blocks_made: 0,
            instructions_made: 0,
        }
    }

    /// Throws all code away.
    pub fn flush(&mut self) {
        self.cache.clear();
        self.learned.clear();
        indirect::reset_table();
    }

    /// Forgets what was made from changed memory.
    pub fn forget(&mut self, start: u64, end: u64) {
        self.cache.forget(start, end);
        self.learned.clear();
        if self.cache.is_full() {
            self.flush();
        }
    }

    /// Forgets the block at an address.
    pub fn forget_block(&mut self, pc: u64) {
        self.cache.forget_block(BlockKey::new(pc, Version::Fast));
        if self.cache.is_full() {
            self.flush();
        }
    }

    /// The branch at `pc` leads elsewhere than it did when the block was made.
    pub fn retarget(&mut self, pc: u64, block: u64) {
        *self.retargeted.entry(pc).or_default() += 1;
        self.forget_block(pc);
        self.forget_block(block);
    }

    /// Makes a block (with a hook at `pc`: the way to the hook). The region around `pc` is known, or there is a hook.
    pub fn make(&mut self, key: BlockKey, extent: Extent, watch: Watch) -> Result<u64, Error> {
        if !self.cache.has_room() {
            self.flush();
        }
        let pc = key.pc();
        self.hot.begin(self.cache.hot_next);
        self.cold.begin(self.cache.cold_next);
        self.marks.clear();
        let host = self.hot.start;
        let solo = extent != Extent::Block;
        self.blocks_made += 1;
        if !solo {
            self.cache.announce(key, host);
            if let Some(&hook) = self.hooks.get(&pc) {
                self.write_hook(pc, hook);
                self.cache.commit(key, pc..pc + 1, &self.hot, &self.cold, &self.marks);
                return Ok(host);
            }
        }
        let Some(region) = self.regions.find(pc) else {
            self.mark(pc, Rule::EXACT);
            self.leave_by(Exit::NotExecutable { pc });
            self.cache.commit(key, pc..pc + 1, &self.hot, &self.cold, &self.marks);
            return Ok(host);
        };
        // SAFETY: the tool said so; see `Peek`.
        let bytes = unsafe { memory::code(pc, region.end) };
        let (cache, hooks) = (&self.cache, &self.hooks);
        let mut steps = decode_block(bytes, pc, self.config.superblock_branches, |at| {
            hooks.contains_key(&at) || cache.find(BlockKey::new(at, Version::Fast)).is_some() && at - pc > 256
        });
        if solo {
            steps.truncate(1);
        }
        let guest = pc..steps.last().map_or(pc + 1, Step::next_pc);
        if watch == Watch::Yes && self.regions.watch(guest.start, guest.end) {
            self.write_comparison(bytes, &guest);
        }
        self.write_steps(bytes, &steps, extent, pc)?;
        self.instructions_made += steps.len() as u64;
        if solo && watch == Watch::Yes {
            self.cache.announce(key, host);
        }
        self.cache.commit(key, guest, &self.hot, &self.cold, &self.marks);
        Ok(host)
    }

    fn write_steps(&mut self, bytes: &[u8], steps: &[Step], extent: Extent, block: u64) -> Result<(), Error> {
        let checks = self.config.checks && extent == Extent::Block;
        let marks_stack = extent != Extent::Bare && self.config.marks_stack();
        let live = if checks || marks_stack {
            let mut peek = Peek {
                regions: &self.regions,
                hooks: &self.hooks,
                learned: &mut self.learned,
                dead_at_calls: self.config.flags_die_at_calls,
            };
            flags::live_before(steps, &mut peek)
        } else {
            vec![true; steps.len()]
        };
        let mut checked = Checked::default();
        // The stack pointer was raised, and what it gave back is not marked yet.
        let mut raised = false;
        for (index, step) in steps.iter().enumerate() {
            self.mark(step.pc(), Rule::EXACT);
            let mut after = After::Nothing;
            if checks || marks_stack {
                let info = self.factory.info(&step.instruction);
                let look = if checks { look(&step.instruction, info) } else { Look::Inline(Vec::new()) };
                let writes_rsp = marks_stack && writes(info, Register::RSP);
                let written = checks.then(|| written_registers(info));
                if raised && !Self::release_can_wait(step, &look, live[index]) {
                    self.release(step.pc(), live[index]);
                    checked.clear();
                    raised = false;
                }
                let mut output = Output {
                    hot: &mut self.hot,
                    cold: &mut self.cold,
                    marks: &mut self.marks,
                    recovery: &mut self.cache.recovery,
                    exits: &mut self.cache.exits,
                    settles: marks_stack,
                };
                if checks && !write_checks(&mut output, &mut checked, step, look, live[index]) {
                    self.leave_by(Exit::Examine { pc: step.pc() });
                    return Ok(());
                }
                if let Some(written) = written {
                    checked.after(written);
                }
                if marks_stack {
                    after = self.before_move(step, live[index], writes_rsp);
                }
            }
            self.write_step(step, &bytes[step.offset..step.offset + step.length], block, live[index])?;
            raised |= after == After::Raised;
            if after == After::Adopted {
                self.mark(step.next_pc(), Rule::EXACT);
                self.adopt();
                checked.clear();
            }
        }
        if let Some(last) = steps.last()
            && !last.kind.ends_block()
        {
            self.mark(last.next_pc(), Rule::EXACT);
            if raised {
                self.release(last.next_pc(), true);
            }
            self.jump_to(last.next_pc());
        }
        Ok(())
    }

    fn write_step(&mut self, step: &Step, bytes: &[u8], block: u64, live: bool) -> Result<(), Error> {
        match step.kind {
            Kind::Plain | Kind::PlainEnd => return self.write_plain(step, bytes),
            Kind::StoresX87 => {
                self.write_plain(step, bytes)?;
                self.mark(step.next_pc(), Rule::EXACT);
                self.leave_by(Exit::StoredX87 { pc: step.pc(), next: step.next_pc() });
            }
            Kind::SegmentBase => self.write_segment_base(step, bytes),
            Kind::Jump(target) => self.jump_to(target),
            Kind::Branch(condition, target) => {
                self.hot.raw(&[0x0f, 0x80 | condition]);
                self.displacement_to(target);
            }
            Kind::CountBranch(target) => {
                // The displacement stays short: it leads over the jump to what follows.
                self.hot.raw(&bytes[..bytes.len() - 1]);
                self.hot.raw(&[5]);
                self.mark(step.next_pc(), Rule::EXACT);
                self.jump_to(step.next_pc());
                self.mark(target, Rule::EXACT);
                self.jump_to(target);
            }
            Kind::Call(target) => {
                self.push(step.next_pc());
                self.mark(target, Rule::EXACT);
                self.jump_to(target);
            }
            Kind::JumpIndirect | Kind::CallIndirect => {
                if !live && self.write_known_target(step, block) {
                    return Ok(());
                }
                return self.write_indirect(step);
            }
            Kind::Return(0) if self.config.flags_die_at_calls => {
                self.hot.store(&Mem::at(slot!(saved_rcx)), RCX);
                self.mark(step.pc(), Rule::RCX);
                self.hot.raw(&[0x59]);
                self.mark(step.pc(), Rule::POPPED);
                indirect::dispatch(&mut self.hot, Table::Returns);
            }
            Kind::Return(pops) => {
                self.hot.store(&Mem::at(slot!(saved_rcx)), RCX);
                self.mark(step.pc(), Rule::RCX);
                if pops == 0 {
                    self.hot.raw(&[0x59]);
                } else {
                    self.hot.load(RCX, &Mem::base(4, 0));
                    self.hot.lea(4, &Mem::base(4, 8 + i32::from(pops)));
                }
                self.mark(step.pc(), Rule::TO_RCX);
                self.go_to_rcx(step.pc());
            }
            Kind::Transaction(target) => {
                self.hot.set(0, 0);
                self.mark(target, Rule::EXACT);
                self.jump_to(target);
            }
            Kind::Syscall => self.leave_by(Exit::Syscall { pc: step.next_pc() }),
            Kind::SetFsBase => {
                let register = step.instruction.op0_register();
                let number = register.full_register().number() as u8;
                self.leave_by(Exit::SetFsBase { pc: step.next_pc(), register: number, wide: register.size() == 8 });
            }
            Kind::Cpuid => self.leave_by(Exit::Cpuid { pc: step.next_pc() }),
            Kind::ClientRequest => self.leave_by(Exit::ClientRequest { pc: step.next_pc() }),
            Kind::Trap { signal, code, trap, after } => {
                let pc = if after { step.next_pc() } else { step.pc() };
                let address = if signal == libc::SIGILL { step.pc() } else { 0 };
                self.leave_by(Exit::Trap { pc, signal, code, address, trap });
            }
            Kind::Truncated => self.leave_by(Exit::NotExecutable { pc: step.pc() }),
        }
        Ok(())
    }

    /// A jump to a replaced function's address leads here.
    fn write_hook(&mut self, pc: u64, hook: Hook) {
        self.mark(pc, Rule::EXACT);
        match hook {
            Hook::Full { cookie } => self.leave_by(Exit::Replaced { pc, cookie }),
            Hook::Light { function, quick, cookie } => {
                if let Quick::Code(code) = quick {
                    // To what lies behind this jump: mov r11d, imm32 (6 bytes); jmp [rip]; the address.
                    let slow = self.hot.here() + 6 + 6 + 8;
                    self.hot.set(R11, slow);
                    self.hot.raw(&[0xff, 0x25, 0, 0, 0, 0]);
                    self.hot.raw(&code.to_le_bytes());
                    debug_assert_eq!(self.hot.here(), slow);
                    self.mark(pc, Rule::EXACT);
                }
                let first = if let Quick::Function(first) = quick { first as *const () as u64 } else { 0 };
                self.hot.store_u64_at(slot!(quick_function), first);
                self.hot.store_u64_at(slot!(hook_function), function as *const () as u64);
                self.hot.store_u64_at(slot!(hook_cookie), cookie);
                self.hot.store_u64_at(slot!(guest.rip), pc);
                self.hot.jump_through(&Mem::at(slot!(hook_code)));
            }
        }
    }

    /// Compares the target's bytes with those that the block is made from, without touching flags.
    fn write_comparison(&mut self, bytes: &[u8], guest: &Range<u64>) {
        let (pc, length) = (guest.start, (guest.end - guest.start) as usize);
        self.mark(pc, Rule::EXACT);
        self.hot.store(&Mem::at(slot!(saved_rcx)), RCX);
        self.mark(pc, Rule::RCX);
        self.hot.store(&Mem::at(slot!(saved_scratch)), 0);
        self.mark(pc, Rule::RCX.and_scratch(0));
        let mut sites = Vec::new();
        let mut offset = 0;
        while offset < length.min(bytes.len()) {
            // The last piece overlaps the one before; blocks of less than eight bytes are compared byte by byte.
            let size = if length >= 8 { 8 } else { 1 };
            let at = if length >= 8 { offset.min(length - 8) } else { offset };
            let mut expected = [0; 8];
            expected[..size].copy_from_slice(&bytes[at..at + size]);
            let address = pc + at as u64;
            if let Ok(absolute) = i32::try_from(address) {
                self.hot.load_zero_extended(RCX, &Mem::at(absolute as usize), size as u32);
            } else {
                self.hot.set(RCX, address);
                self.hot.load_zero_extended(RCX, &Mem::base(RCX, 0), size as u32);
            }
            self.hot.set(0, u64::from_le_bytes(expected).wrapping_neg());
            self.hot.lea(RCX, &Mem { index: Some(0), ..Mem::base(RCX, 0) });
            let same = self.hot.jump_if_rcx_zero();
            sites.push(self.hot.jump(0));
            self.hot.land(same);
            offset = at + size;
        }
        self.hot.load(0, &Mem::at(slot!(saved_scratch)));
        self.mark(pc, Rule::RCX);
        self.hot.load(RCX, &Mem::at(slot!(saved_rcx)));
        let stale = self.cold.here();
        self.cache.recovery.add_cold(Mark { host: stale as u32, pc, rule: Rule::RCX.and_scratch(0) });
        self.cold.load(0, &Mem::at(slot!(saved_scratch)));
        self.cache.recovery.add_cold(Mark { host: self.cold.here() as u32, pc, rule: Rule::RCX });
        self.cold.load(RCX, &Mem::at(slot!(saved_rcx)));
        self.cache.recovery.add_cold(Mark { host: self.cold.here() as u32, pc, rule: Rule::EXACT });
        let record = self.cache.exits.add(Exit::Stale { pc });
        leave(&mut self.cold, record);
        for site in sites {
            let at = (site - self.hot.start) as usize;
            self.hot.bytes[at..at + 4].copy_from_slice(&crate::emit::displacement(site, stale).to_le_bytes());
        }
    }

    /// The end of an indirect branch: rcx holds the target, `saved_rcx` the guest's rcx. The caller marks what comes before.
    pub(crate) fn go_to_rcx(&mut self, pc: u64) {
        self.hot.store(&Mem::at(slot!(target)), RCX);
        self.mark(pc, Rule::TO_TARGET);
        indirect::dispatch(&mut self.hot, Table::Jumps);
    }

    pub(crate) fn mark(&mut self, pc: u64, rule: Rule) {
        self.marks.push(Mark { host: self.hot.here() as u32, pc, rule });
    }

    /// Leaves the cache in the course of hot code.
    pub(crate) fn leave_by(&mut self, exit: Exit) {
        let record = self.cache.exits.add(exit);
        leave(&mut self.hot, record);
    }

    /// `jmp` to the translation of `target`.
    pub(crate) fn jump_to(&mut self, target: u64) {
        self.hot.raw(&[0xe9]);
        self.displacement_to(target);
    }

    /// The last four bytes of a jump to the translation of `target`: where there is none yet, to cold code that asks for
    /// one and has the jump linked.
    fn displacement_to(&mut self, target: u64) {
        let site = self.hot.here();
        let host = match self.cache.find(BlockKey::new(target, Version::Fast)) {
            Some(host) => host,
            None => {
                let stub = self.cold.here();
                self.cache.recovery.add_cold(Mark { host: stub as u32, pc: target, rule: Rule::EXACT });
                let record = self.cache.exits.add(Exit::Link { pc: target, site });
                leave(&mut self.cold, record);
                stub
            }
        };
        self.hot.relative(host);
    }

    /// Pushes a return address: one instruction when it is an immediate, otherwise written first and then taken into the
    /// stack, so that the call may begin anew anywhere before that.
    pub(crate) fn push(&mut self, value: u64) {
        if value < 1 << 31 {
            self.hot.raw(&[0x68]);
            self.hot.u32(value as u32);
        } else {
            self.hot.store_u32(&Mem::base(4, -8), value as u32);
            self.hot.store_u32(&Mem::base(4, -4), (value >> 32) as u32);
            self.hot.lea(4, &Mem::base(4, -8));
        }
    }

    /// The addresses that translated code jumps to, kept in the state page.
    pub fn labels() -> entry::Labels {
        entry::labels()
    }
}
