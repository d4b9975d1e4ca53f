//! What fuzzers hear of comparisons: `__sanitizer_weak_hook_*`, which they define in the program. Ours do nothing.

use crate::hook;
use core::ffi::CStr;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicBool, AtomicUsize};
use leakscope_asan_rt::originals;
use leakscope_asan_rt::unwind::Caller;

static IS_HEARD: AtomicBool = AtomicBool::new(false);

macro_rules! comparisons {
    ($($which:ident = $name:ident;)*) => {
        /// The comparisons that can be heard of, with the number of each one's listener.
        #[derive(Clone, Copy)]
        pub enum Comparison {
            $($which,)*
        }

        const ALL: usize = [$(Comparison::$which),*].len();
        static LISTENERS: [AtomicUsize; ALL] = [const { AtomicUsize::new(0) }; ALL];

        $(
            #[unsafe(no_mangle)]
            extern "C" fn $name() {}
        )*

        /// The names, and our own functions of them.
        fn own() -> [(&'static CStr, usize); ALL] {
            [$((
                const {
                    match CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                        Ok(name) => name,
                        Err(_) => c"",
                    }
                },
                $name as *const () as usize,
            )),*]
        }
    };
}

comparisons! {
    Memcmp = __sanitizer_weak_hook_memcmp;
    Memmem = __sanitizer_weak_hook_memmem;
    Strcasecmp = __sanitizer_weak_hook_strcasecmp;
    Strcasestr = __sanitizer_weak_hook_strcasestr;
    Strcmp = __sanitizer_weak_hook_strcmp;
    Strncasecmp = __sanitizer_weak_hook_strncasecmp;
    Strncmp = __sanitizer_weak_hook_strncmp;
    Strstr = __sanitizer_weak_hook_strstr;
}

/// Looks for functions that the program defines in place of ours.
pub fn find_listeners() {
    for ((name, own), slot) in own().into_iter().zip(&LISTENERS) {
        let found = originals::lookup(name);
        if found != 0 && found != own {
            slot.store(found, Relaxed);
            IS_HEARD.store(true, Relaxed);
        }
    }
}

/// Tells the listener, if there is one, what `hook` was given and what it found: in the order of the interface.
#[inline(always)]
pub fn tell(which: Comparison, hook: usize, words: [usize; 5]) {
    if IS_HEARD.load(Relaxed) {
        tell_listener(which, hook, words);
    }
}

#[cold]
#[inline(never)]
fn tell_listener(which: Comparison, hook: usize, [a, b, c, d, e]: [usize; 5]) {
    let Some(listener) = LISTENERS.get(which as usize).map(|slot| slot.load(Relaxed)) else { return };
    if listener == 0 || !hook::is_checking() {
        return;
    }
    let pc = Caller::of_hook(hook).pc();
    // SAFETY: the interface's functions take at most six words, in registers: those that take fewer do not see the rest.
    let listener: extern "C" fn(usize, usize, usize, usize, usize, usize) = unsafe { core::mem::transmute(listener) };
    listener(pc, a, b, c, d, e);
}
