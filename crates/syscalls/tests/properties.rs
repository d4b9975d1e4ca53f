//! Whatever the arguments and the memory: no panic, no endless loop, no region that wraps around.

use std::cell::Cell;

use leakscope_syscalls::{Access, Memory, Region, all, check, descriptors, lookup, requests, written};
use proptest::prelude::*;

/// The most steps that a description takes, and what one step may read at most.
const MOST_REGIONS: usize = 1 << 17;
const MOST_READS: u64 = 1 << 21;

/// Memory made of a seed: some pages cannot be read, the others hold small numbers, addresses, and noise.
struct Seeded {
    seed: u64,
    style: u8,
    reads: Cell<u64>,
}

impl Seeded {
    fn new(seed: u64, style: u8) -> Self {
        Self { seed, style, reads: Cell::new(0) }
    }

    fn mixed(&self, value: u64) -> u64 {
        let mut mixed = (value ^ self.seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed ^= mixed >> 29;
        mixed.wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 7
    }

    fn byte(&self, address: u64) -> u8 {
        match self.style {
            0 => 0,
            1 => 0xff,
            2 => 1,
            // Words that are addresses of readable memory, or counts.
            3 => (self.mixed(address / 8) % 0x10_0000).to_le_bytes()[(address % 8) as usize],
            4 => (self.mixed(address / 4) % 5).to_le_bytes()[(address % 4) as usize],
            // A chain of pointers, each to the next word.
            5 => (address & !7).wrapping_add(8).to_le_bytes()[(address % 8) as usize],
            _ => self.mixed(address) as u8,
        }
    }
}

impl Memory for Seeded {
    fn read_bytes(&self, address: u64, into: &mut [u8]) -> bool {
        self.reads.set(self.reads.get() + 1);
        let Some(end) = address.checked_add(into.len() as u64) else { return false };
        // In the last style nothing is forbidden, so that walks go on for as long as they can.
        if self.style != 5 && (address / 4096..=end / 4096).any(|page| self.mixed(page).is_multiple_of(7)) {
            return false;
        }
        for (place, byte) in into.iter_mut().enumerate() {
            *byte = self.byte(address + place as u64);
        }
        true
    }

    fn semaphores(&self, id: i32) -> Option<u32> {
        (id % 3 != 0).then_some(id as u32)
    }

    fn is_writable(&self, fd: i32) -> Option<bool> {
        (fd % 3 != 0).then_some(fd % 2 == 0)
    }

    fn bpf_map(&self, fd: i32) -> Option<(u32, u32)> {
        (fd % 2 == 0).then_some((fd as u32, u32::MAX))
    }
}

/// Describes a call before and after it, and holds every region against what is promised of them.
fn describe(number: u64, args: &[u64; 6], result: i64, memory: &Seeded) {
    let count = Cell::new(0_usize);
    let hold = |region: &Region| {
        count.set(count.get() + 1);
        assert!(region.length > 0, "{}", region.param);
        assert!(region.address.checked_add(region.length - 1).is_some(), "{} wraps around", region.param);
        assert!(!region.param.to_string().is_empty());
    };
    let before = check(number, args, memory, &mut |region| hold(&region));
    written(number, args, result, &before, memory, &mut |region| {
        hold(&region);
        assert_eq!(region.access, Access::Write, "{}", region.param);
    });
    descriptors(number, args, result, memory, &mut |_| count.set(count.get() + 1));
    assert!(count.get() <= 3 * MOST_REGIONS, "{} regions", count.get());
    assert!(memory.reads.get() <= 2 * MOST_READS, "{} reads", memory.reads.get());
}

/// Numbers as programs pass them: small ones, flags, addresses, and the edges.
fn argument() -> impl Strategy<Value = u64> {
    prop_oneof![
        0_u64..20,
        0x1_0000_u64..0x20_0000,
        any::<u64>(),
        Just(u64::MAX),
        Just(u64::MAX - 7),
        Just(i64::MAX as u64),
        Just(u64::from(u32::MAX)),
        Just(1 << 31),
        (0_u32..64).prop_map(|bit| 1 << bit),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_call_with_any_arguments_and_memory(
        args in prop::array::uniform6(argument()),
        seed in any::<u64>(),
        style in 0_u8..7,
        result in prop_oneof![Just(0_i64), 0_i64..100, -50_i64..0, any::<i64>()],
    ) {
        for call in all() {
            // A chain without end is walked for as long as the budget lasts: some calls are enough.
            if style != 5 || call.name.starts_with("exec") {
                describe(u64::from(call.number), &args, result, &Seeded::new(seed, style));
            }
        }
    }

    #[test]
    fn any_request(
        args in prop::array::uniform6(argument()),
        seed in any::<u64>(),
        style in 0_u8..7,
        noise in any::<u32>(),
    ) {
        for (_, request) in requests() {
            let args = [args[0], u64::from(request), args[2], 0, 0, 0];
            describe(16, &args, 0, &Seeded::new(seed, style));
        }
        describe(16, &[args[0], u64::from(noise), args[2], 0, 0, 0], 0, &Seeded::new(seed, style));
    }

    #[test]
    fn any_command(
        args in prop::array::uniform6(argument()),
        seed in any::<u64>(),
        style in 0_u8..7,
    ) {
        // prctl, keyctl, bpf, ptrace, io_uring_register, fsconfig: by their first or second argument.
        let commands = [(157, 0, 80), (250, 0, 40), (321, 0, 40), (101, 0, 32), (427, 1, 40), (431, 1, 10)];
        for (number, place, most) in commands {
            for command in 0..most {
                let mut args = args;
                args[place] = command;
                describe(number, &args, 1, &Seeded::new(seed, style));
            }
        }
        for request in 0x4200..0x4214 {
            describe(101, &[request, args[1], args[2], args[3], 0, 0], 1, &Seeded::new(seed, style));
        }
    }
}

/// An array of pointers that never ends is left where the budget does, and that is told.
#[test]
fn endless_arrays_end_and_are_told() {
    let memory = Seeded::new(1, 5);
    let mut count = 0;
    let args = [0x1_0000, 0x2_0000, 0x3_0000, 0, 0, 0];
    let before = check(59, &args, &memory, &mut |_| count += 1);
    assert!(before.truncated);
    assert!(count > 1000 && count <= MOST_REGIONS, "{count}");
    assert!(!check(0, &args, &memory, &mut |_| ()).truncated);
}

#[test]
fn a_negative_length_is_none() {
    // recvfrom's length is unsigned and long, connect's signed and short.
    let mut regions = 0;
    check(42, &[3, 0x1_0000, u64::from(u32::MAX), 0, 0, 0], &Seeded::new(1, 0), &mut |_| regions += 1);
    assert_eq!(regions, 0);
    assert!(lookup(42).is_some());
}
