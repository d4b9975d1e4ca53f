//! What the threads of the target share, and the start of it all.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fmt;
use std::ops::Range;

use leakscope_translate::{GUEST_END, Guest};

use crate::descriptors::Hidden;
use crate::host_stacks::HostStacks;
use crate::limits::Limits;
use crate::signals::{self, Action, Actions};
use crate::space::Space;
use crate::task::Task;
use crate::thread::{BATON, Thread, registers, take_over};
use crate::{Cpu, Monitor, raw};

/// What the target is to find about itself.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    /// The executable's absolute path: `/proc/self/exe`.
    pub program: Vec<u8>,
    /// `/proc/self/cmdline`, without terminating zeros.
    pub arguments: Vec<Vec<u8>>,
    /// `/proc/self/environ`, likewise.
    pub environment: Vec<Vec<u8>>,
    /// `/proc/self/auxv`: the bytes that are on the target's stack.
    pub auxiliary: Vec<u8>,
    /// Where the dynamic loader's code is: what it reserves is for files that it loads.
    pub interpreter: Range<u64>,
    /// Descriptors of the engine, which the target must not close. They are close-on-exec.
    pub hidden_descriptors: Vec<i32>,
}

/// Why a process could not be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// `/proc/self/maps` cannot be read, or is not what it should be.
    Maps(String),
    /// The engine gave up.
    Engine(leakscope_translate::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Maps(why) => write!(f, "/proc/self/maps: {why}; is /proc mounted here?"),
            Self::Engine(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Error {}

/// The target's process, as its threads share it.
pub struct Process {
    pub(crate) setup: Setup,
    pub(crate) space: Space,
    pub(crate) actions: Actions,
    pub(crate) threads: Vec<*const Thread>,
    pub(crate) host_stacks: HostStacks,
    pub(crate) limits: Limits,
    pub(crate) hidden: Hidden,
    pub(crate) warned: BTreeSet<u64>,
}

impl Process {
    /// A process without memory. To be made before the loader maps anything: what is mapped now below
    /// [`GUEST_END`] is taken for the engine's. Signals that are ignored now are ignored by the target.
    ///
    /// # Errors
    /// `/proc/self/maps` cannot be read.
    pub fn new(setup: Setup) -> Result<Self, Error> {
        let own = engine_ranges()?;
        let hidden = Hidden::new(&setup.hidden_descriptors);
        let mut actions = Actions::default();
        for signal in 1..=64 {
            if signals::is_ignored(signal) {
                actions.set(signal, Action { handler: 1, ..Action::default() });
            }
        }
        Ok(Self {
            setup,
            space: Space::new(&own),
            actions,
            threads: Vec::new(),
            host_stacks: HostStacks::default(),
            limits: Limits::given(),
            hidden,
            warned: BTreeSet::new(),
        })
    }

    /// The target's mappings.
    #[must_use]
    pub fn space(&self) -> &Space {
        &self.space
    }

    /// The target's mappings, for the loader.
    pub fn space_mut(&mut self) -> &mut Space {
        &mut self.space
    }

    /// The setup, which the loader completes.
    pub fn setup_mut(&mut self) -> &mut Setup {
        &mut self.setup
    }

    /// Hides one more descriptor of the engine.
    pub fn hide_descriptor(&mut self, descriptor: i32) {
        self.hidden.add(descriptor);
    }

    /// Runs the target, from the registers in `start`, on this thread. The process ends as the target ends.
    ///
    /// Everything is leaked: threads of the target use it until the process is gone.
    ///
    /// # Errors
    /// The engine gave up on the first thread.
    pub fn run<C: Cpu, M: Monitor<C> + 'static>(self, cpu: C, monitor: M, start: &Guest) -> Result<Infallible, Error> {
        let process: *mut Self = Box::into_raw(Box::new(self));
        let cpu = Box::into_raw(Box::new(cpu));
        let monitor = Box::into_raw(Box::new(monitor));
        let thread = Box::leak(Box::new(Thread::new(start.clone(), signals::kernel_mask())));
        thread.set_tid(raw::gettid());
        let mut task = Task::new(process, monitor, cpu, thread);
        BATON.acquire(&thread.waiter);
        task.process().threads.push(thread);
        task.attach();
        signals::install_all::<C>(&task.process().actions);
        let leave = {
            // SAFETY: just made, never freed; only the holder of the baton uses it.
            let cpu = unsafe { &mut *cpu };
            take_over(cpu, thread);
            cpu.attach_thread();
            let view = View { process };
            task.monitor().started(cpu, view);
            cpu.run(&mut task)
        };
        let status = leave.map_err(Error::Engine)?;
        // The first thread ended while others go on: the process has to keep it as a zombie, as it is natively.
        BATON.release();
        loop {
            // SAFETY: ends this thread alone; nothing of it is needed any more.
            unsafe { raw::syscall(libc::SYS_exit, [status as u64, 0, 0, 0, 0, 0]) };
        }
    }
}

/// What a monitor may look at while one of its methods runs: mappings and threads of the target.
#[derive(Clone, Copy)]
pub struct View {
    process: *const Process,
}

/// A thread as [`View::threads`] shows it.
#[derive(Clone, Copy)]
pub struct ThreadView<'a> {
    /// Its id.
    pub tid: i32,
    /// Its registers: those of its call if it is in one.
    pub guest: &'a Guest,
    /// Its alternate signal stack, if it has one.
    pub altstack: Option<(u64, u64)>,
}

impl View {
    fn process(&self) -> &Process {
        // SAFETY: leaked by `Process::run`. The monitor, which alone gets a view, is called with the baton held, and
        // nothing of the process is borrowed mutably meanwhile.
        unsafe { &*self.process }
    }

    /// The target's mappings.
    #[must_use]
    pub fn space(&self) -> &Space {
        &self.process().space
    }

    /// All threads, the calling one included.
    pub fn threads<'a, C: Cpu>(&'a self, cpu: &'a C) -> impl Iterator<Item = ThreadView<'a>> {
        self.process().threads.iter().map(|&thread| {
            // SAFETY: threads take themselves out of the list before they end.
            let thread = unsafe { &*thread };
            // SAFETY: changed by callbacks of the thread itself only, which has not the baton, or is the caller.
            let altstack = unsafe { (*thread.local.get()).altstack };
            let altstack = (altstack.bytes != 0).then_some((altstack.start, altstack.start + altstack.bytes));
            ThreadView { tid: thread.tid(), guest: registers(cpu, thread), altstack }
        })
    }

    /// The registers of a thread that waits for its turn; `None` for the one whose turn it is.
    #[must_use]
    pub fn waiting(&self, tid: i32) -> Option<&Guest> {
        self.process().threads.iter().find_map(|&thread| {
            // SAFETY: threads take themselves out of the list before they end.
            let thread = unsafe { &*thread };
            if thread.tid() == tid { crate::thread::saved_registers(thread) } else { None }
        })
    }

    /// What the target was started with.
    #[must_use]
    pub fn setup(&self) -> &Setup {
        &self.process().setup
    }
}

/// What is kept free behind the engine's own program break, which the kernel may have put between target and engine.
const HEAP_ROOM: u64 = 16 << 20;

/// What is mapped below the end of the target's address space.
fn engine_ranges() -> Result<Vec<Range<u64>>, Error> {
    let text = std::fs::read_to_string("/proc/self/maps").map_err(|error| Error::Maps(error.to_string()))?;
    let mut ranges = Vec::new();
    for line in text.lines() {
        let range = line
            .split_once(' ')
            .and_then(|(range, _)| range.split_once('-'))
            .and_then(|(start, end)| Some(u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?))
            .ok_or_else(|| Error::Maps(format!("expected a line of two addresses, found {line:?}")))?;
        // The C library's heap may grow: by little, as what allocates much in an engine does it elsewhere.
        let room = if line.ends_with("[heap]") { HEAP_ROOM } else { 0 };
        if range.start < GUEST_END {
            ranges.push(range.start..range.end + room);
        }
    }
    Ok(ranges)
}
