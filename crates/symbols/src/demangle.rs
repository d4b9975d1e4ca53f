//! C++ and Rust names as people write them.
//!
//! The output follows libiberty with parameters and without implementation details, which is what Memcheck prints
//! and `c++filt --no-verbose` shows: `std::vector<int, std::allocator<int> >::push_back(int const&)`, and Rust names
//! without their hash. Pure.

use std::borrow::Cow;
use std::fmt::{self, Write};

/// A mangled name of a few bytes can stand for gigabytes of text; no honest name comes near this.
const MAX_NAME_BYTES: usize = 256 << 10;

/// Demangles a C++ or Rust symbol; other names, and those that are damaged, come back as they are.
pub fn demangle(symbol: &str) -> Cow<'_, str> {
    demangle_known(symbol).map_or(Cow::Borrowed(symbol), Cow::Owned)
}

/// Whether a name is one that a C++ or Rust compiler mangled.
pub(crate) fn is_mangled(symbol: &str) -> bool {
    symbol.starts_with("_Z") || symbol.starts_with("_R") || symbol.starts_with("___Z")
}

fn demangle_known(symbol: &str) -> Option<String> {
    if !is_mangled(symbol) || symbol.len() > MAX_NAME_BYTES {
        return None;
    }
    let mut text = Limited(String::new());
    // Legacy Rust names are valid C++ names too, so Rust goes first.
    if let Ok(name) = rustc_demangle::try_demangle(symbol) {
        write!(text, "{name:#}").ok()?;
    } else {
        let parsed = cpp_demangle::Symbol::new(symbol).ok()?;
        parsed.structured_demangle(&mut text, &cpp_demangle::DemangleOptions::default()).ok()?;
        return Some(as_libiberty_spells(symbol, text.0));
    }
    Some(text.0)
}

/// Names that the ABI abbreviates: the abbreviation, as libiberty writes it, in full, and the class name alone.
const ABBREVIATED: [(&str, &str, &str, &str); 4] = [
    ("Si", "std::istream", "std::basic_istream<char, std::char_traits<char> >", "istream"),
    ("So", "std::ostream", "std::basic_ostream<char, std::char_traits<char> >", "ostream"),
    ("Sd", "std::iostream", "std::basic_iostream<char, std::char_traits<char> >", "iostream"),
    ("Ss", "std::string", "std::basic_string<char, std::char_traits<char>, std::allocator<char> >", "string"),
];

/// How libiberty writes integers in template arguments: `5ul`, where `cpp_demangle` has `(unsigned long)5`.
const LITERALS: [(&str, &str); 5] = [
    ("(unsigned int)", "u"),
    ("(long)", "l"),
    ("(unsigned long)", "ul"),
    ("(long long)", "ll"),
    ("(unsigned long long)", "ull"),
];

/// Where `cpp_demangle` and libiberty spell the same thing differently, takes libiberty's spelling.
fn as_libiberty_spells(symbol: &str, mut name: String) -> String {
    for (code, short, full, class) in ABBREVIATED {
        if !symbol.contains(code) {
            continue;
        }
        name = name.replace(full, short);
        // Only constructors and destructors are written in full: the class name is needed after the scope.
        for (tilde, end) in [("", "("), ("", "<"), ("~", "(")] {
            for written in [format!("{short}::{tilde}{class}{end}"), format!("{short}::{tilde}basic_{class}{end}")] {
                if name.contains(&written) {
                    name = name.replace(&written, &format!("{full}::{tilde}basic_{class}{end}"));
                }
            }
        }
    }
    let thunk = name.strip_prefix("{virtual override thunk(").and_then(|rest| rest.strip_suffix(")}"));
    if let Some((_, target)) = thunk.and_then(|thunk| thunk.split_once("}, ")) {
        let kind = if symbol.starts_with("_ZTh") { "non-virtual" } else { "virtual" };
        name = format!("{kind} thunk to {target}");
    }
    if name.contains("std::nullptr_t") {
        name = name.replace("std::nullptr_t", "decltype(nullptr)");
    }
    for (cast, suffix) in LITERALS {
        let mut searched = 0;
        while let Some(found) = name[searched..].find(cast).map(|at| at + searched) {
            let value = found + cast.len();
            let sign = usize::from(name[value..].starts_with('-'));
            let digits = name[value + sign..].bytes().take_while(u8::is_ascii_digit).count();
            searched = value;
            if digits > 0 {
                name.insert_str(value + sign + digits, suffix);
                name.replace_range(found..value, "");
                searched = found;
            }
        }
    }
    name
}

/// A string that refuses to grow beyond [`MAX_NAME_BYTES`].
struct Limited(String);

impl Write for Limited {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.len() + text.len() > MAX_NAME_BYTES {
            return Err(fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_as_memcheck_prints_them() {
        // Right column: `c++filt --no-verbose` of binutils 2.40.
        let table = [
            ("main", "main"),
            ("_Z3fooi", "foo(int)"),
            ("_Z3fooi.cold", "foo(int) [clone .cold]"),
            ("_ZNSt6vectorIiSaIiEE9push_backERKi", "std::vector<int, std::allocator<int> >::push_back(int const&)"),
            ("_ZN3FooC1Ev", "Foo::Foo()"),
            ("_ZN3FooD0Ev", "Foo::~Foo()"),
            ("_Z4makeIiET_S0_", "int make<int>(int)"),
            ("_Znwm", "operator new(unsigned long)"),
            ("_ZdaPv", "operator delete[](void*)"),
            ("_ZN12_GLOBAL__N_11fEv", "(anonymous namespace)::f()"),
            ("_ZN4core3ptr13drop_in_place17h0123456789abcdefE", "core::ptr::drop_in_place"),
            ("_RNvC6_123foo3bar", "123foo::bar"),
            ("_ZNKSt5arrayIiLm5EE4sizeEv", "std::array<int, 5ul>::size() const"),
            (
                "_ZNSsC1ERKSs",
                "std::basic_string<char, std::char_traits<char>, std::allocator<char> >::basic_string(std::string const&)",
            ),
            ("_ZNSirsERi", "std::istream::operator>>(int&)"),
            ("_Z", "_Z"),
            ("_ZNSt6vectorIiSa", "_ZNSt6vectorIiSa"),
        ];
        for (symbol, name) in table {
            assert_eq!(demangle(symbol), name);
        }
    }

    #[test]
    fn a_name_that_explodes_stays_raw() {
        // f(a<int, int>, a<T1, T1>, a<T2, T2>, ...) where Tn is the parameter before: 2^30 times "int".
        let digits: Vec<char> = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ".chars().collect();
        let mut symbol = String::from("_Z1f1aIiiE");
        for digit in &digits[..30] {
            symbol.push_str(&format!("S_IS{digit}_S{digit}_E"));
        }
        assert_eq!(demangle(&symbol), symbol);
        let small = "_Z1f1aIiiES_IS0_S0_E";
        assert_eq!(demangle(small), "f(a<int, int>, a<a<int, int>, a<int, int> >)");
    }
}
