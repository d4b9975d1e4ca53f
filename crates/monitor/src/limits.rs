//! What processes may have of addresses: RLIMIT_AS and RLIMIT_DATA, and how near each process is.
//!
//! Both bound what is mapped, not what is resident: a program may meet them while its memory is far below. What is left
//! of addresses is what its memory can still grow by, so memory plus what is left is the limit that memory is judged by.

use std::collections::HashMap;

use leakscope_sampling::process::{self, Limits};
use leakscope_sampling::{Counters, Places, Process};

/// How often limits are read again, seconds.
pub(crate) const LIMITS_SECONDS: f64 = 600.0;

/// One of the two limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bound {
    Addresses,
    Data,
}

impl Bound {
    /// Whose limit it is, for people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Addresses => "its RLIMIT_AS",
            Self::Data => "its RLIMIT_DATA",
        }
    }

    fn limit(self, limits: &Limits) -> Option<u64> {
        match self {
            Self::Addresses => limits.address_bytes,
            Self::Data => limits.data_bytes,
        }
    }

    fn used(self, counters: &Counters) -> Option<u64> {
        match self {
            Self::Addresses => counters.address_bytes,
            Self::Data => counters.data_bytes,
        }
    }
}

/// What a process has of what it may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    pub pid: u32,
    pub bound: Bound,
    pub used_bytes: u64,
    pub limit_bytes: u64,
}

impl Room {
    pub fn left(&self) -> u64 {
        self.limit_bytes.saturating_sub(self.used_bytes)
    }

    pub fn share(&self) -> f64 {
        self.used_bytes as f64 / self.limit_bytes.max(1) as f64
    }

    /// What the process has now of the same.
    pub fn read_used(&self, places: &Places) -> Option<u64> {
        self.bound.used(&process::read_status(places, self.pid)?)
    }
}

/// The tightest of several processes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rooms {
    /// With the fewest bytes left.
    pub least: Option<Room>,
    /// With the largest share used.
    pub fullest: Option<Room>,
}

impl Rooms {
    pub fn add(&mut self, room: Room) {
        if self.least.is_none_or(|least| room.left() < least.left()) {
            self.least = Some(room);
        }
        if self.fullest.is_none_or(|fullest| room.share() > fullest.share()) {
            self.fullest = Some(room);
        }
    }
}

struct Reading {
    start_ticks: u64,
    at: f64,
    limits: Limits,
}

/// The limits of processes, read now and then.
#[derive(Default)]
pub(crate) struct ProcessLimits {
    known: HashMap<u32, Reading>,
}

impl ProcessLimits {
    /// The limits of a process.
    pub fn of(&mut self, places: &Places, process: &Process, seconds: f64) -> Limits {
        let is_fresh = |reading: &Reading| {
            reading.start_ticks == process.start_ticks && (seconds - reading.at).abs() < LIMITS_SECONDS
        };
        if let Some(reading) = self.known.get(&process.pid).filter(|reading| is_fresh(reading)) {
            return reading.limits;
        }
        let limits = process::read_limits(places, process.pid);
        self.known.insert(process.pid, Reading { start_ticks: process.start_ticks, at: seconds, limits });
        limits
    }

    /// Adds how near a process with these counters is.
    pub fn note(&mut self, places: &Places, process: &Process, counters: &Counters, seconds: f64, rooms: &mut Rooms) {
        let limits = self.of(places, process, seconds);
        for bound in [Bound::Addresses, Bound::Data] {
            if let (Some(limit_bytes), Some(used_bytes)) = (bound.limit(&limits), bound.used(counters)) {
                rooms.add(Room { pid: process.pid, bound, used_bytes, limit_bytes });
            }
        }
    }

    /// Forgets processes that nobody has asked for lately.
    pub fn forget(&mut self, seconds: f64) {
        self.known.retain(|_, reading| (seconds - reading.at).abs() < 2.0 * LIMITS_SECONDS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tightest_by_bytes_and_by_share() {
        let room = |pid, bound, used_bytes, limit_bytes| Room { pid, bound, used_bytes, limit_bytes };
        let mut rooms = Rooms::default();
        rooms.add(room(1, Bound::Addresses, 980, 1000));
        rooms.add(room(2, Bound::Data, 90_000, 100_000));
        rooms.add(room(3, Bound::Addresses, 5, 10));
        let found = (rooms.least.unwrap().pid, rooms.fullest.unwrap().pid);
        assert_eq!((found, rooms.least.unwrap().left()), ((3, 1), 5));
        assert_eq!(room(1, Bound::Data, 7, 0).share(), 7.0, "a limit of nothing is no division by it");
        assert_eq!(room(1, Bound::Data, 7, 3).left(), 0);
    }

    /// Another process of the same id has limits of its own, and old ones are read again.
    #[test]
    fn limits_are_those_of_this_process() {
        let folder = tempfile::tempdir().unwrap();
        let places = Places::below(folder.path());
        std::fs::create_dir_all(places.path("/proc/7")).unwrap();
        let write = |bytes: &str| {
            let text = format!(
                "Limit  Soft  Hard  Units\nMax data size  unlimited  unlimited  bytes\nMax address space  {bytes}  unlimited  bytes\n"
            );
            std::fs::write(places.path("/proc/7/limits"), text).unwrap();
        };
        let process = |start_ticks| Process {
            pid: 7,
            name: b"x".to_vec(),
            parent_pid: 1,
            start_ticks,
            threads: 1,
            resident_bytes: 1,
            state: b'S',
        };
        let mut limits = ProcessLimits::default();
        let mut of = |start, at| limits.of(&places, &process(start), at).address_bytes;
        write("1000");
        assert_eq!(of(1, 0.0), Some(1000));
        write("2000");
        assert_eq!((of(1, 599.0), of(2, 599.0)), (Some(1000), Some(2000)));
        write("unlimited");
        assert_eq!((of(2, 900.0), of(2, 1200.0)), (Some(2000), None));
        limits.forget(5000.0);
        assert!(limits.known.is_empty());
    }
}
