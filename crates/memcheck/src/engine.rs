//! All that the engine knows: one object, which the translator's callbacks get.
//!
//! What belongs to a thread of the target is in [`Thread`]; the rest is shared by all of them, and used by one at a time.

use leakscope_ledger::events::{self, Event};
use leakscope_shadow::Shadow;
use leakscope_translate::{Guest, SHADOW_OFFSET};

use crate::errors::Errors;
use crate::functions::{Function, Names};
use crate::heap::Heap;
use crate::modules::Modules;
use crate::options::Options;
use crate::output::Output;
use crate::pools::Pools;
use crate::requests::ClientState;
use crate::space::{HEAP, Space};
use crate::stacks::{StackId, Stacks};
use crate::unwind::{Unwinder, dwarf_order};

mod memory;

pub use memory::{GuestPages, forget_shadow};

/// The shadow of the target's memory.
pub fn shadow() -> Shadow {
    // SAFETY: the whole shadow is mapped before the target runs, and nobody holds references into it.
    unsafe { Shadow::new(SHADOW_OFFSET) }
}

/// A replaced function at one address.
#[derive(Clone, Copy, Debug)]
pub struct Replaced {
    /// Which.
    pub function: Function,
    /// Where the symbol is: the innermost frame of stacks. Of functions that are chosen at run time, where the choice is
    /// made.
    pub symbol: u64,
    /// The address that the choice is answered with; 0 for other functions.
    pub pseudo: u64,
}

/// A thread of the target.
#[derive(Clone, Debug)]
pub struct Thread {
    /// Its number, from 1.
    pub number: u32,
    /// The kernel's.
    pub tid: u32,
    /// The name that it gave itself.
    pub name: String,
    /// Where its stack is.
    pub stack: std::ops::Range<u64>,
    /// Errors are not reported while this is above zero (`VALGRIND_DISABLE_ERROR_REPORTING`).
    pub errors_disabled: u32,
}

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// `exit_group` with this status.
    Exit(i32),
    /// By this signal.
    Signal {
        /// Its number.
        signal: i32,
        /// `si_code`.
        code: i32,
        /// `si_addr`.
        address: u64,
    },
}

/// The process.
#[derive(Clone, Debug, Default)]
pub struct Program {
    /// The path of the ELF program that runs.
    pub path: Vec<u8>,
    /// The arguments, name first.
    pub arguments: Vec<Vec<u8>>,
    /// End of the brk, and where it began.
    pub brk: (u64, u64),
    /// The auxiliary vector as the target has it, for `/proc/self/auxv`.
    pub auxiliary: Vec<u8>,
    /// A descriptor of the program, for `/proc/self/exe`; -1 when there is none.
    pub connect: Vec<u8>,
}

/// The engine.
pub struct Memcheck {
    /// The options.
    pub options: Options,
    /// The way out.
    pub output: Output,
    /// The target's mappings.
    pub space: Space,
    /// The target's heap.
    pub heap: Heap<GuestPages>,
    /// Blocks and pools that the target told of.
    pub pools: Pools,
    /// Stacks by number.
    pub stacks: Stacks,
    /// Walks stacks.
    pub unwinder: Unwinder,
    /// Mapped files with code.
    pub modules: Modules,
    /// Names of functions to replace.
    pub names: Names,
    /// What was replaced, by the translator's cookie.
    pub replaced: Vec<Replaced>,
    /// Errors so far.
    pub errors: Errors,
    /// The running thread.
    pub thread: Thread,
    /// What client requests left.
    pub client: ClientState,
    /// The program.
    pub program: Program,
    /// Room for walks.
    pub walk: Vec<u64>,
    /// Where functions that free libraries' own memory are, to be called at the end.
    pub freeres: Vec<u64>,
    /// How the process is about to end, while those run.
    pub ending: Option<Ending>,
    /// A light hook met memory that is not mapped: the signal that is to be delivered.
    pub pending_fault: Option<crate::strings::Fault>,
    /// Leak checks so far.
    pub leaks: crate::leaks::LeakState,
    /// The target's signal handlers and descriptors.
    pub kernel: crate::kernel::KernelState,
}

impl Memcheck {
    /// An engine without a program.
    pub fn new(options: Options, output: Output) -> Self {
        // SAFETY: the heap's range is nobody else's, see `space`.
        let heap = unsafe { Heap::new(GuestPages, shadow(), HEAP.start, HEAP.end, options.heap.clone()) };
        // SAFETY: a plain call.
        let tid = unsafe { libc::gettid() } as u32;
        Self {
            options,
            output,
            space: Space::new(),
            heap,
            pools: Pools::default(),
            stacks: Stacks::new(),
            unwinder: Unwinder::default(),
            modules: Modules::default(),
            names: Names::default(),
            replaced: Vec::new(),
            errors: Errors::default(),
            thread: Thread { number: 1, tid, name: String::new(), stack: 0..0, errors_disabled: 0 },
            client: ClientState::default(),
            program: Program::default(),
            walk: Vec::new(),
            freeres: Vec::new(),
            ending: None,
            pending_fault: None,
            leaks: crate::leaks::LeakState::default(),
            kernel: crate::kernel::KernelState::default(),
        }
    }

    /// The stack of a guest that stands at the first instruction of a replaced function.
    pub fn stack_in_hook(&mut self, guest: &Guest, symbol: u64) -> StackId {
        self.walk_hook(guest, symbol);
        self.stacks.intern(&self.walk)
    }

    /// As [`Memcheck::stack_in_hook`], into `walk`.
    pub fn walk_hook(&mut self, guest: &Guest, symbol: u64) {
        let most = self.options.num_callers;
        self.unwinder.walk(Some(symbol), 0, dwarf_order(&guest.gpr), most, &mut self.walk);
    }

    /// The stack of a guest at any instruction, into `walk`.
    pub fn walk_here(&mut self, guest: &Guest, rip: u64) {
        let most = self.options.num_callers;
        self.unwinder.walk(None, rip, dwarf_order(&guest.gpr), most, &mut self.walk);
    }

    /// Says a line on behalf of the engine.
    pub fn say(&mut self, text: String) {
        self.output.tell(&Event::Message { text, stack: Vec::new(), by_program: false });
        self.output.wait();
    }

    /// Tells what is left to tell, and ends the process. The leak check has run.
    pub fn leave(&mut self, ending: Ending) -> ! {
        self.tell_counts();
        if self.options.track_fds {
            self.tell_descriptors();
        }
        let status = match ending {
            Ending::Exit(status) => status,
            Ending::Signal { signal, .. } => -signal,
        };
        self.output.tell(&Event::Ended { status, monotonic_ns: monotonic_ns() });
        self.output.wait();
        let has_errors = self.output.get(events::Field::Shown) > 0;
        self.output.set_state(events::state::ENDED);
        match ending {
            Ending::Exit(_) if has_errors && self.options.error_exitcode != 0 => exit(self.options.error_exitcode),
            Ending::Exit(status) => exit(status),
            Ending::Signal { signal, .. } => die(signal),
        }
    }

    /// The heap's totals and the errors' counts, as they are now.
    pub fn tell_counts(&mut self) {
        let totals = self.heap.totals();
        self.output.tell(&Event::Heap(events::Heap {
            live_bytes: totals.live_bytes,
            live_blocks: totals.live_blocks,
            allocations: totals.allocations,
            frees: totals.frees,
            allocated_bytes: totals.allocated_bytes,
        }));
        let counts = self.errors.counts();
        self.output.tell(&Event::Counts(counts));
    }
}

/// CLOCK_MONOTONIC in nanoseconds.
pub fn monotonic_ns() -> u64 {
    clock(libc::CLOCK_MONOTONIC)
}

/// A clock in nanoseconds.
pub fn clock(clock: i32) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a live structure.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Ends all threads at once, without anything of the C library's.
pub fn exit(status: i32) -> ! {
    loop {
        // SAFETY: does not return.
        unsafe { libc::syscall(libc::SYS_exit_group, status) };
    }
}

/// Ends the process by a signal, as if nobody had caught it.
fn die(signal: i32) -> ! {
    // SAFETY: plain calls with valid arguments; the signal is unblocked and has its default action when it is raised.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = libc::SIG_DFL;
        libc::sigaction(signal, &action, std::ptr::null_mut());
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, signal);
        libc::sigprocmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
        // A core of the engine tells the user nothing.
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        libc::setrlimit(libc::RLIMIT_CORE, &none);
        libc::syscall(libc::SYS_tgkill, libc::getpid(), libc::gettid(), signal);
    }
    exit(128 + signal)
}
