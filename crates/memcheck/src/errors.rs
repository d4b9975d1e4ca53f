//! Errors: merged by kind and stack, limited, told to the outside.

use std::collections::HashMap;

use leakscope_ledger::events::{self, Addresses, Event, Field, NO_FUNCTION, What};
use leakscope_model::{AllocFn, ErrorKind, MisuseKind};
use leakscope_translate::Guest;

use crate::engine::Memcheck;
use crate::functions::Function;
use crate::heap::BlockId;
use crate::stacks::StackId;
use crate::subjects::Description;

/// What must agree, beside the stack, for two errors to be one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// An access of this size, a write or not.
    Access(u64, bool),
    /// An error of a kind alone.
    Kind(ErrorKind),
    /// An error of a kind with a name: a parameter of a system call, an argument.
    Named(ErrorKind, String),
    /// A wrong call to the allocator.
    Misuse(MisuseKind),
}

/// Addresses that must agree: Memcheck's medium resolution, and its low one after many errors.
const SAME_ADDRESSES: usize = 4;
const FEW_ADDRESSES: usize = 2;
const MANY_ERRORS: usize = 100;
/// `--error-limit`.
const MOST_DISTINCT: usize = 1000;
const MOST_IN_ALL: u64 = 10_000_000;

/// Errors so far.
#[derive(Clone, Debug, Default)]
pub struct Errors {
    known: HashMap<(Key, Vec<u64>), u32>,
    counts: Vec<u64>,
    total: u64,
    is_over: bool,
}

impl Errors {
    /// How often each error has happened, where it is more than once.
    pub fn counts(&self) -> Vec<(u32, u64)> {
        let numbered = self.counts.iter().enumerate().map(|(number, &count)| (number as u32, count));
        numbered.filter(|&(_, count)| count > 1).collect()
    }

    /// How many errors there were in all, equal ones included.
    pub fn total(&self) -> u64 {
        self.total
    }
}

/// 1234567 as `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

impl Memcheck {
    /// Counts an error whose stack is in `walk`; the number of a new one, which is to be told.
    fn is_new(&mut self, key: Key) -> Option<u32> {
        if self.threads.current().errors_disabled > 0 || self.errors.is_over {
            return None;
        }
        let errors = &mut self.errors;
        errors.total += 1;
        let compared = if errors.counts.len() > MANY_ERRORS { FEW_ADDRESSES } else { SAME_ADDRESSES };
        let place = self.walk.get(..compared).unwrap_or(&self.walk).to_vec();
        if let Some(&number) = errors.known.get(&(key.clone(), place.clone())) {
            errors.counts[number as usize] += 1;
            if self.options.error_limit && errors.total >= MOST_IN_ALL {
                self.stop_reporting("10000000 total");
            }
            return None;
        }
        let number = errors.counts.len() as u32;
        errors.counts.push(1);
        errors.known.insert((key, place), number);
        Some(number)
    }

    fn stop_reporting(&mut self, what: &str) {
        self.errors.is_over = true;
        self.say(format!(
            "\nMore than {what} errors detected.  I'm not reporting any more.\nFinal error counts will be inaccurate.  Go fix your program!\nRerun with --error-limit=no to disable this cutoff.  Note\nthat errors may occur in your program without prior warning from\nleakscope, because errors are no longer being displayed.\n"
        ));
    }

    /// Tells a new error and waits until it is printed.
    fn publish(&mut self, number: u32, what: What, about: Description) {
        let thread = self.threads.current();
        let (number_of_thread, tid) = (thread.number, thread.tid);
        self.output.tell(&Event::Error(events::Error {
            number,
            thread: number_of_thread,
            tid,
            thread_name: crate::threads::name(),
            stack: self.walk.clone(),
            what,
            auxiliary: about.lines,
            subject: about.subject,
        }));
        self.output.wait();
        if self.options.exit_on_first_error && self.output.get(Field::Shown) > 0 {
            self.say(String::from("Exit program on first error (--exit-on-first-error=yes)"));
            let status = self.options.error_exitcode;
            self.leave(status);
        }
        if self.options.error_limit && self.errors.counts.len() >= MOST_DISTINCT && !self.errors.is_over {
            self.stop_reporting("1000 different");
        }
    }

    /// An access to bytes that the target may not use; its stack is in `walk`.
    pub fn report_access(&mut self, guest: &Guest, address: u64, bytes: u64, write: bool) {
        let Some(number) = self.is_new(Key::Access(bytes, write)) else { return };
        let (kind, word) = if write { (ErrorKind::InvalidWrite, "write") } else { (ErrorKind::InvalidRead, "read") };
        let message = format!("Invalid {word} of size {bytes}");
        let auxiliary = self.describe(address, guest);
        let access = if write { 2 } else { 1 };
        self.publish(number, What::Memory { kind, access, bytes, address, message }, auxiliary);
    }

    /// An access past the end of a variable, of which `about` tells; its stack is in `walk`.
    pub fn report_access_about(&mut self, address: u64, bytes: u64, write: bool, about: Description) {
        let Some(number) = self.is_new(Key::Access(bytes, write)) else { return };
        let (kind, word) = if write { (ErrorKind::InvalidWrite, "write") } else { (ErrorKind::InvalidRead, "read") };
        let message = format!("Invalid {word} of size {bytes}");
        let access = if write { 2 } else { 1 };
        self.publish(number, What::Memory { kind, access, bytes, address, message }, about);
    }

    /// Any other error of which `about` tells; its stack is in `walk`.
    pub fn report_about(&mut self, kind: ErrorKind, name: &str, message: String, address: u64, about: Description) {
        let Some(number) = self.is_new(Key::Named(kind, name.to_owned())) else { return };
        self.publish(number, What::Memory { kind, access: 0, bytes: 0, address, message }, about);
    }

    /// A jump to memory that cannot be executed.
    pub fn report_jump(&mut self, guest: &Guest, address: u64) {
        let Some(number) = self.is_new(Key::Kind(ErrorKind::InvalidJump)) else { return };
        let message = "Jump to the invalid address stated on the next line".to_owned();
        let auxiliary = self.describe(address, guest);
        let what = What::Memory { kind: ErrorKind::InvalidJump, access: 0, bytes: 0, address, message };
        self.publish(number, what, auxiliary);
    }

    /// Any other memory error; `about` is an address to describe.
    pub fn report(&mut self, guest: &Guest, kind: ErrorKind, name: &str, message: String, about: Option<u64>) {
        let Some(number) = self.is_new(Key::Named(kind, name.to_owned())) else { return };
        let auxiliary = about.map_or_else(Description::default, |address| self.describe(address, guest));
        let address = about.unwrap_or(0);
        self.publish(number, What::Memory { kind, access: 0, bytes: 0, address, message }, auxiliary);
    }

    /// A wrong call to the allocator.
    pub fn report_misuse(
        &mut self,
        guest: &Guest,
        kind: MisuseKind,
        function: AllocFn,
        address: u64,
        block: Option<BlockId>,
    ) {
        let block = block.map(|id| {
            let block = self.heap.block(id);
            events::Block {
                start: block.start,
                bytes: block.size_bytes,
                function: block.function,
                allocated: self.stacks.get(block.allocated_at).to_vec(),
                freed: self.stacks.get(block.freed_at).to_vec(),
                freed_by: self.function_of(block.freed_at),
            }
        });
        self.report_misuse_of(guest, kind, function, address, block);
    }

    /// The allocation function that a stack begins with.
    fn function_of(&self, stack: StackId) -> AllocFn {
        let address = self.stacks.get(stack).first().map_or(0, |first| first.wrapping_sub(1));
        let found = self.replaced.iter().find(|replaced| replaced.symbol == address);
        match found.map(|replaced| replaced.function) {
            Some(Function::Alloc(function)) => function,
            _ => AllocFn::Free,
        }
    }

    /// The same for a block of any sort.
    pub fn report_misuse_of(
        &mut self,
        guest: &Guest,
        kind: MisuseKind,
        function: AllocFn,
        address: u64,
        block: Option<events::Block>,
    ) {
        // Kinds that Memcheck words alike are one kind.
        let key = match kind {
            MisuseKind::DoubleFree | MisuseKind::InteriorFree | MisuseKind::InvalidRealloc => MisuseKind::InvalidFree,
            other => other,
        };
        let Some(number) = self.is_new(Key::Misuse(key)) else { return };
        let auxiliary = if block.is_none() && kind != MisuseKind::FishySize {
            self.describe(address, guest)
        } else {
            Description::default()
        };
        self.publish(number, What::Misuse { kind, function, address, block }, auxiliary);
    }

    /// What is known of an address, in Memcheck's words, with the stacks that belong to it.
    pub fn describe(&mut self, address: u64, guest: &Guest) -> Description {
        let Some(mut lines) = self.describe_block(address) else { return self.describe_elsewhere(address, guest) };
        for (_, stack) in &mut lines {
            if stack.first() == Some(&NO_FUNCTION) {
                stack.remove(0);
            }
        }
        Description { lines, subject: None }
    }

    fn describe_block(&mut self, address: u64) -> Option<Vec<(String, Addresses)>> {
        if let Some(words) = self.pools.describe(address) {
            let stack = self.stacks.get(words.stack).to_vec();
            let mut lines = vec![(words.text, stack)];
            if words.allocated != StackId::NONE {
                lines.push(("Block was alloc'd at".to_owned(), self.stacks.get(words.allocated).to_vec()));
            }
            return Some(lines);
        }
        self.describe_heap(address)
    }

    fn describe_heap(&mut self, address: u64) -> Option<Vec<(String, Addresses)>> {
        let id = self.heap.find(address)?;
        let block = self.heap.block(id);
        let (low, high) = (block.start, block.start + block.size_bytes);
        let (distance, place) = if address < low {
            (low - address, "before")
        } else if address >= high {
            (address - high, "after")
        } else {
            (address - low, "inside")
        };
        let is_live = block.state == crate::heap::State::Live;
        let state = if is_live { "alloc'd" } else { "free'd" };
        let text = format!(
            "Address {address:#x} is {} bytes {place} a block of size {} {state}",
            grouped(distance),
            grouped(block.size_bytes)
        );
        let allocated = self.stacks.get(block.allocated_at).to_vec();
        if is_live {
            return Some(vec![(text, allocated)]);
        }
        let mut lines = vec![(text, self.stacks.get(block.freed_at).to_vec())];
        if !allocated.is_empty() {
            lines.push(("Block was alloc'd at".to_owned(), allocated));
        }
        Some(lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        for (number, expected) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(number), expected);
        }
    }
}
