//! The vocabulary that every crate shares: what a block, a leak kind and an allocation function are.
//!
//! `no_std`, no I/O, no allocation, no `unsafe`: usable on both sides of the wall, in a signal handler too.
#![no_std]
#![forbid(unsafe_code)]

mod alloc_fn;
mod foreign;
mod ids;
mod kinds;

pub use alloc_fn::{AllocFamily, AllocFn};
pub use foreign::{ErrorKind, Tool};
pub use ids::{Avma, CheckId, FileOffset, ModuleId, NodeId, SiteId, Svma, ThreadId};
pub use kinds::{CheckTrigger, Heuristic, HeuristicSet, LeakKind, LeakKindSet, MisuseKind};
