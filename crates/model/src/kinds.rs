//! Leak kinds, heuristics and kinds of heap misuse, as Memcheck defines them.
//!
//! Source: Valgrind manual, sections 4.2.8 to 4.2.10 ("Memory leak detection").

/// How the program can still reach a block at a leak check.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum LeakKind {
    /// A chain of start-pointers leads to the block from the root set.
    StillReachable = 0,
    /// Every chain from the root set uses an interior-pointer.
    PossiblyLost = 1,
    /// Only other lost blocks point to the block.
    IndirectlyLost = 2,
    /// Nothing points to the block.
    DefinitelyLost = 3,
}

impl LeakKind {
    /// All kinds, in the order in which Memcheck prints records of equal size.
    pub const ALL: [LeakKind; 4] =
        [Self::StillReachable, Self::PossiblyLost, Self::IndirectlyLost, Self::DefinitelyLost];

    /// The kind with this number, if there is one.
    pub fn from_u8(n: u8) -> Option<Self> {
        Self::ALL.get(n as usize).copied()
    }

    /// The words of a loss record, such as `definitely lost`.
    pub fn words(self) -> &'static str {
        match self {
            Self::StillReachable => "still reachable",
            Self::PossiblyLost => "possibly lost",
            Self::IndirectlyLost => "indirectly lost",
            Self::DefinitelyLost => "definitely lost",
        }
    }

    /// The word of `--show-leak-kinds`, such as `definite`.
    pub fn option_word(self) -> &'static str {
        match self {
            Self::StillReachable => "reachable",
            Self::PossiblyLost => "possible",
            Self::IndirectlyLost => "indirect",
            Self::DefinitelyLost => "definite",
        }
    }
}

/// A set of leak kinds, as `--show-leak-kinds` takes it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct LeakKindSet(u8);

impl LeakKindSet {
    /// No kind.
    pub const NONE: Self = Self(0);
    /// All four kinds.
    pub const ALL: Self = Self(0b1111);
    /// Memcheck's default for what is shown and what counts as an error.
    pub const DEFAULT: Self = Self(1 << LeakKind::DefinitelyLost as u8 | 1 << LeakKind::PossiblyLost as u8);

    /// This set and `kind`.
    #[must_use]
    pub fn with(self, kind: LeakKind) -> Self {
        Self(self.0 | 1 << kind as u8)
    }

    /// This set without `kind`.
    #[must_use]
    pub fn without(self, kind: LeakKind) -> Self {
        Self(self.0 & !(1 << kind as u8))
    }

    /// Whether `kind` is in the set.
    pub fn contains(self, kind: LeakKind) -> bool {
        self.0 & 1 << kind as u8 != 0
    }

    /// Whether no kind is in the set.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// A reason to take an interior-pointer for a start-pointer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Heuristic {
    /// `std::string` of the reference-counted ABI: length, capacity and count come before the text.
    StdString = 0,
    /// The first 8 bytes hold the block's size less 8.
    Length64 = 1,
    /// `new[]` of a class with a destructor: the first 8 bytes hold the count.
    NewArray = 2,
    /// A pointer to an inner base class: a vtable pointer is there and at the start.
    MultipleInheritance = 3,
}

impl Heuristic {
    /// All heuristics, in the order in which Memcheck prints them.
    pub const ALL: [Heuristic; 4] = [Self::StdString, Self::Length64, Self::NewArray, Self::MultipleInheritance];

    /// The heuristic with this number, if there is one.
    pub fn from_u8(n: u8) -> Option<Self> {
        Self::ALL.get(n as usize).copied()
    }

    /// The word of `--leak-check-heuristics`, such as `stdstring`.
    pub fn option_word(self) -> &'static str {
        match self {
            Self::StdString => "stdstring",
            Self::Length64 => "length64",
            Self::NewArray => "newarray",
            Self::MultipleInheritance => "multipleinheritance",
        }
    }
}

/// A set of heuristics, as `--leak-check-heuristics` takes it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct HeuristicSet(u8);

impl HeuristicSet {
    /// No heuristic.
    pub const NONE: Self = Self(0);
    /// All of them: Memcheck's default.
    pub const ALL: Self = Self(0b1111);

    /// This set and `heuristic`.
    #[must_use]
    pub fn with(self, heuristic: Heuristic) -> Self {
        Self(self.0 | 1 << heuristic as u8)
    }

    /// Whether `heuristic` is in the set.
    pub fn contains(self, heuristic: Heuristic) -> bool {
        self.0 & 1 << heuristic as u8 != 0
    }

    /// The set as a bit mask, bit n for heuristic number n.
    pub fn bits(self) -> u8 {
        self.0
    }

    /// The set with these bits; unknown bits are dropped.
    pub fn from_bits(bits: u8) -> Self {
        Self(bits & 0b1111)
    }
}

/// A wrong call to the allocator.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum MisuseKind {
    /// `free` or `delete` of a block that is already free.
    DoubleFree = 0,
    /// `free` or `delete` of an address that the allocator never returned.
    InvalidFree = 1,
    /// `free` or `delete` of an address inside a live block.
    InteriorFree = 2,
    /// The block came from another family of functions (`new` and `free`, `new[]` and `delete`).
    MismatchedFree = 3,
    /// `realloc` of a block that is free or was never allocated.
    InvalidRealloc = 4,
    /// The bytes just past the end of the block were overwritten; seen when it was freed.
    Overrun = 5,
    /// A size that can only be a negative number.
    FishySize = 6,
    /// `realloc` with size zero.
    ReallocZero = 7,
}

impl MisuseKind {
    /// All kinds, by number.
    pub const ALL: [MisuseKind; 8] = [
        Self::DoubleFree,
        Self::InvalidFree,
        Self::InteriorFree,
        Self::MismatchedFree,
        Self::InvalidRealloc,
        Self::Overrun,
        Self::FishySize,
        Self::ReallocZero,
    ];

    /// The kind with this number, if there is one.
    pub fn from_u8(n: u8) -> Option<Self> {
        Self::ALL.get(n as usize).copied()
    }
}

/// What started a leak check.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum CheckTrigger {
    /// `exit`, or `main` returned.
    Exit = 0,
    /// `_exit`, `_Exit` or `quick_exit`.
    QuickExit = 1,
    /// A signal that ends the process, `abort` included.
    FatalSignal = 2,
    /// `exec` is about to replace the program.
    Exec = 3,
    /// Somebody asked, with `leakscope snapshot` or from the program itself.
    OnDemand = 4,
}

impl CheckTrigger {
    /// The trigger with this number, if there is one.
    pub fn from_u8(n: u8) -> Option<Self> {
        [Self::Exit, Self::QuickExit, Self::FatalSignal, Self::Exec, Self::OnDemand].get(n as usize).copied()
    }
}
