//! The run-time behind `-fsanitize=address`: shadow, heap with redzones and quarantine, fake stacks, globals, reports,
//! leaks. The crate `asan` exports its functions under the names that instrumented programs call.
//!
//! `no_std`. The hot paths (checks, allocation, release, frames of fake stacks) use no memory but the program's heap
//! and mappings of our own. Reports are written with `alloc` on a heap of our own ([`arena`]): they are rare, and most
//! are the last thing that a process does. Nothing here calls the target's allocator, throws, or takes a lock that the
//! target can hold.
//!
//! | module | what it is |
//! |---|---|
//! | [`init`] | the start, and where options and suppressions come from |
//! | [`shadow_map`] | the shadow: where it is, what its bytes say, filling and asking |
//! | [`heap`] | size classes, large blocks, headers, caches of threads, quarantine |
//! | [`fake_stack`] | frames that outlive their functions |
//! | [`globals`] | redzones of globals, one-definition rule, initialisation order |
//! | [`poison`] | poisoning by the program and by containers |
//! | [`thread`] | threads and their records |
//! | [`unwind`], [`depot`] | stacks, and numbers for them |
//! | [`report`] | the texts, one file for each family of findings |
//! | [`symbolize`] | names for addresses: DWARF and symbol tables, in the process |
//! | [`leaks`] | the leak check, on `leakscope_reach` |
//! | [`signals`] | handlers for deadly signals |
//! | [`options`], [`suppressions`], [`output`] | what the user says, and where reports go |
//!
//! Source: the documented interface of LLVM's run-time (compiler-rt/include/sanitizer), the code that clang 14 to 19 and
//! gcc 12 emit, and the output of clang 19's run-time; nothing is copied from it.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod arena;
pub mod depot;
pub mod describe_threads;
pub mod fake_stack;
pub mod globals;
pub mod heap;
pub mod init;
pub mod leaks;
pub mod modules;
pub mod options;
pub mod originals;
pub mod output;
pub mod poison;
pub mod report;
pub mod shadow_map;
pub mod signals;
pub mod statistics;
pub mod suppressions;
pub mod symbolize;
pub mod sys;
pub mod thread;
pub mod tls;
pub mod undefined;
pub mod unwind;
pub mod watch;
