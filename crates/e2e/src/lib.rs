//! What the end-to-end tests and the development tasks share: how a fixture is read and built, how a program is run
//! natively or under a leak checker, and how the checker's report is read.
//!
//! Development only. Everything here runs in the test's own process and may allocate and block.
#![forbid(unsafe_code)]

pub mod builds;
mod compile;
mod fixture;
mod known;
mod paths;
mod run;
mod tool;
mod xml;

pub use compile::{Program, compile};
pub use fixture::{Fixture, LeakRow, MisuseRow, Table};
pub use known::{judge, known_failures};
pub use paths::{conformance_cache, fixtures_dir, leakscope_bin, repo_root, target_dir};
pub use run::{Ending, Finished, Run};
pub use tool::Tool;
pub use xml::{ErrorRecord, Frame, LeakRecord, Report, parse_report};
