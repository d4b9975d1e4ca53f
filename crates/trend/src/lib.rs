//! Whether something grows: a verdict on a series of samples, without thresholds on its values.
//!
//! ```text
//!  sample -> Pyramid: windows of 64 bins, from 11 minutes to 32 days -> for each window, when it has something new:
//!    four quarters that rise, each of them     a step, a sawtooth and a whole daily cycle do not
//!    Theil-Sen slope, interval above zero      noise does not; its interval knows of autocorrelation
//!    not slowing down                          a cache that fills does
//!    higher than ever before the window        the second morning of a daily cycle is not
//!    fast enough for a window so short         the first morning is not
//!  -> Verdict: learning, stable, filling (up to where), growing (rate, interval, since when)
//! ```
//!
//! Pure code: any thread, no I/O, no clock of its own. [`synthetic`] makes series whose truth is known, and [`trial`]
//! measures the verdicts on them.
#![forbid(unsafe_code)]

pub mod judge;
pub mod limit;
pub mod pyramid;
pub mod shape;
pub mod synthetic;
pub mod theil_sen;
mod track;
pub mod trial;

pub use judge::{Growth, Judge, Profile, Sample, Verdict, Window};
pub use limit::{Remaining, remaining};
pub use pyramid::Pyramid;

/// Seconds in an hour: slopes are per hour, because that is how people speak of leaks.
pub const HOUR: f64 = 3600.0;
/// Seconds in a day.
pub const DAY: f64 = 86_400.0;
