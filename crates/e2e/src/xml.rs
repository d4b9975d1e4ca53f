//! Reads Valgrind's XML protocol 4, whoever wrote it: loss records, errors and the state of the run.
//!
//! Source: docs/internals/xml-output-protocol4.txt of Valgrind 3.19. A document that was cut off is an error here,
//! because every tool under test is expected to close it.

use anyhow::{Context, Result, bail};
use roxmltree::{Document, Node};

/// One frame of a stack, innermost first in its vector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The function, without its parameter list, or empty.
    pub function: String,
    /// The module's path, or empty.
    pub object: String,
    /// Source file name without folder, or empty.
    pub file: String,
    /// Line, or 0.
    pub line: u32,
}

/// One loss record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeakRecord {
    /// `definite`, `indirect`, `possible` or `reachable`.
    pub kind: &'static str,
    /// Bytes that this record itself names: without the indirectly lost ones of a definite record.
    pub direct_bytes: u64,
    /// Blocks, likewise.
    pub direct_blocks: u64,
    /// The allocation site.
    pub stack: Vec<Frame>,
}

/// One error that is no leak.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorRecord {
    /// The protocol's kind, such as `InvalidFree`.
    pub kind: String,
    /// The sentence.
    pub what: String,
    /// How often it was counted.
    pub count: u64,
    /// Where it happened.
    pub stack: Vec<Frame>,
    /// Further stacks: where the block was allocated, where it was freed.
    pub aux_stacks: Vec<Vec<Frame>>,
}

/// What one document says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The process.
    pub pid: u32,
    /// Loss records in the order of the document.
    pub leaks: Vec<LeakRecord>,
    /// Errors in the order of the document.
    pub errors: Vec<ErrorRecord>,
    /// The signal's name, if one ended the program.
    pub fatal_signal: Option<String>,
    /// Whether `<state>FINISHED` stands before the loss records.
    pub finished: bool,
}

impl Report {
    /// Sum of bytes and blocks of one leak kind.
    pub fn total(&self, kind: &str) -> (u64, u64) {
        let of_kind = self.leaks.iter().filter(|leak| leak.kind == kind);
        of_kind.fold((0, 0), |sum, leak| (sum.0 + leak.direct_bytes, sum.1 + leak.direct_blocks))
    }
}

/// Parses one document.
///
/// # Errors
/// It is not well-formed, not of this protocol, or a number in it cannot be read.
pub fn parse_report(text: &str) -> Result<Report> {
    let document = Document::parse(text)?;
    let root = document.root_element();
    if root.tag_name().name() != "valgrindoutput" {
        bail!("the root element is <{}>, expected <valgrindoutput>", root.tag_name().name());
    }
    if child_text(root, "protocolversion").as_deref() != Some("4") {
        bail!("protocol version {:?}, expected 4", child_text(root, "protocolversion"));
    }
    let mut report = Report { pid: number(root, "pid")?, ..Report::default() };
    let mut uniques = Vec::new();
    for node in root.children().filter(Node::is_element) {
        match node.tag_name().name() {
            "status" => {
                let finished = child_text(node, "state").as_deref() == Some("FINISHED");
                report.finished |= finished && report.leaks.is_empty();
            }
            "error" => read_error(node, &mut report, &mut uniques)?,
            "errorcounts" => read_counts(node, &mut report, &uniques)?,
            "fatal_signal" => report.fatal_signal = child_text(node, "signame"),
            _ => {}
        }
    }
    Ok(report)
}

fn read_error(node: Node, report: &mut Report, uniques: &mut Vec<String>) -> Result<()> {
    let kind = child_text(node, "kind").context("an <error> has no <kind>")?;
    let mut stacks: Vec<Vec<Frame>> = node
        .children()
        .filter(|child| child.has_tag_name("stack"))
        .map(|stack| stack.children().filter(|child| child.has_tag_name("frame")).map(read_frame).collect())
        .collect();
    let stack = if stacks.is_empty() { Vec::new() } else { stacks.remove(0) };
    let leak_kind = match kind.as_str() {
        "Leak_DefinitelyLost" => Some("definite"),
        "Leak_IndirectlyLost" => Some("indirect"),
        "Leak_PossiblyLost" => Some("possible"),
        "Leak_StillReachable" => Some("reachable"),
        _ => None,
    };
    match leak_kind {
        Some(kind) => {
            let what = node.children().find(|child| child.has_tag_name("xwhat")).context("a leak has no <xwhat>")?;
            // <leakedbytes> includes the indirect ones; the sentence tells them apart: `88 (16 direct, 72 indirect)`.
            let sentence = child_text(what, "text").unwrap_or_default();
            let all_bytes = number(what, "leakedbytes")?;
            report.leaks.push(LeakRecord {
                kind,
                direct_bytes: direct_part(&sentence).unwrap_or(all_bytes),
                direct_blocks: number(what, "leakedblocks")?,
                stack,
            });
        }
        None => {
            let what = child_text(node, "what").or_else(|| {
                node.children().find(|child| child.has_tag_name("xwhat")).and_then(|xwhat| child_text(xwhat, "text"))
            });
            uniques.push(child_text(node, "unique").unwrap_or_default());
            report.errors.push(ErrorRecord {
                kind,
                what: what.unwrap_or_default(),
                count: 1,
                stack,
                aux_stacks: stacks,
            });
        }
    }
    Ok(())
}

fn read_counts(node: Node, report: &mut Report, uniques: &[String]) -> Result<()> {
    for pair in node.children().filter(|child| child.has_tag_name("pair")) {
        let unique = child_text(pair, "unique").unwrap_or_default();
        if let Some(index) = uniques.iter().position(|known| *known == unique) {
            report.errors[index].count = number(pair, "count")?;
        }
    }
    Ok(())
}

fn read_frame(node: Node) -> Frame {
    let function = child_text(node, "fn").unwrap_or_default();
    Frame {
        function: without_parameters(&function).to_owned(),
        object: child_text(node, "obj").unwrap_or_default(),
        file: child_text(node, "file").unwrap_or_default(),
        line: child_text(node, "line").and_then(|line| line.parse().ok()).unwrap_or(0),
    }
}

/// `case_new(int)` and `case_new()` are `case_new`; `operator new(unsigned long)` is `operator new`.
fn without_parameters(name: &str) -> &str {
    name.split('(').next().unwrap_or(name)
}

/// The 16 of `88 (16 direct, 72 indirect) bytes in 1 blocks are definitely lost`.
fn direct_part(sentence: &str) -> Option<u64> {
    let (before, _) = sentence.split_once(" direct")?;
    let (_, digits) = before.rsplit_once('(')?;
    digits.replace(',', "").parse().ok()
}

fn child_text(node: Node, name: &str) -> Option<String> {
    let child = node.children().find(|child| child.has_tag_name(name))?;
    Some(child.text().unwrap_or_default().trim().to_owned())
}

fn number<T: std::str::FromStr>(node: Node, name: &str) -> Result<T> {
    let text = child_text(node, name).with_context(|| format!("<{name}> is missing"))?;
    text.parse().ok().with_context(|| format!("<{name}> is `{text}`, expected a number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sentence_tells_direct_from_indirect() {
        assert_eq!(direct_part("1,088 (1,016 direct, 72 indirect) bytes in 1 blocks"), Some(1016));
        assert_eq!(direct_part("24 bytes in 1 blocks are definitely lost"), None);
    }

    #[test]
    fn a_document_of_another_protocol_is_refused() {
        let text = "<valgrindoutput><protocolversion>3</protocolversion><pid>1</pid></valgrindoutput>";
        assert!(parse_report(text).unwrap_err().to_string().contains("expected 4"));
    }
}
