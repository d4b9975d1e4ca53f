//! What the evaluator says: a range of the target's memory, what the kernel does with it, and the parameter's name.

use core::fmt;

/// What the kernel does with a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// Its bytes decide something: they must be addressable and defined.
    Read,
    /// It is copied, but its bytes decide nothing here (padding, fields of other commands): it must be addressable.
    /// Memcheck does not look at these; where they overlap with regions of a call that was reported already, another
    /// message tells nothing new.
    Copy,
    /// Before the call: it must be addressable. After it: it is addressable and defined now.
    Write,
}

/// A range of the target's memory that a system call reads or writes. Never empty; its last byte is in the
/// address space, so `address + length` wraps for what is only the highest address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Region {
    /// The parameter, in Memcheck's words.
    pub param: Param,
    /// First byte.
    pub address: u64,
    /// Bytes. A count that the target made up may make it enormous: stop at the first byte that is wrong.
    pub length: u64,
    /// What happens to it.
    pub access: Access,
}

/// The name of a parameter: what stands between `Syscall param` and `points to unaddressable byte(s)`.
///
/// ```
/// use leakscope_syscalls::lookup;
/// assert_eq!(lookup(1).unwrap().register(&[0; 6], 1).unwrap().to_string(), "write(buf)");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Param {
    /// The call whose argument `text` names; empty if `text` is the whole name.
    call: &'static str,
    text: &'static str,
    /// What each `#` in `text` stands for, from left to right.
    index: [u32; 2],
}

impl Param {
    /// `call(argument)`.
    pub(crate) const fn of(call: &'static str, argument: &'static str) -> Self {
        Self { call, text: argument, index: [0; 2] }
    }

    /// The whole name, in which each `#` stands for a number of `index`.
    pub(crate) const fn indexed(text: &'static str, index: [u32; 2]) -> Self {
        Self { call: "", text, index }
    }
}

impl From<&'static str> for Param {
    fn from(text: &'static str) -> Self {
        Self::indexed(text, [0; 2])
    }
}

impl fmt::Display for Param {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.call.is_empty() {
            return write!(out, "{}({})", self.call, self.text);
        }
        let mut numbers = self.index.iter();
        for (place, part) in self.text.split('#').enumerate() {
            if place > 0 {
                write!(out, "{}", numbers.next().unwrap_or(&0))?;
            }
            out.write_str(part)?;
        }
        Ok(())
    }
}
