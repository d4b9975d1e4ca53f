//! `/proc/PID/maps`. Source: proc_pid_maps(5).

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;

/// One mapping of a process.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// Lowest address.
    pub start: u64,
    /// One past the highest address.
    pub end: u64,
    /// May be read.
    pub readable: bool,
    /// May be written.
    pub writable: bool,
    /// May be executed.
    pub executable: bool,
    /// Writes reach the file and other processes.
    pub shared: bool,
    /// Offset in the file, bytes.
    pub file_offset: u64,
    /// Device major and minor.
    pub device: (u32, u32),
    /// Inode, 0 for anonymous memory.
    pub inode: u64,
    /// Path or a name such as `[heap]`; empty for anonymous memory.
    pub name: OsString,
}

/// Reads the mappings of process `pid`, in address order.
///
/// # Errors
/// When the process is gone or not ours to look at, or a line is not as the kernel writes it.
pub fn read_maps(pid: u32) -> io::Result<Vec<Mapping>> {
    let text = std::fs::read(format!("/proc/{pid}/maps"))?;
    text.split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| {
            decode_line(line).ok_or_else(|| {
                let line = String::from_utf8_lossy(line);
                io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/maps: cannot read the line '{line}'"))
            })
        })
        .collect()
}

/// The mapping in one line without its newline; `None` when the line is malformed.
pub fn decode_line(line: &[u8]) -> Option<Mapping> {
    let mut rest = line;
    let mut field = || {
        rest = rest.trim_ascii_start();
        let end = rest.iter().position(|&byte| byte == b' ').unwrap_or(rest.len());
        let (field, tail) = rest.split_at(end);
        rest = tail;
        std::str::from_utf8(field).ok().filter(|field| !field.is_empty())
    };
    let (start, end) = field()?.split_once('-')?;
    let flags = field()?.as_bytes();
    let file_offset = field()?;
    let (major, minor) = field()?.split_once(':')?;
    let inode = field()?;
    let &[read, write, execute, sharing] = flags else { return None };
    let hex = |digits: &str| u64::from_str_radix(digits, 16).ok();
    Some(Mapping {
        start: hex(start)?,
        end: hex(end)?,
        readable: read == b'r',
        writable: write == b'w',
        executable: execute == b'x',
        shared: sharing == b's',
        file_offset: hex(file_offset)?,
        device: (u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?),
        inode: inode.parse().ok()?,
        name: OsString::from_vec(rest.trim_ascii_start().to_vec()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_maps_hold_this_function() {
        let here = own_maps_hold_this_function as *const () as usize as u64;
        let maps = read_maps(std::process::id()).unwrap();
        let mapping = maps.iter().find(|mapping| (mapping.start..mapping.end).contains(&here)).unwrap();
        assert!(mapping.executable && !mapping.writable);
        assert_eq!(mapping.name, std::env::current_exe().unwrap().into_os_string());
        assert!(maps.iter().any(|mapping| mapping.name == "[stack]"));
    }

    #[test]
    fn lines_by_table() {
        let line = b"7f01-7f02 r-xs 00001000 fe:1f 1234                       /a b/c (deleted)";
        let mapping = decode_line(line).unwrap();
        assert_eq!((mapping.start, mapping.end, mapping.file_offset), (0x7f01, 0x7f02, 0x1000));
        assert_eq!((mapping.readable, mapping.writable, mapping.executable, mapping.shared), (true, false, true, true));
        assert_eq!((mapping.device, mapping.inode), ((0xfe, 0x1f), 1234));
        assert_eq!(mapping.name, "/a b/c (deleted)");
        assert_eq!(decode_line(b"1-2 rw-p 0 00:00 0").unwrap().name, "");
        for bad in
            ["", "1-2", "1-2 rwxp", "1 rw-p 0 00:00 0", "g-2 rw-p 0 00:00 0", "1-2 rw- 0 00:00 0", "1-2 rw-p 0 00:00 x"]
        {
            assert_eq!(decode_line(bad.as_bytes()), None, "{bad}");
        }
    }
}
