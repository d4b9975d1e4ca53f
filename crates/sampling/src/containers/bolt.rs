//! Reads the database in which Podman before version 5 keeps its containers, as far as that takes: bbolt's file format.
//!
//! ```text
//!  page    := id u64, flags u16, count u16, overflow u32, elements
//!  meta    := (pages 0 and 1) magic u32, version u32, page size u32, flags u32, root (bucket), free list u64, pages u64,
//!             transaction u64, checksum u64: the one with the higher transaction counts
//!  branch  := count * (position u32, key size u32, page u64)
//!  leaf    := count * (flags u32, position u32, key size u32, value size u32); flag 1: the value is a bucket
//!  bucket  := root page u64, sequence u64; of root page 0 the page follows right here
//! ```
//!
//! Positions count from their element. Little-endian on x86-64. Pure and total: the file may be another program's half-written
//! one, so every offset is checked, and depth and visits are bounded. Source: bbolt's `page.go`, `bucket.go`, `db.go`.

const MAGIC: u32 = 0xed0c_daed;
const HEADER: usize = 16;
const BRANCH: u16 = 1;
const LEAF: u16 = 2;
const IS_BUCKET: u32 = 1;
/// Deeper trees have more entries than there are containers on earth.
const DEPTH: usize = 16;
/// Pages that are visited at most: a damaged file may lead in circles.
const VISITS: usize = 100_000;

/// A page, or what of one stands within a value; with what follows it.
type Page<'a> = &'a [u8];

/// The whole file.
pub(super) struct Database<'a> {
    data: &'a [u8],
    page_bytes: usize,
    root: u64,
}

/// A value, or the bytes of a bucket.
struct Entry<'a> {
    key: &'a [u8],
    value: &'a [u8],
    is_bucket: bool,
}

impl<'a> Database<'a> {
    /// Finds the newest root; `None` when this is no such file.
    pub(super) fn open(data: &'a [u8]) -> Option<Self> {
        let first = meta(data, 0);
        let page_bytes = first.map_or(4096, |(_, page_bytes, _)| page_bytes);
        let (_, page_bytes, root) = [first, meta(data, page_bytes)].into_iter().flatten().max()?;
        Some(Self { data, page_bytes, root })
    }

    /// The values of a key in all buckets that lie in a bucket of the root: each with its bucket's name.
    pub(super) fn values(&self, bucket: &[u8], key: &[u8]) -> Vec<(&'a [u8], &'a [u8])> {
        let mut visits = VISITS;
        let root = self.page(self.root).map(|page| self.entries(page, &mut visits)).unwrap_or_default();
        let inner = |entry: &Entry<'a>, visits: &mut usize| match self.bucket(entry) {
            Some(page) => self.entries(page, visits),
            None => Vec::new(),
        };
        let Some(outer) = root.iter().find(|entry| entry.key == bucket) else { return Vec::new() };
        let mut found = Vec::new();
        for one in inner(outer, &mut visits) {
            let values = inner(&one, &mut visits);
            let value = values.iter().find(|entry| entry.key == key && !entry.is_bucket);
            found.extend(value.map(|value| (one.key, value.value)));
        }
        found
    }

    fn page(&self, number: u64) -> Option<Page<'a>> {
        let start = usize::try_from(number).ok()?.checked_mul(self.page_bytes)?;
        self.data.get(start..).filter(|page| page.len() >= HEADER)
    }

    fn bucket(&self, entry: &Entry<'a>) -> Option<Page<'a>> {
        if !entry.is_bucket {
            return None;
        }
        match u64_at(entry.value, 0)? {
            0 => entry.value.get(16..),
            root => self.page(root),
        }
    }

    /// All entries below a page, in order of their keys.
    fn entries(&self, page: Page<'a>, visits: &mut usize) -> Vec<Entry<'a>> {
        let mut entries = Vec::new();
        let mut open = vec![(page, 0)];
        while let Some((page, depth)) = open.pop() {
            if depth > DEPTH || *visits == 0 {
                continue;
            }
            *visits -= 1;
            let (Some(flags), Some(count)) = (u16_at(page, 8), u16_at(page, 10)) else { continue };
            let numbers = (0..usize::from(count)).map(|number| HEADER + number * 16);
            if flags & BRANCH != 0 {
                let children: Vec<_> = numbers.filter_map(|at| self.page(u64_at(page, at + 8)?)).collect();
                open.extend(children.into_iter().rev().map(|child| (child, depth + 1)));
            } else if flags & LEAF != 0 {
                entries.extend(numbers.filter_map(|at| leaf(page, at)));
            }
        }
        entries
    }
}

fn leaf(page: Page<'_>, at: usize) -> Option<Entry<'_>> {
    let number = |field: usize| u32_at(page, at + 4 * field).map(|number| number as usize);
    let (start, key_bytes, value_bytes) = (at.checked_add(number(1)?)?, number(2)?, number(3)?);
    let middle = start.checked_add(key_bytes)?;
    let (key, value) = (page.get(start..middle)?, page.get(middle..middle.checked_add(value_bytes)?)?);
    Some(Entry { key, value, is_bucket: u32_at(page, at)? & IS_BUCKET != 0 })
}

/// Transaction, page size and root of a meta page.
fn meta(data: &[u8], start: usize) -> Option<(u64, usize, u64)> {
    let at = |field: usize| start.checked_add(HEADER + field);
    let word = |field: usize| u32_at(data, at(field)?);
    let is_meta = word(0)? == MAGIC && word(4)? == 2;
    let page_bytes = word(8)? as usize;
    if !is_meta || !page_bytes.is_power_of_two() || page_bytes < 512 {
        return None;
    }
    Some((u64_at(data, at(48)?)?, page_bytes, u64_at(data, at(16)?)?))
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes_at(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes_at(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes_at(bytes, at).map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A real file with bytes changed, cut off, and no file at all: something is found, or nothing, and it ends.
    #[test]
    fn damage_is_no_end() {
        let whole = include_bytes!("../../tests/data/podman-4.3/var/lib/containers/storage/libpod/bolt_state.db");
        let count = |data: &[u8]| Database::open(data).map(|database| database.values(b"ctr", b"config").len());
        assert_eq!(count(whole), Some(12));
        assert_eq!((count(b""), count(&[0xed; 5000])), (None, None));
        for length in (0..whole.len()).step_by(1000) {
            count(&whole[..length]);
        }
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut random = || {
            // xorshift: the same damage each time.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for _ in 0..300 {
            let mut damaged = whole.to_vec();
            for _ in 0..20 {
                let at = random() as usize % damaged.len();
                damaged[at / 4096 * 4096 + at % 200] = random() as u8;
            }
            count(&damaged);
        }
    }
}
