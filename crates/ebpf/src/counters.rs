//! Exact counts of events, what was lost, and what the programs cost.

use std::os::fd::{AsFd, OwnedFd};

use crate::layout::{LostKind, State};
use crate::load::Maps;
use crate::{Error, Kind, sys};

/// A loaded program.
pub(crate) struct ProgramFd {
    pub(crate) name: &'static str,
    /// Index of its states.
    pub(crate) number: u32,
    pub(crate) kind: Kind,
    pub(crate) is_release: bool,
    pub(crate) fd: OwnedFd,
}

/// What one program counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgramCounters {
    /// Its name.
    pub name: &'static str,
    /// Of which memory.
    pub kind: Kind,
    /// Whether it sees releases.
    pub is_release: bool,
    /// Events that it saw, sampled or not.
    pub events: u64,
    /// Bytes of allocations among them, as the allocator rounds them.
    pub bytes: u64,
    /// Releases of blocks that the table does not hold.
    pub unknown: u64,
    /// Events for which the kernel did not run it, because it was running on that processor. Zero before 5.12, which
    /// does not count them.
    pub missed: u64,
    /// Stacks that were had without the kernel's unwinder.
    pub recalled: u64,
    /// Stacks that the kernel's unwinder walked.
    pub unwound: u64,
    /// Stacks of the former that were compared with the kernel's, and found to be right.
    pub checked: u64,
    /// Nanoseconds in it while run time was measured.
    pub run_time_ns: u64,
    /// Runs while run time was measured.
    pub runs: u64,
}

/// What found no room or was not seen. All zero means that nothing is missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Allocations that were not tracked because the table of blocks was full.
    pub blocks_full: u64,
    /// Allocations that were not tracked because the table was locked by what we interrupted.
    pub blocks_busy: u64,
    /// Bytes of both.
    pub block_bytes: u64,
    /// Releases that could not be entered for the same reason; their blocks look outstanding.
    pub frees_busy: u64,
    /// Allocations whose stack found no room; their bytes are at the site "stack not kept".
    pub stacks_full: u64,
    /// Allocations without a stack.
    pub stacks_failed: u64,
    /// Stacks that were cut at [`crate::MOST_FRAMES`].
    pub stacks_cut: u64,
    /// Blocks whose address was allocated again, so that their release was not seen. They are taken off.
    pub missed_frees: u64,
    /// Blocks of bulk calls beyond those that are looked at.
    pub bulk_blocks: u64,
    /// Printed events above the rate.
    pub events_rate: u64,
    /// Printed events that found the ring full.
    pub events_full: u64,
    /// Names of processes that found no room.
    pub names: u64,
    /// Calls whose return was not seen, or the other way round.
    pub calls: u64,
    /// Stacks that were recalled otherwise than the kernel has them, of those that were compared. The kernel's counts.
    pub stacks_wrong: u64,
    /// Events for which a program was not run because it was running already.
    pub events_missed: u64,
}

/// Counts since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// By program.
    pub programs: Vec<ProgramCounters>,
    /// What is missing.
    pub lost: Lost,
}

impl Counters {
    /// Allocations and their bytes of a kind, exact.
    pub fn allocations(&self, kind: Kind) -> (u64, u64) {
        let of_kind = self.programs.iter().filter(|program| program.kind == kind && !program.is_release);
        of_kind.fold((0, 0), |(events, bytes), program| (events + program.events, bytes + program.bytes))
    }

    /// Releases that programs of a kind saw, and those of them that the table did not hold.
    pub fn releases(&self, kind: Kind) -> (u64, u64) {
        let of_kind = self.programs.iter().filter(|program| program.kind == kind && program.is_release);
        of_kind.fold((0, 0), |(events, unknown), program| (events + program.events, unknown + program.unknown))
    }

    /// Allocations that were sampled since `before`, estimated from their bytes and the rate.
    pub fn samples_since(&self, before: &Self, sample_bytes: u64) -> f64 {
        let sums = |of: &Self| {
            let allocations = of.programs.iter().filter(|program| !program.is_release);
            allocations.fold((0, 0), |(events, bytes), program| (events + program.events, bytes + program.bytes))
        };
        let (now, then) = (sums(self), sums(before));
        let events = now.0.saturating_sub(then.0) as f64;
        match sample_bytes {
            0 => events,
            rate => (now.1.saturating_sub(then.1) as f64 / rate as f64).min(events),
        }
    }

    /// Nanoseconds in all programs while run time was measured.
    pub fn run_time_ns(&self) -> u64 {
        self.programs.iter().map(|program| program.run_time_ns).sum()
    }
}

pub(crate) fn read(maps: &Maps, programs: &[ProgramFd]) -> Result<Counters, Error> {
    let failed = |error| Error::Command { what: "read counters", error };
    let mut counters = Counters::default();
    for program in programs {
        let states: Vec<State> =
            sys::read_per_cpu(maps.fd("states"), program.number, maps.processors).map_err(failed)?;
        let runs = sys::runs(program.fd.as_fd()).map_err(failed)?;
        let sum = |field: fn(&State) -> u64| states.iter().map(field).fold(0, u64::wrapping_add);
        counters.programs.push(ProgramCounters {
            name: program.name,
            kind: program.kind,
            is_release: program.is_release,
            events: sum(|state| state.events),
            bytes: sum(|state| state.bytes),
            unknown: sum(|state| state.unknown),
            missed: runs.misses,
            recalled: sum(|state| state.recalled),
            unwound: sum(|state| state.unwound),
            checked: sum(|state| state.checked),
            run_time_ns: runs.run_time_ns,
            runs: runs.runs,
        });
    }
    let count = |kind: LostKind| -> Result<u64, Error> {
        let values: Vec<u64> = sys::read_per_cpu(maps.fd("lost"), kind as u32, maps.processors).map_err(failed)?;
        Ok(values.into_iter().sum())
    };
    counters.lost = Lost {
        blocks_full: count(LostKind::BlockFull)?,
        blocks_busy: count(LostKind::BlockBusy)?,
        block_bytes: count(LostKind::BlockBytes)?,
        frees_busy: count(LostKind::FreeBusy)?,
        stacks_full: count(LostKind::SiteFull)?,
        stacks_failed: count(LostKind::Stack)?,
        stacks_cut: count(LostKind::StackCut)?,
        missed_frees: count(LostKind::MissedFree)?,
        bulk_blocks: count(LostKind::Bulk)?,
        events_rate: count(LostKind::EventRate)?,
        events_full: count(LostKind::EventFull)?,
        names: count(LostKind::Name)?,
        calls: count(LostKind::Call)?,
        stacks_wrong: count(LostKind::StackWrong)?,
        events_missed: counters.programs.iter().map(|program| program.missed).sum(),
    };
    Ok(counters)
}
