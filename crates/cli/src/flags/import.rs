//! What `import` and `mtrace` take.

use std::path::PathBuf;

use clap::Args;

use super::ViewArgs;

/// `leakscope import`.
#[derive(Clone, Debug, Args)]
pub struct ImportArgs {
    /// How the report looks.
    #[command(flatten)]
    pub view: ViewArgs,
    /// What other tools wrote, plain or compressed (.gz, .zst), and recordings of ours; - reads standard input
    #[arg(value_name = "FILE", required = true, num_args = 1..)]
    pub files: Vec<PathBuf>,
}

/// `leakscope mtrace`.
#[derive(Clone, Debug, Args)]
pub struct MtraceArgs {
    /// Do not look up names: callers are printed as addresses
    #[arg(long)]
    pub no_names: bool,
    /// The log that glibc's mtrace wrote, plain or compressed; - reads standard input
    #[arg(value_name = "LOG")]
    pub log: PathBuf,
    /// The program that wrote it, if it is not where the log says (either order is accepted)
    #[arg(value_name = "BINARY")]
    pub binary: Option<PathBuf>,
}

/// Help of `import`.
pub const IMPORT_HELP: &str = "\
Reads Valgrind's text and XML, AddressSanitizer and LeakSanitizer, glibc's mtrace, heaptrack, memleak of bcc and
libbpf-tools, heap profiles of jemalloc and gperftools, pprof, Massif, Dr. Memory and memray; and of the kernel
kmemleak, KASAN, KFENCE, SLUB debug and page_owner. The format is found by the contents. Findings of several files that are the same are told as one, with all who saw it. Addresses without
names are looked up in the files that they lie in, where these are at hand.

Exit code: --error-exitcode on findings; 2 when a file cannot be read.";

/// Help of `mtrace`.
pub const MTRACE_HELP: &str = "\
To make a log of any program, or of one that calls mtrace() (from <mcheck.h>):

    leakscope run --mtrace-log=LOG ./program
    MALLOC_TRACE=LOG leakscope run ./program

Without leakscope, since glibc 2.34, the log is written by a library that must be preloaded:

    LD_PRELOAD=libc_malloc_debug.so.0 MALLOC_TRACE=LOG ./program

Exit code, as of the script that comes with glibc: 1 when memory was not freed, 0 when all was; 2 when the log cannot
be read.";
