//! How long blocks live, for one allocation in 64 of each thread.
//!
//! The time of birth stands in a small table by address; a block whose slot is taken is not measured. So the
//! histogram leans a little towards short lives when very many measured blocks are live at once.

use crate::raw::tsc;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{AcqRel, Relaxed};
use leakscope_ledger::layout::{LIFETIME_BUCKETS, SiteCounters};

const SLOTS: usize = 1 << 17;

struct Birth {
    start: AtomicU64,
    at: AtomicU64,
}

static BIRTHS: [Birth; SLOTS] = [const { Birth { start: AtomicU64::new(0), at: AtomicU64::new(0) } }; SLOTS];

fn slot(start: u64) -> &'static Birth {
    &BIRTHS[((start >> 4).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 47) as usize & (SLOTS - 1)]
}

/// Starts the clock of a block; false when there is no slot for it.
#[cold]
pub fn begin(start: u64) -> bool {
    let slot = slot(start);
    if slot.start.compare_exchange(0, start, AcqRel, Relaxed).is_err() {
        return false;
    }
    slot.at.store(tsc(), Relaxed);
    true
}

/// The bucket of a lifetime in cycles (see `SiteCounters::lifetimes`).
pub fn bucket(cycles: u64) -> usize {
    let log = (cycles | 1).ilog2() as usize;
    (log.saturating_sub(8) / 2).min(LIFETIME_BUCKETS - 1)
}

/// Stops the clock of a block and counts its lifetime.
#[cold]
pub fn end(start: u64, counters: &SiteCounters) {
    let slot = slot(start);
    if slot.start.load(Relaxed) != start {
        return;
    }
    let lived = tsc().saturating_sub(slot.at.load(Relaxed));
    slot.start.store(0, Relaxed);
    if let Some(count) = counters.lifetimes.get(bucket(lived)) {
        count.fetch_add(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_as_the_layout_says() {
        assert_eq!(bucket(0), 0);
        assert_eq!(bucket(255), 0);
        assert_eq!(bucket((1 << 10) - 1), 0);
        assert_eq!(bucket(1 << 10), 1);
        assert_eq!(bucket(u64::MAX), LIFETIME_BUCKETS - 1);
    }
}
