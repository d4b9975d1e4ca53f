//! `sanitizer/common_interface_defs.h` and `sanitizer/allocator_interface.h`.

use alloc::ffi::CString;
use alloc::string::String;
use core::arch::naked_asm;
use core::ffi::{CStr, c_char, c_int, c_void};
use core::sync::atomic::AtomicUsize;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use leakscope_asan_rt::heap::{self, large, regions};
use leakscope_asan_rt::options::options;
use leakscope_asan_rt::report::{self, hooks, misuse, stack};
use leakscope_asan_rt::unwind::Caller;
use leakscope_asan_rt::{fake_stack, modules, originals, output, poison, symbolize, thread};

#[unsafe(no_mangle)]
unsafe extern "C" fn __sanitizer_set_report_path(path: *const c_char) {
    if !path.is_null() {
        // SAFETY: the program's C string.
        let path = unsafe { CStr::from_ptr(path) }.to_string_lossy();
        if let Err(folder) = output::make_folders(&path) {
            let text = alloc::format!("ERROR: Can't create directory: {folder}\n");
            leakscope_asan_rt::sys::write_all(2, text.as_bytes());
            leakscope_asan_rt::report::die();
        }
        output::set_path(&path);
    }
}

#[unsafe(no_mangle)]
extern "C" fn __sanitizer_set_report_fd(fd: *mut c_void) {
    output::set_fd(fd as usize as i32);
}

#[unsafe(no_mangle)]
extern "C" fn __sanitizer_get_report_path() -> *const c_char {
    CString::new(output::path()).map_or(core::ptr::null(), |path| path.into_raw().cast_const())
}

#[unsafe(no_mangle)]
extern "C" fn __sanitizer_sandbox_on_notify(_arguments: *mut c_void) {
    // What names need is read when they are asked for; open the files of what is loaded while that is allowed.
    let _ = symbolize::frames_at(__sanitizer_sandbox_on_notify as *const () as usize);
}

#[unsafe(no_mangle)]
extern "C" fn __sanitizer_report_error_summary(text: *const c_char) {
    if !text.is_null() {
        // SAFETY: the interface's C string.
        leakscope_asan_rt::out!("{}\n", unsafe { CStr::from_ptr(text) }.to_string_lossy());
    }
}

#[unsafe(no_mangle)]
extern "C" fn __sanitizer_print_memory_profile(top: usize, most: usize) {
    leakscope_asan_rt::statistics::print_profile(top, most);
}

/// Annotations of containers need the caller only when their bounds are wrong.
#[unsafe(no_mangle)]
extern "C" fn __sanitizer_annotate_contiguous_container(begin: usize, end: usize, old: usize, new: usize) {
    if !poison::annotate_container(begin, end, old, new) {
        let hook = __sanitizer_annotate_contiguous_container as *const () as usize;
        misuse::bad_container(&Caller::of_hook(hook), [begin, end, old, new]);
    }
}

#[unsafe(no_mangle)]
extern "C" fn __sanitizer_annotate_double_ended_contiguous_container(
    begin: usize,
    end: usize,
    old_begin: usize,
    old_end: usize,
    new_begin: usize,
    new_end: usize,
) {
    let bounds = [begin, end, old_begin, old_end, new_begin, new_end];
    if !poison::annotate_double_ended(bounds) {
        let hook = __sanitizer_annotate_double_ended_contiguous_container as *const () as usize;
        misuse::bad_double_ended_container(&Caller::of_hook(hook), bounds);
    }
}

#[unsafe(no_mangle)]
extern "C" fn __sanitizer_contiguous_container_find_bad_address(begin: usize, middle: usize, end: usize) -> usize {
    poison::find_bad_in_container(begin, begin, middle, end)
}

#[unsafe(no_mangle)]
extern "C" fn __sanitizer_double_ended_contiguous_container_find_bad_address(
    begin: usize,
    used_begin: usize,
    used_end: usize,
    end: usize,
) -> usize {
    poison::find_bad_in_container(begin, used_begin, used_end, end)
}

#[unsafe(no_mangle)]
extern "C" fn __sanitizer_verify_contiguous_container(begin: usize, middle: usize, end: usize) -> c_int {
    c_int::from(poison::find_bad_in_container(begin, begin, middle, end) == 0)
}

#[unsafe(no_mangle)]
extern "C" fn __sanitizer_verify_double_ended_contiguous_container(
    begin: usize,
    used_begin: usize,
    used_end: usize,
    end: usize,
) -> c_int {
    c_int::from(poison::find_bad_in_container(begin, used_begin, used_end, end) == 0)
}

#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn __sanitizer_print_stack_trace() {
    extern "C" fn body(rsp: usize, rbp: usize) {
        let hook = __sanitizer_print_stack_trace as *const () as usize;
        stack::print(&Caller { hook, rsp, rbp }.frames(256));
    }
    naked_asm!(".cfi_startproc", "mov rdi, rsp", "mov rsi, rbp", "jmp {}", ".cfi_endproc", sym body)
}

fn copy_text(text: &str, to: *mut c_char, room: usize) {
    if room == 0 {
        return;
    }
    let bytes = text.len().min(room - 1);
    // SAFETY: the program's buffer has this much room.
    unsafe {
        originals::copy_bytes(to as usize, text.as_ptr() as usize, bytes);
        *to.add(bytes) = 0;
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __sanitizer_symbolize_pc(pc: usize, format: *const c_char, to: *mut c_char, room: usize) {
    // SAFETY: the program's C string.
    let format = unsafe { CStr::from_ptr(format) }.to_string_lossy();
    let mut all = String::new();
    // As for a return address: one less.
    for (number, frame) in symbolize::frames_at(pc.wrapping_sub(1)).iter().enumerate() {
        stack::render(&mut all, &format, number, frame);
        all.push('\0');
    }
    let used = all.len().min(room.saturating_sub(1));
    // SAFETY: the program's buffer has this much room.
    unsafe {
        originals::copy_bytes(to as usize, all.as_ptr() as usize, used);
        if room > 0 {
            *to.add(used) = 0;
        }
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __sanitizer_symbolize_global(address: usize, format: *const c_char, to: *mut c_char, room: usize) {
    // SAFETY: the program's C string.
    let format = unsafe { CStr::from_ptr(format) }.to_string_lossy();
    let mut text = String::new();
    if let Some(variable) = symbolize::variable_at(address) {
        let mut rest = format.chars();
        while let Some(c) = rest.next() {
            match (c, if c == '%' { rest.next() } else { None }) {
                ('%', Some('g')) => text.push_str(&symbolize::demangle(&variable.name)),
                ('%', Some('s')) => text.push_str(&variable.file),
                ('%', Some('l')) => text.push_str(&alloc::format!("{}", variable.line)),
                ('%', Some(other)) => text.push(other),
                (c, _) => text.push(c),
            }
        }
    }
    copy_text(&text, to, room);
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __sanitizer_get_module_and_offset_for_pc(
    pc: usize,
    path: *mut c_char,
    room: usize,
    offset: *mut usize,
) -> c_int {
    let Some(module) = modules::find(pc) else { return 0 };
    if !path.is_null() {
        copy_text(&module.path, path, room);
    }
    if !offset.is_null() {
        // SAFETY: the program's own pointer.
        unsafe { *offset = pc - module.bias };
    }
    1
}

#[unsafe(no_mangle)]
extern "C" fn __sanitizer_set_death_callback(callback: usize) {
    hooks::ON_DEATH[1].store(callback, Relaxed);
}

#[unsafe(no_mangle)]
extern "C" fn __sanitizer_acquire_crash_state() -> c_int {
    static WAS_TAKEN: AtomicUsize = AtomicUsize::new(0);
    c_int::from(WAS_TAKEN.swap(1, Relaxed) == 0)
}

/// Pairs of pointers into different objects have no order and no difference.
fn check_pair(hook: usize, first: usize, second: usize) {
    let mode = options().detect_invalid_pointer_pairs;
    if mode == 0 || (mode == 1 && (first == 0 || second == 0)) || first == second {
        return;
    }
    if leakscope_asan_rt::report::pairs::is_invalid(first, second) {
        misuse::invalid_pointer_pair(&Caller::of_hook(0), first, second);
    }
    let _ = hook;
}

#[unsafe(no_mangle)]
extern "C" fn __sanitizer_ptr_sub(first: usize, second: usize) {
    check_pair(__sanitizer_ptr_sub as *const () as usize, first, second);
}

#[unsafe(no_mangle)]
extern "C" fn __sanitizer_ptr_cmp(first: usize, second: usize) {
    check_pair(__sanitizer_ptr_cmp as *const () as usize, first, second);
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __sanitizer_start_switch_fiber(save: *mut usize, bottom: usize, bytes: usize) {
    let record = thread::current();
    if record.is_null() {
        return;
    }
    // SAFETY: the calling thread's record; the program's own pointer.
    unsafe {
        let record = &*record;
        if record.is_switching.swap(true, Relaxed) {
            leakscope_asan_rt::out_pid!("ERROR: starting fiber switch while in fiber switch\n");
            report::die();
        }
        record.next_stack[0].store(bottom, Relaxed);
        record.next_stack[1].store(bottom + bytes, Relaxed);
        // Without a place to keep it, the fiber ends, and its fake stack with it.
        let fake = fake_stack::detach(record);
        if save.is_null() {
            if fake > 1 {
                fake_stack::FakeStack::destroy(fake as *mut fake_stack::FakeStack);
            }
        } else {
            *save = fake;
        }
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __sanitizer_finish_switch_fiber(saved: usize, old_bottom: *mut usize, old_bytes: *mut usize) {
    let record = thread::current();
    if record.is_null() {
        return;
    }
    // SAFETY: the calling thread's record; the program's own pointers, where it gives them.
    unsafe {
        let record = &*record;
        if !record.is_switching.swap(false, Relaxed) {
            leakscope_asan_rt::out_pid!("ERROR: finishing a fiber switch that has not started\n");
            report::die();
        }
        if saved != 0 {
            record.fake_stack.store(saved as *mut fake_stack::FakeStack, Release);
        }
        let (low, high) = (record.stack_low.load(Relaxed), record.stack_high.load(Relaxed));
        if !old_bottom.is_null() {
            *old_bottom = low;
        }
        if !old_bytes.is_null() {
            *old_bytes = high - low;
        }
        record.stack_low.store(record.next_stack[0].load(Relaxed), Relaxed);
        record.stack_high.store(record.next_stack[1].load(Relaxed), Relaxed);
        record.unwind.set_stack(leakscope_rt::unwind::StackRange {
            low: record.stack_low.load(Relaxed) as u64,
            high: record.stack_high.load(Relaxed) as u64,
        });
    }
}

#[unsafe(no_mangle)]
extern "C" fn __sanitizer_get_estimated_allocated_size(bytes: usize) -> usize {
    bytes
}

#[unsafe(no_mangle)]
extern "C" fn __sanitizer_get_ownership(address: usize) -> c_int {
    c_int::from(heap::live_bytes(address).is_some())
}

#[unsafe(no_mangle)]
extern "C" fn __sanitizer_get_allocated_begin(address: usize) -> usize {
    match heap::find(address) {
        Some(found)
            if found.facts.state == heap::State::Allocated
                && (found.user..found.user + found.facts.requested_bytes.max(1)).contains(&address) =>
        {
            found.user
        }
        _ => 0,
    }
}

#[unsafe(no_mangle)]
extern "C" fn __sanitizer_get_allocated_size(address: usize) -> usize {
    if address == 0 {
        return 0;
    }
    heap::live_bytes(address).unwrap_or_else(|| {
        let hook = __sanitizer_get_allocated_size as *const () as usize;
        let name = "__sanitizer_get_allocated_size";
        report::heap::not_owned(&Caller::of_hook(hook), address, name, "bad-__sanitizer_get_allocated_size");
        0
    })
}

#[unsafe(no_mangle)]
extern "C" fn __sanitizer_get_allocated_size_fast(address: usize) -> usize {
    heap::live_bytes(address).unwrap_or(0)
}

#[unsafe(no_mangle)]
extern "C" fn __sanitizer_get_current_allocated_bytes() -> usize {
    let [_, allocated, _, freed] = heap::totals();
    allocated.saturating_sub(freed).max(1)
}

#[unsafe(no_mangle)]
extern "C" fn __sanitizer_get_heap_size() -> usize {
    regions::MAPPED_BYTES.load(Relaxed) + large::MAPPED_BYTES.load(Relaxed)
}

#[unsafe(no_mangle)]
extern "C" fn __sanitizer_get_free_bytes() -> usize {
    1
}

#[unsafe(no_mangle)]
extern "C" fn __sanitizer_get_unmapped_bytes() -> usize {
    1
}

#[unsafe(no_mangle)]
extern "C" fn __sanitizer_purge_allocator() {
    heap::purge();
}

/// Functions that the program installed: pairs of one for allocations and one for releases.
static INSTALLED: [[AtomicUsize; 2]; 5] = [const { [const { AtomicUsize::new(0) }; 2] }; 5];
/// The program's `__sanitizer_malloc_hook`, `__sanitizer_free_hook` and `__sanitizer_ignore_free_hook`.
static WEAK: [AtomicUsize; 3] = [const { AtomicUsize::new(0) }; 3];

extern "C" fn on_allocation(address: usize, bytes: usize) {
    let all = core::iter::once(&WEAK[0]).chain(INSTALLED.iter().map(|pair| &pair[0]));
    for hook in all.map(|hook| hook.load(Acquire)).filter(|&hook| hook != 0) {
        // SAFETY: the interface says that it has this type.
        let hook: extern "C" fn(usize, usize) = unsafe { core::mem::transmute(hook) };
        hook(address, bytes);
    }
}

/// Whether the release is to be ignored.
extern "C" fn on_release(address: usize) -> bool {
    let ignore = WEAK[2].load(Acquire);
    if ignore != 0 {
        // SAFETY: the interface says that it has this type.
        let ignore: extern "C" fn(usize) -> c_int = unsafe { core::mem::transmute(ignore) };
        if ignore(address) != 0 {
            return true;
        }
    }
    let all = core::iter::once(&WEAK[1]).chain(INSTALLED.iter().map(|pair| &pair[1]));
    for hook in all.map(|hook| hook.load(Acquire)).filter(|&hook| hook != 0) {
        // SAFETY: the interface says that it has this type.
        let hook: extern "C" fn(usize) = unsafe { core::mem::transmute(hook) };
        hook(address);
    }
    false
}

fn start_hooks() {
    heap::HOOKS[0].store(on_allocation as *const () as usize, Relaxed);
    heap::HOOKS[1].store(on_release as *const () as usize, Relaxed);
    heap::HAS_HOOKS.store(true, Release);
}

#[unsafe(no_mangle)]
extern "C" fn __sanitizer_install_malloc_and_free_hooks(on_malloc: usize, on_free: usize) -> c_int {
    for (number, pair) in INSTALLED.iter().enumerate() {
        if on_malloc != 0 && on_free != 0 && pair[0].load(Relaxed) == 0 {
            pair[0].store(on_malloc, Release);
            pair[1].store(on_free, Release);
            start_hooks();
            return number as c_int + 1;
        }
    }
    0
}

#[unsafe(no_mangle)]
extern "C" fn __sanitizer_malloc_hook(_address: usize, _bytes: usize) {}

#[unsafe(no_mangle)]
extern "C" fn __sanitizer_free_hook(_address: usize) {}

#[unsafe(no_mangle)]
extern "C" fn __sanitizer_ignore_free_hook(_address: usize) -> c_int {
    0
}

#[unsafe(no_mangle)]
extern "C" fn __sanitizer_on_print(_text: *const c_char) {}

/// Looks for functions that the program defines in place of ours.
pub fn find_hooks() {
    let summary = originals::lookup(c"__sanitizer_report_error_summary");
    if summary != __sanitizer_report_error_summary as *const () as usize {
        hooks::ON_SUMMARY.store(summary, Relaxed);
    }
    let on_print = originals::lookup(c"__sanitizer_on_print");
    if on_print != __sanitizer_on_print as *const () as usize {
        output::ON_PRINT.store(on_print, Relaxed);
    }
    let ours = [
        (c"__sanitizer_malloc_hook", __sanitizer_malloc_hook as *const () as usize),
        (c"__sanitizer_free_hook", __sanitizer_free_hook as *const () as usize),
        (c"__sanitizer_ignore_free_hook", __sanitizer_ignore_free_hook as *const () as usize),
    ];
    for (slot, (name, own)) in WEAK.iter().zip(ours) {
        let found = originals::lookup(name);
        if found != 0 && found != own {
            slot.store(found, Release);
            start_hooks();
        }
    }
}

macro_rules! coverage_functions {
    ($($name:ident)*) => { $(
        #[unsafe(no_mangle)]
        extern "C" fn $name() {}
    )* };
}

// Coverage is not recorded.
coverage_functions! {
    __sanitizer_dump_coverage
    __sanitizer_cov_dump
    __sanitizer_cov_reset
    __sanitizer_cov_8bit_counters_init
    __sanitizer_cov_bool_flag_init
    __sanitizer_cov_load1
    __sanitizer_cov_load16
    __sanitizer_cov_load2
    __sanitizer_cov_load4
    __sanitizer_cov_load8
    __sanitizer_cov_pcs_init
    __sanitizer_cov_store1
    __sanitizer_cov_store16
    __sanitizer_cov_store2
    __sanitizer_cov_store4
    __sanitizer_cov_store8
    __sanitizer_cov_trace_cmp
    __sanitizer_cov_trace_cmp1
    __sanitizer_cov_trace_cmp2
    __sanitizer_cov_trace_cmp4
    __sanitizer_cov_trace_cmp8
    __sanitizer_cov_trace_const_cmp1
    __sanitizer_cov_trace_const_cmp2
    __sanitizer_cov_trace_const_cmp4
    __sanitizer_cov_trace_const_cmp8
    __sanitizer_cov_trace_div4
    __sanitizer_cov_trace_div8
    __sanitizer_cov_trace_gep
    __sanitizer_cov_trace_pc
    __sanitizer_cov_trace_pc_guard
    __sanitizer_cov_trace_pc_guard_init
    __sanitizer_cov_trace_pc_indir
    __sanitizer_cov_trace_switch
    __sanitizer_dump_trace_pc_guard_coverage
}
