//! The registers of a stopped or ending thread, as roots of the leak check.

use core::arch::naked_asm;

/// General registers of a thread, in no particular order but for the stack pointer.
#[derive(Clone, Copy, Default, Debug)]
#[repr(C)]
pub struct RegisterFile {
    /// Stack pointer: the stack from here up is a root.
    pub rsp: u64,
    /// The other general registers that hold something of the program's (unknown ones are 0).
    pub words: [u64; 15],
    /// Where the vector registers are saved, in FXSAVE's layout, as long as the thread stands still; 0 when unknown.
    pub vectors: u64,
}

impl RegisterFile {
    /// The registers in a signal frame.
    ///
    /// # Safety
    /// `context` is the third argument of a signal handler that runs now.
    pub unsafe fn of_signal(context: *const libc::ucontext_t) -> Self {
        // SAFETY: the caller vouches for the context.
        let general = unsafe { &(*context).uc_mcontext.gregs };
        let mut words = [0; 15];
        for (word, index) in words
            .iter_mut()
            .zip((0..=16).filter(|&index| index != libc::REG_RSP as usize && index != libc::REG_RIP as usize))
        {
            *word = general.get(index).copied().unwrap_or(0) as u64;
        }
        // SAFETY: as above; the kernel saves them in the signal frame.
        let vectors = unsafe { (*context).uc_mcontext.fpregs } as u64;
        Self { rsp: general[libc::REG_RSP as usize] as u64, words, vectors }
    }
}

/// The registers that a call preserves, and the stack pointer as it was before the call.
#[derive(Clone, Copy, Default, Debug)]
#[repr(C)]
pub struct Preserved {
    /// rsp of the caller, above the return address.
    pub rsp: u64,
    /// rbx, rbp, r12, r13, r14, r15.
    pub words: [u64; 6],
}

impl From<Preserved> for RegisterFile {
    fn from(preserved: Preserved) -> Self {
        let mut words = [0; 15];
        for (to, from) in words.iter_mut().zip(preserved.words) {
            *to = from;
        }
        Self { rsp: preserved.rsp, words, vectors: 0 }
    }
}

/// Writes the caller's preserved registers to `out`.
///
/// # Safety
/// `out` is valid for writing.
#[unsafe(naked)]
pub unsafe extern "C" fn preserved_registers(out: *mut Preserved) {
    naked_asm!(
        "lea rax, [rsp + 8]",
        "mov [rdi], rax",
        "mov [rdi + 8], rbx",
        "mov [rdi + 16], rbp",
        "mov [rdi + 24], r12",
        "mov [rdi + 32], r13",
        "mov [rdi + 40], r14",
        "mov [rdi + 48], r15",
        "ret",
    )
}
