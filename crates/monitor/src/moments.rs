//! Readings at moments twice as far apart each, so that "since then" is known within a factor of two in little memory. Pure.

/// Moments that are kept of one thing.
pub(crate) const MOMENTS: usize = 12;
/// Younger moments are all the same, seconds.
const LEAST_AGE: f64 = 120.0;

/// Some numbers at one moment.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Moment {
    /// Seconds since the epoch.
    pub seconds: f64,
    /// What was read.
    pub numbers: Vec<u64>,
}

/// Readings, oldest first; the last one is the newest.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Moments(Vec<Moment>);

impl Moments {
    /// Takes a reading. Of too many, one goes that lies closer to others than those twice as far back.
    pub fn push(&mut self, seconds: f64, numbers: Vec<u64>) {
        self.0.push(Moment { seconds, numbers });
        if self.0.len() <= MOMENTS {
            return;
        }
        // The first and the last stay. Of the others the one goes whose neighbours' ages differ by the smallest factor.
        let crowded = (1..self.0.len() - 1).min_by(|&a, &b| {
            let age = |at: usize| seconds - self.0[at].seconds + LEAST_AGE;
            let factor = |at: usize| age(at - 1) / age(at + 1);
            factor(a).total_cmp(&factor(b)).then(a.cmp(&b))
        });
        if let Some(at) = crowded {
            self.0.remove(at);
        }
    }

    /// The newest reading.
    pub fn last(&self) -> Option<&Moment> {
        self.0.last()
    }

    /// The newest reading from before a moment; without one, the first.
    pub fn before(&self, seconds: f64) -> Option<&Moment> {
        self.0.iter().rev().find(|moment| moment.seconds <= seconds).or(self.0.first())
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which moments are kept, by their ages in seconds, of a reading each minute for a day.
    #[test]
    fn moments_lie_further_apart_the_older_they_are() {
        let mut moments = Moments::default();
        for minute in 0..=1440u32 {
            moments.push(f64::from(minute) * 60.0, vec![u64::from(minute)]);
        }
        let kept: Vec<u64> = moments.0.iter().map(|moment| moment.numbers[0]).collect();
        assert_eq!((kept.len(), kept[0], kept[MOMENTS - 1]), (MOMENTS, 0, 1440));
        // Whatever "since" is, a reading from before it is at most three times as far back.
        for minutes_ago in 2..1400u64 {
            let since = (1440 - minutes_ago) as f64 * 60.0;
            let age = 1440 - moments.before(since).unwrap().numbers[0];
            assert!(age >= minutes_ago && age <= 3 * minutes_ago + 1, "{minutes_ago} min: {age} min");
        }
        assert_eq!(moments.before(-5.0).unwrap().numbers, [0]);
    }
}
