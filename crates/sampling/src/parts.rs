//! What a process's memory is made of, out of `smaps`. Source: proc_pid_smaps(5); glibc's `malloc/arena.c` for arenas.
//!
//! | part | mappings |
//! |---|---|
//! | heap | `[heap]`, which grows by `brk`: glibc's main arena |
//! | arenas | glibc's other arenas: regions of 64 MiB at multiples of it, of which the rest is reserved without access |
//! | other anonymous | large blocks of malloc, other allocators, stacks |
//! | files | programs, libraries and other files, with what was written into private mappings of them |
//! | shared | `/dev/shm`, memfds, System V segments, shared anonymous memory |
//!
//! Bytes are resident or on swap. The kernel walks the page tables, and writes a kilobyte for each mapping: this is for few
//! processes at a time. The file is read line by line, so that a hundred thousand mappings take no memory of ours.

use std::fs::File;
use std::io::{BufRead, BufReader};

use crate::Places;

/// glibc's `HEAP_MAX_SIZE` with pointers of 64 bits.
const ARENA_BYTES: u64 = 64 << 20;
const BUFFER_BYTES: usize = 64 << 10;
/// A longer line is no line of `smaps`: paths have 4096 bytes at most, each of them may be written as four.
const LONGEST_LINE: u64 = 32 << 10;

/// What a process's memory, or that of several, is made of; bytes that are resident or on swap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// The mapping that grows by `brk`.
    pub heap_bytes: u64,
    /// glibc's arenas beside it.
    pub arena_bytes: u64,
    /// Other memory that no file stands behind.
    pub other_anonymous_bytes: u64,
    /// Mapped files.
    pub file_bytes: u64,
    /// Memory to be shared.
    pub shared_bytes: u64,
    /// Regions of 64 MiB of glibc's arenas.
    pub arenas: u64,
}

impl Parts {
    /// Adds what another process has.
    pub fn add(&mut self, other: &Self) {
        for (sum, more) in self.numbers().into_iter().zip(other.to_array()) {
            *sum = sum.saturating_add(more);
        }
    }

    /// In the order of the fields.
    pub fn to_array(self) -> [u64; 6] {
        let Self { heap_bytes, arena_bytes, other_anonymous_bytes, file_bytes, shared_bytes, arenas } = self;
        [heap_bytes, arena_bytes, other_anonymous_bytes, file_bytes, shared_bytes, arenas]
    }

    fn numbers(&mut self) -> [&mut u64; 6] {
        let Self { heap_bytes, arena_bytes, other_anonymous_bytes, file_bytes, shared_bytes, arenas } = self;
        [heap_bytes, arena_bytes, other_anonymous_bytes, file_bytes, shared_bytes, arenas]
    }
}

/// The parts of a process; `None` when it is gone, or not ours to see.
pub fn read_parts(places: &Places, pid: u32) -> Option<Parts> {
    let file = File::open(places.path(format!("/proc/{pid}/smaps"))).ok()?;
    decode_parts(BufReader::with_capacity(BUFFER_BYTES, file))
}

/// A mapping, as its line and those below it say.
#[derive(Clone, Copy)]
struct Mapping {
    start: u64,
    end: u64,
    kind: Kind,
    bytes: u64,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Heap,
    /// Known for one by its name: glibc names them when it is asked to.
    Arena,
    /// Anonymous and writable: an arena by its place, or something else.
    Anonymous,
    /// Anonymous without access.
    Reserved,
    File,
    Shared,
}

/// The parts in the text of `smaps`; `None` when it cannot be read or has no mapping.
fn decode_parts(mut text: impl BufRead) -> Option<Parts> {
    let mut parts = Parts::default();
    let (mut last, mut now): (Option<Mapping>, Option<Mapping>) = (None, None);
    let mut line = Vec::new();
    loop {
        line.clear();
        // A process that ends meanwhile ends the file.
        let read = std::io::Read::take(&mut text, LONGEST_LINE).read_until(b'\n', &mut line).ok()?;
        if read == 0 {
            break;
        }
        if let Some(mapping) = decode_header(&line) {
            count(&mut parts, last, now);
            (last, now) = (now, Some(mapping));
        } else if let Some(mapping) = &mut now {
            mapping.bytes = mapping.bytes.saturating_add(decode_amount(&line).unwrap_or(0));
        }
    }
    count(&mut parts, last, now);
    count(&mut parts, now, None);
    now.map(|_| parts)
}

/// Counts a mapping, knowing the one behind it.
fn count(parts: &mut Parts, mapping: Option<Mapping>, next: Option<Mapping>) {
    let Some(mapping) = mapping else { return };
    let sum = match mapping.kind {
        Kind::Heap => &mut parts.heap_bytes,
        Kind::Arena => {
            parts.arenas += 1;
            &mut parts.arena_bytes
        }
        Kind::Anonymous if is_arena(&mapping, next) => {
            parts.arenas += 1;
            &mut parts.arena_bytes
        }
        Kind::Anonymous | Kind::Reserved => &mut parts.other_anonymous_bytes,
        Kind::File => &mut parts.file_bytes,
        Kind::Shared => &mut parts.shared_bytes,
    };
    *sum = sum.saturating_add(mapping.bytes);
}

/// Whether a mapping begins a region of 64 MiB, the rest of which is reserved without access.
fn is_arena(mapping: &Mapping, next: Option<Mapping>) -> bool {
    let Some(end) = mapping.start.checked_add(ARENA_BYTES) else { return false };
    let reserves_rest = |next: Mapping| next.kind == Kind::Reserved && next.start == mapping.end && next.end >= end;
    mapping.start.is_multiple_of(ARENA_BYTES) && (mapping.end == end || next.is_some_and(reserves_rest))
}

/// `start-end perms offset device inode name`; `None` for the lines below it.
fn decode_header(line: &[u8]) -> Option<Mapping> {
    let text = String::from_utf8_lossy(line.trim_ascii_end());
    let (range, rest) = text.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
    let mut fields = rest.splitn(5, ' ');
    let access = fields.next()?;
    let inode: u64 = fields.nth(2)?.parse().ok()?;
    let name = fields.next().unwrap_or_default().trim_start();
    Some(Mapping { start, end, kind: kind(access, inode, name), bytes: 0 })
}

fn kind(access: &str, inode: u64, name: &str) -> Kind {
    const SHARED: [&str; 4] = ["/dev/shm/", "/memfd:", "/SYSV", "/dev/zero"];
    if name == "[heap]" {
        return Kind::Heap;
    }
    if name.starts_with("[anon: glibc: malloc arena]") {
        return Kind::Arena;
    }
    if inode != 0 || name.starts_with('/') {
        let is_shared = access.ends_with('s') && SHARED.iter().any(|beginning| name.starts_with(beginning));
        return if is_shared { Kind::Shared } else { Kind::File };
    }
    if access.starts_with("---") { Kind::Reserved } else { Kind::Anonymous }
}

/// The bytes of a line that counts.
fn decode_amount(line: &[u8]) -> Option<u64> {
    let rest = line.strip_prefix(b"Rss:").or_else(|| line.strip_prefix(b"Swap:"))?;
    let text = std::str::from_utf8(rest).ok()?;
    text.split_ascii_whitespace().next()?.parse::<u64>().ok().map(|kilobytes| kilobytes.saturating_mul(1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(head: &str, resident: u64, swap: u64) -> String {
        format!(
            "{head}\nSize: 99 kB\nRss: {resident} kB\nPss: 77 kB\nAnonymous: 66 kB\nSwap: {swap} kB\nSwapPss: 5 kB\nVmFlags: rd wr\n"
        )
    }

    #[test]
    fn each_part_by_its_mappings() {
        let text = [
            mapping("55d0c0000000-55d0c0001000 r-xp 00000000 fe:00 1234  /usr/bin/a b-c d", 1, 0),
            mapping("55d0c1000000-55d0c1100000 rw-p 00000000 00:00 0     [heap]", 10, 3),
            // An arena with the rest of its region; one that is full; one behind which the reserved part of another follows.
            mapping("7f0000000000-7f0000021000 rw-p 00000000 00:00 0 ", 100, 20),
            mapping("7f0000021000-7f0004000000 ---p 00000000 00:00 0 ", 0, 0),
            mapping("7f0004000000-7f0008000000 rw-p 00000000 00:00 0 ", 1000, 0),
            mapping("7f0008000000-7f0008001000 rw-p 00000000 00:00 0 ", 2000, 0),
            mapping("7f0008001000-7f000d000000 ---p 00000000 00:00 0 ", 0, 0),
            // At such a place, but without the rest; and reserved, but at another place.
            mapping("7f0010000000-7f0010001000 rw-p 00000000 00:00 0 ", 4, 0),
            mapping("7f0012000000-7f0012001000 rw-p 00000000 00:00 0 ", 8, 0),
            mapping("7f0012001000-7f0018000000 ---p 00000000 00:00 0 ", 0, 0),
            mapping("7f0020000000-7f0020800000 rw-p 00000000 00:00 0  [anon: glibc: malloc arena]", 10_000, 0),
            mapping("7f0030000000-7f0030001000 rw-s 00000000 00:05 7  /memfd:x (deleted)", 16, 0),
            mapping("7f0031000000-7f0031001000 rw-s 00000000 00:05 8  /dev/zero (deleted)", 32, 0),
            mapping("7f0032000000-7f0032001000 rw-p 00000000 fe:00 9  /dev/shm/private", 64, 0),
            mapping("7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0  [stack]", 128, 0),
        ];
        let parts = decode_parts(text.concat().as_bytes()).unwrap();
        let kilobytes = parts.to_array().map(|bytes| bytes / 1024);
        assert_eq!(kilobytes[..5], [13, 13_120, 4 + 8 + 128, 1 + 64, 48]);
        assert_eq!(parts.arenas, 4);
    }

    #[test]
    fn nonsense_is_nothing() {
        assert_eq!(decode_parts(&b""[..]), None);
        assert_eq!(decode_parts(&b"Rss: 5 kB\nno\n"[..]), None);
        let odd = "fffffffffff00000-ffffffffffffffff rw-p 0 0 0\nRss: x kB\nRss:\nRss: 99999999999999999999 kB\n-\nSwap: 4 kB\n";
        assert_eq!(decode_parts(odd.as_bytes()).unwrap().other_anonymous_bytes, 4096);
        let long = [b'a'; 100_000];
        assert_eq!(decode_parts(&long[..]), None);
    }
}
