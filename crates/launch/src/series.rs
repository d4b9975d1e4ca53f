//! The time series of each ledger: when to sample, so that the cost stays bounded.
//!
//! The interval starts short, for programs that live for a moment, and doubles each time the series is full
//! and every second sample is dropped. Whatever the interval, at most one part in [`COST_DIVISOR`] of a CPU
//! goes into sampling: a heap with a hundred thousand sites is looked at less often.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, Timespec, clock_gettime};

use crate::ledger_file::{LedgerFile, Sample};

/// The first interval.
const SHORTEST: Duration = Duration::from_millis(10);
/// 0.2 % of a CPU.
const COST_DIVISOR: u32 = 500;
/// What a wake-up costs besides the sampling itself.
const WAKE_UP: Duration = Duration::from_micros(10);

/// Decides when the next sample is due.
#[derive(Debug)]
pub(crate) struct Sampler {
    interval: Duration,
    next: Instant,
}

impl Sampler {
    /// The first sample is due one interval from now.
    pub(crate) fn start(now: Instant) -> Self {
        Self { interval: SHORTEST, next: now + SHORTEST }
    }

    /// When the next sample is due.
    pub(crate) fn due(&self) -> Instant {
        self.next
    }

    /// Samples each ledger with its process, and plans the next time.
    pub(crate) fn sample<'a>(&mut self, processes: impl Iterator<Item = (u32, &'a LedgerFile)>) {
        let before = cpu_time();
        let mut full = false;
        for (pid, ledger) in processes {
            full |= sample_now(pid, ledger);
        }
        if full {
            self.interval *= 2;
        }
        let cost = cpu_time().saturating_sub(before) + WAKE_UP;
        self.next = Instant::now() + self.pause_after(cost);
    }

    fn pause_after(&self, cost: Duration) -> Duration {
        self.interval.max(cost * COST_DIVISOR)
    }
}

/// Takes one sample; `true` when the series was full and has been thinned out.
pub(crate) fn sample_now(pid: u32, ledger: &LedgerFile) -> bool {
    if !ledger.started() {
        return false;
    }
    let live = ledger.live();
    ledger.push_sample(Sample {
        monotonic_ns: duration(clock_gettime(ClockId::Monotonic)).as_nanos() as u64,
        live_bytes: live.bytes,
        live_blocks: live.blocks,
        resident_bytes: leakscope_process::status::read_resident_bytes(pid).unwrap_or(0),
    })
}

fn cpu_time() -> Duration {
    duration(clock_gettime(ClockId::ThreadCPUTime))
}

fn duration(time: Timespec) -> Duration {
    Duration::new(time.tv_sec.max(0) as u64, time.tv_nsec.clamp(0, 999_999_999) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_bounds_the_cost() {
        let sampler = Sampler::start(Instant::now());
        assert_eq!(sampler.pause_after(Duration::from_micros(1)), SHORTEST);
        for micros in [100u64, 5_000, 70_000] {
            let cost = Duration::from_micros(micros);
            assert!(cost.as_secs_f64() / sampler.pause_after(cost).as_secs_f64() <= 0.002 + 1e-9);
        }
    }
}
