//! How long until a growing value meets its limit.

use crate::Growth;

/// Time until a limit, hours.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Remaining {
    /// At the most likely rate.
    pub likely_hours: f64,
    /// At the fastest rate of the interval.
    pub soonest_hours: f64,
    /// At the slowest rate; infinite when that is no growth.
    pub latest_hours: f64,
}

/// Time until `value` meets `limit` when it goes on like this; zero when it is there.
pub fn remaining(value: f64, limit: f64, growth: &Growth) -> Remaining {
    let room = (limit - value).max(0.0);
    let hours = |rate: f64| if rate > 0.0 { room / rate } else { f64::INFINITY };
    Remaining {
        likely_hours: hours(growth.per_hour),
        soonest_hours: hours(growth.high_per_hour),
        latest_hours: hours(growth.low_per_hour),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let growth = Growth { per_hour: 2.0, low_per_hour: 0.0, high_per_hour: 4.0, ..Growth::of(1.0, 1.0, 0.0) };
        let found = remaining(10.0, 30.0, &growth);
        assert_eq!((found.likely_hours, found.soonest_hours, found.latest_hours), (10.0, 5.0, f64::INFINITY));
        assert_eq!(remaining(31.0, 30.0, &growth).likely_hours, 0.0);
    }
}
