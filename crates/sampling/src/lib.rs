//! What the kernel says of processes, groups and itself, read so that it may be read every ten seconds.
//!
//! Runs in our own process, on any thread; allocates. Everything is below a [`Places`], `/` but in tests. `read_*` does I/O and
//! gives `None` for what is gone or not ours to see: a process may end between two reads. `decode_*` is pure and total:
//! names of processes are anybody's bytes.
//!
//! What it costs: one file (`stat`) for each process of the machine, three small ones for each that is watched.
//! `smaps_rollup` and `smaps`, for which the kernel walks the page tables, are left to the caller's schedule.
#![forbid(unsafe_code)]

pub mod cgroup;
pub mod containers;
pub mod ledgers;
pub mod machine;
pub mod names;
pub mod parts;
pub mod process;
pub mod select;

pub use leakscope_kernel::Places;
pub use parts::Parts;
pub use process::{Counters, Process};
pub use select::{Selector, Target};
