//! Baselines: what is written is read, updates keep what people wrote, and git merges them.

mod support;

use std::collections::BTreeMap;
use std::process::Command;

use jiff::civil::date;
use leakscope_findings::analysis::{Amount, LeakCheck, analyse};
use leakscope_findings::baseline::{Baseline, Changes, Wishes};
use leakscope_findings::gate::{FailOn, Finding, findings};
use leakscope_findings::{Fingerprint, Options, Suppressions};
use leakscope_model::{AllocFn, LeakKind};
use proptest::prelude::*;
use support::Maker;

/// Leaks of so many bytes, a block each, in functions of these numbers.
fn found(amounts: &[(u32, u64)]) -> Vec<Finding> {
    let mut m = Maker::new();
    let main = m.function("main", 1);
    let mut records = Vec::new();
    for &(number, bytes) in amounts {
        let function = m.function(&format!("leak_{number}"), 10 + number);
        let site = m.site(AllocFn::Malloc, &[function, main], bytes, 1);
        records.push((site, LeakKind::DefinitelyLost, bytes, 1, 0, 0));
    }
    m.check(&records);
    let options = Options { leak_check: LeakCheck::Full, ..Options::default() };
    findings(&[analyse("0.1.0", &m.recorded, &options, &Suppressions::new())], &FailOn::default())
}

fn update(baseline: &mut Baseline, amounts: &[(u32, u64)], wishes: &Wishes) -> Changes {
    baseline.update(&found(amounts), |_| true, wishes, date(2026, 6, 1))
}

fn written(amounts: &[(u32, u64)]) -> Baseline {
    let mut baseline = Baseline::default();
    update(&mut baseline, amounts, &Wishes::default());
    baseline
}

fn ceilings(baseline: &Baseline) -> BTreeMap<Fingerprint, Amount> {
    baseline.entries().map(|entry| (entry.fingerprint, entry.ceiling)).collect()
}

fn read(text: &str) -> Baseline {
    Baseline::parse("leaks.baseline", text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

#[test]
fn the_text_is_as_documented() {
    let mut baseline = Baseline::default();
    let wishes = Wishes { reason: "old\ncache".to_owned(), until: Some(date(2027, 1, 31)), keep_unseen: false };
    update(&mut baseline, &[(1, 100)], &wishes);
    let fingerprint = found(&[(1, 100)])[0].fingerprint;
    assert_eq!(
        baseline.text(),
        format!(
            "# leakscope baseline 1\n# FINGERPRINT KIND BYTES BLOCKS WHERE # until=DATE REASON\n\n\
             {fingerprint} definite 100 1 leak_1 < main (app.c) # until=2027-01-31 old cache\n"
        )
    );
}

#[test]
fn words_of_people_and_compilers_cannot_be_taken_for_notes() {
    for reason in ["until=tomorrow", " # x", "until=2027-01-31 #", "a # until=2027-01-31", "\u{1b}[2J", "<<<<<<< HEAD"]
    {
        let mut baseline = Baseline::default();
        update(&mut baseline, &[(1, 1)], &Wishes { reason: reason.to_owned(), ..Wishes::default() });
        let again = read(&baseline.text());
        assert_eq!(again.text(), baseline.text(), "{reason}");
        let entry = again.entries().next().unwrap();
        assert_eq!((entry.until, entry.site.as_str()), (None, "leak_1 < main (app.c)"), "{reason}");
        assert!(!baseline.text().contains('\u{1b}'));
    }
    let odd = read("# leakscope baseline 1\n0123456789abcdef definite 1 1 operator # #\n");
    assert_eq!(read(&odd.text()).text(), odd.text());
}

#[test]
fn an_update_keeps_what_people_wrote() {
    let text = written(&[(1, 100), (2, 200), (3, 300), (4, 400)]).text();
    let of = |number: u32| found(&[(number, 1)])[0].fingerprint.to_string();
    // People write a heading, a comment above an entry, reasons and dates.
    let mut edited = String::new();
    for line in text.lines() {
        if line.starts_with(&of(2)) {
            edited += &format!("# look here\n{line} # until=2027-01-31 waits for a release\n");
        } else if line.starts_with(&of(3)) {
            edited += &format!("{line} # its own words\n");
        } else {
            edited += &format!("{line}\n");
        }
        if line.starts_with("# FINGERPRINT") {
            edited += "# leaks of the old parser\n";
        }
    }
    let mut baseline = read(&edited);
    // 1 is gone, 2 shrank, 3 grew, 4 is as it was, 5 is new.
    let amounts = [(2, 150), (3, 301), (4, 400), (5, 500)];
    let changes = update(&mut baseline, &amounts, &Wishes { reason: "why".to_owned(), ..Wishes::default() });
    let names = |entries: Vec<String>| entries;
    assert_eq!(names(changes.added.iter().map(|entry| entry.fingerprint.to_string()).collect()), [of(5)]);
    assert_eq!(names(changes.removed.iter().map(|entry| entry.fingerprint.to_string()).collect()), [of(1)]);
    assert_eq!(names(changes.raised.iter().map(|(entry, _)| entry.fingerprint.to_string()).collect()), [of(3)]);
    assert_eq!(names(changes.lowered.iter().map(|(entry, _)| entry.fingerprint.to_string()).collect()), [of(2)]);
    let text = baseline.text();
    assert!(text.contains("# leaks of the old parser\n\n"), "{text}");
    let two =
        format!("# look here\n{} definite 150 1 leak_2 < main (app.c) # until=2027-01-31 waits for a release\n", of(2));
    assert!(text.contains(&two), "{text}");
    assert!(text.contains(&format!("{} definite 301 1 leak_3 < main (app.c) # its own words\n", of(3))), "{text}");
    assert!(text.contains(&format!("{} definite 500 1 leak_5 < main (app.c) # why\n", of(5))), "{text}");
    // Nothing happens twice.
    let again = update(&mut baseline, &amounts, &Wishes::default());
    assert_eq!((again, baseline.text()), (Changes::default(), text));
}

#[test]
fn expired_entries_get_a_date_and_unseen_ones_may_stay() {
    let mut baseline = Baseline::default();
    update(&mut baseline, &[(1, 1), (2, 2)], &Wishes { until: Some(date(2026, 5, 31)), ..Wishes::default() });
    assert!(baseline.entries().all(|entry| entry.is_expired(date(2026, 6, 1))));
    assert!(baseline.entries().all(|entry| !entry.is_expired(date(2026, 5, 31))), "the last day counts");
    let wishes = Wishes { until: Some(date(2026, 12, 1)), keep_unseen: true, ..Wishes::default() };
    let changes = update(&mut baseline, &[(1, 1)], &wishes);
    assert_eq!((changes.extended.len(), changes.removed.len(), baseline.entries().count()), (1, 0, 2));
    assert_eq!(baseline.entries().filter(|entry| entry.is_expired(date(2026, 6, 1))).count(), 1);
}

#[test]
fn entries_of_kinds_that_are_not_judged_stay() {
    let mut baseline = read("# leakscope baseline 1\n0123456789abcdef reachable 10 1 cache < main\n");
    let judged = |kind: &str| FailOn::default().judges(kind);
    let changes = baseline.update(&[], judged, &Wishes::default(), date(2026, 6, 1));
    assert_eq!((changes, baseline.entries().count()), (Changes::default(), 1));
}

#[test]
fn mistakes_are_placed() {
    const HEAD: &str = "# leakscope baseline 1\n";
    for (text, line, expected, found) in [
        ("", 1, "`# leakscope baseline 1`", "the end of the file"),
        ("0123456789abcdef definite 1 1 f\n", 1, "`# leakscope baseline 1`", "0123456789abcdef definite"),
        ("# leakscope baseline 2\n", 1, "version 1", "`2`"),
        ("0123456789abcde definite 1 1 f", 2, "16 hexadecimal digits", "`0123456789abcde`"),
        ("0123456789abcdeg definite 1 1 f", 2, "16 hexadecimal digits", "`0123456789abcdeg`"),
        ("+123456789abcdef definite 1 1 f", 2, "16 hexadecimal digits", "`+123456789abcdef`"),
        ("0123456789abcdef 1 1 f", 2, "a kind", "`1`"),
        ("0123456789abcdef definite x 1 f", 2, "a number of bytes", "`x`"),
        ("0123456789abcdef definite 1 -1 f", 2, "a number of bytes", "`-1`"),
        ("0123456789abcdef definite 1", 2, "a number of bytes", "definite 1`"),
        ("0123456789abcdef definite 1 1 f # until=2027-02-31", 2, "a date", "`2027-02-31`"),
        ("0123456789abcdef definite 1 1 f # until=tomorrow why", 2, "a date", "`tomorrow`"),
        ("<<<<<<< HEAD", 2, "conflict of a merge", "<<<<<<<"),
        ("\n\u{1b}[31m definite 1 1 f", 3, "16 hexadecimal digits", "`?[31m`"),
    ] {
        let has_head = line == 1;
        let text = if has_head { text.to_owned() } else { format!("{HEAD}{text}") };
        let words = Baseline::parse("b", &text).expect_err(&text).to_string();
        assert!(words.starts_with(&format!("baseline b:{line}: expected ")), "{words}");
        assert!(words.contains(expected) && words.contains(found), "{words}");
    }
}

#[test]
fn two_lines_for_one_finding_are_one() {
    let baseline = read(
        "# leakscope baseline 1\n0123456789abcdef definite 10 3 f # until=2027-01-31\n\
         # leakscope baseline 1\n0123456789abcdef definite 20 2 f # until=2026-12-31 why\n",
    );
    assert_eq!(baseline.duplicates().len(), 1);
    let entry = baseline.entries().next().unwrap();
    assert_eq!(entry.ceiling, Amount { bytes: 20, blocks: 3 });
    assert_eq!((entry.until, entry.reason.as_str()), (Some(date(2026, 12, 31)), "why"));
}

/// Merges with git itself; gives the text and whether it was without conflict.
fn merge(ours: &str, base: &str, theirs: &str, option: &str) -> (String, bool) {
    let dir = std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("merge-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let files = [file("ours", ours), file("base", base), file("theirs", theirs)];
    let output =
        Command::new("git").args(["merge-file", "-p", option]).args(&files).output().expect("git is installed");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.code().is_some_and(|code| code < 128), "{}", String::from_utf8_lossy(&output.stderr));
    (text, output.status.success())
}

/// Two branches that each find one more leak and fix another, or see one grow: git merges them, and the result is what
/// an update would have written.
#[test]
fn git_merges_baselines() {
    let base: Vec<(u32, u64)> = (0..40).map(|number| (number, 100)).collect();
    let base_text = written(&base).text();
    let (mut clean, rounds) = (0, 40);
    for round in 0..rounds {
        let (fixed, grown) = (round, (round + 17) % 40);
        let mut ours: Vec<_> = base.iter().copied().filter(|&(number, _)| number != fixed).collect();
        ours.push((1000 + round, 10));
        let mut theirs: Vec<_> =
            base.iter().map(|&(number, bytes)| (number, if number == grown { 150 } else { bytes })).collect();
        theirs.push((2000 + round, 20));
        let mut both: Vec<_> = theirs.iter().copied().filter(|&(number, _)| number != fixed).collect();
        both.push((1000 + round, 10));
        let texts = [&ours, &theirs].map(|amounts| {
            let mut baseline = read(&base_text);
            update(&mut baseline, amounts, &Wishes::default());
            baseline.text()
        });
        let (merged, is_clean) = merge(&texts[0], &base_text, &texts[1], "--quiet");
        if is_clean {
            clean += 1;
            assert_eq!(merged, written(&both).text(), "round {round}");
        }
        // With `merge=union` there is never a conflict, and nothing that either side added or raised is lost.
        let (merged, is_clean) = merge(&texts[0], &base_text, &texts[1], "--union");
        assert!(is_clean);
        let (merged, wanted) = (ceilings(&read(&merged)), ceilings(&written(&both)));
        for (fingerprint, ceiling) in &wanted {
            assert_eq!(merged.get(fingerprint), Some(ceiling), "round {round}");
        }
        assert!(merged.len() <= wanted.len() + 1, "at most the fixed one stays");
    }
    assert!(clean * 10 >= rounds * 8, "{clean} of {rounds} merges were clean");
}

proptest! {
    #[test]
    fn what_is_written_is_read(amounts in proptest::collection::btree_map(0_u32..50, 1_u64..1 << 58, 0..20)) {
        let amounts: Vec<_> = amounts.into_iter().collect();
        let baseline = written(&amounts);
        let text = baseline.text();
        prop_assert_eq!(read(&text).text(), text);
        prop_assert_eq!(baseline.entries().count(), amounts.len());
    }

    #[test]
    fn any_text_is_read_or_refused(text in "(# leakscope baseline 1\n)?([0-9a-f]{16} [a-z]{1,4} [0-9]{1,3} [0-9]{1,3} .{0,20}\n|.{0,30}\n){0,6}") {
        if let Ok(baseline) = Baseline::parse("b", &text) {
            let text = baseline.text();
            prop_assert_eq!(read(&text).text(), text);
        }
    }
}
