//! Marking and looking at ranges. All unsafe code of this crate is here.

use crate::{ADDRESSABLE, UNADDRESSABLE};

/// V shadow at a certain distance from the memory that it describes.
///
/// In an engine the distance is the translator's; tests have the shadow of one array in another.
#[derive(Clone, Copy, Debug)]
pub struct Shadow {
    offset: u64,
}

/// Ranges up to this are filled in line.
const SMALL_BYTES: u64 = 256;

impl Shadow {
    /// The shadow of all memory that is ever asked about lies `offset` bytes above it (wrapping).
    ///
    /// # Safety
    /// For every range that the methods get, the shadow of the range is mapped, may be written, and is no Rust object
    /// that anybody else has a reference to.
    pub const unsafe fn new(offset: u64) -> Self {
        Self { offset }
    }

    #[inline(always)]
    fn at(self, address: u64) -> *mut u8 {
        self.address_of(address) as *mut u8
    }

    /// Where the shadow byte of an address lies.
    #[inline(always)]
    pub fn address_of(self, address: u64) -> u64 {
        address.wrapping_add(self.offset)
    }

    /// The shadow byte of an address.
    #[inline(always)]
    pub fn get(self, address: u64) -> u8 {
        // SAFETY: `new`'s contract.
        unsafe { *self.at(address) }
    }

    /// Sets the shadow bytes of a range.
    #[inline]
    pub fn fill(self, address: u64, bytes: u64, value: u8) {
        let (start, word) = (self.at(address), u64::from_ne_bytes([value; 8]));
        // Most blocks are small, and calling somebody for so few bytes costs more than the bytes.
        if !(8..=SMALL_BYTES).contains(&bytes) {
            // SAFETY: `new`'s contract.
            return unsafe { core::ptr::write_bytes(start, value, bytes as usize) };
        }
        let mut done = 0;
        while done + 8 <= bytes {
            // SAFETY: as above; eight bytes of the range are left.
            unsafe { start.add(done as usize).cast::<u64>().write_unaligned(word) };
            done += 8;
        }
        // SAFETY: as above; the last eight bytes of at least eight.
        unsafe { start.add(bytes as usize - 8).cast::<u64>().write_unaligned(word) };
    }

    /// Makes a range addressable.
    #[inline]
    pub fn allow(self, address: u64, bytes: u64) {
        self.fill(address, bytes, ADDRESSABLE);
    }

    /// Makes a range unaddressable.
    #[inline]
    pub fn forbid(self, address: u64, bytes: u64) {
        self.fill(address, bytes, UNADDRESSABLE);
    }

    /// Copies shadow bytes as `memmove` copies the bytes.
    #[inline]
    pub fn copy(self, from: u64, to: u64, bytes: u64) {
        // SAFETY: `new`'s contract for both ranges; overlap is allowed.
        unsafe { core::ptr::copy(self.at(from), self.at(to), bytes as usize) }
    }

    /// Whether all of a range is addressable.
    #[inline]
    pub fn is_allowed(self, address: u64, bytes: u64) -> bool {
        self.first_not(address, bytes, ADDRESSABLE).is_none()
    }

    /// Distance of the first byte of a range that is not addressable.
    #[inline]
    pub fn first_forbidden(self, address: u64, bytes: u64) -> Option<u64> {
        self.first_not(address, bytes, ADDRESSABLE)
    }

    /// Distance of the first byte of a range that is addressable.
    #[inline]
    pub fn first_allowed(self, address: u64, bytes: u64) -> Option<u64> {
        self.first_not(address, bytes, UNADDRESSABLE)
    }

    /// Distance of the first byte of a range whose shadow is not `value`.
    pub fn first_not(self, address: u64, bytes: u64, value: u8) -> Option<u64> {
        let pattern = u64::from_ne_bytes([value; 8]);
        let start = self.at(address);
        let mut done = 0;
        // Bytes up to a word's boundary, words, and the bytes that are left.
        while done < bytes && !(start as u64).wrapping_add(done).is_multiple_of(8) {
            // SAFETY: within the range, `new`'s contract.
            if unsafe { *start.add(done as usize) } != value {
                return Some(done);
            }
            done += 1;
        }
        while bytes - done >= 8 {
            // SAFETY: eight bytes of the range are left, and the address is a multiple of 8.
            let word = unsafe { *start.add(done as usize).cast::<u64>() };
            if word != pattern {
                return Some(done + u64::from((word ^ pattern).to_le().trailing_zeros() / 8));
            }
            done += 8;
        }
        while done < bytes {
            // SAFETY: within the range, `new`'s contract.
            if unsafe { *start.add(done as usize) } != value {
                return Some(done);
            }
            done += 1;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A generator of numbers that is the same in every run: xorshift64*.
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, limit: u64) -> u64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % limit
        }
    }

    /// Every operation against an array of truth values, on ranges of all alignments and lengths.
    #[test]
    fn ranges_behave_as_an_array_of_truth_values() {
        const SIZE: u64 = 300;
        let target = vec![0u8; SIZE as usize];
        let mut bytes = vec![0u8; SIZE as usize];
        let base = target.as_ptr() as u64;
        // SAFETY: the two arrays have the same length, and all ranges below lie in the first.
        let shadow = unsafe { Shadow::new((bytes.as_mut_ptr() as u64).wrapping_sub(base)) };
        let mut model = vec![true; SIZE as usize];
        let mut numbers = Numbers(0x1234_5678_9ABC_DEF1);
        for step in 0..40_000 {
            let start = numbers.below(SIZE + 1);
            let bytes = numbers.below(SIZE - start + 1);
            let range = start as usize..(start + bytes) as usize;
            match numbers.below(5) {
                0 => {
                    shadow.allow(base + start, bytes);
                    model[range].fill(true);
                }
                1 => {
                    shadow.forbid(base + start, bytes);
                    model[range].fill(false);
                }
                2 => {
                    let to = numbers.below(SIZE - bytes + 1);
                    shadow.copy(base + start, base + to, bytes);
                    model.copy_within(range, to as usize);
                }
                _ => {
                    let first = |wanted| model[range.clone()].iter().position(|&is| is == wanted).map(|at| at as u64);
                    assert_eq!(shadow.first_forbidden(base + start, bytes), first(false), "step {step}");
                    assert_eq!(shadow.first_allowed(base + start, bytes), first(true), "step {step}");
                    assert_eq!(shadow.is_allowed(base + start, bytes), first(false).is_none());
                }
            }
            let at = numbers.below(SIZE);
            assert_eq!(shadow.get(base + at) == ADDRESSABLE, model[at as usize], "step {step}");
        }
    }
}
