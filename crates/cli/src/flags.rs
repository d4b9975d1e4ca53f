//! The command line as it is written: low-level arguments. `plan.rs` makes decisions of them.
//!
//! Options that Memcheck users know keep their names and their meaning.

pub mod asan;
mod gate;
pub mod ignored;
mod import;
pub mod kernel;
pub mod monitor;
mod report;
pub mod trace;
pub mod values;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use leakscope_findings::analysis::{LeakCheck, Resolution};
use leakscope_model::{HeuristicSet, LeakKindSet};

pub use gate::{
    BaselineArgs, BaselineCommand, CargoArgs, CheckArgs, GateArgs, GenerateArgs, PolicyArgs, SuppressionsArgs,
    SuppressionsCommand, Syntax, UpdateArgs,
};
pub use import::{ImportArgs, MtraceArgs};
pub use kernel::KernelArgs;
pub use monitor::MonitorArgs;
pub use report::{DiffArgs, Format, ReportArgs};

use ignored::Ignored;
use values::{bytes, heuristics, leak_check, leak_kinds, resolution, yes_no};

/// Finds memory leaks and memory errors in Linux programs, as they are: nothing is rebuilt.
///
/// `run` is for leaks and wrong frees at close to native speed, `memcheck` for wrong accesses as well.
#[derive(Debug, Parser)]
#[command(name = "leakscope", version, max_term_width = 100, args_override_self = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a program and report its leaks and heap errors when it ends
    #[command(args_override_self = true, after_help = RUN_HELP)]
    Run(Box<RunArgs>),
    /// Run a program in a simulated CPU and report wrong accesses, wrong frees and leaks, as Valgrind's Memcheck does
    #[command(args_override_self = true, after_help = MEMCHECK_HELP)]
    Memcheck(Box<RunArgs>),
    /// Build programs with the compilers' -fsanitize=address, and run them with leakscope's run-time library
    #[command(after_help = asan::ASAN_HELP)]
    Asan(asan::AsanArgs),
    /// Check a running program for leaks now; it must have been started by `leakscope run`
    #[command(args_override_self = true)]
    Snapshot(Box<SnapshotArgs>),
    /// Watch a running program's allocations, and report what outlives a while, by stack; the program is not touched
    #[command(args_override_self = true, after_help = trace::TRACE_HELP)]
    Trace(Box<trace::TraceArgs>),
    /// Report from a recording (`leakscope run -o FILE.leak`) again, or in another view
    #[command(args_override_self = true)]
    Report(Box<ReportArgs>),
    /// Read what other tools wrote: Valgrind, sanitizers, mtrace, kmemleak, heaptrack, jemalloc, pprof, ...
    #[command(args_override_self = true, after_help = import::IMPORT_HELP)]
    Import(Box<ImportArgs>),
    /// Say what a log of glibc's mtrace shows: memory not freed, and frees of what was never allocated
    #[command(args_override_self = true, after_help = import::MTRACE_HELP)]
    Mtrace(Box<MtraceArgs>),
    /// Compare two recordings: which sites are new, gone, grown or shrunk
    #[command(args_override_self = true)]
    Diff(Box<DiffArgs>),
    /// Fail a build on new leaks: recordings against what the team has set aside, and budgets
    #[command(args_override_self = true, after_help = gate::GATE_HELP)]
    Gate(Box<GateArgs>),
    /// The findings that are set aside: write them, check them, list them
    #[command(args_override_self = true)]
    Baseline(Box<BaselineArgs>),
    /// Suppression files: what they hide, and rules for what was found
    #[command(args_override_self = true)]
    Suppressions(Box<SuppressionsArgs>),
    /// Leaks of the kernel: what it offers, and kmemleak made usable; needs root
    #[command(args_override_self = true)]
    Kernel(Box<KernelArgs>),
    /// Watch machines in production: which program leaks, since when, how long until it hurts
    #[command(args_override_self = true)]
    Monitor(Box<MonitorArgs>),
    /// Run cargo's tests under leakscope, and judge all of them together
    #[command(args_override_self = true, after_help = gate::CARGO_HELP)]
    Cargo(Box<CargoArgs>),
}

const RUN_HELP: &str = "\
Options end at the first word that is not one, or at --. Defaults are read from ~/.leakscoperc (one option per
line, # for comments) and then from LEAKSCOPE_OPTS (separated by spaces), before the command line. Other options
of Memcheck are accepted and ignored, with a warning.

Exit code: the program's own; --error-exitcode on findings; 2 when leakscope itself cannot work. A program that
is ended by a signal ends leakscope by the same signal.

Environment: LEAKSCOPE_OPTS, LEAKSCOPE_CACHE_DIR (where the injected library is unpacked), DEBUGINFOD_URLS.";

const MEMCHECK_HELP: &str = "\
Unmodified programs, static ones included, at a fraction of Valgrind's cost. Options are those of Memcheck. Errors are
printed when they happen. Besides the options above:

  --read-var-info=yes|no            Name the variable that an address lies in, with its declaration [no]
  --track-fds=no|yes|all            Which file descriptors are open at the end, and where they were opened [no]
  --check-arrays=yes|no             String functions and system calls must stay in the variable they begin in [no]
  --error-limit=yes|no              Stop after 1000 different errors, or 10000000 in all [yes]
  --exit-on-first-error=yes|no      End with --error-exitcode at the first error [no]
  --error-markers=BEGIN,END         Lines before and after each error
  --freelist-vol=BYTES              Keep so many bytes of freed blocks from being used again [20000000]
  --freelist-big-blocks=BYTES       Of those, blocks of this size are used again first [1000000]
  --redzone-size=BYTES              Keep so many bytes around blocks free [16]
  --alignment=BYTES                 Align blocks so [16]
  --malloc-fill=HEX, --free-fill=HEX  Fill new and freed blocks with this byte
  --partial-loads-ok=yes|no         Aligned loads may reach past a block's end [yes]
  --ignore-ranges=A-B,..            Addresses whose errors are not told
  --ignore-range-below-sp=A-B       The same by distance below the stack pointer
  --soname-synonyms=somalloc=LIB    Replace the allocator in this library too
  --main-stacksize=BYTES            Size of the first thread's stack [as `ulimit -s`]
  --trace-children-skip=PATTERNS    Programs that run on their own under --trace-children=yes
  --trace-children-skip-by-arg=PATTERNS  The same by an argument

docs/memcheck.md has a table of all of Memcheck's options.

Exit code: as of `leakscope run`.";

/// How reports look; for all subcommands.
#[derive(Clone, Debug, Args)]
pub struct ViewArgs {
    /// How much to say about leaks: no, summary, yes or full
    #[arg(long, value_name = "HOW", default_value = "full", value_parser = leak_check, require_equals = true)]
    pub leak_check: LeakCheck,
    /// Which kinds of leaks to show: all, none, or some of definite,indirect,possible,reachable
    #[arg(long, value_name = "KINDS", value_parser = leak_kinds, require_equals = true)]
    pub show_leak_kinds: Option<LeakKindSet>,
    /// Which kinds of leaks are errors [default: definite,possible]
    #[arg(long, value_name = "KINDS", value_parser = leak_kinds, require_equals = true)]
    pub errors_for_leak_kinds: Option<LeakKindSet>,
    /// yes: --show-leak-kinds=all; no: not the reachable ones
    #[arg(long, value_name = "yes|no", value_parser = yes_no, require_equals = true, hide = true)]
    pub show_reachable: Option<bool>,
    /// no: not the possibly lost ones
    #[arg(long, value_name = "yes|no", value_parser = yes_no, require_equals = true, hide = true)]
    pub show_possibly_lost: Option<bool>,
    /// How much of two stacks must agree to merge their leaks: low, med or high
    #[arg(long, value_name = "HOW", default_value = "high", value_parser = resolution, require_equals = true)]
    pub leak_resolution: Resolution,
    /// Show so many callers in a stack
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u16).range(1..=500), require_equals = true)]
    pub num_callers: u16,
    /// Continue stacks below main
    #[arg(long, value_name = "yes|no", default_value = "no", value_parser = yes_no, require_equals = true, action = ArgAction::Set)]
    pub show_below_main: bool,
    /// Show frees that do not match the allocator, such as free for new
    #[arg(long, value_name = "yes|no", default_value = "yes", value_parser = yes_no, require_equals = true, action = ArgAction::Set)]
    pub show_mismatched_frees: bool,
    /// Show C++ and Rust names as people write them
    #[arg(long, value_name = "yes|no", default_value = "yes", value_parser = yes_no, require_equals = true, action = ArgAction::Set)]
    pub demangle: bool,
    /// Look for separate debug files here too
    #[arg(long, value_name = "DIR", require_equals = true)]
    pub extra_debuginfo_path: Vec<PathBuf>,
    /// Hide what the rules in FILE describe (may be repeated)
    #[arg(long, value_name = "FILE", require_equals = true, action = ArgAction::Append)]
    pub suppressions: Vec<PathBuf>,
    /// Hide blocks that no program can release: the loader's thread-local storage, as Memcheck does
    #[arg(long, value_name = "yes|no", default_value = "yes", value_parser = yes_no, require_equals = true, action = ArgAction::Set)]
    pub default_suppressions: bool,
    /// Print a rule for each finding: no, yes, all, valgrind or lsan (whose syntax)
    #[arg(long, value_name = "HOW", default_value = "no", require_equals = true)]
    pub gen_suppressions: GenSuppressions,
    /// Exit with N when there are findings; 0: with the program's own code
    #[arg(long, value_name = "N", default_value_t = 0, require_equals = true)]
    pub error_exitcode: u8,
    /// List errors and used suppressions at the end
    #[arg(long, value_name = "yes|no", default_value = "no", value_parser = yes_no, require_equals = true, action = ArgAction::Set)]
    pub show_error_list: bool,
    /// The same as --show-error-list=yes
    #[arg(short = 's')]
    pub list_errors: bool,
    /// Format of the report
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<Format>,
    /// Write the report to FILE; a name that ends in .leak gets the recording itself
    #[arg(short, long, value_name = "FILE", action = ArgAction::Append)]
    pub output: Vec<PathBuf>,
    /// Write text to FILE: %p is the process id, %q{VAR} an environment variable, %n a number, %% a percent sign
    #[arg(long, value_name = "FILE", require_equals = true)]
    pub log_file: Option<String>,
    /// Write text to this file descriptor
    #[arg(long, value_name = "N", require_equals = true)]
    pub log_fd: Option<i32>,
    /// Write Valgrind's XML; needs --xml-file or --xml-fd
    #[arg(long, value_name = "yes|no", default_value = "no", value_parser = yes_no, require_equals = true, action = ArgAction::Set)]
    pub xml: bool,
    /// Write XML to FILE, with the same % patterns
    #[arg(long, value_name = "FILE", require_equals = true)]
    pub xml_file: Option<String>,
    /// Write XML to this file descriptor
    #[arg(long, value_name = "N", require_equals = true)]
    pub xml_fd: Option<i32>,
    /// Put this comment into the XML
    #[arg(long, value_name = "TEXT", require_equals = true)]
    pub xml_user_comment: Option<String>,
    /// Show source files with their directories
    #[arg(long, value_name = "TEXT", require_equals = true, num_args = 0..=1, default_missing_value = "", hide = true)]
    pub fullpath_after: Option<String>,
    /// Colours in text
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub color: Color,
    /// Say only what was found
    #[arg(short, long)]
    pub quiet: bool,
    /// Say more
    #[arg(short, long, action = ArgAction::Count)]
    pub verbose: u8,
    /// Options of Memcheck that change nothing here.
    #[command(flatten)]
    pub ignored: Ignored,
    /// Debugging output of Valgrind.
    #[arg(short = 'd', hide = true, action = ArgAction::Count)]
    pub debug: u8,
}

/// `leakscope run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// How the report looks.
    #[command(flatten)]
    pub view: ViewArgs,
    /// Take interior pointers for start pointers in these cases: all, none, or some of
    /// stdstring,length64,newarray,multipleinheritance
    #[arg(long, value_name = "SET", default_value = "all", value_parser = heuristics, require_equals = true)]
    pub leak_check_heuristics: HeuristicSet,
    /// Follow children into other programs (exec)
    #[arg(long, value_name = "yes|no", default_value = "no", value_parser = yes_no, require_equals = true, action = ArgAction::Set)]
    pub trace_children: bool,
    /// Do not report children between fork and exec
    #[arg(long, value_name = "yes|no", default_value = "no", value_parser = yes_no, require_equals = true, num_args = 0..=1, default_missing_value = "yes", action = ArgAction::Set)]
    pub child_silent_after_fork: bool,
    /// Record only a sample of the allocations, one in so many bytes on average; totals stay unbiased
    #[arg(long, value_name = "BYTES", default_value = "0", value_parser = bytes)]
    pub sample: u64,
    /// Which stacks to keep: alloc, free, alloc-and-free, alloc-then-free or none
    #[arg(long, value_name = "WHICH", default_value = "alloc", require_equals = true)]
    pub keep_stacktraces: KeepStacks,
    /// Let the C library release its own blocks before the leak check
    #[arg(long, value_name = "yes|no", default_value = "yes", value_parser = yes_no, require_equals = true, action = ArgAction::Set)]
    pub run_libc_freeres: bool,
    /// Let the C++ library release its own blocks before the leak check
    #[arg(long, value_name = "yes|no", default_value = "yes", value_parser = yes_no, require_equals = true, action = ArgAction::Set)]
    pub run_cxx_freeres: bool,
    /// Look past the end of each block for overwritten bytes when it is freed
    #[arg(long, value_name = "yes|no", default_value = "yes", value_parser = yes_no, require_equals = true, action = ArgAction::Set)]
    pub canary: bool,
    /// Report realloc with size zero
    #[arg(long, value_name = "yes|no", default_value = "no", value_parser = yes_no, require_equals = true, action = ArgAction::Set)]
    pub show_realloc_size_zero: bool,
    /// Take pointers on the threads' stacks into account
    #[arg(long, value_name = "yes|no", default_value = "yes", value_parser = yes_no, require_equals = true, action = ArgAction::Set)]
    pub use_stacks: bool,
    /// Write a log of all allocations and releases to FILE, in the words of glibc's mtrace: for `leakscope mtrace` and the
    /// script `mtrace`. %p is the process id, %q{VAR} an environment variable, %% a percent sign; forked children and
    /// programs that exec starts have FILE.PID
    #[arg(long, value_name = "FILE", require_equals = true, conflicts_with = "sample")]
    pub mtrace_log: Option<String>,
    /// Only memcheck is accepted: for command lines that were written for Valgrind
    #[arg(long, value_name = "NAME", hide = true, require_equals = true)]
    pub tool: Option<Tool>,
    /// The program and its arguments
    #[arg(value_name = "PROGRAM", required = true, trailing_var_arg = true, num_args = 1..)]
    pub program: Vec<OsString>,
}

/// `leakscope snapshot`.
#[derive(Clone, Debug, Args)]
pub struct SnapshotArgs {
    /// How the report looks.
    #[command(flatten)]
    pub view: ViewArgs,
    /// Process id of the running program
    #[arg(value_name = "PID")]
    pub pid: u32,
}

/// `--gen-suppressions`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GenSuppressions {
    /// Never
    No,
    /// For each finding (nobody is asked)
    Yes,
    /// For each finding
    All,
    /// For each finding, and say so when it would hide others too
    Valgrind,
    /// A file for LeakSanitizer behind the report
    Lsan,
}

/// `--color`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    /// Also in files
    Always,
    /// Nowhere
    Never,
}

/// `--keep-stacktraces`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KeepStacks {
    /// Where blocks are allocated
    Alloc,
    /// Where blocks are freed
    Free,
    /// Both
    AllocAndFree,
    /// Both
    AllocThenFree,
    /// Neither
    None,
}

/// `--tool`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Tool {
    /// The only one
    Memcheck,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use leakscope_model::{Heuristic, LeakKind};

    use super::*;

    fn parse(words: &[&str]) -> Result<RunArgs, clap::Error> {
        let words = ["leakscope", "run"].iter().chain(words).copied();
        match Cli::try_parse_from(words)?.command {
            Command::Run(args) => Ok(*args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_end_at_the_program() {
        for words in [
            &["-q", "--", "prog", "-q", "--leak-check=no"][..],
            &["-q", "prog", "-q", "--leak-check=no"],
            &["--quiet", "prog", "-q", "--leak-check=no"],
        ] {
            let args = parse(words).unwrap();
            assert_eq!(args.program, ["prog", "-q", "--leak-check=no"], "{words:?}");
            assert!(args.view.quiet && args.view.leak_check == LeakCheck::Full);
        }
        assert_eq!(parse(&["prog", "--", "x"]).unwrap().program, ["prog", "--", "x"]);
        assert!(parse(&[]).is_err());
        assert!(parse(&["--leak-chek=full", "prog"]).is_err());
    }

    #[test]
    fn memcheck_spellings() {
        let args = parse(&[
            "--tool=memcheck",
            "--leak-check=yes",
            "--show-leak-kinds=definite,indirect",
            "--errors-for-leak-kinds=all",
            "--leak-check-heuristics=newarray",
            "--leak-resolution=med",
            "--num-callers=30",
            "--error-exitcode=99",
            "--suppressions=a",
            "--suppressions=b",
            "--gen-suppressions=all",
            "--trace-children=yes",
            "--child-silent-after-fork=yes",
            "--log-file=x.%p",
            "--keep-stacktraces=alloc-then-free",
            "--show-mismatched-frees=no",
            "--run-libc-freeres=no",
            "--run-cxx-freeres=no",
            "-s",
            "-v",
            "-v",
            "prog",
        ])
        .unwrap();
        let view = &args.view;
        assert_eq!((view.leak_check, view.leak_resolution), (LeakCheck::Full, Resolution::Med));
        let kinds = LeakKindSet::NONE.with(LeakKind::DefinitelyLost).with(LeakKind::IndirectlyLost);
        assert_eq!((view.show_leak_kinds, view.errors_for_leak_kinds), (Some(kinds), Some(LeakKindSet::ALL)));
        assert_eq!(args.leak_check_heuristics, HeuristicSet::NONE.with(Heuristic::NewArray));
        assert_eq!((view.num_callers, view.error_exitcode, view.verbose), (30, 99, 2));
        assert_eq!(view.suppressions, [PathBuf::from("a"), PathBuf::from("b")]);
        assert_eq!(view.gen_suppressions, GenSuppressions::All);
        assert!(args.trace_children && args.child_silent_after_fork && view.list_errors);
        assert_eq!(view.log_file.as_deref(), Some("x.%p"));
        assert_eq!(args.keep_stacktraces, KeepStacks::AllocThenFree);
        assert!(!view.show_mismatched_frees && !args.run_libc_freeres && !args.run_cxx_freeres);
    }

    #[test]
    fn the_last_of_repeated_options_counts() {
        let args =
            parse(&["--num-callers=5", "--leak-check=no", "--num-callers=7", "--leak-check=full", "prog"]).unwrap();
        assert_eq!((args.view.num_callers, args.view.leak_check), (7, LeakCheck::Full));
    }

    #[test]
    fn wrong_values_by_table() {
        for option in [
            "--leak-check=maybe",
            "--leak-check",
            "--show-leak-kinds=lost",
            "--leak-check-heuristics=x",
            "--num-callers=0",
            "--num-callers=501",
            "--num-callers=x",
            "--error-exitcode=256",
            "--error-exitcode=-1",
            "--trace-children=1",
            "--leak-resolution=highest",
            "--gen-suppressions=maybe",
            "--tool=massif",
            "--keep-stacktraces=all",
            "--track-origins=maybe",
            "--freelist-vol=big",
            "--smc-check=some",
            "--malloc-fill=xyz",
            "--sample=x",
            "--color=blue",
            "--format=pdf",
            "--unknown=1",
        ] {
            assert!(parse(&[option, "prog"]).is_err(), "{option}");
        }
    }

    #[test]
    fn ignored_options_are_listed() {
        let args =
            parse(&["--track-origins=yes", "--vgdb=no", "--freelist-vol=100", "--malloc-fill=0xAB", "prog"]).unwrap();
        assert_eq!(args.view.ignored.given, ["--freelist-vol=100", "--malloc-fill=0xAB", "--track-origins=yes"]);
    }

    #[test]
    fn every_option_of_valgrind_is_known() {
        let Ok(help) = std::process::Command::new("valgrind").args(["--tool=memcheck", "--help-debug"]).output() else {
            return;
        };
        let help = String::from_utf8_lossy(&help.stdout).into_owned();
        let known = Cli::command();
        let run = known.find_subcommand("run").unwrap();
        let mut unknown = Vec::new();
        for line in help.lines() {
            let Some(rest) = line.trim_start().strip_prefix("--") else { continue };
            let name: String = rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
            let is_known = run.get_arguments().any(|argument| argument.get_long() == Some(&name));
            // Help is for another subcommand, or is clap's own.
            if !is_known && !name.starts_with("help") && name != "version" {
                unknown.push(name);
            }
        }
        assert_eq!(unknown, [""; 0]);
    }
}
