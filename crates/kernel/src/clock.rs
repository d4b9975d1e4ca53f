//! The kernel's clock: when an object was allocated, from the jiffies that kmemleak gives.
//!
//! kmemleak printed an age until 6.10; since then there are only jiffies. They count from 5 minutes before an overflow
//! of 32 bits, to find overflow bugs soon.
//!
//! Source: Linux `include/linux/jiffies.h` (`INITIAL_JIFFIES`), `kernel/time/timer_list.c`.

use crate::Places;
use crate::config::KernelConfig;

/// The value of jiffies at boot for a number of ticks a second.
fn initial_jiffies(hz: u64) -> u64 {
    u64::from(((-300_i64 * hz as i64) as u64 & 0xffff_ffff) as u32)
}

/// Now, in the kernel's ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// Ticks.
    pub jiffies: u64,
    /// Ticks a second.
    pub hz: u64,
}

impl Clock {
    /// Milliseconds since something that happened at `jiffies`; `None` when that lies in the future, as it does on
    /// another machine.
    pub fn age_ms(&self, jiffies: u64) -> Option<u64> {
        self.jiffies.checked_sub(jiffies)?.checked_mul(1000)?.checked_div(self.hz)
    }

    /// The clock of the running kernel; `None` when it cannot be found out.
    pub fn read(places: &Places, config: &KernelConfig) -> Option<Self> {
        let uptime = decode_uptime(&places.read("/proc/uptime")?)?;
        let exact = places.read("/proc/timer_list").as_deref().and_then(decode_timer_list);
        let configured = config.get("HZ").and_then(|hz| hz.parse().ok()).filter(|&hz| hz > 0);
        let hz = configured.or_else(|| exact.and_then(|jiffies| likely_hz(jiffies, uptime)))?;
        let estimated = || (uptime * hz as f64) as u64 + initial_jiffies(hz);
        Some(Self { jiffies: exact.unwrap_or_else(estimated), hz })
    }
}

/// Seconds since boot.
fn decode_uptime(text: &str) -> Option<f64> {
    text.split_whitespace().next()?.parse().ok().filter(|seconds: &f64| seconds.is_finite() && *seconds >= 0.0)
}

/// `jiffies: 4294905600`, of the first processor.
fn decode_timer_list(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix("jiffies:"))?;
    line.trim().parse().ok()
}

/// The tick rate that explains so many jiffies after so many seconds.
fn likely_hz(jiffies: u64, uptime: f64) -> Option<u64> {
    [250, 1000, 100, 300].into_iter().find(|&hz| {
        let expected = initial_jiffies(hz) as f64 + uptime * hz as f64;
        (jiffies as f64 - expected).abs() < 5.0 * hz as f64
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jiffies_begin_before_an_overflow() {
        assert_eq!(initial_jiffies(1000), 4_294_667_296);
        assert_eq!(initial_jiffies(250), 4_294_892_296);
    }

    #[test]
    fn ages() {
        let clock = Clock { jiffies: 4_294_892_296 + 2500, hz: 250 };
        assert_eq!(clock.age_ms(4_294_892_296), Some(10_000));
        assert_eq!(clock.age_ms(u64::MAX), None);
        assert_eq!(Clock { jiffies: u64::MAX, hz: 0 }.age_ms(0), None);
    }

    #[test]
    fn the_rate_is_found_by_what_fits() {
        for hz in [100, 250, 300, 1000] {
            assert_eq!(likely_hz(initial_jiffies(hz) + 12_345 * hz, 12_345.5), Some(hz), "{hz}");
        }
        assert_eq!(likely_hz(5, 1e9), None);
        assert_eq!(decode_timer_list("a\n  jiffies: 42\n jiffies: 43"), Some(42));
        assert_eq!(decode_uptime("12.5 3.0\n"), Some(12.5));
        assert_eq!(decode_uptime("nan"), None);
    }
}
