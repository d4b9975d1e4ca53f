//! The kinds of findings with their explanations, for formats that carry help.

use leakscope_model::{ErrorKind, LeakKind, MisuseKind};

/// A kind of finding.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    /// Never changes: pipelines filter by it.
    pub id: &'static str,
    /// In CamelCase, as SARIF wants names.
    pub name: &'static str,
    /// A few words, such as `definitely lost`.
    pub words: &'static str,
    /// One sentence.
    pub what: &'static str,
    /// What to do about it.
    pub help: &'static str,
}

macro_rules! rules {
    ($($constant:ident = $id:literal, $name:literal, $words:literal, $what:literal, $help:literal;)*) => {
        $(const $constant: Rule = Rule { id: $id, name: $name, words: $words, what: $what, help: $help };)*
        /// All kinds.
        pub(crate) const ALL: &[Rule] = &[$($constant,)*];
    };
}

rules! {
    DEFINITE = "leak-definite", "DefinitelyLost", "definitely lost",
        "No pointer to the block is left: the program can never free it.",
        "Look at the stack of the allocation and find who should own the block. Free it where the last pointer to it is overwritten or goes out of scope, or let a smart pointer or a container own it. Bytes that are indirectly lost go away with it.";
    INDIRECT = "leak-indirect", "IndirectlyLost", "indirectly lost",
        "Only blocks that are lost themselves point to the block.",
        "Fix the definitely lost block that it hangs on first; this one is usually freed with it.";
    POSSIBLE = "leak-possible", "PossiblyLost", "possibly lost",
        "Only pointers into the middle of the block are left.",
        "Either the program keeps an interior pointer on purpose (then suppress it, or keep a pointer to the start too), or the last pointer is a stale or chance value and the block is lost.";
    REACHABLE = "leak-reachable", "StillReachable", "still reachable",
        "A pointer to the block was left when the program ended, but it was not freed.",
        "Often a cache or a singleton, and harmless. It is a leak in practice when its bytes grow with the time that the program runs.";
    DOUBLE_FREE = "double-free", "DoubleFree", "double free",
        "A block was freed a second time.",
        "The stacks show the second free, the allocation and, where they were kept, the first free. Make one of the two owners give up the pointer.";
    INVALID_FREE = "invalid-free", "InvalidFree", "invalid free",
        "An address was freed that is no heap block.",
        "Free only what an allocation function returned, unchanged.";
    INTERIOR_FREE = "interior-free", "InteriorFree", "free inside of a block",
        "An address in the middle of a block was freed.",
        "Free the address that the allocation function returned, not one that was computed from it.";
    MISMATCHED_FREE = "mismatched-free", "MismatchedFree", "mismatched free",
        "A block was released by a function of another family than the one that allocated it.",
        "Release malloc with free, new with delete and new[] with delete[].";
    INVALID_REALLOC = "invalid-realloc", "InvalidRealloc", "invalid realloc",
        "realloc was called with an address that is no live heap block.",
        "Keep the address that realloc returned and drop the old one.";
    OVERRUN = "heap-overrun", "HeapOverrun", "write past the end of a block",
        "Bytes just past the end of a block were changed; it was noticed when the block was released.",
        "Look at who writes to the block between its allocation and its release. AddressSanitizer or Memcheck name the very instruction.";
    FISHY_SIZE = "fishy-size", "FishySize", "fishy size",
        "A size that looks negative was asked for.",
        "Check the computation of the size for overflow and for negative numbers.";
    REALLOC_ZERO = "realloc-zero", "ReallocZero", "realloc with size 0",
        "realloc was called with size 0, whose meaning differs between C libraries.",
        "Call free instead, or keep at least one byte.";
    INVALID_READ = "invalid-read", "InvalidRead", "invalid read",
        "Memory was read that the program may not read: past the end of a block, after its release, or none at all.",
        "The stacks show the read and, for a block, its allocation and release. Keep the block alive for as long as it is read, and stay within its size.";
    INVALID_WRITE = "invalid-write", "InvalidWrite", "invalid write",
        "Memory was written that the program may not write: past the end of a block, after its release, or none at all.",
        "The stacks show the write and, for a block, its allocation and release. Keep the block alive for as long as it is written, and stay within its size.";
    UNINITIALISED = "uninitialised", "UninitialisedValue", "use of an uninitialised value",
        "What the program does depends on a value that nobody set.",
        "Initialise the value where it is declared or allocated; Memcheck's --track-origins=yes says where that is.";
    MEMORY_ERROR = "memory-error", "MemoryError", "memory error",
        "Another tool found a memory error.",
        "The message is the tool's own; its manual explains it.";
    LIVE = "live", "LiveBlocks", "live, not classified",
        "The block was live when recording ended; whether it is lost is not known.",
        "This is no verdict: a program that works has live blocks. Let the program end in order, or ask for a leak check with `leakscope snapshot PID` while it runs; a profile of another tool has no leak check at all.";
}

impl Rule {
    /// That of a leak; of blocks that nobody classified without a kind.
    pub fn of_leak(kind: Option<LeakKind>) -> &'static Self {
        match kind {
            Some(LeakKind::DefinitelyLost) => &DEFINITE,
            Some(LeakKind::IndirectlyLost) => &INDIRECT,
            Some(LeakKind::PossiblyLost) => &POSSIBLE,
            Some(LeakKind::StillReachable) => &REACHABLE,
            None => &LIVE,
        }
    }

    /// Whether its findings are blocks; else they are errors.
    pub fn is_of_blocks(&self) -> bool {
        self.id.starts_with("leak-") || self.id == LIVE.id
    }

    /// That of a memory error.
    pub fn of_error(kind: ErrorKind) -> &'static Self {
        match kind {
            ErrorKind::InvalidRead => &INVALID_READ,
            ErrorKind::InvalidWrite => &INVALID_WRITE,
            ErrorKind::UninitCondition | ErrorKind::UninitValue | ErrorKind::SyscallParam => &UNINITIALISED,
            _ => &MEMORY_ERROR,
        }
    }

    /// That of a wrong call.
    pub fn of_misuse(kind: MisuseKind) -> &'static Self {
        match kind {
            MisuseKind::DoubleFree => &DOUBLE_FREE,
            MisuseKind::InvalidFree => &INVALID_FREE,
            MisuseKind::InteriorFree => &INTERIOR_FREE,
            MisuseKind::MismatchedFree => &MISMATCHED_FREE,
            MisuseKind::InvalidRealloc => &INVALID_REALLOC,
            MisuseKind::Overrun => &OVERRUN,
            MisuseKind::FishySize => &FISHY_SIZE,
            MisuseKind::ReallocZero => &REALLOC_ZERO,
        }
    }
}
