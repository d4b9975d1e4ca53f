//! The engine's executable: static, at a fixed address, with an allocator of its own.
//!
//! Without Rust's own start: that would change SIGPIPE and handle SIGSEGV, and the target must find both as they were.
#![cfg_attr(all(target_arch = "x86_64", target_os = "linux"), no_main)]

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod engine {
    use std::ffi::{CStr, CString, c_char};

    use leakscope_memcheck::arena::Arena;
    use leakscope_memcheck::start::{Start, run};

    #[global_allocator]
    static ARENA: Arena = Arena::new();

    /// Where the engine is linked to lie, when it is built to work.
    const PLACE: std::ops::Range<usize> = 0x3000_0000..0x3400_0000;

    /// The strings of an array that ends with null.
    unsafe fn words(mut array: *const *const c_char) -> Vec<CString> {
        let mut list = Vec::new();
        // SAFETY: the kernel's arrays, which end so.
        unsafe {
            while !(*array).is_null() {
                list.push(CStr::from_ptr(*array).to_owned());
                array = array.add(1);
            }
        }
        list
    }

    /// Called by the C library's start code.
    #[unsafe(no_mangle)]
    extern "C" fn main(_count: i32, arguments: *const *const c_char, environment: *const *const c_char) -> i32 {
        // SAFETY: what the C library's start code hands over.
        let (mut arguments, environment) = unsafe { (words(arguments), words(environment)) };
        if !PLACE.contains(&(main as *const () as usize)) || arguments.len() < 4 {
            eprintln!(
                "leakscope-memcheck: `leakscope memcheck` brings and starts this program in a form of its own; this one does nothing"
            );
            return 2;
        }
        let rest = arguments.split_off(3);
        let path = arguments.remove(2);
        run(Start { connect: arguments.remove(1).into_bytes(), path, arguments: rest, environment })
    }
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn main() {
    eprintln!("leakscope-memcheck: it needs x86-64 Linux");
    std::process::exit(2);
}
