//! pthread_create and what belongs to it: each thread gets a record before its own code runs, and loses it after its
//! last destructor.

use crate::hook::{for_ourselves, originals};
use alloc::boxed::Box;
use core::ffi::{CStr, c_char, c_int, c_void};
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use leakscope_asan_rt::options::options;
use leakscope_asan_rt::thread::{self, Context, WAITED_FOR};
use leakscope_asan_rt::unwind::Caller;
use leakscope_asan_rt::{init, signals};
use leakscope_rt::unwind::{StackRange, stack_of};

type Start = unsafe extern "C" fn(*mut c_void) -> *mut c_void;

originals! {
    fn pthread_create(
        thread: *mut libc::pthread_t,
        attributes: *const libc::pthread_attr_t,
        start: usize,
        argument: *mut c_void,
    ) -> c_int;
    fn pthread_setname_np(thread: libc::pthread_t, name: *const c_char) -> c_int;
    fn pthread_join(thread: libc::pthread_t, result: *mut *mut c_void) -> c_int;
    fn pthread_tryjoin_np(thread: libc::pthread_t, result: *mut *mut c_void) -> c_int;
    fn pthread_timedjoin_np(
        thread: libc::pthread_t,
        result: *mut *mut c_void,
        until: *const libc::timespec,
    ) -> c_int;
    fn pthread_detach(thread: libc::pthread_t) -> c_int;
    fn pthread_exit(result: *mut c_void) -> !;
    fn pthread_attr_getdetachstate(attributes: *const libc::pthread_attr_t, state: *mut c_int) -> c_int;
    fn pthread_getattr_np(thread: libc::pthread_t, attributes: *mut libc::pthread_attr_t) -> c_int;
}

/// What a new thread is given.
struct Birth {
    context: &'static Context,
    start: Start,
    argument: *mut c_void,
}

static KEY: AtomicU32 = AtomicU32::new(u32::MAX);

/// Makes the key whose destructor ends a thread's record; called once, at the start.
pub fn make_key() {
    let mut key = 0;
    // SAFETY: the destructor has the right type.
    if unsafe { libc::pthread_key_create(&raw mut key, Some(on_thread_end)) } == 0 {
        KEY.store(key, Release);
    }
}

/// Destructors of other keys may still run and allocate: the last round of four is ours.
unsafe extern "C" fn on_thread_end(record: *mut c_void) {
    const ROUNDS: u32 = 4;
    let current = thread::current();
    if current.is_null() || !core::ptr::eq(current, record.cast()) {
        return;
    }
    // SAFETY: the calling thread's record.
    let round = unsafe { (*current).destructor_rounds.fetch_add(1, Relaxed) } + 1;
    if round < ROUNDS {
        // SAFETY: the key is ours.
        unsafe { libc::pthread_setspecific(KEY.load(Acquire), record) };
        return;
    }
    signals::unset_signal_stack();
    thread::end();
}

fn own_stack() -> StackRange {
    let here = 0u8;
    for_ourselves(|| {
        // SAFETY: the attributes are initialised by pthread_getattr_np and destroyed.
        unsafe {
            let mut attributes: libc::pthread_attr_t = core::mem::zeroed();
            if real::pthread_getattr_np(libc::pthread_self(), &raw mut attributes) != 0 {
                return stack_of(&raw const here as u64).unwrap_or_default();
            }
            let (mut low, mut bytes) = (core::ptr::null_mut(), 0);
            libc::pthread_attr_getstack(&raw const attributes, &raw mut low, &raw mut bytes);
            libc::pthread_attr_destroy(&raw mut attributes);
            StackRange { low: low as u64, high: low as u64 + bytes as u64 }
        }
    })
}

unsafe extern "C" fn asan_thread_start(birth: *mut c_void) -> *mut c_void {
    // SAFETY: made by `pthread_create` for this thread alone.
    let Birth { context, start, argument } = *unsafe { Box::from_raw(birth.cast::<Birth>()) };
    // A stack that is known to be the thread's: glibc's own record, without an allocation (it has no affinity to ask).
    let here = 0u8;
    let stack = stack_of(&raw const here as u64).unwrap_or_default();
    // SAFETY: takes no arguments.
    let own_handle = unsafe { libc::pthread_self() } as usize;
    let _ = context.handle.compare_exchange(WAITED_FOR, own_handle, AcqRel, Relaxed);
    if thread::begin(context, stack) {
        let record = thread::current();
        // SAFETY: the key is ours; the record is the calling thread's.
        unsafe {
            (*record).entry_sp.store(&raw const here as usize, Relaxed);
            libc::pthread_setspecific(KEY.load(Acquire), record.cast());
            // What glibc allocates to answer is released at once, and is held by nothing that a check sees before.
            (*record).leaks_off.fetch_add(1, Relaxed);
            thread::set_stack(&*record, own_stack());
            (*record).leaks_off.fetch_sub(1, Relaxed);
            thread::clear_stack_shadow_below(&*record, &raw const here as usize);
        }
        signals::set_signal_stack();
    }
    context.pending[0].store(0, Relaxed);
    // SAFETY: what the program passed to pthread_create.
    let result = unsafe { start(argument) };
    keep_result(result);
    result
}

/// Until somebody joins the thread only we hold what it returned.
fn keep_result(result: *mut c_void) {
    let record = thread::current();
    if record.is_null() {
        return;
    }
    // SAFETY: the calling thread's record.
    let context = unsafe { &*(*record).context };
    if context.handle.load(Acquire) != 0 {
        context.pending[1].store(result as usize, Release);
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_exit(result: *mut c_void) -> ! {
    keep_result(result);
    // SAFETY: the program's call.
    unsafe { real::pthread_exit(result) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_detach(which: libc::pthread_t) -> c_int {
    if let Some(context) = thread::find_handle(which as usize) {
        context.forget_handle(which as usize, true);
    }
    // SAFETY: the program's call.
    unsafe { real::pthread_detach(which) }
}

fn is_detached(attributes: *const libc::pthread_attr_t) -> bool {
    let mut state = 0;
    // SAFETY: the program's attributes, if there are any.
    !attributes.is_null()
        && unsafe { pthread_attr_getdetachstate(attributes, &raw mut state) } == 0
        && state == libc::PTHREAD_CREATE_DETACHED
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_attr_getdetachstate(attributes: *const libc::pthread_attr_t, state: *mut c_int) -> c_int {
    // SAFETY: the program's call.
    let result = unsafe { real::pthread_attr_getdetachstate(attributes, state) };
    if result == 0 {
        let hook = pthread_attr_getdetachstate as *const () as usize;
        crate::hook::check_write(hook, "pthread_attr_getdetachstate", state as usize, 4);
    }
    result
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_create(
    new: *mut libc::pthread_t,
    attributes: *const libc::pthread_attr_t,
    start: Start,
    argument: *mut c_void,
) -> c_int {
    init::ensure();
    leakscope_asan_rt::globals::stop_init_order_checking_if_strict();
    let caller = Caller::of_hook(pthread_create as *const () as usize);
    let context = thread::new_context(thread::current_number(), caller.stack());
    // Until the thread runs nothing else may hold what it was given.
    context.pending[0].store(argument as usize, Relaxed);
    if !is_detached(attributes) {
        context.handle.store(WAITED_FOR, Release);
    }
    let birth = Box::into_raw(Box::new(Birth { context, start, argument }));
    // The thread's own block and its storage live as long as it does: they are no leaks.
    let record = thread::current();
    if !record.is_null() {
        // SAFETY: the calling thread's record.
        unsafe { (*record).leaks_off.fetch_add(1, Relaxed) };
    }
    // SAFETY: the program's call, with our start in front of its own.
    let result =
        unsafe { real::pthread_create(new, attributes, asan_thread_start as *const () as usize, birth.cast()) };
    if !record.is_null() {
        // SAFETY: as above.
        unsafe { (*record).leaks_off.fetch_sub(1, Relaxed) };
    }
    if result == 0 {
        // The thread itself does the same when it begins, and may be past its end already.
        // SAFETY: pthread_create wrote it.
        let _ = context.handle.compare_exchange(WAITED_FOR, unsafe { *new } as usize, AcqRel, Relaxed);
    } else {
        context.handle.store(0, Relaxed);
        context.alive.store(false, Relaxed);
        context.pending[0].store(0, Relaxed);
        // SAFETY: no thread was made.
        drop(unsafe { Box::from_raw(birth) });
    }
    result
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_setname_np(which: libc::pthread_t, name: *const c_char) -> c_int {
    // SAFETY: the program's call; its name is a C string.
    unsafe {
        if !name.is_null() && which == libc::pthread_self() {
            name_current(CStr::from_ptr(name));
        }
        real::pthread_setname_np(which, name)
    }
}

/// Names the calling thread in reports.
pub fn name_current(name: &CStr) {
    let record = thread::current();
    if !record.is_null() {
        // SAFETY: the calling thread's record.
        unsafe { (*(*record).context).set_name(&alloc::string::String::from_utf8_lossy(name.to_bytes())) };
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_join(which: libc::pthread_t, result: *mut *mut c_void) -> c_int {
    let context = joinable(pthread_join as *const () as usize, which);
    // SAFETY: the program's call.
    let code = unsafe { real::pthread_join(which, result) };
    if let Some(context) = context.filter(|_| code == 0) {
        context.forget_handle(which as usize, false);
    }
    if code != 0 && options().detect_invalid_join && init::is_ready() {
        match code {
            libc::ESRCH => invalid_join(pthread_join as *const () as usize, "non-existent"),
            libc::EINVAL => invalid_join(pthread_join as *const () as usize, "detached"),
            _ => {}
        }
    }
    code
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_tryjoin_np(which: libc::pthread_t, result: *mut *mut c_void) -> c_int {
    let context = joinable(pthread_tryjoin_np as *const () as usize, which);
    // SAFETY: the program's call.
    let code = unsafe { real::pthread_tryjoin_np(which, result) };
    if let Some(context) = context.filter(|_| code == 0) {
        context.forget_handle(which as usize, false);
    }
    code
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_timedjoin_np(
    which: libc::pthread_t,
    result: *mut *mut c_void,
    until: *const libc::timespec,
) -> c_int {
    let context = joinable(pthread_timedjoin_np as *const () as usize, which);
    // SAFETY: the program's call.
    let code = unsafe { real::pthread_timedjoin_np(which, result, until) };
    if let Some(context) = context.filter(|_| code == 0) {
        context.forget_handle(which as usize, false);
    }
    code
}

/// The thread that is to be joined, as far as we know it. Of one that was joined or detached before, libc would read a
/// structure that is gone: that is reported.
fn joinable(hook: usize, which: libc::pthread_t) -> Option<&'static Context> {
    if options().detect_invalid_join
        && init::is_ready()
        && let Some(what) = thread::why_not_to_be_joined(which as usize)
    {
        invalid_join(hook, what);
    }
    thread::find_handle(which as usize)
}

#[cold]
fn invalid_join(hook: usize, what: &str) -> ! {
    leakscope_asan_rt::out_pid!("ERROR: AddressSanitizer: Joining {what} thread, aborting.\n");
    leakscope_asan_rt::report::stack::print(&Caller::of_hook(hook).frames(256));
    leakscope_asan_rt::report::die();
}

unsafe extern "C" fn watch(_: *mut c_void) -> *mut c_void {
    leakscope_asan_rt::watch::watch()
}

/// Starts the thread that watches resident memory, if the options ask for it. It has no record: it is none of the
/// program's.
pub fn start_watch() {
    if !leakscope_asan_rt::watch::is_wanted() {
        return;
    }
    let mut thread = 0;
    // SAFETY: a thread of ours, by libc's own function; it has all signals blocked, as it inherits the mask.
    unsafe {
        let (mut all, mut before): (libc::sigset_t, libc::sigset_t) = (core::mem::zeroed(), core::mem::zeroed());
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        real::pthread_create(&raw mut thread, core::ptr::null(), watch as *const () as usize, core::ptr::null_mut());
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, core::ptr::null_mut());
    }
}
