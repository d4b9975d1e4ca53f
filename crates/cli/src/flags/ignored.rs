//! Options of Memcheck that change nothing here: accepted, so that command lines can be taken over as they are.
//!
//! Their values are still checked: a typing mistake must not go unseen. Source: `valgrind --help-debug`, 3.19.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

/// What the value of an option looks like.
#[derive(Clone, Copy, Debug)]
enum Value {
    /// `yes` or `no`.
    Bool,
    /// One of these words.
    Words(&'static [&'static str]),
    /// A decimal number.
    Number,
    /// A hexadecimal number.
    Hex,
    /// Anything.
    Text,
}

const IGNORED: &[(&str, Value)] = &[
    ("aspace-minaddr", Value::Hex),
    ("alignment", Value::Number),
    ("allow-mismatched-debuginfo", Value::Bool),
    ("avg-transtab-entry-size", Value::Number),
    ("check-arrays", Value::Bool),
    ("command-line-only", Value::Bool),
    ("core-redzone-size", Value::Number),
    ("debug-dump", Value::Words(&["syms", "line", "frames"])),
    ("debuginfo-server", Value::Text),
    ("dsymutil", Value::Bool),
    ("dump-error", Value::Number),
    ("error-limit", Value::Bool),
    ("error-markers", Value::Text),
    ("exit-on-first-error", Value::Bool),
    ("expensive-definedness-checks", Value::Words(&["no", "auto", "yes"])),
    ("fair-sched", Value::Words(&["no", "yes", "try"])),
    ("free-fill", Value::Hex),
    ("freelist-big-blocks", Value::Number),
    ("freelist-vol", Value::Number),
    ("ignore-range-below-sp", Value::Text),
    ("ignore-ranges", Value::Text),
    ("input-fd", Value::Number),
    ("keep-debuginfo", Value::Bool),
    ("kernel-variant", Value::Text),
    ("log-socket", Value::Text),
    ("main-stacksize", Value::Number),
    ("malloc-fill", Value::Hex),
    ("max-stackframe", Value::Number),
    ("max-threads", Value::Number),
    ("merge-recursive-frames", Value::Number),
    ("num-transtab-sectors", Value::Number),
    ("partial-loads-ok", Value::Bool),
    ("profile-flags", Value::Text),
    ("profile-heap", Value::Bool),
    ("profile-interval", Value::Number),
    ("progress-interval", Value::Number),
    ("px-default", Value::Text),
    ("px-file-backed", Value::Text),
    ("read-inline-info", Value::Bool),
    ("read-var-info", Value::Bool),
    ("redzone-size", Value::Number),
    ("require-text-symbol", Value::Text),
    ("resync-filter", Value::Words(&["no", "yes", "verbose"])),
    ("sanity-level", Value::Number),
    ("show-emwarns", Value::Bool),
    ("sigill-diagnostics", Value::Bool),
    ("sim-hints", Value::Text),
    ("smc-check", Value::Words(&["none", "stack", "all", "all-non-file"])),
    ("soname-synonyms", Value::Text),
    ("stats", Value::Bool),
    ("sym-offsets", Value::Bool),
    ("time-stamp", Value::Bool),
    ("trace-cfi", Value::Bool),
    ("trace-children-skip", Value::Text),
    ("trace-children-skip-by-arg", Value::Text),
    ("trace-flags", Value::Text),
    ("trace-malloc", Value::Bool),
    ("trace-notabove", Value::Number),
    ("trace-notbelow", Value::Number),
    ("trace-redir", Value::Bool),
    ("trace-sched", Value::Bool),
    ("trace-signals", Value::Bool),
    ("trace-symtab", Value::Bool),
    ("trace-symtab-patt", Value::Text),
    ("trace-syscalls", Value::Bool),
    ("track-fds", Value::Words(&["no", "yes", "all"])),
    ("track-origins", Value::Bool),
    ("undef-value-errors", Value::Bool),
    ("unw-stack-scan-frames", Value::Number),
    ("unw-stack-scan-thresh", Value::Number),
    ("valgrind-stacksize", Value::Number),
    ("vex-guest-chase", Value::Bool),
    ("vex-guest-max-insns", Value::Number),
    ("vex-iropt-level", Value::Number),
    ("vex-iropt-register-updates", Value::Text),
    ("vex-iropt-unroll-thresh", Value::Number),
    ("vex-iropt-verbosity", Value::Number),
    ("vex-regalloc-version", Value::Words(&["2", "3"])),
    ("vgdb", Value::Words(&["no", "yes", "full"])),
    ("vgdb-error", Value::Number),
    ("vgdb-poll", Value::Number),
    ("vgdb-prefix", Value::Text),
    ("vgdb-shadow-registers", Value::Bool),
    ("vgdb-stop-at", Value::Text),
    ("wait-for-gdb", Value::Bool),
    ("workaround-gcc296-bugs", Value::Bool),
    ("xml-socket", Value::Text),
    ("xtree-compress-strings", Value::Bool),
    ("xtree-leak", Value::Bool),
    ("xtree-leak-file", Value::Text),
    ("xtree-memory", Value::Words(&["none", "allocs", "full"])),
    ("xtree-memory-file", Value::Text),
];

/// Of these nobody needs to be warned: what they ask for is what happens anyway, or nothing is lost.
const SILENT: &[&str] = &["dsymutil", "error-limit", "keep-debuginfo", "max-stackframe", "read-inline-info", "vgdb"];

/// The ignored options that were given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ignored {
    /// As given, such as `--track-origins=yes`; without those that nobody misses.
    pub given: Vec<String>,
}

impl Value {
    fn check(self, text: &str) -> Result<String, String> {
        let good = match self {
            Self::Bool => matches!(text, "yes" | "no"),
            Self::Words(words) => words.contains(&text),
            Self::Number => text.parse::<i64>().is_ok(),
            Self::Hex => {
                let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text);
                u64::from_str_radix(digits, 16).is_ok()
            }
            Self::Text => true,
        };
        if good {
            return Ok(text.to_owned());
        }
        Err(match self {
            Self::Bool => "expected yes or no".to_owned(),
            Self::Words(words) => format!("expected one of {}", words.join(", ")),
            Self::Number => "expected a number".to_owned(),
            Self::Hex | Self::Text => "expected a hexadecimal number".to_owned(),
        })
    }
}

impl FromArgMatches for Ignored {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut ignored = Self::default();
        ignored.update_from_arg_matches(matches)?;
        Ok(ignored)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for &(name, _) in IGNORED.iter().filter(|(name, _)| !SILENT.contains(name)) {
            for value in matches.get_many::<String>(name).into_iter().flatten() {
                self.given.push(format!("--{name}={value}"));
            }
        }
        Ok(())
    }
}

impl Args for Ignored {
    fn augment_args(command: Command) -> Command {
        IGNORED.iter().fold(command, |command, &(name, value)| {
            command.arg(
                Arg::new(name)
                    .long(name)
                    .action(ArgAction::Append)
                    .require_equals(true)
                    .num_args(1)
                    .value_parser(move |text: &str| value.check(text))
                    .hide(true),
            )
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}
