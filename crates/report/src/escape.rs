//! Hostile names made harmless.

use std::fmt::Write;
use std::io;

/// Whether a character could do more than be seen: terminal escapes, and marks that turn the direction of text.
fn is_dangerous(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}')
}

/// Whether `c` behind `before` could begin an order to a CI server, which some look for anywhere in a line of a log:
/// `##[error]` (GitHub's runner), `##vso[task.setvariable]` (Azure Pipelines), `##teamcity[...]`.
fn is_order(before: char, c: char) -> bool {
    before == '#' && c == '#'
}

/// `name` on one line of a terminal: dangerous characters as `\x1b` or `\u{202e}`.
pub(crate) fn terminal(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    push_terminal(&mut out, name);
    out
}

/// The same behind what is there.
pub(crate) fn push_terminal(out: &mut String, name: &str) {
    // Nearly all names; a report of a large file has millions.
    if name.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'#') {
        return out.push_str(name);
    }
    let mut before = ' ';
    for c in name.chars() {
        let is_order = is_order(std::mem::replace(&mut before, c), c);
        match c {
            _ if !is_dangerous(c) && !is_order => out.push(c),
            '\0'..='\u{ff}' => _ = write!(out, "\\x{:02x}", c as u32),
            _ => _ = write!(out, "\\u{{{:x}}}", c as u32),
        }
    }
}

/// `name` as the text of an XML element: markup escaped, characters that XML forbids (and control characters)
/// replaced by a question mark, as Valgrind's readers expect single lines. So is the character that makes an order to
/// a CI server: not every reader of JUnit knows numeric references.
pub(crate) fn xml(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut before = ' ';
    for c in name.chars() {
        let is_order = is_order(std::mem::replace(&mut before, c), c);
        match c {
            _ if is_order => out.push('?'),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            '\u{fffe}' | '\u{ffff}' => out.push('?'),
            _ if is_dangerous(c) => out.push('?'),
            _ => out.push(c),
        }
    }
    out
}

/// `name` inside of a `<code>` or `<pre>` element of Markdown: no character of it can begin markup, a link, a table
/// cell or a mention, in any flavour. Numeric character references are text to every Markdown reader.
pub(crate) fn markdown(name: &str) -> String {
    let name: Vec<char> = terminal(name).chars().collect();
    let mut out = String::with_capacity(name.len());
    for (i, &c) in name.iter().enumerate() {
        let before = i.checked_sub(1).map(|i| name[i]);
        let after = name.get(i + 1).copied();
        let is_word = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        let is_plain = match c {
            ' ' | ',' | '(' | ')' | '/' | '=' | '+' => true,
            // Some flavours make links of `www.` and of `scheme://`.
            '.' => !matches!(before, Some('w' | 'W')),
            ':' => after.is_some_and(|c| c == ':' || c.is_ascii_digit()) || before == Some(':') && is_word(after),
            // Between letters it never is emphasis.
            '_' => is_word(before) && is_word(after),
            _ => c.is_ascii_alphanumeric() || !c.is_ascii(),
        };
        if is_plain {
            out.push(c);
        } else {
            _ = write!(out, "&#{};", c as u32);
        }
    }
    out
}

/// Writes JSON on one line in which no text is more than text, also where somebody looks at it in a terminal: what could
/// be more is written as its number, and means the same to a reader.
pub(crate) struct InertJson;

impl serde_json::ser::Formatter for InertJson {
    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        let mut before = ' ';
        while let Some((at, c)) =
            rest.char_indices().find(|&(_, c)| is_dangerous(c) || is_order(std::mem::replace(&mut before, c), c))
        {
            writer.write_all(&rest.as_bytes()[..at])?;
            // None of them lies above the 16 bits of one number.
            write!(writer, "\\u{:04x}", c as u32)?;
            rest = &rest[at + c.len_utf8()..];
        }
        writer.write_all(rest.as_bytes())
    }
}
