//! What a checker is told, and asked, by the kernel interface.

use leakscope_syscalls::Region;
use leakscope_translate::{AccessKind, Action, BadAccess, Cpuid, Fault};

use crate::process::View;
use crate::space::Mapping;

/// A system call that is about to be made, or was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// Its number.
    pub number: u64,
    /// Its six arguments.
    pub arguments: [u64; 6],
    /// The thread that makes it.
    pub tid: i32,
}

/// A thread that begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThreadStart {
    /// The new thread.
    pub tid: i32,
    /// The thread that made it.
    pub parent: i32,
    /// Its first stack pointer.
    pub stack_pointer: u64,
    /// Its thread pointer.
    pub thread_pointer: u64,
}

/// How the process is about to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// `exit_group`, or `exit` of the last thread, with this status.
    Exit(i32),
    /// Death by this signal, which nothing of the target handles. `fault` is there if an instruction raised it.
    Signal {
        /// Its number.
        signal: i32,
        /// The sender's process for a signal that was sent.
        sender: i32,
        /// The instruction's fault.
        fault: Option<Fault>,
    },
    /// Another program takes this one's place; it may still fail ([`Monitor::exec_failed`]).
    Exec,
}

/// An `execve` that is about to happen.
#[derive(Debug, Clone, Copy)]
pub struct ExecRequest<'a> {
    /// The file as the target named it, `/proc/self/exe` and descriptors resolved.
    pub path: &'a [u8],
    /// The arguments, without terminating zeros.
    pub arguments: &'a [Vec<u8>],
    /// The environment.
    pub environment: &'a [Vec<u8>],
}

/// What to execute instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecPlan {
    /// What the target asked for, without the engine.
    Native,
    /// This; it was found that the kernel would execute the target's own request. The strings without zeros.
    Instead {
        /// The file.
        path: Vec<u8>,
        /// Its arguments.
        arguments: Vec<Vec<u8>>,
        /// Its environment.
        environment: Vec<Vec<u8>>,
    },
}

/// The checker's side. Everything has a default that does nothing, so that a plain run needs an empty `impl`.
///
/// Every method is called with the baton held, on the engine's stack of the thread that it is about, whose registers are
/// in `cpu`. None may block for long.
#[expect(unused_variables, reason = "the names tell what the parameters are")]
pub trait Monitor<C>: Sized {
    /// The target is about to begin. The view is good as long as the process lives, in methods of this trait, in light
    /// hooks and in what they call.
    fn started(&mut self, cpu: &mut C, view: View) {}

    /// New memory is there; what was at its place is gone.
    fn mapped(&mut self, cpu: &mut C, mapping: &Mapping) {}

    /// Memory went away.
    fn unmapped(&mut self, cpu: &mut C, start: u64, end: u64) {}

    /// Memory has another protection now.
    fn protected(&mut self, cpu: &mut C, start: u64, end: u64, protection: i32) {}

    /// `mremap` moved the first `bytes` of `from` to `to` ([`Monitor::mapped`] and [`Monitor::unmapped`] come before and
    /// after it for the whole ranges).
    fn moved(&mut self, cpu: &mut C, from: u64, to: u64, bytes: u64) {}

    /// Memory stays mapped but lost its content (`MADV_DONTNEED`): private anonymous memory is zero now.
    fn discarded(&mut self, cpu: &mut C, start: u64, end: u64) {}

    /// Before a call: the kernel will read, or write, this region. The access kind is in the region.
    fn before_call(&mut self, cpu: &mut C, call: &Call, region: &Region) {}

    /// Before a call: it reads these of its arguments, a bit for each ([`leakscope_syscalls::lookup`] has their names).
    fn call_arguments(&mut self, cpu: &mut C, call: &Call, used: u8) {}

    /// After a call: the kernel wrote this region.
    fn after_call(&mut self, cpu: &mut C, call: &Call, result: i64, region: &Region) {}

    /// After a call: it opened or closed descriptors of the target.
    fn descriptors(&mut self, cpu: &mut C, change: leakscope_syscalls::Descriptor) {}

    /// A thread begins; called on it, before its first instruction.
    fn thread_started(&mut self, cpu: &mut C, start: &ThreadStart) {}

    /// A thread ended; called on it, after its last instruction.
    fn thread_ended(&mut self, cpu: &mut C, tid: i32) {}

    /// A process is about to be made, by `fork` or its like.
    fn forking(&mut self, cpu: &mut C) {}

    /// It could not be made.
    fn fork_failed(&mut self, cpu: &mut C) {}

    /// The child of `fork`: the calling thread is the only one that is left. Called before its first instruction.
    fn forked(&mut self, cpu: &mut C) {}

    /// A signal is delivered: `[start, end)` was written below the stack pointer, which is `start` now.
    fn frame_pushed(&mut self, cpu: &mut C, signal: i32, start: u64, end: u64) {}

    /// A handler returned: the stack pointer goes up from the frame at `start`.
    fn frame_popped(&mut self, cpu: &mut C, start: u64) {}

    /// The process is about to end; the status that it ends with is what this returns, for [`Ending::Exit`].
    fn ending(&mut self, cpu: &mut C, ending: &Ending) -> i32 {
        match ending {
            Ending::Exit(status) => *status,
            Ending::Signal { .. } | Ending::Exec => 0,
        }
    }

    /// Whether the new program runs under the engine as well. [`Monitor::ending`] follows.
    fn exec(&mut self, cpu: &mut C, request: &ExecRequest<'_>) -> ExecPlan {
        ExecPlan::Native
    }

    /// The kernel refused to execute after all: the target goes on.
    fn exec_failed(&mut self, cpu: &mut C, errno: i32) {}

    /// Something that the user should know, once: an unknown system call, a filter that is not installed.
    fn warn(&mut self, text: &str) {}

    /// [`leakscope_translate::Tool::bad_access`].
    fn bad_access(&mut self, cpu: &mut C, access: BadAccess) -> Action {
        Action::Continue
    }

    /// An instruction raised a signal; it is delivered after this. For reports.
    fn faulted(&mut self, cpu: &mut C, fault: &Fault) {}

    /// [`leakscope_translate::Tool::replaced`].
    fn replaced(&mut self, cpu: &mut C, cookie: u64) -> Action {
        Action::Continue
    }

    /// [`leakscope_translate::Tool::client_request`].
    fn client_request(&mut self, cpu: &mut C) -> Action {
        Action::Continue
    }

    /// [`leakscope_translate::Tool::cpuid`].
    fn cpuid(&mut self, leaf: u32, subleaf: u32, native: Cpuid) -> Cpuid {
        native
    }

    /// Memory of the target that the interface itself (not the kernel) reads or writes for it is bad: a signal frame
    /// without a stack, for instance. For reports.
    fn unusable(&mut self, cpu: &mut C, address: u64, bytes: u64, kind: AccessKind) {}
}

/// A monitor that does not care.
impl<C> Monitor<C> for () {}
