//! Live tracing with BPF: programs in the kernel keep tables of outstanding blocks and sums by stack, and this loads
//! them, reads the tables, and estimates.
//!
//! ```text
//!  tracepoint / uprobe ──> program ──> blocks (address -> site, size, weight, since when, who)
//!                                 └──> sites (stacks) and sums of each, per processor
//!                                             │ read now and then; nothing is sent per event
//!                                 Tracer::snapshot ──> Snapshot: what outlived, by site, with its uncertainty
//! ```
//!
//! [`kmem`] traces the kernel's allocators, [`user`] those of running programs. Both share the tables of
//! `bpf/blocks.h`, whose header states what keeps the sums right. Nothing is pinned: programs, maps and links go away
//! with our file descriptors, however we end.
//!
//! Runs in our own process. Unsafe code is in `sys` (bpf(2)), `layout` (which structures are plain bytes) and `interrupts`.

pub mod btf;
mod counters;
pub mod events;
pub mod interrupts;
pub mod kmem;
mod layout;

mod load;
mod object;
mod overhead;
mod snapshot;
mod sys;
mod table;
pub mod user;
mod watch;

use std::io;

pub use counters::{Counters, Lost, ProgramCounters};
pub use layout::MOST_FRAMES;
pub use overhead::{Budget, Decision, SAMPLE_NS};
pub use snapshot::{Estimate, LiveSite, Owner, Site, SiteSums, Snapshot};
pub use watch::Watch;

/// A kind of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Kind {
    /// `kmalloc` and friends.
    Kmalloc,
    /// Objects of a slab cache.
    Slab,
    /// Whole pages, also those that slabs and user memory are made of.
    Pages,
    /// Per-CPU memory.
    PerCpu,
    /// Mappings of the kernel's vmalloc area.
    Vmalloc,
    /// The heap of a program.
    User,
}

impl Kind {
    /// All of the kernel's.
    pub const KERNEL: [Self; 5] = [Self::Kmalloc, Self::Slab, Self::Pages, Self::PerCpu, Self::Vmalloc];

    /// The kind with this number.
    pub fn from_number(number: u32) -> Option<Self> {
        [Self::Kmalloc, Self::Slab, Self::Pages, Self::PerCpu, Self::Vmalloc, Self::User].get(number as usize).copied()
    }

    /// Its name, as the command line has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kmalloc => "kmalloc",
            Self::Slab => "slab",
            Self::Pages => "pages",
            Self::PerCpu => "percpu",
            Self::Vmalloc => "vmalloc",
            Self::User => "user",
        }
    }
}

/// Which tasks' allocations are tracked. Releases are seen whoever makes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of the process with this id.
    pub pid: Option<u32>,
    /// Of tasks with this name (its first 15 bytes).
    pub comm: Option<String>,
    /// Of this control group (version 2) and those below it.
    pub cgroup: Option<Cgroup>,
    /// With an address in this range on the stack: the text of a module.
    pub module_text: Option<(u64, u64)>,
}

/// A control group as the kernel's programs know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cgroup {
    /// Inode number of its directory.
    pub id: u64,
    /// How many directories it is below the root.
    pub level: u32,
}

/// How much is tracked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Mean bytes between samples; 0 tracks every allocation.
    pub sample_bytes: u64,
    /// Room for outstanding blocks.
    pub blocks: u32,
    /// Room for stacks.
    pub sites: u32,
    /// Allocations and releases that are printed each second, 0 for none.
    pub events_per_second: u64,
}

/// Why something cannot be traced.
#[derive(Debug)]
pub enum Error {
    /// This build has no programs; why not.
    NotBuilt(&'static str),
    /// The user may not load programs.
    NotAllowed(&'static str),
    /// The kernel has no BTF.
    NoBtf(io::Error),
    /// The kernel's BTF cannot be read.
    BadBtf,
    /// The kernel is locked down.
    LockedDown,
    /// The kernel has none of the tracepoints that were asked for.
    NoTracepoints(String),
    /// A program or map was refused.
    Load {
        /// Which.
        what: String,
        /// What the loader or the kernel said.
        reason: String,
    },
    /// A command of bpf(2) failed.
    Command {
        /// What it was for.
        what: &'static str,
        /// Its error.
        error: io::Error,
    },
    /// A program whose allocations are to be traced cannot be.
    Target(String),
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotBuilt(why) => {
                write!(f, "this leakscope was built without its BPF programs: {why}; then build again")
            }
            Self::NotAllowed(what) => {
                write!(f, "{what} needs root, or the capabilities CAP_BPF and CAP_PERFMON; run it with sudo")
            }
            Self::NoBtf(error) => write!(
                f,
                "/sys/kernel/btf/vmlinux: {error}; the kernel must be built with CONFIG_DEBUG_INFO_BTF, as the \
                 distributions' kernels since 5.8 are"
            ),
            Self::BadBtf => f.write_str("/sys/kernel/btf/vmlinux is not BTF of this machine; is /sys mounted right?"),
            Self::LockedDown => f.write_str(
                "the kernel is locked down for confidentiality, so that nobody may read its memory; boot with \
                 lockdown=integrity or without Secure Boot's lockdown",
            ),
            Self::NoTracepoints(names) => {
                write!(
                    f,
                    "this kernel has no tracepoints for {names}; leave that out, or see `leakscope kernel status`"
                )
            }
            Self::Load { what, reason } => write!(f, "the kernel does not take {what}: {reason}"),
            Self::Command { what, error } => write!(f, "bpf(2) {what}: {error}"),
            Self::Target(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Error {}
