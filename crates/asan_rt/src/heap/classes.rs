//! Size classes: multiples of 16 up to 256 bytes, then eight to each doubling up to 16 KiB, then four: each class
//! takes address space, of which a limit (`ulimit -v`) may leave little.

/// Largest block that comes from a class; larger ones are mapped alone.
pub const LARGEST: usize = 256 << 10;
/// How many classes there are.
pub const COUNT: usize = 15 + 48 + 16;

const SMALL_LIMIT: usize = 256;
const SMALL_CLASSES: usize = SMALL_LIMIT / 16 - 1;
const MIDDLE_LIMIT_LOG2: usize = 14;
const MIDDLE_CLASSES: usize = SMALL_CLASSES + (MIDDLE_LIMIT_LOG2 - 8) * 8;

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
    if log < MIDDLE_LIMIT_LOG2 {
        return SMALL_CLASSES + (log - 8) * 8 + (((bytes - 1) >> (log - 3)) & 7);
    }
    MIDDLE_CLASSES + (log - MIDDLE_LIMIT_LOG2) * 4 + (((bytes - 1) >> (log - 2)) & 3)
}

/// Bytes of a block of a class.
#[inline(always)]
#[must_use]
pub const fn size_of_class(class: usize) -> usize {
    if class < SMALL_CLASSES {
        return (class + 2) * 16;
    }
    if class < MIDDLE_CLASSES {
        let log = 8 + (class - SMALL_CLASSES) / 8;
        return (1 << log) + ((class - SMALL_CLASSES) % 8 + 1) * (1 << (log - 3));
    }
    let log = MIDDLE_LIMIT_LOG2 + (class - MIDDLE_CLASSES) / 4;
    (1 << log) + ((class - MIDDLE_CLASSES) % 4 + 1) * (1 << (log - 2))
}

const fn tables() -> ([u32; COUNT], [u64; COUNT]) {
    let (mut sizes, mut inverses) = ([0; COUNT], [0; COUNT]);
    let mut class = 0;
    while class < COUNT {
        sizes[class] = size_of_class(class) as u32;
        inverses[class] = u64::MAX / (size_of_class(class) as u64 / 16) + 1;
        class += 1;
    }
    (sizes, inverses)
}

static TABLES: ([u32; COUNT], [u64; COUNT]) = tables();

/// As [`size_of_class`], by a table.
#[inline(always)]
#[must_use]
pub fn size_of(class: usize) -> usize {
    TABLES.0.get(class).map_or(0, |&size| size as usize)
}

/// The start of the block that holds the byte at `offset` of a class's region: a division by multiplication.
#[inline(always)]
#[must_use]
pub fn block_start(class: usize, offset: usize) -> usize {
    let inverse = TABLES.1.get(class).map_or(0, |&inverse| inverse);
    let number = (u128::from(offset as u64 >> 4) * u128::from(inverse)) >> 64;
    number as usize * size_of(class)
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

    #[test]
    fn division_by_multiplication_is_exact() {
        let mut state = 1u64;
        for class in 0..COUNT {
            let size = size_of_class(class);
            assert_eq!(size_of(class), size);
            for _ in 0..2000 {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let random = (state >> 29) as usize;
                for offset in [random, random / size * size, (random / size * size).wrapping_sub(1) & ((1 << 35) - 1)] {
                    assert_eq!(block_start(class, offset), offset / size * size, "{offset} by {size}");
                }
            }
        }
    }
}
