//! Stacks of the target, by the unwind tables of its modules.
//!
//! For each address that was looked up once, what is needed to find the caller is kept: where the CFA is, and where
//! callee-saved registers were saved. Modules' tables are read where the target has them mapped. A function without a
//! table is left by its frame pointer, if that leads up the stack.
//!
//! Source: DWARF 5 section 6.4; System V ABI for AMD64, figure 3.36 (register numbers); LSB `.eh_frame_hdr`; the frame of
//! a signal is Linux' `struct rt_sigframe`.

use std::collections::HashMap;

use gimli::{
    BaseAddresses, CfaRule, EhFrame, EhFrameHdr, EndianSlice, LittleEndian, Pointer, ReaderOffset, Register,
    RegisterRule, UnwindContext, UnwindContextStorage, UnwindExpression, UnwindSection, UnwindTableRow,
};

use crate::probe;
use crate::stacks::BuildMixed;

type Slice = EndianSlice<'static, LittleEndian>;

const RBX: usize = 3;
const RBP: usize = 6;
const RSP: usize = 7;
const RETURN_ADDRESS: Register = Register(16);
/// What functions leave as it was: rbx, rbp, r12 to r15.
const SAVED: [usize; 6] = [RBX, RBP, 12, 13, 14, 15];

/// Registers by DWARF's numbers: rax, rdx, rcx, rbx, rsi, rdi, rbp, rsp, r8 to r15.
#[derive(Clone, Copy, Debug, Default)]
pub struct Registers(pub [u64; 16]);

/// From the processor's order (rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi) to DWARF's.
pub fn dwarf_order(gpr: &[u64; 16]) -> Registers {
    const OF: [usize; 8] = [0, 2, 1, 3, 6, 7, 5, 4];
    let mut registers = Registers(*gpr);
    for (dwarf, &processor) in OF.iter().enumerate() {
        registers.0[dwarf] = gpr[processor];
    }
    registers
}

/// The place of one of DWARF's registers in the processor's order.
pub fn dwarf_register(number: usize) -> usize {
    const OF: [usize; 8] = [0, 2, 1, 3, 6, 7, 5, 4];
    OF.get(number).copied().unwrap_or(number)
}

/// What a walk has read: whoever finds the same in the same places would walk to the same frames.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    words: Vec<u64>,
    /// Where each register's value comes from: 0 is the register itself, [`CONSTANT`] no place, otherwise an address.
    origins: [u64; 16],
    used: u16,
    is_lost: bool,
}

const CONSTANT: u64 = u64::MAX;

impl Trace {
    pub(crate) fn begin(&mut self) {
        self.words.clear();
        self.origins = [0; 16];
        self.origins[RSP] = CONSTANT;
        (self.used, self.is_lost) = (0, false);
    }

    /// A register's value decides where something is.
    pub(crate) fn uses(&mut self, register: usize) {
        match self.origins[register] {
            0 => self.used |= 1 << register,
            CONSTANT => {}
            address => self.words.push(address),
        }
    }

    /// For tests of those who use it: this word decided.
    #[cfg(test)]
    pub fn read(&mut self, address: u64) {
        self.words.push(address);
    }

    /// For tests of those who use it: something else did.
    #[cfg(test)]
    pub fn lose(&mut self) {
        self.is_lost = true;
    }

    /// Addresses of words that decided.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Registers that decided as they were, as bits by DWARF's numbers.
    pub fn registers(&self) -> u16 {
        self.used
    }

    /// Whether there was nothing else.
    pub fn is_repeatable(&self) -> bool {
        !self.is_lost
    }
}

/// Where a saved register is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Saved {
    Same,
    AtCfa(i32),
    AtRbp(i32),
    Lost,
}

/// How to find the CFA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cfa {
    Register(u8, i64),
    /// The word at rbp plus an offset: functions that realign their stack.
    WordAtRbp(i64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    Frame {
        cfa: Cfa,
        saved: [Saved; 6],
    },
    /// There is no caller.
    End,
    /// The kernel's `struct rt_sigframe`.
    Signal,
    /// No table knows.
    Unknown,
}

/// A module's tables.
#[derive(Clone, Copy, Debug)]
struct Tables {
    start: u64,
    end: u64,
    eh_frame_hdr: u64,
}

/// gimli's working memory: all registers of the ABI, and more saved states than compilers nest.
struct Storage;

impl<T: ReaderOffset> UnwindContextStorage<T> for Storage {
    type Rules = [(Register, RegisterRule<T>); 24];
    type Stack = [UnwindTableRow<T, Self>; 8];
}

type Row = UnwindTableRow<usize, Storage>;

/// Walks stacks.
pub struct Unwinder {
    modules: Vec<Tables>,
    rules: HashMap<u64, Rule, BuildMixed>,
    context: Box<UnwindContext<usize, Storage>>,
    trace: Trace,
}

impl Default for Unwinder {
    fn default() -> Self {
        Self {
            modules: Vec::new(),
            rules: HashMap::default(),
            context: Box::new(UnwindContext::new_in()),
            trace: Trace::default(),
        }
    }
}

impl Unwinder {
    /// Says that a module is mapped, and where its table is.
    pub fn add(&mut self, start: u64, end: u64, eh_frame_hdr: u64) {
        self.remove(start, end);
        self.modules.push(Tables { start, end, eh_frame_hdr });
        self.modules.sort_unstable_by_key(|module| module.start);
    }

    /// Forgets everything about a range that is no longer mapped.
    pub fn remove(&mut self, start: u64, end: u64) {
        let before = self.modules.len();
        self.modules.retain(|module| module.end <= start || end <= module.start);
        if self.modules.len() != before {
            self.rules.retain(|&pc, _| !(start..end).contains(&pc));
        }
    }

    /// The caller's registers and return address. `pc` is an address in the calling instruction, or the very instruction
    /// of the innermost frame. `None`: there is no caller, or it cannot be found.
    pub fn step(&mut self, pc: u64, registers: &mut Registers) -> Option<u64> {
        let rule = match self.rules.get(&pc) {
            Some(&rule) => rule,
            None => {
                let rule = self.rule(pc);
                self.rules.insert(pc, rule);
                rule
            }
        };
        match rule {
            Rule::Frame { cfa, saved } => leave_frame(cfa, &saved, registers, &mut self.trace),
            Rule::End => None,
            Rule::Signal => {
                self.trace.is_lost = true;
                leave_signal(registers)
            }
            Rule::Unknown => leave_by_frame_pointer(registers, &mut self.trace),
        }
    }

    /// What the last walk has read.
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    fn rule(&mut self, pc: u64) -> Rule {
        let number = self.modules.partition_point(|module| module.start <= pc);
        let Some(module) = number.checked_sub(1).map(|number| self.modules[number]).filter(|m| pc < m.end) else {
            return Rule::Unknown;
        };
        rule_in(module, pc, &mut self.context).unwrap_or(Rule::Unknown)
    }

    /// A whole stack: return addresses, the innermost first. With `hook` the target stands at the first instruction of
    /// that function; without, at any instruction. Stops at `most` addresses.
    pub fn walk(&mut self, hook: Option<u64>, rip: u64, registers: Registers, most: usize, out: &mut Vec<u64>) {
        out.clear();
        self.trace.begin();
        let mut registers = registers;
        let mut next = match hook {
            Some(function) => {
                out.push(function.wrapping_add(1));
                let rsp = registers.0[RSP];
                registers.0[RSP] = rsp.wrapping_add(8);
                probe::word(rsp)
            }
            None => {
                out.push(rip.wrapping_add(1));
                self.step(rip, &mut registers)
            }
        };
        if next.is_none() && hook.is_none() {
            // A jump to nowhere: the caller's address is on top of the stack.
            let rsp = registers.0[RSP];
            let top = probe::word(rsp).filter(|&top| self.is_code(top) && !self.is_code(rip));
            if top.is_some() {
                registers.0[RSP] = rsp.wrapping_add(8);
                next = top;
            }
        }
        while let Some(return_address) = next.filter(|&address| address > 4096) {
            if out.len() >= most {
                return;
            }
            out.push(return_address);
            let before = registers.0[RSP];
            // Of a signal's frame the address is the interrupted instruction itself, which a look-up at one less may miss
            // at a function's first byte only.
            next = self.step(return_address.wrapping_sub(1), &mut registers);
            if registers.0[RSP] <= before && next.is_some() {
                return;
            }
        }
    }

    /// Whether an address lies in a module.
    pub fn is_code(&self, address: u64) -> bool {
        let number = self.modules.partition_point(|module| module.start <= address);
        number.checked_sub(1).is_some_and(|number| address < self.modules[number].end)
    }
}

fn leave_frame(cfa: Cfa, saved: &[Saved; 6], registers: &mut Registers, trace: &mut Trace) -> Option<u64> {
    // What cannot be read now may be there the next time.
    let is_lost = std::mem::replace(&mut trace.is_lost, true);
    let old = *registers;
    let cfa = match cfa {
        Cfa::Register(register, offset) => {
            trace.uses(usize::from(register));
            old.0[usize::from(register)].wrapping_add_signed(offset)
        }
        Cfa::WordAtRbp(offset) => {
            trace.uses(RBP);
            let address = old.0[RBP].wrapping_add_signed(offset);
            trace.words.push(address);
            probe::word(address)?
        }
    };
    let origin_of_rbp = trace.origins[RBP];
    for (&place, &register) in saved.iter().zip(&SAVED) {
        let address = match place {
            Saved::Same => continue,
            Saved::AtCfa(offset) => cfa.wrapping_add_signed(offset.into()),
            Saved::AtRbp(offset) => {
                let changed = std::mem::replace(&mut trace.origins[RBP], origin_of_rbp);
                trace.uses(RBP);
                trace.origins[RBP] = changed;
                old.0[RBP].wrapping_add_signed(offset.into())
            }
            Saved::Lost => {
                (registers.0[register], trace.origins[register]) = (0, CONSTANT);
                continue;
            }
        };
        (registers.0[register], trace.origins[register]) = (probe::word(address)?, address);
    }
    registers.0[RSP] = cfa;
    let at = cfa.wrapping_sub(8);
    trace.words.push(at);
    let return_address = probe::word(at)?;
    trace.is_lost = is_lost;
    Some(return_address)
}

/// At rsp lies a `ucontext_t`; its general registers begin 40 bytes in: r8 to r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp,
/// rip.
fn leave_signal(registers: &mut Registers) -> Option<u64> {
    const ORDER: [usize; 16] = [8, 9, 10, 11, 12, 13, 14, 15, 5, 4, 6, 3, 1, 0, 2, 7];
    let base = registers.0[RSP].wrapping_add(40);
    for (number, &register) in ORDER.iter().enumerate() {
        registers.0[register] = probe::word(base.wrapping_add(8 * number as u64))?;
    }
    // One more than the instruction, so that it is looked up itself.
    probe::word(base.wrapping_add(8 * 16)).map(|rip| rip.wrapping_add(1))
}

fn leave_by_frame_pointer(registers: &mut Registers, trace: &mut Trace) -> Option<u64> {
    trace.uses(RBP);
    let (rbp, rsp) = (registers.0[RBP], registers.0[RSP]);
    if rbp < rsp || rbp - rsp > 8 << 20 || rbp % 8 != 0 {
        return None;
    }
    let words = probe::word(rbp).zip(probe::word(rbp.wrapping_add(8)));
    trace.is_lost |= words.is_none();
    let (caller, return_address) = words?;
    trace.words.push(rbp.wrapping_add(8));
    trace.origins[RBP] = rbp;
    registers.0[RBP] = caller;
    registers.0[RSP] = rbp.wrapping_add(16);
    Some(return_address)
}

fn rule_in(module: Tables, pc: u64, context: &mut UnwindContext<usize, Storage>) -> Option<Rule> {
    // SAFETY: the module is mapped here, and its tables lie in a readable segment of it. Other threads of the target
    // could unmap it; then reading faults, as it would in the target's own unwinder.
    let bytes = |from: u64| unsafe { std::slice::from_raw_parts(from as *const u8, (module.end - from) as usize) };
    let within = |address: u64| (module.start..module.end).contains(&address);
    if !within(module.eh_frame_hdr) || !probe::can_read(module.eh_frame_hdr) {
        return None;
    }
    let bases = BaseAddresses::default().set_eh_frame_hdr(module.eh_frame_hdr);
    let header = EhFrameHdr::new(bytes(module.eh_frame_hdr), LittleEndian).parse(&bases, 8).ok()?;
    let Pointer::Direct(address) = header.eh_frame_ptr() else { return None };
    if !within(address) {
        return None;
    }
    let eh_frame: EhFrame<Slice> = EhFrame::new(bytes(address), LittleEndian);
    let bases = bases.set_eh_frame(address);
    let table = header.table()?;
    let fde = table.fde_for_address(&eh_frame, &bases, pc, EhFrame::cie_from_offset).ok()?;
    if fde.is_signal_trampoline() {
        return Some(Rule::Signal);
    }
    let row = fde.unwind_info_for_address(&eh_frame, &bases, context, pc).ok()?;
    pack(row, &eh_frame, pc)
}

fn pack(row: &Row, eh_frame: &EhFrame<Slice>, pc: u64) -> Option<Rule> {
    match row.register(RETURN_ADDRESS) {
        Some(RegisterRule::Offset(-8)) => {}
        Some(RegisterRule::Undefined) => return Some(Rule::End),
        _ => return None,
    }
    let cfa = match row.cfa() {
        CfaRule::RegisterAndOffset { register: Register(number @ 0..=15), offset } => {
            Cfa::Register(*number as u8, *offset)
        }
        CfaRule::RegisterAndOffset { .. } => return None,
        CfaRule::Expression(expression) => match *bytes(expression, eh_frame)? {
            // DW_OP_breg6 k; DW_OP_deref
            [0x76, k, 0x06] if k < 0x80 => Cfa::WordAtRbp(sleb(k)),
            // The lazy part of a PLT entry: 8 bytes more on the stack once its push is done.
            [0x77, 8, 0x80, 0, 0x3f, 0x1a, lit @ 0x30..=0x4f, 0x2a, 0x33, 0x24, 0x22] => {
                Cfa::Register(RSP as u8, if pc & 15 >= u64::from(lit - 0x30) { 16 } else { 8 })
            }
            _ => return None,
        },
    };
    let saved = SAVED.map(|register| saved(row.register(Register(register as u16)), eh_frame));
    Some(Rule::Frame { cfa, saved })
}

fn saved(rule: Option<RegisterRule<usize>>, eh_frame: &EhFrame<Slice>) -> Saved {
    let small = |offset: i64| i32::try_from(offset).ok();
    match rule {
        None | Some(RegisterRule::Undefined | RegisterRule::SameValue) => Saved::Same,
        Some(RegisterRule::Offset(offset)) => small(offset).map_or(Saved::Lost, Saved::AtCfa),
        Some(RegisterRule::Expression(expression)) => match bytes(&expression, eh_frame) {
            // DW_OP_breg6 k
            Some(&[0x76, k]) if k < 0x80 => small(sleb(k)).map_or(Saved::Lost, Saved::AtRbp),
            Some(&[0x76, low, high]) if low >= 0x80 && high < 0x80 => {
                let value = u16::from(low & 0x7f) | u16::from(high) << 7;
                Saved::AtRbp(i32::from((value << 2) as i16 >> 2))
            }
            _ => Saved::Lost,
        },
        Some(_) => Saved::Lost,
    }
}

fn bytes<'a>(expression: &UnwindExpression<usize>, eh_frame: &'a EhFrame<Slice>) -> Option<&'a [u8]> {
    Some(expression.get(eh_frame).ok()?.0.slice())
}

/// A signed LEB128 number of one byte.
fn sleb(byte: u8) -> i64 {
    i64::from((byte << 1) as i8 >> 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf_symbols::SymbolFile;

    unsafe extern "C" {
        fn backtrace(buffer: *mut *mut libc::c_void, size: i32) -> i32;
    }

    /// Tables of this program and its libraries, from where they are mapped.
    fn unwinder() -> Unwinder {
        let mut unwinder = Unwinder::default();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let mut seen = Vec::new();
        for line in maps.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let Some(path) = words.get(5).filter(|path| path.starts_with('/')) else { continue };
            if words[2] != "00000000" || seen.contains(path) {
                continue;
            }
            seen.push(path);
            let start = u64::from_str_radix(words[0].split('-').next().unwrap(), 16).unwrap();
            let Some(file) = SymbolFile::open(&std::ffi::CString::new(*path).unwrap()) else { continue };
            let facts = file.facts();
            let bias = start - facts.extent.0;
            if let Some(header) = facts.eh_frame_hdr {
                unwinder.add(start, facts.extent.1 + bias, header + bias);
            }
        }
        unwinder
    }

    /// Frames of all sorts: recursion, room on the stack of many sizes, and a callback out of the C library.
    #[inline(never)]
    fn descend(depth: u32, unwinder: &mut Unwinder) -> u64 {
        let mut room = [depth as u8; 200];
        std::hint::black_box(&mut room);
        if depth > 0 && depth.is_multiple_of(3) {
            return by_qsort(depth, unwinder) + u64::from(room[0]);
        }
        if depth > 0 { descend(depth - 1, unwinder) + u64::from(room[9]) } else { compare(unwinder) }
    }

    thread_local! {
        static NEXT: std::cell::Cell<(u32, *mut Unwinder)> = const { std::cell::Cell::new((0, std::ptr::null_mut())) };
    }

    extern "C" fn callback(_: *const libc::c_void, _: *const libc::c_void) -> i32 {
        let (depth, unwinder) = NEXT.with(|next| next.replace((0, std::ptr::null_mut())));
        // SAFETY: set by `by_qsort`, whose caller's reference is not used meanwhile.
        if let Some(unwinder) = unsafe { unwinder.as_mut() } {
            descend(depth - 1, unwinder);
        }
        0
    }

    fn by_qsort(depth: u32, unwinder: &mut Unwinder) -> u64 {
        NEXT.with(|next| next.set((depth, unwinder)));
        let mut numbers = [2u64, 1];
        // SAFETY: two elements of eight bytes, and a function that compares them.
        unsafe { libc::qsort(numbers.as_mut_ptr().cast(), 2, 8, Some(callback)) };
        numbers[0]
    }

    fn compare(unwinder: &mut Unwinder) -> u64 {
        let mut registers = Registers::default();
        let (rbx, rbp, rsp, rip): (u64, u64, u64, u64);
        let (r12, r13, r14, r15): (u64, u64, u64, u64);
        // SAFETY: only reads registers.
        unsafe {
            std::arch::asm!(
                "mov {0}, rbx", "mov {1}, rbp", "mov {2}, rsp", "lea {3}, [rip]",
                out(reg) rbx, out(reg) rbp, out(reg) rsp, out(reg) rip, options(nomem, nostack, preserves_flags)
            );
            std::arch::asm!(
                "mov {0}, r12", "mov {1}, r13", "mov {2}, r14", "mov {3}, r15",
                out(reg) r12, out(reg) r13, out(reg) r14, out(reg) r15, options(nomem, nostack, preserves_flags)
            );
        }
        for (register, value) in [(3, rbx), (6, rbp), (7, rsp), (12, r12), (13, r13), (14, r14), (15, r15)] {
            registers.0[register] = value;
        }
        let mut ours = Vec::new();
        unwinder.walk(None, rip, registers, 500, &mut ours);
        let mut theirs = vec![std::ptr::null_mut(); 500];
        // SAFETY: room for as many as is said.
        let count = unsafe { backtrace(theirs.as_mut_ptr(), 500) };
        let theirs: Vec<u64> = theirs[..count as usize].iter().map(|&at| at as u64).collect();
        // The innermost address is where each of the two was asked.
        assert_eq!(ours[1..], theirs[1..], "of {} frames", theirs.len());
        assert!(ours.len() > 30);
        0
    }

    #[test]
    fn stacks_are_those_of_the_c_librarys_backtrace() {
        let mut unwinder = unwinder();
        for depth in 25..40 {
            descend(depth, &mut unwinder);
        }
        assert!(unwinder.rules.len() > 10);
    }

    #[test]
    fn registers_change_their_order() {
        let gpr = std::array::from_fn(|i| 100 + i as u64);
        let dwarf = dwarf_order(&gpr).0;
        // rsp is number 4 of the processor and 7 of DWARF, rdx 2 and 1, rsi 6 and 4.
        assert_eq!((dwarf[7], dwarf[1], dwarf[4], dwarf[6], dwarf[15]), (104, 102, 106, 105, 115));
    }
}
