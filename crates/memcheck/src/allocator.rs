//! The allocator's functions, as the target calls them.

use leakscope_model::{AllocFamily, AllocFn, MisuseKind};
use leakscope_translate::{Gpr, Guest};

use crate::engine::{Memcheck, Replaced, shadow};
use crate::functions::Function;
use crate::heap::{BlockId, HeapOptions, Request, State};
use crate::stacks::StackId;

const ENOMEM: u64 = libc::ENOMEM as u64;
const EINVAL: u64 = libc::EINVAL as u64;

impl Memcheck {
    /// Carries a call out; gives what it returns.
    pub fn call_allocator(&mut self, guest: &Guest, replaced: Replaced) -> u64 {
        let argument = |register| guest.gpr(register);
        let (first, second) = (argument(Gpr::Rdi), argument(Gpr::Rsi));
        let Function::Alloc(function) = replaced.function else { return self.usable_size(first) };
        let symbol = replaced.symbol;
        use AllocFn as F;
        match function {
            F::Malloc => self.allocate(guest, symbol, function, first, 0, false),
            F::Calloc => self.calloc(guest, symbol, first, second),
            F::Realloc => self.realloc(guest, symbol, function, first, second),
            F::Reallocarray => match second.checked_mul(argument(Gpr::Rdx)) {
                Some(bytes) => self.realloc(guest, symbol, function, first, bytes),
                None => 0,
            },
            F::AlignedAlloc | F::Memalign => self.aligned(guest, symbol, function, first, second),
            F::PosixMemalign => self.posix_memalign(guest, symbol, first, second, argument(Gpr::Rdx)),
            F::Valloc => self.aligned(guest, symbol, function, 4096, first),
            F::Pvalloc => self.aligned(guest, symbol, function, 4096, first.next_multiple_of(4096)),
            F::New | F::NewArray => self.throwing(guest, symbol, function, first, 0),
            F::NewNothrow | F::NewArrayNothrow => self.allocate(guest, symbol, function, first, 0, false),
            F::NewAligned | F::NewArrayAligned => self.throwing(guest, symbol, function, first, second),
            F::NewAlignedNothrow | F::NewArrayAlignedNothrow => {
                self.allocate(guest, symbol, function, first, second, false)
            }
            _ => {
                self.free(guest, symbol, function, first);
                // Nothing is returned; rax is the caller's to lose.
                0
            }
        }
    }

    /// Carries the commonest calls out, when there is nothing to say and nothing to get from the kernel; `None` before
    /// anything has changed. May not use thread-local storage.
    pub fn call_allocator_quickly(&mut self, guest: &Guest, replaced: Replaced) -> Option<u64> {
        let Function::Alloc(function) = replaced.function else { return None };
        let (first, second) = (guest.gpr(Gpr::Rdi), guest.gpr(Gpr::Rsi));
        use AllocFn as F;
        match function {
            F::Malloc | F::New | F::NewArray | F::NewNothrow | F::NewArrayNothrow => {
                self.allocate_quickly(guest, replaced.symbol, function, first, false)
            }
            F::Calloc => {
                let fits = first.max(second) <= HeapOptions::MOST_QUICK_BYTES;
                let bytes = fits.then(|| first * second)?;
                self.allocate_quickly(guest, replaced.symbol, function, bytes, true)
            }
            F::Realloc if first == 0 => self.allocate_quickly(guest, replaced.symbol, function, second, false),
            F::Realloc => self.realloc_quickly(guest, replaced.symbol, first, second),
            F::Free | F::Cfree | F::Delete | F::DeleteArray | F::DeleteSized | F::DeleteArraySized => {
                self.free_quickly(guest, replaced.symbol, function, first)
            }
            _ => None,
        }
    }

    fn allocate_quickly(
        &mut self,
        guest: &Guest,
        symbol: u64,
        function: AllocFn,
        size_bytes: u64,
        zeroed: bool,
    ) -> Option<u64> {
        let stack = match self.options.keep_allocations {
            true => self.recall.find(guest, symbol, self.options.num_callers)?,
            false => StackId::NONE,
        };
        self.heap.allocate_quickly(Request { size_bytes, alignment: 0, function, stack, zeroed })
    }

    fn realloc_quickly(&mut self, guest: &Guest, symbol: u64, old: u64, bytes: u64) -> Option<u64> {
        let is_known = self.recall.find(guest, symbol, self.options.num_callers).is_some();
        if bytes == 0 || self.pools.has_custom() || self.options.keep_frees && !is_known {
            return None;
        }
        let id = self.heap.find_live(old)?;
        let kept = self.heap.size_bytes(id).min(bytes);
        if self.heap.function(id).family() != AllocFamily::Malloc || !self.heap.can_release_quickly(id) {
            return None;
        }
        let new = self.allocate_quickly(guest, symbol, AllocFn::Realloc, bytes, false)?;
        // SAFETY: as in `realloc`.
        unsafe { std::ptr::copy_nonoverlapping(old as *const u8, new as *mut u8, kept as usize) };
        shadow().copy(old, new, kept);
        let stack = self.recall.find(guest, symbol, self.options.num_callers).filter(|_| self.options.keep_frees);
        self.heap.release_quickly(id, stack.unwrap_or(StackId::NONE));
        Some(new)
    }

    fn free_quickly(&mut self, guest: &Guest, symbol: u64, function: AllocFn, start: u64) -> Option<u64> {
        if start == 0 {
            return Some(0);
        }
        if self.pools.has_custom() {
            return None;
        }
        self.heap.prepare_release(start);
        // Meanwhile what was asked for arrives.
        let stack = match self.options.keep_frees {
            true => self.recall.find(guest, symbol, self.options.num_callers)?,
            false => StackId::NONE,
        };
        let id = self.heap.find_live(start)?;
        if self.heap.function(id).family() != function.family() {
            return None;
        }
        self.heap.release_quickly(id, stack).then_some(0)
    }

    /// A size that can only be a negative number: told, and nothing is allocated.
    fn is_fishy(&mut self, guest: &Guest, symbol: u64, function: AllocFn, size: u64) -> bool {
        if (size as i64) >= 0 {
            return false;
        }
        self.walk_hook(guest, symbol);
        self.report_misuse(guest, MisuseKind::FishySize, function, size, None);
        true
    }

    fn allocation_stack(&mut self, guest: &Guest, symbol: u64) -> StackId {
        if self.options.keep_allocations { self.stack_in_hook(guest, symbol) } else { StackId::NONE }
    }

    fn allocate(
        &mut self,
        guest: &Guest,
        symbol: u64,
        function: AllocFn,
        size_bytes: u64,
        alignment: u64,
        zeroed: bool,
    ) -> u64 {
        if self.is_fishy(guest, symbol, function, size_bytes) {
            return 0;
        }
        let stack = self.allocation_stack(guest, symbol);
        self.heap.allocate(Request { size_bytes, alignment, function, stack, zeroed }).unwrap_or(0)
    }

    fn calloc(&mut self, guest: &Guest, symbol: u64, count: u64, size: u64) -> u64 {
        // A product that does not fit is refused without a word, as the C library does.
        let Some(bytes) = count.checked_mul(size) else { return 0 };
        if self.is_fishy(guest, symbol, AllocFn::Calloc, count) || self.is_fishy(guest, symbol, AllocFn::Calloc, size) {
            return 0;
        }
        self.allocate(guest, symbol, AllocFn::Calloc, bytes, 0, true)
    }

    fn aligned(&mut self, guest: &Guest, symbol: u64, function: AllocFn, alignment: u64, bytes: u64) -> u64 {
        // As glibc: what is no power of two is rounded up.
        let Some(alignment) = alignment.max(1).checked_next_power_of_two() else { return 0 };
        self.allocate(guest, symbol, function, bytes, alignment, false)
    }

    fn posix_memalign(&mut self, guest: &Guest, symbol: u64, result: u64, alignment: u64, bytes: u64) -> u64 {
        if !alignment.is_power_of_two() || !alignment.is_multiple_of(8) {
            return EINVAL;
        }
        let block = self.allocate(guest, symbol, AllocFn::PosixMemalign, bytes, alignment, false);
        if block == 0 {
            return ENOMEM;
        }
        if !crate::probe::can_write(result) || !crate::probe::can_write(result + 7) {
            self.pending_fault = Some(crate::strings::Fault { address: result, write: true });
            return EINVAL;
        }
        if !shadow().is_allowed(result, 8) {
            self.walk_hook(guest, symbol);
            self.report_access(guest, result, 8, true);
        }
        // SAFETY: just found to be writable.
        unsafe { (result as *mut u64).write_unaligned(block) };
        0
    }

    /// `operator new`: it may not give 0, and there is nobody here who could throw.
    fn throwing(&mut self, guest: &Guest, symbol: u64, function: AllocFn, bytes: u64, alignment: u64) -> u64 {
        let block = self.allocate(guest, symbol, function, bytes, alignment, false);
        if block == 0 {
            self.say(
                "new/new[] failed and should throw an exception, but leakscope\n   cannot throw exceptions and so is aborting instead.  Sorry.".to_owned(),
            );
            self.leave(1);
        }
        block
    }

    fn usable_size(&self, start: u64) -> u64 {
        self.heap.find_live(start).map_or(0, |id| self.heap.size_bytes(id))
    }

    /// Frees a block, or tells why not.
    pub fn free(&mut self, guest: &Guest, symbol: u64, function: AllocFn, start: u64) {
        if start == 0 {
            return;
        }
        if let Some(id) = self.heap.find_live(start) {
            if self.pools.is_inside_custom(start) {
                // A block that the target announced at the very place: that one is meant.
                return self.free_custom(guest, symbol, function, start);
            }
            self.check_family(guest, symbol, function, id);
            let stack = if self.options.keep_frees { self.stack_in_hook(guest, symbol) } else { StackId::NONE };
            self.heap.release(id, stack);
            return;
        }
        if self.pools.is_inside_custom(start) {
            return self.free_custom(guest, symbol, function, start);
        }
        self.report_wrong_free(guest, symbol, function, start, false);
    }

    fn free_custom(&mut self, guest: &Guest, symbol: u64, function: AllocFn, start: u64) {
        let Some(block) = self.pools.take_custom(start) else { return };
        shadow().forbid(block.start, block.bytes);
        if self.options.mismatched_frees {
            self.walk_hook(guest, symbol);
            let told = self.event_of_custom(&block);
            self.report_misuse_of(guest, MisuseKind::MismatchedFree, function, start, Some(told));
        }
        let stack = self.stack_in_hook(guest, symbol);
        self.pools.remember_freed(block, stack);
    }

    fn check_family(&mut self, guest: &Guest, symbol: u64, function: AllocFn, id: BlockId) {
        let made_by = self.heap.function(id).family();
        // realloc belongs to malloc; everything else to the family of its name.
        let wanted = match function {
            AllocFn::Realloc | AllocFn::Reallocarray => AllocFamily::Malloc,
            other => other.family(),
        };
        if made_by != wanted && self.options.mismatched_frees && !self.modules.is_folded(symbol) {
            self.walk_hook(guest, symbol);
            let start = self.heap.block(id).start;
            self.report_misuse(guest, MisuseKind::MismatchedFree, function, start, Some(id));
        }
    }

    fn report_wrong_free(&mut self, guest: &Guest, symbol: u64, function: AllocFn, start: u64, realloc: bool) {
        self.walk_hook(guest, symbol);
        let found = self.heap.find(start).filter(|&id| {
            let block = self.heap.block(id);
            // Somewhere in the slack of a slot is nowhere near the block.
            start + self.heap.redzone_bytes() >= block.start
        });
        let kind = match found.map(|id| (self.heap.block(id).state, self.heap.block(id).start == start)) {
            _ if realloc => MisuseKind::InvalidRealloc,
            None => MisuseKind::InvalidFree,
            Some((State::Live, _)) => MisuseKind::InteriorFree,
            Some((_, true)) => MisuseKind::DoubleFree,
            Some((_, false)) => MisuseKind::InvalidFree,
        };
        self.report_misuse(guest, kind, function, start, found);
    }

    fn realloc(&mut self, guest: &Guest, symbol: u64, function: AllocFn, old: u64, bytes: u64) -> u64 {
        if old == 0 {
            return self.allocate(guest, symbol, function, bytes, 0, false);
        }
        if bytes == 0 {
            if self.options.realloc_zero {
                self.walk_hook(guest, symbol);
                let id = self.heap.find_live(old);
                self.report_misuse(guest, MisuseKind::ReallocZero, function, old, id);
            }
            self.free(guest, symbol, function, old);
            return 0;
        }
        if self.is_fishy(guest, symbol, function, bytes) {
            return 0;
        }
        let Some(id) = self.heap.find_live(old) else {
            self.report_wrong_free(guest, symbol, function, old, true);
            return 0;
        };
        self.check_family(guest, symbol, function, id);
        let stack = self.allocation_stack(guest, symbol);
        let request = Request { size_bytes: bytes, alignment: 0, function, stack, zeroed: false };
        let Some(new) = self.heap.allocate(request) else { return 0 };
        let kept = self.heap.size_bytes(id).min(bytes);
        // SAFETY: both blocks are live and mapped, and at least so long. What the target has forbidden itself in the old
        // one stays so.
        unsafe { std::ptr::copy_nonoverlapping(old as *const u8, new as *mut u8, kept as usize) };
        shadow().copy(old, new, kept);
        let stack = if self.options.keep_frees { self.stack_in_hook(guest, symbol) } else { StackId::NONE };
        self.heap.release(id, stack);
        new
    }
}
