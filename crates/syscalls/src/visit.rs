//! The evaluator: goes through a call's rules, before the call or after it, and hands out regions.
//!
//! One description serves both times: what it calls an input is a region to check before the call and nothing after
//! it, an output is a region to check before the call and one that was written after it.

use crate::memory::{Memory, read_array, scan_string};
use crate::region::{Access, Param, Region};
use crate::rule::Length;
use crate::table::Syscall;

/// Steps that one description may take: regions, elements of arrays, pieces of strings. Enough for the 1,024 elements
/// of the longest vectors and for the arguments of an ordinary `execve`; what is left out is told ([`Before`]).
const MOST_STEPS: u32 = 1 << 17;

/// Values that a description keeps from before the call.
const SLOTS: usize = 40;

/// What must be remembered from before a call to say what it wrote: the kernel overwrites the lengths that it is given.
#[derive(Debug, Clone, Copy)]
pub struct Before {
    slots: [u64; SLOTS],
    /// The call's arrays were longer than the evaluator goes: some regions were not given.
    pub truncated: bool,
}

impl Before {
    pub(crate) const EMPTY: Self = Self { slots: [0; SLOTS], truncated: false };
}

/// No call counts more than an address space holds; so a made-up result cannot overflow what it is multiplied by.
const MOST_RETURNED: u64 = 1 << 48;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Before,
    After(i64),
}

/// EINTR, and the kernel's own codes of calls that a signal interrupted and that it restarts (a tracer sees them).
const INTERRUPTED: [i64; 5] = [-4, -512, -513, -514, -516];

/// A call that is being described.
pub(crate) struct Visit<'a> {
    call: &'static Syscall,
    args: [u64; 6],
    phase: Phase,
    memory: &'a dyn Memory,
    sink: &'a mut dyn FnMut(Region),
    before: Before,
    steps: u32,
}

impl<'a> Visit<'a> {
    pub(crate) fn before(
        call: &'static Syscall,
        args: &[u64; 6],
        memory: &'a dyn Memory,
        sink: &'a mut dyn FnMut(Region),
    ) -> Self {
        Self { call, args: *args, phase: Phase::Before, memory, sink, before: Before::EMPTY, steps: MOST_STEPS }
    }

    pub(crate) fn after(
        call: &'static Syscall,
        args: &[u64; 6],
        result: i64,
        before: &Before,
        memory: &'a dyn Memory,
        sink: &'a mut dyn FnMut(Region),
    ) -> Self {
        // `modify_ldt` alone returns its error as a number of 32 bits.
        let result = if call.name == "modify_ldt" { i64::from(result as i32) } else { result };
        Self { call, args: *args, phase: Phase::After(result), memory, sink, before: *before, steps: MOST_STEPS }
    }

    /// Goes through all rules of the call.
    pub(crate) fn run(mut self) -> Before {
        for rule in self.call.rules {
            rule.describe(&mut self);
        }
        self.before
    }

    /// The value of argument `index`.
    pub(crate) fn arg(&self, index: usize) -> u64 {
        self.call.value(&self.args, index)
    }

    /// The value of argument `index` as a signed number.
    pub(crate) fn int(&self, index: usize) -> i64 {
        self.arg(index) as i64
    }

    /// `call(argument)`.
    pub(crate) fn argument(&self, index: usize) -> Param {
        self.call.argument(index).unwrap_or(Param::of(self.call.shown, ""))
    }

    pub(crate) fn length(&self, length: Length) -> u64 {
        match length {
            Length::Bytes(count) => u64::from(count),
            Length::Arg(arg) => self.count(usize::from(arg.0)),
            Length::Times(arg, size) => self.count(usize::from(arg.0)).saturating_mul(u64::from(size)),
        }
    }

    /// Argument `index` as a number of things: none if it is negative.
    pub(crate) fn count(&self, index: usize) -> u64 {
        let value = self.arg(index);
        let is_signed = self.call.args.get(index).is_some_and(|arg| arg.signed);
        if is_signed && (value as i64) < 0 { 0 } else { value }
    }

    pub(crate) fn is_before(&self) -> bool {
        self.phase == Phase::Before
    }

    /// What the call returned, as a count; 0 before it and if it failed.
    pub(crate) fn returned(&self) -> u64 {
        match self.phase {
            Phase::After(result) => u64::try_from(result).unwrap_or(0).min(MOST_RETURNED),
            Phase::Before => 0,
        }
    }

    /// The number of the error with which the call ended, 0 if with none.
    pub(crate) fn error(&self) -> i64 {
        match self.phase {
            Phase::After(result) if is_error(result) => -result,
            _ => 0,
        }
    }

    fn succeeded(&self) -> bool {
        matches!(self.phase, Phase::After(result) if !is_error(result))
    }

    pub(crate) fn was_interrupted(&self) -> bool {
        matches!(self.phase, Phase::After(result) if INTERRUPTED.contains(&result))
    }

    /// Takes one step of the budget; `false` if there is none left.
    pub(crate) fn step(&mut self) -> bool {
        self.take(1)
    }

    fn take(&mut self, steps: u32) -> bool {
        match self.steps.checked_sub(steps) {
            Some(left) => self.steps = left,
            None => {
                self.steps = 0;
                self.before.truncated = true;
                return false;
            }
        }
        true
    }

    fn give(&mut self, param: Param, address: u64, length: u64, access: Access) {
        // Of what begins at the highest address there is one byte to tell of.
        let length = length.min((u64::MAX - address).max(1));
        if length > 0 && self.step() {
            (self.sink)(Region { param, address, length, access });
        }
    }

    /// The kernel reads these bytes.
    pub(crate) fn input(&mut self, param: impl Into<Param>, address: u64, length: u64) {
        if self.is_before() {
            self.give(param.into(), address, length, Access::Read);
        }
    }

    /// The kernel copies these bytes, but they decide nothing.
    pub(crate) fn copied(&mut self, param: impl Into<Param>, address: u64, length: u64) {
        if self.is_before() {
            self.give(param.into(), address, length, Access::Copy);
        }
    }

    /// The kernel may write `capacity` bytes; if the call succeeded it wrote `written` of them.
    pub(crate) fn output(&mut self, param: impl Into<Param>, address: u64, capacity: u64, written: u64) {
        if self.is_before() {
            self.give(param.into(), address, capacity, Access::Write);
        } else if self.succeeded() {
            self.give(param.into(), address, written.min(capacity), Access::Write);
        }
    }

    /// The kernel may write these bytes, and did so if `happened`, whether or not the call succeeded.
    pub(crate) fn output_if(&mut self, param: impl Into<Param>, address: u64, length: u64, happened: bool) {
        if self.is_before() || happened {
            self.give(param.into(), address, length, Access::Write);
        }
    }

    /// The kernel writes these bytes if the call succeeds.
    pub(crate) fn whole(&mut self, param: impl Into<Param>, address: u64, length: u64) {
        self.output(param, address, length, length);
    }

    /// The kernel reads these bytes and, if the call succeeds, writes them.
    pub(crate) fn inout(&mut self, param: impl Into<Param>, address: u64, length: u64) {
        let param = param.into();
        self.input(param, address, length);
        if !self.is_before() {
            self.output(param, address, length, length);
        }
    }

    /// The kernel reads a string of at most `most` bytes.
    pub(crate) fn text(&mut self, param: impl Into<Param>, address: u64, most: u64) {
        if self.is_before() {
            let scan = scan_string(self.memory, address, most);
            if self.take(scan.reads) {
                self.give(param.into(), address, scan.length, Access::Read);
            }
        }
    }

    /// The kernel writes a string: it has at least `least` bytes, at most `most`, and now ends at its zero.
    pub(crate) fn output_text(&mut self, param: impl Into<Param>, address: u64, least: u64, most: u64) {
        if self.is_before() {
            return self.output(param, address, least, 0);
        }
        let scan = scan_string(self.memory, address, most);
        if self.take(scan.reads) {
            self.output(param, address, most, scan.length);
        }
    }

    /// After the call: a string of at most `most` bytes was written, whether or not the call succeeded.
    pub(crate) fn failed_text(&mut self, param: impl Into<Param>, address: u64, most: u64) {
        let scan = scan_string(self.memory, address, most);
        if self.take(scan.reads) {
            self.output_if(param, address, scan.length, true);
        }
    }

    pub(crate) fn memory(&self) -> &'a dyn Memory {
        self.memory
    }

    pub(crate) fn u16_at(&self, address: u64) -> Option<u64> {
        read_array(self.memory, address).map(|bytes| u64::from(u16::from_le_bytes(bytes)))
    }

    pub(crate) fn u32_at(&self, address: u64) -> Option<u64> {
        read_array(self.memory, address).map(|bytes| u64::from(u32::from_le_bytes(bytes)))
    }

    pub(crate) fn u64_at(&self, address: u64) -> Option<u64> {
        read_array(self.memory, address).map(u64::from_le_bytes)
    }

    /// The number at `address`, 0 if it cannot be read.
    pub(crate) fn u32_or_0(&self, address: u64) -> u64 {
        self.u32_at(address).unwrap_or(0)
    }

    /// The number at `address`, 0 if it cannot be read.
    pub(crate) fn u64_or_0(&self, address: u64) -> u64 {
        self.u64_at(address).unwrap_or(0)
    }

    /// `value` as it was before the call: kept then, given back after it. Beyond the slots, `value` as it is now.
    pub(crate) fn keep(&mut self, slot: usize, value: u64) -> u64 {
        let Some(kept) = self.before.slots.get_mut(slot) else { return value };
        if self.phase == Phase::Before {
            *kept = value;
        }
        *kept
    }
}

/// The kernel's errors are the last 4,095 values of a register.
pub(crate) fn is_error(result: i64) -> bool {
    (-4095..0).contains(&result)
}
