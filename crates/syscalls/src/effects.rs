//! What a call does besides reading and writing memory: what an engine that runs the target must know of it.

use core::ops::BitOr;

/// A set of flags of a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Effects(u16);

impl Effects {
    /// None of the others.
    pub const NONE: Self = Self(0);
    /// Maps, unmaps, moves or protects memory.
    pub const ADDRESS_SPACE: Self = Self(1);
    /// May create descriptors ([`crate::descriptors`] says which).
    pub const OPENS: Self = Self(2);
    /// May close descriptors ([`crate::descriptors`] says which).
    pub const CLOSES: Self = Self(4);
    /// May wait for something outside of the calling thread: give up locks and batons before it.
    pub const BLOCKS: Self = Self(8);
    /// Creates a process or a thread, which returns from the same call.
    pub const FORKS: Self = Self(16);
    /// Does not return to its caller, or only if it fails.
    pub const LEAVES: Self = Self(32);
    /// An engine cannot pass it to the kernel as it is: it names code, stacks or thread areas of the target.
    pub const ENGINE: Self = Self(64);
    /// The kernel answers ENOSYS (or knows it only in older versions).
    pub const REMOVED: Self = Self(128);
    /// Changes what signals do, or which are blocked.
    pub const SIGNALS: Self = Self(256);
    /// Reads or writes memory later, at times that no system call tells (rings, registered areas).
    pub const LATER: Self = Self(512);

    /// Whether all flags of `other` are set.
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets together.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOr for Effects {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.and(other)
    }
}
