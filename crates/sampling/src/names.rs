//! Names that anybody can choose, made safe to show.

/// Longest name that is shown, in characters.
const LONGEST: usize = 64;

/// A name in one line without control characters, bidirectional overrides or broken UTF-8; never empty, at most 64
/// characters.
pub fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut shown: String = text.chars().take(LONGEST).map(|c| if is_harmless(c) { c } else { '\u{fffd}' }).collect();
    if shown.trim().is_empty() {
        shown = "(no name)".to_owned();
    }
    shown
}

fn is_harmless(c: char) -> bool {
    let turns = matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    !c.is_control() && !turns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names() {
        assert_eq!(printable(b"a\nb\x1b[31m"), "a\u{fffd}b\u{fffd}[31m");
        assert_eq!(printable("x\u{202e}y".as_bytes()), "x\u{fffd}y");
        assert_eq!(printable(b"\xff\xfe"), "\u{fffd}\u{fffd}");
        assert_eq!(printable(b" "), "(no name)");
        assert_eq!(printable(&[b'a'; 500]).len(), 64);
    }
}
