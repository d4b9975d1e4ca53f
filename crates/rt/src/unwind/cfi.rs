//! From a return address to the rule that finds the next one: a row of `.eh_frame`, packed into 64 bits.
//!
//! Runs on a miss of the rule table only. Reads the object's own unwind sections in place; gimli checks every bound.
//!
//! Source: DWARF 5 section 6.4; System V ABI for AMD64, figure 3.36 (register numbers); LSB `.eh_frame_hdr`.

use core::mem::MaybeUninit;

use gimli::{
    BaseAddresses, CfaRule, EhFrame, EhFrameHdr, EndianSlice, LittleEndian, Pointer, ReaderOffset, Register,
    RegisterRule, UnwindContext, UnwindContextStorage, UnwindExpression, UnwindSection, UnwindTableRow,
};

use super::objects::{ObjectFinder, ObjectInfo};

type Reader = EndianSlice<'static, LittleEndian>;

const RBP: Register = Register(6);
const RSP: Register = Register(7);
const RETURN_ADDRESS: Register = Register(16);

/// How to find a frame's CFA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// rsp plus an offset.
    Rsp = 1,
    /// rbp plus an offset.
    Rbp,
    /// The word at rbp plus an offset (functions that realign their stack).
    Drap,
    /// Another register plus an offset.
    Other,
    /// There is no caller.
    End,
    /// A signal trampoline: the kernel's `ucontext_t` lies at rsp.
    Signal,
    /// Not known.
    Fail,
}

/// Where the caller's value of a register is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Saved {
    /// In the register.
    Same,
    /// At the CFA plus this many bytes.
    AtCfa(i64),
    /// At this function's rbp plus this many bytes.
    AtRbp(i64),
    /// Nowhere.
    Lost,
}

/// One row, packed: kind (4 bits), rbp's state (4), register (8), rbp's offset (i16), CFA offset (i32). Never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rule(pub(super) u64);

impl Rule {
    pub(super) const FAIL: Self = Self(Kind::Fail as u64);
    const END: Self = Self(Kind::End as u64);

    fn new(kind: Kind, register: Register, cfa_offset: i64, rbp: Saved) -> Option<Self> {
        let (state, offset) = match rbp {
            Saved::Same => (0, 0),
            Saved::AtCfa(o) => (1, o),
            Saved::AtRbp(o) => (2, o),
            Saved::Lost => (3, 0),
        };
        let (state, offset) = match i16::try_from(offset) {
            Ok(o) => (state, o),
            Err(_) => (3, 0),
        };
        let cfa = i32::try_from(cfa_offset).ok()?;
        let register = u8::try_from(register.0).ok()?;
        Some(Self(
            kind as u64
                | state << 4
                | u64::from(register) << 8
                | u64::from(offset as u16) << 16
                | u64::from(cfa as u32) << 32,
        ))
    }

    #[inline(always)]
    pub(super) fn kind(self) -> Kind {
        match self.0 & 15 {
            1 => Kind::Rsp,
            2 => Kind::Rbp,
            3 => Kind::Drap,
            4 => Kind::Other,
            5 => Kind::End,
            6 => Kind::Signal,
            _ => Kind::Fail,
        }
    }

    #[inline(always)]
    pub(super) fn cfa_offset(self) -> u64 {
        (self.0 as i64 >> 32) as u64
    }

    #[inline(always)]
    pub(super) fn rbp(self) -> Saved {
        let offset = i64::from((self.0 >> 16) as i16);
        match self.0 >> 4 & 15 {
            0 => Saved::Same,
            1 => Saved::AtCfa(offset),
            2 => Saved::AtRbp(offset),
            _ => Saved::Lost,
        }
    }

    pub(super) fn register(self) -> u8 {
        (self.0 >> 8) as u8
    }
}

/// gimli's working memory without a heap, for rows of at most `RULES` registers. Four saved states are more than compilers
/// nest (a row that needs more is an error, so a [`Rule::FAIL`]).
pub(super) struct FixedStorage<const RULES: usize>;

/// Rows of compiled functions: the six registers that a callee saves, and the return address. gimli passes rows by value,
/// 32 bytes a register, which is most of the stack that a walk takes.
const COMPILED: usize = 8;
/// All 17 registers of the ABI, and what else assembler may name.
const ALL: usize = 24;

macro_rules! fixed_storage {
    ($rules:expr) => {
        impl<T: ReaderOffset> UnwindContextStorage<T> for FixedStorage<{ $rules }> {
            type Rules = [(Register, RegisterRule<T>); $rules];
            type Stack = [UnwindTableRow<T, Self>; 4];
        }
    };
}
fixed_storage!(COMPILED);
fixed_storage!(ALL);

type Context<const RULES: usize> = UnwindContext<usize, FixedStorage<RULES>>;

/// About 5 KiB that live in the thread's cache, so that a miss in a handler on a small signal stack fits. All zero is
/// a valid start.
pub(super) struct Workspace {
    ready: bool,
    compiled: MaybeUninit<Context<COMPILED>>,
    all: MaybeUninit<Context<ALL>>,
}

impl Workspace {
    pub(super) const fn new() -> Self {
        Self { ready: false, compiled: MaybeUninit::uninit(), all: MaybeUninit::uninit() }
    }

    fn contexts(&mut self) -> (&mut Context<COMPILED>, &mut Context<ALL>) {
        if !self.ready {
            self.compiled.write(UnwindContext::new_in());
            self.all.write(UnwindContext::new_in());
            self.ready = true;
        }
        // SAFETY: written above, once; nothing drops them.
        unsafe { (self.compiled.assume_init_mut(), self.all.assume_init_mut()) }
    }
}

/// What a walk needs of a row.
trait Row {
    fn cfa(&self) -> &CfaRule<usize>;
    fn register(&self, register: Register) -> Option<RegisterRule<usize>>;
}

impl<const RULES: usize> Row for UnwindTableRow<usize, FixedStorage<RULES>>
where
    FixedStorage<RULES>: UnwindContextStorage<usize>,
{
    fn cfa(&self) -> &CfaRule<usize> {
        self.cfa()
    }

    fn register(&self, register: Register) -> Option<RegisterRule<usize>> {
        self.register(register)
    }
}

type Fde = gimli::FrameDescriptionEntry<Reader>;

/// The sections that describe one object.
struct Sections {
    hdr: gimli::ParsedEhFrameHdr<Reader>,
    eh_frame: EhFrame<Reader>,
    bases: BaseAddresses,
    /// The end of the object's memory is known.
    whole: bool,
}

/// How far `.eh_frame` may lie from `.eh_frame_hdr` in an object of several parts.
const PART_REACH: u64 = 1 << 30;

impl Sections {
    fn of(object: ObjectInfo) -> Option<Self> {
        let whole = object.start <= object.eh_frame_hdr && object.eh_frame_hdr < object.end;
        // Of an object in parts only the part with the pc is known; then the sections' own lengths and the table's
        // count are all that bounds a read.
        let (low, high) = if whole {
            (object.start, object.end)
        } else {
            let hdr = object.eh_frame_hdr;
            (hdr.saturating_sub(PART_REACH), hdr.saturating_add(PART_REACH))
        };
        // SAFETY: the object describes itself with these sections. It stays mapped as long as the code whose frame is
        // on the stack does.
        let bytes = |from: u64| unsafe { core::slice::from_raw_parts(from as *const u8, (high - from) as usize) };
        let bases = BaseAddresses::default().set_eh_frame_hdr(object.eh_frame_hdr);
        let hdr = EhFrameHdr::new(bytes(object.eh_frame_hdr), LittleEndian).parse(&bases, 8).ok()?;
        let Pointer::Direct(address) = hdr.eh_frame_ptr() else {
            return None;
        };
        if !(low..high).contains(&address) {
            return None;
        }
        let eh_frame = EhFrame::new(bytes(address), LittleEndian);
        Some(Self { hdr, eh_frame, bases: bases.set_eh_frame(address), whole })
    }

    /// The description of the function around `pc`: by the sorted table, or by reading everything if there is none.
    fn fde(&self, pc: u64) -> Option<Fde> {
        match self.hdr.table() {
            Some(table) => table.fde_for_address(&self.eh_frame, &self.bases, pc, EhFrame::cie_from_offset),
            None if !self.whole => return None,
            None => self.eh_frame.fde_for_address(&self.bases, pc, EhFrame::cie_from_offset),
        }
        .ok()
    }

    /// What `then` makes of the row of `pc`.
    fn row<R>(
        &self,
        fde: &Fde,
        pc: u64,
        workspace: &mut Workspace,
        then: impl FnOnce(&dyn Row) -> Option<R>,
    ) -> Option<R> {
        let (compiled, all) = workspace.contexts();
        match self.row_in(fde, pc, compiled) {
            Ok(row) => then(row),
            Err(gimli::Error::TooManyRegisterRules) => then(self.row_in(fde, pc, all).ok()?),
            Err(_) => None,
        }
    }

    #[inline(never)]
    fn row_in<'c, const RULES: usize>(
        &self,
        fde: &Fde,
        pc: u64,
        context: &'c mut Context<RULES>,
    ) -> gimli::Result<&'c UnwindTableRow<usize, FixedStorage<RULES>>>
    where
        FixedStorage<RULES>: UnwindContextStorage<usize>,
    {
        fde.unwind_info_for_address(&self.eh_frame, &self.bases, context, pc)
    }
}

/// The rule for a return address. `None`: no object holds it (which may change: do not remember it).
pub(super) fn rule_of(finder: ObjectFinder, return_address: u64, workspace: &mut Workspace) -> Option<Rule> {
    let object = finder.find(return_address.wrapping_sub(1))?;
    Some(rule_in(object, return_address, workspace).unwrap_or(Rule::FAIL))
}

/// How far the code reaches that an object's entry point begins with, where nothing describes it. The dynamic linker's
/// calls its constructors' caller 48 bytes behind its first instruction. Source: glibc `sysdeps/x86_64/dl-machine.h`.
const ENTRY_CODE_BYTES: u64 = 64;

fn rule_in(object: ObjectInfo, return_address: u64, workspace: &mut Workspace) -> Option<Rule> {
    let sections = Sections::of(object)?;
    // The call, not what follows it: that may be another function, or another row.
    let pc = return_address.wrapping_sub(1);
    let Some(fde) = sections.fde(pc) else {
        if object.entry().is_some_and(|entry| (1..=ENTRY_CODE_BYTES).contains(&return_address.wrapping_sub(entry))) {
            return Some(Rule::END);
        }
        // No function before the return address, and one that starts at it: no call made this. Somebody set up a stack
        // that returns into a function (glibc's makecontext), and that is where it ends.
        let next = sections.fde(return_address)?;
        return (next.initial_address() == return_address).then_some(Rule::END);
    };
    if fde.is_signal_trampoline() {
        return Rule::new(Kind::Signal, Register(0), 0, Saved::Lost);
    }
    sections.row(&fde, pc, workspace, |row| pack(row, &sections.eh_frame, return_address))
}

/// Where the function that `return_address` returns into keeps its caller's value of a callee-saved register.
pub(super) fn saved_register(
    finder: ObjectFinder,
    return_address: u64,
    register: u8,
    workspace: &mut Workspace,
) -> Option<Saved> {
    let pc = return_address.wrapping_sub(1);
    let sections = Sections::of(finder.find(pc)?)?;
    let of_row = |row: &dyn Row| Some(saved(row.register(Register(u16::from(register))), &sections.eh_frame));
    sections.row(&sections.fde(pc)?, pc, workspace, of_row)
}

fn pack(row: &dyn Row, eh_frame: &EhFrame<Reader>, return_address: u64) -> Option<Rule> {
    match row.register(RETURN_ADDRESS) {
        Some(RegisterRule::Offset(-8)) => {}
        Some(RegisterRule::Undefined) => return Some(Rule::END),
        _ => return None,
    }
    let rbp = saved(row.register(RBP), eh_frame);
    match row.cfa() {
        // Less than 8 would put the return address into the callee's frame: a walk that goes nowhere.
        CfaRule::RegisterAndOffset { register: RSP, offset: 8.. } => Rule::new(Kind::Rsp, RSP, cfa_offset(row)?, rbp),
        CfaRule::RegisterAndOffset { register: RSP, .. } => None,
        CfaRule::RegisterAndOffset { register: RBP, offset } => Rule::new(Kind::Rbp, RBP, *offset, rbp),
        CfaRule::RegisterAndOffset { register, offset } => Rule::new(Kind::Other, *register, *offset, rbp),
        CfaRule::Expression(expression) => match *bytes(expression, eh_frame)? {
            // DW_OP_breg6 k; DW_OP_deref
            [0x76, k, 0x06] if k < 0x80 => Rule::new(Kind::Drap, RBP, sleb(k), rbp),
            // The lazy part of a PLT entry: 8 bytes more on the stack once its push is done (`lit` differs by linker).
            [0x77, 8, 0x80, 0, 0x3f, 0x1a, lit @ 0x30..=0x4f, 0x2a, 0x33, 0x24, 0x22] => {
                let pushed = return_address.wrapping_sub(1) & 15 >= u64::from(lit - 0x30);
                Rule::new(Kind::Rsp, RSP, if pushed { 16 } else { 8 }, rbp)
            }
            _ => None,
        },
    }
}

fn cfa_offset(row: &dyn Row) -> Option<i64> {
    match row.cfa() {
        CfaRule::RegisterAndOffset { offset, .. } => Some(*offset),
        CfaRule::Expression(_) => None,
    }
}

fn saved(rule: Option<RegisterRule<usize>>, eh_frame: &EhFrame<Reader>) -> Saved {
    match rule {
        // Callee-saved registers that a row does not mention are unchanged. Compilers say "undefined" of none of them
        // but where the walk ends anyway.
        None | Some(RegisterRule::Undefined | RegisterRule::SameValue) => Saved::Same,
        Some(RegisterRule::Offset(offset)) => Saved::AtCfa(offset),
        Some(RegisterRule::Expression(expression)) => match bytes(&expression, eh_frame) {
            // DW_OP_breg6 k
            Some(&[0x76, k]) if k < 0x80 => Saved::AtRbp(sleb(k)),
            Some(&[0x76, low, high]) if low >= 0x80 && high < 0x80 => {
                let value = u16::from(low & 0x7f) | u16::from(high) << 7;
                Saved::AtRbp(i64::from((value << 2) as i16 >> 2))
            }
            _ => Saved::Lost,
        },
        Some(_) => Saved::Lost,
    }
}

fn bytes<'a>(expression: &UnwindExpression<usize>, eh_frame: &'a EhFrame<Reader>) -> Option<&'a [u8]> {
    Some(expression.get(eh_frame).ok()?.0.slice())
}

/// A signed LEB128 number of one byte.
fn sleb(byte: u8) -> i64 {
    i64::from((byte << 1) as i8 >> 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_keeps_what_was_packed() {
        for kind in [Kind::Rsp, Kind::Rbp, Kind::Drap, Kind::Other, Kind::End, Kind::Signal, Kind::Fail] {
            for cfa in [8, -8, 40_000, -40_000, i64::from(i32::MAX)] {
                for rbp in [Saved::Same, Saved::AtCfa(-16), Saved::AtCfa(-32_768), Saved::AtRbp(8), Saved::Lost] {
                    let rule = Rule::new(kind, Register(12), cfa, rbp).expect("fits");
                    assert_eq!((rule.kind(), rule.cfa_offset() as i64, rule.rbp()), (kind, cfa, rbp));
                    assert_eq!(rule.register(), 12);
                }
            }
        }
        assert_eq!(Rule::new(Kind::Rsp, RSP, 1 << 31, Saved::Same), None);
        let far = Rule::new(Kind::Rsp, RSP, 8, Saved::AtCfa(-32_769)).expect("fits");
        assert_eq!(far.rbp(), Saved::Lost, "an offset that does not fit is not another offset");
    }

    #[test]
    fn one_byte_numbers_are_signed() {
        let expected = [(0u8, 0), (1, 1), (0x3f, 63), (0x40, -64), (0x78, -8), (0x7f, -1)];
        for (byte, value) in expected {
            assert_eq!(sleb(byte), value);
        }
    }

    /// Both ways to find an object, for code of this program and of libc, and for what is no code.
    #[test]
    fn finders_agree() {
        let symbol = |name: &core::ffi::CStr| {
            // SAFETY: a plain call with a C string.
            unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) }
        };
        let (new, old) = (symbol(c"_dl_find_object"), symbol(c"dl_iterate_phdr"));
        // SAFETY: the loader's functions of these names.
        let finders =
            unsafe { [ObjectFinder::new(new, core::ptr::null_mut()), ObjectFinder::new(core::ptr::null_mut(), old)] };
        let mut workspace = Workspace::new();
        for pc in [finders_agree as *const () as u64 + 4, symbol(c"qsort") as u64 + 1, symbol(c"malloc") as u64 + 1] {
            let [by_loader, by_phdr] = finders.map(|f| f.find(pc).expect("code").eh_frame_hdr);
            assert_eq!(by_loader, by_phdr);
            let rules = finders.map(|f| rule_of(f, pc + 1, &mut workspace));
            assert_eq!(rules[0], rules[1]);
            assert!(rules[0].is_some_and(|r| r.kind() != Kind::Fail));
        }
        let stack = &raw const workspace as u64;
        for pc in [0, 1, stack, u64::MAX, 1 << 47] {
            assert_eq!(finders.map(|f| f.find(pc)), [None, None], "{pc:x}");
        }
    }
}
