//! What `asan` and its subcommands take: the words of the compiler and of the program, as they are, and how reports look.

use std::ffi::OsString;

use clap::{Args, Subcommand};

use super::ViewArgs;

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
    /// Call make with these compilers; CFLAGS of the makefile stay
    Make(WordsArgs),
    /// Call cmake with CC, CXX, CFLAGS, CXXFLAGS and LDFLAGS set, which it keeps in the build folder
    Cmake(WordsArgs),
    /// Call any other build tool with the same variables set, such as ./configure or meson
    Env(WordsArgs),
    /// Run a program that was built with -fsanitize=address, with our run-time library in place of the compiler's
    #[command(args_override_self = true)]
    Run(Box<RunArgs>),
    /// Print the folder that holds the library under its names, for a run path or LD_LIBRARY_PATH
    Dir,
}

/// Words that are handed on.
#[derive(Clone, Debug, Args)]
pub struct WordsArgs {
    /// The arguments of the compiler or tool
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "WORD")]
    pub words: Vec<OsString>,
}

/// `leakscope asan run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// How reports look.
    #[command(flatten)]
    pub view: ViewArgs,
    /// The program to run, and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true, value_name = "PROGRAM")]
    pub program: Vec<OsString>,
}

/// Shown below the options of `asan`.
pub const ASAN_HELP: &str = "\
Examples:
  leakscope asan cc -o test test.c && ./test
  leakscope asan make
  leakscope asan cmake -B build && cmake --build build
  leakscope asan run ./test                          built with -fsanitize=address by gcc 12 or later, clang 14 or later
  leakscope asan run -o test.leak ./test             the findings for `leakscope report`, `diff` and `gate`, too
  ASAN_OPTIONS=halt_on_error=0 leakscope asan run ./test

Options of the run-time go into ASAN_OPTIONS and LSAN_OPTIONS, as with the compilers' own library; its own reports go to
standard error, as ever. See docs/asan.md.";
