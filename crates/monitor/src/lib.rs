//! `leakscope monitor`: watches machines in production and raises the alarm before memory runs out.
//!
//! ```text
//!  config (TOML) -> Watch: each interval   sampling -> judges (trend), one for each target and metric
//!                                          -> findings, with evidence -> Book -> Outbox -> channels (own thread)
//!                                          -> History (SQLite), from which judges are taught again after a restart
//! ```
//!
//! One thread samples, judges and writes; another delivers, because servers may take their time. No async runtime.
//! Everything that is kept lies in one state folder, which one daemon locks.
#![forbid(unsafe_code)]

pub mod config;
pub mod daemon;
mod error;
pub mod evidence;
pub mod install;
pub mod state;
pub mod targets;
pub mod timeline;
pub mod units;
pub mod watch;

pub use config::{Config, Problem};
pub use error::MonitorError;
pub use state::State;
pub use watch::{Pass, Watch};
