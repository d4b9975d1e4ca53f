//! Lines of a log, whatever its bytes and however long they are.

use std::borrow::Cow;
use std::io::{self, BufRead};

/// Bytes of a line that are kept; C++ names reach some hundred thousand.
const LONGEST: usize = 1 << 20;

/// Reads lines into one buffer.
pub(crate) struct Lines<'a> {
    reader: &'a mut dyn BufRead,
    buffer: Vec<u8>,
    number: u64,
}

impl<'a> Lines<'a> {
    pub(crate) fn new(reader: &'a mut dyn BufRead) -> Self {
        Self { reader, buffer: Vec::new(), number: 0 }
    }

    /// Number of the line that was read last, from 1.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// The next line without its end; `None` at the end of the file. What is longer than the limit is cut.
    pub(crate) fn next(&mut self) -> io::Result<Option<Cow<'_, str>>> {
        self.buffer.clear();
        let mut any = false;
        loop {
            let available = match self.reader.fill_buf() {
                Ok(available) => available,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if available.is_empty() {
                break;
            }
            any = true;
            let end = memchr::memchr(b'\n', available);
            let taken = end.unwrap_or(available.len());
            let room = LONGEST - self.buffer.len();
            self.buffer.extend_from_slice(&available[..taken.min(room)]);
            self.reader.consume(end.map_or(taken, |end| end + 1));
            if end.is_some() {
                break;
            }
        }
        if !any {
            return Ok(None);
        }
        self.number += 1;
        if self.buffer.last() == Some(&b'\r') {
            self.buffer.pop();
        }
        Ok(Some(String::from_utf8_lossy(&self.buffer)))
    }
}

/// A line without the escape sequences by which a tool colours it.
pub(crate) fn without_colour(line: &str) -> Cow<'_, str> {
    if !line.contains('\x1b') {
        return Cow::Borrowed(line);
    }
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = rest.find('\x1b') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        rest = match after.strip_prefix('[') {
            Some(sequence) => {
                let end = sequence.find(|c: char| c.is_ascii_alphabetic()).map_or(sequence.len(), |end| end + 1);
                &sequence[end..]
            }
            None => after,
        };
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// A number in hex, with or without `0x`; `None` for anything else.
pub(crate) fn hex(text: &str) -> Option<u64> {
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text);
    if digits.is_empty() || digits.starts_with('+') {
        return None;
    }
    u64::from_str_radix(digits, 16).ok()
}

/// A decimal number with or without commas.
pub(crate) fn decimal(text: &str) -> Option<u64> {
    let mut value: u64 = 0;
    let mut digits = 0;
    for byte in text.bytes() {
        match byte {
            b'0'..=b'9' => {
                value = value.checked_mul(10)?.checked_add(u64::from(byte - b'0'))?;
                digits += 1;
            }
            b',' if digits > 0 => {}
            _ => return None,
        }
    }
    (digits > 0).then_some(value)
}

/// The decimal number that a text begins with, and what follows it.
pub(crate) fn leading_decimal(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != ',').unwrap_or(text.len());
    Some((decimal(&text[..end])?, &text[end..]))
}

/// The hex number that a text begins with, `0x` included, and what follows it.
pub(crate) fn leading_hex(text: &str) -> Option<(u64, &str)> {
    let digits = text.strip_prefix("0x")?;
    let end = digits.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(digits.len());
    Some((hex(&digits[..end])?, &digits[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_anyhow() {
        let mut input: &[u8] = b"a\r\nb\n\n\xff\nlast";
        let mut lines = Lines::new(&mut input);
        let mut read = Vec::new();
        while let Some(line) = lines.next().unwrap() {
            read.push(line.into_owned());
        }
        assert_eq!(read, ["a", "b", "", "\u{fffd}", "last"]);
        assert_eq!(lines.number(), 5);
    }

    #[test]
    fn long_lines_are_cut() {
        let long = vec![b'x'; LONGEST + 5];
        let bytes = [&long[..], b"\nshort\n"].concat();
        let mut input = bytes.as_slice();
        let mut lines = Lines::new(&mut input);
        assert_eq!(lines.next().unwrap().unwrap().len(), LONGEST);
        assert_eq!(lines.next().unwrap().unwrap(), "short");
    }

    #[test]
    fn colours_go() {
        assert_eq!(without_colour("\x1b[1m\x1b[31m==7==ERROR\x1b[0m x"), "==7==ERROR x");
        assert_eq!(without_colour("a\x1b"), "a");
    }

    #[test]
    fn numbers_by_table() {
        assert_eq!(decimal("73,285"), Some(73285));
        assert_eq!(decimal(""), None);
        assert_eq!(decimal("99999999999999999999999"), None);
        assert_eq!(hex("0x1F"), Some(31));
        assert_eq!(hex("+1"), None);
        assert_eq!(leading_decimal("42 bytes"), Some((42, " bytes")));
        assert_eq!(leading_hex("0xfg"), Some((15, "g")));
    }
}
