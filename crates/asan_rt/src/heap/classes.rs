//! Size classes: multiples of 16 up to 256 bytes, then four to each doubling.

/// Largest block that comes from a class; larger ones are mapped alone.
pub const LARGEST: usize = 256 << 10;
/// How many classes there are.
pub const COUNT: usize = 15 + 40;

const SMALL_LIMIT: usize = 256;
const SMALL_CLASSES: usize = SMALL_LIMIT / 16 - 1;

/// The class of blocks that hold `bytes` (at most [`LARGEST`]); the smallest block has 32 bytes.
#[inline(always)]
#[must_use]
pub const fn class_of(bytes: usize) -> usize {
    if bytes <= 32 {
        return 0;
    }
    if bytes <= SMALL_LIMIT {
        return bytes.div_ceil(16) - 2;
    }
    let log = (usize::BITS - 1 - (bytes - 1).leading_zeros()) as usize;
    let quarter = ((bytes - 1) >> (log - 2)) & 3;
    SMALL_CLASSES + (log - 8) * 4 + quarter
}

/// Bytes of a block of a class.
#[inline(always)]
#[must_use]
pub const fn size_of_class(class: usize) -> usize {
    if class < SMALL_CLASSES {
        return (class + 2) * 16;
    }
    let log = 8 + (class - SMALL_CLASSES) / 4;
    (1 << log) + ((class - SMALL_CLASSES) % 4 + 1) * (1 << (log - 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_fits_its_class_and_none_smaller() {
        for bytes in 1..=LARGEST {
            let class = class_of(bytes);
            assert!(class < COUNT, "{bytes}");
            assert!(size_of_class(class) >= bytes, "{bytes} in {}", size_of_class(class));
            assert!(class == 0 || size_of_class(class - 1) < bytes, "{bytes} in {class}");
            assert_eq!(size_of_class(class) % 16, 0);
        }
        assert_eq!(size_of_class(COUNT - 1), LARGEST);
    }
}
