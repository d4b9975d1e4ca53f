//! Leak checks and their records.
//!
//! Successive checks use two halves of the record area in turn, so the records of a check stay only until the
//! one after the next begins. The headers are therefore read before and after the records; a check keeps its
//! records only if neither its header nor the claim of a later check on its range has changed meanwhile.

use std::vec::Vec;

use leakscope_model::{CheckTrigger, Heuristic, LeakKind, SiteId};

use super::read::{Ledger, field};
use super::{Check, CheckRecord, CheckState, ReadAt};
use crate::layout::{self, AreaId, CHECKS, CheckHeader, NO_HEURISTIC, check_state};

/// A check's header, and where its records lie.
#[derive(Clone, PartialEq)]
pub(super) struct RawCheck {
    check: Check,
    failure: u64,
    first_record: u32,
    records: u32,
}

impl RawCheck {
    fn overlaps(&self, other: &Self) -> bool {
        let end = |check: &Self| u64::from(check.first_record) + u64::from(check.records);
        u64::from(self.first_record) < end(other) && u64::from(other.first_record) < end(self)
    }
}

/// Records by check; `None` where they are not to be had.
pub(super) type RawRecords = Vec<Option<Vec<CheckRecord>>>;

/// The headers, oldest first.
fn headers<S: ReadAt + ?Sized>(ledger: &mut Ledger<'_, S>) -> (Vec<RawCheck>, u64) {
    let count = ledger.claimed(AreaId::Checks);
    let kept = CHECKS.min(ledger.capacity(AreaId::Checks));
    let mut unknown = 0;
    let mut out = Vec::new();
    for number in count.saturating_sub(kept)..count {
        ledger.records(AreaId::Checks, number % CHECKS, 1, |_, bytes| {
            let state = match field!(bytes, u32, CheckHeader, state) {
                check_state::RUNNING => CheckState::Running,
                check_state::COMPLETE => CheckState::Complete,
                check_state::FAILED => CheckState::Failed,
                // Its room is claimed, nothing is written yet.
                0 => return,
                _ => {
                    unknown += 1;
                    return;
                }
            };
            let trigger = field!(bytes, u32, CheckHeader, trigger);
            let Some(trigger) = u8::try_from(trigger).ok().and_then(CheckTrigger::from_u8) else {
                unknown += 1;
                return;
            };
            out.push(RawCheck {
                check: header(number, state, trigger, bytes),
                failure: field!(bytes, u64, CheckHeader, failure),
                first_record: field!(bytes, u32, CheckHeader, first_record),
                records: field!(bytes, u32, CheckHeader, records),
            });
        });
    }
    (out, unknown)
}

fn header(number: u32, state: CheckState, trigger: CheckTrigger, bytes: &[u8]) -> Check {
    Check {
        number,
        state,
        trigger,
        monotonic_ns: field!(bytes, u64, CheckHeader, monotonic_ns),
        blocks: field!(bytes, u64, CheckHeader, blocks),
        bytes: field!(bytes, u64, CheckHeader, bytes),
        root_bytes: field!(bytes, u64, CheckHeader, root_bytes),
        unreadable_bytes: field!(bytes, u64, CheckHeader, unreadable_bytes),
        threads_seen: field!(bytes, u32, CheckHeader, threads_seen),
        threads_unseen: field!(bytes, u32, CheckHeader, threads_unseen),
        pause_ns: field!(bytes, u64, CheckHeader, pause_ns),
        check_ns: field!(bytes, u64, CheckHeader, check_ns),
        lost_records: field!(bytes, u64, CheckHeader, lost_records),
        status: field!(bytes, u32, CheckHeader, status),
        freeres: field!(bytes, u32, CheckHeader, freeres) == 1,
        failure: Vec::new(),
        records: None,
    }
}

/// Headers and the records of those checks that are complete and not overwritten.
pub(super) fn read_raw<S: ReadAt + ?Sized>(ledger: &mut Ledger<'_, S>) -> (Vec<RawCheck>, RawRecords) {
    let (before, _) = headers(ledger);
    let mut bad = 0;
    let mut missing = 0;
    let mut records: RawRecords = Vec::new();
    for (i, raw) in before.iter().enumerate() {
        let wanted =
            raw.check.state == CheckState::Complete && !before[i + 1..].iter().any(|later| raw.overlaps(later));
        records.push(wanted.then(|| {
            let room = ledger.capacity(AreaId::CheckRecords).saturating_sub(raw.first_record);
            missing += u64::from(raw.records.saturating_sub(room));
            let mut out = Vec::with_capacity(raw.records.min(room) as usize);
            ledger.records(AreaId::CheckRecords, raw.first_record, raw.records, |_, bytes| match record(bytes) {
                Some(record) => out.push(record),
                None => bad += 1,
            });
            out
        }));
    }
    let (after, unknown) = headers(ledger);
    for (i, raw) in before.iter().enumerate() {
        let stale = after.iter().find(|new| new.check.number == raw.check.number) != Some(raw);
        let later = after.iter().filter(|new| new.check.number > raw.check.number);
        // A check that has begun in the same half has not said yet how many records it will have.
        let reused = { later }.any(|new| new.overlaps(raw) || new.first_record == raw.first_record);
        if stale || (reused && raw.records > 0) {
            records[i] = None;
        }
    }
    ledger.note(unknown, "leak checks are damaged; they are left out");
    ledger.note(bad, "records of leak checks are damaged; they are left out");
    ledger.note(missing, "records of leak checks are missing");
    // Checks that began while we read are left out: the next reading has them.
    (before, records)
}

fn record(bytes: &[u8]) -> Option<CheckRecord> {
    use layout::CheckRecord as Record;
    let heuristic = match field!(bytes, u32, Record, heuristic) {
        NO_HEURISTIC => None,
        number => Some(Heuristic::from_u8(u8::try_from(number).ok()?)?),
    };
    let at = core::mem::offset_of!(Record, addresses);
    Some(CheckRecord {
        site: SiteId(field!(bytes, u32, Record, site)),
        kind: LeakKind::from_u8(u8::try_from(field!(bytes, u32, Record, kind)).ok()?)?,
        heuristic,
        blocks: field!(bytes, u64, Record, blocks),
        bytes: field!(bytes, u64, Record, bytes),
        indirect_blocks: field!(bytes, u64, Record, indirect_blocks),
        indirect_bytes: field!(bytes, u64, Record, indirect_bytes),
        addresses: [0, 8, 16].map(|i| super::read::u64_at(bytes, at + i)),
    })
}

/// Checks with their records, sites checked.
pub(super) fn finish<S: ReadAt + ?Sized>(
    ledger: &mut Ledger<'_, S>,
    raw: Vec<RawCheck>,
    records: RawRecords,
    sites: usize,
    mut string: impl FnMut(u64) -> Vec<u8>,
) -> Vec<Check> {
    let mut bad = 0;
    let checks = raw
        .into_iter()
        .zip(records)
        .map(|(raw, mut records)| {
            for record in records.iter_mut().flatten() {
                if record.site.0 as usize >= sites.max(1) {
                    record.site = SiteId(0);
                    bad += 1;
                }
            }
            Check { failure: string(raw.failure), records, ..raw.check }
        })
        .collect();
    ledger.note(bad, "records of leak checks have lost their site");
    checks
}
