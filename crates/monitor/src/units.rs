//! Numbers with units, as people write and read them. Pure.

/// Seconds in a text such as `10s`, `5m`, `24h`, `7d`; the error says what is expected.
///
/// # Errors
/// When it is something else.
pub fn seconds(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no time; write a number with s, m, h or d, such as \"10s\" or \"24h\"");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    digits.parse::<u64>().ok().and_then(|number| number.checked_mul(factor)).ok_or_else(wrong)
}

/// Bytes in a text such as `500MB`, `2GiB`.
///
/// # Errors
/// When it is something else.
pub fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no size; write a number with kB, MB, GB, KiB, MiB or GiB, such as \"500MB\"");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "B" => 1,
        "kB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(wrong()),
    };
    digits.trim_end().parse::<u64>().ok().and_then(|number| number.checked_mul(factor)).ok_or_else(wrong)
}

/// Two local hours: `22:00-07:00`.
///
/// # Errors
/// When it is something else.
pub fn hours(text: &str) -> Result<(u8, u8), String> {
    let wrong = || format!("`{text}` are no hours; write such as \"22:00-07:00\", in whole hours");
    let hour = |text: &str| {
        let (hour, minutes) = text.trim().split_once(':')?;
        hour.parse::<u8>().ok().filter(|hour| *hour < 24 && minutes == "00")
    };
    let (from, to) = text.split_once('-').ok_or_else(wrong)?;
    Ok((hour(from).ok_or_else(wrong)?, hour(to).ok_or_else(wrong)?))
}

/// Bytes for people, in powers of ten: `488 MB`, `1.2 GB`.
pub fn show_bytes(value: f64) -> String {
    let mut scaled = value.abs();
    let sign = if value < 0.0 { "-" } else { "" };
    for unit in ["B", "kB", "MB", "GB", "TB"] {
        if scaled < 999.5 || unit == "TB" {
            let digits = if scaled < 9.95 && unit != "B" { 1 } else { 0 };
            return format!("{sign}{scaled:.digits$} {unit}");
        }
        scaled /= 1000.0;
    }
    String::new()
}

/// A stretch of time for people: `40 min`, `5.2 h`, `3.1 days`.
pub fn show_hours(hours: f64) -> String {
    match hours {
        h if !h.is_finite() => "no end in sight".to_owned(),
        h if h < 1.5 => format!("{:.0} min", h * 60.0),
        h if h < 48.0 => format!("{h:.1} h"),
        h if h < 24.0 * 365.0 => format!("{:.1} days", h / 24.0),
        _ => "more than a year".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_by_table() {
        assert_eq!(
            [seconds("10s"), seconds("5m"), seconds("24h"), seconds("7d")],
            [Ok(10), Ok(300), Ok(86_400), Ok(604_800)]
        );
        for wrong in ["", "10", "s", "1.5h", "-1s", "10 s", "99999999999999999999s", "999999999999999999d", "5min"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
        assert_eq!([bytes("500MB"), bytes("2 GiB")], [Ok(500_000_000), Ok(2 << 30)]);
        assert!(bytes("5").is_err() && bytes("5mb").is_err() && bytes("99999999999GiB").is_err());
        assert_eq!(hours("22:00-07:00"), Ok((22, 7)));
        assert!(hours("22-7").is_err() && hours("24:00-07:00").is_err() && hours("22:30-07:00").is_err());
    }

    #[test]
    fn for_people() {
        let shown = [0.0, 999.4, 1234.0, 488e6, 1.2e9, 3e13, -5e6].map(show_bytes);
        assert_eq!(shown, ["0 B", "999 B", "1.2 kB", "488 MB", "1.2 GB", "30 TB", "-5.0 MB"]);
        let shown = [0.5, 5.25, 100.0, 1e6, f64::INFINITY].map(show_hours);
        assert_eq!(shown, ["30 min", "5.2 h", "4.2 days", "more than a year", "no end in sight"]);
    }
}
