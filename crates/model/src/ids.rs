//! Newtypes for numbers that must not be mixed.

macro_rules! newtype {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
        #[repr(transparent)]
        pub struct $name(pub $inner);
    };
}

newtype!(/// An address in a running process.
    Avma(u64));
newtype!(/// An address as the linker wrote it into the file.
    Svma(u64));
newtype!(/// A byte offset in a file.
    FileOffset(u64));
newtype!(/// An allocation site: a stack and the allocating function. 0 is "not recorded".
    SiteId(u32));
newtype!(/// A node of the stack tree: one return address and the node of its caller. 0 is the root.
    NodeId(u32));
newtype!(/// A module (executable, library, vDSO) in the order in which the target mapped it.
    ModuleId(u32));
newtype!(/// A thread in the order in which the target first allocated on it; 1 is the first.
    ThreadId(u32));
newtype!(/// A leak check within one recording, from 0.
    CheckId(u32));
