//! The rule table: return address to [`Rule`], shared by all threads, without locks.
//!
//! Lines of four entries. An entry is two words, `key ^ mix(rule)` and `rule`: a reader that catches two writers half
//! way sees a key that is not its own, and computes the rule again. So nothing waits, nothing is ever half-valid, and
//! a full line only drops an old rule. Source of the scheme: Hyatt and Mann, "A lockless transposition table".

use core::sync::atomic::{AtomicU64, Ordering};

use super::cfi::Rule;

const LINES: usize = 1 << 14;
const WAYS: usize = 4;

#[repr(C, align(64))]
struct Line([[AtomicU64; 2]; WAYS]);

pub(crate) struct RuleTable {
    lines: [Line; LINES],
    computed: AtomicU64,
    evicted: AtomicU64,
}

/// A return address and the epoch it was seen in. User addresses have 47 bits.
#[inline(always)]
fn key(return_address: u64, epoch: u16) -> u64 {
    return_address ^ u64::from(epoch) << 48
}

#[inline(always)]
fn mix(rule: u64) -> u64 {
    rule.wrapping_mul(0xD6E8_FEB8_6659_FD93)
}

#[inline(always)]
fn line_of(return_address: u64) -> usize {
    (return_address.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 50) as usize
}

impl RuleTable {
    pub(super) const fn new() -> Self {
        Self {
            lines: [const { Line([const { [AtomicU64::new(0), AtomicU64::new(0)] }; WAYS]) }; LINES],
            computed: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
        }
    }

    #[inline(always)]
    pub(super) fn get(&self, return_address: u64, epoch: u16) -> Option<Rule> {
        let line = self.lines.get(line_of(return_address))?;
        let key = key(return_address, epoch);
        for [check, rule] in &line.0 {
            let rule = rule.load(Ordering::Relaxed);
            if check.load(Ordering::Relaxed) ^ mix(rule) == key && rule != 0 {
                return Some(Rule(rule));
            }
        }
        None
    }

    #[cold]
    pub(super) fn insert(&self, return_address: u64, epoch: u16, rule: Rule) {
        let count = self.computed.fetch_add(1, Ordering::Relaxed);
        let Some(line) = self.lines.get(line_of(return_address)) else {
            return;
        };
        let vacant = line.0.iter().find(|[check, old]| {
            let old = old.load(Ordering::Relaxed);
            let key = check.load(Ordering::Relaxed) ^ mix(old);
            old == 0 || (key >> 48) as u16 != epoch
        });
        let Some([check, slot]) = vacant.or_else(|| {
            self.evicted.fetch_add(1, Ordering::Relaxed);
            line.0.get(count as usize % WAYS)
        }) else {
            return;
        };
        slot.store(rule.0, Ordering::Relaxed);
        check.store(key(return_address, epoch) ^ mix(rule.0), Ordering::Relaxed);
    }

    pub(super) fn computed(&self) -> u64 {
        self.computed.load(Ordering::Relaxed)
    }

    pub(super) fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn answers_only_what_was_inserted_in_this_epoch() {
        // A megabyte: too much for a test's stack.
        static TABLE: RuleTable = RuleTable::new();
        let table = &TABLE;
        let mut model = HashMap::new();
        let mut state = 1u64;
        for i in 0..200_000u64 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            // 300,000 addresses in 65,536 entries: lines overflow.
            let address = 0x5555_0000_0000 + (state >> 33) % 300_000 * 5;
            let epoch = (i / 100_000) as u16;
            // As in life: the rule follows from the address, until other code is there.
            let rule = Rule(mix(address + i / 100_000) | 1);
            table.insert(address, epoch, rule);
            model.insert((address, epoch), rule);
            assert_eq!(table.get(address, epoch), Some(rule), "the newest is there");
        }
        let mut kept = 0;
        for (&(address, epoch), &rule) in &model {
            if let Some(found) = table.get(address, epoch) {
                assert_eq!(found, rule, "{address:x} in epoch {epoch}");
                kept += 1;
            }
            assert_eq!(table.get(address, 7), None, "another epoch");
        }
        assert!(kept > LINES * WAYS / 2 && table.evicted() > 0, "{kept} kept");
        assert_eq!(table.get(0, 0), None, "an empty entry is no rule");
    }

    #[test]
    fn a_torn_entry_is_no_rule() {
        // A megabyte: too much for a test's stack.
        static TABLE: RuleTable = RuleTable::new();
        let table = &TABLE;
        table.insert(0x1000, 0, Rule(0x21));
        let line = &table.lines[line_of(0x1000)];
        // Another writer has stored its rule, and not yet its key.
        line.0[0][1].store(0x31, Ordering::Relaxed);
        assert_eq!(table.get(0x1000, 0), None);
    }
}
