//! Wrong calls: merging and suppression.

use std::collections::HashMap;

use leakscope_model::{AllocFn, MisuseKind};

use super::stacks::Stacks;
use super::{Amount, Block, MisuseError, Options, Uses};
use crate::recording::{Misuse, ProcessRecording};
use crate::suppressions::{Error, Matcher};

/// Addresses that must agree for two errors to be one; Memcheck compares four.
const SAME_ADDRESSES: usize = 4;

/// Kinds that Memcheck words alike are one kind of error.
fn merged_kind(kind: MisuseKind) -> MisuseKind {
    match kind {
        MisuseKind::DoubleFree | MisuseKind::InteriorFree | MisuseKind::InvalidRealloc => MisuseKind::InvalidFree,
        other => other,
    }
}

pub(super) fn merge(
    recorded: &ProcessRecording,
    stacks: &Stacks<'_>,
    matcher: &mut Matcher<'_>,
    options: &Options,
    uses: &mut Uses,
) -> Vec<MisuseError> {
    let mut known: HashMap<(MisuseKind, AllocFn, Vec<u32>), usize> = HashMap::new();
    let mut out: Vec<MisuseError> = Vec::new();
    for (number, misuse) in recorded.misuses.iter().enumerate() {
        if misuse.kind == MisuseKind::MismatchedFree && !options.show_mismatched_frees {
            continue;
        }
        let count = u64::from(misuse.count.max(1));
        let (function, locations) = stacks.key(misuse.site, SAME_ADDRESSES);
        let next = out.len();
        let at = *known.entry((merged_kind(misuse.kind), function, locations)).or_insert(next);
        if at == next {
            let mut new = error(recorded, stacks, matcher, misuse);
            let notes = recorded.misuse_notes.iter().filter(|note| note.misuse as usize == number);
            let about = notes.flat_map(|note| &note.about);
            new.about = about
                .map(|other| (other.label.as_str().into(), (other.leaf != 0).then(|| stacks.auxiliary(other.leaf))))
                .collect();
            out.push(new);
        } else {
            out[at].count += count;
        }
    }
    for error in &out {
        if let Some(rule) = error.suppressed_by {
            uses.hit(rule, error.count, Amount::default());
            uses.suppressed_error(error.count);
        }
    }
    out
}

fn error(recorded: &ProcessRecording, stacks: &Stacks<'_>, matcher: &mut Matcher<'_>, misuse: &Misuse) -> MisuseError {
    let stack = stacks.stack(misuse.site);
    let other = |site: u32| (site != 0).then(|| stacks.stack(site));
    let known_block = misuse.block_start != 0 && misuse.kind != MisuseKind::FishySize;
    MisuseError {
        kind: misuse.kind,
        count: u64::from(misuse.count.max(1)),
        thread: misuse.thread,
        tid: recorded.threads.get(misuse.thread as usize).map_or(0, |thread| thread.tid),
        function: stacks.function(misuse.site),
        address: misuse.address,
        block: known_block.then(|| Block {
            start: misuse.block_start,
            bytes: misuse.block_bytes,
            allocation: other(misuse.allocation_site),
            free: other(misuse.free_site),
        }),
        requested_bytes: if misuse.kind == MisuseKind::FishySize { misuse.block_bytes } else { 0 },
        overrun_offset: misuse.overrun_offset,
        about: Vec::new(),
        fingerprint: stacks.misuse_fingerprint(misuse.kind, misuse.site),
        suppressed_by: matcher.find(&Error::Misuse(misuse.kind), stack.all_frames()),
        stack,
    }
}
