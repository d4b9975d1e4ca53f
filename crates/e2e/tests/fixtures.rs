//! Every fixture program against the table in its own first comment.
//!
//! `LEAKSCOPE_E2E_TOOL=valgrind` holds the tables against Memcheck instead; the default is `leakscope run`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use leakscope_e2e::{Ending, Fixture, Frame, Program, Report, Run, Tool, compile, fixtures_dir, judge};

macro_rules! fixtures {
    ($($folder:ident { $($name:ident = $file:literal,)* })*) => {
        $($(
            #[test]
            fn $name() {
                hold(concat!(stringify!($folder), "/", $file)).unwrap_or_else(|error| panic!("{error:#}"));
            }
        )*)*
        const LISTED: &[&str] = &[$($(concat!(stringify!($folder), "/", $file),)*)*];
    };
}

fixtures! {
    c {
        alloc_functions = "alloc_functions.c",
        alt_stack = "alt_stack.c",
        before_main = "before_main.c",
        dynamic_tls = "dynamic_tls.c",
        ends_in_exec = "ends_in_exec.c",
        ends_in_plain_exit = "ends_in__exit.c",
        ends_in_abort = "ends_in_abort.c",
        ends_in_pthread_exit = "ends_in_pthread_exit.c",
        ends_in_quick_exit = "ends_in_quick_exit.c",
        ends_in_sigsegv = "ends_in_sigsegv.c",
        ends_in_sigterm = "ends_in_sigterm.c",
        ends_in_thread_exits = "ends_in_thread_exits.c",
        fork_child = "fork_child.c",
        handler_interrupts_malloc = "handler_interrupts_malloc.c",
        jemalloc_linked = "jemalloc_linked.c",
        jemalloc_preloaded = "jemalloc_preloaded.c",
        leak_kinds = "leak_kinds.c",
        mapped_roots = "mapped_roots.c",
        mimalloc_linked = "mimalloc_linked.c",
        mimalloc_preloaded = "mimalloc_preloaded.c",
        misuse = "misuse.c",
        mtrace_intervals = "mtrace_intervals.c",
        heap_queries = "heap_queries.c",
        pvalloc = "pvalloc.c",
        releases_that_wait = "releases_that_wait.c",
        reloaded_often = "reloaded_often.c",
        registers = "registers.c",
        setjmp = "setjmp.c",
        small_alt_stack = "small_alt_stack.c",
        spawned = "spawned.c",
        stale_slots = "stale_slots.c",
        tcmalloc_linked = "tcmalloc_linked.c",
        tcmalloc_preloaded = "tcmalloc_preloaded.c",
        thread_roots = "thread_roots.c",
        threads = "threads.c",
        unloaded_library = "unloaded_library.c",
        usable_size = "usable_size.c",
        vfork_exec = "vfork_exec.c",
    }
    cpp {
        bad_alloc = "bad_alloc.cpp",
        containers = "containers.cpp",
        exceptions = "exceptions.cpp",
        heuristics = "heuristics.cpp",
        mismatches = "mismatches.cpp",
        operators = "operators.cpp",
        sampled = "sampled.cpp",
        tls_destructor = "tls_destructor.cpp",
    }
}

#[test]
fn every_fixture_is_listed() {
    let mut found = BTreeSet::new();
    for folder in ["c", "cpp"] {
        for entry in std::fs::read_dir(fixtures_dir().join(folder)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if !name.ends_with(".h") {
                found.insert(format!("{folder}/{name}"));
            }
        }
    }
    assert_eq!(found, LISTED.iter().map(|name| name.to_string()).collect());
}

/// The loader's functions that allocate thread-local storage.
const LOADER_TLS: &[&str] = &["_dl_allocate_tls", "__tls_get_addr"];

/// What a report says of the cases: (case, kind) to (bytes, blocks).
type Sums = BTreeMap<(String, String), (u64, u64)>;

fn hold(file: &str) -> Result<()> {
    let tool = Tool::from_env()?;
    judge(tool, file, hold_all_builds(tool, file))
}

fn hold_all_builds(tool: Tool, file: &str) -> Result<()> {
    let fixture = Fixture::read(&fixtures_dir().join(file))?;
    if let (Tool::Valgrind, Some(reason)) = (tool, &fixture.not_valgrind) {
        eprintln!("not compared: {reason}");
        return Ok(());
    }
    if let Some(needed) = fixture.requires.as_ref().filter(|needed| !Path::new(needed).exists()) {
        bail!("{file} needs {needed}; next: cargo xtask setup");
    }
    for program in compile(&fixture)? {
        hold_build(tool, &fixture, &program)
            .with_context(|| format!("{file} built with `{}` under {tool:?}", program.flags))?;
    }
    Ok(())
}

fn hold_build(tool: Tool, fixture: &Fixture, program: &Program) -> Result<()> {
    let env: Vec<(&str, &str)> = fixture.preload.iter().map(|library| ("LD_PRELOAD", library.as_str())).collect();
    let limit = Duration::from_secs(120);
    let (finished, reports) = tool.check(&program.path, &fixture.args, &fixture.options, &env, limit)?;
    let said = format!("ending {:?}\nstderr:\n{}", finished.ending, finished.stderr);
    if fixture.native_dies {
        ensure!(finished.ending == Ending::Exit(0), "the program did not go on; {said}");
    } else {
        let native = env.iter().fold(Run::new(&program.path), |run, (name, value)| run.env(name, value));
        let native = native.args(&fixture.args).limit(limit).finish()?;
        ensure!(same_ending(native.ending, finished.ending), "natively {:?}, here {said}", native.ending);
        ensure!(
            native.stdout == finished.stdout,
            "stdout changed from {:?} to {:?}; {said}",
            String::from_utf8_lossy(&native.stdout),
            String::from_utf8_lossy(&finished.stdout)
        );
    }
    ensure!(reports.len() == fixture.reports, "{} reports, expected {}; {said}", reports.len(), fixture.reports);
    compare_leaks(tool, fixture, &reports).with_context(|| said.clone())?;
    compare_misuse(tool, fixture, &reports).with_context(|| said.clone())
}

/// A shell's convention for a signal is as good as the signal itself.
fn same_ending(native: Ending, here: Ending) -> bool {
    native == here || matches!((native, here), (Ending::Signal(number), Ending::Exit(code)) if code == 128 + number)
}

/// The innermost function of the stack that is a case.
fn case_of(stack: &[Frame]) -> Option<&str> {
    stack.iter().find_map(|frame| frame.function.strip_prefix("case_"))
}

fn compare_leaks(tool: Tool, fixture: &Fixture, reports: &[Report]) -> Result<()> {
    let mut seen = Sums::new();
    for leak in reports.iter().flat_map(|report| &report.leaks) {
        // Outside of the cases libraries may keep what they like, and lose nothing.
        if leak.stack.iter().any(|frame| LOADER_TLS.contains(&frame.function.as_str())) {
            // A live thread's vector and blocks: only interior-pointers lead to them, so Memcheck calls them possibly lost.
            continue;
        }
        let case = match case_of(&leak.stack) {
            Some(case) => case.to_owned(),
            None if leak.kind == "reachable" => continue,
            None => format!("outside of every case: {:?}", leak.stack),
        };
        let sum = seen.entry((case, leak.kind.to_owned())).or_default();
        *sum = (sum.0 + leak.direct_bytes, sum.1 + leak.direct_blocks);
    }
    let mut expected = Sums::new();
    for row in &fixture.table.leaks {
        if tool == Tool::Valgrind && row.valgrind_differs.is_some() {
            seen.retain(|(case, _), _| *case != row.case);
            continue;
        }
        expected.insert((row.case.clone(), row.kind.clone()), (row.bytes, row.blocks));
    }
    ensure!(seen == expected, "{}", difference(&expected, &seen));
    Ok(())
}

fn compare_misuse(tool: Tool, fixture: &Fixture, reports: &[Report]) -> Result<()> {
    let mut seen = Sums::new();
    for error in reports.iter().flat_map(|report| &report.errors) {
        let case = case_of(&error.stack).map_or_else(|| format!("outside: {:?}", error.stack), str::to_owned);
        // Memcheck finds by reading instructions what an interposer cannot see.
        if tool == Tool::Valgrind
            && ["Uninit", "InvalidRead", "InvalidWrite"].iter().any(|kind| error.kind.starts_with(kind))
        {
            continue;
        }
        seen.entry((case, error.kind.clone())).or_default().0 += error.count;
    }
    let mut expected = Sums::new();
    for row in &fixture.table.misuse {
        if tool == Tool::Valgrind && row.valgrind_differs.is_some() {
            seen.retain(|(case, _), _| *case != row.case);
            continue;
        }
        expected.insert((row.case.clone(), row.error.clone()), (row.count, 0));
    }
    ensure!(seen == expected, "{}", difference(&expected, &seen));
    Ok(())
}

fn difference(expected: &Sums, seen: &Sums) -> String {
    let missing = expected.iter().filter(|(key, value)| seen.get(*key) != Some(value));
    let extra = seen.iter().filter(|(key, value)| expected.get(*key) != Some(value));
    let mut text = String::from("the report differs from the table:\n");
    for ((case, kind), (bytes, blocks)) in missing {
        text += &format!("  expected {case} {kind} {bytes} {blocks}\n");
    }
    for ((case, kind), (bytes, blocks)) in extra {
        text += &format!("  reported {case} {kind} {bytes} {blocks}\n");
    }
    text
}
