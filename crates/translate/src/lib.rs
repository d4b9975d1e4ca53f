//! The simulated CPU of `leakscope memcheck`: runs x86-64 programs from a code cache inside one process.
//!
//! Target code is decoded, annotated with checks, and copied into a linked cache; nothing of the target runs outside of
//! it, `ld.so`'s first instruction included. What each memory operand touches is looked up in the V shadow, one byte for
//! each byte of the target at [`SHADOW_OFFSET`] above it: 0 is all right, anything else leads to [`Tool::bad_access`].
//!
//! # How to use it
//!
//! ```ignore
//! let mut engine = Engine::new(Config { checks: true, ..Config::default() })?;  // maps state, tables and cache
//! engine.hook_light(malloc_address, my_malloc, cookie);                         // replaced functions
//! let guest = engine.guest_mut();
//! guest.rip = entry;
//! guest.set_gpr(Gpr::Rsp, stack_pointer);
//! let status = engine.run(&mut tool)?;                                          // until a callback says `Action::Leave`
//! ```
//!
//! - The tool maps the target's memory, below [`GUEST_END`], and the shadow: `[SHADOW_OFFSET, SHADOW_OFFSET + GUEST_END)`,
//!   readable and writable, before [`Engine::run`] with checks on. Code that the target executes should lie below 2 GB
//!   ([`FAST_CODE_END`]); elsewhere it works and is slower.
//! - The addresses of [`layout`] belong to the engine. `Engine::new` fails when something else is mapped there.
//! - After each of the target's `mmap`, `munmap`, `mprotect`, `mremap`, `shmat`, `shmdt` the tool calls
//!   [`Engine::mapping_changed`]; before it, or the kernel for it, writes to the target's memory:
//!   [`Engine::before_write`].
//! - The tool owns signal handlers. Its handler runs on an alternate stack, makes a [`signal::HandlerScope`] first (FS is
//!   the target's while the cache runs) and gives each signal to [`signal::take`].
//! - One thread runs target code at a time. A thread that gives way copies its state out with [`Guest::copy_from`], and
//!   the next one copies its own in, both between two calls of `run` or inside of a callback.
//!
//! # Two versions of a block
//!
//! Blocks are known by address and [`Version`]. Today there is one, `Fast`, whose invariant is that every register is
//! defined. Definedness adds `Slow`: a failed load check will enter the slow block at that very instruction (checks stand
//! before their instruction and are restartable, which `Fast` code relies on already), and slow blocks go back when the
//! registers' shadow is clean. The block table, the table of indirect branches and the recovery table are all keyed
//! by version for that.
//!
//! # What is checked, and what is not
//!
//! Every operand, explicit or implied, with its exact range: masked lanes, gathers, repeated strings and `xsave` areas
//! included. Not looked at: operands at constant distances of -128 and more from the stack pointer (the live stack), and
//! `fs:` with a constant below 0x80 (the thread control block). An access whose check failed is reported once, with all
//! of the instruction's bad ranges, then it is made.
//!
//! # Where the simulation ends
//!
//! Far branches, `int 0x80` and loads of the FS and GS selectors raise SIGILL or SIGSEGV. Transactions always abort. Between a
//! call, a return or a jump through memory at a constant address and the next instruction that sets them, arithmetic flags are
//! not kept ([`Config::flags_die_at_calls`]). When a stop is asked for between the report of a bad access and the access, it is
//! reported again.
//!
//! # Examples and tests
//!
//! `examples/build.sh` builds a runner for unmodified single-threaded programs. `src/differential` holds random sequences
//! of 3,400 instruction forms against the processor; `LEAKSCOPE_FUZZ_SECONDS=600 cargo test --release` is its long mode.
//!
//! Runs: inside the target's process, on the engine's own stack; allocates with the global allocator of the executable
//! that it is linked into, never in [`signal`].

mod access;
mod cache;
mod check;
mod cpuid;
mod decode;
mod emit;
mod engine;
mod entry;
mod examine;
mod exits;
mod flags;
mod indirect;
mod instruction;
pub mod layout;
mod memory;
mod probe;
mod recovery;
mod regions;
pub mod signal;
mod stack;
mod state;
mod translate;
mod vectors;
mod x87;

#[cfg(test)]
mod differential;

pub use engine::{Engine, Statistics};
pub use layout::{FAST_CODE_END, GUEST_END, SHADOW_OFFSET};
pub use probe::word as read_word;
pub use stack::settle_in_hook as settle_stack;
pub use state::{Gpr, Guest, Version};

/// What the translator does beside translating.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Look up every memory operand in the V shadow. Without it the target runs unchecked.
    pub checks: bool,
    /// Keep the shadow of the stack: bytes below the stack pointer minus 128 are unaddressable.
    pub stack: StackMarking,
    /// How many conditional jumps that are not taken one block runs past. 3 is the measured best.
    pub superblock_branches: u8,
    /// Take arithmetic flags for dead at calls, returns and jumps through memory at a constant address, as every compiler has it
    /// (and lazy binding does to them anyhow). Hand-written code that passes a carry through `ret` needs `false`.
    pub flags_die_at_calls: bool,
    /// Show AVX-512 to the target as far as the machine has it.
    pub avx512: bool,
    /// How many bytes of translated code are kept; full means that everything is thrown away and begins anew.
    pub cache_bytes: usize,
}

impl Config {
    pub(crate) fn marks_stack(&self) -> bool {
        self.checks && self.stack == StackMarking::Exact
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            checks: true,
            stack: StackMarking::Off,
            superblock_branches: 3,
            flags_die_at_calls: true,
            avx512: true,
            cache_bytes: layout::CACHE_BYTES_MAX,
        }
    }
}

/// Whether translated code marks released stack as unaddressable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StackMarking {
    /// The tool marks whole stacks as addressable; nothing is written when the stack pointer moves.
    Off,
    /// What lies below `rsp - 128` is unaddressable: pointers to dead frames are found. The tool marks a stack's unused
    /// part so before the target runs on it. While code runs in the cache the shadow of the newest frames may lag behind;
    /// in callbacks it is right, in light hooks after [`settle_stack`].
    Exact,
}

/// What the run loop does after a callback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Go on at `guest().rip` with the registers as the callback left them.
    Continue,
    /// Return from [`Engine::run`] with this value; the guest's state stays as it is, and `run` may be called again.
    Leave(i32),
}

/// Read, written or executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessKind {
    /// A load.
    Read,
    /// A store, or a load and store of the same operand.
    Write,
    /// The target jumped to memory that it may not execute.
    Execute,
}

/// An access that is about to happen, and whose shadow is not all zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadAccess {
    /// The target's instruction; `guest().rip` is the same, and the registers are those before it.
    pub pc: u64,
    /// The first byte of the operand (for a masked, gathered or repeated access: of the element or range that is bad).
    pub address: u64,
    /// How many bytes the operand has.
    pub size_bytes: u64,
    /// What is done to them.
    pub kind: AccessKind,
}

/// A signal that an instruction of the target raises. The registers are those that the kernel would show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// `SIGSEGV`, `SIGBUS`, `SIGFPE`, `SIGILL` or `SIGTRAP`.
    pub signal: i32,
    /// `si_code`.
    pub code: i32,
    /// `si_addr`.
    pub address: u64,
    /// `REG_TRAPNO` and `REG_ERR` of the frame that a handler of the target gets.
    pub trap: u64,
    /// See `trap`.
    pub error: u64,
}

/// How the engine learns that code changed under its translation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CodeKind {
    /// Not writable by the target: changes come through [`Engine::mapping_changed`] only.
    Fixed,
    /// Writable and executable: translated pages are write-protected, and the fault throws the page's blocks away.
    Writable,
    /// Writable through another mapping (`MAP_SHARED` of a memfd): each block compares its bytes when it is entered.
    Aliased,
}

/// Executable memory around an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CodeRegion {
    /// First byte.
    pub start: u64,
    /// First byte after it.
    pub end: u64,
    /// How its changes are noticed.
    pub kind: CodeKind,
    /// `PROT_*` of the mapping; `Writable` pages get it back after a write.
    pub protection: i32,
}

/// What `cpuid` gives: eax, ebx, ecx, edx.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cpuid {
    /// The four registers in that order.
    pub eax: u32,
    /// Second.
    pub ebx: u32,
    /// Third.
    pub ecx: u32,
    /// Fourth.
    pub edx: u32,
}

/// A replaced function that costs no more than a call: no vector state is saved, as a C function may use it anyway.
///
/// Runs on the engine's stack with the engine's FS. `tool` is the tool that `run` was given. `guest` holds the integer
/// registers as at the function's first instruction (the return address is at `[rsp]`); what it stores in `rax`, or any
/// other register, is what the caller gets. `rip` and the vector registers are not to be used. The engine itself must not
/// be called; signals that come in meanwhile wait until it returns.
pub type LightHook = unsafe extern "C" fn(tool: *mut (), guest: *mut Guest, cookie: u64);

/// Tried before a [`LightHook`], with the target's FS base, so without thread-local storage: nothing that sets `errno` or may
/// panic. Gives 0 when it has changed nothing and leaves the work to the light hook.
pub type QuickHook = unsafe extern "C" fn(guest: *mut Guest, cookie: u64) -> u32;

/// How the target's calls of a function are answered without leaving the cache for the run loop.
#[derive(Debug, Clone, Copy)]
pub struct Hook {
    /// What does it in the end.
    pub function: LightHook,
    /// What is tried before.
    pub quick: Quick,
    /// Given to both.
    pub cookie: u64,
}

/// What is tried before a [`LightHook`].
#[derive(Debug, Clone, Copy)]
pub enum Quick {
    /// Nothing.
    None,
    /// A function.
    Function(QuickHook),
    /// Code at this address, which stands in the place of the target's own: it gets the target's registers as at the
    /// function's first instruction, the way to the light hook in `r11`, and GS based at the shadow. It changes nothing
    /// but `rax`, `rcx`, `r8`, `r9`, `r10`, the vector registers and memory that it is to change, jumps to `r11` to have
    /// it all done anew, to `leakscope_translate_quick_return` when it is done, and to `leakscope_translate_quick_bad`
    /// with its start in `r10` when a shadow is not zero. A fault in [`Engine::set_quick_code`]'s range goes to `r11`.
    Code(u64),
}

/// What the engine asks of, and tells to, the one who runs it. All callbacks run on the engine's stack.
pub trait Tool {
    /// A system call: number in `rax`, arguments in `rdi rsi rdx r10 r8 r9`, result to `rax`. `rip` is already behind it,
    /// and `rcx` and `r11` hold what the instruction leaves there. Setting other registers is how `sigreturn` works.
    fn syscall(&mut self, engine: &mut Engine) -> Action;

    /// The shadow of an operand is not all zero. After `Continue` the access is made (and may fault), unless the callback
    /// changed `rip`.
    fn bad_access(&mut self, engine: &mut Engine, access: BadAccess) -> Action;

    /// The instruction raises a signal. Without a handler of the target: `Leave`. To deliver: build the frame, set `rip`.
    fn fault(&mut self, engine: &mut Engine, fault: Fault) -> Action;

    /// [`signal::interrupt`] or [`Engine::request_stop`] took effect: the guest is at an instruction boundary.
    fn stopped(&mut self, engine: &mut Engine) -> Action;

    /// A function that [`Engine::hook`] replaced was called; the state is that at its first instruction, in full. After
    /// `Continue` the guest is where `rip` says: call [`Guest::return_to_caller`] for the usual.
    fn replaced(&mut self, engine: &mut Engine, cookie: u64) -> Action;

    /// `valgrind.h`'s sequence: `rax` points at the request and five arguments, `rdx` holds the default result and gets
    /// the real one. `rip` is behind it, and the byte before it tells which sequence it was: 0xdb for this one (`xchg
    /// rbx,rbx`), 0xc9 and 0xd2 for those that function wrapping needs.
    fn client_request(&mut self, engine: &mut Engine) -> Action;

    /// `cpuid` with this leaf and subleaf; `native` is the machine's answer less what the engine cannot run.
    fn cpuid(&mut self, leaf: u32, subleaf: u32, native: Cpuid) -> Cpuid {
        let _ = (leaf, subleaf);
        native
    }

    /// Which executable memory is around `address`; `None` if the target may not execute it, which becomes a
    /// [`Tool::bad_access`] of kind `Execute` and then a [`Tool::fault`]. Asked once for each region until
    /// [`Engine::mapping_changed`] touches it.
    fn code_region(&mut self, address: u64) -> Option<CodeRegion>;
}

/// Why the engine could not start, or had to give up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// Something is mapped where the engine's own memory must be.
    AddressTaken {
        /// What was to be mapped.
        what: &'static str,
        /// Where.
        address: u64,
        /// The kernel's error number.
        errno: i32,
    },
    /// The processor or kernel lacks something that the engine stands on.
    Unsupported(&'static str),
    /// An instruction that decodes could not be encoded again, which is an error of the engine.
    Encode {
        /// The target's instruction.
        pc: u64,
        /// What the encoder says.
        reason: String,
    },
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AddressTaken { what, address, errno } => write!(
                f,
                "memory for {what} at {address:#x}: {}; expected free address space. help: start the engine as a static \
                 executable at {:#x}, with ASLR of the brk off",
                std::io::Error::from_raw_os_error(*errno),
                layout::ENGINE_BASE
            ),
            Self::Unsupported(what) => write!(f, "this machine has no {what}, which the simulated CPU needs"),
            Self::Encode { pc, reason } => write!(f, "the instruction at {pc:#x} cannot be re-encoded: {reason}"),
        }
    }
}

impl std::error::Error for Error {}
