//! Text into rules.

use std::sync::Arc;

use leakscope_model::{LeakKind, LeakKindSet};

use super::{FramePattern, Rule, RuleKind, SuppressionError};

/// Most lines of a rule's stack, as in Valgrind.
const MOST_FRAMES: usize = 500;

/// The lines of a file that count: trimmed, without empty ones and comments.
struct Lines<'a> {
    file: &'a str,
    lines: std::iter::Enumerate<std::str::Lines<'a>>,
    /// Number of the last line that was given out.
    number: u32,
}

impl<'a> Lines<'a> {
    fn next(&mut self) -> Option<&'a str> {
        for (i, line) in self.lines.by_ref() {
            self.number = i as u32 + 1;
            let line = line.trim();
            if !line.is_empty() && !line.starts_with('#') {
                return Some(line);
            }
        }
        None
    }

    fn error(&self, expected: &str, found: Option<&str>) -> SuppressionError {
        SuppressionError {
            file: self.file.to_owned(),
            line: self.number.max(1),
            expected: expected.to_owned(),
            found: found.unwrap_or_default().to_owned(),
        }
    }

    fn expect(&mut self, expected: &str) -> Result<&'a str, SuppressionError> {
        self.next().ok_or_else(|| self.error(expected, None))
    }
}

pub(super) fn parse(file: &str, text: &str) -> Result<Vec<Rule>, SuppressionError> {
    let mut lines = Lines { file, lines: text.lines().enumerate(), number: 0 };
    let file: Arc<str> = file.into();
    let mut rules = Vec::new();
    while let Some(line) = lines.next() {
        if line != "{" {
            return Err(lines.error("`{` or the end of the file", Some(line)));
        }
        if let Some(rule) = rule(&mut lines, &file)? {
            rules.push(rule);
        }
    }
    Ok(rules)
}

/// The rest of a rule after `{`; `None` for one of another tool.
fn rule(lines: &mut Lines<'_>, file: &Arc<str>) -> Result<Option<Rule>, SuppressionError> {
    let name = lines.expect("the name of the suppression")?;
    if name == "}" {
        return Err(lines.error("the name of the suppression", Some(name)));
    }
    let line = lines.number;
    const TOOL: &str = "`TOOL:KIND`, such as `Memcheck:Leak`";
    let tool_and_kind = lines.expect(TOOL)?;
    let Some((tools, kind)) = tool_and_kind.split_once(':') else {
        return Err(lines.error(TOOL, Some(tool_and_kind)));
    };
    if !tools.split(',').any(|tool| tool == "Memcheck") {
        while lines.expect("`}`")? != "}" {}
        return Ok(None);
    }
    let (kind, mut pending) = rule_kind(lines, kind)?;
    let mut stack = Vec::new();
    loop {
        const FRAME: &str = "`fun:`, `obj:`, `src:`, `...` or `}`";
        let text = match pending.take() {
            Some(text) => text,
            None => lines.expect(FRAME)?,
        };
        if text == "}" {
            break;
        }
        if stack.len() == MOST_FRAMES {
            return Err(lines.error("`}`: a stack has at most 500 frames", Some(text)));
        }
        stack.push(frame(text).ok_or_else(|| lines.error(FRAME, Some(text)))?);
    }
    if stack.iter().all(|frame| *frame == FramePattern::AnyFrames) {
        return Err(lines.error("a `fun:`, `obj:` or `src:` line before the end of the rule", Some("}")));
    }
    Ok(Some(Rule { name: name.into(), file: file.clone(), line, kind, stack }))
}

/// The kind, with its extra line; and a line that was read too far.
fn rule_kind<'a>(lines: &mut Lines<'a>, kind: &str) -> Result<(RuleKind, Option<&'a str>), SuppressionError> {
    const KNOWN: [&str; 21] = [
        "Param", "User", "CoreMem", "Addr1", "Addr2", "Addr4", "Addr8", "Addr16", "Addr32", "Jump", "Free", "Leak",
        "Overlap", "Mempool", "Cond", "Value1", "Value2", "Value4", "Value8", "Value16", "Value32",
    ];
    match kind {
        "Leak" => {
            let Some(line) = lines.next() else {
                return Err(lines.error("`match-leak-kinds:` or a frame", None));
            };
            match line.strip_prefix("match-leak-kinds:") {
                Some(kinds) => {
                    let kinds = leak_kinds(kinds).ok_or_else(|| {
                        let expected = "a list of `definite`, `indirect`, `possible`, `reachable`, or `all`, or `none`";
                        lines.error(expected, Some(kinds.trim()))
                    })?;
                    Ok((RuleKind::Leak(kinds), None))
                }
                None => Ok((RuleKind::Leak(LeakKindSet::ALL), Some(line))),
            }
        }
        "Free" => Ok((RuleKind::Free, None)),
        "ReallocZero" => Ok((RuleKind::ReallocZero, None)),
        "FishyValue" => {
            const EXTRA: &str = "`FUNCTION(ARGUMENT)`, such as `malloc(size)`";
            let line = lines.expect(EXTRA)?;
            let parts = line.strip_suffix(')').and_then(|line| line.split_once('('));
            let (function, argument) = parts.ok_or_else(|| lines.error(EXTRA, Some(line)))?;
            Ok((RuleKind::FishyValue { function: function.to_owned(), argument: argument.to_owned() }, None))
        }
        "Param" => {
            // The system call's name.
            let call = lines.expect("the name of a system call and its parameter")?;
            Ok((RuleKind::Other(format!("Param {call}")), None))
        }
        _ if KNOWN.contains(&kind) || kind == "Value0" => Ok((RuleKind::Other(kind.to_owned()), None)),
        _ => Err(lines.error("a kind of error that Memcheck knows after `Memcheck:`", Some(kind))),
    }
}

/// A list of leak kinds, as options and rules take it: words with commas, `all` or `none`.
pub(crate) fn leak_kinds(text: &str) -> Option<LeakKindSet> {
    match text.trim() {
        "all" => return Some(LeakKindSet::ALL),
        "none" => return Some(LeakKindSet::NONE),
        _ => {}
    }
    text.split(',').try_fold(LeakKindSet::NONE, |set, word| {
        LeakKind::ALL.into_iter().find(|kind| kind.option_word() == word.trim()).map(|kind| set.with(kind))
    })
}

fn frame(text: &str) -> Option<FramePattern> {
    if text == "..." {
        return Some(FramePattern::AnyFrames);
    }
    if let Some(name) = text.strip_prefix("fun:") {
        return Some(FramePattern::Function(name.to_owned()));
    }
    if let Some(name) = text.strip_prefix("obj:") {
        return Some(FramePattern::Object(name.to_owned()));
    }
    let source = text.strip_prefix("src:")?;
    Some(match source.split_once(':') {
        // Valgrind takes what is no number, and 0, for "any line".
        Some((file, line)) => {
            FramePattern::Source { file: file.to_owned(), line: line.trim().parse().ok().filter(|&line| line != 0) }
        }
        None => FramePattern::Source { file: source.to_owned(), line: None },
    })
}
