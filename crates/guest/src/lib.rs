//! The kernel interface of a program that runs on the simulated CPU: address space, system calls, threads, signals and
//! processes, all in the one process that engine and target share.
//!
//! # How to use it
//!
//! ```ignore
//! let mut process = Process::new(Setup { arguments, environment, auxiliary, program, .. })?;
//! process.space_mut().record(Mapping { .. });          // what the loader mapped: program, interpreter, stack
//! process.run(engine, monitor, start)                   // never returns: the process ends as the target ends
//! ```
//!
//! - [`Process::run`] runs the target on the calling thread and starts a host thread for each thread of the target. The
//!   [`Monitor`] is told of everything that matters to a checker. All its methods run with the baton held:
//!   never two at a time, so that plain `&mut self` is right.
//! - [`Task`] is the [`leakscope_translate::Tool`] that `Engine::run` gets; it passes on what is not the kernel's business
//!   ([`Monitor::bad_access`], [`Monitor::replaced`], [`Monitor::client_request`], ...). A light hook gets a pointer to a
//!   task as its tool: [`Task::monitor_of`] leads to the monitor.
//!
//! - A `main` that Rust starts ignores SIGPIPE, and so would the target: an engine has `#![no_main]` and a `main` of C.
//!   `examples/guest_run` is a complete small one.
//!
//! # How it works
//!
//! - **One thread runs at a time** ([`baton`]): whoever waits for longer than a slice interrupts the one who runs. Calls that
//!   may block give the baton up.
//! - **Signals are the kernel's until they are delivered** ([`signals`]): each host thread has its target thread's signal
//!   mask, dispositions that do not lead to a handler are the kernel's own, so pending signals, `sigwait`, `signalfd`, the
//!   choice of a thread and the masks of `ppoll` are exact without being imitated. Our handler keeps one
//!   signal for each thread, blocks the rest, and the target's frame is built at the next instruction boundary.
//! - **No lost wake-ups**: blocking calls are made by one piece of assembly that looks at the thread's pending signal;
//!   a handler that interrupts it before its `syscall` instruction, or is about to restart it, makes it give up.
//! - **Memory** ([`space`]): the target's mappings are placed below [`leakscope_translate::GUEST_END`], ELF files and
//!   executable memory below 2 GB; what belongs to the engine cannot be mapped over, unmapped or protected.
//!
//! - **Processes**: `fork` is one. `vfork`, and `clone` with `CLONE_VM` for another process, are a `fork` in which the
//!   kernel makes the parent's thread wait; it keeps the baton, so that the parent's other threads wait as well until the
//!   child executes or ends. `execve` is checked before anything is given up for it.
//! - **Not there**: `io_uring`, `rseq`, `modify_ldt`, sealed and shadow-stack memory (`ENOSYS`); seccomp filters are
//!   accepted and not installed, limits of address space, data and stack are kept here and set for the next program.
//!
//! Runs: inside the target's process, on the engine's stack; nothing allocates or locks in signal handlers.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

pub mod baton;
mod clone;
mod cpu;
mod descriptors;
mod dispatch;
mod effects;
mod exec;
mod host_stacks;
mod limits;
mod memory_calls;
mod monitor;
mod proc_files;
mod process;
pub mod raw;
pub mod signals;
pub mod space;
mod task;
mod thread;

pub use cpu::Cpu;
pub use leakscope_syscalls::{Access, Param, Region};
pub use limits::lift_limits;
pub use monitor::{Call, Ending, ExecPlan, ExecRequest, Monitor, ThreadStart};
pub use process::{Error, Process, Setup, ThreadView, View};
pub use space::{Backing, Mapping, Space};
pub use task::Task;
