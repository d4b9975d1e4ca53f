//! The structures of `bpf/blocks.h`, as the maps hold them.

use crate::sys::Plain;

/// Frames that are kept of a stack: `MOST_FRAMES`.
pub const MOST_FRAMES: usize = 64;
/// One allocation that stands for itself: `WEIGHT_ONE`.
pub(crate) const WEIGHT_ONE: f64 = 65536.0;

/// `struct block`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) born_ns: u64,
    pub(crate) cgroup: u64,
    pub(crate) requested: u64,
    pub(crate) usable: u64,
    pub(crate) weight: u64,
    pub(crate) site: u32,
    pub(crate) tgid: u32,
    pub(crate) order: u32,
    pub(crate) kind: u32,
    pub(crate) unused: u64,
}

impl Block {
    /// Words of one.
    pub(crate) const WORDS: usize = size_of::<Self>() / 8;

    /// A block from its words, as they lie in memory.
    pub(crate) fn of(words: [u64; Self::WORDS]) -> Self {
        let halves = |word: u64| {
            let bytes = word.to_ne_bytes();
            let half = |at: usize| u32::from_ne_bytes(std::array::from_fn(|byte| bytes[at + byte]));
            (half(0), half(4))
        };
        let [born_ns, cgroup, requested, usable, weight, first, second, unused] = words;
        let ((site, tgid), (order, kind)) = (halves(first), halves(second));
        Self { born_ns, cgroup, requested, usable, weight, site, tgid, order, kind, unused }
    }
}

/// `struct sums`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    pub(crate) blocks: u64,
    pub(crate) requested: u64,
    pub(crate) usable: u64,
    pub(crate) missed_frees: u64,
}

/// Words of `struct state` behind the counters: times, a number and a stack.
const STATE_REST: usize = 3 + MOST_FRAMES;

/// `struct state`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct State {
    pub(crate) remaining: i64,
    pub(crate) rate: u64,
    pub(crate) events: u64,
    pub(crate) bytes: u64,
    pub(crate) unknown: u64,
    pub(crate) window_ns: u64,
    pub(crate) window_events: u64,
    pub(crate) last_tgid: u64,
    pub(crate) recalled: u64,
    pub(crate) unwound: u64,
    pub(crate) checked: u64,
    pub(crate) until_check: i64,
    rest: [u64; STATE_REST],
}

impl Default for State {
    fn default() -> Self {
        Self {
            remaining: 0,
            rate: 0,
            events: 0,
            bytes: 0,
            unknown: 0,
            window_ns: 0,
            window_events: 0,
            last_tgid: 0,
            recalled: 0,
            unwound: 0,
            checked: 0,
            until_check: 0,
            rest: [0; STATE_REST],
        }
    }
}

/// `struct site`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawSite {
    pub(crate) kind: u32,
    pub(crate) frames: u32,
    pub(crate) hash: u64,
    pub(crate) cache: u64,
    pub(crate) name: [u8; 32],
    pub(crate) ips: [u64; MOST_FRAMES],
}

impl Default for RawSite {
    fn default() -> Self {
        Self { kind: 0, frames: 0, hash: 0, cache: 0, name: [0; 32], ips: [0; MOST_FRAMES] }
    }
}

/// `struct event`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RawEvent {
    pub(crate) ns: u64,
    pub(crate) address: u64,
    pub(crate) requested: u64,
    pub(crate) usable: u64,
    pub(crate) call_site: u64,
    pub(crate) tgid: u32,
    pub(crate) tid: u32,
    pub(crate) kind: u8,
    pub(crate) freed: u8,
    pub(crate) order: u16,
    pub(crate) unused: u32,
    pub(crate) comm: [u8; 16],
}

// SAFETY: `repr(C)`, integers only; six u64 and four u32 leave no padding.
unsafe impl Plain for Block {}
// SAFETY: `repr(C)`, u64 only.
unsafe impl Plain for Sums {}
// SAFETY: `repr(C)`, integers of eight bytes only.
unsafe impl Plain for State {}
// SAFETY: `repr(C)`: two u32, then u64, bytes and u64 without gaps.
unsafe impl Plain for RawSite {}

/// A zero-terminated name; control characters, which no name of the kernel's has, are replaced.
pub(crate) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Indices of the map `lost`, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum LostKind {
    BlockFull,
    BlockBytes,
    BlockBusy,
    FreeBusy,
    SiteFull,
    Stack,
    StackCut,
    MissedFree,
    Bulk,
    EventRate,
    EventFull,
    Name,
    Call,
    StackWrong,
}
