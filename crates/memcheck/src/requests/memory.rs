//! Requests about ranges of memory, blocks, and counts of leaks.

use leakscope_ledger::events::NO_FUNCTION;
use leakscope_model::{ErrorKind, MisuseKind};
use leakscope_translate::Engine;

use super::Words;
use crate::engine::{Memcheck, shadow};
use crate::pools::Custom;
use crate::probe;

impl Memcheck {
    /// Where the request stands, into `walk`.
    pub(super) fn walk_request(&mut self, engine: &Engine) {
        let guest = engine.guest().clone();
        // In the sequence, before the exchange that is three bytes long.
        self.walk_here(&guest, guest.rip.wrapping_sub(1));
    }

    /// The same for requests that stand for a function of an allocator: stacks of those begin with the function, and
    /// here with [`NO_FUNCTION`].
    pub(super) fn walk_allocation_request(&mut self, engine: &Engine) {
        self.walk_request(engine);
        self.walk.insert(0, NO_FUNCTION);
    }

    /// The number of such a stack.
    pub(super) fn request_stack(&mut self, engine: &Engine) -> crate::stacks::StackId {
        self.walk_allocation_request(engine);
        self.stacks.intern(&self.walk)
    }

    /// Requests of `memcheck.h`, by their number.
    pub(super) fn memcheck_request(&mut self, engine: &mut Engine, number: u64, words: &Words) -> Option<u64> {
        let [_, first, second, third, ..] = *words;
        match number {
            // MAKE_MEM_NOACCESS
            0 => {
                self.mark(first, second, false);
                Some(u64::MAX)
            }
            // MAKE_MEM_UNDEFINED, MAKE_MEM_DEFINED
            1 | 2 => {
                self.mark(first, second, true);
                Some(u64::MAX)
            }
            // DISCARD
            3 => Some(u64::from(!self.pools.forget_name(first))),
            // CHECK_MEM_IS_ADDRESSABLE, CHECK_MEM_IS_DEFINED
            4 | 5 => Some(self.check_memory(engine, first, second)),
            // DO_LEAK_CHECK: quick or not, what to show.
            6 => {
                self.leak_check_request(engine, first != 0, second);
                Some(0)
            }
            // COUNT_LEAKS, COUNT_LEAK_BLOCKS
            7 => self.count_leaks(words, false),
            12 => self.count_leaks(words, true),
            // GET_VBITS, SET_VBITS
            8 => Some(self.v_bits(first, second, third, false)),
            9 => Some(self.v_bits(first, second, third, true)),
            // CREATE_BLOCK
            10 => {
                self.walk_request(engine);
                let stack = self.stacks.intern(&self.walk);
                let name = probe::text(third, 256).unwrap_or_default();
                Some(self.pools.name(first, second, String::from_utf8_lossy(&name).into_owned(), stack))
            }
            // MAKE_MEM_DEFINED_IF_ADDRESSABLE: addressable bytes are defined as it is.
            11 => Some(u64::MAX),
            // ENABLE_ADDR_ERROR_REPORTING_IN_RANGE
            13 => {
                let end = first.saturating_add(second.saturating_sub(1));
                self.client.ignored_ranges.retain(|&range| range != (first, end));
                Some(u64::MAX)
            }
            // DISABLE_ADDR_ERROR_REPORTING_IN_RANGE
            14 => {
                self.client.ignored_ranges.push((first, first.saturating_add(second.saturating_sub(1))));
                Some(u64::MAX)
            }
            _ => None,
        }
    }

    fn mark(&mut self, start: u64, bytes: u64, addressable: bool) {
        if start.saturating_add(bytes) > leakscope_translate::GUEST_END {
            return;
        }
        if addressable { shadow().allow(start, bytes) } else { shadow().forbid(start, bytes) }
    }

    /// The first wrong byte, which is also reported; 0 if there is none.
    fn check_memory(&mut self, engine: &mut Engine, start: u64, bytes: u64) -> u64 {
        let Some(bad) = crate::monitor::first_bad(start, bytes) else { return 0 };
        self.walk_request(engine);
        let message = "Unaddressable byte(s) found during client check request".to_owned();
        let guest = engine.guest().clone();
        self.report(&guest, ErrorKind::ClientCheck, "client", message, Some(bad));
        bad
    }

    /// Stores the last check's leaks where the request wants them: lost, possibly lost, reachable, suppressed.
    fn count_leaks(&mut self, words: &Words, blocks: bool) -> Option<u64> {
        use leakscope_model::LeakKind as K;
        let of = if blocks { self.leaks.blocks } else { self.leaks.bytes };
        // Memcheck counts indirectly lost ones as lost.
        let lost = of[K::DefinitelyLost as usize] + of[K::IndirectlyLost as usize];
        let values = [lost, of[K::PossiblyLost as usize], of[K::StillReachable as usize], 0];
        for (&at, value) in words[1..5].iter().zip(values) {
            if probe::can_write(at) && probe::can_write(at + 7) {
                // SAFETY: just found to be writable.
                unsafe { (at as *mut u64).write_unaligned(value) };
            }
        }
        Some(0)
    }

    /// `GET_VBITS`, `SET_VBITS`: 1 is success, 3 that a byte is not addressable.
    fn v_bits(&mut self, start: u64, bits: u64, bytes: u64, set: bool) -> u64 {
        let touched = if set { crate::monitor::first_bad(bits, bytes) } else { None };
        if touched.is_some() || crate::monitor::first_bad(start, bytes).is_some() {
            return 3;
        }
        if !set && bytes > 0 && probe::can_write(bits) && probe::can_write(bits + bytes - 1) {
            // Everything that is addressable is defined.
            // SAFETY: both ends were just found to be writable.
            unsafe { std::ptr::write_bytes(bits as *mut u8, 0, bytes as usize) };
        }
        1
    }

    /// `VALGRIND_MALLOCLIKE_BLOCK`
    pub(super) fn malloc_like(&mut self, engine: &Engine, start: u64, bytes: u64, redzone: u64, _zeroed: bool) -> u64 {
        let stack = self.request_stack(engine);
        self.pools.add_custom(Custom { start, bytes, stack, redzone_bytes: redzone, is_piece: false });
        shadow().allow(start, bytes);
        super::mempools::forbid_around(start, bytes, redzone);
        0
    }

    /// `VALGRIND_RESIZEINPLACE_BLOCK`: start, old size, new size, redzone.
    pub(super) fn resize_in_place(&mut self, engine: &mut Engine, words: &Words) -> u64 {
        let [_, start, _, bytes, _, _] = *words;
        let Some(block) = self.pools.custom_mut(start) else {
            self.wrong_custom_free(engine, start);
            return 0;
        };
        let old = block.bytes;
        block.bytes = bytes;
        let redzone = block.redzone_bytes;
        if bytes > old {
            shadow().allow(start + old, bytes - old);
        } else {
            shadow().forbid(start + bytes, old - bytes);
        }
        super::mempools::forbid_around(start, bytes, redzone);
        0
    }

    /// `VALGRIND_FREELIKE_BLOCK`
    pub(super) fn free_like(&mut self, engine: &mut Engine, start: u64) -> u64 {
        let Some(block) = self.pools.take_custom(start) else {
            self.wrong_custom_free(engine, start);
            return 0;
        };
        let stack = self.request_stack(engine);
        shadow().forbid(block.start, block.bytes);
        self.pools.remember_freed(block, stack);
        0
    }

    fn wrong_custom_free(&mut self, engine: &mut Engine, start: u64) {
        self.walk_allocation_request(engine);
        let guest = engine.guest().clone();
        let block = self.heap.find(start);
        let is_block = block.is_some_and(|id| self.heap.block(id).start == start);
        let kind = if is_block { MisuseKind::MismatchedFree } else { MisuseKind::InvalidFree };
        self.report_misuse(&guest, kind, leakscope_model::AllocFn::Free, start, block);
    }
}
