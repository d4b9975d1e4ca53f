//! `leakscope monitor`: watches machines in production and raises the alarm before memory runs out.
//!
//! ```text
//!  config (TOML) -> Watch: each interval   sampling -> judges (trend), one for each target and metric
//!                                          -> findings, with evidence -> Book -> Outbox -> channels (own thread)
//!                                          -> History (SQLite), from which judges are taught again after a restart
//!                                          -> Board -> page, /metrics, OTLP (crate board, own threads)
//!  checks (leak checks, kmemleak, traces of the kernel): runs of this program, one after another, on a thread
//! ```
//!
//! One thread samples, judges and writes; another delivers, because servers may take their time. What is async
//! lies in the crate `board`.
//! Everything that is kept lies in one state folder, which one daemon locks.
#![forbid(unsafe_code)]

pub mod board;
pub mod checks;
mod composition;
pub mod config;
pub mod cores;
pub mod daemon;
mod error;
pub mod evidence;
pub mod install;
mod limits;
mod moments;
pub mod outlets;
pub mod sites;
pub mod state;
pub mod targets;
pub mod timeline;
pub mod units;
pub mod watch;

pub use config::{Config, Problem};
pub use error::MonitorError;
pub use state::State;
pub use watch::{Pass, Watch};
