//! Every system call of Linux 6.18 on x86-64: what each reads of the target's memory and what it writes there.
//!
//! A simulated CPU sees the target's own instructions, but not the kernel's. So before each system call all that the
//! kernel will read must be looked at (is it addressable, is it defined?), and after it all that the kernel wrote must
//! be marked. This crate knows which bytes those are.
//!
//! ```
//! use leakscope_syscalls::{Access, Memory, check, written};
//!
//! struct Nothing;
//! impl Memory for Nothing {
//!     fn read_bytes(&self, _: u64, _: &mut [u8]) -> bool {
//!         false
//!     }
//! }
//!
//! // read(3, 0x1000, 100), which returned 5.
//! let (read, args) = (0, [3, 0x1000, 100, 0, 0, 0]);
//! let before = check(read, &args, &Nothing, &mut |region| {
//!     assert_eq!(region.param.to_string(), "read(buf)");
//!     assert_eq!((region.address, region.length, region.access), (0x1000, 100, Access::Write));
//! });
//! written(read, &args, 5, &before, &Nothing, &mut |region| assert_eq!(region.length, 5));
//! ```
//!
//! # The order of things
//!
//! 1. [`lookup`] finds the call; [`Syscall::registers`] says which argument registers the kernel looks at, and
//!    [`Argument::bytes`] how much of each, for `Syscall param write(count) contains uninitialised byte(s)`.
//! 2. [`check`] gives every [`Region`] that the kernel will look at, or may write, in the order in which Memcheck
//!    reports them, and returns a [`Before`].
//! 3. The call is made.
//! 4. [`written`] gives every region that the kernel wrote. It is to be asked after failed calls too: some write even
//!    then. [`descriptors`] tells which descriptors were opened and closed.
//!
//! Regions are handed to a function instead of being returned as an iterator: an iterator over nested structures would
//! have to hold its place in them, and the rules would be written inside out.
//!
//! # Trust
//!
//! The target's bytes are hostile, and other threads change them meanwhile. Structures are read through [`Memory`],
//! which may refuse. Nothing here panics, allocates or blocks, and no call takes more than 131,072 steps, however long
//! its arrays claim to be: what was left out then is told by [`Before::truncated`]. It may run in a signal handler.
//!
//! # What is not described
//!
//! Memory that is written at other times than by calls: the rings of `io_uring` and `perf`, registered buffers,
//! `userfaultfd`, and words that the kernel writes when a thread ends. Such calls have [`Effects::LATER`].
//!
//! Sources: the kernel's `include/uapi`, its manual pages; the names of parameters are Memcheck's (Valgrind 3.19,
//! `coregrind/m_syswrap` and the expected outputs of its tests).
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod bpf;
mod descriptors;
mod effects;
mod family;
mod fcntl;
mod ioctl;
mod memory;
mod prctl;
mod ptrace;
mod region;
mod rule;
mod shape;
mod table;
mod visit;

pub use descriptors::{Descriptor, descriptors};
pub use effects::Effects;
#[doc(hidden)]
pub use ioctl::requests;
pub use memory::Memory;
pub use region::{Access, Param, Region};
pub use table::{Argument, Syscall, all, lookup};
pub use visit::Before;

use visit::Visit;

/// Gives to `sink` every region that system call `number` will read or may write with these arguments. A number that
/// the table does not have gives none.
pub fn check(number: u64, args: &[u64; 6], memory: &dyn Memory, sink: &mut dyn FnMut(Region)) -> Before {
    lookup(number).map_or(Before::EMPTY, |call| Visit::before(call, args, memory, sink).run())
}

/// Gives to `sink` every region that system call `number` wrote, now that it returned `result` (a negative error
/// number if it failed). All of them have [`Access::Write`].
pub fn written(
    number: u64,
    args: &[u64; 6],
    result: i64,
    before: &Before,
    memory: &dyn Memory,
    sink: &mut dyn FnMut(Region),
) {
    if let Some(call) = lookup(number) {
        Visit::after(call, args, result, before, memory, sink).run();
    }
}
