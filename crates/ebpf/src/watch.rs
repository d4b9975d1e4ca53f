//! What every tracer can be asked.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use crate::{Counters, Error, Kind, Snapshot};

/// A tracer that runs.
pub trait Watch {
    /// Stops tracking new allocations; releases are still seen. What is outstanding can only become less.
    fn stop_allocations(&mut self);

    /// The kinds of memory that are traced.
    fn kinds(&self) -> &[Kind];

    /// What cannot be seen, one sentence each.
    fn notes(&self) -> &[String];

    /// Mean bytes between samples, 0 for every allocation.
    fn sample_bytes(&self) -> u64;

    /// When tracing began, CLOCK_MONOTONIC, nanoseconds.
    fn started_ns(&self) -> u64;

    /// Changes the mean bytes between samples, from now on; blocks in the table keep their weights.
    ///
    /// # Errors
    /// When bpf(2) refuses.
    fn set_sample(&mut self, bytes: u64) -> Result<(), Error>;

    /// What is outstanding now and at least `min_age_ns` old.
    ///
    /// # Errors
    /// When bpf(2) refuses.
    fn snapshot(&mut self, min_age_ns: u64) -> Result<Snapshot, Error>;

    /// Exact counts of events, and what was lost.
    ///
    /// # Errors
    /// When bpf(2) refuses.
    fn counters(&self) -> Result<Counters, Error>;

    /// Names of processes that allocated, by id.
    ///
    /// # Errors
    /// When bpf(2) refuses.
    fn names(&self) -> Result<BTreeMap<u32, String>, Error>;

    /// Has the kernel measure the programs' run time until the result is dropped.
    ///
    /// # Errors
    /// When bpf(2) refuses.
    fn measure(&self) -> Result<OwnedFd, Error>;
}
