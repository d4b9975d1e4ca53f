//! A clock that does not go back: what happens when somebody sets the machine's. Pure.

/// A clock whose seconds since the epoch never decrease.
#[derive(Clone, Copy, Debug)]
pub struct Timeline {
    offset: f64,
    last: f64,
}

/// A difference beyond which the machine's clock was set, and did not merely drift, seconds.
const SET_SECONDS: f64 = 5.0;
/// What lies this far in the future of a history was written under a wrong clock, seconds.
const WRONG_SECONDS: f64 = 86_400.0;

impl Timeline {
    /// Begins at the machine's time, or behind `newest`, what a history holds.
    pub fn start(real: f64, steady: f64, newest: Option<f64>) -> Self {
        let begin =
            newest.filter(|&newest| newest < real + WRONG_SECONDS).map_or(real, |newest| real.max(newest + 1.0));
        Self { offset: begin - steady, last: begin }
    }

    /// The time for what the machine's clock and its steady clock say. A clock that was set forward is followed; one that
    /// was set back is not, until it has caught up.
    pub fn now(&mut self, real: f64, steady: f64) -> f64 {
        let expected = self.offset + steady;
        let now = if real > expected + SET_SECONDS { real } else { expected };
        self.offset = now - steady;
        self.last = self.last.max(now);
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_back_and_forward_at_once() {
        let mut line = Timeline::start(1000.0, 5.0, None);
        assert_eq!(line.now(1010.0, 15.0), 1010.0);
        assert_eq!(line.now(10.0, 25.0), 1020.0, "set back");
        assert_eq!(line.now(20.0, 35.0), 1030.0);
        assert_eq!(line.now(9000.0, 45.0), 9000.0, "set forward");
        assert_eq!(line.now(9010.0, 55.0), 9010.0);
    }

    #[test]
    fn behind_what_is_known() {
        assert_eq!(Timeline::start(1000.0, 5.0, Some(1500.0)).now(1001.0, 6.0), 1502.0);
        assert_eq!(Timeline::start(1000.0, 5.0, Some(1e9)).now(1001.0, 6.0), 1001.0);
    }
}
