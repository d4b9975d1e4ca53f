//! How the values of options are written: Memcheck's spellings.

use std::time::Duration;

use leakscope_findings::analysis::{LeakCheck, Resolution};
use leakscope_model::{Heuristic, HeuristicSet, LeakKind, LeakKindSet};

/// `yes` or `no`.
pub fn yes_no(text: &str) -> Result<bool, String> {
    match text {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => Err("expected yes or no".to_owned()),
    }
}

/// `definite,possible`, or `all`, or `none`.
pub fn leak_kinds(text: &str) -> Result<LeakKindSet, String> {
    set(text, LeakKindSet::NONE, LeakKindSet::ALL, |set, word| {
        let kind = LeakKind::ALL.into_iter().find(|kind| kind.option_word() == word)?;
        Some(set.with(kind))
    })
    .ok_or_else(|| "expected all, none, or some of definite,indirect,possible,reachable".to_owned())
}

/// `stdstring,newarray`, or `all`, or `none`.
pub fn heuristics(text: &str) -> Result<HeuristicSet, String> {
    set(text, HeuristicSet::NONE, HeuristicSet::ALL, |set, word| {
        let heuristic = Heuristic::ALL.into_iter().find(|heuristic| heuristic.option_word() == word)?;
        Some(set.with(heuristic))
    })
    .ok_or_else(|| "expected all, none, or some of stdstring,length64,newarray,multipleinheritance".to_owned())
}

fn set<S: Copy>(text: &str, none: S, all: S, add: impl Fn(S, &str) -> Option<S>) -> Option<S> {
    match text {
        "none" => Some(none),
        "all" => Some(all),
        _ => text.split(',').try_fold(none, add),
    }
}

/// `no`, `summary`, `yes` or `full`.
pub fn leak_check(text: &str) -> Result<LeakCheck, String> {
    match text {
        "no" => Ok(LeakCheck::No),
        "summary" => Ok(LeakCheck::Summary),
        "yes" | "full" => Ok(LeakCheck::Full),
        _ => Err("expected no, summary, yes or full".to_owned()),
    }
}

/// `low`, `med` or `high`.
pub fn resolution(text: &str) -> Result<Resolution, String> {
    match text {
        "low" => Ok(Resolution::Low),
        "med" => Ok(Resolution::Med),
        "high" => Ok(Resolution::High),
        _ => Err("expected low, med or high".to_owned()),
    }
}

/// A number of bytes, with K, M or G for powers of 1024.
pub fn bytes(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 10),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 20),
        Some(b'g' | b'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number: Option<u64> = digits.parse().ok();
    number
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or_else(|| "expected a number of bytes, such as 65536 or 512K".to_owned())
}

/// A time such as `60s`, `2m`, `500ms` or `1h`; a number alone counts seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let unit = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(unit);
    let number: Option<u64> = digits.parse().ok();
    let milliseconds = match unit {
        "ms" => Some(1),
        "" | "s" => Some(1000),
        "m" | "min" => Some(60_000),
        "h" => Some(3_600_000),
        _ => None,
    };
    number
        .zip(milliseconds)
        .and_then(|(number, unit)| number.checked_mul(unit))
        .map(Duration::from_millis)
        .ok_or_else(|| "expected a time, such as 60s, 2m or 500ms".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, expected) in [("0", 0), ("60s", 60_000), ("2m", 120_000), ("500ms", 500), ("1h", 3_600_000)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(expected)), "{text}");
        }
        for text in ["", "s", "-1s", "1.5s", "1d", "18446744073709551615h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn leak_kinds_as_memcheck_spells_them() {
        use LeakKind::*;
        let of = |kinds: &[LeakKind]| kinds.iter().fold(LeakKindSet::NONE, |set, &kind| set.with(kind));
        for (text, expected) in [
            ("all", of(&LeakKind::ALL)),
            ("none", of(&[])),
            ("definite", of(&[DefinitelyLost])),
            ("definite,possible", of(&[DefinitelyLost, PossiblyLost])),
            ("reachable,indirect", of(&[StillReachable, IndirectlyLost])),
        ] {
            assert_eq!(leak_kinds(text), Ok(expected), "{text}");
        }
        for text in ["", "definite,", "All", "all,definite", "definitely", "definite possible"] {
            assert!(leak_kinds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn heuristics_as_memcheck_spells_them() {
        assert_eq!(heuristics("all"), Ok(HeuristicSet::ALL));
        assert_eq!(heuristics("none"), Ok(HeuristicSet::NONE));
        let two = HeuristicSet::NONE.with(Heuristic::Length64).with(Heuristic::MultipleInheritance);
        assert_eq!(heuristics("multipleinheritance,length64"), Ok(two));
        assert!(heuristics("stdString").is_err());
    }

    #[test]
    fn sizes() {
        for (text, expected) in [("0", 0), ("512", 512), ("4k", 4096), ("2M", 2 << 20), ("1G", 1 << 30)] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for text in ["", "k", "-1", "1.5M", "16777216T", "99999999999999999999", "18446744073709551615K"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }
}
