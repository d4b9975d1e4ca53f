//! The guest's registers, and the page at a fixed address that translated code keeps them in while Rust runs.

use crate::layout;

/// An integer register, numbered as the processor does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[expect(missing_docs, reason = "the processor's own names")]
pub enum Gpr {
    Rax,
    Rcx,
    Rdx,
    Rbx,
    Rsp,
    Rbp,
    Rsi,
    Rdi,
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15,
}

/// Which translation of the target's code (see the crate's documentation).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Version {
    /// Every register is defined.
    Fast,
    /// Reserved for definedness: registers have a shadow, and each instruction propagates it.
    Slow,
}

/// How many bytes are kept for `xsave`: x87, SSE, AVX and AVX-512 in the standard format.
pub const XSAVE_BYTES: usize = 0xb00;

/// The state of one thread of the target.
#[repr(C, align(64))]
#[derive(Clone)]
pub struct Guest {
    /// Integer registers, indexed by [`Gpr`].
    pub gpr: [u64; 16],
    /// The next instruction.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
    /// Thread pointer.
    pub fs_base: u64,
    /// The target's own GS base (the processor's is the shadow's).
    pub gs_base: u64,
    /// First byte of the stack that the thread was given and the first behind it, or zeros: however far the stack pointer moves
    /// within, it does not go to another stack.
    pub stack: [u64; 2],
    reserved: [u64; 10],
    /// The standard format of `xsave` for the components of [`Guest::xsave_mask`], as in a signal frame.
    pub xsave: [u8; XSAVE_BYTES],
}

impl Guest {
    /// The state in which Linux starts a program: everything zero but flags and the control words.
    #[must_use]
    pub fn new() -> Self {
        let mut guest = Self {
            gpr: [0; 16],
            rip: 0,
            rflags: 0x202,
            fs_base: 0,
            gs_base: 0,
            stack: [0; 2],
            reserved: [0; 10],
            xsave: [0; XSAVE_BYTES],
        };
        guest.reset_vectors();
        guest
    }

    /// Puts x87, SSE and AVX into their initial state.
    pub fn reset_vectors(&mut self) {
        self.xsave.fill(0);
        self.xsave[..2].copy_from_slice(&0x37fu16.to_le_bytes());
        self.xsave[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
    }

    /// The value of an integer register.
    #[must_use]
    pub fn gpr(&self, register: Gpr) -> u64 {
        self.gpr[register as usize]
    }

    /// Sets an integer register.
    pub fn set_gpr(&mut self, register: Gpr, value: u64) {
        self.gpr[register as usize] = value;
    }

    /// The components of `xsave` that are kept, a mask as XCR0 is.
    #[must_use]
    pub fn xsave_mask() -> u64 {
        // SAFETY: `Engine::new` refuses machines without OSXSAVE, and xgetbv needs nothing else.
        unsafe { xcr0() & 0xe7 }
    }

    /// Copies another thread's state here.
    pub fn copy_from(&mut self, other: &Self) {
        self.clone_from(other);
    }

    /// Pops the return address, as `ret` does, at the end of a replaced function.
    ///
    /// # Safety
    /// `rsp` points at readable memory.
    pub unsafe fn return_to_caller(&mut self) {
        let rsp = self.gpr(Gpr::Rsp);
        // SAFETY: the caller's promise.
        self.rip = unsafe { (rsp as *const u64).read_unaligned() };
        self.set_gpr(Gpr::Rsp, rsp + 8);
    }
}

impl Default for Guest {
    fn default() -> Self {
        Self::new()
    }
}

/// What translated code, the entry code and the signal handlers share; lies at [`layout::STATE`].
#[repr(C)]
pub(crate) struct State {
    pub guest: Guest,
    /// The guest's rcx while an indirect branch is on its way.
    pub saved_rcx: u64,
    /// Where that branch goes.
    pub target: u64,
    /// The guest's value of the register that a check or a re-encoded operand borrows.
    pub saved_scratch: u64,
    /// A value that one instruction's translation keeps for itself.
    pub value: u64,
    pub engine_fs: u64,
    pub engine_rsp: u64,
    pub entry_target: u64,
    pub xsave_mask: u64,
    /// Index of the [`crate::exits::Exit`] by which the cache was left.
    pub exit_record: u32,
    /// Not 0: somebody asked for [`crate::Tool::stopped`].
    pub stop: u32,
    pub default_mxcsr: u32,
    /// Not 0 while a light hook runs.
    pub in_hook: u32,
    pub exit_code: u64,
    pub hook_code: u64,
    pub miss_code: u64,
    pub miss_return_code: u64,
    pub mark_code: u64,
    pub hook_function: u64,
    pub hook_cookie: u64,
    pub hook_tool: u64,
    /// A function to be tried first by a light hook, or 0.
    pub quick_function: u64,
    /// Where the code of quick functions is.
    pub quick_start: u64,
    pub quick_end: u64,
    /// The signal that a handler recorded.
    pub fault: FaultSlot,
    pub engine: u64,
    /// The stack pointer for which the stack's shadow is right (see [`crate::stack`]); 0 while nothing is marked.
    pub settled: u64,
    pub settle_code: u64,
    pub release_code: u64,
    pub release_return_code: u64,
    pub saved_vector: [u64; 2],
    /// For marking the stack: where the stack pointer goes, before this mask; where to go on; what is borrowed.
    pub new_rsp: u64,
    pub new_rsp_mask: u64,
    pub mark_return: u64,
    pub mark_saved: [u64; 8],
    /// For a repeated string's range: see [`crate::access::Scan`], and where to go when some of it is bad.
    pub scan: u64,
    pub scan_bad: u64,
    pub scan_code: u64,
}

/// A synchronous signal on its way from the handler to the run loop.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct FaultSlot {
    pub signal: i32,
    pub code: i32,
    pub address: u64,
    pub trap: u64,
    pub error: u64,
    pub host_pc: u64,
}

/// The absolute address of a field of [`State`].
macro_rules! slot {
    ($($field:tt)+) => { ($crate::layout::STATE as usize + std::mem::offset_of!($crate::state::State, $($field)+)) };
}
pub(crate) use slot;

/// The state page.
pub(crate) fn state() -> *mut State {
    std::ptr::with_exposed_provenance_mut(layout::STATE as usize)
}

/// Reads XCR0.
///
/// # Safety
/// The processor and the kernel have XSAVE.
unsafe fn xcr0() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the caller's promise; the instruction touches nothing but these registers.
    unsafe { std::arch::asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack)) };
    u64::from(high) << 32 | u64::from(low)
}
