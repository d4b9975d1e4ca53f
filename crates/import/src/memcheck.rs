//! Memcheck's sentences, in its text and in its XML alike.
//!
//! Source: Valgrind 3.19 and 3.22, what they print; `docs/internals/xml-output-protocol4.txt` for the kinds.

use leakscope_findings::recording::{Access, AuxiliaryStack};
use leakscope_model::{ErrorKind, LeakKind, MisuseKind};

use crate::lines::{leading_decimal, leading_hex};
use crate::sink::{ErrorHandle, ErrorText, Front, Process};

/// A finding while its lines are read.
#[derive(Debug, Default)]
pub(crate) struct Finding {
    /// The kind, if the format names it.
    pub(crate) kind: String,
    /// Its first sentence.
    pub(crate) what: String,
    /// The stack of the finding.
    pub(crate) stack: Option<u32>,
    /// Other sentences and their stacks.
    pub(crate) auxiliary: Vec<(String, u32)>,
    pub(crate) tid: u32,
}

impl Finding {
    /// Another sentence, with its stack.
    pub(crate) fn note(&mut self, label: String, leaf: u32) {
        if self.auxiliary.len() < crate::sink::MOST_AUXILIARY {
            self.auxiliary.push((label, leaf));
        }
    }
}

/// What a sentence of the leak checker says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Loss {
    pub(crate) kind: LeakKind,
    pub(crate) direct_bytes: u64,
    pub(crate) indirect_bytes: u64,
    pub(crate) blocks: u64,
    /// Its number in the check.
    pub(crate) record: u64,
}

/// A number, and the change since an earlier check behind it, as in `48 (+16)`.
fn number_and_change(text: &str) -> Option<(u64, &str)> {
    let (number, rest) = leading_decimal(text)?;
    let rest = match rest.strip_prefix(" (+").or_else(|| rest.strip_prefix(" (-")) {
        Some(change) => change.split_once(')')?.1,
        None => rest,
    };
    Some((number, rest))
}

/// `48 (16 direct, 32 indirect) bytes in 1 blocks are definitely lost in loss record 4 of 6`.
pub(crate) fn loss(sentence: &str) -> Option<Loss> {
    let (total, rest) = number_and_change(sentence)?;
    let (direct_bytes, indirect_bytes, rest) = match rest.strip_prefix(" (") {
        Some(parts) => {
            let (direct, rest) = number_and_change(parts)?;
            let (indirect, rest) = number_and_change(rest.strip_prefix(" direct, ")?)?;
            (direct, indirect, rest.strip_prefix(" indirect)")?)
        }
        None => (total, 0, rest),
    };
    let (blocks, rest) = number_and_change(rest.strip_prefix(" bytes in ")?)?;
    let rest = rest.strip_prefix(" blocks are ")?;
    let kind = LeakKind::ALL.into_iter().find(|kind| rest.starts_with(kind.words()))?;
    let rest = rest[kind.words().len()..].trim_start();
    let record = rest.strip_prefix("in loss record ").and_then(leading_decimal).map_or(0, |(record, _)| record);
    Some(Loss { kind, direct_bytes, indirect_bytes, blocks, record })
}

/// The kind that a first sentence tells, as the XML names it.
pub(crate) fn kind_of(what: &str) -> Option<&'static str> {
    const FRONTS: [(&str, &str); 28] = [
        ("Invalid read of size", "InvalidRead"),
        ("Invalid write of size", "InvalidWrite"),
        ("Jump to the invalid address", "InvalidJump"),
        ("Conditional jump or move depends on", "UninitCondition"),
        ("Use of uninitialised value", "UninitValue"),
        ("Syscall param", "SyscallParam"),
        ("Source and destination overlap", "Overlap"),
        ("Invalid free()", "InvalidFree"),
        ("Mismatched free()", "MismatchedFree"),
        ("Mismatched new/delete size", "MismatchedSize"),
        ("Mismatched new", "MismatchedAlign"),
        ("Argument '", "FishyValue"),
        ("realloc() with size 0", "ReallocSizeZero"),
        ("Uninitialised byte(s) found during client check", "ClientCheck"),
        ("Unaddressable byte(s) found during client check", "ClientCheck"),
        ("Illegal memory pool address", "InvalidMemPool"),
        ("Uninitialised value in register", "CoreMemError"),
        ("Invalid alignment value", "BadAlign"),
        ("Unsafe allocation with size", "BadSize"),
        ("Invalid size value", "BadSize"),
        ("Uninitialised or unaddressable byte(s)", "CoreMemError"),
        ("Process terminating with default action of signal", "FatalSignal"),
        ("points to unaddressable byte(s)", "SyscallParam"),
        ("Writev(", "SyscallParam"),
        ("Stack overflow in thread", "StackOverflow"),
        ("Can't extend stack", "StackOverflow"),
        ("Use of freed", "InvalidRead"),
        ("User error", "ClientCheck"),
    ];
    FRONTS.iter().find(|(front, _)| what.starts_with(front)).map(|&(_, kind)| kind)
}

/// What an address is, as in `Address 0x4a41043 is 3 bytes inside a block of size 16 free'd`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Place {
    address: u64,
    /// Start and size of the block.
    block: Option<(u64, u64)>,
    /// Bytes into the block, when it lies inside.
    inside: Option<u64>,
    is_free: bool,
}

fn place(sentence: &str) -> Option<Place> {
    let (address, rest) = leading_hex(sentence.trim_start().strip_prefix("Address ")?)?;
    let mut place = Place { address, ..Place::default() };
    let Some((distance, rest)) = rest.strip_prefix(" is ").and_then(leading_decimal) else { return Some(place) };
    let Some((side, block)) = rest.strip_prefix(" bytes ").and_then(|rest| rest.split_once(' ')) else {
        return Some(place);
    };
    let block = block.strip_prefix("a ").or_else(|| block.strip_prefix("an ")).unwrap_or(block);
    let Some((_, block)) = block.split_once("block of size ") else { return Some(place) };
    let Some((size, state)) = leading_decimal(block) else { return Some(place) };
    let start = match side {
        "inside" => address.wrapping_sub(distance),
        "after" => address.wrapping_sub(distance).wrapping_sub(size),
        "before" => address.wrapping_add(distance),
        _ => return Some(place),
    };
    place.block = Some((start, size));
    place.inside = (side == "inside").then_some(distance);
    place.is_free = state.contains("free'd");
    Some(place)
}

/// Memcheck's name of an error as a wrong call, as `leakscope run` tells them apart.
fn misuse(kind: &str, what: &str, place: Option<Place>) -> Option<MisuseKind> {
    Some(match kind {
        "InvalidFree" => match place {
            Some(place) if place.is_free => MisuseKind::DoubleFree,
            Some(Place { inside: Some(_), .. }) => MisuseKind::InteriorFree,
            _ => MisuseKind::InvalidFree,
        },
        "MismatchedFree"
        | "MismatchedSize"
        | "MismatchedAlign"
        | "MismatchedAllocateDeallocateSize"
        | "MismatchedAllocateDeallocateAlignment" => MisuseKind::MismatchedFree,
        "FishyValue" if what.contains("of function") => MisuseKind::FishySize,
        "ReallocSizeZero" => MisuseKind::ReallocZero,
        _ => return None,
    })
}

/// Keeps a finding that is no leak; `None` when its kind is unknown.
pub(crate) fn keep(process: &mut Process, finding: Finding) -> Option<ErrorHandle> {
    let Finding { kind, what, stack, auxiliary, tid } = finding;
    let kind = if kind.is_empty() { kind_of(&what)? } else { kind.as_str() };
    let place = auxiliary.iter().find_map(|(label, _)| place(label));
    let mut text = ErrorText {
        leaf: stack.unwrap_or(0),
        address: place.map_or(0, |place| place.address),
        thread: process.thread(tid),
        count: 1,
        ..ErrorText::default()
    };
    if let Some(misuse) = misuse(kind, &what, place) {
        (text.block_start, text.block_bytes) = place.and_then(|place| place.block).unwrap_or_default();
        for (label, leaf) in &auxiliary {
            if label.contains("free'd") {
                text.free = *leaf;
            } else if label.contains("alloc'd") {
                text.allocation = *leaf;
            }
        }
        if misuse == MisuseKind::FishySize {
            let value = what.rsplit(' ').next().and_then(|number| number.parse::<i64>().ok()).unwrap_or_default();
            text.block_bytes = value as u64;
        }
        return Some(process.misuse(misuse, Front::Callee, &text));
    }
    let kind = ErrorKind::from_name(kind).unwrap_or(match kind {
        "FishyValue" => ErrorKind::BadSize,
        _ => ErrorKind::Other,
    });
    text.access = match kind {
        ErrorKind::InvalidRead => Access::Read,
        ErrorKind::InvalidWrite => Access::Write,
        _ => Access::None,
    };
    text.access_bytes = what.rsplit_once(" of size ").and_then(|(_, size)| leading_decimal(size)).map_or(0, |(n, _)| n);
    text.message = what;
    text.auxiliary =
        auxiliary.into_iter().map(|(label, leaf)| AuxiliaryStack { label: label.trim().to_owned(), leaf }).collect();
    Some(process.error(kind, text))
}

/// Keeps a loss record whose number in its check is given; the numbers begin again with a new check.
pub(crate) fn keep_loss(process: &mut Process, loss: Loss, leaf: u32, last_record: &mut u64) {
    if !process.has_check() || loss.record != 0 && loss.record <= *last_record {
        process.begin_check();
    }
    *last_record = loss.record;
    let site = process.site(leaf, Front::Callee);
    process.leak(site, loss.kind, (loss.direct_bytes, loss.blocks), (loss.indirect_bytes, 0));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_by_table() {
        let loss_of = |kind, direct_bytes, indirect_bytes, blocks, record| {
            Some(Loss { kind, direct_bytes, indirect_bytes, blocks, record })
        };
        for (sentence, expected) in [
            (
                "48 (16 direct, 32 indirect) bytes in 1 blocks are definitely lost in loss record 4 of 6",
                loss_of(LeakKind::DefinitelyLost, 16, 32, 1, 4),
            ),
            (
                "1,234 bytes in 12 blocks are still reachable in loss record 1,000 of 2,000",
                loss_of(LeakKind::StillReachable, 1234, 0, 12, 1000),
            ),
            (
                "48 (+16) (16 (+8) direct, 32 (+8) indirect) bytes in 2 (+1) blocks are possibly lost in loss record 1 of 1",
                loss_of(LeakKind::PossiblyLost, 16, 32, 2, 1),
            ),
            ("10 bytes in 1 blocks are lost", None),
            ("bytes", None),
        ] {
            assert_eq!(loss(sentence), expected, "{sentence}");
        }
    }

    #[test]
    fn places_by_table() {
        let inside = place("Address 0x1003 is 3 bytes inside a block of size 16 free'd").unwrap();
        assert_eq!(inside, Place { address: 0x1003, block: Some((0x1000, 16)), inside: Some(3), is_free: true });
        let after = place(" Address 0x1012 is 2 bytes after a block of size 16 alloc'd").unwrap();
        assert_eq!(after.block, Some((0x1000, 16)));
        assert_eq!(place("Address 0x0 is not stack'd, malloc'd or (recently) free'd").unwrap(), Place::default());
        assert_eq!(place("Block was alloc'd at"), None);
    }
}
