//! From what was recorded to what is reported: recordings, loss records, suppressions, fingerprints.
//!
//! No I/O and no `unsafe`; usable on any thread. The way of the data:
//!
//! ```text
//! ledger::reader::Snapshot --recording::build--> Recording --container::encode--> bytes of a .leak file
//!                                                   |   <---container::decode--
//!                            Options, Suppressions  |
//!                                              analysis::analyse (per process)
//!                                                   v
//!                                               Analysis --> the report crate
//! ```
//!
//! * [`recording`]: a self-contained recording: what the ledger held, with symbols.
//! * [`container`]: the bytes of a `.leak` file.
//! * [`analysis`]: loss records, misuse errors and totals, as Memcheck makes them.
//! * [`diff`]: what changed between two recordings.
//! * [`gate`], [`baseline`]: what must fail a build, and what a team has set aside.
//! * [`suppressions`]: Valgrind's and LeakSanitizer's suppression files.
//! * [`witness`]: one finding that several tools saw.
//! * [`fingerprint`]: the identity of a finding across builds and machines.
#![forbid(unsafe_code)]

pub mod analysis;
pub mod baseline;
pub mod container;
pub mod diff;
pub mod fingerprint;
pub mod gate;
pub mod recording;
pub mod suppressions;
pub mod witness;

pub use analysis::{Analysis, Options, analyse};
pub use container::{DecodeError, Problem, decode, encode};
pub use fingerprint::Fingerprint;
pub use recording::{ProcessRecording, Recording};
pub use suppressions::{SuppressionError, Suppressions};
