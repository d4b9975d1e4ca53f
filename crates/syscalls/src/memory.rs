//! How the evaluator sees the target: a reader that may refuse, and three facts that only the kernel knows.
//!
//! The bytes are hostile: another thread may change them between two reads. So every value is read once, each count is
//! bounded by the visit's budget, and an address that cannot be read ends the description of what lies behind it.

/// The target's memory, as the one who asks can read it without faulting.
pub trait Memory {
    /// Copies `into.len()` bytes from `address`; `false` (and any bytes in `into`) if not all of them are readable.
    fn read_bytes(&self, address: u64, into: &mut [u8]) -> bool;

    /// How many semaphores the System V set `id` has: `semctl(GETALL)` has no length of its own. `None`: not known,
    /// and nothing is said about the array.
    fn semaphores(&self, id: i32) -> Option<u32> {
        let _ = id;
        None
    }

    /// Whether descriptor `fd` is open for writing: it decides in which direction `vmsplice` moves bytes. `None`: not
    /// known, and neither is checked.
    fn is_writable(&self, fd: i32) -> Option<bool> {
        let _ = fd;
        None
    }

    /// The bytes of a key and of a value of the BPF map `fd`. `None`: not known, and neither is checked.
    fn bpf_map(&self, fd: i32) -> Option<(u32, u32)> {
        let _ = fd;
        None
    }
}

/// Reads a number of `N` bytes.
pub(crate) fn read_array<const N: usize>(memory: &dyn Memory, address: u64) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    // No object reaches around the end of the address space.
    address.checked_add(N as u64)?;
    memory.read_bytes(address, &mut bytes).then_some(bytes)
}

/// The most bytes that one read of a string asks for; a divisor of the page size, so that aligned reads stay on a page.
const CHUNK: u64 = 64;

/// What was found at a string's address.
pub(crate) struct Scan {
    /// Bytes that the kernel looks at: up to the terminating zero and with it, or up to the first unreadable byte and
    /// with it, or the bound.
    pub(crate) length: u64,
    /// Reads that it took, for the budget.
    pub(crate) reads: u32,
}

/// Measures the string at `address` as the kernel's `strncpy_from_user` walks it: at most `most` bytes.
pub(crate) fn scan_string(memory: &dyn Memory, address: u64, most: u64) -> Scan {
    let most = most.min(u64::MAX - address);
    let mut done = 0;
    let mut reads = 0;
    let mut chunk = [0_u8; CHUNK as usize];
    while done < most {
        let at = address + done;
        let want = (CHUNK - at % CHUNK).min(most - done);
        let Some(into) = chunk.get_mut(..want as usize) else { break };
        reads += 1;
        if !memory.read_bytes(at, into) {
            let (end, more) = scan_bytewise(memory, at, want);
            return Scan { length: (done + end).min(most), reads: reads + more };
        }
        if let Some(zero) = into.iter().position(|byte| *byte == 0) {
            return Scan { length: done + zero as u64 + 1, reads };
        }
        done += want;
    }
    Scan { length: most, reads }
}

/// The chunk at `at` is not readable as a whole: up to the zero or the first unreadable byte, and with it.
fn scan_bytewise(memory: &dyn Memory, at: u64, want: u64) -> (u64, u32) {
    let mut byte = [0];
    for step in 0..want {
        if !memory.read_bytes(at + step, &mut byte) || byte == [0] {
            return (step + 1, step as u32 + 1);
        }
    }
    (want, want as u32)
}
