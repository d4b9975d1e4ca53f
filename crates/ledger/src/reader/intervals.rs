//! Intervals between `mtrace()` and `muntrace()`, and the facts about the log that the target wrote.
//!
//! An interval that ended has its sites in records of their own. One that is open (the target is in it, or was killed in
//! it) has none yet: the sites that bear its number tell by their counters what is live.

use core::mem::offset_of;
use std::vec::Vec;

use leakscope_model::SiteId;

use super::read::{Ledger, field, u32_at, u64_at};
use super::{ReadAt, Site, SiteTotals};
use crate::layout::{self, AreaId, Header, interval_state, site_flags};

/// What ended an interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IntervalEnd {
    /// A call of `muntrace()`.
    Muntrace,
    /// The end of the program.
    Program,
    /// Nothing yet, or the program was killed in it.
    Open,
}

/// What a program did between `mtrace()` and `muntrace()`. "Live" is at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interval {
    /// Its number, from 0.
    pub number: u32,
    /// What ended it.
    pub end: IntervalEnd,
    /// Where `mtrace()` was called.
    pub begin_site: SiteId,
    /// Where `muntrace()` was called; 0 when it was not.
    pub end_site: SiteId,
    /// CLOCK_MONOTONIC at its begin, nanoseconds.
    pub begin_ns: u64,
    /// CLOCK_MONOTONIC at its end, nanoseconds; 0 while it is open.
    pub end_ns: u64,
    /// Blocks allocated.
    pub allocated_blocks: u64,
    /// Requested bytes in them.
    pub allocated_bytes: u64,
    /// The sites of blocks that are live.
    pub sites: Vec<IntervalSite>,
}

/// What a site allocated in an interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IntervalSite {
    /// The site.
    pub site: SiteId,
    /// Blocks allocated.
    pub allocated_blocks: u64,
    /// Requested bytes in them.
    pub allocated_bytes: u64,
    /// Blocks that are live at the end of the interval.
    pub live_blocks: u64,
    /// Requested bytes in them.
    pub live_bytes: u64,
}

/// The log of events that the target wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventLog {
    /// Its file, in the bytes of the file system; empty when there is none.
    pub file: Vec<u8>,
    /// Lines in it, as of the last flush.
    pub lines: u64,
    /// The errno of what ended it early, 0 when nothing did.
    pub errno: u32,
    /// Events that are missing in it.
    pub lost: u32,
    /// What the target's `MALLOC_TRACE` says; empty when it is not set.
    pub wanted: Vec<u8>,
}

pub(super) fn read_event_log(header: &[u8], mut string: impl FnMut(u64) -> Vec<u8>) -> EventLog {
    let at = offset_of!(Header, event_log);
    EventLog {
        file: string(u64_at(header, at + offset_of!(layout::EventLog, file))),
        lines: u64_at(header, at + offset_of!(layout::EventLog, lines)),
        errno: u32_at(header, at + offset_of!(layout::EventLog, errno)),
        lost: u32_at(header, at + offset_of!(layout::EventLog, lost)),
        wanted: string(u64_at(header, at + offset_of!(layout::EventLog, wanted))),
    }
}

/// The intervals with the records that are there; nothing in them is checked yet but that they lie in the file.
pub(super) fn read_raw<S: ReadAt + ?Sized>(ledger: &mut Ledger<'_, S>) -> Vec<Interval> {
    use layout::IntervalRecord as Record;
    let used = ledger.used(AreaId::Intervals);
    let mut out = Vec::new();
    let mut ranges = Vec::new();
    let mut unknown = 0;
    ledger.records(AreaId::Intervals, 0, used, |number, bytes| {
        let end = match field!(bytes, u32, Record, state) {
            interval_state::OPEN => IntervalEnd::Open,
            interval_state::ENDED => IntervalEnd::Muntrace,
            interval_state::ENDED_WITH_PROGRAM => IntervalEnd::Program,
            // Its room is claimed, nothing is written yet.
            0 => return,
            _ => {
                unknown += 1;
                return;
            }
        };
        out.push(Interval {
            number,
            end,
            begin_site: SiteId(field!(bytes, u32, Record, begin_site)),
            end_site: SiteId(field!(bytes, u32, Record, end_site)),
            begin_ns: field!(bytes, u64, Record, begin_ns),
            end_ns: field!(bytes, u64, Record, end_ns),
            allocated_blocks: field!(bytes, u64, Record, allocated_blocks),
            allocated_bytes: field!(bytes, u64, Record, allocated_bytes),
            sites: Vec::new(),
        });
        ranges.push((field!(bytes, u32, Record, first_record), field!(bytes, u32, Record, records)));
    });
    ledger.note(unknown, "intervals are damaged; they are left out");
    let published = ledger.used(AreaId::IntervalSites);
    // Ranges that overlap would make many records out of few bytes: the intervals lie in the order of their ends.
    let mut free_from = 0;
    let mut missing = 0;
    for (interval, (first, records)) in out.iter_mut().zip(ranges) {
        if interval.end == IntervalEnd::Open {
            continue;
        }
        let room = if first < free_from { 0 } else { published.saturating_sub(first) };
        missing += u64::from(records.saturating_sub(room));
        let records = records.min(room);
        ledger.records(AreaId::IntervalSites, first, records, |_, bytes| interval.sites.push(site(bytes)));
        free_from = first.saturating_add(records).max(free_from);
    }
    ledger.note(missing, "sites of intervals are missing");
    out
}

fn site(bytes: &[u8]) -> IntervalSite {
    use layout::IntervalSiteRecord as Record;
    IntervalSite {
        site: SiteId(field!(bytes, u32, Record, site)),
        allocated_blocks: field!(bytes, u64, Record, allocated_blocks),
        allocated_bytes: field!(bytes, u64, Record, allocated_bytes),
        live_blocks: field!(bytes, u64, Record, live_blocks),
        live_bytes: field!(bytes, u64, Record, live_bytes),
    }
}

/// Checks the sites, and fills in what open intervals hold.
pub(super) fn finish<S: ReadAt + ?Sized>(
    ledger: &mut Ledger<'_, S>,
    mut intervals: Vec<Interval>,
    sites: &[Site],
    totals: &[SiteTotals],
) -> Vec<Interval> {
    let mut bad = 0;
    let most = sites.len().max(1);
    for interval in &mut intervals {
        let callers = [&mut interval.begin_site, &mut interval.end_site];
        for site in callers.into_iter().chain(interval.sites.iter_mut().map(|record| &mut record.site)) {
            if site.0 as usize >= most {
                *site = SiteId(0);
                bad += 1;
            }
        }
    }
    ledger.note(bad, "stacks of intervals are missing");
    // The last one alone can be open: one look over the sites is enough.
    if let Some(open) = intervals.last_mut().filter(|interval| interval.end == IntervalEnd::Open) {
        let of_it = sites.iter().zip(totals).enumerate();
        for (number, (_, totals)) in
            of_it.filter(|(_, (site, _))| site_flags::interval(site.flags) == Some(open.number))
        {
            open.allocated_blocks = open.allocated_blocks.wrapping_add(totals.allocated_blocks);
            open.allocated_bytes = open.allocated_bytes.wrapping_add(totals.allocated_bytes);
            if totals.live_blocks() > 0 {
                open.sites.push(IntervalSite {
                    site: SiteId(number as u32),
                    allocated_blocks: totals.allocated_blocks,
                    allocated_bytes: totals.allocated_bytes,
                    live_blocks: totals.live_blocks(),
                    live_bytes: totals.live_bytes(),
                });
            }
        }
    }
    intervals
}
