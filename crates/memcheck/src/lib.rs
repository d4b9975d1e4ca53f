//! The engine of `leakscope memcheck`: everything but the translation of code.
//!
//! It runs inside of the target's process, around the target: loads the program, stands in for its allocator and its
//! string functions, watches its system calls and mappings through crate `guest`, and writes what it finds into a shared file that
//! the process outside reads, names and prints.
//!
//! Runs on the engine's own stack, with the engine's own thread pointer. Nothing here may call into a C library that the
//! target shares: there is none, the engine is static.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

pub mod allocator;
pub mod arena;
pub mod arrays;
pub mod descriptors;
pub mod elf_symbols;
pub mod engine;
pub mod errors;
pub mod functions;
pub mod heap;
pub mod leaks;
pub mod loader;
pub mod modules;
pub mod monitor;
pub mod options;
pub mod output;
pub mod pools;
pub mod probe;
pub mod recall;
pub mod requests;
pub mod stack_marks;
pub mod stacks;
pub mod start;
pub mod strings;
pub mod subjects;
pub mod texts;
pub mod threads;
pub mod tool;
pub mod unwind;
pub mod wrapping;
