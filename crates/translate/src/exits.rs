//! Why translated code goes back to Rust.

/// Index of [`Exit::Stopped`].
pub(crate) const STOPPED: u32 = 0;
/// Index of [`Exit::Fault`].
pub(crate) const FAULT: u32 = 1;
/// Index of [`Exit::Indirect`].
pub(crate) const INDIRECT: u32 = 2;

/// Index of [`Exit::Return`].
pub(crate) const RETURN: u32 = 3;

/// One way out of the cache; code names it by its index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Somebody asked for it; the guest is in the state page.
    Stopped,
    /// A signal was recorded.
    Fault,
    /// An indirect branch whose target is not in the table; it is in the state's `target`.
    Indirect,
    /// The same of a return.
    Return,
    /// A direct branch whose target was not translated: the four bytes at `site` are to lead there.
    Link { pc: u64, site: u64 },
    /// `syscall`; `pc` is behind it.
    Syscall { pc: u64 },
    /// `wrfsbase` of this register, 4 or 8 bytes of it; `pc` is behind it.
    SetFsBase { pc: u64, register: u8, wide: bool },
    /// `cpuid`; `pc` is behind it.
    Cpuid { pc: u64 },
    /// The operands of the instruction at `pc` are to be looked at, then it runs unchecked.
    Examine { pc: u64 },
    /// The instruction at `pc` stored the state of the x87 unit; `next` is behind it.
    StoredX87 { pc: u64, next: u64 },
    /// A replaced function at `pc`.
    Replaced { pc: u64, cookie: u64 },
    /// `valgrind.h`; `pc` is behind it.
    ClientRequest { pc: u64 },
    /// An instruction whose outcome is a signal: `pc` is what the frame shows.
    Trap { pc: u64, signal: i32, code: i32, address: u64, trap: u64 },
    /// The bytes of the block at `pc` changed since it was translated.
    Stale { pc: u64 },
    /// The branch at `pc`, in the block that begins at `block`, leads elsewhere than it did when it was translated.
    Retarget { pc: u64, block: u64 },
    /// The code at `pc` is in no executable memory.
    NotExecutable { pc: u64 },
}

/// The exits of all translated code.
#[derive(Debug)]
pub(crate) struct Exits {
    list: Vec<Exit>,
}

impl Exits {
    pub fn new() -> Self {
        Self { list: vec![Exit::Stopped, Exit::Fault, Exit::Indirect, Exit::Return] }
    }

    pub fn add(&mut self, exit: Exit) -> u32 {
        self.list.push(exit);
        (self.list.len() - 1) as u32
    }

    pub fn get(&self, index: u32) -> Exit {
        self.list[index as usize]
    }

    pub fn clear(&mut self) {
        self.list.truncate(4);
    }
}
