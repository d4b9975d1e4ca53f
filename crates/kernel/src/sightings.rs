//! Which objects every scan saw.
//!
//! kmemleak's false positives are objects whose only pointer was for a moment somewhere that it does not scan: in a
//! register, in a list that is being changed, in a word of a device. The next scan finds the pointer again, and the
//! object is gone from the dump. So an object counts as lost only when every scan since the first sighting showed it,
//! and when it is old enough; what came later, or was missing once, is unconfirmed.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use crate::clock::Clock;
use crate::dump::{Dump, Object, ObjectKey};

/// How sure it is that an object of the last dump is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every dump shows it.
    Confirmed,
    /// So many dumps of all show it.
    Seen {
        /// Dumps that show it.
        times: u32,
    },
    /// Every dump shows it, and it is younger than wanted.
    Young,
}

/// Objects over several dumps.
#[derive(Clone, Debug, Default)]
pub struct Sightings {
    dumps: u32,
    seen: HashMap<ObjectKey, u32, RandomState>,
}

/// What several dumps say of the objects of the last one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judged {
    /// By number in the last dump.
    pub verdicts: Vec<Verdict>,
    /// Objects that an earlier dump showed and the last one does not: false alarms, or freed since.
    pub withdrawn: u64,
    /// Dumps that were compared.
    pub dumps: u32,
}

impl Sightings {
    /// Adds the next dump.
    pub fn add(&mut self, dump: &Dump) {
        self.dumps += 1;
        for object in &dump.objects {
            *self.seen.entry(object.key()).or_insert(0) += 1;
        }
    }

    /// Judges the objects of the dump that was added last. An age that is not known is none to hold against an object.
    pub fn judge(&self, last: &Dump, min_age_ms: u64, clock: Option<Clock>) -> Judged {
        let verdict = |object: &Object| {
            let times = self.seen.get(&object.key()).copied().unwrap_or(0);
            if times < self.dumps {
                return Verdict::Seen { times };
            }
            match age_ms(object, clock) {
                Some(age) if age < min_age_ms => Verdict::Young,
                _ => Verdict::Confirmed,
            }
        };
        Judged {
            verdicts: last.objects.iter().map(verdict).collect(),
            withdrawn: (self.seen.len() as u64).saturating_sub(last.objects.len() as u64),
            dumps: self.dumps,
        }
    }
}

/// Milliseconds since an object was allocated: the kernel's word, else by its jiffies.
pub fn age_ms(object: &Object, clock: Option<Clock>) -> Option<u64> {
    object.age_ms.or_else(|| clock?.age_ms(object.jiffies))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dump(objects: &[(u64, u64)]) -> Dump {
        let object = |&(address, jiffies): &(u64, u64)| Object {
            address,
            bytes: 8,
            is_percpu: false,
            pid: 1,
            comm: 0,
            jiffies,
            age_ms: None,
            crc: None,
            backtrace: 0,
        };
        Dump { objects: objects.iter().map(object).collect(), ..Dump::default() }
    }

    #[test]
    fn one_sighting_confirms_nothing() {
        let clock = Some(Clock { jiffies: 1000, hz: 100 });
        let mut sightings = Sightings::default();
        sightings.add(&dump(&[(1, 10), (2, 10), (3, 10)]));
        let last = dump(&[(1, 10), (2, 20), (4, 10), (5, 990)]);
        sightings.add(&last);
        let judged = sightings.judge(&last, 0, clock);
        let once = Verdict::Seen { times: 1 };
        assert_eq!(judged.verdicts, [Verdict::Confirmed, once, once, once], "2 is another object at the same address");
        assert_eq!((judged.withdrawn, judged.dumps), (2, 2));
    }

    #[test]
    fn the_young_wait() {
        let clock = Some(Clock { jiffies: 1000, hz: 100 });
        let last = dump(&[(1, 990), (2, 500)]);
        let mut sightings = Sightings::default();
        sightings.add(&last);
        assert_eq!(sightings.judge(&last, 1000, clock).verdicts, [Verdict::Young, Verdict::Confirmed]);
        assert_eq!(sightings.judge(&last, 1000, None).verdicts, [Verdict::Confirmed, Verdict::Confirmed]);
    }
}
