//! The table, one file for each family of calls.

mod attributes;
mod descriptor;
mod file;
mod ipc;
mod keys;
mod memory;
mod mount;
mod net;
mod poll;
mod process;
mod removed;
mod ring;
mod signal;
mod stream;
mod system;
mod time;
mod wait_word;

use crate::table::Syscall;

pub(crate) use net::filter_program;

/// Every family.
pub(crate) const ALL: &[&[Syscall]] = &[
    attributes::ATTRIBUTES,
    descriptor::DESCRIPTOR,
    file::FILE,
    ipc::IPC,
    keys::KEYS,
    memory::MEMORY,
    mount::MOUNT,
    net::NET,
    poll::POLL,
    process::PROCESS,
    removed::REMOVED,
    ring::RING,
    signal::SIGNAL,
    stream::STREAM,
    system::SYSTEM,
    time::TIME,
    wait_word::WAIT_WORD,
];
