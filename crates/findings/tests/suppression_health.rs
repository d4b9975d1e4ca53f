//! What rules hide, and LeakSanitizer's lines against a model of its matching.

mod support;

use std::sync::Arc;

use jiff::civil::date;
use leakscope_findings::analysis::{Frame, LeakCheck, analyse};
use leakscope_findings::suppressions::health::{Ailment, RuleHealth, health};
use leakscope_findings::suppressions::{Error, Matcher, Specifics};
use leakscope_findings::{Options, Suppressions};
use leakscope_model::LeakKind;
use proptest::prelude::*;
use support::sample;

fn of(text: &str) -> Vec<RuleHealth> {
    let mut rules = Suppressions::new();
    rules.add("x.supp", text).unwrap_or_else(|error| panic!("{error}"));
    let expired = rules.expire(date(2026, 6, 1));
    let options = Options { leak_check: LeakCheck::Full, ..Options::default() };
    let analysis = analyse("0.1.0", &sample(), &options, &rules);
    health(&rules, &expired, &[analysis])
}

fn rule(directive: &str, stack: &str) -> String {
    format!("{{\n   a rule\n   # leakscope: {directive}\n   Memcheck:Leak\n{stack}\n}}\n")
}

#[test]
fn ailments_by_table() {
    let broad = |findings, modules| Ailment::Broad { findings, modules };
    for (text, bytes, blocks, ailments) in [
        (rule("", "   fun:malloc\n   fun:known_leak"), 77, 7, vec![]),
        (rule("", "   fun:malloc\n   fun:knwon_leak"), 0, 0, vec![Ailment::Unused]),
        (rule("max-bytes=77", "   fun:malloc\n   fun:known_leak"), 77, 7, vec![]),
        (rule("max-bytes=76", "   fun:malloc\n   fun:known_leak"), 77, 7, vec![Ailment::OverBudget]),
        (rule("max-blocks=6", "   fun:malloc\n   fun:known_leak"), 77, 7, vec![Ailment::OverBudget]),
        (rule("until=2026-06-01", "   fun:malloc\n   fun:known_leak"), 77, 7, vec![]),
        (rule("until=2026-05-31", "   fun:malloc\n   fun:known_leak"), 0, 0, vec![Ailment::Expired(date(2026, 5, 31))]),
        (rule("", "   fun:malloc\n   fun:make_node"), 64, 4, vec![broad(2, 1)]),
        (rule("", "   fun:malloc"), 141, 11, vec![Ailment::NamesNothing]),
        (rule("", "   ...\n   obj:*app"), 1_239_604, 18, vec![broad(6, 2)]),
        (rule("", "   fun:*alloc\n   ..."), 1_234_708, 12, vec![Ailment::NamesNothing]),
        (rule("", "   ...\n   fun:main"), 1_239_604, 18, vec![broad(6, 2)]),
        ("leak:known_leak\n".to_owned(), 77, 7, vec![]),
        ("leak:nothing\n".to_owned(), 0, 0, vec![Ailment::Unused]),
        ("# leakscope: max-bytes=10\nleak:known_leak\n".to_owned(), 77, 7, vec![Ailment::OverBudget]),
        // It is a part of `std::allocator` too.
        ("leak:alloc\n".to_owned(), 1_238_804, 14, vec![Ailment::NamesNothing]),
    ] {
        let found = of(&text);
        assert_eq!(found.len(), 1, "{text}");
        let rule = &found[0];
        assert_eq!((rule.hidden.bytes, rule.hidden.blocks), (bytes, blocks), "{text}\n{rule:?}");
        assert_eq!(rule.ailments, ailments, "{text}");
    }
}

#[test]
fn directives_are_bound_to_their_rule() {
    let text = "# leakscope: max-bytes=1\nleak:a\n{\n b\n Memcheck:Leak\n fun:b\n # leakscope: max-blocks=2 until=2027-01-31\n}\nleak:c\n";
    let limits: Vec<_> = of(text).into_iter().map(|rule| (rule.name, rule.limits)).collect();
    assert_eq!((limits[0].1.most_bytes, limits[0].1.until), (Some(1), None));
    assert_eq!((limits[1].1.most_blocks, limits[1].1.until), (Some(2), Some(date(2027, 1, 31))));
    assert_eq!(limits[2].1, Default::default());
    for (directive, found) in
        [("max-bytes=x", "max-bytes=x"), ("util=2027-01-01", "util"), ("until=2027-02-30", "2027-02-30")]
    {
        let error = Suppressions::new().add("x.supp", &rule(directive, " fun:f")).expect_err(directive).to_string();
        assert!(error.contains("x.supp:3") && error.contains(found), "{error}");
    }
}

#[test]
fn lines_of_other_sanitizers_are_noted() {
    let mut rules = Suppressions::new();
    rules.add("all.supp", "race:foo\nleak:bar\nrace:baz\ninterceptor_via_fun:x\n").unwrap();
    assert_eq!(rules.rules().len(), 3, "three rules for the one line");
    assert_eq!(rules.notes().len(), 2);
    assert!(rules.notes().iter().any(|note| note.starts_with("all.supp:1: `race:` (2 lines)")), "{:?}", rules.notes());
    for (text, found) in [("laek:x\n", "laek:x"), ("leak:\n", "leak:"), ("just words\n", "just words")] {
        let error = Suppressions::new().add("x", text).expect_err(text);
        assert_eq!((error.line, error.found.as_str()), (1, found));
    }
}

fn frame(function: &str, directory: &str, file: &str, object: &str) -> Arc<Frame> {
    Arc::new(Frame {
        ip: 1,
        svma: 1,
        function: Some(function.into()),
        linkage_name: None,
        file: Some(file.into()),
        directory: Some(directory.into()),
        line: 7,
        column: 0,
        inlined: false,
        object: object.into(),
        hook: false,
        module: None,
    })
}

/// LeakSanitizer's rule as its manual has it: the name in some frame holds the pattern, `*` is anything, `^` and `$` are
/// the ends. Tried by taking the pattern apart at its stars and looking for each part behind the last.
fn model(pattern: &str, name: &str) -> bool {
    let (is_front, pattern) = pattern.strip_prefix('^').map_or((false, pattern), |rest| (true, rest));
    let (is_back, pattern) = pattern.strip_suffix('$').map_or((false, pattern), |rest| (true, rest));
    fn fits(parts: &[&str], name: &str, is_front: bool, is_back: bool) -> bool {
        let Some((first, rest)) = parts.split_first() else { return !is_back || name.is_empty() };
        let starts: Vec<usize> = if is_front { vec![0] } else { (0..=name.len()).collect() };
        starts.into_iter().any(|at| {
            name[at..].strip_prefix(first).is_some_and(|after| {
                // Behind a star anything may come first; behind the last part only what the end allows.
                if rest.is_empty() { !is_back || after.is_empty() } else { fits(rest, after, false, is_back) }
            })
        })
    }
    fits(&pattern.split('*').collect::<Vec<_>>(), name, is_front, is_back)
}

proptest! {
    #[test]
    fn as_leak_sanitizer_matches(pattern in "\\^?[ab/*]{1,5}\\$?", names in proptest::collection::vec("[ab]{1,4}", 4)) {
        prop_assume!(pattern.chars().any(|c| c != '^' && c != '$'));
        let mut rules = Suppressions::new();
        rules.add("x", &format!("leak:{pattern}\n")).unwrap();
        let frames = [frame(&names[0], &format!("/{}", names[1]), &names[2], &format!("/lib/{}", names[3]))];
        let path = format!("/{}/{}", names[1], names[2]);
        let expected = [names[0].as_str(), &path, &format!("/lib/{}", names[3])].iter().any(|name| model(&pattern, name));
        let error = Error::Leak(LeakKind::DefinitelyLost);
        prop_assert_eq!(rules.find(&error, &frames).is_some(), expected, "{} {:?}", pattern, names);
        prop_assert_eq!(Matcher::new(&rules).find(&error, &frames).is_some(), expected);
    }
}

proptest! {
    /// The findings that a written line is said to hide are those that it hides when it is read again.
    #[test]
    fn a_written_line_hides_what_it_says(
        names in proptest::collection::vec(proptest::collection::vec("[*^]?[ab/w]{1,2}[*?^(]?", 1..4), 1..6),
    ) {
        let stacks: Vec<Vec<Arc<Frame>>> = names
            .iter()
            .map(|names| names.iter().map(|name| frame(name, "/w", "a.c", "/w/app")).collect())
            .collect();
        let stacks: Vec<&[Arc<Frame>]> = stacks.iter().map(|stack| &stack[..]).collect();
        let lines = Specifics::new(&stacks);
        for number in 0..stacks.len() {
            let written = lines.of(number).unwrap();
            let mut rules = Suppressions::new();
            rules.add("x", &format!("{}\n", written.line)).unwrap();
            let error = Error::Leak(LeakKind::DefinitelyLost);
            let hidden = |other: &usize| *other != number && rules.find(&error, stacks[*other]).is_some();
            let hidden: Vec<usize> = (0..stacks.len()).filter(hidden).collect();
            prop_assert!(rules.find(&error, stacks[number]).is_some());
            prop_assert_eq!(&written.hides_too, &hidden);
        }
    }
}

#[test]
fn a_written_line_hides_as_little_as_it_can() {
    let stack = |names: &[&str]| names.iter().map(|name| frame(name, "/w", "a.c", "/w/app")).collect::<Vec<_>>();
    let stacks = [stack(&["make", "build", "main"]), stack(&["make", "other", "main"]), stack(&["make", "main"])];
    let stacks: Vec<&[Arc<Frame>]> = stacks.iter().map(|stack| &stack[..]).collect();
    let lines = Specifics::new(&stacks);
    let first = lines.of(0).unwrap();
    assert_eq!((first.line.as_str(), first.hides_too), ("leak:^build$", vec![]));
    // Its frames are all in the others too.
    let last = lines.of(2).unwrap();
    assert_eq!((last.line.as_str(), last.hides_too), ("leak:^make$", vec![0, 1]));
    let hostile = stack(&["operator^(\u{1b}x)\nleak:*", "main"]);
    assert_eq!(Specifics::new(&[&hostile[..]]).of(0).unwrap().line, "leak:^operator*(*x)*leak:*$");
}
