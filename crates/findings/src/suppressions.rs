//! Valgrind's suppression files: which findings a user does not want to see.
//!
//! Syntax and matching follow Valgrind's manual, sections 2.5 ("Suppressing errors") and 4.4 ("Writing
//! suppression files"). A rule's stack is matched against the innermost frames of a finding, inlined functions
//! expanded; `...` stands for any number of frames. Of several rules that match, the one read last wins, as in
//! Valgrind. `fun:` compares the linker's (mangled) name, as Valgrind does, and the demangled name too, which
//! Valgrind never has in a file it accepts; an inlined function has both names here.
//!
//! ```text
//! {
//!    a name
//!    Memcheck:Leak
//!    match-leak-kinds: definite,possible
//!    fun:malloc
//!    ...
//!    obj:*/libfoo.so*
//!    src:foo.c:123
//! }
//! ```
//!
//! A comment inside of a rule, or above it, may bound it, and Valgrind reads the file all the same; what is bounded and
//! how it is held to that stands in [`health`]:
//!
//! ```text
//!    # leakscope: max-bytes=4096 max-blocks=10 until=2027-01-31
//! ```
//!
//! Lines of LeakSanitizer's files (`leak:foo`) are rules too, in the same file or another: see [`lsan`].

mod generate;
pub mod health;
mod lsan;
mod matcher;
mod matching;
mod parse;

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use jiff::civil::Date;
use leakscope_model::{ErrorKind, LeakKind, LeakKindSet, MisuseKind};

use crate::analysis::Frame;

pub use generate::{Generated, generate};
pub use lsan::{Specific, Specifics};
pub use matcher::Matcher;

/// Stands for the file of [`BUILT_IN`].
pub const BUILT_IN_FILE: &str = "built-in rules";

/// The rules that `--default-suppressions=yes` adds: blocks that no program can release, and that Memcheck hides too.
///
/// The loader allocates the thread-local storage of libraries that were loaded later when a thread first uses it, and
/// keeps pointers into the middle of the blocks. It is released with the thread; of a thread that lives to the end it is
/// possibly lost or still reachable, whatever the program does. That `ld.so` stands in the second frame spares the names
/// of all other stacks.
pub const BUILT_IN: &str = "\
{
   glibc: thread-local storage of a library that was loaded later
   Memcheck:Leak
   match-leak-kinds: possible,reachable
   fun:*alloc
   obj:*/ld-*.so*
   ...
   fun:__tls_get_addr
}
";

/// What a gate hides besides. Memcheck shows it, and so do our reports.
///
/// Rust's library allocates the handle of a thread that it did not start, such as the main thread, when somebody first
/// asks for it, and keeps a pointer behind its two counters. Its test harness asks, in every test program. Source:
/// `library/std/src/thread/current.rs`, `init_current`.
pub const BUILT_IN_FOR_GATES: &str = "\
{
   Rust: the handle of the main thread
   Memcheck:Leak
   match-leak-kinds: possible,reachable
   fun:*alloc
   ...
   fun:std::thread::current::init_current*
}
";

/// A rule's number in its [`Suppressions`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleId(pub u32);

/// Rules of any number of files.
#[derive(Clone, Debug, Default)]
pub struct Suppressions {
    rules: Vec<Rule>,
    notes: Vec<String>,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its name.
    pub name: Arc<str>,
    /// The file it stands in.
    pub file: Arc<str>,
    /// The line of its name.
    pub line: u32,
    /// What it hides.
    pub kind: RuleKind,
    /// Its stack, innermost frame first.
    pub stack: Vec<FramePattern>,
    /// What it may hide at most, and how long.
    pub limits: Limits,
}

/// What a `# leakscope:` comment says of a rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// The most bytes that it may hide.
    pub most_bytes: Option<u64>,
    /// The most blocks that it may hide.
    pub most_blocks: Option<u64>,
    /// The last day on which it hides anything.
    pub until: Option<Date>,
}

/// What a rule hides. Kinds that only a checker of every memory access finds are kept but never match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuleKind {
    /// `Leak`, of these kinds.
    Leak(LeakKindSet),
    /// `Free`: every wrong call but those below. A write past the end, found at the release, is one.
    Free,
    /// `ReallocZero`, as Valgrind has it since 3.21.
    ReallocZero,
    /// `FishyValue`, of this argument of this function.
    FishyValue {
        /// Such as `malloc`.
        function: String,
        /// Such as `size`.
        argument: String,
    },
    /// A kind that Memcheck knows and that is never found here, such as `Value8` or `Param`.
    Other(String),
}

/// One line of a rule's stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FramePattern {
    /// `fun:`, with wildcards.
    Function(String),
    /// `obj:`, with wildcards.
    Object(String),
    /// `src:`, with wildcards, and a line.
    Source {
        /// Name of the file.
        file: String,
        /// Line; `None` for any.
        line: Option<u32>,
    },
    /// Of LeakSanitizer: the path of the source file, with wildcards.
    Path(String),
    /// `...`
    AnyFrames,
}

/// What a rule is asked to hide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// A loss record.
    Leak(LeakKind),
    /// A wrong call.
    Misuse(MisuseKind),
    /// A memory error that another tool found.
    Memory {
        /// Its kind.
        kind: ErrorKind,
        /// Bytes of the access, 0 when unknown.
        bytes: u64,
        /// What the tool said of it.
        message: String,
    },
}

/// A mistake in a suppression file. The words name the file and the line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SuppressionError {
    /// The file.
    pub file: String,
    /// The line, from 1.
    pub line: u32,
    /// What was expected there.
    pub expected: String,
    /// What was found instead; empty for the end of the file.
    pub found: String,
}

impl fmt::Display for SuppressionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "suppression file {}:{}: expected {}, found ", self.file, self.line, self.expected)?;
        if self.found.is_empty() { write!(f, "the end of the file") } else { write!(f, "`{}`", self.found) }
    }
}

impl std::error::Error for SuppressionError {}

impl Suppressions {
    /// No rules.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the rules in `text`, the contents of the file `file`. Rules for other tools are left out.
    ///
    /// # Errors
    /// At the first mistake; no rule of this file is added then.
    pub fn add(&mut self, file: &str, text: &str) -> Result<(), SuppressionError> {
        let (rules, notes) = parse::parse(file, text)?;
        self.rules.extend(rules);
        self.notes.extend(notes);
        Ok(())
    }

    /// Adds the rules of another.
    pub fn append(&mut self, other: Self) {
        self.rules.extend(other.rules);
        self.notes.extend(other.notes);
    }

    /// What of the files has no effect, one sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Takes out the rules that hide nothing any more on this day, and gives them.
    pub fn expire(&mut self, today: Date) -> Self {
        let is_over = |rule: &mut Rule| rule.limits.until.is_some_and(|until| until < today);
        Self { rules: self.rules.extract_if(.., is_over).collect(), notes: Vec::new() }
    }

    /// The rules, in the order in which they were read.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The rule with this number.
    pub fn rule(&self, id: RuleId) -> Option<&Rule> {
        self.rules.get(id.0 as usize)
    }

    /// The rule that hides `error` with this stack, innermost frame first: rule after rule is tried, the last one first.
    /// For very many stacks there is [`Matcher`].
    pub fn find(&self, error: &Error, frames: &[impl Borrow<Frame>]) -> Option<RuleId> {
        let called = frames.first().map(Borrow::borrow);
        let found = self
            .rules
            .iter()
            .enumerate()
            .rev()
            .find(|(_, rule)| rule.kind.covers(error, called) && matching::stack_matches(&rule.stack, frames));
        found.map(|(number, _)| RuleId(number as u32))
    }
}

impl RuleKind {
    fn covers(&self, error: &Error, called: Option<&Frame>) -> bool {
        match (self, error) {
            (Self::Leak(kinds), Error::Leak(kind)) => kinds.contains(*kind),
            (Self::FishyValue { function, argument }, Error::Misuse(MisuseKind::FishySize)) => {
                let called = called.and_then(|frame| frame.function.as_deref()).unwrap_or_default();
                let (name, arguments) = fishy_names(called);
                function == name && arguments.contains(&argument.as_str())
            }
            (Self::Free, Error::Misuse(kind)) => !matches!(kind, MisuseKind::FishySize | MisuseKind::ReallocZero),
            (Self::ReallocZero, Error::Misuse(MisuseKind::ReallocZero)) => true,
            (Self::Other(word), Error::Memory { kind, bytes, message }) => is_rule_for(word, *kind, *bytes, message),
            _ => false,
        }
    }
}

/// Whether a rule of Memcheck's kind `word` is about such a memory error.
fn is_rule_for(word: &str, kind: ErrorKind, bytes: u64, message: &str) -> bool {
    match kind {
        ErrorKind::InvalidRead | ErrorKind::InvalidWrite => word.strip_prefix("Addr") == Some(&bytes.to_string()),
        ErrorKind::UninitValue => word.strip_prefix("Value") == Some(&bytes.to_string()),
        ErrorKind::UninitCondition => matches!(word, "Cond" | "Value0"),
        ErrorKind::SyscallParam => word.strip_prefix("Param ").is_some_and(|call| message.contains(call)),
        ErrorKind::InvalidJump => word == "Jump",
        ErrorKind::Overlap => word == "Overlap",
        ErrorKind::ClientCheck => word == "User",
        _ => false,
    }
}

/// The kind of rule that hides such a memory error.
fn rule_for(kind: ErrorKind, bytes: u64, message: &str) -> (String, Option<String>) {
    let word = match kind {
        ErrorKind::UninitCondition => "Cond".to_owned(),
        ErrorKind::UninitValue => format!("Value{bytes}"),
        ErrorKind::InvalidJump => "Jump".to_owned(),
        ErrorKind::Overlap => "Overlap".to_owned(),
        ErrorKind::ClientCheck => "User".to_owned(),
        ErrorKind::SyscallParam => {
            let call = message.strip_prefix("Syscall param ").and_then(|rest| rest.split(' ').next());
            return ("Memcheck:Param".to_owned(), Some(call.unwrap_or("*").to_owned()));
        }
        _ => format!("Addr{bytes}"),
    };
    (format!("Memcheck:{word}"), None)
}

/// What Memcheck calls an allocation function and its arguments in a FishyValue error.
pub fn fishy_names(function: &str) -> (&str, &'static [&'static str]) {
    match function {
        "calloc" => ("calloc", &["nmemb", "size"]),
        "aligned_alloc" | "memalign" | "posix_memalign" | "valloc" | "pvalloc" => ("memalign", &["size"]),
        "realloc" | "reallocarray" => ("realloc", &["size"]),
        _ if function.starts_with("operator new[](") => (
            if function.contains("align_val_t") { "__builtin_vec_new_aligned" } else { "__builtin_vec_new" },
            &["size"],
        ),
        _ if function.starts_with("operator new(") => {
            (if function.contains("align_val_t") { "__builtin_new_aligned" } else { "__builtin_new" }, &["size"])
        }
        other => (other, &["size"]),
    }
}
