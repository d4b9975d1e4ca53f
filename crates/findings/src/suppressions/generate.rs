//! A rule for a finding: `--gen-suppressions=all`.

use std::borrow::Borrow;

use leakscope_model::MisuseKind;

use super::{Error, fishy_names};
use crate::analysis::Frame;
use crate::baseline::is_dangerous;

/// A rule that would hide a finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generated {
    /// Such as `Memcheck:Leak`.
    pub kind: String,
    /// The line after the kind, such as `match-leak-kinds: definite`.
    pub extra: Option<String>,
    /// Lines of the stack: (`fun` or `obj`, name).
    pub frames: Vec<(&'static str, String)>,
}

impl Generated {
    /// What stands for the name until the user gives one.
    pub const NAME: &'static str = "insert_a_suppression_name_here";

    /// The text for a suppression file.
    pub fn text(&self) -> String {
        let mut out = format!("{{\n   <{}>\n   {}\n", Self::NAME, self.kind);
        if let Some(extra) = &self.extra {
            out.push_str(&format!("   {extra}\n"));
        }
        for (what, name) in &self.frames {
            out.push_str(&format!("   {what}:{name}\n"));
        }
        out.push_str("}\n");
        out
    }
}

/// A rule for `error` with these frames (as shown). Inlined functions are named by their plain name in
/// Valgrind; here by the linker's, which both match.
pub fn generate(error: &Error, frames: &[impl Borrow<Frame>]) -> Generated {
    let (kind, extra) = match error {
        Error::Leak(kind) => ("Memcheck:Leak".to_owned(), Some(format!("match-leak-kinds: {}", kind.option_word()))),
        Error::Misuse(MisuseKind::FishySize) => {
            let called = frames.first().and_then(|frame| frame.borrow().function.as_deref()).unwrap_or_default();
            let (function, arguments) = fishy_names(called);
            ("Memcheck:FishyValue".to_owned(), Some(format!("{function}({})", arguments[0])))
        }
        Error::Misuse(MisuseKind::ReallocZero) => ("Memcheck:ReallocZero".to_owned(), None),
        Error::Misuse(_) => ("Memcheck:Free".to_owned(), None),
        Error::Memory { kind, bytes, message } => {
            let (kind, extra) = super::rule_for(*kind, *bytes, message);
            (kind, extra.map(|extra| one_line(&extra)))
        }
    };
    let frames = frames
        .iter()
        .map(Borrow::borrow)
        .map(|frame: &Frame| {
            let name = frame.linkage_name.as_deref().or(frame.function.as_deref());
            match name {
                Some(name) => ("fun", one_line(name)),
                None if !frame.object.is_empty() => ("obj", one_line(&frame.object)),
                None => ("obj", "*".to_owned()),
            }
        })
        .collect();
    Generated { kind, extra, frames }
}

/// A hostile name must not end its line, turn it round, or give a CI server an order (`##[error]`): `?` matches any one
/// byte.
fn one_line(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for c in name.chars() {
        match c {
            '#' if out.ends_with('#') => out.push('?'),
            _ if is_dangerous(c) => out.extend(std::iter::repeat_n('?', c.len_utf8())),
            _ => out.push(c),
        }
    }
    out
}
