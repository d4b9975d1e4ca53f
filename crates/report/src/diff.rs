//! The difference of two recordings, in words, as JSON, Markdown and HTML.
//!
//! The JSON document: `schema` (`leakscope-diff`), `version` (1), `basis` (`leaks` or `live`), `before` and `after`
//! (`name`, `bytes`, `blocks`), `unchanged_sites`, and `sites`, each with `change` (`new`, `grown`, `shrunk`, `gone`),
//! `fingerprint`, `kind`, `before`, `after`, `bytes` and `blocks` (the growth, negative when it shrank) and `stack`
//! (lines of text, innermost first).

use std::io::{self, Write};

use leakscope_findings::analysis::{Amount, Stack};
use leakscope_findings::diff::{Basis, Change, Diff, SiteChange};
use leakscope_model::LeakKind;
use serde::Serialize;
use serde_json::{Value, json};

use crate::escape::{InertJson, terminal, xml};
use crate::finding;
use crate::markdown::{MOST_LINES, short};
use crate::place::Sources;
use crate::wording::grouped;

/// What the two recordings are called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// The first.
    pub before: String,
    /// The second.
    pub after: String,
}

/// `+1,234`, `-5` or `+0`.
fn signed(number: i128) -> String {
    let digits = grouped(u64::try_from(number.unsigned_abs()).unwrap_or(u64::MAX));
    format!("{}{digits}", if number < 0 { '-' } else { '+' })
}

fn words(diff: &Diff) -> &'static str {
    match diff.basis {
        Basis::Leaks => "leaks",
        Basis::Live => "live blocks (at least one of the recordings is not classified)",
    }
}

fn kind(site: &SiteChange) -> &'static str {
    site.kind.map_or("live", LeakKind::words)
}

fn change_of(before: Amount, after: Amount) -> (i128, i128) {
    (i128::from(after.bytes) - i128::from(before.bytes), i128::from(after.blocks) - i128::from(before.blocks))
}

/// The line about all sites together.
fn summary(diff: &Diff) -> String {
    let (bytes, blocks) = change_of(diff.before, diff.after);
    format!(
        "{} -> {} bytes ({}), {} -> {} blocks ({})",
        grouped(diff.before.bytes),
        grouped(diff.after.bytes),
        signed(bytes),
        grouped(diff.before.blocks),
        grouped(diff.after.blocks),
        signed(blocks)
    )
}

fn counts(diff: &Diff) -> String {
    let count = |change| diff.sites.iter().filter(|site| site.change == change).count();
    let of = Change::ALL.map(|change| format!("{} {}", count(change), change.word()));
    format!("sites: {}, {} unchanged", of.join(", "), diff.unchanged)
}

/// Writes the difference for people.
///
/// # Errors
/// Those of `out`.
pub fn text(out: &mut dyn Write, diff: &Diff, names: &Names) -> io::Result<()> {
    writeln!(out, "{} -> {}, {}", terminal(&names.before), terminal(&names.after), words(diff))?;
    writeln!(out, "  {}", summary(diff))?;
    writeln!(out, "  {}", counts(diff))?;
    for site in &diff.sites {
        writeln!(
            out,
            "\n{}: {} bytes in {} blocks ({} -> {} bytes, {} -> {} blocks), {} [{}]",
            site.change.word(),
            signed(site.bytes()),
            signed(site.blocks()),
            grouped(site.before.bytes),
            grouped(site.after.bytes),
            grouped(site.before.blocks),
            grouped(site.after.blocks),
            kind(site),
            site.fingerprint
        )?;
        for (i, line) in lines(&site.stack).enumerate() {
            writeln!(out, "   {} {}", if i == 0 { "at" } else { "by" }, terminal(&line))?;
        }
    }
    Ok(())
}

fn lines(stack: &Stack) -> impl Iterator<Item = String> {
    stack.frames().iter().map(|frame| finding::line(frame))
}

/// Writes the difference for programs.
///
/// # Errors
/// Those of `out`.
pub fn json(out: &mut dyn Write, diff: &Diff, names: &Names) -> io::Result<()> {
    let side = |name: &str, amount: Amount| json!({ "name": name, "bytes": amount.bytes, "blocks": amount.blocks });
    let amount = |amount: Amount| json!({ "bytes": amount.bytes, "blocks": amount.blocks });
    let number = |number: i128| i64::try_from(number).unwrap_or(if number < 0 { i64::MIN } else { i64::MAX });
    let site = |site: &SiteChange| {
        json!({
            "change": site.change.word(),
            "fingerprint": site.fingerprint.to_string(),
            "kind": site.kind.map(LeakKind::option_word),
            "before": amount(site.before),
            "after": amount(site.after),
            "bytes": number(site.bytes()),
            "blocks": number(site.blocks()),
            "stack": lines(&site.stack).map(|line| terminal(&line)).collect::<Vec<_>>(),
        })
    };
    let document = json!({
        "schema": "leakscope-diff",
        "version": 1,
        "basis": match diff.basis { Basis::Leaks => "leaks", Basis::Live => "live" },
        "before": side(&names.before, diff.before),
        "after": side(&names.after, diff.after),
        "unchanged_sites": diff.unchanged,
        "sites": diff.sites.iter().map(site).collect::<Vec<Value>>(),
    });
    document.serialize(&mut serde_json::Serializer::with_formatter(&mut *out, InertJson))?;
    writeln!(out)
}

/// Writes the difference as a comment of at most 60 lines.
///
/// # Errors
/// Those of `out`.
pub fn markdown(out: &mut dyn Write, diff: &Diff, names: &Names, sources: &Sources) -> io::Result<()> {
    writeln!(out, "### leakscope: <code>{}</code> -&gt; <code>{}</code>", short(&names.before), short(&names.after))?;
    writeln!(out, "\n{}: {}; {}", words(diff), summary(diff).replace("->", "-&gt;"), counts(diff))?;
    if diff.sites.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n| change | bytes | blocks | kind | where | fingerprint |\n|---|---:|---:|---|---|---|")?;
    // What stands above, and a blank and a line that says how many more there are.
    let rows = MOST_LINES - 6 - 2;
    for site in diff.sites.iter().take(rows) {
        let at = match sources.primary(&site.stack) {
            Some((frame, place)) if place.line > 0 => {
                format!("{} at {}:{}", finding::code(frame), place.path, place.line)
            }
            _ => finding::site(&site.stack).map(finding::line).unwrap_or_default(),
        };
        writeln!(
            out,
            "| {} | {} | {} | {} | <code>{}</code> | <code>{}</code> |",
            site.change.word(),
            signed(site.bytes()),
            signed(site.blocks()),
            kind(site),
            short(&at),
            site.fingerprint
        )?;
    }
    if diff.sites.len() > rows {
        writeln!(out, "\n... and {} more sites.", diff.sites.len() - rows)?;
    }
    Ok(())
}

const STYLE: &str = "\
:root{color-scheme:light dark}
body{font:15px/1.5 system-ui,sans-serif;margin:0 auto;max-width:75rem;padding:1rem;overflow-wrap:anywhere}
h1{font-size:1.3rem}
.site{border:1px solid color-mix(in srgb,currentColor 20%,transparent);border-radius:6px;margin:.5rem 0;padding:.4rem .7rem}
summary{cursor:pointer}
.new,.grown{border-left:5px solid #d1242f}
.gone,.shrunk{border-left:5px solid #1a7f37}
b{display:inline-block;min-width:4rem}
pre{overflow-x:auto;font:13px/1.5 ui-monospace,monospace;white-space:pre-wrap}
.by{opacity:.7}
";

/// Writes the difference as a page without scripts.
///
/// # Errors
/// Those of `out`.
pub fn html(out: &mut dyn Write, diff: &Diff, names: &Names) -> io::Result<()> {
    let (before, after) = (xml(&names.before), xml(&names.after));
    writeln!(out, "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">")?;
    writeln!(out, "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">")?;
    writeln!(
        out,
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    )?;
    writeln!(out, "<title>leakscope: {before} and {after}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>")?;
    writeln!(out, "<h1>{before} &rarr; {after}</h1>")?;
    writeln!(out, "<p>{}: {}</p>\n<p>{}</p>", words(diff), xml(&summary(diff)), counts(diff))?;
    for site in &diff.sites {
        let at = finding::site(&site.stack).map(finding::line).unwrap_or_default();
        writeln!(
            out,
            "<details class=\"site {0}\"><summary><b>{0}</b> {1} bytes in {2} blocks, {3}, in <code>{4}</code> <span class=\"by\">{5}</span></summary>",
            site.change.word(),
            signed(site.bytes()),
            signed(site.blocks()),
            kind(site),
            xml(&at),
            site.fingerprint
        )?;
        writeln!(
            out,
            "<p>{} &rarr; {} bytes, {} &rarr; {} blocks</p>\n<pre>",
            grouped(site.before.bytes),
            grouped(site.after.bytes),
            grouped(site.before.blocks),
            grouped(site.after.blocks)
        )?;
        for line in lines(&site.stack) {
            writeln!(out, "{}", xml(&line))?;
        }
        writeln!(out, "</pre></details>")?;
    }
    writeln!(out, "</main>\n</body>\n</html>")
}
