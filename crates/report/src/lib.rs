//! Reports, one format per file. Each function writes what an [`Analysis`](leakscope_findings::Analysis) says
//! about one process; a run with several processes is several calls (for XML, several documents).
//!
//! * [`text`]: Memcheck's words and layout, for people; in colour when asked.
//! * [`json`]: everything, for programs; schema in `docs/schema/report-v1.schema.json`.
//! * [`valgrind_xml`]: Valgrind's XML protocol 4, for the tools that read it.
//!
//! Names of functions and files come out of hostile files: control characters never reach the output.
//! No `unsafe`, no I/O but through the given writer.
#![forbid(unsafe_code)]

mod escape;
pub mod json;
pub mod text;
pub mod valgrind_xml;
mod wording;

pub use text::Style;
