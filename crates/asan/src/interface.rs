//! `sanitizer/asan_interface.h`.

use alloc::string::String;
use core::ffi::{c_char, c_int, c_void};
use core::sync::atomic::Ordering::Relaxed;
use leakscope_asan_rt::heap::{self, State};
use leakscope_asan_rt::report::{self, access, frame, hooks};
use leakscope_asan_rt::{depot, init, poison, shadow_map, thread};

#[unsafe(no_mangle)]
extern "C" fn __asan_poison_memory_region(start: usize, bytes: usize) {
    init::ensure();
    poison::poison(start, bytes);
}

#[unsafe(no_mangle)]
extern "C" fn __asan_unpoison_memory_region(start: usize, bytes: usize) {
    init::ensure();
    poison::unpoison(start, bytes);
}

#[unsafe(no_mangle)]
extern "C" fn __asan_address_is_poisoned(address: usize) -> c_int {
    c_int::from(shadow_map::first_poisoned(address, 1).is_some())
}

#[unsafe(no_mangle)]
extern "C" fn __asan_region_is_poisoned(start: usize, bytes: usize) -> usize {
    shadow_map::first_poisoned(start, bytes).unwrap_or(0)
}

#[unsafe(no_mangle)]
extern "C" fn __asan_describe_address(address: usize) {
    report::describe::describe_alone(address);
}

#[unsafe(no_mangle)]
extern "C" fn __asan_report_present() -> c_int {
    c_int::from(access::last().is_some())
}

macro_rules! report_facts {
    ($($name:ident -> $kind:ty, $field:ident;)*) => { $(
        #[unsafe(no_mangle)]
        extern "C" fn $name() -> $kind {
            access::last().map_or(0, |last| last.$field as $kind)
        }
    )* };
}

report_facts! {
    __asan_get_report_pc -> usize, pc;
    __asan_get_report_bp -> usize, bp;
    __asan_get_report_sp -> usize, sp;
    __asan_get_report_address -> usize, address;
    __asan_get_report_access_type -> c_int, is_write;
    __asan_get_report_access_size -> usize, bytes;
}

#[unsafe(no_mangle)]
extern "C" fn __asan_get_report_description() -> *const c_char {
    let what = access::last().map_or("", |last| last.what);
    alloc::ffi::CString::new(what).map_or(core::ptr::null(), |text| text.into_raw().cast_const())
}

#[unsafe(no_mangle)]
extern "C" fn __asan_report_error(
    pc: usize,
    bp: usize,
    sp: usize,
    address: usize,
    is_write: c_int,
    bytes: usize,
    _exp: u32,
) {
    let frames = leakscope_asan_rt::unwind::Caller::of_hook(0).frames(256);
    access::report_at(pc, bp, sp, &frames, address, is_write != 0, bytes, true);
}

/// Copies a text into the program's buffer.
fn copy_text(text: &str, to: *mut c_char, room: usize) {
    if to.is_null() || room == 0 {
        return;
    }
    let bytes = text.len().min(room - 1);
    // SAFETY: the program's buffer has this much room.
    unsafe {
        leakscope_asan_rt::originals::copy_bytes(to as usize, text.as_ptr() as usize, bytes);
        *to.add(bytes) = 0;
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __asan_locate_address(
    address: usize,
    name: *mut c_char,
    name_room: usize,
    start: *mut usize,
    bytes: *mut usize,
) -> *const c_char {
    let (kind, text, region) = locate(address);
    copy_text(&text, name, name_room);
    // SAFETY: the program's own pointers, where it gives them.
    unsafe {
        if let Some((from, length)) = region {
            if !start.is_null() {
                *start = from;
            }
            if !bytes.is_null() {
                *bytes = length;
            }
        }
    }
    kind.as_ptr()
}

type Located = (&'static core::ffi::CStr, String, Option<(usize, usize)>);

fn locate(address: usize) -> Located {
    if shadow_map::is_gap(address) {
        return (c"shadow gap", String::new(), None);
    }
    if shadow_map::is_shadow(address) {
        let is_low = address < shadow_map::LOW_SHADOW_END;
        return (if is_low { c"low shadow" } else { c"high shadow" }, String::new(), None);
    }
    if let Some(found) = heap::find_for_report(address, 1).filter(|_| heap::is_heap_space(address)) {
        return (c"heap", String::new(), Some((found.user, found.facts.requested_bytes)));
    }
    if thread::find_by_stack_address(address).is_some() {
        return match frame::locate(address) {
            Some((name, start, bytes)) => (c"stack", name, Some((start, bytes))),
            None => (c"stack", String::new(), None),
        };
    }
    if let Some(global) = leakscope_asan_rt::globals::near(address).first().map(|registered| registered.global) {
        return (c"global", String::from(global.name()), Some((global.start, global.bytes)));
    }
    (c"heap-invalid", String::new(), Some((address, 0)))
}

unsafe fn stack_of(address: usize, trace: *mut usize, room: usize, thread: *mut u32, is_release: bool) -> usize {
    let Some(found) = heap::find(address) else { return 0 };
    let (stack, number) = if !is_release {
        (found.facts.stack, found.facts.thread)
    } else if found.facts.state == State::Quarantined {
        heap::Chunk(found.user).release()
    } else {
        return 0;
    };
    let frames = depot::frames(stack);
    // SAFETY: the program's own buffers.
    unsafe {
        if !thread.is_null() {
            *thread = number;
        }
        for (i, &pc) in frames.iter().take(room).enumerate() {
            *trace.add(i) = pc as usize - 1;
        }
    }
    frames.len().min(room)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __asan_get_alloc_stack(address: usize, trace: *mut usize, room: usize, thread: *mut u32) -> usize {
    // SAFETY: the program's call.
    unsafe { stack_of(address, trace, room, thread, false) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __asan_get_free_stack(address: usize, trace: *mut usize, room: usize, thread: *mut u32) -> usize {
    // SAFETY: the program's call.
    unsafe { stack_of(address, trace, room, thread, true) }
}

#[unsafe(no_mangle)]
extern "C" fn __asan_update_allocation_context(address: usize) -> c_int {
    let Some((chunk, facts)) = heap::chunk_of(address).filter(|(_, facts)| facts.state == State::Allocated) else {
        return 0;
    };
    let stack = leakscope_asan_rt::unwind::Caller::of_hook(0).stack();
    chunk.write(heap::Facts { stack, thread: thread::current_number(), ..facts });
    1
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __asan_get_shadow_mapping(scale: *mut usize, offset: *mut usize) {
    // SAFETY: the program's own pointers.
    unsafe {
        if !scale.is_null() {
            *scale = shadow_map::SCALE;
        }
        if !offset.is_null() {
            *offset = shadow_map::OFFSET;
        }
    }
}

/// A program may define this; it is called when something was found.
#[unsafe(no_mangle)]
pub extern "C" fn __asan_on_error() {}

#[unsafe(no_mangle)]
extern "C" fn __asan_set_error_report_callback(callback: usize) {
    hooks::ON_REPORT.store(callback, Relaxed);
}

#[unsafe(no_mangle)]
extern "C" fn __asan_set_death_callback(callback: usize) {
    hooks::ON_DEATH[0].store(callback, Relaxed);
}

#[unsafe(no_mangle)]
extern "C" fn __asan_print_accumulated_stats() {
    leakscope_asan_rt::statistics::print();
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __asan_addr_is_in_fake_stack(
    _stack: *mut c_void,
    address: usize,
    start: *mut usize,
    end: *mut usize,
) -> usize {
    let Some((from, to, real)) = frame::real_stack_of(address) else { return 0 };
    // SAFETY: the program's own pointers, where it gives them.
    unsafe {
        if !start.is_null() {
            *start = from;
        }
        if !end.is_null() {
            *end = to;
        }
    }
    real
}

#[unsafe(no_mangle)]
extern "C" fn __asan_get_current_fake_stack() -> *mut c_void {
    let record = thread::current();
    if record.is_null() {
        return core::ptr::null_mut();
    }
    // SAFETY: the calling thread's record.
    unsafe { (*record).fake_stack.load(Relaxed).cast() }
}

#[unsafe(no_mangle)]
extern "C" fn __asan_handle_vfork(_sp: usize) {
    crate::stacks::handle_no_return();
}

#[unsafe(no_mangle)]
extern "C" fn __asan_poison_cxx_array_cookie(address: usize) {
    poison::poison_array_cookie(address);
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __asan_load_cxx_array_cookie(address: usize) -> usize {
    // SAFETY: instrumented code's call.
    unsafe { poison::load_array_cookie(address) }
}

#[unsafe(no_mangle)]
extern "C" fn __asan_poison_intra_object_redzone(start: usize, bytes: usize) {
    poison::set_intra_object(start, bytes, true);
}

#[unsafe(no_mangle)]
extern "C" fn __asan_unpoison_intra_object_redzone(start: usize, bytes: usize) {
    poison::set_intra_object(start, bytes, false);
}

#[unsafe(no_mangle)]
extern "C" fn __asan_test_only_reported_buggy_pointer() -> c_int {
    0
}
