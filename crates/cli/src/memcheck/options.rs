//! Options of Memcheck for the engine, as the lines that it reads.

use clap::ArgMatches;
use clap::parser::ValueSource;
use leakscope_findings::analysis::LeakCheck;

use crate::flags::{KeepStacks, RunArgs};

/// Options that `leakscope run` has no use for and the engine has: name, and whether the value is hexadecimal.
const PASSED_ON: &[(&str, bool)] = &[
    ("alignment", false),
    ("check-arrays", false),
    ("error-limit", false),
    ("exit-on-first-error", false),
    ("free-fill", true),
    ("freelist-big-blocks", false),
    ("freelist-vol", false),
    ("ignore-range-below-sp", false),
    ("ignore-ranges", false),
    ("main-stacksize", false),
    ("malloc-fill", true),
    ("partial-loads-ok", false),
    ("redzone-size", false),
    ("track-fds", false),
    ("trace-children-skip", false),
    ("trace-children-skip-by-arg", false),
    ("workaround-gcc296-bugs", false),
];

/// Options that mean something here although the engine need not know them.
const UNDERSTOOD: &[&str] = &["error-markers", "read-var-info", "soname-synonyms"];

/// Options whose purpose is fulfilled without them.
const NEEDLESS: &[(&str, &str)] = &[
    ("aspace-minaddr", "mappings lie where the program finds room"),
    ("avg-transtab-entry-size", "the cache of translated code grows by itself"),
    ("command-line-only", "no other options are read when LEAKSCOPE_OPTS is empty"),
    ("core-redzone-size", "the engine's own heap is apart from the program's"),
    ("expensive-definedness-checks", "addresses are always checked exactly"),
    ("fair-sched", "threads take turns in the order in which they wait"),
    ("num-transtab-sectors", "the cache of translated code grows by itself"),
    ("sigill-diagnostics", "every instruction of the machine can be executed"),
    ("smc-check", "code that changes is noticed wherever it is"),
    ("show-emwarns", "nothing is emulated"),
    ("valgrind-stacksize", "the engine's stacks are large enough"),
];

/// Options that would be missed: what does their work instead.
const INSTEAD: &[(&str, &str)] = &[
    ("allow-mismatched-debuginfo", "debug files must have the build id of the program"),
    ("debuginfo-server", "set DEBUGINFOD_URLS"),
    ("input-fd", "questions are not asked"),
    ("kernel-variant", "Linux alone is known"),
    ("max-threads", "there is no limit"),
    ("merge-recursive-frames", "raise --num-callers to see past a recursion"),
    ("require-text-symbol", "look with `nm` before the run"),
    ("sim-hints", "what Valgrind does not know of itself needs no hints here"),
    ("stats", "-v tells of the leak check"),
    ("time-stamp", "let `ts` of moreutils stamp the lines"),
    ("trace-signals", "use strace on the program itself"),
    ("trace-syscalls", "use strace on the program itself"),
    ("vgdb", "attach with `gdb -p PID`"),
    ("vgdb-error", "use --exit-on-first-error=yes, or attach with `gdb -p PID`"),
    ("vgdb-stop-at", "attach with `gdb -p PID`"),
    ("xtree-leak", "write `-o FILE.pprof`, or `-o FILE.html`"),
    ("xtree-memory", "write `-o FILE.pprof` with `leakscope run`"),
];

/// Options without which what the user wants would be lost.
const REFUSED: &[(&str, &str)] = &[
    (
        "log-socket",
        "reports do not go over the network: give `--log-file=FILE`, or `--log-fd=N` with N opened by `exec N>/dev/tcp/HOST/PORT` in bash",
    ),
    (
        "xml-socket",
        "reports do not go over the network: give `--xml-file=FILE`, or `--xml-fd=N` with N opened by `exec N>/dev/tcp/HOST/PORT` in bash",
    ),
];

fn name_of(option: &str) -> &str {
    option.trim_start_matches('-').split('=').next().unwrap_or_default()
}

/// Sorts the options that `leakscope run` ignores: those that mean nothing here either stay in the list.
///
/// # Errors
/// An option that cannot be ignored.
pub(super) fn sort(ignored: &mut Vec<String>, quiet: bool) -> anyhow::Result<()> {
    let find = |table: &[(&str, &'static str)], option: &str| {
        table.iter().find(|(name, _)| *name == name_of(option)).map(|&(_, why)| why)
    };
    let mut rest = Vec::new();
    for option in std::mem::take(ignored) {
        let name = name_of(&option);
        let is_off = option.ends_with("=no") || option.ends_with("=none");
        if let Some(why) = find(REFUSED, &option) {
            anyhow::bail!("--{name}: {why}");
        }
        if is_known(&option) || find(NEEDLESS, &option).is_some() || is_off {
            continue;
        }
        match (name, find(INSTEAD, &option)) {
            ("undef-value-errors" | "track-origins", _) => {
                if !quiet {
                    eprintln!(
                        "leakscope: warning: {option}: undefined values are not looked for; take Memcheck for those"
                    );
                }
            }
            (_, Some(instead)) => {
                if !quiet {
                    eprintln!("leakscope: warning: {option} has no effect: {instead}");
                }
            }
            _ => rest.push(option),
        }
    }
    *ignored = rest;
    Ok(())
}

/// Whether an ignored option, as it was given, is not ignored here.
fn is_known(option: &str) -> bool {
    let name = name_of(option);
    PASSED_ON.iter().any(|(known, _)| *known == name) || UNDERSTOOD.contains(&name)
}

/// The last value of an option that `leakscope run` ignores.
fn given<'a>(matches: &'a ArgMatches, name: &str) -> Option<&'a String> {
    matches.try_get_many::<String>(name).ok().flatten().and_then(|mut values| values.next_back())
}

/// What the process outside does besides.
#[derive(Clone, Debug, Default)]
pub(super) struct Wishes {
    /// `--read-var-info`
    pub(super) read_variables: bool,
    /// `--track-fds=all`
    pub(super) all_descriptors: bool,
    /// `--error-markers`: lines before and after each error.
    pub(super) markers: (String, String),
}

impl Wishes {
    pub(super) fn new(matches: &ArgMatches) -> Self {
        let is_on = |name| given(matches, name).is_some_and(|value| value == "yes");
        Self {
            read_variables: is_on("read-var-info"),
            all_descriptors: given(matches, "track-fds").is_some_and(|value| value == "all"),
            markers: given(matches, "error-markers")
                .map(|markers| markers.split_once(',').unwrap_or((markers, "")))
                .map(|(begin, end)| (begin.to_owned(), end.to_owned()))
                .unwrap_or_default(),
        }
    }
}

/// The engine's options.
pub(super) fn lines(args: &RunArgs, matches: &ArgMatches) -> String {
    let mut lines = Vec::new();
    let mut add = |name: &str, value: &str| lines.push(format!("{name}={value}"));
    let yes = |on: bool| if on { "yes" } else { "no" };
    for &(name, is_hex) in PASSED_ON {
        let Some(value) = given(matches, name) else { continue };
        match value.strip_prefix("0x").or_else(|| value.strip_prefix("0X")) {
            None if is_hex => add(name, &format!("0x{value}")),
            Some(digits) if is_hex => add(name, &format!("0x{digits}")),
            _ if name == "track-fds" => add(name, yes(value != "no")),
            // What Memcheck's manual says that it stands for.
            _ if name == "workaround-gcc296-bugs" && value == "yes" => add("ignore-range-below-sp", "1024-1"),
            _ if name == "workaround-gcc296-bugs" => {}
            _ => add(name, value),
        }
    }
    if let Some(value) = given(matches, "soname-synonyms") {
        let patterns: Vec<&str> = value.split(',').filter_map(|pair| pair.strip_prefix("somalloc=")).collect();
        if !patterns.is_empty() {
            add("allocator-sonames", &patterns.join(","));
        }
    }
    add("num-callers", &args.view.num_callers.to_string());
    add("error-exitcode", &args.view.error_exitcode.to_string());
    add("leak-check", yes(args.view.leak_check != LeakCheck::No));
    add("leak-check-heuristics", &args.leak_check_heuristics.bits().to_string());
    add("trace-children", yes(args.trace_children));
    add("statistics", yes(args.view.verbose > 0));
    add("child-silent-after-fork", yes(args.child_silent_after_fork));
    add("run-freeres", yes(args.run_libc_freeres && args.run_cxx_freeres));
    add("show-mismatched-frees", yes(args.view.show_mismatched_frees));
    add("show-realloc-size-zero", yes(args.show_realloc_size_zero));
    // Memcheck's default, which is not that of `leakscope run`.
    let is_given = matches.value_source("keep_stacktraces") == Some(ValueSource::CommandLine);
    let kept = match args.keep_stacktraces {
        _ if !is_given => "alloc-and-free",
        KeepStacks::Alloc => "alloc",
        KeepStacks::Free => "free",
        KeepStacks::AllocAndFree | KeepStacks::AllocThenFree => "alloc-and-free",
        KeepStacks::None => "none",
    };
    add("keep-stacktraces", kept);
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_by_table() {
        for (given, left) in [
            ("--redzone-size=32", None),
            ("--read-var-info=yes", None),
            ("--fair-sched=yes", None),
            ("--track-origins=yes", None),
            ("--xtree-leak=no", None),
            ("--time-stamp=yes", None),
            ("--trace-redir=yes", Some("--trace-redir=yes")),
        ] {
            let mut list = vec![given.to_owned()];
            sort(&mut list, true).unwrap();
            assert_eq!(list.first().map(String::as_str), left, "{given}");
        }
        let refused = sort(&mut vec!["--log-socket=192.168.0.1:1500".to_owned()], true).unwrap_err().to_string();
        assert!(refused.contains("--log-file"), "{refused}");
    }

    /// Each option stands in one table, so that what is said of it is said once.
    #[test]
    fn tables_are_disjoint() {
        let first = PASSED_ON.iter().map(|(name, _)| *name).chain(UNDERSTOOD.iter().copied());
        let others = [NEEDLESS, INSTEAD, REFUSED].into_iter().flatten().map(|(name, _)| *name);
        let mut all: Vec<&str> = first.chain(others).collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
