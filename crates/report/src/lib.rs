//! Reports, one format per file.
//!
//! Each writes what is known of one process:
//!
//! * [`text`]: Memcheck's words and layout, for people; in colour when asked.
//! * [`json`]: everything, for programs; schema in `docs/schema/report-v1.schema.json`.
//! * [`valgrind_xml`]: Valgrind's XML protocol 4, for the tools that read it.
//!
//! Each of these makes one document of all processes of a recording:
//!
//! * [`sarif`], [`junit`], [`github`], [`gitlab`], [`markdown`]: findings, for pipelines and code review.
//! * [`html`]: a page to look at, with all of it.
//! * [`pprof`], [`folded`], [`speedscope`]: allocation sites, for profile viewers.
//!
//! [`tui`] shows allocation sites in a terminal, and [`diff`] words the difference of two recordings. Names of functions and files come out of hostile files: control
//! characters never reach the output, nor does markup. No `unsafe`, no I/O but through the given writer.
#![forbid(unsafe_code)]

pub mod diff;
mod escape;
mod finding;
pub mod folded;
pub mod github;
pub mod gitlab;
pub mod html;
mod intervals;
pub mod json;
pub mod junit;
pub mod markdown;
mod place;
pub mod pprof;
mod profile;
mod rules;
pub mod sarif;
pub mod speedscope;
pub mod text;
pub mod tui;
pub mod valgrind_xml;
mod witnesses;
mod wording;

use leakscope_findings::Analysis;
use leakscope_findings::recording::ProcessRecording;

pub use place::Sources;
pub use profile::Metric;
pub use text::Style;

/// A process of a document: what was recorded of it, and what the analysis makes of that.
#[derive(Clone, Copy, Debug)]
pub struct Process<'a> {
    /// All of its sites.
    pub recorded: &'a ProcessRecording,
    /// Its findings.
    pub analysis: &'a Analysis,
}
