//! Stacks by number: each distinct stack is stored once, as differences between its frames, a few bytes each.
//!
//! Lookups take no lock. A stack's number is the place of its record; numbers are never reused.
//!
//! Record, in units of 8 bytes: hash (u64), next in bucket (u32), frames (u8), bytes (u24), then the frames as zigzag
//! varints of the difference to the frame before.

use alloc::vec::Vec;
use core::num::NonZeroU64;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize};
use leakscope_rt::memory::{Lock, map_zeroed};

/// Most frames of a stack.
pub const MOST_FRAMES: usize = 255;
const BUCKETS: usize = 1 << 16;
/// Address space for records; what is not written costs nothing.
const RESERVED_BYTES: usize = 4 << 30;
const HEADER_BYTES: usize = 16;

static BUCKET: [AtomicU32; BUCKETS] = [const { AtomicU32::new(0) }; BUCKETS];
static BASE: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());
/// Units in use; unit 0 is no record, so 0 stands for "no stack".
static USED_UNITS: AtomicUsize = AtomicUsize::new(1);
static LOCK: Lock = Lock::new();

/// Layouts that were seen lately: signature to stack. See `leakscope_rt::unwind`.
const REMEMBERED: usize = 1 << 17;
const WAYS: usize = 4;
const LINES: usize = REMEMBERED / WAYS;
/// Lines in use at first: programs with few stacks touch few pages. As often as half of the places have been filled there
/// are twice as many lines; what is then looked for in vain is walked once more.
const FIRST_LINES: usize = 1 << 9;
static LINE_MASK: AtomicUsize = AtomicUsize::new(FIRST_LINES - 1);
static FILLED: AtomicUsize = AtomicUsize::new(0);

#[repr(C, align(64))]
struct Line([[AtomicU64; 2]; WAYS]);

static SIGNATURES: [Line; LINES] = [const { Line([const { [AtomicU64::new(0), AtomicU64::new(0)] }; WAYS]) }; LINES];

fn mix(number: u64) -> u64 {
    number.wrapping_mul(0xD6E8_FEB8_6659_FD93)
}

#[inline(always)]
fn line_of(signature: u64) -> Option<&'static Line> {
    SIGNATURES.get((mix(signature) >> 40) as usize & LINE_MASK.load(Relaxed))
}

/// The stack that was remembered for a signature.
#[inline(always)]
pub fn recall(signature: NonZeroU64, salt: u64) -> Option<u32> {
    let key = signature.get() ^ salt;
    for [check, value] in &line_of(key)?.0 {
        let value = value.load(Relaxed);
        if check.load(Relaxed) ^ mix(value) == key && value != 0 {
            return Some(value as u32);
        }
    }
    None
}

/// Starts to load what [`recall`] needs.
#[inline(always)]
pub fn prefetch(signature: NonZeroU64, salt: u64) {
    if let Some(line) = line_of(signature.get() ^ salt) {
        leakscope_rt::memory::prefetch(core::ptr::from_ref(line));
    }
}

/// Remembers a stack for a signature.
pub fn remember(signature: NonZeroU64, salt: u64, stack: u32) {
    let key = signature.get() ^ salt;
    let Some(line) = line_of(key) else { return };
    let vacant = line.0.iter().find(|[_, value]| value.load(Relaxed) == 0);
    if vacant.is_some() {
        let mask = LINE_MASK.load(Relaxed);
        if FILLED.fetch_add(1, Relaxed) > (mask + 1) * WAYS / 2 && mask + 1 < LINES {
            // Of two threads that do this at once both store the same.
            LINE_MASK.store(mask * 2 + 1, Relaxed);
        }
    }
    let Some([check, value]) = vacant.or_else(|| line.0.get((mix(key) >> 30) as usize % WAYS)) else { return };
    let word = u64::from(stack);
    value.store(word, Relaxed);
    check.store(key ^ mix(word), Relaxed);
}

/// Forgets which signature stands for which stack; the stacks stay.
pub fn forget_signatures() {
    for line in &SIGNATURES[..=LINE_MASK.load(Relaxed).min(LINES - 1)] {
        for [check, value] in &line.0 {
            value.store(0, Relaxed);
            check.store(0, Relaxed);
        }
    }
    FILLED.store(0, Relaxed);
}

fn hash(frames: &[u64]) -> u64 {
    frames.iter().fold(0x9E37_79B9_7F4A_7C15 ^ frames.len() as u64, |hash, frame| {
        (hash.rotate_left(29) ^ frame).wrapping_mul(0xBF58_476D_1CE4_E5B9)
    })
}

/// Encodes frames; gives the bytes used.
fn encode(frames: &[u64], out: &mut [u8]) -> usize {
    let (mut at, mut previous) = (0, 0u64);
    for &frame in frames {
        let difference = frame.wrapping_sub(previous) as i64;
        let mut zigzag = (difference << 1 ^ difference >> 63) as u64;
        previous = frame;
        loop {
            let Some(byte) = out.get_mut(at) else { return at };
            at += 1;
            *byte = (zigzag & 127) as u8 | if zigzag > 127 { 128 } else { 0 };
            zigzag >>= 7;
            if zigzag == 0 {
                break;
            }
        }
    }
    at
}

fn decode(mut bytes: &[u8], count: usize) -> Vec<u64> {
    let mut frames = Vec::with_capacity(count);
    let mut previous = 0u64;
    for _ in 0..count {
        let (mut zigzag, mut shift) = (0u64, 0);
        while let Some((&byte, rest)) = bytes.split_first() {
            bytes = rest;
            zigzag |= u64::from(byte & 127) << shift;
            shift = (shift + 7).min(63);
            if byte < 128 {
                break;
            }
        }
        previous = previous.wrapping_add((zigzag >> 1) ^ (zigzag & 1).wrapping_neg());
        frames.push(previous);
    }
    frames
}

#[derive(Clone, Copy)]
struct Record(*mut u8);

impl Record {
    fn of(number: u32) -> Option<Self> {
        let base = BASE.load(Acquire);
        (!base.is_null() && number != 0 && (number as usize) < USED_UNITS.load(Acquire))
            .then(|| Self(base.wrapping_add(number as usize * 8)))
    }

    fn hash(self) -> u64 {
        // SAFETY: a record's first word.
        unsafe { *self.0.cast::<u64>() }
    }

    /// Next record's number, frames, bytes.
    fn rest(self) -> (u32, usize, usize) {
        // SAFETY: a record's second word.
        let [next, sizes] = unsafe { *self.0.add(8).cast::<[u32; 2]>() };
        (next, (sizes & 255) as usize, (sizes >> 8) as usize)
    }
}

fn find(hash: u64, from: u32, count: usize) -> Option<u32> {
    let mut number = from;
    while let Some(record) = Record::of(number) {
        let (next, frames, _) = record.rest();
        // 64 bits and the length: what differs does not collide in practice.
        if record.hash() == hash && frames == count {
            return Some(number);
        }
        number = next;
    }
    None
}

/// The number of a stack, leaf first; 0 for an empty one or when there is no memory.
pub fn intern(frames: &[u64]) -> u32 {
    let frames = frames.get(..MOST_FRAMES).unwrap_or(frames);
    if frames.is_empty() {
        return 0;
    }
    let hash = hash(frames);
    let Some(bucket) = BUCKET.get((hash >> 40) as usize % BUCKETS) else { return 0 };
    if let Some(known) = find(hash, bucket.load(Acquire), frames.len()) {
        return known;
    }
    let _held = LOCK.lock();
    let head = bucket.load(Acquire);
    if let Some(known) = find(hash, head, frames.len()) {
        return known;
    }
    let mut base = BASE.load(Acquire);
    if base.is_null() {
        let Ok(fresh) = map_zeroed(RESERVED_BYTES) else { return 0 };
        BASE.store(fresh, Release);
        base = fresh;
    }
    let mut encoded = [0u8; MOST_FRAMES * 10];
    let bytes = encode(frames, &mut encoded);
    let units = (HEADER_BYTES + bytes).div_ceil(8);
    let number = USED_UNITS.load(Relaxed);
    if (number + units) * 8 > RESERVED_BYTES {
        return 0;
    }
    let place = base.wrapping_add(number * 8);
    // SAFETY: inside the reserved range, past every other record; readers come after the bucket's store.
    unsafe {
        *place.cast::<u64>() = hash;
        *place.add(8).cast::<[u32; 2]>() = [head, (bytes as u32) << 8 | frames.len() as u32];
        for (i, byte) in encoded.iter().take(bytes).enumerate() {
            *place.add(HEADER_BYTES + i) = *byte;
        }
    }
    USED_UNITS.store(number + units, Release);
    bucket.store(number as u32, Release);
    number as u32
}

/// The frames of a stack, leaf first; empty for a number that is none.
pub fn frames(number: u32) -> Vec<u64> {
    let Some(record) = Record::of(number) else { return Vec::new() };
    let (_, count, bytes) = record.rest();
    // SAFETY: the record's bytes.
    decode(unsafe { core::slice::from_raw_parts(record.0.add(HEADER_BYTES), bytes) }, count)
}

/// Runs `body`, during which nobody adds a stack.
pub fn with_lock<R>(body: impl FnOnce() -> R) -> R {
    let _held = LOCK.lock();
    body()
}

/// Opens the lock in a forked child, whoever held it.
pub fn after_fork_in_child() {
    if !LOCK.is_open() {
        LOCK.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_stacks_have_one_number() {
        let mut seen: Vec<(Vec<u64>, u32)> = Vec::new();
        let mut state = 7u64;
        for round in 0..2000u64 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let stack: Vec<u64> = (0..1 + (state >> 40) % 60)
                .map(|i| 0x5555_0000_0000 + (state >> 20).wrapping_mul(i) % 0xfff_ffff)
                .collect();
            let number = intern(&stack);
            assert_ne!(number, 0);
            assert_eq!(intern(&stack), number, "round {round}");
            seen.push((stack, number));
        }
        for (stack, number) in &seen {
            assert_eq!(&frames(*number), stack);
        }
    }

    #[test]
    fn extreme_frames_survive() {
        for stack in [vec_of(&[0]), vec_of(&[u64::MAX, 0, u64::MAX]), vec_of(&[1 << 63, 1, 1 << 47])] {
            assert_eq!(frames(intern(&stack)), stack);
        }
        assert_eq!(intern(&[]), 0);
        assert!(frames(0).is_empty() && frames(u32::MAX).is_empty());
    }

    fn vec_of(frames: &[u64]) -> Vec<u64> {
        frames.to_vec()
    }

    #[test]
    fn signatures_do_not_mix() {
        let one = NonZeroU64::new(0x1234_5678_9abc).expect("not zero");
        remember(one, 1, 77);
        assert_eq!(recall(one, 1), Some(77));
        assert_eq!(recall(one, 2), None);
    }
}
