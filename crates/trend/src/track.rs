//! The newest values of a row of stretches of time, in little memory: most series are the same for days.
//!
//! ```text
//!  runs    stretches that follow each other in one life: first, count, life
//!  values  one for all of them while they are alike, else one for each
//! ```
//!
//! Nothing is rounded: what comes out is what was put in.

/// Stretches that follow each other in one life.
#[derive(Clone, Copy, Debug)]
struct Run {
    first: u32,
    count: u16,
    life: u16,
}

#[derive(Clone, Debug)]
enum Values<V> {
    Same(V),
    Each(Vec<V>),
}

/// Values by stretch and life, oldest first.
#[derive(Clone, Debug)]
pub(crate) struct Track<V> {
    runs: Vec<Run>,
    values: Values<V>,
    /// How many of the newest are alike, saturating.
    alike: u16,
}

impl<V: Copy + Default> Default for Track<V> {
    fn default() -> Self {
        Self { runs: Vec::new(), values: Values::Same(V::default()), alike: 0 }
    }
}

impl<V: Copy + Default + PartialEq> Track<V> {
    /// Adds a value, later than all others; the oldest ones go until there are no more than `most`.
    pub fn push(&mut self, stretch: u32, life: u16, value: V, most: usize) {
        while self.len() >= most.max(1) {
            self.remove_oldest();
        }
        let length = self.len();
        self.alike = if self.newest().is_some_and(|(.., newest)| newest == value) { self.alike + 1 } else { 1 };
        match self.runs.last_mut() {
            Some(run) if run.life == life && run.first + u32::from(run.count) == stretch => run.count += 1,
            _ => self.runs.push(Run { first: stretch, count: 1, life }),
        }
        match &mut self.values {
            Values::Same(same) if length == 0 || *same == value => *same = value,
            Values::Same(same) => {
                // At once as many as there will be: what grows leaves holes behind, which others of its kind do not fit.
                let mut each = Vec::with_capacity(most);
                each.resize(length, *same);
                each.push(value);
                self.values = Values::Each(each);
            }
            Values::Each(each) => each.push(value),
        }
        if usize::from(self.alike) >= self.len() {
            self.values = Values::Same(value);
        }
    }

    fn remove_oldest(&mut self) {
        let Some(run) = self.runs.first_mut() else { return };
        run.first += 1;
        run.count -= 1;
        if run.count == 0 {
            self.runs.remove(0);
            // After a time of many gaps, room for few is enough.
            if self.runs.capacity() >= 4 * self.runs.len().max(2) {
                self.runs.shrink_to(self.runs.len() + 1);
            }
        }
        if let Values::Each(each) = &mut self.values {
            each.remove(0);
        }
        self.alike = self.alike.min(self.len() as u16);
    }

    pub fn len(&self) -> usize {
        match &self.values {
            Values::Each(each) => each.len(),
            Values::Same(_) => self.runs.iter().map(|run| usize::from(run.count)).sum(),
        }
    }

    /// The newest stretch with its life and value.
    pub fn newest(&self) -> Option<(u32, u16, V)> {
        let run = self.runs.last()?;
        let value = match &self.values {
            Values::Same(same) => *same,
            Values::Each(each) => *each.last()?,
        };
        Some((run.first + u32::from(run.count) - 1, run.life, value))
    }

    /// Stretch, life and value, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (u32, u16, V)> {
        let stretches =
            self.runs.iter().flat_map(|run| (run.first..run.first + u32::from(run.count)).map(|at| (at, run.life)));
        stretches.enumerate().map(|(place, (stretch, life))| {
            let value = match &self.values {
                Values::Same(same) => *same,
                Values::Each(each) => each[place],
            };
            (stretch, life, value)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::synthetic::Random;

    /// Against a queue that keeps everything as it is.
    #[test]
    fn what_comes_out_is_what_was_put_in() {
        let mut random = Random::new(5);
        for round in 0..200 {
            let (mut track, mut kept) = (Track::default(), VecDeque::new());
            let (mut stretch, mut life, mut value) = (0u32, 0u16, [1.0f32, 1.0]);
            let often = [0.0, 0.02, 0.3, 1.0][round % 4];
            let most = [1, 2, 63, 64][round / 4 % 4];
            for _ in 0..300 {
                stretch += 1 + if random.uniform() < 0.05 { (random.uniform() * 90.0) as u32 } else { 0 };
                life += u16::from(random.uniform() < 0.03);
                if random.uniform() < often {
                    value = [(random.uniform() * 4.0).floor() as f32, random.uniform() as f32];
                }
                track.push(stretch, life, value, most);
                kept.push_back((stretch, life, value));
                if kept.len() > most {
                    kept.pop_front();
                }
                assert_eq!((track.len(), track.newest()), (kept.len(), kept.back().copied()));
                assert!(track.iter().eq(kept.iter().copied()), "round {round}: {track:?}");
            }
        }
    }

    #[test]
    fn what_is_alike_is_held_once_again() {
        let mut track = Track::default();
        (0..100u32).for_each(|at| track.push(at, 0, if at == 20 { 2.0 } else { 1.0 }, 64));
        assert!(matches!(track.values, Values::Same(1.0)), "{track:?}");
        assert_eq!((track.runs.len(), track.len()), (1, 64));
        track.push(100, 0, 3.0, 64);
        let Values::Each(each) = &track.values else { panic!("{track:?}") };
        assert_eq!((each.len(), each.capacity()), (64, 64), "no more room than values");
        let pushed = each.as_ptr();
        track.push(101, 0, 4.0, 64);
        let Values::Each(each) = &track.values else { panic!("{track:?}") };
        assert_eq!((each.as_ptr(), each.capacity()), (pushed, 64), "it stays where it is");
        // Many gaps, then none.
        (102..200u32).for_each(|at| track.push(at * 2, 0, 3.0, 64));
        (400..500u32).for_each(|at| track.push(at, 0, 3.0, 64));
        assert!(track.runs.len() == 1 && track.runs.capacity() <= 8, "{}", track.runs.capacity());
    }
}
