//! What programs call around system calls of their own, `sanitizer/linux_syscall_hooks.h`: accepted, and nothing is
//! checked.

macro_rules! nothing {
    ($($name:ident)*) => { $(
        #[unsafe(no_mangle)]
        extern "C" fn $name() {}
    )* };
}

include!("syscall_names.rs");
