//! From verdicts to messages: what is said, when, to whom, and until it has arrived.
//!
//! ```text
//!  Finding -> Book (opened, grown, resolved; repeats, quiet hours, most a day) -> Notice
//!          -> Outbox (one file for each notice and channel; survives us) -> channel, tried again until it takes it
//! ```
//!
//! [`book`] and the formatters are pure. Channels do network I/O on the caller's thread, with time limits. Secrets come
//! from files or the environment ([`Secret`]); nothing prints them. Names of processes are anybody's text: each format
//! escapes what it embeds.
#![forbid(unsafe_code)]

pub mod book;
pub mod channel;
pub mod chart;
mod error;
pub mod format;
pub mod outbox;
mod secret;

pub use book::{Book, Evidence, Finding, Kind, Notice, Policy};
pub use channel::Channel;
pub use error::AlertError;
pub use outbox::Outbox;
pub use secret::Secret;
