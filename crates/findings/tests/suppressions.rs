//! Suppression files: Valgrind's own must be read whole, mistakes must be placed, matching must follow the manual.

use std::sync::Arc;

use leakscope_findings::Suppressions;
use leakscope_findings::analysis::Frame;
use leakscope_findings::suppressions::{Error, FramePattern, Matcher, RuleKind, generate};
use leakscope_model::{LeakKind, LeakKindSet, MisuseKind};
use proptest::prelude::*;

/// What our own library is called here.
const HOOK: &str = "pre.so";

fn frame(function: &str, linkage_name: &str, object: &str) -> Frame {
    let name = |text: &str| (!text.is_empty()).then(|| Arc::from(text));
    Frame {
        ip: 0x1000,
        svma: 0x1000,
        function: name(function),
        linkage_name: name(linkage_name),
        file: None,
        directory: None,
        line: 0,
        column: 0,
        inlined: false,
        object: object.into(),
        hook: object == HOOK,
        module: None,
    }
}

fn rules(text: &str) -> Suppressions {
    let mut suppressions = Suppressions::new();
    suppressions.add("x.supp", text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    suppressions
}

fn leak_rule(stack: &str) -> Suppressions {
    rules(&format!("{{\n name\n Memcheck:Leak\n{stack}\n}}\n"))
}

const LEAK: Error = Error::Leak(LeakKind::DefinitelyLost);

#[test]
fn stacks_match_as_the_manual_says() {
    let frames = [
        frame("malloc", "malloc", HOOK),
        frame("n::f(int)", "_ZN1n1fEi", "/opt/app"),
        frame("g", "", "/opt/libg.so.1"),
        frame("", "", "/opt/libstripped.so"),
        frame("main", "main", "/opt/app"),
    ];
    let table: &[(&str, bool)] = &[
        ("fun:malloc", true),
        ("fun:malloc\nfun:_ZN1n1fEi\nfun:g", true),
        ("fun:malloc\nfun:n::f(int)", true), // names for people match too
        ("fun:malloc\nfun:g", false),
        ("fun:mal*\nfun:_ZN?n*\nobj:*/libg.so.*", true),
        ("fun:m", false),
        ("obj:pre.so\nfun:_ZN1n1fEi", true),
        ("obj:*vgpreload_memcheck*\nfun:_ZN1n1fEi", true), // written for Memcheck
        ("obj:/usr/lib*/valgrind/vgpreload_memcheck-amd64-linux.so\n...\nfun:g", true),
        ("fun:malloc\nobj:*vgpreload_memcheck*", false), // only the allocation function's own frame
        ("...\nfun:main", true),
        ("...\nfun:main\nfun:_start", false),
        ("fun:malloc\n...\nfun:g\n...\nfun:main", true),
        ("fun:malloc\n...\nfun:g\n...\nfun:g", false),
        ("fun:malloc\n...", true),
        ("fun:malloc\n...\n...\nfun:_ZN1n1fEi", true), // `...` may stand for nothing
        ("obj:pre.so\nobj:/opt/app", true),
        ("fun:*\nfun:*\nfun:*\nfun:???\nobj:*", true), // an unknown name is `???`
        ("fun:*\nfun:*\nfun:*\nfun:*\nfun:*\nfun:*", false), // longer than the stack
        ("obj:*", true),
        ("fun:", false),
    ];
    for (stack, expected) in table {
        assert_eq!(leak_rule(stack).find(&LEAK, &frames).is_some(), *expected, "{stack}");
    }
}

#[test]
fn sources_and_inlined_functions_match() {
    let mut inner = frame("n::C<int>::get(int) const", "_ZNK1n1CIiE3getEi", "/opt/app");
    (inner.inlined, inner.file, inner.line) = (true, Some("get.h".into()), 12);
    let frames = [frame("malloc", "malloc", "/pre.so"), inner, frame("main", "", "/opt/app")];
    for (stack, expected) in [
        ("fun:malloc\nsrc:get.h", true),
        ("fun:malloc\nsrc:get.h:12", true),
        ("fun:malloc\nsrc:get.h:13", false),
        ("fun:malloc\nsrc:g*.h:12", true),
        ("fun:malloc\nsrc:get.h:0", true),       // 0 stands for any line
        ("fun:malloc\nfun:get\nfun:main", true), // an inlined function by its plain name, as debug information has it
        ("fun:malloc\nfun:main", false),
        ("src:*", false), // a frame without a file matches no file
    ] {
        assert_eq!(leak_rule(stack).find(&LEAK, &frames).is_some(), expected, "{stack}");
    }
}

#[test]
fn kinds_match() {
    let frames = [frame("calloc", "calloc", "")];
    let found =
        |head: &str, error: Error| rules(&format!("{{\nn\n{head}\nfun:calloc\n}}")).find(&error, &frames).is_some();
    assert!(found("Memcheck:Leak\nmatch-leak-kinds: definite,possible", LEAK));
    assert!(!found("Memcheck:Leak\nmatch-leak-kinds:reachable", LEAK));
    assert!(found("Memcheck:Leak\nmatch-leak-kinds: all", LEAK));
    assert!(found("Helgrind,Memcheck:Leak", LEAK));
    assert!(!found("Memcheck:Free", LEAK));
    let double = Error::Misuse(MisuseKind::DoubleFree);
    assert!(found("Memcheck:Free", double.clone()) && !found("Memcheck:Leak", double.clone()));
    assert!(!found("Memcheck:Value8", double) && !found("Memcheck:Cond", LEAK));
    let fishy = Error::Misuse(MisuseKind::FishySize);
    assert!(found("Memcheck:FishyValue\ncalloc(size)", fishy.clone()));
    assert!(!found("Memcheck:FishyValue\nmalloc(size)", fishy.clone()) && !found("Memcheck:Free", fishy));
    let other_tool = rules("{\nn\nHelgrind:Race\nwhat ever\n}\n{\n n\nMemcheck:Param\nwrite(buf)\nfun:write\n}");
    assert_eq!(other_tool.rules().len(), 1);
    assert_eq!(other_tool.rules()[0].kind, RuleKind::Other("Param write(buf)".into()));
}

#[test]
fn the_rule_read_last_wins() {
    let mut suppressions = leak_rule("fun:malloc");
    suppressions.add("y.supp", "{\nlast\nMemcheck:Leak\nfun:malloc\n}\n{\nno\nMemcheck:Leak\nfun:free\n}").unwrap();
    let id = suppressions.find(&LEAK, &[frame("malloc", "", "")]).unwrap();
    let rule = suppressions.rule(id).unwrap();
    assert_eq!((&*rule.name, &*rule.file, rule.line), ("last", "y.supp", 2));
}

#[test]
fn mistakes_are_placed() {
    let table = [
        (
            "{\nn\nMemcheck:Leak\nfun:f\n}\nfun:g\n",
            "x.supp:6: expected `{`, a line such as `leak:NAME`, or the end of the file, found `fun:g`",
        ),
        ("{\n}\n", "x.supp:2: expected the name of the suppression, found `}`"),
        ("# c\n\n{\n n\n", "x.supp:4: expected `TOOL:KIND`, such as `Memcheck:Leak`, found the end of the file"),
        ("{\nn\nMemcheck\n", "x.supp:3: expected `TOOL:KIND`, such as `Memcheck:Leak`, found `Memcheck`"),
        (
            "{\nn\nMemcheck:Leek\n",
            "x.supp:3: expected a kind of error that Memcheck knows after `Memcheck:`, found `Leek`",
        ),
        ("{\nn\nMemcheck:Free\nfum:f\n}", "x.supp:4: expected `fun:`, `obj:`, `src:`, `...` or `}`, found `fum:f`"),
        (
            "{\nn\nMemcheck:Free\n...\n}",
            "x.supp:5: expected a `fun:`, `obj:` or `src:` line before the end of the rule, found `}`",
        ),
        (
            "{\nn\nMemcheck:Free\nfun:f\n",
            "x.supp:4: expected `fun:`, `obj:`, `src:`, `...` or `}`, found the end of the file",
        ),
        (
            "{\nn\nMemcheck:Leak\nmatch-leak-kinds: some\nfun:f\n}",
            "x.supp:4: expected a list of `definite`, `indirect`, `possible`, `reachable`, or `all`, or `none`, found `some`",
        ),
        (
            "{\nn\nMemcheck:FishyValue\nmalloc\nfun:f\n}",
            "x.supp:4: expected `FUNCTION(ARGUMENT)`, such as `malloc(size)`, found `malloc`",
        ),
        ("{\nn\nDRD:x\n", "x.supp:3: expected `}`, found the end of the file"),
    ];
    for (text, expected) in table {
        let mut suppressions = Suppressions::new();
        let error = suppressions.add("x.supp", text).unwrap_err();
        assert_eq!(error.to_string(), format!("suppression file {expected}"), "{text}");
        assert!(suppressions.rules().is_empty());
    }
}

#[test]
fn generated_rules_hide_what_they_were_made_for() {
    let mut hostile = frame("evil\n}\n{", "", "/o");
    hostile.function = Some("a\nb\x1b".into());
    let stacks = [
        vec![frame("malloc", "malloc", "/pre.so"), frame("n::f(int)", "_ZN1n1fEi", "/a"), frame("", "", "/b.so")],
        vec![frame("malloc", "malloc", "/pre.so"), hostile, frame("", "", "")],
    ];
    for frames in stacks {
        for error in MisuseKind::ALL.into_iter().map(Error::Misuse).chain([LEAK]) {
            let text = generate(&error, &frames).text();
            assert!(rules(&text).find(&error, &frames).is_some(), "{text}");
        }
    }
    let text = generate(&LEAK, &[frame("malloc", "malloc", "/p"), frame("main", "", "/a")]).text();
    let expected = "{\n   <insert_a_suppression_name_here>\n   Memcheck:Leak\n   match-leak-kinds: definite\n   fun:malloc\n   fun:main\n}\n";
    assert_eq!(text, expected);
}

/// Files of Valgrind itself, where they are installed. Rules for Memcheck are counted by an independent reading.
#[test]
fn valgrinds_own_files_are_read_whole() {
    let mut folders = vec![
        "/usr/lib/x86_64-linux-gnu/valgrind".to_owned(),
        "/usr/libexec/valgrind".to_owned(),
        "/usr/lib/valgrind".to_owned(),
    ];
    let cache = "/var/cache/leakscope-conformance/valgrind";
    for tree in std::fs::read_dir(cache).into_iter().flatten().flatten() {
        folders.push(tree.path().join("memcheck/tests").display().to_string());
        folders.push(tree.path().display().to_string());
    }
    let mut files = 0;
    for path in folders.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().flatten() {
        let path = path.path();
        if path.extension().is_none_or(|extension| extension != "supp") {
            continue;
        }
        let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
        let name = path.display().to_string();
        let mut suppressions = Suppressions::new();
        suppressions.add(&name, &text).unwrap_or_else(|error| panic!("{error}"));
        let lines = text.lines().map(str::trim);
        let expected = lines.filter(|line| !line.starts_with('#') && line.contains("Memcheck:")).count();
        assert_eq!(suppressions.rules().len(), expected, "{name}");
        files += 1;
    }
    eprintln!("{files} files of Valgrind");
}

/// The obvious way to match `*` and `?`.
fn slow_wildcard(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => (0..=text.len()).any(|skip| slow_wildcard(rest, &text[skip..])),
        (Some((p, rest)), Some((t, tail))) => (*p == b'?' || p == t) && slow_wildcard(rest, tail),
        _ => false,
    }
}

/// The obvious way to match frames.
fn slow_stack(pattern: &[FramePattern], frames: &[Frame]) -> bool {
    match pattern.split_first() {
        None => true,
        Some((FramePattern::AnyFrames, rest)) => (0..=frames.len()).any(|skip| slow_stack(rest, &frames[skip..])),
        Some((FramePattern::Function(name), rest)) => {
            frames
                .first()
                .is_some_and(|f| slow_wildcard(name.as_bytes(), f.function.as_deref().unwrap_or("???").as_bytes()))
                && slow_stack(rest, &frames[1..])
        }
        Some(_) => unreachable!("only functions are generated"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn matching_equals_the_obvious_way(
        pattern in proptest::collection::vec("(\\.\\.\\.|fun:[ab*?]{0,4})", 1..6),
        names in proptest::collection::vec("[ab]{1,4}", 1..6),
    ) {
        let frames: Vec<Frame> = names.iter().map(|name| frame(name, "", "")).collect();
        let text = format!("{{\nn\nMemcheck:Leak\n{}\n}}", pattern.join("\n"));
        let mut suppressions = Suppressions::new();
        if suppressions.add("x", &text).is_ok() {
            let expected = slow_stack(&suppressions.rules()[0].stack, &frames);
            prop_assert_eq!(suppressions.find(&LEAK, &frames).is_some(), expected);
        }
    }

    /// Many rules at once, with remembered names, against one rule after the other.
    #[test]
    fn a_matcher_equals_the_rules_one_by_one(
        rules in proptest::collection::vec(
            (
                "(Leak\nmatch-leak-kinds: (definite|reachable)|Leak|Free|FishyValue\nmalloc\\(size\\))",
                proptest::collection::vec(
                    "(\\.\\.\\.|fun:[ab*?]{1,3}|fun:malloc|obj:[xy*]{1,2}|src:[fg*]{1,2}(:[12])?)", 1..7,
                ),
            ),
            0..40,
        ),
        stacks in proptest::collection::vec(
            proptest::collection::vec(("[ab]{0,3}", "[ab]{0,2}", "[xy]", "[fg]?", 0_u32..3, any::<bool>()), 0..8),
            1..12,
        ),
    ) {
        let mut suppressions = Suppressions::new();
        for (kind, lines) in &rules {
            // A rule that Valgrind would refuse is none.
            let _ = suppressions.add("x", &format!("{{\nn\nMemcheck:{kind}\n{}\n}}\n", lines.join("\n")));
        }
        let errors = [
            LEAK,
            Error::Leak(LeakKind::StillReachable),
            Error::Misuse(MisuseKind::DoubleFree),
            Error::Misuse(MisuseKind::FishySize),
        ];
        let mut matcher = Matcher::new(&suppressions);
        let mut before_naming = Matcher::before_naming(&suppressions);
        for stack in &stacks {
            let mut frames = vec![Arc::new(frame("malloc", "", HOOK))];
            frames.extend(stack.iter().map(|(function, linkage, object, file, line, inlined)| {
                let file = (!file.is_empty()).then(|| Arc::from(file.as_str()));
                Arc::new(Frame { file, line: *line, inlined: *inlined, ..frame(function, linkage, object) })
            }));
            let nameless: Vec<Arc<Frame>> = frames
                .iter()
                .map(|frame| match frame.hook {
                    true => frame.clone(),
                    false => Arc::new(Frame { function: None, linkage_name: None, file: None, ..(**frame).clone() }),
                })
                .collect();
            for error in &errors {
                let found = matcher.find(error, &frames);
                prop_assert!(found.is_none() || before_naming.find(error, &nameless).is_some(), "{:?}", &frames);
                prop_assert_eq!(found, suppressions.find(error, &frames), "{:?}", &frames);
            }
        }
    }

    #[test]
    fn random_text_never_panics(text in "([{}#]|Memcheck:|Leak|fun:|obj:|src:|\\.\\.\\.|match-leak-kinds:|[a-z:(),]|\n|\\PC){0,60}") {
        let mut suppressions = Suppressions::new();
        if let Err(error) = suppressions.add("x", &text) {
            prop_assert!(error.line as usize <= text.lines().count().max(1));
        }
    }
}

#[test]
fn long_rules_match_too() {
    let names: Vec<String> = (0..100).map(|i| format!("f{i}")).collect();
    let frames: Vec<Frame> = names.iter().map(|name| frame(name, "", "")).collect();
    let exact: Vec<String> = names.iter().map(|name| format!("fun:{name}")).collect();
    assert!(leak_rule(&exact.join("\n")).find(&LEAK, &frames).is_some());
    let shared: Vec<Arc<Frame>> = frames.iter().cloned().map(Arc::new).collect();
    assert!(Matcher::new(&leak_rule(&exact.join("\n"))).find(&LEAK, &shared).is_some());
    assert!(Matcher::new(&leak_rule(&exact[1..].join("\n"))).find(&LEAK, &shared).is_none());
    let gaps: Vec<String> = names.iter().step_by(2).map(|name| format!("fun:{name}\n...")).collect();
    assert!(leak_rule(&gaps.join("\n")).find(&LEAK, &frames).is_some());
    assert!(leak_rule(&format!("{}\nfun:f0", gaps.join("\n"))).find(&LEAK, &frames).is_none());
}

#[test]
fn leak_kinds_of_a_rule_without_them_are_all() {
    assert_eq!(leak_rule("fun:f").rules()[0].kind, RuleKind::Leak(LeakKindSet::ALL));
}
