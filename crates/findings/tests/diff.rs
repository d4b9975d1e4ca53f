//! The difference of two recordings against a slow and obvious model.

mod support;

use std::collections::BTreeMap;

use leakscope_findings::analysis::{LeakCheck, analyse};
use leakscope_findings::diff::{Basis, Change, diff};
use leakscope_findings::recording::{CheckState, End, State};
use leakscope_findings::{Analysis, Options, ProcessRecording, Suppressions};
use leakscope_model::{AllocFn, LeakKind, LeakKindSet};
use proptest::prelude::*;
use support::{Maker, SAMPLE_RULE, sample};

fn analysis(recorded: &ProcessRecording, show_leak_kinds: LeakKindSet) -> Analysis {
    let options = Options { leak_check: LeakCheck::Full, show_leak_kinds, ..Options::default() };
    let mut suppressions = Suppressions::new();
    suppressions.add("app.supp", SAMPLE_RULE).unwrap();
    analyse("0.1.0", recorded, &options, &suppressions)
}

/// A process that lost these bytes and blocks in the functions `f0`, `f1` ...
fn losing(amounts: &[(u64, u64)]) -> ProcessRecording {
    let mut m = Maker::new();
    let main = m.function("main", 1);
    let mut records = Vec::new();
    for (number, &(bytes, blocks)) in amounts.iter().enumerate() {
        let function = m.function(&format!("f{number}"), 10 + number as u32);
        let site = m.site(AllocFn::Malloc, &[function, main], bytes, blocks);
        if blocks > 0 {
            records.push((site, LeakKind::DefinitelyLost, bytes, blocks, 0, 0));
        }
    }
    m.check(&records);
    m.recorded
}

#[test]
fn equal_recordings_do_not_differ() {
    let one = [analysis(&sample(), LeakKindSet::ALL)];
    let found = diff(&one, &one);
    assert!(found.sites.is_empty() && !found.is_worse());
    assert_eq!((found.basis, found.before), (Basis::Leaks, found.after));
    // Suppressed ones are not compared.
    assert_eq!(found.after.bytes, 48 + 16 + 4096 + 1_234_567 + 800);
    assert_eq!(found.unchanged, 5);
}

#[test]
fn a_lost_block_counts_with_what_hangs_on_it() {
    let none: [Analysis; 1] = [analysis(&losing(&[]), LeakKindSet::DEFAULT)];
    let some = [analysis(&sample(), LeakKindSet::DEFAULT)];
    let found = diff(&none, &some);
    assert_eq!(found.after.bytes, 16 + 48 + 4096);
    assert!(found.sites.iter().all(|site| site.change == Change::New));
    assert_eq!(found.sites[0].after.bytes, 4096, "the largest first");
    assert_eq!(found.sites[1].kind, Some(LeakKind::DefinitelyLost));
}

#[test]
fn processes_add_up_and_unclassified_ones_compare_live_blocks() {
    let one = analysis(&losing(&[(100, 1)]), LeakKindSet::ALL);
    let found = diff(std::slice::from_ref(&one), &[one.clone(), one.clone()]);
    assert_eq!(found.sites.len(), 1);
    assert_eq!((found.sites[0].change, found.sites[0].bytes(), found.sites[0].blocks()), (Change::Grown, 100, 1));
    let mut killed = losing(&[(100, 1)]);
    killed.checks[0].state = CheckState::Running;
    killed.checks[0].records = None;
    killed.process.state = State::Running;
    killed.end = End::Signalled(9);
    let found = diff(&[one], &[analysis(&killed, LeakKindSet::ALL)]);
    assert_eq!((found.basis, found.sites.len(), found.unchanged), (Basis::Live, 0, 1));
}

proptest! {
    #[test]
    fn as_subtraction_by_function_says(
        before in proptest::collection::vec((1_u64..500, 0_u64..4), 0..8),
        after in proptest::collection::vec((1_u64..500, 0_u64..4), 0..8),
    ) {
        let found = diff(&[analysis(&losing(&before), LeakKindSet::ALL)], &[analysis(&losing(&after), LeakKindSet::ALL)]);
        let mut expected = BTreeMap::new();
        for number in 0..before.len().max(after.len()) {
            let lost = |list: &[(u64, u64)]| list.get(number).copied().filter(|&(_, blocks)| blocks > 0);
            let change = match (lost(&before), lost(&after)) {
                (None, None) => continue,
                (None, Some(_)) => Change::New,
                (Some(_), None) => Change::Gone,
                (Some(was), Some(is)) if is > was => Change::Grown,
                (Some(was), Some(is)) if is < was => Change::Shrunk,
                _ => continue,
            };
            let bytes = |list: &[(u64, u64)]| lost(list).map_or(0, |(bytes, _)| i128::from(bytes));
            expected.insert(format!("f{number}"), (change, bytes(&after) - bytes(&before)));
        }
        let name = |site: &leakscope_findings::diff::SiteChange| {
            site.stack.frames()[1].function.as_deref().unwrap_or_default().to_owned()
        };
        let got: BTreeMap<String, _> = found.sites.iter().map(|site| (name(site), (site.change, site.bytes()))).collect();
        prop_assert_eq!(found.is_worse(), expected.values().any(|(change, _)| matches!(change, Change::New | Change::Grown)));
        prop_assert_eq!(got, expected);
        prop_assert!(found.sites.is_sorted_by_key(|site| site.change));
    }
}
