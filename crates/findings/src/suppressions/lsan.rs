//! LeakSanitizer's suppressions: `leak:PATTERN` hides leaks with PATTERN in any frame's function, source path or module.
//!
//! Source: LLVM, `compiler-rt/lib/sanitizer_common/sanitizer_suppressions.cpp` and `sanitizer_common.cpp`
//! (`TemplateMatch`), documented in the wiki of LeakSanitizer: PATTERN is a part of the name; `*` stands for any
//! characters, `^` in front and `$` at the end bind it to the name's ends. Lines of other sanitizers are known by their
//! first word and hide nothing here.
//!
//! Such a line becomes three rules: one for functions, one for modules and one for paths.

use std::borrow::{Borrow, Cow};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use foldhash::fast::RandomState;
use leakscope_model::LeakKindSet;

use super::matching::{UNKNOWN, plain_name, source_path, wildcard};
use super::{FramePattern, Limits, Rule, RuleKind};
use crate::analysis::Frame;

/// First words of the lines of other sanitizers. Source: compiler-rt's `kSuppressionTypes` of ASan, TSan, UBSan, HWASan.
const OTHERS: &[&str] = &[
    "race",
    "race_top",
    "thread",
    "mutex",
    "signal",
    "deadlock",
    "called_from_lib",
    "interceptor_name",
    "interceptor_via_fun",
    "interceptor_via_lib",
    "odr_violation",
    "alloc_dealloc_mismatch",
    "undefined",
    "alignment",
    "array-bounds",
    "bool",
    "bounds",
    "builtin",
    "cfi",
    "enum",
    "float-cast-overflow",
    "float-divide-by-zero",
    "function",
    "implicit-conversion",
    "implicit-integer-sign-change",
    "implicit-signed-integer-truncation",
    "implicit-unsigned-integer-truncation",
    "integer-divide-by-zero",
    "invalid-builtin-use",
    "invalid-objc-cast",
    "nonnull-attribute",
    "null",
    "nullability-arg",
    "nullability-assign",
    "nullability-return",
    "object-size",
    "pointer-overflow",
    "return",
    "returns-nonnull-attribute",
    "shift",
    "shift-base",
    "shift-exponent",
    "signed-integer-overflow",
    "unreachable",
    "unsigned-integer-overflow",
    "unsigned-shift-base",
    "vla-bound",
    "vptr",
    "vptr_check",
];

/// Lines that are for other sanitizers.
#[derive(Default)]
pub(super) struct Ignored {
    /// By first word: how many, and the line of the first.
    words: BTreeMap<&'static str, (usize, u32)>,
}

impl Ignored {
    /// Whether the line is one of these.
    pub fn takes(&mut self, line: &str, number: u32) -> bool {
        let known = line.split_once(':').and_then(|(word, _)| OTHERS.iter().find(|&&known| known == word));
        if let Some(word) = known {
            self.words.entry(word).or_insert((0, number)).0 += 1;
        }
        known.is_some()
    }

    /// A sentence for each kind of line.
    pub fn notes(&self, file: &str) -> Vec<String> {
        let sentence = |(word, (count, line)): (&&str, &(usize, u32))| {
            let lines = if *count == 1 { "1 line".to_owned() } else { format!("{count} lines") };
            format!("{file}:{line}: `{word}:` ({lines}) is for another sanitizer and hides no leak")
        };
        self.words.iter().map(sentence).collect()
    }
}

/// The rules that a line `leak:PATTERN` stands for. They have one name and one line.
pub(super) fn rules(file: &Arc<str>, line: u32, pattern: &str, limits: &Limits) -> [Rule; 3] {
    let name: Arc<str> = format!("leak:{pattern}").into();
    let wildcards = wildcards(pattern);
    let frames = [
        FramePattern::Object(wildcards.clone()),
        FramePattern::Path(wildcards.clone()),
        FramePattern::Function(wildcards),
    ];
    frames.map(|frame| Rule {
        name: name.clone(),
        file: file.clone(),
        line,
        kind: RuleKind::Leak(LeakKindSet::ALL),
        stack: vec![FramePattern::AnyFrames, frame],
        limits: limits.clone(),
    })
}

/// LeakSanitizer's pattern as one of ours: bound to neither end unless it says so.
fn wildcards(pattern: &str) -> String {
    let (front, rest) = match pattern.strip_prefix('^') {
        Some(rest) => ("", rest),
        None => ("*", pattern),
    };
    let (middle, back) = match rest.strip_suffix('$') {
        Some(middle) => (middle, ""),
        None => (rest, "*"),
    };
    // A question mark is one there, but any byte here; names have none but in operators that nobody writes.
    format!("{front}{middle}{back}")
}

/// A `leak:` line for a finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Specific {
    /// The line.
    pub line: String,
    /// Numbers of other findings that it hides too.
    pub hides_too: Vec<usize>,
}

/// Writes a line for each of many findings: knows which of them have a name in some frame.
pub struct Specifics<'a, F> {
    stacks: &'a [&'a [F]],
    /// All that a rule may match, with the numbers of the stacks that have it.
    names: HashMap<Cow<'a, str>, Vec<usize>, RandomState>,
}

impl<'a, F: Borrow<Frame>> Specifics<'a, F> {
    /// Reads the names of all stacks, innermost frame first.
    pub fn new(stacks: &'a [&'a [F]]) -> Self {
        let mut names: HashMap<Cow<'a, str>, Vec<usize>, RandomState> = HashMap::default();
        for (number, stack) in stacks.iter().enumerate() {
            let mut add = |name: Cow<'a, str>| {
                let stacks = names.entry(name).or_default();
                if stacks.last() != Some(&number) {
                    stacks.push(number);
                }
            };
            for frame in stack.iter().map(Borrow::borrow) {
                names_of(frame).for_each(&mut add);
            }
        }
        Self { stacks, names }
    }

    /// The line that hides finding number `number` and as few of the others as one frame can: LeakSanitizer looks at one
    /// frame. Of equal ones, the innermost. `None` when no frame has a name.
    pub fn of(&self, number: usize) -> Option<Specific> {
        let frames = self.stacks.get(number)?.iter().map(Borrow::borrow).filter(|frame| !frame.hook);
        let mut tried = BTreeSet::new();
        let mut best: Option<Specific> = None;
        for frame in frames {
            let Some(function) = frame.function.as_deref() else { continue };
            if function.starts_with('(') || !tried.insert(function) {
                continue;
            }
            // What would be a sign in a pattern, or end the line, stands for itself as "anything".
            let name = function.replace(|c: char| c.is_control() || matches!(c, '^' | '$' | '?'), "*");
            let mut hides_too: Vec<usize> = self.with(&name).filter(|&other| other != number).collect();
            hides_too.sort_unstable();
            hides_too.dedup();
            if best.as_ref().is_none_or(|best| hides_too.len() < best.hides_too.len()) {
                best = Some(Specific { line: format!("leak:^{name}$"), hides_too });
            }
            if best.as_ref().is_some_and(|best| best.hides_too.is_empty()) {
                break;
            }
        }
        best
    }

    /// Stacks with a name that the pattern matches as a whole; they may repeat.
    fn with(&self, pattern: &str) -> impl Iterator<Item = usize> {
        let exact = self.names.get(pattern).filter(|_| !pattern.contains('*')).into_iter();
        let matched = self.names.iter().filter(|(name, _)| pattern.contains('*') && wildcard(pattern, name));
        exact.chain(matched.map(|(_, stacks)| stacks)).flatten().copied()
    }
}

/// What the rules of a `leak:` line compare of a frame.
fn names_of(frame: &Frame) -> impl Iterator<Item = Cow<'_, str>> {
    let function = frame.function.as_deref().unwrap_or(UNKNOWN);
    let plain = frame.inlined.then(|| plain_name(function).into());
    let linkage = frame.linkage_name.as_deref().map(Cow::Borrowed);
    let object = Some(if frame.object.is_empty() { UNKNOWN } else { &*frame.object }.into());
    [Some(function.into()), linkage, plain, object, source_path(frame)].into_iter().flatten()
}
