//! `--sample BYTES`: a Poisson sample of the allocations, with unbiased totals.
//!
//! Every byte requested is a sampling point with probability 1/mean; an allocation with at least one point in it is
//! recorded. So a block of n bytes is recorded with probability p = 1 - exp(-n/mean), and stands for 1/p blocks and
//! n/p bytes. The weight depends on n alone, so a release takes away exactly what its allocation added.
//!
//! Source: tcmalloc, "Sampling in TCMalloc" (the same estimator).

use crate::blocks::{self, Taken};
use crate::runtime::{self, SITES, site_of};
use crate::thread::{ThreadState, tls};
use crate::unwind::Registers;
use core::sync::atomic::AtomicU8;
use core::sync::atomic::Ordering::Relaxed;
use leakscope_ledger::writer::Ledger;
use leakscope_model::AllocFn;

/// Recorded blocks by page of 4 KiB, hashed: nearly every release learns here that its block is none of them, from a
/// few lines that stay in the cache. A count that has come to 255 stays there. Hooks written in assembly read it: the
/// place of an address is the low 16 bits of `address >> 12 ^ address >> 28`.
pub static RECORDED: [AtomicU8; 1 << 16] = [const { AtomicU8::new(0) }; 1 << 16];

#[inline(always)]
fn recorded_near(start: u64) -> &'static AtomicU8 {
    &RECORDED[(start >> 12 ^ start >> 28) as usize & (RECORDED.len() - 1)]
}

/// Blocks and bytes that a recorded block of `bytes` stands for.
fn weight(bytes: u64, mean: u64) -> (u64, u64) {
    let size = bytes.max(1) as f64;
    let probability = -libm::expm1(-size / mean as f64);
    ((1.0 / probability + 0.5) as u64, (bytes as f64 / probability + 0.5) as u64)
}

/// Bytes until the next sampling point.
fn next_distance(state: &mut ThreadState, mean: u64) -> i64 {
    // xorshift64*, Vigna 2016.
    state.random ^= state.random >> 12;
    state.random ^= state.random << 25;
    state.random ^= state.random >> 27;
    let uniform = ((state.random.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    (-libm::log(uniform) * mean as f64) as i64 + 1
}

/// Counts an allocation towards the next sampling point, which the hooks of `malloc` and `operator new` do by themselves.
#[inline(always)]
pub fn count(bytes: usize) {
    let words = tls();
    // SAFETY: the calling thread's own words.
    unsafe { (*words).until_sample = (*words).until_sample.wrapping_sub(bytes.max(1) as i64) };
}

/// Records a block that has been counted, if it holds a sampling point.
#[inline(always)]
pub fn allocated(ledger: &Ledger, start: u64, bytes: usize, function: AllocFn, regs: Registers) {
    // SAFETY: the calling thread's own words.
    if unsafe { (*tls()).until_sample } <= 0 {
        record(ledger, start, bytes, function, regs);
    }
}

#[cold]
#[inline(never)]
fn record(ledger: &Ledger, start: u64, bytes: usize, function: AllocFn, regs: Registers) {
    let mean = ledger.config().sample_bytes.max(1);
    let words = tls();
    let _ = runtime::with_state(ledger, regs, |state| {
        // SAFETY: the calling thread's own words.
        unsafe {
            if (*words).sampling_begun == 0 {
                // A new thread: its first allocation is like any other.
                (*words).sampling_begun = 1;
                (*words).until_sample = next_distance(state, mean).wrapping_sub(bytes.max(1) as i64);
                if (*words).until_sample > 0 {
                    return;
                }
            }
            (*words).until_sample = next_distance(state, mean);
        }
        let site = site_of(ledger, state, function, regs);
        if !blocks::insert(start, bytes, site, false, crate::hints::NOTHING) {
            return;
        }
        watch(start);
        if let Some((counters, _)) = state.counters(ledger, &SITES, site) {
            let (blocks, bytes) = weight(bytes as u64, mean);
            runtime::count_allocations(counters, blocks, bytes);
        }
    });
}

/// Lets releases near `start` come here: hooks written in assembly pass the others on.
pub fn watch(start: u64) {
    let _ = recorded_near(start).fetch_update(Relaxed, Relaxed, |count| count.checked_add(1));
}

/// Takes a recorded block away again.
#[inline(always)]
pub fn released(ledger: &Ledger, start: u64, function: AllocFn, regs: Registers) {
    if recorded_near(start).load(Relaxed) != 0 && blocks::is_recorded(start) {
        forget(ledger, start, function, regs);
    }
}

#[cold]
#[inline(never)]
fn forget(ledger: &Ledger, start: u64, _function: AllocFn, regs: Registers) {
    let mean = ledger.config().sample_bytes.max(1);
    let _ = runtime::with_state(ledger, regs, |state| {
        let Taken::Live(info) = blocks::take(start) else { return };
        let take_away = |count: u8| (count < u8::MAX).then(|| count.saturating_sub(1));
        let _ = recorded_near(start).fetch_update(Relaxed, Relaxed, take_away);
        if let Some((counters, _)) = state.counters(ledger, &SITES, info.site) {
            let (blocks, bytes) = weight(info.bytes, mean);
            counters.freed_blocks.store(counters.freed_blocks.load(Relaxed).wrapping_add(blocks), Relaxed);
            counters.freed_bytes.store(counters.freed_bytes.load(Relaxed).wrapping_add(bytes), Relaxed);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_the_inverse_of_the_probability() {
        let (blocks, bytes) = weight(1, 1 << 20);
        assert!((blocks as f64 / (1u64 << 20) as f64 - 1.0).abs() < 1e-3 && bytes == blocks);
        assert_eq!(weight(1 << 30, 1 << 10), (1, 1 << 30));
    }
}
