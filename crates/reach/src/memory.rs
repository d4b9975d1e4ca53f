//! How the mark phase sees the target's memory.

use leakscope_model::Avma;

/// A mapping of a file in the target, as `/proc/PID/maps` lists it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileMapping {
    /// The address after the mapping's last byte.
    pub end: Avma,
    /// Whether it may be read.
    pub readable: bool,
    /// Whether it may be executed.
    pub executable: bool,
}

/// The target's memory: this process's own (in a forked copy), another process's, or a core file's.
pub trait Memory {
    /// The words at `start`, a multiple of 8: at least one and at most `count` of them.
    ///
    /// Fewer than `count` mean only that the caller has to ask again from there on. `None` means that the word at
    /// `start` cannot be read; the mark phase then goes on at the next 4 KiB page. Where memory's definedness is known,
    /// undefined words must read as 0: Memcheck takes no pointer from them.
    fn words(&mut self, start: Avma, count: usize) -> Option<&[u64]>;

    /// The word at `at`, a multiple of 8; `None` if it cannot be read or is undefined. Only heuristics ask.
    fn word(&mut self, at: Avma) -> Option<u64> {
        self.words(at, 1)?.first().copied()
    }

    /// The bytes at `start` are about to be read: where reading is plain loads, load something of them now.
    #[inline]
    fn touch(&mut self, start: Avma, bytes: u64) {
        let _ = (start, bytes);
    }

    /// The mapping of a file that holds this address. Without it `multipleinheritance` never matches.
    fn file_mapping(&mut self, at: Avma) -> Option<FileMapping> {
        let _ = at;
        None
    }
}
