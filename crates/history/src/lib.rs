//! Samples, verdicts and events over a year in one SQLite file.
//!
//! ```text
//!  every interval   ticks(at, blob)                     all targets of one moment: one row, one transaction
//!  every hour       chunks(target, scale, start, blob)  scale 10 s: an hour a chunk      kept 2 days
//!                                                       scale 5 min: a day a chunk       kept 30 days
//!                                                       scale 1 h: 30 days a chunk       kept 400 days
//! ```
//!
//! Findings are kept by fingerprint, so that a new one is known for new; and what each had at certain moments, so that two
//! times can be compared.
//!
//! A chunk holds rows as differences in variable-length numbers, some bytes a row. The file is in WAL mode and each
//! commit reaches the disk: whatever ends us, at most the last interval is lost. The hourly step is one transaction.
//!
//! One writer at a time; readers may look at any time. Any thread; does I/O only through SQLite.
#![forbid(unsafe_code)]

mod codec;
mod error;
mod found;
mod profile;
mod replica;
mod rollup;
mod store;
mod year;

pub use codec::{METRICS, NAMES, Row, Values};
pub use error::HistoryError;
pub use found::Found;
pub use profile::{Moment, Site};
pub use replica::{Stretch, Taken, Tick};
pub use rollup::rollup;
pub use store::{Event, History, Scale, TargetSample};
pub use year::generate_year;
