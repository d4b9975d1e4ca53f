//! C++ and Rust names as people write them.

use crate::options::options;
use alloc::borrow::ToOwned;
use alloc::string::String;
use core::fmt::Write;

/// A mangled name of a few bytes can stand for gigabytes of text; no honest name comes near this.
const MOST_BYTES: usize = 64 << 10;

struct Limited(String);

impl Write for Limited {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        if self.0.len() + text.len() > MOST_BYTES {
            return Err(core::fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

/// Demangles; other names, and those that are damaged, come back as they are.
#[must_use]
pub fn demangle(name: &str) -> String {
    if !options().demangle || !(name.starts_with("_Z") || name.starts_with("_R")) {
        return name.to_owned();
    }
    let mut text = Limited(String::new());
    if let Ok(rust) = rustc_demangle::try_demangle(name) {
        if write!(text, "{rust:#}").is_ok() {
            return text.0;
        }
    } else if let Ok(symbol) = cpp_demangle::Symbol::new(name) {
        let options = cpp_demangle::DemangleOptions::default();
        if symbol.structured_demangle(&mut text, &options).is_ok() {
            return text.0;
        }
    }
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_both_languages() {
        assert_eq!(demangle("_ZN1A3fooEi"), "A::foo(int)");
        assert_eq!(demangle("_ZN4core3fmt5Write9write_fmt17h0123456789abcdefE"), "core::fmt::Write::write_fmt");
        assert_eq!(demangle("main"), "main");
        assert_eq!(demangle("_Znonsense"), "_Znonsense");
    }
}
