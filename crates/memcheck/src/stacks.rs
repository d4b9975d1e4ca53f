//! Stacks by number: each distinct one is kept once, in one array.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// The number of a stack; 0 is "none was taken".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StackId(pub u32);

impl StackId {
    /// No stack.
    pub const NONE: Self = Self(0);
}

/// A hash function for numbers that are hashes already.
#[derive(Default)]
pub struct Mixed(u64);

impl std::hash::Hasher for Mixed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(5) ^ value).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(value.into());
    }

    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }
}

/// Builds [`Mixed`].
pub type BuildMixed = std::hash::BuildHasherDefault<Mixed>;

/// All stacks.
#[derive(Default)]
pub struct Stacks {
    addresses: Vec<u64>,
    /// First address and length of each, by number.
    places: Vec<(u32, u32)>,
    /// The first stack with a hash, and others with the same one.
    by_hash: HashMap<u64, Vec<StackId>, BuildMixed>,
}

impl Stacks {
    /// No stacks.
    pub fn new() -> Self {
        Self { places: vec![(0, 0)], ..Self::default() }
    }

    /// The number of a stack, innermost address first.
    pub fn intern(&mut self, stack: &[u64]) -> StackId {
        if stack.is_empty() {
            return StackId::NONE;
        }
        let mut hash = stack.len() as u64;
        for &address in stack {
            hash = (hash.rotate_left(23) ^ address).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        }
        hash ^= hash >> 29;
        let Self { addresses, places, by_hash } = self;
        let of = |id: StackId| {
            let (first, count) = places[id.0 as usize];
            &addresses[first as usize..(first + count) as usize]
        };
        match by_hash.entry(hash) {
            Entry::Occupied(entry) => {
                if let Some(&id) = entry.get().iter().find(|&&id| of(id) == stack) {
                    return id;
                }
            }
            Entry::Vacant(entry) => {
                entry.insert(Vec::with_capacity(1));
            }
        }
        let (Ok(number), Ok(first)) = (u32::try_from(places.len()), u32::try_from(addresses.len() + stack.len()))
        else {
            return StackId::NONE;
        };
        places.push((first - stack.len() as u32, stack.len() as u32));
        addresses.extend_from_slice(stack);
        let id = StackId(number);
        by_hash.entry(hash).or_default().push(id);
        id
    }

    /// The addresses of a stack.
    pub fn get(&self, id: StackId) -> &[u64] {
        let Some(&(first, count)) = self.places.get(id.0 as usize) else { return &[] };
        &self.addresses[first as usize..(first + count) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_stacks_have_one_number() {
        let mut stacks = Stacks::new();
        let mut numbers = Vec::new();
        for i in 0..1000u64 {
            numbers.push(stacks.intern(&[i, i / 2, 7][..(i % 3 + 1) as usize]));
        }
        for i in 0..1000u64 {
            let stack = &[i, i / 2, 7][..(i % 3 + 1) as usize];
            assert_eq!(stacks.intern(stack), numbers[i as usize]);
            assert_eq!(stacks.get(numbers[i as usize]), stack);
        }
        assert_eq!(stacks.intern(&[]), StackId::NONE);
        assert_eq!(stacks.get(StackId(5000)), [0; 0]);
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 1000);
    }
}
