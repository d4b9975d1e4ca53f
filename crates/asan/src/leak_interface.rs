//! `sanitizer/lsan_interface.h`.

use core::ffi::{c_char, c_int, c_void};
use core::sync::atomic::Ordering::Relaxed;
use leakscope_asan_rt::{heap, leaks, options::options, originals, thread};

fn switch(off: bool) {
    leakscope_asan_rt::init::ensure();
    let record = thread::current();
    if record.is_null() {
        return;
    }
    // SAFETY: the calling thread's record.
    let depth = unsafe { &(*record).leaks_off };
    if off {
        depth.fetch_add(1, Relaxed);
    } else if depth.load(Relaxed) == 0 {
        leakscope_asan_rt::out_pid!("Unmatched call to __lsan_enable().\n");
        leakscope_asan_rt::report::die();
    } else {
        depth.fetch_sub(1, Relaxed);
    }
}

#[unsafe(no_mangle)]
extern "C" fn __lsan_disable() {
    switch(true);
}

#[unsafe(no_mangle)]
extern "C" fn __lsan_enable() {
    switch(false);
}

#[unsafe(no_mangle)]
extern "C" fn __lsan_ignore_object(address: *const c_void) {
    let Some(found) = heap::find(address as usize).filter(|found| found.facts.state == heap::State::Allocated) else {
        if options().verbosity > 0 {
            leakscope_asan_rt::out_pid!("__lsan_ignore_object(): no heap object found at {address:p}\n");
        }
        return;
    };
    heap::Chunk(found.user).write(heap::Facts { ignored: true, ..found.facts });
}

#[unsafe(no_mangle)]
extern "C" fn __lsan_register_root_region(start: *const c_void, bytes: usize) {
    leaks::register_region(start as usize, bytes);
}

#[unsafe(no_mangle)]
extern "C" fn __lsan_unregister_root_region(start: *const c_void, bytes: usize) {
    if !leaks::unregister_region(start as usize, bytes) {
        leakscope_asan_rt::out_pid!(
            "__lsan_unregister_root_region(): region at {start:p} of size {bytes} has not been registered.\n"
        );
        leakscope_asan_rt::report::die();
    }
}

#[unsafe(no_mangle)]
extern "C" fn __lsan_do_leak_check() {
    leaks::check_and_end();
}

#[unsafe(no_mangle)]
extern "C" fn __lsan_do_recoverable_leak_check() -> c_int {
    leaks::check_recoverably()
}

/// A program may turn the check off for good by a function of this name.
#[unsafe(no_mangle)]
extern "C" fn __lsan_is_turned_off() -> c_int {
    0
}

macro_rules! default_texts {
    ($($name:ident)*) => { $(
        #[unsafe(no_mangle)]
        extern "C" fn $name() -> *const c_char {
            c"".as_ptr()
        }
    )* };
}

default_texts! {
    __lsan_default_options
    __lsan_default_suppressions
    __asan_default_options
    __asan_default_suppressions
    __ubsan_default_options
    __sancov_default_options
}

/// Looks for the program's `__lsan_is_turned_off`.
pub fn look_for_switch() {
    leaks::IS_TURNED_OFF.store(originals::lookup(c"__lsan_is_turned_off"), Relaxed);
}
