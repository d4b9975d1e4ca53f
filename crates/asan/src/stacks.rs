//! Stack memory: frames of fake stacks, the shadow of frames, dynamic variables, jumps out of functions.

use core::sync::atomic::AtomicI32;
use core::sync::atomic::Ordering::Relaxed;
use leakscope_asan_rt::shadow_map::{self, why};
use leakscope_asan_rt::{fake_stack, poison, thread};

/// Instrumented code looks here whether to ask for fake frames. The program may hold the copy that counts.
#[unsafe(no_mangle)]
static __asan_option_detect_stack_use_after_return: AtomicI32 = AtomicI32::new(0);

/// Where the shadow is, for code that asks.
#[unsafe(no_mangle)]
static __asan_shadow_memory_dynamic_address: AtomicI64 = AtomicI64::new(shadow_map::OFFSET as i64);

use core::sync::atomic::AtomicI64;

macro_rules! fake_stacks {
    ($($class:literal: $malloc:ident, $always:ident, $free:ident;)*) => { $(
        #[unsafe(no_mangle)]
        extern "C" fn $malloc(_bytes: usize) -> usize {
            if fake_stack::IS_ON.load(Relaxed) == 0 {
                return 0;
            }
            let here = 0usize;
            fake_stack::allocate($class, &raw const here as usize)
        }

        #[unsafe(no_mangle)]
        extern "C" fn $always(_bytes: usize) -> usize {
            let here = 0usize;
            fake_stack::allocate($class, &raw const here as usize)
        }

        #[unsafe(no_mangle)]
        extern "C" fn $free(frame: usize, _bytes: usize) {
            fake_stack::release($class, frame);
        }
    )* };
}

fake_stacks! {
    0: __asan_stack_malloc_0, __asan_stack_malloc_always_0, __asan_stack_free_0;
    1: __asan_stack_malloc_1, __asan_stack_malloc_always_1, __asan_stack_free_1;
    2: __asan_stack_malloc_2, __asan_stack_malloc_always_2, __asan_stack_free_2;
    3: __asan_stack_malloc_3, __asan_stack_malloc_always_3, __asan_stack_free_3;
    4: __asan_stack_malloc_4, __asan_stack_malloc_always_4, __asan_stack_free_4;
    5: __asan_stack_malloc_5, __asan_stack_malloc_always_5, __asan_stack_free_5;
    6: __asan_stack_malloc_6, __asan_stack_malloc_always_6, __asan_stack_free_6;
    7: __asan_stack_malloc_7, __asan_stack_malloc_always_7, __asan_stack_free_7;
    8: __asan_stack_malloc_8, __asan_stack_malloc_always_8, __asan_stack_free_8;
    9: __asan_stack_malloc_9, __asan_stack_malloc_always_9, __asan_stack_free_9;
    10: __asan_stack_malloc_10, __asan_stack_malloc_always_10, __asan_stack_free_10;
}

macro_rules! set_shadow {
    ($($name:ident => $value:literal;)*) => { $(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(shadow: usize, count: usize) {
            // SAFETY: instrumented code passes its own frame's shadow.
            unsafe { shadow_map::fill_bytes(shadow, count, $value) };
        }
    )* };
}

set_shadow! {
    __asan_set_shadow_00 => 0x00;
    __asan_set_shadow_01 => 0x01;
    __asan_set_shadow_02 => 0x02;
    __asan_set_shadow_03 => 0x03;
    __asan_set_shadow_04 => 0x04;
    __asan_set_shadow_05 => 0x05;
    __asan_set_shadow_06 => 0x06;
    __asan_set_shadow_07 => 0x07;
    __asan_set_shadow_f1 => 0xf1;
    __asan_set_shadow_f2 => 0xf2;
    __asan_set_shadow_f3 => 0xf3;
    __asan_set_shadow_f5 => 0xf5;
    __asan_set_shadow_f8 => 0xf8;
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __asan_poison_stack_memory(start: usize, bytes: usize) {
    // SAFETY: a variable of the calling function, granule-aligned; its scope ends.
    unsafe { shadow_map::fill(start, bytes.next_multiple_of(8), why::STACK_AFTER_SCOPE) };
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __asan_unpoison_stack_memory(start: usize, bytes: usize) {
    // SAFETY: a variable of the calling function; its scope begins.
    unsafe { shadow_map::unpoison_object(start, bytes) };
}

#[unsafe(no_mangle)]
extern "C" fn __asan_alloca_poison(start: usize, bytes: usize) {
    poison::poison_alloca(start, bytes);
}

#[unsafe(no_mangle)]
extern "C" fn __asan_allocas_unpoison(top: usize, bottom: usize) {
    poison::unpoison_allocas(top, bottom);
}

/// The calling function will not return: nothing below it stays poisoned.
#[unsafe(no_mangle)]
extern "C" fn __asan_handle_no_return() {
    handle_no_return();
}

/// See [`__asan_handle_no_return`].
pub fn handle_no_return() {
    const MOST: usize = 64 << 20;
    if !leakscope_asan_rt::init::is_ready() {
        return;
    }
    let record = thread::current();
    if record.is_null() {
        return;
    }
    let here = 0usize;
    let sp = &raw const here as usize & !4095;
    // SAFETY: the calling thread's record.
    let record = unsafe { &*record };
    let (low, high) = (record.stack_low.load(Relaxed), record.stack_high.load(Relaxed));
    // The program may jump between the two stacks: the alternate one is cleared in any case.
    let is_on_signal_stack = clear_signal_stack();
    let from = if is_on_signal_stack { low } else { sp.max(low) };
    if is_on_signal_stack || (low..high).contains(&sp) || (low..high).contains(&(sp + 4096)) {
        if high - from <= MOST {
            // SAFETY: this thread's stack; the part in use, or all of it when another is in use.
            unsafe { shadow_map::fill(from & !7, (high - from) & !7, 0) };
        } else {
            warn_of_size(from, high);
        }
    }
    fake_stack::note_jump();
}

#[cold]
fn warn_of_size(from: usize, high: usize) {
    static WAS_TOLD: AtomicI32 = AtomicI32::new(0);
    if WAS_TOLD.swap(1, Relaxed) == 0 {
        leakscope_asan_rt::out_pid!(
            "WARNING: ASan is ignoring requested __asan_handle_no_return: stack type: default top: 0x{high:012x}; \
             bottom 0x{from:012x}; size: 0x{:x} ({})\nFalse positive error reports may follow\nFor details see \
             https://github.com/google/sanitizers/issues/189\n",
            high - from,
            high - from
        );
    }
}

/// Clears the alternate signal stack, if there is one; whether the thread runs on it.
fn clear_signal_stack() -> bool {
    // SAFETY: the kernel writes the structure.
    let stack = unsafe {
        let mut stack: libc::stack_t = core::mem::zeroed();
        if leakscope_asan_rt::signals::real_sigaltstack(core::ptr::null(), &raw mut stack) != 0 {
            return false;
        }
        stack
    };
    let (low, high) = ((stack.ss_sp as usize).next_multiple_of(8), (stack.ss_sp as usize + stack.ss_size) & !7);
    if stack.ss_flags & libc::SS_DISABLE == 0 && low < high && shadow_map::is_program(low) {
        // SAFETY: the thread's alternate stack.
        unsafe { shadow_map::fill(low, high - low, 0) };
    }
    stack.ss_flags & libc::SS_ONSTACK != 0
}

/// Tells instrumented code whether to use fake stacks: writes where the program looks.
pub fn publish_options() {
    let copy = leakscope_asan_rt::originals::lookup(c"__asan_option_detect_stack_use_after_return");
    let value = i32::from(fake_stack::IS_ON.load(Relaxed));
    __asan_option_detect_stack_use_after_return.store(value, Relaxed);
    if copy != 0 {
        // SAFETY: the address of an `int` of this name.
        unsafe { *(copy as *mut i32) = value };
    }
}
