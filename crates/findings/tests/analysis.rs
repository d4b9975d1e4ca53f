//! Loss records and errors against what Memcheck does with the same facts.

mod support;

use leakscope_findings::analysis::{
    Amount, Detail, LeakCheck, Outcome, Resolution, SitesToName, analyse, sites_to_name,
};
use leakscope_findings::recording::{End, State};
use leakscope_findings::{Analysis, Options, ProcessRecording, Suppressions};
use leakscope_model::{AllocFn, CheckTrigger, Heuristic, LeakKind, LeakKindSet, MisuseKind};
use support::{Maker, SAMPLE_RULE, sample};

fn full() -> Options {
    Options { leak_check: LeakCheck::Full, show_leak_kinds: LeakKindSet::ALL, ..Options::default() }
}

fn run(recorded: &ProcessRecording, options: &Options) -> Analysis {
    let mut suppressions = Suppressions::new();
    suppressions.add("a.supp", SAMPLE_RULE).unwrap();
    analyse("0.0.0", recorded, options, &suppressions)
}

fn names(analysis: &Analysis, record: usize) -> Vec<String> {
    analysis.records[record].stack.frames().iter().map(|f| f.function.as_deref().unwrap_or("?").to_owned()).collect()
}

#[test]
fn records_are_sorted_numbered_and_summed() {
    let analysis = run(&sample(), &full());
    let table: Vec<_> =
        analysis.records.iter().map(|r| (r.number, r.kind.unwrap(), r.bytes, r.indirect_bytes, r.blocks)).collect();
    use LeakKind::{DefinitelyLost, IndirectlyLost, PossiblyLost, StillReachable};
    assert_eq!(
        table,
        [
            (1, IndirectlyLost, 48, 0, 3),
            (2, DefinitelyLost, 16, 48, 1), // 64 in all
            (3, DefinitelyLost, 77, 0, 7),
            (4, StillReachable, 800, 0, 4),
            (5, PossiblyLost, 4096, 0, 2),
            (6, StillReachable, 1_234_567, 0, 1),
        ]
    );
    let totals = &analysis.totals;
    assert_eq!(totals.of(DefinitelyLost), Amount { bytes: 16, blocks: 1 });
    assert_eq!(totals.of(StillReachable), Amount { bytes: 1_235_367, blocks: 5 });
    assert_eq!(totals.suppressed, Amount { bytes: 77, blocks: 7 });
    assert_eq!(totals.by_heuristic[Heuristic::NewArray as usize], Amount { bytes: 800, blocks: 4 });
    assert_eq!(analysis.records.iter().filter(|r| r.shown).count(), 5);
    let used = &analysis.used_suppressions[0];
    assert_eq!((&*used.name, &*used.file, used.line, used.count, used.bytes), ("a known leak", "a.supp", 2, 1, 77));
}

#[test]
fn errors_are_counted_as_memcheck_counts_them() {
    let analysis = run(&sample(), &full());
    // Wrong calls: a double free twice, five others once (the two that are worded alike differ in their stacks);
    // definite and possible leaks that are not suppressed.
    let misuses: Vec<_> = analysis.misuses.iter().map(|m| (m.kind, m.count)).collect();
    assert_eq!(misuses.len(), 7);
    assert_eq!(misuses[0], (MisuseKind::DoubleFree, 2));
    assert_eq!((analysis.errors.errors, analysis.errors.contexts), (8 + 2, 7 + 2));
    assert_eq!((analysis.errors.suppressed, analysis.errors.suppressed_contexts), (1, 1));
    // With --leak-check=summary leaks are no errors, and hits of rules still count for the totals.
    let summary = run(&sample(), &Options { leak_check: LeakCheck::Summary, ..full() });
    assert_eq!((summary.errors.errors, summary.errors.suppressed), (8, 0));
    assert_eq!(summary.totals.suppressed.blocks, 7);
    assert!(summary.shown_records().next().is_none());
}

#[test]
fn equal_wrong_calls_merge_by_four_addresses() {
    let mut m = Maker::new();
    let shared: Vec<u32> = (1..=3).map(|line| m.function("shared", line)).collect();
    let (left, right) = (m.function("left", 8), m.function("right", 9));
    let a = m.site(AllocFn::Free, &[&shared[..], &[left]].concat(), 0, 0);
    let b = m.site(AllocFn::Free, &[&shared[..], &[right]].concat(), 0, 0);
    let c = m.site(AllocFn::Free, &[shared[0], right], 0, 0);
    m.misuse(MisuseKind::DoubleFree, a, 1);
    m.misuse(MisuseKind::InteriorFree, b, 2); // worded like a double free
    m.misuse(MisuseKind::MismatchedFree, b, 3);
    m.misuse(MisuseKind::DoubleFree, c, 4);
    let analysis = run(&m.recorded, &Options::default());
    let found: Vec<_> = analysis.misuses.iter().map(|m| (m.kind, m.count)).collect();
    use MisuseKind::{DoubleFree, MismatchedFree};
    assert_eq!(found, [(DoubleFree, 2), (MismatchedFree, 1), (DoubleFree, 1)]);
    let quiet = run(&m.recorded, &Options { show_mismatched_frees: false, ..Options::default() });
    assert_eq!(quiet.misuses.len(), 2);
}

#[test]
fn stacks_end_at_main_and_at_num_callers() {
    let recorded = sample();
    assert_eq!(names(&run(&recorded, &full()), 0), ["malloc", "make_node", "build_list", "main"]);
    let below = run(&recorded, &Options { show_below_main: true, ..full() });
    let all = ["malloc", "make_node", "build_list", "main", "__libc_start_call_main", "_start"];
    assert_eq!(names(&below, 0), all);
    // Rules see the frames below main too, by the name that Valgrind gives them.
    let analysis = run(&recorded, &full());
    let hidden: Vec<_> = analysis.records[0].stack.all_frames()[4..].iter().map(|f| f.function.as_deref()).collect();
    assert_eq!(hidden, [Some("(below main)"), Some("(below main)")]);
    // The limit counts addresses: the inlined function comes on top.
    let short = run(&recorded, &Options { num_callers: 2, ..full() });
    assert_eq!(names(&short, 0), ["malloc", "make_node"]);
    let inlined = short.records.iter().find(|r| r.function == AllocFn::New).unwrap();
    assert_eq!(inlined.stack.frames().len(), 3);
    assert!(inlined.stack.frames()[1].inlined);
}

#[test]
fn a_stack_that_never_reaches_main_ends_at_what_starts_programs() {
    let mut m = Maker::new();
    let (init, start) = (m.function("init_array", 3), m.at(1, 0x50, &[("_start", "", "", 0)]));
    let other = m.at(1, 0x60, &[("_start", "", "", 0)]);
    let site = m.site(AllocFn::Malloc, &[init, start, other], 8, 1);
    m.check(&[(site, LeakKind::DefinitelyLost, 8, 1, 0, 0)]);
    assert_eq!(names(&run(&m.recorded, &full()), 0), ["malloc", "init_array", "(below main)"]);
}

#[test]
fn resolution_decides_what_merges() {
    let mut m = Maker::new();
    let frames: Vec<u32> = (1..=6).map(|line| m.function("f", line)).collect();
    // Equal in the first 1, 3 and 4 callers.
    let base = m.site(AllocFn::Malloc, &frames[..5], 100, 1);
    let one = m.site(AllocFn::Malloc, &[frames[0], frames[4]], 100, 1);
    let three = m.site(AllocFn::Malloc, &[frames[0], frames[1], frames[2], frames[5]], 100, 1);
    let other_fn = m.site(AllocFn::Calloc, &frames[..5], 100, 1);
    let records: Vec<_> =
        [base, one, three, other_fn].map(|site| (site, LeakKind::DefinitelyLost, 100, 1, 10, 1)).to_vec();
    m.check(&records);
    let blocks = |leak_resolution| -> Vec<u64> {
        run(&m.recorded, &Options { leak_resolution, ..full() }).records.iter().map(|r| r.blocks).collect()
    };
    assert_eq!(blocks(Resolution::High), [1, 1, 1, 1]);
    assert_eq!(blocks(Resolution::Med), [1, 1, 2]);
    assert_eq!(blocks(Resolution::Low), [1, 3]);
    // --num-callers cuts before the comparison.
    let short = run(&m.recorded, &Options { num_callers: 2, ..full() });
    assert_eq!(short.records.len(), 2);
    assert_eq!((short.records[1].bytes, short.records[1].indirect_bytes), (300, 30));
}

#[test]
fn the_heap_summary_counts_calls() {
    let mut recorded = sample();
    recorded.sites[1].totals.freed_blocks = 5;
    let heap = run(&recorded, &full()).heap;
    // 5 releases, 2 + 1 + 1 wrong ones that are worded as invalid.
    assert_eq!((heap.allocs, heap.frees), (3 + 1 + 2 + 1 + 4 + 7, 5 + 4));
    assert_eq!((heap.in_use_bytes, heap.in_use_blocks), (48 + 16 + 4096 + 1_234_567 + 800 + 77, 18));
}

#[test]
fn a_killed_process_is_not_classified() {
    let mut recorded = sample();
    recorded.checks[0].records = None;
    recorded.checks[0].state = leakscope_findings::recording::CheckState::Running;
    recorded.end = End::Signalled(9);
    recorded.process.state = State::Ending;
    let analysis = run(&recorded, &full());
    assert_eq!(analysis.outcome, Outcome::NotClassified("the process was killed by SIGKILL".to_owned()));
    let live: Vec<_> = analysis.records.iter().map(|r| (r.kind, r.bytes)).collect();
    assert_eq!(live, [(None, 16), (None, 48), (None, 77), (None, 800), (None, 4096), (None, 1_234_567)]);
    assert_eq!(analysis.totals.of(LeakKind::DefinitelyLost), Amount::default());
    assert_eq!(analysis.problems, ["leak check 0 did not come to its end"]);
}

#[test]
fn a_check_on_demand_does_not_speak_for_a_later_end() {
    let mut recorded = sample();
    recorded.checks[0].trigger = CheckTrigger::OnDemand;
    recorded.process.state = State::Running;
    for (end, classified) in [(End::Running, true), (End::Unknown, true), (End::Signalled(15), false)] {
        recorded.end = end;
        let outcome = run(&recorded, &full()).outcome;
        assert_eq!(matches!(outcome, Outcome::Classified(_)), classified, "{end:?}");
    }
    let asked = run(&recorded, &Options { check: Some(0), ..full() });
    assert!(matches!(asked.outcome, Outcome::Classified(_)));
}

#[test]
fn fingerprints_depend_on_no_option_and_no_line() {
    let deep = |line: u32, reversed: bool| {
        let mut m = Maker::new();
        let mut path: Vec<u32> = (0..18).map(|i| m.function(&format!("f{i}"), line + i)).collect();
        path.push(m.function("main", line + 90));
        let other = [&path[..15], &[m.function("other", 7)]].concat();
        let stacks = if reversed { [other, path] } else { [path, other] };
        let records: Vec<_> = stacks
            .iter()
            .map(|stack| (m.site(AllocFn::Malloc, stack, 8, 1), LeakKind::DefinitelyLost, 8, 1, 0, 0))
            .collect();
        m.check(&records);
        m.recorded
    };
    let of = |recorded: &ProcessRecording, num_callers| -> Vec<_> {
        let analysis = run(recorded, &Options { num_callers, ..full() });
        let mut prints: Vec<_> = analysis.records.iter().map(|record| record.fingerprint).collect();
        prints.sort();
        prints
    };
    let apart = of(&deep(10, false), 30);
    assert_eq!(apart.len(), 2);
    assert_eq!(of(&deep(500, true), 20), apart);
    // Merged by twelve callers: the least, in whatever order the sites came.
    assert_eq!(of(&deep(10, false), 12), apart[..1]);
    assert_eq!(of(&deep(10, true), 12), apart[..1]);
}

/// What is shown, and every total, must not depend on how much is kept of what is not shown.
#[test]
fn less_detail_changes_nothing_that_is_shown() {
    let mut killed = sample();
    killed.end = End::Signalled(9);
    killed.process.state = State::Running;
    killed.checks.clear();
    for recorded in [sample(), killed] {
        for kinds in [LeakKindSet::DEFAULT, LeakKindSet::ALL, LeakKindSet::NONE] {
            for leak_check in [LeakCheck::Full, LeakCheck::Summary] {
                let all = Options { leak_check, show_leak_kinds: kinds, ..Options::default() };
                let shown = Options { detail: Detail::Shown, ..all.clone() };
                let (all, mut part) = (run(&recorded, &all), run(&recorded, &shown));
                part.options.detail = Detail::All;
                for (whole, part) in all.records.iter().zip(&mut part.records) {
                    if !whole.shown && !whole.is_error {
                        assert!(part.stack.frames().is_empty());
                        part.stack = whole.stack.clone();
                        part.fingerprint = whole.fingerprint;
                        part.addresses = whole.addresses.clone();
                        part.totals = whole.totals.clone();
                    }
                }
                assert_eq!(format!("{all:?}"), format!("{part:?}"));
            }
        }
    }
}

#[test]
fn sites_to_name_are_those_on_shown_stacks() {
    let mut recorded = sample();
    recorded.misuses.clear();
    // As it is before names are looked up.
    recorded.locations.iter_mut().for_each(|location| location.frames = 0);
    let kinds = LeakKindSet::NONE.with(LeakKind::PossiblyLost);
    let options = Options {
        leak_check: LeakCheck::Full,
        show_leak_kinds: kinds,
        errors_for_leak_kinds: LeakKindSet::NONE,
        detail: Detail::Shown,
        ..Options::default()
    };
    let of_check: Vec<u32> = recorded.checks[0].records.as_ref().unwrap().iter().map(|record| record.site).collect();
    let named = |options: &Options, rules: &Suppressions| {
        let SitesToName { shown, whole } = sites_to_name(&recorded, options, rules);
        let count = |sites: &[u32]| of_check.iter().filter(|site| sites.contains(site)).count();
        [count(&shown), count(&whole)]
    };
    let of_kind = |kind: LeakKind| {
        recorded.checks[0].records.as_ref().unwrap().iter().filter(|record| record.kind == kind).count()
    };
    let possible = of_kind(LeakKind::PossiblyLost);
    assert!(possible > 0 && possible < of_check.len());
    assert_eq!(named(&options, &Suppressions::new()), [possible, 0]);
    assert_eq!(named(&Options { detail: Detail::All, ..options.clone() }, &Suppressions::new()), [of_check.len(), 0]);
    // A rule for another kind must see the stacks of that kind, as long as they pass the objects that it names.
    let rule = |line: &str| {
        let mut rules = Suppressions::new();
        let text = format!("{{\nr\nMemcheck:Leak\nmatch-leak-kinds: reachable\nfun:*\n{line}\n}}\n");
        rules.add("x", &text).unwrap();
        rules
    };
    let reachable = of_kind(LeakKind::StillReachable);
    assert_eq!(named(&options, &rule("fun:f")), [possible, reachable]);
    assert_eq!(named(&options, &rule("src:f.c")), [possible, reachable]);
    assert_eq!(named(&options, &rule("obj:*")), [possible, reachable]);
    assert_eq!(named(&options, &rule("obj:/lib/ld.so")), [possible, 0]);
}
