//! What `asan` and its subcommands take: the words of the compiler and of the program, as they are.

use std::ffi::OsString;

use clap::{Args, Subcommand};

/// `leakscope asan`.
#[derive(Clone, Debug, Args)]
pub struct AsanArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: AsanCommand,
}

/// The subcommands of `asan`.
#[derive(Clone, Debug, Subcommand)]
pub enum AsanCommand {
    /// Compile and link C with the compiler's checks and our run-time library: $CC, or clang or gcc
    Cc(WordsArgs),
    /// The same for C++: $CXX, or clang++ or g++
    #[command(name = "c++")]
    Cxx(WordsArgs),
    /// Run a program that was built with -fsanitize=address, with our run-time library in place of the compiler's
    Run(WordsArgs),
}

/// Words that are handed on.
#[derive(Clone, Debug, Args)]
pub struct WordsArgs {
    /// The compiler's arguments, or the program and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "WORD")]
    pub words: Vec<OsString>,
}

/// Shown below the options of `asan`.
pub const ASAN_HELP: &str = "\
Examples:
  leakscope asan cc -o test test.c && ./test
  leakscope asan run ./test                          built with -fsanitize=address by gcc 12 or later, clang 14 or later
  ASAN_OPTIONS=halt_on_error=0 leakscope asan run ./test

Options go into ASAN_OPTIONS and LSAN_OPTIONS, as with the compilers' own library. See docs/asan.md.";
