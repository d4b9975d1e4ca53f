//! Text into rules.

use std::sync::Arc;

use leakscope_model::{LeakKind, LeakKindSet};

use super::{FramePattern, Limits, Rule, RuleKind, SuppressionError, lsan};
use crate::baseline::date;

/// Most lines of a rule's stack, as in Valgrind.
const MOST_FRAMES: usize = 500;

/// The lines of a file that count: trimmed, without empty ones and comments.
struct Lines<'a> {
    file: &'a str,
    lines: std::iter::Enumerate<std::str::Lines<'a>>,
    /// Number of the last line that was given out.
    number: u32,
    /// What the comments since the last rule say.
    limits: Limits,
}

/// What a comment begins with that is meant for us.
const DIRECTIVE: &str = "leakscope:";

impl<'a> Lines<'a> {
    fn next(&mut self) -> Result<Option<&'a str>, SuppressionError> {
        while let Some((i, line)) = self.lines.next() {
            self.number = i as u32 + 1;
            let line = line.trim();
            if let Some(comment) = line.strip_prefix('#') {
                if let Some(words) = comment.trim_start().strip_prefix(DIRECTIVE) {
                    self.directive(words)?;
                }
            } else if !line.is_empty() {
                return Ok(Some(line));
            }
        }
        Ok(None)
    }

    /// `max-bytes=4096 until=2027-01-31`
    fn directive(&mut self, words: &str) -> Result<(), SuppressionError> {
        for word in words.split_whitespace() {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            match key {
                "max-bytes" => self.limits.most_bytes = Some(self.number_of(word, value)?),
                "max-blocks" => self.limits.most_blocks = Some(self.number_of(word, value)?),
                "until" => {
                    let day = date(value).ok_or_else(|| self.error("a date such as `until=2027-01-31`", Some(word)))?;
                    self.limits.until = Some(day);
                }
                _ => {
                    let expected = "`max-bytes=N`, `max-blocks=N` or `until=YEAR-MONTH-DAY` behind `# leakscope:`";
                    return Err(self.error(expected, Some(word)));
                }
            }
        }
        Ok(())
    }

    fn number_of(&self, word: &str, value: &str) -> Result<u64, SuppressionError> {
        value.parse().map_err(|_| self.error("a number behind `=`, such as `max-bytes=4096`", Some(word)))
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
        self.next()?.ok_or_else(|| self.error(expected, None))
    }
}

/// The rules of a file, and what in it has no effect.
pub(super) fn parse(file: &str, text: &str) -> Result<(Vec<Rule>, Vec<String>), SuppressionError> {
    // LeakSanitizer accepts files with a byte order mark.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut lines = Lines { file, lines: text.lines().enumerate(), number: 0, limits: Limits::default() };
    let file: Arc<str> = file.into();
    let mut rules = Vec::new();
    let mut ignored = lsan::Ignored::default();
    while let Some(line) = lines.next()? {
        if line == "{" {
            let rule = rule(&mut lines, &file)?;
            let limits = std::mem::take(&mut lines.limits);
            rules.extend(rule.map(|rule| Rule { limits, ..rule }));
        } else if let Some(pattern) = line.strip_prefix("leak:") {
            if pattern.is_empty() {
                return Err(lines.error("a part of a name behind `leak:`", Some(line)));
            }
            rules.extend(lsan::rules(&file, lines.number, pattern, &std::mem::take(&mut lines.limits)));
        } else if !ignored.takes(line, lines.number) {
            let expected = "`{`, a line such as `leak:NAME`, or the end of the file";
            return Err(lines.error(expected, Some(line)));
        }
    }
    Ok((rules, ignored.notes(&file)))
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
    let limits = Limits::default();
    Ok(Some(Rule { name: name.into(), file: file.clone(), line, kind, stack, limits }))
}

/// The kind, with its extra line; and a line that was read too far.
fn rule_kind<'a>(lines: &mut Lines<'a>, kind: &str) -> Result<(RuleKind, Option<&'a str>), SuppressionError> {
    const KNOWN: [&str; 21] = [
        "Param", "User", "CoreMem", "Addr1", "Addr2", "Addr4", "Addr8", "Addr16", "Addr32", "Jump", "Free", "Leak",
        "Overlap", "Mempool", "Cond", "Value1", "Value2", "Value4", "Value8", "Value16", "Value32",
    ];
    match kind {
        "Leak" => {
            let line = lines.expect("`match-leak-kinds:` or a frame")?;
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
