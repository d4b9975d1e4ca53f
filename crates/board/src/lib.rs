//! What a monitor shows to others: a page, metrics for Prometheus, and metrics pushed by OTLP.
//!
//! ```text
//!  pass of the monitor -> Board (targets, verdicts, open alarms) -> Shared -> page, /metrics   (thread of its own)
//!                                                                        -> otlp::push
//!  History (SQLite, read only) -> /api/series, /api/found
//! ```
//!
//! Nothing here can change anything: every address answers GET alone, reads, and starts no program. Names of processes are
//! anybody's text: they leave as JSON strings, as escaped labels, or as protobuf strings, and the page makes text nodes of
//! them. The server is the only async code; it runs on one thread with few connections.
#![forbid(unsafe_code)]

mod connection;
mod guard;
mod instruments;
pub mod otlp;
pub mod prometheus;
mod series;
mod server;
mod view;

pub use guard::{Refused, may_listen};
pub use server::{PageError, PageOptions, Server, serve};
pub use view::{Board, Shared, TargetView, Verdict};
