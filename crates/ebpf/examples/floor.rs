//! What tracing costs at least: programs that do nothing, on the tracepoints of kmalloc, slab objects and pages. Says
//! `attached`, and goes on until it is interrupted. `cargo xtask bench kernel` runs it beside the tracers.
//!
//! Source: bpf(2), linux/bpf.h (`union bpf_attr`).

use std::io::Error;
use std::mem::size_of_val;

const PROG_LOAD: u32 = 5;
const RAW_TRACEPOINT_OPEN: u32 = 17;
const RAW_TRACEPOINT: u64 = 17;
/// `r0 = 0; exit`.
const PROGRAM: [u64; 2] = [0xb7, 0x95];
const TRACEPOINTS: [&std::ffi::CStr; 6] =
    [c"kmalloc", c"kfree", c"kmem_cache_alloc", c"kmem_cache_free", c"mm_page_alloc", c"mm_page_free"];

fn bpf(command: u32, attributes: &[u64]) -> Result<u64, Error> {
    // SAFETY: the kernel reads so many bytes, and from the addresses in them what `main` keeps alive; it writes nothing.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(attributes)) };
    u64::try_from(result).map_err(|_| Error::last_os_error())
}

fn main() {
    let license = c"GPL";
    let count = PROGRAM.len() as u64;
    let load = [RAW_TRACEPOINT | count << 32, PROGRAM.as_ptr() as u64, license.as_ptr() as u64, 0, 0, 0];
    for name in TRACEPOINTS {
        let attached =
            bpf(PROG_LOAD, &load).and_then(|program| bpf(RAW_TRACEPOINT_OPEN, &[name.as_ptr() as u64, program]));
        if let Err(error) = attached {
            eprintln!("{name:?}: {error}");
            std::process::exit(1);
        }
    }
    eprintln!("attached");
    // SAFETY: waits for a signal. Descriptors, and with them the programs, go with the process.
    unsafe { libc::pause() };
}
