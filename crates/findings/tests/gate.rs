//! The gate against a slow and obvious model, and case by case.

mod support;

use std::collections::BTreeMap;

use jiff::civil::date;
use leakscope_findings::analysis::{Amount, LeakCheck, analyse};
use leakscope_findings::baseline::{Baseline, Wishes};
use leakscope_findings::gate::{FailOn, Reason, Verdict, What, findings, judge};
use leakscope_findings::recording::{CheckState, End, State};
use leakscope_findings::{Analysis, Options, ProcessRecording, Suppressions};
use leakscope_model::{AllocFn, LeakKind, LeakKindSet};
use proptest::prelude::*;
use support::{Maker, SAMPLE_RULE, sample};

const TODAY: jiff::civil::Date = date(2026, 6, 1);

fn analysis(recorded: &ProcessRecording, kinds: LeakKindSet) -> Analysis {
    let options = Options { leak_check: LeakCheck::Full, show_leak_kinds: kinds, ..Options::default() };
    let mut suppressions = Suppressions::new();
    suppressions.add("app.supp", SAMPLE_RULE).unwrap();
    analyse("0.1.0", recorded, &options, &suppressions)
}

/// A process with leaks: function number, kind, bytes, blocks.
fn losing(leaks: &[(u32, LeakKind, u64, u64)]) -> ProcessRecording {
    let mut m = Maker::new();
    let main = m.function("main", 1);
    let mut records = Vec::new();
    for &(number, kind, bytes, blocks) in leaks {
        let function = m.function(&format!("f{number}"), 10 + number);
        let site = m.site(AllocFn::Malloc, &[function, main], bytes, blocks);
        records.push((site, kind, bytes, blocks, 0, 0));
    }
    m.check(&records);
    m.recorded
}

fn baseline_of(analyses: &[Analysis], fail_on: &FailOn, wishes: &Wishes) -> Baseline {
    let mut baseline = Baseline::default();
    baseline.update(&findings(analyses, fail_on), |_| true, wishes, TODAY);
    baseline
}

fn reasons(verdict: &Verdict) -> Vec<Reason> {
    verdict.failures.iter().map(|failure| failure.reason).collect()
}

const LOST: LeakKind = LeakKind::DefinitelyLost;

#[test]
fn everything_of_a_recording_is_judged_by_kind() {
    let fail_on = FailOn { kinds: LeakKindSet::ALL, live: true, errors: true, growth: true };
    let found = findings(&[analysis(&sample(), LeakKindSet::ALL)], &fail_on);
    let errors = found.iter().filter(|finding| matches!(finding.what, What::Error(_))).count();
    // The sample has seven wrong calls, four of them at places of their own class; the rule hides one leak.
    assert_eq!(errors, 7);
    assert!(found[..errors].iter().all(|finding| matches!(finding.what, What::Error(_))), "errors first");
    let bytes: Vec<u64> = found[errors..].iter().map(|finding| finding.amount.bytes).collect();
    assert_eq!(bytes, [1_234_567, 4096, 800, 48, 16]);
    let default = FailOn::default();
    let found = findings(&[analysis(&sample(), default.kinds)], &default);
    let bytes: Vec<u64> = found[errors..].iter().map(|finding| finding.amount.bytes).collect();
    assert_eq!(bytes, [4096, 64], "a lost block counts with what hangs on it");
    let none = FailOn { kinds: LeakKindSet::NONE, live: false, errors: false, growth: true };
    assert!(findings(&[analysis(&sample(), none.kinds)], &none).is_empty());
}

#[test]
fn processes_add_up_and_live_blocks_are_judged_when_asked_for() {
    let one = analysis(&losing(&[(1, LOST, 100, 2)]), LeakKindSet::DEFAULT);
    let fail_on = FailOn::default();
    let found = findings(&[one.clone(), one.clone()], &fail_on);
    assert_eq!((found.len(), found[0].amount), (1, Amount { bytes: 200, blocks: 4 }));
    assert_eq!(found[0].place("/work/src"), "f1 (app.c:11)");
    assert_eq!(found[0].place(""), "f1 (/work/src/app.c:11)");
    let mut killed = losing(&[(2, LOST, 50, 1)]);
    killed.checks[0].state = CheckState::Running;
    killed.checks[0].records = None;
    killed.process.state = State::Running;
    killed.end = End::Signalled(9);
    let both = [one, analysis(&killed, LeakKindSet::DEFAULT)];
    assert_eq!(findings(&both, &fail_on).len(), 1);
    let found = findings(&both, &FailOn { live: true, ..fail_on });
    assert_eq!(found.iter().map(|finding| finding.what.word()).collect::<Vec<_>>(), ["definite", "live"]);
}

#[test]
fn reasons_by_table() {
    let fail_on = FailOn { kinds: LeakKindSet::ALL, ..FailOn::default() };
    let before = [analysis(&losing(&[(1, LOST, 100, 2), (2, LeakKind::StillReachable, 50, 1)]), LeakKindSet::ALL)];
    let kept = baseline_of(&before, &fail_on, &Wishes::default());
    let expired = baseline_of(&before, &fail_on, &Wishes { until: Some(date(2026, 5, 31)), ..Wishes::default() });
    let reachable = LeakKind::StillReachable;
    for (leaks, baseline, expected) in [
        (vec![(1, LOST, 100, 2), (2, reachable, 50, 1)], &kept, vec![]),
        (vec![(1, LOST, 99, 1)], &kept, vec![]),
        (vec![(1, LOST, 101, 2)], &kept, vec![Reason::Grown]),
        (vec![(1, LOST, 100, 3)], &kept, vec![Reason::Grown]),
        (vec![(3, LOST, 1, 1)], &kept, vec![Reason::New]),
        (vec![(2, LOST, 50, 1)], &kept, vec![Reason::Worse]),
        (vec![(1, LeakKind::PossiblyLost, 100, 2)], &kept, vec![]),
        (vec![(1, LOST, 100, 2)], &expired, vec![Reason::Expired]),
        (vec![], &expired, vec![]),
    ] {
        let found = findings(&[analysis(&losing(&leaks), LeakKindSet::ALL)], &fail_on);
        let verdict = judge(found.clone(), &fail_on, Some(baseline), None, TODAY);
        assert_eq!(reasons(&verdict), expected, "{leaks:?}");
        assert_eq!(verdict.passes(), expected.is_empty());
        assert_eq!(verdict.accepted + verdict.failures.len(), leaks.len());
        assert_eq!(verdict.unseen.len(), 2 - leaks.iter().filter(|leak| leak.0 < 3).count());
        let new_only = FailOn { growth: false, ..fail_on };
        let without: Vec<Reason> = expected.into_iter().filter(|reason| *reason != Reason::Grown).collect();
        assert_eq!(reasons(&judge(found, &new_only, Some(baseline), None, TODAY)), without);
    }
}

#[test]
fn a_budget_is_held() {
    let fail_on = FailOn::default();
    let analyses = [analysis(&losing(&[(1, LOST, 100, 2), (2, LOST, 50, 1)]), LeakKindSet::DEFAULT)];
    let found = findings(&analyses, &fail_on);
    let kept = baseline_of(&analyses, &fail_on, &Wishes::default());
    for (baseline, most, passes) in [
        (None, None, false),
        (None, Some(150), true),
        (None, Some(149), false),
        (None, Some(0), false),
        (Some(&kept), None, true),
        (Some(&kept), Some(150), true),
        (Some(&kept), Some(149), false),
    ] {
        let verdict = judge(found.clone(), &fail_on, baseline, most, TODAY);
        assert_eq!(verdict.passes(), passes, "{most:?}");
        assert_eq!(verdict.leaked, Amount { bytes: 150, blocks: 3 });
    }
}

proptest! {
    /// The gate fails exactly on functions that the baseline does not have, or has less of.
    #[test]
    fn as_a_map_of_functions_says(
        before in proptest::collection::btree_map(0_u32..8, (1_u64..200, 1_u64..4), 0..8),
        after in proptest::collection::btree_map(0_u32..8, (1_u64..200, 1_u64..4), 0..8),
        shards in 1_usize..3,
    ) {
        let leaks = |of: &BTreeMap<u32, (u64, u64)>| -> Vec<(u32, LeakKind, u64, u64)> {
            of.iter().map(|(&number, &(bytes, blocks))| (number, LOST, bytes, blocks)).collect()
        };
        let fail_on = FailOn::default();
        let once = analysis(&losing(&leaks(&before)), LeakKindSet::DEFAULT);
        let baseline = baseline_of(&[once], &fail_on, &Wishes::default());
        // In several parts, a leak of the suite is in one of them.
        let mut parts = vec![Vec::new(); shards];
        for (i, leak) in leaks(&after).into_iter().enumerate() {
            parts[i % shards].push(leak);
        }
        let analyses: Vec<Analysis> =
            parts.iter().map(|part| analysis(&losing(part), LeakKindSet::DEFAULT)).collect();
        let verdict = judge(findings(&analyses, &fail_on), &fail_on, Some(&baseline), None, TODAY);
        let mut expected: Vec<(String, Reason)> = Vec::new();
        for (number, &(bytes, blocks)) in &after {
            match before.get(number) {
                None => expected.push((format!("f{number} < main (app.c)"), Reason::New)),
                Some(was) if bytes > was.0 || blocks > was.1 => {
                    expected.push((format!("f{number} < main (app.c)"), Reason::Grown));
                }
                Some(_) => {}
            }
        }
        let mut failures: Vec<(String, Reason)> =
            verdict.failures.iter().map(|failure| (failure.finding.path(), failure.reason)).collect();
        failures.sort();
        prop_assert_eq!(failures, expected);
        prop_assert_eq!(verdict.unseen.len(), before.keys().filter(|number| !after.contains_key(number)).count());
    }
}
