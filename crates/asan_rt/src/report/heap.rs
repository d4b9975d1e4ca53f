//! Wrong releases and impossible allocations.

use super::access::{Last, keep};
use super::scariness::Scariness;
use super::{Report, describe, stack, thread_name};
use crate::heap::{AllocKind, Deletion, Facts, chunk};
use crate::options::options;
use crate::output::Address;
use crate::thread;
use crate::unwind::Caller;

fn here() -> alloc::string::String {
    thread_name(thread::current_number())
}

/// Begins a report of an address, and keeps its facts for whoever asks.
fn begin(caller: &Caller, what: &'static str, address: usize) -> Report {
    let report = Report::begin(false);
    let (bp, sp) = caller.bp_sp();
    keep(Last { pc: caller.pc(), bp, sp, address, what, ..Last::default() });
    report
}

/// Prints the usual rest: stack, what the address is, hints, summary.
fn rest(caller: &Caller, what: &'static str, address: Option<usize>, hint: Option<&str>) {
    let frames = caller.frames(256);
    stack::print(&frames);
    if let Some(address) = address {
        describe::describe(address, 1, what);
    }
    if let Some(hint) = hint {
        stack::summary(what, &frames);
        crate::out_pid!("HINT: {hint}\n");
    } else {
        stack::summary(what, &frames);
    }
}

/// A block is released twice.
#[cold]
#[inline(never)]
pub fn double_free(caller: &Caller, address: usize) {
    let report = begin(caller, "double-free", address);
    report.headline(format_args!("attempting double-free on {} in thread {}:", Address(address), here()));
    Scariness::of(42, "double-free").print();
    rest(caller, "double-free", Some(address), None);
    report.finish();
}

/// What is released is no block.
#[cold]
#[inline(never)]
pub fn invalid_free(caller: &Caller, address: usize) {
    let report = begin(caller, "bad-free", address);
    report.headline(format_args!(
        "attempting free on address which was not malloc()-ed: {} in thread {}",
        Address(address),
        here()
    ));
    Scariness::of(40, "bad-free").print();
    rest(caller, "bad-free", Some(address), None);
    report.finish();
}

/// The function that releases is none for blocks of this kind.
#[cold]
#[inline(never)]
pub fn alloc_dealloc_mismatch(caller: &Caller, address: usize, allocated: AllocKind, released: AllocKind) {
    let allocating = match allocated {
        AllocKind::Malloc => "malloc",
        AllocKind::New => "operator new",
        AllocKind::NewArray => "operator new []",
    };
    let releasing = match released {
        AllocKind::Malloc => "free",
        AllocKind::New => "operator delete",
        AllocKind::NewArray => "operator delete []",
    };
    let report = begin(caller, "alloc-dealloc-mismatch", address);
    report.headline(format_args!("alloc-dealloc-mismatch ({allocating} vs {releasing}) on {}", Address(address)));
    Scariness::of(10, "alloc-dealloc-mismatch").print();
    let hint = "if you don't care about these errors you may set ASAN_OPTIONS=alloc_dealloc_mismatch=0";
    rest(caller, "alloc-dealloc-mismatch", Some(address), Some(hint));
    report.finish();
}

/// `operator delete` is told another size or alignment than `operator new` was.
#[cold]
#[inline(never)]
pub fn new_delete_mismatch(caller: &Caller, address: usize, facts: &Facts, deletion: Deletion) {
    let report = begin(caller, "new-delete-type-mismatch", address);
    report.headline(format_args!("new-delete-type-mismatch on {} in thread {}:", Address(address), here()));
    crate::out!("  object passed to delete has wrong type:\n");
    if deletion.bytes != 0 {
        crate::out!(
            "  size of the allocated type:   {} bytes;\n  size of the deallocated type: {} bytes.\n",
            facts.requested_bytes,
            deletion.bytes
        );
    }
    let asked = chunk::alignment_of_code(facts.alignment);
    if asked != deletion.alignment {
        let text = |alignment: usize| match alignment {
            0 => alloc::string::String::from("default-aligned"),
            bytes => alloc::format!("{bytes} bytes"),
        };
        crate::out!(
            "  alignment of the allocated type:   {};\n  alignment of the deallocated type: {}.\n",
            text(asked),
            text(deletion.alignment)
        );
    }
    Scariness::of(10, "new-delete-type-mismatch").print();
    let hint = "if you don't care about these errors you may set ASAN_OPTIONS=new_delete_type_mismatch=0";
    rest(caller, "new-delete-type-mismatch", Some(address), Some(hint));
    report.finish();
}

/// malloc_usable_size of what is no block.
#[cold]
#[inline(never)]
pub fn not_owned(caller: &Caller, address: usize, function: &'static str, what: &'static str) {
    let report = begin(caller, what, address);
    report
        .headline(format_args!("attempting to call {function}() for pointer which is not owned: {}", Address(address)));
    Scariness::of(10, what).print();
    rest(caller, what, Some(address), None);
    report.finish();
}

/// The words of an allocation that cannot be; always the end.
fn impossible(caller: &Caller, what: &'static str, headline: core::fmt::Arguments<'_>) {
    let report = Report::begin(true);
    report.headline(headline);
    Scariness::of(10, what).print();
    // The hint comes before the summary in these.
    let frames = caller.frames(256);
    stack::print(&frames);
    if !options().allocator_may_return_null {
        crate::out_pid!("HINT: if you don't care about these errors you may set allocator_may_return_null=1\n");
    }
    stack::summary(what, &frames);
    report.finish();
}

/// calloc's product overflows.
#[cold]
pub fn calloc_overflow(caller: &Caller, count: usize, bytes: usize) {
    impossible(
        caller,
        "calloc-overflow",
        format_args!(
            "calloc parameters overflow: count * size ({} * {}) cannot be represented in type size_t (thread {})",
            count as isize,
            bytes as isize,
            here()
        ),
    );
}

/// reallocarray's product overflows.
#[cold]
pub fn reallocarray_overflow(caller: &Caller, count: usize, bytes: usize) {
    impossible(
        caller,
        "reallocarray-overflow",
        format_args!(
            "reallocarray parameters overflow: count * size ({} * {}) cannot be represented in type size_t (thread {})",
            count as isize,
            bytes as isize,
            here()
        ),
    );
}

/// pvalloc's size cannot be rounded up.
#[cold]
pub fn pvalloc_overflow(caller: &Caller, bytes: usize) {
    impossible(
        caller,
        "pvalloc-overflow",
        format_args!(
            "pvalloc parameters overflow: size 0x{bytes:x} rounded up to system page size 0x{:x} cannot be \
             represented in type size_t (thread {})",
            crate::sys::PAGE,
            here()
        ),
    );
}

/// memalign with an alignment that is none.
#[cold]
pub fn invalid_alignment(caller: &Caller, alignment: usize) {
    impossible(
        caller,
        "invalid-allocation-alignment",
        format_args!(
            "invalid allocation alignment: {}, alignment must be a power of two (thread {})",
            alignment as isize,
            here()
        ),
    );
}

/// aligned_alloc with arguments that do not fit each other.
#[cold]
pub fn invalid_aligned_alloc(caller: &Caller, alignment: usize, bytes: usize) {
    impossible(
        caller,
        "invalid-aligned-alloc-alignment",
        format_args!(
            "invalid alignment requested in aligned_alloc: {}, alignment must be a power of two and the requested \
             size 0x{bytes:x} must be a multiple of alignment (thread {})",
            alignment as isize,
            here()
        ),
    );
}

/// posix_memalign with an alignment that is none.
#[cold]
pub fn invalid_posix_memalign(caller: &Caller, alignment: usize) {
    impossible(
        caller,
        "invalid-posix-memalign-alignment",
        format_args!(
            "invalid alignment requested in posix_memalign: {}, alignment must be a power of two and a multiple of \
             sizeof(void*) == 8 (thread {})",
            alignment as isize,
            here()
        ),
    );
}

/// More than may be allocated.
#[cold]
pub fn allocation_too_big(caller: &Caller, bytes: usize, adjusted: usize, most: usize) {
    if options().allocator_may_return_null {
        // The function may not: operator new.
        return no_memory(caller, bytes);
    }
    // A size near the end of the address space wraps, and is rounded up like any other.
    let adjusted = adjusted.wrapping_add(7) & !7;
    impossible(
        caller,
        "allocation-size-too-big",
        format_args!(
            "requested allocation size 0x{bytes:x} (0x{adjusted:x} after adjustments for alignment, red zones etc.) \
             exceeds maximum supported size of 0x{most:x} (thread {})",
            here()
        ),
    );
}

/// Over `soft_rss_limit_mb`.
#[cold]
pub fn rss_limit(caller: &Caller) {
    impossible(
        caller,
        "rss-limit-exceeded",
        format_args!(
            "specified RSS limit exceeded, currently set to soft_rss_limit_mb={}",
            options().soft_rss_limit_mb
        ),
    );
}

/// The kernel gives no memory.
#[cold]
pub fn out_of_memory(caller: &Caller, bytes: usize) {
    crate::out!("ERROR: Failed to mmap\n");
    no_memory(caller, bytes);
}

fn no_memory(caller: &Caller, bytes: usize) {
    impossible(
        caller,
        "out-of-memory",
        format_args!("out of memory: allocator is trying to allocate 0x{bytes:x} bytes"),
    );
}
