//! `ASAN_OPTIONS` and `LSAN_OPTIONS`: names, values, and what is wrong with them.
//!
//! Read once, at the very start, possibly before libc is initialised.

mod table;

pub use table::Options;

use alloc::string::String;
use alloc::vec::Vec;
use core::cell::UnsafeCell;
use core::fmt::Write;

/// A text that lives as long as the process.
pub type Text = &'static str;

/// What to do with a deadly signal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Handle(pub u8);

impl Handle {
    /// Whether our handler is installed.
    #[must_use]
    pub fn is_ours(self) -> bool {
        self.0 > 0
    }

    /// Whether the program may not install its own.
    #[must_use]
    pub fn is_exclusive(self) -> bool {
        self.0 > 1
    }
}

/// A type that options have: how it is read and shown.
pub(crate) trait Value: Sized {
    /// Why the text is none: what the message calls the type.
    fn decode(text: &str) -> Result<Self, &'static str>;
    fn show(&self, out: &mut String);
}

impl Value for bool {
    fn decode(text: &str) -> Result<Self, &'static str> {
        match text {
            "0" | "no" | "false" => Ok(false),
            "1" | "yes" | "true" => Ok(true),
            _ => Err("bool"),
        }
    }

    fn show(&self, out: &mut String) {
        out.push_str(if *self { "true" } else { "false" });
    }
}

impl Value for i64 {
    fn decode(text: &str) -> Result<Self, &'static str> {
        let (digits, negative) = text.strip_prefix('-').map_or((text, false), |rest| (rest, true));
        let number = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
            Some(hex) => i64::from_str_radix(hex, 16),
            None => digits.parse(),
        };
        number.map(|number| if negative { -number } else { number }).map_err(|_| "int")
    }

    fn show(&self, out: &mut String) {
        let _ = write!(out, "{self}");
    }
}

impl Value for Handle {
    fn decode(text: &str) -> Result<Self, &'static str> {
        match text {
            "2" | "exclusive" => Ok(Self(2)),
            _ => bool::decode(text).map(|yes| Self(u8::from(yes))).map_err(|_| "signal handler"),
        }
    }

    fn show(&self, out: &mut String) {
        let _ = write!(out, "{}", self.0);
    }
}

impl Value for Text {
    fn decode(text: &str) -> Result<Self, &'static str> {
        Ok(String::from(text).leak())
    }

    fn show(&self, out: &mut String) {
        out.push_str(if self.is_empty() { "<null>" } else { self });
    }
}

macro_rules! define_options {
    ($($name:ident: $kind:ident = $default:expr;)*) => {
        /// The values of all options.
        #[derive(Clone, Copy)]
        #[allow(missing_docs)]
        pub struct Options {
            $(pub $name: $kind,)*
            pub suppressions: $crate::options::Text,
            pub leak_suppressions: $crate::options::Text,
        }

        impl Options {
            /// The defaults.
            pub const DEFAULT: Self = Self { $($name: $crate::options::default!($kind, $default),)* suppressions: "", leak_suppressions: "" };

            /// Sets an option from its text. `None`: there is no such option.
            pub(super) fn set(&mut self, name: &str, text: &str) -> Option<Result<(), &'static str>> {
                match name {
                    $(stringify!($name) => Some($crate::options::Value::decode(text).map(|value| self.$name = value)),)*
                    _ => None,
                }
            }

            /// Names and values, as `help=1` shows them.
            pub(super) fn show(&self, out: &mut alloc::string::String) {
                $(
                    let mut value = alloc::string::String::new();
                    $crate::options::Value::show(&self.$name, &mut value);
                    $crate::options::show_one(out, stringify!($name), &value);
                )*
            }
        }
    };
}
pub(crate) use define_options;

macro_rules! default {
    (Handle, $value:expr) => {
        $crate::options::Handle($value)
    };
    ($kind:ident, $value:expr) => {
        $value
    };
}
pub(crate) use default;

struct Shared(UnsafeCell<Options>);
// SAFETY: written once, at the start, when there is one thread; read afterwards.
unsafe impl Sync for Shared {}

static OPTIONS: Shared = Shared(UnsafeCell::new(Options::DEFAULT));

/// The options of this process.
#[inline(always)]
pub fn options() -> &'static Options {
    // SAFETY: see `Shared`.
    unsafe { &*OPTIONS.0.get() }
}

/// Changes options; only while there is one thread.
pub fn change(body: impl FnOnce(&mut Options)) {
    // SAFETY: the caller keeps to one thread.
    body(unsafe { &mut *OPTIONS.0.get() });
}

/// Options that are amounts, and shown as such.
const AMOUNTS: [&str; 5] = [
    "clear_shadow_mmap_threshold",
    "mmap_limit_mb",
    "hard_rss_limit_mb",
    "soft_rss_limit_mb",
    "max_allocation_size_mb",
];

/// An option and its value as `help=1` shows them: at most so many characters as LLVM's run-time does.
fn show_one(out: &mut String, name: &str, value: &str) {
    const MOST: usize = 127;
    let _ = match value.parse::<i64>() {
        Ok(amount) if AMOUNTS.contains(&name) => writeln!(out, "\t{name}\n\t\t- (Current Value: 0x{amount:x})"),
        _ if value.len() > MOST => {
            let shown: String = value.chars().take(MOST).collect();
            writeln!(out, "\t{name}\n\t\t- (Current Value Truncated: {shown})")
        }
        _ => writeln!(out, "\t{name}\n\t\t- (Current Value: {value})"),
    };
}

/// Whether reports are to have the words of gcc 12's library.
#[must_use]
pub fn has_gcc_words() -> bool {
    options().report_wording == "gcc12"
}

/// Where a string of options comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// `ASAN_OPTIONS` or `__asan_default_options`.
    Asan,
    /// `LSAN_OPTIONS` or `__lsan_default_options`: `suppressions` means the leaks'.
    Lsan,
}

/// What may be set when a heap that `start_deactivated` put to sleep wakes. Source: LLVM 19's `ASAN_ACTIVATION_OPTIONS`.
pub const ON_WAKING: &[&str] = &[
    "redzone",
    "max_redzone",
    "quarantine_size_mb",
    "thread_local_quarantine_size_kb",
    "alloc_dealloc_mismatch",
    "poison_heap",
    "allocator_may_return_null",
    "malloc_context_size",
    "coverage",
    "coverage_dir",
    "verbosity",
    "help",
    "allocator_release_to_os_interval_ms",
];

/// What came up while options were read.
#[derive(Default)]
pub struct Complaints {
    /// Names that no option has.
    pub unknown: Vec<String>,
    /// A sentence that ends the process.
    pub fatal: Option<String>,
    /// The names that may be set; empty: all.
    pub only: &'static [&'static str],
    /// The files that were to be included, and perhaps were, as `help=1` shows them.
    pub included: [String; 2],
}

impl Options {
    /// Reads `name=value` pairs, separated by spaces, colons, commas or line ends; values may be quoted.
    /// `read` gives the text of an included file.
    pub fn decode(
        &mut self,
        text: &str,
        origin: Origin,
        complaints: &mut Complaints,
        read: &mut dyn FnMut(&str) -> Option<String>,
    ) {
        let is_separator = |c: char| matches!(c, ' ' | ',' | ':' | '\n' | '\t' | '\r');
        let mut rest = text.trim_start_matches(is_separator);
        while !rest.is_empty() {
            let Some((name, after)) = rest.split_once('=').filter(|(name, _)| !name.contains(is_separator)) else {
                let shown: String = rest.chars().take(80).collect();
                complaints.fatal = Some(alloc::format!("expected '=' in {shown}"));
                return;
            };
            let quote = after.chars().next().filter(|c| matches!(c, '"' | '\''));
            let (value, next) = match quote {
                Some(quote) => match after.get(1..).and_then(|inner| inner.split_once(quote)) {
                    Some(pair) => pair,
                    None => {
                        complaints.fatal = Some(String::from("unterminated string"));
                        return;
                    }
                },
                None => after.split_at(after.find(is_separator).unwrap_or(after.len())),
            };
            self.apply(name, value, origin, complaints, read);
            rest = next.trim_start_matches(is_separator);
        }
    }

    fn apply(
        &mut self,
        name: &str,
        value: &str,
        origin: Origin,
        complaints: &mut Complaints,
        read: &mut dyn FnMut(&str) -> Option<String>,
    ) {
        match (name, origin) {
            ("include" | "include_if_exists", _) => {
                let must_exist = name == "include";
                complaints.included[usize::from(!must_exist)] = String::from(value);
                match read(value) {
                    Some(text) => self.decode(&text, origin, complaints, read),
                    None if must_exist => {
                        complaints.fatal = Some(alloc::format!("Failed to read options from '{value}': error 2"));
                    }
                    None => {}
                }
            }
            _ if !complaints.only.is_empty() && !complaints.only.contains(&name) => {
                complaints.unknown.push(String::from(name));
            }
            ("report_wording", _) if !["llvm19", "gcc12"].contains(&value) => {
                complaints.fatal = Some(alloc::format!("Invalid value for report_wording option: '{value}'"));
            }
            ("suppressions", Origin::Asan) => self.suppressions = String::from(value).leak(),
            ("suppressions", Origin::Lsan) => self.leak_suppressions = String::from(value).leak(),
            _ => match self.set(name, value) {
                None => complaints.unknown.push(String::from(name)),
                Some(Ok(())) => {}
                Some(Err(kind)) => {
                    complaints.fatal = Some(alloc::format!("Invalid value for {kind} option: '{value}'"));
                }
            },
        }
    }

    /// What `help=1` prints.
    #[must_use]
    pub fn help(&self, complaints: &Complaints) -> String {
        let mut out = String::from("Available flags for AddressSanitizer:\n");
        if !complaints.only.is_empty() {
            let mut all = String::new();
            self.show(&mut all);
            // Two lines for each option.
            let mut lines = all.lines();
            while let (Some(name), Some(value)) = (lines.next(), lines.next()) {
                if complaints.only.contains(&name.trim()) {
                    let _ = writeln!(out, "{name}\n{value}");
                }
            }
            return out;
        }
        self.show(&mut out);
        show_one(&mut out, "suppressions", self.suppressions);
        show_one(&mut out, "include", &complaints.included[0]);
        show_one(&mut out, "include_if_exists", &complaints.included[1]);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(text: &str, origin: Origin) -> (Options, Complaints) {
        let (mut options, mut complaints) = (Options::DEFAULT, Complaints::default());
        options.decode(text, origin, &mut complaints, &mut |name| (name == "f").then(|| String::from("exitcode=9")));
        (options, complaints)
    }

    #[test]
    fn pairs_in_all_forms() {
        let (options, complaints) =
            decode(" halt_on_error=0:exitcode=0x10,log_path='a b:c' redzone=64\nhandle_segv=exclusive:", Origin::Asan);
        assert!(!options.halt_on_error);
        assert_eq!((options.exitcode, options.log_path, options.redzone), (16, "a b:c", 64));
        assert_eq!(options.handle_segv, Handle(2));
        assert!(complaints.unknown.is_empty() && complaints.fatal.is_none());
    }

    #[test]
    fn what_is_wrong_is_told() {
        assert_eq!(decode("nonsense=1:exitcode=3", Origin::Asan).1.unknown, ["nonsense"]);
        assert_eq!(decode("exitcode=3", Origin::Asan).0.exitcode, 3);
        assert!(decode("halt_on_error", Origin::Asan).1.fatal.is_some_and(|text| text.starts_with("expected '='")));
        assert!(decode("halt_on_error=2", Origin::Asan).1.fatal.is_some_and(|text| text.contains("bool")));
        assert!(decode("log_path='x", Origin::Asan).1.fatal.is_some());
    }

    #[test]
    fn on_waking_only_some_may_be_set() {
        let (mut options, mut complaints) = (Options::DEFAULT, Complaints { only: ON_WAKING, ..Complaints::default() });
        options.decode("redzone=32:handle_segv=0:include=f", Origin::Asan, &mut complaints, &mut |_| {
            Some(String::from("exitcode=7:max_redzone=64"))
        });
        assert_eq!((options.redzone, options.max_redzone, options.exitcode), (32, 64, Options::DEFAULT.exitcode));
        assert_eq!((options.handle_segv, complaints.unknown.len()), (Options::DEFAULT.handle_segv, 2));
        let help = options.help(&complaints);
        assert_eq!(help.lines().filter(|line| !line.starts_with("\t\t")).count(), 1 + ON_WAKING.len(), "{help}");
        assert!(help.contains("max_redzone") && !help.contains("handle_segv"));
    }

    #[test]
    fn files_are_included_and_suppressions_kept_apart() {
        assert_eq!(decode("include=f", Origin::Asan).0.exitcode, 9);
        assert!(decode("include=g", Origin::Asan).1.fatal.is_some());
        assert!(decode("include_if_exists=g", Origin::Asan).1.fatal.is_none());
        let (options, _) = decode("suppressions=x", Origin::Lsan);
        assert_eq!((options.suppressions, options.leak_suppressions), ("", "x"));
    }
}
