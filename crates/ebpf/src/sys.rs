//! The few commands of bpf(2) that the loader library does not wrap.
//!
//! Source: bpf(2) and linux/bpf.h of 6.1 (`union bpf_attr`, `struct bpf_prog_info`); commands and fields are of 5.8 or
//! earlier unless said otherwise.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

const LOOKUP_ELEM: u32 = 1;
const UPDATE_ELEM: u32 = 2;
const OBJ_GET_INFO_BY_FD: u32 = 15;
const LOOKUP_BATCH: u32 = 24;
const ENABLE_STATS: u32 = 32;

/// A value that is nothing but integers without padding, so that any bytes are one of it.
///
/// # Safety
/// The type is `repr(C)`, has no padding and no invalid bit patterns.
pub(crate) unsafe trait Plain: Copy + Default {}

// SAFETY: integers.
unsafe impl Plain for u32 {}
// SAFETY: integers.
unsafe impl Plain for u64 {}
// SAFETY: an array of integers.
unsafe impl Plain for [u8; 16] {}

#[repr(C)]
#[derive(Default)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct Element {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct Info {
    fd: u32,
    bytes: u32,
    address: u64,
}

fn bpf<T>(command: u32, attribute: &mut T) -> io::Result<i64> {
    // SAFETY: the kernel reads and writes `size_of::<T>()` bytes of the attribute; the addresses in it are of buffers
    // that our callers borrow for the length of this call and that are as long as the map's keys and values.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attribute), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Before 5.11 maps and programs count as memory that this process has locked, of which it may have 64 KiB. Without the
/// right to lift that, the kernel refuses the first map.
pub(crate) fn lift_memory_limit() {
    let unlimited = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the kernel reads one structure.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const unlimited) };
}

/// All elements of a hash map, in no order. An element that is there for the whole call is given once.
///
/// # Errors
/// When the kernel refuses. Batches exist since 5.6.
pub(crate) fn read_hash<K: Plain, V: Plain>(map: BorrowedFd<'_>, mut capacity: usize) -> io::Result<Vec<(K, V)>> {
    let mut all = Vec::new();
    let (mut position, mut started) = (0u32, false);
    loop {
        let mut keys = vec![K::default(); capacity];
        let mut values = vec![V::default(); capacity];
        let mut next = 0u32;
        let mut batch = Batch {
            in_batch: if started { (&raw const position) as u64 } else { 0 },
            out_batch: (&raw mut next) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: capacity as u32,
            map_fd: map.as_raw_fd() as u32,
            ..Batch::default()
        };
        let result = bpf(LOOKUP_BATCH, &mut batch);
        let is_last = match result {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            // A bucket with more elements than there is room for.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && capacity < 1 << 24 => {
                capacity *= 2;
                continue;
            }
            Err(error) => return Err(error),
        };
        let count = (batch.count as usize).min(capacity);
        all.extend(keys.into_iter().zip(values).take(count));
        if is_last {
            return Ok(all);
        }
        (position, started) = (next, true);
    }
}

/// An element of an array, or of a hash map; `None` when it is not there.
pub(crate) fn read_element<K: Plain, V: Plain>(map: BorrowedFd<'_>, key: K) -> io::Result<Option<V>> {
    let mut value = V::default();
    let mut element = Element {
        map_fd: map.as_raw_fd() as u32,
        key: (&raw const key) as u64,
        value: (&raw mut value) as u64,
        ..Element::default()
    };
    match bpf(LOOKUP_ELEM, &mut element) {
        Ok(_) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// An element of a per-CPU array, one value for each possible processor. `V` is a multiple of eight bytes long.
pub(crate) fn read_per_cpu<V: Plain>(map: BorrowedFd<'_>, key: u32, processors: usize) -> io::Result<Vec<V>> {
    assert_eq!(size_of::<V>() % 8, 0, "the kernel rounds values up to eight bytes");
    let mut values = vec![V::default(); processors];
    let mut element = Element {
        map_fd: map.as_raw_fd() as u32,
        key: (&raw const key) as u64,
        value: values.as_mut_ptr() as u64,
        ..Element::default()
    };
    bpf(LOOKUP_ELEM, &mut element)?;
    Ok(values)
}

/// Sets an element.
pub(crate) fn write_element<K: Plain, V: Plain>(map: BorrowedFd<'_>, key: K, value: V) -> io::Result<()> {
    let mut element = Element {
        map_fd: map.as_raw_fd() as u32,
        key: (&raw const key) as u64,
        value: (&raw const value) as u64,
        ..Element::default()
    };
    bpf(UPDATE_ELEM, &mut element).map(|_| ())
}

/// Puts a value into a queue.
pub(crate) fn push(map: BorrowedFd<'_>, value: u32) -> io::Result<()> {
    let mut element =
        Element { map_fd: map.as_raw_fd() as u32, value: (&raw const value) as u64, ..Element::default() };
    bpf(UPDATE_ELEM, &mut element).map(|_| ())
}

/// What the kernel says of a program's runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Runs {
    /// Time in the program while statistics were on, nanoseconds.
    pub(crate) run_time_ns: u64,
    /// Runs while statistics were on.
    pub(crate) runs: u64,
    /// Events that came while the program ran on the same processor, so that it was not run for them; since 5.12.
    pub(crate) misses: u64,
}

/// Reads a program's runs.
pub(crate) fn runs(program: BorrowedFd<'_>) -> io::Result<Runs> {
    // `struct bpf_prog_info` grows; older kernels fill less of it.
    let mut info = [0u64; 29];
    let mut attribute =
        Info { fd: program.as_raw_fd() as u32, bytes: size_of_val(&info) as u32, address: info.as_mut_ptr() as u64 };
    bpf(OBJ_GET_INFO_BY_FD, &mut attribute)?;
    let [run_time_ns, runs, misses] = [info[24], info[25], info[26]];
    Ok(Runs { run_time_ns, runs, misses })
}

/// Has the kernel measure its programs' run time until the descriptor is closed.
pub(crate) fn enable_statistics() -> io::Result<OwnedFd> {
    let mut kind = 0u32;
    let fd = bpf(ENABLE_STATS, &mut kind)?;
    // SAFETY: the kernel just opened this descriptor for us, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// CLOCK_MONOTONIC, which `bpf_ktime_get_ns` reads.
pub(crate) fn monotonic_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec of ours. This clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Waits until a descriptor can be read, or so many milliseconds.
pub(crate) fn wait_readable(fd: i32, milliseconds: i32) {
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd of ours. Whether it failed shows when the descriptor is read.
    unsafe { libc::poll(&raw mut poll, 1, milliseconds) };
}

/// The memory of an array map, which programs write meanwhile.
pub(crate) struct Shared {
    address: std::ptr::NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the memory is of this process, reached through a shared reference by atomic loads only, and unmapped by `drop`.
unsafe impl Send for Shared {}

impl Shared {
    /// Maps the first words of an array map that has BPF_F_MMAPABLE (since 5.5), read-only.
    pub(crate) fn new(map: BorrowedFd<'_>, words: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at an address that the kernel chooses; the descriptor is open.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                words * size_of::<u64>(),
                libc::PROT_READ,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let address = std::ptr::NonNull::new(address.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { address, words })
    }

    /// A word, as it is now.
    pub(crate) fn word(&self, at: usize) -> u64 {
        assert!(at < self.words, "{at} of {}", self.words);
        // SAFETY: within the mapping, which is page-aligned and lives as long as `self`; the kernel writes it, so the
        // load is atomic.
        unsafe { self.address.add(at).as_ref() }.load(Ordering::Acquire)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, of this length, and nothing refers to it any longer.
        unsafe { libc::munmap(self.address.as_ptr().cast(), self.words * size_of::<u64>()) };
    }
}
