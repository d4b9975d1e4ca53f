//! All that the engine knows: one object, which the translator's callbacks get.
//!
//! What belongs to a thread of the target is in [`Thread`]; the rest is shared by all of them, and used by one at a time.

use leakscope_guest::View;
use leakscope_ledger::events::{self, Event};
use leakscope_shadow::Shadow;
use leakscope_translate::{Guest, SHADOW_OFFSET};

use crate::arrays::Arrays;
use crate::descriptors::Descriptors;
use crate::errors::Errors;
use crate::functions::{Function, Names};
use crate::heap::Heap;
use crate::modules::Modules;
use crate::options::Options;
use crate::output::Output;
use crate::pools::Pools;
use crate::recall::Recall;
use crate::requests::ClientState;
use crate::stacks::{StackId, Stacks};
use crate::subjects::Walked;
use crate::threads::Threads;
use crate::unwind::{Unwinder, dwarf_order};
use crate::wrapping::Wrappers;

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

/// Where the heap is: the guest kernel keeps the target's own mappings out of it.
pub const HEAP: std::ops::Range<u64> = 0x2000_0000_0000..0x2e00_0000_0000;

/// The process.
#[derive(Clone, Debug, Default)]
pub struct Program {
    /// The path of the ELF program that runs.
    pub path: Vec<u8>,
    /// The arguments, name first.
    pub arguments: Vec<Vec<u8>>,
    /// Where the dynamic loader is.
    pub interpreter: std::ops::Range<u64>,
    /// The thread that is about to fork.
    pub tid_of_forking: u32,
    /// Socket and token of the outside, for new processes.
    pub connect: Vec<u8>,
}

/// The engine.
pub struct Memcheck {
    /// The options.
    pub options: Options,
    /// The way out.
    pub output: Output,
    /// The target's mappings and threads, once it runs.
    pub view: Option<View>,
    /// The target's heap.
    pub heap: Heap<GuestPages>,
    /// Blocks and pools that the target told of.
    pub pools: Pools,
    /// Stacks by number.
    pub stacks: Stacks,
    /// Walks stacks.
    pub unwinder: Unwinder,
    /// Stacks that were walked before.
    pub recall: Recall,
    /// Mapped files with code.
    pub modules: Modules,
    /// Names of functions to replace.
    pub names: Names,
    /// What was replaced, by the translator's cookie.
    pub replaced: Vec<Replaced>,
    /// Errors so far.
    pub errors: Errors,
    /// The target's threads.
    pub threads: Threads,
    /// What client requests left.
    pub client: ClientState,
    /// The program.
    pub program: Program,
    /// Room for walks.
    pub walk: Vec<u64>,
    /// Where the last walk began.
    pub walked: Walked,
    /// Where functions that free libraries' own memory are, to be called at the end.
    pub freeres: Vec<u64>,
    /// Those have been called.
    pub has_freed_libraries: bool,
    /// What they unmapped behind the guest kernel's back.
    pub unmapped_at_end: Vec<std::ops::Range<u64>>,
    /// A light hook met memory that is not mapped: the signal that is to be delivered.
    pub pending_fault: Option<crate::strings::Fault>,
    /// What the target opened, for `--track-fds`.
    pub descriptors: Descriptors,
    /// Where variables are, for `--check-arrays`.
    pub arrays: Arrays,
    /// Functions of the target's own that stand for others.
    pub wrappers: Wrappers,
    /// Leak checks so far.
    pub leaks: crate::leaks::LeakState,
}

impl Memcheck {
    /// An engine without a program.
    pub fn new(options: Options, output: Output) -> Self {
        // SAFETY: the heap's range is nobody else's: the guest kernel leaves it alone.
        let heap = unsafe { Heap::new(GuestPages, shadow(), HEAP.start, HEAP.end, options.heap.clone()) };
        Self {
            options,
            output,
            view: None,
            heap,
            pools: Pools::default(),
            stacks: Stacks::new(),
            unwinder: Unwinder::default(),
            recall: Recall::default(),
            modules: Modules::default(),
            names: Names::default(),
            replaced: Vec::new(),
            errors: Errors::default(),
            threads: Threads::default(),
            client: ClientState::default(),
            program: Program::default(),
            walk: Vec::new(),
            walked: Walked::default(),
            freeres: Vec::new(),
            has_freed_libraries: false,
            unmapped_at_end: Vec::new(),
            pending_fault: None,
            descriptors: Descriptors::default(),
            arrays: Arrays::default(),
            wrappers: Wrappers::default(),
            leaks: crate::leaks::LeakState::default(),
        }
    }

    /// The stack of a guest that stands at the first instruction of a replaced function.
    pub fn stack_in_hook(&mut self, guest: &Guest, symbol: u64) -> StackId {
        let most = self.options.num_callers;
        if let Some(known) = self.recall.find(guest, symbol, most) {
            return known;
        }
        self.walk_hook(guest, symbol);
        let stack = self.stacks.intern(&self.walk);
        self.recall.keep(guest, symbol, most, self.unwinder.trace(), stack);
        stack
    }

    /// As [`Memcheck::stack_in_hook`], into `walk`.
    pub fn walk_hook(&mut self, guest: &Guest, symbol: u64) {
        self.walked = Walked { hook: Some(symbol), rip: 0 };
        let most = self.options.num_callers;
        self.unwinder.walk(Some(symbol), 0, dwarf_order(&guest.gpr), most, &mut self.walk);
    }

    /// The stack of a guest at any instruction, into `walk`.
    pub fn walk_here(&mut self, guest: &Guest, rip: u64) {
        self.walked = Walked { hook: None, rip };
        let most = self.options.num_callers;
        self.unwinder.walk(None, rip, dwarf_order(&guest.gpr), most, &mut self.walk);
    }

    /// Says a line on behalf of the engine.
    pub fn say(&mut self, text: String) {
        self.output.tell(&Event::Message { text, stack: Vec::new(), by_program: false });
        self.output.wait();
    }

    /// Tells what is left to tell; the leak check has run. Gives the status to end with.
    pub fn tell_end(&mut self, status: i32) -> i32 {
        self.tell_counts();
        self.output.tell(&Event::Ended { status, monotonic_ns: monotonic_ns() });
        self.output.wait();
        self.output.set_state(events::state::ENDED);
        let has_errors = self.output.get(events::Field::Shown) > 0;
        if has_errors && self.options.error_exitcode != 0 { self.options.error_exitcode } else { status }
    }

    /// Ends the process on behalf of the engine.
    pub fn leave(&mut self, status: i32) -> ! {
        let status = self.tell_end(status);
        exit(status)
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
