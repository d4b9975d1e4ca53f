//! Starts a program with the injected library in it, gives every traced process its ledger, and watches them.
//!
//! ```text
//!  caller's thread            service thread (poll loop)                       target
//!  Session::start ----------> listens on an abstract socket <---- Hello ------ injected library
//!   |  events  <------------- one memfd per process ------------- Welcome + fd ->  maps its ledger, records
//!   |                         samples counters and RSS
//!   |                         forwards SIGTERM ... to the first process
//!   |                         pidfd: process ended -> Event::Ended(ledger, how)
//!  snapshot::request (another leakscope) --> the same thread --> header.snapshot_wanted, then the memfd
//! ```
//!
//! Runs in our own process. `unsafe` lives in [`ledger_file`] (the shared map), `environment`, `signals`,
//! `spawn` and [`asan`] (between fork and exec).

pub mod asan;
pub mod cache;
mod control;
mod environment;
mod error;
pub mod ledger_file;
pub mod memcheck;
mod oom;
pub mod preflight;
mod series;
mod service;
mod signals;
pub mod snapshot;
mod socket;
mod spawn;
mod unannounced;

pub use error::Error;
pub use service::{End, Ended, Event};
pub use signals::die_by_signal;
pub use spawn::{Request, Session};

/// What the observer may ask of the injected code.
pub mod ledger {
    pub use leakscope_ledger::layout::{Config, LOG_NAME_BYTES, LogName, flags};
}
