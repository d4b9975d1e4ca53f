//! The file between the engine of `leakscope memcheck` and the process outside: a header, and events in their order.
//!
//! ```text
//!  0      header: numbers that both sides read while the other writes
//!  256    the options, as text
//!  4096   events: length of the payload (u32), tag (u32), payload, zeros up to a multiple of 8; again and again
//! ```
//!
//! A memfd of fixed size that the outside makes and hands over. The engine appends events, then raises
//! `published`; the outside reads what is published, answers by raising `taken`, and says what became of the errors
//! (`shown`, `hidden`). Unlike the ledger of `run`, where sums grow in place, this one can be read while the
//! target runs, in the order in which things happened; its size follows the number of distinct errors.
//!
//! Stacks are arrays of return addresses, innermost first: the address to look up is one less. Of a frame whose own
//! instruction is meant, one more than its address stands there.
//!
//! Bytes are written by a process that may have scribbled over them: [`decode`] is total, and allocates no more
//! than a payload's length allows.

mod code;
mod header;
#[cfg(test)]
mod tests;

use leakscope_model::{AllocFn, CheckTrigger, ErrorKind, Heuristic, LeakKind, MisuseKind};
use std::string::String;
use std::vec::Vec;

pub use code::{FRAME_BYTES, decode, encode, frame_of};
pub use header::{
    CONFIG_BYTES, CONFIG_OFFSET, EVENTS_OFFSET, FILE_BYTES, Field, HEADER_FIELDS, MAGIC, SMALL_FILE_BYTES, VERSION,
    state,
};

/// Pairs in an answer.
pub const MOST_ANSWERS: usize = (CONFIG_BYTES as usize - 8) / 16;

/// A stack: see the module's documentation.
pub type Addresses = Vec<u64>;

/// Stands in front of the stack of a block that the program announced itself, where others have the allocation function.
pub const NO_FUNCTION: u64 = 1;

/// Something that the engine tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The first one: which process this is.
    Process(Process),
    /// A file was mapped to be executed.
    Module(Module),
    /// A module is no longer mapped.
    ModuleGone {
        /// Its number.
        number: u32,
    },
    /// An error that is not like an earlier one.
    Error(Error),
    /// How often each error has happened until now, by its number, where it is more than once.
    Counts(Vec<(u32, u64)>),
    /// The heap's totals at this moment.
    Heap(Heap),
    /// A leak check.
    Check(Check),
    /// The program has something to say (`VALGRIND_PRINTF`), or the engine has.
    Message {
        /// Lines.
        text: String,
        /// With `VALGRIND_PRINTF_BACKTRACE`.
        stack: Addresses,
        /// The program said it, not the engine.
        by_program: bool,
    },
    /// A signal ends the process; the leak check comes after it.
    FatalSignal {
        /// Its number.
        signal: i32,
        /// `si_code`
        code: i32,
        /// `si_addr`
        address: u64,
        /// Where it came.
        stack: Addresses,
    },
    /// The process ends, and nothing comes any more; its exit status, or the signal that ends it, negative.
    Ended {
        /// See above.
        status: i32,
        /// CLOCK_MONOTONIC, nanoseconds.
        monotonic_ns: u64,
    },
    /// Another program, which has no engine, is about to take the process over; nothing comes any more unless that fails.
    Exec,
    /// That failed, and the program goes on.
    ExecFailed,
    /// The engine could not go on.
    Failed(String),
    /// What comes before was inherited by fork: the parent has told it already.
    Forked,
    /// Open file descriptors at the end (`--track-fds`).
    Descriptors(Vec<Descriptor>),
    /// Where variables lie: those of the subject's only frame, relative to its canonical frame address, or the global one
    /// around its address. The answer is put where the options were: how many there are, then pairs of first address
    /// and one past the last (i64), at most [`MOST_ANSWERS`].
    Question(Subject),
    /// Allocation functions of a module for which the engine stands in, and their run-time addresses.
    Functions(Vec<(AllocFn, u64)>),
    /// The same for functions of strings and memory, by name.
    StringFunctions(Vec<(String, u64)>),
}

/// Who is recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// The parent's.
    pub parent_pid: u32,
    /// A value of [`crate::layout::origin`].
    pub origin: u32,
    /// CLOCK_REALTIME at its start, nanoseconds.
    pub realtime_ns: u64,
    /// CLOCK_MONOTONIC at its start, nanoseconds.
    pub monotonic_ns: u64,
    /// Path of the program.
    pub executable: Vec<u8>,
    /// Its arguments, name first.
    pub command_line: Vec<Vec<u8>>,
}

/// A mapped file with code in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Module {
    /// Its number, from 0.
    pub number: u32,
    /// Lowest address.
    pub start: u64,
    /// One past the highest address.
    pub end: u64,
    /// Run-time address less link-time address.
    pub load_bias: u64,
    /// Path.
    pub path: Vec<u8>,
    /// GNU build id; empty when it has none.
    pub build_id: Vec<u8>,
}

/// An error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// Its number, from 0.
    pub number: u32,
    /// Number of the thread, from 1.
    pub thread: u32,
    /// Its kernel thread id.
    pub tid: u32,
    /// The thread's name, if it has given itself one.
    pub thread_name: String,
    /// Where.
    pub stack: Addresses,
    /// What.
    pub what: What,
    /// What is to be said besides, with a stack or without.
    pub auxiliary: Vec<(String, Addresses)>,
    /// The address that `auxiliary` describes, if names may tell more of it: then they stand for `auxiliary`.
    pub subject: Option<Subject>,
}

/// An address outside of the heap, and what names are looked up by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// The address.
    pub address: u64,
    /// Number of the thread on whose stack it is; 0 when it is on none.
    pub thread: u32,
    /// Frames of that stack, innermost first, up to the one that holds the address.
    pub frames: Vec<StackFrame>,
    /// The last of the frames holds it.
    pub is_within: bool,
    /// The variable that ends at the address: its first address, and one past its last.
    pub object: Option<(u64, u64)>,
}

/// A frame of a stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StackFrame {
    /// An address in the instruction that runs, or in the call that is on its way.
    pub pc: u64,
    /// The stack pointer.
    pub stack_pointer: u64,
    /// The frame pointer.
    pub frame_pointer: u64,
    /// The canonical frame address: the stack pointer of the caller.
    pub cfa: u64,
}

/// What an error is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// An error of access.
    Memory {
        /// Its kind.
        kind: ErrorKind,
        /// 0: no access. 1: read. 2: write.
        access: u8,
        /// Bytes of the access, or 0.
        bytes: u64,
        /// The address concerned.
        address: u64,
        /// Memcheck's words.
        message: String,
    },
    /// A wrong call to the allocator; the error's stack begins with the function itself.
    Misuse {
        /// Its kind.
        kind: MisuseKind,
        /// The function.
        function: AllocFn,
        /// The address that was passed, or the size that was asked for.
        address: u64,
        /// The block concerned.
        block: Option<Block>,
    },
}

/// The block that a wrong call concerned. Stacks begin with the function itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Its start.
    pub start: u64,
    /// Its bytes.
    pub bytes: u64,
    /// The function that made it.
    pub function: AllocFn,
    /// Where it was allocated.
    pub allocated: Addresses,
    /// Where it was freed; empty when it was not.
    pub freed: Addresses,
    /// The function that freed it.
    pub freed_by: AllocFn,
}

/// Memcheck's heap summary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heap {
    /// Bytes of live blocks.
    pub live_bytes: u64,
    /// Live blocks.
    pub live_blocks: u64,
    /// Allocations.
    pub allocations: u64,
    /// Frees.
    pub frees: u64,
    /// Bytes that were ever allocated.
    pub allocated_bytes: u64,
}

/// A leak check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Its number, from 0.
    pub number: u32,
    /// What started it.
    pub trigger: CheckTrigger,
    /// Exit status, or signal.
    pub status: u32,
    /// How much is to be said: see [`asked`].
    pub asked: u8,
    /// CLOCK_MONOTONIC, nanoseconds.
    pub monotonic_ns: u64,
    /// Nanoseconds that it took.
    pub check_ns: u64,
    /// Live blocks.
    pub blocks: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Bytes of roots that were read.
    pub root_bytes: u64,
    /// Bytes that could not be read.
    pub unreadable_bytes: u64,
    /// Threads whose registers were seen.
    pub threads: u32,
    /// Whether the libraries released their own blocks first.
    pub freeres: bool,
    /// What it found, by allocation site.
    pub records: Vec<Record>,
}

/// How much a leak check is to say.
pub mod asked {
    /// As the options say.
    pub const BY_OPTIONS: u8 = 0;
    /// Details, whatever the options say (`VALGRIND_DO_LEAK_CHECK`).
    pub const FULL: u8 = 1;
    /// Sums only (`VALGRIND_DO_QUICK_LEAK_CHECK`).
    pub const SUMMARY: u8 = 2;
    /// Added to the others: only what has changed since the last check.
    pub const CHANGED: u8 = 16;
    /// Added to the others: only what has grown.
    pub const ADDED: u8 = 32;
}

/// Blocks of a leak check with the same stack and kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// How they can be reached.
    pub kind: LeakKind,
    /// By which heuristic.
    pub heuristic: Option<Heuristic>,
    /// Blocks.
    pub blocks: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Blocks that hang on them.
    pub indirect_blocks: u64,
    /// Bytes in those.
    pub indirect_bytes: u64,
    /// Blocks at the last check.
    pub old_blocks: u64,
    /// Bytes at the last check.
    pub old_bytes: u64,
    /// Bytes that hung on them at the last check.
    pub old_indirect_bytes: u64,
    /// Starts of up to three of them.
    pub addresses: [u64; 3],
    /// The function that allocated.
    pub function: AllocFn,
    /// Where; begins with the function itself.
    pub stack: Addresses,
}

/// An open file descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Its number.
    pub number: i32,
    /// What it is: `file descriptor`, `AF_INET socket`.
    pub what: String,
    /// What it is open on: a path, addresses.
    pub target: Vec<u8>,
    /// Where it was opened; empty when it was inherited.
    pub stack: Addresses,
}
