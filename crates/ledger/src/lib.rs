//! The ledger: the shared-memory file that the injected code writes and our own process reads.
//!
//! It is the one wall of the codebase (see `ARCHITECTURE.md`). Its size follows the number of distinct
//! stacks, never the number of events. It holds sums, not events: what a site allocated and released, the
//! stack tree, the modules, wrong calls to the allocator and the results of leak checks. It lives in a memfd
//! that `leakscope run` made, so it outlives a target that is killed.
//!
//! * [`layout`]: the bytes, as structs and offsets, with the invariants between them.
//! * [`writer`]: what the injected code does to them (raw pointers, atomics, no allocation).
//! * [`reader`]: what an observer makes of them; every byte is hostile until checked.
//! * [`events`]: the file of `leakscope memcheck`, whose engine tells events in order and may allocate.
//! * [`wire`]: the two messages by which a new process asks for its ledger.
//!
//! May run anywhere: no I/O, no allocation outside of `reader`.
#![cfg_attr(not(any(test, feature = "reader")), no_std)]

#[cfg(any(test, feature = "reader"))]
pub mod events;
pub mod layout;
#[cfg(any(test, feature = "reader"))]
pub mod reader;
pub mod wire;
pub mod writer;
