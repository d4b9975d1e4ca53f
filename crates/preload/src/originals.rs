//! The functions that our hooks stand in for, found once with `dlsym(RTLD_NEXT)`.

use core::ffi::{CStr, c_char, c_int, c_void};
use core::sync::atomic::AtomicUsize;
use core::sync::atomic::Ordering::{Acquire, Release};
use leakscope_rt::thread::for_ourselves;

/// The address of an original; 0 until it is found, or when there is none. The address comes first: hooks written in
/// assembly jump through it.
#[repr(C)]
pub struct Original(AtomicUsize, &'static CStr);

impl Original {
    const fn new(name: &'static CStr) -> Self {
        Self(AtomicUsize::new(0), name)
    }

    /// The address, 0 when unknown.
    #[inline(always)]
    pub fn address(&self) -> usize {
        self.0.load(Acquire)
    }

    /// Looks for the original, and gives its address.
    #[cold]
    pub fn find(&self) -> usize {
        let known = self.address();
        if known != 0 {
            return known;
        }
        // SAFETY: the name is a C string; dlsym has no other preconditions.
        let found = for_ourselves(|| unsafe { libc::dlsym(libc::RTLD_NEXT, self.1.as_ptr()) }) as usize;
        self.0.store(found, Release);
        found
    }

    /// As [`Original::find`]; a program that calls an operator which nobody defines cannot go on.
    #[cold]
    pub fn find_or_abort(&self) -> usize {
        match self.find() {
            0 => {
                leakscope_rt::raw::complain("a function that the program calls has no original (out of memory?)");
                // SAFETY: does not return.
                unsafe { libc::abort() }
            }
            address => address,
        }
    }
}

macro_rules! originals {
    ($($(#[$doc:meta])* $name:ident = $symbol:literal: fn($($arg:ty),*) $(-> $result:ty)?;)*) => {
        $($(#[$doc])*
        #[allow(non_snake_case)]
        #[allow(dead_code)]
        pub mod $name {
            #[allow(unused_imports)]
            use super::*;
            /// Where the original is.
            pub static ORIGINAL: Original = Original::new($symbol);
            /// The original's type.
            pub type Function = unsafe extern "C" fn($($arg),*) $(-> $result)?;

            /// The original, if it is known.
            #[inline(always)]
            pub fn get() -> Option<Function> {
                let address = ORIGINAL.address();
                if address == 0 {
                    return None;
                }
                // SAFETY: dlsym gave this address for the symbol of this type.
                Some(unsafe { core::mem::transmute::<usize, Function>(address) })
            }

            /// The original; looks for it when it is not known yet.
            pub fn find() -> Option<Function> {
                ORIGINAL.find();
                get()
            }
        })*
    };
}

originals! {
    /// malloc(3)
    malloc = c"malloc": fn(usize) -> *mut c_void;
    /// calloc(3)
    calloc = c"calloc": fn(usize, usize) -> *mut c_void;
    /// realloc(3)
    realloc = c"realloc": fn(*mut c_void, usize) -> *mut c_void;
    /// free(3)
    free = c"free": fn(*mut c_void);
    /// memalign(3)
    memalign = c"memalign": fn(usize, usize) -> *mut c_void;
    /// aligned_alloc(3)
    aligned_alloc = c"aligned_alloc": fn(usize, usize) -> *mut c_void;
    /// posix_memalign(3)
    posix_memalign = c"posix_memalign": fn(*mut *mut c_void, usize, usize) -> c_int;
    /// valloc(3)
    valloc = c"valloc": fn(usize) -> *mut c_void;
    /// pvalloc(3)
    pvalloc = c"pvalloc": fn(usize) -> *mut c_void;
    /// malloc_usable_size(3)
    malloc_usable_size = c"malloc_usable_size": fn(*mut c_void) -> usize;
    /// mallinfo(3)
    mallinfo = c"mallinfo": fn(*mut c_void);
    /// mallinfo2(3)
    mallinfo2 = c"mallinfo2": fn(*mut c_void);
    /// malloc_info(3)
    malloc_info = c"malloc_info": fn(c_int, *mut c_void) -> c_int;
    /// malloc_stats(3)
    malloc_stats = c"malloc_stats": fn();
    /// malloc_trim(3)
    malloc_trim = c"malloc_trim": fn(usize) -> c_int;
    /// operator delete(void*)
    delete = c"_ZdlPv": fn(*mut c_void);
    /// operator delete[](void*)
    delete_array = c"_ZdaPv": fn(*mut c_void);
    /// dlclose(3)
    dlclose = c"dlclose": fn(*mut c_void) -> c_int;
    /// execve(2)
    execve = c"execve": fn(*const c_char, *const *const c_char, *const *const c_char) -> c_int;
    /// execvpe(3)
    execvpe = c"execvpe": fn(*const c_char, *const *const c_char, *const *const c_char) -> c_int;
    /// fexecve(3)
    fexecve = c"fexecve": fn(c_int, *const *const c_char, *const *const c_char) -> c_int;
    /// execl(3)
    execl = c"execl": fn(*const c_char) -> c_int;
    /// execlp(3)
    execlp = c"execlp": fn(*const c_char) -> c_int;
    /// execle(3)
    execle = c"execle": fn(*const c_char) -> c_int;
    /// sigaction(2)
    sigaction = c"sigaction": fn(c_int, *const libc::sigaction, *mut libc::sigaction) -> c_int;
    /// signal(2)
    signal = c"signal": fn(c_int, usize) -> usize;
    /// sysv_signal(3)
    sysv_signal = c"__sysv_signal": fn(c_int, usize) -> usize;
    /// exit(3)
    exit = c"exit": fn(c_int);
    /// _exit(2)
    exit_now = c"_exit": fn(c_int);
    /// quick_exit(3)
    quick_exit = c"quick_exit": fn(c_int);
    /// operator new(unsigned long)
    new = c"_Znwm": fn(usize) -> *mut c_void;
    /// operator new(unsigned long, std::nothrow_t const&)
    new_nothrow = c"_ZnwmRKSt9nothrow_t": fn(usize, *const c_void) -> *mut c_void;
    /// operator new(unsigned long, std::align_val_t)
    new_aligned = c"_ZnwmSt11align_val_t": fn(usize, usize) -> *mut c_void;
    /// operator new(unsigned long, std::align_val_t, std::nothrow_t const&)
    new_aligned_nothrow = c"_ZnwmSt11align_val_tRKSt9nothrow_t": fn(usize, usize, *const c_void) -> *mut c_void;
    /// operator new[](unsigned long)
    new_array = c"_Znam": fn(usize) -> *mut c_void;
    /// operator new[](unsigned long, std::nothrow_t const&)
    new_array_nothrow = c"_ZnamRKSt9nothrow_t": fn(usize, *const c_void) -> *mut c_void;
    /// operator new[](unsigned long, std::align_val_t)
    new_array_aligned = c"_ZnamSt11align_val_t": fn(usize, usize) -> *mut c_void;
    /// operator new[](unsigned long, std::align_val_t, std::nothrow_t const&)
    new_array_aligned_nothrow = c"_ZnamSt11align_val_tRKSt9nothrow_t": fn(usize, usize, *const c_void) -> *mut c_void;
}

/// Finds everything that a hook may need while it must not look for it.
pub fn find_all() -> bool {
    for original in [
        &free::ORIGINAL,
        &calloc::ORIGINAL,
        &realloc::ORIGINAL,
        &memalign::ORIGINAL,
        &aligned_alloc::ORIGINAL,
        &posix_memalign::ORIGINAL,
        &valloc::ORIGINAL,
        &pvalloc::ORIGINAL,
        &malloc_usable_size::ORIGINAL,
        &exit::ORIGINAL,
        &exit_now::ORIGINAL,
        &quick_exit::ORIGINAL,
        // Last: the hooks take its presence for a sign that the others are there.
        &malloc::ORIGINAL,
    ] {
        original.find();
    }
    malloc::get().is_some() && free::get().is_some()
}
