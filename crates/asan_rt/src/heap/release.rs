//! Releases: what is wrong with them, the quarantine, and the way back to the free blocks.

use super::chunk::{Chunk, Facts, HEADER_BYTES, State};
use super::{
    AllocKind, HAS_HOOKS, Request, allocate, chunk_of, classes, find, large, quarantine, regions, with_thread,
};
use crate::options::options;
use crate::report::heap as report;
use crate::shadow_map::{self, why};
use crate::thread;
use crate::unwind::Caller;
use core::sync::atomic::Ordering::Relaxed;

const DEFAULT_QUARANTINE_BYTES: usize = 256 << 20;
const DEFAULT_LOCAL_BYTES: usize = 1 << 20;

/// What `operator delete` says of the block beyond its address.
#[derive(Clone, Copy, Default)]
pub struct Deletion {
    /// Size of the type; 0 when it was not given.
    pub bytes: usize,
    /// Alignment of the type; 0 when it was not given.
    pub alignment: usize,
}

/// Releases a block; what is wrong with that is reported.
#[inline(always)]
pub fn release(caller: &Caller, address: usize, kind: AllocKind, deletion: Deletion) {
    if address == 0 {
        return;
    }
    if super::dormant::is_dormant() {
        return release_asleep(caller, address, kind, deletion);
    }
    release_now(caller, address, kind, deletion);
}

#[cold]
#[inline(never)]
fn release_asleep(caller: &Caller, address: usize, kind: AllocKind, deletion: Deletion) {
    super::dormant::inside(|| release_now(caller, address, kind, deletion));
}

#[inline(always)]
fn release_now(caller: &Caller, address: usize, kind: AllocKind, deletion: Deletion) {
    // Most of a release is waiting for these two lines: they are on their way while the stack is recalled.
    leakscope_rt::memory::prefetch(address.wrapping_sub(super::chunk::HEADER_BYTES) as *const u8);
    leakscope_rt::memory::prefetch(shadow_map::shadow_of(address) as *const u8);
    if HAS_HOOKS.load(Relaxed) && super::run_release_hook(address) {
        // The program keeps it for now, and may release it by any function later.
        if let Some((chunk, facts)) = chunk_of(address).filter(|(_, facts)| facts.state == State::Allocated) {
            chunk.write(Facts { kind: AllocKind::Malloc, ..facts });
        }
        return;
    }
    let prepared = caller.prepare();
    let Some((chunk, facts)) = chunk_of(address) else { return report::invalid_free(caller, address) };
    if facts.state == State::Allocated {
        // While the block is still the program's: the report tells only of its allocation.
        if facts.kind != kind && options().alloc_dealloc_mismatch {
            report::alloc_dealloc_mismatch(caller, address, facts.kind, kind);
        } else if options().new_delete_type_mismatch
            && facts.kind == kind
            && kind != AllocKind::Malloc
            && is_other_type(&facts, deletion)
        {
            report::new_delete_mismatch(caller, address, &facts, deletion);
        }
    }
    if !chunk.change_state(State::Allocated, State::Quarantined) {
        return match facts.state {
            State::Quarantined => report::double_free(caller, address),
            _ => report::invalid_free(caller, address),
        };
    }
    put_to_rest(chunk, &facts, || caller.stack_of(prepared));
}

fn is_other_type(facts: &Facts, deletion: Deletion) -> bool {
    let asked = super::chunk::alignment_code(deletion.alignment);
    (deletion.bytes != 0 && deletion.bytes != facts.requested_bytes) || asked != facts.alignment
}

#[inline(always)]
fn put_to_rest(chunk: Chunk, facts: &Facts, stack: impl FnOnce() -> u32) {
    let fill = options().max_free_fill_size as usize;
    if fill > 0 {
        // SAFETY: the block's own bytes.
        unsafe {
            shadow_map::fill_bytes(chunk.0, facts.requested_bytes.min(fill), options().free_fill_byte as u8);
        }
    }
    // What is larger than the quarantine leaves it at once: its shadow, an eighth of it, would be written for nothing.
    let is_staying = facts.requested_bytes <= classes::LARGEST || facts.requested_bytes <= quarantine_limit();
    if is_staying {
        // SAFETY: the block is out of the program's hands.
        unsafe { super::poison_released(chunk.0, facts.requested_bytes) };
    }
    chunk.set_release(stack(), thread::current_number().min(thread::NO_THREAD));
    let bytes = block_bytes(chunk);
    with_thread(|thread| {
        // SAFETY: the calling thread's own.
        let (cache, local) = unsafe { (&mut *thread.cache.get(), &mut *thread.quarantine.get()) };
        cache.count_release(facts.requested_bytes);
        if (HAS_WHOLE_PAGES..=classes::LARGEST).contains(&facts.requested_bytes) && fill == 0 {
            drop_pages_inside(cache, chunk);
        }
        if !local.push(chunk.0, bytes) {
            recycle(cache, chunk);
        } else if local.bytes() > local_quarantine_limit() {
            local.hand_over();
            empty_to(cache, quarantine_limit());
        }
    });
}

/// Blocks of classes that are smaller keep their pages while they rest: few have a whole one that no other block is on.
const HAS_WHOLE_PAGES: usize = crate::sys::PAGE + HEADER_BYTES;

/// What a block holds while it rests nobody reads again: whole pages of it go back to the kernel, all but the one with its
/// header and its release. They come back empty when the block is next used.
#[cold]
#[inline(never)]
fn drop_pages_inside(cache: &mut super::Cache, chunk: Chunk) {
    let Some((block, bytes)) = regions::block_at(chunk.0) else { return };
    let first = (chunk.0 + HEADER_BYTES).next_multiple_of(crate::sys::PAGE);
    let last = (block + bytes) & !(crate::sys::PAGE - 1);
    if last > first && cache.may_drop_pages((last - first) / crate::sys::PAGE) {
        // SAFETY: whole pages of a released block, which is nobody's while its state is that.
        unsafe { crate::sys::advise(first, last - first, crate::sys::Advice::DontNeed) };
    }
}

/// Bytes that the block takes while it rests: its own and their shadow.
#[inline(always)]
fn block_bytes(chunk: Chunk) -> usize {
    if regions::contains(chunk.0) {
        let bytes = classes::size_of(regions::class_at(chunk.0));
        return bytes + (bytes >> shadow_map::SCALE);
    }
    rest_large(chunk)
}

/// A large block at rest needs no pages, but for the one with its header and its release.
#[cold]
fn rest_large(chunk: Chunk) -> usize {
    let bytes = chunk.read().map_or(0, |facts| facts.requested_bytes);
    let first = (chunk.0 + 16).next_multiple_of(crate::sys::PAGE);
    let last = (chunk.0 + bytes) & !(crate::sys::PAGE - 1);
    if last > first && options().max_free_fill_size == 0 {
        // SAFETY: whole pages of a released block.
        unsafe { large::drop_pages(first, last - first) };
    }
    bytes
}

/// Bytes that the process's quarantine holds at most.
#[must_use]
pub fn quarantine_limit() -> usize {
    let (megabytes, bytes) = (options().quarantine_size_mb, options().quarantine_size);
    match (usize::try_from(megabytes), usize::try_from(bytes)) {
        (Ok(megabytes), _) => megabytes << 20,
        (_, Ok(bytes)) => bytes,
        _ => DEFAULT_QUARANTINE_BYTES,
    }
}

#[inline(always)]
/// Bytes that a thread's quarantine holds at most.
#[must_use]
pub fn local_quarantine_limit() -> usize {
    match usize::try_from(options().thread_local_quarantine_size_kb) {
        Ok(kilobytes) => kilobytes << 10,
        Err(_) if quarantine_limit() == 0 => 0,
        Err(_) => DEFAULT_LOCAL_BYTES,
    }
}

#[cold]
#[inline(never)]
fn empty_to(cache: &mut super::Cache, limit: usize) {
    const AHEAD: usize = 8;
    if quarantine::global_bytes() <= limit {
        return;
    }
    // A tenth more than needed, so that this is not entered again at once.
    while let Some(batch) = quarantine::take_over_limit(limit - limit / 10) {
        // SAFETY: the batch is ours alone now.
        let blocks = unsafe { &*batch };
        for i in 0..blocks.count() {
            if let Some(ahead) = blocks.block(i + AHEAD) {
                leakscope_rt::memory::prefetch((ahead - 16) as *const u8);
                leakscope_rt::memory::prefetch(shadow_map::shadow_of(ahead) as *const u8);
            }
            if let Some(block) = blocks.block(i) {
                recycle(cache, Chunk(block));
            }
        }
        // SAFETY: emptied.
        unsafe { quarantine::drop_batch(batch) };
    }
}

/// Makes a block free again.
#[inline(always)]
fn recycle(cache: &mut super::Cache, chunk: Chunk) {
    if !chunk.change_state(State::Quarantined, State::Free) {
        // Its header was overwritten: it is never used again, and a report was or will be made where it is touched.
        return;
    }
    if !regions::contains(chunk.0) {
        recycle_large(chunk);
        return;
    }
    let class = regions::class_at(chunk.0);
    let Some((block, bytes)) = regions::block_at(chunk.0) else { return };
    // SAFETY: the block is free.
    unsafe { shadow_map::fill(block, bytes, if options().poison_heap { why::HEAP_REDZONE } else { 0 }) };
    cache.push(class, block);
}

#[cold]
fn recycle_large(chunk: Chunk) {
    let Some(start) = large::span_at(chunk.0) else { return };
    if let Some(mapped) = large::mapped_bytes(start) {
        large::give(start, mapped);
    }
}

/// Hands over the calling thread's quarantine, empties the process's and lets free pages go:
/// `__sanitizer_purge_allocator`.
pub fn purge() {
    flush_quarantine();
    // SAFETY: the calling thread's own.
    with_thread(|thread| unsafe { (*thread.cache.get()).drain() });
    regions::release_all_pages();
}

fn flush_quarantine() {
    with_thread(|thread| {
        // SAFETY: the calling thread's own.
        let (cache, local) = unsafe { (&mut *thread.cache.get(), &mut *thread.quarantine.get()) };
        local.hand_over();
        while let Some(batch) = quarantine::take_over_limit(0) {
            // SAFETY: the batch is ours alone now.
            unsafe {
                for number in 0..(*batch).count() {
                    if let Some(block) = (*batch).block(number) {
                        recycle(cache, Chunk(block));
                    }
                }
                quarantine::drop_batch(batch);
            }
        }
    });
}

/// realloc(3): always to a new place, so that stale pointers are seen.
pub fn reallocate(caller: &Caller, address: usize, bytes: usize) -> *mut u8 {
    let request = Request { bytes, alignment: 0, kind: AllocKind::Malloc, zeroed: false, may_fail: true };
    if address == 0 {
        return allocate(caller, request);
    }
    if bytes == 0 && options().allocator_frees_and_returns_null_on_realloc_zero {
        release(caller, address, AllocKind::Malloc, Deletion::default());
        return core::ptr::null_mut();
    }
    match chunk_of(address) {
        Some((_, facts)) if facts.state == State::Allocated => {
            let fresh = allocate(caller, Request { bytes: bytes.max(1), ..request });
            if !fresh.is_null() {
                // SAFETY: two different blocks, each with that many bytes.
                unsafe { crate::originals::copy_bytes(fresh as usize, address, bytes.min(facts.requested_bytes)) };
                release(caller, address, AllocKind::Malloc, Deletion::default());
            }
            fresh
        }
        Some((_, facts)) if facts.state == State::Quarantined => {
            report::double_free(caller, address);
            core::ptr::null_mut()
        }
        _ => {
            report::invalid_free(caller, address);
            core::ptr::null_mut()
        }
    }
}

/// Bytes of a live block that starts at `address`; `None` when there is none.
#[must_use]
pub fn live_bytes(address: usize) -> Option<usize> {
    find(address)
        .filter(|found| found.user == address && found.facts.state == State::Allocated)
        .map(|found| found.facts.requested_bytes)
}
