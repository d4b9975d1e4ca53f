//! Many machines, one collector: what a monitor's history holds is pushed over HTTP, and kept once.
//!
//! ```text
//!  agent      History (SQLite) -- stretch after a position --> Push -- JSON, zstd --> POST /v1/stretches
//!             ^ the queue: on disk, bounded by what is kept, survives restarts        (bearer token)
//!
//!  collector  token -> machine -> place in the queue? -> body -> Stretch -> STATE/machines/NAME/history.sqlite
//!                                 429, 503: come back                       (ticks and position in one transaction)
//!
//!  agent      Board (what it says of its targets now) --> POST /v1/board --> STATE/machines/NAME/board.json --> Gallery, the page
//! ```
//!
//! At least once on the way, once on the disk: the position stands in the transaction of the ticks, a stretch that is sent
//! again has nothing new, and one that would leave a hole is answered with the position that is there. The agent keeps no
//! state of its own: it asks where to go on.
//!
//! A history a machine, and not one for all: each is written in the order of its own clock, is asked in the same words as
//! on the machine itself, and goes when its folder goes. [`push`] is blocking and runs on the caller's thread; [`serve`]
//! runs on threads of its own.
#![forbid(unsafe_code)]

mod boards;
mod error;
pub mod push;
mod server;
mod shelf;
mod tokens;
mod wire;

pub use boards::Gallery;
pub use error::CollectError;
pub use push::{Pause, Push, PushOptions, Pushed};
pub use server::{CollectOptions, Collector, serve};
pub use shelf::{history_of, machines};
pub use tokens::{Tokens, is_machine_name};
pub use wire::{MOST_BYTES, MOST_SAMPLES, MOST_TEXT, decode, encode};
