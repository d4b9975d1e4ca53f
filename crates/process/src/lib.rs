//! Facts about programs and processes: what kind of ELF file a program is, what `/proc` says of a process,
//! and the bytes of its memory.
//!
//! Runs in our own process only; allocates and does I/O. Nothing here changes the process that it looks at.
//! Everything read is untrusted: parsers are total, sizes are bounded before anything is allocated for them.
#![forbid(unsafe_code)]

pub mod allocator;
pub mod elf;
pub mod maps;
pub mod memory;
pub mod privileges;
pub mod status;
pub mod versions;
