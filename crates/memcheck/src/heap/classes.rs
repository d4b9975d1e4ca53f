//! Sizes of slots: steps of 16 bytes up to 1 KiB, then eight steps for each doubling up to 64 KiB, then whole units.

use super::span::UNIT_BYTES;

const FINE_STEP: u64 = 16;
const FINE_LIMIT: u64 = 1024;
const FINE_COUNT: u64 = FINE_LIMIT / FINE_STEP;
const STEPS_LOG2: u32 = 3;
/// Larger ones get a span of their own.
pub(super) const SMALL_LIMIT: u64 = 64 << 10;
const DOUBLINGS: u64 = (SMALL_LIMIT / FINE_LIMIT).trailing_zeros() as u64;
/// How many classes there are.
pub(super) const COUNT: usize = (FINE_COUNT + (DOUBLINGS << STEPS_LOG2)) as usize;

/// Where a slot of a certain size comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// From a span of slots like it.
    Small {
        /// Less than [`COUNT`].
        number: usize,
        /// At least what was asked for, a multiple of 16.
        slot_bytes: u64,
    },
    /// From a span of its own.
    Big {
        /// What was asked for.
        bytes: u64,
    },
}

/// The class for a slot of at least so many bytes.
pub(super) fn class_of(bytes: u64) -> Class {
    if bytes <= FINE_LIMIT {
        let number = bytes.div_ceil(FINE_STEP).max(1) - 1;
        return Class::Small { number: number as usize, slot_bytes: (number + 1) * FINE_STEP };
    }
    if bytes > SMALL_LIMIT {
        return Class::Big { bytes };
    }
    // 2^k < bytes <= 2^(k + 1), in eight steps.
    let k = (bytes - 1).ilog2();
    let step = 1u64 << (k - STEPS_LOG2);
    let steps = (bytes - (1 << k)).div_ceil(step);
    let number = FINE_COUNT + (u64::from(k - FINE_LIMIT.ilog2()) << STEPS_LOG2) + steps - 1;
    Class::Small { number: number as usize, slot_bytes: (1 << k) + steps * step }
}

/// How many units a span of such slots takes: at least eight slots.
pub(super) fn span_units(slot_bytes: u64) -> u64 {
    (8 * slot_bytes).div_ceil(UNIT_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_has_the_smallest_class_that_holds_it() {
        let mut previous = (0, 0);
        for bytes in 1..=SMALL_LIMIT {
            let Class::Small { number, slot_bytes } = class_of(bytes) else { panic!("{bytes}") };
            assert!(number < COUNT && slot_bytes >= bytes && slot_bytes.is_multiple_of(16), "{bytes}");
            assert!(slot_bytes - bytes < 16.max(bytes / 8 + 1), "{bytes} in {slot_bytes}");
            // Classes ascend without gaps, and a slot's own size leads back to its class.
            assert!(number == previous.0 && slot_bytes == previous.1 || number == previous.0 + 1 || bytes == 1);
            assert_eq!(class_of(slot_bytes), Class::Small { number, slot_bytes });
            previous = (number, slot_bytes);
        }
        assert_eq!(previous, (COUNT - 1, SMALL_LIMIT));
        assert_eq!(class_of(SMALL_LIMIT + 1), Class::Big { bytes: SMALL_LIMIT + 1 });
    }
}
