//! fork, dlopen and dlclose, prctl, mmap, mprotect, munmap: what changes the process under our records.

use crate::hook::{self, originals};
use core::ffi::{CStr, c_char, c_int, c_ulong, c_void};
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::Relaxed;
use leakscope_asan_rt::options::options;
use leakscope_asan_rt::report::misuse;
use leakscope_asan_rt::unwind::{Caller, UNWINDER};
use leakscope_asan_rt::{depot, globals, heap, report, shadow_map, symbolize, thread};

originals! {
    fn dlclose(handle: *mut c_void) -> c_int;
    fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void;
    fn prctl(option: c_int, a: c_ulong, b: c_ulong, c: c_ulong, d: c_ulong) -> c_int;
    fn mprotect(start: *mut c_void, bytes: usize, protection: c_int) -> c_int;
    fn munmap(start: *mut c_void, bytes: usize) -> c_int;
    fn mmap(start: *mut c_void, bytes: usize, protection: c_int, flags: c_int, fd: c_int, offset: i64) -> *mut c_void;
}

static EPOCH: AtomicU32 = AtomicU32::new(0);

/// Keeps the heap whole over a fork in a process with threads.
pub fn register() {
    // SAFETY: functions of the right type.
    unsafe { libc::pthread_atfork(Some(before_fork), Some(in_parent), Some(in_child)) };
}

unsafe extern "C" fn before_fork() {
    heap::lock_all();
}

unsafe extern "C" fn in_parent() {
    heap::unlock_all();
}

unsafe extern "C" fn in_child() {
    heap::unlock_all();
    heap::dormant::after_fork_in_child();
    leakscope_asan_rt::arena::ARENA.after_fork_in_child();
    depot::after_fork_in_child();
    globals::after_fork_in_child();
    symbolize::after_fork_in_child();
    report::after_fork_in_child();
    thread::after_fork_in_child();
}

/// Not naked and with nothing after the call: libc finds the caller's library by its return address, which has to be
/// the program's.
#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn dlopen() {
    core::arch::naked_asm!(
        ".cfi_startproc",
        "push rdi",
        ".cfi_adjust_cfa_offset 8",
        "push rsi",
        ".cfi_adjust_cfa_offset 8",
        "sub rsp, 8",
        ".cfi_adjust_cfa_offset 8",
        "call {prepare}",
        "add rsp, 8",
        ".cfi_adjust_cfa_offset -8",
        "pop rsi",
        ".cfi_adjust_cfa_offset -8",
        "pop rdi",
        ".cfi_adjust_cfa_offset -8",
        "jmp rax",
        ".cfi_endproc",
        prepare = sym before_dlopen,
    )
}

static DLOPEN: leakscope_asan_rt::originals::Original = leakscope_asan_rt::originals::Original::new(c"dlopen");

unsafe extern "C" fn before_dlopen(path: *const c_char, flags: c_int) -> usize {
    const DEEP_BIND: c_int = 8;
    if flags & DEEP_BIND != 0 && !path.is_null() {
        // SAFETY: the program's path.
        let path = unsafe { CStr::from_ptr(path) }.to_string_lossy();
        leakscope_asan_rt::out_pid!(
            "You are trying to dlopen a {path} shared library with RTLD_DEEPBIND flag which is incompatible with \
             sanitizer runtime (see https://github.com/google/sanitizers/issues/611 for details). If you want to run \
             {path} library under sanitizers please remove RTLD_DEEPBIND from dlopen flags.\n"
        );
        report::die();
    }
    DLOPEN.get()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn dlclose(handle: *mut c_void) -> c_int {
    // SAFETY: the program's call.
    let result = unsafe { real::dlclose(handle) };
    // Other code may come to where this was.
    UNWINDER.set_epoch(EPOCH.fetch_add(1, Relaxed).wrapping_add(1) as u16);
    symbolize::forget();
    result
}

#[unsafe(no_mangle)]
unsafe extern "C" fn prctl(option: c_int, a: c_ulong, b: c_ulong, c: c_ulong, d: c_ulong) -> c_int {
    // SAFETY: the program's call; with PR_SET_NAME the argument is a C string of at most 16 bytes.
    unsafe {
        if option == libc::PR_SET_NAME && a != 0 {
            let mut name = [0u8; 17];
            for (i, slot) in name.iter_mut().enumerate().take(16) {
                *slot = *(a as *const u8).add(i);
                if *slot == 0 {
                    break;
                }
            }
            crate::hook::check_read(
                prctl as *const () as usize,
                "prctl",
                a as usize,
                name.iter().position(|&byte| byte == 0).unwrap_or(15) + 1,
            );
            if let Ok(name) = CStr::from_bytes_until_nul(&name) {
                crate::threads::name_current(name);
            }
        }
        real::prctl(option, a, b, c, d)
    }
}

/// `detect_write_exec`: no memory that is both is asked for in silence.
#[inline(always)]
fn look_for_write_exec(hook: usize, protection: c_int) {
    const BOTH: c_int = libc::PROT_WRITE | libc::PROT_EXEC;
    if protection & BOTH == BOTH && hook::is_checking() && options().detect_write_exec {
        misuse::writable_executable(&Caller::of_hook(hook));
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mprotect(start: *mut c_void, bytes: usize, protection: c_int) -> c_int {
    look_for_write_exec(mprotect as *const () as usize, protection);
    // SAFETY: the program's call.
    unsafe { real::mprotect(start, bytes, protection) }
}

/// What is unmapped is nobody's: whoever gets the addresses next finds them clean.
#[unsafe(no_mangle)]
unsafe extern "C" fn munmap(start: *mut c_void, bytes: usize) -> c_int {
    // SAFETY: the program's call.
    let result = unsafe { real::munmap(start, bytes) };
    if result == 0 {
        clean(start as usize, bytes);
    }
    result
}

macro_rules! maps {
    ($($name:ident)*) => { $(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(
            start: *mut c_void,
            bytes: usize,
            protection: c_int,
            flags: c_int,
            fd: c_int,
            offset: i64,
        ) -> *mut c_void {
            const FIXED: c_int = libc::MAP_FIXED;
            look_for_write_exec($name as *const () as usize, protection);
            if !start.is_null() && leakscope_asan_rt::init::is_ready() {
                let last = (start as usize).wrapping_add(bytes.max(1) - 1);
                // What a driver maps into the gap is its affair.
                let is_ours = |address: usize| shadow_map::is_shadow(address) || heap::is_heap_space(address);
                if is_ours(start as usize) || is_ours(last) {
                    // What was a block once is the program's to use, if it insists.
                    let is_ceded = flags & FIXED != 0
                        && start as usize % 4096 == 0
                        && heap::large::cede(start as usize, bytes.next_multiple_of(4096));
                    if is_ceded {
                        // SAFETY: the program's call, over memory that is nobody's.
                        return unsafe { real::mmap(start, bytes, protection, flags, fd, offset) };
                    }
                    if flags & FIXED != 0 {
                        // SAFETY: errno is the calling thread's.
                        unsafe { *libc::__errno_location() = libc::EINVAL };
                        return libc::MAP_FAILED;
                    }
                    // SAFETY: the program's call, without the hint.
                    return unsafe { real::mmap(core::ptr::null_mut(), bytes, protection, flags, fd, offset) };
                }
            }
            // SAFETY: the program's call.
            let result = unsafe { real::mmap(start, bytes, protection, flags, fd, offset) };
            if result != libc::MAP_FAILED {
                clean(result as usize, bytes);
            }
            result
        }
    )* };
}

maps! { mmap mmap64 }

macro_rules! locks {
    ($($name:ident)*) => { $(
        /// The shadow cannot be kept in memory: locking does nothing.
        #[unsafe(no_mangle)]
        extern "C" fn $name() -> c_int {
            0
        }
    )* };
}

locks! { mlock munlock mlockall munlockall }

fn clean(start: usize, bytes: usize) {
    let bytes = bytes.next_multiple_of(4096);
    let is_program =
        bytes > 0 && shadow_map::has_shadow(start) && shadow_map::has_shadow(start.wrapping_add(bytes - 1));
    if leakscope_asan_rt::init::is_ready() && start.is_multiple_of(4096) && is_program && !heap::is_heap_space(start) {
        // SAFETY: the range is not mapped, or was mapped just now.
        unsafe { shadow_map::fill(start, bytes, 0) };
    }
}
