//! Options of Memcheck for the engine, as the lines that it reads.

use clap::ArgMatches;
use clap::parser::ValueSource;
use leakscope_findings::analysis::LeakCheck;

use crate::flags::{KeepStacks, RunArgs};

/// Options that `leakscope run` has no use for and the engine has: name, and whether the value is hexadecimal.
const PASSED_ON: &[(&str, bool)] = &[
    ("alignment", false),
    ("error-limit", false),
    ("exit-on-first-error", false),
    ("free-fill", true),
    ("freelist-big-blocks", false),
    ("freelist-vol", false),
    ("ignore-range-below-sp", false),
    ("ignore-ranges", false),
    ("malloc-fill", true),
    ("partial-loads-ok", false),
    ("redzone-size", false),
    ("track-fds", false),
];

/// Options that mean something here although the engine need not know them.
const UNDERSTOOD: &[&str] = &["soname-synonyms", "undef-value-errors", "read-var-info", "expensive-definedness-checks"];

/// Whether an ignored option, as it was given, is not ignored here.
pub(super) fn is_known(option: &str) -> bool {
    let name = option.trim_start_matches('-').split('=').next().unwrap_or_default();
    PASSED_ON.iter().any(|(known, _)| *known == name) || UNDERSTOOD.contains(&name)
}

/// The engine's options.
pub(super) fn lines(args: &RunArgs, matches: &ArgMatches) -> String {
    let mut lines = Vec::new();
    let mut add = |name: &str, value: &str| lines.push(format!("{name}={value}"));
    let yes = |on: bool| if on { "yes" } else { "no" };
    for &(name, is_hex) in PASSED_ON {
        let Ok(Some(value)) = matches.try_get_one::<String>(name) else { continue };
        match value.strip_prefix("0x").or_else(|| value.strip_prefix("0X")) {
            None if is_hex => add(name, &format!("0x{value}")),
            Some(digits) if is_hex => add(name, &format!("0x{digits}")),
            _ if name == "track-fds" => add(name, yes(value != "no")),
            _ => add(name, value),
        }
    }
    if let Ok(Some(value)) = matches.try_get_one::<String>("soname-synonyms") {
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
