//! What addresses outside of the heap are: on which stack, in which frame, in which mapping. Names of variables are added
//! outside, from what a [`Subject`] tells.
//!
//! Source: Valgrind's `m_addrinfo.c`, for which question is asked before which, and for the words.

use leakscope_guest::Backing;
use leakscope_ledger::events::{Addresses, StackFrame, Subject};
use leakscope_translate::{Gpr, Guest};

use crate::engine::Memcheck;
use crate::probe;
use crate::unwind::dwarf_order;

/// Numbers of registers in DWARF.
const RBP: usize = 6;
const RSP: usize = 7;
/// What functions may use below their stack pointer.
const RED_ZONE: u64 = 128;
const PAGE: u64 = 4096;
/// Frames are smaller than this.
const LARGEST_FRAME: u64 = 1 << 20;

/// Where the last walk began.
#[derive(Clone, Copy, Debug, Default)]
pub struct Walked {
    /// The replaced function at whose first instruction the target stands.
    pub hook: Option<u64>,
    /// Otherwise the instruction.
    pub rip: u64,
}

/// What is known of an address: sentences with their stacks, and what names are looked up by.
#[derive(Clone, Debug, Default)]
pub struct Description {
    /// In Memcheck's words.
    pub lines: Vec<(String, Addresses)>,
    /// For addresses that names may tell more of.
    pub subject: Option<Subject>,
}

impl Description {
    fn line(text: String) -> Self {
        Self { lines: vec![(text, Vec::new())], subject: None }
    }
}

impl Memcheck {
    /// An address that is not the heap's.
    pub fn describe_elsewhere(&mut self, address: u64, guest: &Guest) -> Description {
        if let Some(number) = self.threads.stack_owner(address) {
            return self.describe_stack(address, number, guest);
        }
        if let Some(description) = self.describe_overflow(address, guest) {
            return description;
        }
        if let Some(description) = self.describe_guard(address, guest) {
            return description;
        }
        let mut description = Description::line(self.describe_mapping(address));
        if self.modules.find(address).is_some() {
            description.subject = Some(Subject { address, ..Subject::default() });
        }
        description
    }

    fn describe_stack(&mut self, address: u64, number: u32, guest: &Guest) -> Description {
        let mut description = Description::line(format!("Address {address:#x} is on thread {number}'s stack"));
        let walked = self.walked;
        let other = if number == self.threads.current().number { None } else { self.waiting(number) };
        if number != self.threads.current().number && other.is_none() {
            return description;
        }
        let guest = match &other {
            Some(other) => {
                self.walked = Walked { hook: None, rip: other.rip };
                other
            }
            None => guest,
        };
        let rsp = guest.gpr(Gpr::Rsp);
        if address < rsp.saturating_sub(RED_ZONE) {
            let words = format!("{} bytes below stack pointer", rsp - address);
            description.lines.push((words, Vec::new()));
            self.walked = walked;
            return description;
        }
        let (frames, is_within) = self.frames_up_to(address, guest);
        self.walked = walked;
        description.subject = Some(Subject { address, thread: number, frames, is_within, object: None });
        description
    }

    /// The registers of another thread.
    fn waiting(&self, number: u32) -> Option<Guest> {
        let tid = i32::try_from(self.threads.tid(number)?).ok()?;
        self.view.as_ref()?.waiting(tid).cloned()
    }

    /// The frames of the last walk's stack up to the one that holds an address, and whether there is such a one.
    pub(crate) fn frames_up_to(&mut self, address: u64, guest: &Guest) -> (Vec<StackFrame>, bool) {
        let mut registers = dwarf_order(&guest.gpr);
        let Walked { mut hook, rip } = self.walked;
        let mut pc = hook.unwrap_or(rip);
        let mut frames = Vec::new();
        while frames.len() < self.options.num_callers {
            let (stack_pointer, frame_pointer) = (registers.0[RSP], registers.0[RBP]);
            let next = match hook.take() {
                Some(_) => {
                    registers.0[RSP] = stack_pointer.wrapping_add(8);
                    probe::word(stack_pointer)
                }
                None => self.unwinder.step(pc, &mut registers),
            };
            let cfa = if next.is_some() { registers.0[RSP] } else { 0 };
            frames.push(StackFrame { pc, stack_pointer, frame_pointer, cfa });
            if address < stack_pointer || cfa <= stack_pointer {
                break;
            }
            if address < cfa {
                return (frames, true);
            }
            match next {
                Some(return_address) if return_address > PAGE => pc = return_address - 1,
                _ => break,
            }
        }
        (frames, false)
    }

    /// An access of a frame that no longer fits on the stack.
    fn describe_overflow(&mut self, address: u64, guest: &Guest) -> Option<Description> {
        let thread = self.threads.current();
        let (number, stack) = (thread.number, thread.stack.clone());
        let is_below = address < stack.start && stack.start - address <= LARGEST_FRAME;
        let is_frames = guest.gpr(Gpr::Rsp) <= address.saturating_add(LARGEST_FRAME) && guest.gpr(Gpr::Rsp) < stack.end;
        let is_there = self.view.as_ref().is_some_and(|view| view.space().find(address).is_some());
        (is_below && is_frames && !is_there).then(|| {
            let bytes = crate::errors::grouped(stack.end - stack.start);
            let below = stack.start - address;
            let mut description =
                Description::line(format!("Address {address:#x} is {below} bytes below thread {number}'s stack"));
            let words = format!("Stack overflow: it has {bytes} bytes, and cannot grow");
            description.lines.push((words, Vec::new()));
            if number == 1 {
                let words = "If the program needs more, try --main-stacksize= or `ulimit -s`".to_owned();
                description.lines.push((words, Vec::new()));
            }
            description
        })
    }

    /// A page below a stack that nobody may use.
    fn describe_guard(&mut self, address: u64, guest: &Guest) -> Option<Description> {
        let mapping = self.view.as_ref()?.space().find(address)?;
        if mapping.protection != 0 || matches!(mapping.backing, Backing::File { .. }) {
            return None;
        }
        let number = self.threads.stack_owner((address | (PAGE - 1)) + 1)?;
        let rsp = guest.gpr(Gpr::Rsp);
        (number == self.threads.current().number && address < rsp).then(|| {
            let mut description = Description::line(format!("Address {address:#x} is on thread {number}'s stack"));
            let words = format!("In stack guard protected page, {} bytes below stack pointer", rsp - address);
            description.lines.push((words, Vec::new()));
            description
        })
    }

    fn describe_mapping(&self, address: u64) -> String {
        let Some(mapping) = self.view.as_ref().and_then(|view| view.space().find(address)) else {
            return format!("Address {address:#x} is not stack'd, malloc'd or (recently) free'd");
        };
        let letter = |bit, letter| if mapping.protection & bit != 0 { letter } else { '-' };
        let rights: String =
            [letter(libc::PROT_READ, 'r'), letter(libc::PROT_WRITE, 'w'), letter(libc::PROT_EXEC, 'x')]
                .iter()
                .collect();
        match &mapping.backing {
            Backing::File { path, .. } => {
                let path = String::from_utf8_lossy(path);
                format!("Address {address:#x} is in a {rights} mapped file {path} segment")
            }
            Backing::Heap => format!(
                "Address {address:#x} is in the brk data segment {:#x}-{:#x}",
                mapping.start,
                mapping.end.saturating_sub(1)
            ),
            Backing::Stack => format!("Address {address:#x} is on thread 1's stack"),
            Backing::Anonymous | Backing::SystemV => format!("Address {address:#x} is in a {rights} anonymous segment"),
        }
    }
}
