//! The part of leakscope that lives inside the target: block table, sites, unwinding, misuse, leak check.
//!
//! `no_std` and without libc calls on any path that a hook takes: system calls are made directly, memory comes from
//! mmap, thread-local words are reached by initial-exec TLS. Nothing here panics, throws, or takes a lock that the
//! target can hold. The crate `preload` gives it the hooks and the originals; everything here is tested without
//! injecting anything.
#![cfg_attr(not(test), no_std)]

pub mod blocks;
pub mod canary;
pub mod check;
pub mod deferred;
pub mod event_log;
pub mod hints;
pub mod intervals;
pub mod lifetimes;
pub mod memory;
pub mod misuse;
pub mod modules;
pub mod proc_maps;
pub mod raw;
pub mod registers;
pub mod release_queue;
pub mod roots;
pub mod runtime;
pub mod sampling;
pub mod sites;
pub mod stop;
pub mod thread;
pub mod unwind;
pub mod waiting;
