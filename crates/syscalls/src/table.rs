//! The shape of the table: a system call, its registers, its rules, and the macro in which they are written.

use crate::effects::Effects;
use crate::family;
use crate::region::Param;
use crate::rule::Rule;

/// One system call.
#[derive(Debug)]
pub struct Syscall {
    /// Its number on x86-64.
    pub number: u16,
    /// The kernel's name.
    pub name: &'static str,
    /// Its arguments, in the order of the registers rdi, rsi, rdx, r10, r8, r9.
    pub args: &'static [Argument],
    /// What it does besides reading and writing memory.
    pub effects: Effects,
    /// The name in messages, where Memcheck's differs.
    pub(crate) shown: &'static str,
    pub(crate) rules: &'static [Rule],
    /// Memcheck's names of the registers, where a command decides them: an argument's name, a whole one if it holds a
    /// bracket, none if it is empty.
    pub(crate) names: Option<fn(&[u64; 6], usize) -> &'static str>,
    /// Which arguments are read, where a command or a flag decides it: a bit for each.
    pub(crate) used: Option<fn(&[u64; 6]) -> u8>,
}

/// An argument of a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Argument {
    /// Memcheck's name of it, else the kernel's.
    pub name: &'static str,
    /// Bytes of the register that the kernel looks at: 4 or 8.
    pub bytes: u8,
    /// Whether a narrower value is extended with its sign.
    pub signed: bool,
}

impl Syscall {
    /// Which of `args` the kernel reads with these values, a bit for each: `open` reads no mode without `O_CREAT`.
    #[must_use]
    pub fn registers(&self, args: &[u64; 6]) -> u8 {
        let all = ((1_u16 << self.args.len()) - 1) as u8;
        self.used.map_or(all, |used| used(args) & all)
    }

    /// The name of argument `index` for `Syscall param write(count) contains uninitialised byte(s)`.
    #[must_use]
    pub fn register(&self, args: &[u64; 6], index: usize) -> Option<Param> {
        match self.names.map_or("", |names| names(args, index)) {
            "" => self.argument(index),
            whole if whole.contains('(') => Some(Param::from(whole)),
            name => Some(Param::of(self.shown, name)),
        }
    }

    /// `call(argument)`, as the table writes it.
    pub(crate) fn argument(&self, index: usize) -> Option<Param> {
        self.args.get(index).map(|arg| Param::of(self.shown, arg.name))
    }

    /// The value of argument `index`: as many bytes as the kernel looks at.
    pub(crate) fn value(&self, args: &[u64; 6], index: usize) -> u64 {
        let raw = args.get(index).copied().unwrap_or(0);
        match self.args.get(index) {
            Some(Argument { bytes: 4, signed: true, .. }) => i64::from(raw as u32 as i32) as u64,
            Some(Argument { bytes: 4, .. }) => u64::from(raw as u32),
            _ => raw,
        }
    }
}

/// The types of arguments, as the table writes them.
#[allow(non_upper_case_globals)]
pub(crate) mod kind {
    pub(crate) const int: (u8, bool) = (4, true);
    pub(crate) const uint: (u8, bool) = (4, false);
    pub(crate) const long: (u8, bool) = (8, true);
    pub(crate) const ulong: (u8, bool) = (8, false);
    pub(crate) const ptr: (u8, bool) = (8, false);
}

/// `r#type` is written so in the table and called `type` in messages.
pub(crate) const fn plain(name: &'static str) -> &'static str {
    if name.len() > 2 && name.as_bytes()[0] == b'r' && name.as_bytes()[1] == b'#' { name.split_at(2).1 } else { name }
}

pub(crate) const fn shown_as(name: &'static str, shown: &'static [&'static str]) -> &'static str {
    if shown.is_empty() { name } else { shown[0] }
}

/// A family of system calls:
/// `NUMBER name [as "shown"](arg: kind, ...) [rules] [registers function] [names function] [is EFFECT | EFFECT];`
macro_rules! syscalls {
    ($(#[$doc:meta])* $table:ident:
     $($number:literal $name:ident $(as $shown:literal)? ($($arg:ident: $kind:ident),*)
       $([$($rule:expr),* $(,)?])? $(registers $used:ident)? $(names $names:ident)? $(is $($effect:ident)|+)?;)*) => {
        $(#[$doc])*
        pub(crate) const $table: &[$crate::table::Syscall] = &[$({
            #[allow(non_camel_case_types, dead_code)]
            enum Place { $($arg),* }
            $(#[allow(non_upper_case_globals, dead_code)]
            const $arg: $crate::rule::Arg = $crate::rule::Arg(Place::$arg as u8);)*
            const RULES: &[$crate::rule::Rule] = &[$($($rule),*)?];
            const USED: &[fn(&[u64; 6]) -> u8] = &[$($used)?];
            const NAMES: &[fn(&[u64; 6], usize) -> &'static str] = &[$($names)?];
            $crate::table::Syscall {
                number: $number,
                name: stringify!($name),
                shown: $crate::table::shown_as(stringify!($name), &[$($shown)?]),
                args: &[$($crate::table::Argument {
                    name: $crate::table::plain(stringify!($arg)),
                    bytes: $crate::table::kind::$kind.0,
                    signed: $crate::table::kind::$kind.1,
                }),*],
                rules: RULES,
                names: if NAMES.is_empty() { None } else { Some(NAMES[0]) },
                used: if USED.is_empty() { None } else { Some(USED[0]) },
                effects: $crate::effects::Effects::NONE$($(.and($crate::effects::Effects::$effect))+)?,
            }
        }),*];
    };
}
pub(crate) use syscalls;

/// One more than the highest number.
const LIMIT: usize = 470;

/// The calls by number; a number that two families claim does not compile.
static BY_NUMBER: [Option<&'static Syscall>; LIMIT] = index();

const fn index() -> [Option<&'static Syscall>; LIMIT] {
    let mut by_number: [Option<&'static Syscall>; LIMIT] = [None; LIMIT];
    let mut family = 0;
    while family < family::ALL.len() {
        let calls = family::ALL[family];
        let mut place = 0;
        while place < calls.len() {
            let number = calls[place].number as usize;
            assert!(by_number[number].is_none(), "two system calls have one number");
            by_number[number] = Some(&calls[place]);
            place += 1;
        }
        family += 1;
    }
    by_number
}

/// The system call of this number.
#[must_use]
pub fn lookup(number: u64) -> Option<&'static Syscall> {
    BY_NUMBER.get(usize::try_from(number).ok()?).copied().flatten()
}

/// Every call of the table, by rising number.
pub fn all() -> impl Iterator<Item = &'static Syscall> {
    BY_NUMBER.iter().filter_map(|call| *call)
}
