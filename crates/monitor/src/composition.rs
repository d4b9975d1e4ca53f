//! What targets are made of: whose mappings are read when.
//!
//! The kernel walks page tables for it, so few processes are read in a pass: first those of targets that grow, then those
//! that were read longest ago; and after each reading none is made for so long that all of them together take a small share
//! of one core, however large the processes are.

use std::collections::HashMap;
use std::time::Instant;

use leakscope_sampling::parts::read_parts;
use leakscope_sampling::{Parts, Places};

/// Rest after a reading, as a multiple of what it took: a five hundredth of one core at most.
const REST: f64 = 500.0;
/// Readings in one pass.
const MOST: usize = 8;
/// Between two readings of a process of a target that grows, seconds; and of others.
const SUSPECT_SECONDS: f64 = 60.0;
const OTHER_SECONDS: f64 = 600.0;

/// A process that may be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub pid: u32,
    pub start_ticks: u64,
    /// Whether its target grows.
    pub is_suspect: bool,
}

struct Reading {
    start_ticks: u64,
    at: f64,
    parts: Option<Parts>,
}

/// What has been read.
#[derive(Default)]
pub(crate) struct Composition {
    known: HashMap<u32, Reading>,
    /// Whom the next pass may read.
    candidates: Vec<Candidate>,
    rest_until: f64,
}

impl Composition {
    /// Says whom the next pass may read; forgets all others.
    pub fn set_candidates(&mut self, candidates: Vec<Candidate>) {
        let starts: HashMap<u32, u64> = candidates.iter().map(|one| (one.pid, one.start_ticks)).collect();
        self.known.retain(|pid, reading| starts.get(pid) == Some(&reading.start_ticks));
        self.candidates = candidates;
    }

    /// Reads those whose turn it is, at `seconds` since the epoch.
    pub fn read(&mut self, places: &Places, seconds: f64) {
        let due = due(&self.candidates, |pid| self.known.get(&pid).map(|reading| reading.at), seconds);
        for candidate in due {
            if self.rest_until > seconds {
                return;
            }
            let begin = Instant::now();
            let parts = read_parts(places, candidate.pid);
            self.rest_until = self.rest_until.max(seconds - 1.0) + begin.elapsed().as_secs_f64() * REST;
            let reading = Reading { start_ticks: candidate.start_ticks, at: seconds, parts };
            self.known.insert(candidate.pid, reading);
        }
    }

    /// The parts of several processes together, when one of them was read in this very pass and all of them are known.
    pub fn fresh(&self, pids: impl Iterator<Item = u32>, seconds: f64) -> Option<Parts> {
        let (mut sum, mut is_fresh) = (Parts::default(), false);
        for pid in pids {
            let reading = self.known.get(&pid)?;
            is_fresh |= reading.at == seconds;
            sum.add(&reading.parts?);
        }
        is_fresh.then_some(sum)
    }
}

/// Whose turn it is, the most urgent first.
fn due(candidates: &[Candidate], read_at: impl Fn(u32) -> Option<f64>, seconds: f64) -> Vec<Candidate> {
    let age = |one: &Candidate| read_at(one.pid).map_or(f64::INFINITY, |at| (seconds - at).abs());
    let every = |one: &Candidate| if one.is_suspect { SUSPECT_SECONDS } else { OTHER_SECONDS };
    let mut due: Vec<Candidate> = candidates.iter().filter(|one| age(one) >= every(one)).copied().collect();
    due.sort_by(|a, b| {
        let order = (age(b) / every(b)).total_cmp(&(age(a) / every(a)));
        b.is_suspect.cmp(&a.is_suspect).then(order).then(a.pid.cmp(&b.pid))
    });
    due.truncate(MOST);
    due
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(pid: u32, is_suspect: bool) -> Candidate {
        Candidate { pid, start_ticks: 1, is_suspect }
    }

    #[test]
    fn suspects_first_then_those_not_read_for_long() {
        let candidates: Vec<Candidate> = (0..20).map(|pid| candidate(pid, pid == 7 || pid == 8)).collect();
        // 0 was never read, 7 a minute ago, 8 just now, all others at a time of their own.
        let read_at = |pid| match pid {
            0 => None,
            7 => Some(940.0),
            8 => Some(990.0),
            pid => Some(f64::from(pid) * 30.0),
        };
        let order: Vec<u32> = due(&candidates, read_at, 1000.0).iter().map(|one| one.pid).collect();
        assert_eq!(order, [7, 0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(due(&[candidates[8], candidates[19]], read_at, 1000.0), []);
    }

    /// A process that is expensive to read makes the others wait; one that is gone is unknown, and so is the sum.
    #[test]
    fn readings_rest_and_know_what_is_unknown() {
        let places = Places::default();
        let own = std::process::id();
        let mut composition = Composition::default();
        composition.set_candidates(vec![candidate(own, false), candidate(u32::MAX, false)]);
        composition.read(&places, 1000.0);
        assert!(composition.rest_until > 999.0);
        // Far later everything is due, whatever the first one took.
        composition.read(&places, 1e6);
        let of = |pid: u32, at: f64| composition.fresh([pid].into_iter(), at);
        assert!(of(own, 1e6).is_some() || composition.rest_until > 1e6, "{}", composition.rest_until);
        assert_eq!((of(u32::MAX, 1e6), of(own, 5.0)), (None, None));
        composition.rest_until = 3e6;
        composition.read(&places, 2e6);
        assert_eq!(composition.fresh([own].into_iter(), 2e6), None, "it rests");
        composition.set_candidates(Vec::new());
        assert!(composition.known.is_empty());
    }
}
