//! Memcheck's sentences, shared by text and XML.

use leakscope_findings::analysis::{Analysis, Block, LossRecord, MisuseError};
use leakscope_findings::suppressions::fishy_names;
use leakscope_model::{LeakKind, MisuseKind};

/// 1234567 as `1,234,567`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// What a loss record was at the last leak check.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Earlier {
    bytes: u64,
    blocks: u64,
    indirect_bytes: u64,
}

impl Earlier {
    /// The record of an earlier analysis with the same kind and stack; zeros if there is none.
    pub(crate) fn of(record: &LossRecord, before: &Analysis) -> Self {
        let ips = |record: &LossRecord| record.stack.all_frames().iter().map(|frame| frame.ip).collect::<Vec<_>>();
        let wanted = ips(record);
        let found = before.records.iter().find(|old| old.kind == record.kind && ips(old) == wanted);
        found.map_or(Self::default(), |old| Self {
            bytes: old.bytes,
            blocks: old.blocks,
            indirect_bytes: old.indirect_bytes,
        })
    }
}

/// A number, and by how much it has changed: `20 (+10)`.
pub(crate) fn changed(now: u64, before: Option<u64>) -> String {
    let number = grouped(now);
    match before {
        None => number,
        Some(before) if now >= before => format!("{number} (+{})", grouped(now - before)),
        Some(before) => format!("{number} (-{})", grouped(before - now)),
    }
}

/// The first line of a loss record, with what has changed since an earlier leak check.
pub(crate) fn loss_record(record: &LossRecord, of: usize, earlier: Option<Earlier>) -> String {
    let had_indirect = earlier.is_some_and(|earlier| earlier.indirect_bytes > 0);
    let is_lost = record.kind == Some(LeakKind::DefinitelyLost);
    let bytes = if is_lost && (record.indirect_bytes > 0 || had_indirect) {
        let all = record.bytes.saturating_add(record.indirect_bytes);
        format!(
            "{} ({} direct, {} indirect)",
            changed(all, earlier.map(|earlier| earlier.bytes.saturating_add(earlier.indirect_bytes))),
            changed(record.bytes, earlier.map(|earlier| earlier.bytes)),
            changed(record.indirect_bytes, earlier.map(|earlier| earlier.indirect_bytes))
        )
    } else {
        changed(record.bytes, earlier.map(|earlier| earlier.bytes))
    };
    format!(
        "{bytes} bytes in {} blocks are {} in loss record {} of {}",
        changed(record.blocks, earlier.map(|earlier| earlier.blocks)),
        record.kind.map_or("live (not classified)", LeakKind::words),
        grouped(u64::from(record.number)),
        grouped(of as u64)
    )
}

/// The kind of an error in Valgrind's XML.
pub(crate) fn misuse_kind(kind: MisuseKind) -> &'static str {
    match kind {
        MisuseKind::DoubleFree | MisuseKind::InvalidFree | MisuseKind::InteriorFree | MisuseKind::InvalidRealloc => {
            "InvalidFree"
        }
        MisuseKind::MismatchedFree => "MismatchedFree",
        MisuseKind::Overrun => "InvalidWrite",
        MisuseKind::FishySize => "FishyValue",
        MisuseKind::ReallocZero => "ReallocSizeZero",
    }
}

/// The first line of a misuse error.
pub(crate) fn misuse(error: &MisuseError) -> String {
    match error.kind {
        MisuseKind::DoubleFree | MisuseKind::InvalidFree | MisuseKind::InteriorFree | MisuseKind::InvalidRealloc => {
            "Invalid free() / delete / delete[] / realloc()".to_owned()
        }
        MisuseKind::MismatchedFree => "Mismatched free() / delete / delete []".to_owned(),
        MisuseKind::Overrun => "Invalid write past the end of a block, found when it was released".to_owned(),
        MisuseKind::FishySize => {
            let (function, arguments) = fishy_names(error.function.demangled());
            // A product of two numbers that looks negative came from the count in the cases that matter.
            let argument = arguments.last().copied().unwrap_or("size");
            let value = error.requested_bytes as i64;
            format!("Argument '{argument}' of function {function} has a fishy (possibly negative) value: {value}")
        }
        MisuseKind::ReallocZero => "realloc() with size 0".to_owned(),
    }
}

/// What the address of an error is; `None` where Memcheck says nothing about it.
pub(crate) fn address(error: &MisuseError) -> Option<String> {
    if !error.about.is_empty() {
        return None;
    }
    let Some(block) = &error.block else {
        let address = error.address;
        return (error.kind != MisuseKind::FishySize)
            .then(|| format!("Address {address:#x} is not stack'd, malloc'd or (recently) free'd"));
    };
    let address = match error.kind {
        MisuseKind::Overrun => block.start.wrapping_add(block.bytes).wrapping_add(error.overrun_offset),
        _ => error.address,
    };
    let (distance, place) = place(block, address);
    let state = if is_free(error) { "free'd" } else { "alloc'd" };
    Some(format!(
        "Address {address:#x} is {} bytes {place} a block of size {} {state}",
        grouped(distance),
        grouped(block.bytes)
    ))
}

/// Whether the block had been released when the error happened.
pub(crate) fn is_free(error: &MisuseError) -> bool {
    match error.kind {
        MisuseKind::DoubleFree => true,
        MisuseKind::InvalidRealloc => error.block.as_ref().is_some_and(|block| block.free.is_some()),
        _ => false,
    }
}

fn place(block: &Block, address: u64) -> (u64, &'static str) {
    if address < block.start {
        (block.start - address, "before")
    } else if address - block.start >= block.bytes && !(block.bytes == 0 && address == block.start) {
        (address - block.start - block.bytes, "after")
    } else {
        (address - block.start, "inside")
    }
}
