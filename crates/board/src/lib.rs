//! What a monitor shows to others: a page, metrics for Prometheus, and metrics pushed by OTLP.
//!
//! ```text
//!  pass of the monitor -> Board (targets, verdicts, open alarms) -> Shared -> page, /metrics   (thread of its own)
//!                                                                        -> otlp::push
//!  Machines (of a collector: boards and histories of others) -> the same page
//!  History (SQLite, read only) -> /api/series, /api/found, /api/profiles, /api/profile
//! ```
//!
//! Nothing here can change anything: every address answers GET alone, reads, and starts no program. Names of processes are
//! anybody's text: they leave as JSON strings, as escaped labels, or as protobuf strings, and the page makes text nodes of
//! them. The server is the only async code; it runs on one thread with few connections.
#![forbid(unsafe_code)]

mod connection;
mod guard;
mod instruments;
mod machines;
pub mod otlp;
mod profile;
pub mod prometheus;
mod series;
mod server;
mod view;

pub use connection::{Connection, Incoming};
pub use guard::{Refused, may_listen};
pub use machines::{MachineView, Machines};
pub use server::{PageError, PageOptions, Server, acceptor, serve, serve_many};
pub use view::{Board, PartView, Shared, TargetView, Verdict};
