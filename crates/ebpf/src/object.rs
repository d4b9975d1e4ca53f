//! The compiled BPF programs, embedded.

use crate::Error;

/// An object with the alignment that its reader wants.
#[repr(align(32))]
struct Aligned<T: ?Sized>(T);

static KMEM: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/kmem.bpf.o")));
static UMEM: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/umem.bpf.o")));
/// Why there are none; empty when there are.
const ABSENT: &str = env!("LEAKSCOPE_EBPF_ABSENT");

fn object(bytes: &'static [u8]) -> Result<&'static [u8], Error> {
    if bytes.is_empty() { Err(Error::NotBuilt(ABSENT)) } else { Ok(bytes) }
}

pub(crate) fn kmem() -> Result<&'static [u8], Error> {
    object(&KMEM.0)
}

pub(crate) fn umem() -> Result<&'static [u8], Error> {
    object(&UMEM.0)
}
