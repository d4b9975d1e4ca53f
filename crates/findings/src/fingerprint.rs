//! The identity of a finding across builds, machines and optimisation levels.
//!
//! Baselines and diffs hang on it, so how it is made never changes within one version prefix. It is the
//! 64-bit XXH3 (a published, frozen algorithm) of this text, one line each, every line ended by a newline:
//!
//! ```text
//! lks1                     the version of this recipe
//! leak                     the class: leak, or one of Memcheck's error kinds (InvalidFree, MismatchedFree, ...)
//! make_node                the logical call path, innermost first, inlined functions expanded
//! build_list
//! main
//! ```
//!
//! * **The class of a leak is `leak` for all four leak kinds.** Whether a block is definitely or possibly lost
//!   depends on stale words in registers and on stacks, so the kind may change where the leak does not.
//! * **The allocation function is not part**: the optimiser turns `malloc` + `memset` into `calloc`, and the
//!   path says where it is. For an error it is not part either; its class is.
//! * Functions: the last part of the demangled name, without scope, template arguments and parameters: `push_back`,
//!   `operator new`, `~Node`, `{closure}`. No more of it is the same everywhere: debug information names an inlined
//!   function so, and Valgrind with it, while symbol tables and sanitizers have all of it. Gone too are ABI tags
//!   (`[abi:cxx11]`), clone suffixes (`.isra.0`, `.part.1`, `.constprop.2`, `.cold`, `.lto_priv.3`, `.llvm.123`,
//!   ` [clone ...]`), Rust's hash (`::h0123456789abcdef`) and glibc's aliases (`__GI_`, `@@GLIBC_2.34`). What tells two
//!   findings apart is the whole path.
//! * What runs below `main`, and the start of a thread, is dropped: `__libc_start_main` and its kin, `_start`,
//!   `start_thread`, `clone`, Rust's and C++'s run-time entry.
//! * Recursion is collapsed: a cycle of up to four functions that repeats at once is taken once.
//! * A frame without a name is `FILE+0xOFFSET` (file name of the module, link-time address), and a run of such
//!   frames of one module is the module's name alone after its first, as the inlining of stripped code is unknown.
//! * The 24 innermost functions count, of the whole recorded stack: `--num-callers` has no part in it.
//! * A loss record that merges several stacks has the least of their fingerprints. Two records may have the same
//!   one: two calls in one function differ in their lines only, and lines shift. Who compares adds them up.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use leakscope_model::{ErrorKind, MisuseKind};

use crate::analysis::Frame;

/// Functions that count.
const MOST_FUNCTIONS: usize = 24;
/// The longest cycle that is taken for recursion.
const LONGEST_CYCLE: usize = 4;

/// The identity of a finding; shown as 16 hex digits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(pub u64);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl std::str::FromStr for Fingerprint {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(Self)
    }
}

/// The fingerprint of a leak with this stack (all frames, allocation function first).
pub fn of_leak(frames: &[Frame]) -> Fingerprint {
    let steps: Vec<Step> = frames.iter().skip(1).map(Step::of).collect();
    leak_at(&mut steps.iter())
}

/// The fingerprint of a wrong call with this stack (all frames, called function first).
pub fn of_misuse(kind: MisuseKind, frames: &[Frame]) -> Fingerprint {
    let steps: Vec<Step> = frames.iter().skip(1).map(Step::of).collect();
    misuse_at(kind, &mut steps.iter())
}

/// What a frame adds to a call path.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    /// Normalised name; `None` for code without one.
    name: Option<String>,
    /// The part of it that counts.
    bare: String,
    /// Of that part, so that different ones are told apart without a look at them.
    hash: u64,
    /// Whether the name starts programs or threads.
    below_main: bool,
    object: Arc<str>,
    svma: u64,
}

impl Step {
    pub(crate) fn of(frame: &Frame) -> Self {
        let name = frame.function.as_deref().filter(|name| !name.is_empty()).map(normalise);
        let bare = name.as_deref().map(bare_name).unwrap_or_default();
        Self {
            below_main: name.as_deref().is_some_and(is_below_main),
            hash: xxhash_rust::xxh3::xxh3_64(bare.as_bytes()),
            name,
            bare,
            object: frame.object.clone(),
            svma: frame.svma,
        }
    }
}

/// The fingerprint of a leak by the steps of its stack, without the allocation function.
pub(crate) fn leak_at(steps: &mut dyn Iterator<Item = &Step>) -> Fingerprint {
    of("leak", steps)
}

/// The fingerprint of a wrong call, likewise.
pub(crate) fn misuse_at(kind: MisuseKind, steps: &mut dyn Iterator<Item = &Step>) -> Fingerprint {
    of(class(kind), steps)
}

/// The fingerprint of a memory error by the steps of its stack, all of them.
pub(crate) fn memory_error_at(kind: ErrorKind, steps: &mut dyn Iterator<Item = &Step>) -> Fingerprint {
    of(kind.name(), steps)
}

/// The class of a wrong call. Double frees and other wrong frees differ: they are different bugs.
fn class(kind: MisuseKind) -> &'static str {
    match kind {
        MisuseKind::DoubleFree => "DoubleFree",
        MisuseKind::InvalidFree => "InvalidFree",
        MisuseKind::InteriorFree => "InteriorFree",
        MisuseKind::MismatchedFree => "MismatchedFree",
        MisuseKind::InvalidRealloc => "InvalidRealloc",
        MisuseKind::Overrun => "Overrun",
        MisuseKind::FishySize => "FishyValue",
        MisuseKind::ReallocZero => "ReallocZero",
    }
}

fn of(class: &str, steps: &mut dyn Iterator<Item = &Step>) -> Fingerprint {
    let path = path_of(steps);
    let mut text = String::with_capacity(path.iter().map(|function| function.bare.len() + 1).sum::<usize>() + 32);
    for line in ["lks1", class].into_iter().chain(path.iter().map(|function| &*function.bare)) {
        text.push_str(line);
        text.push('\n');
    }
    Fingerprint(xxhash_rust::xxh3::xxh3_64(text.as_bytes()))
}

/// The call path of a stack for people, innermost first, without the allocation function: normalised names with scope.
pub fn call_path(frames: &[Frame]) -> Vec<String> {
    let steps: Vec<Step> = frames.iter().skip(1).map(Step::of).collect();
    path_of(&mut steps.iter()).into_iter().map(|function| function.shown.unwrap_or(&function.bare).to_owned()).collect()
}

/// A function of a path; equal ones have equal hashes.
struct Function<'a> {
    hash: u64,
    bare: Cow<'a, str>,
    /// The whole name, where it has one.
    shown: Option<&'a str>,
}

impl PartialEq for Function<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.bare == other.bare
    }
}

fn path_of<'a>(steps: &mut dyn Iterator<Item = &'a Step>) -> Vec<Function<'a>> {
    let mut path: Vec<Function<'a>> = Vec::with_capacity(MOST_FUNCTIONS + LONGEST_CYCLE);
    let mut nameless_in: Option<&Arc<str>> = None;
    for step in steps {
        let Some(name) = &step.name else {
            let object = step.object.rsplit('/').next().unwrap_or_default();
            if nameless_in != Some(&step.object) {
                let bare = format!("{object}+{:#x}", step.svma).into();
                path.push(Function { hash: step.svma, bare, shown: None });
            }
            nameless_in = Some(&step.object);
            continue;
        };
        nameless_in = None;
        if step.below_main {
            break;
        }
        let end = name == "main";
        path.push(Function { hash: step.hash, bare: step.bare.as_str().into(), shown: Some(name) });
        collapse_recursion(&mut path);
        // A cycle that is still open may shorten the path by its length.
        if end || path.len() >= MOST_FUNCTIONS + LONGEST_CYCLE {
            break;
        }
    }
    path.truncate(MOST_FUNCTIONS);
    path
}

/// Drops the last functions when they repeat those just before.
fn collapse_recursion(path: &mut Vec<Function<'_>>) {
    for cycle in 1..=LONGEST_CYCLE.min(path.len() / 2) {
        let (rest, last) = path.split_at(path.len() - cycle);
        if rest.ends_with(last) {
            path.truncate(path.len() - cycle);
            return;
        }
    }
}

/// What starts a program or a thread, normalised.
fn is_below_main(name: &str) -> bool {
    const NAMES: [&str; 26] = [
        "asan_thread_start",
        "lsan_thread_start",
        "__asan::AsanThread::ThreadStart",
        "__lsan_thread_start_func",
        "(below main)",
        "__libc_start_main",
        "__libc_start_main_impl",
        "__libc_start_call_main",
        "generic_start_main",
        "_start",
        "_dl_start_user",
        "start_thread",
        "__clone",
        "__clone3",
        "clone",
        "clone3",
        "thread_start",
        "std::rt::lang_start",
        "std::rt::lang_start_internal",
        "std::sys::backtrace::__rust_begin_short_backtrace",
        "std::sys_common::backtrace::__rust_begin_short_backtrace",
        "execute_native_thread_routine",
        "_dl_init",
        "call_init",
        "__libc_csu_init",
        "core::ops::function::FnOnce::call_once",
    ];
    NAMES.contains(&name)
}

/// The last part of a normalised name, as debug information names an inlined function.
fn bare_name(name: &str) -> String {
    if let Some(operator) = operator_name(name) {
        return operator;
    }
    let mut depth = 0_usize;
    let mut flat = String::with_capacity(name.len());
    for (at, letter) in name.char_indices() {
        match letter {
            // The numbers of closures are not the same in all spellings: `{{closure}}`, `{closure#0}`.
            '{' if depth == 0 && (at == 0 || name[..at].ends_with("::")) => {
                depth += 1;
                flat.push_str("{closure}");
            }
            '<' | '(' | '{' => depth += 1,
            '>' | ')' | '}' => depth = depth.saturating_sub(1),
            _ if depth == 0 => flat.push(letter),
            _ => {}
        }
    }
    // In front of an instance of a template stands the type that it returns.
    let last = flat.rsplit("::").next().unwrap_or_default().trim_end().rsplit(' ').next().unwrap_or_default();
    if last.is_empty() { name.to_owned() } else { last.to_owned() }
}

/// `operator` and its symbol, when that is what the name ends in; conversions are `operator` alone, because a type has
/// many spellings.
fn operator_name(name: &str) -> Option<String> {
    /// The longer ones first.
    const SYMBOLS: [&str; 44] = [
        "<=>",
        "<<=",
        ">>=",
        "->*",
        "<<",
        ">>",
        "<=",
        ">=",
        "==",
        "!=",
        "&&",
        "||",
        "++",
        "--",
        "->",
        "+=",
        "-=",
        "*=",
        "/=",
        "%=",
        "^=",
        "&=",
        "|=",
        "()",
        "[]",
        "+",
        "-",
        "*",
        "/",
        "%",
        "^",
        "&",
        "|",
        "~",
        "!",
        "=",
        "<",
        ">",
        ",",
        " new[]",
        " delete[]",
        " new",
        " delete",
        " co_await",
    ];
    let mut depth = 0_usize;
    let mut ends_in = None;
    let mut rest = name;
    while let Some(letter) = rest.chars().next() {
        let before = &name[..name.len() - rest.len()];
        let starts_word = !before.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        if let Some(after) = rest.strip_prefix("operator").filter(|_| starts_word)
            && !after.starts_with(|c: char| c.is_alphanumeric() || c == '_')
        {
            let symbol = SYMBOLS.iter().find(|symbol| after.starts_with(**symbol)).copied().unwrap_or_default();
            if depth == 0 {
                ends_in = Some(symbol);
            }
            rest = &after[symbol.len()..];
            // A conversion's type may have a scope of its own, which is not the name's.
            if depth == 0 && symbol.is_empty() {
                break;
            }
            continue;
        }
        match letter {
            '<' | '(' | '{' => depth += 1,
            '>' | ')' | '}' => depth = depth.saturating_sub(1),
            // What follows the operator is the scope of something else, such as a lambda in it.
            ':' if depth == 0 => ends_in = None,
            _ => {}
        }
        rest = &rest[letter.len_utf8()..];
    }
    ends_in.map(|symbol| format!("operator{symbol}"))
}

/// A function's name without what changes from build to build.
pub fn normalise(name: &str) -> String {
    let mut name = name;
    for prefix in ["__GI_", "__interceptor_"] {
        name = name.strip_prefix(prefix).unwrap_or(name);
    }
    if let Some((front, _)) = name.split_once(" [clone") {
        name = front;
    }
    if let Some((front, version)) = name.split_once('@')
        && !front.is_empty()
        && version.trim_start_matches('@').chars().all(|c| c.is_ascii_alphanumeric() || "._".contains(c))
    {
        name = front;
    }
    let mut name = without_parameters(name).to_owned();
    while let Some(start) = name.find("[abi:") {
        let Some(end) = name[start..].find(']') else { break };
        name.replace_range(start..start + end + 1, "");
    }
    name = without_hash(&name).to_owned();
    while let Some(shorter) = without_clone_suffix(&name) {
        name.truncate(shorter);
    }
    without_numbers_of_closures(&name)
}

/// Without the parameter list and what follows it (`const`), but with template arguments.
fn without_parameters(name: &str) -> &str {
    if !name.ends_with(')') && !name.ends_with(" const") && !name.ends_with('&') {
        return name;
    }
    let bytes = name.as_bytes();
    let Some(close) = name.rfind(')') else { return name };
    // Only qualifiers may follow a parameter list.
    if !name[close + 1..].chars().all(|c| c.is_ascii_lowercase() || c == ' ' || c == '&') {
        return name;
    }
    let mut depth = 0_usize;
    for at in (0..=close).rev() {
        match bytes[at] {
            b')' => depth += 1,
            b'(' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    // `operator()` and `(anonymous namespace)` are names, not parameters.
                    let front = &name[..at];
                    let is_name = front.is_empty() || front.ends_with("operator") || front.ends_with("::");
                    return if is_name { name } else { front };
                }
            }
            _ => {}
        }
    }
    name
}

/// Without Rust's `::h` and 16 hex digits.
fn without_hash(name: &str) -> &str {
    match name.rsplit_once("::h") {
        Some((front, hash)) if hash.len() == 16 && hash.bytes().all(|b| b.is_ascii_hexdigit()) => front,
        _ => name,
    }
}

/// Length without the last suffix that a compiler gave a copy of a function.
fn without_clone_suffix(name: &str) -> Option<usize> {
    const WORDS: [&str; 11] = [
        "isra",
        "part",
        "constprop",
        "cold",
        "lto_priv",
        "llvm",
        "localalias",
        "clone",
        "specialized",
        "resolver",
        "ifunc",
    ];
    let (front, last) = name.rsplit_once('.')?;
    if front.is_empty() {
        return None;
    }
    if WORDS.contains(&last) {
        return Some(front.len());
    }
    let (before, word) = front.rsplit_once('.')?;
    let numbered = !last.is_empty() && last.bytes().all(|b| b.is_ascii_digit());
    (numbered && !before.is_empty() && WORDS.contains(&word)).then_some(before.len())
}

/// `{lambda(int)#2}` and `{{closure}}#3` without their numbers, which count what comes before in the file.
fn without_numbers_of_closures(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(at) = rest.find('#') {
        out.push_str(&rest[..at]);
        let after = rest[at + 1..].trim_start_matches(|c: char| c.is_ascii_digit());
        let counts = after.len() < rest.len() - at - 1 && (out.ends_with([')', '}']) || after.starts_with('}'));
        if !counts {
            out.push_str(&rest[at..rest.len() - after.len()]);
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::{bare_name, normalise};

    #[test]
    fn all_spellings_of_a_function_have_one_bare_name() {
        let table = [
            ("std::vector<int, std::allocator<int> >::push_back(int&&)", "push_back"),
            ("push_back", "push_back"),
            ("void lose_realloc<long>(long)", "lose_realloc"),
            ("lose_realloc<long>", "lose_realloc"),
            ("std::map<int, int>::operator[](int const&)", "operator[]"),
            ("A std::operator+<char, std::char_traits<char> >(A&&, char const*)", "operator+"),
            ("operator+<char, std::char_traits<char> >", "operator+"),
            ("std::ostream& operator<< <char>(std::ostream&, char)", "operator<<"),
            ("operator new[](unsigned long)", "operator new[]"),
            ("Node::operator std::string() const", "operator"),
            ("Node::operator std::__cxx11::basic_string<char>()", "operator"),
            ("main::{lambda(int)#2}::operator()(int) const", "operator()"),
            ("main::$_0::operator()(int) const", "operator()"),
            ("T::operator()(int)::{lambda()#1}::_FUN()", "_FUN"),
            ("my_operator", "my_operator"),
            ("operators::run()", "run"),
            ("(anonymous namespace)::read(int)", "read"),
            ("List::~List()", "~List"),
            ("app::run::{{closure}}::h0123456789abcdef", "{closure}"),
            ("{closure#0}", "{closure}"),
            ("<alloc::vec::Vec<T> as core::clone::Clone>::clone", "clone"),
            ("f.constprop.0", "f"),
            ("a.b", "a.b"),
            ("((", "(("),
            ("main", "main"),
        ];
        for (name, expected) in table {
            assert_eq!(bare_name(&normalise(name)), expected, "{name}");
        }
    }
}
