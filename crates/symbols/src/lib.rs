//! Names for addresses: function, file, line and inlined frames of an address in a module; variables, too.
//!
//! Runs in our own process, on any thread, and allocates. Everything that is read here (the modules of the
//! target, their debug files, what a server sends) is untrusted: a damaged file degrades to the next source of
//! names and never panics, and no allocation is larger than what the file really holds.
//!
//! Sources of names, best first:
//!
//! 1. DWARF 4 or 5 in the module itself, or in its separate debug file: by build id, by `.gnu_debuglink`, or from
//!    debuginfod. Split units come from a `.dwp` or from `.dwo` files, shared units of dwz from `.gnu_debugaltlink`.
//! 2. `.symtab` and `.dynsym`, and the `.symtab` inside `.gnu_debugdata` (mini debuginfo).
//! 3. Nothing: the caller prints module and offset.
//!
//! Sections are read into memory rather than mapped: this crate has no `unsafe` code, and a module that is rebuilt
//! while we look at it gives a read error here where a mapping would give SIGBUS.
#![forbid(unsafe_code)]

mod debuginfod;
mod demangle;
mod dwarf;
mod elf;
mod locate;
mod symbolizer;
mod symtab;
mod types;
mod units;
mod variables;

pub use debuginfod::Debuginfod;
pub use demangle::demangle;
pub use elf::read_build_id;
pub use symbolizer::{Frame, ModuleFile, Options, Source, Symbolizer};
pub use variables::{FrameState, Variable};
