//! Random sequences, natively and translated. `LEAKSCOPE_FUZZ_SECONDS` says how long (default 3), `LEAKSCOPE_FUZZ_SEED`
//! runs one seed again.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use iced_x86::{Code, Formatter, IntelFormatter};

use super::generate::{Generator, Random, all_forms};
use super::machine::{CODE, DATA, DATA_BYTES, HIGH_CODE, Machine, NOWHERE, Outcome, SEED, difference};
use super::stepping;
use crate::state::XSAVE_BYTES;
use crate::{Config, Gpr, Guest, StackMarking};

const ARITHMETIC: u64 = 0x8d5;
const DIRECTION: u64 = 0x400;

fn environment(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// A state with random contents and the pointers that [`super::generate`] counts on.
pub fn state_for(random: &mut Random, start: u64) -> Guest {
    let mut guest = Guest::new();
    for register in &mut guest.gpr {
        *register = match random.below(4) {
            0 => random.below(64),
            1 => random.next() >> random.below(64),
            _ => random.next(),
        };
        // No pointer to the engine's own memory: a store there is nobody's fault but the test's.
        if (DATA + DATA_BYTES as u64..1 << 32).contains(register) {
            *register &= 0xfff;
        }
    }
    guest.set_gpr(Gpr::Rbx, DATA + 0x1000);
    guest.set_gpr(Gpr::Rbp, DATA + 0x3000);
    guest.set_gpr(Gpr::Rsp, DATA + 0x6000);
    guest.set_gpr(Gpr::R12, random.pick(&[0x6666_7777_8888_9999, 0x10, NOWHERE]));
    guest.set_gpr(Gpr::R14, random.below(32));
    guest.fs_base = DATA + 0x4000;
    guest.gs_base = DATA + 0x5000;
    guest.rflags = 0x202 | random.next() & ARITHMETIC;
    guest.rip = start;
    fill_vectors(random, &mut guest);
    guest
}

fn fill_vectors(random: &mut Random, guest: &mut Guest) {
    let mxcsr = guest.xsave[24..28].to_vec();
    for at in (160..XSAVE_BYTES - 8).step_by(8).filter(|at| !(512..576).contains(at)) {
        guest.xsave[at..at + 8].copy_from_slice(&random.next().to_le_bytes());
    }
    guest.xsave[416..512].fill(0);
    guest.xsave[24..28].copy_from_slice(&mxcsr);
    let mask = Guest::xsave_mask();
    guest.xsave[512..520].copy_from_slice(&mask.to_le_bytes());
    let small = |random: &mut Random| (random.below(64) as u32).to_le_bytes();
    for number in [14usize, 15] {
        let mut value = [0u8; 64];
        let step = if number == 14 { 8 } else { 4 };
        for at in (0..64).step_by(step) {
            value[at..at + 4].copy_from_slice(&small(random));
        }
        crate::vectors::set_register(guest, number, &value);
    }
}

fn x86_flags(iced: u32) -> u64 {
    use iced_x86::RflagsBits as R;
    [(R::OF, 0x800), (R::SF, 0x80), (R::ZF, 0x40), (R::AF, 0x10), (R::CF, 1), (R::PF, 4)]
        .into_iter()
        .filter(|(bit, _)| iced & bit != 0)
        .map(|(_, flag)| flag)
        .sum()
}

struct Case {
    bytes: Vec<u8>,
    listing: String,
    undefined: u64,
    guest: Guest,
    data: Vec<u8>,
    poison: Vec<(u64, u8)>,
}

fn case(seed: u64, forms: &[Code]) -> Case {
    let mut random = Random::new(seed ^ 0x5555_0000);
    let start = if random.one_in(4) { HIGH_CODE } else { CODE };
    let mut generator = Generator::new(seed, forms, start);
    let count = 1 + generator.random.below(12) as usize;
    generator.sequence(count);
    let mut formatter = IntelFormatter::new();
    let mut listing = String::new();
    for instruction in &generator.listing {
        formatter.format(instruction, &mut listing);
        listing.push_str(&format!("    [{:?}]\n", instruction.code()));
    }
    let guest = state_for(&mut random, start);
    let data: Vec<u8> = (0..DATA_BYTES / 8).flat_map(|_| random.next().to_le_bytes()).collect();
    let mut poison = Vec::new();
    if random.one_in(2) {
        for _ in 0..random.below(40) {
            let base = random.pick(&[0x1000, 0x2000, 0x3000, 0x4000, 0x5000, 0x6000]);
            poison.push((DATA + base + random.below(0x200) - 0x80, 0xff));
        }
    }
    Case { bytes: generator.bytes, listing, undefined: x86_flags(generator.undefined), guest, data, poison }
}

/// Runs a case both ways and says what differs.
fn compare(machine: &mut Machine, case: &Case) -> Option<String> {
    let start = case.guest.rip;
    machine.put_code(start, &case.bytes);
    machine.put_data(&case.data);
    machine.put_high_data(&case.data[..0x200]);
    let native = machine.run_native(&case.guest);
    machine.put_data(&case.data);
    machine.put_high_data(&case.data[..0x200]);
    for &(address, shadow) in &case.poison {
        machine.put_shadow(address, &[shadow]);
    }
    machine.tool.bad.clear();
    let translated = machine.run_translated(&case.guest);
    for &(address, _) in &case.poison {
        machine.put_shadow(address, &[0]);
    }
    let at_end = native.rip == start + case.bytes.len() as u64 + 1;
    let checks = machine.engine.config().checks;
    let flags = match (checks, at_end) {
        (false, _) => ARITHMETIC | DIRECTION,
        (true, true) => (ARITHMETIC | DIRECTION) & !case.undefined,
        (true, false) => DIRECTION,
    };
    let mut found = difference(&native, &translated, flags);
    if found.is_none() && case.poison.is_empty() && !machine.tool.bad.is_empty() {
        found = Some(format!("reported without poison: {:x?}", machine.tool.bad));
    }
    if let Some(bad) = machine.tool.bad.iter().find(|bad| {
        !case.poison.iter().any(|&(at, _)| (bad.address..bad.address.saturating_add(bad.size_bytes)).contains(&at))
    }) {
        found.get_or_insert_with(|| format!("reported beside the poison: {bad:x?}"));
    }
    found
}

/// The forms that this processor has, and that do not end in SIGILL.
fn supported(machine: &mut Machine) -> Vec<Code> {
    let mut forms = Vec::new();
    for code in all_forms() {
        for seed in 0..4 {
            let one = [code];
            let mut generator = Generator::new(seed, &one, CODE);
            let Some(instruction) = generator.instruction(code) else { continue };
            if !generator.take(&instruction) {
                continue;
            }
            machine.put_code(CODE, &generator.bytes);
            let mut random = Random::new(seed);
            let guest = state_for(&mut random, CODE);
            let outcome: Outcome = machine.run_native(&guest);
            if outcome.fault.signal != libc::SIGILL {
                forms.push(code);
                break;
            }
        }
    }
    forms
}

fn fuzz(config: Config, seconds: u64, first: u64) -> u64 {
    let mut machine = Machine::new(config);
    let forms = supported(&mut machine);
    assert!(forms.len() > 1200, "only {} forms can be encoded and run", forms.len());
    let single = environment("LEAKSCOPE_FUZZ_SEED");
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut done = 0;
    let mut seed = single.unwrap_or(first);
    let mut failures = Vec::new();
    while Instant::now() < end && failures.len() < 8 {
        SEED.store(seed, Ordering::Relaxed);
        let case = case(seed, &forms);
        if let Some(found) = compare(&mut machine, &case) {
            let bytes: String = case.bytes.iter().map(|byte| format!("{byte:02x} ")).collect();
            failures.push(format!("seed {seed} at {:x}: {found}\n{}{bytes}\n", case.guest.rip, case.listing));
        }
        done += 1;
        seed += 1;
        if single.is_some() {
            break;
        }
    }
    eprintln!("{done} sequences of {} forms, {:?}", forms.len(), machine.engine.statistics());
    assert!(failures.is_empty(), "native / translated:\n{}", failures.join("\n"));
    done
}

fn seconds() -> u64 {
    environment("LEAKSCOPE_FUZZ_SECONDS").unwrap_or(3)
}

/// A cache of the smallest size, so that it is flushed again and again.
#[test]
fn checked_sequences_do_what_the_processor_does() {
    let config = Config { checks: true, cache_bytes: 4 << 20, ..Config::default() };
    let first = environment("LEAKSCOPE_FUZZ_FIRST").unwrap_or(1);
    assert!(fuzz(config, seconds(), first) > 0);
}

#[test]
fn plain_sequences_do_what_the_processor_does() {
    // The way of indirect branches that keeps flags.
    let config = Config { checks: false, flags_die_at_calls: false, ..Config::default() };
    assert!(fuzz(config, seconds() / 2, 1 << 40) > 0);
}

/// The stack's shadow after a sequence is what the stack pointer says, byte for byte, and nothing was reported.
#[test]
fn the_stacks_shadow_follows_the_stack_pointer() {
    const RED_ZONE: u64 = 128;
    let (low, high) = (DATA + 0x5800, DATA + 0x6800);
    let mut machine = Machine::new(Config { stack: StackMarking::Exact, ..Config::default() });
    let mut forms = supported(&mut machine);
    let moving: Vec<Code> = forms.iter().copied().filter(|code| code.is_stack_instruction()).collect();
    assert!(moving.len() > 10, "push and pop in their forms: {moving:?}");
    for _ in 0..40 {
        forms.extend_from_slice(&moving);
    }
    let (mut moved, mut done) = (0, 0);
    let end = Instant::now() + Duration::from_secs(environment("LEAKSCOPE_FUZZ_SECONDS").unwrap_or(0));
    let first = environment("LEAKSCOPE_FUZZ_FIRST").unwrap_or(0);
    for seed in first.. {
        if done >= 1500 && Instant::now() >= end {
            break;
        }
        done += 1;
        SEED.store(seed, Ordering::Relaxed);
        let case = case(seed, &forms);
        let start = case.guest.rip;
        machine.put_code(start, &case.bytes);
        machine.put_data(&case.data);
        machine.put_high_data(&case.data[..0x200]);
        let native = machine.run_native(&case.guest);
        machine.put_data(&case.data);
        machine.put_high_data(&case.data[..0x200]);
        let border = (case.guest.gpr(Gpr::Rsp) - RED_ZONE - low) as usize;
        let mut shadow = vec![0xff; border];
        shadow.resize((high - low) as usize, 0);
        machine.put_shadow(low, &shadow);
        machine.tool.bad.clear();
        let outcome = machine.run_translated(&case.guest);
        let found = machine.shadow(low, high);
        machine.put_shadow(low, &vec![0; (high - low) as usize]);
        let at_end = outcome.rip == start + case.bytes.len() as u64 + 1;
        let flags = if at_end { (ARITHMETIC | DIRECTION) & !case.undefined } else { DIRECTION };
        assert_eq!(difference(&native, &outcome, flags), None, "seed {seed}\n{}", case.listing);
        if !at_end {
            continue;
        }
        moved += u64::from(outcome.gpr[4] != case.guest.gpr(Gpr::Rsp));
        let border = (outcome.gpr[4] - RED_ZONE - low) as usize;
        let wrong = found.iter().enumerate().find(|&(at, &byte)| byte != if at < border { 0xff } else { 0 });
        assert_eq!(wrong, None, "seed {seed}, border {border:#x}\n{}", case.listing);
        assert_eq!(machine.tool.bad, [], "seed {seed}\n{}", case.listing);
    }
    eprintln!("{done} sequences with the stack marked, {moved} moved it");
    assert!(moved > 300, "only {moved} sequences moved the stack pointer");
}

/// Random sequences, interrupted at every instruction of the cache: the guest is always somewhere that it is natively.
#[test]
fn sequences_recover_at_every_instruction() {
    let mut machine = Machine::new(Config { superblock_branches: 2, ..Config::default() });
    let forms = supported(&mut machine);
    let first = environment("LEAKSCOPE_FUZZ_SEED").unwrap_or(1 << 41);
    let mut compared = 0;
    for seed in first..first + 400 {
        SEED.store(seed, Ordering::Relaxed);
        let case = case(seed, &forms);
        let start = case.guest.rip;
        machine.put_code(start, &case.bytes);
        machine.put_data(&case.data);
        machine.put_high_data(&case.data[..0x200]);
        let native = stepping::native_states(&mut machine, &case.guest);
        machine.put_data(&case.data);
        machine.put_high_data(&case.data[..0x200]);
        let translated = stepping::translated_states(&mut machine, &case.guest);
        if native.len() > 4 {
            compared += 1;
            assert_eq!(stepping::compare(&native, &translated), Ok(()), "seed {seed}\n{}", case.listing);
        }
    }
    assert!(compared > 200, "only {compared} sequences were long enough");
}
