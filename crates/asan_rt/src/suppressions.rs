//! Suppressions by file: `kind:pattern` lines. Patterns match anywhere; `*` stands for anything, `^` and `$` for the
//! ends.

use crate::report::stack::symbolized;
use crate::symbolize::Frame;
use crate::unwind::Caller;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::UnsafeCell;
use core::sync::atomic::Ordering::{Acquire, Release};
use core::sync::atomic::{AtomicBool, AtomicUsize};
use leakscope_rt::memory::Lock;

/// A rule.
pub struct Rule {
    /// What it hides: "leak", "interceptor_name", ...
    pub kind: String,
    /// What names it matches.
    pub pattern: String,
    /// How often it did.
    pub hits: AtomicUsize,
    /// How many bytes it hid.
    pub hidden_bytes: AtomicUsize,
}

/// Whether a pattern matches a name.
#[must_use]
pub fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, at_start) = pattern.strip_prefix('^').map_or((pattern, false), |rest| (rest, true));
    let (pattern, at_end) = pattern.strip_suffix('$').map_or((pattern, false), |rest| (rest, true));
    let mut rest = name;
    let pieces: Vec<&str> = pattern.split('*').collect();
    for (number, piece) in pieces.iter().enumerate() {
        let is_last = number + 1 == pieces.len();
        if number == 0 && at_start {
            match rest.strip_prefix(piece) {
                Some(after) => rest = after,
                None => return false,
            }
            if is_last && at_end {
                return rest.is_empty();
            }
        } else if is_last && at_end {
            return rest.ends_with(piece);
        } else {
            match rest.find(piece) {
                Some(at) => rest = rest.get(at + piece.len()..).unwrap_or(""),
                None => return false,
            }
        }
    }
    true
}

/// The rules of a text. The error is a sentence.
///
/// # Errors
/// A line is no rule of a known kind.
pub fn decode(text: &str, kinds: &[&str]) -> Result<Vec<Rule>, String> {
    let mut rules = Vec::new();
    for line in text.lines() {
        let line = line.trim_start_matches([' ', '\t']).trim_end_matches(['\r', ' ', '\t']);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match line.split_once(':').filter(|(kind, _)| kinds.contains(kind)) {
            Some((kind, pattern)) => rules.push(Rule {
                kind: String::from(kind),
                pattern: String::from(pattern),
                hits: AtomicUsize::new(0),
                hidden_bytes: AtomicUsize::new(0),
            }),
            None => return Err(alloc::format!("failed to parse suppressions: {line}")),
        }
    }
    Ok(rules)
}

/// Kinds of rules for findings.
pub const KINDS: &[&str] =
    &["interceptor_name", "interceptor_via_fun", "interceptor_via_lib", "odr_violation", "alloc_dealloc_mismatch"];
/// Kinds of rules for leaks.
pub const LEAK_KINDS: &[&str] = &["leak"];

struct Shared {
    lock: Lock,
    rules: UnsafeCell<Vec<Rule>>,
}
// SAFETY: rules are added at the start, with the lock held; they are only read afterwards.
unsafe impl Sync for Shared {}

static RULES: Shared = Shared { lock: Lock::new(), rules: UnsafeCell::new(Vec::new()) };
static IS_READY: AtomicBool = AtomicBool::new(false);

/// Adds rules, at the start.
pub fn add(rules: Vec<Rule>) {
    let _held = RULES.lock.lock();
    // SAFETY: the lock is held, and nobody reads yet.
    unsafe { (*RULES.rules.get()).extend(rules) };
    IS_READY.store(true, Release);
}

fn rules() -> &'static [Rule] {
    if !IS_READY.load(Acquire) {
        return &[];
    }
    // SAFETY: see `Shared`.
    unsafe { &*RULES.rules.get() }
}

/// The first rule of a kind that matches a name.
pub fn find(kind: &str, name: &str) -> Option<&'static Rule> {
    rules().iter().find(|rule| rule.kind == kind && matches(&rule.pattern, name))
}

/// Whether findings in a function of libc are hidden.
#[must_use]
pub fn is_interceptor_suppressed(name: &str) -> bool {
    find("interceptor_name", name).is_some()
}

/// Whether a name may be defined twice.
#[must_use]
pub fn is_odr_violation(name: &str) -> bool {
    find("odr_violation", name).is_some()
}

fn has_kind(kind: &str) -> bool {
    rules().iter().any(|rule| rule.kind == kind)
}

/// Whether a function or library on the stack hides what happens below it.
#[must_use]
pub fn is_stack_suppressed(caller: &Caller) -> bool {
    if !has_kind("interceptor_via_fun") && !has_kind("interceptor_via_lib") {
        return false;
    }
    symbolized(&caller.frames(256)).iter().any(|frame| {
        let by_function = |name: &String| find("interceptor_via_fun", name).is_some();
        let by_library = |name: &String| find("interceptor_via_lib", name).is_some();
        frame.function.as_ref().is_some_and(by_function) || frame.module.as_ref().is_some_and(by_library)
    })
}

/// The rule that hides a leak from these functions.
#[must_use]
pub fn leak_rule(frames: &[Frame]) -> Option<&'static Rule> {
    frames.iter().find_map(|frame| {
        let module = frame.module.as_deref().unwrap_or("<unknown module>");
        let names = [frame.function.as_deref(), frame.file.as_deref(), Some(module)];
        names.into_iter().flatten().find_map(|name| find("leak", name))
    })
}

/// The rules for leaks that hid something.
pub fn used_leak_rules() -> impl Iterator<Item = &'static Rule> {
    rules().iter().filter(|rule| rule.kind == "leak" && rule.hits.load(Acquire) > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, name, expected) in [
            ("foo", "a_foo_b", true),
            ("^foo", "a_foo_b", false),
            ("^foo", "foo_b", true),
            ("foo$", "a_foo", true),
            ("foo$", "foo_b", false),
            ("^foo$", "foo", true),
            ("^foo$", "foofoo", false),
            ("a*b", "xx a yy b zz", true),
            ("a*b", "b a", false),
            ("*libfoo*", "/usr/libfoo.so", true),
            ("^a*b$", "a bc", false),
            ("", "anything", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} on {name}");
        }
    }

    #[test]
    fn rules_decode() {
        let rules = decode("# comment\n\n leak:foo \nleak:b:c\r\n", LEAK_KINDS).expect("good");
        assert_eq!(rules.iter().map(|rule| rule.pattern.as_str()).collect::<Vec<_>>(), ["foo", "b:c"]);
        assert!(decode("nonsense:foo", LEAK_KINDS).is_err());
        assert!(decode("foo", KINDS).is_err());
    }
}
