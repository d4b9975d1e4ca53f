//! The library that `leakscope run` injects by LD_PRELOAD: exported hooks, their originals, start and end.
//!
//! A thin composition root: what happens at an allocation is in `leakscope_rt::runtime`. Everything here runs inside
//! the target, in any thread, possibly before `main` or in a signal handler.
#![no_std]

mod allocator;
mod connect;
mod cxx;
mod ending;
mod environment;
mod fork_exec;
mod heap_queries;
mod hooks;
mod mappings;
mod mtrace;
mod originals;
mod signals;
mod start;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    leakscope_rt::raw::complain("internal error in the injected library; please report it");
    // SAFETY: takes no arguments and does not return.
    unsafe { libc::abort() }
}
