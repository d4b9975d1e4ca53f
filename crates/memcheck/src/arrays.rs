//! `--check-arrays=yes`: string functions and system calls that go past the variable in which they begin.
//!
//! No byte between two variables of a stack frame or of a data section is unaddressable, so that the shadow knows of no
//! overflow from one into the other. But a function that is told where to write and how much, names the variable
//! itself: the one in which its first byte lies. Where variables lie in a frame is known to the process outside,
//! from debug information; it is asked once for each place of code, and for each global variable. Loops of the
//! program's own are not looked at: of a single access nobody knows which variable it was meant for.
//!
//! Only variables whose place depends on nothing but the canonical frame address are used, and of several around an
//! address the one that reaches furthest, so that what is told is an error.

use std::collections::{BTreeMap, HashMap, HashSet};

use leakscope_ledger::events::{Event, StackFrame, Subject};
use leakscope_model::ErrorKind;
use leakscope_translate::{Gpr, Guest};

use crate::engine::{HEAP, Memcheck};
use crate::functions::Text;
use crate::probe;
use crate::subjects::{Description, Walked};

/// Strings that are longer are not measured.
const LONGEST: u64 = 1 << 20;
/// Addresses of no known variable that are remembered.
const MOST_UNKNOWN: usize = 1 << 16;

/// What is known of variables.
#[derive(Clone, Debug, Default)]
pub struct Arrays {
    /// By an address in the code of a function: ranges relative to the canonical frame address.
    frames: HashMap<u64, Vec<(i64, i64)>>,
    /// Global variables: their ends by their starts.
    globals: BTreeMap<u64, u64>,
    /// Addresses that are in none.
    unknown: HashSet<u64>,
}

impl Arrays {
    /// Code and data between two addresses are no longer mapped.
    pub fn forget(&mut self, start: u64, end: u64) {
        self.frames.retain(|pc, _| !(start..end).contains(pc));
        self.globals.retain(|address, _| !(start..end).contains(address));
        self.unknown.clear();
    }
}

/// What a function touches: first byte, bytes, whether it writes them.
type Range = (u64, u64, bool);

/// Bytes of a string without its zero, of characters so wide; `None` when it does not end.
fn length(address: u64, wide: bool, most: u64) -> Option<u64> {
    let width: u64 = if wide { 4 } else { 1 };
    let mut character = [0; 4];
    let mut bytes = 0;
    while bytes < most.min(LONGEST) {
        if !probe::read(address.wrapping_add(bytes), &mut character[..width as usize]) {
            return None;
        }
        if character[..width as usize].iter().all(|&byte| byte == 0) {
            return Some(bytes);
        }
        bytes += width;
    }
    (most <= LONGEST).then_some(most)
}

/// The ranges that a call touches, as far as its arguments tell.
fn ranges(function: Text, guest: &Guest) -> Vec<Range> {
    use Text as T;
    let (a, b, c) = (guest.gpr(Gpr::Rdi), guest.gpr(Gpr::Rsi), guest.gpr(Gpr::Rdx));
    let string = |at| length(at, false, u64::MAX);
    let found = match function {
        T::Memcpy | T::MemcpyChk | T::Memmove | T::MemmoveChk | T::Mempcpy | T::MempcpyChk => {
            Some(vec![(a, c, true), (b, c, false)])
        }
        T::Bcopy => Some(vec![(b, c, true), (a, c, false)]),
        T::Memset | T::MemsetChk => Some(vec![(a, c, true)]),
        T::Bzero => Some(vec![(a, b, true)]),
        T::Wmemset | T::WmemsetChk => Some(vec![(a, c.saturating_mul(4), true)]),
        T::Strlen => string(a).map(|bytes| vec![(a, bytes + 1, false)]),
        T::Wcslen => length(a, true, u64::MAX).map(|bytes| vec![(a, bytes + 4, false)]),
        T::Strcpy | T::StrcpyChk | T::Stpcpy | T::StpcpyChk => {
            string(b).map(|bytes| vec![(a, bytes + 1, true), (b, bytes + 1, false)])
        }
        T::Wcscpy | T::Wcpcpy => {
            length(b, true, u64::MAX).map(|bytes| vec![(a, bytes + 4, true), (b, bytes + 4, false)])
        }
        T::Strncpy | T::StrncpyChk | T::Stpncpy | T::StpncpyChk => {
            length(b, false, c).map(|bytes| vec![(a, c, true), (b, (bytes + 1).min(c), false)])
        }
        T::Strcat | T::StrcatChk => {
            string(a).zip(string(b)).map(|(old, new)| vec![(a, old + new + 1, true), (b, new + 1, false)])
        }
        T::Strncat | T::StrncatChk => string(a)
            .zip(length(b, false, c))
            .map(|(old, new)| vec![(a, old + new + 1, true), (b, (new + 1).min(c), false)]),
        _ => None,
    };
    found.unwrap_or_default()
}

impl Memcheck {
    /// A replaced function is called.
    pub fn check_call(&mut self, guest: &Guest, symbol: u64, function: Text) {
        for (address, bytes, write) in ranges(function, guest) {
            self.walked = Walked { hook: Some(symbol), rip: 0 };
            let Some((start, end)) = self.passed(guest, address, bytes) else { continue };
            self.walk_hook(guest, symbol);
            let about = self.about_end(guest, start, end);
            self.report_access_about(end, address + bytes - end, write, about);
        }
    }

    /// A system call reads or writes a range; the call's instruction is at `rip`.
    pub fn check_region(&mut self, guest: &Guest, rip: u64, address: u64, bytes: u64, name: &str) {
        self.walked = Walked { hook: None, rip };
        let Some((start, end)) = self.passed(guest, address, bytes) else { return };
        self.walk_here(guest, rip);
        let about = self.about_end(guest, start, end);
        let message = format!("Syscall param {name} points past the end of a variable");
        self.report_about(ErrorKind::SyscallParam, name, message, end, about);
    }

    /// The variable in which a range begins and does not end.
    fn passed(&mut self, guest: &Guest, address: u64, bytes: u64) -> Option<(u64, u64)> {
        let last = address.checked_add(bytes.checked_sub(1)?)?;
        if HEAP.contains(&address) || last >= leakscope_translate::GUEST_END {
            return None;
        }
        let variable = self.variable_around(guest, address)?;
        (last >= variable.1).then_some(variable)
    }

    fn variable_around(&mut self, guest: &Guest, address: u64) -> Option<(u64, u64)> {
        if let Some(number) = self.threads.stack_owner(address) {
            if number != self.threads.current().number || address < guest.gpr(Gpr::Rsp) {
                return None;
            }
            let (frames, is_within) = self.frames_up_to(address, guest);
            let frame = *frames.last().filter(|_| is_within)?;
            return self.local_around(frame, address);
        }
        if let Some((&start, &end)) = self.arrays.globals.range(..=address).next_back()
            && address < end
        {
            return Some((start, end));
        }
        if self.modules.find(address).is_none() || self.arrays.unknown.contains(&address) {
            return None;
        }
        let answer = self.ask(Subject { address, ..Subject::default() });
        let found = answer.first().map(|&(start, end)| (start as u64, end as u64)).filter(|&(start, end)| {
            // What comes from outside is believed as far as it makes sense.
            start <= address && address < end
        });
        match found {
            Some((start, end)) => {
                self.arrays.globals.insert(start, end);
            }
            None if self.arrays.unknown.len() < MOST_UNKNOWN => {
                self.arrays.unknown.insert(address);
            }
            None => {}
        }
        found
    }

    fn local_around(&mut self, frame: StackFrame, address: u64) -> Option<(u64, u64)> {
        if !self.arrays.frames.contains_key(&frame.pc) {
            let question = Subject { address, thread: 1, frames: vec![frame], is_within: true, object: None };
            let answer = self.ask(question);
            self.arrays.frames.insert(frame.pc, answer);
        }
        let offset = address.wrapping_sub(frame.cfa) as i64;
        let around = self.arrays.frames.get(&frame.pc)?.iter().filter(|(start, end)| *start <= offset && offset < *end);
        let (start, end) = around.max_by_key(|(_, end)| *end)?;
        Some((frame.cfa.wrapping_add_signed(*start), frame.cfa.wrapping_add_signed(*end)))
    }

    /// Asks the process outside, and waits for its answer.
    fn ask(&mut self, question: Subject) -> Vec<(i64, i64)> {
        self.output.tell(&Event::Question(question));
        self.output.wait();
        self.output.answer()
    }

    /// What there is to say of the end of a variable.
    fn about_end(&mut self, guest: &Guest, start: u64, end: u64) -> Description {
        let bytes = crate::errors::grouped(end - start);
        let text = format!("Address {end:#x} is 0 bytes after a variable of size {bytes}");
        let thread = self.threads.stack_owner(start).unwrap_or(0);
        let (frames, is_within) = if thread == 0 { (Vec::new(), false) } else { self.frames_up_to(start, guest) };
        let subject = Subject { address: end, thread, frames, is_within, object: Some((start, end)) };
        Description { lines: vec![(text, Vec::new())], subject: Some(subject) }
    }
}
