//! `/proc/self/maps`, read with system calls only. May run anywhere, a signal handler included.

use crate::raw;

/// One mapping of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapLine<'a> {
    /// First address.
    pub start: u64,
    /// One past the last address.
    pub end: u64,
    /// `r`.
    pub readable: bool,
    /// `w`.
    pub writable: bool,
    /// `x`.
    pub executable: bool,
    /// `s` rather than `p`.
    pub shared: bool,
    /// Inode; 0 for memory without a file.
    pub inode: u64,
    /// Path or `[name]`; empty without one.
    pub name: &'a [u8],
}

/// Decodes a line of `/proc/PID/maps`; `None` for anything else.
pub fn decode_line(line: &[u8]) -> Option<MapLine<'_>> {
    let mut fields = line.splitn(6, |&byte| byte == b' ');
    let range = fields.next()?;
    let dash = range.iter().position(|&byte| byte == b'-')?;
    let (start, end) = (hex(range.get(..dash)?)?, hex(range.get(dash + 1..)?)?);
    let [r, w, x, s] = *fields.next()? else { return None };
    let (_offset, _device) = (fields.next()?, fields.next()?);
    let inode = core::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let name = fields.next().unwrap_or(&[]).trim_ascii_start();
    Some(MapLine {
        start,
        end,
        readable: r == b'r',
        writable: w == b'w',
        executable: x == b'x',
        shared: s == b's',
        inode,
        name,
    })
}

fn hex(digits: &[u8]) -> Option<u64> {
    u64::from_str_radix(core::str::from_utf8(digits).ok()?, 16).ok()
}

/// Calls `each` for every mapping, by rising address. False when the file could not be read to its end.
pub fn for_each(mut each: impl FnMut(&MapLine<'_>)) -> bool {
    let Ok(fd) = raw::open_read(c"/proc/self/maps") else { return false };
    let complete = for_each_line(fd, |line| {
        if let Some(mapping) = decode_line(line) {
            each(&mapping);
        }
    });
    raw::close(fd);
    complete
}

/// Calls `each` for every line of a descriptor; lines of over 8 KiB are cut.
pub fn for_each_line(fd: i32, mut each: impl FnMut(&[u8])) -> bool {
    let mut buffer = [0u8; 8192];
    let mut held = 0;
    loop {
        let Some(room) = buffer.get_mut(held..) else { return false };
        let Ok(got) = raw::read(fd, room) else { return false };
        let filled = held + got;
        let mut from = 0;
        while let Some(rest) = buffer.get(from..filled)
            && let Some(length) = rest.iter().position(|&byte| byte == b'\n')
        {
            each(rest.get(..length).unwrap_or(&[]));
            from += length + 1;
        }
        if got == 0 {
            if let Some(rest) = buffer.get(from..filled).filter(|rest| !rest.is_empty()) {
                each(rest);
            }
            return true;
        }
        if from == 0 && filled == buffer.len() {
            each(&buffer);
            held = 0;
        } else {
            buffer.copy_within(from..filled, 0);
            held = filled - from;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_decode() {
        let line = b"7f00-7fff rw-p 00000000 08:01 1234                       /usr/lib/a b.so";
        let mapping = decode_line(line).expect("a good line");
        assert_eq!((mapping.start, mapping.end, mapping.inode), (0x7f00, 0x7fff, 1234));
        assert_eq!(mapping.name, b"/usr/lib/a b.so");
        assert!(mapping.writable && !mapping.executable && !mapping.shared);
        assert_eq!(decode_line(b"nonsense"), None);
        assert_eq!(decode_line(b""), None);
        assert!(decode_line(b"1-2 rwxs 0 0:0 0").is_some_and(|mapping| mapping.name.is_empty()));
    }

    #[test]
    fn the_same_mappings_as_std_reads() {
        let here = 0u8;
        let mut found = false;
        let mut last = 0;
        assert!(for_each(|mapping| {
            assert!(mapping.start >= last && mapping.end > mapping.start);
            last = mapping.end;
            found |= (mapping.start..mapping.end).contains(&(&raw const here as u64));
        }));
        assert!(found);
    }
}
